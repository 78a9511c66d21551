//! Threads that carry bulk.
//!
//! One thread copies into and out of sockets slower than a machine can, so connections on which much moves are lent to
//! carriers, each to one; what comes and goes there from then on is theirs, until it has been quiet for a while. Heads
//! and small slices on all others stay on the driver's thread, where they take no detour. A carrier moves bytes and
//! takes a note of what has completed ([`Report`]); everything else is decided by the driver.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rustc_hash::FxHashMap;
use transfer_sys::poll::Epoll;
use transfer_sys::{OsError, OsResult};

use super::conn::Conn;
use super::line::Line;
use crate::backend::Completion;
use crate::shared::Shared;
use crate::sync::Wake;

/// A connection on which nothing has moved for this long goes back to the driver.
const QUIET: Duration = Duration::from_millis(1);
/// Connections have the tokens of the driver, which are never that.
const WAKE: u64 = u64::MAX;

/// Carriers and the driver have this in common.
struct Common {
    agent: Arc<Shared>,
    /// Where the driver watches what it has not lent.
    home: Arc<Epoll>,
    /// Connections with a report.
    told: Mutex<Vec<u64>>,
    ending: AtomicBool,
    /// A carrier has ended that should not.
    broken: AtomicBool,
}

/// One of them.
struct Carrier {
    common: Arc<Common>,
    epoll: Epoll,
    wake: Wake,
    /// The connections that were lent to it, by token.
    lines: Mutex<FxHashMap<u64, Arc<Line>>>,
}

/// All of an agent's. They are started when they are needed for the first time, and end when this is dropped; then
/// nothing touches memory any more.
pub(super) struct Carriers {
    common: Arc<Common>,
    carriers: Vec<(Arc<Carrier>, JoinHandle<()>)>,
    max: usize,
}

impl Carriers {
    pub(super) fn new(agent: Arc<Shared>, home: Arc<Epoll>) -> Self {
        let max = agent.config.tcp_threads();
        let (told, ending, broken) = (Mutex::default(), AtomicBool::new(false), AtomicBool::new(false));
        let common = Arc::new(Common { agent, home, told, ending, broken });
        Self { common, carriers: Vec::new(), max }
    }

    /// Whether a connection is to be lent.
    pub(super) fn want(&self, conn: &Conn) -> bool {
        self.max > 0 && conn.is_bulky()
    }

    /// Lends a connection that the caller has locked, and watches it there for what it is to be watched for. Where that
    /// is not possible it stays with the driver.
    pub(super) fn lend(&mut self, line: &Arc<Line>, conn: &mut Conn) -> OsResult<()> {
        let Some(at) = self.least_busy() else { return Ok(()) };
        let carrier = &self.carriers[at].0;
        self.common.home.remove(conn.stream().as_fd())?;
        carrier.lines().insert(line.token, Arc::clone(line));
        line.lend(at);
        carrier.epoll.add(conn.stream().as_fd(), line.token, conn.watched.0, conn.watched.1)
    }

    /// Who carries fewest connections, a new one if all carry some.
    fn least_busy(&mut self) -> Option<usize> {
        let counts = self.carriers.iter().map(|(carrier, _)| carrier.lines().len());
        let least = counts.enumerate().min_by_key(|(_, count)| *count);
        if self.carriers.len() < self.max && least.is_none_or(|(_, count)| count > 0) {
            match self.start() {
                Ok(()) => return Some(self.carriers.len() - 1),
                Err(error) => {
                    tracing::warn!(%error, "cannot start a thread; those that run carry everything");
                    self.max = self.carriers.len();
                }
            }
        }
        least.map(|(at, _)| at)
    }

    fn start(&mut self) -> OsResult<()> {
        let (epoll, wake) = (Epoll::new()?, Wake::new()?);
        epoll.add_edge(wake.as_fd(), WAKE)?;
        let common = Arc::clone(&self.common);
        let carrier = Arc::new(Carrier { common, epoll, wake, lines: Mutex::default() });
        let name = format!("{}-tcp", self.common.agent.config.name);
        let run = {
            let carrier = Arc::clone(&carrier);
            move || carrier.run()
        };
        let thread = std::thread::Builder::new().name(name.clone()).spawn(run);
        self.carriers.push((carrier, thread.map_err(|e| OsError::from_io("pthread_create", name, &e))?));
        Ok(())
    }

    /// Where a connection is watched that the caller has locked.
    pub(super) fn epoll_of(&self, line: &Line) -> &Epoll {
        line.carrier().map_or(&self.common.home, |at| &self.carriers[at].0.epoll)
    }

    /// Tells a carrier that something lies in an inbox. Cost: a syscall where it sleeps.
    pub(super) fn call(&self, carrier: usize) {
        self.carriers[carrier].0.wake.set();
    }

