//! What happens to an agent without being asked for.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::{Arc, PoisonError};
use std::task::{Poll, Waker};
use std::time::Duration;

use crate::clock;
use crate::error::Error;
use crate::peer::Peer;
use crate::sync::Signal;
use crate::sync::prim::{Condvar, Mutex, MutexGuard};

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

/// Events that wait for the application.
#[derive(Debug)]
pub(crate) struct EventQueue<E = Event> {
    max: usize,
    state: Mutex<State<E>>,
    came: Condvar,
    signal: Arc<Signal>,
}

#[derive(Debug)]
struct State<E> {
    events: VecDeque<E>,
    wakers: Vec<Waker>,
    /// The driver has stopped reading from peers, and wants to be woken when there is room.
    paused: bool,
}

/// An event, and whether the driver waits for the room that it leaves.
pub(crate) struct Taken<E = Event> {
    pub(crate) event: Option<E>,
    pub(crate) wake_driver: bool,
}

impl<E> EventQueue<E> {
    pub(crate) fn new(max: usize, signal: Arc<Signal>) -> Self {
        let state = State { events: VecDeque::new(), wakers: Vec::new(), paused: false };
        Self { max, state: Mutex::new(state), came: Condvar::new(), signal }
    }

    fn lock(&self) -> MutexGuard<'_, State<E>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn push(&self, event: E) {
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

    pub(crate) fn take(&self) -> Taken<E> {
        Self::take_from(&mut self.lock(), self.max)
    }

    fn take_from(state: &mut State<E>, max: usize) -> Taken<E> {
        let event = state.events.pop_front();
        // Half empty, so that the driver is not woken for every single place.
        let wake_driver = state.paused && state.events.len() <= max / 2;
        if wake_driver {
            state.paused = false;
        }
        Taken { event, wake_driver }
    }

    pub(crate) fn wait(&self, timeout: Duration) -> Taken<E> {
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

    pub(crate) async fn next(&self) -> Taken<E> {
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

#[cfg(all(test, loom))]
mod loom_tests {
    use std::future::Future as _;
    use std::task::{Context, Wake};

    use loom::sync::atomic::{AtomicUsize, Ordering};
    use loom::thread;

    use super::*;

    fn queue(max: usize) -> Arc<EventQueue<u32>> {
        Arc::new(EventQueue::new(max, Arc::default()))
    }

    fn pushes(queue: &Arc<EventQueue<u32>>, events: [u32; 2]) -> thread::JoinHandle<()> {
        let queue = Arc::clone(queue);
        thread::spawn(move || events.into_iter().for_each(|event| queue.push(event)))
    }

    #[test]
    fn each_event_is_taken_once_and_in_order_and_wakes_one_who_waits() {
        loom::model(|| {
            let queue = queue(8);
            let driver = pushes(&queue, [1, 2]);
            let other = {
                let queue = Arc::clone(&queue);
                thread::spawn(move || queue.wait(Duration::MAX).event)
            };
            let ours = queue.wait(Duration::MAX).event;
            let theirs = other.join().unwrap();
            driver.join().unwrap();
            let mut both = [ours, theirs];
            both.sort_unstable();
            assert_eq!(both, [Some(1), Some(2)]);
            assert!(queue.take().event.is_none());
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
            let (queue, woken) = (queue(8), Arc::new(Woken::default()));
            let driver = pushes(&queue, [1, 2]);
            let waker = Waker::from(Arc::clone(&woken));
            let mut next = std::pin::pin!(queue.next());
            let poll = next.as_mut().poll(&mut Context::from_waker(&waker));
            driver.join().unwrap();
            match poll {
                Poll::Ready(taken) => assert_eq!(taken.event, Some(1)),
                Poll::Pending => assert_eq!(woken.0.load(Ordering::Relaxed), 1, "it sleeps over an event"),
            }
        });
    }

    /// A driver that finds the queue full goes to sleep, and is woken when there is room.
    #[test]
    fn a_driver_that_waits_for_room_is_woken() {
        loom::model(|| {
            let queue = queue(2);
            queue.push(1);
            queue.push(2);
            let app = {
                let queue = Arc::clone(&queue);
                thread::spawn(move || [queue.take(), queue.take()].iter().any(|taken| taken.wake_driver))
            };
            let sleeps = queue.is_full();
            let woken = app.join().unwrap();
            assert!(!sleeps || woken, "it sleeps over an empty queue");
        });
    }
}
