//! What the interface is for: memory, peers, transfers, notifications.

use std::ptr::{null, null_mut};

use super::*;
use hr_status_t::*;

#[test]
fn selected_pages_go_both_ways_over_every_path() {
    for (paths, path) in [
        (ALL, hr_path_t::HR_PATH_SHARED_MEMORY),
        (hr_path_t::HR_PATH_PROCESS_MEMORY as u32, hr_path_t::HR_PATH_PROCESS_MEMORY),
        (TCP, hr_path_t::HR_PATH_TCP),
    ] {
        let pair = Pair::new(paths, 8);
        assert_eq!(as_c!(hr_remote_list_path(pair.remote)), path);
        let page = |seed| pattern(seed, PAGE_LEN);
        for number in 0..8_u8 {
            put(pair.ours, u64::from(number) * PAGE, &page(number.into()));
        }
        let mut options = options();
        let (local, remote, notif) = ([5_u32, 0, 7], [1_u32, 2, 6], b"written");
        (options.local_indices, options.local_count) = (local.as_ptr(), local.len());
        (options.remote_indices, options.remote_count) = (remote.as_ptr(), remote.len());
        (options.notif, options.notif_len) = (notif.as_ptr(), notif.len());
        options.timeout_ns = WAIT_NS;
        let done = finish(pair.write(&raw const options));
        assert_eq!((done.bytes, done.path), (3 * PAGE, path));
        assert_eq!(notification(pair.there), notif);
        let sources = [None, Some(5), Some(0), None, None, None, Some(7), None];
        for (number, source) in sources.into_iter().enumerate() {
            let expected = source.map_or_else(|| vec![0; PAGE_LEN], page);
            assert!(
                get(pair.theirs, number as u64 * PAGE, PAGE_LEN) == expected,
                "page {number} by {path:?}"
            );
        }

        // And all of it back, without options.
        let xfer = pair.read(null());
        assert_eq!(as_c!(hr_xfer_path(xfer)), path);
        assert_eq!(finish(xfer).bytes, 8 * PAGE);
        assert!(get(pair.ours, 0, 8 * PAGE_LEN) == get(pair.theirs, 0, 8 * PAGE_LEN), "{path:?}");
    }
}

#[test]
fn every_kind_of_descriptor_names_its_bytes() {
    let pair = Pair::new(ALL, 8);
    let ours = as_c!(hr_region_id(pair.ours));
    let theirs = info(pair.peer, c"kv").id;
    put(pair.theirs, 0, &pattern(1, 8 * PAGE_LEN));
    let pages = [6_u32, 3];
    let from =
        [hr_desc_paged(theirs, 8, 100, PAGE, pages.as_ptr(), 2), hr_desc_strided(theirs, 1, 50, 1000, 3)];
    let to = hr_desc_contiguous(ours, 77, 350);
    let (local, remote) = (prepare(pair.here, to), {
        let from = from.as_ptr();
        made(|list, error| as_c!(hr_peer_prepare(pair.peer, from, 2, list, error)))
    });
    as_c! {
        assert_eq!((hr_list_count(local), hr_list_bytes(local)), (1, 350));
        assert_eq!((hr_remote_list_count(remote), hr_remote_list_bytes(remote)), (5, 350));
        let xfer = made(|xfer, error| hr_peer_read(pair.peer, local, remote, null(), xfer, error));
        finish(xfer);
        hr_list_free(local);
        hr_remote_list_free(remote);
    }
    let whole = pattern(1, 8 * PAGE_LEN);
    let spans = [(6 * 4096 + 8, 100), (3 * 4096 + 8, 100), (1, 50), (1001, 50), (2001, 50)];
    let expected: Vec<u8> = spans.into_iter().flat_map(|(at, len)| whole[at..at + len].to_vec()).collect();
    assert!(get(pair.ours, 77, 350) == expected);
    assert_eq!(get(pair.ours, 0, 77), [0; 77]);
    assert_eq!(get(pair.ours, 427, 100), [0; 100]);
}

