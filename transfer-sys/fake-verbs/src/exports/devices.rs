//! Devices, contexts, ports, addresses and asynchronous events.

use std::ffi::{c_char, c_int};
use std::mem::offset_of;
use std::sync::atomic::Ordering;

use transfer_sys::verbs::sys;

use super::{Handle, context_slot, data, make_pipe, minus_one, read_record, refused, status, things};
use crate::provider::{Provider, provider};
use crate::queues::pipe;
use crate::shared::{CQ_ENTRIES, CQS, DEVICES, GIDS, MRS, MWS, PDS, QPS, QUEUE_WRS, READS, SEND_SGES, SRQS};

/// A device that C sees.
#[repr(C)]
struct Device {
    raw: sys::ibv_device,
    slot: u32,
}

/// A context that C sees: the structure of the header is the last field of a larger one.
#[repr(C)]
pub(super) struct Context {
    extended: sys::verbs_context,
    pub(super) slot: u32,
}

impl Context {
    pub(super) unsafe fn of<'a>(raw: *mut sys::ibv_context) -> &'a Self {
        &*Self::pointer(raw)
    }

    fn pointer(raw: *mut sys::ibv_context) -> *mut Self {
        raw.wrapping_byte_sub(offset_of!(sys::verbs_context, context)).cast()
    }
}

