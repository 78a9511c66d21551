//! Handles in every order of freeing: nothing crashes, and what outlives its agent says so.

use std::ptr::{null, null_mut};

use super::*;
use hr_status_t::*;

/// A pair whose agents were destroyed; its drop frees the rest.
fn destroyed(paths: u32) -> (Pair, *mut hr_xfer_t) {
    let mut pair = Pair::new(paths, 64);
    put(pair.ours, 0, b"still here");
    let xfer = pair.write(null());
    as_c!(hr_agent_destroy(pair.here));
    as_c!(hr_agent_destroy(pair.there));
    (pair.here, pair.there) = (null_mut(), null_mut());
    (pair, xfer)
}

#[test]
fn handles_outlive_their_agent() {
    for paths in [ALL, TCP] {
        let (pair, xfer) = destroyed(paths);
        as_c! {
            let status = hr_xfer_wait(xfer, WAIT_NS, null_mut(), null_mut());
            assert!(matches!(status, HR_OK | HR_AGENT_CLOSED | HR_PEER_LOST), "{status:?}");
            hr_xfer_free(xfer);

            assert_eq!(get(pair.ours, 0, 10), b"still here");
            assert_eq!(*hr_region_data(pair.ours).cast::<u8>(), b's');
            ok(|error| hr_region_close(pair.ours, error));

            assert_eq!(text(hr_peer_name(pair.peer)), "there");
            for told in [
                failed(|error| hr_peer_sync(pair.peer, error)),
                failed(|error| hr_peer_notify(pair.peer, c"x".as_ptr().cast(), 1, error)),
                refused(|xfer, error| hr_peer_read(pair.peer, pair.local, pair.remote, null(), xfer, error)),
            ] {
                let ended = matches!(told.status, HR_AGENT_CLOSED | HR_PEER_LOST | HR_REGION_CLOSED);
                assert!(ended, "{:?}: {}", told.status, told.message);
            }
            assert_eq!(hr_list_count(pair.local), 64);
            let again = hr_peer_clone(pair.peer);
            ok(|error| hr_peer_disconnect(again, error));
            hr_peer_free(again);
        }
    }
}

#[test]
fn a_transfer_keeps_what_it_needs() {
    for paths in [ALL, TCP] {
        let mut pair = Pair::new(paths, 2048);
        put(pair.ours, 0, &pattern(4, 2048 * PAGE_LEN));
        let xfer = pair.write(null());
        as_c! {
            hr_list_free(pair.local);
            hr_remote_list_free(pair.remote);
            hr_peer_free(pair.peer);
            (pair.local, pair.remote, pair.peer) = (null_mut(), null_mut(), null_mut());
        }
        assert_eq!(finish(xfer).bytes, 2048 * PAGE);
        assert!(get(pair.theirs, 0, 2048 * PAGE_LEN) == pattern(4, 2048 * PAGE_LEN));
    }
}

#[test]
fn a_transfer_that_goes_on_is_freed_in_the_middle() {
    let pair = Pair::new(TCP, 8192);
    let xfer = pair.write(null());
    as_c!(hr_xfer_free(xfer));
    // Nothing is left of it: the same lists serve again.
    assert_eq!(finish(pair.write(null())).bytes, 8192 * PAGE);
}

#[test]
fn events_keep_their_peer_and_their_bytes() {
    let pair = Pair::new(ALL, 1);
    ok(|error| as_c!(hr_peer_notify(pair.peer, c"hello".as_ptr().cast(), 5, error)));
    let event = event(pair.there, hr_event_kind_t::HR_EVENT_NOTIF);
    let own = as_c!(hr_peer_clone((*event).peer));
    drop(pair);
    as_c! {
        assert_eq!(std::slice::from_raw_parts((*event).data, (*event).data_len), b"hello");
        assert_eq!(text(hr_peer_name((*event).peer)), "here");
        hr_event_free(event);
        assert_eq!(text(hr_peer_name(own)), "here", "a clone does not need the event");
        hr_peer_free(own);
    }
}

#[test]
fn errors_are_optional() {
    let (pair, mut list) = (Pair::new(ALL, 1), garbage());
    let desc = hr_desc_contiguous(99, 0, 1);
    let status = as_c!(hr_agent_prepare(pair.here, &raw const desc, 1, &raw mut list, null_mut()));
    assert_eq!(status, HR_BAD_LIST);
    assert!(list.is_null());
}
