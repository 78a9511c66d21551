//! Who waits while another leads, and may be asked to lead next.

use std::fmt;

use super::prim::{AtomicUsize, Mutex, MutexGuard, Ordering, fence};

/// Those who found the lead taken. Cost where there is nobody: one load.
pub(crate) struct Followers<W> {
    count: AtomicUsize,
    who: Mutex<Vec<W>>,
}

impl<W> Followers<W> {
    pub(crate) fn new() -> Self {
        Self { count: AtomicUsize::new(0), who: Mutex::new(Vec::new()) }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<W>> {
        match self.who.lock() {
            Ok(guard) => guard,
            Err(poisoned) => poisoned.into_inner(),
        }
    }

    /// From here on a leader that leaves will see `who`. The caller looks once more whether the lead is free: a
    /// leader that left before did not see it.
    pub(crate) fn join(&self, who: W) {
        let mut followers = self.lock();
        followers.push(who);
        self.count.store(followers.len(), Ordering::Relaxed);
        drop(followers);
        fence(Ordering::SeqCst);
    }

    /// The first that `is` takes is a follower no more.
    pub(crate) fn part(&self, is: impl Fn(&W) -> bool) {
        let mut followers = self.lock();
        if let Some(at) = followers.iter().position(is) {
            followers.swap_remove(at);
        }
        self.count.store(followers.len(), Ordering::Relaxed);
    }

    /// Somebody to lead next; called after the lead was left.
    pub(crate) fn next(&self) -> Option<W> {
        fence(Ordering::SeqCst);
        if self.count.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let mut followers = self.lock();
        let next = followers.pop();
        self.count.store(followers.len(), Ordering::Relaxed);
        next
    }

    /// Whether anybody waits, as of now.
    pub(crate) fn any(&self) -> bool {
        self.count.load(Ordering::Relaxed) > 0
    }
}

impl<W> fmt::Debug for Followers<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Followers").field("any", &self.any()).finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn who_joined_leads_next_unless_it_parted() {
        let followers = Followers::new();
        assert!(followers.next().is_none());
        (1..=3).for_each(|who| followers.join(who));
        followers.part(|who| *who == 3);
        followers.part(|who| *who == 3);
        assert!(followers.any());
        let mut next = [followers.next(), followers.next(), followers.next()];
        next.sort_unstable();
        assert_eq!((next, followers.any()), ([None, Some(1), Some(2)], false));
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use std::time::Duration;

    use loom::sync::Arc;

    use super::super::{Ending, Lead};
    use super::*;

    /// One that finds the lead taken either gets it when it looks again, or is asked by the leader that leaves: it never
    /// sleeps beside a lead that is free.
    #[test]
    fn nobody_is_left_waiting_for_a_lead_that_is_free() {
        loom::model(|| {
            let (lead, followers) = (Arc::new(Lead::new()), Arc::new(Followers::new()));
            lead.put(Some(()));
            let leading = lead.take().unwrap();
            let follower = {
                let (lead, followers) = (Arc::clone(&lead), Arc::clone(&followers));
                loom::thread::spawn(move || {
                    let ending = Arc::new(Ending::<()>::default());
                    followers.join(Arc::clone(&ending));
                    if lead.take().is_none() {
                        ending.follow(Duration::MAX);
                    }
                })
            };
            // Loom does not look what others find while a lock is held, unless they get their turn.
            loom::thread::yield_now();
            let _wake_sitter = leading.leave(0);
            if let Some(next) = followers.next() {
                next.promote();
            }
            follower.join().unwrap();
        });
    }
}
