//! The copying of one slice, over either path within a host.
#![allow(unsafe_code, reason = "copies between raw ranges")]

use transfer_proto::plan::{Path, Piece, Pieces};
use transfer_proto::proto::xfer::SliceError;
use transfer_sys::RawRange;
use transfer_sys::copy::{self, Stores};
use transfer_sys::process::RANGES_MAX;

use crate::xfer::{Op, XferCore};

/// A piece that does not lie in its list cannot be: pieces are made from the lists. Told as the kernel would.
const OUTSIDE: SliceError = SliceError::Os { errno: 14 };

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

    /// Finds the memory of the pieces.
    fn bind(
        &mut self,
        core: &XferCore,
        remote: impl Fn(&Piece) -> Option<RawRange>,
    ) -> Result<(), SliceError> {
        self.local.clear();
        self.remote.clear();
        for piece in &self.pieces {
            self.local.push(core.local.core.range(piece).ok_or(OUTSIDE)?);
            self.remote.push(remote(piece).ok_or(OUTSIDE)?);
        }
        Ok(())
    }
}

/// Copies a whole transfer in the calling thread.
pub(super) fn move_all(core: &XferCore, stores: Stores, batch: &mut Batch) -> Result<u64, SliceError> {
    let (mut pieces, mut moved) = (Pieces::new(), 0);
    loop {
        let bytes = pieces.slice(core.sides(), u64::MAX, RANGES_MAX, batch.pieces());
        if bytes == 0 {
            return Ok(moved);
        }
        move_batch(core, stores, batch)?;
        moved += bytes;
    }
}

/// Copies some pieces of a transfer, whose memory the caller has the right to touch.
pub(super) fn move_batch(core: &XferCore, stores: Stores, batch: &mut Batch) -> Result<(), SliceError> {
    match core.remote.path() {
        Path::ProcessMemory => {
            batch.bind(core, |piece| core.remote.core.foreign(piece))?;
            move_by_kernel(core, batch)
        }
        _ => {
            batch.bind(core, |piece| core.remote.core.mapped(piece))?;
            let (dst, src) = match core.op {
                Op::Read => (&batch.local, &batch.remote),
                Op::Write => (&batch.remote, &batch.local),
            };
            // SAFETY: I1 and I2. The transfer holds a pass for both regions, so neither is unmapped; the ranges were
            // checked against them.
            unsafe { copy::copy_ranges(dst, src, stores) };
            Ok(())
        }
    }
}

fn move_by_kernel(core: &XferCore, batch: &mut Batch) -> Result<(), SliceError> {
    let Some(Ok(way)) = core.remote.core.peer.ways.get().map(|ways| &ways.local) else { return Err(OUTSIDE) };
    let Batch { local, remote, .. } = batch;
    let mut at = 0;
    while at < local.len() {
        let moved = match core.op {
            // SAFETY: I1. The transfer holds a pass for the local region; the kernel checks the remote ranges.
            Op::Read => unsafe { way.process.read(&local[at..], &remote[at..]) },
            // SAFETY: I1, as above.
            Op::Write => unsafe { way.process.write(&local[at..], &remote[at..]) },
        };
        let moved = moved.map_err(|error| SliceError::Os { errno: error.errno })?;
        if moved == 0 {
            return Err(OUTSIDE);
        }
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
