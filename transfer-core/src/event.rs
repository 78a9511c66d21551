//! What happens to an agent without being asked for.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Poll, Waker};
use std::time::Duration;

use transfer_sys::OsResult;
use transfer_sys::poll::EventFd;

use crate::clock;
use crate::error::Error;
use crate::peer::Peer;

/// Something that happened.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// A peer's notification arrived. Data that it speaks of has landed.
    Notif {
        /// Who sent it.
        peer: Peer,
        /// What it says.
        bytes: Vec<u8>,
    },
    /// A peer can be used.
    PeerUp {
        /// Which.
        peer: Peer,
    },
    /// A peer is gone; all transfers with it have ended or are about to.
    PeerLost {
        /// Which.
        peer: Peer,
        /// How it was noticed.
        reason: Error,
    },
}

/// A descriptor for those who watch many: readable once something has happened. There is none before somebody asks.
#[derive(Debug, Default)]
pub(crate) struct Signal(OnceLock<EventFd>);

impl Signal {
    pub(crate) fn set(&self) {
        if let Some(event) = self.0.get() {
            event.set();
        }
    }

    /// The descriptor, set: what happened before it was asked for is not missed.
    pub(crate) fn fd(&self) -> OsResult<BorrowedFd<'_>> {
        if let Some(event) = self.0.get() {
            return Ok(event.as_fd());
        }
        let event = EventFd::new()?;
        event.set();
        Ok(self.0.get_or_init(|| event).as_fd())
    }
}

/// Events that wait for the application.
#[derive(Debug)]
pub(crate) struct EventQueue {
    max: usize,
    state: Mutex<State>,
    came: Condvar,
    signal: Arc<Signal>,
}

#[derive(Debug, Default)]
struct State {
    events: VecDeque<Event>,
    wakers: Vec<Waker>,
    /// The driver has stopped reading from peers, and wants to be woken when there is room.
    paused: bool,
}

/// An event, and whether the driver waits for the room that it leaves.
pub(crate) struct Taken {
    pub(crate) event: Option<Event>,
    pub(crate) wake_driver: bool,
}

impl EventQueue {
    pub(crate) fn new(max: usize, signal: Arc<Signal>) -> Self {
        Self { max, state: Mutex::default(), came: Condvar::new(), signal }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn push(&self, event: Event) {
        let mut state = self.lock();
        state.events.push_back(event);
        let wakers = std::mem::take(&mut state.wakers);
        drop(state);
        self.came.notify_all();
        self.signal.set();
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Drops what nobody takes any more; events hold peers, and these the agent.
    pub(crate) fn clear(&self) {
        let events = std::mem::take(&mut self.lock().events);
        drop(events);
    }

    /// Whether the driver must stop reading from peers. If so it will be woken when there is room.
    pub(crate) fn is_full(&self) -> bool {
        let mut state = self.lock();
        state.paused = state.events.len() >= self.max;
        state.paused
    }

    pub(crate) fn take(&self) -> Taken {
        Self::take_from(&mut self.lock(), self.max)
    }

    fn take_from(state: &mut State, max: usize) -> Taken {
        let event = state.events.pop_front();
        // Half empty, so that the driver is not woken for every single place.
        let wake_driver = state.paused && state.events.len() <= max / 2;
        if wake_driver {
            state.paused = false;
        }
        Taken { event, wake_driver }
    }

    pub(crate) fn wait(&self, timeout: Duration) -> Taken {
        let end = clock::end_of_wait(timeout);
        let mut state = self.lock();
        loop {
            if !state.events.is_empty() {
                return Self::take_from(&mut state, self.max);
            }
            let Some(left) = clock::left(end) else { return Taken { event: None, wake_driver: false } };
            state = self.came.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    pub(crate) async fn next(&self) -> Taken {
        poll_fn(|context| {
            let mut state = self.lock();
            let taken = Self::take_from(&mut state, self.max);
            if taken.event.is_some() {
                return Poll::Ready(taken);
            }
            if !state.wakers.iter().any(|waker| waker.will_wake(context.waker())) {
                state.wakers.push(context.waker().clone());
            }
            Poll::Pending
        })
        .await
    }
}
