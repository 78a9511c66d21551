//! Memory: regions of this agent, regions of peers, and who may still touch them.

mod gate;
mod region;
mod remote;
mod table;

pub(crate) use gate::Pass;
pub use region::Region;
pub(crate) use region::{RegionCore, adopt, alloc, borrow};
pub(crate) use remote::RemoteRegion;
pub(crate) use table::RegionTable;
