//! How verbs tell that they failed: an errno as the result, -1 with errno set, or a null pointer with errno set.

use std::ffi::c_int;
use std::ptr::NonNull;

use crate::{OsError, OsResult};

/// The result of a verb that gives a status.
pub(super) fn status(op: &'static str, result: c_int, operands: impl FnOnce() -> String) -> OsResult<()> {
    match result {
        0 => Ok(()),
        -1 => Err(OsError::last(op, operands())),
        errno => Err(OsError::new(op, operands(), errno.saturating_abs())),
    }
}

/// The result of a verb that makes an object.
pub(super) fn object<T>(
    op: &'static str,
    made: *mut T,
    operands: impl FnOnce() -> String,
) -> OsResult<NonNull<T>> {
    NonNull::new(made).ok_or_else(|| OsError::last(op, operands()))
}

/// A count or limit for an interface that takes it as a signed number.
pub(super) fn signed(op: &'static str, value: u32) -> OsResult<c_int> {
    c_int::try_from(value).map_err(|_| OsError::new(op, format!("{value} is too many"), libc::EINVAL))
}

/// A limit that an interface gives as a signed number; a negative one is none.
pub(super) fn unsigned(value: c_int) -> u32 {
    u32::try_from(value).unwrap_or(0)
}
