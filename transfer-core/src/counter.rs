//! Counters that arriving transfers raise: how an engine learns that the first n layers of a request are there, without
//! a message for each.

use std::fmt;
use std::future::poll_fn;
use std::sync::{Arc, PoisonError, Weak};
use std::task::{Poll, Waker};
use std::time::Duration;

use transfer_proto::id::CounterId;

use crate::clock;
use crate::error::{Error, Result};
use crate::sync::Signal;
use crate::sync::prim::{Condvar, Mutex, MutexGuard};

/// The most counters of one agent.
const COUNTERS_MAX: usize = 1 << 16;

/// A number of this agent that peers raise: see [`crate::Request::bump`].
///
/// It only grows, and stops at 2^64 - 1. Raised exactly once by each transfer that is done, after its last byte is in
/// place, on every path and over any retry. Clones name the same counter; peers find it gone when the last one is dropped.
///
/// Safe to use from any thread.
#[derive(Clone)]
pub struct Counter {
    handle: Arc<Handle>,
}

struct Handle {
    id: CounterId,
    cell: Arc<Cell>,
    table: Weak<Counters>,
}

/// The number, and who waits for it.
#[derive(Debug, Default)]
struct Cell {
    state: Mutex<State>,
    raised: Condvar,
}

#[derive(Debug, Default)]
struct State {
    value: u64,
    /// The agent is gone: nobody raises it any more.
    closed: bool,
    wakers: Vec<Waker>,
}

impl Cell {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.lock();
        change(&mut state);
        let wakers = std::mem::take(&mut state.wakers);
        drop(state);
        self.raised.notify_all();
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl Counter {
    /// Its name, for a peer that is to raise it; it is told like a region's.
    #[must_use]
    pub fn id(&self) -> CounterId {
        self.handle.id
    }

    /// How far it is. All data of the transfers that raised it is in place. Cost: one lock of its own.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.handle.cell.lock().value
    }

    /// Waits until it is at least at `at_least`, and returns how far it is then. A descriptor for a loop over many such
    /// things is [`Agent::event_fd`](crate::Agent::event_fd).
    ///
    /// # Errors
    /// [`Error::WaitTimedOut`]; [`Error::AgentClosed`].
    pub fn wait(&self, at_least: u64, timeout: Duration) -> Result<u64> {
        let (end, cell) = (clock::end_of_wait(timeout), &self.handle.cell);
        let mut state = cell.lock();
        loop {
            if let Some(reached) = state.reached(at_least) {
                return reached;
            }
            let left = clock::left(end).ok_or(Error::WaitTimedOut(timeout))?;
            state = cell.raised.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The same on any executor, without an end of its own.
    ///
    /// # Errors
    /// [`Error::AgentClosed`].
    pub async fn reached(&self, at_least: u64) -> Result<u64> {
        poll_fn(|context| {
            let mut state = self.handle.cell.lock();
            if let Some(reached) = state.reached(at_least) {
                return Poll::Ready(reached);
            }
            if !state.wakers.iter().any(|waker| waker.will_wake(context.waker())) {
                state.wakers.push(context.waker().clone());
            }
            Poll::Pending
        })
        .await
    }
}

impl State {
    fn reached(&self, at_least: u64) -> Option<Result<u64>> {
        if self.value >= at_least {
            return Some(Ok(self.value));
        }
        self.closed.then_some(Err(Error::AgentClosed))
    }
}

impl fmt::Debug for Counter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Counter").field("id", &self.id()).field("value", &self.get()).finish()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if let Some(table) = self.table.upgrade() {
            table.remove(self.id);
        }
    }
}

/// The counters of an agent, by name.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    slots: Mutex<Slots>,
    signal: Arc<Signal>,
}

#[derive(Debug, Default)]
struct Slots {
    slots: Vec<(u32, Option<Arc<Cell>>)>,
    free: Vec<u32>,
    /// The agent is gone: there are no new ones.
    closed: bool,
}

impl Counters {
    /// None yet. Each raise sets `signal`.
    pub(crate) fn new(signal: Arc<Signal>) -> Self {
        Self { slots: Mutex::default(), signal }
    }

