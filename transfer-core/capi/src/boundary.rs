//! Where C meets Rust: every pointer is checked here before it is used, and no panic gets past.
//!
//! An exported function is one call of [`call`] or [`value`], which are unsafe because they believe in invariant C1
//! for all pointers of that call. They hand a [`Call`] to the body, which turns pointers into references and results.
//! So the bodies themselves hold no unsafe code, and none can forget a check. What calls back into C is a [`Callback`],
//! by invariant C2.

use std::ffi::{CStr, CString, c_char, c_void};
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;
use std::sync::Arc;

use crate::error::hr_error_t;
use crate::on_done::hr_xfer_callback_t;
use crate::status::hr_status_t;
use crate::versioned::Versioned;
use crate::xfer::hr_done_t;

/// What a body gives when an argument or the engine says no.
pub(crate) type Outcome<T> = Result<T, hr_error_t>;

/// The promise of C1 for the pointers of one call. What they become borrows it, so it ends with the call.
#[derive(Debug)]
pub(crate) struct Call(());

/// Runs the body of an exported function that returns a status.
///
/// `error` may be NULL; else it becomes NULL, or a new error object that the caller frees.
///
/// # Safety
/// C1 for `error` and for every pointer that `body` gives to its [`Call`].
pub(crate) unsafe fn call<T: Into<hr_status_t>>(
    error: *mut *mut hr_error_t,
    body: impl FnOnce(&Call) -> Outcome<T>,
) -> hr_status_t {
    if !error.is_null() && !error.is_aligned() {
        return hr_status_t::HR_INVALID_ARGUMENT;
    }
    // SAFETY: C1, as the caller promises.
    let outcome = unsafe { caught(|c| body(c).map(Into::into)) };
    let (status, object) = match outcome {
        Ok(status) => (status, std::ptr::null_mut()),
        Err(failure) if error.is_null() => (failure.status(), std::ptr::null_mut()),
        Err(failure) => (failure.status(), Box::into_raw(Box::new(failure))),
    };
    if !error.is_null() {
        // SAFETY: C1. It is not NULL and aligned.
        unsafe { error.write(object) };
    }
    status
}

/// Runs the body of an exported function that returns a plain value; `fallback` where there is none.
///
/// # Safety
/// C1 for every pointer that `body` gives to its [`Call`].
pub(crate) unsafe fn value<T>(fallback: T, body: impl FnOnce(&Call) -> Outcome<T>) -> T {
    // SAFETY: C1, as the caller promises.
    unsafe { caught(body) }.unwrap_or(fallback)
}

/// # Safety
/// C1 for every pointer that `body` gives to its [`Call`].
unsafe fn caught<T>(body: impl FnOnce(&Call) -> Outcome<T>) -> Outcome<T> {
    // What a panic may have left half done is the state of handles, whose locks the engine takes back poisoned.
    let run = AssertUnwindSafe(|| {
        #[cfg(test)]
        crate::tests::panic_if_asked();
        body(&Call(()))
    });
    catch_unwind(run).unwrap_or_else(|panic| Err(hr_error_t::of_panic(&*panic)))
}

impl Call {
    /// A handle, or a struct that the caller filled.
    pub(crate) fn handle<T>(&self, pointer: *const T, what: &str) -> Outcome<&T> {
        let pointer = checked(pointer.cast_mut(), what)?;
        // SAFETY: C1. It is not NULL and aligned, and lives until the call is over.
        Ok(unsafe { pointer.as_ref() })
    }

    /// A handle that [`Out::give_shared`] gave, kept beyond its freeing.
    pub(crate) fn shared<T>(&self, pointer: *const T, what: &str) -> Outcome<Arc<T>> {
        let pointer = checked(pointer.cast_mut(), what)?.as_ptr();
        // SAFETY: C1. It came from an Arc that the handle owns.
        unsafe { Arc::increment_strong_count(pointer) };
        // SAFETY: as above; this is the one that was just counted.
        Ok(unsafe { Arc::from_raw(pointer) })
    }

    /// A function to call later.
    pub(crate) fn callback(
        &self,
        function: hr_xfer_callback_t,
        data: *mut c_void,
        what: &str,
    ) -> Outcome<Callback> {
        let function = function.ok_or_else(|| hr_error_t::argument(what, "is NULL"))?;
        Ok(Callback { function, data })
    }

    /// A struct that may be longer or shorter than this library knows it.
    pub(crate) fn versioned<T: Versioned>(&self, pointer: *const T, what: &str) -> Outcome<T> {
        let pointer = checked(pointer.cast_mut(), what)?;
        // SAFETY: C1. It has as many bytes as its size field says.
        unsafe { crate::versioned::read(pointer, what) }
    }