fn errno_of<T>(result: Result<T, i32>) -> i32 {
    status(result.map(|_| ()))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_get_device_list(count: *mut c_int) -> *mut *mut sys::ibv_device {
    let Some(provider) = provider() else { return refused(libc::ENOSYS) };
    let mut local = provider.local();
    let shared = provider.lock();
    let mut list: Vec<*mut sys::ibv_device> = Vec::with_capacity(DEVICES + 1);
    for (slot, device) in (0..).zip(&shared.devices).filter(|(_, device)| device.present && !device.removed) {
        let made = local.devices.entry(slot).or_insert_with(|| {
            let mut raw: sys::ibv_device = std::mem::zeroed();
            raw.node_type = sys::IBV_NODE_CA;
            for (to, from) in raw.name.iter_mut().zip(device.name) {
                *to = from.cast_signed();
            }
            Box::into_raw(Box::new(Device { raw, slot })).expose_provenance()
        });
        list.push(std::ptr::with_exposed_provenance_mut(*made));
    }
    if !count.is_null() {
        *count = c_int::try_from(list.len()).unwrap_or(0);
    }
    list.push(std::ptr::null_mut());
    list.resize(DEVICES + 1, std::ptr::null_mut());
    Box::into_raw(list.into_boxed_slice()).cast()
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_free_device_list(list: *mut *mut sys::ibv_device) {
    drop(Box::from_raw(std::ptr::slice_from_raw_parts_mut(list, DEVICES + 1)));
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_get_device_name(device: *mut sys::ibv_device) -> *const c_char {
    (*device).name.as_ptr()
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_get_device_guid(device: *mut sys::ibv_device) -> u64 {
    let slot = (*device.cast::<Device>()).slot;
    provider().map_or(0, |provider| provider.lock().devices[slot as usize].guid.to_be())
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_open_device(device: *mut sys::ibv_device) -> *mut sys::ibv_context {
    let Some(provider) = provider() else { return refused(libc::ENOSYS) };
    let slot = match provider.open((*device.cast::<Device>()).slot) {
        Ok(slot) => slot,
        Err(errno) => return refused(errno),
    };
    let events = pipe(&provider.folder, "events", slot as usize, &provider.lock().contexts[slot as usize]);
    let fd = match make_pipe(&events) {
        Ok(fd) => fd,
        Err(errno) => {
            let _open = provider.close(slot);
            return refused(errno);
        }
    };
    let mut extended: sys::verbs_context = std::mem::zeroed();
    extended.sz = size_of::<sys::verbs_context>();
    extended.query_port = Some(query_port);
    let context = &mut extended.context;
    context.device = device;
    context.async_fd = fd;
    context.cmd_fd = -1;
    context.num_comp_vectors = 1;
    context.abi_compat = std::ptr::without_provenance_mut(usize::MAX);
    context.ops.poll_cq = Some(data::poll_cq);
    context.ops.req_notify_cq = Some(data::req_notify_cq);
    context.ops.post_send = Some(data::post_send);
    context.ops.post_recv = Some(data::post_recv);
    context.ops.post_srq_recv = Some(data::post_srq_recv);
    context.ops.alloc_mw = Some(things::alloc_mw);
    context.ops.dealloc_mw = Some(things::dealloc_mw);
    let context = Box::into_raw(Box::new(Context { extended, slot }));
    &raw mut (*context).extended.context
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_close_device(context: *mut sys::ibv_context) -> c_int {
    let Some(provider) = provider() else { return libc::ENOSYS };
    if let Err(errno) = provider.close(context_slot(context)) {
        return errno;
    }
    libc::close((*context).async_fd);
    drop(Box::from_raw(Context::pointer(context)));
    0
}

fn with_device<T>(
    context: *mut sys::ibv_context,
    then: impl FnOnce(&Provider, &crate::shared::Device) -> Result<T, i32>,
) -> Result<T, i32> {
    let provider = provider().ok_or(libc::ENOSYS)?;
    let shared = provider.lock();
    let device = shared.contexts[context_slot(context) as usize].device;
    let device = &shared.devices[device as usize];
    if device.removed {
        return Err(libc::EIO);
    }
    then(provider, device)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_query_device(
    context: *mut sys::ibv_context,
    attr: *mut sys::ibv_device_attr,
) -> c_int {
    let limit = |limit: usize| c_int::try_from(limit).unwrap_or(c_int::MAX);
    errno_of(with_device(context, |_, device| {
        let mut it: sys::ibv_device_attr = std::mem::zeroed();
        for (to, from) in it.fw_ver.iter_mut().zip(b"fake") {
            *to = from.cast_signed();
        }
        it.node_guid = device.guid.to_be();
        it.max_mr_size = u64::MAX;
        it.page_size_cap = 4096;
        it.max_qp = limit(QPS);
        it.max_qp_wr = limit(QUEUE_WRS);
        it.max_sge = limit(SEND_SGES);
        it.max_cq = limit(CQS);
        it.max_cqe = limit(CQ_ENTRIES);
        it.max_mr = limit(MRS);
        it.max_pd = limit(PDS);
        it.max_mw = limit(MWS);
        it.max_srq = limit(SRQS);
        it.max_srq_wr = limit(QUEUE_WRS);
        it.max_qp_rd_atom = READS.into();
        it.max_qp_init_rd_atom = READS.into();
        it.phys_port_cnt = 1;
        if device.windows {
            it.device_cap_flags |= sys::IBV_DEVICE_MEM_WINDOW_TYPE_2B;
        }
        *attr = it;
        Ok(())
    }))
}

fn port_of(device: &crate::shared::Device) -> sys::ibv_port_attr {
    // SAFETY: V5. Numbers only, for which zero is a value.
    let mut it: sys::ibv_port_attr = unsafe { std::mem::zeroed() };
    it.state = if device.port_up { sys::IBV_PORT_ACTIVE } else { sys::IBV_PORT_DOWN };
    (it.max_mtu, it.active_mtu) = (sys::IBV_MTU_4096, device.mtu);
    it.gid_tbl_len = c_int::try_from(GIDS).unwrap_or(0);
    it.max_msg_sz = 1 << 31;
    it.pkey_tbl_len = 1;
    it.lid = device.lid;
    (it.active_width, it.active_speed) = (device.width, device.speed);
    let link = if device.ethernet { sys::IBV_LINK_LAYER_ETHERNET } else { sys::IBV_LINK_LAYER_INFINIBAND };
    it.link_layer = u8::try_from(link).unwrap_or(0);
    it
}

unsafe extern "C" fn query_port(
    context: *mut sys::ibv_context,
    port: u8,
    attr: *mut sys::ibv_port_attr,
    len: usize,
) -> c_int {
    errno_of(with_device(context, |_, device| {
        if port != 1 {
            return Err(libc::EINVAL);
        }
        let it = port_of(device);
        let len = len.min(size_of_val(&it));
        std::ptr::copy_nonoverlapping((&raw const it).cast::<u8>(), attr.cast(), len);
        Ok(())
    }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_query_port(
    context: *mut sys::ibv_context,
    port: u8,
    attr: *mut sys::_compat_ibv_port_attr,
) -> c_int {
    query_port(context, port, attr.cast(), offset_of!(sys::ibv_port_attr, link_layer) + 1)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_query_gid(
    context: *mut sys::ibv_context,
    port: u8,
    index: c_int,
    gid: *mut sys::ibv_gid,
) -> c_int {
    let found = with_device(context, |_, device| {
        let index = usize::try_from(index).map_err(|_| libc::EINVAL)?;
        let entry = device.gids.get(index).filter(|_| port == 1).ok_or(libc::EINVAL)?;
        (*gid).raw = entry.bytes;
        Ok(())
    });
    found.map_or_else(minus_one, |()| 0)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn _ibv_query_gid_table(
    context: *mut sys::ibv_context,
    entries: *mut sys::ibv_gid_entry,
    room: usize,
    _flags: u32,
    size: usize,
) -> isize {
    let result = with_device(context, |_, device| {
        // The kernel's interface has 16 bits for the size of the answer.
        if size != size_of::<sys::ibv_gid_entry>() || room * size > u16::MAX.into() {
            return Err(libc::EINVAL);
        }
        let used = (0..).zip(&device.gids).filter(|(_, gid)| gid.used);
        let mut count = 0;
        for (index, gid) in used.take(room) {
            *entries.add(count) = sys::ibv_gid_entry {
                gid: sys::ibv_gid { raw: gid.bytes },
                gid_index: index,
                port_num: 1,
                gid_type: gid.kind,
                ndev_ifindex: 0,
            };
            count += 1;
        }
        Ok(count.cast_signed())
    });
    result.unwrap_or_else(|errno| -(errno as isize))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_get_async_event(
    context: *mut sys::ibv_context,
    event: *mut sys::ibv_async_event,
) -> c_int {
    let Some(provider) = provider() else { return minus_one(libc::ENOSYS) };
    loop {
        let [kind, element, ..] = match read_record((*context).async_fd) {
            Ok(record) => record,
            Err(errno) => return minus_one(errno),
        };
        let local = provider.local();
        (*event).event_type = kind;
        let pointer = |of: &std::collections::HashMap<u32, usize>| of.get(&element).copied().unwrap_or(0);
        let place = &mut (*event).element;
        let found = match kind {
            sys::IBV_EVENT_CQ_ERR => {
                place.cq = std::ptr::with_exposed_provenance_mut(pointer(&local.cqs));
                count(place.cq, 1)
            }
            sys::IBV_EVENT_SRQ_LIMIT_REACHED => {
                place.srq = std::ptr::with_exposed_provenance_mut(pointer(&local.srqs));
                count(place.srq, 1)
            }
            sys::IBV_EVENT_PORT_ERR | sys::IBV_EVENT_PORT_ACTIVE | sys::IBV_EVENT_DEVICE_FATAL => {
                place.port_num = element.cast_signed();
                true
            }
            _ => {
                place.qp = std::ptr::with_exposed_provenance_mut(pointer(&local.qps));
                count(place.qp, 1)
            }
        };
        // An event of something that was destroyed meanwhile is nobody's.
        if found {
            return 0;
        }
    }
}

/// Counts an event of an object that was fetched, or acknowledged; `false` where there is no object.
unsafe fn count<T>(object: *mut T, change: i32) -> bool {
    if object.is_null() {
        return false;
    }
    let counter = &Handle::of(object).unacknowledged;
    counter.fetch_add(change.cast_unsigned(), Ordering::Relaxed);
    true
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_ack_async_event(event: *mut sys::ibv_async_event) {
    let place = &(*event).element;
    match (*event).event_type {
        sys::IBV_EVENT_CQ_ERR => count(place.cq, -1),
        sys::IBV_EVENT_SRQ_LIMIT_REACHED => count(place.srq, -1),
        sys::IBV_EVENT_PORT_ERR | sys::IBV_EVENT_PORT_ACTIVE | sys::IBV_EVENT_DEVICE_FATAL => true,
        _ => count(place.qp, -1),
    };
}
