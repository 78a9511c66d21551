//! Mappings of sealed files.
#![allow(unsafe_code, reason = "mmap, munmap, madvise, fstat and fcntl")]

use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::{NonNull, null_mut};

use crate::{OsError, OsResult, RawRange};

/// A shared mapping of a sealed file; unmapped on drop.
#[derive(Debug)]
pub struct Mapping {
    addr: NonNull<u8>,
    len: usize,
    /// What is mapped in fact: whole pages, where they are huge.
    mapped: usize,
    writable: bool,
}

// SAFETY: S1. The mapping is an address range owned by this value; the bytes are touched only through raw
// ranges under the contract of `copy`.
unsafe impl Send for Mapping {}
// SAFETY: S1, as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the first `len` bytes of a file that came from elsewhere, to read and write, after making sure that it
    /// cannot shrink under the mapping (which would turn an access into SIGBUS) and holds that many bytes.
    ///
    /// # Errors
    /// [`OsError`]: EPERM where the seal is missing, or where another seal forbids writing; EOVERFLOW where the
    /// file is smaller than `len`; or what mmap says.
    pub fn of(file: &OwnedFd, len: usize) -> OsResult<Self> {
        check(file, len)?;
        Self::map(file, len, true, "peer's memory")
    }

    /// The same, only to read: a write to it ends the process with SIGSEGV. This is what a file allows whose maker
    /// kept the right to write for itself ([`MemfdOptions::peers_may_write`](super::MemfdOptions)); such a mapping
    /// cannot be made writable either.
    ///
    /// # Errors
    /// As [`Mapping::of`].
    pub fn read_only(file: &OwnedFd, len: usize) -> OsResult<Self> {
        check(file, len)?;
        Self::map(file, len, false, "peer's memory")
    }

    /// How many bytes a file that came from elsewhere holds.
    ///
    /// # Errors
    /// [`OsError`] of fstat.
    pub fn len_of(file: &OwnedFd) -> OsResult<usize> {
        Ok(stat(file)?.size)
    }

    /// The mapping of the file's maker, which has yet to seal it.
    pub(super) fn own(file: &OwnedFd, len: usize, what: &str) -> OsResult<Self> {
        Self::map(file, len, true, what)
    }

    fn map(file: &OwnedFd, len: usize, writable: bool, what: &str) -> OsResult<Self> {
        let raw = file.as_raw_fd();
        // The kernel maps whole huge pages, and wants to hear of whole ones when they go.
        let Stat { size, page } = stat(file)?;
        let mapped = len.next_multiple_of(page).min(size).max(len).max(1);
        let prot = if writable { libc::PROT_READ | libc::PROT_WRITE } else { libc::PROT_READ };
        // SAFETY: a new mapping at an address that the kernel chooses touches no existing memory.
        let addr = unsafe { libc::mmap(null_mut(), mapped, prot, libc::MAP_SHARED, raw, 0) };
        if addr == libc::MAP_FAILED {
            let access = if writable { "writable" } else { "read-only" };
            return Err(OsError::last("mmap", format!("{len} shared bytes, {access}: {what}")));
        }
        let null = || OsError::new("mmap", "mapped at null", libc::ENOMEM);
        Ok(Self { addr: NonNull::new(addr.cast()).ok_or_else(null)?, len, mapped, writable })
    }

    /// Gives every page its memory and its place in the page table now, so that no access faults later: a fault costs
    /// half a microsecond or more, and one for which there is no memory left ends the process with SIGBUS.
    ///
    /// Kernels before 5.14 cannot do it (`MADV_POPULATE_WRITE`, madvise(2)); there the pages come when they are
    /// touched.
    ///
    /// # Errors
    /// [`OsError`] of madvise, such as ENOMEM.
    pub fn populate(&self) -> OsResult<()> {
        self.populate_part(0, self.len)
    }

    /// The same for the pages that hold some of the bytes.
    ///
    /// # Errors
    /// As [`Mapping::populate`]; EFAULT for bytes that the mapping does not have.
    pub fn populate_part(&self, offset: usize, len: usize) -> OsResult<()> {
        if len == 0 {
            return Ok(());
        }
        let outside = || OsError::new("madvise", format!("{len} bytes at {offset}"), libc::EFAULT);
        self.range().sub(offset, len).ok_or_else(outside)?;
        // madvise(2) wants the address of a page; it takes in the whole of the last one by itself.
        let start = offset - offset % page_size();
        let (addr, len) = (self.addr.as_ptr().wrapping_add(start), len + (offset - start));
        let advice = if self.writable { libc::MADV_POPULATE_WRITE } else { libc::MADV_POPULATE_READ };
        // SAFETY: the range is this mapping; the call changes no byte of it.
        let rc = unsafe { libc::madvise(addr.cast(), len, advice) };
        if rc == 0 {
            return Ok(());
        }
        let error = OsError::last("madvise", format!("MADV_POPULATE of {len} bytes"));
        if error.errno == libc::EINVAL { Ok(()) } else { Err(error) }
    }

    /// The mapped bytes. Valid while `self` lives.
    #[must_use]
    pub fn range(&self) -> RawRange {
        RawRange::from_nonnull(self.addr, self.len)
    }

    /// Everything that is mapped.
    pub(super) fn pages(&self) -> RawRange {
        RawRange::from_nonnull(self.addr, self.mapped)
    }

    /// Whether the bytes may be written.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.writable
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this value made the mapping and is its only owner; no range outlives it by contract of `copy`.
        let rc = unsafe { libc::munmap(self.addr.as_ptr().cast(), self.mapped) };
        debug_assert_eq!(rc, 0, "munmap of an own mapping");
    }
}

fn page_size() -> usize {
    // SAFETY: plain call.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(size).unwrap_or(4096)
}

/// Whether a file from elsewhere holds `len` bytes and always will.
fn check(file: &OwnedFd, len: usize) -> OsResult<()> {
    let raw = file.as_raw_fd();
    // SAFETY: plain call on a borrowed descriptor.
    let seals = unsafe { libc::fcntl(raw, libc::F_GET_SEALS) };
    if seals < 0 || seals & libc::F_SEAL_SHRINK == 0 {
        return Err(OsError::new("fcntl", "peer's memory is not sealed against shrinking", libc::EPERM));
    }
    let size = stat(file)?.size;
    if size < len {
        return Err(OsError::new(
            "fstat",
            format!("peer's memory has {size} of {len} bytes"),
            libc::EOVERFLOW,
        ));
    }
    Ok(())
}

/// What a mapping has to know of its file.
pub(super) struct Stat {
    pub(super) size: usize,
    /// Bytes of a page where the file consists of huge ones; else a hint for readers.
    pub(super) page: usize,
}

pub(super) fn stat(file: &OwnedFd) -> OsResult<Stat> {
    let mut stat = std::mem::MaybeUninit::<libc::stat>::uninit();
    // SAFETY: the buffer has the size of the struct that fstat fills.
    if unsafe { libc::fstat(file.as_raw_fd(), stat.as_mut_ptr()) } != 0 {
        return Err(OsError::last("fstat", "shared memory"));
    }
    // SAFETY: fstat succeeded and filled it.
    let stat = unsafe { stat.assume_init() };
    let whole = |value: i64| usize::try_from(value).unwrap_or(0);
    Ok(Stat { size: whole(stat.st_size), page: whole(stat.st_blksize).max(1) })
}
