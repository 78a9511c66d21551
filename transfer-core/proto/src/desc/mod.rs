//! Descriptor lists: which bytes of which regions, in which order.
//!
//! A KV hand-off names tens of thousands of equal pieces. So a descriptor is a rule, not a list of addresses:
//! pieces of `len` bytes at `offset + index * stride`, with the indices counted (strided) or listed (paged, four
//! bytes each). It stays that rule in memory and on the wire; the spans are worked out one by one when they are
//! moved.

mod wire;

use alloc::vec::Vec;

use crate::id::RegionId;

/// The most descriptors in one list.
pub const DESCS_MAX: usize = 1 << 16;
/// The most spans in one list.
pub const SPANS_MAX: u64 = 1 << 24;

/// A rule for spans of one region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desc {
    region: RegionId,
    offset: u64,
    len: u64,
    stride: u64,
    generation: u64,
    shape: Shape,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Shape {
    /// Indices 0, 1, … count − 1.
    Count(u32),
    /// These indices.
    Pages(Vec<u32>),
}

impl Desc {
    /// One span: `len` bytes at `offset`.
    #[must_use]
    pub fn contiguous(region: RegionId, offset: u64, len: u64) -> Self {
        Self { region, offset, len, stride: len, generation: 0, shape: Shape::Count(1) }
    }

    /// `count` spans of `len` bytes, each `stride` bytes after the last, the first at `offset`.
    #[must_use]
    pub fn strided(region: RegionId, offset: u64, len: u64, stride: u64, count: u32) -> Self {
        Self { region, offset, len, stride, generation: 0, shape: Shape::Count(count) }
    }

    /// One span of `page_len` bytes for each page, page `i` at `offset + i * stride`.
    #[must_use]
    pub fn paged(region: RegionId, offset: u64, page_len: u64, stride: u64, pages: Vec<u32>) -> Self {
        Self { region, offset, len: page_len, stride, generation: 0, shape: Shape::Pages(pages) }
    }

    /// The same rule in another region, such as the peer's twin of a local one.
    #[must_use]
    pub fn in_region(mut self, region: RegionId) -> Self {
        self.region = region;
        self
    }

    /// The same rule for what the region's owner had there at `generation`: once the owner revokes one of the
    /// blocks, accesses to it fail. Without it (0), for what was there since the region was registered.
    #[must_use]
    pub fn at_generation(mut self, generation: u64) -> Self {
        self.generation = generation;
        self
    }

    /// Which generation of the region's contents it names; 0 for the first.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The region that the spans lie in.
    #[must_use]
    pub fn region(&self) -> RegionId {
        self.region
    }

    /// How many spans.
    #[must_use]
    pub fn count(&self) -> u32 {
        match &self.shape {
            Shape::Count(count) => *count,
            Shape::Pages(pages) => u32::try_from(pages.len()).unwrap_or(u32::MAX),
        }
    }

    /// Where span `index` starts. Only for lists that were checked: it wraps on overflow.
    fn start(&self, index: u32) -> u64 {
        let index = match &self.shape {
            Shape::Count(_) => index,
            Shape::Pages(pages) => pages.get(index as usize).copied().unwrap_or(0),
        };
        self.offset.wrapping_add(self.stride.wrapping_mul(u64::from(index)))
    }

    /// The end of the span that reaches farthest, or `None` where that is beyond 2^64.
    fn end(&self) -> Option<u64> {
        let last = match &self.shape {
            Shape::Count(count) => count.checked_sub(1),
            Shape::Pages(pages) => pages.iter().copied().max(),
        };
        let Some(last) = last else { return Some(0) };
        self.stride.checked_mul(u64::from(last))?.checked_add(self.offset)?.checked_add(self.len)
    }
}

/// A span, by the descriptor that it comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Span {
    /// Index of the descriptor in its list.
    pub desc: u32,
    /// Where in the region.
    pub offset: u64,
    /// How many bytes.
    pub len: u64,
}

/// What is wrong with a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DescError {
    /// A descriptor names memory that is not registered.
    #[error("descriptor {index}: there is no region {region}")]
    UnknownRegion {
        /// Which descriptor.
        index: usize,
        /// What it names.
        region: RegionId,
    },
    /// A span ends outside its region (or beyond any address).
    #[error("descriptor {index}: ends at byte {end} of region {region}, which has {len}")]
    OutOfBounds {
        /// Which descriptor.
        index: usize,
        /// Its region.
        region: RegionId,
        /// Where its farthest span ends; `u64::MAX` where that overflows.
        end: u64,
        /// What the region has.
        len: u64,
    },
    /// More than [`DESCS_MAX`] descriptors or [`SPANS_MAX`] spans.
    #[error("{count} {what}, over the limit of {max}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many.
        count: u64,
        /// How many are allowed.
        max: u64,
    },
    /// A selected index that the list does not have.
    #[error("selected span {index}, but the list has {count}")]
    NoSuchSpan {
        /// Which index.
        index: u32,
        /// How many spans there are.
        count: u64,
    },
}

