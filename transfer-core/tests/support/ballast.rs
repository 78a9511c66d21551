//! A table of file descriptors that is full but for a chosen number of places, and an agent that has to do with it.

#![allow(dead_code, reason = "each test binary uses its own part")]

use std::fs::File;
use std::time::{Duration, Instant};

use transfer_core::{Address, Agent, Desc, DescList, Error, LinkError, Path, PathSet, ProtocolError};

use crate::support::{WAIT, bytes_of, config, pattern};

/// Too many open files (open(2)).
const EMFILE: i32 = 24;
/// No call needs as many places.
const ROOM_MAX: usize = 40;

/// What takes the places.
pub struct Ballast(Vec<File>);

impl Ballast {
    /// Takes all but so many.
    pub fn leave(room: usize) -> Self {
        let mut files = Vec::new();
        loop {
            match File::open("/dev/null") {
                Ok(file) => files.push(file),
                Err(error) if error.raw_os_error() == Some(EMFILE) => break,
                Err(error) => panic!("{error}"),
            }
        }
        files.truncate(files.len() - room);
        Self(files)
    }
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Tries with one place more each time. How often that was refused, leaving nothing behind but what is `kept`, and what
/// it gave.
fn stepwise<T>(what: &str, kept: usize, mut attempt: impl FnMut() -> Result<T, Error>) -> (usize, T) {
    let before = descriptors() + kept;
    for room in 0..ROOM_MAX {
        let ballast = Ballast::leave(room);
        let from = Instant::now();
        let outcome = attempt();
        drop(ballast);
        match outcome {
            Ok(it) => return (room, it),
            Err(error) => {
                assert!(is_shortage(&error), "{what} with room for {room}: {error}");
                while descriptors() > before {
                    assert!(from.elapsed() < WAIT, "{what} with room for {room} left something behind");
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        }
    }
    panic!("{what} fails with room for {ROOM_MAX}")
}

/// What a full table is told as, here or as somebody else's refusal that came of it.
fn is_shortage(error: &Error) -> bool {
    match error {
        Error::Os(os) => os.errno == EMFILE,
        Error::Unreachable { cause, .. } => cause.contains("Too many open files"),
        // The peer sees a connection end, and may be the first to tell.
        Error::Protocol { source: ProtocolError::Link(LinkError::Farewell { .. }), .. } => true,
        _ => false,
    }
}

/// Everything that takes a descriptor, with too few and then with enough of them. Tells how often each was refused.
pub fn live_short_of_descriptors(address: &Address) -> String {
    let (news, agent) = stepwise("creating an agent", 0, || Agent::new(config("short", PathSet::ALL)));
    // A process that has been let in is watched until it ends.
    let (connects, peer) = stepwise("connecting", 1, || agent.connect(address));
    let (allocs, mine) = stepwise("allocating", 0, || agent.alloc(4096, "mine"));
    let list = |id| DescList::from(Desc::contiguous(id, 0, 4096));
    let theirs = peer.region("target").unwrap();
    let (maps, remote) = stepwise("mapping", 0, || peer.prepare(&list(theirs.id)));
    // Nothing was silently done without.
    assert_eq!(remote.path(), Path::SharedMemory);
    let (signals, ()) = stepwise("an event descriptor", 0, || agent.event_fd().map(|_| ()));
    let local = agent.prepare(&list(mine.id())).unwrap();
    peer.read(&local, &remote).post().unwrap().wait(WAIT).unwrap();
    assert!(bytes_of(&mine) == pattern(7, 4096));
    // Data that moves needs no further descriptor.
    let _ballast = Ballast::leave(0);
    peer.write(&local, &remote).notify(b"written").post().unwrap().wait(WAIT).unwrap();
    format!("{news} {connects} {allocs} {maps} {signals}")
}
