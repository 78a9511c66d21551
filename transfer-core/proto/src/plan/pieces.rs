//! Pairs the spans of two lists.

use alloc::vec::Vec;

use crate::desc::{Cursor, DescList, Selection, Span};

/// A list and what is selected of it; both were checked.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Side<'a> {
    /// The list.
    pub list: &'a DescList,
    /// Which of its spans.
    pub selection: &'a Selection,
}

impl<'a> Side<'a> {
    /// These spans of that list.
    #[must_use]
    pub fn new(list: &'a DescList, selection: &'a Selection) -> Self {
        Self { list, selection }
    }
}

/// Bytes that lie together on both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Piece {
    /// Descriptor and offset on the local side.
    pub local: (u32, u64),
    /// Descriptor and offset on the remote side.
    pub remote: (u32, u64),
    /// How many bytes.
    pub len: u64,
}

impl Piece {
    /// Whether `next` starts where this one ends, on both sides.
    fn touches(&self, next: &Self, local: &DescList, remote: &DescList) -> bool {
        let meets = |a: (u32, u64), b: (u32, u64), list: &DescList| {
            let region = |desc: u32| list.descs().get(desc as usize).map(crate::desc::Desc::region);
            a.1 + self.len == b.1 && (a.0 == b.0 || region(a.0) == region(b.0))
        };
        meets(self.local, next.local, local) && meets(self.remote, next.remote, remote)
    }
}

/// The pieces of a transfer, in order, neighbours joined.
///
/// The lists are handed in at each step, the same ones each time, so that the state can outlive a borrow.
/// Cost of a step: no allocation.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pieces {
    local: Cursor,
    remote: Cursor,
    local_rest: Option<Span>,
    remote_rest: Option<Span>,
    held: Option<Piece>,
}

impl Pieces {
    /// Before the first piece.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends pieces of at most `bytes_max` bytes and `pieces_max` pieces in all to `out`, and returns how many
    /// bytes they have: 0 when everything was given out.
    pub fn slice(
        &mut self,
        (local, remote): (Side<'_>, Side<'_>),
        bytes_max: u64,
        pieces_max: usize,
        out: &mut Vec<Piece>,
    ) -> u64 {
        let mut bytes = 0;
        for _ in 0..pieces_max {
            let Some(mut piece) = self.joined(local, remote, bytes_max - bytes) else { break };
            let room = bytes_max - bytes;
            if piece.len > room {
                self.held = Some(piece.cut(room));
                piece.len = room;
            }
            bytes += piece.len;
            out.push(piece);
            if bytes == bytes_max {
                break;
            }
        }
        bytes
    }

    /// The next piece together with those that touch it, until it has `enough` bytes.
    fn joined(&mut self, local: Side<'_>, remote: Side<'_>, enough: u64) -> Option<Piece> {
        let mut piece = self.held.take().or_else(|| self.single(local, remote))?;
        while piece.len < enough {
            let Some(next) = self.single(local, remote) else { break };
            if !piece.touches(&next, local.list, remote.list) {
                self.held = Some(next);
                break;
            }
            piece.len += next.len;
        }
        Some(piece)
    }

    /// The longest piece that lies in one span on each side.
    fn single(&mut self, local: Side<'_>, remote: Side<'_>) -> Option<Piece> {
        let l = next_span(&mut self.local_rest, &mut self.local, local)?;
        let r = next_span(&mut self.remote_rest, &mut self.remote, remote)?;
        let len = l.len.min(r.len);
        self.local_rest = rest(l, len);
        self.remote_rest = rest(r, len);
        Some(Piece { local: (l.desc, l.offset), remote: (r.desc, r.offset), len })
    }
}

impl Piece {
    /// What is left of the piece behind its first `len` bytes.
    fn cut(&self, len: u64) -> Self {
        let behind = |(desc, offset): (u32, u64)| (desc, offset + len);
        Self { local: behind(self.local), remote: behind(self.remote), len: self.len - len }
    }
}

fn next_span(rest: &mut Option<Span>, cursor: &mut Cursor, side: Side<'_>) -> Option<Span> {
    rest.take()
        .or_else(|| core::iter::from_fn(|| cursor.next(side.list, side.selection)).find(|span| span.len > 0))
}

