//! The C interface, called in any order with any arguments that C can pass by mistake: NULL, misaligned, too long, no
//! text, no such value, of another agent, of an agent that is gone.
//!
//! What the interface cannot see is left out, as invariant C1 says: a pointer that leads nowhere, and a handle of
//! another kind or one that was freed.
#![allow(unsafe_code, reason = "this is the application that calls the interface")]

use std::ffi::{CStr, c_char, c_void};
use std::mem::MaybeUninit;
use std::ptr::{null, null_mut};

use headrace::*;

use crate::steps::Steps;

/// A call as C makes it, and the look at what it left.
macro_rules! as_c {
    ($($call:tt)*) => {
        // SAFETY: C1 (docs/ARCHITECTURE.md). What is passed lives until the call is over, and what leads nowhere is of the
        // kinds that the interface says it checks.
        unsafe { $($call)* }
    };
}

const PAGE: u64 = 4096;
const PAGES: u32 = 4;
/// Handles of each kind that are kept at a time.
const KEPT_MAX: usize = 4;
/// What a wait may take here.
const WAIT_NS: u64 = 1_000_000;
/// What no agent here is.
const OPEN_TO_ALL: u32 = HR_CONFIG_INSECURE_REMOTE_WITHOUT_KEY;

/// A pointer that no handle has.
fn misaligned<T>() -> *mut T {
    std::ptr::without_provenance_mut(align_of::<T>() / 2 + 4096)
}

/// Handles of one kind, each freed once.
struct Kept<T> {
    handles: Vec<*mut T>,
    free: unsafe extern "C" fn(*mut T),
}

impl<T> Kept<T> {
    fn new(free: unsafe extern "C" fn(*mut T)) -> Self {
        Self { handles: vec![], free }
    }

    /// One of them, or NULL, or nothing that can be one.
    fn pick(&self, steps: &mut Steps<'_>) -> *mut T {
        match usize::from(steps.byte()) {
            255 => null_mut(),
            254 if align_of::<T>() > 1 => misaligned(),
            at => self.handles.get(at % self.handles.len().max(1)).copied().unwrap_or(null_mut()),
        }
    }

    /// Makes one by a call that says how it went.
    fn make(
        &mut self,
        steps: &mut Steps<'_>,
        call: impl FnOnce(*mut *mut T, *mut *mut hr_error_t) -> hr_status_t,
    ) {
        let mut handle = misaligned();
        let wants = steps.byte();
        let place = match wants {
            255 => null_mut(),
            254 => misaligned(),
            _ => &raw mut handle,
        };
        let status = judged(wants, |error| call(place, error));
        if wants >= 254 {
            return assert_eq!(status, hr_status_t::HR_INVALID_ARGUMENT, "there is no place for a handle");
        }
        assert_eq!(handle.is_null(), status != hr_status_t::HR_OK, "{status:?}");
        if !handle.is_null() {
            self.handles.push(handle);
        }
        if self.handles.len() > KEPT_MAX {
            self.drop_at(0);
        }
    }

    fn drop_at(&mut self, at: usize) {
        if at < self.handles.len() {
            as_c!((self.free)(self.handles.remove(at)));
        }
    }

    fn drop_one(&mut self, steps: &mut Steps<'_>) {
        let at = usize::from(steps.byte());
        self.drop_at(at % self.handles.len().max(1));
        as_c!((self.free)(null_mut()));
    }
}

impl<T> Drop for Kept<T> {
    fn drop(&mut self) {
        while !self.handles.is_empty() {
            self.drop_at(0);
        }
    }
}

/// Makes a call, with or without a place for an error: there is one just when it failed, it says the same, and it never is
/// a panic.
fn judged(wants: u8, call: impl FnOnce(*mut *mut hr_error_t) -> hr_status_t) -> hr_status_t {
    if wants % 4 == 3 {
        let status = call(null_mut());
        assert_ne!(status, hr_status_t::HR_PANIC);
        return status;
    }
    let mut error = misaligned();
    let status = call(&raw mut error);
    assert_eq!(error.is_null(), status as i32 >= 0, "{status:?}");
    as_c! {
        if !error.is_null() {
            let message = CStr::from_ptr(hr_error_message(error)).to_str().expect("text");
            assert!(status != hr_status_t::HR_PANIC && !message.is_empty(), "{message}");
            assert_eq!(hr_error_status(error), status);
        }
        hr_error_free(error);
    }
    status
}

/// A number that may be at one of the ends of what there is.
fn number(steps: &mut Steps<'_>) -> u64 {
    match steps.byte() {
        255 => u64::MAX,
        254 => u64::MAX / 2 + u64::from(steps.byte()),
        253 => u64::MAX - u64::from(steps.byte()),
        252 => PAGE * u64::from(steps.byte() % 8),
        small => u64::from(small),
    }
}

