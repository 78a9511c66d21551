//! Who leads: of all threads that could run a piece of state, one does.

use std::fmt;
use std::sync::TryLockError;

use super::prim::{AtomicU64, Mutex, MutexGuard, Ordering, fence};

/// State that any thread may run, one at a time, and a sitter: a thread of its own that runs it when nobody else
/// does, and sleeps meanwhile.
///
/// Nobody ever waits for the lead. Who finds it taken leaves its wish where the leader looks. The sitter names the
/// time until which it sleeps, and a leader that leaves something to be done earlier learns that it must wake it.
pub(crate) struct Lead<D> {
    /// `None` before the start and after the end.
    state: Mutex<Option<D>>,
    /// Until when the sitter sleeps, in the state's own measure of time.
    sleeps_until: AtomicU64,
}

impl<D> Lead<D> {
    /// Without a state yet.
    pub(crate) fn new() -> Self {
        Self { state: Mutex::new(None), sleeps_until: AtomicU64::new(0) }
    }

    /// Brings the state, or takes it away.
    pub(crate) fn put(&self, state: Option<D>) -> Option<D> {
        let mut guard = match self.state.lock() {
            Ok(guard) => guard,
            Err(poisoned) => poisoned.into_inner(),
        };
        std::mem::replace(&mut *guard, state)
    }

    /// The lead, where nobody has it and there is a state. Cost: one atomic operation.
    pub(crate) fn take(&self) -> Option<Leading<'_, D>> {
        let guard = match self.state.try_lock() {
            Ok(guard) => guard,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        guard.is_some().then_some(Leading { guard, whole: true, lead: self })
    }

    /// Whether there is nothing to lead: it has ended, and does not come again.
    pub(crate) fn is_over(&self) -> bool {
        match self.state.try_lock() {
            Ok(guard) => guard.is_none(),
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner().is_none(),
            Err(TryLockError::WouldBlock) => false,
        }
    }

    /// The sitter sleeps until `until` without a look at the state, since somebody else is trusted to have looked by then.
    pub(crate) fn sit_aside(&self, until: u64) {
        self.sleeps_until.store(until, Ordering::Relaxed);
    }

    /// The lead for the sitter. Where another has it, the sitter sleeps until `until` if nobody wakes it, which the
    /// other, when it leaves, is sure to see.
    pub(crate) fn take_or_sit(&self, until: u64) -> Option<Leading<'_, D>> {
        self.take().or_else(|| {
            self.sleeps_until.store(until, Ordering::Relaxed);
            // Either the leader that leaves reads that, or it has left and the lead is free: of two that each write
            // and then look at the other's, with a fence between, one sees.
            fence(Ordering::SeqCst);
            self.take()
        })
    }
}

impl<D> fmt::Debug for Lead<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lead").finish_non_exhaustive()
    }
}

/// The lead. A thread that panics with it takes the state down, whose drop tells everybody.
pub(crate) struct Leading<'a, D> {
    guard: MutexGuard<'a, Option<D>>,
    whole: bool,
    lead: &'a Lead<D>,
}

impl<D> Leading<'_, D> {
    /// Runs the state.
    pub(crate) fn run<R>(&mut self, act: impl FnOnce(&mut D) -> R) -> Option<R> {
        let state = self.guard.as_mut()?;
        self.whole = false;
        let result = act(state);
        self.whole = true;
        Some(result)
    }

    /// Ends the state: nobody leads after this.
    pub(crate) fn end(mut self) -> Option<D> {
        self.guard.take()
    }

    /// Leaves. `next` is when there is something to be done again. True where the sitter sleeps for longer: the
    /// caller then wakes it.
    #[must_use]
    pub(crate) fn leave(self, next: u64) -> bool {
        let lead = self.lead;
        drop(self);
        fence(Ordering::SeqCst);
        next < lead.sleeps_until.load(Ordering::Relaxed)
    }

    /// The sitter leaves, and sleeps until `next` if nobody wakes it.
    pub(crate) fn sit(self, next: u64) {
        self.lead.sleeps_until.store(next, Ordering::Relaxed);
    }
}

impl<D> Drop for Leading<'_, D> {
    fn drop(&mut self) {
        if !self.whole {
            drop(self.guard.take());
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn one_leads_and_a_sleeper_is_woken_for_what_comes_earlier() {
        let lead = Lead::new();
        assert!(lead.take().is_none(), "nothing to lead");
        lead.put(Some(7));
        let mut first = lead.take().unwrap();
        assert!(lead.take().is_none() && lead.take_or_sit(2000).is_none());
        assert_eq!(first.run(|state| std::mem::replace(state, 8)), Some(7));
        assert!(first.leave(1000), "the sitter sleeps for longer");
        lead.take_or_sit(0).unwrap().sit(500);
        assert!(!lead.take().unwrap().leave(500));
        assert!(lead.take().unwrap().leave(499));
        assert_eq!(lead.take().unwrap().end(), Some(8));
        assert!(lead.take().is_none());
    }

    #[test]
    fn a_panic_in_the_lead_ends_the_state() {
        let lead = Lead::new();
        lead.put(Some(7));
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            lead.take().unwrap().run(|_| panic!("a fault"));
        }));
        assert!(panicked.is_err() && lead.take().is_none() && lead.is_over());
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use loom::sync::Arc;
    use loom::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    /// A leader that leaves something for later, and a sitter that comes meanwhile: one of the two knows of it.
    #[test]
    fn what_is_left_for_later_is_known_to_the_sitter() {
        loom::model(|| {
            let lead = Arc::new(Lead::new());
            lead.put(Some(u64::MAX));
            let woken = Arc::new(AtomicBool::new(false));
            let leader = {
                let (lead, woken) = (Arc::clone(&lead), Arc::clone(&woken));
                loom::thread::spawn(move || {
                    if let Some(mut leading) = lead.take() {
                        leading.run(|next| *next = 5);
                        // Loom does not look what others find while a lock is held, unless they get their turn.
                        loom::thread::yield_now();
                        if leading.leave(5) {
                            woken.store(true, Ordering::Relaxed);
                        }
                    }
                })
            };
            let mut sat = None;
            if let Some(mut leading) = lead.take_or_sit(u64::MAX) {
                let next = leading.run(|next| *next).unwrap();
                leading.sit(next);
                sat = Some(next);
            }
            leader.join().unwrap();
            let left = lead.take().unwrap().run(|next| *next).unwrap();
            assert!(
                left == u64::MAX || sat == Some(5) || woken.load(Ordering::Relaxed),
                "it sleeps too long"
            );
        });
    }
}
