//! Error objects.

use std::any::Any;
use std::ffi::{CStr, CString, c_char};

use transfer_core::directory::DirectoryError;
use transfer_core::{Error, Failure, SliceError};

use crate::boundary::{Call, value};
use crate::status::hr_status_t;

/// What failed. Made by the call that failed, for whoever passed it an `hr_error_t **`; freed with hr_error_free().
#[derive(Debug)]
pub struct hr_error_t {
    status: hr_status_t,
    message: CString,
    retryable: bool,
    os_code: i32,
    failure: Option<hr_failure_t>,
}

/// Where in a transfer it failed, for HR_TRANSFER_FAILED and HR_STALE.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "a C struct")]
pub struct hr_failure_t {
    /// Which descriptor of the remote list, counted from 0.
    pub desc: u32,
    /// How often these bytes had been sent; more than once where a connection broke.
    pub attempts: u32,
    /// Where in the region of that descriptor, in bytes: the first place that failed, as far as that is known.
    pub offset: u64,
    /// The data connection that carried them, counted from 0; -1 where none did, as within one host.
    pub rail: i64,
}

impl From<Failure> for hr_failure_t {
    fn from(failure: Failure) -> Self {
        let Failure { desc, attempts, offset, rail, .. } = failure;
        Self { desc, attempts, offset, rail: rail.map_or(-1, |rail| rail.slot().into()) }
    }
}

impl hr_error_t {
    pub(crate) fn new(status: hr_status_t, message: impl Into<String>) -> Self {
        Self { status, message: c_text(message), retryable: false, os_code: 0, failure: None }
    }

    /// Something is wrong with an argument of a call.
    pub(crate) fn argument(what: &str, problem: &str) -> Self {
        Self::new(hr_status_t::HR_INVALID_ARGUMENT, format!("{what} {problem}"))
    }

    pub(crate) fn of_panic(panic: &(dyn Any + Send)) -> Self {
        let text = panic.downcast_ref::<&str>().copied();
        let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        let text = text.unwrap_or("without a message");
        Self::new(hr_status_t::HR_PANIC, format!("panic in the library, which is a bug of it: {text}"))
    }

    pub(crate) fn status(&self) -> hr_status_t {
        self.status
    }
}

impl From<DirectoryError> for hr_error_t {
    fn from(error: DirectoryError) -> Self {
        Error::from(error).into()
    }
}

impl From<Error> for hr_error_t {
    fn from(error: Error) -> Self {
        let failure = match &error {
            Error::TransferFailed { source, .. } | Error::Stale { source, .. } => Some(*source),
            _ => None,
        };
        let os_code = match (&error, failure.map(|failure| failure.error)) {
            (Error::Os(error) | Error::Directory(DirectoryError::Os(error)), _) => error.errno,
            (_, Some(SliceError::Os { errno, .. })) => errno,
            _ => 0,
        };
        let (status, message) = ((&error).into(), c_text(error.to_string()));
        let retryable = error.is_retryable();
        Self { status, message, retryable, os_code, failure: failure.map(Into::into) }
    }
}

/// Text for C. A NUL within it, which only a peer can bring in, would cut it short.
pub(crate) fn c_text(text: impl Into<String>) -> CString {
    let text: String = text.into();
    CString::new(text).unwrap_or_else(|error| {
        let text = String::from_utf8_lossy(&error.into_vec()).replace('\0', "\u{fffd}");
        CString::new(text).unwrap_or_default()
    })
}

/// Its status; HR_OK for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hr_error_status(error: *const hr_error_t) -> hr_status_t {
    // SAFETY: C1.
    unsafe { value(hr_status_t::HR_OK, |c| Ok(c.handle(error, "error")?.status)) }
}

/// What and where, in English, without a line end. Belongs to the error. "no error" for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hr_error_message(error: *const hr_error_t) -> *const c_char {
    const NONE: &CStr = c"no error";
    // SAFETY: C1.
    unsafe { value(NONE.as_ptr(), |c| Ok(c.handle(error, "error")?.message.as_ptr())) }
}

/// Whether the same call may succeed later, or with another peer. False for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hr_error_retryable(error: *const hr_error_t) -> bool {
    // SAFETY: C1.
    unsafe { value(false, |c| Ok(c.handle(error, "error")?.retryable)) }
}

/// The errno behind HR_OS, and behind HR_TRANSFER_FAILED where the kernel refused to move the bytes; 0 for other errors
/// and for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hr_error_os_code(error: *const hr_error_t) -> i32 {
    // SAFETY: C1.
    unsafe { value(0, |c| Ok(c.handle(error, "error")?.os_code)) }
}

/// Whether it says where in a transfer it failed; if so, writes that to `failure`. False for other errors and for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hr_error_failure(error: *const hr_error_t, failure: *mut hr_failure_t) -> bool {
    let body = |c: &Call| {
        let (place, failure) = (c.out(failure, "failure")?, c.handle(error, "error")?.failure);
        failure.iter().for_each(|failure| place.put(*failure));
        Ok(failure.is_some())
    };
    // SAFETY: C1.
    unsafe { value(false, body) }
}

/// Frees an error. NULL is fine. Errors that belong to an event are freed with that.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hr_error_free(error: *mut hr_error_t) {
    // SAFETY: C1.
    unsafe { value((), |c| c.free(error)) }
}
