//! What a transfer moves: one span, or many scattered ones.
//!
//! Many spans lie as KV pages do after a while: with a gap as long as a page behind each, and in an order of its own
//! on either side, so that neither neighbours nor order help. Both processes work the places out from the shape.

use std::fmt;

use serde::{Deserialize, Serialize};
use transfer_core::{Desc, DescList, RegionId};

/// Bytes before the first span and after the last one, which nobody may touch. A multiple of every page size in use,
/// so that spans are aligned as applications align theirs.
pub const GUARD_BYTES: u64 = 64 << 10;
/// The most spans: what a descriptor list takes.
pub const COUNT_MAX: u32 = 1 << 24;
/// The longest region.
pub const REGION_BYTES_MAX: u64 = 1 << 40;

/// One of the two ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "a transfer has two ends")]
pub enum Side {
    /// The process that posts.
    Local,
    /// The target.
    Remote,
}

/// How many spans, and how long each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "(u32, u64)", into = "(u32, u64)")]
pub struct Shape {
    count: u32,
    len: u64,
}

/// A shape that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{count} x {len} bytes: a shape has 1 to {COUNT_MAX} spans of at least one byte, and at most {REGION_BYTES_MAX} \
     bytes with its gaps"
)]
#[non_exhaustive]
pub struct ShapeError {
    /// How many spans.
    pub count: u32,
    /// How long each.
    pub len: u64,
}

impl Shape {
    /// `count` spans of `len` bytes.
    ///
    /// # Errors
    /// [`ShapeError`] for none, or more than a region can hold.
    pub fn new(count: u32, len: u64) -> Result<Self, ShapeError> {
        let extent = len.checked_mul(2).and_then(|stride| stride.checked_mul(u64::from(count)));
        let fits = extent.is_some_and(|bytes| bytes <= REGION_BYTES_MAX - 2 * GUARD_BYTES);
        if len == 0 || !(1..=COUNT_MAX).contains(&count) || !fits {
            return Err(ShapeError { count, len });
        }
        Ok(Self { count, len })
    }

    /// How many spans.
    #[must_use]
    pub fn count(self) -> u32 {
        self.count
    }

    /// How long each.
    #[must_use]
    pub fn len(self) -> u64 {
        self.len
    }

    /// Never: there is at least one byte.
    #[must_use]
    pub fn is_empty(self) -> bool {
        false
    }

    /// Bytes in all spans.
    #[must_use]
    pub fn bytes(self) -> u64 {
        u64::from(self.count) * self.len
    }

    /// Bytes of a region that holds the spans, their gaps and both guards.
    #[must_use]
    pub fn region_bytes(self) -> u64 {
        2 * GUARD_BYTES + u64::from(self.count) * self.stride()
    }

    /// The distance from span to span.
    fn stride(self) -> u64 {
        if self.count == 1 { self.len } else { 2 * self.len }
    }

    /// In which order the pages of a side are named.
    fn pages(self, side: Side) -> Vec<u32> {
        let mut state = match side {
            Side::Local => 0x4C4F_4341_4C00,
            Side::Remote => 0x5245_4D4F_5445,
        };
        let mut pages: Vec<u32> = (0..self.count).collect();
        for last in (1..pages.len()).rev() {
            let other = random(&mut state) % (last as u64 + 1);
            pages.swap(last, usize::try_from(other).unwrap_or(last));
        }
        pages
    }

    /// Where the spans of a side start, in the order of the transfer.
    #[must_use]
    pub fn offsets(self, side: Side) -> Vec<u64> {
        let stride = self.stride();
        self.pages(side).into_iter().map(|page| GUARD_BYTES + u64::from(page) * stride).collect()
    }

    /// The same spans, as the engine takes them.
    #[must_use]
    pub fn list(self, side: Side, region: RegionId) -> DescList {
        DescList::from(match self.count {
            1 => Desc::contiguous(region, GUARD_BYTES, self.len),
            _ => Desc::paged(region, GUARD_BYTES, self.len, self.stride(), self.pages(side)),
        })
    }
}

