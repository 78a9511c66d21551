//! Memory: regions of this agent, regions of peers, and who may still touch them.
//!
//! | module | holds |
//! |---|---|
//! | [`region`], [`table`] | memory of this agent, and its names |
//! | [`options`] | how it is registered |
//! | [`remote`] | memory of peers |
//! | [`gate`] | which transfers of this agent are inside |
//! | [`ledger`] | generations, and who writes; shared with peers of this host |
//! | [`guests`] | the peers of this host, as writers |
//! | [`arena`] | room in the ledger |

mod arena;
mod gate;
mod guests;
mod ledger;
#[cfg(loom)]
mod loom_words;
mod options;
mod region;
mod remote;
mod table;

pub(crate) use gate::{are_awaited, enter, leave};
pub(crate) use guests::{Guest, Guests, Inside};
pub(crate) use ledger::{Lane, Ledger, PeerLedger, View};
pub use options::RegionOptions;
pub use region::Region;
pub(crate) use region::{RegionCore, Unnamed, adopt, alloc, borrow};
pub(crate) use remote::RemoteRegion;
pub(crate) use table::RegionTable;
