//! Regions of an agent.

use std::ffi::{CString, c_char, c_void};
use std::ptr::NonNull;

use transfer_core::{Error, Region};

use crate::agent::hr_agent_t;
use crate::boundary::{Call, Outcome, call, value};
use crate::error::{c_text, hr_error_t};
use crate::status::hr_status_t;

/// Registered memory of an agent. Peers that were met may read and write it at any time.
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
/// Free the region with hr_region_free().
/// Errors: HR_OS where memory is short, HR_TOO_LARGE.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hr_agent_alloc(
    agent: *mut hr_agent_t,
    len: u64,
    label: *const c_char,
    region: *mut *mut hr_region_t,
    error: *mut *mut hr_error_t,
) -> hr_status_t {
    let body = |c: &Call| {
        let region = c.out(region, "region")?.none();
        let (agent, label) = (c.handle(agent, "agent")?, c.text(label, "label")?);
        let too_large = |_| Error::TooLarge { what: "bytes of a region", value: len, max: usize::MAX as u64 };
        let len = usize::try_from(len).map_err(too_large)?;
        region.give(agent.agent.alloc(len, label)?.into());
        Ok(())
    };
    // SAFETY: C1.
    unsafe { call(error, body) }
}

/// Registers memory of yours. It has to stay mapped, readable and writable until hr_region_close() has returned HR_OK
/// or hr_agent_destroy() has returned, and peers write it at any time until then.
/// Free the region with hr_region_free(), which leaves the memory itself to you.
/// Errors: HR_TOO_LARGE.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hr_agent_register(
    agent: *mut hr_agent_t,
    addr: *mut c_void,
    len: usize,
    label: *const c_char,
    region: *mut *mut hr_region_t,
    error: *mut *mut hr_error_t,
) -> hr_status_t {
    let body = |c: &Call| {
        let region = c.out(region, "region")?.none();
        let (agent, label) = (c.handle(agent, "agent")?, c.text(label, "label")?);
        let addr = NonNull::new(addr.cast()).ok_or_else(|| hr_error_t::argument("addr", "is NULL"))?;
        if isize::try_from(len).is_err() || addr.addr().checked_add(len).is_none() {
            return Err(hr_error_t::argument("len", "reaches beyond the address space"));
        }
        // SAFETY: C1. The header asks for the same promise.
        region.give(unsafe { agent.agent.register(addr, len, label) }?.into());
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

/// Deregisters the region and returns when no transfer and no peer touches it any more. From the call on, new transfers
/// that name it fail, here with HR_REGION_CLOSED, at peers with HR_BAD_LIST or HR_TRANSFER_FAILED. Blocks, at most for
/// peer_timeout_ns. Calling it again does no harm.
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
