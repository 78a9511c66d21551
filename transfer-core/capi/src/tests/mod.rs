//! Every exported function, called as C calls it.
/// A call as C makes it, and the look at what it left.
macro_rules! as_c {
    ($($call:tt)*) => {
        // SAFETY: C1 (docs/ARCHITECTURE.md). Here the tests are the application, and what they pass lives until the call is over.
        unsafe { $($call)* }
    };
}

mod arguments;
mod callbacks;
mod counters;
mod directories;
mod errors;
mod lifetimes;
mod transfers;
mod waiting;

use std::cell::Cell;
use std::ffi::{CStr, c_char};
use std::mem::MaybeUninit;

use crate::*;

pub(crate) const WAIT_NS: u64 = 20_000_000_000;

thread_local! {
    static PANICS: Cell<bool> = const { Cell::new(false) };
}

/// The net under panics is tried out here: the next call of a thread that was told to panics.
pub(crate) fn panic_if_asked() {
    assert!(!PANICS.take(), "as asked");
}

/// Text that C returned, which belongs to something else.
pub(crate) fn text(pointer: *const c_char) -> String {
    assert!(!pointer.is_null());
    as_c!(CStr::from_ptr(pointer)).to_str().unwrap().to_owned()
}

/// What an error says, which is freed.
pub(crate) struct Told {
    pub(crate) status: hr_status_t,
    pub(crate) message: String,
    pub(crate) retryable: bool,
    pub(crate) os_code: i32,
}

/// A pointer that nothing may be left of.
pub(crate) fn garbage<T>() -> *mut T {
    std::ptr::without_provenance_mut(0x5151_5151_5151_5151)
}

/// Makes a call that has to succeed.
pub(crate) fn ok(call: impl FnOnce(*mut *mut hr_error_t) -> hr_status_t) {
    let mut error = garbage();
    let status = call(&raw mut error);
    let message =
        if status == hr_status_t::HR_OK { String::new() } else { text(as_c!(hr_error_message(error))) };
    assert_eq!(status, hr_status_t::HR_OK, "{message}");
    assert!(error.is_null(), "an error object beside HR_OK");
}

/// Makes a call that has to give a handle.
pub(crate) fn made<T>(call: impl FnOnce(*mut *mut T, *mut *mut hr_error_t) -> hr_status_t) -> *mut T {
    let mut handle = garbage();
    ok(|error| call(&raw mut handle, error));
    assert!(!handle.is_null());
    handle
}

/// Makes a call that has to fail, and returns what it says.
pub(crate) fn failed(call: impl FnOnce(*mut *mut hr_error_t) -> hr_status_t) -> Told {
    let mut error = garbage();
    let status = call(&raw mut error);
    assert!((status as i32) < 0, "{status:?}");
    let told = as_c!(Told {
        status: hr_error_status(error),
        message: text(hr_error_message(error)),
        retryable: hr_error_retryable(error),
        os_code: hr_error_os_code(error),
    });
    assert_eq!(told.status, status);
    as_c!(hr_error_free(error));
    told
}

/// The same of a call that would give a handle; there is none then.
pub(crate) fn refused<T>(call: impl FnOnce(*mut *mut T, *mut *mut hr_error_t) -> hr_status_t) -> Told {
    let mut handle = garbage();
    let told = failed(|error| call(&raw mut handle, error));
    assert!(handle.is_null(), "a handle beside {:?}", told.status);
    told
}

pub(crate) fn filled<T>(fill: impl FnOnce(*mut T, usize) -> hr_status_t) -> T {
    let mut place = MaybeUninit::uninit();
    assert_eq!(fill(place.as_mut_ptr(), size_of::<T>()), hr_status_t::HR_OK);
    as_c!(place.assume_init())
}

pub(crate) fn config(name: &CStr) -> hr_config_t {
    let mut config = filled(|config, size| as_c!(hr_config_init(config, size)));
    config.name = name.as_ptr();
    config
}

pub(crate) fn options() -> hr_xfer_options_t {
    filled(|options, size| as_c!(hr_xfer_options_init(options, size)))
}

pub(crate) const ALL: u32 = 7;
pub(crate) const TCP: u32 = hr_path_t::HR_PATH_TCP as u32;

pub(crate) fn agent(name: &CStr, paths: u32) -> *mut hr_agent_t {
    let mut config = config(name);
    config.paths = paths;
    // Nobody here is lost for being slow.
    config.peer_timeout_ns = WAIT_NS;
    made(|agent, error| as_c!(hr_agent_create(&raw const config, agent, error)))
}

pub(crate) fn alloc(agent: *mut hr_agent_t, len: usize, label: &CStr) -> *mut hr_region_t {
    made(|region, error| {
        as_c!(hr_agent_alloc(agent, len as u64, label.as_ptr(), std::ptr::null(), region, error))
    })
}

pub(crate) fn prepare(agent: *mut hr_agent_t, desc: hr_desc_t) -> *mut hr_list_t {
    made(|list, error| as_c!(hr_agent_prepare(agent, &raw const desc, 1, list, error)))
}

