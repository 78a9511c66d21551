//! The transfer engine of Headrace: it moves bytes between the memories of processes, over the best path there is,
//! and says which one that was.
//!
//! # Quick start
//! ```
//! use std::time::Duration;
//! use transfer_core::{Agent, Config, Desc, DescList};
//!
//! # fn main() -> Result<(), transfer_core::Error> {
//! // One agent in each process; here two in one.
//! let prefill = Agent::new(Config::new("prefill"))?;
//! let decode = Agent::new(Config::new("decode"))?;
//!
//! let theirs = prefill.alloc(1 << 20, "kv")?;
//! theirs.write_at(4096 * 7, &[42; 4096])?;
//!
//! // The decode side connects, finds the region, and prepares both lists once.
//! let peer = decode.connect(&prefill.address().expect("it listens"))?;
//! let region = peer.region("kv").expect("registered above");
//! let pages = Desc::paged(region.id, 0, 4096, 4096, vec![7, 3]);
//! let remote = peer.prepare(&DescList::from(pages))?;
//! let ours = decode.alloc(8192, "kv")?;
//! let local = decode.prepare(&DescList::from(Desc::contiguous(ours.id(), 0, 8192)))?;
//!
//! // Read pages 7 and 3; tell the peer's application when they are here.
//! let done = peer.read(&local, &remote).notify(b"request 1").post()?.wait(Duration::from_secs(5))?;
//! assert_eq!(done.bytes, 8192);
//! println!("{}", peer.explain(&local, &remote)?);
//!
//! let mut first = [0];
//! ours.read_at(0, &mut first)?;
//! assert_eq!(first, [42]);
//! # Ok(())
//! # }
//! ```
//!
//! # Words
//! [`Agent`]: one endpoint in one process. [`Region`]: registered memory. [`DescList`]: contiguous, strided or paged
//! spans over regions. [`LocalList`], [`RemoteList`]: a list that was checked and bound once. [`Xfer`]: a READ or
//! WRITE under way, with one terminal event. [`Event::Notif`]: bytes that reach the peer's application after the
//! data has landed, exactly once. [`Peer`]: another agent, in one of its lives. [`directory`]: finds agents by
//! name.
//!
//! # Threads, waiting, cleaning up
//! Every handle is `Send + Sync` and cheap to clone. A transfer is waited for by poll, by timeout, or as a future on
//! any executor; there is no runtime inside. Dropping an [`Xfer`] cancels it and waits until nothing touches its
//! memory; dropping the last [`Agent`] ends everything that hangs on it.
//!
//! # Safety
//! Peers write registered memory at any time, so it is only ever copied in and out, never borrowed. Only
//! [`Agent::register`], for memory that the application manages, asks for a promise. Unsafe code lives in `mem` and
//! `backend`, and each place names its invariant of `docs/ARCHITECTURE.md`.

mod address;
mod agent;
mod backend;
mod clock;
mod config;
mod counter;
mod dial;
pub mod directory;
mod driver;
mod error;
mod event;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
mod list;
mod mem;
mod peer;
mod rates;
mod secure;
mod shared;
mod sync;
mod xfer;

pub use address::Address;
pub use agent::Agent;
pub use config::Config;
pub use counter::Counter;
pub use error::{Error, KeyMissing, ProtocolError, Result};
pub use event::Event;
pub use list::{LocalList, RemoteList};
pub use mem::{Region, RegionOptions};
pub use peer::Peer;
pub use secure::Key;
pub use transfer_proto::codec::DecodeError;
pub use transfer_proto::desc::{Desc, DescError, DescList};
pub use transfer_proto::id::{CounterId, Incarnation, RailId, RegionId};
pub use transfer_proto::plan::{Explanation, Path, PathSet, Policy, Reason};
pub use transfer_proto::proto::control::{Farewell, NOTIF_MAX};
pub use transfer_proto::proto::data::Status;
pub use transfer_proto::proto::link::{LinkError, NotifError};
pub use transfer_proto::proto::metadata::{Access, Generations, RegionInfo, RegionKind};
pub use transfer_proto::proto::preamble::{PreambleError, Versions};
pub use transfer_proto::proto::xfer::{Failure, SliceError};
pub use transfer_sys::OsError;
pub use xfer::{Done, Op, Request, Xfer};
