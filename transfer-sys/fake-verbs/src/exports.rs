//! The symbols of libibverbs, and the operations of a context.
//!
//! An object that C sees is a box of which the first field is the structure of the header; what stands behind it is
//! its slot in the world.
#![allow(unsafe_code, reason = "a C interface")]
#![allow(unreachable_pub, reason = "exported by name, not by path")]
#![allow(
    clippy::missing_safety_doc,
    unsafe_op_in_unsafe_fn,
    reason = "V5 (docs/ARCHITECTURE.md) for all of them: what C passes is what verbs.h says of the argument"
)]

mod data;
mod devices;
mod things;

use std::fs::File;
use std::io::Read;
use std::os::fd::FromRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::AtomicU32;

use transfer_sys::verbs::sys;

use crate::queues::{RECORD_BYTES, Record};

/// An object that C sees.
#[repr(C)]
struct Handle<T> {
    raw: T,
    slot: u32,
    /// Events that were fetched and not acknowledged.
    unacknowledged: AtomicU32,
}

impl<T> Handle<T> {
    fn boxed(raw: T, slot: u32) -> *mut T {
        Box::into_raw(Box::new(Self { raw, slot, unacknowledged: AtomicU32::new(0) })).cast()
    }

    unsafe fn of<'a>(raw: *mut T) -> &'a Self {
        &*raw.cast()
    }

    unsafe fn free(raw: *mut T) {
        drop(Box::from_raw(raw.cast::<Self>()));
    }
}

fn slot<T>(raw: *mut T) -> u32 {
    // SAFETY: V5. A box that was made here.
    unsafe { Handle::of(raw) }.slot
}

fn context_slot(context: *mut sys::ibv_context) -> u32 {
    // SAFETY: V5. A context that was made here.
    unsafe { devices::Context::of(context) }.slot
}

/// A null pointer, with errno set.
fn refused<T>(errno: i32) -> *mut T {
    // SAFETY: V5. The word is this thread's own.
    unsafe { *libc::__errno_location() = errno };
    std::ptr::null_mut()
}

/// Zero, or an errno.
fn status(result: Result<(), i32>) -> i32 {
    result.err().unwrap_or(0)
}

/// -1, with errno set.
fn minus_one(errno: i32) -> i32 {
    // SAFETY: V5. The word is this thread's own.
    unsafe { *libc::__errno_location() = errno };
    -1
}

/// A pipe that other processes find by its path; its own end, which reads.
fn make_pipe(path: &Path) -> Result<i32, i32> {
    let name = std::ffi::CString::new(path.as_os_str().as_encoded_bytes()).map_err(|_| libc::EINVAL)?;
    // Left over from an object that had this slot before.
    let _absent = std::fs::remove_file(path);
    // SAFETY: V5. The name ends with a zero byte, and is here until the call is over.
    if unsafe { libc::mkfifo(name.as_ptr(), 0o600) } != 0 {
        return Err(libc::ENOMEM);
    }
    // Open to write as well, so that it never is at its end.
    let file = File::options().read(true).write(true).custom_flags(libc::O_CLOEXEC).open(path);
    file.map(std::os::fd::IntoRawFd::into_raw_fd).map_err(|error| error.raw_os_error().unwrap_or(libc::EIO))
}

/// The next record of a pipe; an errno where none waits.
fn read_record(fd: i32) -> Result<Record, i32> {
    // SAFETY: V5. It is C's, and is not closed here.
    let mut file = std::mem::ManuallyDrop::new(unsafe { File::from_raw_fd(fd) });
    let mut bytes = [0; RECORD_BYTES];
    file.read_exact(&mut bytes).map_err(|error| error.raw_os_error().unwrap_or(libc::EIO))?;
    let word = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    Ok([word(0), word(4), word(8), word(12)])
}
