//! Prepared lists: descriptors that were checked and bound to memory once.

use std::fmt;
use std::sync::Arc;

use transfer_proto::desc::DescList;
use transfer_proto::plan::{Explanation, Path, Piece};
use transfer_sys::RawRange;
use transfer_sys::memfd::Mapping;

use crate::mem::{RegionCore, RemoteRegion};
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
}

#[allow(unsafe_code, reason = "a pointer that is only compared")]
// SAFETY: S1. The pointer is an identity; nothing is ever read through it.
unsafe impl Send for LocalCore {}
#[allow(unsafe_code, reason = "a pointer that is only compared")]
// SAFETY: S1, as above.
unsafe impl Sync for LocalCore {}

impl LocalCore {
    pub(crate) fn new(list: DescList, bound: Vec<Arc<RegionCore>>, agent: *const Shared) -> Self {
        let ranges = bound.iter().map(|region| region.range()).collect();
        Self { list, ranges, regions: distinct(bound), agent }
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