#[test]
fn registered_memory_is_the_applications() {
    let pair = Pair::new(ALL, 1);
    let mut memory = vec![0_u8; PAGE_LEN];
    let addr = memory.as_mut_ptr();
    let (len, label) = (memory.len(), c"mine".as_ptr());
    let region = made(|region, error| {
        as_c!(hr_agent_register(pair.here, addr.cast(), len, label, null(), region, error))
    });
    as_c! {
        assert_eq!((hr_region_data(region), hr_region_len(region)), (addr.cast(), len));
        assert_eq!(text(hr_region_label(region)), "mine");
        let local = prepare(pair.here, hr_desc_contiguous(hr_region_id(region), 0, PAGE));
        put(pair.theirs, 0, &pattern(3, len));
        finish(made(|xfer, error| hr_peer_read(pair.peer, local, pair.remote, null(), xfer, error)));
        hr_list_free(local);
        ok(|error| hr_region_close(region, error));
        hr_region_free(region);
        // It is ours again.
        assert!(std::slice::from_raw_parts(addr, len) == pattern(3, len));
    }
    drop(memory);
}

/// A pair whose peer has a region `more` with these options.
fn with_region(
    paths: u32,
    change: impl FnOnce(&mut hr_region_options_t),
) -> (Pair, *mut hr_region_t, hr_region_info_t) {
    let pair = Pair::new(paths, 2);
    let mut options = filled(|options, size| as_c!(hr_region_options_init(options, size)));
    change(&mut options);
    let (there, label, options) = (pair.there, c"more".as_ptr(), &raw const options);
    let region = made(|region, error| as_c!(hr_agent_alloc(there, 2 * PAGE, label, options, region, error)));
    ok(|error| as_c!(hr_peer_sync(pair.peer, error)));
    let found = info(pair.peer, c"more");
    (pair, region, found)
}

#[test]
fn what_a_peer_may_only_read_it_cannot_write() {
    for paths in [ALL, TCP] {
        let (pair, region, found) =
            with_region(paths, |o| o.access = hr_access_t::HR_ACCESS_READ_ONLY as u32);
        assert_eq!(found.access, hr_access_t::HR_ACCESS_READ_ONLY);
        assert_eq!(info(pair.peer, c"kv").access, hr_access_t::HR_ACCESS_READ_WRITE);
        put(region, 0, &pattern(6, 2 * PAGE_LEN));
        let remote = prepare_remote(pair.peer, hr_desc_contiguous(found.id, 0, 2 * PAGE));
        let (peer, local) = (pair.peer, pair.local);
        let told = refused(|xfer, error| as_c!(hr_peer_write(peer, local, remote, null(), xfer, error)));
        assert_eq!(told.status, HR_READ_ONLY, "{}", told.message);
        finish(made(|xfer, error| as_c!(hr_peer_read(peer, local, remote, null(), xfer, error))));
        assert!(get(pair.ours, 0, 2 * PAGE_LEN) == pattern(6, 2 * PAGE_LEN));
        as_c!(hr_remote_list_free(remote));
        as_c!(hr_region_free(region));
    }
}

