//! Regions of an agent.

use std::ffi::{CString, c_char, c_void};
use std::ptr::NonNull;

use transfer_core::{Access, Error, Region, RegionOptions};

use crate::agent::hr_agent_t;
use crate::boundary::{Call, Outcome, call, value};
use crate::error::{c_text, hr_error_t};
use crate::status::hr_status_t;
use crate::versioned::Versioned;

/// What peers may do with a region.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "a C enum; values are only ever added")]
pub enum hr_access_t {
    /// One that this header does not know.
    HR_ACCESS_OTHER = 0,
    /// Read it.
    HR_ACCESS_READ_ONLY = 1,
    /// Read and write it.
    HR_ACCESS_READ_WRITE = 2,
}

impl From<Access> for hr_access_t {
    fn from(access: Access) -> Self {
        match access {
            Access::ReadOnly => Self::HR_ACCESS_READ_ONLY,
            Access::ReadWrite => Self::HR_ACCESS_READ_WRITE,
            _ => Self::HR_ACCESS_OTHER,
        }
    }
}

/// Bit of hr_region_options_t.flags: the region consists of huge pages, from the administrator's pool
/// (vm.nr_hugepages). Where they are missing it does not come to be. Only for memory that the agent allocates.
pub const HR_REGION_HUGE_PAGES: u32 = 1;

/// What a region is to be. hr_region_options_init() fills in the defaults.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[expect(clippy::exhaustive_structs, reason = "a C struct; it grows at its end")]
pub struct hr_region_options_t {
    /// sizeof(hr_region_options_t); set by hr_region_options_init().
    pub size: usize,
    /// What peers may do with it: an hr_access_t. Default HR_ACCESS_READ_WRITE. Where it is HR_ACCESS_READ_ONLY, memory
    /// that the agent allocates cannot even be mapped writable by a peer, and everybody's writes are refused.
    pub access: u32,
    /// HR_REGION_HUGE_PAGES or 0, the default.
    pub flags: u32,
    /// Bytes of a block, such as those of a page of a KV cache: what hr_region_revoke() revokes at the least. Default 0:
    /// all of the region. An agent has room for 2^24 blocks, each of which costs it 8 bytes.
    pub block_bytes: u64,
    /// The node whose memory it gets, on a machine that has several. Default -1: any. Only for memory that the agent
    /// allocates.
    pub numa_node: i64,
}

// SAFETY: C1. repr(C), `size` first, integers only; `tests/header.rs` finds padding.
unsafe impl Versioned for hr_region_options_t {
    fn defaults(size: usize) -> Self {
        let options = RegionOptions::new("");
        let access = hr_access_t::from(options.access) as u32;
        Self { size, access, flags: 0, block_bytes: options.block_bytes, numa_node: -1 }
    }
}

/// Fills in the defaults. Call it as hr_region_options_init(&options, sizeof options). HR_INVALID_ARGUMENT for NULL and
/// for a size that is none.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hr_region_options_init(
    options: *mut hr_region_options_t,
    size: usize,
) -> hr_status_t {
    let no_error: *mut *mut hr_error_t = std::ptr::null_mut();
    // SAFETY: C1.
    unsafe { call(no_error, |c| c.init(options, size, "options")) }
}

fn options_of(c: &Call, label: *const c_char, options: *const hr_region_options_t) -> Outcome<RegionOptions> {
    const READ_ONLY: u32 = hr_access_t::HR_ACCESS_READ_ONLY as u32;
    const READ_WRITE: u32 = hr_access_t::HR_ACCESS_READ_WRITE as u32;
    let plain = RegionOptions::new(c.text(label, "label")?);
    if options.is_null() {
        return Ok(plain);
    }
    let options = c.versioned(options, "options")?;
    if options.flags & !HR_REGION_HUGE_PAGES != 0 {
        return Err(hr_error_t::argument("options.flags", "has unknown bits"));
    }
    let numa_node = match (options.numa_node, u32::try_from(options.numa_node)) {
        (-1, _) => None,
        (_, Ok(node)) => Some(node),
        _ => return Err(hr_error_t::argument("options.numa_node", "is neither -1 nor a node")),
    };
    let access = match options.access {
        READ_ONLY => Access::ReadOnly,
        READ_WRITE => Access::ReadWrite,
        _ => return Err(hr_error_t::argument("options.access", "is no hr_access_t")),
    };
    let huge_pages = options.flags & HR_REGION_HUGE_PAGES != 0;
    Ok(plain.access(access).block_bytes(options.block_bytes).huge_pages(huge_pages).numa_node(numa_node))
}

