//! Posting and polling.

use std::ffi::c_int;

use transfer_sys::verbs::sys;

use super::slot;
use crate::engine::{Attempt, Request, SendQueue};
use crate::objects::place;
use crate::provider::provider;
use crate::queues::{flush_receives, post};
use crate::shared::{Armed, NONE, RECEIVE_SGES, Receive, SEND_SGES};
use crate::windows::Binding;

const EMPTY: sys::ibv_sge = sys::ibv_sge { addr: 0, length: 0, lkey: 0 };

pub(super) unsafe extern "C" fn poll_cq(cq: *mut sys::ibv_cq, room: c_int, out: *mut sys::ibv_wc) -> c_int {
    let Some(provider) = provider() else { return -1 };
    let at = slot(cq) as usize;
    if room <= 0 || provider.map.cq_is_empty(at) {
        return 0;
    }
    let mut local = provider.local();
    let shared = &mut *provider.lock();
    if shared.devices[shared.cqs[at].object.device as usize].removed {
        return 0;
    }
    let mut count = 0;
    while count < room && shared.cqs[at].head < shared.cqs[at].tail {
        let cqe = shared.cq_rings[at][place(shared.cqs[at].head)];
        shared.cqs[at].head += 1;
        *out.add(usize::try_from(count).unwrap_or(0)) = cqe.wc;
        count += 1;
        if cqe.frees > 0 {
            if let Some(queue) = local.sends.get_mut(&cqe.qp) {
                queue.used = queue.used.saturating_sub(cqe.frees);
            }
            continue;
        }
        let qp = &mut shared.qps[cqe.qp as usize];
        let used = match qp.srq {
            NONE => &mut qp.queue.used,
            srq => &mut shared.srqs[srq as usize].queue.used,
        };
        *used = used.saturating_sub(1);
    }
    count
}

pub(super) unsafe extern "C" fn req_notify_cq(cq: *mut sys::ibv_cq, solicited: c_int) -> c_int {
    let Some(provider) = provider() else { return libc::ENOSYS };
    let mut shared = provider.lock();
    let it = &mut shared.cqs[slot(cq) as usize];
    if it.channel == NONE {
        return libc::EINVAL;
    }
    // What was asked for before and is wider, stays.
    if solicited == 0 {
        it.armed = Armed::Any;
    } else if it.armed == Armed::No {
        it.armed = Armed::Solicited;
    }
    0
}

pub(super) unsafe extern "C" fn post_send(
    qp: *mut sys::ibv_qp,
    first: *mut sys::ibv_send_wr,
    bad: *mut *mut sys::ibv_send_wr,
) -> c_int {
    let Some(provider) = provider() else { return libc::ENOSYS };
    let slot = slot(qp);
    let mut local = provider.local();
    let state = {
        let shared = provider.lock();
        let qp = &shared.qps[slot as usize];
        let removed = shared.devices[qp.object.device as usize].removed;
        if removed { Err(libc::EIO) } else { Ok(qp.attr.qp_state) }
    };
    let mut wr = first;
    let mut result = match state {
        Ok(sys::IBV_QPS_RTS | sys::IBV_QPS_ERR) => 0,
        Ok(_) => libc::EINVAL,
        Err(errno) => errno,
    };
    while result == 0 && !wr.is_null() {
        let Some(queue) = local.sends.get_mut(&slot) else { return libc::EINVAL };
        match take(queue, &*wr) {
            Ok(request) => {
                queue.used += 1;
                queue.waiting.push_back(request);
                wr = (*wr).next;
            }
            Err(errno) => result = errno,
        }
    }
    if result != 0 {
        *bad = wr;
    }
    if provider.progress(&mut local, slot).is_some() {
        provider.map.ring(provider.me);
    }
    result
}

