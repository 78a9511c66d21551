//! Who is still inside: users of memory against its end.

use std::sync::Arc;

use crate::sync::prim::{AtomicU32, Ordering};

/// Set in the word of a gate that is closed; the other bits count users.
const CLOSED: u32 = 1 << 31;

/// Lets users in until it is closed, and knows when the last one has left.
///
/// Both are told by one word, so that each who comes in and the one who closes have an order: a user who was first is
/// counted, one who is later finds the gate closed.
#[derive(Debug, Default)]
pub(crate) struct Gate(AtomicU32);

impl Gate {
    /// One more user, unless the gate is closed. Cost: one atomic operation.
    fn enter(&self) -> bool {
        let open = self.0.fetch_add(1, Ordering::Acquire) & CLOSED == 0;
        if !open {
            self.leave();
        }
        open
    }

    /// A user leaves, with everything that it did behind the gate.
    fn leave(&self) {
        self.0.fetch_sub(1, Ordering::Release);
    }

    /// Lets nobody in any more.
    pub(crate) fn close(&self) {
        self.0.fetch_or(CLOSED, Ordering::AcqRel);
    }

    /// Whether it is closed.
    pub(crate) fn is_closed(&self) -> bool {
        self.0.load(Ordering::Acquire) & CLOSED != 0
    }

    /// Whether nobody is inside. Once the gate is closed nobody comes in after that; then everything that users did is
    /// there.
    pub(crate) fn is_idle(&self) -> bool {
        self.0.load(Ordering::Acquire) & !CLOSED == 0
    }
}

/// Something behind a gate.
pub(crate) trait Gated {
    /// Its gate.
    fn gate(&self) -> &Gate;
}

/// Goes in at every gate, or at none: then the one that is closed is returned. Who went in must [`leave`].
pub(crate) fn enter<T: Gated>(things: &[Arc<T>]) -> Result<(), &Arc<T>> {
    for (entered, thing) in things.iter().enumerate() {
        if !thing.gate().enter() {
            leave(&things[..entered]);
            return Err(thing);
        }
    }
    Ok(())
}

/// Leaves where [`enter`] went in.
pub(crate) fn leave<T: Gated>(things: &[Arc<T>]) {
    for thing in things {
        thing.gate().leave();
    }
}

/// Whether somebody waits for one of the things to be left.
pub(crate) fn are_awaited<T: Gated>(things: &[Arc<T>]) -> bool {
    things.iter().any(|thing| thing.gate().is_closed())
}

#[cfg(test)]
impl Gated for Gate {
    fn gate(&self) -> &Gate {
        self
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    #[test]
    fn a_closed_gate_lets_nobody_in_and_knows_when_the_last_has_left() {
        let (a, b) = (Arc::new(Gate::default()), Arc::new(Gate::default()));
        let both = [Arc::clone(&a), Arc::clone(&b)];
        enter(&both).unwrap();
        b.close();
        assert!(b.is_closed() && !b.is_idle());
        assert!(Arc::ptr_eq(enter(&both).unwrap_err(), &b));
        leave(&both);
        assert!(a.is_idle() && b.is_idle());
    }

    #[test]
    fn nobody_is_inside_after_the_closer_saw_nobody() {
        for _ in 0..200 {
            let gate = Arc::new(Gate::default());
            let touched = Arc::new(AtomicBool::new(false));
            let user = {
                let (gate, touched) = (Arc::clone(&gate), Arc::clone(&touched));
                std::thread::spawn(move || {
                    if enter(std::slice::from_ref(&gate)).is_ok() {
                        touched.store(true, Ordering::SeqCst);
                        leave(&[gate]);
                    }
                })
            };
            gate.close();
            while !gate.is_idle() {
                std::hint::spin_loop();
            }
            let seen = touched.load(Ordering::SeqCst);
            user.join().unwrap();
            assert_eq!(seen, touched.load(Ordering::SeqCst), "somebody came in after the gate was idle");
        }
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use loom::cell::UnsafeCell;

    use super::*;

    /// Two users and a closer: what users do behind the gate, and what the closer does once it is idle, never meet.
    #[test]
    fn nobody_is_inside_after_the_closer_saw_nobody() {
        loom::model(|| {
            let gate = Arc::new(Gate::default());
            let memory: Arc<[_; 2]> = Arc::new(std::array::from_fn(|_| UnsafeCell::new(())));
            let users = [0, 1].map(|at| {
                let (gate, memory) = (Arc::clone(&gate), Arc::clone(&memory));
                loom::thread::spawn(move || {
                    if enter(std::slice::from_ref(&gate)).is_ok() {
                        memory[at].with_mut(|_| ());
                        leave(&[gate]);
                    }
                })
            });
            gate.close();
            while !gate.is_idle() {
                loom::thread::yield_now();
            }
            memory.iter().for_each(|place| place.with_mut(|_| ()));
            users.into_iter().for_each(|user| user.join().unwrap());
            assert!(gate.is_idle() && gate.is_closed());
        });
    }
}
