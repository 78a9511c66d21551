//! What agents say to each other, and the machines that keep track of it.
//!
//! | module | holds |
//! |---|---|
//! | [`time`] | time as an argument |
//! | [`preamble`] | the first bytes of every connection: magic, versions, kind, what is asked of it |
//! | [`session`] | which peer a local or data connection belongs to |
//! | [`metadata`] | what an agent tells of itself and its regions; the blob that applications carry |
//! | [`control`] | frames of the control connection |
//! | [`data`] | headers of data connections |
//! | [`local`] | messages of the Unix socket that passes file descriptors |
//! | [`link`] | the state machine of a control connection |
//! | [`rails`] | which connections to a peer stand, and how both sides give one up |
//! | [`serve`] | what a peer may touch |
//! | [`xfer`] | the state machine of a transfer |

pub mod control;
pub mod data;
pub mod link;
pub mod local;
pub mod metadata;
pub mod preamble;
pub mod rails;
pub mod serve;
pub mod session;
pub mod time;
pub mod xfer;