/// Registered memory of an agent. Peers that were met may access it at any time.
#[derive(Debug)]
pub struct hr_region_t {
    region: Region,
    label: CString,
}

impl From<Region> for hr_region_t {
    fn from(region: Region) -> Self {
        let label = c_text(region.label());
        Self { region, label }
    }
}

fn offset_of(region: &Region, offset: u64, len: usize) -> Outcome<usize> {
    let outside = |_| Error::OutOfBounds { region: region.id(), offset: usize::MAX, len, size: region.len() };
    Ok(usize::try_from(offset).map_err(outside)?)
}

/// Allocates zeroed memory that peers on this host can map, which is the fastest way between processes. Every page gets
/// its memory now, at a few GB/s. `label` is for peers to find it by: at most 255 bytes, not necessarily unique.
/// `options` may be NULL.
/// Free the region with hr_region_free().
/// Errors: HR_OS where memory, huge pages or the node are not to be had; HR_TOO_LARGE.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hr_agent_alloc(
    agent: *mut hr_agent_t,
    len: u64,
    label: *const c_char,
    options: *const hr_region_options_t,
    region: *mut *mut hr_region_t,
    error: *mut *mut hr_error_t,
) -> hr_status_t {
    let body = |c: &Call| {
        let region = c.out(region, "region")?.none();
        let (agent, options) = (c.handle(agent, "agent")?, options_of(c, label, options)?);
        let too_large = |_| Error::TooLarge { what: "bytes of a region", value: len, max: usize::MAX as u64 };
        let len = usize::try_from(len).map_err(too_large)?;
        region.give(agent.agent.alloc_with(len, &options)?.into());
        Ok(())
    };
    // SAFETY: C1.
    unsafe { call(error, body) }
}

/// Registers memory of yours. It has to stay mapped, readable and writable until hr_region_close() has returned HR_OK
/// or hr_agent_destroy() has returned, and peers write it at any time until then.
/// `options` may be NULL. Free the region with hr_region_free(), which leaves the memory itself to you.
/// Errors: HR_TOO_LARGE; HR_INVALID_CONFIG for options that memory of yours cannot have.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hr_agent_register(
    agent: *mut hr_agent_t,
    addr: *mut c_void,
    len: usize,
    label: *const c_char,
    options: *const hr_region_options_t,
    region: *mut *mut hr_region_t,
    error: *mut *mut hr_error_t,
) -> hr_status_t {
    let body = |c: &Call| {
        let region = c.out(region, "region")?.none();
        let (agent, options) = (c.handle(agent, "agent")?, options_of(c, label, options)?);
        let addr = NonNull::new(addr.cast()).ok_or_else(|| hr_error_t::argument("addr", "is NULL"))?;
        if isize::try_from(len).is_err() || addr.addr().checked_add(len).is_none() {
            return Err(hr_error_t::argument("len", "reaches beyond the address space"));
        }
        // SAFETY: C1. The header asks for the same promise.
        region.give(unsafe { agent.agent.register_with(addr, len, &options) }?.into());
        Ok(())
    };
    // SAFETY: C1.
    unsafe { call(error, body) }
}

/// Its name in descriptors, here and at peers. 0 for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hr_region_id(region: *const hr_region_t) -> u64 {
    // SAFETY: C1.
    unsafe { value(0, |c| Ok(c.handle(region, "region")?.region.id().to_u64())) }
}

/// Its length in bytes. 0 for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hr_region_len(region: *const hr_region_t) -> usize {
    // SAFETY: C1.
    unsafe { value(0, |c| Ok(c.handle(region, "region")?.region.len())) }
}

/// Its label. Belongs to the region. NULL for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hr_region_label(region: *const hr_region_t) -> *const c_char {
    // SAFETY: C1.
    unsafe { value(std::ptr::null(), |c| Ok(c.handle(region, "region")?.label.as_ptr())) }
}