#[test]
fn what_was_revoked_is_stale_for_those_who_were_told_before() {
    for paths in [ALL, TCP] {
        let (pair, region, found) = with_region(paths, |o| o.block_bytes = PAGE);
        assert_eq!(found.block_bytes, PAGE);
        let (told, mut revoked) = (as_c!(hr_region_generation(region)), 0);
        ok(|error| as_c!(hr_region_revoke(region, PAGE, 1, &raw mut revoked, error)));
        assert!(revoked > told, "{revoked} after {told}");
        assert_eq!(as_c!(hr_region_generation(region)), revoked);
        let read = |page: u64, generation| {
            let mut desc = hr_desc_contiguous(found.id, page * PAGE, PAGE);
            desc.generation = generation;
            let local = prepare(pair.here, hr_desc_contiguous(as_c!(hr_region_id(pair.ours)), 0, PAGE));
            let remote = prepare_remote(pair.peer, desc);
            let xfer = made(|xfer, error| as_c!(hr_peer_read(pair.peer, local, remote, null(), xfer, error)));
            let status = as_c!(hr_xfer_wait(xfer, WAIT_NS, null_mut(), null_mut()));
            as_c! {
                hr_xfer_free(xfer);
                hr_list_free(local);
                hr_remote_list_free(remote);
            }
            status
        };
        assert_eq!(read(1, told), HR_STALE);
        assert_eq!(read(1, 0), HR_STALE, "0 is what was there when it was registered");
        assert_eq!((read(1, revoked), read(0, told), read(0, 0)), (HR_OK, HR_OK, HR_OK));
        let told = failed(|error| as_c!(hr_region_revoke(region, 2 * PAGE, 1, null_mut(), error)));
        assert_eq!(told.status, HR_OUT_OF_BOUNDS, "{}", told.message);
        as_c!(hr_region_free(region));
    }
}

#[test]
fn peers_and_their_regions_are_told() {
    let (here, app) = (agent(c"here", ALL), b"layout 7");
    let mut config = config(c"there");
    (config.app_metadata, config.app_metadata_len) = (app.as_ptr(), app.len());
    let there = made(|agent, error| as_c!(hr_agent_create(&raw const config, agent, error)));
    let first = alloc(there, 64, c"first");
    let peer = made(|peer, error| as_c!(hr_agent_connect(here, hr_agent_address(there), peer, error)));
    // One that comes later is known after a round trip at the latest.
    let second = alloc(there, 128, c"second");
    ok(|error| as_c!(hr_peer_sync(peer, error)));
    let found = info(peer, c"second");
    as_c! {
        assert_eq!(
            (found.id, found.len, found.kind),
            (hr_region_id(second), 128, hr_region_kind_t::HR_REGION_ALLOCATED)
        );
        assert_eq!(text(found.label.as_ptr()), "second");
        let (mut infos, mut count) = ([found; 3], 9);
        ok(|error| hr_peer_regions(peer, null_mut(), 0, &raw mut count, error));
        assert_eq!(count, 2);
        ok(|error| hr_peer_regions(peer, infos.as_mut_ptr(), 1, &raw mut count, error));
        assert_eq!((count, infos[0].len, infos[1].len), (2, 64, 128), "one was written, two are there");

        assert_eq!((text(hr_agent_name(here)), text(hr_peer_name(peer))), ("here".into(), "there".into()));
        let (mut len, mut ours, mut theirs) = (0, [0; 16], [1; 16]);
        let told = hr_peer_app_metadata(peer, &raw mut len);
        assert_eq!(std::slice::from_raw_parts(told, len), app);
        ok(|error| hr_agent_incarnation(there, ours.as_mut_ptr(), error));
        ok(|error| hr_peer_incarnation(peer, theirs.as_mut_ptr(), error));
        assert_eq!(ours, theirs);

        let mut peers = [garbage(); 3];
        ok(|error| hr_agent_peers(here, peers.as_mut_ptr(), 3, &raw mut count, error));
        assert_eq!((count, peers[1]), (1, garbage()), "one was written");
        assert!(hr_peer_is_up(peers[0]));
        let again = hr_peer_clone(peers[0]);
        hr_peer_free(peers[0]);
        ok(|error| hr_peer_notify(again, app.as_ptr(), app.len(), error));
        assert_eq!(notification(there), app);
        hr_peer_free(again);
        hr_peer_free(peer);
        hr_region_free(first);
        hr_region_free(second);
        hr_agent_destroy(here);
        hr_agent_destroy(there);
    }
}

