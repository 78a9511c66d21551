//! Frames on their way out of a data connection.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;

use transfer_proto::desc::DescList;
use transfer_proto::id::XferId;
use transfer_proto::proto::data::{DataHeader, HEADER_BYTES};
use transfer_sys::process::RANGES_MAX;
use transfer_sys::{OsResult, RawRange, socket};

use crate::backend::shm::advance;
use crate::mem::{Pass, RegionCore};
use crate::xfer::XferRef;

/// Bytes of one call. What the kernel takes of them is in its buffers; the rest is gathered anew.
const SEND_BYTES: usize = 2 << 20;
/// Bytes sent on one connection before the others get their turn.
const TURN_BYTES: usize = 8 << 20;
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
    /// A peer reads our regions.
    Served { _pass: Pass<RegionCore> },
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
        self.frames.push_back(OutFrame { ranges, at: 0, started: false, head, keeper, slice });
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

    /// Sends until the socket takes no more, or the others should have their turn. Returns the bytes that it took.
    pub(super) fn flush(&mut self, socket: BorrowedFd<'_>) -> OsResult<usize> {
        let mut turn = 0;
        while !self.frames.is_empty() && turn < TURN_BYTES {
            let asked = self.gather();
            #[allow(unsafe_code, reason = "sends registered memory as it is")]
            // SAFETY: I1. Heads live in their frames; payloads are kept by each frame's keeper.
            let sent = match unsafe { socket::write_ranges(socket, &self.scratch) } {
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

    /// Collects the ranges of one call; says how many bytes they have.
    fn gather(&mut self) -> usize {
        self.scratch.clear();
        let mut bytes = 0;
        let waiting = self.frames.iter().flat_map(|frame| frame.ranges[frame.at..].iter());
        for range in waiting.take(RANGES_MAX) {
            let part = range.sub(0, range.len().min(SEND_BYTES - bytes)).unwrap_or(*range);
            self.scratch.push(part);
            bytes += part.len();
            if bytes == SEND_BYTES {
                break;
            }
        }
        bytes
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
            }
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
