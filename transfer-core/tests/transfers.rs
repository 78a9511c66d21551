//! Every shape of list, both ways, over every path, within one process: each byte of both regions is compared.
#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "a test"
)]

mod support;

use std::future::Future;
use std::sync::Arc;
use std::task::{Context, Poll, Wake};
use std::time::Duration;

use support::{REGION_BYTES, WAIT, agent, bytes_of, config, expected, pair, pattern, shapes};
use transfer_core::{Agent, Desc, DescList, Error, Event, Path, PathSet, Peer, Policy, Region};

fn region(agent: &Agent, allocated: bool, seed: u64, len: usize) -> Region {
    let bytes = pattern(seed, len);
    if !allocated {
        return agent.adopt(bytes, "r").unwrap();
    }
    let region = agent.alloc(len, "r").unwrap();
    region.write_at(0, &bytes).unwrap();
    region
}

fn next_notif(agent: &Agent) -> Vec<u8> {
    loop {
        match agent.wait_event(WAIT).expect("a notification in time") {
            Event::Notif { bytes, .. } => return bytes,
            _ => continue,
        }
    }
}

/// Both operations with each pair of shapes.
fn all_shapes(paths: PathSet, allocated: bool, path: Path) {
    let (here, there, peer) = pair(paths);
    let mine = region(&here, allocated, 1, REGION_BYTES);
    let theirs = region(&there, allocated, 2, REGION_BYTES);
    for (local_name, local, local_spans) in shapes(&mine) {
        for (remote_name, remote, remote_spans) in shapes(&theirs) {
            let what = format!("{local_name} and {remote_name} over {path}");
            let (l, r) = (here.prepare(&local).unwrap(), peer.prepare(&remote).unwrap());
            assert_eq!(r.path(), path, "{what}");

            let (before_mine, before_theirs) = (bytes_of(&mine), bytes_of(&theirs));
            let done = peer.read(&l, &r).notify(b"read").post().unwrap().wait(WAIT).unwrap();
            assert_eq!((done.bytes, done.path), (6 * 4096, path), "{what}");
            let wanted = expected(&before_theirs, &remote_spans, &before_mine, &local_spans);
            assert!(bytes_of(&mine) == wanted, "read of {what}");
            assert!(bytes_of(&theirs) == before_theirs, "read of {what} changed its source");
            assert_eq!(next_notif(&there), b"read");

            mine.write_at(0, &pattern(77, REGION_BYTES)).unwrap();
            let (before_mine, before_theirs) = (bytes_of(&mine), bytes_of(&theirs));
            peer.write(&l, &r).notify(b"write").post().unwrap().wait(WAIT).unwrap();
            assert_eq!(next_notif(&there), b"write");
            let wanted = expected(&before_mine, &local_spans, &before_theirs, &remote_spans);
            assert!(bytes_of(&theirs) == wanted, "write of {what}");
            assert!(bytes_of(&mine) == before_mine, "write of {what} changed its source");
        }
    }
}

#[test]
fn every_shape_over_shared_memory() {
    all_shapes(PathSet::ALL, true, Path::SharedMemory);
}

#[test]
fn every_shape_over_process_memory() {
    all_shapes(PathSet::ALL, false, Path::ProcessMemory);
}

#[test]
fn every_shape_over_tcp() {
    all_shapes(PathSet::TCP, true, Path::Tcp);
}

