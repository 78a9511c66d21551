//! Backends move slices. Over sockets the driver tells a backend what to move and hears when it is done; within the host
//! those who copy take slices themselves.

mod lease;
pub(crate) mod shm;
pub(crate) mod tcp;

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use transfer_proto::id::{RailId, XferId};
use transfer_proto::plan::Piece;
use transfer_proto::proto::time::Time;
use transfer_proto::proto::xfer::SliceError;

use crate::sync::Pool;
use crate::xfer::XferRef;

/// The pieces of a slice, in memory that goes back to where it came from.
pub(crate) struct SlicePieces {
    pieces: Vec<Piece>,
    home: Arc<Pool<Vec<Piece>>>,
}

impl SlicePieces {
    pub(crate) fn new(home: &Arc<Pool<Vec<Piece>>>) -> Self {
        Self { pieces: home.take().unwrap_or_default(), home: Arc::clone(home) }
    }
}

impl Deref for SlicePieces {
    type Target = Vec<Piece>;

    fn deref(&self) -> &Vec<Piece> {
        &self.pieces
    }
}

impl DerefMut for SlicePieces {
    fn deref_mut(&mut self) -> &mut Vec<Piece> {
        &mut self.pieces
    }
}

impl Drop for SlicePieces {
    fn drop(&mut self) {
        self.pieces.clear();
        if self.pieces.capacity() > 0 {
            self.home.give(std::mem::take(&mut self.pieces));
        }
    }
}

/// Some bytes of a transfer.
pub(crate) struct Slice {
    pub(crate) xfer: XferId,
    /// The number under which it was posted.
    pub(crate) slice: u32,
    pub(crate) bytes: u64,
    pub(crate) pieces: SlicePieces,
    pub(crate) core: XferRef,
}

impl Slice {
    /// The completion of a slice of which no byte was moved.
    pub(crate) fn failed(&self, error: SliceError) -> Completion {
        Completion { xfer: self.xfer, slice: self.slice, rail: None, result: Err(error) }
    }
}

/// A slice that nothing touches any more; but where its rail was lost, the peer may still take in some of it until
/// it has closed that rail too.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Completion {
    pub(crate) xfer: XferId,
    pub(crate) slice: u32,
    /// What carried it.
    pub(crate) rail: Option<RailId>,
    pub(crate) result: Result<u64, SliceError>,
}

/// A way to move slices.
///
/// Every slice that was submitted completes exactly once, by [`Backend::poll`]; also when it was abandoned.
pub(crate) trait Backend {
    /// Takes a slice.
    fn submit(&mut self, slice: Slice);

    /// Appends the slices that have completed, in the turn of this time.
    fn poll(&mut self, now: Time, completions: &mut Vec<Completion>);

    /// The slices of this transfer are not wanted any more and should complete soon, with whatever result. With
    /// `now`, they must do so at once, at the price of the connections that carry them.
    fn abandon(&mut self, core: &XferRef, xfer: XferId, now: bool);
}
