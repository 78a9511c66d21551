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
        thing.gate().users.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Whether somebody waits for one of the things to be left.
pub(crate) fn are_awaited<T: Gated>(things: &[Arc<T>]) -> bool {
    things.iter().any(|thing| thing.gate().is_closed())
}

/// Things that a [`Pass`] holds without an allocation. The spans of a slice lie together more often than not.
const FEW: usize = 4;

/// The right to touch some things behind gates; leaves them when dropped.
#[derive(Debug)]
pub(crate) struct Pass<T: Gated> {
    few: [Option<Arc<T>>; FEW],
    more: Vec<Arc<T>>,
}

impl<T: Gated> Pass<T> {
    /// Goes in at every gate, or at none: then the one that is closed is returned.
    pub(crate) fn enter(things: &[Arc<T>]) -> Result<Self, Arc<T>> {
        enter(things).map_err(Arc::clone)?;
        let (few, more) = things.split_at(things.len().min(FEW));
        let few = std::array::from_fn(|at| few.get(at).map(Arc::clone));
        Ok(Self { few, more: more.to_vec() })
    }
}

impl<T: Gated> Drop for Pass<T> {
    fn drop(&mut self) {
        leave(&self.more);
        for thing in self.few.iter().flatten() {
            leave(std::slice::from_ref(thing));
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
        assert!(b.is_closed() && !b.is_idle());
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