/// Descriptors in the order in which their bytes are moved.
#[derive(Clone, Debug, Default)]
pub struct DescList {
    descs: Vec<Desc>,
    /// For each descriptor, how many spans come before it.
    firsts: Vec<u64>,
    count: u64,
    /// Memory of pages that were in here, empty.
    spares: Vec<Vec<u32>>,
}

/// By their descriptors.
impl PartialEq for DescList {
    fn eq(&self, other: &Self) -> bool {
        self.descs == other.descs
    }
}

impl Eq for DescList {}

impl DescList {
    /// No spans yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes everything out, and keeps the memory for what comes in next.
    pub fn clear(&mut self) {
        for desc in self.descs.drain(..) {
            if let Shape::Pages(mut pages) = desc.shape {
                pages.clear();
                self.spares.push(pages);
            }
        }
        self.firsts.clear();
        self.count = 0;
    }

    /// Bytes of memory that it has, used or not.
    #[must_use]
    pub fn capacity_bytes(&self) -> usize {
        let pages = |desc: &Desc| match &desc.shape {
            Shape::Pages(pages) => pages.capacity(),
            Shape::Count(_) => 0,
        };
        let pages = self.descs.iter().map(pages).chain(self.spares.iter().map(Vec::capacity)).sum::<usize>();
        self.descs.capacity() * size_of::<Desc>()
            + self.firsts.capacity() * size_of::<u64>()
            + self.spares.capacity() * size_of::<Vec<u32>>()
            + pages * size_of::<u32>()
    }

    /// Appends a descriptor. Whether it fits its region is checked when the list is prepared.
    pub fn push(&mut self, desc: Desc) {
        self.firsts.push(self.count);
        self.count += u64::from(desc.count());
        self.descs.push(desc);
    }

    /// Appends a span of a descriptor, as part of the last descriptor here where it continues that one's rule.
    pub fn push_span(&mut self, of: &Desc, offset: u64, len: u64) {
        let Desc { region, stride, generation, .. } = *of;
        if let Some(last) = self.descs.last_mut()
            && (last.region, last.generation) == (region, generation)
            && last.absorb(offset, len, stride)
        {
            self.count = self.firsts.last().copied().unwrap_or(0) + u64::from(last.count());
            return;
        }
        let rule = match offset.checked_rem(stride) {
            Some(start) => u32::try_from((offset - start) / stride).ok().map(|page| {
                let mut pages = self.spares.pop().unwrap_or_default();
                pages.push(page);
                Desc::paged(region, start, len, stride, pages)
            }),
            None => None,
        };
        self.push(rule.unwrap_or_else(|| Desc::contiguous(region, offset, len)).at_generation(generation));
    }

    /// The descriptors.
    #[must_use]
    pub fn descs(&self) -> &[Desc] {
        &self.descs
    }