/// Large enough for many slices, several connections and the copying thread; odd lengths on purpose.
fn large(paths: PathSet, allocated: bool) {
    const LEN: usize = (9 << 20) + 12_345;
    let (here, there, peer) = pair(paths);
    let mine = region(&here, allocated, 3, LEN);
    let theirs = region(&there, allocated, 4, LEN);
    let (a, b) = (bytes_of(&mine), bytes_of(&theirs));
    let whole = |id| DescList::from(Desc::contiguous(id, 0, LEN as u64));
    let (l, r) = (here.prepare(&whole(mine.id())).unwrap(), peer.prepare(&whole(theirs.id())).unwrap());
    peer.read(&l, &r).post().unwrap().wait(WAIT).unwrap();
    assert!(bytes_of(&mine) == b);
    mine.write_at(0, &a).unwrap();
    peer.write(&l, &r).post().unwrap().wait(WAIT).unwrap();
    assert!(bytes_of(&theirs) == a);
    // Thousands of pages in another order on each side.
    let count = LEN / 4096;
    let pages =
        |step: usize| (0..count).map(|i| u32::try_from(i * step % count).unwrap()).collect::<Vec<_>>();
    let paged = |id, step| DescList::from(Desc::paged(id, 0, 4096, 4096, pages(step)));
    let (ls, rs) = (paged(mine.id(), 7), paged(theirs.id(), 5));
    mine.write_at(0, &pattern(5, LEN)).unwrap();
    let (before, source) = (bytes_of(&mine), bytes_of(&theirs));
    let (l, r) = (here.prepare(&ls).unwrap(), peer.prepare(&rs).unwrap());
    let spans = |step| pages(step).iter().map(|&p| (p as usize * 4096, 4096)).collect::<Vec<_>>();
    peer.read(&l, &r).post().unwrap().wait(WAIT).unwrap();
    assert!(bytes_of(&mine) == expected(&source, &spans(5), &before, &spans(7)));
}

#[test]
fn many_slices_over_shared_memory() {
    large(PathSet::ALL, true);
}

#[test]
fn many_slices_over_process_memory() {
    large(PathSet::ALL, false);
}

#[test]
fn many_slices_over_tcp() {
    large(PathSet::TCP, true);
}

#[test]
fn selected_spans_are_moved_and_no_others() {
    for paths in [PathSet::ALL, PathSet::TCP] {
        let (here, there, peer) = pair(paths);
        let (mine, theirs) = (region(&here, true, 1, 64 * 100), region(&there, true, 2, 64 * 100));
        let all = |id| DescList::from(Desc::strided(id, 0, 64, 64, 100));
        let (l, r) = (here.prepare(&all(mine.id())).unwrap(), peer.prepare(&all(theirs.id())).unwrap());
        let (before, source) = (bytes_of(&mine), bytes_of(&theirs));
        peer.read(&l, &r).select(&[3, 50, 99], &[7, 8, 0]).post().unwrap().wait(WAIT).unwrap();
        let spans = |indices: [usize; 3]| indices.map(|i| (i * 64, 64));
        assert!(bytes_of(&mine) == expected(&source, &spans([7, 8, 0]), &before, &spans([3, 50, 99])));
        let error = peer.read(&l, &r).select(&[0, 1], &[0]).post().unwrap_err();
        assert!(matches!(error, Error::LengthMismatch { local: 128, remote: 64 }), "{error}");
        let error = peer.read(&l, &r).select(&[100], &[0]).post().unwrap_err();
        assert!(error.to_string().contains("local list: selected span 100, but the list has 100"), "{error}");
    }
}

#[test]
fn lists_that_do_not_fit_are_refused_with_the_place() {
    let (here, there, peer) = pair(PathSet::ALL);
    let (mine, theirs) = (region(&here, true, 1, 1000), region(&there, true, 2, 1000));
    let beyond = |id| DescList::from(Desc::contiguous(id, 999, 2));
    let error = here.prepare(&beyond(mine.id())).unwrap_err().to_string();
    assert!(
        error.contains("local list: descriptor 0: ends at byte 1001 of region 0.0, which has 1000"),
        "{error}"
    );
    let error = peer.prepare(&beyond(theirs.id())).unwrap_err().to_string();
    assert!(error.contains("remote list: descriptor 0"), "{error}");
    // A list of another agent.
    let (l, r) = (
        there.prepare(&DescList::from(Desc::contiguous(theirs.id(), 0, 1))).unwrap(),
        peer.prepare(&DescList::from(Desc::contiguous(theirs.id(), 0, 1))).unwrap(),
    );
    assert!(matches!(peer.read(&l, &r).post(), Err(Error::WrongAgent { side: "local" })));
    assert!(matches!(mine.read_at(990, &mut [0; 11]), Err(Error::OutOfBounds { .. })));
}

#[test]
fn an_agent_can_be_its_own_peer() {
    let agent = agent("alone", PathSet::ALL);
    let peer = agent.connect(&agent.address().unwrap());
    // Its own incarnation connects to itself: both ends of the connection are one agent.
    let peer: Peer = peer.unwrap();
    let (a, b) = (region(&agent, true, 1, 5000), region(&agent, true, 2, 5000));
    let whole = |id| DescList::from(Desc::contiguous(id, 0, 5000));
    let (l, r) = (agent.prepare(&whole(a.id())).unwrap(), peer.prepare(&whole(b.id())).unwrap());
    peer.read(&l, &r).post().unwrap().wait(WAIT).unwrap();
    assert!(bytes_of(&a) == bytes_of(&b));
}

