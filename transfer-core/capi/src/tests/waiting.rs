//! Waiting for many things at once: a descriptor.

use std::fs::File;
use std::io::Read;
use std::os::fd::{BorrowedFd, RawFd};
use std::ptr::{null, null_mut};
use std::time::Duration;

use super::*;
use hr_status_t::*;

fn event_fd(agent: *mut hr_agent_t) -> RawFd {
    let mut fd = -7;
    ok(|error| as_c!(hr_agent_event_fd(agent, &raw mut fd, error)));
    fd
}

/// Waits for the descriptor as poll(2) does, and clears it.
fn sign(fd: RawFd) {
    let mut file = File::from(as_c!(BorrowedFd::borrow_raw(fd)).try_clone_to_owned().unwrap());
    let mut word = [0; 8];
    for _ in 0..WAIT_NS / 1_000_000 {
        match file.read_exact(&mut word) {
            Ok(()) => return assert_ne!(u64::from_ne_bytes(word), 0),
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("no sign in time");
}

/// Has `there` write a byte to `here`, and raise a counter.
fn raise(pair: &Pair, counter: u64) {
    let mut back = null_mut();
    let mut count = 0;
    ok(|error| as_c!(hr_agent_peers(pair.there, &raw mut back, 1, &raw mut count, error)));
    let local = prepare(pair.there, hr_desc_contiguous(as_c!(hr_region_id(pair.theirs)), 0, 1));
    let remote = prepare_remote(back, hr_desc_contiguous(as_c!(hr_region_id(pair.ours)), 0, 1));
    let mut options = options();
    (options.bump_counter, options.bump_by) = (counter, 1);
    let options = &raw const options;
    finish(made(|xfer, error| as_c!(hr_peer_write(back, local, remote, options, xfer, error))));
    as_c! {
        hr_list_free(local);
        hr_remote_list_free(remote);
        hr_peer_free(back);
    }
}

#[test]
fn a_descriptor_tells_of_events_and_ends() {
    for paths in [ALL, TCP] {
        let pair = Pair::new(paths, 4);
        let fd = event_fd(pair.here);
        assert_eq!(event_fd(pair.here), fd, "there is one");
        // What was there before anybody asked.
        sign(fd);
        as_c!(hr_event_free(event(pair.here, hr_event_kind_t::HR_EVENT_PEER_UP)));
        let xfer = pair.write(null());
        sign(fd);
        while as_c!(hr_xfer_poll(xfer, null_mut(), null_mut())) == HR_PENDING {
            sign(fd);
        }
        as_c!(hr_xfer_free(xfer));

        // A counter of ours, raised by a peer.
        let counter = made(|counter, error| as_c!(hr_agent_counter(pair.here, counter, error)));
        raise(&pair, as_c!(hr_counter_id(counter)));
        while as_c!(hr_counter_get(counter)) == 0 {
            sign(fd);
        }
        as_c!(hr_counter_free(counter));
        ok(|error| as_c!(hr_peer_disconnect(pair.peer, error)));
        sign(fd);
        as_c!(hr_event_free(event(pair.here, hr_event_kind_t::HR_EVENT_PEER_LOST)));
    }
}
