//! The rails to a peer: which stand, which of them carries the next slice, and how both sides give one up.
//!
//! ```text
//!            lost here: the peer is told             the peer says the same
//!    Up ──────────────────────────────────▶ Fencing ──────────────────────▶ Closed ─┐
//!    ▲ └────── the peer says so: closed here too, and said back ─────────────▲      │ after a while, by the
//!    └────────────────────── opened, as the next generation ◀──────── Opening ◀─────┘ side that opens them
//! ```
//!
//! Each side says once of a rail that it is closed at its end: from then on nothing that comes on it lands there.
//! A side that has both said and heard it knows that the rail is gone for good; that is the fence that
//! [`crate::proto::xfer`] waits for. A rail never comes back under its name: what is opened in its place is the
//! next generation.
//!
//! A rail that carries slices without moving is paused: the next slices take others, until it moves again. When it
//! does not, it is given up; so a connection that was cut without a word costs its slices a delay, and nothing
//! else.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::time::Duration;

use crate::id::RailId;
use crate::proto::time::Time;

/// The most rails to one peer.
pub const RAILS_MAX: u32 = 64;
/// A rate is measured over this much of a rail's busy time.
const MEASURED: Duration = Duration::from_millis(1);
/// How often the time before a further attempt to open doubles.
const DOUBLINGS_MAX: u32 = 6;

/// Times and limits of rails.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct RailsConfig {
    /// A rail that carries slices and has not moved for this long gets no further ones.
    pub pause_after: Duration,
    /// One that has not moved for this long is given up.
    pub lost_after: Duration,
    /// The peer must have closed its end of a lost rail after this, else it is given up itself.
    pub fence_max: Duration,
    /// A peer to which no rail stands is given up after this.
    pub alone_max: Duration,
    /// Time before a rail is opened again; it doubles while that fails. `None` on the side that does not open them.
    pub reopen_after: Option<Duration>,
    /// Slices that one rail carries at a time.
    pub slices_max: u32,
}

impl RailsConfig {
    /// Times that follow from the silence after which a peer is lost; nothing is opened again.
    #[must_use]
    pub fn new(silence_max: Duration, slices_max: u32) -> Self {
        Self {
            pause_after: silence_max / 4,
            lost_after: silence_max * 2,
            fence_max: silence_max,
            alone_max: silence_max,
            reopen_after: None,
            slices_max,
        }
    }

    /// Rails are opened again from this side.
    #[must_use]
    pub fn reopening(mut self, after: Duration) -> Self {
        self.reopen_after = Some(after);
        self
    }
}

/// What the owner of the rails is to do, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RailEvent {
    /// Close this end: nothing that comes on it may land any more, and its slices complete as lost.
    Close(RailId),
    /// Tell the peer that it is closed at this end.
    Tell(RailId),
    /// It is closed at both ends: slices that were on it may go out again.
    Closed(RailId),
    /// Open this rail, then call [`Rails::opened`], or [`Rails::lost`] where that fails.
    Open(RailId),
    /// The peer cannot be reached any more, though it may live. Told once.
    GiveUp(GiveUp),
}

/// Why a peer is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum GiveUp {
    /// It did not confirm in time that it closed this rail.
    Fence(RailId),
    /// No rail stands.
    NoRail,
}

/// What a peer may not do with rails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RailError {
    /// More than [`RAILS_MAX`].
    #[error("rail {0} is over the limit of {max}", max = RAILS_MAX)]
    TooMany(RailId),
    /// The rail before it in this place stands.
    #[error("rail {0} while another one stands in its place")]
    InUse(RailId),
    /// It was closed before.
    #[error("rail {0} was closed before")]
    Closed(RailId),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Up,
    /// It does not move.
    Paused,
    /// Closed here; the peer has not confirmed it.
    Fencing {
        ends: Time,
    },
    /// Closed at both ends.
    Closed {
        reopen: Option<Time>,
    },
    /// Being opened.
    Opening,
}

#[derive(Clone, Copy, Debug)]
struct Rail {
    id: RailId,
    state: State,
    in_flight: u32,
    queued: u64,
    /// Bytes per second; 0 where nobody knows.
    rate: u64,
    /// What is being measured: bytes moved in so much busy time.
    moved: u64,
    busy: Duration,
    /// Busy time is counted up to here.
    since: Time,
    /// When it moved last.
    progressed: Time,
    failures: u32,
}