/// Wakes a parked thread.
struct Unpark(std::thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = std::pin::pin!(future);
    let waker = Arc::new(Unpark(std::thread::current())).into();
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park_timeout(WAIT),
        }
    }
}

#[test]
fn transfers_and_events_can_be_awaited_and_polled() {
    let (here, there, peer) = pair(PathSet::TCP);
    let (mine, theirs) = (region(&here, true, 1, 1 << 20), region(&there, true, 2, 1 << 20));
    let whole = |id| DescList::from(Desc::contiguous(id, 0, 1 << 20));
    let (l, r) = (here.prepare(&whole(mine.id())).unwrap(), peer.prepare(&whole(theirs.id())).unwrap());
    let done = block_on(peer.read(&l, &r).notify(b"n").post().unwrap()).unwrap();
    assert_eq!(done.bytes, 1 << 20);
    assert!(matches!(block_on(there.next_event()), Event::PeerUp { .. }));
    assert!(matches!(block_on(there.next_event()), Event::Notif { bytes, .. } if bytes == b"n"));
    let xfer = peer.read(&l, &r).post().unwrap();
    let done = loop {
        if let Some(outcome) = xfer.poll() {
            break outcome.unwrap();
        }
        std::thread::yield_now();
    };
    assert_eq!(done.bytes, 1 << 20);
    assert!(there.wait_event(Duration::ZERO).is_none());
}

#[test]
fn metadata_travels_as_a_blob_too() {
    let (here, mut there) = (agent("here", PathSet::ALL), config("there", PathSet::ALL));
    there.app_metadata = b"layout 7".to_vec();
    let there = Agent::new(there).unwrap();
    let region = region(&there, true, 2, 100);
    let blob = there.metadata();
    let peer = here.add_peer(&blob).unwrap();
    assert_eq!((peer.name(), &peer.app_metadata()[..]), ("there", &b"layout 7"[..]));
    assert_eq!(peer.region("r").unwrap().id, region.id());
    assert_eq!(here.add_peer(&blob).unwrap().incarnation(), there.incarnation());
    let mut other = blob.clone();
    (other[4], other[6]) = (9, 8);
    let error = here.add_peer(&other).unwrap_err();
    assert!(
        matches!(error, Error::VersionMismatch { .. }) && error.to_string().contains("version 8 to 9"),
        "{error}"
    );
    drop((peer, region));
    drop(there);
    while !matches!(here.wait_event(WAIT).expect("the loss in time"), Event::PeerLost { .. }) {}
    let error = here.add_peer(&blob).unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }) && error.is_retryable(), "{error}");
}

#[test]
fn regions_registered_later_are_known_and_closed_ones_are_not() {
    for paths in [PathSet::ALL, PathSet::TCP] {
        let (here, there, peer) = pair(paths);
        peer.sync().unwrap();
        assert!(peer.region("r").is_none());
        let theirs = region(&there, true, 2, 4096);
        let back = there.peers().pop().unwrap();
        back.notify(b"registered").unwrap();
        assert_eq!(next_notif(&here), b"registered");
        let info = peer.region("r").expect("told before the notification");
        let mine = region(&here, true, 1, 4096);
        let whole = |id| DescList::from(Desc::contiguous(id, 0, 4096));
        let (l, r) = (here.prepare(&whole(mine.id())).unwrap(), peer.prepare(&whole(info.id)).unwrap());
        peer.read(&l, &r).post().unwrap().wait(WAIT).unwrap();
        theirs.close().unwrap();
        // Closing waits for those who are inside, not until every peer has heard of it.
        peer.sync().unwrap();
        assert!(peer.region("r").is_none());
        let error = peer.read(&l, &r).post().unwrap_err();
        assert!(matches!(error, Error::RegionClosed { .. }), "{error}");
        assert!(matches!(peer.prepare(&whole(info.id)), Err(Error::BadList { side: "remote", .. })));
        mine.close().unwrap();
        assert!(matches!(here.prepare(&whole(mine.id())), Err(Error::BadList { side: "local", .. })));
    }
}

