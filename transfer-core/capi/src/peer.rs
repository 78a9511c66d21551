//! Peers.

use std::ffi::{CString, c_char};
use std::sync::Arc;

use transfer_core::{Peer, RegionInfo, RegionKind};

use crate::boundary::{Call, call, value};
use crate::error::{c_text, hr_error_t};
use crate::list::{hr_list_t, hr_remote_list_t};
use crate::region::hr_access_t;
use crate::status::hr_status_t;

/// Another agent that this one is connected to, in one of its lives. Several handles may name the same peer.
#[derive(Debug)]
pub struct hr_peer_t {
    pub(crate) peer: Peer,
    name: CString,
    app: Arc<[u8]>,
}

impl From<Peer> for hr_peer_t {
    fn from(peer: Peer) -> Self {
        Self { name: c_text(peer.name()), app: peer.app_metadata(), peer }
    }
}

/// Where the memory of a region came from.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "a C enum; values are only ever added")]
pub enum hr_region_kind_t {
    /// One that this header does not know.
    HR_REGION_OTHER = 0,
    /// Its agent allocated it; peers on the same host can map it.
    HR_REGION_ALLOCATED = 1,
    /// Its application registered it.
    HR_REGION_FOREIGN = 2,
}

/// Bytes of hr_region_info_t.label, with the NUL.
pub const HR_LABEL_SIZE: usize = 256;

/// A peer's region, as its owner describes it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[expect(clippy::exhaustive_structs, reason = "a C struct")]
pub struct hr_region_info_t {
    /// Its name, for descriptors.
    pub id: u64,
    /// Its length in bytes.
    pub len: u64,
    /// Bytes of a block: what its owner revokes at the least.
    pub block_bytes: u64,
    /// Where its memory came from.
    pub kind: hr_region_kind_t,
    /// What this agent may do with it.
    pub access: hr_access_t,
    /// What the owner's application calls it, with a NUL at its end.
    pub label: [c_char; HR_LABEL_SIZE],
}

impl From<&RegionInfo> for hr_region_info_t {
    fn from(info: &RegionInfo) -> Self {
        let kind = match info.kind {
            RegionKind::Allocated => hr_region_kind_t::HR_REGION_ALLOCATED,
            RegionKind::Foreign => hr_region_kind_t::HR_REGION_FOREIGN,
            _ => hr_region_kind_t::HR_REGION_OTHER,
        };
        let mut label = [0; HR_LABEL_SIZE];
        for (to, from) in label.iter_mut().take(HR_LABEL_SIZE - 1).zip(info.label.bytes()) {
            *to = c_char::from_ne_bytes([from]);
        }
        let (id, block_bytes) = (info.id.to_u64(), info.generations.block_bytes);
        Self { id, len: info.len, block_bytes, kind, access: info.access.into(), label }
    }
}

/// Another handle of the same peer, to be freed like it. NULL for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hr_peer_clone(peer: *const hr_peer_t) -> *mut hr_peer_t {
    let none = std::ptr::null_mut();
    // SAFETY: C1.
    unsafe { value(none, |c| Ok(Box::into_raw(Box::new(c.handle(peer, "peer")?.peer.clone().into())))) }
}

/// Frees the handle; the connection stays. NULL is fine.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hr_peer_free(peer: *mut hr_peer_t) {
    // SAFETY: C1.
    unsafe { value((), |c| c.free(peer)) }
}

/// Its name, for people. Belongs to the handle. NULL for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hr_peer_name(peer: *const hr_peer_t) -> *const c_char {
    // SAFETY: C1.
    unsafe { value(std::ptr::null(), |c| Ok(c.handle(peer, "peer")?.name.as_ptr())) }
}

/// Which life of it, as 16 bytes: two handles name the same peer where these are equal.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hr_peer_incarnation(
    peer: *const hr_peer_t,
    incarnation: *mut u8,
    error: *mut *mut hr_error_t,
) -> hr_status_t {
    let body = |c: &Call| {
        let bytes = c.handle(peer, "peer")?.peer.incarnation().to_bytes();
        c.fill(incarnation, &bytes, "incarnation")
    };
    // SAFETY: C1.
    unsafe { call(error, body) }
}

/// What its application says of itself (hr_config_t.app_metadata there). Writes the length to `len`, which may be NULL.
/// Belongs to the handle. NULL for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hr_peer_app_metadata(peer: *const hr_peer_t, len: *mut usize) -> *const u8 {
    let body = |c: &Call| {
        let len = c.out_or_none(len, "len")?;
        let app = c.handle(peer, "peer").map(|peer| &peer.app);
        if let Some(len) = len {
            len.put(app.as_ref().map_or(0, |app| app.len()));
        }
        app.map(|app| app.as_ptr())
    };
    // SAFETY: C1.
    unsafe { value(std::ptr::null(), body) }
}

