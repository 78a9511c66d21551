//! The state machine of a transfer: which slice goes next, which goes again, and how it all ends.
//!
//! Its promises:
//!
//! - **Quiet (I1).** The outcome comes when nothing is in flight and no fence is open, so that from then on nothing
//!   touches the buffers, neither here nor at the peer. A failure stops new slices at once.
//! - **Once.** Each slice counts once. Every posting has a number of its own, also the retry of a slice, so a late
//!   completion names something that does not exist any more.
//! - **Fence.** A slice whose rail broke may still be on its way to the peer's memory. It goes out again, or the
//!   transfer ends, only when the peer has said that the rail is closed at its end ([`Xfer::lift_fences`]), or is
//!   lost itself: then no late duplicate can land in memory that was given to someone else.

use alloc::vec::Vec;
use core::fmt;

use crate::id::RailId;
use crate::plan::{Piece, Pieces, Side};
use crate::proto::data::Status;
use crate::proto::time::Time;

/// How often a slice goes out again, unless told otherwise.
pub const RETRIES_MAX: u32 = 3;

/// How a transfer is cut, and how much of it is in flight.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct SliceLimits {
    /// Bytes of a slice.
    pub bytes_max: u64,
    /// Pieces of a slice.
    pub pieces_max: usize,
    /// Slices that were given out and have not completed, those that wait for a fence among them.
    pub in_flight_max: u32,
    /// How often a slice goes out again after its rail broke.
    pub retries_max: u32,
}

impl SliceLimits {
    /// These limits, and [`RETRIES_MAX`].
    #[must_use]
    pub fn new(bytes_max: u64, pieces_max: usize, in_flight_max: u32) -> Self {
        Self { bytes_max, pieces_max, in_flight_max, retries_max: RETRIES_MAX }
    }
}

/// Why a slice failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SliceError {
    /// The target refused it.
    #[error("the target refused it: {}", status_text(*.status))]
    Refused {
        /// Why.
        status: Status,
        /// Which of its spans, counted within the slice.
        span: u32,
    },
    /// The rail that carried it broke, or there is none left.
    #[error("its connection broke")]
    RailLost,
    /// It was called back, and nothing touches its bytes any more, here or at the peer.
    #[error("it was called back")]
    Abandoned,
    /// The kernel refused to move the bytes.
    #[error("the kernel refused to move them: errno {errno}{}", errno_text(*.errno))]
    Os {
        /// Its errno.
        errno: i32,
        /// At which of its spans, counted within the slice. Those before it were moved.
        span: u32,
    },
    /// The process that has the memory does not exist any more.
    #[error("its process has ended")]
    PeerGone,
    /// The peer sent something else than was asked for.
    #[error("the peer answered with another number of bytes")]
    WrongReply,
}

impl SliceError {
    /// Which span of the slice it speaks of; the first, where it does not say.
    #[must_use]
    pub fn span(self) -> u32 {
        match self {
            Self::Refused { span, .. } | Self::Os { span, .. } => span,
            _ => 0,
        }
    }
}

/// What the kernel means, for what it may say of another process's memory (process_vm_readv(2)).
fn errno_text(errno: i32) -> &'static str {
    match errno {
        1 => ", this process has no right to that memory (any more)",
        12 => ", no memory is left for it",
        14 => ", memory that was registered is not mapped there, or not for this",
        _ => "",
    }
}

fn status_text(status: Status) -> &'static str {
    match status {
        Status::Ok => "without a reason",
        Status::BadSpan => "a span lies outside its regions, or the region was deregistered",
        Status::BadLength => "payload and spans differ in length",
        Status::Stale => "its owner has revoked a block that it touches",
        Status::ReadOnly => "the region is for reading only",
        Status::Pending => "without a verdict",
    }
}

/// Where and why a transfer failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Failure {
    /// Which slice.
    pub slice: u32,
    /// How often it had been sent.
    pub attempts: u32,
    /// The remote descriptor of its first piece that failed.
    pub desc: u32,
    /// Where in that descriptor's region.
    pub offset: u64,
    /// The rail that carried it, where one did.
    pub rail: Option<RailId>,
    /// Why.
    pub error: SliceError,
}

impl Failure {
    /// A first attempt that failed at this remote descriptor and offset, on no rail.
    #[must_use]
    pub fn new(slice: u32, (desc, offset): (u32, u64), error: SliceError) -> Self {
        Self { slice, attempts: 1, desc, offset, rail: None, error }
    }

