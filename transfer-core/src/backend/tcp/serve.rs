//! What a peer may touch: its descriptors against our regions.

use std::sync::Arc;

use transfer_proto::desc::{Desc, DescList};
use transfer_proto::id::RegionId;
use transfer_proto::proto::data::Status;
use transfer_proto::proto::metadata::Access;
use transfer_proto::proto::serve::{self, Refusal};
use transfer_sys::RawRange;

use crate::mem::{Lane, RegionCore, RegionTable};

/// Memory of a promise that is kept for the next one: a list of a few thousand pages, and the regions that it names.
const KEPT_BYTES_MAX: usize = 64 << 10;
const KEPT_REGIONS_MAX: usize = 1024;

/// What a peer was promised of our regions. It keeps their memory, but not the right to touch it: that is looked at
/// inside a lane before each step, so that whoever revokes waits for a step and never for a slow peer.
#[derive(Debug, Default)]
pub(super) struct Promise {
    list: DescList,
    regions: Vec<Arc<RegionCore>>,
}

impl Promise {
    /// Names a list, with the memory of this promise; gives the list back that it named before.
    pub(super) fn renew(&mut self, list: DescList) -> DescList {
        self.clear();
        std::mem::replace(&mut self.list, list)
    }

    /// Lets go of everything but memory.
    pub(super) fn clear(&mut self) {
        self.list.clear();
        self.regions.clear();
    }

    /// Whether it has no more memory than a usual one, so that whoever sends others does not fill this process.
    pub(super) fn is_usual(&self) -> bool {
        self.list.capacity_bytes() <= KEPT_BYTES_MAX && self.regions.capacity() <= KEPT_REGIONS_MAX
    }

    /// Takes a lane of this agent, for one step that does not block.
    pub(super) fn enter(&self) -> Option<Lane<'_>> {
        self.regions.first().map(|region| region.enter())
    }

    /// The first span that was revoked since. To be asked inside a lane; where it is `None`, the memory stays what it is
    /// until the lane is left.
    pub(super) fn broken(&self) -> Option<u32> {
        let revoked = |index: &u64| {
            let Some(span) = self.list.span(*index) else { return true };
            let desc = &self.list.descs()[span.desc as usize];
            let region = find(&self.regions, desc.region());
            region.is_none_or(|region| !region.admits(desc.generation(), span.offset, span.len))
        };
        (0..self.list.count()).find(revoked).map(|index| u32::try_from(index).unwrap_or(u32::MAX))
    }
}

/// A region among some that are sorted by name.
fn find(regions: &[Arc<RegionCore>], id: RegionId) -> Option<&Arc<RegionCore>> {
    regions.binary_search_by_key(&id, |region| region.id).ok().map(|at| &regions[at])
}

/// Checks every span of a peer's list, which a promise names that is not made yet; it is made where this is `Ok`.
/// `wanted` is the payload that came with it; `ranges` is empty memory for the answer, which has so many bytes.
/// Cost: linear in spans and descriptors, but for a search in the regions that these name.
pub(super) fn resolve(
    promise: &mut Promise,
    regions: &RegionTable,
    wanted: Option<u64>,
    ranges: &mut Vec<RawRange>,
) -> Result<u64, Refusal> {
    let Promise { list, regions: found } = promise;
    find_distinct(list, regions, found);
    let region_of = |id| find(found, id);
    // Regions that are gone by now are missed here.
    let bytes = serve::check(list, wanted, |id| region_of(id).map(|region| region.range().len() as u64))?;
    if wanted.is_some() && found.iter().any(|region| region.access != Access::ReadWrite) {
        return Err(Refusal::new(Status::ReadOnly, 0));
    }
    for index in 0..list.count() {
        let refusal = || Refusal::new(Status::BadSpan, u32::try_from(index).unwrap_or(u32::MAX));
        let span = list.span(index).ok_or_else(refusal)?;
        let region = region_of(list.descs()[span.desc as usize].region()).ok_or_else(refusal)?;
        let (offset, len) = (usize::try_from(span.offset), usize::try_from(span.len));
        let (Ok(offset), Ok(len)) = (offset, len) else { return Err(refusal()) };
        if len > 0 {
            if !region.admits(list.descs()[span.desc as usize].generation(), span.offset, span.len) {
                return Err(Refusal::new(Status::Stale, refusal().span));
            }
            ranges.push(region.range().sub(offset, len).ok_or_else(refusal)?);
        }
    }
    if found.iter().any(|region| region.gate().is_closed()) {
        return Err(Refusal::new(Status::BadSpan, 0));
    }
    Ok(bytes)
}

