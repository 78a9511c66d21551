//! Descriptor lists, and the question whether they may be served.

use transfer_proto::codec::Reader;
use transfer_proto::desc::DescList;
use transfer_proto::id::RegionId;
use transfer_proto::proto::serve::{self, SPANS_MAX};

/// Spans that are compared one by one.
const FEW: u64 = 10_000;

/// A region is as long as the low half of its name says, so that inputs decide what lies inside.
fn region_len(id: RegionId) -> Option<u64> {
    (id.slot() != 0).then_some(u64::from(id.slot()))
}

/// A list comes back when it is encoded; what passes the check lies in its regions, span by span, and only that is served.
pub fn check(bytes: &[u8]) {
    let mut reader = Reader::new(bytes);
    let Ok(list) = DescList::decode(&mut reader) else { return };
    let mut again = vec![];
    list.encode(&mut again);
    assert!(again.len() <= bytes.len(), "it grew");
    let mut reader = Reader::new(&again);
    assert_eq!(DescList::decode(&mut reader).as_ref(), Ok(&list));
    assert_eq!(reader.end(), Ok(()));

    let served = serve::check(&list, None, region_len);
    if list.check(region_len).is_err() {
        let refusal = served.expect_err("spans outside are not served");
        assert!(u64::from(refusal.span) < list.count().max(1));
        return;
    }
    assert_eq!(served.is_ok(), list.count() <= SPANS_MAX && served == Ok(list.bytes()));
    if list.count() > FEW {
        return;
    }
    let mut bytes = 0_u128;
    for at in 0..list.count() {
        let span = list.span(at).expect("it has so many");
        let desc = &list.descs()[usize::try_from(span.desc).expect("fits")];
        let end = span.offset.checked_add(span.len).expect("checked");
        assert!(end <= region_len(desc.region()).expect("checked"), "span {at} lies outside");
        bytes += u128::from(span.len);
    }
    assert_eq!(bytes, u128::from(list.bytes()));
    assert!(list.span(list.count()).is_none());
}
