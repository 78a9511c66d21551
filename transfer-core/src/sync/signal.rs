//! Telling those who watch many descriptors.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::OnceLock;

use transfer_sys::OsResult;
use transfer_sys::poll::EventFd;

use super::prim::{AtomicBool, Ordering, fence};

/// A descriptor that is readable once something has happened. There is none before somebody asks.
///
/// What happens is written first and told then; who asks makes the descriptor first and looks then. With a
/// sequentially consistent fence in each of the two, what happens is either told by the descriptor or seen.
#[derive(Debug)]
pub(crate) struct Signal {
    is_asked_for: AtomicBool,
    event: OnceLock<EventFd>,
}

impl Default for Signal {
    fn default() -> Self {
        Self { is_asked_for: AtomicBool::new(false), event: OnceLock::new() }
    }
}

impl Signal {
    /// Something has happened. Cost where nobody asked: a fence and a load.
    pub(crate) fn set(&self) {
        fence(Ordering::SeqCst);
        if self.is_asked_for.load(Ordering::Acquire)
            && let Some(event) = self.event.get()
        {
            event.set();
        }
    }

    /// The descriptor, set: what happened before it was asked for is not missed.
    pub(crate) fn fd(&self) -> OsResult<BorrowedFd<'_>> {
        let event = match self.event.get() {
            Some(event) => event,
            None => {
                let event = EventFd::new()?;
                event.set();
                self.event.get_or_init(|| event)
            }
        };
        // Each who asks, since the one who made it may not have come as far.
        self.is_asked_for.store(true, Ordering::Release);
        fence(Ordering::SeqCst);
        Ok(event.as_fd())
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use std::fs::File;
    use std::io::Read as _;
    use std::sync::Arc;

    use super::*;

    /// Empties the descriptor; whether it was readable.
    fn was_readable(signal: &Signal) -> bool {
        let fd = signal.fd().unwrap().try_clone_to_owned().unwrap();
        File::from(fd).read(&mut [0; 8]).is_ok()
    }

    /// Of two who ask at once, one may get the descriptor that the other made.
    #[test]
    fn what_happens_while_the_descriptor_is_asked_for_is_told_or_seen() {
        loom::model(|| {
            let signal = Arc::new(Signal::default());
            let happened = Arc::new(AtomicBool::new(false));
            let teller = {
                let (signal, happened) = (Arc::clone(&signal), Arc::clone(&happened));
                loom::thread::spawn(move || {
                    // Relaxed on purpose: the signal alone makes it visible.
                    happened.store(true, Ordering::Relaxed);
                    signal.set();
                })
            };
            let other = {
                let signal = Arc::clone(&signal);
                loom::thread::spawn(move || signal.fd().is_ok())
            };
            assert!(was_readable(&signal), "set from the start");
            let seen = happened.load(Ordering::Relaxed);
            assert!(other.join().unwrap());
            teller.join().unwrap();
            assert!(seen || was_readable(&signal), "it sleeps over what has happened");
        });
    }
}