/// Its first byte. Allocated memory stays there until hr_region_free(), also after hr_region_close() and
/// hr_agent_destroy(). Bytes that a peer writes meanwhile are a data race like any other: look at what a
/// notification or the end of a transfer says has landed. NULL for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hr_region_data(region: *const hr_region_t) -> *mut c_void {
    // SAFETY: C1.
    unsafe { value(std::ptr::null_mut(), |c| Ok(c.handle(region, "region")?.region.as_ptr().cast())) }
}

/// Copies bytes in, from memory outside of the region. No system call, no lock.
/// Errors: HR_OUT_OF_BOUNDS.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hr_region_write(
    region: *mut hr_region_t,
    offset: u64,
    data: *const c_void,
    len: usize,
    error: *mut *mut hr_error_t,
) -> hr_status_t {
    let body = |c: &Call| {
        let (region, data) = (&c.handle(region, "region")?.region, c.slice(data.cast(), len, "data")?);
        Ok(region.write_at(offset_of(region, offset, len)?, data)?)
    };
    // SAFETY: C1.
    unsafe { call(error, body) }
}

/// Copies bytes out, to memory outside of the region. No system call, no lock.
/// Errors: HR_OUT_OF_BOUNDS.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hr_region_read(
    region: *const hr_region_t,
    offset: u64,
    data: *mut c_void,
    len: usize,
    error: *mut *mut hr_error_t,
) -> hr_status_t {
    let body = |c: &Call| {
        let region = &c.handle(region, "region")?.region;
        let data = c.bytes_mut(data.cast(), len, "data")?;
        Ok(region.read_at(offset_of(region, offset, len)?, data)?)
    };
    // SAFETY: C1.
    unsafe { call(error, body) }
}

/// The generation that names what stands in the region now. A peer that is to access it is told this number along with
/// the place, and puts it into hr_desc_t.generation; once one of the blocks is revoked, its accesses to that block fail
/// with HR_STALE. One counter serves all regions of an agent. 0 for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hr_region_generation(region: *const hr_region_t) -> u64 {
    // SAFETY: C1.
    unsafe { value(0, |c| Ok(c.handle(region, "region")?.region.generation())) }
}

/// Takes the blocks that `len` bytes at `offset` touch back from everybody who was told an earlier generation: call it
/// before their memory is used for something else. When it has returned HR_OK, no earlier peer writes there any more,
/// and a peer that is still reading will see HR_STALE instead of what is written next. Writes the new generation to
/// `generation`, which may be NULL. Blocks only for writers that are in the middle of a slice.
/// Errors: HR_OUT_OF_BOUNDS; HR_REGION_BUSY where a writer does not leave within peer_timeout_ns, since its process is
/// stopped: the generation is void, but that one may still write; HR_AGENT_CLOSED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hr_region_revoke(
    region: *mut hr_region_t,
    offset: u64,
    len: u64,
    generation: *mut u64,
    error: *mut *mut hr_error_t,
) -> hr_status_t {
    let body = |c: &Call| {
        let generation = c.out_or_none(generation, "generation")?;
        let region = &c.handle(region, "region")?.region;
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let revoked = region.revoke(offset_of(region, offset, len)?, len)?;
        if let Some(generation) = generation {
            generation.put(revoked);
        }
        Ok(())
    };
    // SAFETY: C1.
    unsafe { call(error, body) }
}

/// Deregisters the region and returns when no transfer and no peer touches it any more. From the call on, new transfers
/// that name it fail, here with HR_REGION_CLOSED, at peers with HR_STALE, HR_BAD_LIST or HR_TRANSFER_FAILED. Blocks, at
/// most for peer_timeout_ns. Calling it again does no harm.
/// Errors: HR_REGION_BUSY when it took longer: a peer that does not answer may still touch the memory.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hr_region_close(
    region: *mut hr_region_t,
    error: *mut *mut hr_error_t,
) -> hr_status_t {
    // SAFETY: C1.
    unsafe { call(error, |c| Ok(c.handle(region, "region")?.region.close()?)) }
}

/// Frees the handle, and deregisters the region without waiting. Allocated memory lives on for those who are still
/// inside; for registered memory call hr_region_close() first. NULL is fine.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hr_region_free(region: *mut hr_region_t) {
    // SAFETY: C1.
    unsafe { value((), |c| c.free(region)) }
}
