//! Readiness of many descriptors, and a word to wake the thread that waits for it.
#![allow(unsafe_code, reason = "epoll and eventfd")]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use crate::{OsError, OsResult};

/// What is ready on a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Ready {
    /// The number it was added under.
    pub token: u64,
    /// A read would not block (data, end of stream or an error to fetch).
    pub readable: bool,
    /// A write would not block.
    pub writable: bool,
}

/// A level-triggered epoll instance (epoll(7)).
#[derive(Debug)]
pub struct Epoll {
    fd: OwnedFd,
}

impl Epoll {
    /// A new, empty instance.
    ///
    /// # Errors
    /// [`OsError`] of epoll_create1, such as EMFILE.
    pub fn new() -> OsResult<Self> {
        // SAFETY: plain call.
        let raw = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if raw < 0 {
            return Err(OsError::last("epoll_create1", ""));
        }
        // SAFETY: just made.
        Ok(Self { fd: unsafe { OwnedFd::from_raw_fd(raw) } })
    }

    /// Watches `fd` under `token`. Closing the descriptor ends the watch.
    ///
    /// # Errors
    /// [`OsError`] of epoll_ctl.
    pub fn add(&self, fd: BorrowedFd<'_>, token: u64, readable: bool, writable: bool) -> OsResult<()> {
        self.ctl(libc::EPOLL_CTL_ADD, fd.as_raw_fd(), token, interest(readable, writable))
    }

    /// Watches `fd` under `token` for each time that something comes: it is told once, and need not be read. For an
    /// [`EventFd`] that nobody clears.
    ///
    /// # Errors
    /// [`OsError`] of epoll_ctl.
    pub fn add_edge(&self, fd: BorrowedFd<'_>, token: u64) -> OsResult<()> {
        let events = interest(true, false) | libc::EPOLLET.cast_unsigned();
        self.ctl(libc::EPOLL_CTL_ADD, fd.as_raw_fd(), token, events)
    }

    /// Changes what is watched for.
    ///
    /// # Errors
    /// [`OsError`] of epoll_ctl.
    pub fn modify(&self, fd: BorrowedFd<'_>, token: u64, readable: bool, writable: bool) -> OsResult<()> {
        self.ctl(libc::EPOLL_CTL_MOD, fd.as_raw_fd(), token, interest(readable, writable))
    }

    /// Ends the watch of a descriptor that stays open.
    ///
    /// # Errors
    /// [`OsError`] of epoll_ctl, such as ENOENT where it was not watched.
    pub fn remove(&self, fd: BorrowedFd<'_>) -> OsResult<()> {
        self.ctl(libc::EPOLL_CTL_DEL, fd.as_raw_fd(), 0, 0)
    }

    fn ctl(&self, op: libc::c_int, fd: RawFd, token: u64, events: u32) -> OsResult<()> {
        let mut event = libc::epoll_event { events, u64: token };
        // SAFETY: a valid event, read by the kernel during the call.
        if unsafe { libc::epoll_ctl(self.fd.as_raw_fd(), op, fd, &raw mut event) } != 0 {
            return Err(OsError::last("epoll_ctl", format!("fd {fd}")));
        }
        Ok(())
    }

    /// Waits until something is ready or `timeout` is over (`None`: for ever) and appends it to `out`.
    /// A signal ends the wait early, with nothing appended. Cost: one syscall.
    ///
    /// # Errors
    /// [`OsError`] of epoll_wait.
    pub fn wait(&self, timeout: Option<Duration>, out: &mut Vec<Ready>) -> OsResult<()> {
        const BATCH: libc::c_int = 64;
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; BATCH as usize];
        // Rounded up, so that a wait never ends just before its time and spins.
        let ms = timeout.map_or(-1, |t| i32::try_from(t.as_micros().div_ceil(1000)).unwrap_or(i32::MAX));
        // SAFETY: the array has room for BATCH events.
        let n = unsafe { libc::epoll_wait(self.fd.as_raw_fd(), events.as_mut_ptr(), BATCH, ms) };
        let Ok(count) = usize::try_from(n) else {
            let error = OsError::last("epoll_wait", "");
            return if error.errno == libc::EINTR { Ok(()) } else { Err(error) };
        };
        let ends = (libc::EPOLLHUP | libc::EPOLLERR | libc::EPOLLRDHUP).cast_unsigned();
        out.extend(events.iter().take(count).map(|event| {
            let (bits, token) = (event.events, event.u64);
            Ready {
                token,
                readable: bits & (libc::EPOLLIN.cast_unsigned() | ends) != 0,
                writable: bits & (libc::EPOLLOUT.cast_unsigned() | ends) != 0,
            }
        }));
        Ok(())
    }
}

