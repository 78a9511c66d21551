//! What an application has called at the end of a transfer: exactly once, and before the transfer's handle is gone.
//!
//! In Rust a function that was not called yet is dropped with the transfer, and what it holds with it; a function that
//! is just running keeps that alive. C has neither, so who frees the function's data has to know. Therefore whoever
//! comes first, the engine or hr_xfer_free(), calls the function, and hr_xfer_free() waits until it has returned.

use std::ffi::c_void;
use std::mem;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};

use transfer_core::{Done, Result};

use crate::boundary::{Call, Callback, Outcome, call};
use crate::error::hr_error_t;
use crate::status::hr_status_t;
use crate::xfer::{hr_done_t, hr_xfer_t};

/// What hr_xfer_on_done() has called: `data` as it was given there, how the transfer ended as hr_xfer_poll() would say
/// it, and what goes with that: `done` for HR_OK, `error` below zero, else NULL. Both are gone when it returns.
pub type hr_xfer_callback_t = Option<
    unsafe extern "C" fn(
        data: *mut c_void,
        status: hr_status_t,
        done: *const hr_done_t,
        error: *const hr_error_t,
    ),
>;

/// What becomes of the function of one transfer.
#[derive(Debug, Default)]
pub(crate) struct OnDone {
    state: Mutex<State>,
    returned: Condvar,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Unset,
    Set(Callback),
    Running(ThreadId),
    Over,
}

impl OnDone {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, callback: Callback) -> Outcome<()> {
        let mut state = self.lock();
        if !matches!(*state, State::Unset) {
            return Err(hr_error_t::argument("xfer", "has a callback already"));
        }
        *state = State::Set(callback);
        Ok(())
    }

    pub(crate) fn is_set(&self) -> bool {
        !matches!(*self.lock(), State::Unset)
    }

    /// Calls the function, unless somebody did.
    pub(crate) fn call(&self, outcome: Result<Done>) {
        let outcome = outcome.map(hr_done_t::from).map_err(hr_error_t::from);
        let mut state = self.lock();
        let before = mem::replace(&mut *state, State::Running(thread::current().id()));
        let State::Set(callback) = before else {
            *state = before;
            return;
        };
        drop(state);
        callback.call(&outcome);
        *self.lock() = State::Over;
        self.returned.notify_all();
    }

    /// Waits until the function has returned, but not in the function itself.
    pub(crate) fn wait(&self) {
        let here = thread::current().id();
        let runs_elsewhere = |state: &mut State| matches!(state, State::Running(thread) if *thread != here);
        drop(self.returned.wait_while(self.lock(), runs_elsewhere));
    }
}

/// Has `callback` called with `data` when the transfer ends, exactly once; at once where it has ended already. A
/// transfer takes one callback. NULL is none.
///
/// It is called by the thread that brings the end: one of the agent's, or one that is in a function of this library,
/// such as this one, hr_xfer_wait(), hr_xfer_cancel() or hr_xfer_free(). It holds no lock, so it may call any function
/// but hr_agent_destroy(), and may free this transfer, if nobody else uses or frees it. What takes long in it delays
/// other transfers. It must return: an exception or a longjmp(3) out of it ends the process, or worse.
///
/// When hr_xfer_free() returns, the callback has been called and has returned, unless hr_xfer_free() was called by the
/// callback. A transfer that had not ended is cancelled by that, so the callback is told HR_CANCELLED. So `data` may be
/// freed in the callback, or behind hr_xfer_free(). It follows that two callbacks must not free each other's transfers:
/// each would wait for the other. hr_xfer_wait() may return while the callback still runs.
/// Costs one allocation. Errors: HR_INVALID_ARGUMENT for a second callback.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hr_xfer_on_done(
    xfer: *mut hr_xfer_t,
    callback: hr_xfer_callback_t,
    data: *mut c_void,
    error: *mut *mut hr_error_t,
) -> hr_status_t {
    let body = |c: &Call| {
        // The callback may free the caller's handle while this call still uses it.
        let xfer = c.shared(xfer, "xfer")?;
        xfer.on_done.set(c.callback(callback, data, "callback")?)?;
        let handle = Arc::downgrade(&xfer);
        xfer.xfer.on_done(move |outcome| {
            if let Some(xfer) = handle.upgrade() {
                xfer.on_done.call(outcome);
            }
        });
        Ok(())
    };
    // SAFETY: C1.
    unsafe { call(error, body) }
}