    fn lock(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new counter at zero.
    ///
    /// # Errors
    /// [`Error::TooLarge`] with as many as an agent may have; [`Error::AgentClosed`].
    pub(crate) fn create(self: &Arc<Self>) -> Result<Counter> {
        let mut slots = self.lock();
        if slots.closed {
            return Err(Error::AgentClosed);
        }
        let slot = match slots.free.pop() {
            Some(slot) => slot,
            None if slots.slots.len() < COUNTERS_MAX => {
                slots.slots.push((0, None));
                u32::try_from(slots.slots.len() - 1).unwrap_or(u32::MAX)
            }
            None => {
                let (what, max) = ("counters of an agent", COUNTERS_MAX as u64);
                return Err(Error::TooLarge { what, value: max + 1, max });
            }
        };
        let cell = Arc::new(Cell::default());
        let (generation, place) = &mut slots.slots[slot as usize];
        *place = Some(Arc::clone(&cell));
        let id = CounterId::new(slot, *generation);
        Ok(Counter { handle: Arc::new(Handle { id, cell, table: Arc::downgrade(self) }) })
    }

    fn remove(&self, id: CounterId) {
        let mut slots = self.lock();
        if let Some((generation, place)) = slots.slots.get_mut(id.slot() as usize)
            && *generation == id.generation()
        {
            *place = None;
            *generation = generation.wrapping_add(1);
            slots.free.push(id.slot());
        }
    }

    /// Raises a counter. False where there is none of that name (any more).
    pub(crate) fn bump(&self, id: CounterId, by: u64) -> bool {
        let slots = self.lock();
        let found =
            slots.slots.get(id.slot() as usize).filter(|(generation, _)| *generation == id.generation());
        let Some(cell) = found.and_then(|(_, cell)| cell.clone()) else { return false };
        drop(slots);
        cell.change(|state| state.value = state.value.saturating_add(by));
        self.signal.set();
        true
    }

    /// The agent is gone: nobody waits in vain.
    pub(crate) fn close(&self) {
        let mut slots = self.lock();
        slots.closed = true;
        let cells: Vec<_> = slots.slots.iter().filter_map(|(_, cell)| cell.clone()).collect();
        drop(slots);
        cells.iter().for_each(|cell| cell.change(|state| state.closed = true));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_that_is_gone_is_not_its_successor() {
        let counters = Arc::new(Counters::default());
        let old = counters.create().unwrap();
        let id = old.id();
        assert!(counters.bump(id, 3));
        assert_eq!((old.get(), old.wait(3, Duration::ZERO).unwrap()), (3, 3));
        drop(old);
        assert!(!counters.bump(id, 1));
        let new = counters.create().unwrap();
        assert_eq!((new.id().slot(), new.get()), (id.slot(), 0));
        assert!(!counters.bump(id, 1) && counters.bump(new.id(), u64::MAX) && counters.bump(new.id(), 1));
        assert_eq!(new.get(), u64::MAX);
        assert!(!counters.bump(CounterId::new(9, 0), 1));
    }

    #[test]
    fn whoever_waits_is_woken_by_the_one_that_gets_there() {
        let counters = Arc::new(Counters::default());
        let counter = counters.create().unwrap();
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| counter.wait(10, Duration::from_secs(20)));
            (0..10).for_each(|_| assert!(counters.bump(counter.id(), 1)));
            assert_eq!(waits.join().unwrap().unwrap(), 10);
            let waits = scope.spawn(|| counter.wait(11, Duration::from_secs(20)));
            counters.close();
            assert!(matches!(waits.join().unwrap(), Err(Error::AgentClosed)));
        });
        assert!(matches!(counter.wait(11, Duration::ZERO), Err(Error::AgentClosed)));
        assert!(matches!(counters.create(), Err(Error::AgentClosed)));
        assert_eq!(counter.wait(10, Duration::ZERO).unwrap(), 10);
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use std::future::Future as _;
    use std::pin::pin;
    use std::task::{Context, Wake};

    use loom::cell::UnsafeCell;
    use loom::sync::atomic::{AtomicUsize, Ordering};
    use loom::thread;

    use super::*;

    /// A counter, and two layers that are written before it is raised for them.
    struct Layers {
        counters: Arc<Counters>,
        counter: Counter,
        memory: [UnsafeCell<()>; 2],
    }

    impl Layers {
        fn new() -> Arc<Self> {
            let counters = Arc::new(Counters::default());
            let counter = counters.create().unwrap();
            Arc::new(Self { counters, counter, memory: std::array::from_fn(|_| UnsafeCell::new(())) })
        }

        fn arrives(self: &Arc<Self>, layer: usize) -> thread::JoinHandle<()> {
            let layers = Arc::clone(self);
            thread::spawn(move || {
                layers.memory[layer].with_mut(|_| ());
                assert!(layers.counters.bump(layers.counter.id(), 1));
            })
        }
    }

    #[test]
    fn whoever_waits_for_n_is_woken_and_sees_what_the_n_brought() {
        loom::model(|| {
            let layers = Layers::new();
            let arrivals = [layers.arrives(0), layers.arrives(1)];
            assert_eq!(layers.counter.wait(2, Duration::MAX).unwrap(), 2);
            layers.memory.iter().for_each(|memory| memory.with(|_| ()));
            arrivals.into_iter().for_each(|thread| thread.join().unwrap());
        });
    }

    #[test]
    fn whoever_reads_n_sees_what_the_n_brought() {
        loom::model(|| {
            let layers = Layers::new();
            let arrival = layers.arrives(0);
            if layers.counter.get() == 1 {
                layers.memory[0].with(|_| ());
            }
            arrival.join().unwrap();
        });
    }

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_future_is_ready_or_woken() {
        loom::model(|| {
            let (layers, woken) = (Layers::new(), Arc::new(Woken::default()));
            let arrival = layers.arrives(0);
            let waker = Waker::from(Arc::clone(&woken));
            let mut reached = pin!(layers.counter.reached(1));
            let poll = reached.as_mut().poll(&mut Context::from_waker(&waker));
            arrival.join().unwrap();
            assert!(poll.is_ready() || woken.0.load(Ordering::Relaxed) == 1, "it sleeps at its goal");
        });
    }

    /// One that is made while the agent ends is no exception.
    #[test]
    fn nobody_waits_for_a_counter_of_an_agent_that_is_gone() {
        loom::model(|| {
            let counters = Arc::new(Counters::default());
            let end = {
                let counters = Arc::clone(&counters);
                thread::spawn(move || counters.close())
            };
            if let Ok(counter) = counters.create() {
                assert!(matches!(counter.wait(1, Duration::MAX), Err(Error::AgentClosed)));
            }
            end.join().unwrap();
        });
    }

    /// The last handle goes while a transfer arrives: its successor at the same place is not raised.
    #[test]
    fn a_counter_that_goes_is_raised_or_gone() {
        loom::model(|| {
            let counters = Arc::new(Counters::default());
            let old = counters.create().unwrap();
            let id = old.id();
            let arrival = {
                let counters = Arc::clone(&counters);
                thread::spawn(move || counters.bump(id, 1))
            };
            drop(old);
            let new = counters.create().unwrap();
            let _raised = arrival.join().unwrap();
            assert_eq!((new.id().slot(), new.get()), (id.slot(), 0));
        });
    }
}
