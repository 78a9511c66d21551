//! Devices, and what an open one is like.
#![allow(unsafe_code, reason = "calls into libibverbs")]

use std::ffi::{CStr, c_char, c_int};
use std::fmt;
use std::mem::{MaybeUninit, offset_of};
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use super::call::{object, status, unsigned};
use super::gid::{Gid, GidEntry, GidKind};
use super::load::Library;
use super::port::{LinkLayer, PortAttr};
use super::sys;
use crate::{OsError, OsResult};

/// The array of devices as the library gave it; devices in it are valid as long as it is.
struct DeviceList {
    library: Arc<Library>,
    raw: NonNull<*mut sys::ibv_device>,
}

// SAFETY: V2 (docs/ARCHITECTURE.md). The list is not changed after it was made, and freed once.
unsafe impl Send for DeviceList {}
// SAFETY: V2, as above.
unsafe impl Sync for DeviceList {}

impl Drop for DeviceList {
    fn drop(&mut self) {
        // SAFETY: V1, V2. Made by ibv_get_device_list; every device of it holds this list.
        unsafe { (self.library.api.free_device_list)(self.raw.as_ptr()) };
    }
}

/// A device that is there, not open.
#[derive(Clone)]
pub struct Device {
    list: Arc<DeviceList>,
    raw: NonNull<sys::ibv_device>,
    name: String,
    guid: u64,
}

// SAFETY: V2. A device lives as long as the list that it holds, and is only read.
unsafe impl Send for Device {}
// SAFETY: V2, as above.
unsafe impl Sync for Device {}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Library {
    /// The RDMA devices of this system; none is an empty list.
    ///
    /// # Errors
    /// [`crate::OsError`] of ibv_get_device_list: ENOSYS where the kernel has no RDMA, EPERM.
    pub fn devices(self: &Arc<Self>) -> OsResult<Vec<Device>> {
        let mut count: c_int = 0;
        // SAFETY: V1. One writable count.
        let raw = unsafe { (self.api.get_device_list)(&raw mut count) };
        let raw = object("ibv_get_device_list", raw, || "is the module ib_uverbs loaded?".to_owned())?;
        let list = Arc::new(DeviceList { library: Arc::clone(self), raw });
        let mut devices = Vec::new();
        for index in 0..usize::try_from(count).unwrap_or(0) {
            // SAFETY: V1. The array has `count` elements.
            let device = unsafe { *raw.as_ptr().wrapping_add(index) };
            if let Some(device) = NonNull::new(device) {
                devices.push(Device::new(&list, device));
            }
        }
        Ok(devices)
    }
}

impl Device {
    fn new(list: &Arc<DeviceList>, raw: NonNull<sys::ibv_device>) -> Self {
        let api = &list.library.api;
        // SAFETY: V1, V2. A device of a list that is held.
        let name = unsafe { (api.get_device_name)(raw.as_ptr()) };
        // SAFETY: V1, V2. As above.
        let guid = u64::from_be(unsafe { (api.get_device_guid)(raw.as_ptr()) });
        Self { list: Arc::clone(list), raw, name: text(name), guid }
    }

    /// The kernel's name of it, such as `mlx5_0`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its unique number.
    #[must_use]
    pub fn guid(&self) -> u64 {
        self.guid
    }

    /// Opens it. Its asynchronous events are read without blocking.
    ///
    /// # Errors
    /// [`crate::OsError`] of ibv_open_device, such as EACCES for `/dev/infiniband/uverbs*`.
    pub fn open(&self) -> OsResult<Arc<Context>> {
        let library = Arc::clone(&self.list.library);
        // SAFETY: V1, V2. The list is held.
        let raw = unsafe { (library.api.open_device)(self.raw.as_ptr()) };
        let raw = object("ibv_open_device", raw, || self.name.clone())?;
        // SAFETY: V1. The array in a device ends with zero.
        let sysfs = text(unsafe { (&raw const (*self.raw.as_ptr()).ibdev_path).cast() });
        let context = Context { library, raw, name: self.name.clone(), sysfs };
        set_nonblocking(context.async_fd())?;
        Ok(Arc::new(context))
    }
}