impl Rail {
    fn new(id: RailId, state: State, now: Time) -> Self {
        let busy = Duration::ZERO;
        let (in_flight, queued, rate, moved, failures) = (0, 0, 0, 0, 0);
        Self { id, state, in_flight, queued, rate, moved, busy, since: now, progressed: now, failures }
    }

    fn stands(&self) -> bool {
        matches!(self.state, State::Up | State::Paused)
    }

    /// When it is to be looked at.
    fn timeout(&self, config: &RailsConfig) -> Option<Time> {
        match self.state {
            State::Up if self.in_flight > 0 => Some(self.progressed + config.pause_after),
            State::Paused => Some(self.progressed + config.lost_after),
            State::Fencing { ends } => Some(ends),
            State::Closed { reopen } => reopen,
            State::Up | State::Opening => None,
        }
    }

    /// Adds to what is measured, and takes a new rate from it once it is enough.
    fn measure(&mut self, bytes: u64, now: Time) {
        self.busy += now.after(self.since);
        self.since = now;
        self.moved = self.moved.saturating_add(bytes);
        if self.busy >= MEASURED {
            let rate = u128::from(self.moved) * 1_000_000_000 / self.busy.as_nanos();
            let rate = u64::try_from(rate).unwrap_or(u64::MAX).max(1);
            // A quarter of what was seen last, three of what was seen before.
            self.rate = if self.rate == 0 { rate } else { self.rate / 4 * 3 + rate / 4 };
            (self.moved, self.busy) = (0, Duration::ZERO);
        }
    }

    /// The rate to count on. A rail that has been idle for long may have become better: it is worth a try.
    fn expected_rate(&self, best: u64, retry_after: Duration, now: Time) -> u64 {
        let idle = self.in_flight == 0 && now.after(self.progressed) >= retry_after;
        if idle || self.rate == 0 { best } else { self.rate }
    }
}

/// All rails to one peer.
///
/// Cost: a step looks at each rail once and allocates nothing; the first use of a place does.
#[derive(Debug)]
pub struct Rails {
    config: RailsConfig,
    rails: Vec<Option<Rail>>,
    events: VecDeque<RailEvent>,
    /// Since when no rail stands, where one did.
    alone: Option<Time>,
    given_up: bool,
}

impl Rails {
    /// None yet. A peer without rails is never given up for that.
    #[must_use]
    pub fn new(config: RailsConfig) -> Self {
        Self { config, rails: Vec::new(), events: VecDeque::new(), alone: None, given_up: false }
    }

    fn get(&self, rail: RailId) -> Option<&Rail> {
        self.rails.get(rail.slot() as usize)?.as_ref()
    }

    /// The rail of exactly this name.
    fn current(&mut self, id: RailId) -> Option<&mut Rail> {
        self.rails.get_mut(id.slot() as usize)?.as_mut().filter(|rail| rail.id == id)
    }

    fn put(&mut self, rail: Rail) {
        let at = rail.id.slot() as usize;
        if self.rails.len() <= at {
            self.rails.resize(at + 1, None);
        }
        self.rails[at] = Some(rail);
    }

    /// A rail stands: it was opened here, or the peer opened it.
    ///
    /// # Errors
    /// [`RailError`]; its connection must be closed again, without a word.
    pub fn opened(&mut self, id: RailId, now: Time) -> Result<(), RailError> {
        if id.slot() >= RAILS_MAX {
            return Err(RailError::TooMany(id));
        }
        let mut failures = 0;
        if let Some(old) = self.get(id).copied() {
            let same = old.id == id;
            if old.id.generation() > id.generation() || same && old.state != State::Opening {
                return Err(RailError::Closed(id));
            }
            match old.state {
                State::Up | State::Paused => return Err(RailError::InUse(id)),
                // Who opens the next one has closed this one, and that may be known before it is heard.
                State::Fencing { .. } => self.events.push_back(RailEvent::Closed(old.id)),
                State::Closed { .. } | State::Opening => {}
            }
            failures = old.failures;
        }
        self.put(Rail { failures, ..Rail::new(id, State::Up, now) });
        self.alone = None;
        Ok(())
    }

    /// A rail broke, or could not be opened. The owner has closed its end.
    pub fn lost(&mut self, id: RailId, now: Time) {
        let ends = now + self.config.fence_max;
        let Some(rail) = self.current(id) else { return };
        if rail.stands() || rail.state == State::Opening {
            let failures = rail.failures.saturating_add(1);
            *rail = Rail { failures, ..Rail::new(id, State::Fencing { ends }, now) };
            self.events.push_back(RailEvent::Tell(id));
            self.note_alone(now);
        }
    }

