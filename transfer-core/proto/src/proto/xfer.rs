//! The state machine of a transfer: which slice goes next, and how it all ends.
//!
//! Its one promise (invariant I1): the outcome comes after the last completion, so that from then on nothing
//! touches the buffers. A failure stops new slices at once, and the outcome waits for those in flight.

use alloc::vec::Vec;

use crate::plan::{Piece, Pieces, Side};
use crate::proto::data::Status;
use crate::proto::time::Time;

/// How a transfer is cut, and how much of it is in flight.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct SliceLimits {
    /// Bytes of a slice.
    pub bytes_max: u64,
    /// Pieces of a slice.
    pub pieces_max: usize,
    /// Slices that were given out and have not completed.
    pub in_flight_max: u32,
}

impl SliceLimits {
    /// All fields.
    #[must_use]
    pub fn new(bytes_max: u64, pieces_max: usize, in_flight_max: u32) -> Self {
        Self { bytes_max, pieces_max, in_flight_max }
    }
}

/// Why a slice failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SliceError {
    /// The target refused it.
    #[error("the target refused it: {}", status_text(*.0))]
    Refused(Status),
    /// The rail that carried it broke.
    #[error("its connection broke")]
    RailLost,
    /// The kernel refused to move the bytes.
    #[error("the kernel refused to move them (errno {errno})")]
    Os {
        /// Its errno.
        errno: i32,
    },
    /// The peer sent something else than was asked for.
    #[error("the peer answered with another number of bytes")]
    WrongReply,
}

fn status_text(status: Status) -> &'static str {
    match status {
        Status::Ok => "without a reason",
        Status::BadSpan => "a span lies outside its regions, or the region was deregistered",
        Status::BadLength => "payload and spans differ in length",
        Status::Stale => "its owner has revoked a block that it touches",
        Status::ReadOnly => "the region is for reading only",
    }
}

/// How a transfer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// Every byte is in place.
    Done {
        /// How many.
        bytes: u64,
    },
    /// It was cancelled.
    Cancelled,
    /// Its deadline passed.
    Deadline,
    /// The peer was lost.
    PeerLost,
    /// A slice failed.
    Failed {
        /// Which.
        slice: u32,
        /// Why.
        error: SliceError,
    },
}

/// A slice to be moved; its pieces were put into the caller's vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SlicePost {
    /// Its number.
    pub slice: u32,
    /// Its bytes.
    pub bytes: u64,
}

/// A transfer under way.
#[derive(Debug)]
pub struct Xfer {
    limits: SliceLimits,
    pieces: Pieces,
    posted: u32,
    in_flight: u32,
    bytes: u64,
    exhausted: bool,
    failure: Option<Outcome>,
    deadline: Time,
    told: bool,
}

impl Xfer {
    /// Before its first slice.
    #[must_use]
    pub fn new(limits: SliceLimits, deadline: Time) -> Self {
        Self {
            limits,
            pieces: Pieces::new(),
            posted: 0,
            in_flight: 0,
            bytes: 0,
            exhausted: false,
            failure: None,
            deadline,
            told: false,
        }
    }

    /// The next slice to move, or `None` where there is none (now). Its pieces are appended to `out`.
    #[must_use]
    pub fn poll_slice(&mut self, sides: (Side<'_>, Side<'_>), out: &mut Vec<Piece>) -> Option<SlicePost> {
        if self.exhausted || self.failure.is_some() || self.in_flight >= self.limits.in_flight_max {
            return None;
        }
        let bytes = self.pieces.slice(sides, self.limits.bytes_max, self.limits.pieces_max, out);
        if bytes == 0 {
            self.exhausted = true;
            return None;
        }
        let post = SlicePost { slice: self.posted, bytes };
        self.posted += 1;
        self.in_flight += 1;
        Some(post)
    }

    /// A slice that was given out has completed: nothing touches its bytes any more.
    pub fn handle_completion(&mut self, slice: u32, result: Result<u64, SliceError>) {
        self.in_flight = self.in_flight.saturating_sub(1);
        match result {
            Ok(bytes) => self.bytes += bytes,
            Err(error) => {
                self.failure.get_or_insert(Outcome::Failed { slice, error });
            }
        }
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Time) {
        if now >= self.deadline {
            self.stop(Outcome::Deadline);
        }
    }

    /// The caller does not want it any more.
    pub fn cancel(&mut self) {
        self.stop(Outcome::Cancelled);
    }

    /// The peer is gone.
    pub fn peer_lost(&mut self) {
        self.stop(Outcome::PeerLost);
    }

    /// The first reason to stop is the one that is told; when every byte is in place it is too late for one.
    fn stop(&mut self, outcome: Outcome) {
        let all_in_place = self.exhausted && self.in_flight == 0;
        if !all_in_place {
            self.failure.get_or_insert(outcome);
        }
    }