fn text(raw: *const c_char) -> String {
    if raw.is_null() {
        return String::new();
    }
    // SAFETY: V1. The library's strings end with zero, and live as long as the device they belong to.
    unsafe { CStr::from_ptr(raw) }.to_string_lossy().into_owned()
}

/// Reading from `fd` says EAGAIN instead of waiting.
pub(super) fn set_nonblocking(fd: c_int) -> OsResult<()> {
    // SAFETY: plain call on a descriptor that its owner keeps open.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFL) };
    // SAFETY: as above.
    if flags < 0 || unsafe { libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK) } < 0 {
        return Err(OsError::last("fcntl", format!("fd {fd}, O_NONBLOCK")));
    }
    Ok(())
}

/// An open device.
pub struct Context {
    pub(super) library: Arc<Library>,
    pub(super) raw: NonNull<sys::ibv_context>,
    name: String,
    sysfs: String,
}

// SAFETY: V2. Verbs lock what they change of a context; it is closed once, by the last owner.
unsafe impl Send for Context {}
// SAFETY: V2, as above.
unsafe impl Sync for Context {}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("device", &self.name).finish_non_exhaustive()
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: V1, V2. Whatever was made of it held it, so this is the last use.
        let result = unsafe { (self.library.api.close_device)(self.raw.as_ptr()) };
        self.library.destroyed(result);
    }
}

impl Context {
    /// The kernel's name of the device.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The folder that describes the device in sysfs (`/sys/class/infiniband/NAME`), as the library says.
    #[must_use]
    pub fn sysfs(&self) -> &str {
        &self.sysfs
    }

    pub(super) fn operations(&self) -> &sys::ibv_context_ops {
        // SAFETY: V2. Set when the device was opened, and constant since.
        unsafe { &self.raw.as_ref().ops }
    }

    fn async_fd(&self) -> c_int {
        // SAFETY: V2. Constant since the device was opened.
        unsafe { self.raw.as_ref().async_fd }
    }

    /// The extended operations, where the provider has the one at `offset` of them (`verbs_get_ctx_op` of the
    /// header). They lie before the context and grow away from it, so their size tells which are there.
    fn extended(&self, offset: usize) -> Option<&sys::verbs_context> {
        // SAFETY: V2. Constant since the device was opened.
        if unsafe { self.raw.as_ref().abi_compat }.addr() != usize::MAX {
            return None;
        }
        let extended = self.raw.as_ptr().wrapping_byte_sub(offset_of!(sys::verbs_context, context));
        let extended: *const sys::verbs_context = extended.cast();
        // SAFETY: V1. The mark above says that the context is the last field of that structure.
        let size = unsafe { (*extended).sz };
        if size < size_of::<sys::verbs_context>() - offset {
            return None;
        }
        // SAFETY: V1. As above; what lies before `offset` is never looked at.
        Some(unsafe { &*extended })
    }

    /// What the device can do. Cost: a system call.
    ///
    /// # Errors
    /// [`crate::OsError`] of ibv_query_device.
    pub fn device_attr(&self) -> OsResult<DeviceAttr> {
        let mut raw = MaybeUninit::<sys::ibv_device_attr_ex>::zeroed();
        let extended = self
            .extended(offset_of!(sys::verbs_context, query_device_ex))
            .and_then(|extended| extended.query_device_ex);
        let result = extended.map(|query| {
            // SAFETY: V1. Room for the structure whose size is given.
            unsafe { query(self.raw.as_ptr(), std::ptr::null(), raw.as_mut_ptr(), size_of_val(&raw)) }
        });
        match result {
            Some(result) if result != libc::EOPNOTSUPP && result != libc::ENOSYS => {
                status("ibv_query_device_ex", result, || self.name.clone())?;
            }
            _ => {
                // SAFETY: V1. The plain attributes are the beginning of the extended ones.
                let result =
                    unsafe { (self.library.api.query_device)(self.raw.as_ptr(), raw.as_mut_ptr().cast()) };
                status("ibv_query_device", result, || self.name.clone())?;
            }
        }
        // SAFETY: V1. Numbers only, zeroed before they were filled in.
        Ok(DeviceAttr::from_raw(&unsafe { raw.assume_init() }))
    }

