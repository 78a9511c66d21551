//! Chains of work requests, in storage that is made once.
#![allow(unsafe_code, reason = "pointers from work requests to their ranges")]

use std::mem::MaybeUninit;

use super::memory::LocalKey;
use super::op::{SendFlags, SendOp, Sge};
use super::sys;
use crate::OsError;

/// There is no room left in the batch: it is to be posted and cleared first, or made larger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the batch is full; post and clear it first")]
#[non_exhaustive]
pub struct BatchFull;

/// A chain was not posted to its end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("work request {posted} of the chain, and those behind it, were not posted: {error}")]
#[non_exhaustive]
pub struct PostError {
    /// How many were posted, and will complete.
    pub posted: usize,
    /// Why the next one was not.
    pub error: OsError,
}

impl PostError {
    pub(super) fn new(posted: usize, error: OsError) -> Self {
        Self { posted, error }
    }
}

/// A work request in a batch; raw pointers in it lead into the same batch, or to what is held elsewhere (V3).
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Wr<T>(T);

// SAFETY: V4 (docs/ARCHITECTURE.md). The pointers are followed by the post only, whose caller has the batch for itself.
unsafe impl<T> Send for Wr<T> {}
// SAFETY: V4, as above.
unsafe impl<T> Sync for Wr<T> {}

/// A work request, as far as a chain needs to know it.
trait Link {
    fn set_next(&mut self, next: *mut Self);
}

impl Link for sys::ibv_send_wr {
    fn set_next(&mut self, next: *mut Self) {
        self.next = next;
    }
}

impl Link for sys::ibv_recv_wr {
    fn set_next(&mut self, next: *mut Self) {
        self.next = next;
    }
}

/// Work requests, each linked to the one behind it, and their ranges. The storage is made once and never moves (V4).
struct Chain<T> {
    wrs: Vec<Wr<T>>,
    sges: Vec<Sge>,
}

impl<T> std::fmt::Debug for Chain<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Chain of {} with {} ranges", self.wrs.len(), self.sges.len())
    }
}

impl<T: Link> Chain<T> {
    fn new(wrs: usize, sges: usize) -> Self {
        Self { wrs: Vec::with_capacity(wrs), sges: Vec::with_capacity(sges) }
    }

    fn clear(&mut self) {
        self.wrs.clear();
        self.sges.clear();
    }

    /// Appends what `make` makes of where its ranges lie and how many they are.
    fn push(
        &mut self,
        sges: &[Sge],
        make: impl FnOnce(*mut sys::ibv_sge, i32) -> T,
    ) -> Result<(), BatchFull> {
        if self.wrs.len() == self.wrs.capacity() || self.sges.capacity() - self.sges.len() < sges.len() {
            return Err(BatchFull);
        }
        let sg_list = self.sges.as_mut_ptr().wrapping_add(self.sges.len()).cast();
        self.sges.extend_from_slice(sges);
        let place = self.wrs.as_mut_ptr().wrapping_add(self.wrs.len()).cast();
        if let Some(last) = self.wrs.last_mut() {
            last.0.set_next(place);
        }
        self.wrs.push(Wr(make(sg_list, i32::try_from(sges.len()).unwrap_or(i32::MAX))));
        Ok(())
    }

    fn first(&mut self) -> Option<*mut T> {
        (!self.wrs.is_empty()).then(|| self.wrs.as_mut_ptr().cast())
    }

    /// How many come before `wr`; none where it does not point into the chain.
    fn index_of(&self, wr: *const T) -> usize {
        let index = wr.addr().wrapping_sub(self.wrs.as_ptr().addr()) / size_of::<T>();
        if index < self.wrs.len() { index } else { 0 }
    }
}

/// A chain of work requests to send.
///
/// Its storage is made once and never moves, so that what points into it stays right (V4). Filling and posting
/// allocate nothing.
#[derive(Debug)]
pub struct SendBatch {
    chain: Chain<sys::ibv_send_wr>,
    inline: Vec<u8>,
}

impl SendBatch {
    /// Room for `wrs` work requests with `sges` ranges and `inline_bytes` in all.
    #[must_use]
    pub fn new(wrs: usize, sges: usize, inline_bytes: usize) -> Self {
        // One that carries its bytes in itself has a range for them.
        Self { chain: Chain::new(wrs, sges + wrs), inline: Vec::with_capacity(inline_bytes) }
    }