/// An array: its first element, and how many C says there are, which is too many only where no memory can hold them.
fn array<T>(steps: &mut Steps<'_>, elements: &[T]) -> (*const T, usize) {
    match steps.byte() {
        255 => (null(), elements.len()),
        254 if align_of::<T>() > 1 => (misaligned::<T>().cast_const(), elements.len().max(1)),
        253 => (elements.as_ptr(), usize::MAX),
        252 => (elements.as_ptr(), usize::MAX / size_of::<T>().max(2) + 1),
        len => (elements.as_ptr(), usize::from(len) % (elements.len() + 1)),
    }
}

/// Text: of the input, whether or not it is UTF-8, or none.
fn text(steps: &mut Steps<'_>) -> Option<Vec<u8>> {
    let len = usize::from(steps.byte());
    if len == 255 {
        return None;
    }
    let mut text = steps.bytes(len % 32).to_vec();
    text.retain(|byte| *byte != 0);
    text.push(0);
    Some(text)
}

fn pointer(text: &Option<Vec<u8>>) -> *const c_char {
    text.as_ref().map_or(null(), |text| text.as_ptr().cast())
}

/// All that an application has.
struct Application {
    xfers: Kept<hr_xfer_t>,
    lists: Kept<hr_list_t>,
    remotes: Kept<hr_remote_list_t>,
    peers: Kept<hr_peer_t>,
    regions: Kept<hr_region_t>,
    counters: Kept<hr_counter_t>,
    agents: Kept<hr_agent_t>,
}

impl Application {
    fn new() -> Self {
        Self {
            xfers: Kept::new(hr_xfer_free),
            lists: Kept::new(hr_list_free),
            remotes: Kept::new(hr_remote_list_free),
            peers: Kept::new(hr_peer_free),
            regions: Kept::new(hr_region_free),
            counters: Kept::new(hr_counter_free),
            agents: Kept::new(hr_agent_destroy),
        }
    }

    fn create_agent(&mut self, steps: &mut Steps<'_>) {
        let mut config = filled(|config, size| as_c!(hr_config_init(config, size)));
        let (name, listen, key) = (text(steps), text(steps), [1_u8; 32]);
        config.name = if name.is_none() { c"fuzzed".as_ptr() } else { pointer(&name) };
        if steps.byte() % 4 == 0 && !leads_out(&listen) {
            config.tcp_listen = pointer(&listen);
        }
        config.copy_threads = 1;
        config.peer_timeout_ns = 200_000_000;
        config.connect_timeout_ns = 200_000_000;
        match steps.byte() % 16 {
            0 => config.size = usize::try_from(number(steps)).unwrap_or(0).min(size_of::<hr_config_t>()),
            1 => config.paths = u32::from(steps.byte()),
            2 => config.flags = (u32::from(steps.byte()) << (steps.byte() % 24)) & !OPEN_TO_ALL,
            3 => config.events_max = number(steps),
            4 => config.slice_bytes_max = number(steps),
            5 => config.inline_bytes_max = number(steps),
            6 => config.key = key.as_ptr(),
            7 => config.key_file = c"/nonexistent".as_ptr(),
            8 => config.tcp_buffer_bytes = u32::try_from(number(steps)).unwrap_or(u32::MAX),
            9 => config.slices_in_flight_max = u32::try_from(number(steps)).unwrap_or(u32::MAX),
            10 => (config.app_metadata, config.app_metadata_len) = array(steps, &key),
            11 => config.peer_timeout_ns = number(steps),
            12 => config.transfer_timeout_ns = number(steps),
            13 => config.unsent_bytes_max = number(steps),
            _ => {}
        }
        let config = if steps.byte() == 255 { null() } else { &raw const config };
        self.agents.make(steps, |agent, error| as_c!(hr_agent_create(config, agent, error)));
    }

    fn meet(&mut self, steps: &mut Steps<'_>) {
        let (agent, other) = (self.agents.pick(steps), self.agents.pick(steps));
        let how = steps.byte();
        let written = text(steps);
        let address = match how % 4 {
            0 => pointer(&written),
            _ => as_c!(hr_agent_address(other)),
        };
        if how % 4 == 1 {
            let blob = steps.bytes(usize::from(how)).to_vec();
            let (blob, len) = array(steps, &blob);
            self.peers.make(steps, |peer, error| as_c!(hr_agent_add_peer(agent, blob, len, peer, error)));
        } else if how % 4 != 0 || !leads_out(&written) {
            self.peers.make(steps, |peer, error| as_c!(hr_agent_connect(agent, address, peer, error)));
        }
    }

