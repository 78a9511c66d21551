//! Frames on their way out of a data connection.

use std::collections::VecDeque;

use transfer_proto::desc::DescList;
use transfer_proto::id::XferId;
use transfer_proto::proto::data::{DataHeader, DataKind, HEADER_BYTES, Status};
use transfer_sys::process::RANGES_MAX;
use transfer_sys::{OsResult, RawRange, copy};

use super::serve::Promise;
use super::wire::Wire;
use crate::backend::shm::advance;
use crate::mem::Lane;
use crate::xfer::XferRef;

/// Bytes of one call. What the kernel takes of them is in its buffers; the rest is gathered anew.
const SEND_BYTES: usize = 2 << 20;
/// Bytes sent on one connection before the others get their turn.
const TURN_BYTES: usize = 2 << 20;
/// Parts of frames that were sent, kept for the next ones.
const SPARES_MAX: usize = 64;
/// A head longer than twice this is not kept.
const SPARE_HEAD_BYTES: usize = 4 << 10;

/// Who keeps the payload of a frame in place until it is sent.
pub(super) enum Keeper {
    /// It has none.
    None,
    /// A transfer of this agent, whose task holds the passes.
    Own { _core: XferRef },
    /// A peer reads our regions, as far as it was promised.
    Served(Promise),
}

/// A header with its descriptors, and the payload behind it.
struct OutFrame {
    /// Header and payload, as ranges; the first is `head`.
    ranges: Vec<RawRange>,
    /// Ranges that are sent.
    at: usize,
    started: bool,
    /// The bytes that the first range points at. Never touched after that, so they stay where they are.
    head: Vec<u8>,
    keeper: Keeper,
    /// Which slice of ours it carries or asks for.
    slice: Option<(XferId, u32)>,
    /// What follows it, and nothing else before that: how its payload stands.
    verdict: Option<DataHeader>,
}

/// What is sent in place of memory that was revoked when the header had announced it already.
static BLANK: [u8; 64 << 10] = [0; 64 << 10];

impl OutFrame {
    /// For one call: see [`Promise::enter`].
    fn enter(&self) -> Option<Lane<'_>> {
        if let Keeper::Served(promise) = &self.keeper { promise.enter() } else { None }
    }

    /// See [`Promise::broken`].
    fn broken(&self) -> Option<u32> {
        if let Keeper::Served(promise) = &self.keeper { promise.broken() } else { None }
    }

    /// Lets go of memory that was revoked: a frame that was not begun becomes a refusal, the rest of one that was
    /// becomes zeros, and its verdict says so.
    fn blank(&mut self, span: u32) {
        self.keeper = Keeper::None;
        let Some(verdict) = &mut self.verdict else { return };
        (verdict.status, verdict.span) = (Status::Stale, span);
        if !self.started {
            let mut refusal = *verdict;
            refusal.kind = DataKind::ReadReply;
            self.head[..HEADER_BYTES].copy_from_slice(&refusal.encode());
            self.ranges.truncate(1);
            self.verdict = None;
            return;
        }
        // The head is the first range, and lies in the frame.
        let from = self.at.max(1);
        let mut left: usize = self.ranges[from..].iter().map(RawRange::len).sum();
        self.ranges.truncate(from);
        while left > 0 {
            let len = left.min(BLANK.len());
            self.ranges.push(RawRange::new(BLANK.as_ptr().cast_mut(), len));
            left -= len;
        }
    }
}

/// A frame that is being put together.
pub(super) struct Draft {
    /// Room for the header, then whatever follows it.
    head: Vec<u8>,
    /// The first is for the head.
    ranges: Vec<RawRange>,
}

impl Draft {
    pub(super) fn list(mut self, list: &DescList) -> Self {
        list.encode(&mut self.head);
        self
    }

    pub(super) fn payload(mut self, ranges: impl Iterator<Item = RawRange>) -> Self {
        self.ranges.extend(ranges);
        self
    }
}

