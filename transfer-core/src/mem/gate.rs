//! Who is still inside: users of memory against its end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// Lets users in until it is closed, and knows when the last one has left.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    closed: AtomicBool,
    users: AtomicU32,
}

impl Gate {
    /// One more user, or `None` when the gate is closed.
    ///
    /// The order of the two steps is the point: a user counts itself before it looks, and the closer closes
    /// before it counts. In the single total order of these `SeqCst` operations one of them sees the other, so a
    /// closer that counts nobody knows that nobody will come in.
    fn enter(&self) -> bool {
        self.users.fetch_add(1, Ordering::SeqCst);
        if self.closed.load(Ordering::SeqCst) {
            self.users.fetch_sub(1, Ordering::SeqCst);
            return false;
        }
        true
    }

    /// Lets nobody in any more.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
    }

    /// Whether it is closed.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Whether nobody is inside. Stays true once the gate is closed.
    pub(crate) fn is_idle(&self) -> bool {
        self.users.load(Ordering::SeqCst) == 0
    }
}

/// Something behind a gate.
pub(crate) trait Gated {
    /// Its gate.
    fn gate(&self) -> &Gate;
}

/// The right to touch some things behind gates; leaves them when dropped.
#[derive(Debug)]
pub(crate) struct Pass<T: Gated>(Vec<Arc<T>>);

impl<T: Gated> Pass<T> {
    /// Goes in at every gate, or at none: then the one that is closed is returned.
    pub(crate) fn enter(things: &[Arc<T>]) -> Result<Self, Arc<T>> {
        let mut pass = Self(Vec::with_capacity(things.len()));
        for thing in things {
            if !thing.gate().enter() {
                return Err(Arc::clone(thing));
            }
            pass.0.push(Arc::clone(thing));
        }
        Ok(pass)
    }

    /// Whether somebody waits for one of the things to be left.
    pub(crate) fn is_awaited(&self) -> bool {
        self.0.iter().any(|thing| thing.gate().is_closed())
    }
}

impl<T: Gated> Drop for Pass<T> {
    fn drop(&mut self) {
        for thing in &self.0 {
            thing.gate().users.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Gated for Gate {
        fn gate(&self) -> &Gate {
            self
        }
    }

    #[test]
    fn a_closed_gate_lets_nobody_in_and_knows_when_the_last_has_left() {
        let (a, b) = (Arc::new(Gate::default()), Arc::new(Gate::default()));
        let pass = Pass::enter(&[Arc::clone(&a), Arc::clone(&b)]).unwrap();
        b.close();
        assert!(pass.is_awaited() && !b.is_idle());
        assert!(Arc::ptr_eq(&Pass::enter(&[Arc::clone(&a), Arc::clone(&b)]).unwrap_err(), &b));
        drop(pass);
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
                    if let Ok(_pass) = Pass::enter(&[gate]) {
                        touched.store(true, Ordering::SeqCst);
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