    /// How many spans.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// How many bytes in all spans. Only for lists that were checked: it wraps on overflow.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.descs.iter().fold(0_u64, |sum, d| sum.wrapping_add(d.len.wrapping_mul(u64::from(d.count()))))
    }

    /// Checks limits, and each descriptor against the length of its region.
    ///
    /// # Errors
    /// The first [`DescError`], with the index of its descriptor.
    pub fn check(&self, region_len: impl Fn(RegionId) -> Option<u64>) -> Result<(), DescError> {
        let too_many = |what, count, max| Err(DescError::TooMany { what, count, max });
        if self.descs.len() > DESCS_MAX {
            return too_many("descriptors", self.descs.len() as u64, DESCS_MAX as u64);
        }
        if self.count > SPANS_MAX {
            return too_many("spans", self.count, SPANS_MAX);
        }
        for (index, desc) in self.descs.iter().enumerate() {
            let region = desc.region;
            let len = region_len(region).ok_or(DescError::UnknownRegion { index, region })?;
            let end = desc.end().unwrap_or(u64::MAX);
            if end > len {
                return Err(DescError::OutOfBounds { index, region, end, len });
            }
        }
        // Each span fits a region, but 2^24 spans of 2^63 bytes would still overflow the sum.
        let bytes = self.descs.iter().try_fold(0_u64, |sum, d| {
            d.len.checked_mul(u64::from(d.count())).and_then(|bytes| sum.checked_add(bytes))
        });
        if bytes.is_none() {
            return too_many("bytes", u64::MAX, u64::MAX - 1);
        }
        Ok(())
    }

    /// Checks that every selected index exists.
    ///
    /// # Errors
    /// [`DescError::NoSuchSpan`], [`DescError::TooMany`].
    pub fn check_selection(&self, indices: &[u32]) -> Result<(), DescError> {
        let count = self.count;
        if indices.len() as u64 > SPANS_MAX {
            let (count, max) = (indices.len() as u64, SPANS_MAX);
            return Err(DescError::TooMany { what: "selected spans", count, max });
        }
        match indices.iter().find(|&&index| u64::from(index) >= count) {
            Some(&index) => Err(DescError::NoSuchSpan { index, count }),
            None => Ok(()),
        }
    }

    /// Span `index`, counted over all descriptors.
    #[must_use]
    pub fn span(&self, index: u64) -> Option<Span> {
        if index >= self.count {
            return None;
        }
        let at = self.firsts.partition_point(|&first| first <= index) - 1;
        let within = u32::try_from(index - self.firsts[at]).ok()?;
        let desc = &self.descs[at];
        Some(Span { desc: u32::try_from(at).ok()?, offset: desc.start(within), len: desc.len })
    }

    /// The span after the one at `(desc, within)`, without a search.
    fn next_span(&self, desc: &mut usize, within: &mut u32) -> Option<Span> {
        loop {
            let rule = self.descs.get(*desc)?;
            if *within < rule.count() {
                let span =
                    Span { desc: u32::try_from(*desc).ok()?, offset: rule.start(*within), len: rule.len };
                *within += 1;
                return Some(span);
            }
            (*desc, *within) = (*desc + 1, 0);
        }
    }
}

impl From<Desc> for DescList {
    fn from(desc: Desc) -> Self {
        let mut list = Self::new();
        list.push(desc);
        list
    }
}

impl FromIterator<Desc> for DescList {
    fn from_iter<I: IntoIterator<Item = Desc>>(descs: I) -> Self {
        let mut list = Self::new();
        descs.into_iter().for_each(|desc| list.push(desc));
        list
    }
}

impl Desc {
    /// Takes a further span into the rule, where it fits.
    fn absorb(&mut self, offset: u64, len: u64, stride: u64) -> bool {
        if self.len != len || self.stride != stride || stride == 0 {
            return false;
        }
        let Shape::Pages(pages) = &mut self.shape else { return false };
        let Some(distance) = offset.checked_sub(self.offset) else { return false };
        if distance % stride != 0 || pages.len() as u64 >= SPANS_MAX {
            return false;
        }
        let Ok(page) = u32::try_from(distance / stride) else { return false };
        pages.push(page);
        true
    }
}

/// Which spans of a list, in which order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Selection {
    /// All of them.
    #[default]
    All,
    /// These.
    Indices(Vec<u32>),
}

impl Selection {
    /// How many bytes it selects of a list that was checked together with it.
    #[must_use]
    pub fn bytes(&self, list: &DescList) -> u64 {
        match self {
            Self::All => list.bytes(),
            Self::Indices(indices) => indices.iter().fold(0_u64, |sum, &index| {
                sum.saturating_add(list.span(u64::from(index)).map_or(0, |span| span.len))
            }),
        }
    }
}

/// A place in the spans of a list and selection, which are handed in anew at each step.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cursor {
    desc: usize,
    within: u32,
    selected: usize,
}

