//! The C ABI of Headrace: `libheadrace` and `csrc/headrace.h`, which cbindgen makes of this crate (`ci/header`).
//!
//! It is a thin coat over `transfer_core` without logic of its own. Names are those of C, so that a search finds both
//! sides; the documentation of each item becomes a comment of the header, so it speaks to a C programmer.
//!
//! | module | holds |
//! |---|---|
//! | `boundary` | checks of every pointer, and the net under panics: the only unsafe code but for `versioned` |
//! | `versioned` | structs that grow |
//! | `status`, `error` | how calls end |
//! | `config`, `agent`, `region`, `list`, `peer`, `xfer`, `counter`, `event`, `directory` | one handle or struct each |
//! | `on_done` | the one place where C is called |
#![allow(unsafe_code, reason = "C passes raw pointers")]
#![allow(non_camel_case_types, reason = "the names are those of C")]
#![allow(clippy::missing_safety_doc, reason = "the header tells it once for all functions; here it is C1")]

mod boundary;
mod versioned;

// In the order of the header.
mod error;
mod status;

mod agent;
mod config;
mod region;

mod list;
mod peer;

mod xfer;

mod on_done;

mod counter;
mod event;

mod directory;

#[cfg(test)]
mod tests;

use std::ffi::c_char;

pub use agent::*;
pub use config::*;
pub use counter::*;
pub use directory::*;
pub use error::*;
pub use event::*;
pub use list::*;
pub use on_done::*;
pub use peer::*;
pub use region::*;
pub use status::*;
pub use xfer::*;

/// Version of this header: programs and libraries of one major version work together.
pub const HR_VERSION_MAJOR: u32 = 0;
/// Grows when something is added.
pub const HR_VERSION_MINOR: u32 = 1;
/// Grows when something is mended.
pub const HR_VERSION_PATCH: u32 = 0;

/// A timeout that never ends.
pub const HR_FOREVER: u64 = u64::MAX;

/// Version of the library that is linked, such as "0.1.0". Lives as long as the program.
#[unsafe(no_mangle)]
pub extern "C" fn hr_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

/// Frees text that a function gave through a `char **`. NULL is fine.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hr_string_free(text: *mut c_char) {
    // SAFETY: C1.
    unsafe { boundary::value((), |c| c.free_text(text)) }
}

/// Frees bytes that a function gave through a `uint8_t **`, with the length that came with them. NULL is fine.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hr_bytes_free(bytes: *mut u8, len: usize) {
    // SAFETY: C1.
    unsafe { boundary::value((), |c| c.free_bytes(bytes, len)) }
}
