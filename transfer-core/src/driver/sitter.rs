//! Who runs the driver: the thread that waits for a transfer, or else the agent's own.
//!
//! All I/O of an agent is watched by one epoll instance, the inner one. A thread that waits for a transfer takes the
//! lead and sits in epoll_wait(2) on it itself, so that an answer from a peer wakes the very thread that wants it. The
//! agent's own thread, the sitter, watches the inner instance from an outer one. While somebody else leads the outer
//! watch is off; who leaves the lead switches it on again, which costs a syscall and wakes nobody.
//!
//! Where nobody else has led for a while, as in an agent that only serves, the sitter sleeps on the inner instance
//! itself: one wait for each request instead of two. It does not lead meanwhile. Who comes to lead then sleeps beside
//! it, and the first time that the sitter is woken in vain it goes back to the outer one.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use transfer_proto::proto::time::Time;
use transfer_sys::OsResult;
use transfer_sys::poll::{Epoll, EventFd, Ready};

use super::{Driver, GUEST, KICK, WAKE};
use crate::shared::Shared;
use crate::sync::Leading;
use crate::xfer::{XferCore, XferRef};

const INNER: u64 = 0;

/// How long the sitter sleeps where another leads. If it slept for ever, each leader that leaves would have to wake it
/// for whatever is due some day; so only for what is due before this.
const PATIENCE: Duration = Duration::from_millis(10);

/// Where the sitter sleeps.
#[derive(Debug)]
pub(crate) struct Seat {
    pub(crate) inner: Arc<Epoll>,
    outer: Epoll,
    kick: EventFd,
    /// Until when a thread that polls is trusted to come back: the sitter sleeps meanwhile, whatever there is to do.
    /// Written by who leads.
    polled_until: AtomicU64,
}

impl Seat {
    pub(crate) fn new() -> OsResult<Self> {
        let (inner, outer, kick) = (Arc::new(Epoll::new()?), Epoll::new()?, EventFd::new()?);
        outer.add(inner.as_fd(), INNER, true, false)?;
        outer.add_edge(kick.as_fd(), KICK)?;
        inner.add_edge(kick.as_fd(), KICK)?;
        Ok(Self { inner, outer, kick, polled_until: AtomicU64::new(0) })
    }

    /// Whether what becomes ready wakes the sitter.
    fn watch(&self, watched: bool) {
        if let Err(error) = self.outer.modify(self.inner.as_fd(), INNER, watched, false) {
            tracing::error!(%error, "cannot watch the agent's connections");
        }
    }

    /// Wakes the sitter.
    pub(crate) fn kick(&self) {
        self.kick.set();
    }

    /// Until when a thread that polls will have come back, where one is trusted to.
    fn polled(&self, now: Time) -> Option<Time> {
        let until = Time::at(Duration::from_nanos(self.polled_until.load(Ordering::Relaxed)));
        (until > now).then_some(until)
    }

    /// Sleeps until there is something to do.
    fn sleep(&self, place: Place, timeout: Option<Duration>, ready: &mut Vec<Ready>) -> OsResult<()> {
        ready.clear();
        let epoll = match place {
            Place::Inside => &self.inner,
            Place::Outside => &self.outer,
        };
        epoll.wait(timeout, ready)
    }
}

/// Where the sitter sleeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// On the inner instance: what it is woken by, it knows.
    Inside,
    Outside,
}

/// Who leads what.
type Lead<'a> = Leading<'a, Box<Driver>>;

impl Shared {
    /// The agent's own thread: leads whenever there is something to do and nobody else does it, until the agent is
    /// dropped.
    pub(crate) fn sit(&self) {
        let (mut ready, mut place) = (Vec::new(), Place::Outside);
        while !self.lead.is_over() {
            let kicked = ready.iter().any(|ready: &Ready| ready.token == KICK);
            let now = self.clock.now();
            let polled = self.seat.polled(now).filter(|_| !kicked);
            let next = if polled.is_some() {
                self.lead.sit_aside(nanos(polled));
                self.pass_on(place, &ready);
                place = Place::Outside;
                polled
            } else {
                let Some(served) = self.serve(place, &mut ready, now) else { break };
                place = served.1;
                served.0
            };
            let timeout = next.map(|at| at.after(self.clock.now()));
            if let Err(error) = self.seat.sleep(place, timeout, &mut ready) {
                tracing::error!(%error, "the driver cannot wait; the agent ends");
                break;
            }
        }
        // However it came to this: nobody leads any more, and who waits learns it.
        drop(self.lead.put(None));
    }

    /// The sitter looks, where nobody else does, at what has become ready. Returns when it must look again, and where
    /// it sleeps; `None` at the end of the agent.
    fn serve(&self, place: Place, ready: &mut Vec<Ready>, now: Time) -> Option<(Option<Time>, Place)> {
        let patience = Some(self.seat.polled(now).unwrap_or(now + PATIENCE));
        let Some(mut lead) = self.lead.take_or_sit(nanos(patience)) else {
            self.pass_on(place, ready);
            // Who leads is about to leave, or to switch the outer watch off.
            std::thread::yield_now();
            return Some((patience, Place::Outside));
        };
        let served = lead.run(|driver| driver.serve(place, ready))?;
        if lead.run(|driver| driver.shutdown) == Some(true) {
            // What still waits for an end gets it here, and nothing new comes in.
            lead.end().into_iter().for_each(|driver| driver.end());
            return None;
        }
        let ended = lead.run(|driver| std::mem::take(&mut driver.called_back));
        lead.sit(nanos(served.0));
        self.promote();
        call_back(ended);
        Some(served)
    }

