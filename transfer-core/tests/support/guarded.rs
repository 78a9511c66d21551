//! What must not change: bytes around a region, and how much of the system this process holds.

#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::disallowed_methods, reason = "waits with a bound")]

use std::path::PathBuf;
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use transfer_core::{Agent, Region, RegionOptions};
use transfer_sys::copy;
use transfer_sys::memfd::{Memfd, MemfdOptions};

use crate::support::{WAIT, pattern};

/// Bytes in front of a region and behind it.
const GUARD_BYTES: usize = 64 << 10;
const GUARD_SEED: u64 = 0x6A2D;

/// A region with memory around it that nobody has registered. Close it before it is dropped.
pub struct Guarded {
    pub region: Region,
    memory: Memfd,
}

impl Guarded {
    pub fn new(agent: &Agent, len: usize, options: &RegionOptions) -> Self {
        let memory = Memfd::create(&MemfdOptions::new("guarded", len + 2 * GUARD_BYTES)).unwrap();
        let inner = memory.range().sub(GUARD_BYTES, len).unwrap();
        #[allow(unsafe_code, reason = "registers raw memory")]
        // SAFETY: the memory lives as long as the region, which is closed first; there is no reference to it.
        let region =
            unsafe { agent.register_with(NonNull::new(inner.addr()).unwrap(), len, options) }.unwrap();
        let guarded = Self { region, memory };
        for offset in guarded.guards() {
            let guard = guarded.memory.range().sub(offset, GUARD_BYTES).unwrap();
            #[allow(unsafe_code, reason = "fills raw memory")]
            // SAFETY: S1. The memory is `guarded`'s.
            unsafe {
                copy::copy_in(guard, &pattern(GUARD_SEED, GUARD_BYTES));
            }
        }
        guarded
    }

    fn guards(&self) -> [usize; 2] {
        [0, GUARD_BYTES + self.region.len()]
    }

    /// Whether nobody wrote outside the region.
    pub fn holds(&self) -> bool {
        let intact = |offset| {
            let mut out = vec![0; GUARD_BYTES];
            #[allow(unsafe_code, reason = "looks at raw memory")]
            // SAFETY: S1. The memory is `self`'s.
            unsafe {
                copy::copy_out(&mut out, self.memory.range().sub(offset, GUARD_BYTES).unwrap());
            }
            out == pattern(GUARD_SEED, GUARD_BYTES)
        };
        self.guards().into_iter().all(intact)
    }
}

static ALONE: Mutex<()> = Mutex::new(());

/// One test of a binary at a time: what a process holds is counted for all of it.
pub fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What this process holds: file descriptors, threads of agents, mappings of files in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holdings {
    descriptors: usize,
    pub threads: usize,
    mappings: usize,
}

impl Holdings {
    pub fn now() -> Self {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
        // The test harness comes and goes too. An agent's threads are called by its name and what they do.
        let is_agents =
            |name: String| ["-driver", "-copy", "-tcp", "-rail"].iter().any(|what| name.contains(what));
        let name =
            |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        Self {
            descriptors: std::fs::read_dir("/proc/self/fd").unwrap().count(),
            threads: tasks.map(name).filter(|name| is_agents(name.clone())).count(),
            mappings: maps.lines().filter(|line| line.contains("/memfd:")).count(),
        }
    }

    /// The same, of which this many threads have come as far as to have their names.
    pub fn with_threads(threads: usize) -> Self {
        crate::support::until("threads", || Self::now().threads == threads);
        Self::now()
    }

    /// Returns when this process holds no more than that again.
    pub fn come_back(self) {
        let no_more = |now: Self| {
            now.descriptors <= self.descriptors
                && now.threads <= self.threads
                && now.mappings <= self.mappings
        };
        let from = Instant::now();
        while !no_more(Self::now()) {
            let now = Self::now();
            assert!(from.elapsed() < WAIT, "{self:?} were held, and now {now:?}: {:?}", descriptors());
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// What the descriptors of this process lead to.
fn descriptors() -> Vec<PathBuf> {
    let all = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    all.filter_map(|entry| std::fs::read_link(entry.path()).ok()).collect()
}

/// Memory that is in use by this process, in bytes.
pub fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}
