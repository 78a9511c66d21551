//! Bytes that know their place, and what each side must hold after a transfer.
//!
//! Every 8 bytes of a pattern are a hash of its seed and of their offset. So a byte that went astray, came from the
//! wrong place, or is left of an earlier row does not pass for the right one.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::path::Op;
use crate::shape::{Shape, Side};

/// Bytes compared at a time.
const CHUNK_BYTES: u64 = 64 << 10;
const WORD_BYTES: usize = 8;

/// A sequence of bytes, as long as one likes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pattern(u64);

impl Pattern {
    /// The pattern of that number.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn word(self, index: u64) -> [u8; WORD_BYTES] {
        let x = (index ^ self.0.rotate_left(32)).wrapping_add(self.0).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        (x ^ (x >> 32)).wrapping_mul(0xD6E8_FEB8_6659_FD93).to_le_bytes()
    }

    /// The bytes of the pattern from `offset` on.
    pub fn fill(self, offset: u64, out: &mut [u8]) {
        let skip = usize::try_from(offset % 8).unwrap_or(0);
        let head = if skip == 0 { 0 } else { out.len().min(WORD_BYTES - skip) };
        let (head, rest) = out.split_at_mut(head);
        head.copy_from_slice(&self.word(offset / 8)[skip..skip + head.len()]);
        let (words, tail) = rest.as_chunks_mut::<WORD_BYTES>();
        let mut index = offset.div_ceil(8);
        for word in words {
            *word = self.word(index);
            index += 1;
        }
        tail.copy_from_slice(&self.word(index)[..tail.len()]);
    }
}

/// What the two sides were filled with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::exhaustive_structs, reason = "a transfer has two ends")]
pub struct Patterns {
    /// The process that posts.
    pub local: Pattern,
    /// The target.
    pub remote: Pattern,
}

/// What a region must hold.
#[derive(Clone, Debug)]
pub struct Expected {
    kept: Pattern,
    came: Pattern,
    len: u64,
    /// Where spans landed and where they were before, sorted.
    spans: Vec<(u64, u64)>,
}

/// A byte that is not what it must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Mismatch {
    /// Where in the region.
    pub offset: u64,
    /// What must be there.
    pub expected: u8,
    /// What is there.
    pub found: u8,
    /// Whether it should have been moved; otherwise it should have been left alone.
    pub moved: bool,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { offset, expected, found, moved } = self;
        let what = if *moved { "was to be moved there" } else { "was to be left alone" };
        write!(f, "byte {offset} is {found:#04x}, not {expected:#04x}, which {what}")
    }
}

impl Expected {
    /// What `side` holds after one transfer, or many equal ones, between two freshly filled regions.
    #[must_use]
    pub fn after(shape: Shape, op: Op, side: Side, patterns: Patterns) -> Self {
        let (kept, came, other) = match side {
            Side::Local => (patterns.local, patterns.remote, Side::Remote),
            Side::Remote => (patterns.remote, patterns.local, Side::Local),
        };
        let lands = (op, side) == (Op::Read, Side::Local) || (op, side) == (Op::Write, Side::Remote);
        let mut spans = Vec::new();
        if lands {
            spans.extend(shape.offsets(side).into_iter().zip(shape.offsets(other)));
            spans.sort_unstable();
        }
        Self { kept, came, len: shape.len(), spans }
    }

    /// Compares all `bytes` of a region, which `read` copies out by offset.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn check<E>(
        &self,
        bytes: u64,
        mut read: impl FnMut(u64, &mut [u8]) -> Result<(), E>,
    ) -> Result<Option<Mismatch>, E> {
        let mut at = 0;
        for &(to, from) in &self.spans {
            if let Some(bad) = compare(self.kept, false, at, at..to, &mut read)? {
                return Ok(Some(bad));
            }
            if let Some(bad) = compare(self.came, true, from, to..to + self.len, &mut read)? {
                return Ok(Some(bad));
            }
            at = to + self.len;
        }
        compare(self.kept, false, at, at..bytes, &mut read)
    }
}

