//! Stands in for crossbeam-channel where loom tries the interleavings: a queue that promises no more than is needed.
//!
//! What is put is taken by one, with everything that came before it. A look may find nothing although something was just
//! put, as with any queue without a lock, and there is no order among the things.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use crossbeam_channel::{TryRecvError, TrySendError};

use super::prim::{AtomicU64, Ordering, yield_now};

struct Channel<T> {
    /// A bit for each place that has something to take. Loom sees this word only.
    full: AtomicU64,
    places: Mutex<VecDeque<Option<T>>>,
}

pub(crate) struct Sender<T>(Arc<Channel<T>>);
pub(crate) struct Receiver<T>(Arc<Channel<T>>);

/// With room for `max` things, at most 64.
pub(crate) fn bounded<T>(max: usize) -> (Sender<T>, Receiver<T>) {
    let places = Mutex::new((0..max.min(64)).map(|_| None).collect());
    let channel = Arc::new(Channel { full: AtomicU64::new(0), places });
    (Sender(Arc::clone(&channel)), Receiver(channel))
}

impl<T> Sender<T> {
    pub(crate) fn try_send(&self, thing: T) -> Result<(), TrySendError<T>> {
        let free = {
            let mut places = self.0.places.lock().unwrap();
            let Some(free) = places.iter().position(Option::is_none) else {
                return Err(TrySendError::Full(thing));
            };
            places[free] = Some(thing);
            free
        };
        self.0.full.fetch_or(1 << free, Ordering::Release);
        Ok(())
    }

    pub(crate) fn send(&self, mut thing: T) -> Result<(), TrySendError<T>> {
        while let Err(TrySendError::Full(back)) = self.try_send(thing) {
            thing = back;
            yield_now();
        }
        Ok(())
    }
}

impl<T> Receiver<T> {
    pub(crate) fn try_recv(&self) -> Result<T, TryRecvError> {
        loop {
            let full = self.0.full.load(Ordering::Acquire);
            if full == 0 {
                return Err(TryRecvError::Empty);
            }
            let first = full.trailing_zeros() as usize;
            if self.0.full.fetch_and(!(1 << first), Ordering::AcqRel) & 1 << first != 0 {
                let thing = self.0.places.lock().unwrap()[first].take();
                return thing.ok_or(TryRecvError::Empty);
            }
        }
    }

    pub(crate) fn recv(&self) -> Result<T, TryRecvError> {
        loop {
            match self.try_recv() {
                Err(TryRecvError::Empty) => yield_now(),
                other => return other,
            }
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.0.places.lock().unwrap().iter().flatten().count()
    }
}
