//! A receive queue that several queue pairs take from.
#![allow(unsafe_code, reason = "calls into libibverbs")]

use std::ffi::c_int;
use std::ptr::NonNull;
use std::sync::Arc;

use super::batch::{PostError, RecvBatch};
use super::call::{object, status};
use super::memory::ProtectionDomain;
use super::{qp, sys};
use crate::{OsError, OsResult};

/// Work requests to receive with, shared by queue pairs.
#[derive(Debug)]
pub struct SharedReceiveQueue {
    raw: NonNull<sys::ibv_srq>,
    pd: Arc<ProtectionDomain>,
    post: unsafe extern "C" fn(*mut sys::ibv_srq, *mut sys::ibv_recv_wr, *mut *mut sys::ibv_recv_wr) -> c_int,
    capacity: u32,
}

// SAFETY: V2 (docs/ARCHITECTURE.md). Verbs lock what they change of a shared receive queue.
unsafe impl Send for SharedReceiveQueue {}
// SAFETY: V2, as above.
unsafe impl Sync for SharedReceiveQueue {}

impl SharedReceiveQueue {
    /// A queue of at least `wrs` work requests of `sges` ranges each. Events name it by `token`.
    ///
    /// # Errors
    /// [`OsError`] of ibv_create_srq: EINVAL where the device cannot hold so much.
    pub fn new(pd: &Arc<ProtectionDomain>, wrs: u32, sges: u32, token: usize) -> OsResult<Arc<Self>> {
        let Some(post) = pd.context.operations().post_srq_recv else {
            return Err(OsError::new("ibv_post_srq_recv", pd.context.name().to_owned(), libc::EOPNOTSUPP));
        };
        let mut attr = sys::ibv_srq_init_attr {
            srq_context: std::ptr::without_provenance_mut(token),
            attr: sys::ibv_srq_attr { max_wr: wrs, max_sge: sges, srq_limit: 0 },
        };
        // SAFETY: V1, V2. The domain is held.
        let raw = unsafe { (pd.context.library.api.create_srq)(pd.raw.as_ptr(), &raw mut attr) };
        let raw = object("ibv_create_srq", raw, || format!("{}, {wrs} of {sges}", pd.context.name()))?;
        Ok(Arc::new(Self { raw, pd: Arc::clone(pd), post, capacity: attr.attr.max_wr }))
    }

    pub(super) fn raw(&self) -> *mut sys::ibv_srq {
        self.raw.as_ptr()
    }

    /// How many work requests fit.
    #[must_use]
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Asks for one [`super::EventKind::ReceiveQueueLimit`] when fewer than `limit` are left.
    ///
    /// # Errors
    /// [`OsError`] of ibv_modify_srq: EINVAL for more than fit.
    pub fn set_limit(&self, limit: u32) -> OsResult<()> {
        let mut attr = sys::ibv_srq_attr { max_wr: 0, max_sge: 0, srq_limit: limit };
        let bits = sys::IBV_SRQ_LIMIT.cast_signed();
        // SAFETY: V1, V2. The attribute that the mask names is set.
        let result =
            unsafe { (self.pd.context.library.api.modify_srq)(self.raw.as_ptr(), &raw mut attr, bits) };
        status("ibv_modify_srq", result, || format!("limit {limit}"))
    }

    /// Posts what is in `batch`.
    ///
    /// # Errors
    /// [`PostError`], which says how many were posted nevertheless: ENOMEM where the queue is full.
    ///
    /// # Safety
    /// V3: the memory stays in place, and nobody takes a reference to it, until the work request was polled as
    /// completed, or this queue was destroyed.
    pub unsafe fn post_receive(&self, batch: &mut RecvBatch) -> Result<(), PostError> {
        let Some(first) = batch.first() else { return Ok(()) };
        let mut bad = std::ptr::null_mut();
        // SAFETY: V1, V2, V4; V3 by the caller.
        let result = unsafe { (self.post)(self.raw.as_ptr(), first, &raw mut bad) };
        qp::posted("ibv_post_srq_recv", result, || batch.index_of(bad), 0)
    }
}

impl Drop for SharedReceiveQueue {
    fn drop(&mut self) {
        // SAFETY: V1, V2. Every queue pair on it held it, so this is the last use.
        let result = unsafe { (self.pd.context.library.api.destroy_srq)(self.raw.as_ptr()) };
        self.pd.context.library.destroyed(result);
    }
}
