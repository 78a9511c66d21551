//! The codec of descriptor lists. A page costs four bytes, a descriptor at most 49.

use alloc::vec::Vec;

use super::{DESCS_MAX, Desc, DescList, SPANS_MAX, Shape};
use crate::codec::{DecodeError, Reader};
use crate::id::RegionId;

const CONTIGUOUS: u8 = 0;
const STRIDED: u8 = 1;
const PAGED: u8 = 2;
/// Set in the tag where a generation follows the length.
const GENERATION: u8 = 0x80;
/// The shortest descriptor: tag, region, offset, length.
const DESC_BYTES_MIN: usize = 1 + 3 * 8;

impl DescList {
    /// Appends the encoded list.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&u32::try_from(self.descs.len()).unwrap_or(u32::MAX).to_le_bytes());
        for desc in &self.descs {
            desc.encode(out);
        }
    }

    /// Reads a list that [`DescList::encode`] wrote. It still has to be checked against the regions.
    ///
    /// # Errors
    /// [`DecodeError`]; nothing is allocated beyond the size of the input.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let mut list = Self::new();
        list.decode_again(reader)?;
        Ok(list)
    }

    /// The same, into the memory of this list, whose content goes.
    ///
    /// # Errors
    /// As [`DescList::decode`]; what is in the list then is of no use.
    pub fn decode_again(&mut self, reader: &mut Reader<'_>) -> Result<(), DecodeError> {
        self.clear();
        let count = reader.count("descriptor count", DESC_BYTES_MIN, DESCS_MAX)?;
        for _ in 0..count {
            let desc = Desc::decode(reader, &mut self.spares)?;
            self.push(desc);
        }
        if self.count > SPANS_MAX {
            return Err(DecodeError::TooLarge { what: "spans", value: self.count, max: SPANS_MAX });
        }
        Ok(())
    }
}

impl Desc {
    fn encode(&self, out: &mut Vec<u8>) {
        let tag = match &self.shape {
            Shape::Count(1) if self.stride == self.len => CONTIGUOUS,
            Shape::Count(_) => STRIDED,
            Shape::Pages(_) => PAGED,
        };
        out.push(if self.generation == 0 { tag } else { tag | GENERATION });
        for field in [self.region.to_u64(), self.offset, self.len] {
            out.extend_from_slice(&field.to_le_bytes());
        }
        if self.generation != 0 {
            out.extend_from_slice(&self.generation.to_le_bytes());
        }
        if tag != CONTIGUOUS {
            out.extend_from_slice(&self.stride.to_le_bytes());
            out.extend_from_slice(&self.count().to_le_bytes());
        }
        if let Shape::Pages(pages) = &self.shape {
            pages.iter().for_each(|page| out.extend_from_slice(&page.to_le_bytes()));
        }
    }

    fn decode(reader: &mut Reader<'_>, spares: &mut Vec<Vec<u32>>) -> Result<Self, DecodeError> {
        let tag = reader.u8("descriptor shape")?;
        let region = RegionId::from_u64(reader.u64("region")?);
        let offset = reader.u64("offset")?;
        let len = reader.u64("length")?;
        let generation = if tag & GENERATION == 0 { 0 } else { reader.u64("generation")? };
        let desc = match tag & !GENERATION {
            CONTIGUOUS => Self::contiguous(region, offset, len),
            STRIDED => {
                let stride = reader.u64("stride")?;
                Self::strided(region, offset, len, stride, reader.u32("span count")?)
            }
            PAGED => {
                let stride = reader.u64("stride")?;
                let max = usize::try_from(SPANS_MAX).unwrap_or(usize::MAX);
                let count = reader.count("page count", 4, max)?;
                let raw = reader.bytes("pages", count * 4)?;
                let mut pages = spares.pop().unwrap_or_default();
                pages.extend(raw.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])));
                Self::paged(region, offset, len, stride, pages)
            }
            _ => return Err(DecodeError::Invalid { what: "descriptor shape", value: u64::from(tag) }),
        };
        Ok(desc.at_generation(generation))
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use proptest::prelude::*;

    use super::*;

    fn desc() -> impl Strategy<Value = Desc> {
        let shape = prop_oneof![
            Just(Shape::Count(1)),
            any::<u32>().prop_map(|count| Shape::Count(count % 1000)),
            prop::collection::vec(any::<u32>(), 0..50).prop_map(Shape::Pages),
        ];
        let generation = prop_oneof![Just(0), any::<u64>()];
        (any::<u64>(), any::<u64>(), any::<u64>(), any::<u64>(), generation, shape).prop_map(
            |(region, offset, len, stride, generation, shape)| {
                let region = RegionId::from_u64(region);
                Desc { region, offset, len, stride, generation, shape }
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(descs in prop::collection::vec(desc(), 0..20)) {
            let list: DescList = descs.into_iter().collect();
            let mut bytes = vec![];
            list.encode(&mut bytes);
            let mut reader = Reader::new(&bytes);
            prop_assert_eq!(DescList::decode(&mut reader), Ok(list));
            prop_assert_eq!(reader.end(), Ok(()));
        }

        #[test]
        fn any_bytes_are_a_list_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(list) = DescList::decode(&mut Reader::new(&bytes)) {
                // Whatever was accepted can be checked without overflow.
                let _checked = list.check(|_| Some(1 << 40));
            }
        }

        #[test]
        fn every_truncation_is_an_error(descs in prop::collection::vec(desc(), 1..5)) {
            let list: DescList = descs.into_iter().collect();
            let mut bytes = vec![];
            list.encode(&mut bytes);
            for len in 0..bytes.len() {
                prop_assert!(DescList::decode(&mut Reader::new(&bytes[..len])).is_err());
            }
        }
    }

    proptest! {
        #[test]
        fn a_list_that_is_used_again_is_the_one_that_came_last(lists in prop::collection::vec(
            prop::collection::vec(desc(), 0..8), 1..5
        )) {
            let mut again = DescList::new();
            for list in lists.into_iter().map(|descs| descs.into_iter().collect::<DescList>()) {
                let mut bytes = vec![];
                list.encode(&mut bytes);
                prop_assert_eq!(again.decode_again(&mut Reader::new(&bytes)), Ok(()));
                prop_assert_eq!(&again, &list);
                prop_assert_eq!(again.count(), list.count());
                prop_assert_eq!(again.span(list.count() / 2), list.span(list.count() / 2));
            }
        }
    }

    #[test]
    fn a_page_costs_four_bytes() {
        let list = DescList::from(Desc::paged(RegionId::new(0, 0), 0, 16384, 16384, (0..16384).collect()));
        let mut bytes = vec![];
        list.encode(&mut bytes);
        assert!(bytes.len() <= 16384 * 4 + 64, "{} bytes", bytes.len());
    }
}
