//! One data connection: both directions, and the slices that wait for an answer on it.

use std::net::TcpStream;
use std::os::fd::AsFd;
use std::time::Duration;

use rustc_hash::FxHashMap;
use transfer_proto::codec::DecodeError;
use transfer_proto::desc::DescList;
use transfer_proto::id::{Incarnation, RailId, XferId};
use transfer_proto::proto::data::{DataHeader, DataKind, Head, PAYLOAD_MAX, Status};
use transfer_proto::proto::time::Time;
use transfer_proto::proto::xfer::SliceError;
use transfer_sys::poll::Epoll;
use transfer_sys::process::RANGES_MAX;
use transfer_sys::{OsError, RawRange, socket};

use super::intake::{Intake, Target};
use super::send::{Keeper, SendQueue};
use super::serve::{self, Promise};
use super::wire::{Came, Wire};
use crate::backend::{Completion, Slice};
use crate::mem::{Lane, RegionTable};
use crate::secure::BadRecord;
use crate::xfer::{Op, XferRef};

/// Bytes taken from one connection before the others get their turn.
const TURN_BYTES: usize = 2 << 20;
/// Bytes on which a connection counts as one on which much moves: under way, or moved without a pause.
const BULK_BYTES: u64 = 1 << 20;
/// A turn that moves less than this is one of short messages, which the driver does without a detour however many they are.
const BULK_TURN_BYTES: usize = 32 << 10;
/// What lies farther apart than this has a pause between it.
const PAUSE: Duration = Duration::from_millis(1);
/// While a long payload comes in, so many bytes of it have to wait before the thread is woken for them.
const LOW_WATER_BYTES: u32 = 256 << 10;
/// A payload that has no more than this left is not waited for in one.
const LOW_WATER_MIN: u32 = 64 << 10;
/// Slices of ours that may wait for an answer on one connection.
pub(super) const AWAITED_MAX: u32 = 64;
/// Answers that may wait to be sent before nothing more is read. A peer that keeps to its own [`AWAITED_MAX`] never
/// comes near, so two agents that serve each other cannot both stop reading; one that does not keep to it, waits.
const ANSWERS_MAX: usize = 4 * AWAITED_MAX as usize;
/// Ranges that are kept for the next payloads.
const SPARES_MAX: usize = AWAITED_MAX as usize;
/// A payload that is copied once more on its way out, since a call for a verdict costs more.
const COPIED_MAX: u64 = 4 << 10;

