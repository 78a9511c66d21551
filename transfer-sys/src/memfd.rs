//! Memory that processes share: sealed anonymous files, mapped.
#![allow(unsafe_code, reason = "mmap and memfd_create")]

use std::ffi::CString;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::{NonNull, null_mut};

use crate::{OsError, OsResult, RawRange};

/// The seals that every shared file carries: its size is fixed, so that nobody can make a mapping of it fault.
const SEALS: libc::c_int = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;

/// Creates an anonymous file of `len` zero bytes whose size can never change again (memfd_create(2), file
/// sealing).
///
/// # Errors
/// [`OsError`] of memfd_create, ftruncate or fcntl.
pub fn create(name: &str, len: usize) -> OsResult<OwnedFd> {
    let operands = || format!("{name}, {len} bytes");
    let c_name = CString::new(name.replace('\0', "?")).unwrap_or_default();
    // SAFETY: a valid C string and plain flags.
    let raw = unsafe { libc::memfd_create(c_name.as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) };
    if raw < 0 {
        return Err(OsError::last("memfd_create", operands()));
    }
    // SAFETY: the call above just made this descriptor, and nobody else has it.
    let fd = unsafe { OwnedFd::from_raw_fd(raw) };
    let size = libc::off_t::try_from(len).map_err(|_| OsError {
        op: "ftruncate",
        operands: operands(),
        errno: libc::EFBIG,
    })?;
    // SAFETY: plain call on a descriptor that we own.
    if unsafe { libc::ftruncate(fd.as_raw_fd(), size) } != 0 {
        return Err(OsError::last("ftruncate", operands()));
    }
    // SAFETY: plain call on a descriptor that we own.
    if unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, SEALS) } != 0 {
        return Err(OsError::last("fcntl", format!("F_ADD_SEALS on {}", operands())));
    }
    Ok(fd)
}

/// A shared, writable mapping of a sealed file; unmapped on drop.
#[derive(Debug)]
pub struct Mapping {
    addr: NonNull<u8>,
    len: usize,
}

// SAFETY: S1. The mapping is an address range owned by this value; the bytes are touched only through raw
// ranges under the contract of `copy`.
unsafe impl Send for Mapping {}
// SAFETY: S1, as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps all of a file that came from elsewhere, after making sure that it cannot shrink under the mapping
    /// (which would turn an access into SIGBUS) and holds at least `len` bytes.
    ///
    /// # Errors
    /// [`OsError`]: EPERM where a seal is missing, EOVERFLOW where the file is smaller than `len`, or what mmap
    /// says.
    pub fn of(fd: &OwnedFd, len: usize) -> OsResult<Self> {
        let raw = fd.as_raw_fd();
        // SAFETY: plain call on a borrowed descriptor.
        let seals = unsafe { libc::fcntl(raw, libc::F_GET_SEALS) };
        if seals < 0 || seals & libc::F_SEAL_SHRINK == 0 {
            let operands = "peer's memory is not sealed against shrinking".to_owned();
            return Err(OsError { op: "fcntl", operands, errno: libc::EPERM });
        }
        let size = file_size(raw)?;
        if size < len {
            let operands = format!("peer's memory has {size} of {len} bytes");
            return Err(OsError { op: "fstat", operands, errno: libc::EOVERFLOW });
        }
        Self::map(raw, len)
    }

    fn map(raw: RawFd, len: usize) -> OsResult<Self> {
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address that the kernel chooses touches no existing memory.
        let addr = unsafe { libc::mmap(null_mut(), len.max(1), prot, libc::MAP_SHARED, raw, 0) };
        if addr == libc::MAP_FAILED {
            return Err(OsError::last("mmap", format!("{len} shared bytes")));
        }
        let addr = NonNull::new(addr.cast()).ok_or_else(|| OsError {
            op: "mmap",
            operands: "mapped at null".to_owned(),
            errno: libc::ENOMEM,
        })?;
        Ok(Self { addr, len })
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
        if self.len == 0 {
            return Ok(());
        }
        // SAFETY: the range is this mapping; the call changes no byte of it.
        let rc = unsafe { libc::madvise(self.addr.as_ptr().cast(), self.len, libc::MADV_POPULATE_WRITE) };
        if rc == 0 {
            return Ok(());
        }
        let error = OsError::last("madvise", format!("MADV_POPULATE_WRITE of {} bytes", self.len));
        if error.errno == libc::EINVAL { Ok(()) } else { Err(error) }
    }

    /// The mapped bytes. Valid while `self` lives.
    #[must_use]
    pub fn range(&self) -> RawRange {
        RawRange::from_nonnull(self.addr, self.len)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this value made the mapping and is its only owner; no range outlives it by contract of `copy`.
        let rc = unsafe { libc::munmap(self.addr.as_ptr().cast(), self.len.max(1)) };
        debug_assert_eq!(rc, 0, "munmap of an own mapping");
    }
}

fn file_size(raw: RawFd) -> OsResult<usize> {
    let mut stat = std::mem::MaybeUninit::<libc::stat>::uninit();
    // SAFETY: the buffer has the size of the struct that fstat fills.
    if unsafe { libc::fstat(raw, stat.as_mut_ptr()) } != 0 {
        return Err(OsError::last("fstat", "peer's memory"));
    }
    // SAFETY: fstat succeeded and filled it.
    let stat = unsafe { stat.assume_init() };
    Ok(usize::try_from(stat.st_size).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::copy;

    #[test]
    fn two_mappings_show_the_same_bytes() {
        let fd = create("test", 8192).unwrap();
        let (a, b) = (Mapping::of(&fd, 8192).unwrap(), Mapping::of(&fd, 8192).unwrap());
        let mut out = [0; 5];
        // SAFETY: both mappings live through the calls.
        unsafe { copy::copy_in(a.range().sub(4094, 5).unwrap(), b"hello") };
        // SAFETY: as above.
        unsafe { copy::copy_out(&mut out, b.range().sub(4094, 5).unwrap()) };
        assert_eq!(&out, b"hello");
    }

    #[test]
    fn a_file_that_could_shrink_is_refused() {
        // SAFETY: a valid C string and plain flags.
        let raw = unsafe { libc::memfd_create(c"open".as_ptr(), libc::MFD_ALLOW_SEALING) };
        // SAFETY: just made, owned by nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(raw) };
        assert_eq!(Mapping::of(&fd, 0).unwrap_err().errno, libc::EPERM);
    }

    #[test]
    fn a_file_smaller_than_promised_is_refused() {
        let fd = create("small", 4096).unwrap();
        assert_eq!(Mapping::of(&fd, 4097).unwrap_err().errno, libc::EOVERFLOW);
    }

    #[test]
    fn a_sealed_file_cannot_change_its_size() {
        let fd = create("sealed", 4096).unwrap();
        // SAFETY: plain call on an owned descriptor.
        assert_eq!(unsafe { libc::ftruncate(fd.as_raw_fd(), 0) }, -1);
    }
}