    /// Whether the same transfer may succeed when it is posted again: a broken rail may be back, a refusal stands.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self.error, SliceError::RailLost)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "slice {} (remote descriptor {}, offset {})", self.slice, self.desc, self.offset)?;
        if let Some(rail) = self.rail {
            write!(f, " on rail {rail}")?;
        }
        if self.attempts > 1 {
            write!(f, " in attempt {}", self.attempts)?;
        }
        write!(f, ": {}", self.error)
    }
}

impl core::error::Error for Failure {}

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
    /// The peer was lost. A write may still come in there until the peer has noticed the loss too; whichever reason
    /// there was to stop before, this is told where that can be.
    PeerLost,
    /// A slice failed.
    Failed(Failure),
}

/// A slice to be moved; its pieces were put into the caller's vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SlicePost {
    /// The number of this posting, which its completion names. It is never used again.
    pub id: u32,
    /// Which slice.
    pub slice: u32,
    /// Its bytes.
    pub bytes: u64,
}

/// A slice that was given out and has not completed.
#[derive(Clone, Copy, Debug)]
struct Flight {
    /// Number of its last posting.
    id: u32,
    slice: u32,
    attempts: u32,
    bytes: u64,
    /// Where it begins.
    from: Pieces,
    state: FlightState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FlightState {
    InFlight,
    /// Its rail broke, and may still carry bytes of it to the peer.
    Fenced(RailId),
    /// It goes out again.
    Ready,
}

/// Why no further slice goes out.
#[derive(Clone, Copy, Debug)]
enum Stop {
    Told(Outcome),
    /// A slice failed; where, is worked out when it is told.
    Failed {
        flight: Flight,
        rail: Option<RailId>,
        error: SliceError,
    },
}

/// A transfer under way.
///
/// A step allocates nothing once as many slices are in flight as ever will be; [`Xfer::restart`] keeps that memory
/// for another transfer.
#[derive(Debug)]
pub struct Xfer {
    limits: SliceLimits,
    pieces: Pieces,
    flights: Vec<Flight>,
    /// Numbers that were used: of postings, and of slices.
    postings: u32,
    slices: u32,
    bytes: u64,
    exhausted: bool,
    peer_lost: bool,
    stop: Option<Stop>,
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
            flights: Vec::new(),
            postings: 0,
            slices: 0,
            bytes: 0,
            exhausted: false,
            peer_lost: false,
            stop: None,
            deadline,
            told: false,
        }
    }

    /// Another transfer in the place of one that has ended, as [`Xfer::new`], in the same memory.
    pub fn restart(&mut self, limits: SliceLimits, deadline: Time) {
        let mut flights = core::mem::take(&mut self.flights);
        flights.clear();
        *self = Self { flights, ..Self::new(limits, deadline) };
    }

    /// The next slice to move, or `None` where there is none (now). Its pieces are appended to `out`. Slices whose
    /// rail broke go first, on whichever rail the caller chooses now.
    #[must_use]
    pub fn poll_slice(&mut self, sides: (Side<'_>, Side<'_>), out: &mut Vec<Piece>) -> Option<SlicePost> {
        if self.stop.is_some() {
            return None;
        }
        let SliceLimits { bytes_max, pieces_max, in_flight_max, .. } = self.limits;
        let id = self.postings;
        if let Some(flight) = self.flights.iter_mut().find(|flight| flight.state == FlightState::Ready) {
            let mut pieces = flight.from;
            pieces.slice(sides, bytes_max, pieces_max, out);
            (flight.id, flight.state) = (id, FlightState::InFlight);
            flight.attempts += 1;
            self.postings += 1;
            return Some(SlicePost { id, slice: flight.slice, bytes: flight.bytes });
        }
        if self.exhausted || self.flights.len() >= in_flight_max as usize {
            return None;
        }
        let from = self.pieces;
        let bytes = self.pieces.slice(sides, bytes_max, pieces_max, out);
        if bytes == 0 {
            self.exhausted = true;
            return None;
        }
        let (slice, state) = (self.slices, FlightState::InFlight);
        self.flights.push(Flight { id, slice, attempts: 1, bytes, from, state });
        (self.postings, self.slices) = (self.postings + 1, self.slices + 1);
        Some(SlicePost { id, slice, bytes })
    }

    /// A posting has completed. With any result but [`SliceError::RailLost`] on a rail, nothing touches its bytes
    /// any more. `rail` is what carried it: `None` on paths without rails, and where no byte of it was sent yet.
    /// Completions of postings that have completed before are ignored.
    pub fn handle_completion(&mut self, id: u32, rail: Option<RailId>, result: Result<u64, SliceError>) {
        let current = |flight: &Flight| flight.id == id && flight.state == FlightState::InFlight;
        let Some(at) = self.flights.iter().position(current) else { return };
        let flight = self.flights[at];
        match result {
            Ok(bytes) if bytes == flight.bytes => {
                self.bytes += bytes;
                self.flights.swap_remove(at);
            }
            Err(SliceError::RailLost) => self.rail_lost(at, rail),
            Err(SliceError::Abandoned) => {
                // Told even of the last one, since its bytes are not in place.
                self.flights.swap_remove(at);
                self.stop.get_or_insert(Stop::Told(Outcome::Cancelled));
                self.drop_unwanted();
            }
            Ok(_) | Err(_) => {
                let error = result.err().unwrap_or(SliceError::WrongReply);
                self.flights.swap_remove(at);
                self.stop(Stop::Failed { flight, rail, error });
            }
        }
    }

    /// The rail under a flight broke: the fence opens.
    fn rail_lost(&mut self, at: usize, rail: Option<RailId>) {
        let flight = self.flights[at];
        self.flights[at].state = rail.map_or(FlightState::Ready, FlightState::Fenced);
        if flight.attempts > self.limits.retries_max {
            self.stop(Stop::Failed { flight, rail, error: SliceError::RailLost });
        }
        self.drop_unwanted();
        self.drop_unconfirmed();
    }

    /// Nobody is left to confirm that the rails of a lost peer are closed: whatever the transfer stopped for, its
    /// bytes may still land there, and only this outcome says so.
    fn drop_unconfirmed(&mut self) {
        if self.peer_lost && self.fenced() > 0 {
            self.stop = Some(Stop::Told(Outcome::PeerLost));
            self.flights.retain(|flight| flight.state == FlightState::InFlight);
        }
    }

    /// Lets slices go on whose fence is over: the peer has said of their rail that it is closed at its end. To be
    /// called after completions, and when a rail was closed. Cost: nothing while no fence is open.
    pub fn lift_fences(&mut self, is_closed: impl Fn(RailId) -> bool) {
        for flight in &mut self.flights {
            if let FlightState::Fenced(rail) = flight.state
                && is_closed(rail)
            {
                flight.state = FlightState::Ready;
            }
        }
        self.drop_unwanted();
    }

    /// A transfer that stops sends nothing again.
    fn drop_unwanted(&mut self) {
        if self.stop.is_some() {
            self.flights.retain(|flight| flight.state != FlightState::Ready);
        }
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Time) {
        if now >= self.deadline {
            self.stop(Stop::Told(Outcome::Deadline));
        }
    }

    /// The caller does not want it any more.
    pub fn cancel(&mut self) {
        self.stop(Stop::Told(Outcome::Cancelled));
    }

    /// The peer is gone, and with it whoever could confirm a fence.
    pub fn peer_lost(&mut self) {
        self.peer_lost = true;
        self.stop(Stop::Told(Outcome::PeerLost));
        self.drop_unconfirmed();
    }

    /// The first reason to stop is the one that is told; when every byte is in place it is too late for one.
    fn stop(&mut self, stop: Stop) {
        let all_in_place = self.exhausted && self.flights.is_empty() && matches!(stop, Stop::Told(_));
        if !all_in_place {
            self.stop.get_or_insert(stop);
        }
        self.drop_unwanted();
    }

    /// Whether it was told to stop: slices in flight should end soon, whatever becomes of them.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.stop.is_some()
    }

    /// Slices that were given out and have not completed.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.count(|state| state == FlightState::InFlight)
    }

    /// Slices that wait until the peer confirms that their rail is closed.
    #[must_use]
    pub fn fenced(&self) -> u32 {
        self.count(|state| matches!(state, FlightState::Fenced(_)))
    }

    fn count(&self, which: impl Fn(FlightState) -> bool) -> u32 {
        let count = self.flights.iter().filter(|flight| which(flight.state)).count();
        u32::try_from(count).unwrap_or(u32::MAX)
    }

    /// When [`Xfer::handle_timeout`] is to be called.
    #[must_use]
    pub fn poll_timeout(&self) -> Time {
        self.deadline
    }

    /// The end, once: after the last completion, with no fence open (I1). The sides are those of
    /// [`Xfer::poll_slice`].
    #[must_use]
    pub fn poll_outcome(&mut self, sides: (Side<'_>, Side<'_>)) -> Option<Outcome> {
        if self.told || !self.flights.is_empty() || !(self.exhausted || self.stop.is_some()) {
            return None;
        }
        self.told = true;
        Some(match self.stop {
            None => Outcome::Done { bytes: self.bytes },
            Some(Stop::Told(outcome)) => outcome,
            Some(Stop::Failed { flight, rail, error }) => {
                Outcome::Failed(self.failure(sides, &flight, rail, error))
            }
        })
    }

    /// Cuts the slice once more, to see which piece it was.
    fn failure(
        &self,
        sides: (Side<'_>, Side<'_>),
        flight: &Flight,
        rail: Option<RailId>,
        error: SliceError,
    ) -> Failure {
        let (mut from, mut pieces) = (flight.from, Vec::new());
        from.slice(sides, self.limits.bytes_max, self.limits.pieces_max, &mut pieces);
        let piece = pieces.get(error.span() as usize).or_else(|| pieces.first());
        let at = piece.map_or((0, 0), |piece| piece.remote);
        Failure { attempts: flight.attempts, rail, ..Failure::new(flight.slice, at, error) }
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;
    use alloc::vec;
    use core::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::desc::{Desc, DescList, Selection};
    use crate::id::RegionId;

    const RAIL: Option<RailId> = Some(RailId::new(1, 0));
    const LOST: Result<u64, SliceError> = Err(SliceError::RailLost);
    const REFUSED: Result<u64, SliceError> = Err(SliceError::Refused { status: Status::BadSpan, span: 1 });

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

    fn outcome(x: &mut Xfer, list: &DescList) -> Option<Outcome> {
        let side = Side::new(list, &Selection::All);
        x.poll_outcome((side, side))
    }

    fn xfer(in_flight_max: u32) -> Xfer {
        Xfer::new(SliceLimits::new(10, 100, in_flight_max), at(1000))
    }

    #[test]
    fn the_window_holds_and_the_end_comes_after_the_last_completion() {
        let (mut x, list) = (xfer(2), list(35));
        assert_eq!(post(&mut x, &list).len(), 2);
        x.handle_completion(1, None, Ok(10));
        assert_eq!(post(&mut x, &list).len(), 1);
        x.handle_completion(0, None, Ok(10));
        x.handle_completion(2, None, Ok(10));
        let last = post(&mut x, &list);
        assert_eq!(last, [SlicePost { id: 3, slice: 3, bytes: 5 }]);
        assert_eq!(outcome(&mut x, &list), None);
        x.handle_completion(3, None, Ok(5));
        assert_eq!(post(&mut x, &list), []);
        assert_eq!(outcome(&mut x, &list), Some(Outcome::Done { bytes: 35 }));
        assert_eq!(outcome(&mut x, &list), None);
    }

    #[test]
    fn a_failure_keeps_the_buffers_until_all_slices_are_back() {
        let (mut x, list) = (xfer(3), list(100));
        assert_eq!(post(&mut x, &list).len(), 3);
        x.handle_completion(1, RAIL, REFUSED);
        assert_eq!((outcome(&mut x, &list), post(&mut x, &list)), (None, vec![]));
        x.handle_completion(0, RAIL, Ok(10));
        x.handle_completion(2, RAIL, LOST);
        assert_eq!((outcome(&mut x, &list), x.in_flight(), x.fenced()), (None, 0, 1));
        x.lift_fences(|rail| Some(rail) == RAIL);
        let Some(Outcome::Failed(failure)) = outcome(&mut x, &list) else { panic!("it failed") };
        assert_eq!((failure.slice, failure.offset, failure.rail), (1, 10, RAIL));
        assert!(!failure.is_retryable());
    }

    #[test]
    fn a_failure_names_the_piece_that_was_refused() {
        let desc = |offset| Desc::contiguous(RegionId::new(0, 0), offset, 4);
        let list: DescList = [desc(0), desc(100), desc(200), desc(300)].into_iter().collect();
        let mut x = Xfer::new(SliceLimits::new(8, 2, 4), at(1000));
        assert_eq!(post(&mut x, &list).len(), 2);
        x.handle_completion(1, RAIL, REFUSED);
        x.handle_completion(0, RAIL, Ok(8));
        let Some(Outcome::Failed(failure)) = outcome(&mut x, &list) else { panic!("it failed") };
        assert_eq!((failure.slice, failure.desc, failure.offset), (1, 3, 300));
        let text = "slice 1 (remote descriptor 3, offset 300) on rail 1.0: the target refused it";
        assert!(failure.to_string().starts_with(text), "{failure}");
    }

    #[test]
    fn a_slice_goes_out_again_only_behind_the_fence() {
        let (mut x, list) = (xfer(2), list(20));
        assert_eq!(post(&mut x, &list).len(), 2);
        x.handle_completion(0, RAIL, LOST);
        x.lift_fences(|_| false);
        assert_eq!((post(&mut x, &list), x.fenced()), (vec![], 1));
        x.lift_fences(|_| true);
        assert_eq!(post(&mut x, &list), [SlicePost { id: 2, slice: 0, bytes: 10 }]);
        // Late news of the first attempt.
        x.handle_completion(0, RAIL, Ok(10));
        x.handle_completion(0, RAIL, LOST);
        x.handle_completion(1, RAIL, Ok(10));
        assert_eq!((post(&mut x, &list), outcome(&mut x, &list)), (vec![], None));
        x.handle_completion(2, None, Ok(10));
        x.handle_completion(2, None, Ok(10));
        assert_eq!(outcome(&mut x, &list), Some(Outcome::Done { bytes: 20 }));
    }

    #[test]
    fn a_slice_that_was_called_back_ends_it_beside_one_that_waits_to_go_again() {
        let (mut x, list) = (xfer(4), list(100));
        assert_eq!(post(&mut x, &list).len(), 4);
        x.handle_completion(0, None, LOST);
        x.handle_completion(1, None, Err(SliceError::Abandoned));
        assert_eq!((x.in_flight(), outcome(&mut x, &list)), (2, None));
        x.handle_completion(2, None, Ok(10));
        x.handle_completion(3, None, Err(SliceError::Abandoned));
        assert_eq!(outcome(&mut x, &list), Some(Outcome::Cancelled));
    }

    #[test]
    fn the_last_slice_called_back_is_not_in_place() {
        let (mut x, list) = (xfer(2), list(10));
        assert_eq!(post(&mut x, &list).len(), 1);
        x.handle_completion(0, None, Err(SliceError::Abandoned));
        assert_eq!(outcome(&mut x, &list), Some(Outcome::Cancelled));
    }

    #[test]
    fn retries_end() {
        let (mut x, list) = (xfer(1), list(10));
        for attempt in 0..=RETRIES_MAX {
            assert_eq!(post(&mut x, &list), [SlicePost { id: attempt, slice: 0, bytes: 10 }]);
            x.handle_completion(attempt, RAIL, LOST);
            assert_eq!(outcome(&mut x, &list), None);
            x.lift_fences(|_| true);
        }
        assert_eq!(post(&mut x, &list), []);
        let Some(Outcome::Failed(failure)) = outcome(&mut x, &list) else { panic!("it failed") };
        assert_eq!((failure.attempts, failure.error), (RETRIES_MAX + 1, SliceError::RailLost));
        assert!(failure.is_retryable());
    }

    #[test]
    fn a_lost_peer_confirms_nothing_and_nobody_waits_for_it() {
        let (mut x, list) = (xfer(2), list(20));
        assert_eq!(post(&mut x, &list).len(), 2);
        x.handle_completion(0, RAIL, LOST);
        x.peer_lost();
        assert_eq!((x.fenced(), outcome(&mut x, &list)), (0, None));
        x.handle_completion(1, RAIL, LOST);
        assert_eq!(outcome(&mut x, &list), Some(Outcome::PeerLost));
    }

    #[test]
    fn an_end_that_the_peer_did_not_confirm_is_told_as_its_loss() {
        for confirmed in [true, false] {
            let (mut x, list) = (xfer(2), list(20));
            assert_eq!(post(&mut x, &list).len(), 2);
            x.handle_timeout(at(1000));
            x.handle_completion(0, RAIL, LOST);
            x.lift_fences(|_| confirmed);
            x.handle_completion(1, RAIL, Ok(10));
            x.peer_lost();
            let told = if confirmed { Outcome::Deadline } else { Outcome::PeerLost };
            assert_eq!(outcome(&mut x, &list), Some(told));
        }
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
        x.handle_completion(0, None, Ok(10));
        assert_eq!(outcome(&mut x, &list), Some(Outcome::Deadline));
        x.restart(SliceLimits::new(10, 100, 2), at(2000));
        assert_eq!(post(&mut x, &list).len(), 1);
        x.handle_completion(0, None, Ok(10));
        x.cancel();
        assert_eq!(outcome(&mut x, &list), Some(Outcome::Done { bytes: 10 }));
    }

    #[test]
    fn nothing_to_move_is_done_at_once() {
        let mut x = xfer(1);
        assert_eq!(post(&mut x, &DescList::new()), []);
        assert_eq!(outcome(&mut x, &DescList::new()), Some(Outcome::Done { bytes: 0 }));
    }

    /// A transfer, and an outside view of where each posting is.
    struct Model {
        x: Xfer,
        list: DescList,
        flying: Vec<(SlicePost, RailId)>,
        /// Rails whose fence is open, with the slices behind it.
        fenced: Vec<(RailId, u32)>,
        landed: Vec<u32>,
        peer_lost: bool,
        outcomes: u32,
    }

    impl Model {
        fn step(&mut self, choice: u8, which: usize) -> Result<(), TestCaseError> {
            match choice {
                0 => self.x.cancel(),
                1 => self.x.handle_timeout(at(1000)),
                2 => (self.peer_lost, _) = (true, self.x.peer_lost()),
                3 | 4 if !self.fenced.is_empty() => {
                    let rail = self.fenced[which % self.fenced.len()].0;
                    self.fenced.retain(|(fenced, _)| *fenced != rail);
                    self.x.lift_fences(|closed| closed == rail);
                }
                _ if !self.flying.is_empty() => {
                    let (post, rail) = self.flying.swap_remove(which % self.flying.len());
                    let late = (post.id, Some(rail), Ok(post.bytes));
                    let result = if choice < 8 { LOST } else { Ok(post.bytes) };
                    self.x.handle_completion(post.id, Some(rail), result);
                    self.x.handle_completion(late.0, late.1, late.2);
                    match result {
                        Ok(_) => self.landed.push(post.slice),
                        Err(_) => self.fenced.push((rail, post.slice)),
                    }
                }
                _ => {}
            }
            self.look()
        }

        /// What must hold after every step.
        fn look(&mut self) -> Result<(), TestCaseError> {
            for post in post(&mut self.x, &self.list) {
                let rail = RailId::new(post.id % 3, post.id);
                prop_assert!(!self.fenced.iter().any(|(_, slice)| *slice == post.slice), "over a fence");
                prop_assert!(!self.landed.contains(&post.slice), "landed twice");
                self.flying.push((post, rail));
            }
            let quiet = self.flying.is_empty() && (self.fenced.is_empty() || self.peer_lost);
            if let Some(outcome) = outcome(&mut self.x, &self.list) {
                self.outcomes += 1;
                prop_assert!(quiet, "not quiet");
                if let Outcome::Done { bytes } = outcome {
                    prop_assert_eq!(bytes, self.list.bytes());
                    prop_assert_eq!(self.landed.len() as u64, bytes.div_ceil(10));
                }
            }
            Ok(())
        }
    }

    proptest! {
        #[test]
        fn every_transfer_ends_once_and_quietly(
            bytes in 0_u64..200, window in 1_u32..5,
            choices in prop::collection::vec((0_u8..16, any::<usize>()), 0..80)
        ) {
            let (flying, fenced, landed) = (vec![], vec![], vec![]);
            let (x, list) = (xfer(window), list(bytes));
            let mut model = Model { x, list, flying, fenced, landed, peer_lost: false, outcomes: 0 };
            // Whatever was chosen, in the end all slices come back and all fences are lifted.
            for (choice, which) in choices.into_iter().chain((0..200).map(|i| ([15, 3][i % 2], i))) {
                model.step(choice, which)?;
            }
            prop_assert_eq!(model.outcomes, 1);
        }
    }
}
