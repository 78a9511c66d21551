//! Regions of this agent.
#![allow(unsafe_code, reason = "owns raw memory")]

use std::fmt;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::{Arc, Weak};

use transfer_proto::id::RegionId;
use transfer_proto::proto::metadata::{Access, Generations, RegionInfo, RegionKind};
use transfer_sys::memfd::{Memfd, MemfdOptions};
use transfer_sys::{RawRange, copy};

use super::gate::{Gate, Gated};
use crate::error::{Error, Result};
use crate::shared::Shared;

/// Where the bytes of a region live, and who frees them.
#[derive(Debug)]
enum Memory {
    /// A file that peers map too.
    Allocated { memfd: Memfd },
    /// A buffer that the region owns; kept as a raw range, since peers write into it.
    Owned { buffer: RawRange },
    /// Memory that the application promised to keep.
    Borrowed { range: RawRange },
}

impl Memory {
    fn range(&self) -> RawRange {
        match self {
            Self::Allocated { memfd } => memfd.range(),
            Self::Owned { buffer } => *buffer,
            Self::Borrowed { range } => *range,
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let Self::Owned { buffer } = self {
            let slice = std::ptr::slice_from_raw_parts_mut(buffer.addr(), buffer.len());
            // SAFETY: I1. `adopt` took the box apart into this range, nobody else frees it, and the last user of
            // the region has let go of its `Arc`.
            drop(unsafe { Box::from_raw(slice) });
        }
    }
}

/// A region, for everybody inside the agent. Its memory lives as long as this does (I1).
#[derive(Debug)]
pub(crate) struct RegionCore {
    pub(crate) id: RegionId,
    pub(crate) label: String,
    gate: Gate,
    memory: Memory,
}

impl Gated for RegionCore {
    fn gate(&self) -> &Gate {
        &self.gate
    }
}

impl RegionCore {
    pub(crate) fn range(&self) -> RawRange {
        self.memory.range()
    }

    pub(crate) fn gate(&self) -> &Gate {
        &self.gate
    }

    /// The file that a peer can map, where there is one.
    pub(crate) fn file(&self) -> Option<&OwnedFd> {
        match &self.memory {
            Memory::Allocated { memfd } => Some(memfd.file()),
            _ => None,
        }
    }

    pub(crate) fn info(&self) -> RegionInfo {
        let kind = if self.file().is_some() { RegionKind::Allocated } else { RegionKind::Foreign };
        let range = self.range();
        let (base, len) = (range.addr().addr() as u64, range.len() as u64);
        let generations = Generations::new(0, len.max(1), 0);
        RegionInfo::new(self.id, (base, len), self.label.clone(), kind, Access::ReadWrite, generations)
    }
}

/// Memory from a new shared file.
pub(crate) fn alloc(len: usize, label: &str) -> Result<impl FnOnce(RegionId) -> RegionCore> {
    let memfd = Memfd::create(&MemfdOptions::new(label, len))?;
    memfd.populate()?;
    Ok(named(Memory::Allocated { memfd }, label))
}

/// Memory that comes with the call.
pub(crate) fn adopt(bytes: Vec<u8>, label: &str) -> impl FnOnce(RegionId) -> RegionCore + use<> {
    let len = bytes.len();
    let raw = Box::into_raw(bytes.into_boxed_slice());
    named(Memory::Owned { buffer: RawRange::new(raw.cast(), len) }, label)
}

/// Memory of the application.
pub(crate) fn borrow(
    addr: NonNull<u8>,
    len: usize,
    label: &str,
) -> impl FnOnce(RegionId) -> RegionCore + use<> {
    named(Memory::Borrowed { range: RawRange::from_nonnull(addr, len) }, label)
}

fn named(memory: Memory, label: &str) -> impl FnOnce(RegionId) -> RegionCore + use<> {
    let label = label.to_owned();
    move |id| RegionCore { id, label, gate: Gate::default(), memory }
}

/// Registered memory of an agent.
///
/// Clones name the same region; it is deregistered when the last one is dropped, or by [`Region::close`]. Peers
/// read and write its bytes at any time, so there is no reference to them, only copies in and out.
///
/// Safe to use from any thread. Overlapping accesses at the same time leave bytes of either.
#[derive(Clone)]
pub struct Region {
    handle: Arc<Handle>,
}

struct Handle {
    core: Arc<RegionCore>,
    agent: Weak<Shared>,
}

impl Region {
    pub(crate) fn new(core: Arc<RegionCore>, agent: Weak<Shared>) -> Self {
        Self { handle: Arc::new(Handle { core, agent }) }
    }

    /// Its name, which peers see too.
    #[must_use]
    pub fn id(&self) -> RegionId {
        self.handle.core.id
    }

    /// Its length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.handle.core.range().len()
    }

    /// Whether it has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What the application calls it.
    #[must_use]
    pub fn label(&self) -> &str {
        &self.handle.core.label
    }

    /// Copies bytes out. Cost: no allocation, no syscall, no lock.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`].
    pub fn read_at(&self, offset: usize, out: &mut [u8]) -> Result<()> {
        let range = self.sub(offset, out.len())?;
        // SAFETY: I1. The region's memory lives as long as `self`.
        unsafe { copy::copy_out(out, range) };
        Ok(())
    }

    /// Copies bytes in. Cost: no allocation, no syscall, no lock.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`].
    pub fn write_at(&self, offset: usize, data: &[u8]) -> Result<()> {
        let range = self.sub(offset, data.len())?;
        // SAFETY: I1. The region's memory lives as long as `self`.
        unsafe { copy::copy_in(range, data) };
        Ok(())
    }

    fn sub(&self, offset: usize, len: usize) -> Result<RawRange> {
        let range = self.handle.core.range();
        let outside = || Error::OutOfBounds { region: self.id(), offset, len, size: range.len() };
        range.sub(offset, len).ok_or_else(outside)
    }

    /// Address of the first byte in this process, for those who write there by other means. Peers may write the
    /// bytes at any time, so it must not become a reference.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.handle.core.range().addr()
    }

    /// Deregisters the region and returns when no transfer and no peer touches it any more. From the call on, new
    /// transfers that name it fail, here with [`Error::RegionClosed`], at peers with
    /// [`Error::BadList`] or [`Error::TransferFailed`].
    ///
    /// # Errors
    /// [`Error::RegionBusy`] when that takes longer than `peer_timeout`. A peer that does not answer may still
    /// touch the memory.
    pub fn close(&self) -> Result<()> {
        match self.handle.agent.upgrade() {
            Some(agent) => agent.close_region(&self.handle.core),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (id, label) = (self.id(), self.label());
        f.debug_struct("Region").field("id", &id).field("label", &label).field("len", &self.len()).finish()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if let Some(agent) = self.agent.upgrade() {
            agent.drop_region(&self.core);
        }
    }
}