#[test]
fn two_agents_that_connect_to_each_other_at_once_become_one_pair() {
    for _ in 0..20 {
        let (a, b) = (agent("a", PathSet::ALL), agent("b", PathSet::ALL));
        let (to_a, to_b) = (a.address().unwrap(), b.address().unwrap());
        let (a2, b2) = (a.clone(), b.clone());
        let one = std::thread::spawn(move || a2.connect(&to_b));
        let two = std::thread::spawn(move || b2.connect(&to_a));
        let (one, two) = (one.join().unwrap().unwrap(), two.join().unwrap().unwrap());
        assert_eq!((one.name(), two.name()), ("b", "a"));
        assert_eq!((a.peers().len(), b.peers().len()), (1, 1));
        one.notify(b"x").unwrap();
        assert_eq!(next_notif(&b), b"x");
        two.notify(b"y").unwrap();
        assert_eq!(next_notif(&a), b"y");
    }
}

#[test]
fn the_path_is_explained() {
    let (here, there, peer) = pair(PathSet::ALL);
    let (mine, theirs) = (region(&here, true, 1, 10), region(&there, false, 2, 10));
    let whole = |id| DescList::from(Desc::contiguous(id, 0, 10));
    let (l, r) = (here.prepare(&whole(mine.id())).unwrap(), peer.prepare(&whole(theirs.id())).unwrap());
    let told = peer.explain(&l, &r).unwrap().to_string();
    assert_eq!(
        told,
        "path: shm (process_vm); not shm: a region of the peer was registered, not allocated by its agent; \
         not tcp: a better path is there"
    );
    let (there, only_tcp) = (agent("there", PathSet::SHM), agent("here", PathSet::TCP));
    let peer = only_tcp.connect(&there.address().unwrap()).unwrap();
    let theirs = there.alloc(10, "r").unwrap();
    there.peers().pop().unwrap().notify(b"").unwrap();
    assert_eq!(next_notif(&only_tcp), b"");
    let r = peer.prepare(&whole(theirs.id()));
    assert_eq!(r.unwrap().path(), Path::Tcp);
}

#[test]
fn many_threads_that_connect_to_one_peer_at_once_share_it() {
    for _ in 0..10 {
        let (here, there) = (agent("here", PathSet::ALL), agent("there", PathSet::ALL));
        let address = there.address().unwrap();
        let connecting: Vec<_> = (0..8)
            .map(|_| {
                let (here, address) = (here.clone(), address.clone());
                std::thread::spawn(move || here.connect(&address))
            })
            .collect();
        for peer in connecting {
            assert!(peer.join().unwrap().unwrap().is_up());
        }
        assert_eq!((here.peers().len(), there.peers().len()), (1, 1));
    }
}

#[test]
fn two_agents_that_flood_each_other_both_get_through() {
    const LEN: usize = 3 << 20;
    const EACH: usize = 120;
    let (here, there, peer) = pair(PathSet::TCP);
    let back = there.peers().pop().unwrap();
    let side = |agent: &Agent, other: &Agent, peer: &Peer, seed| {
        let (mine, theirs) = (region(agent, true, seed, LEN), region(other, true, seed + 1, LEN));
        peer.sync().unwrap();
        // Pieces of 4 KiB, so that every slice has its own list, many at once.
        let pages = |id| DescList::from(Desc::strided(id, 0, 4096, 8192, 384));
        let lists = (agent.prepare(&pages(mine.id())).unwrap(), peer.prepare(&pages(theirs.id())).unwrap());
        (mine, theirs, lists)
    };
    let (mine, source, (l, r)) = side(&here, &there, &peer, 10);
    let (target, origin, (bl, br)) = side(&there, &here, &back, 20);
    let (before_mine, before_target) = (bytes_of(&mine), bytes_of(&target));
    let xfers: Vec<_> = (0..EACH)
        .flat_map(|_| [peer.read(&l, &r).post().unwrap(), back.read(&bl, &br).post().unwrap()])
        .collect();
    for xfer in xfers {
        assert_eq!(xfer.wait(WAIT).unwrap().bytes, 384 * 4096);
    }
    let spans: Vec<_> = (0..384).map(|i| (i * 8192, 4096)).collect();
    assert!(bytes_of(&mine) == expected(&bytes_of(&source), &spans, &before_mine, &spans));
    assert!(bytes_of(&target) == expected(&bytes_of(&origin), &spans, &before_target, &spans));
}

