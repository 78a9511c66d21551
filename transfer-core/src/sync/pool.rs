//! Memory that was used, kept for its next use.

use std::fmt;
use std::ops::Deref;
use std::sync::{Arc as Owner, Weak};

use super::prim::channel::{Receiver, Sender, bounded};
use super::prim::{Arc, AtomicUsize, Ordering, yield_now};

/// Both ends of a queue.
type Ends<T> = (Sender<T>, Receiver<T>);

/// Things of one kind, at most as many as it was made for. Giving and taking cost neither an allocation nor a lock.
pub(crate) struct Pool<T> {
    kept: Owner<Ends<T>>,
}

impl<T> Pool<T> {
    pub(crate) fn new(max: usize) -> Self {
        Self { kept: Owner::new(bounded(max)) }
    }

    /// A used one, where there is one.
    pub(crate) fn take(&self) -> Option<T> {
        self.kept.1.try_recv().ok()
    }

    /// Keeps it, unless there are enough.
    pub(crate) fn give(&self, thing: T) {
        let _kept = self.kept.0.try_send(thing);
    }
}

impl<T> fmt::Debug for Pool<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("kept", &self.kept.1.len()).finish_non_exhaustive()
    }
}

/// What can be used again.
pub(crate) trait Reuse: Default {
    /// Lets go of everything but memory. Nobody else holds it.
    fn clear(&mut self);
}

/// A shared thing, as with [`Arc`], that goes back to its pool when the last one lets go of it.
pub(crate) struct Held<T: Reuse> {
    /// Only the drop takes it out.
    slot: Option<Arc<Slot<T>>>,
}

pub(crate) struct Slot<T> {
    thing: T,
    /// How many hold it. Apart from the count of the `Arc`, since that one's last holder cannot keep it.
    holders: AtomicUsize,
    /// Weak, since the pool owns those that lie in it.
    home: Weak<Ends<Arc<Self>>>,
}

/// A pool of shared things.
pub(crate) type Shelf<T> = Pool<Arc<Slot<T>>>;

impl<T: Reuse> Pool<Arc<Slot<T>>> {
    /// One that nobody holds, filled by `fill`. Allocates only where the pool has none.
    pub(crate) fn hold(&self, fill: impl FnOnce(&mut T)) -> Held<T> {
        let home = || Owner::downgrade(&self.kept);
        let make = || Arc::new(Slot { thing: T::default(), holders: AtomicUsize::new(0), home: home() });
        let mut slot = self.take().unwrap_or_else(make);
        if Arc::get_mut(&mut slot).is_none() {
            slot = make();
        }
        if let Some(only) = Arc::get_mut(&mut slot) {
            only.holders = AtomicUsize::new(1);
            fill(&mut only.thing);
        }
        Held { slot: Some(slot) }
    }
}

impl<T: Reuse> Held<T> {
    #[expect(clippy::expect_used, reason = "only the drop takes it out")]
    fn slot(&self) -> &Arc<Slot<T>> {
        self.slot.as_ref().expect("a thing that is held")
    }

    /// Whether both are the same.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(self.slot(), other.slot())
    }
}

impl<T: Reuse> Deref for Held<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.slot().thing
    }
}

impl<T: Reuse> Clone for Held<T> {
    fn clone(&self) -> Self {
        self.slot().holders.fetch_add(1, Ordering::Relaxed);
        Self { slot: Some(Arc::clone(self.slot())) }
    }
}

impl<T: Reuse> Drop for Held<T> {
    fn drop(&mut self) {
        /// How often to look whether those who let go before have done so wholly.
        const LOOKS: u32 = 1000;
        let Some(mut slot) = self.slot.take() else { return };
        if slot.holders.fetch_sub(1, Ordering::AcqRel) > 1 {
            return;
        }
        // The others have counted themselves out, and are an instruction away from dropping their `Arc`. Should one
        // of them be held up just there, the thing is not kept, but freed by whoever is last.
        for _ in 0..LOOKS {
            if let Some(only) = Arc::get_mut(&mut slot) {
                only.thing.clear();
                if let Some(home) = only.home.upgrade() {
                    let _kept = home.0.try_send(slot);
                }
                return;
            }
            yield_now();
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Thing(Vec<u8>);

    impl Reuse for Thing {
        fn clear(&mut self) {
            self.0.clear();
        }
    }

    #[test]
    fn the_last_holder_gives_it_back_cleared_and_with_its_memory() {
        let shelf = Shelf::<Thing>::new(1);
        let first = shelf.hold(|thing| thing.0.extend([1; 1000]));
        let at = first.0.as_ptr();
        let other = first.clone();
        assert!(first.is(&other));
        drop(first);
        assert!(shelf.take().is_none() && other.0.len() == 1000);
        drop(other);
        let again = shelf.hold(|thing| assert!(thing.0.is_empty() && thing.0.capacity() >= 1000));
        assert_eq!(again.0.as_ptr(), at);
        // More than it keeps, and longer than it lives.
        let third = shelf.hold(|_| {});
        drop((again, third));
        let at = Arc::downgrade(&shelf.take().unwrap());
        drop(shelf.hold(|_| {}));
        drop(shelf);
        assert!(at.upgrade().is_none(), "it owns what lies in it");
    }

    #[test]
    fn many_threads_let_go_at_once_and_one_gives_it_back() {
        let shelf = Shelf::<Thing>::new(4);
        for round in 0..500_usize {
            let held = shelf.hold(|thing| thing.0.resize(round % 7, 1));
            std::thread::scope(|scope| {
                for _ in 0..3 {
                    let held = held.clone();
                    scope.spawn(move || assert_eq!(held.0.len(), round % 7));
                }
                drop(held);
            });
            assert_eq!(shelf.kept.1.len(), 1, "it came back, and nothing else");
        }
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;

    #[derive(Default)]
    struct Thing(loom::cell::UnsafeCell<u32>);

    impl Reuse for Thing {
        fn clear(&mut self) {
            self.0.with_mut(|_| ());
        }
    }

    /// Whoever is last clears it after all others have looked for the last time, and whoever has it next fills it after
    /// that.
    #[test]
    fn nobody_looks_at_it_any_more_when_it_is_cleared_or_filled_anew() {
        loom::model(|| {
            let shelf = Arc::new(Shelf::<Thing>::new(1));
            let held = shelf.hold(|_| {});
            let other = held.clone();
            let thread = loom::thread::spawn(move || other.0.with(|_| ()));
            let next = {
                let shelf = Arc::clone(&shelf);
                loom::thread::spawn(move || drop(shelf.hold(|thing| thing.0.with_mut(|_| ()))))
            };
            held.0.with(|_| ());
            drop(held);
            thread.join().unwrap();
            next.join().unwrap();
            assert!(shelf.take().is_some_and(|mut slot| Arc::get_mut(&mut slot).is_some()), "one came back");
        });
    }
}