    /// Text that ends with a NUL.
    pub(crate) fn text(&self, pointer: *const c_char, what: &str) -> Outcome<&str> {
        let pointer = checked(pointer.cast_mut(), what)?;
        // SAFETY: C1. It is not NULL, ends with a NUL, and lives until the call is over.
        let text = unsafe { CStr::from_ptr(pointer.as_ptr()) };
        text.to_str().map_err(|_| hr_error_t::argument(what, "is not UTF-8"))
    }

    /// The same, where NULL means none.
    pub(crate) fn text_or_none(&self, pointer: *const c_char, what: &str) -> Outcome<Option<&str>> {
        if pointer.is_null() { Ok(None) } else { self.text(pointer, what).map(Some) }
    }

    /// An array. NULL is fine where it has no elements.
    pub(crate) fn slice<T>(&self, pointer: *const T, count: usize, what: &str) -> Outcome<&[T]> {
        if count == 0 {
            return Ok(&[]);
        }
        let pointer = checked_array(pointer.cast_mut(), count, what)?;
        // SAFETY: C1. It is not NULL and aligned, has `count` elements, and lives until the call is over.
        Ok(unsafe { std::slice::from_raw_parts(pointer.as_ptr(), count) })
    }

    /// Bytes of the caller to write. What is there came from another language and is some value to us.
    #[expect(clippy::mut_from_ref, reason = "the memory is the caller's, not ours")]
    pub(crate) fn bytes_mut(&self, pointer: *mut u8, len: usize, what: &str) -> Outcome<&mut [u8]> {
        if len == 0 {
            return Ok(&mut []);
        }
        let pointer = checked_array(pointer, len, what)?;
        // SAFETY: C1. It is not NULL, has `len` bytes, and nobody else uses them until the call is over.
        Ok(unsafe { std::slice::from_raw_parts_mut(pointer.as_ptr(), len) })
    }

    /// Where the caller wants bytes.
    pub(crate) fn fill(&self, pointer: *mut u8, bytes: &[u8], what: &str) -> Outcome<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let pointer = checked_array(pointer, bytes.len(), what)?;
        // SAFETY: C1. It is not NULL and has room for them, and the caller's memory overlaps none of ours.
        unsafe { pointer.as_ptr().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        Ok(())
    }

    /// Where the caller wants a result.
    pub(crate) fn out<T>(&self, pointer: *mut T, what: &str) -> Outcome<Out<'_, T>> {
        Ok(Out { pointer: checked(pointer, what)?, call: PhantomData })
    }

    /// The same, where NULL means that it does not.
    pub(crate) fn out_or_none<T>(&self, pointer: *mut T, what: &str) -> Outcome<Option<Out<'_, T>>> {
        if pointer.is_null() { Ok(None) } else { self.out(pointer, what).map(Some) }
    }

    /// Where the caller wants up to `capacity` results. NULL is fine where that is none.
    pub(crate) fn outs<T>(&self, pointer: *mut T, capacity: usize, what: &str) -> Outcome<Outs<'_, T>> {
        let first = match capacity {
            0 => NonNull::dangling(),
            _ => checked_array(pointer, capacity, what)?,
        };
        Ok(Outs { first, capacity, call: PhantomData })
    }

    /// Fills a struct that may grow with its defaults.
    pub(crate) fn init<T: Versioned>(&self, pointer: *mut T, size: usize, what: &str) -> Outcome<()> {
        let pointer = checked(pointer, what)?;
        // SAFETY: C1. It has `size` bytes.
        unsafe { crate::versioned::write(pointer, size, what) }
    }

    /// Takes a handle back. NULL is fine.
    pub(crate) fn free<T>(&self, pointer: *mut T) -> Outcome<()> {
        if pointer.is_null() {
            return Ok(());
        }
        let pointer = checked(pointer, "handle")?;
        // SAFETY: C1. It came from `Out::give`, and the caller uses it no more.
        drop(unsafe { Box::from_raw(pointer.as_ptr()) });
        Ok(())
    }

    /// Takes a handle back that [`Out::give_shared`] gave. None for NULL.
    pub(crate) fn take_shared<T>(&self, pointer: *mut T) -> Outcome<Option<Arc<T>>> {
        if pointer.is_null() {
            return Ok(None);
        }
        let pointer = checked(pointer, "handle")?;
        // SAFETY: C1. It came from `Out::give_shared`, and the caller uses it no more.
        Ok(Some(unsafe { Arc::from_raw(pointer.as_ptr()) }))
    }

    /// Takes text back that [`Out::give_text`] gave. NULL is fine.
    pub(crate) fn free_text(&self, text: *mut c_char) -> Outcome<()> {
        if !text.is_null() {
            // SAFETY: C1. It came from `Out::give_text`, and the caller uses it no more.
            drop(unsafe { CString::from_raw(text) });
        }
        Ok(())
    }

    /// Takes bytes back that [`Out::give_bytes`] gave. NULL is fine.
    pub(crate) fn free_bytes(&self, bytes: *mut u8, len: usize) -> Outcome<()> {
        if !bytes.is_null() {
            let bytes = std::ptr::slice_from_raw_parts_mut(bytes, len);
            // SAFETY: C1. It came from `Out::give_bytes` with that length, and the caller uses it no more.
            drop(unsafe { Box::from_raw(bytes) });
        }
        Ok(())
    }
}