    fn region(&mut self, steps: &mut Steps<'_>) {
        let (agent, label) = (self.agents.pick(steps), text(steps));
        let mut options = filled(|options, size| as_c!(hr_region_options_init(options, size)));
        match steps.byte() % 8 {
            0 => options.access = u32::from(steps.byte()),
            1 => options.flags = u32::from(steps.byte()) & !1,
            2 => options.block_bytes = number(steps),
            3 => options.numa_node = i64::from_ne_bytes(number(steps).to_ne_bytes()),
            4 => options.size = usize::from(steps.byte()).min(size_of::<hr_region_options_t>()),
            _ => {}
        }
        let options = if steps.byte() == 255 { null() } else { &raw const options };
        let len = match number(steps) {
            // More than there is is refused before it is asked for; what there may be is not asked for here.
            len if len < 1 << 20 || len > 1 << 62 => len,
            _ => PAGE * u64::from(PAGES),
        };
        let label = pointer(&label);
        self.regions
            .make(steps, |region, error| as_c!(hr_agent_alloc(agent, len, label, options, region, error)));
    }

    fn use_region(&mut self, steps: &mut Steps<'_>) {
        let (region, offset, mut bytes) = (self.regions.pick(steps), number(steps), [7_u8; 64]);
        let (data, len) = array(steps, &bytes);
        let wants = steps.byte();
        match wants % 5 {
            0 => judged(wants, |error| as_c!(hr_region_write(region, offset, data.cast(), len, error))),
            1 => {
                let data = if data.is_null() { null_mut::<c_void>() } else { bytes.as_mut_ptr().cast() };
                judged(wants, |error| as_c!(hr_region_read(region, offset, data, len, error)))
            }
            2 => judged(wants, |error| as_c!(hr_region_close(region, error))),
            3 => {
                let (mut generation, len) = (0, number(steps));
                let place = if wants == 3 { null_mut() } else { &raw mut generation };
                judged(wants, |error| as_c!(hr_region_revoke(region, offset, len, place, error)))
            }
            _ => as_c! {
                assert!(!hr_region_data(region).is_null() || hr_region_len(region) == 0);
                assert!(hr_region_generation(region) < 1 << 32, "few were ever drawn");
                hr_status_t::HR_OK
            },
        };
    }

