//! How something ends, once, and how everybody who wants to know of it learns it.

use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::PoisonError;
use std::task::Waker;
use std::time::Duration;

use super::prim::{AtomicBool, Condvar, Mutex, MutexGuard, Ordering};

/// What the application wants done at the end.
type Callback<T> = Box<dyn FnOnce(T) + Send>;

/// An outcome that comes once. It is looked for, waited for by any number of threads and by one future, and told to a
/// callback.
pub(crate) struct Ending<T> {
    /// Whether the outcome is there, for those who need not know more.
    has_come: AtomicBool,
    state: Mutex<State<T>>,
    changed: Condvar,
}

struct State<T> {
    outcome: Option<T>,
    waker: Option<Waker>,
    callback: Option<Callback<T>>,
    /// Threads that wait for the condition.
    waiting: u32,
    /// One of them is asked to lead.
    promoted: bool,
}

impl<T> Default for State<T> {
    fn default() -> Self {
        Self { outcome: None, waker: None, callback: None, waiting: 0, promoted: false }
    }
}

impl<T> Default for Ending<T> {
    fn default() -> Self {
        Self {
            has_come: AtomicBool::new(false),
            state: Mutex::new(State::default()),
            changed: Condvar::new(),
        }
    }
}

impl<T: Clone> Ending<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the outcome, unless one was told before; whether it was this one. All that this thread did comes before
    /// it, for everybody who sees it. [`Ending::call_back`] is due afterwards.
    pub(crate) fn tell(&self, outcome: T) -> bool {
        let mut state = self.lock();
        if state.outcome.is_some() {
            return false;
        }
        state.outcome = Some(outcome);
        let (waker, waiting) = (state.waker.take(), state.waiting > 0);
        self.has_come.store(true, Ordering::Release);
        drop(state);
        if waiting {
            self.changed.notify_all();
        }
        if let Some(waker) = waker {
            waker.wake();
        }
        true
    }

    /// Whether the outcome is there. Cost: one load.
    pub(crate) fn has_come(&self) -> bool {
        self.has_come.load(Ordering::Acquire)
    }

    /// The outcome, where it is there. Cost: one load before it comes, and then a lock that only those share who wait
    /// for it.
    pub(crate) fn outcome(&self) -> Option<T> {
        if self.has_come() { self.lock().outcome.clone() } else { None }
    }

    /// The outcome, or `waker`, in the place of an earlier one, is woken when it comes.
    pub(crate) fn poll(&self, waker: &Waker) -> Option<T> {
        let mut state = self.lock();
        if state.outcome.is_some() {
            return state.outcome.clone();
        }
        let earlier = state.waker.replace(waker.clone());
        // What hangs on it may end with it, and look at this.
        drop(state);
        drop(earlier);
        None
    }

    /// Has `callback` called with the outcome, in the place of an earlier one: now if it is there.
    pub(crate) fn on_end(&self, callback: Callback<T>) {
        // Dropped without the lock, as in `poll`.
        let earlier = self.lock().callback.replace(callback);
        drop(earlier);
        if self.has_come() {
            self.call_back();
        }
    }

    /// Whether [`Ending::call_back`] is due.
    pub(crate) fn has_callback(&self) -> bool {
        self.lock().callback.is_some()
    }

    /// Calls what is to be called, once, when the outcome is there.
    pub(crate) fn call_back(&self) {
        let mut state = self.lock();
        if state.outcome.is_none() {
            return;
        }
        let (outcome, callback) = (state.outcome.clone(), state.callback.take());
        drop(state);
        let (Some(outcome), Some(callback)) = (outcome, callback) else { return };
        // A thread that happens to drive the agent must not suffer from it.
        if std::panic::catch_unwind(AssertUnwindSafe(|| callback(outcome))).is_err() {
            tracing::error!("the application's callback for a transfer panicked");
        }
    }

    /// Waits until the outcome is there, or the thread is asked to lead, at most for `left`.
    pub(crate) fn follow(&self, left: Duration) {
        let mut state = self.lock();
        if state.outcome.is_none() && !state.promoted {
            state.waiting += 1;
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
            state.waiting -= 1;
        }
        state.promoted = false;
    }

    /// Asks a thread that follows to lead.
    pub(crate) fn promote(&self) {
        let mut state = self.lock();
        state.promoted = true;
        let waiting = state.waiting > 0;
        drop(state);
        if waiting {
            self.changed.notify_one();
        }
    }

    /// As new. Nobody else has it.
    pub(crate) fn reset(&mut self) {
        self.has_come = AtomicBool::new(false);
        *self.state.get_mut().unwrap_or_else(PoisonError::into_inner) = State::default();
    }
}