#[test]
fn a_counter_is_raised_once_by_each_transfer_that_is_done() {
    for paths in [PathSet::ALL, PathSet::TCP] {
        let (here, there, peer) = pair(paths);
        let counter = there.counter().unwrap();
        let (mine, theirs) = (here.alloc(1 << 20, "mine").unwrap(), there.alloc(1 << 20, "theirs").unwrap());
        let layer = |id| DescList::from(Desc::strided(id, 0, 128 << 10, 128 << 10, 8));
        let local = here.prepare(&layer(mine.id())).unwrap();
        let remote = peer.prepare(&layer(theirs.id())).unwrap();
        mine.write_at(0, &pattern(3, 1 << 20)).unwrap();
        // The other side waits for the first n layers, and looks at them as they come.
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                for layer in 0..8_u32 {
                    assert!(counter.wait(u64::from(layer + 1), WAIT).unwrap() > u64::from(layer));
                    let at = layer as usize * (128 << 10);
                    let mut seen = vec![0; 128 << 10];
                    theirs.read_at(at, &mut seen).unwrap();
                    assert!(
                        seen[..] == pattern(3, 1 << 20)[at..at + (128 << 10)],
                        "layer {layer} was counted early"
                    );
                }
            });
            for layer in 0..8 {
                let request = peer.write(&local, &remote).select(&[layer], &[layer]).bump(counter.id(), 1);
                request.post().unwrap().wait(WAIT).unwrap();
            }
            reader.join().unwrap();
        });
        assert_eq!(counter.get(), 8);
        // What is not done does not count; a read does.
        theirs.revoke(0, 1).unwrap();
        let stale = peer.write(&local, &remote).bump(counter.id(), 1).post().unwrap().wait(WAIT).unwrap_err();
        assert!(matches!(stale, Error::Stale { .. }), "{stale}");
        let fresh =
            DescList::from(Desc::contiguous(theirs.id(), 0, 1 << 20).at_generation(theirs.generation()));
        let fresh = peer.prepare(&fresh).unwrap();
        peer.read(&local, &fresh).bump(counter.id(), 10).post().unwrap().wait(WAIT).unwrap();
        peer.sync().unwrap();
        assert_eq!(counter.get(), 18);
        let gone = counter.id();
        drop(counter);
        peer.read(&local, &fresh).bump(gone, 1).post().unwrap().wait(WAIT).unwrap();
        peer.sync().unwrap();
    }
}

#[test]
fn a_strict_agent_does_not_fall_back_and_an_explanation_tells_a_rate() {
    let mut strict = config("strict", PathSet::ALL);
    strict.policy = Policy::Strict;
    let (here, there) = (Agent::new(strict).unwrap(), agent("there", PathSet::ALL));
    let peer = here.connect(&there.address().unwrap()).unwrap();
    let (mapped, foreign) = (there.alloc(1 << 20, "a").unwrap(), there.adopt(vec![0; 4096], "f").unwrap());
    let whole = |region: &Region| DescList::from(Desc::contiguous(region.id(), 0, region.len() as u64));
    let refused = peer.prepare(&whole(&foreign)).unwrap_err();
    assert!(matches!(refused, Error::FallbackRefused { .. }), "{refused}");
    assert!(refused.to_string().contains("was registered, not allocated"), "{refused}");

    let mine = here.alloc(1 << 20, "mine").unwrap();
    let (l, r) = (here.prepare(&whole(&mine)).unwrap(), peer.prepare(&whole(&mapped)).unwrap());
    let before = peer.explain(&l, &r).unwrap();
    assert!(before.path == Some(Path::SharedMemory) && before.expected_rate > Some(1 << 20), "{before}");
    let done = peer.read(&l, &r).post().unwrap().wait(WAIT).unwrap();
    let seen = peer.explain(&l, &r).unwrap().expected_rate.unwrap();
    let wanted = f64::from(1_u32 << 20) / done.elapsed.as_secs_f64();
    #[expect(clippy::cast_precision_loss, reason = "compared roughly")]
    let seen = seen as f64;
    assert!((seen / wanted - 1.0).abs() < 0.01, "{seen} of {wanted}");
}
