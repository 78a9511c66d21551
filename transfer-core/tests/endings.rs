//! Every way to wait for a transfer, and every way for it to end, at any moment of its life.
#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    missing_docs,
    reason = "a test"
)]

mod support;

use std::fs::File;
use std::io::Read;
use std::pin::pin;
use std::sync::mpsc;
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use support::{WAIT, agent, bytes_of, pattern};
use transfer_core::{
    Agent, Desc, DescList, Error, Event, LocalList, Path, PathSet, Peer, Region, RemoteList, Request,
};
use transfer_sys::poll::Epoll;

const LEN: usize = 8 << 20;

struct Ends {
    here: Agent,
    there: Agent,
    peer: Peer,
    mine: Region,
    theirs: Region,
    local: LocalList,
    remote: RemoteList,
    /// A little to move besides.
    aside: (LocalList, RemoteList),
    _aside: [Region; 2],
}

impl Ends {
    fn new(path: Path, len: usize) -> Self {
        let paths = if path == Path::Tcp { PathSet::TCP } else { PathSet::SHM };
        let (here, there) = (agent("here", paths), agent("there", paths));
        let peer = here.connect(&there.address().unwrap()).unwrap();
        let mine = here.alloc(len, "mine").unwrap();
        let theirs = match path {
            Path::ProcessMemory => there.adopt(vec![0; len], "theirs").unwrap(),
            _ => there.alloc(len, "theirs").unwrap(),
        };
        let whole = |id| DescList::from(Desc::contiguous(id, 0, len as u64));
        let local = here.prepare(&whole(mine.id())).unwrap();
        let remote = peer.prepare(&whole(theirs.id())).unwrap();
        assert_eq!(remote.path(), path);
        let _aside = [here.alloc(4096, "aside").unwrap(), there.alloc(4096, "aside").unwrap()];
        let page = |region: &Region| DescList::from(Desc::contiguous(region.id(), 0, 4096));
        let aside = (here.prepare(&page(&_aside[0])).unwrap(), peer.prepare(&page(&_aside[1])).unwrap());
        Self { here, there, peer, mine, theirs, local, remote, aside, _aside }
    }

    /// The one of several requests that a seed stands for.
    fn request(&self, write: bool) -> Request {
        if write {
            self.peer.write(&self.local, &self.remote)
        } else {
            self.peer.read(&self.local, &self.remote)
        }
    }
}

/// Lets some moments of a transfer's life pass: none, before anybody has seen it, up to more than it takes.
fn moments(seed: u64) {
    let from = Instant::now();
    let wanted =
        Duration::from_micros([0, 1, 5, 30, 100, 300, 1000, 5000][usize::try_from(seed % 8).unwrap()]);
    while from.elapsed() < wanted {
        std::hint::spin_loop();
    }
}

/// Whoever was told that it is over may use the buffers, on both sides: nothing of the transfer comes after, also not
/// with what is moved next.
fn left_alone(ends: &Ends) {
    const PART: usize = 1 << 16;
    let buffers = [&ends.mine, &ends.theirs];
    for buffer in buffers {
        for offset in [0, LEN - PART] {
            buffer.write_at(offset, &[0xA5; PART]).unwrap();
        }
    }
    let next = ends.peer.read(&ends.aside.0, &ends.aside.1).post().and_then(|xfer| xfer.wait(WAIT));
    assert!(next.is_ok() || !ends.peer.is_up(), "{next:?}");
    for buffer in buffers {
        for offset in [0, LEN - PART] {
            let mut out = vec![0; PART];
            buffer.read_at(offset, &mut out).unwrap();
            assert!(out.iter().all(|&byte| byte == 0xA5), "written after the end");
        }
    }
}

#[test]
fn cancelled_at_any_moment_it_ends_once_and_leaves_the_buffer_alone() {
    for path in Path::ALL {
        let ends = Ends::new(path, LEN);
        for seed in 0..96 {
            let is_write = seed % 16 >= 8;
            let xfer = ends.request(is_write).post().unwrap();
            moments(seed);
            if seed % 3 == 0 {
                drop(xfer);
            } else {
                xfer.cancel();
                let outcome = xfer.wait(WAIT);
                let is_end = matches!(outcome, Ok(_) | Err(Error::Cancelled));
                assert!(is_end, "{path} {seed}, write: {is_write}: {outcome:?}");
                assert_eq!(format!("{outcome:?}"), format!("{:?}", xfer.wait(WAIT)), "told once");
            }
            left_alone(&ends);
            assert!(ends.peer.is_up(), "{path} {seed}: a cancelled transfer took the peer with it");
        }
        // The way is still there, and whole.
        ends.theirs.write_at(0, &pattern(7, LEN)).unwrap();
        ends.peer.read(&ends.local, &ends.remote).post().unwrap().wait(WAIT).unwrap();
        assert!(bytes_of(&ends.mine) == pattern(7, LEN), "{path}");
    }
}