/// A work request, as the queue keeps it; an errno for what it cannot take.
unsafe fn take(queue: &SendQueue, wr: &sys::ibv_send_wr) -> Result<Request, i32> {
    let count = usize::try_from(wr.num_sge).map_err(|_| libc::EINVAL)?;
    let known = matches!(
        wr.opcode,
        sys::IBV_WR_RDMA_WRITE
            | sys::IBV_WR_RDMA_WRITE_WITH_IMM
            | sys::IBV_WR_SEND
            | sys::IBV_WR_SEND_WITH_IMM
            | sys::IBV_WR_RDMA_READ
            | sys::IBV_WR_LOCAL_INV
            | sys::IBV_WR_BIND_MW
    );
    let inlined = wr.send_flags & sys::IBV_SEND_INLINE != 0;
    if !known || count > queue.sges as usize || inlined && wr.opcode == sys::IBV_WR_RDMA_READ {
        return Err(libc::EINVAL);
    }
    if queue.used >= queue.capacity {
        return Err(libc::ENOMEM);
    }
    let given = if count == 0 { &[][..] } else { std::slice::from_raw_parts(wr.sg_list, count) };
    let len: u64 = given.iter().map(|sge| u64::from(sge.length)).sum();
    if inlined && len > u64::from(queue.inline_bytes) {
        return Err(libc::EINVAL);
    }
    let mut sges = [EMPTY; SEND_SGES];
    sges[..count].copy_from_slice(given);
    let bytes = || given.iter().flat_map(|sge| inline_bytes(sge)).copied().collect::<Vec<u8>>();
    let bind = (wr.opcode == sys::IBV_WR_BIND_MW).then(|| {
        let bind = wr.__bindgen_anon_2.bind_mw;
        let info = bind.bind_info;
        Binding {
            window: slot(bind.mw),
            key: bind.rkey,
            region: if info.mr.is_null() { NONE } else { slot(info.mr) },
            addr: info.addr,
            len: info.length,
            access: info.mw_access_flags,
        }
    });
    Ok(Request {
        wr_id: wr.wr_id,
        opcode: wr.opcode,
        flags: wr.send_flags,
        number: wr.__bindgen_anon_1.imm_data,
        addr: wr.wr.rdma.remote_addr,
        key: wr.wr.rdma.rkey,
        sges,
        count,
        inline: inlined.then(bytes),
        len,
        bind,
        state: Attempt::default(),
    })
}

unsafe fn inline_bytes<'a>(sge: &sys::ibv_sge) -> &'a [u8] {
    if sge.length == 0 {
        return &[];
    }
    let at = std::ptr::with_exposed_provenance(usize::try_from(sge.addr).unwrap_or(0));
    std::slice::from_raw_parts(at, sge.length as usize)
}

/// A receive, as the queue keeps it.
unsafe fn receive(wr: &sys::ibv_recv_wr) -> Result<Receive, i32> {
    let count =
        usize::try_from(wr.num_sge).ok().filter(|count| *count <= RECEIVE_SGES).ok_or(libc::EINVAL)?;
    let mut sges = [EMPTY; RECEIVE_SGES];
    if count > 0 {
        sges[..count].copy_from_slice(std::slice::from_raw_parts(wr.sg_list, count));
    }
    Ok(Receive { wr_id: wr.wr_id, count: u32::try_from(count).unwrap_or(0), sges })
}

pub(super) unsafe extern "C" fn post_recv(
    qp: *mut sys::ibv_qp,
    first: *mut sys::ibv_recv_wr,
    bad: *mut *mut sys::ibv_recv_wr,
) -> c_int {
    let Some(provider) = provider() else { return libc::ENOSYS };
    let at = slot(qp) as usize;
    let shared = &mut *provider.lock();
    let it = &shared.qps[at];
    let mut result = if shared.devices[it.object.device as usize].removed {
        libc::EIO
    } else if it.srq != NONE || it.attr.qp_state == sys::IBV_QPS_RESET {
        libc::EINVAL
    } else {
        0
    };
    let failed = it.attr.qp_state == sys::IBV_QPS_ERR;
    let mut wr = first;
    while result == 0 && !wr.is_null() {
        let taken = receive(&*wr);
        match taken.and_then(|one| post(&mut shared.qps[at].queue, &mut shared.qp_rings[at], one)) {
            Ok(()) => wr = (*wr).next,
            Err(errno) => result = errno,
        }
    }
    if result != 0 {
        *bad = wr;
    }
    if failed {
        flush_receives(shared, &provider.wire(), at);
    }
    result
}

pub(super) unsafe extern "C" fn post_srq_recv(
    srq: *mut sys::ibv_srq,
    first: *mut sys::ibv_recv_wr,
    bad: *mut *mut sys::ibv_recv_wr,
) -> c_int {
    let Some(provider) = provider() else { return libc::ENOSYS };
    let at = slot(srq) as usize;
    let shared = &mut *provider.lock();
    let mut wr = first;
    while !wr.is_null() {
        let taken = receive(&*wr);
        match taken.and_then(|one| post(&mut shared.srqs[at].queue, &mut shared.srq_rings[at], one)) {
            Ok(()) => wr = (*wr).next,
            Err(errno) => {
                *bad = wr;
                return errno;
            }
        }
    }
    0
}
