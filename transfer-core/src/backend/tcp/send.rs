//! Frames on their way out of a data connection.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use transfer_proto::id::XferId;
use transfer_sys::process::RANGES_MAX;
use transfer_sys::{OsResult, RawRange, socket};

use crate::backend::shm::advance;
use crate::mem::{Pass, RegionCore};
use crate::xfer::XferCore;

/// Who keeps the payload of a frame in place until it is sent.
pub(super) enum Keeper {
    /// It has none.
    None,
    /// A transfer of this agent, whose task holds the passes.
    Own { _core: Arc<XferCore> },
    /// A peer reads our regions.
    Served { _pass: Pass<RegionCore> },
}

/// A header with its descriptors, and the payload behind it.
pub(super) struct OutFrame {
    /// Header and payload, as ranges; the first is `head`.
    ranges: Vec<RawRange>,
    /// Ranges that are sent.
    at: usize,
    started: bool,
    /// The bytes that the first range points at. Never touched after that, so they stay where they are.
    _head: Box<[u8]>,
    keeper: Keeper,
    /// Which slice of ours it carries or asks for.
    pub(super) slice: Option<(XferId, u32)>,
}

impl OutFrame {
    pub(super) fn new(head: Vec<u8>, payload: Vec<RawRange>, keeper: Keeper) -> Self {
        let head = head.into_boxed_slice();
        let mut ranges = Vec::with_capacity(payload.len() + 1);
        ranges.push(RawRange::new(head.as_ptr().cast_mut(), head.len()));
        ranges.extend(payload);
        Self { ranges, at: 0, started: false, _head: head, keeper, slice: None }
    }

    pub(super) fn for_slice(mut self, xfer: XferId, slice: u32) -> Self {
        self.slice = Some((xfer, slice));
        self
    }
}

/// The frames of a connection, in order.
#[derive(Default)]
pub(super) struct SendQueue {
    frames: VecDeque<OutFrame>,
    /// Ranges of one call, kept for the next.
    scratch: Vec<RawRange>,
    /// Answers among the frames.
    answers: usize,
}

impl SendQueue {
    pub(super) fn push(&mut self, frame: OutFrame) {
        self.answers += usize::from(frame.slice.is_none());
        self.frames.push_back(frame);
    }

    /// How many answers to the peer wait.
    pub(super) fn answers(&self) -> usize {
        self.answers
    }

    pub(super) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Sends until the socket takes no more.
    pub(super) fn flush(&mut self, socket: BorrowedFd<'_>) -> OsResult<()> {
        while !self.frames.is_empty() {
            self.scratch.clear();
            let waiting = self.frames.iter().flat_map(|frame| frame.ranges[frame.at..].iter().copied());
            self.scratch.extend(waiting.take(RANGES_MAX));
            #[allow(unsafe_code, reason = "sends registered memory as it is")]
            // SAFETY: I1. Heads live in their frames; payloads are kept by each frame's keeper.
            let sent = match unsafe { socket::write_ranges(socket, &self.scratch) } {
                Ok(sent) => sent,
                Err(error) if error.would_block() => return Ok(()),
                Err(error) => return Err(error),
            };
            self.sent(sent);
        }
        Ok(())
    }

    fn sent(&mut self, mut count: usize) {
        while let Some(frame) = self.frames.front_mut() {
            frame.started |= count > 0;
            let left: usize = frame.ranges[frame.at..].iter().map(RawRange::len).sum();
            let at = frame.at;
            frame.at += advance(&mut frame.ranges[at..], count);
            if count < left {
                return;
            }
            count -= left;
            self.answers -= usize::from(frame.slice.is_none());
            self.frames.pop_front();
        }
    }

    /// The slice of ours that is being sent.
    pub(super) fn front_slice(&self) -> Option<(XferId, u32)> {
        self.frames.front().and_then(|frame| frame.slice)
    }

    /// Takes back the frames of a transfer that were not begun: their slices. The flag says that one was begun,
    /// and has to be sent to its end.
    pub(super) fn take_back(&mut self, xfer: XferId) -> (Vec<(XferId, u32)>, bool) {
        let (mut slices, mut begun) = (Vec::new(), false);
        self.frames.retain(|frame| match (frame.slice, &frame.keeper) {
            (Some(slice), Keeper::Own { .. }) if slice.0 == xfer => {
                begun |= frame.started;
                if !frame.started {
                    slices.push(slice);
                }
                frame.started
            }
            _ => true,
        });
        (slices, begun)
    }
}