    /// The peer says that a rail is closed at its end.
    ///
    /// # Errors
    /// [`RailError`]: it broke the protocol.
    pub fn handle_closed(&mut self, id: RailId, now: Time) -> Result<(), RailError> {
        if id.slot() >= RAILS_MAX {
            return Err(RailError::TooMany(id));
        }
        let known = self.get(id).copied();
        if let Some(known) = known.filter(|known| known.id != id) {
            if known.id.generation() > id.generation() {
                // It was overtaken by the next one.
                return Ok(());
            }
            if !matches!(known.state, State::Closed { .. }) {
                return Err(RailError::InUse(id));
            }
        }
        match known.filter(|known| known.id == id).map(|known| known.state) {
            Some(State::Closed { .. }) => return Ok(()),
            Some(State::Fencing { .. }) => {}
            Some(State::Up | State::Paused | State::Opening) => {
                self.events.extend([RailEvent::Close(id), RailEvent::Tell(id)]);
            }
            // A connection that has not come here, and will not be taken any more.
            None => self.events.push_back(RailEvent::Tell(id)),
        }
        let failures = known.map_or(0, |known| known.failures + u32::from(known.stands()));
        let doubled = |after: Duration| now + after * (1 << failures.saturating_sub(1).min(DOUBLINGS_MAX));
        // After the last generation there is no next one to wait for.
        let reopen = self.config.reopen_after.filter(|_| id.generation() < u32::MAX).map(doubled);
        self.put(Rail { failures, ..Rail::new(id, State::Closed { reopen }, now) });
        self.events.push_back(RailEvent::Closed(id));
        self.note_alone(now);
        Ok(())
    }

    fn note_alone(&mut self, now: Time) {
        if self.standing() == 0 {
            self.alone.get_or_insert(now);
        }
    }

    /// The rail on which a slice of so many bytes would end first, by what waits there and how fast it moves;
    /// `None` where none takes one now.
    #[must_use]
    pub fn choose(&self, bytes: u64, now: Time) -> Option<RailId> {
        let best = self.rails.iter().flatten().map(|rail| rail.rate).max().unwrap_or(0).max(1);
        let takes = |rail: &&Rail| rail.state == State::Up && rail.in_flight < self.config.slices_max;
        let cost = |rail: &Rail| {
            let rate = rail.expected_rate(best, self.config.pause_after, now);
            let ends = (u128::from(rail.queued) + u128::from(bytes)) * u128::from(best) / u128::from(rate);
            (ends, rail.in_flight)
        };
        self.rails.iter().flatten().filter(takes).min_by_key(|rail| cost(rail)).map(|rail| rail.id)
    }

    /// A slice went onto a rail.
    pub fn posted(&mut self, id: RailId, bytes: u64, now: Time) {
        if let Some(rail) = self.current(id) {
            if rail.in_flight == 0 {
                (rail.since, rail.progressed) = (now, now);
            }
            rail.in_flight += 1;
            rail.queued = rail.queued.saturating_add(bytes);
        }
    }

    /// Bytes moved on a rail, though no slice has completed.
    pub fn progressed(&mut self, id: RailId, now: Time) {
        if let Some(rail) = self.current(id)
            && rail.stands()
        {
            rail.progressed = now;
            rail.state = State::Up;
        }
    }

    /// A slice on a rail has completed, with whatever result but that the rail was lost.
    pub fn completed(&mut self, id: RailId, bytes: u64, now: Time) {
        self.progressed(id, now);
        if let Some(rail) = self.current(id) {
            rail.in_flight = rail.in_flight.saturating_sub(1);
            rail.queued = rail.queued.saturating_sub(bytes);
            rail.failures = 0;
            rail.measure(bytes, now);
        }
    }

    /// A slice is not on a rail any more, without having moved.
    pub fn taken_back(&mut self, id: RailId, bytes: u64) {
        if let Some(rail) = self.current(id) {
            rail.in_flight = rail.in_flight.saturating_sub(1);
            rail.queued = rail.queued.saturating_sub(bytes);
        }
    }

    /// Slices on a rail.
    #[must_use]
    pub fn in_flight(&self, id: RailId) -> u32 {
        self.get(id).filter(|rail| rail.id == id).map_or(0, |rail| rail.in_flight)
    }

