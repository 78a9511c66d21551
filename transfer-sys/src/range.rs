//! A range of bytes that others may write.

use std::ptr::NonNull;

/// `len` bytes at `addr`, without any claim on them: no lifetime, no exclusiveness, maybe not even mapped.
///
/// Laid out as `struct iovec` (readv(2)), so that a slice of ranges goes to the kernel as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct RawRange {
    addr: *mut u8,
    len: usize,
}

const _: () = assert!(size_of::<RawRange>() == size_of::<libc::iovec>());
const _: () = assert!(std::mem::offset_of!(libc::iovec, iov_len) == std::mem::offset_of!(RawRange, len));

#[allow(unsafe_code, reason = "sharing a range between threads")]
// SAFETY: S1 (docs/ARCHITECTURE.md). A range is an address and a length; touching the bytes needs an unsafe
// call whose contract says who keeps them mapped.
unsafe impl Send for RawRange {}
#[allow(unsafe_code, reason = "sharing a range between threads")]
// SAFETY: S1, as above; there is no interior mutability either.
unsafe impl Sync for RawRange {}

impl RawRange {
    /// The range of `len` bytes from `addr`.
    #[must_use]
    pub fn new(addr: *mut u8, len: usize) -> Self {
        Self { addr, len }
    }

    /// The whole range that starts at `addr`.
    #[must_use]
    pub fn from_nonnull(addr: NonNull<u8>, len: usize) -> Self {
        Self::new(addr.as_ptr(), len)
    }

    /// First byte.
    #[must_use]
    pub fn addr(&self) -> *mut u8 {
        self.addr
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// No bytes at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The `len` bytes from `offset`, or `None` where they do not lie inside.
    #[must_use]
    pub fn sub(&self, offset: usize, len: usize) -> Option<Self> {
        let end = offset.checked_add(len)?;
        (end <= self.len).then(|| Self { addr: self.addr.wrapping_add(offset), len })
    }

    /// The range without its first `count` bytes (all of it gone where there are fewer).
    #[must_use]
    pub fn skip(&self, count: usize) -> Self {
        let count = count.min(self.len);
        Self { addr: self.addr.wrapping_add(count), len: self.len - count }
    }
}
