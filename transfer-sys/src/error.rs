//! One error for every failing system call.

use std::borrow::Cow;
use std::io;

/// Result of a system call.
pub type OsResult<T> = Result<T, OsError>;

/// A system call that failed: which one, on what, and the errno.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{op}({operands}): {}", io::Error::from_raw_os_error(*errno))]
#[non_exhaustive]
pub struct OsError {
    /// The call, as its man page is titled.
    pub op: &'static str,
    /// What it was called on. Fixed words cost no allocation: a socket that has nothing more says so by an error, too.
    pub operands: Cow<'static, str>,
    /// The errno it left.
    pub errno: i32,
}

impl OsError {
    /// What a caller found wrong by itself, in the system's terms.
    #[must_use]
    pub fn new(op: &'static str, operands: impl Into<Cow<'static, str>>, errno: i32) -> Self {
        Self { op, operands: operands.into(), errno }
    }

    /// The error of `op` that just failed in this thread.
    #[must_use]
    pub fn last(op: &'static str, operands: impl Into<Cow<'static, str>>) -> Self {
        Self::from_io(op, operands, &io::Error::last_os_error())
    }

    /// The same, from an error that the standard library already fetched.
    #[must_use]
    pub fn from_io(op: &'static str, operands: impl Into<Cow<'static, str>>, error: &io::Error) -> Self {
        Self { op, operands: operands.into(), errno: error.raw_os_error().unwrap_or(libc::EIO) }
    }

    /// The call would have blocked; it is to be repeated when the descriptor is ready.
    #[must_use]
    pub fn would_block(&self) -> bool {
        self.errno == libc::EAGAIN
    }

    /// A signal came first; nothing was done.
    #[must_use]
    pub fn interrupted(&self) -> bool {
        self.errno == libc::EINTR
    }

    /// The process named by the call does not exist (any more).
    #[must_use]
    pub fn no_such_process(&self) -> bool {
        self.errno == libc::ESRCH
    }

    /// The kernel refused the call for lack of rights.
    #[must_use]
    pub fn not_permitted(&self) -> bool {
        self.errno == libc::EPERM || self.errno == libc::EACCES
    }
}