/// Whether it is connected. A peer that was lost never comes back; connect again to its next incarnation. False for
/// NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hr_peer_is_up(peer: *const hr_peer_t) -> bool {
    // SAFETY: C1.
    unsafe { value(false, |c| Ok(c.handle(peer, "peer")?.peer.is_up())) }
}

/// Its first region of that label, as known here; after hr_peer_sync() that is at least what it had before.
/// Errors: HR_NOT_FOUND.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hr_peer_region(
    peer: *const hr_peer_t,
    label: *const c_char,
    info: *mut hr_region_info_t,
    error: *mut *mut hr_error_t,
) -> hr_status_t {
    let body = |c: &Call| {
        let info = c.out(info, "info")?;
        let (peer, label) = (&c.handle(peer, "peer")?.peer, c.text(label, "label")?);
        let found = peer.region(label).ok_or_else(|| {
            let message =
                format!("{} has no region {label:?}; hr_peer_sync() brings what is new", peer.name());
            hr_error_t::new(hr_status_t::HR_NOT_FOUND, message)
        });
        info.put((&found?).into());
        Ok(())
    };
    // SAFETY: C1.
    unsafe { call(error, body) }
}

/// Its regions as known here: writes up to `capacity` of them, and to `count` how many there are. `infos` may be NULL
/// where `capacity` is 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hr_peer_regions(
    peer: *const hr_peer_t,
    infos: *mut hr_region_info_t,
    capacity: usize,
    count: *mut usize,
    error: *mut *mut hr_error_t,
) -> hr_status_t {
    let body = |c: &Call| {
        let (infos, count) = (c.outs(infos, capacity, "infos")?, c.out(count, "count")?);
        count.put(0);
        let regions = c.handle(peer, "peer")?.peer.regions();
        count.put(regions.len());
        infos.put_all(regions.iter().map(hr_region_info_t::from));
        Ok(())
    };
    // SAFETY: C1.
    unsafe { call(error, body) }
}

/// Returns when the peer's agent has taken in all that was sent to it, and this one all that the peer had sent by then:
/// its regions are known, its notifications are among the events. Blocks for one round trip.
/// Errors: HR_PEER_LOST, HR_TIMED_OUT after peer_timeout_ns.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hr_peer_sync(peer: *mut hr_peer_t, error: *mut *mut hr_error_t) -> hr_status_t {
    // SAFETY: C1.
    unsafe { call(error, |c| Ok(c.handle(peer, "peer")?.peer.sync()?)) }
}

/// Sends bytes, at most 64 KiB, to the peer's application, which gets them as an HR_EVENT_NOTIF. They arrive in order
/// with other notifications. The bytes are copied.
/// Errors: HR_NOT_NOTIFIED, HR_PEER_LOST, HR_AGENT_CLOSED. A peer that is lost later may not have got them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hr_peer_notify(
    peer: *mut hr_peer_t,
    data: *const u8,
    len: usize,
    error: *mut *mut hr_error_t,
) -> hr_status_t {
    // SAFETY: C1.
    unsafe { call(error, |c| Ok(c.handle(peer, "peer")?.peer.notify(c.slice(data, len, "data")?)?)) }
}

/// Ends the connection. Both sides see the peer as lost. Free the handle all the same.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hr_peer_disconnect(
    peer: *mut hr_peer_t,
    error: *mut *mut hr_error_t,
) -> hr_status_t {
    let body = |c: &Call| {
        c.handle(peer, "peer")?.peer.disconnect();
        Ok(())
    };
    // SAFETY: C1.
    unsafe { call(error, body) }
}

/// Which path a transfer between the two lists takes, and why not another, in English for a log.
/// Free the text with hr_string_free().
/// Errors: HR_WRONG_AGENT for lists of another peer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hr_peer_explain(
    peer: *const hr_peer_t,
    local: *const hr_list_t,
    remote: *const hr_remote_list_t,
    text: *mut *mut c_char,
    error: *mut *mut hr_error_t,
) -> hr_status_t {
    let body = |c: &Call| {
        let text = c.out(text, "text")?.none();
        let (local, remote) = (c.handle(local, "local")?, c.handle(remote, "remote")?);
        let told = c.handle(peer, "peer")?.peer.explain(&local.list, &remote.list)?;
        text.give_text(c_text(told.to_string()));
        Ok(())
    };
    // SAFETY: C1.
    unsafe { call(error, body) }
}