    /// What the sitter was woken by is another's to handle. All but what is told once tells of itself again.
    fn pass_on(&self, place: Place, ready: &[Ready]) {
        let told = |token| place == Place::Inside && ready.iter().any(|ready| ready.token == token);
        if told(WAKE) {
            self.wake.repeat();
        }
        if told(GUEST) {
            self.guests.drop_gone();
        }
    }

    /// Leads in the calling thread until `core` has ended or `left` is over. Returns early where another leads;
    /// then it has waited until that one left, or the end came.
    pub(crate) fn drive(&self, core: &XferRef, left: Duration) {
        let until = self.clock.now() + left;
        if self.drive_as_leader(core, until) {
            return;
        }
        self.followers.join(core.clone());
        if !self.drive_as_leader(core, until) {
            core.follow(left);
        }
        self.followers.part(|follower| follower.is(core));
    }

    fn drive_as_leader(&self, core: &XferCore, until: Time) -> bool {
        let Some(mut lead) = self.lead.take() else { return false };
        let led = lead.run(|driver| (driver.drive(core, until), driver.shutdown));
        let (next, over) = led.unwrap_or((None, true));
        self.leave(lead, next);
        // The end is the sitter's.
        !over
    }

    /// Does what can be done without waiting, if nobody else is about it.
    pub(crate) fn drive_once(&self) {
        match self.lead.take() {
            Some(mut lead) => {
                let next = lead.run(|driver| driver.glance());
                self.leave(lead, next.flatten());
            }
            None => self.wanted.store(true, Ordering::Relaxed),
        }
    }

    /// Has the driver look at what was put into its queues: here and now where that is possible and the caller has
    /// time for it, else on whatever thread drives.
    pub(crate) fn look(&self, here: bool) {
        match here.then(|| self.lead.take()).flatten() {
            Some(mut lead) => {
                let next = lead.run(|driver| driver.look());
                self.leave(lead, next.flatten());
            }
            None => self.wake.set(),
        }
    }

    fn leave(&self, mut lead: Lead<'_>, next: Option<Time>) {
        let ended = lead.run(|driver| std::mem::take(&mut driver.called_back));
        if lead.leave(nanos(next)) {
            self.seat.kick();
        }
        self.promote();
        call_back(ended);
    }

    fn promote(&self) {
        if let Some(follower) = self.followers.next() {
            follower.promote();
        }
    }
}

/// Does what the application wants done for transfers that have ended: without the lead, since it may want anything.
fn call_back(ended: Option<Vec<XferRef>>) {
    ended.into_iter().flatten().for_each(|core| core.call_back());
}

/// For [`crate::sync::Lead`], which knows nothing of time.
fn nanos(at: Option<Time>) -> u64 {
    let since_start = at.map(|at| at.after(Time::default()).as_nanos());
    since_start.map_or(u64::MAX, |nanos| u64::try_from(nanos).unwrap_or(u64::MAX))
}

impl Driver {
    /// Turns of the sitter, woken by `ready` where it slept inside. Returns when it must look again, and where it
    /// sleeps.
    fn serve(&mut self, place: Place, ready: &mut Vec<Ready>) -> (Option<Time>, Place) {
        let mut now = match place {
            Place::Inside => self.handle_all(ready),
            Place::Outside => self.turn(Duration::ZERO),
        };
        while !self.shutdown
            && now < self.busy_until
            && !self.is_wanted()
            && self.shared.seat.polled(now).is_none()
        {
            now = self.turn(Duration::ZERO);
        }
        let place = if now.after(self.led_at) > PATIENCE { Place::Inside } else { Place::Outside };
        (self.rest(now), place)
    }

    /// Whether another thread should lead.
    fn is_wanted(&self) -> bool {
        self.shared.wanted.swap(false, Ordering::Relaxed)
            || self.shared.followers.any()
            || !self.called_back.is_empty()
    }

    /// Turns of a thread that waits for a transfer.
    fn drive(&mut self, core: &XferCore, until: Time) -> Option<Time> {
        self.watch_from_outside(false);
        let mut now = self.shared.clock.now();
        while !self.shutdown && !core.has_ended() && self.called_back.is_empty() && now < until {
            now = self.turn(until.after(now));
        }
        self.led_at = now;
        self.rest(now)
    }

    /// A turn of a thread that polls. It will be back, so the sitter need not look before the window is over.
    fn glance(&mut self) -> Option<Time> {
        self.watch_from_outside(false);
        let now = self.turn(Duration::ZERO);
        self.led_at = now;
        self.trust_polling(now);
        self.rest(now)
    }

    /// Work was brought by the thread that leads.
    fn look(&mut self) -> Option<Time> {
        self.shared.wake.answer();
        let now = self.shared.clock.now();
        self.handle_commands(now);
        self.settle(now);
        if self.shared.seat.polled(now).is_some() {
            self.trust_polling(now);
        }
        self.rest(now)
    }

    /// The thread that leads polls, and will be back.
    fn trust_polling(&self, now: Time) {
        let window = self.shared.config.busy_poll.min(PATIENCE);
        let until = nanos(Some(now + window));
        self.shared.seat.polled_until.store(until, Ordering::Relaxed);
    }

    /// Makes sure that nothing is missed while nobody leads. Returns when somebody must look again.
    fn rest(&mut self, now: Time) -> Option<Time> {
        while !self.shutdown && !self.shared.wake.sleep() {
            self.turn(Duration::ZERO);
        }
        let polled = self.shared.seat.polled(now);
        if polled.is_none() {
            self.watch_from_outside(true);
        }
        let next = if self.shutdown { Some(Time::default()) } else { polled.or_else(|| self.next_timeout()) };
        self.expected = next;
        next
    }

    fn watch_from_outside(&mut self, watched: bool) {
        if watched != self.watched {
            self.watched = watched;
            self.shared.seat.watch(watched);
        }
    }
}