/// The regions that a list names, as far as they exist, each once, by name.
fn find_distinct(list: &DescList, regions: &RegionTable, found: &mut Vec<Arc<RegionCore>>) {
    let mut last = None;
    let ids = list.descs().iter().map(Desc::region).filter(|id| last.replace(*id) != Some(*id));
    found.clear();
    found.extend(ids.filter_map(|id| regions.find(id)));
    found.sort_unstable_by_key(|region| region.id);
    found.dedup_by_key(|region| region.id);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::{Ledger, RegionOptions, adopt, alloc};

    /// What comes of a list that nothing else was named by before.
    struct Served {
        ranges: Vec<RawRange>,
        bytes: u64,
        promise: Promise,
    }

    fn served(list: DescList, regions: &RegionTable, wanted: Option<u64>) -> Result<Served, Refusal> {
        let (mut promise, mut ranges) = (Promise::default(), Vec::new());
        promise.renew(list);
        let bytes = resolve(&mut promise, regions, wanted, &mut ranges)?;
        Ok(Served { ranges, bytes, promise })
    }

    #[test]
    fn a_peer_gets_what_lies_in_a_region_and_nothing_else() {
        let (table, ledger) = (RegionTable::default(), Arc::new(Ledger::create("test").unwrap()));
        let options = RegionOptions::new("r").block_bytes(10);
        let region = table.insert(adopt(vec![0; 100], &options, &ledger).unwrap()).unwrap();
        let id = region.id;
        let status = |desc: Desc, wanted| {
            let served = served(DescList::from(desc), &table, wanted);
            served.map(|served| served.bytes).map_err(|refusal| refusal.status)
        };
        assert_eq!(status(Desc::strided(id, 0, 10, 20, 5), Some(50)), Ok(50));
        assert_eq!(status(Desc::contiguous(id, 0, 100), None), Ok(100));
        assert_eq!(status(Desc::contiguous(id, 0, 101), None), Err(Status::BadSpan));
        assert_eq!(status(Desc::contiguous(id, u64::MAX, 2), None), Err(Status::BadSpan));
        assert_eq!(status(Desc::contiguous(id, 0, 10), Some(11)), Err(Status::BadLength));
        assert_eq!(status(Desc::strided(id, 0, 100, 0, 4097), None), Err(Status::BadSpan));
        let huge = table.insert(alloc(1 << 20, &options, &ledger).unwrap()).unwrap();
        assert_eq!(status(Desc::strided(huge.id, 0, 1 << 20, 0, 65), None), Err(Status::BadLength));
        let other = RegionId::new(id.slot(), id.generation() + 1);
        assert_eq!(status(Desc::contiguous(other, 0, 1), None), Err(Status::BadSpan));
        let sealed = options.access(Access::ReadOnly);
        let sealed = table.insert(alloc(100, &sealed, &ledger).unwrap()).unwrap().id;
        assert_eq!(status(Desc::contiguous(sealed, 0, 1), Some(1)), Err(Status::ReadOnly));
        assert_eq!(status(Desc::contiguous(sealed, 0, 1), None), Ok(1));
        let granted = region.generation();
        region.raise(20, 1);
        let strided = Desc::strided(id, 0, 1, 10, 5).at_generation(granted);
        assert_eq!(
            served(strided.into(), &table, None).map(|served| served.bytes),
            Err(Refusal::new(Status::Stale, 2))
        );
        assert_eq!(status(Desc::contiguous(id, 30, 70).at_generation(granted), None), Ok(70));
        let promise =
            served(Desc::strided(id, 0, 1, 10, 5).at_generation(region.generation()).into(), &table, None);
        let Ok(Served { promise, .. }) = promise else { panic!("it lies in the region") };
        assert_eq!(promise.broken(), None);
        region.raise(40, 1);
        assert_eq!(promise.broken(), Some(4));
        region.gate().close();
        assert_eq!(status(Desc::contiguous(id, 0, 1), None), Err(Status::BadSpan));
    }

    #[test]
    fn many_regions_are_told_apart() {
        let (table, ledger) = (RegionTable::default(), Arc::new(Ledger::create("test").unwrap()));
        let region = |i| adopt(vec![i; 8], &RegionOptions::new("r"), &ledger).unwrap();
        let all: Vec<_> = (0..40_u8).map(|i| table.insert(region(i)).unwrap()).collect();
        let spans = all.iter().rev().chain(&all).map(|region| Desc::contiguous(region.id, 2, 4));
        let Ok(served) = served(spans.collect(), &table, None) else { panic!("they lie in them") };
        let starts: Vec<_> = served.ranges.iter().map(|range| range.addr()).collect();
        let wanted = all.iter().rev().chain(&all).map(|region| region.range().addr().wrapping_add(2));
        assert_eq!(starts, wanted.collect::<Vec<_>>());
    }
}
