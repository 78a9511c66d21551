//! Queue pairs of type RC: reliable, in order, to one peer.
#![allow(unsafe_code, reason = "calls into libibverbs")]

use std::ffi::c_int;
use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::sync::Arc;

use super::batch::{PostError, RecvBatch, SendBatch};
use super::call::{object, status};
use super::memory::ProtectionDomain;
use super::qp_attr::{QpCaps, QpConfig, QpStatus, ToInit, ToReceive, ToSend};
use super::sys;
use crate::{OsError, OsResult};

/// One end of a connection.
///
/// Destroying it ends all that is posted; completions that were not polled by then do not come any more.
#[derive(Debug)]
pub struct QueuePair {
    raw: NonNull<sys::ibv_qp>,
    pd: Arc<ProtectionDomain>,
    // Held, so that they are destroyed after this.
    config: QpConfig,
    number: u32,
    post_send: PostSend,
    post_receive: PostReceive,
}

type PostSend =
    unsafe extern "C" fn(*mut sys::ibv_qp, *mut sys::ibv_send_wr, *mut *mut sys::ibv_send_wr) -> c_int;
type PostReceive =
    unsafe extern "C" fn(*mut sys::ibv_qp, *mut sys::ibv_recv_wr, *mut *mut sys::ibv_recv_wr) -> c_int;

// SAFETY: V2 (docs/ARCHITECTURE.md). Verbs lock what they change of a queue pair.
unsafe impl Send for QueuePair {}
// SAFETY: V2, as above.
unsafe impl Sync for QueuePair {}

impl QueuePair {
    /// A new queue pair, in RESET. What it holds is in [`QueuePair::caps`], and at least what was asked for.
    ///
    /// # Errors
    /// [`OsError`] of ibv_create_qp: EINVAL where the device cannot hold so much, ENOMEM.
    pub fn new(pd: &Arc<ProtectionDomain>, mut config: QpConfig) -> OsResult<Self> {
        let operations = pd.context.operations();
        let (Some(post_send), Some(post_receive)) = (operations.post_send, operations.post_recv) else {
            return Err(OsError::new("ibv_post_send", pd.context.name().to_owned(), libc::EOPNOTSUPP));
        };
        let mut attr = sys::ibv_qp_init_attr {
            qp_context: std::ptr::null_mut(),
            send_cq: config.send_cq.raw(),
            recv_cq: config.receive_cq.raw(),
            srq: config.srq.as_ref().map_or(std::ptr::null_mut(), |srq| srq.raw()),
            cap: config.caps.raw(),
            qp_type: sys::IBV_QPT_RC,
            sq_sig_all: 0,
        };
        // SAFETY: V1, V2. Domain and queues are held.
        let raw = unsafe { (pd.context.library.api.create_qp)(pd.raw.as_ptr(), &raw mut attr) };
        let raw = object("ibv_create_qp", raw, || format!("{}, {:?}", pd.context.name(), config.caps))?;
        config.caps = QpCaps::from_raw(&attr.cap);
        // SAFETY: V1. Just made.
        let number = unsafe { raw.as_ref().qp_num };
        Ok(Self { raw, pd: Arc::clone(pd), config, number, post_send, post_receive })
    }

