//! Completion queues, and channels on which they can be waited for.
#![allow(unsafe_code, reason = "calls into libibverbs")]

use std::ffi::{c_int, c_void};
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use super::call::{object, signed, status, unsigned};
use super::completion::Completion;
use super::context::{Context, set_nonblocking};
use super::sys;
use crate::{OsError, OsResult};

/// Tells that completion queues have something, through a descriptor that can be waited for.
#[derive(Debug)]
pub struct CompletionChannel {
    context: Arc<Context>,
    raw: NonNull<sys::ibv_comp_channel>,
}

// SAFETY: V2 (docs/ARCHITECTURE.md). Verbs lock what they change of a channel.
unsafe impl Send for CompletionChannel {}
// SAFETY: V2, as above.
unsafe impl Sync for CompletionChannel {}

impl CompletionChannel {
    /// A new channel, read without blocking.
    ///
    /// # Errors
    /// [`OsError`] of ibv_create_comp_channel, such as EMFILE.
    pub fn new(context: &Arc<Context>) -> OsResult<Arc<Self>> {
        // SAFETY: V1, V2. The context is open.
        let raw = unsafe { (context.library.api.create_comp_channel)(context.raw.as_ptr()) };
        let raw = object("ibv_create_comp_channel", raw, || context.name().to_owned())?;
        let channel = Self { context: Arc::clone(context), raw };
        set_nonblocking(channel.fd())?;
        Ok(Arc::new(channel))
    }

    fn fd(&self) -> c_int {
        // SAFETY: V2. Constant since the channel was made.
        unsafe { self.raw.as_ref().fd }
    }

    /// The token of a completion queue that was armed and has got something since, if there is one. It has to be
    /// armed again, and polled after that.
    ///
    /// The event is acknowledged here, so that it never holds up a destruction. Cost: a system call and a lock.
    ///
    /// # Errors
    /// [`OsError`] of ibv_get_cq_event.
    pub fn poll_event(&self) -> OsResult<Option<u64>> {
        let mut queue: *mut sys::ibv_cq = std::ptr::null_mut();
        let mut token: *mut c_void = std::ptr::null_mut();
        let api = &self.context.library.api;
        // SAFETY: V1, V2. Two pointers to be filled in.
        let result = unsafe { (api.get_cq_event)(self.raw.as_ptr(), &raw mut queue, &raw mut token) };
        if result != 0 {
            let error = OsError::last("ibv_get_cq_event", self.context.name().to_owned());
            return if error.would_block() { Ok(None) } else { Err(error) };
        }
        // SAFETY: V2. A queue is not destroyed before its events are acknowledged, which is done once, here.
        unsafe { (api.ack_cq_events)(queue, 1) };
        Ok(Some(token.addr() as u64))
    }
}

/// Readable when an event waits; see [`CompletionChannel::poll_event`].
impl AsFd for CompletionChannel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: V2. Open as long as the channel, which is borrowed.
        unsafe { BorrowedFd::borrow_raw(self.fd()) }
    }
}

impl Drop for CompletionChannel {
    fn drop(&mut self) {
        // SAFETY: V1, V2. Every queue on it held it, so this is the last use.
        let result = unsafe { (self.context.library.api.destroy_comp_channel)(self.raw.as_ptr()) };
        self.context.library.destroyed(result);
    }
}

/// Where work requests tell that they are done.
#[derive(Debug)]
pub struct CompletionQueue {
    raw: NonNull<sys::ibv_cq>,
    context: Arc<Context>,
    poll: unsafe extern "C" fn(*mut sys::ibv_cq, c_int, *mut sys::ibv_wc) -> c_int,
    notify: unsafe extern "C" fn(*mut sys::ibv_cq, c_int) -> c_int,
    _channel: Option<Arc<CompletionChannel>>,
}

// SAFETY: V2. Verbs lock what they change of a completion queue.
unsafe impl Send for CompletionQueue {}
// SAFETY: V2, as above.
unsafe impl Sync for CompletionQueue {}

impl CompletionQueue {
    /// A queue of at least `entries`, more than which must never wait in it: it overruns, and everything on it is
    /// lost. `token` is what [`CompletionChannel::poll_event`] and asynchronous events name it by.
    ///
    /// # Errors
    /// [`OsError`] of ibv_create_cq: EINVAL where the device has no queue of that size.
    pub fn new(
        context: &Arc<Context>,
        entries: u32,
        channel: Option<&Arc<CompletionChannel>>,
        token: usize,
    ) -> OsResult<Arc<Self>> {
        let operations = context.operations();
        let (Some(poll), Some(notify)) = (operations.poll_cq, operations.req_notify_cq) else {
            return Err(OsError::new("ibv_poll_cq", context.name().to_owned(), libc::EOPNOTSUPP));
        };
        let depth = signed("ibv_create_cq", entries)?;
        let on = channel.map_or(std::ptr::null_mut(), |channel| channel.raw.as_ptr());
        let token = std::ptr::without_provenance_mut(token);
        // SAFETY: V1, V2. The context is open, and so is the channel.
        let raw = unsafe { (context.library.api.create_cq)(context.raw.as_ptr(), depth, token, on, 0) };
        let raw = object("ibv_create_cq", raw, || format!("{}, {entries} entries", context.name()))?;
        let (context, _channel) = (Arc::clone(context), channel.cloned());
        Ok(Arc::new(Self { raw, context, poll, notify, _channel }))
    }

    pub(super) fn raw(&self) -> *mut sys::ibv_cq {
        self.raw.as_ptr()
    }

    /// How many entries fit, which may be more than was asked for.
    #[must_use]
    pub fn capacity(&self) -> u32 {
        // SAFETY: V2. Constant, since queues are not resized.
        unsigned(unsafe { self.raw.as_ref().cqe })
    }

    /// Takes what is done, at most as many as fit into `out`, and says how many. Fewer than fit: none is left.
    ///
    /// Cost: no allocation, no system call with the usual providers, one lock.
    ///
    /// # Errors
    /// [`OsError`] of ibv_poll_cq.
    pub fn poll(&self, out: &mut [Completion]) -> OsResult<usize> {
        let room = c_int::try_from(out.len()).unwrap_or(c_int::MAX);
        // SAFETY: V1, V2. Room for that many; a `Completion` is an `ibv_wc`.
        let count = unsafe { (self.poll)(self.raw.as_ptr(), room, out.as_mut_ptr().cast()) };
        usize::try_from(count).map_err(|_| {
            let errno = if count == -1 { libc::EIO } else { count.saturating_abs() };
            OsError::new("ibv_poll_cq", self.context.name().to_owned(), errno)
        })
    }

    /// Asks for one event on the channel with the next completion that comes (of a solicited message only, if so).
    /// What came before is not told, so the queue is to be polled once after this.
    ///
    /// # Errors
    /// [`OsError`] of ibv_req_notify_cq.
    pub fn request_event(&self, solicited_only: bool) -> OsResult<()> {
        // SAFETY: V1, V2. The queue is there.
        let result = unsafe { (self.notify)(self.raw.as_ptr(), c_int::from(solicited_only)) };
        status("ibv_req_notify_cq", result, || self.context.name().to_owned())
    }
}

impl Drop for CompletionQueue {
    fn drop(&mut self) {
        // SAFETY: V1, V2. Every queue pair on it held it, so this is the last use.
        let result = unsafe { (self.context.library.api.destroy_cq)(self.raw.as_ptr()) };
        self.context.library.destroyed(result);
    }
}
