//! The KV hand-off: a prefill engine keeps the blocks of a prompt, a decode engine claims and pulls them.
//!
//! - [`params`]: `kv_transfer_params`, which the router carries from one to the other;
//! - [`layout`]: what the two must agree on before a byte moves;
//! - [`claim`]: the messages around a pull;
//! - [`lease`]: the prefill side's books; [`used`]: the decode side's;
//! - [`service`]: the agent with its events and both sides' books; [`pull`]: one pull from connecting to landing;
//! - [`store`]: the region as the model's KV cache; [`log`]: the last pulls, for `/headrace/info`.
//!
//! Invariant: a block is read by a peer only between the grant of a claim and the end of the time it was granted for,
//! and it is not given to anyone else in between. The reader's limit ends before the grant does, because it counts
//! from before its claim, and what arrives later is discarded.

pub(crate) mod claim;
pub(crate) mod layout;
mod lease;
mod log;
pub(crate) mod params;
mod pull;
mod service;
pub(crate) mod store;
mod used;

pub(crate) use params::HandOff;
pub(crate) use pull::{PullError, PullJob};
pub(crate) use service::{KvService, KvSettings};