    /// The connections that have a report.
    pub(super) fn take_told(&self, told: &mut Vec<u64>) {
        if !self.carriers.is_empty() {
            std::mem::swap(&mut *self.common.told(), told);
        }
    }

    /// Whether a carrier has ended by a fault.
    pub(super) fn is_broken(&self) -> bool {
        self.common.broken.load(Ordering::Acquire)
    }
}

impl Drop for Carriers {
    fn drop(&mut self) {
        self.common.ending.store(true, Ordering::Release);
        self.carriers.iter().for_each(|(carrier, _)| carrier.wake.set());
        for (_, thread) in self.carriers.drain(..) {
            // A panic there was told on its own thread.
            let _ended = thread.join();
        }
    }
}

impl Common {
    fn told(&self) -> MutexGuard<'_, Vec<u64>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_ending(&self) -> bool {
        self.ending.load(Ordering::Acquire)
    }
}

/// Tells the driver when a carrier ends, however it does.
struct Watchdog<'a>(&'a Common);

impl Drop for Watchdog<'_> {
    fn drop(&mut self) {
        if !self.0.is_ending() {
            self.0.broken.store(true, Ordering::Release);
            self.0.agent.wake.set();
        }
    }
}

/// What a carrier has in its hands, kept for the memory.
#[derive(Default)]
struct Work {
    done: Vec<Completion>,
    mail: Vec<Arc<Line>>,
}

impl Carrier {
    fn lines(&self) -> MutexGuard<'_, FxHashMap<u64, Arc<Line>>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the thread does. It sleeps for as long as it carries nothing.
    fn run(&self) {
        let _watchdog = Watchdog(&self.common);
        let clock = &self.common.agent.clock;
        let (mut ready, mut work) = (Vec::new(), Work::default());
        let mut looked = clock.now();
        while !self.common.is_ending() {
            let timeout = if !self.wake.sleep() {
                Some(Duration::ZERO)
            } else if self.lines().is_empty() {
                None
            } else {
                Some(QUIET)
            };
            if let Err(error) = self.epoll.wait(timeout, &mut ready) {
                tracing::error!(%error, "a carrier cannot wait; the agent ends");
                return;
            }
            self.wake.answer();
            for ready in ready.drain(..) {
                let line = self.lines().get(&ready.token).cloned();
                line.into_iter().for_each(|line| self.carry(&line, ready.readable, &mut work.done));
            }
            work.mail.extend(self.lines().values().filter(|line| line.has_mail()).cloned());
            work.mail.drain(..).for_each(|line| self.carry(&line, false, &mut work.done));
            if clock.now().after(looked) >= QUIET {
                looked = clock.now();
                self.return_quiet();
            }
        }
    }

    /// A turn on one connection.
    fn carry(&self, line: &Line, readable: bool, done: &mut Vec<Completion>) {
        let mut guard = line.carry();
        let Some(conn) = guard.as_mut() else { return };
        let agent = &self.common.agent;
        let result = conn.turn(readable, &agent.regions, done, agent.clock.now());
        let result = result.and_then(|moved| conn.watch(&self.epoll, line.token).map(|()| moved));
        let mut report = line.report();
        report.done.append(done);
        report.freed.extend(conn.take_freed());
        let news = !report.done.is_empty() || !report.freed.is_empty() || result.is_err();
        match result {
            Ok(moved) => report.moved |= moved > 0,
            Err(error) => {
                // The driver ends it; until then nobody looks at it.
                let _unwatched = self.epoll.remove(conn.stream().as_fd());
                report.error = Some(error);
            }
        }
        drop(report);
        let mut told = self.common.told();
        if !told.contains(&line.token) {
            told.push(line.token);
        }
        drop(told);
        drop(guard);
        if news {
            agent.wake.set();
        }
    }

    /// Gives back what is quiet, and lets go of what is over.
    fn return_quiet(&self) {
        let now = self.common.agent.clock.now();
        self.lines().retain(|token, line| {
            // The driver has it just now, so it is not quiet.
            let Some(mut guard) = line.try_carry() else { return true };
            let Some(conn) = guard.as_mut() else { return false };
            if !conn.is_quiet(now, QUIET) || !line.take_back() {
                return true;
            }
            let (home, (readable, writable)) = (&self.common.home, conn.wanted());
            conn.watched = (readable, writable);
            let fd = conn.stream().as_fd();
            let moved = self.epoll.remove(fd).and_then(|()| home.add(fd, *token, readable, writable));
            if let Err(error) = moved {
                line.report().error = Some(error.into());
                self.common.told().push(*token);
                self.common.agent.wake.set();
            }
            false
        });
    }
}