impl TryFrom<(u32, u64)> for Shape {
    type Error = ShapeError;

    fn try_from((count, len): (u32, u64)) -> Result<Self, ShapeError> {
        Self::new(count, len)
    }
}

impl From<Shape> for (u32, u64) {
    fn from(shape: Shape) -> Self {
        (shape.count, shape.len)
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} x {}", self.count, size(self.len))
    }
}

/// The next number of a sequence (splitmix64; Steele, Lea and Flood, 2014).
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut x = *state;
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// The units that lengths are written in.
const UNITS: [(&str, u64); 4] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

/// A length for people: `16 KiB`, `1000 B`.
#[must_use]
pub fn size(bytes: u64) -> String {
    let fitting = UNITS.iter().find(|(_, unit)| bytes >= *unit && bytes.is_multiple_of(*unit));
    let (name, unit) = fitting.unwrap_or(&("B", 1));
    format!("{} {name}", bytes / unit)
}

/// Reads a length: `4096`, `4KiB`, `16 MiB`.
///
/// # Errors
/// What is wrong with it, in words.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let (number, unit) =
        UNITS.iter().find_map(|(name, unit)| Some((text.strip_suffix(name)?, *unit))).unwrap_or((text, 1));
    let parsed = number.trim().parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
    parsed.ok_or_else(|| format!("{text:?} is not a length; write 4096, 4KiB, 16MiB or 1GiB"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scattered_spans_have_gaps_and_an_order_of_their_own() {
        let shape = Shape::new(1000, 4096).unwrap();
        let (local, remote) = (shape.offsets(Side::Local), shape.offsets(Side::Remote));
        assert_ne!(local, remote);
        for offsets in [local, remote] {
            let mut sorted = offsets.clone();
            sorted.sort_unstable();
            assert_ne!(offsets, sorted, "shuffled");
            assert!(sorted.windows(2).all(|pair| pair[1] - pair[0] == 8192), "a gap behind each");
            assert_eq!(sorted[0], GUARD_BYTES);
            assert!(sorted[999] + 4096 + GUARD_BYTES <= shape.region_bytes());
        }
    }

    #[test]
    fn the_list_names_the_same_places() {
        for shape in [Shape::new(1, 300_000).unwrap(), Shape::new(77, 512).unwrap()] {
            for side in [Side::Local, Side::Remote] {
                let list = shape.list(side, RegionId::from_u64(1));
                list.check(|_| Some(shape.region_bytes())).unwrap();
                let spans = (0..list.count()).map(|index| list.span(index).unwrap());
                let (offsets, lens): (Vec<u64>, Vec<u64>) = spans.map(|span| (span.offset, span.len)).unzip();
                assert_eq!(offsets, shape.offsets(side));
                assert!(lens.iter().all(|&len| len == shape.len()));
            }
        }
    }

    #[test]
    fn impossible_shapes_are_refused_also_from_the_wire() {
        for (count, len) in [(0, 1), (1, 0), (COUNT_MAX + 1, 1), (2, u64::MAX / 2), (1, 1 << 40)] {
            assert!(Shape::new(count, len).is_err(), "{count} x {len}");
            assert!(serde_json::from_str::<Shape>(&format!("[{count}, {len}]")).is_err());
        }
        assert_eq!(serde_json::from_str::<Shape>("[2, 3]").unwrap(), Shape::new(2, 3).unwrap());
    }

    #[test]
    fn lengths_are_read_as_they_are_written() {
        for bytes in [1, 1000, 4096, 16 << 10, 3 << 20, 256 << 20, 2 << 30] {
            assert_eq!(parse_size(&size(bytes)), Ok(bytes));
        }
        assert_eq!(parse_size("64KiB"), Ok(65536));
        for text in ["", "KiB", "4kb", "-1", "1.5MiB", "99999999999GiB"] {
            assert!(parse_size(text).unwrap_err().contains("4KiB"), "{text}");
        }
    }
}
