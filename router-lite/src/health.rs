//! The health of one worker: a state machine that is told what happened and when, and says when to look again.
//! It reads no clock and opens no connection.
//!
//! A worker starts as [`State::Unknown`] and is tried like any other when nothing better is known. A passed check
//! brings it up. Failed checks bring it down after `down_after` in a row; a refused connection of a real request
//! does so at once, because nobody is listening there. What is not up is looked at again after the short
//! `recheck` interval, so a worker that starts late, or comes back, is found soon.

use std::time::{Duration, Instant};

/// What is known of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum State {
    /// Never heard of: not checked yet.
    Unknown,
    /// Its last checks passed.
    Up,
    /// Its last checks failed, or it refused a connection.
    Down,
}

impl State {
    /// The word used in `/workers` and in logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Up => "up",
            Self::Down => "down",
        }
    }
}

/// How quick to believe good and bad news.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Policy {
    /// Time between checks of a worker that is up.
    pub interval: Duration,
    /// Time between checks of one that is not.
    pub recheck: Duration,
    /// Failed checks in a row that bring a worker down.
    pub down_after: u32,
    /// Passed checks in a row that bring it up again.
    pub up_after: u32,
}

impl Policy {
    /// A policy of these four values.
    #[must_use]
    pub fn new(interval: Duration, recheck: Duration, down_after: u32, up_after: u32) -> Self {
        Self { interval, recheck, down_after, up_after }
    }
}

/// News of a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum News {
    /// An active check passed.
    Passed,
    /// An active check failed, for this reason.
    Failed(String),
    /// A request could not connect, for this reason.
    Refused(String),
}

/// The health of one worker.
#[derive(Clone, Debug)]
pub struct Health {
    policy: Policy,
    state: State,
    since: Instant,
    /// Checks in a row that speak against the present state.
    against: u32,
    next_check: Instant,
    last_error: Option<String>,
}

impl Health {
    /// An unknown worker, to be checked at once.
    #[must_use]
    pub fn new(policy: Policy, now: Instant) -> Self {
        Self { policy, state: State::Unknown, since: now, against: 0, next_check: now, last_error: None }
    }

    /// What is known.
    #[must_use]
    pub fn state(&self) -> State {
        self.state
    }

    /// When it came to be known.
    #[must_use]
    pub fn since(&self) -> Instant {
        self.since
    }

    /// When to check next.
    #[must_use]
    pub fn next_check(&self) -> Instant {
        self.next_check
    }

    /// What failed last; kept after the worker is up again.
    #[must_use]
    pub fn last_error(&self) -> Option<&str> {
        self.last_error.as_deref()
    }

    /// Takes in news; says whether the state changed.
    pub fn handle(&mut self, now: Instant, news: News) -> bool {
        let before = self.state;
        match news {
            News::Passed => self.speaks_for(State::Up, self.policy.up_after, now),
            News::Failed(reason) => {
                self.last_error = Some(reason);
                self.speaks_for(State::Down, self.policy.down_after, now);
            }
            News::Refused(reason) => {
                self.last_error = Some(reason);
                self.speaks_for(State::Down, 1, now);
            }
        }
        let pause = if self.state == State::Up { self.policy.interval } else { self.policy.recheck };
        self.next_check = now + pause;
        before != self.state
    }

    fn speaks_for(&mut self, state: State, needed: u32, now: Instant) {
        if self.state == state {
            self.against = 0;
            return;
        }
        self.against += 1;
        // An unknown worker has no history that a single check would have to outweigh.
        if self.against >= needed || self.state == State::Unknown {
            self.state = state;
            self.since = now;
            self.against = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[expect(clippy::disallowed_methods, reason = "any moment will do as the start of a test")]
    fn start() -> Instant {
        Instant::now()
    }

    const SECOND: Duration = Duration::from_secs(1);

    fn health(now: Instant) -> Health {
        Health::new(Policy::new(4 * SECOND, SECOND, 3, 2), now)
    }

    fn failed() -> News {
        News::Failed("GET /health answered 503".to_owned())
    }

    #[test]
    fn one_check_decides_about_an_unknown_worker() {
        let now = start();
        let (mut good, mut bad) = (health(now), health(now));
        assert_eq!((good.state(), good.next_check()), (State::Unknown, now));
        assert!(good.handle(now, News::Passed));
        assert!(bad.handle(now, failed()));
        assert_eq!((good.state(), good.next_check()), (State::Up, now + 4 * SECOND));
        assert_eq!((bad.state(), bad.next_check()), (State::Down, now + SECOND));
    }

    #[test]
    fn failures_must_come_in_a_row() {
        let now = start();
        let mut h = health(now);
        h.handle(now, News::Passed);
        for _ in 0..5 {
            assert!(!h.handle(now, failed()));
            assert!(!h.handle(now, failed()));
            assert!(!h.handle(now, News::Passed));
        }
        assert!(!h.handle(now, failed()));
        assert!(!h.handle(now, failed()));
        assert!(h.handle(now + SECOND, failed()));
        assert_eq!((h.state(), h.since()), (State::Down, now + SECOND));
        assert!(!h.handle(now, News::Passed));
        assert!(h.handle(now, News::Passed));
        assert_eq!(h.last_error(), Some("GET /health answered 503"));
    }

    #[test]
    fn a_refused_connection_brings_it_down_at_once() {
        let now = start();
        let mut h = health(now);
        h.handle(now, News::Passed);
        assert!(h.handle(now, News::Refused("connection refused".to_owned())));
        assert_eq!(h.state(), State::Down);
    }

    proptest! {
        /// The state is what the last `down_after` or `up_after` equal pieces of news say, and a check is always due.
        #[test]
        fn follows_runs_of_equal_news(news in proptest::collection::vec(0..3u8, 0..60)) {
            let now = start();
            let mut h = health(now);
            let mut expected = State::Unknown;
            let (mut passes, mut fails) = (0, 0);
            for n in news {
                match n {
                    0 => { passes += 1; fails = 0; h.handle(now, News::Passed); }
                    1 => { fails += 1; passes = 0; h.handle(now, failed()); }
                    _ => { fails = 3; passes = 0; h.handle(now, News::Refused("no".to_owned())); }
                }
                if passes >= 2 || (expected == State::Unknown && passes == 1) { expected = State::Up; }
                if fails >= 3 || (expected == State::Unknown && fails >= 1) { expected = State::Down; }
                prop_assert_eq!(h.state(), expected);
                prop_assert!(h.next_check() > now && h.next_check() <= now + 4 * SECOND);
            }
        }
    }
}
