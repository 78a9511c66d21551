//! Within one host: copies into and out of the peer's memory, without the peer's help.
//!
//! Allocated regions are mapped here, and a copy kernel does it. Foreign memory is reached through the kernel,
//! with as many ranges in a call as it takes. Either way the copy runs on a thread of its own, so that neither the
//! application's threads nor the driver wait for it; small transfers are copied by the thread that posts them.
#![allow(unsafe_code, reason = "copies between raw ranges")]

use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender};
use transfer_proto::id::XferId;
use transfer_proto::plan::{Path, Piece, Pieces};
use transfer_proto::proto::xfer::SliceError;
use transfer_sys::copy::{self, Stores};
use transfer_sys::poll::EventFd;
use transfer_sys::process::RANGES_MAX;
use transfer_sys::{OsError, RawRange};

use super::{Backend, Completion, Slice};
use crate::error::Result;
use crate::xfer::{Op, XferCore};

/// A transfer of at least so many bytes goes past the caches: it would not fit them, and its reader is another
/// core's.
const STREAM_BYTES_MIN: u64 = 8 << 20;

/// The copying thread, and the way to and from it.
pub(crate) struct Shm {
    slices: Option<Sender<Slice>>,
    completions: Receiver<Completion>,
    worker: Option<JoinHandle<()>>,
}

impl Shm {
    /// Starts the thread; `wake` is set when something has completed.
    pub(crate) fn start(name: &str, wake: Arc<EventFd>) -> Result<Self> {
        let (slices, work) = crossbeam_channel::unbounded::<Slice>();
        let (done, completions) = crossbeam_channel::unbounded();
        let run = move || {
            for slice in work {
                let result = if slice.core.is_stopped() {
                    Err(SliceError::Abandoned)
                } else {
                    move_pieces(&slice.core, &slice.pieces).map(|()| slice.bytes)
                };
                let completion = Completion { xfer: slice.xfer, slice: slice.slice, rail: None, result };
                // The memory is let go of before that is said.
                drop(slice);
                if done.send(completion).is_err() {
                    return;
                }
                wake.set();
            }
        };
        let builder = std::thread::Builder::new().name(format!("{name}-copy"));
        let worker = builder.spawn(run).map_err(|e| OsError::from_io("pthread_create", name, &e))?;
        Ok(Self { slices: Some(slices), completions, worker: Some(worker) })
    }
}

impl Backend for Shm {
    fn submit(&mut self, slice: Slice) {
        if let Some(slices) = &self.slices {
            // The thread ends only when this sender is gone.
            let _sent = slices.send(slice);
        }
    }

    fn poll(&mut self, completions: &mut Vec<Completion>) {
        completions.extend(self.completions.try_iter());
    }

    fn abandon(&mut self, core: &Arc<XferCore>, _xfer: XferId, _now: bool) {
        // A slice takes less than a millisecond; those behind it see this first.
        core.stop.store(true, std::sync::atomic::Ordering::Release);
    }
}

impl Drop for Shm {
    fn drop(&mut self) {
        self.slices = None;
        if let Some(worker) = self.worker.take() {
            // A panic there was told on its own thread.
            let _ended = worker.join();
        }
    }
}

/// Copies a whole transfer in the calling thread.
pub(crate) fn move_all(core: &XferCore) -> Result<u64, SliceError> {
    let (mut pieces, mut moved, mut batch) = (Pieces::new(), 0, Vec::with_capacity(1));
    loop {
        batch.clear();
        let bytes = pieces.slice(core.sides(), u64::MAX, RANGES_MAX, &mut batch);
        if bytes == 0 {
            return Ok(moved);
        }
        move_pieces(core, &batch)?;
        moved += bytes;
    }
}

/// Copies some pieces of a transfer, whose memory the caller has the right to touch.
fn move_pieces(core: &XferCore, pieces: &[Piece]) -> Result<(), SliceError> {
    if core.remote.path() == Path::ProcessMemory {
        return move_by_kernel(core, pieces);
    }
    let stores = if core.bytes >= STREAM_BYTES_MIN { Stores::Streaming } else { Stores::Cached };
    for piece in pieces {
        let local = core.local.core.range(piece).ok_or(OUTSIDE)?;
        let remote = core.remote.core.mapped(piece).ok_or(OUTSIDE)?;
        let (dst, src) = match core.op {
            Op::Read => (local, remote),
            Op::Write => (remote, local),
        };
        // SAFETY: I1 and I2. The transfer holds a pass for both regions, so neither is unmapped; the ranges were
        // checked against them.
        unsafe { copy::copy(dst, src, stores) };
    }
    Ok(())
}

/// A piece that does not lie in its list cannot be: pieces are made from the lists. Told as the kernel would.
const OUTSIDE: SliceError = SliceError::Os { errno: 14 };

fn move_by_kernel(core: &XferCore, pieces: &[Piece]) -> Result<(), SliceError> {
    let Some(Ok(way)) = core.remote.core.peer.ways.get().map(|ways| &ways.local) else { return Err(OUTSIDE) };
    let local: Option<Vec<RawRange>> = pieces.iter().map(|piece| core.local.core.range(piece)).collect();
    let remote: Option<Vec<RawRange>> = pieces.iter().map(|piece| core.remote.core.foreign(piece)).collect();
    let (mut local, mut remote) = (local.ok_or(OUTSIDE)?, remote.ok_or(OUTSIDE)?);
    let (mut l, mut r) = (0, 0);
    while l < local.len() {
        let moved = match core.op {
            // SAFETY: I1. The transfer holds a pass for the local region; the kernel checks the remote ranges.
            Op::Read => unsafe { way.process.read(&local[l..], &remote[r..]) },
            // SAFETY: I1, as above.
            Op::Write => unsafe { way.process.write(&local[l..], &remote[r..]) },
        };
        let moved = moved.map_err(|error| SliceError::Os { errno: error.errno })?;
        if moved == 0 {
            return Err(OUTSIDE);
        }
        l += advance(&mut local[l..], moved);
        r += advance(&mut remote[r..], moved);
    }
    Ok(())
}

/// Drops the first `count` bytes of some ranges, and says how many ranges have nothing left.
pub(crate) fn advance(ranges: &mut [RawRange], mut count: usize) -> usize {
    for (at, range) in ranges.iter_mut().enumerate() {
        if count < range.len() {
            *range = range.skip(count);
            return at;
        }
        count -= range.len();
    }
    ranges.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_lose_their_first_bytes() {
        let base = std::ptr::without_provenance_mut::<u8>(1000);
        let range = |at: usize, len| RawRange::new(base.wrapping_add(at), len);
        let mut ranges = [range(0, 10), range(50, 0), range(100, 10)];
        assert_eq!(advance(&mut ranges, 4), 0);
        assert_eq!(ranges[0], range(4, 6));
        assert_eq!(advance(&mut ranges, 6), 2);
        assert_eq!(advance(&mut ranges[2..], 3), 0);
        assert_eq!(ranges[2], range(103, 7));
        assert_eq!(advance(&mut ranges[2..], 7), 1);
    }
}