#[test]
fn overtaken_by_its_deadline_at_any_moment_it_ends_and_leaves_the_buffer_alone() {
    for path in Path::ALL {
        let mut ends = Ends::new(path, LEN);
        for seed in 0..48_u64 {
            // Epoll counts in milliseconds.
            let timeout = Duration::from_micros([0, 100, 1000, 2000, 3000, 8000][(seed % 6) as usize]);
            match ends.request(seed % 12 >= 6).timeout(timeout).post().and_then(|xfer| xfer.wait(WAIT)) {
                Ok(_) => {}
                Err(error @ Error::Deadline { .. }) => assert!(error.is_retryable()),
                // A request that was half sent takes its connection with it.
                Err(error @ (Error::PeerLost { .. } | Error::TransferFailed { .. })) if path == Path::Tcp => {
                    assert!(error.is_retryable());
                }
                Err(error) => panic!("{path} {seed}: {error}"),
            }
            left_alone(&ends);
            if !ends.peer.is_up() {
                ends = Ends::new(path, LEN);
            }
        }
    }
}

#[test]
fn a_callback_is_called_once_and_may_wait_itself() {
    for path in Path::ALL {
        for len in [4096, LEN] {
            let ends = Ends::new(path, len);
            let (tell, told) = mpsc::channel();
            let post = || ends.peer.read(&ends.local, &ends.remote).post().unwrap();
            let (first, second) = (post(), post());
            let other = tell.clone();
            first.on_done(move |outcome| {
                // Nobody holds anything here that this needs.
                second.wait(WAIT).unwrap();
                drop(second);
                other.send(outcome.unwrap().bytes).unwrap();
            });
            assert_eq!(told.recv_timeout(WAIT).unwrap(), len as u64);
            first.on_done(move |outcome| tell.send(outcome.unwrap().bytes + 1).unwrap());
            assert_eq!(told.recv_timeout(WAIT).unwrap(), len as u64 + 1, "late, and called at once");
            let panics = post();
            panics.on_done(|_| panic!("the application's fault"));
            panics.wait(WAIT).unwrap();
            post().wait(WAIT).unwrap();
            assert!(told.try_recv().is_err());
        }
    }
}

#[test]
fn a_descriptor_tells_of_events_and_ends() {
    let ends = Ends::new(Path::Tcp, 4096);
    let fd = ends.here.event_fd().unwrap();
    let epoll = Epoll::new().unwrap();
    epoll.add(fd, 1, true, false).unwrap();
    let mut word = File::from(fd.try_clone_to_owned().unwrap());
    let mut sign = || {
        let mut ready = Vec::new();
        epoll.wait(Some(WAIT), &mut ready).unwrap();
        assert_eq!(ready.len(), 1, "a sign in time");
        word.read_exact(&mut [0; 8]).unwrap();
    };
    // What was there before anybody asked.
    sign();
    assert!(matches!(ends.here.poll_event(), Some(Event::PeerUp { .. })));
    let posted = ends.peer.read(&ends.local, &ends.remote).post().unwrap();
    while posted.poll().is_none() {
        sign();
    }
    let counter = ends.here.counter().unwrap();
    let back = ends.there.peers().remove(0);
    let (from, into) = (ends.theirs.id(), ends.mine.id());
    let list = |region| DescList::from(Desc::contiguous(region, 0, 8));
    let (local, remote) = (ends.there.prepare(&list(from)).unwrap(), back.prepare(&list(into)).unwrap());
    back.write(&local, &remote).bump(counter.id(), 1).post().unwrap().wait(WAIT).unwrap();
    while counter.get() == 0 {
        sign();
    }
    ends.peer.disconnect();
    while !matches!(ends.here.poll_event(), Some(Event::PeerLost { .. })) {
        sign();
    }
}

#[test]
fn many_threads_wait_poll_and_look_at_once() {
    let ends = Ends::new(Path::Tcp, 1 << 16);
    std::thread::scope(|scope| {
        for thread in 0..6 {
            let ends = &ends;
            scope.spawn(move || {
                for round in 0..60 {
                    let mut xfer = ends.peer.write(&ends.local, &ends.remote).post().unwrap();
                    match (thread + round) % 3 {
                        0 => drop(xfer.wait(WAIT).unwrap()),
                        1 => {
                            while xfer.poll().is_none() {
                                std::thread::yield_now();
                            }
                        }
                        _ => {
                            let mut context = Context::from_waker(Waker::noop());
                            while pin!(&mut xfer).poll(&mut context).is_pending() {
                                std::thread::yield_now();
                            }
                        }
                    }
                }
            });
        }
    });
}
