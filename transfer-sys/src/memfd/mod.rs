//! Memory that processes share: sealed anonymous files, mapped.
//!
//! A file's size is fixed by seals before anybody else sees it, so that no mapping of it can fault. A further seal
//! takes the right to write from everybody but its maker: peers can then map it for reading only, and neither
//! write(2) nor fallocate(2) changes a byte.
#![allow(unsafe_code, reason = "memfd_create, ftruncate and fcntl")]

mod mapping;
#[cfg(test)]
mod tests;

use std::ffi::CString;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

pub use mapping::Mapping;

use crate::{OsError, OsResult, RawRange};

/// The seals that every shared file carries: its size is fixed, so that nobody can make a mapping of it fault.
const SEALS: libc::c_int = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;

/// What a shared file is to be.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct MemfdOptions {
    /// What /proc and error messages call it.
    pub name: String,
    /// Its bytes.
    pub len: usize,
    /// Whether those who get the descriptor may write. Default true.
    pub peers_may_write: bool,
}

impl MemfdOptions {
    /// `len` zero bytes that everybody who has the descriptor may write.
    #[must_use]
    pub fn new(name: impl Into<String>, len: usize) -> Self {
        Self { name: name.into(), len, peers_may_write: true }
    }

    /// Whether those who get the descriptor may write.
    #[must_use]
    pub fn peers_may_write(mut self, allowed: bool) -> Self {
        self.peers_may_write = allowed;
        self
    }

    /// For error messages.
    fn operands(&self) -> String {
        format!("{}, {} bytes", self.name, self.len)
    }
}

/// An anonymous file whose size can never change again, and its maker's writable mapping of it.
///
/// Safe to share between threads; the descriptor is closed and the memory unmapped on drop.
#[derive(Debug)]
pub struct Memfd {
    mapping: Mapping,
    file: OwnedFd,
}

impl Memfd {
    /// Creates one of zero bytes (memfd_create(2), file sealing). Its pages come when they are touched, or by
    /// [`Memfd::populate`].
    ///
    /// # Errors
    /// [`OsError`] of memfd_create, ftruncate, mmap or fcntl; EINVAL from fcntl where the kernel, before 5.1, has
    /// no seal that leaves its maker the right to write. Nothing is left behind then.
    pub fn create(options: &MemfdOptions) -> OsResult<Self> {
        let file = open(options)?;
        let size = libc::off_t::try_from(options.len)
            .map_err(|_| OsError::new("ftruncate", options.operands(), libc::EFBIG))?;
        // SAFETY: plain call on a descriptor that we own.
        if unsafe { libc::ftruncate(file.as_raw_fd(), size) } != 0 {
            return Err(OsError::last("ftruncate", options.operands()));
        }
        // Before the seals: they refuse every writable mapping that is not there yet.
        let mapping = Mapping::own(&file, options.len)?;
        let seals = if options.peers_may_write { SEALS } else { SEALS | libc::F_SEAL_FUTURE_WRITE };
        // SAFETY: plain call on a descriptor that we own.
        if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) } != 0 {
            return Err(OsError::last("fcntl", format!("F_ADD_SEALS on {}", options.operands())));
        }
        Ok(Self { mapping, file })
    }

    /// Gives every page its memory now; see [`Mapping::populate`].
    ///
    /// # Errors
    /// [`OsError`] of madvise, such as ENOMEM.
    pub fn populate(&self) -> OsResult<()> {
        self.mapping.populate()
    }

    /// Gives some of the pages their memory now; see [`Mapping::populate_part`].
    ///
    /// # Errors
    /// [`OsError`] of madvise, such as ENOMEM.
    pub fn populate_part(&self, offset: usize, len: usize) -> OsResult<()> {
        self.mapping.populate_part(offset, len)
    }

    /// The bytes. Valid while `self` lives.
    #[must_use]
    pub fn range(&self) -> RawRange {
        self.mapping.range()
    }

    /// The descriptor, to be given to those who may map it.
    #[must_use]
    pub fn file(&self) -> &OwnedFd {
        &self.file
    }
}

fn open(options: &MemfdOptions) -> OsResult<OwnedFd> {
    let name = CString::new(options.name.replace('\0', "?")).unwrap_or_default();
    // SAFETY: a valid C string and plain flags.
    let raw = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) };
    if raw < 0 {
        return Err(OsError::last("memfd_create", options.operands()));
    }
    // SAFETY: the call above just made this descriptor, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}
