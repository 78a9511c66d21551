//! Accesses of which the owner of the memory knows nothing, under its leases; see [`crate::mem`]'s ledger.

use std::sync::atomic::{Ordering, fence};

use transfer_proto::plan::Piece;
use transfer_proto::proto::data::Status;
use transfer_proto::proto::xfer::SliceError;

use crate::xfer::{Op, XferCore};

/// Runs a copy of these pieces such that it succeeds only with what the transfer was promised.
///
/// A read is looked at afterwards: what was revoked by then does not count. A write is announced first and looked at
/// then: whoever revokes from there on waits until it is over.
pub(super) fn guarded(
    core: &XferCore,
    pieces: &[Piece],
    copy: impl FnOnce() -> Result<(), SliceError>,
) -> Result<(), SliceError> {
    match core.op {
        Op::Write => {
            let _lane = core.local.core.ledger.enter();
            admitted(core, pieces)?;
            copy()
        }
        Op::Read => {
            // It would be in vain, and touch what belongs to others.
            admitted(core, pieces)?;
            let copied = copy();
            // After the last byte; pairs with the fence between raising a generation and writing anew.
            fence(Ordering::Acquire);
            admitted(core, pieces)?;
            copied
        }
    }
}

/// Whether the owner still has there what the transfer names; if not, the first piece of which that is not so.
fn admitted(core: &XferCore, pieces: &[Piece]) -> Result<(), SliceError> {
    match pieces.iter().position(|piece| !core.remote.core.admits(piece)) {
        None => Ok(()),
        Some(at) => {
            let span = u32::try_from(at).unwrap_or(u32::MAX);
            Err(SliceError::Refused { status: Status::Stale, span })
        }
    }
}