/// Compares the bytes at `range` with those of the pattern from `from` on.
fn compare<E>(
    pattern: Pattern,
    moved: bool,
    mut from: u64,
    range: std::ops::Range<u64>,
    read: &mut impl FnMut(u64, &mut [u8]) -> Result<(), E>,
) -> Result<Option<Mismatch>, E> {
    let longest = usize::try_from((range.end - range.start).min(CHUNK_BYTES)).unwrap_or(0);
    let (mut found, mut expected) = (vec![0; longest], vec![0; longest]);
    let mut at = range.start;
    while at < range.end {
        let len = usize::try_from((range.end - at).min(CHUNK_BYTES)).unwrap_or(longest);
        let (found, expected) = (&mut found[..len], &mut expected[..len]);
        read(at, found)?;
        pattern.fill(from, expected);
        if found != expected
            && let Some(index) = found.iter().zip(expected.iter()).position(|(a, b)| a != b)
        {
            let (expected, found) = (expected[index], found[index]);
            return Ok(Some(Mismatch { offset: at + index as u64, expected, found, moved }));
        }
        at += len as u64;
        from += len as u64;
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    const PATTERNS: Patterns = Patterns { local: Pattern(1), remote: Pattern(2) };

    fn filled(pattern: Pattern, shape: Shape) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(shape.region_bytes()).unwrap()];
        pattern.fill(0, &mut bytes);
        bytes
    }

    fn check(expected: &Expected, bytes: &[u8]) -> Option<Mismatch> {
        let read = |offset: u64, out: &mut [u8]| {
            let offset = usize::try_from(offset).unwrap();
            out.copy_from_slice(&bytes[offset..offset + out.len()]);
            Ok::<(), Infallible>(())
        };
        expected.check(bytes.len() as u64, read).unwrap()
    }

    /// Moves by hand what a transfer should.
    fn moved(shape: Shape, op: Op) -> (Vec<u8>, Vec<u8>) {
        let (mut local, mut remote) = (filled(PATTERNS.local, shape), filled(PATTERNS.remote, shape));
        for (l, r) in shape.offsets(Side::Local).into_iter().zip(shape.offsets(Side::Remote)) {
            for byte in 0..shape.len() {
                let (l, r) = (usize::try_from(l + byte).unwrap(), usize::try_from(r + byte).unwrap());
                match op {
                    Op::Read => local[l] = remote[r],
                    Op::Write => remote[r] = local[l],
                }
            }
        }
        (local, remote)
    }

    #[test]
    fn a_pattern_is_the_same_from_wherever_it_is_read() {
        let mut whole = vec![0; 1000];
        Pattern::new(7).fill(0, &mut whole);
        for (offset, len) in [(0, 0), (0, 1), (1, 3), (3, 5), (5, 20), (8, 16), (999, 1), (13, 987)] {
            let mut part = vec![0; len];
            Pattern::new(7).fill(offset as u64, &mut part);
            assert_eq!(part, whole[offset..offset + len], "{offset} {len}");
        }
    }

    #[test]
    fn patterns_differ_by_place_and_by_seed() {
        let words: std::collections::HashSet<_> =
            (0..100).flat_map(|seed| (0..1000).map(move |index| Pattern::new(seed).word(index))).collect();
        assert!(words.len() > 99_990, "{}", words.len());
    }

    #[test]
    fn right_transfers_pass_on_both_sides() {
        for shape in [Shape::new(1, 70_001).unwrap(), Shape::new(50, 777).unwrap()] {
            for op in Op::ALL {
                let (local, remote) = moved(shape, op);
                let expected = |side| Expected::after(shape, op, side, PATTERNS);
                assert_eq!(check(&expected(Side::Local), &local), None, "{shape} {op}");
                assert_eq!(check(&expected(Side::Remote), &remote), None, "{shape} {op}");
            }
        }
    }

    #[test]
    fn any_wrong_byte_is_found_and_named() {
        let shape = Shape::new(50, 777).unwrap();
        let (local, _) = moved(shape, Op::Read);
        let expected = Expected::after(shape, Op::Read, Side::Local, PATTERNS);
        let first = usize::try_from(shape.offsets(Side::Local)[0]).unwrap();
        for (at, moved) in
            [(0, false), (local.len() - 1, false), (first, true), (first + 776, true), (first + 777, false)]
        {
            let mut wrong = local.clone();
            wrong[at] ^= 0x10;
            let found = check(&expected, &wrong).unwrap();
            assert_eq!((found.offset, found.moved), (at as u64, moved));
            assert_eq!((found.expected, found.found), (local[at], wrong[at]));
        }
    }

    #[test]
    fn nothing_moved_and_things_moved_to_the_wrong_page_are_found() {
        let shape = Shape::new(50, 777).unwrap();
        let expected = Expected::after(shape, Op::Write, Side::Remote, PATTERNS);
        assert!(check(&expected, &filled(PATTERNS.remote, shape)).unwrap().moved);
        let (_, mut remote) = moved(shape, Op::Write);
        let offsets = shape.offsets(Side::Remote);
        let (a, b) = (usize::try_from(offsets[3]).unwrap(), usize::try_from(offsets[4]).unwrap());
        for byte in 0..777 {
            remote.swap(a + byte, b + byte);
        }
        assert!(check(&expected, &remote).unwrap().moved);
    }
}