/// The frames of a connection, in order.
#[derive(Default)]
pub(super) struct SendQueue {
    frames: VecDeque<OutFrame>,
    spares: Vec<Draft>,
    /// Promises that were kept to the end, for their memory.
    promises: Vec<Promise>,
    /// Ranges of one call, kept for the next.
    scratch: Vec<RawRange>,
    /// Answers among the frames.
    answers: usize,
}

impl SendQueue {
    pub(super) fn draft(&mut self) -> Draft {
        let mut draft = self.spares.pop().unwrap_or_else(|| Draft { head: Vec::new(), ranges: Vec::new() });
        draft.head.clear();
        draft.head.resize(HEADER_BYTES, 0);
        draft.ranges.clear();
        draft.ranges.push(RawRange::new(std::ptr::null_mut(), 0));
        draft
    }

    /// Appends a frame; `slice` says that it is a request of ours.
    pub(super) fn push(&mut self, draft: Draft, mut header: DataHeader, keeper: Keeper, is_request: bool) {
        let Draft { mut head, mut ranges } = draft;
        header.descs_len = u32::try_from(head.len() - HEADER_BYTES).unwrap_or(u32::MAX);
        head[..HEADER_BYTES].copy_from_slice(&header.encode());
        ranges[0] = RawRange::new(head.as_mut_ptr(), head.len());
        let slice = is_request.then_some((header.xfer, header.slice));
        self.answers += usize::from(slice.is_none());
        let verdict = (header.status == Status::Pending).then(|| {
            let mut verdict = DataHeader::new(DataKind::Verdict, header.xfer, header.slice);
            verdict.status = Status::Ok;
            verdict
        });
        self.frames.push_back(OutFrame { ranges, at: 0, started: false, head, keeper, slice, verdict });
    }

    /// Appends a header and a copy of its short payload. The caller may touch the ranges now.
    pub(super) fn answer_with(&mut self, mut header: DataHeader, payload: &[RawRange]) {
        let mut draft = self.draft();
        for range in payload {
            let start = draft.head.len();
            draft.head.resize(start + range.len(), 0);
            #[allow(unsafe_code, reason = "copies registered memory")]
            // SAFETY: I1 and I7. The caller holds the promise, and a lane.
            unsafe {
                copy::copy_out(&mut draft.head[start..], *range);
            }
        }
        header.payload_len = (draft.head.len() - HEADER_BYTES) as u64;
        draft.head[..HEADER_BYTES].copy_from_slice(&header.encode());
        self.push_whole(draft);
    }

    fn push_whole(&mut self, Draft { mut head, mut ranges }: Draft) {
        ranges[0] = RawRange::new(head.as_mut_ptr(), head.len());
        self.answers += 1;
        let (keeper, slice, verdict) = (Keeper::None, None, None);
        self.frames.push_back(OutFrame { ranges, at: 0, started: false, head, keeper, slice, verdict });
    }

    /// Appends a header that nothing follows.
    pub(super) fn answer(&mut self, header: DataHeader) {
        let draft = self.draft();
        self.push(draft, header, Keeper::None, false);
    }

    /// How many answers to the peer wait.
    pub(super) fn answers(&self) -> usize {
        self.answers
    }

    pub(super) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Sends until the wire takes no more, or the others should have their turn. Returns the bytes that moved.
    pub(super) fn flush(&mut self, wire: &mut Wire) -> OsResult<usize> {
        let mut turn = wire.flush()?;
        while !self.frames.is_empty() && turn < TURN_BYTES {
            let Some((asked, sent)) = self.send(wire) else { continue };
            let sent = match sent {
                Ok(sent) => sent,
                Err(error) if error.would_block() => break,
                Err(error) => return Err(error),
            };
            self.sent(sent);
            turn += sent;
            if sent < asked {
                break;
            }
        }
        Ok(turn)
    }