    /// Whether a rail is closed at both ends, so that nothing that was on it can land any more.
    #[must_use]
    pub fn is_closed(&self, id: RailId) -> bool {
        self.get(id).is_none_or(|known| {
            let over = matches!(known.state, State::Closed { .. });
            known.id.generation() > id.generation() || known.id == id && over
        })
    }

    /// How many stand, paused ones among them.
    #[must_use]
    pub fn standing(&self) -> usize {
        self.rails.iter().flatten().filter(|rail| rail.stands()).count()
    }

    /// This process did not look for a while: silence up to now says nothing about the peer.
    pub fn excuse(&mut self, now: Time) {
        let ends = now + self.config.fence_max;
        for rail in self.rails.iter_mut().flatten() {
            rail.progressed = now;
            if let State::Fencing { .. } = rail.state {
                rail.state = State::Fencing { ends };
            }
        }
        self.alone = self.alone.map(|_| now);
    }

    /// When [`Rails::handle_timeout`] is to be called at the latest.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        let alone = self.alone.map(|since| since + self.config.alone_max);
        let rails = self.rails.iter().flatten().filter_map(|rail| rail.timeout(&self.config));
        if self.given_up { None } else { rails.chain(alone).min() }
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Time) {
        for at in 0..self.rails.len() {
            if let Some(rail) = self.rails[at]
                && rail.timeout(&self.config).is_some_and(|due| due <= now)
            {
                self.time_out(rail, now);
            }
        }
        if self.alone.is_some_and(|since| since + self.config.alone_max <= now) {
            self.give_up(GiveUp::NoRail);
        }
    }

    fn time_out(&mut self, rail: Rail, now: Time) {
        match rail.state {
            State::Up => self.put(Rail { state: State::Paused, ..rail }),
            State::Paused => {
                self.events.push_back(RailEvent::Close(rail.id));
                self.lost(rail.id, now);
            }
            State::Fencing { .. } => self.give_up(GiveUp::Fence(rail.id)),
            State::Closed { .. } => {
                let Some(generation) = rail.id.generation().checked_add(1) else { return };
                let id = RailId::new(rail.id.slot(), generation);
                self.put(Rail { id, state: State::Opening, ..rail });
                self.events.push_back(RailEvent::Open(id));
            }
            State::Opening => {}
        }
    }

    fn give_up(&mut self, why: GiveUp) {
        if !self.given_up {
            self.given_up = true;
            self.events.push_back(RailEvent::GiveUp(why));
        }
    }

    /// What is to be done next.
    #[must_use]
    pub fn poll_event(&mut self) -> Option<RailEvent> {
        self.events.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn at(ms: u64) -> Time {
        Time::at(Duration::from_millis(ms))
    }

    fn id(slot: u32) -> RailId {
        RailId::new(slot, 0)
    }

    fn rails(count: u32) -> Rails {
        let mut rails = Rails::new(RailsConfig::new(SECOND, 8).reopening(SECOND / 10));
        (0..count).for_each(|slot| rails.opened(id(slot), at(0)).unwrap());
        rails
    }

    fn events(rails: &mut Rails) -> Vec<RailEvent> {
        core::iter::from_fn(|| rails.poll_event()).collect()
    }

    #[test]
    fn a_lost_rail_is_closed_once_the_peer_says_so() {
        let mut r = rails(2);
        r.lost(id(0), at(1));
        r.lost(id(0), at(2));
        assert_eq!(events(&mut r), [RailEvent::Tell(id(0))]);
        assert_eq!((r.is_closed(id(0)), r.standing(), r.choose(1, at(2))), (false, 1, Some(id(1))));
        r.handle_closed(id(0), at(3)).unwrap();
        r.handle_closed(id(0), at(4)).unwrap();
        assert_eq!((events(&mut r), r.is_closed(id(0))), (vec![RailEvent::Closed(id(0))], true));
        // The peer was first.
        r.handle_closed(id(1), at(5)).unwrap();
        let all = [RailEvent::Close(id(1)), RailEvent::Tell(id(1)), RailEvent::Closed(id(1))];
        assert_eq!((events(&mut r), r.choose(1, at(5))), (all.to_vec(), None));
    }

    #[test]
    fn a_peer_that_names_the_last_generation_costs_no_time() {
        let mut r = rails(1);
        let last = RailId::new(1, u32::MAX);
        r.handle_closed(last, at(0)).unwrap();
        r.handle_timeout(at(1000));
        assert_eq!(events(&mut r), [RailEvent::Tell(last), RailEvent::Closed(last)]);
        assert_eq!(r.poll_timeout(), None, "it would be due for ever");
    }

    #[test]
    fn a_rail_comes_back_as_the_next_generation_and_later_each_time() {
        let mut r = rails(1);
        let mut ms = 0;
        for generation in 0..3 {
            let (old, new) = (RailId::new(0, generation), RailId::new(0, generation + 1));
            r.lost(old, at(ms));
            r.handle_closed(old, at(ms)).unwrap();
            assert_eq!(events(&mut r), [RailEvent::Tell(old), RailEvent::Closed(old)]);
            ms += 100 << generation;
            r.handle_timeout(at(ms - 1));
            assert_eq!(events(&mut r), []);
            r.handle_timeout(at(ms));
            assert_eq!(events(&mut r), [RailEvent::Open(new)]);
            assert_eq!((r.opened(old, at(ms)), r.is_closed(old)), (Err(RailError::Closed(old)), true));
            r.opened(new, at(ms)).unwrap();
            assert_eq!(r.choose(1, at(ms)), Some(new));
        }
    }

    #[test]
    fn a_connection_that_comes_after_its_end_is_refused() {
        let mut r = rails(1);
        r.handle_closed(id(5), at(1)).unwrap();
        assert_eq!(r.opened(id(5), at(2)), Err(RailError::Closed(id(5))));
        assert_eq!(r.opened(id(0), at(2)), Err(RailError::Closed(id(0))));
        let next = RailId::new(0, 1);
        assert_eq!(r.opened(next, at(2)), Err(RailError::InUse(next)));
        assert_eq!(r.handle_closed(next, at(2)), Err(RailError::InUse(next)));
        assert_eq!(r.opened(id(RAILS_MAX), at(2)), Err(RailError::TooMany(id(RAILS_MAX))));
    }

    #[test]
    fn a_rail_that_does_not_move_is_paused_then_given_up_and_one_that_does_comes_back() {
        let mut r = rails(2);
        r.posted(id(0), 10, at(0));
        r.posted(id(0), 10, at(0));
        assert_eq!(r.poll_timeout(), Some(at(250)));
        r.handle_timeout(at(250));
        let chosen = |r: &Rails, ms| (0..4).map(|_| r.choose(1, at(ms))).collect::<Vec<_>>();
        assert_eq!(chosen(&r, 250), [Some(id(1)); 4]);
        r.completed(id(0), 10, at(300));
        assert_eq!(r.choose(1, at(300)), Some(id(1)), "less waits there");
        r.posted(id(1), 100, at(300));
        assert_eq!(r.choose(1, at(300)), Some(id(0)));
        r.progressed(id(1), at(540));
        r.handle_timeout(at(560));
        r.handle_timeout(at(2300));
        let lost = [RailEvent::Close(id(0)), RailEvent::Tell(id(0))];
        assert_eq!((events(&mut r), r.standing()), (lost.to_vec(), 1));
    }

    #[test]
    fn a_peer_that_confirms_nothing_or_has_no_rail_left_is_given_up_once() {
        let mut r = rails(2);
        r.lost(id(0), at(0));
        assert_eq!(r.poll_timeout(), Some(at(1000)));
        r.excuse(at(900));
        r.handle_timeout(at(1899));
        assert_eq!(events(&mut r), [RailEvent::Tell(id(0))]);
        r.handle_timeout(at(1900));
        r.handle_timeout(at(2900));
        assert_eq!(events(&mut r), [RailEvent::GiveUp(GiveUp::Fence(id(0)))]);
        let mut r = Rails::new(RailsConfig::new(SECOND, 8));
        r.handle_timeout(at(9000));
        assert_eq!(r.poll_event(), None, "it never had one");
        r.opened(id(0), at(9000)).unwrap();
        r.handle_closed(id(0), at(9000)).unwrap();
        r.handle_timeout(at(10_000));
        assert_eq!(events(&mut r).last(), Some(&RailEvent::GiveUp(GiveUp::NoRail)));
    }

    #[test]
    fn slices_go_where_they_end_first() {
        let mut r = rails(2);
        // Rail 0 moves 3000 bytes in the time in which rail 1 moves 1000.
        for (slot, bytes) in [(0, 3000), (1, 1000)] {
            r.posted(id(slot), bytes, at(0));
            r.completed(id(slot), bytes, at(10));
        }
        let mut counts = [0; 2];
        for _ in 0..8 {
            let rail = r.choose(100, at(10)).unwrap();
            r.posted(rail, 100, at(10));
            counts[rail.slot() as usize] += 1;
        }
        assert_eq!(counts, [6, 2]);
        (0..8).for_each(|_| r.posted(id(0), 1, at(10)));
        assert_eq!(r.choose(1, at(10)), Some(id(1)), "the other one is full");
        // What was slow is tried again after it was idle.
        (0..2).for_each(|_| r.completed(id(1), 100, at(20)));
        assert_eq!(r.choose(1 << 20, at(300)), Some(id(1)));
    }

    /// Two sides, the connections between them, and the control messages under way.
    struct Pair {
        sides: [Rails; 2],
        told: [VecDeque<RailId>; 2],
        /// Connections that were opened and have not arrived.
        arriving: Vec<RailId>,
        /// Ends that take in bytes.
        open: [Vec<RailId>; 2],
        tells: [Vec<RailId>; 2],
        now: Time,
    }

    impl Pair {
        fn new() -> Self {
            let config = |opens| {
                let config = RailsConfig::new(SECOND * 1000, 8);
                if opens { config.reopening(SECOND) } else { config }
            };
            let arriving = vec![id(0), id(1)];
            let sides = [Rails::new(config(true)), Rails::new(config(false))];
            let (told, tells, now) = Default::default();
            let mut pair = Self { sides, told, arriving, open: Default::default(), tells, now };
            for slot in 0..2 {
                pair.sides[0].opened(id(slot), now).unwrap();
                pair.open[0].push(id(slot));
            }
            pair
        }

        fn step(&mut self, choice: u8, which: usize) -> Result<(), TestCaseError> {
            let side = which % 2;
            match choice {
                0 | 1 if !self.open[side].is_empty() => {
                    let rail = self.open[side].swap_remove(which / 2 % self.open[side].len());
                    self.sides[side].lost(rail, self.now);
                }
                2..6 => {
                    if let Some(rail) = self.told[side].pop_front() {
                        prop_assert_eq!(self.sides[side].handle_closed(rail, self.now), Ok(()));
                    }
                }
                6..9 if !self.arriving.is_empty() => {
                    let rail = self.arriving.swap_remove(which % self.arriving.len());
                    if self.sides[1].opened(rail, self.now).is_ok() {
                        self.open[1].push(rail);
                    }
                }
                9 => {
                    self.now = self.now + SECOND;
                    self.sides.iter_mut().for_each(|rails| rails.handle_timeout(self.now));
                }
                _ => {}
            }
            self.look()
        }

        /// Does what the sides ask for, and looks whether what they say is true.
        fn look(&mut self) -> Result<(), TestCaseError> {
            for side in 0..2 {
                for event in events(&mut self.sides[side]) {
                    match event {
                        RailEvent::Close(rail) => self.open[side].retain(|open| *open != rail),
                        RailEvent::Tell(rail) => {
                            prop_assert!(!self.open[side].contains(&rail), "told while it stands");
                            prop_assert!(!self.tells[side].contains(&rail), "told twice");
                            self.tells[side].push(rail);
                            self.told[1 - side].push_back(rail);
                        }
                        RailEvent::Closed(rail) => {
                            prop_assert!(self.sides[side].is_closed(rail));
                            prop_assert!(!self.open[0].contains(&rail) && !self.open[1].contains(&rail));
                        }
                        RailEvent::Open(rail) => {
                            prop_assert_eq!(side, 0);
                            prop_assert_eq!(self.sides[0].opened(rail, self.now), Ok(()));
                            self.open[0].push(rail);
                            self.arriving.push(rail);
                        }
                        RailEvent::GiveUp(_) => prop_assert!(false, "given up"),
                    }
                }
            }
            Ok(())
        }
    }

    proptest! {
        #[test]
        fn both_sides_agree_whatever_breaks_and_however_messages_overtake_connections(
            choices in prop::collection::vec((0_u8..10, any::<usize>()), 0..120)
        ) {
            let mut pair = Pair::new();
            let settle = (0..600).map(|i| ([2, 2, 6, 9][i % 4], i / 4));
            for (choice, which) in choices.into_iter().chain(settle) {
                pair.step(choice, which)?;
            }
            pair.open.iter_mut().for_each(|open| open.sort_unstable());
            prop_assert_eq!(pair.open[0].len(), 2);
            prop_assert_eq!(&pair.open[0], &pair.open[1]);
        }
    }
}
