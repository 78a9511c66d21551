//! Prepared lists: descriptors that were checked and bound to memory once.

use std::fmt;
use std::sync::Arc;

use transfer_proto::desc::DescList;
use transfer_proto::plan::{Explanation, Path, Piece};
use transfer_proto::proto::metadata::Access;
use transfer_sys::RawRange;
use transfer_sys::memfd::Mapping;

use crate::mem::{Ledger, RegionCore, RemoteRegion, View as _};
use crate::peer::PeerCore;
use crate::shared::Shared;

/// A descriptor list over regions of this agent, checked and bound. Clones share it.
#[derive(Clone)]
pub struct LocalList {
    pub(crate) core: Arc<LocalCore>,
}

pub(crate) struct LocalCore {
    pub(crate) list: DescList,
    /// For each descriptor, the memory of its region.
    ranges: Vec<RawRange>,
    /// Each region once.
    pub(crate) regions: Vec<Arc<RegionCore>>,
    pub(crate) agent: *const Shared,
    /// Where this agent says that it writes.
    pub(crate) ledger: Arc<Ledger>,
}

#[allow(unsafe_code, reason = "a pointer that is only compared")]
// SAFETY: S1. The pointer is an identity; nothing is ever read through it.
unsafe impl Send for LocalCore {}
#[allow(unsafe_code, reason = "a pointer that is only compared")]
// SAFETY: S1, as above.
unsafe impl Sync for LocalCore {}

impl LocalCore {
    pub(crate) fn new(
        list: DescList,
        bound: Vec<Arc<RegionCore>>,
        agent: *const Shared,
        ledger: Arc<Ledger>,
    ) -> Self {
        let ranges = bound.iter().map(|region| region.range()).collect();
        Self { list, ranges, regions: distinct(bound), agent, ledger }
    }

    /// Where a piece lies in this process. `None` only for a piece that was not made from this list.
    pub(crate) fn range(&self, piece: &Piece) -> Option<RawRange> {
        sub(*self.ranges.get(piece.local.0 as usize)?, piece.local.1, piece.len)
    }
}

impl LocalList {
    /// How many spans it has.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.core.list.count()
    }

    /// How many bytes all its spans have.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.core.list.bytes()
    }
}

impl fmt::Debug for LocalList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalList").field("list", &self.core.list).finish_non_exhaustive()
    }
}

/// A descriptor list over regions of a peer, checked, bound, and with its path chosen. Clones share it.
#[derive(Clone)]
pub struct RemoteList {
    pub(crate) core: Arc<RemoteCore>,
}

pub(crate) struct RemoteCore {
    pub(crate) list: DescList,
    pub(crate) peer: Arc<PeerCore>,
    pub(crate) path: Path,
    pub(crate) explanation: Explanation,
    /// For each descriptor, its region.
    bound: Vec<Arc<RemoteRegion>>,
    /// For each descriptor, where its region is mapped here; empty on other paths.
    mapped: Vec<Arc<Mapping>>,
    /// Each region once.
    pub(crate) regions: Vec<Arc<RemoteRegion>>,
}

impl RemoteCore {
    pub(crate) fn new(
        list: DescList,
        peer: Arc<PeerCore>,
        (path, explanation): (Path, Explanation),
        bound: Vec<Arc<RemoteRegion>>,
        mapped: Vec<Arc<Mapping>>,
    ) -> Self {
        let regions = distinct(bound.clone());
        Self { list, peer, path, explanation, bound, mapped, regions }
    }

    /// Whether the peer still has there what this list names; see [`View::admits`](crate::mem::View::admits).
    pub(crate) fn admits(&self, piece: &Piece) -> bool {
        let at = piece.remote.0 as usize;
        let (Some(desc), Some(region)) = (self.list.descs().get(at), self.bound.get(at)) else {
            return false;
        };
        let Some(guest) = self.peer.guest() else { return false };
        guest.ledger.admits(&region.info.generations, desc.generation(), piece.remote.1, piece.len)
    }

    /// The first region that its owner lets nobody write.
    pub(crate) fn read_only_region(&self) -> Option<&Arc<RemoteRegion>> {
        self.regions.iter().find(|region| region.info.access != Access::ReadWrite)
    }

    /// Where a piece is mapped in this process.
    pub(crate) fn mapped(&self, piece: &Piece) -> Option<RawRange> {
        sub(self.mapped.get(piece.remote.0 as usize)?.range(), piece.remote.1, piece.len)
    }

    /// Where a piece lies in the peer's process. Its list was checked against the region's length, which was
    /// checked not to reach beyond the address space.
    pub(crate) fn foreign(&self, piece: &Piece) -> Option<RawRange> {
        let base = self.bound.get(piece.remote.0 as usize)?.info.base;
        let addr = usize::try_from(base.checked_add(piece.remote.1)?).ok()?;
        Some(RawRange::new(std::ptr::without_provenance_mut(addr), usize::try_from(piece.len).ok()?))
    }
}

impl RemoteList {
    /// How many spans it has.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.core.list.count()
    }

    /// How many bytes all its spans have.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.core.list.bytes()
    }

    /// The path that transfers with it take.
    #[must_use]
    pub fn path(&self) -> Path {
        self.core.path
    }
}

impl fmt::Debug for RemoteList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let core = &self.core;
        f.debug_struct("RemoteList")
            .field("peer", &core.peer.name)
            .field("path", &core.path)
            .field("list", &core.list)
            .finish_non_exhaustive()
    }
}

fn sub(range: RawRange, offset: u64, len: u64) -> Option<RawRange> {
    range.sub(usize::try_from(offset).ok()?, usize::try_from(len).ok()?)
}

/// Each thing once.
fn distinct<T>(mut things: Vec<Arc<T>>) -> Vec<Arc<T>> {
    things.sort_by_key(|thing| Arc::as_ptr(thing).addr());
    things.dedup_by(|a, b| Arc::ptr_eq(a, b));
    things
}