/// Why a connection cannot go on.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnError {
    /// The peer closed it.
    #[error("the peer closed it")]
    Closed,
    /// What came is not what the peer sealed.
    #[error(transparent)]
    Sealed(#[from] BadRecord),
    /// The system says so.
    #[error(transparent)]
    Os(#[from] OsError),
    /// The peer broke the protocol.
    #[error("the peer broke the protocol: {0}")]
    Protocol(#[from] DecodeError),
}

/// A slice of ours that is on the connection.
struct Awaited {
    bytes: u64,
    core: XferRef,
    /// For a read: where its bytes go.
    ranges: Vec<RawRange>,
    /// Nobody waits for its data any more; its completion was told.
    dropped: bool,
}

/// Where incoming bytes go.
enum Inbound {
    /// Into the buffer, until there is a header with its descriptors.
    Head,
    /// Into memory.
    Land { target: Target, landing: Landing },
    /// Nowhere.
    Sink { left: u64, answer: Option<DataHeader> },
}

/// Whose memory it is.
enum Landing {
    /// A peer writes into our regions.
    Served { answer: DataHeader, promise: Promise },
    /// The answer to a read of ours; a verdict may follow it.
    Own { slice: (XferId, u32), bytes: u64, core: XferRef, pending: bool },
}

impl Landing {
    /// For one step: see [`Promise::enter`].
    fn enter(&self) -> Option<Lane<'_>> {
        if let Self::Served { promise, .. } = self { promise.enter() } else { None }
    }

    /// What to answer where the memory was revoked. To be asked inside a lane.
    fn refusal(&self) -> Option<DataHeader> {
        let Self::Served { answer, promise } = self else { return None };
        let mut refusal = *answer;
        (refusal.status, refusal.span) = (Status::Stale, promise.broken()?);
        Some(refusal)
    }
}

/// A payload that has come, whose verdict has not.
struct Unjudged {
    slice: (XferId, u32),
    /// Its bytes, while somebody wants them.
    wanted: Option<(u64, XferRef)>,
}

/// One connection.
pub(super) struct Conn {
    pub(super) peer: Incarnation,
    pub(super) rail: RailId,
    wire: Wire,
    out: SendQueue,
    intake: Intake,
    inbound: Inbound,
    unjudged: Option<Unjudged>,
    /// By names that are ours: a peer can ask for others, and add none.
    awaited: FxHashMap<(XferId, u32), Awaited>,
    /// Bytes of those.
    awaited_bytes: u64,
    /// Bytes of each slice that has left the connection since it was last asked.
    freed: Vec<u64>,
    /// Ranges of payloads that have come, kept for the next ones.
    spares: Vec<Vec<RawRange>>,
    /// The spans of the slice that was submitted last, kept for the memory.
    list: DescList,
    low_water: u32,
    /// Bytes may be held that wait for answers to leave.
    stalled: bool,
    /// What epoll looks at: readable, writable.
    pub(super) watched: (bool, bool),
    /// Bytes that moved in bulk since the last pause, and when they did last.
    streak: u64,
    moved_at: Time,
}

impl Conn {
    pub(super) fn new(wire: Wire, peer: Incarnation, rail: RailId) -> Self {
        Self {
            peer,
            rail,
            wire,
            out: SendQueue::default(),
            intake: Intake::new(),
            inbound: Inbound::Head,
            unjudged: None,
            awaited: FxHashMap::default(),
            awaited_bytes: 0,
            freed: Vec::new(),
            spares: Vec::new(),
            list: DescList::new(),
            low_water: 1,
            stalled: false,
            watched: (true, false),
            streak: 0,
            moved_at: Time::default(),
        }
    }

    pub(super) fn stream(&self) -> &TcpStream {
        self.wire.stream()
    }

    pub(super) fn is_encrypted(&self) -> bool {
        self.wire.is_encrypted()
    }

    /// Whether something waits for the socket to take more.
    pub(super) fn has_unsent(&self) -> bool {
        !self.out.is_empty() || self.wire.has_unsent()
    }

    /// Whether enough waits to be sent that no more requests should be taken in.
    pub(super) fn is_congested(&self) -> bool {
        self.out.answers() > ANSWERS_MAX
    }

    /// Whether it is worth a thread of its own.
    pub(super) fn is_bulky(&self) -> bool {
        self.streak.max(self.awaited_bytes) >= BULK_BYTES
    }

    /// Whether nothing has moved in bulk for so long, and not much is under way.
    pub(super) fn is_quiet(&self, now: Time, quiet: Duration) -> bool {
        now.after(self.moved_at) >= quiet && self.awaited_bytes < BULK_BYTES
    }

    /// Reads and sends for a turn; says how many bytes moved.
    pub(super) fn turn(
        &mut self,
        mut readable: bool,
        regions: &RegionTable,
        done: &mut Vec<Completion>,
        now: Time,
    ) -> Result<usize, ConnError> {
        let mut moved = 0;
        loop {
            if readable {
                moved += self.receive(regions, done)?;
            }
            moved += self.flush()?;
            // What was held back until answers had left gives no further sign of itself.
            readable = self.can_resume();
            if !readable {
                self.note_moved(moved, now);
                return Ok(moved);
            }
        }
    }

    pub(super) fn note_moved(&mut self, bytes: usize, now: Time) {
        if self.is_quiet(now, PAUSE) {
            self.streak = 0;
        }
        if bytes >= BULK_TURN_BYTES {
            self.streak += bytes as u64;
            self.moved_at = now;
        }
    }

    /// What it is to be watched for: readable, writable.
    pub(super) fn wanted(&self) -> (bool, bool) {
        (!self.is_congested(), self.has_unsent())
    }

    /// Watches for what is needed next.
    pub(super) fn watch(&mut self, epoll: &Epoll, token: u64) -> Result<(), ConnError> {
        let wanted = self.wanted();
        if wanted != self.watched {
            self.watched = wanted;
            epoll.modify(self.stream().as_fd(), token, wanted.0, wanted.1).map_err(ConnError::Os)?;
        }
        Ok(())
    }

    pub(super) fn has_freed(&self) -> bool {
        !self.freed.is_empty()
    }

    /// The slices, by their bytes, that have left the connection since the last call, answered or taken back.
    pub(super) fn take_freed(&mut self) -> impl Iterator<Item = u64> {
        self.freed.drain(..)
    }

    /// Queues a slice; [`Conn::flush`] sends it.
    pub(super) fn submit(&mut self, slice: Slice) -> Result<(), Completion> {
        debug_assert!(slice.bytes <= PAYLOAD_MAX, "slices are smaller");
        let core = &slice.core;
        let remote = core.remote.core.list.descs();
        let (list, mut ranges) = (&mut self.list, self.spares.pop().unwrap_or_default());
        list.clear();
        for piece in slice.pieces.iter() {
            list.push_span(&remote[piece.remote.0 as usize], piece.remote.1, piece.len);
            // Pieces are made from the list, so they lie in it.
            let range = core.local.core.range(piece);
            ranges.push(range.ok_or_else(|| slice.failed(SliceError::WrongReply))?);
        }
        let draft = self.out.draft().list(list);
        let keeper = Keeper::Own { _core: core.clone() };
        let header = |kind| DataHeader::new(kind, slice.xfer, slice.slice);
        match core.op {
            Op::Write => {
                let mut header = header(DataKind::Write);
                header.payload_len = slice.bytes;
                self.out.push(draft.payload(ranges.drain(..)), header, keeper, true);
                self.keep(std::mem::take(&mut ranges));
            }
            Op::Read => self.out.push(draft, header(DataKind::ReadRequest), keeper, true),
        }
        let (bytes, dropped, core) = (slice.bytes, false, slice.core);
        self.awaited_bytes += bytes;
        self.awaited.insert((slice.xfer, slice.slice), Awaited { bytes, core, ranges, dropped });
        Ok(())
    }

    /// A slice has left the connection.
    fn free(&mut self, bytes: u64) {
        self.awaited_bytes -= bytes;
        self.freed.push(bytes);
    }

    pub(super) fn flush(&mut self) -> Result<usize, ConnError> {
        self.out.flush(&mut self.wire).map_err(ConnError::Os)
    }

    /// Takes in what has come, up to a turn's worth; says how many bytes that were.
    pub(super) fn receive(
        &mut self,
        regions: &RegionTable,
        done: &mut Vec<Completion>,
    ) -> Result<usize, ConnError> {
        let (mut turn, mut drained) = (0, false);
        loop {
            self.stalled = self.is_congested();
            if self.stalled {
                break;
            }
            if self.step(regions, done)? {
                continue;
            }
            if drained || (turn >= TURN_BYTES && !self.wire.is_holding()) {
                break;
            }
            let came = self.read()?;
            turn += came.bytes;
            drained = came.drained;
        }
        self.set_low_water()?;
        Ok(turn)
    }

    /// Whether bytes that were left aside, because too many answers waited, can be taken in now.
    pub(super) fn can_resume(&self) -> bool {
        self.stalled && !self.is_congested()
    }

    /// Goes on with the bytes that are held. False where more have to come first.
    fn step(&mut self, regions: &RegionTable, done: &mut Vec<Completion>) -> Result<bool, ConnError> {
        match &mut self.inbound {
            Inbound::Head => {
                let Head::Whole { header, list, len } = self.intake.head()? else { return Ok(false) };
                self.intake.take_head(len, header.payload_len);
                self.begin(header, list, regions, done)?;
                Ok(true)
            }
            Inbound::Land { target, landing } => {
                let lane = landing.enter();
                if let Some(refusal) = landing.refusal() {
                    drop(lane);
                    self.inbound = Inbound::Sink { left: target.left, answer: Some(refusal) };
                    return Ok(true);
                }
                let moved = self.intake.land_held(target);
                drop(lane);
                let over = target.left == 0;
                if over {
                    self.landed(done);
                }
                Ok(moved || over)
            }
            Inbound::Sink { left, answer } => {
                let dropped = self.intake.discard(*left);
                *left -= dropped as u64;
                let over = *left == 0;
                if over {
                    answer.take().into_iter().for_each(|answer| self.out.answer(answer));
                    self.inbound = Inbound::Head;
                }
                Ok(dropped > 0 || over)
            }
        }
    }

    /// Reads what is needed next.
    fn read(&mut self) -> Result<Came, ConnError> {
        match &mut self.inbound {
            Inbound::Head => match self.intake.head()? {
                Head::Missing(missing) => self.intake.read_head(&mut self.wire, missing),
                Head::Whole { .. } => Ok(Came { bytes: 0, drained: false }),
            },
            Inbound::Land { target, landing } => {
                let _lane = landing.enter();
                if landing.refusal().is_some() {
                    // The next step turns it away.
                    return Ok(Came { bytes: 0, drained: false });
                }
                self.intake.land(&mut self.wire, target)
            }
            Inbound::Sink { left, .. } => self.intake.sink(&mut self.wire, *left),
        }
    }

    /// Being woken costs both sides: a long payload is waited for in large parts. Never for more than will come.
    fn set_low_water(&mut self) -> Result<(), ConnError> {
        let left = match &self.inbound {
            Inbound::Head => 1,
            Inbound::Land { target, .. } => target.left,
            Inbound::Sink { left, .. } => *left,
        };
        let due = self.wire.due(left);
        let wanted = u32::try_from(due).unwrap_or(u32::MAX).min(LOW_WATER_BYTES);
        let wanted = if wanted < LOW_WATER_MIN { 1 } else { wanted };
        if wanted != self.low_water {
            socket::set_low_water(self.wire.stream().as_fd(), wanted).map_err(ConnError::Os)?;
            self.low_water = wanted;
        }
        Ok(())
    }

    /// Acts on a header.
    fn begin(
        &mut self,
        header: DataHeader,
        list: DescList,
        regions: &RegionTable,
        done: &mut Vec<Completion>,
    ) -> Result<(), ConnError> {
        if self.unjudged.is_some() != (header.kind == DataKind::Verdict) {
            return Err(unasked(header));
        }
        match header.kind {
            DataKind::Write => self.take_write(header, list, regions),
            DataKind::ReadRequest => self.serve_read(header, list, regions),
            DataKind::ReadReply => return self.replied(header, done),
            DataKind::Ack => return self.acked(header, done),
            DataKind::Verdict => return self.judged(header, done),
        }
        Ok(())
    }

    /// A peer writes into our regions.
    fn take_write(&mut self, header: DataHeader, list: DescList, regions: &RegionTable) {
        let mut answer = DataHeader::new(DataKind::Ack, header.xfer, header.slice);
        let (mut promise, mut ranges) = self.promise_of(list);
        self.inbound = match serve::resolve(&mut promise, regions, Some(header.payload_len), &mut ranges) {
            Ok(bytes) => {
                let landing = Landing::Served { answer, promise };
                Inbound::Land { target: Target::new(ranges, bytes), landing }
            }
            Err(refusal) => {
                self.keep(ranges);
                self.out.keep_promise(promise);
                (answer.status, answer.span) = (refusal.status, refusal.span);
                Inbound::Sink { left: header.payload_len, answer: Some(answer) }
            }
        };
    }

    /// A peer reads our regions. What is short is copied at once; the rest is sent as it is, and since it may be revoked
    /// meanwhile, how it stands is told behind it.
    fn serve_read(&mut self, header: DataHeader, list: DescList, regions: &RegionTable) {
        let mut answer = DataHeader::new(DataKind::ReadReply, header.xfer, header.slice);
        let (mut promise, mut ranges) = self.promise_of(list);
        match serve::resolve(&mut promise, regions, None, &mut ranges) {
            Ok(bytes) if bytes <= COPIED_MAX => {
                let lane = promise.enter();
                match promise.broken() {
                    None => self.out.answer_with(answer, &ranges),
                    Some(span) => {
                        (answer.status, answer.span) = (Status::Stale, span);
                        self.out.answer(answer);
                    }
                }
                drop(lane);
                self.out.keep_promise(promise);
            }
            Ok(bytes) => {
                (answer.payload_len, answer.status) = (bytes, Status::Pending);
                let draft = self.out.draft().payload(ranges.drain(..));
                self.out.push(draft, answer, Keeper::Served(promise), false);
            }
            Err(refusal) => {
                (answer.status, answer.span) = (refusal.status, refusal.span);
                self.out.answer(answer);
                self.out.keep_promise(promise);
            }
        }
        self.keep(ranges);
    }

    /// A promise that is to be made of a list, and room for its ranges.
    fn promise_of(&mut self, list: DescList) -> (Promise, Vec<RawRange>) {
        let mut promise = self.out.promise();
        self.intake.reuse(promise.renew(list));
        (promise, self.spares.pop().unwrap_or_default())
    }

    /// A read of ours is answered.
    fn replied(&mut self, header: DataHeader, done: &mut Vec<Completion>) -> Result<(), ConnError> {
        let (slice, left) = ((header.xfer, header.slice), header.payload_len);
        let awaited = self.answered(header, Op::Read)?;
        self.free(awaited.bytes);
        let pending = header.status == Status::Pending;
        self.unjudged = pending.then_some(Unjudged { slice, wanted: None });
        if awaited.dropped {
            self.inbound = Inbound::Sink { left, answer: None };
        } else if header.status != Status::Ok && !pending && left == 0 {
            done.push(self.completion(slice, Err(refused(header))));
        } else if (header.status == Status::Ok || pending) && left == awaited.bytes {
            let landing = Landing::Own { slice, bytes: left, core: awaited.core, pending };
            self.inbound = Inbound::Land { target: Target::new(awaited.ranges, left), landing };
        } else {
            done.push(self.completion(slice, Err(SliceError::WrongReply)));
            self.inbound = Inbound::Sink { left, answer: None };
        }
        Ok(())
    }

    /// How the payload that came last stands.
    fn judged(&mut self, header: DataHeader, done: &mut Vec<Completion>) -> Result<(), ConnError> {
        match self.unjudged.take() {
            Some(Unjudged { slice, wanted }) if slice == (header.xfer, header.slice) => {
                if let Some((bytes, _core)) = wanted {
                    let result = if header.status == Status::Ok { Ok(bytes) } else { Err(refused(header)) };
                    done.push(self.completion(slice, result));
                }
                Ok(())
            }
            other => {
                // It is still ours to end.
                self.unjudged = other;
                Err(unasked(header))
            }
        }
    }

    /// A write of ours is answered.
    fn acked(&mut self, header: DataHeader, done: &mut Vec<Completion>) -> Result<(), ConnError> {
        let awaited = self.answered(header, Op::Write)?;
        self.free(awaited.bytes);
        let result = if header.status == Status::Ok { Ok(awaited.bytes) } else { Err(refused(header)) };
        done.push(self.completion((header.xfer, header.slice), result));
        Ok(())
    }

    /// The slice that an answer speaks of. One that was not asked for, or not like that, or is not even on the wire,
    /// breaks the protocol.
    fn answered(&mut self, header: DataHeader, op: Op) -> Result<Awaited, ConnError> {
        let slice = (header.xfer, header.slice);
        match self.awaited.remove(&slice) {
            Some(awaited) if awaited.core.op == op && !self.out.holds(slice) => Ok(awaited),
            Some(awaited) => {
                // It is still ours to end.
                self.awaited.insert(slice, awaited);
                Err(unasked(header))
            }
            None => Err(unasked(header)),
        }
    }

    /// A payload is in place.
    fn landed(&mut self, done: &mut Vec<Completion>) {
        let Inbound::Land { target, landing } = std::mem::replace(&mut self.inbound, Inbound::Head) else {
            return;
        };
        self.keep(target.ranges);
        match landing {
            Landing::Served { answer, promise } => {
                self.out.answer(answer);
                self.out.keep_promise(promise);
            }
            Landing::Own { slice, bytes, core, pending: true } => {
                self.unjudged = Some(Unjudged { slice, wanted: Some((bytes, core)) });
            }
            Landing::Own { slice, bytes, .. } => done.push(self.completion(slice, Ok(bytes))),
        }
    }

    fn keep(&mut self, mut ranges: Vec<RawRange>) {
        if self.spares.len() < SPARES_MAX && ranges.capacity() <= 2 * RANGES_MAX {
            ranges.clear();
            self.spares.push(ranges);
        }
    }

    /// Leaves off with the slices of a transfer, as far as that goes without the end of the connection: reads are
    /// over at once, since their bytes need not come here; so are writes of which nothing was sent. Returns whether
    /// others are left: writes that the peer may take in yet, until it has answered them or the connection is closed.
    pub(super) fn abandon(&mut self, xfer: XferId, done: &mut Vec<Completion>) -> bool {
        let rail = Some(self.rail);
        let mut end = |(xfer, slice)| {
            done.push(Completion { xfer, slice, rail, result: Err(SliceError::Abandoned) });
        };
        let (awaited, freed, left) = (&mut self.awaited, &mut self.freed, &mut self.awaited_bytes);
        self.out.take_back(xfer, |slice| {
            let Some(taken) = awaited.remove(&slice) else { return };
            *left -= taken.bytes;
            freed.push(taken.bytes);
            if !taken.dropped {
                end(slice);
            }
        });
        let mut left = false;
        for (slice, awaited) in self.awaited.iter_mut().filter(|(slice, _)| slice.0 == xfer) {
            left |= awaited.core.op == Op::Write;
            if awaited.core.op == Op::Read && !std::mem::replace(&mut awaited.dropped, true) {
                end(*slice);
            }
        }
        if let Some(unjudged) = self.unjudged.as_mut().filter(|unjudged| unjudged.slice.0 == xfer)
            && unjudged.wanted.take().is_some()
        {
            end(unjudged.slice);
        }
        if let Inbound::Land { landing: Landing::Own { slice, .. }, target } = &self.inbound
            && slice.0 == xfer
        {
            end(*slice);
            self.inbound = Inbound::Sink { left: target.left, answer: None };
        }
        left
    }

    fn completion(&self, (xfer, slice): (XferId, u32), result: Result<u64, SliceError>) -> Completion {
        Completion { xfer, slice, rail: Some(self.rail), result }
    }

    /// The connection is over: so are the slices on it.
    pub(super) fn end(self, done: &mut Vec<Completion>) {
        let rail = Some(self.rail);
        let mut end = |(xfer, slice)| {
            done.push(Completion { xfer, slice, rail, result: Err(SliceError::RailLost) });
        };
        self.awaited.iter().filter(|(_, awaited)| !awaited.dropped).for_each(|(slice, _)| end(*slice));
        if let Inbound::Land { landing: Landing::Own { slice, .. }, .. } = self.inbound {
            end(slice);
        }
        if let Some(Unjudged { slice, wanted: Some(_) }) = self.unjudged {
            end(slice);
        }
    }
}

fn refused(header: DataHeader) -> SliceError {
    SliceError::Refused { status: header.status, span: header.span }
}

fn unasked(header: DataHeader) -> ConnError {
    let value = header.xfer.to_u64();
    ConnError::Protocol(DecodeError::Invalid { what: "transfer of an answer that nobody asked for", value })
}