impl<T: Clone> fmt::Debug for Ending<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ending").field("has_come", &self.has_come()).finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::Arc;
    use std::task::Wake;

    use super::*;

    /// Looks at the ending when it is dropped, as what an application's task or callback holds may do.
    struct Looks(Arc<Ending<u32>>);

    impl Wake for Looks {
        fn wake(self: Arc<Self>) {}
    }

    impl Drop for Looks {
        fn drop(&mut self) {
            self.0.tell(7);
            assert_eq!(self.0.outcome(), Some(7));
        }
    }

    #[test]
    fn what_an_earlier_waker_or_callback_held_may_look_at_it_when_it_goes() {
        let ending = Arc::new(Ending::default());
        let looks = Waker::from(Arc::new(Looks(Arc::clone(&ending))));
        assert_eq!(ending.poll(&looks), None);
        drop(looks);
        assert_eq!(ending.poll(Waker::noop()), None, "as of then");
        assert_eq!(ending.poll(Waker::noop()), Some(7));

        let ending = Arc::new(Ending::default());
        let looks = Looks(Arc::clone(&ending));
        ending.on_end(Box::new(move |_| drop(looks)));
        let (told, tells) = std::sync::mpsc::channel();
        ending.on_end(Box::new(move |outcome| told.send(outcome).unwrap()));
        assert_eq!(tells.try_iter().collect::<Vec<_>>(), [7]);
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use std::sync::Arc;
    use std::task::Wake;

    use loom::sync::atomic::AtomicUsize;
    use loom::thread;

    use super::*;

    /// What was moved, and its end.
    #[derive(Default)]
    struct Moved {
        memory: AtomicUsize,
        ending: Ending<u32>,
        called: AtomicUsize,
    }

    impl Moved {
        /// As a thread that moves the last bytes.
        fn end(&self) {
            // Relaxed on purpose, here and below: the end alone makes it visible.
            self.memory.store(1, Ordering::Relaxed);
            self.ending.tell(1);
            self.ending.call_back();
        }

        /// As an application that takes its memory back.
        fn take_back(&self) {
            assert_eq!(self.memory.load(Ordering::Relaxed), 1, "it is still written");
        }
    }

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Runs `see` beside the end of a transfer. It may take the memory back when it knows of it.
    fn beside_the_end(see: impl Fn(&Arc<Moved>) + Send + Sync + 'static) {
        loom::model(move || {
            let moved = Arc::new(Moved::default());
            let mover = {
                let moved = Arc::clone(&moved);
                thread::spawn(move || moved.end())
            };
            see(&moved);
            mover.join().unwrap();
            assert_eq!(moved.ending.outcome(), Some(1));
        });
    }

    #[test]
    fn who_looks_and_sees_the_end_has_the_memory_back() {
        beside_the_end(|moved| {
            if moved.ending.has_come() {
                moved.take_back();
            }
        });
    }

    #[test]
    fn all_who_wait_are_woken_and_have_the_memory_back() {
        beside_the_end(|moved| {
            let waits = |moved: &Moved| {
                while moved.ending.outcome().is_none() {
                    moved.ending.follow(Duration::MAX);
                }
            };
            let other = Arc::clone(moved);
            let other = thread::spawn(move || waits(&other));
            waits(moved);
            other.join().unwrap();
            moved.take_back();
        });
    }

    #[test]
    fn a_future_is_ready_or_woken() {
        beside_the_end(|moved| {
            // Polled twice, by one task and then by another.
            let woken = [(); 2].map(|()| Arc::new(Woken::default()));
            let ready = woken.each_ref().map(|woken| moved.ending.poll(&Waker::from(Arc::clone(woken))));
            while ready[1].is_none() && woken[1].0.load(Ordering::Relaxed) == 0 {
                thread::yield_now();
            }
            assert_eq!(moved.ending.poll(Waker::noop()), Some(1));
            moved.take_back();
        });
    }

    #[test]
    fn a_callback_is_called_once() {
        loom::model(|| {
            let moved = Arc::new(Moved::default());
            let mover = {
                let moved = Arc::clone(&moved);
                thread::spawn(move || moved.end())
            };
            let seen = Arc::clone(&moved);
            moved.ending.on_end(Box::new(move |outcome| {
                assert_eq!(outcome, 1);
                seen.take_back();
                seen.called.fetch_add(1, Ordering::Relaxed);
            }));
            mover.join().unwrap();
            assert_eq!(moved.called.load(Ordering::Relaxed), 1);
        });
    }

    /// As where a driver ends a transfer, and another thread that posted it finds the driver gone.
    #[test]
    fn of_two_ends_one_is_told() {
        loom::model(|| {
            let ending = Arc::new(Ending::default());
            let other = {
                let ending = Arc::clone(&ending);
                thread::spawn(move || ending.tell(2))
            };
            let ours = ending.tell(1);
            let seen = ending.outcome().expect("one was told");
            assert_ne!(ours, other.join().unwrap());
            assert_eq!(seen, if ours { 1 } else { 2 });
            assert_eq!(ending.outcome(), Some(seen), "it stays");
        });
    }
}
