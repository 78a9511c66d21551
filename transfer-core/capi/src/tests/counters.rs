//! Counters: raised once by each transfer that is done, and by nothing else.

use std::ptr::{null, null_mut};

use super::*;
use hr_status_t::*;

fn counter(agent: *mut hr_agent_t) -> *mut hr_counter_t {
    made(|counter, error| as_c!(hr_agent_counter(agent, counter, error)))
}

/// Writes one page, and raises the counter of that name.
fn write_page(pair: &Pair, page: u32, id: u64, by: u64) -> *mut hr_xfer_t {
    let (mut options, index) = (options(), [page]);
    (options.local_indices, options.local_count) = (index.as_ptr(), 1);
    (options.remote_indices, options.remote_count) = (index.as_ptr(), 1);
    (options.bump_counter, options.bump_by) = (id, by);
    pair.write(&raw const options)
}

#[test]
fn a_counter_tells_how_many_layers_are_here() {
    const LAYERS: u32 = 8;
    for paths in [ALL, TCP] {
        let pair = Pair::new(paths, LAYERS);
        let counter = counter(pair.there);
        let id = as_c!(hr_counter_id(counter));
        let shared = Sent(counter);
        std::thread::scope(|scope| {
            let (shared, theirs) = (&shared, Sent(pair.theirs));
            scope.spawn(move || {
                let (Sent(counter), Sent(theirs)) = (shared, &theirs);
                for layer in 0..u64::from(LAYERS) {
                    let mut reached = 0;
                    let wait =
                        |error| as_c!(hr_counter_wait(*counter, layer + 1, WAIT_NS, &raw mut reached, error));
                    ok(wait);
                    assert!(reached > layer, "{reached}");
                    let seed = usize::try_from(layer).unwrap();
                    assert!(get(*theirs, layer * PAGE, PAGE_LEN) == pattern(seed, PAGE_LEN), "layer {layer}");
                }
            });
            for layer in 0..LAYERS {
                put(pair.ours, u64::from(layer) * PAGE, &pattern(layer as usize, PAGE_LEN));
                // One after the other, so that n means the first n.
                finish(write_page(&pair, layer, id, 1));
            }
        });
        assert_eq!(as_c!(hr_counter_get(counter)), u64::from(LAYERS));
        as_c!(hr_counter_free(counter));
    }
}

#[test]
fn a_counter_goes_up_by_what_it_is_told_and_stops_at_the_end() {
    let pair = Pair::new(ALL, 1);
    let (first, second) = (counter(pair.there), counter(pair.there));
    let (id, other) = as_c!((hr_counter_id(first), hr_counter_id(second)));
    assert_ne!(id, other);
    let reach = |at_least| {
        ok(|error| as_c!(hr_counter_wait(first, at_least, WAIT_NS, null_mut(), error)));
    };
    for (by, reached) in [(0, 0), (3, 3), (u64::MAX - 3, u64::MAX), (5, u64::MAX)] {
        finish(write_page(&pair, 0, id, by));
        reach(reached);
    }
    // Behind the last raise: whoever is told of this has seen that.
    ok(|error| as_c!(hr_peer_sync(pair.peer, error)));
    assert_eq!(as_c!((hr_counter_get(first), hr_counter_get(second))), (u64::MAX, 0));

    // A name of none is passed over, and so is that of one that was freed; its successor has another.
    as_c!(hr_counter_free(first));
    let successor = counter(pair.there);
    assert_ne!(as_c!(hr_counter_id(successor)), id);
    for name in [id, u64::MAX] {
        finish(write_page(&pair, 0, name, 1));
    }
    ok(|error| as_c!(hr_peer_sync(pair.peer, error)));
    assert_eq!(as_c!((hr_counter_get(successor), hr_counter_get(second))), (0, 0));
    as_c!(hr_counter_free(successor));
    as_c!(hr_counter_free(second));
}

#[test]
fn what_fails_raises_nothing() {
    let pair = Pair::new(TCP, 1);
    let counter = counter(pair.there);
    ok(|error| as_c!(hr_region_revoke(pair.theirs, 0, PAGE, null_mut(), error)));
    let xfer = write_page(&pair, 0, as_c!(hr_counter_id(counter)), 1);
    let told = failed(|error| as_c!(hr_xfer_wait(xfer, WAIT_NS, null_mut(), error)));
    assert_eq!(told.status, HR_STALE, "{}", told.message);
    ok(|error| as_c!(hr_peer_sync(pair.peer, error)));
    assert_eq!(as_c!(hr_counter_get(counter)), 0);
    as_c!(hr_xfer_free(xfer));
    as_c!(hr_counter_free(counter));
}

#[test]
fn waiting_for_a_counter_ends_with_its_time_or_its_agent() {
    let agent = agent(c"a", ALL);
    let counter = counter(agent);
    let mut reached = 77;
    let mut wait = |at_least, timeout_ns| {
        as_c!(hr_counter_wait(counter, at_least, timeout_ns, &raw mut reached, null_mut()))
    };
    assert_eq!((wait(1, 0), wait(u64::MAX, 1), wait(0, 0)), (HR_PENDING, HR_PENDING, HR_OK));
    assert_eq!(reached, 0, "written for HR_OK");
    as_c!(hr_agent_destroy(agent));
    let told = failed(|error| as_c!(hr_counter_wait(counter, 1, HR_FOREVER, null_mut(), error)));
    assert_eq!(told.status, HR_AGENT_CLOSED, "{}", told.message);
    ok(|error| as_c!(hr_counter_wait(counter, 0, 0, null_mut(), error)));
    as_c!(hr_counter_free(counter));
}

#[test]
fn an_agent_has_room_for_so_many_counters() {
    let agent = agent(c"a", ALL);
    let counters: Vec<_> = (0..1 << 16).map(|_| counter(agent)).collect();
    let told = refused(|counter, error| as_c!(hr_agent_counter(agent, counter, error)));
    assert_eq!(told.status, HR_TOO_LARGE, "{}", told.message);
    as_c!(hr_counter_free(counters[5]));
    as_c!(hr_counter_free(counter(agent)));
    for (at, counter) in counters.into_iter().enumerate() {
        as_c!(hr_counter_free(if at == 5 { null_mut() } else { counter }));
    }
    // In any order: without its agent, too.
    let last = counter(agent);
    as_c!(hr_agent_destroy(agent));
    as_c!(hr_counter_free(last));
}

#[test]
fn a_read_raises_the_owners_counter_beside_its_notification() {
    let pair = Pair::new(ALL, 1);
    let counter = counter(pair.there);
    let mut options = options();
    (options.bump_counter, options.bump_by) = (as_c!(hr_counter_id(counter)), 10);
    (options.notif, options.notif_len) = (c"read".as_ptr().cast(), 4);
    finish(pair.read(&raw const options));
    assert_eq!(notification(pair.there), b"read");
    ok(|error| as_c!(hr_counter_wait(counter, 10, WAIT_NS, null_mut(), error)));
    finish(pair.read(null()));
    assert_eq!(as_c!(hr_counter_get(counter)), 10);
    as_c!(hr_counter_free(counter));
}