    /// What port `port` (from 1) is like now. Cost: a system call.
    ///
    /// # Errors
    /// [`crate::OsError`] of ibv_query_port: EINVAL where there is no such port.
    pub fn port_attr(&self, port: u8) -> OsResult<PortAttr> {
        let mut raw = MaybeUninit::<sys::ibv_port_attr>::zeroed();
        let extended = self
            .extended(offset_of!(sys::verbs_context, query_port))
            .and_then(|extended| extended.query_port);
        let result = match extended {
            // SAFETY: V1. Room for the structure whose size is given.
            Some(query) => unsafe { query(self.raw.as_ptr(), port, raw.as_mut_ptr(), size_of_val(&raw)) },
            // SAFETY: V1. The exported function fills the beginning of the structure, all of which is zero.
            None => unsafe {
                (self.library.api.query_port)(self.raw.as_ptr(), port, raw.as_mut_ptr().cast())
            },
        };
        status("ibv_query_port", result, || format!("{} port {port}", self.name))?;
        // SAFETY: V1. Numbers only, zeroed before they were filled in.
        Ok(PortAttr::from_raw(&unsafe { raw.assume_init() }))
    }

    /// The addresses of port `port` that are in use. Cost: system calls for each of them, or one for all.
    ///
    /// # Errors
    /// [`crate::OsError`] of ibv_query_gid_table or ibv_query_port.
    pub fn gids(&self, port: u8) -> OsResult<Vec<GidEntry>> {
        let attr = self.port_attr(port)?;
        match self.library.api.query_gid_table {
            Some(query) => self.gid_table(query, port),
            None => Ok((0..attr.gid_table_len)
                .filter_map(|index| self.gid(port, index, attr.link_layer == LinkLayer::Ethernet))
                .collect()),
        }
    }

    fn gid_table(
        &self,
        query: unsafe extern "C" fn(
            *mut sys::ibv_context,
            *mut sys::ibv_gid_entry,
            usize,
            u32,
            usize,
        ) -> isize,
        port: u8,
    ) -> OsResult<Vec<GidEntry>> {
        const ENTRY: usize = size_of::<sys::ibv_gid_entry>();
        /// The kernel's interface has 16 bits for the size of the answer.
        const ENTRIES_MAX: usize = u16::MAX as usize / ENTRY;
        let mut entries = Vec::<sys::ibv_gid_entry>::with_capacity(ENTRIES_MAX);
        // SAFETY: V1. Room for that many entries of that size.
        let count = unsafe { query(self.raw.as_ptr(), entries.as_mut_ptr(), ENTRIES_MAX, 0, ENTRY) };
        let Ok(count) = usize::try_from(count) else {
            let errno = i32::try_from(count.unsigned_abs()).unwrap_or(libc::EIO);
            return Err(OsError::new("ibv_query_gid_table", self.name.clone(), errno));
        };
        // SAFETY: V1. The library filled in that many.
        unsafe { entries.set_len(count.min(ENTRIES_MAX)) };
        Ok(entries.iter().filter(|entry| entry.port_num == u32::from(port)).map(entry).collect())
    }

