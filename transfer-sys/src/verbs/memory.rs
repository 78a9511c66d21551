//! Protection domains, memory that the device may touch, and windows onto it.
#![allow(unsafe_code, reason = "calls into libibverbs")]

use std::ffi::c_int;
use std::ops::BitOr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::call::{object, status};
use super::context::Context;
use super::sys;
use crate::{OsError, OsResult, RawRange};

/// The key by which this process names its own registered memory in work requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LocalKey(pub(super) u32);

/// The key by which a peer names registered memory, or a window onto it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RemoteKey(u32);

impl RemoteKey {
    /// From the number that a peer sent.
    #[must_use]
    pub fn new(raw: u32) -> Self {
        Self(raw)
    }

    /// The number, to be sent to a peer.
    #[must_use]
    pub fn raw(self) -> u32 {
        self.0
    }

    /// The next key of the same window: the low byte is its owner's to choose (`ibv_inc_rkey`).
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 & !0xff | self.0.wrapping_add(1) & 0xff)
    }
}

/// What may be done with memory, or over a queue pair. Reading by this process always may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Access(u32);

impl Access {
    /// Reading by this process only.
    pub const LOCAL_READ: Self = Self(0);
    /// The device may write what it receives for this process. Needed for every kind of writing by peers.
    pub const LOCAL_WRITE: Self = Self(sys::IBV_ACCESS_LOCAL_WRITE);
    /// Peers may write.
    pub const REMOTE_WRITE: Self = Self(sys::IBV_ACCESS_REMOTE_WRITE);
    /// Peers may read.
    pub const REMOTE_READ: Self = Self(sys::IBV_ACCESS_REMOTE_READ);
    /// Windows may be bound to it.
    pub const BIND: Self = Self(sys::IBV_ACCESS_MW_BIND);
    /// Writes may pass each other on the way to memory, which is faster. Ignored where it is not supported.
    pub const RELAXED: Self = Self(sys::IBV_ACCESS_RELAXED_ORDERING);

    /// Whether all of `other` is in it.
    #[must_use]
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The flags of the interface.
    #[must_use]
    pub fn raw(self) -> u32 {
        self.0
    }

    /// Without relaxed ordering, for interfaces that know nothing of it.
    fn plain(self) -> c_int {
        (self.0 & !sys::IBV_ACCESS_RELAXED_ORDERING).cast_signed()
    }
}

impl BitOr for Access {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// What belongs together: a queue pair touches memory of its own domain only.
#[derive(Debug)]
pub struct ProtectionDomain {
    pub(super) raw: NonNull<sys::ibv_pd>,
    pub(super) context: Arc<Context>,
}

// SAFETY: V2 (docs/ARCHITECTURE.md). A domain is a number to the library; its verbs lock.
unsafe impl Send for ProtectionDomain {}
// SAFETY: V2, as above.
unsafe impl Sync for ProtectionDomain {}

impl ProtectionDomain {
    /// A new domain.
    ///
    /// # Errors
    /// [`OsError`] of ibv_alloc_pd.
    pub fn new(context: &Arc<Context>) -> OsResult<Arc<Self>> {
        // SAFETY: V1, V2. The context is open.
        let raw = unsafe { (context.library.api.alloc_pd)(context.raw.as_ptr()) };
        let raw = object("ibv_alloc_pd", raw, || context.name().to_owned())?;
        Ok(Arc::new(Self { raw, context: Arc::clone(context) }))
    }

    /// The device.
    #[must_use]
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }
}

impl Drop for ProtectionDomain {
    fn drop(&mut self) {
        // SAFETY: V1, V2. Whatever is in the domain held it, so this is the last use.
        let result = unsafe { (self.context.library.api.dealloc_pd)(self.raw.as_ptr()) };
        self.context.library.destroyed(result);
    }
}

/// Memory that the device may touch.
#[derive(Debug)]
pub struct MemoryRegion {
    raw: NonNull<sys::ibv_mr>,
    pd: Arc<ProtectionDomain>,
    base: u64,
    len: usize,
    relaxed: bool,
}

// SAFETY: V2. A registration is not changed once it is made.
unsafe impl Send for MemoryRegion {}
// SAFETY: V2, as above.
unsafe impl Sync for MemoryRegion {}

