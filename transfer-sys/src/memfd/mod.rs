//! Memory that processes share: sealed anonymous files, mapped.
//!
//! On request a file consists of huge pages, taken from the pool that the administrator has set aside
//! (`vm.nr_hugepages`): a processor then finds them without looking through page tables, and a peer that maps the
//! file fills its own table 512 times as fast. It is this pool and not transparent huge pages, because only the pool
//! answers whether they are there; a region that was asked to have them has them, or does not come to be.
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

use crate::{OsError, OsResult, RawRange, numa};

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
    /// Of which pages it consists. Default ordinary ones.
    pub pages: Pages,
    /// The node whose memory it gets, on a machine that has several. Default any, near to who touches it first.
    pub numa_node: Option<u32>,
}

/// Of which pages a file consists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Pages {
    /// Those of the processor.
    Ordinary,
    /// Huge ones of the default size (`Hugepagesize` in /proc/meminfo).
    Huge,
    /// Huge ones of so many bytes, such as 2 MiB or 1 GiB.
    HugeOf(usize),
}

impl Pages {
    /// What memfd_create(2) is told.
    fn flags(self) -> libc::c_uint {
        match self {
            Self::Ordinary => 0,
            Self::Huge => libc::MFD_HUGETLB,
            // Six bits for the logarithm; what is no power of two names a size that no kernel has.
            Self::HugeOf(bytes) => {
                let log = if bytes.is_power_of_two() { bytes.ilog2() } else { 1 };
                libc::MFD_HUGETLB | log << libc::MFD_HUGE_SHIFT
            }
        }
    }
}

impl MemfdOptions {
    /// `len` zero bytes that everybody who has the descriptor may write.
    #[must_use]
    pub fn new(name: impl Into<String>, len: usize) -> Self {
        Self { name: name.into(), len, peers_may_write: true, pages: Pages::Ordinary, numa_node: None }
    }

    /// Whether those who get the descriptor may write.
    #[must_use]
    pub fn peers_may_write(mut self, allowed: bool) -> Self {
        self.peers_may_write = allowed;
        self
    }

    /// Of which pages it consists.
    #[must_use]
    pub fn pages(mut self, pages: Pages) -> Self {
        self.pages = pages;
        self
    }

    /// The node whose memory it gets.
    #[must_use]
    pub fn numa_node(mut self, node: Option<u32>) -> Self {
        self.numa_node = node;
        self
    }

    /// For error messages: what it is, and what to do where there is no huge page.
    fn operands(&self) -> String {
        let what = format!("{}, {} bytes", self.name, self.len);
        match self.pages {
            Pages::Ordinary => what,
            Pages::Huge => {
                format!("{what} in huge pages; raise vm.nr_hugepages or vm.nr_overcommit_hugepages")
            }
            Pages::HugeOf(bytes) => format!(
                "{what} in huge pages of {0} KiB; raise /sys/kernel/mm/hugepages/hugepages-{0}kB/nr_hugepages",
                bytes / 1024
            ),
        }
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
    /// [`OsError`] of memfd_create, ftruncate, mmap, mbind or fcntl. ENOMEM from mmap, or ENODEV or EINVAL from
    /// memfd_create, where huge pages were asked for and the pool has not as many, or none of that size. EINVAL from
    /// fcntl where the kernel, before 5.1, has no seal that leaves its maker the right to write. Nothing is left
    /// behind then.
    pub fn create(options: &MemfdOptions) -> OsResult<Self> {
        let file = open(options)?;
        // A file of huge pages has only whole ones.
        let page = mapping::stat(&file)?.page;
        let size =
            options.len.checked_next_multiple_of(if options.pages == Pages::Ordinary { 1 } else { page });
        let size = size
            .and_then(|size| libc::off_t::try_from(size).ok())
            .ok_or_else(|| OsError::new("ftruncate", options.operands(), libc::EFBIG))?;
        // SAFETY: plain call on a descriptor that we own.
        if unsafe { libc::ftruncate(file.as_raw_fd(), size) } != 0 {
            return Err(OsError::last("ftruncate", options.operands()));
        }
        // Before the seals: they refuse every writable mapping that is not there yet.
        let mapping = Mapping::own(&file, options.len, &options.operands())?;
        if let Some(node) = options.numa_node {
            numa::bind(mapping.pages(), node)?;
        }
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
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING | options.pages.flags();
    // SAFETY: a valid C string and plain flags.
    let raw = unsafe { libc::memfd_create(name.as_ptr(), flags) };
    if raw < 0 {
        return Err(OsError::last("memfd_create", options.operands()));
    }
    // SAFETY: the call above just made this descriptor, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}
