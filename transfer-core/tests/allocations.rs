//! In steady state a transfer allocates nothing, in any thread of either side, on any path.
#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    missing_docs,
    reason = "a test"
)]
#![allow(unsafe_code, reason = "counts what the allocator is asked for")]

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use support::{WAIT, bytes_of, config, pattern};
use transfer_core::{Agent, Desc, DescList, LocalList, Path, PathSet, Peer, Region, RemoteList, Request};

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: S1. Everything is left to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as for this function.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as for this function.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, len: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as for this function.
        unsafe { System.realloc(at, layout, len) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

const PAGE: usize = 4096;
/// More than is copied within the posting call, and several slices.
const PAGES: usize = 1024;
const WINDOWS: usize = 4;

struct Case {
    peer: Peer,
    local: LocalList,
    remote: RemoteList,
    mine: Region,
    theirs: Region,
    _agents: [Agent; 2],
}

fn case(path: Path) -> Case {
    let agent = |name| {
        let paths = if path == Path::Tcp { PathSet::TCP } else { PathSet::SHM };
        let mut config = config(name, paths);
        // No heartbeat while it is counted.
        config.peer_timeout = Duration::from_secs(3600);
        Agent::new(config).unwrap()
    };
    let (here, there) = (agent("here"), agent("there"));
    let peer = here.connect(&there.address().unwrap()).unwrap();
    let mine = here.alloc(PAGES * PAGE, "mine").unwrap();
    let theirs = match path {
        Path::ProcessMemory => there.adopt(vec![0; PAGES * PAGE], "theirs").unwrap(),
        _ => there.alloc(PAGES * PAGE, "theirs").unwrap(),
    };
    // In an order in which no two lie together.
    let pages =
        |step: usize| (0..PAGES).map(|i| u32::try_from(i * step % PAGES).unwrap()).collect::<Vec<_>>();
    let list = |id, step| DescList::from(Desc::paged(id, 0, PAGE as u64, PAGE as u64, pages(step)));
    let local = here.prepare(&list(mine.id(), 3)).unwrap();
    let remote = peer.prepare(&list(theirs.id(), 5)).unwrap();
    assert_eq!(remote.path(), path);
    Case { peer, local, remote, mine, theirs, _agents: [here, there] }
}

/// Waits now by blocking, now by polling.
fn run(request: Request, block: bool) {
    let xfer = request.post().unwrap();
    let from = Instant::now();
    while !block && xfer.poll().is_none() {
        assert!(from.elapsed() < WAIT);
        std::thread::yield_now();
    }
    xfer.wait(WAIT).unwrap();
}

/// How many 100 transfers take, in all threads.
fn allocations(request: &dyn Fn() -> Request) -> usize {
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    (0..100).for_each(|round| run(request(), round % 2 == 0));
    ALLOCATIONS.load(Ordering::Relaxed) - before
}

/// Afterwards everything that is kept is there: also for a transfer whose predecessor a thread of the agent has not let
/// go of yet, so several are under way at a time.
fn warm_up(request: &dyn Fn() -> Request) {
    for _ in 0..10 {
        let together: Vec<_> = (0..4).map(|_| request().post().unwrap()).collect();
        for xfer in &together {
            xfer.wait(WAIT).unwrap();
        }
    }
    (0..200).for_each(|round| run(request(), round % 2 == 0));
}

#[test]
fn a_transfer_allocates_nothing() {
    for path in Path::ALL {
        let case = case(path);
        let indices: Vec<u32> = (0..50).collect();
        let few = &indices[..2];
        let read = || case.peer.read(&case.local, &case.remote);
        let write = || case.peer.write(&case.local, &case.remote);
        let kinds: [(&str, &dyn Fn() -> Request); 6] = [
            ("whole read", &read),
            ("whole write", &write),
            ("read of many", &|| read().select(&indices, &indices)),
            ("write of many", &|| write().select(&indices, &indices)),
            ("read of few", &|| read().select(few, few)),
            ("write of few", &|| write().select(few, few)),
        ];
        case.theirs.write_at(0, &pattern(1, PAGES * PAGE)).unwrap();
        for (name, request) in kinds {
            warm_up(request);
            // What is kept may have to grow once more for threads that meet in a new way; what a transfer itself
            // allocates would show in every window.
            let windows: Vec<usize> = (0..WINDOWS).map(|_| allocations(request)).collect();
            assert!(windows.contains(&0), "{path} {name}: {windows:?} allocations in 100 transfers each");
        }
        assert_ne!(bytes_of(&case.mine), vec![0; PAGES * PAGE]);
    }
}
