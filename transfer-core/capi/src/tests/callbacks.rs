//! A callback is called once, whatever happens to its transfer, and never after hr_xfer_free().

use std::ffi::c_void;
use std::ptr::{null, null_mut};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use super::*;
use hr_status_t::*;

/// What a callback was told.
#[derive(Clone, Debug, PartialEq)]
struct Ended {
    status: hr_status_t,
    bytes: Option<u64>,
    message: Option<String>,
}

fn ended(status: hr_status_t, done: *const hr_done_t, error: *const hr_error_t) -> Ended {
    let (done, error) = as_c!((done.as_ref(), error.as_ref()));
    if let Some(error) = error {
        assert_eq!(as_c!(hr_error_status(error)), status);
    }
    let message = error.map(|error| text(as_c!(hr_error_message(error))));
    Ended { status, bytes: done.map(|done| done.bytes), message }
}

/// Notes what it is told, in a list.
unsafe extern "C" fn note(
    data: *mut c_void,
    status: hr_status_t,
    done: *const hr_done_t,
    error: *const hr_error_t,
) {
    let list = as_c!(&*data.cast::<Mutex<Vec<Ended>>>());
    list.lock().unwrap().push(ended(status, done, error));
}

/// Where [`note`] puts it. It may go as soon as the transfers are freed.
type Notes = Box<Mutex<Vec<Ended>>>;

fn notes() -> Notes {
    Box::default()
}

fn told(notes: &Notes) -> Vec<Ended> {
    notes.lock().unwrap().clone()
}

fn on_done<T>(xfer: *mut hr_xfer_t, callback: hr_xfer_callback_t, data: &T) {
    let data = std::ptr::from_ref(data).cast_mut().cast();
    ok(|error| as_c!(hr_xfer_on_done(xfer, callback, data, error)));
}

fn done(bytes: u64) -> Ended {
    Ended { status: HR_OK, bytes: Some(bytes), message: None }
}

const PROCESS: u32 = hr_path_t::HR_PATH_PROCESS_MEMORY as u32;

/// Few pages are copied while they are posted, many are left to other threads.
const SIZES: [u32; 2] = [1, 4096];

#[test]
fn it_is_told_how_the_transfer_ended_also_when_it_has_already() {
    for (paths, pages) in [ALL, PROCESS, TCP].into_iter().flat_map(|paths| SIZES.map(|pages| (paths, pages)))
    {
        let (pair, notes) = (Pair::new(paths, pages), notes());
        let bytes = u64::from(pages) * PAGE;
        let early = pair.write(null());
        on_done(early, Some(note), &*notes);
        let late = pair.read(null());
        ok(|error| as_c!(hr_xfer_wait(late, WAIT_NS, null_mut(), error)));
        on_done(late, Some(note), &*notes);
        finish(early);
        as_c!(hr_xfer_free(late));
        assert_eq!(told(&notes), [done(bytes), done(bytes)]);
    }
}

#[test]
fn it_is_told_what_went_wrong() {
    let (pair, notes) = (Pair::new(TCP, 4096), notes());
    let mut options = options();
    options.timeout_ns = 1;
    let xfer = pair.read(&raw const options);
    on_done(xfer, Some(note), &*notes);
    let waited = failed(|error| as_c!(hr_xfer_wait(xfer, WAIT_NS, null_mut(), error)));
    as_c!(hr_xfer_free(xfer));
    let wanted = Ended { status: HR_DEADLINE, bytes: None, message: Some(waited.message) };
    assert_eq!(told(&notes), [wanted]);
}

#[test]
fn there_is_one_for_a_transfer() {
    let (pair, notes) = (Pair::new(ALL, 1), notes());
    let xfer = pair.write(null());
    let again = |callback| failed(|error| as_c!(hr_xfer_on_done(xfer, callback, null_mut(), error)));
    assert_eq!(again(None).message, "callback is NULL");
    on_done(xfer, Some(note), &*notes);
    let second = again(Some(note));
    assert_eq!(
        (second.status, second.message.as_str()),
        (HR_INVALID_ARGUMENT, "xfer has a callback already")
    );
    as_c!(hr_xfer_free(xfer));
    assert_eq!(told(&notes), [done(PAGE)]);
}

#[test]
fn a_transfer_that_is_freed_at_any_moment_has_called_it_once() {
    for paths in [ALL, PROCESS, TCP] {
        let pair = Pair::new(paths, 2048);
        for round in 0..60_u64 {
            let notes = notes();
            let xfer = pair.write(null());
            on_done(xfer, Some(note), &*notes);
            if round % 3 != 0 {
                std::thread::sleep(Duration::from_micros(round * 40));
            }
            as_c!(hr_xfer_free(xfer));
            let all = told(&notes);
            assert!(matches!(all[..], [Ended { status: HR_OK | HR_CANCELLED, .. }]), "{all:?}");
            // Whoever would call it now would write into memory that is gone.
            drop(notes);
        }
    }
}

/// What [`free`] frees, once it is there.
struct Own {
    xfer: Receiver<Sent<*mut hr_xfer_t>>,
    freed: Sender<Ended>,
}