pub(crate) fn prepare_remote(peer: *mut hr_peer_t, desc: hr_desc_t) -> *mut hr_remote_list_t {
    made(|list, error| as_c!(hr_peer_prepare(peer, &raw const desc, 1, list, error)))
}

pub(crate) fn info(peer: *const hr_peer_t, label: &CStr) -> hr_region_info_t {
    let mut info = MaybeUninit::uninit();
    ok(|error| as_c!(hr_peer_region(peer, label.as_ptr(), info.as_mut_ptr(), error)));
    as_c!(info.assume_init())
}

/// Two agents that know each other, with a region `kv` each and a list of all of it.
pub(crate) struct Pair {
    pub(crate) here: *mut hr_agent_t,
    pub(crate) there: *mut hr_agent_t,
    pub(crate) peer: *mut hr_peer_t,
    pub(crate) ours: *mut hr_region_t,
    pub(crate) theirs: *mut hr_region_t,
    pub(crate) local: *mut hr_list_t,
    pub(crate) remote: *mut hr_remote_list_t,
}

pub(crate) const PAGE: u64 = 4096;
pub(crate) const PAGE_LEN: usize = 4096;

impl Pair {
    /// Regions of `pages` pages; each page is a span of the lists.
    pub(crate) fn new(paths: u32, pages: u32) -> Self {
        Self::of(agent(c"here", paths), agent(c"there", paths), pages)
    }

    /// The same of these two.
    pub(crate) fn of(here: *mut hr_agent_t, there: *mut hr_agent_t, pages: u32) -> Self {
        let len = pages as usize * PAGE_LEN;
        let (ours, theirs) = (alloc(here, len, c"kv"), alloc(there, len, c"kv"));
        let address = as_c!(hr_agent_address(there));
        let peer = made(|peer, error| as_c!(hr_agent_connect(here, address, peer, error)));
        let local = prepare(here, hr_desc_strided(as_c!(hr_region_id(ours)), 0, PAGE, PAGE, pages));
        let remote = prepare_remote(peer, hr_desc_strided(info(peer, c"kv").id, 0, PAGE, PAGE, pages));
        Self { here, there, peer, ours, theirs, local, remote }
    }

    pub(crate) fn write(&self, options: *const hr_xfer_options_t) -> *mut hr_xfer_t {
        made(|xfer, error| as_c!(hr_peer_write(self.peer, self.local, self.remote, options, xfer, error)))
    }

    pub(crate) fn read(&self, options: *const hr_xfer_options_t) -> *mut hr_xfer_t {
        made(|xfer, error| as_c!(hr_peer_read(self.peer, self.local, self.remote, options, xfer, error)))
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        as_c! {
            hr_list_free(self.local);
            hr_remote_list_free(self.remote);
            hr_peer_free(self.peer);
            hr_region_free(self.ours);
            hr_region_free(self.theirs);
            hr_agent_destroy(self.here);
            hr_agent_destroy(self.there);
        }
    }
}

/// Waits for the end of a transfer, which has to be good, and frees it.
pub(crate) fn finish(xfer: *mut hr_xfer_t) -> hr_done_t {
    let mut done = MaybeUninit::uninit();
    ok(|error| as_c!(hr_xfer_wait(xfer, WAIT_NS, done.as_mut_ptr(), error)));
    as_c!(hr_xfer_free(xfer));
    as_c!(done.assume_init())
}

/// The next event of that kind; others are freed.
pub(crate) fn event(agent: *mut hr_agent_t, kind: hr_event_kind_t) -> *mut hr_event_t {
    loop {
        let event = made(|event, error| as_c!(hr_agent_wait_event(agent, WAIT_NS, event, error)));
        if as_c!((*event).kind) == kind {
            return event;
        }
        as_c!(hr_event_free(event));
    }
}

/// What the next notification says.
pub(crate) fn notification(agent: *mut hr_agent_t) -> Vec<u8> {
    let event = event(agent, hr_event_kind_t::HR_EVENT_NOTIF);
    let seen = as_c!(&*event);
    let bytes = as_c!(std::slice::from_raw_parts(seen.data, seen.data_len)).to_vec();
    as_c!(hr_event_free(event));
    bytes
}

/// A byte for each place, so that a byte from anywhere else shows.
pub(crate) fn pattern(seed: usize, len: usize) -> Vec<u8> {
    (0..len).map(|at| ((seed * 37 + at * 7 + at / 256) % 251).to_le_bytes()[0]).collect()
}

pub(crate) fn put(region: *mut hr_region_t, offset: u64, bytes: &[u8]) {
    ok(|error| as_c!(hr_region_write(region, offset, bytes.as_ptr().cast(), bytes.len(), error)));
}

pub(crate) fn get(region: *const hr_region_t, offset: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    ok(|error| as_c!(hr_region_read(region, offset, bytes.as_mut_ptr().cast(), len, error)));
    bytes
}

/// A pointer that goes to another thread, as the header allows.
pub(crate) struct Sent<T>(pub(crate) T);

// SAFETY: C1. Handles may be used by any thread.
unsafe impl<T> Send for Sent<T> {}
// SAFETY: C1. And by several at a time.
unsafe impl<T> Sync for Sent<T> {}
