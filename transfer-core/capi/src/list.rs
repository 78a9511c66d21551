//! Descriptor lists: which bytes of which regions, in which order.

use transfer_core::{Desc, DescList, LocalList, RegionId, RemoteList};

use crate::agent::hr_agent_t;
use crate::boundary::{Call, Outcome, call, value};
use crate::config::hr_path_t;
use crate::error::hr_error_t;
use crate::peer::hr_peer_t;
use crate::status::hr_status_t;

/// The shape of a descriptor.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "a C enum; values are only ever added")]
pub enum hr_desc_kind_t {
    /// One span.
    HR_DESC_CONTIGUOUS = 1,
    /// Spans at one distance.
    HR_DESC_STRIDED = 2,
    /// A span for each listed page.
    HR_DESC_PAGED = 3,
}

/// A rule for spans of one region. Make it with hr_desc_contiguous(), hr_desc_strided() or hr_desc_paged().
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[expect(clippy::exhaustive_structs, reason = "a C struct")]
pub struct hr_desc_t {
    /// The region's name, of hr_region_id() or hr_region_info_t.
    pub region: u64,
    /// Where the first span, or page 0, begins in the region.
    pub offset: u64,
    /// Bytes of each span.
    pub len: u64,
    /// From the begin of one span, or page, to that of the next.
    pub stride: u64,
    /// For remote lists, what hr_region_generation() or hr_region_revoke() told the owner. 0, which the functions that
    /// make descriptors put here: as it was when it was registered.
    pub generation: u64,
    /// HR_DESC_PAGED: which pages, in the order in which they are moved. Read while the list is prepared only.
    pub pages: *const u32,
    /// How many spans.
    pub count: u32,
    /// An hr_desc_kind_t.
    pub kind: u32,
}

/// One span: `len` bytes at `offset`.
#[unsafe(no_mangle)]
pub extern "C" fn hr_desc_contiguous(region: u64, offset: u64, len: u64) -> hr_desc_t {
    let kind = hr_desc_kind_t::HR_DESC_CONTIGUOUS as u32;
    hr_desc_t { region, offset, len, stride: len, generation: 0, pages: std::ptr::null(), count: 1, kind }
}

/// `count` spans of `len` bytes, each `stride` bytes after the last, the first at `offset`.
#[unsafe(no_mangle)]
pub extern "C" fn hr_desc_strided(region: u64, offset: u64, len: u64, stride: u64, count: u32) -> hr_desc_t {
    let kind = hr_desc_kind_t::HR_DESC_STRIDED as u32;
    hr_desc_t { region, offset, len, stride, generation: 0, pages: std::ptr::null(), count, kind }
}

/// A span of `len` bytes for each of the `count` indices in `pages`: page i lies at `offset + i * stride`.
/// The indices have to stay where they are until the list is prepared.
#[unsafe(no_mangle)]
pub extern "C" fn hr_desc_paged(
    region: u64,
    offset: u64,
    len: u64,
    stride: u64,
    pages: *const u32,
    count: u32,
) -> hr_desc_t {
    let kind = hr_desc_kind_t::HR_DESC_PAGED as u32;
    hr_desc_t { region, offset, len, stride, generation: 0, pages, count, kind }
}

impl hr_desc_t {
    fn to_desc(self, c: &Call) -> Outcome<Desc> {
        const CONTIGUOUS: u32 = hr_desc_kind_t::HR_DESC_CONTIGUOUS as u32;
        const STRIDED: u32 = hr_desc_kind_t::HR_DESC_STRIDED as u32;
        const PAGED: u32 = hr_desc_kind_t::HR_DESC_PAGED as u32;
        let region = RegionId::from_u64(self.region);
        let desc = match self.kind {
            CONTIGUOUS if self.count == 1 => Desc::contiguous(region, self.offset, self.len),
            CONTIGUOUS => return Err(hr_error_t::argument("desc.count", "is not 1 for HR_DESC_CONTIGUOUS")),
            STRIDED => Desc::strided(region, self.offset, self.len, self.stride, self.count),
            PAGED => {
                let pages = c.slice(self.pages, self.count as usize, "desc.pages")?;
                Desc::paged(region, self.offset, self.len, self.stride, pages.to_vec())
            }
            _ => return Err(hr_error_t::argument("desc.kind", "is no hr_desc_kind_t")),
        };
        Ok(desc.at_generation(self.generation))
    }
}

