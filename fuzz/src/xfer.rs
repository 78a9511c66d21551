//! The state machine of a transfer, over any two lists and any order of completions, lost rails and reasons to stop.

use std::collections::{HashMap, HashSet};

use transfer_proto::desc::{Desc, DescList, Selection};
use transfer_proto::id::{RailId, RegionId};
use transfer_proto::plan::{Piece, Side};
use transfer_proto::proto::xfer::{Outcome, SliceError, SliceLimits, SlicePost, Xfer};

use crate::steps::{Steps, at};

const REGION: RegionId = RegionId::new(1, 1);
const REGION_LEN: u64 = 1 << 16;
const DEADLINE_MS: u64 = 10_000;

/// Up to 8 spans of up to 32 bytes.
fn desc(steps: &mut Steps<'_>) -> Desc {
    let (offset, len) = (u64::from(steps.byte()), u64::from(steps.byte() % 32) + 1);
    let (stride, count) = (u64::from(steps.byte()), steps.byte() % 8 + 1);
    match steps.byte() % 3 {
        0 => Desc::contiguous(REGION, offset, len),
        1 => Desc::strided(REGION, offset, len, stride, u32::from(count)),
        _ => {
            let pages = steps.bytes(usize::from(count)).iter().map(|page| u32::from(*page));
            Desc::paged(REGION, offset, len, stride, pages.collect())
        }
    }
}

/// A list, and one of another shape with as many bytes.
fn lists(steps: &mut Steps<'_>) -> Option<(DescList, DescList)> {
    let local: DescList = (0..steps.byte() % 4).map(|_| desc(steps)).collect();
    let mut remote: DescList = (0..steps.byte() % 4).map(|_| desc(steps)).collect();
    let rest = local.bytes().checked_sub(remote.bytes())?;
    remote.push(Desc::contiguous(REGION, 7, rest));
    let fits = |list: &DescList| list.check(|id| (id == REGION).then_some(REGION_LEN)).is_ok();
    (fits(&local) && fits(&remote)).then_some((local, remote))
}

/// What is known of a transfer from outside.
#[derive(Default)]
struct Seen {
    flying: Vec<SlicePost>,
    /// The bytes of each slice, which are the same whenever it goes out.
    slices: HashMap<u32, Vec<Piece>>,
    done: HashSet<u32>,
    ids: HashSet<u32>,
    told: Option<Outcome>,
}

impl Seen {
    fn posted(&mut self, post: SlicePost, pieces: Vec<Piece>, limits: SliceLimits) {
        assert!(self.told.is_none() && self.ids.insert(post.id), "{post:?}");
        assert!(!self.done.contains(&post.slice), "slice {} was in place already", post.slice);
        assert_eq!(pieces.iter().map(|piece| piece.len).sum::<u64>(), post.bytes);
        assert!(post.bytes > 0 && post.bytes <= limits.bytes_max && pieces.len() <= limits.pieces_max);
        let ends = pieces.iter().flat_map(|piece| [piece.local.1, piece.remote.1].map(|at| at + piece.len));
        assert!(ends.max().is_none_or(|end| end <= REGION_LEN), "{pieces:?}");
        let first = self.slices.entry(post.slice).or_insert_with(|| pieces.clone());
        assert_eq!(*first, pieces, "another cut of slice {}", post.slice);
        self.flying.push(post);
    }
}

/// The outcome comes once, with nothing in flight and no fence open; "done" means that every byte went once.
pub fn check(bytes: &[u8]) {
    let mut steps = Steps::new(bytes);
    let Some((local, remote)) = lists(&mut steps) else { return };
    let sides = (Side::new(&local, &Selection::All), Side::new(&remote, &Selection::All));
    let (bytes_max, pieces) = (u64::from(steps.byte()) + 1, usize::from(steps.byte() % 8) + 1);
    let limits = SliceLimits::new(bytes_max, pieces, u32::from(steps.byte() % 8) + 1);
    let mut xfer = Xfer::new(limits, at(DEADLINE_MS));
    let (mut seen, mut now) = (Seen::default(), 0);
    while let Some(step) = steps.next_step() {
        match step % 8 {
            0..=2 => {
                let mut pieces = vec![];
                if let Some(post) = xfer.poll_slice(sides, &mut pieces) {
                    seen.posted(post, pieces, limits);
                }
            }
            3 | 4 => complete(&mut xfer, &mut seen, &mut steps),
            5 => {
                let closed = u32::from(steps.byte());
                xfer.lift_fences(|rail| closed & 1 << rail.slot() != 0);
            }
            6 => {
                now += u64::from(steps.byte()) * 10;
                xfer.handle_timeout(at(now));
            }
            _ => match steps.byte() % 8 {
                0 => xfer.cancel(),
                1 => xfer.peer_lost(),
                // One that does not exist (any more).
                id => xfer.handle_completion(u32::from(id) << 16, None, Ok(1)),
            },
        }
        assert!(usize::try_from(xfer.in_flight()).expect("fits") == seen.flying.len());
        if let Some(outcome) = xfer.poll_outcome(sides) {
            assert!(seen.flying.is_empty() && xfer.fenced() == 0, "{outcome:?} too early");
            if let Outcome::Done { bytes } = outcome {
                assert_eq!((bytes, seen.done.len()), (local.bytes(), seen.slices.len()));
                let moved: u64 = seen.slices.values().flatten().map(|piece| piece.len).sum();
                assert_eq!(moved, bytes);
            }
            assert!(seen.told.replace(outcome).is_none(), "told twice");
        }
    }
}

fn complete(xfer: &mut Xfer, seen: &mut Seen, steps: &mut Steps<'_>) {
    if seen.flying.is_empty() {
        return;
    }
    let at = usize::from(steps.byte()) % seen.flying.len();
    let post = seen.flying.swap_remove(at);
    let how = steps.byte();
    let rail = (how & 0x40 != 0).then(|| RailId::new(u32::from(how >> 3) % 4, 1));
    let result = match how % 8 {
        0..=4 => Ok(post.bytes),
        5 | 6 => Err(SliceError::RailLost),
        _ if how & 0x80 != 0 => Err(SliceError::Abandoned),
        _ => Err(SliceError::PeerGone),
    };
    if result.is_ok() {
        seen.done.insert(post.slice);
    }
    xfer.handle_completion(post.id, rail, result);
}
