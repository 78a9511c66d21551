//! Whether somebody who brings work has to wake the one who does it.

use super::prim::{AtomicU8, Ordering};

/// Works through what was brought, or is about to look at it.
const AWAKE: u8 = 0;
/// Sleeps, and has to be woken.
const ASLEEP: u8 = 1;
/// Something was brought that was not looked at yet.
const RUNG: u8 = 2;

/// A word between many who bring work to queues and one who takes it from there.
///
/// Who brings puts its work into a queue and then rings; who takes calls [`Doorbell::answer`] and then looks into
/// the queues, and sleeps only if [`Doorbell::sleep`] allows it. All three are read-modify-writes of one word, so
/// they have an order: a ring before an answer gives its work to that answer, one after it forbids the sleep, and
/// one after the sleep says that a wake is due. Nothing is brought in vain.
#[derive(Debug)]
pub(super) struct Doorbell(AtomicU8);

impl Doorbell {
    /// With nobody asleep.
    pub(super) fn new() -> Self {
        Self(AtomicU8::new(AWAKE))
    }

    /// Something was brought. True where the one who takes it sleeps: the caller then wakes it.
    #[must_use]
    pub(super) fn ring(&self) -> bool {
        self.0.swap(RUNG, Ordering::AcqRel) == ASLEEP
    }

    /// All that was brought up to now is about to be looked at.
    pub(super) fn answer(&self) {
        self.0.swap(AWAKE, Ordering::AcqRel);
    }

    /// Whether it is all right to sleep: nothing was brought since the last answer. Who then sleeps is woken.
    #[must_use]
    pub(super) fn sleep(&self) -> bool {
        match self.0.compare_exchange(AWAKE, ASLEEP, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => true,
            Err(found) => found == ASLEEP,
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_ring_of_a_sleeper_wakes_it() {
        let bell = Doorbell::new();
        assert!(!bell.ring() && !bell.sleep(), "brought while awake: looked at before it sleeps");
        bell.answer();
        assert!(bell.sleep() && bell.sleep());
        assert!(bell.ring() && !bell.ring() && !bell.sleep());
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use loom::sync::Arc;
    use loom::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Two bring, one takes: when the taker sleeps without being woken, it has taken everything.
    #[test]
    fn nothing_is_brought_in_vain() {
        loom::model(|| {
            let bell = Arc::new(Doorbell::new());
            let (queue, wakes) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
            let bring = || {
                let (bell, queue, wakes) = (Arc::clone(&bell), Arc::clone(&queue), Arc::clone(&wakes));
                loom::thread::spawn(move || {
                    // Relaxed on purpose: the bell alone makes it visible.
                    queue.fetch_add(1, Ordering::Relaxed);
                    if bell.ring() {
                        wakes.fetch_add(1, Ordering::Relaxed);
                    }
                })
            };
            let bringers = [bring(), bring()];
            let mut taken = 0;
            for _ in 0..3 {
                bell.answer();
                // A plain look, which sees no more than the bell makes visible.
                let seen = queue.load(Ordering::Relaxed);
                queue.fetch_sub(seen, Ordering::Relaxed);
                taken += seen;
                if bell.sleep() {
                    break;
                }
            }
            bringers.into_iter().for_each(|thread| thread.join().unwrap());
            let left = queue.load(Ordering::Relaxed);
            assert_eq!(taken + left, 2);
            assert!(left == 0 || wakes.load(Ordering::Relaxed) > 0, "it sleeps over work");
        });
    }
}
