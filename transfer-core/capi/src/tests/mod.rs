//! Every exported function, called as C calls it.
#![allow(
    clippy::undocumented_unsafe_blocks,
    clippy::multiple_unsafe_ops_per_block,
    reason = "C1 throughout: here the tests are the application, and what they pass lives until the call is over"
)]

use std::cell::Cell;

thread_local! {
    static PANICS: Cell<bool> = const { Cell::new(false) };
}

/// The net under panics is tried out here: the next call of a thread that was told to panics.
pub(crate) fn panic_if_asked() {
    assert!(!PANICS.take(), "as asked");
}

#[test]
fn a_panic_becomes_a_status_with_its_message() {
    let mut error = std::ptr::null_mut();
    PANICS.set(true);
    let status = unsafe { crate::hr_peer_sync(std::ptr::null_mut(), &raw mut error) };
    assert_eq!(status, crate::hr_status_t::HR_PANIC);
    let message = unsafe { std::ffi::CStr::from_ptr(crate::hr_error_message(error)) };
    assert!(message.to_str().unwrap().ends_with("which is a bug of it: as asked"), "{message:?}");
    unsafe { crate::hr_error_free(error) };
}