    /// One call: how many bytes it was given, and how many it took. `None` where what it was to send had been revoked;
    /// that is blanked then.
    fn send(&mut self, wire: &mut Wire) -> Option<(usize, OsResult<usize>)> {
        let judged = self.frames.iter().position(|frame| frame.verdict.is_some());
        let lane = judged.and_then(|at| self.frames[at].enter());
        if let Some((at, span)) = judged.and_then(|at| Some((at, self.frames[at].broken()?))) {
            drop(lane);
            self.frames[at].blank(span);
            return None;
        }
        // Nothing goes between a payload and its verdict.
        let count = judged.map_or(self.frames.len(), |at| at + 1);
        let asked = gather(self.frames.iter().take(count), &mut self.scratch);
        #[allow(unsafe_code, reason = "sends registered memory as it is")]
        // SAFETY: I1 and I7. Heads live in their frames; payloads are kept by each frame's keeper, and those of our
        // regions are not revoked before the lane is left.
        let sent = unsafe { wire.write(&self.scratch) };
        drop(lane);
        Some((asked, sent))
    }

    fn sent(&mut self, mut count: usize) {
        while let Some(frame) = self.frames.front_mut() {
            frame.started |= count > 0;
            while let Some(range) = frame.ranges.get(frame.at)
                && range.len() <= count
            {
                count -= range.len();
                frame.at += 1;
            }
            if frame.at < frame.ranges.len() {
                advance(&mut frame.ranges[frame.at..=frame.at], count);
                return;
            }
            if let Some(frame) = self.frames.pop_front() {
                self.answers -= usize::from(frame.slice.is_none());
                self.keep(Draft { head: frame.head, ranges: frame.ranges });
                if let Keeper::Served(promise) = frame.keeper {
                    self.keep_promise(promise);
                }
                if let Some(verdict) = frame.verdict {
                    self.answer(verdict);
                    self.frames.rotate_right(1);
                }
            }
        }
    }

    /// A promise of nothing.
    pub(super) fn promise(&mut self) -> Promise {
        self.promises.pop().unwrap_or_default()
    }

    /// Lets go of a promise, but for its memory.
    pub(super) fn keep_promise(&mut self, mut promise: Promise) {
        promise.clear();
        if self.promises.len() < SPARES_MAX && promise.is_usual() {
            self.promises.push(promise);
        }
    }

    fn keep(&mut self, draft: Draft) {
        let usual =
            draft.ranges.capacity() <= 2 * RANGES_MAX && draft.head.capacity() <= 2 * SPARE_HEAD_BYTES;
        if usual && self.spares.len() < SPARES_MAX {
            self.spares.push(draft);
        }
    }

    /// Whether a request of ours is not wholly sent, so that it cannot have been answered.
    pub(super) fn holds(&self, slice: (XferId, u32)) -> bool {
        self.frames.iter().any(|frame| frame.slice == Some(slice))
    }

    /// Takes back the frames of a transfer of ours that were not begun, and says which slices they were.
    pub(super) fn take_back(&mut self, xfer: XferId, mut taken: impl FnMut((XferId, u32))) {
        self.frames.retain(|frame| match (frame.slice, &frame.keeper) {
            (Some(slice), Keeper::Own { .. }) if slice.0 == xfer && !frame.started => {
                taken(slice);
                false
            }
            _ => true,
        });
    }
}

/// Collects the ranges of one call; says how many bytes they have.
fn gather<'a>(frames: impl Iterator<Item = &'a OutFrame>, scratch: &mut Vec<RawRange>) -> usize {
    scratch.clear();
    let mut bytes = 0;
    for range in frames.flat_map(|frame| frame.ranges[frame.at..].iter()).take(RANGES_MAX) {
        let part = range.sub(0, range.len().min(SEND_BYTES - bytes)).unwrap_or(*range);
        scratch.push(part);
        bytes += part.len();
        if bytes == SEND_BYTES {
            break;
        }
    }
    bytes
}