impl MemoryRegion {
    /// Registers memory of this process; work requests name it by its addresses here.
    ///
    /// Cost: each page is pinned, about 100 ms per GiB of small pages.
    ///
    /// # Errors
    /// [`OsError`] of ibv_reg_mr: ENOMEM past `ulimit -l`, EFAULT for memory that is not there.
    ///
    /// # Safety
    /// V3: the memory stays mapped as it is until the registration is dropped, and nobody takes a reference to what
    /// the device or a peer may write.
    pub unsafe fn register(pd: &Arc<ProtectionDomain>, range: RawRange, access: Access) -> OsResult<Self> {
        let base = range.addr().addr() as u64;
        // SAFETY: V3, by the caller.
        unsafe { Self::register_at(pd, range, base, access) }
    }

    /// The same; work requests name its first byte by `base`, which lies as far into a page as the memory does.
    ///
    /// # Errors
    /// As [`MemoryRegion::register`]; EINVAL for another place in a page, EOPNOTSUPP where the library is too old.
    ///
    /// # Safety
    /// As [`MemoryRegion::register`].
    pub unsafe fn register_at(
        pd: &Arc<ProtectionDomain>,
        range: RawRange,
        base: u64,
        access: Access,
    ) -> OsResult<Self> {
        let api = &pd.context.library.api;
        let (addr, len) = (range.addr().cast(), range.len());
        let operands = || format!("{}, {len} bytes at {addr:?}, access {:#x}", pd.context.name(), access.0);
        let own_base = base == range.addr().addr() as u64;
        let relaxed = access.contains(Access::RELAXED) && api.reg_mr_iova2.is_some();
        let raw = match api.reg_mr_iova2 {
            Some(register) if relaxed || !own_base => {
                // SAFETY: V1, V2, V3. The domain is held.
                let raw = unsafe { register(pd.raw.as_ptr(), addr, len, base, access.0) };
                object("ibv_reg_mr_iova2", raw, operands)?
            }
            None if !own_base => {
                let what =
                    "a base of one's own: the library has no ibv_reg_mr_iova2, rdma-core 27 brought it";
                return Err(OsError::new("ibv_reg_mr_iova2", what, libc::EOPNOTSUPP));
            }
            _ => {
                // SAFETY: V1, V2, V3. The domain is held.
                let raw = unsafe { (api.reg_mr)(pd.raw.as_ptr(), addr, len, access.plain()) };
                object("ibv_reg_mr", raw, operands)?
            }
        };
        Ok(Self { raw, pd: Arc::clone(pd), base, len, relaxed })
    }

    /// Registers `len` bytes from `offset` of a dma-buf, the memory of another device. Work requests name its first
    /// byte by `base`, which lies as far into a page as `offset` does.
    ///
    /// # Errors
    /// [`OsError`] of ibv_reg_dmabuf_mr: EOPNOTSUPP where library, driver or kernel cannot, EINVAL where it is no
    /// dma-buf or ends earlier.
    pub fn register_dmabuf(
        pd: &Arc<ProtectionDomain>,
        dmabuf: BorrowedFd<'_>,
        offset: u64,
        len: usize,
        base: u64,
        access: Access,
    ) -> OsResult<Self> {
        let Some(register) = pd.context.library.api.reg_dmabuf_mr else {
            let what = "the library has no such symbol; rdma-core 34 brought it";
            return Err(OsError::new("ibv_reg_dmabuf_mr", what, libc::EOPNOTSUPP));
        };
        let fd = dmabuf.as_raw_fd();
        // SAFETY: V1, V2. The domain is held; the kernel holds the buffer as long as it is registered.
        let raw = unsafe { register(pd.raw.as_ptr(), offset, len, base, fd, access.plain()) };
        let raw = object("ibv_reg_dmabuf_mr", raw, || {
            format!("{}, fd {fd}, {len} bytes at {offset}", pd.context.name())
        })?;
        Ok(Self { raw, pd: Arc::clone(pd), base, len, relaxed: false })
    }

    /// The key for this process.
    #[must_use]
    pub fn local_key(&self) -> LocalKey {
        // SAFETY: V2. Constant since the registration was made.
        LocalKey(unsafe { self.raw.as_ref().lkey })
    }