/// A place for a result, checked.
#[derive(Debug)]
pub(crate) struct Out<'c, T> {
    pointer: NonNull<T>,
    call: PhantomData<&'c mut T>,
}

impl<T> Out<'_, T> {
    /// Writes over what is there, which may be uninitialised.
    pub(crate) fn put(&self, value: T) {
        // SAFETY: C1. It is not NULL, aligned, and the caller's to write.
        unsafe { self.pointer.write(value) };
    }
}

impl<'c, T> Out<'c, *mut T> {
    /// A place for a handle. It is NULL until there is one.
    pub(crate) fn none(self) -> Self {
        self.put(std::ptr::null_mut());
        self
    }

    /// Gives the caller a handle, which it frees.
    pub(crate) fn give(&self, handle: T) {
        self.put(Box::into_raw(Box::new(handle)));
    }

    /// The same of one that others may still hold when the caller has freed it.
    pub(crate) fn give_shared(&self, handle: T) {
        self.put(Arc::into_raw(Arc::new(handle)).cast_mut());
    }
}

impl<'c> Out<'c, *mut c_char> {
    /// Gives the caller text, which it frees.
    pub(crate) fn give_text(&self, text: CString) {
        self.put(text.into_raw());
    }
}

impl<'c> Out<'c, *mut u8> {
    /// Gives the caller bytes, which it frees.
    pub(crate) fn give_bytes(&self, bytes: Vec<u8>) {
        self.put(Box::into_raw(bytes.into_boxed_slice()).cast());
    }
}

/// Places for results, checked.
#[derive(Debug)]
pub(crate) struct Outs<'c, T> {
    first: NonNull<T>,
    capacity: usize,
    call: PhantomData<&'c mut T>,
}

impl<T> Outs<'_, T> {
    /// Writes as many as there is room for.
    pub(crate) fn put_all(&self, values: impl Iterator<Item = T>) {
        for (index, value) in values.take(self.capacity).enumerate() {
            // SAFETY: C1. The array has `capacity` elements.
            let place = unsafe { self.first.add(index) };
            // SAFETY: C1. It is the caller's to write.
            unsafe { place.write(value) };
        }
    }
}

impl<T> Outs<'_, *mut T> {
    /// Gives the caller as many handles as there is room for, which it frees.
    pub(crate) fn give_all(&self, handles: impl Iterator<Item = T>) {
        self.put_all(handles.take(self.capacity).map(|handle| Box::into_raw(Box::new(handle))));
    }
}

/// A function of the application and what it wants to be given.
#[derive(Debug)]
pub(crate) struct Callback {
    function: unsafe extern "C" fn(*mut c_void, hr_status_t, *const hr_done_t, *const hr_error_t),
    data: *mut c_void,
}

// SAFETY: C2. Any thread may call it.
unsafe impl Send for Callback {}

impl Callback {
    /// Calls it.
    pub(crate) fn call(self, outcome: &Result<hr_done_t, hr_error_t>) {
        let (status, done, error) = match outcome {
            Ok(done) => (hr_status_t::HR_OK, std::ptr::from_ref(done), std::ptr::null()),
            Err(error) => (error.status(), std::ptr::null(), std::ptr::from_ref(error)),
        };
        // SAFETY: C2. It is called once, and what it is shown lives until it returns.
        unsafe { (self.function)(self.data, status, done, error) };
    }
}

fn checked<T>(pointer: *mut T, what: &str) -> Outcome<NonNull<T>> {
    let pointer = NonNull::new(pointer).ok_or_else(|| hr_error_t::argument(what, "is NULL"))?;
    if !pointer.is_aligned() {
        return Err(hr_error_t::argument(what, "is misaligned"));
    }
    Ok(pointer)
}

/// An array that a program can have: no object is larger than half of the address space.
fn checked_array<T>(pointer: *mut T, count: usize, what: &str) -> Outcome<NonNull<T>> {
    let bytes = count.checked_mul(size_of::<T>()).filter(|&bytes| isize::try_from(bytes).is_ok());
    let end = bytes.and_then(|bytes| pointer.addr().checked_add(bytes));
    if end.is_none() {
        return Err(hr_error_t::argument(what, "has more elements than memory can hold"));
    }
    checked(pointer, what)
}
