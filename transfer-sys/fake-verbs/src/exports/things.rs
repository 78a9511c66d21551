//! Domains, registrations, windows, channels, queues and queue pairs.

use std::ffi::{c_int, c_void};
use std::sync::atomic::Ordering;

use transfer_sys::verbs::sys;

use super::{Handle, context_slot, make_pipe, minus_one, read_record, refused, slot, status};
use crate::objects::Source;
use crate::provider::provider;
use crate::queues::pipe;
use crate::shared::NONE;

/// Destroys by `with` what has no event that was not acknowledged; then frees what C saw of it.
unsafe fn destroy<T>(
    raw: *mut T,
    with: impl FnOnce(&crate::provider::Provider, u32) -> Result<(), i32>,
) -> c_int {
    let Some(provider) = provider() else { return libc::ENOSYS };
    // The real library waits for the acknowledgement here, for ever if need be; a test would rather know.
    if Handle::of(raw).unacknowledged.load(Ordering::Relaxed) != 0 {
        return libc::EBUSY;
    }
    let result = status(with(provider, slot(raw)));
    if result == 0 {
        Handle::free(raw);
    }
    result
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_alloc_pd(context: *mut sys::ibv_context) -> *mut sys::ibv_pd {
    let made = provider().ok_or(libc::ENOSYS).and_then(|provider| provider.alloc_pd(context_slot(context)));
    made.map_or_else(refused, |slot| Handle::boxed(sys::ibv_pd { context, handle: slot }, slot))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_dealloc_pd(pd: *mut sys::ibv_pd) -> c_int {
    destroy(pd, |provider, slot| provider.dealloc_pd(slot))
}

unsafe fn register(
    pd: *mut sys::ibv_pd,
    addr: *mut c_void,
    source: &Source,
    length: usize,
    base: Option<u64>,
    access: u32,
) -> *mut sys::ibv_mr {
    let made = provider()
        .ok_or(libc::ENOSYS)
        .and_then(|provider| provider.register(slot(pd), source, length as u64, base, access));
    made.map_or_else(refused, |(slot, key)| {
        let context = (*pd).context;
        Handle::boxed(sys::ibv_mr { context, pd, addr, length, handle: slot, lkey: key, rkey: key }, slot)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_reg_mr(
    pd: *mut sys::ibv_pd,
    addr: *mut c_void,
    length: usize,
    access: c_int,
) -> *mut sys::ibv_mr {
    let source = Source::Address(addr.expose_provenance() as u64);
    register(pd, addr, &source, length, None, access.cast_unsigned())
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_reg_mr_iova2(
    pd: *mut sys::ibv_pd,
    addr: *mut c_void,
    length: usize,
    base: u64,
    access: u32,
) -> *mut sys::ibv_mr {
    let source = Source::Address(addr.expose_provenance() as u64);
    register(pd, addr, &source, length, Some(base), access)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_reg_dmabuf_mr(
    pd: *mut sys::ibv_pd,
    offset: u64,
    length: usize,
    base: u64,
    fd: c_int,
    access: c_int,
) -> *mut sys::ibv_mr {
    let source = Source::Descriptor(fd, offset);
    register(pd, std::ptr::null_mut(), &source, length, Some(base), access.cast_unsigned())
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_dereg_mr(mr: *mut sys::ibv_mr) -> c_int {
    destroy(mr, |provider, slot| provider.deregister(slot))
}

pub(super) unsafe extern "C" fn alloc_mw(pd: *mut sys::ibv_pd, type_: u32) -> *mut sys::ibv_mw {
    let made = provider().ok_or(libc::ENOSYS).and_then(|provider| provider.alloc_mw(slot(pd), type_));
    made.map_or_else(refused, |(slot, rkey)| {
        Handle::boxed(sys::ibv_mw { context: (*pd).context, pd, rkey, handle: slot, type_ }, slot)
    })
}

pub(super) unsafe extern "C" fn dealloc_mw(mw: *mut sys::ibv_mw) -> c_int {
    destroy(mw, |provider, slot| provider.dealloc_mw(slot))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_create_comp_channel(
    context: *mut sys::ibv_context,
) -> *mut sys::ibv_comp_channel {
    let Some(provider) = provider() else { return refused(libc::ENOSYS) };
    let slot = match provider.create_channel(context_slot(context)) {
        Ok(slot) => slot,
        Err(errno) => return refused(errno),
    };
    let path = pipe(&provider.folder, "channel", slot as usize, &provider.lock().channels[slot as usize]);
    match make_pipe(&path) {
        Ok(fd) => Handle::boxed(sys::ibv_comp_channel { context, fd, refcnt: 0 }, slot),
        Err(errno) => {
            let _made = provider.destroy_channel(slot);
            refused(errno)
        }
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_destroy_comp_channel(channel: *mut sys::ibv_comp_channel) -> c_int {
    let fd = (*channel).fd;
    let result = destroy(channel, |provider, slot| provider.destroy_channel(slot));
    if result == 0 {
        libc::close(fd);
    }
    result
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_create_cq(
    context: *mut sys::ibv_context,
    entries: c_int,
    cq_context: *mut c_void,
    channel: *mut sys::ibv_comp_channel,
    vector: c_int,
) -> *mut sys::ibv_cq {
    let Some(provider) = provider() else { return refused(libc::ENOSYS) };
    if vector != 0 {
        return refused(libc::EINVAL);
    }
    let on = (!channel.is_null()).then(|| slot(channel));
    match provider.create_cq(context_slot(context), entries, on) {
        Ok(slot) => {
            let mut raw: sys::ibv_cq = std::mem::zeroed();
            (raw.context, raw.channel, raw.cq_context) = (context, channel, cq_context);
            (raw.handle, raw.cqe) = (slot, entries);
            let cq = Handle::boxed(raw, slot);
            provider.local().cqs.insert(slot, cq.expose_provenance());
            cq
        }
        Err(errno) => refused(errno),
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_destroy_cq(cq: *mut sys::ibv_cq) -> c_int {
    destroy(cq, |provider, slot| provider.destroy_cq(slot))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_get_cq_event(
    channel: *mut sys::ibv_comp_channel,
    cq: *mut *mut sys::ibv_cq,
    cq_context: *mut *mut c_void,
) -> c_int {
    let Some(provider) = provider() else { return minus_one(libc::ENOSYS) };
    loop {
        let [_, queue, generation, _] = match read_record((*channel).fd) {
            Ok(record) => record,
            Err(errno) => return minus_one(errno),
        };
        let local = provider.local();
        let same = provider.lock().cqs[queue as usize].object.generation == generation;
        if let Some(found) = local.cqs.get(&queue).filter(|_| same) {
            *cq = std::ptr::with_exposed_provenance_mut(*found);
            *cq_context = (**cq).cq_context;
            Handle::of(*cq).unacknowledged.fetch_add(1, Ordering::Relaxed);
            return 0;
        }
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_ack_cq_events(cq: *mut sys::ibv_cq, count: u32) {
    Handle::of(cq).unacknowledged.fetch_sub(count, Ordering::Relaxed);
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_create_srq(
    pd: *mut sys::ibv_pd,
    init: *mut sys::ibv_srq_init_attr,
) -> *mut sys::ibv_srq {
    let Some(provider) = provider() else { return refused(libc::ENOSYS) };
    match provider.create_srq(slot(pd), &(*init).attr) {
        Ok(slot) => {
            let mut raw: sys::ibv_srq = std::mem::zeroed();
            (raw.context, raw.pd, raw.srq_context) = ((*pd).context, pd, (*init).srq_context);
            raw.handle = slot;
            let srq = Handle::boxed(raw, slot);
            provider.local().srqs.insert(slot, srq.expose_provenance());
            srq
        }
        Err(errno) => refused(errno),
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_modify_srq(
    srq: *mut sys::ibv_srq,
    attr: *mut sys::ibv_srq_attr,
    mask: c_int,
) -> c_int {
    let Some(provider) = provider() else { return libc::ENOSYS };
    let mut shared = provider.lock();
    let it = &mut shared.srqs[slot(srq) as usize];
    if mask.cast_unsigned() != sys::IBV_SRQ_LIMIT || (*attr).srq_limit > it.queue.capacity {
        return libc::EINVAL;
    }
    it.limit = (*attr).srq_limit;
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_destroy_srq(srq: *mut sys::ibv_srq) -> c_int {
    destroy(srq, |provider, slot| provider.destroy_srq(slot))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_create_qp(
    pd: *mut sys::ibv_pd,
    init: *mut sys::ibv_qp_init_attr,
) -> *mut sys::ibv_qp {
    let Some(provider) = provider() else { return refused(libc::ENOSYS) };
    let (send, receive, srq) = ((*init).send_cq, (*init).recv_cq, (*init).srq);
    let on = (slot(send), slot(receive), if srq.is_null() { NONE } else { slot(srq) });
    match provider.create_qp(slot(pd), on, &*init) {
        Ok((slot, number)) => {
            let mut raw: sys::ibv_qp = std::mem::zeroed();
            (raw.context, raw.pd, raw.srq) = ((*pd).context, pd, srq);
            (raw.send_cq, raw.recv_cq) = (send, receive);
            (raw.handle, raw.qp_num, raw.qp_type) = (slot, number, (*init).qp_type);
            raw.qp_context = (*init).qp_context;
            let qp = Handle::boxed(raw, slot);
            provider.local().qps.insert(slot, qp.expose_provenance());
            qp
        }
        Err(errno) => refused(errno),
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_modify_qp(
    qp: *mut sys::ibv_qp,
    attr: *mut sys::ibv_qp_attr,
    mask: c_int,
) -> c_int {
    let Some(provider) = provider() else { return libc::ENOSYS };
    status(provider.modify_qp(slot(qp), &*attr, mask.cast_unsigned()))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_query_qp(
    qp: *mut sys::ibv_qp,
    attr: *mut sys::ibv_qp_attr,
    _mask: c_int,
    init: *mut sys::ibv_qp_init_attr,
) -> c_int {
    let Some(provider) = provider() else { return libc::ENOSYS };
    *attr = provider.lock().qps[slot(qp) as usize].attr;
    (*init).cap = (*attr).cap;
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_destroy_qp(qp: *mut sys::ibv_qp) -> c_int {
    destroy(qp, |provider, slot| provider.destroy_qp(slot))
}