/// An instance is ready to read when something in it is.
impl AsFd for Epoll {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn interest(readable: bool, writable: bool) -> u32 {
    let mut events = 0;
    if readable {
        events |= libc::EPOLLIN.cast_unsigned();
    }
    if writable {
        events |= libc::EPOLLOUT.cast_unsigned();
    }
    events
}

/// A word in the kernel that one thread sets to wake another that polls it (eventfd(2)).
#[derive(Debug)]
pub struct EventFd {
    fd: OwnedFd,
}

impl EventFd {
    /// A new, unset word.
    ///
    /// # Errors
    /// [`OsError`] of eventfd.
    pub fn new() -> OsResult<Self> {
        // SAFETY: plain call.
        let raw = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if raw < 0 {
            return Err(OsError::last("eventfd", ""));
        }
        // SAFETY: just made.
        Ok(Self { fd: unsafe { OwnedFd::from_raw_fd(raw) } })
    }

    /// Sets the word. Cost: one syscall.
    pub fn set(&self) {
        let one = 1_u64;
        // SAFETY: eight readable bytes. The only failure of a non-blocking write is a counter that is full, which
        // is set already.
        unsafe { libc::write(self.fd.as_raw_fd(), (&raw const one).cast(), 8) };
    }

    /// Clears the word.
    pub fn clear(&self) {
        let mut count = 0_u64;
        // SAFETY: eight writable bytes. The only failure of a non-blocking read is a word that is clear already.
        unsafe { libc::read(self.fd.as_raw_fd(), (&raw mut count).cast(), 8) };
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_word_is_readable_until_it_is_cleared() {
        let (epoll, word) = (Epoll::new().unwrap(), EventFd::new().unwrap());
        epoll.add(word.as_fd(), 7, true, false).unwrap();
        let mut ready = Vec::new();
        epoll.wait(Some(Duration::ZERO), &mut ready).unwrap();
        assert_eq!(ready, []);
        word.set();
        epoll.wait(None, &mut ready).unwrap();
        assert_eq!(ready, [Ready { token: 7, readable: true, writable: false }]);
        word.clear();
        ready.clear();
        epoll.wait(Some(Duration::ZERO), &mut ready).unwrap();
        assert_eq!(ready, []);
    }

    #[test]
    fn an_edge_is_told_once_and_through_an_instance_that_watches_the_instance() {
        let (inner, outer, word) = (Epoll::new().unwrap(), Epoll::new().unwrap(), EventFd::new().unwrap());
        inner.add_edge(word.as_fd(), 7).unwrap();
        outer.add(inner.as_fd(), 8, true, false).unwrap();
        let look = |epoll: &Epoll| {
            let mut ready = Vec::new();
            epoll.wait(Some(Duration::ZERO), &mut ready).unwrap();
            ready.iter().map(|ready| ready.token).collect::<Vec<_>>()
        };
        for _ in 0..3 {
            word.set();
            assert_eq!(look(&outer), [8]);
            outer.modify(inner.as_fd(), 8, false, false).unwrap();
            assert_eq!(look(&outer), []);
            outer.modify(inner.as_fd(), 8, true, false).unwrap();
            assert_eq!(look(&outer), [8]);
            assert_eq!((look(&inner), look(&inner), look(&outer)), (vec![7], vec![], vec![]));
        }
    }
}
