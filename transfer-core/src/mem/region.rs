//! Regions of this agent.
#![allow(unsafe_code, reason = "owns raw memory")]

use std::fmt;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::{Arc, Weak};

use transfer_proto::id::RegionId;
use transfer_proto::proto::metadata::{Access, Generations, RegionInfo, RegionKind};
use transfer_sys::memfd::{Memfd, MemfdOptions, Pages};
use transfer_sys::{RawRange, copy};

use super::gate::{Gate, Gated};
use super::ledger::{Lane, Ledger, View as _};
use super::options::RegionOptions;
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
    pub(crate) access: Access,
    generations: Generations,
    ledger: Arc<Ledger>,
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
        RegionInfo::new(self.id, (base, len), self.label.clone(), kind, self.access, self.generations)
    }

    pub(crate) fn generation(&self) -> u64 {
        self.ledger.generation()
    }

    /// Whether who names `generation` may still access these bytes; see [`View::admits`].
    pub(crate) fn admits(&self, generation: u64, offset: u64, len: u64) -> bool {
        self.ledger.admits(&self.generations, generation, offset, len)
    }

    /// Takes a lane of this agent; see [`Ledger::enter`].
    pub(crate) fn enter(&self) -> Lane<'_> {
        self.ledger.enter()
    }

    /// Makes older generations void for the blocks of these bytes, and returns the new one.
    pub(crate) fn raise(&self, offset: u64, len: u64) -> u64 {
        self.ledger.raise(&self.generations, offset, len)
    }

    /// The same for all of it: the region is closed.
    pub(crate) fn raise_all(&self) {
        self.raise(0, (self.range().len() as u64).max(1));
    }
}

impl Drop for RegionCore {
    fn drop(&mut self) {
        self.ledger.unregister(&self.generations, self.range().len() as u64);
    }
}

/// Memory from a new shared file.
///
/// # Errors
/// [`Error::Os`], [`Error::TooLarge`]; so for the others.
pub(crate) fn alloc(len: usize, options: &RegionOptions, ledger: &Arc<Ledger>) -> Result<Unnamed> {
    let may_write = options.access == Access::ReadWrite;
    let pages = if options.huge_pages { Pages::Huge } else { Pages::Ordinary };
    let memfd = Memfd::create(
        &MemfdOptions::new(&options.label, len)
            .peers_may_write(may_write)
            .pages(pages)
            .numa_node(options.numa_node),
    )?;
    memfd.populate()?;
    Unnamed::new(Memory::Allocated { memfd }, options, ledger)
}

/// Memory that comes with the call.
pub(crate) fn adopt(bytes: Vec<u8>, options: &RegionOptions, ledger: &Arc<Ledger>) -> Result<Unnamed> {
    let len = bytes.len();
    let raw = Box::into_raw(bytes.into_boxed_slice());
    Unnamed::new(Memory::Owned { buffer: RawRange::new(raw.cast(), len) }, options, ledger)
}

/// Memory of the application.
pub(crate) fn borrow(
    addr: NonNull<u8>,
    len: usize,
    options: &RegionOptions,
    ledger: &Arc<Ledger>,
) -> Result<Unnamed> {
    Unnamed::new(Memory::Borrowed { range: RawRange::from_nonnull(addr, len) }, options, ledger)
}

/// A region that the table has yet to name.
pub(crate) struct Unnamed {
    label: String,
    access: Access,
    generations: Generations,
    ledger: Arc<Ledger>,
    memory: Memory,
}

impl Unnamed {
    fn new(memory: Memory, options: &RegionOptions, ledger: &Arc<Ledger>) -> Result<Self> {
        let (label, access) = (options.label.clone(), options.access);
        let len = memory.range().len() as u64;
        let generations = ledger.register(len, options.block_bytes_of(len))?;
        Ok(Self { label, access, generations, ledger: Arc::clone(ledger), memory })
    }

    /// The region, under its name.
    pub(crate) fn named(self, id: RegionId) -> RegionCore {
        let Self { label, access, generations, ledger, memory } = self;
        RegionCore { id, label, access, generations, ledger, gate: Gate::default(), memory }
    }
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

    /// The generation that names what stands in the region now. A peer that is to access it is told this number
    /// along with the place, and names it by [`crate::Desc::at_generation`]; once one of the blocks is revoked, its
    /// accesses to that block fail. One counter serves all regions of an agent, so the number says nothing by itself.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.handle.core.generation()
    }

    /// Takes the blocks that `len` bytes at `offset` touch back from everybody who was told an earlier generation: call it
    /// before their memory is used for something else. When it has returned `Ok`, no earlier peer writes there any
    /// more, and a peer that is still reading will see [`Error::Stale`] instead of what is written next, on every
    /// path. Returns the new generation.
    ///
    /// Cost: a store for each block, a look at 63 words of memory for each peer of this host; waits only for writers
    /// that are in the middle of a slice (well under a millisecond), and never for a peer's answer.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`]. [`Error::RegionBusy`] where a writer does not leave within `peer_timeout`, because its
    /// process is stopped in mid-copy: the generation is void, but that one may still write; try again.
    /// [`Error::AgentClosed`].
    pub fn revoke(&self, offset: usize, len: usize) -> Result<u64> {
        self.sub(offset, len)?;
        let agent = self.handle.agent.upgrade().ok_or(Error::AgentClosed)?;
        agent.revoke(&self.handle.core, offset as u64, len as u64)
    }

    /// Deregisters the region and returns when no transfer and no peer touches it any more. From the call on,
    /// transfers that name it fail, here with [`Error::RegionClosed`], at peers with [`Error::Stale`],
    /// [`Error::BadList`] or [`Error::TransferFailed`].
    ///
    /// # Errors
    /// [`Error::RegionBusy`] when that takes longer than `peer_timeout`: a transfer of this agent has not ended, or a
    /// peer was stopped in mid-copy. Then the memory must be taken to be touched still.
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
