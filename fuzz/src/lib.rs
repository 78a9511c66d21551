//! What must hold for any input, as one function for each target. A target is this function and nothing else.
//!
//! `ci/fuzz` runs them all; libFuzzer is told how large a single allocation may get, so that a length that is believed
//! before its bytes are there is a crash as well.
//!
//! | what comes from outside | target |
//! |---|---|
//! | preambles, session hellos, messages of the Unix socket | [`small`] |
//! | handshakes, with a key and without, on both sides | [`handshake`] |
//! | sealed records | [`records`] |
//! | frames of the control connection | [`frames`]; what a peer makes of a link by them: [`link`] |
//! | what an agent tells of itself and its regions, the blob | [`metadata`] |
//! | descriptor lists, and the question whether they may be served | [`lists`] |
//! | heads on data connections | [`data`] |
//! | completions, lost and confirmed rails, in any order | [`xfer`], [`rails`] |
//! | values of directory entries, whatever keeps them | [`entry`] |
//! | names of their files, addresses, keys as text | [`text`] |
//! | calls from C | [`capi`] |
//!
//! Not here: etcd's JSON, which serde_json reads into plain structs, and whose oddities `directory_etcd` sends; files that
//! peers share, of which only sizes and seals are believed (tests of `transfer_sys::memfd`); and generations in a peer's
//! ledger, of which any number is one.

pub mod capi;
pub mod data;
pub mod entry;
pub mod frames;
pub mod handshake;
pub mod link;
pub mod lists;
pub mod metadata;
pub mod rails;
pub mod records;
pub mod small;
pub mod steps;
pub mod text;
pub mod xfer;
