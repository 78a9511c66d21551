//! What a peer may touch: its descriptors against our regions.

use std::sync::Arc;

use transfer_proto::desc::DescList;
use transfer_proto::proto::data::{PAYLOAD_MAX, Status};
use transfer_sys::RawRange;

use crate::mem::{Pass, RegionCore, RegionTable};

/// Spans that one slice may have. Slices of an agent have a quarter of that at most.
const SPANS_MAX: u64 = 4096;

/// Ranges of our regions, and the right to keep them in place.
pub(super) struct Served {
    pub(super) ranges: Vec<RawRange>,
    pub(super) bytes: u64,
    pub(super) pass: Pass<RegionCore>,
}

/// Checks every span of a peer's list. `wanted` is the payload that came with it.
pub(super) fn resolve(list: &DescList, regions: &RegionTable, wanted: Option<u64>) -> Result<Served, Status> {
    if list.count() > SPANS_MAX {
        return Err(Status::BadSpan);
    }
    let found: Option<Vec<Arc<RegionCore>>> =
        list.descs().iter().map(|desc| regions.find(desc.region())).collect();
    let found = found.ok_or(Status::BadSpan)?;
    list.check(|id| found.iter().find(|region| region.id == id).map(|region| region.range().len() as u64))
        .map_err(|_| Status::BadSpan)?;
    let bytes = list.bytes();
    if bytes > PAYLOAD_MAX || wanted.is_some_and(|wanted| wanted != bytes) {
        return Err(Status::BadLength);
    }
    let mut ranges = Vec::with_capacity(usize::try_from(list.count()).unwrap_or(0));
    for index in 0..list.count() {
        let span = list.span(index).ok_or(Status::BadSpan)?;
        let (offset, len) = (usize::try_from(span.offset), usize::try_from(span.len));
        let (Ok(offset), Ok(len)) = (offset, len) else { return Err(Status::BadSpan) };
        if len > 0 {
            let whole = found[span.desc as usize].range();
            ranges.push(whole.sub(offset, len).ok_or(Status::BadSpan)?);
        }
    }
    let mut distinct = found;
    distinct.sort_by_key(|region| region.id);
    distinct.dedup_by_key(|region| region.id);
    let pass = Pass::enter(&distinct).map_err(|_| Status::BadSpan)?;
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
        let status = |desc: Desc, wanted| resolve(&DescList::from(desc), &table, wanted).map(|s| s.bytes);
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