/// Frees its own transfer, and its data.
unsafe extern "C" fn free(
    data: *mut c_void,
    status: hr_status_t,
    done: *const hr_done_t,
    error: *const hr_error_t,
) {
    let own = as_c!(Box::from_raw(data.cast::<Own>()));
    let Sent(xfer) = own.xfer.recv().unwrap();
    as_c!(hr_xfer_free(xfer));
    own.freed.send(ended(status, done, error)).unwrap();
}

#[test]
fn it_may_free_its_own_transfer() {
    for (paths, pages) in [ALL, PROCESS, TCP].into_iter().flat_map(|paths| SIZES.map(|pages| (paths, pages)))
    {
        let pair = Pair::new(paths, pages);
        for round in 0..20 {
            let ((give, xfer), (freed, all)) = (channel(), channel());
            let posted = pair.write(null());
            if round % 2 == 0 {
                ok(|error| as_c!(hr_xfer_wait(posted, WAIT_NS, null_mut(), error)));
            }
            give.send(Sent(posted)).unwrap();
            let own = Box::into_raw(Box::new(Own { xfer, freed }));
            ok(|error| as_c!(hr_xfer_on_done(posted, Some(free), own.cast(), error)));
            let wait = Duration::from_nanos(WAIT_NS);
            assert_eq!(all.recv_timeout(wait).unwrap(), done(u64::from(pages) * PAGE));
        }
    }
}

/// A callback that takes its time.
struct Slow {
    begun: Sender<()>,
    over: AtomicBool,
}

unsafe extern "C" fn take_time(
    data: *mut c_void,
    _status: hr_status_t,
    _done: *const hr_done_t,
    _error: *const hr_error_t,
) {
    let slow = as_c!(&*data.cast::<Slow>());
    slow.begun.send(()).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    slow.over.store(true, Ordering::SeqCst);
}

#[test]
fn freeing_waits_for_one_that_runs() {
    let pair = Pair::new(TCP, 4096);
    let (begun, has_begun) = channel();
    let slow = Box::new(Slow { begun, over: AtomicBool::new(false) });
    let xfer = pair.write(null());
    on_done(xfer, Some(take_time), &*slow);
    // Nobody waits for the transfer, so it is the agent's own thread that calls.
    has_begun.recv_timeout(Duration::from_nanos(WAIT_NS)).unwrap();
    as_c!(hr_xfer_free(xfer));
    assert!(slow.over.load(Ordering::SeqCst), "the data goes with the transfer, and the callback uses it");
}

#[test]
fn one_whose_agent_is_destroyed_is_called_as_well() {
    for (paths, pages) in [ALL, PROCESS, TCP].into_iter().flat_map(|paths| SIZES.map(|pages| (paths, pages)))
    {
        let (mut pair, notes) = (Pair::new(paths, pages), notes());
        let xfer = pair.write(null());
        on_done(xfer, Some(note), &*notes);
        as_c!(hr_agent_destroy(pair.here));
        pair.here = null_mut();
        as_c!(hr_xfer_free(xfer));
        let all = told(&notes);
        let wanted = matches!(all[..], [Ended { status: HR_OK | HR_AGENT_CLOSED | HR_PEER_LOST, .. }]);
        assert!(wanted, "{all:?}");
    }
}

/// What [`go_on`] needs: everything that an engine would do next.
struct Next {
    pair: *const Pair,
    xfer: *mut hr_xfer_t,
    told: Sender<u64>,
}

/// Frees its transfer, posts another one and waits for that.
unsafe extern "C" fn go_on(
    data: *mut c_void,
    status: hr_status_t,
    _done: *const hr_done_t,
    _error: *const hr_error_t,
) {
    let next = as_c!(Box::from_raw(data.cast::<Next>()));
    assert_eq!(status, HR_OK);
    as_c!(hr_xfer_free(next.xfer));
    next.told.send(finish(as_c!(&*next.pair).read(null())).bytes).unwrap();
}

#[test]
fn it_may_post_and_wait_itself() {
    for (paths, pages) in [ALL, PROCESS, TCP].into_iter().flat_map(|paths| SIZES.map(|pages| (paths, pages)))
    {
        let pair = Pair::new(paths, pages);
        let (told, all) = channel();
        let xfer = pair.write(null());
        let next = Box::into_raw(Box::new(Next { pair: &raw const pair, xfer, told }));
        ok(|error| as_c!(hr_xfer_on_done(xfer, Some(go_on), next.cast(), error)));
        let bytes = all.recv_timeout(Duration::from_nanos(WAIT_NS)).unwrap();
        assert_eq!(bytes, u64::from(pages) * PAGE);
    }
}

#[test]
fn many_threads_free_and_wait_at_once() {
    let pair = Sent(Pair::new(TCP, 64));
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let pair = &pair;
            scope.spawn(move || {
                let Sent(pair) = pair;
                for round in 0..60 {
                    let notes = notes();
                    let xfer = pair.write(null());
                    on_done(xfer, Some(note), &*notes);
                    if (round + thread) % 2 == 0 {
                        ok(|error| as_c!(hr_xfer_wait(xfer, WAIT_NS, null_mut(), error)));
                    }
                    as_c!(hr_xfer_free(xfer));
                    assert_eq!(told(&notes).len(), 1);
                }
            });
        }
    });
}