fn list_of(c: &Call, descs: *const hr_desc_t, count: usize) -> Outcome<DescList> {
    c.slice(descs, count, "descs")?.iter().map(|desc| desc.to_desc(c)).collect()
}

/// A list over regions of this agent, checked and bound once. Keep it and use it for many transfers.
#[derive(Debug)]
pub struct hr_list_t {
    pub(crate) list: LocalList,
}

/// A list over regions of a peer, checked, bound, and with its path chosen once.
#[derive(Debug)]
pub struct hr_remote_list_t {
    pub(crate) list: RemoteList,
}

/// Checks descriptors against this agent's regions and binds them to their memory, which the list keeps. Costs about a
/// nanosecond for each page, and 4 bytes; the descriptors and their pages are copied.
/// Free the list with hr_list_free().
/// Errors: HR_BAD_LIST, HR_REGION_CLOSED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hr_agent_prepare(
    agent: *mut hr_agent_t,
    descs: *const hr_desc_t,
    count: usize,
    list: *mut *mut hr_list_t,
    error: *mut *mut hr_error_t,
) -> hr_status_t {
    let body = |c: &Call| {
        let list = c.out(list, "list")?.none();
        let agent = &c.handle(agent, "agent")?.agent;
        list.give(hr_list_t { list: agent.prepare(&list_of(c, descs, count)?)? });
        Ok(())
    };
    // SAFETY: C1.
    unsafe { call(error, body) }
}

/// Checks descriptors against the peer's regions, chooses the path for them and, for shared memory, maps what was not
/// mapped yet. Blocks, up to connect_timeout_ns, only for a region that is new here.
/// Free the list with hr_remote_list_free().
/// Errors: HR_BAD_LIST, HR_REGION_CLOSED, HR_NO_PATH, HR_FALLBACK_REFUSED, HR_PEER_LOST, HR_TIMED_OUT, HR_OS from
/// mapping.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hr_peer_prepare(
    peer: *mut hr_peer_t,
    descs: *const hr_desc_t,
    count: usize,
    list: *mut *mut hr_remote_list_t,
    error: *mut *mut hr_error_t,
) -> hr_status_t {
    let body = |c: &Call| {
        let list = c.out(list, "list")?.none();
        let peer = &c.handle(peer, "peer")?.peer;
        list.give(hr_remote_list_t { list: peer.prepare(&list_of(c, descs, count)?)? });
        Ok(())
    };
    // SAFETY: C1.
    unsafe { call(error, body) }
}

/// How many spans it has. 0 for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hr_list_count(list: *const hr_list_t) -> u64 {
    // SAFETY: C1.
    unsafe { value(0, |c| Ok(c.handle(list, "list")?.list.count())) }
}

/// How many bytes all its spans have. 0 for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hr_list_bytes(list: *const hr_list_t) -> u64 {
    // SAFETY: C1.
    unsafe { value(0, |c| Ok(c.handle(list, "list")?.list.bytes())) }
}

/// Frees a list. Transfers that were posted with it go on. NULL is fine.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hr_list_free(list: *mut hr_list_t) {
    // SAFETY: C1.
    unsafe { value((), |c| c.free(list)) }
}

/// How many spans it has. 0 for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hr_remote_list_count(list: *const hr_remote_list_t) -> u64 {
    // SAFETY: C1.
    unsafe { value(0, |c| Ok(c.handle(list, "list")?.list.count())) }
}

/// How many bytes all its spans have. 0 for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hr_remote_list_bytes(list: *const hr_remote_list_t) -> u64 {
    // SAFETY: C1.
    unsafe { value(0, |c| Ok(c.handle(list, "list")?.list.bytes())) }
}

/// The path that transfers with it take. HR_PATH_OTHER for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hr_remote_list_path(list: *const hr_remote_list_t) -> hr_path_t {
    // SAFETY: C1.
    unsafe { value(hr_path_t::HR_PATH_OTHER, |c| Ok(c.handle(list, "list")?.list.path().into())) }
}

/// Frees a list. Transfers that were posted with it go on. NULL is fine.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hr_remote_list_free(list: *mut hr_remote_list_t) {
    // SAFETY: C1.
    unsafe { value((), |c| c.free(list)) }
}
