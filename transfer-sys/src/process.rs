//! Another process's memory, and whether that process still lives.
#![allow(unsafe_code, reason = "process_vm_readv, process_vm_writev and pidfd_open")]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::{OsError, OsResult, RawRange};

/// The most ranges that one call takes on each side (`UIO_MAXIOV` of the kernel, `IOV_MAX` in limits.h(0p)).
pub const RANGES_MAX: usize = 1024;

/// How an error of [`Process::open`] names the call.
pub const PIDFD_OPEN: &str = "pidfd_open";

/// A process that is kept from being mistaken for a later one of the same number (pidfd_open(2)).
#[derive(Debug)]
pub struct Process {
    pid: libc::pid_t,
    pidfd: OwnedFd,
}

impl Process {
    /// Takes hold of process `pid`.
    ///
    /// # Errors
    /// [`OsError`] of pidfd_open, such as ESRCH.
    pub fn open(pid: i32) -> OsResult<Self> {
        // SAFETY: plain syscall without pointers.
        let raw = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        let raw = i32::try_from(raw).unwrap_or(-1);
        if raw < 0 {
            return Err(OsError::last(PIDFD_OPEN, format!("pid {pid}")));
        }
        // SAFETY: the syscall just made this descriptor.
        Ok(Self { pid, pidfd: unsafe { OwnedFd::from_raw_fd(raw) } })
    }

    /// Its number in our PID namespace.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Turns readable when the process ends.
    #[must_use]
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Whether it has not ended yet. A pidfd turns readable when its process ends. Cost: one syscall.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        let mut poll = libc::pollfd { fd: self.pidfd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid pollfd, no waiting.
        unsafe { libc::poll(&raw mut poll, 1, 0) == 0 }
    }

    /// Copies from `remote` ranges of that process into `local` ones; returns how many bytes arrived, which may
    /// be fewer than asked for (process_vm_readv(2): a fault in a remote range ends the call there).
    ///
    /// Cost: two syscalls, no allocation. At most [`RANGES_MAX`] ranges on each side.
    ///
    /// # Errors
    /// [`OsError`]: ESRCH when the process is gone, EPERM without the right to trace it, EFAULT.
    ///
    /// # Safety
    /// The local ranges must be mapped and writable through the call, and not be borrowed by safe code.
    pub unsafe fn read(&self, local: &[RawRange], remote: &[RawRange]) -> OsResult<usize> {
        self.ensure_alive("process_vm_readv")?;
        let (l, r) = (local.as_ptr().cast(), remote.as_ptr().cast());
        let (ln, rn) =
            (local.len().min(RANGES_MAX) as libc::c_ulong, remote.len().min(RANGES_MAX) as libc::c_ulong);
        // SAFETY: a RawRange is laid out as an iovec; the local bytes are the caller's contract, the remote ones
        // are checked by the kernel.
        let moved = unsafe { libc::process_vm_readv(self.pid, l, ln, r, rn, 0) };
        self.moved("process_vm_readv", moved)
    }

    /// Copies from `local` ranges into `remote` ranges of that process; see [`Process::read`].
    ///
    /// # Errors
    /// As [`Process::read`].
    ///
    /// # Safety
    /// The local ranges must be mapped through the call.
    pub unsafe fn write(&self, local: &[RawRange], remote: &[RawRange]) -> OsResult<usize> {
        self.ensure_alive("process_vm_writev")?;
        let (l, r) = (local.as_ptr().cast(), remote.as_ptr().cast());
        let (ln, rn) =
            (local.len().min(RANGES_MAX) as libc::c_ulong, remote.len().min(RANGES_MAX) as libc::c_ulong);
        // SAFETY: as in `read`, with the directions swapped.
        let moved = unsafe { libc::process_vm_writev(self.pid, l, ln, r, rn, 0) };
        self.moved("process_vm_writev", moved)
    }

    /// A number is given to a new process only after the old one was reaped; looking at the pidfd just before
    /// the call leaves no time in which that could happen unnoticed but the call's own start.
    fn ensure_alive(&self, op: &'static str) -> OsResult<()> {
        if self.is_alive() {
            return Ok(());
        }
        Err(OsError { op, operands: format!("pid {} has ended", self.pid).into(), errno: libc::ESRCH })
    }

    fn moved(&self, op: &'static str, moved: isize) -> OsResult<usize> {
        usize::try_from(moved).map_err(|_| OsError::last(op, format!("pid {}", self.pid)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes_this_process_like_any_other() {
        let me = Process::open(i32::try_from(std::process::id()).unwrap()).unwrap();
        let mut source = *b"some bytes";
        let mut target = [0_u8; 10];
        let from = RawRange::new(source.as_mut_ptr(), 10);
        let to = RawRange::new(target.as_mut_ptr(), 10);
        // SAFETY: both arrays live through the call and are not otherwise used in it.
        let moved = unsafe { me.read(&[to], &[from.sub(0, 4).unwrap(), from.sub(4, 6).unwrap()]) };
        assert_eq!((moved.unwrap(), &target), (10, b"some bytes"));
    }

    #[test]
    fn a_process_that_ended_is_told_from_a_new_one() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let process = Process::open(i32::try_from(child.id()).unwrap()).unwrap();
        child.wait().unwrap();
        assert!(!process.is_alive());
        // SAFETY: no local range at all.
        assert!(unsafe { process.read(&[], &[]) }.unwrap_err().no_such_process());
    }
}
