//! Structs that grow. Each begins with its size as its user's compiler saw it, so that a program and a library of
//! different ages understand each other: what an older program does not know takes its default, and what an older
//! library does not know has to be zero.

use std::ptr::NonNull;

use crate::boundary::Outcome;
use crate::error::hr_error_t;

/// More than any of these structs will ever have: a larger size is an uninitialised one.
const SIZE_MAX: usize = 4096;

/// A struct that C fills and that may grow at its end.
///
/// # Safety
/// `repr(C)`; begins with `size: usize`; has no padding; all fields are integers and raw pointers, so that any bytes
/// are a value.
pub(crate) unsafe trait Versioned: Copy {
    /// What a field has that the caller does not know or did not change.
    fn defaults(size: usize) -> Self;
}

fn check(size: usize, align: usize, what: &str) -> Outcome<()> {
    if size < size_of::<usize>() || size > SIZE_MAX || !size.is_multiple_of(align) {
        let problem = format!("has a size field of {size}; set it to sizeof, or call the init function");
        return Err(hr_error_t::argument(what, &problem));
    }
    Ok(())
}

/// Reads a caller's struct.
///
/// # Safety
/// C1: the size field can be read, and as many bytes as it says.
pub(crate) unsafe fn read<T: Versioned>(pointer: NonNull<T>, what: &str) -> Outcome<T> {
    // SAFETY: C1. The struct is aligned and begins with its size.
    let size = unsafe { pointer.cast::<usize>().read() };
    check(size, align_of::<T>(), what)?;
    // SAFETY: C1. The caller's struct has `size` bytes.
    let given = unsafe { std::slice::from_raw_parts(pointer.as_ptr().cast::<u8>(), size) };
    let (known, unknown) = given.split_at(size.min(size_of::<T>()));
    if unknown.iter().any(|&byte| byte != 0) {
        return Err(hr_error_t::argument(what, "has a field that this library is too old for"));
    }
    let mut value = T::defaults(size);
    // SAFETY: C1. `known` is no longer than the struct, for which any bytes are a value.
    unsafe { known.as_ptr().copy_to_nonoverlapping((&raw mut value).cast(), known.len()) };
    Ok(value)
}

/// Fills a caller's struct of `size` bytes with the defaults.
///
/// # Safety
/// C1: so many bytes can be written.
pub(crate) unsafe fn write<T: Versioned>(pointer: NonNull<T>, size: usize, what: &str) -> Outcome<()> {
    check(size, align_of::<T>(), what)?;
    // SAFETY: C1. The caller's struct has `size` bytes.
    let place = unsafe { std::slice::from_raw_parts_mut(pointer.as_ptr().cast::<u8>(), size) };
    let (known, unknown) = place.split_at_mut(size.min(size_of::<T>()));
    unknown.fill(0);
    let value = T::defaults(size);
    // SAFETY: C1. `known` is no longer than the struct.
    unsafe { known.as_mut_ptr().copy_from_nonoverlapping((&raw const value).cast(), known.len()) };
    Ok(())
}