    /// Whether it was told to stop: slices in flight should end soon, whatever becomes of them.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.failure.is_some()
    }

    /// Slices that were given out and have not completed.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// When [`Xfer::handle_timeout`] is to be called.
    #[must_use]
    pub fn poll_timeout(&self) -> Time {
        self.deadline
    }

    /// The end, once: after the last completion (I1).
    #[must_use]
    pub fn poll_outcome(&mut self) -> Option<Outcome> {
        if self.told || self.in_flight > 0 || !(self.exhausted || self.failure.is_some()) {
            return None;
        }
        self.told = true;
        Some(self.failure.unwrap_or(Outcome::Done { bytes: self.bytes }))
    }
}

#[cfg(test)]
mod tests {
    use core::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::desc::{Desc, DescList, Selection};
    use crate::id::RegionId;

    fn at(ms: u64) -> Time {
        Time::at(Duration::from_millis(ms))
    }

    fn list(bytes: u64) -> DescList {
        DescList::from(Desc::contiguous(RegionId::new(0, 0), 0, bytes))
    }

    /// Posts all slices that the window allows.
    fn post(x: &mut Xfer, list: &DescList) -> Vec<SlicePost> {
        let side = Side::new(list, &Selection::All);
        core::iter::from_fn(|| x.poll_slice((side, side), &mut Vec::new())).collect()
    }

    fn xfer(in_flight_max: u32) -> Xfer {
        Xfer::new(SliceLimits::new(10, 100, in_flight_max), at(1000))
    }

    #[test]
    fn the_window_holds_and_the_end_comes_after_the_last_completion() {
        let (mut x, list) = (xfer(2), list(35));
        assert_eq!(post(&mut x, &list).len(), 2);
        x.handle_completion(1, Ok(10));
        assert_eq!(post(&mut x, &list).len(), 1);
        x.handle_completion(0, Ok(10));
        x.handle_completion(2, Ok(10));
        let last = post(&mut x, &list);
        assert_eq!(last, [SlicePost { slice: 3, bytes: 5 }]);
        assert_eq!(x.poll_outcome(), None);
        x.handle_completion(3, Ok(5));
        assert_eq!(post(&mut x, &list), []);
        assert_eq!(x.poll_outcome(), Some(Outcome::Done { bytes: 35 }));
        assert_eq!(x.poll_outcome(), None);
    }

    #[test]
    fn a_failure_keeps_the_buffers_until_all_slices_are_back() {
        let (mut x, list) = (xfer(3), list(100));
        assert_eq!(post(&mut x, &list).len(), 3);
        x.handle_completion(1, Err(SliceError::RailLost));
        assert_eq!((x.poll_outcome(), post(&mut x, &list)), (None, alloc::vec![]));
        x.handle_completion(0, Ok(10));
        x.handle_completion(2, Err(SliceError::Refused(Status::BadSpan)));
        let first = Outcome::Failed { slice: 1, error: SliceError::RailLost };
        assert_eq!(x.poll_outcome(), Some(first));
    }

    #[test]
    fn deadline_and_cancel_end_it_and_come_too_late_after_the_last_byte() {
        let list = list(10);
        let mut x = xfer(2);
        assert_eq!(post(&mut x, &list).len(), 1);
        x.handle_timeout(at(999));
        assert!(!x.is_stopping());
        x.handle_timeout(at(1000));
        x.cancel();
        x.handle_completion(0, Ok(10));
        assert_eq!(x.poll_outcome(), Some(Outcome::Deadline));
        let mut x = xfer(2);
        assert_eq!(post(&mut x, &list).len(), 1);
        x.handle_completion(0, Ok(10));
        x.cancel();
        assert_eq!(x.poll_outcome(), Some(Outcome::Done { bytes: 10 }));
    }

    #[test]
    fn nothing_to_move_is_done_at_once() {
        let mut x = xfer(1);
        assert_eq!(post(&mut x, &DescList::new()), []);
        assert_eq!(x.poll_outcome(), Some(Outcome::Done { bytes: 0 }));
    }

    proptest! {
        #[test]
        fn every_transfer_ends_once_with_nothing_in_flight(
            bytes in 0_u64..200, window in 1_u32..5,
            choices in prop::collection::vec((0_u8..12, any::<usize>()), 0..80)
        ) {
            let (mut x, list) = (xfer(window), list(bytes));
            let mut flying: Vec<SlicePost> = Vec::new();
            let mut outcomes = 0;
            // Whatever was chosen, in the end all slices come back.
            for (choice, which) in choices.into_iter().chain((0..200).map(|i| (9, i))) {
                flying.extend(post(&mut x, &list));
                prop_assert!(flying.len() <= window as usize);
                match choice {
                    0 => x.cancel(),
                    1 => x.handle_timeout(at(1000)),
                    2 => x.peer_lost(),
                    _ if flying.is_empty() => {}
                    _ => {
                        let slice = flying.swap_remove(which % flying.len());
                        let result = if choice == 3 { Err(SliceError::RailLost) } else { Ok(slice.bytes) };
                        x.handle_completion(slice.slice, result);
                    }
                }
                if let Some(outcome) = x.poll_outcome() {
                    outcomes += 1;
                    prop_assert!(flying.is_empty());
                    if let Outcome::Done { bytes: moved } = outcome {
                        prop_assert_eq!(moved, bytes);
                    }
                }
            }
            prop_assert_eq!(outcomes, 1);
        }
    }
}