impl Cursor {
    pub(crate) fn next(&mut self, list: &DescList, selection: &Selection) -> Option<Span> {
        match selection {
            Selection::All => list.next_span(&mut self.desc, &mut self.within),
            Selection::Indices(indices) => {
                let index = *indices.get(self.selected)?;
                self.selected += 1;
                list.span(u64::from(index))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;
    use alloc::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    fn region(n: u32) -> RegionId {
        RegionId::new(n, 1)
    }

    fn spans(list: &DescList) -> Vec<(u64, u64)> {
        let mut cursor = Cursor::default();
        core::iter::from_fn(|| cursor.next(list, &Selection::All)).map(|s| (s.offset, s.len)).collect()
    }

    #[test]
    fn each_shape_gives_its_spans() {
        let list: DescList = [
            Desc::contiguous(region(0), 5, 10),
            Desc::strided(region(0), 100, 4, 16, 3),
            Desc::paged(region(1), 1000, 8, 32, vec![7, 0, 2]),
        ]
        .into_iter()
        .collect();
        assert_eq!(spans(&list), [(5, 10), (100, 4), (116, 4), (132, 4), (1224, 8), (1000, 8), (1064, 8)]);
        assert_eq!((list.count(), list.bytes()), (7, 46));
        assert_eq!(list.span(4).unwrap(), Span { desc: 2, offset: 1224, len: 8 });
        assert_eq!(list.span(7), None);
    }

    #[test]
    fn a_list_is_checked_against_its_regions() {
        let len = |id: RegionId| (id == region(0)).then_some(1000);
        let check = |desc: Desc| DescList::from(desc).check(len);
        assert_eq!(check(Desc::contiguous(region(0), 990, 10)), Ok(()));
        assert_eq!(check(Desc::strided(region(0), 0, 100, 100, 10)), Ok(()));
        assert_eq!(check(Desc::paged(region(0), 0, 0, 0, vec![])), Ok(()));
        let out = |end| Err(DescError::OutOfBounds { index: 0, region: region(0), end, len: 1000 });
        assert_eq!(check(Desc::contiguous(region(0), 990, 11)), out(1001));
        assert_eq!(check(Desc::paged(region(0), 0, 10, 10, vec![3, 100])), out(1010));
        assert_eq!(check(Desc::contiguous(region(0), u64::MAX, 2)), out(u64::MAX));
        assert_eq!(check(Desc::strided(region(0), 0, 1, u64::MAX, 3)), out(u64::MAX));
        let unknown = DescError::UnknownRegion { index: 0, region: region(1) };
        assert_eq!(check(Desc::contiguous(region(1), 0, 1)), Err(unknown));
    }

    #[test]
    fn limits_hold() {
        let len = |_| Some(u64::MAX);
        let many = DescList::from(Desc::strided(region(0), 0, 1, 0, u32::MAX));
        assert!(matches!(many.check(len), Err(DescError::TooMany { what: "spans", .. })));
        let huge = DescList::from(Desc::strided(region(0), 0, 1 << 60, 0, 16));
        assert!(matches!(huge.check(len), Err(DescError::TooMany { what: "bytes", .. })));
        let list = DescList::from(Desc::strided(region(0), 0, 1, 1, 4));
        assert_eq!(list.check_selection(&[0, 3, 3]), Ok(()));
        assert_eq!(list.check_selection(&[4]), Err(DescError::NoSuchSpan { index: 4, count: 4 }));
    }

    proptest! {
        #[test]
        fn spans_pushed_one_by_one_come_back(
            list in prop::collection::vec((0_u32..3, 0_u64..50, 1_u64..5, 0_u64..3, 0_u64..2), 0..60)
        ) {
            let mut built = DescList::new();
            let mut wanted = Vec::new();
            for (r, page, len, extra, generation) in list {
                let stride = len + extra;
                let of = Desc::paged(region(r), 0, len, stride, Vec::new()).at_generation(generation);
                built.push_span(&of, page * stride, len);
                wanted.push((region(r), generation, page * stride, len));
            }
            prop_assert_eq!(built.count(), wanted.len() as u64);
            let mut cursor = Cursor::default();
            let got: Vec<_> = core::iter::from_fn(|| cursor.next(&built, &Selection::All))
                .map(|s| {
                    let desc = &built.descs()[s.desc as usize];
                    (desc.region(), desc.generation(), s.offset, s.len)
                })
                .collect();
            prop_assert_eq!(got, wanted);
        }

        #[test]
        fn a_selection_gives_the_spans_it_names(
            pages in prop::collection::vec(0_u32..1000, 1..40), picks in prop::collection::vec(0_usize..40, 0..60)
        ) {
            let list = DescList::from(Desc::paged(region(0), 3, 5, 7, pages.clone()));
            let indices: Vec<u32> = picks.iter().map(|p| u32::try_from(p % pages.len()).unwrap()).collect();
            let selection = Selection::Indices(indices.clone());
            let mut cursor = Cursor::default();
            let got: Vec<u64> =
                core::iter::from_fn(|| cursor.next(&list, &selection)).map(|s| s.offset).collect();
            let wanted: Vec<u64> =
                indices.iter().map(|&i| 3 + 7 * u64::from(pages[i as usize])).collect();
            prop_assert_eq!(got, wanted);
        }
    }
}
