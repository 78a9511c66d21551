//! What a peer may touch: the spans that it names, against what this agent has registered.
//!
//! Only the question whether they lie inside; memory, and who is in it, is the backend's.

use crate::desc::{DescError, DescList};
use crate::id::RegionId;
use crate::proto::data::{PAYLOAD_MAX, Status};

/// Spans that one slice may have. Slices of an agent have a quarter of that at most.
pub const SPANS_MAX: u64 = 4096;

/// Why a slice is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Refusal {
    /// The reason.
    pub status: Status,
    /// The first span that it holds for, counted within the slice.
    pub span: u32,
}

impl Refusal {
    /// For this span of the slice.
    #[must_use]
    pub fn new(status: Status, span: u32) -> Self {
        Self { status, span }
    }
}

/// Checks every span of a slice, and how many bytes they have in all, which are returned. `payload` is what came with
/// it, `region_len` knows the regions that are there.
///
/// # Errors
/// [`Refusal`], which goes back to the peer.
pub fn check(
    list: &DescList,
    payload: Option<u64>,
    region_len: impl Fn(RegionId) -> Option<u64>,
) -> Result<u64, Refusal> {
    if list.count() > SPANS_MAX {
        return Err(Refusal::new(Status::BadSpan, 0));
    }
    list.check(&region_len).map_err(|error| {
        let index = match error {
            DescError::UnknownRegion { index, .. } | DescError::OutOfBounds { index, .. } => index,
            _ => 0,
        };
        Refusal::new(Status::BadSpan, first_outside(list, index, region_len))
    })?;
    let bytes = list.bytes();
    if bytes > PAYLOAD_MAX || payload.is_some_and(|payload| payload != bytes) {
        return Err(Refusal::new(Status::BadLength, 0));
    }
    Ok(bytes)
}

/// The first span of descriptor `index` that does not lie in its region.
fn first_outside(list: &DescList, index: usize, region_len: impl Fn(RegionId) -> Option<u64>) -> u32 {
    let outside = |at: &u64| {
        list.span(*at).filter(|span| span.desc as usize == index).is_some_and(|span| {
            let len = list.descs().get(index).and_then(|desc| region_len(desc.region()));
            span.offset.checked_add(span.len).is_none_or(|end| len.is_none_or(|len| end > len))
        })
    };
    (0..list.count()).find(outside).and_then(|at| u32::try_from(at).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;
    use crate::desc::Desc;

    const ID: RegionId = RegionId::new(1, 1);

    fn served(descs: &[Desc], payload: Option<u64>) -> Result<u64, Refusal> {
        let list: DescList = descs.iter().cloned().collect();
        check(&list, payload, |id| (id == ID).then_some(100))
    }

    #[test]
    fn what_lies_inside_is_served() {
        assert_eq!(served(&[Desc::strided(ID, 0, 10, 20, 5)], Some(50)), Ok(50));
        assert_eq!(served(&[Desc::contiguous(ID, 0, 100)], None), Ok(100));
        assert_eq!(served(&[], None), Ok(0));
    }

    #[test]
    fn a_refusal_names_the_first_span_outside() {
        let bad = |span| Err(Refusal::new(Status::BadSpan, span));
        let good = Desc::contiguous(ID, 0, 10);
        assert_eq!(served(&[good.clone(), Desc::paged(ID, 0, 10, 10, vec![3, 9, 10, 2])], None), bad(3));
        assert_eq!(served(&[good.clone(), Desc::contiguous(ID, u64::MAX, 2)], None), bad(1));
        let other = Desc::contiguous(RegionId::new(1, 2), 0, 1);
        assert_eq!(served(&[good.clone(), good.clone(), other], None), bad(2));
        assert_eq!(served(&[Desc::strided(ID, 0, 100, 0, 4097)], None), bad(0));
        assert_eq!(served(&[good], Some(11)), Err(Refusal::new(Status::BadLength, 0)));
        let more_than_a_payload = DescList::from(Desc::strided(ID, 0, 1 << 20, 0, 65));
        let refusal = Refusal::new(Status::BadLength, 0);
        assert_eq!(check(&more_than_a_payload, None, |_| Some(1 << 20)), Err(refusal));
    }
}