fn rest(mut span: Span, len: u64) -> Option<Span> {
    span.offset += len;
    span.len -= len;
    (span.len > 0).then_some(span)
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use proptest::prelude::*;

    use super::*;
    use crate::desc::Desc;
    use crate::id::RegionId;

    fn list(spans: &[(u64, u64)]) -> DescList {
        spans.iter().map(|&(offset, len)| Desc::contiguous(RegionId::new(0, 0), offset, len)).collect()
    }

    fn slices(local: &DescList, remote: &DescList, bytes_max: u64, pieces_max: usize) -> Vec<Vec<Piece>> {
        let sides = (Side::new(local, &Selection::All), Side::new(remote, &Selection::All));
        let mut pieces = Pieces::new();
        let mut all = vec![];
        loop {
            let mut slice = vec![];
            if pieces.slice(sides, bytes_max, pieces_max, &mut slice) == 0 {
                return all;
            }
            all.push(slice);
        }
    }

    fn flat(slices: &[Vec<Piece>]) -> Vec<(u64, u64, u64)> {
        slices.iter().flatten().map(|p| (p.local.1, p.remote.1, p.len)).collect()
    }

    #[test]
    fn spans_cut_differently_are_paired() {
        let got = slices(&list(&[(0, 10), (20, 10)]), &list(&[(100, 4), (200, 16)]), 1000, 1000);
        assert_eq!(flat(&got), [(0, 100, 4), (4, 200, 6), (20, 206, 10)]);
    }

    #[test]
    fn neighbours_on_both_sides_are_joined() {
        let got =
            slices(&list(&[(0, 10), (10, 10), (30, 5)]), &list(&[(50, 10), (60, 10), (70, 5)]), 1000, 1000);
        assert_eq!(flat(&got), [(0, 50, 20), (30, 70, 5)]);
    }

    #[test]
    fn slices_keep_their_limits() {
        let got = slices(&list(&[(0, 100)]), &list(&[(0, 100)]), 40, 1000);
        assert_eq!(got.iter().map(|s| s[0].len).collect::<Vec<_>>(), [40, 40, 20]);
        let spans: Vec<_> = (0..10).map(|i| (i * 20, 10)).collect();
        let got = slices(&list(&spans), &list(&spans), 1000, 3);
        assert_eq!(got.iter().map(Vec::len).collect::<Vec<_>>(), [3, 3, 3, 1]);
    }

    /// Cuts `total` bytes into spans at random places of a larger space, by a simple rule of its own.
    fn cuts(total: u64, lens: &[u64], gaps: &[u64]) -> Vec<(u64, u64)> {
        let (mut at, mut left, mut spans) = (0, total, vec![]);
        for i in 0.. {
            if left == 0 {
                break;
            }
            let len = lens[i % lens.len()].min(left);
            at += gaps[i % gaps.len()];
            spans.push((at, len));
            at += len;
            left -= len;
        }
        spans
    }

    proptest! {
        #[test]
        fn the_plan_moves_each_byte_as_a_naive_copy_would(
            total in 0_u64..400,
            ll in prop::collection::vec(1_u64..40, 1..6), lg in prop::collection::vec(0_u64..9, 1..6),
            rl in prop::collection::vec(1_u64..40, 1..6), rg in prop::collection::vec(0_u64..9, 1..6),
            bytes_max in 1_u64..100, pieces_max in 1_usize..7,
        ) {
            let (local, remote) = (cuts(total, &ll, &lg), cuts(total, &rl, &rg));
            let bytes = |spans: &[(u64, u64)]| -> Vec<u64> {
                spans.iter().flat_map(|&(offset, len)| offset..offset + len).collect()
            };
            let wanted: Vec<_> = bytes(&local).into_iter().zip(bytes(&remote)).collect();
            let planned = slices(&list(&local), &list(&remote), bytes_max, pieces_max);
            for slice in &planned {
                prop_assert!(slice.len() <= pieces_max);
                prop_assert!(slice.iter().map(|p| p.len).sum::<u64>() <= bytes_max);
            }
            let got: Vec<_> = flat(&planned)
                .into_iter()
                .flat_map(|(l, r, len)| (0..len).map(move |i| (l + i, r + i)))
                .collect();
            prop_assert_eq!(got, wanted);
        }
    }
}