    /// How many work requests are in it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.chain.wrs.len()
    }

    /// None at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.chain.wrs.is_empty()
    }

    /// Empties it.
    pub fn clear(&mut self) {
        self.chain.clear();
        self.inline.clear();
    }

    /// Appends a work request over `sges`.
    ///
    /// # Errors
    /// [`BatchFull`]; nothing was appended.
    pub fn push(
        &mut self,
        wr_id: u64,
        op: &SendOp<'_>,
        flags: SendFlags,
        sges: &[Sge],
    ) -> Result<(), BatchFull> {
        self.chain.push(sges, |sg_list, num_sge| work_request(wr_id, op, flags.0, sg_list, num_sge))
    }

    /// Appends a work request that carries `bytes` in itself. They are copied, and need no registration.
    ///
    /// # Errors
    /// [`BatchFull`]; nothing was appended.
    pub fn push_inline(
        &mut self,
        wr_id: u64,
        op: &SendOp<'_>,
        flags: SendFlags,
        bytes: &[u8],
    ) -> Result<(), BatchFull> {
        let room = self.inline.capacity() - self.inline.len();
        let len = u32::try_from(bytes.len()).map_err(|_| BatchFull)?;
        if room < bytes.len() {
            return Err(BatchFull);
        }
        let addr = self.inline.as_ptr().wrapping_add(self.inline.len());
        let sge = Sge::new(addr.expose_provenance() as u64, len, LocalKey(0));
        let flags = flags.0 | sys::IBV_SEND_INLINE;
        self.chain.push(&[sge], |sg_list, num_sge| work_request(wr_id, op, flags, sg_list, num_sge))?;
        self.inline.extend_from_slice(bytes);
        Ok(())
    }

    /// The first of the chain.
    pub(super) fn first(&mut self) -> Option<*mut sys::ibv_send_wr> {
        self.chain.first()
    }

    /// How many come before `wr`.
    pub(super) fn index_of(&self, wr: *const sys::ibv_send_wr) -> usize {
        self.chain.index_of(wr)
    }
}

fn work_request(
    wr_id: u64,
    op: &SendOp<'_>,
    flags: u32,
    sg_list: *mut sys::ibv_sge,
    num_sge: i32,
) -> sys::ibv_send_wr {
    // SAFETY: V1. Numbers and raw pointers only, for which zero is a value.
    let mut wr: sys::ibv_send_wr = unsafe { MaybeUninit::zeroed().assume_init() };
    (wr.wr_id, wr.sg_list, wr.num_sge) = (wr_id, sg_list, num_sge);
    (wr.opcode, wr.send_flags) = (op.opcode(), flags);
    op.apply(&mut wr);
    wr
}

/// A chain of work requests to receive with; like [`SendBatch`].
#[derive(Debug)]
pub struct RecvBatch {
    chain: Chain<sys::ibv_recv_wr>,
}

impl RecvBatch {
    /// Room for `wrs` work requests with `sges` ranges in all.
    #[must_use]
    pub fn new(wrs: usize, sges: usize) -> Self {
        Self { chain: Chain::new(wrs, sges) }
    }

    /// How many work requests are in it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.chain.wrs.len()
    }

    /// None at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.chain.wrs.is_empty()
    }

    /// Empties it.
    pub fn clear(&mut self) {
        self.chain.clear();
    }

    /// Appends a work request over `sges`; none of them is enough for the number of a write.
    ///
    /// # Errors
    /// [`BatchFull`]; nothing was appended.
    pub fn push(&mut self, wr_id: u64, sges: &[Sge]) -> Result<(), BatchFull> {
        let next = std::ptr::null_mut();
        self.chain.push(sges, |sg_list, num_sge| sys::ibv_recv_wr { wr_id, next, sg_list, num_sge })
    }

    pub(super) fn first(&mut self) -> Option<*mut sys::ibv_recv_wr> {
        self.chain.first()
    }

    pub(super) fn index_of(&self, wr: *const sys::ibv_recv_wr) -> usize {
        self.chain.index_of(wr)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verbs::{RemoteKey, RemoteMemory};

    #[test]
    fn a_chain_is_linked_in_order_and_never_grows() {
        let mut batch = SendBatch::new(3, 3, 4);
        let at = RemoteMemory::new(16, RemoteKey::new(7));
        let capacities = (batch.chain.wrs.capacity(), batch.chain.sges.capacity(), batch.inline.capacity());
        for id in 0..3 {
            let sge = Sge::new(id * 8, 8, LocalKey(5));
            batch.push(id, &SendOp::WriteImm(at, 9), SendFlags::NONE, &[sge]).unwrap();
        }
        assert_eq!(batch.push(3, &SendOp::Send, SendFlags::NONE, &[]), Err(BatchFull));
        let mut ids = Vec::new();
        let mut next: *const sys::ibv_send_wr = batch.first().unwrap();
        while !next.is_null() {
            assert_eq!(batch.index_of(next), ids.len());
            // SAFETY: V4. The chain lies in the batch.
            let wr = unsafe { next.read() };
            // SAFETY: V4. So do its ranges.
            ids.push((wr.wr_id, unsafe { wr.sg_list.read() }.addr));
            next = wr.next;
        }
        assert_eq!(ids, [(0, 0), (1, 8), (2, 16)]);
        assert_eq!(
            (batch.chain.wrs.capacity(), batch.chain.sges.capacity(), batch.inline.capacity()),
            capacities
        );
        batch.clear();
        assert!(batch.is_empty() && batch.first().is_none());
    }

    #[test]
    fn inline_bytes_lie_in_the_batch_and_are_limited() {
        let mut batch = SendBatch::new(2, 2, 4);
        batch.push_inline(1, &SendOp::Send, SendFlags::SIGNALED, b"abc").unwrap();
        assert_eq!(batch.push_inline(2, &SendOp::Send, SendFlags::NONE, b"de"), Err(BatchFull));
        let first = batch.first().unwrap();
        // SAFETY: V4. The chain lies in the batch.
        let wr = unsafe { first.read() };
        assert_eq!(wr.send_flags, sys::IBV_SEND_INLINE | sys::IBV_SEND_SIGNALED);
        // SAFETY: V4. So do its ranges.
        let sge = unsafe { wr.sg_list.read() };
        assert_eq!((sge.addr, sge.length), (batch.inline.as_ptr().addr() as u64, 3));
    }
}
