//! Backends move slices. Over sockets the driver tells a backend what to move and hears when it is done; within the host
//! those who copy take slices themselves.

mod lease;
pub(crate) mod shm;
pub(crate) mod tcp;

use std::sync::Arc;

use transfer_proto::id::{RailId, XferId};
use transfer_proto::plan::Piece;
use transfer_proto::proto::xfer::SliceError;

use crate::xfer::XferCore;

/// Some bytes of a transfer.
pub(crate) struct Slice {
    pub(crate) xfer: XferId,
    /// The number under which it was posted.
    pub(crate) slice: u32,
    pub(crate) bytes: u64,
    pub(crate) pieces: Vec<Piece>,
    pub(crate) core: Arc<XferCore>,
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

    /// Appends the slices that have completed.
    fn poll(&mut self, completions: &mut Vec<Completion>);

    /// The slices of this transfer are not wanted any more and should complete soon, with whatever result. With
    /// `now`, they must do so at once, at the price of the connections that carry them.
    fn abandon(&mut self, core: &Arc<XferCore>, xfer: XferId, now: bool);
}