#[test]
fn a_blob_leads_to_its_agent_and_events_say_so() {
    let (here, there) = (agent(c"here", ALL), agent(c"there", ALL));
    let mut event = garbage();
    ok(|error| {
        let status = as_c!(hr_agent_poll_event(here, &raw mut event, error));
        assert_eq!(status, HR_PENDING);
        HR_OK
    });
    assert!(event.is_null(), "no event beside HR_PENDING");
    assert_eq!(as_c!(hr_agent_wait_event(here, 1, &raw mut event, null_mut())), HR_PENDING);
    let (mut blob, mut len) = (null_mut(), 0);
    ok(|error| as_c!(hr_agent_metadata(there, &raw mut blob, &raw mut len, error)));
    let peer = made(|peer, error| as_c!(hr_agent_add_peer(here, blob, len, peer, error)));
    let up = super::event(there, hr_event_kind_t::HR_EVENT_PEER_UP);
    as_c! {
        assert_eq!(text(hr_peer_name((*up).peer)), "here");
        assert!((*up).reason.is_null() && (*up).data.is_null());
        hr_event_free(up);
        hr_bytes_free(blob, len);
        hr_peer_free(peer);
        hr_agent_destroy(here);
        hr_agent_destroy(there);
    }
}

#[test]
fn the_choice_of_path_is_explained() {
    let pair = Pair::new(ALL, 1);
    let told = made(|told, error| as_c!(hr_peer_explain(pair.peer, pair.local, pair.remote, told, error)));
    let explained = text(told);
    as_c!(hr_string_free(told));
    assert!(explained.starts_with("path: shm") && explained.contains("not tcp"), "{explained}");
}

/// A transfer that is in the middle for some time: pages by TCP.
const MANY: u32 = 16 << 10;

#[test]
fn a_transfer_goes_on_until_it_is_cancelled() {
    let pair = Pair::new(TCP, MANY);
    // It may be done before it is looked at, so several have a try.
    let cancelled = (0..20).any(|_| {
        let xfer = pair.write(null());
        let before = as_c!(hr_xfer_poll(xfer, null_mut(), null_mut()));
        assert!(matches!(before, HR_PENDING | HR_OK), "{before:?}");
        ok(|error| as_c!(hr_xfer_cancel(xfer, error)));
        let mut error = null_mut();
        let status = as_c!(hr_xfer_wait(xfer, WAIT_NS, null_mut(), &raw mut error));
        assert_eq!(status, as_c!(hr_xfer_poll(xfer, null_mut(), null_mut())), "it tells the same each time");
        assert!(matches!(status, HR_CANCELLED | HR_OK), "{}", text(as_c!(hr_error_message(error))));
        as_c! {
            hr_error_free(error);
            hr_xfer_free(xfer);
        }
        before == HR_PENDING && status == HR_CANCELLED
    });
    assert!(cancelled, "not one of twenty was caught in the middle");
}

#[test]
fn a_transfer_has_the_time_that_it_is_given() {
    let pair = Pair::new(TCP, MANY);
    let mut options = options();
    options.timeout_ns = 1;
    let xfer = pair.read(&raw const options);
    let told = failed(|error| as_c!(hr_xfer_wait(xfer, WAIT_NS, null_mut(), error)));
    assert_eq!(told.status, HR_DEADLINE, "{}", told.message);
    assert!(told.retryable);
    as_c!(hr_xfer_free(xfer));
}

#[test]
fn encrypted_data_arrives_as_it_was() {
    let key = [3_u8; HR_KEY_SIZE];
    let keyed = |name: &CStr, flags| {
        let mut config = config(name);
        (config.key, config.paths, config.flags) = (key.as_ptr(), TCP, flags);
        config.peer_timeout_ns = WAIT_NS;
        made(|agent, error| as_c!(hr_agent_create(&raw const config, agent, error)))
    };
    // It is enough that one side asks for it.
    let pair = Pair::of(keyed(c"here", HR_CONFIG_ENCRYPT_DATA), keyed(c"there", 0), 600);
    put(pair.ours, 0, &pattern(2, 600 * PAGE_LEN));
    assert_eq!(finish(pair.write(null())).bytes, 600 * PAGE);
    assert!(get(pair.theirs, 0, 600 * PAGE_LEN) == pattern(2, 600 * PAGE_LEN));
    put(pair.theirs, 0, &pattern(8, 600 * PAGE_LEN));
    assert_eq!(finish(pair.read(null())).bytes, 600 * PAGE);
    assert!(get(pair.ours, 0, 600 * PAGE_LEN) == pattern(8, 600 * PAGE_LEN));
}

