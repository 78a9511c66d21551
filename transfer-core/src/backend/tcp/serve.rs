//! What a peer may touch: its descriptors against our regions.

use std::sync::Arc;

use transfer_proto::desc::DescList;
use transfer_proto::proto::data::Status;
use transfer_proto::proto::serve::{self, Refusal};
use transfer_sys::RawRange;

use crate::mem::{Pass, RegionCore, RegionTable};

/// Ranges of our regions, and the right to keep them in place.
pub(super) struct Served {
    pub(super) ranges: Vec<RawRange>,
    pub(super) bytes: u64,
    pub(super) pass: Pass<RegionCore>,
}

/// Checks every span of a peer's list. `wanted` is the payload that came with it.
pub(super) fn resolve(
    list: &DescList,
    regions: &RegionTable,
    wanted: Option<u64>,
) -> Result<Served, Refusal> {
    // Those that are gone by now are missed by the check.
    let found: Vec<Option<Arc<RegionCore>>> =
        list.descs().iter().map(|desc| regions.find(desc.region())).collect();
    let bytes = serve::check(list, wanted, |id| {
        found.iter().flatten().find(|region| region.id == id).map(|region| region.range().len() as u64)
    })?;
    let mut ranges = Vec::with_capacity(usize::try_from(list.count()).unwrap_or(0));
    for index in 0..list.count() {
        let refusal = Refusal::new(Status::BadSpan, u32::try_from(index).unwrap_or(u32::MAX));
        let span = list.span(index).ok_or(refusal)?;
        let (offset, len) = (usize::try_from(span.offset), usize::try_from(span.len));
        let (Ok(offset), Ok(len), Some(region)) = (offset, len, &found[span.desc as usize]) else {
            return Err(refusal);
        };
        if len > 0 {
            ranges.push(region.range().sub(offset, len).ok_or(refusal)?);
        }
    }
    let mut distinct: Vec<_> = found.into_iter().flatten().collect();
    distinct.sort_by_key(|region| region.id);
    distinct.dedup_by_key(|region| region.id);
    let pass = Pass::enter(&distinct).map_err(|_| Refusal::new(Status::BadSpan, 0))?;
    Ok(Served { ranges, bytes, pass })
}

#[cfg(test)]
mod tests {
    use transfer_proto::desc::Desc;
    use transfer_proto::id::RegionId;

    use super::*;
    use crate::mem::{adopt, alloc};

    #[test]
    fn a_peer_gets_what_lies_in_a_region_and_nothing_else() {
        let table = RegionTable::default();
        let region = table.insert(adopt(vec![0; 100], "r")).unwrap();
        let id = region.id;
        let status = |desc: Desc, wanted| {
            resolve(&DescList::from(desc), &table, wanted).map(|s| s.bytes).map_err(|r| r.status)
        };
        assert_eq!(status(Desc::strided(id, 0, 10, 20, 5), Some(50)), Ok(50));
        assert_eq!(status(Desc::contiguous(id, 0, 100), None), Ok(100));
        assert_eq!(status(Desc::contiguous(id, 0, 101), None), Err(Status::BadSpan));
        assert_eq!(status(Desc::contiguous(id, u64::MAX, 2), None), Err(Status::BadSpan));
        assert_eq!(status(Desc::contiguous(id, 0, 10), Some(11)), Err(Status::BadLength));
        assert_eq!(status(Desc::strided(id, 0, 100, 0, 4097), None), Err(Status::BadSpan));
        let huge = table.insert(alloc(1 << 20, "huge").unwrap()).unwrap();
        assert_eq!(status(Desc::strided(huge.id, 0, 1 << 20, 0, 65), None), Err(Status::BadLength));
        let other = RegionId::new(id.slot(), id.generation() + 1);
        assert_eq!(status(Desc::contiguous(other, 0, 1), None), Err(Status::BadSpan));
        region.gate().close();
        assert_eq!(status(Desc::contiguous(id, 0, 1), None), Err(Status::BadSpan));
    }
}
