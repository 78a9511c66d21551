//! Waking whoever drives an agent.

use std::os::fd::{AsFd, BorrowedFd};

use transfer_sys::OsResult;
use transfer_sys::poll::EventFd;

use super::Doorbell;

/// A [`Doorbell`] with the descriptor that makes epoll_wait(2) return.
#[derive(Debug)]
pub(crate) struct Wake {
    bell: Doorbell,
    event: EventFd,
}

impl Wake {
    pub(crate) fn new() -> OsResult<Self> {
        Ok(Self { bell: Doorbell::new(), event: EventFd::new()? })
    }

    /// Something was put where the driver looks. Cost: no lock; a syscall only where the driver sleeps.
    pub(crate) fn set(&self) {
        if self.bell.ring() {
            self.event.set();
        }
    }

    /// Makes the descriptor tell again of what it has told a thread that does not drive.
    pub(crate) fn repeat(&self) {
        self.event.set();
    }

    /// The driver is about to look at all that was put there.
    pub(crate) fn answer(&self) {
        self.bell.answer();
    }

    /// Whether the driver may sleep; the next [`Wake::set`] then wakes it.
    #[must_use]
    pub(crate) fn sleep(&self) -> bool {
        self.bell.sleep()
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}
