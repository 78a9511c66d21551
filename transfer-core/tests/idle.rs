//! What an agent costs that has nothing to do.
#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    missing_docs,
    reason = "a test"
)]

mod support;

use std::time::{Duration, Instant};

use support::{WAIT, config};
use transfer_core::{Agent, Desc, DescList, PathSet};

/// A transfer for which further threads are started.
const MUCH: usize = 64 << 20;

/// CPU time of all threads of this process.
fn cpu() -> Duration {
    let of = |task: std::io::Result<std::fs::DirEntry>| -> u64 {
        let stat = std::fs::read_to_string(task.unwrap().path().join("schedstat")).unwrap_or_default();
        stat.split(' ').next().and_then(|nanos| nanos.parse().ok()).unwrap_or(0)
    };
    Duration::from_nanos(std::fs::read_dir("/proc/self/task").unwrap().map(of).sum())
}

/// Two agents that have met and moved data, a little and much, with and without a window of busy polling, then do nothing
/// but hear each other's heartbeats. CPU time does not grow with what else runs on the machine, so it can be compared.
#[test]
fn an_idle_agent_uses_no_cpu() {
    for busy_poll in [Duration::ZERO, Duration::from_millis(1)] {
        let agent = |name| {
            let mut config = config(name, PathSet::TCP);
            config.busy_poll = busy_poll;
            Agent::new(config).unwrap()
        };
        let (here, there) = (agent("here"), agent("there"));
        let peer = here.connect(&there.address().unwrap()).unwrap();
        let (mine, theirs) = (here.alloc(MUCH, "mine").unwrap(), there.alloc(MUCH, "theirs").unwrap());
        let lists = |len| {
            let list = |id| DescList::from(Desc::contiguous(id, 0, len));
            (here.prepare(&list(mine.id())).unwrap(), peer.prepare(&list(theirs.id())).unwrap())
        };
        let (local, remote) = lists(MUCH as u64);
        peer.read(&local, &remote).post().unwrap().wait(WAIT).unwrap();
        let (local, remote) = lists(4096);
        for _ in 0..10 {
            peer.read(&local, &remote).post().unwrap().wait(WAIT).unwrap();
            let polled = peer.write(&local, &remote).post().unwrap();
            let from = Instant::now();
            while polled.poll().is_none() {
                assert!(from.elapsed() < WAIT);
                std::thread::yield_now();
            }
        }
        std::thread::sleep(Duration::from_millis(100));
        let (before, from) = (cpu(), Instant::now());
        std::thread::sleep(Duration::from_secs(4));
        let (used, passed) = (cpu() - before, from.elapsed());
        // A tenth of a percent for each of the two.
        assert!(used < passed / 500, "{used:?} in {passed:?}");
        assert!(peer.is_up());
    }
}