    /// One address as older libraries give it, with its kind from sysfs.
    fn gid(&self, port: u8, index: u32, ethernet: bool) -> Option<GidEntry> {
        let mut raw = sys::ibv_gid { raw: [0; 16] };
        let place = c_int::try_from(index).ok()?;
        // SAFETY: V1. Room for one address.
        let result = unsafe { (self.library.api.query_gid)(self.raw.as_ptr(), port, place, &raw mut raw) };
        // SAFETY: V1. Both variants are bytes.
        let gid = Gid::new(unsafe { raw.raw });
        if result != 0 || gid.is_zero() {
            return None;
        }
        let attrs = format!("{}/ports/{port}/gid_attrs", self.sysfs);
        let kind = std::fs::read_to_string(format!("{attrs}/types/{index}")).unwrap_or_default();
        Some(GidEntry { gid, index, kind: GidKind::from_sysfs(&kind, ethernet), interface: 0 })
    }
}

fn entry(raw: &sys::ibv_gid_entry) -> GidEntry {
    // SAFETY: V1. Both variants are bytes.
    let gid = Gid::new(unsafe { raw.gid.raw });
    GidEntry { gid, index: raw.gid_index, kind: GidKind::from_raw(raw.gid_type), interface: raw.ndev_ifindex }
}

/// Readable when an asynchronous event waits; see [`Context::poll_event`].
impl AsFd for Context {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: V2. Open as long as the context, which is borrowed.
        unsafe { BorrowedFd::borrow_raw(self.async_fd()) }
    }
}

/// What a device can do, at most.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceAttr {
    /// Version of its firmware.
    pub firmware: String,
    /// PCI vendor.
    pub vendor: u32,
    /// Ports, numbered from 1.
    pub ports: u8,
    /// Bytes of one registration.
    pub mr_bytes_max: u64,
    /// Registrations.
    pub mrs_max: u32,
    /// Memory windows.
    pub mws_max: u32,
    /// Queue pairs.
    pub qps_max: u32,
    /// Work requests in one queue of a queue pair.
    pub qp_wrs_max: u32,
    /// Ranges of one work request.
    pub sges_max: u32,
    /// Completion queues.
    pub cqs_max: u32,
    /// Entries of one.
    pub cq_entries_max: u32,
    /// Shared receive queues.
    pub srqs_max: u32,
    /// Work requests in one.
    pub srq_wrs_max: u32,
    /// READs that one queue pair serves at once.
    pub reads_served_max: u8,
    /// READs that one queue pair has under way at once.
    pub reads_max: u8,
    /// Memory windows of type 2 that belong to one queue pair (2B).
    pub memory_windows: bool,
    /// Memory need not be pinned.
    pub on_demand_paging: bool,
}

impl DeviceAttr {
    fn from_raw(raw: &sys::ibv_device_attr_ex) -> Self {
        let plain = &raw.orig_attr;
        let byte = |count: c_int| u8::try_from(unsigned(count)).unwrap_or(u8::MAX);
        Self {
            firmware: text(plain.fw_ver.as_ptr()),
            vendor: plain.vendor_id,
            ports: plain.phys_port_cnt,
            mr_bytes_max: plain.max_mr_size,
            mrs_max: unsigned(plain.max_mr),
            mws_max: unsigned(plain.max_mw),
            qps_max: unsigned(plain.max_qp),
            qp_wrs_max: unsigned(plain.max_qp_wr),
            sges_max: unsigned(plain.max_sge),
            cqs_max: unsigned(plain.max_cq),
            cq_entries_max: unsigned(plain.max_cqe),
            srqs_max: unsigned(plain.max_srq),
            srq_wrs_max: unsigned(plain.max_srq_wr),
            reads_served_max: byte(plain.max_qp_rd_atom),
            reads_max: byte(plain.max_qp_init_rd_atom),
            memory_windows: plain.device_cap_flags & sys::IBV_DEVICE_MEM_WINDOW_TYPE_2B != 0,
            on_demand_paging: raw.odp_caps.general_caps & 1 != 0,
        }
    }
}