#[test]
fn a_timeout_may_have_no_end() {
    for paths in [ALL, TCP] {
        let mut config = config(c"patient");
        (config.paths, config.transfer_timeout_ns) = (paths, HR_FOREVER);
        let patient = made(|agent, error| as_c!(hr_agent_create(&raw const config, agent, error)));
        // To itself, which is a peer like any other.
        let address = as_c!(hr_agent_address(patient));
        let peer = made(|peer, error| as_c!(hr_agent_connect(patient, address, peer, error)));
        let region = alloc(patient, 2 * PAGE_LEN, c"kv");
        put(region, 0, &pattern(9, PAGE_LEN));
        ok(|error| as_c!(hr_peer_sync(peer, error)));
        let id = as_c!(hr_region_id(region));
        let local = prepare(patient, hr_desc_contiguous(id, 0, PAGE));
        let remote = prepare_remote(peer, hr_desc_contiguous(id, PAGE, PAGE));
        let counter = made(|counter, error| as_c!(hr_agent_counter(patient, counter, error)));
        for timeout_ns in [0, HR_FOREVER, HR_FOREVER - 1] {
            let mut options = options();
            options.timeout_ns = timeout_ns;
            (options.bump_counter, options.bump_by) = (as_c!(hr_counter_id(counter)), 1);
            (options.notif, options.notif_len) = (c"n".as_ptr().cast(), 1);
            let options = &raw const options;
            let xfer = made(|xfer, error| as_c!(hr_peer_write(peer, local, remote, options, xfer, error)));
            ok(|error| as_c!(hr_xfer_wait(xfer, HR_FOREVER, null_mut(), error)));
            as_c!(hr_xfer_free(xfer));
        }
        ok(|error| as_c!(hr_counter_wait(counter, 3, HR_FOREVER, null_mut(), error)));
        let event = made(|event, error| as_c!(hr_agent_wait_event(patient, HR_FOREVER, event, error)));
        assert!(get(region, PAGE, PAGE_LEN) == pattern(9, PAGE_LEN));
        as_c! {
            hr_event_free(event);
            hr_counter_free(counter);
            hr_list_free(local);
            hr_remote_list_free(remote);
            hr_peer_free(peer);
            hr_region_free(region);
            hr_agent_destroy(patient);
        }
    }
}

#[test]
fn handles_are_used_by_many_threads_at_once() {
    let pair = Sent(Pair::new(ALL, 8));
    put(pair.0.theirs, 0, &pattern(5, 8 * PAGE_LEN));
    std::thread::scope(|scope| {
        for number in 0..4_u32 {
            let pair = &pair;
            scope.spawn(move || {
                let Sent(pair) = pair;
                let mut options = options();
                let index = [number];
                (options.local_indices, options.local_count) = (index.as_ptr(), 1);
                (options.remote_indices, options.remote_count) = (index.as_ptr(), 1);
                (options.notif, options.notif_len) = (c"n".as_ptr().cast(), 1);
                for _ in 0..50 {
                    assert_eq!(finish(pair.read(&raw const options)).bytes, PAGE);
                    let own = as_c!(hr_peer_clone(pair.peer));
                    assert!(as_c!(hr_peer_is_up(own)));
                    as_c!(hr_peer_free(own));
                }
            });
        }
        for _ in 0..2 {
            let pair = &pair;
            scope.spawn(move || {
                let Sent(pair) = pair;
                (0..100).for_each(|_| assert_eq!(notification(pair.there), b"n"));
            });
        }
    });
    assert!(get(pair.0.ours, 0, 4 * PAGE_LEN) == pattern(5, 4 * PAGE_LEN));
}