    /// The key for peers.
    #[must_use]
    pub fn remote_key(&self) -> RemoteKey {
        // SAFETY: V2. Constant since the registration was made.
        RemoteKey(unsafe { self.raw.as_ref().rkey })
    }

    /// What work requests call its first byte.
    #[must_use]
    pub fn base(&self) -> u64 {
        self.base
    }

    /// Its length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// No byte at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether relaxed ordering was asked for and the library knows of it.
    #[must_use]
    pub fn is_relaxed(&self) -> bool {
        self.relaxed
    }

    pub(super) fn raw(&self) -> *mut sys::ibv_mr {
        self.raw.as_ptr()
    }

    fn deregister(&self) -> c_int {
        // SAFETY: V1, V2. Called once, by `close` or by `drop`.
        unsafe { (self.pd.context.library.api.dereg_mr)(self.raw.as_ptr()) }
    }

    /// Ends the registration. After this the device touches the memory no more.
    ///
    /// # Errors
    /// The registration, as it was, and [`OsError`] of ibv_dereg_mr: EBUSY while a window is bound to it.
    pub fn close(self) -> Result<(), Box<(Self, OsError)>> {
        match status("ibv_dereg_mr", self.deregister(), || format!("{} bytes at {:#x}", self.len, self.base))
        {
            Ok(()) => {
                let mut this = std::mem::ManuallyDrop::new(self);
                // SAFETY: V2. The only other owner of this field is the drop that does not run.
                unsafe { std::ptr::drop_in_place(&raw mut this.pd) };
                Ok(())
            }
            Err(error) => Err(Box::new((self, error))),
        }
    }
}

impl Drop for MemoryRegion {
    fn drop(&mut self) {
        self.pd.context.library.destroyed(self.deregister());
    }
}

/// A window of type 2 onto registered memory: a key for peers that can be taken back by a work request.
#[derive(Debug)]
pub struct MemoryWindow {
    raw: NonNull<sys::ibv_mw>,
    pd: Arc<ProtectionDomain>,
    key: AtomicU32,
    dealloc: unsafe extern "C" fn(*mut sys::ibv_mw) -> c_int,
}

// SAFETY: V2. What changes of a window is the key, which is atomic.
unsafe impl Send for MemoryWindow {}
// SAFETY: V2, as above.
unsafe impl Sync for MemoryWindow {}

impl MemoryWindow {
    /// A window that is bound to nothing.
    ///
    /// # Errors
    /// [`OsError`] of ibv_alloc_mw: EOPNOTSUPP where the device has none.
    pub fn new(pd: &Arc<ProtectionDomain>) -> OsResult<Self> {
        let operations = pd.context.operations();
        let (Some(alloc), Some(dealloc)) = (operations.alloc_mw, operations.dealloc_mw) else {
            return Err(OsError::new("ibv_alloc_mw", pd.context.name().to_owned(), libc::EOPNOTSUPP));
        };
        // SAFETY: V1, V2. The domain is held.
        let raw = unsafe { alloc(pd.raw.as_ptr(), sys::IBV_MW_TYPE_2) };
        let raw = object("ibv_alloc_mw", raw, || pd.context.name().to_owned())?;
        // SAFETY: V1. Just made.
        let key = AtomicU32::new(unsafe { raw.as_ref().rkey });
        Ok(Self { raw, pd: Arc::clone(pd), key, dealloc })
    }

    /// A key that this window has not had among its last 255, for the next [`super::SendOp::Bind`].
    #[must_use]
    pub fn next_key(&self) -> RemoteKey {
        let next = |key| Some(RemoteKey(key).next().0);
        let last = self.key.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
        RemoteKey(last.unwrap_or_else(|key| key)).next()
    }

    pub(super) fn raw(&self) -> *mut sys::ibv_mw {
        self.raw.as_ptr()
    }
}

impl Drop for MemoryWindow {
    fn drop(&mut self) {
        // SAFETY: V1, V2. The last use.
        let result = unsafe { (self.dealloc)(self.raw.as_ptr()) };
        self.pd.context.library.destroyed(result);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_low_byte_of_a_key_moves() {
        assert_eq!(RemoteKey::new(0x1234_5601).next().raw(), 0x1234_5602);
        assert_eq!(RemoteKey::new(0x1234_56ff).next().raw(), 0x1234_5600);
    }
}
