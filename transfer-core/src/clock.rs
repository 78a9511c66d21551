//! The only reader of the clock.
#![allow(clippy::disallowed_methods, reason = "this is the one place where time is read")]

use std::time::{Duration, Instant, SystemTime};

use transfer_proto::proto::time::Time;

/// Time since the agent was created.
#[derive(Debug)]
pub(crate) struct Clock {
    start: Instant,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self { start: Instant::now() }
    }

    /// Time for the state machines.
    pub(crate) fn now(&self) -> Time {
        Time::at(self.elapsed())
    }

    /// Time since the agent was created. Cost: no syscall (vDSO).
    pub(crate) fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }
}

/// When a wait that begins now has to end.
pub(crate) fn end_of_wait(timeout: Duration) -> Option<Instant> {
    Instant::now().checked_add(timeout)
}

/// How much of a wait is left; `None` when it is over.
pub(crate) fn left(end: Option<Instant>) -> Option<Duration> {
    match end {
        None => Some(Duration::MAX),
        Some(end) => end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()),
    }
}

/// The time of day, for what is compared between processes: the age of a file.
pub(crate) fn wall() -> SystemTime {
    SystemTime::now()
}

/// Waits until something is so that nobody tells of, at most `timeout`; says whether it came to be. First without
/// sleeping, since it takes microseconds as a rule, then in steps of 50 µs.
pub(crate) fn wait_until(timeout: Duration, mut is_so: impl FnMut() -> bool) -> bool {
    const SPINS: u32 = 200;
    if (0..SPINS).any(|_| {
        is_so() || {
            std::hint::spin_loop();
            false
        }
    }) {
        return true;
    }
    let end = end_of_wait(timeout);
    while left(end).is_some() {
        if is_so() {
            return true;
        }
        std::thread::sleep(Duration::from_micros(50));
    }
    is_so()
}