    /// Descriptors that may be anything, of a region that may be anybody's.
    fn descs(&self, steps: &mut Steps<'_>, pages: &[u32]) -> Vec<hr_desc_t> {
        let one = |steps: &mut Steps<'_>| {
            let id = match steps.byte() {
                255 => number(steps),
                _ => as_c!(hr_region_id(self.regions.pick(steps))),
            };
            let (offset, len, stride) = (number(steps), number(steps), number(steps));
            let mut desc = match steps.byte() % 4 {
                0 => hr_desc_contiguous(id, offset, len),
                1 => {
                    hr_desc_strided(id, offset, len, stride, u32::try_from(number(steps)).unwrap_or(u32::MAX))
                }
                2 => {
                    let (pages, count) = array(steps, pages);
                    let count = u32::try_from(count).unwrap_or(0);
                    hr_desc_paged(id, offset, len, stride, pages, count)
                }
                _ => hr_desc_strided(id, 0, PAGE, PAGE, PAGES),
            };
            match steps.byte() {
                255 => desc.kind = u32::from(steps.byte()),
                254 => desc.generation = number(steps),
                _ => {}
            }
            desc
        };
        (0..steps.byte() % 4).map(|_| one(steps)).collect()
    }

    fn prepare(&mut self, steps: &mut Steps<'_>) {
        let pages: Vec<u32> = steps.bytes(8).iter().map(|page| u32::from(*page) % 8).collect();
        let descs = self.descs(steps, &pages);
        let (first, count) = array(steps, &descs);
        if steps.byte() % 2 == 0 {
            let agent = self.agents.pick(steps);
            self.lists.make(steps, |list, error| as_c!(hr_agent_prepare(agent, first, count, list, error)));
        } else {
            let peer = self.peers.pick(steps);
            self.remotes.make(steps, |list, error| as_c!(hr_peer_prepare(peer, first, count, list, error)));
        }
    }

    fn post(&mut self, steps: &mut Steps<'_>) {
        let (peer, local, remote) =
            (self.peers.pick(steps), self.lists.pick(steps), self.remotes.pick(steps));
        let indices: Vec<u32> = steps.bytes(4).iter().map(|at| u32::from(*at) % 8).collect();
        let notif = [5; 16];
        let mut options = filled(|options, size| as_c!(hr_xfer_options_init(options, size)));
        options.timeout_ns = 200_000_000;
        match steps.byte() % 8 {
            0 => (options.local_indices, options.local_count) = array(steps, &indices),
            1 => {
                (options.local_indices, options.local_count) = array(steps, &indices);
                (options.remote_indices, options.remote_count) = array(steps, &indices);
            }
            2 => (options.notif, options.notif_len) = array(steps, &notif),
            3 => options.timeout_ns = number(steps).min(200_000_000),
            4 => options.size = usize::from(steps.byte()).min(size_of::<hr_xfer_options_t>()),
            _ => {}
        }
        let options = if steps.byte() == 255 { null() } else { &raw const options };
        let post = if steps.byte() % 2 == 0 { hr_peer_read } else { hr_peer_write };
        self.xfers.make(steps, |xfer, error| as_c!(post(peer, local, remote, options, xfer, error)));
    }

    fn look(&mut self, steps: &mut Steps<'_>) {
        let (xfer, agent, wants) = (self.xfers.pick(steps), self.agents.pick(steps), steps.byte());
        let (counter, peer) = (self.counters.pick(steps), self.peers.pick(steps));
        match wants % 8 {
            0 => judged(wants, |error| as_c!(hr_xfer_poll(xfer, null_mut(), error))),
            1 => judged(wants, |error| as_c!(hr_xfer_wait(xfer, WAIT_NS, null_mut(), error))),
            2 => judged(wants, |error| as_c!(hr_xfer_cancel(xfer, error))),
            3 => {
                let mut event = null_mut();
                let status = judged(wants, |error| as_c!(hr_agent_poll_event(agent, &raw mut event, error)));
                assert_eq!(event.is_null(), status != hr_status_t::HR_OK);
                as_c!(hr_event_free(event));
                status
            }
            4 => judged(wants, |error| as_c!(hr_peer_disconnect(peer, error))),
            5 => {
                let (data, len) = array(steps, b"notification");
                judged(wants, |error| as_c!(hr_peer_notify(peer, data, len, error)))
            }
            6 => {
                let reached = number(steps);
                judged(wants, |error| as_c!(hr_counter_wait(counter, reached, WAIT_NS, null_mut(), error)))
            }
            _ => {
                let (mut blob, mut len) = (null_mut(), 0);
                let status = judged(wants, |error| {
                    as_c!(hr_agent_metadata(agent, &raw mut blob, &raw mut len, error))
                });
                as_c!(hr_bytes_free(blob, len));
                status
            }
        };
    }

    fn free(&mut self, steps: &mut Steps<'_>) {
        match steps.byte() % 7 {
            0 => self.xfers.drop_one(steps),
            1 => self.lists.drop_one(steps),
            2 => self.remotes.drop_one(steps),
            3 => self.peers.drop_one(steps),
            4 => self.regions.drop_one(steps),
            5 => self.counters.drop_one(steps),
            _ => self.agents.drop_one(steps),
        }
    }
}

/// Whether an address of the input might be another host's: nothing here leaves this one, nor asks for a name.
fn leads_out(address: &Option<Vec<u8>>) -> bool {
    let Some(text) = address else { return false };
    let text = text.strip_prefix(b"tcp://").unwrap_or(text);
    let is_number = |byte: &u8| byte.is_ascii_digit() || b".:\0".contains(byte);
    let is_here = text.starts_with(b"unix:@") || (text.starts_with(b"127.") && text.iter().all(is_number));
    text.contains(&b':') && !is_here
}

/// A struct with its defaults.
fn filled<T>(fill: impl FnOnce(*mut T, usize) -> hr_status_t) -> T {
    let mut place = MaybeUninit::uninit();
    assert_eq!(fill(place.as_mut_ptr(), size_of::<T>()), hr_status_t::HR_OK);
    as_c!(place.assume_init())
}

/// Each step is a byte, with what its call is to get behind it.
pub fn check(bytes: &[u8]) {
    let mut steps = Steps::new(bytes);
    let mut application = Application::new();
    while let Some(step) = steps.next_step() {
        match step % 11 {
            0 => application.create_agent(&mut steps),
            1 => application.meet(&mut steps),
            2 => application.region(&mut steps),
            3 => application.use_region(&mut steps),
            4 | 5 => application.prepare(&mut steps),
            6 => application.post(&mut steps),
            7 | 8 => application.look(&mut steps),
            9 => application.free(&mut steps),
            _ => {
                let agent = application.agents.pick(&mut steps);
                application
                    .counters
                    .make(&mut steps, |counter, error| as_c!(hr_agent_counter(agent, counter, error)));
            }
        }
    }
}