    /// Its number, by which the peer names it.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.number
    }

    /// What it holds.
    #[must_use]
    pub fn caps(&self) -> QpCaps {
        self.config.caps
    }

    fn modify(&self, apply: impl FnOnce(&mut sys::ibv_qp_attr) -> u32) -> OsResult<()> {
        let mut attr = MaybeUninit::<sys::ibv_qp_attr>::zeroed();
        // SAFETY: V1. Numbers and bytes only, for which zero is a value.
        let attr = unsafe { attr.assume_init_mut() };
        let bits = apply(attr);
        // SAFETY: V1, V2. The attributes that the mask names are set.
        let result = unsafe {
            (self.pd.context.library.api.modify_qp)(self.raw.as_ptr(), &raw mut *attr, bits.cast_signed())
        };
        let state = super::QpState::from_raw(attr.qp_state);
        status("ibv_modify_qp", result, || {
            format!("{} qp {:#x} to {state:?}", self.pd.context.name(), self.number)
        })
    }

    /// From RESET to INIT.
    ///
    /// # Errors
    /// [`OsError`] of ibv_modify_qp: EINVAL from any other state, or for a port that is not there.
    pub fn init(&self, to: &ToInit) -> OsResult<()> {
        self.modify(|attr| to.apply(attr))
    }

    /// From INIT to RTR.
    ///
    /// # Errors
    /// [`OsError`] of ibv_modify_qp: EINVAL from any other state or for what the port cannot do; ETIMEDOUT or
    /// ENETUNREACH where the peer's hardware address cannot be found (RoCE).
    pub fn ready_to_receive(&self, to: &ToReceive) -> OsResult<()> {
        self.modify(|attr| to.apply(attr))
    }

    /// From RTR to RTS.
    ///
    /// # Errors
    /// [`OsError`] of ibv_modify_qp: EINVAL from any other state or for what the device cannot do.
    pub fn ready_to_send(&self, to: &ToSend) -> OsResult<()> {
        self.modify(|attr| to.apply(attr))
    }

    /// To the error state: what is posted comes back as flushed, and so does what will be.
    ///
    /// # Errors
    /// [`OsError`] of ibv_modify_qp.
    pub fn fail(&self) -> OsResult<()> {
        self.modify(|attr| {
            attr.qp_state = sys::IBV_QPS_ERR;
            sys::IBV_QP_STATE
        })
    }

    /// To RESET: what is posted is forgotten, and does not complete.
    ///
    /// # Errors
    /// [`OsError`] of ibv_modify_qp.
    pub fn reset(&self) -> OsResult<()> {
        self.modify(|attr| {
            attr.qp_state = sys::IBV_QPS_RESET;
            sys::IBV_QP_STATE
        })
    }

    /// Asks the device. Cost: a system call.
    ///
    /// # Errors
    /// [`OsError`] of ibv_query_qp.
    pub fn query(&self) -> OsResult<QpStatus> {
        let mut attr = MaybeUninit::<sys::ibv_qp_attr>::zeroed();
        let mut init = MaybeUninit::<sys::ibv_qp_init_attr>::zeroed();
        let bits = (sys::IBV_QP_STATE | sys::IBV_QP_CAP | sys::IBV_QP_DEST_QPN).cast_signed();
        // SAFETY: V1, V2. Room for both structures.
        let result = unsafe {
            (self.pd.context.library.api.query_qp)(
                self.raw.as_ptr(),
                attr.as_mut_ptr(),
                bits,
                init.as_mut_ptr(),
            )
        };
        status("ibv_query_qp", result, || format!("{} qp {:#x}", self.pd.context.name(), self.number))?;
        // SAFETY: V1. Numbers and bytes only, zeroed before they were filled in.
        Ok(QpStatus::from_raw(unsafe { attr.assume_init_ref() }))
    }

    /// Posts what is in `batch`, in order, with one doorbell. The batch can be cleared and filled again at once.
    ///
    /// Cost: no allocation, no system call with the usual providers, one lock.
    ///
    /// # Errors
    /// [`PostError`], which says how many were posted nevertheless: ENOMEM where the queue is full, EINVAL for a
    /// work request that the queue pair cannot take.
    ///
    /// # Safety
    /// V3: the local memory that the ranges name, and what a bind names, stays in place until the work request, or a
    /// later one of this queue pair, was polled as completed, or the queue pair was destroyed.
    pub unsafe fn post_send(&self, batch: &mut SendBatch) -> Result<(), PostError> {
        let Some(first) = batch.first() else { return Ok(()) };
        let mut bad = std::ptr::null_mut();
        // SAFETY: V1, V2, V4; V3 by the caller.
        let result = unsafe { (self.post_send)(self.raw.as_ptr(), first, &raw mut bad) };
        posted("ibv_post_send", result, || batch.index_of(bad), self.number)
    }

    /// Posts what is in `batch` to receive with.
    ///
    /// Cost: as [`QueuePair::post_send`].
    ///
    /// # Errors
    /// As [`QueuePair::post_send`].
    ///
    /// # Safety
    /// As [`QueuePair::post_send`]; and nobody takes a reference to that memory before the completion.
    pub unsafe fn post_receive(&self, batch: &mut RecvBatch) -> Result<(), PostError> {
        let Some(first) = batch.first() else { return Ok(()) };
        let mut bad = std::ptr::null_mut();
        // SAFETY: V1, V2, V4; V3 by the caller.
        let result = unsafe { (self.post_receive)(self.raw.as_ptr(), first, &raw mut bad) };
        posted("ibv_post_recv", result, || batch.index_of(bad), self.number)
    }

    fn destroy(&self) -> c_int {
        // SAFETY: V1, V2. Called once, by `close` or by `drop`.
        unsafe { (self.pd.context.library.api.destroy_qp)(self.raw.as_ptr()) }
    }

    /// Destroys it; after this nothing that was posted touches any memory.
    ///
    /// # Errors
    /// The queue pair, as it was, and [`OsError`] of ibv_destroy_qp.
    pub fn close(self) -> Result<(), Box<(Self, OsError)>> {
        match status("ibv_destroy_qp", self.destroy(), || format!("qp {:#x}", self.number)) {
            Ok(()) => {
                let mut this = std::mem::ManuallyDrop::new(self);
                // SAFETY: V2. The only other owner of this field is the drop that does not run.
                unsafe { std::ptr::drop_in_place(&raw mut this.config) };
                // SAFETY: V2. As above.
                unsafe { std::ptr::drop_in_place(&raw mut this.pd) };
                Ok(())
            }
            Err(error) => Err(Box::new((self, error))),
        }
    }
}

impl Drop for QueuePair {
    fn drop(&mut self) {
        self.pd.context.library.destroyed(self.destroy());
    }
}

/// The result of posting a chain.
pub(super) fn posted(
    op: &'static str,
    result: c_int,
    index: impl FnOnce() -> usize,
    number: u32,
) -> Result<(), PostError> {
    status(op, result, || format!("qp {number:#x}")).map_err(|error| PostError::new(index(), error))
}
