//! The copying of one slice, over either path within a host.
#![allow(unsafe_code, reason = "copies between raw ranges")]

use transfer_proto::plan::{Path, Piece, Pieces};
use transfer_proto::proto::xfer::{Failure, SliceError};
use transfer_sys::RawRange;
use transfer_sys::copy::{self, Stores};
use transfer_sys::process::RANGES_MAX;

use crate::backend::lease::guarded;
use crate::xfer::{Op, XferCore};

/// What the kernel says of memory that is not there (errno(3)).
const EFAULT: i32 = 14;

/// The pieces of a slice, and where they lie. Kept from slice to slice for its memory.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pieces: Vec<Piece>,
    local: Vec<RawRange>,
    remote: Vec<RawRange>,
}

impl Batch {
    /// Empty, for the pieces of the next slice.
    pub(super) fn pieces(&mut self) -> &mut Vec<Piece> {
        self.pieces.clear();
        &mut self.pieces
    }

    /// Where its first piece lies here.
    pub(super) fn first_local(&self, core: &XferCore) -> Option<RawRange> {
        core.local.core.range(self.pieces.first()?)
    }

    /// Finds the memory of the pieces.
    fn bind(
        &mut self,
        core: &XferCore,
        remote: impl Fn(&Piece) -> Option<RawRange>,
    ) -> Result<(), SliceError> {
        self.local.clear();
        self.remote.clear();
        for (at, piece) in self.pieces.iter().enumerate() {
            // Pieces are made from the lists, so they lie in them.
            self.local.push(core.local.core.range(piece).ok_or_else(|| refused(at, EFAULT))?);
            self.remote.push(remote(piece).ok_or_else(|| refused(at, EFAULT))?);
        }
        Ok(())
    }
}

/// Copies a whole transfer in the calling thread, as one slice.
pub(super) fn move_all(core: &XferCore, stores: Stores, batch: &mut Batch) -> Result<u64, Failure> {
    let (mut pieces, mut moved) = (Pieces::new(), 0);
    loop {
        let bytes = pieces.slice(core.sides(), u64::MAX, RANGES_MAX, batch.pieces());
        if bytes == 0 {
            return Ok(moved);
        }
        move_batch(core, stores, batch).map_err(|error| {
            let piece = batch.pieces.get(error.span() as usize).or_else(|| batch.pieces.first());
            Failure::new(0, piece.map_or((0, 0), |piece| piece.remote), error)
        })?;
        moved += bytes;
    }
}

/// Copies some pieces of a transfer, whose memory the caller has the right to touch.
pub(super) fn move_batch(core: &XferCore, stores: Stores, batch: &mut Batch) -> Result<(), SliceError> {
    let kernel = core.remote.path() == Path::ProcessMemory;
    batch.bind(core, |piece| match kernel {
        true => core.remote.core.foreign(piece),
        false => core.remote.core.mapped(piece),
    })?;
    let Batch { pieces, local, remote } = batch;
    guarded(core, pieces, || {
        if kernel {
            return move_by_kernel(core, local, remote);
        }
        let (dst, src) = match core.op {
            Op::Read => (local, remote),
            Op::Write => (remote, local),
        };
        // SAFETY: I1 and I2. The transfer holds a pass for both regions, so neither is unmapped; the ranges were
        // checked against them.
        unsafe { copy::copy_ranges(dst, src, stores) };
        Ok(())
    })
}

/// The kernel's refusal at a piece of the batch.
fn refused(at: usize, errno: i32) -> SliceError {
    SliceError::Os { errno, span: u32::try_from(at).unwrap_or(u32::MAX) }
}

fn move_by_kernel(
    core: &XferCore,
    local: &mut [RawRange],
    remote: &mut [RawRange],
) -> Result<(), SliceError> {
    // A list takes this path only where the peer's process is known.
    let guest = core.remote.core.peer.guest().ok_or_else(|| refused(0, EFAULT))?;
    let mut at = 0;
    while at < local.len() {
        let moved = match core.op {
            // SAFETY: I1. The transfer holds a pass for the local region; the kernel checks the remote ranges.
            Op::Read => unsafe { guest.process.read(&local[at..], &remote[at..]) },
            // SAFETY: I1, as above.
            Op::Write => unsafe { guest.process.write(&local[at..], &remote[at..]) },
        };
        // It moves what it can and says how much; whatever is wrong at the next byte it says when asked again.
        let moved = match moved {
            Ok(moved) if moved > 0 => moved,
            Ok(_) => return Err(refused(at, EFAULT)),
            Err(error) if error.no_such_process() => return Err(SliceError::PeerGone),
            Err(error) => return Err(refused(at, error.errno)),
        };
        // Both sides have the same lengths, so they come as far.
        advance(&mut local[at..], moved);
        at += advance(&mut remote[at..], moved);
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
