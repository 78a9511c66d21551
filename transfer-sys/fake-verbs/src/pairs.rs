//! Queue pairs: making, changing and destroying them.
#![allow(unsafe_code, reason = "a structure of C that is all zeros")]

use transfer_sys::verbs::sys;

use crate::engine::SendQueue;
use crate::objects::{Made, place, receive_queue, release};
use crate::provider::Provider;
use crate::queues::flush_receives;
use crate::shared::{INLINE_BYTES, NONE, Object, QPS, QUEUE_WRS, Qp, READS, SEND_SGES, Shared};
use crate::states::is_legal;
use crate::windows::unbind;

/// The slot of the queue pair with that number: 15 bits of generation, a one, and the slot.
pub(crate) fn pair_slot(number: u32) -> usize {
    (number & 0xff) as usize
}

const _: () = assert!(QPS == 256);

impl Provider {
    /// Slot and number of a new queue pair between completion queues.
    pub(crate) fn create_qp(
        &self,
        pd: u32,
        (send_cq, receive_cq, srq): (u32, u32, u32),
        init: &sys::ibv_qp_init_attr,
    ) -> Made<(u32, u32)> {
        let cap = &init.cap;
        let queue = receive_queue(cap.max_recv_wr, cap.max_recv_sge).ok_or(libc::EINVAL)?;
        let too_much = cap.max_send_wr as usize > QUEUE_WRS
            || cap.max_send_sge as usize > SEND_SGES
            || cap.max_inline_data as usize > INLINE_BYTES;
        if too_much {
            return Err(libc::EINVAL);
        }
        if init.qp_type != sys::IBV_QPT_RC {
            return Err(libc::EOPNOTSUPP);
        }
        let mut local = self.local();
        let shared = &mut *self.lock();
        let like = self.in_context(shared, shared.pds[pd as usize].context)?;
        let elsewhere = |cq: u32| shared.cqs[cq as usize].object.context != like.context;
        if elsewhere(send_cq) || elsewhere(receive_cq) {
            return Err(libc::EINVAL);
        }
        let slot = Object::claim(&mut shared.qps, |qp| &mut qp.object, like).ok_or(libc::ENOMEM)?;
        let object = shared.qps[slot as usize].object;
        let number = (object.generation & 0x7fff) << 9 | 0x100 | slot;
        let attr = zeroed_attr(sys::IBV_QPS_RESET, init.cap);
        shared.qps[slot as usize] =
            Qp { object, number, state: 0, pd, send_cq, receive_cq, srq, queue, attr };
        users(shared, slot, 1);
        let (capacity, sges) = (cap.max_send_wr, cap.max_send_sge);
        let (inline_bytes, signal_all) = (cap.max_inline_data, init.sq_sig_all != 0);
        local
            .sends
            .insert(slot, SendQueue { capacity, sges, inline_bytes, signal_all, ..SendQueue::default() });
        Ok((slot, number))
    }

    pub(crate) fn destroy_qp(&self, slot: u32) -> Made<()> {
        let mut local = self.local();
        let shared = &mut *self.lock();
        release(&mut shared.qps[slot as usize].object)?;
        users(shared, slot, -1);
        local.sends.remove(&slot);
        local.qps.remove(&slot);
        for window in 0..shared.mws.len() {
            if shared.mws[window].bound && shared.mws[window].qp == slot {
                unbind(shared, window);
            }
        }
        let (send, receive) = (shared.qps[slot as usize].send_cq, shared.qps[slot as usize].receive_cq);
        forget_completions(shared, slot, send);
        forget_completions(shared, slot, receive);
        Ok(())
    }

    pub(crate) fn modify_qp(&self, slot: u32, attr: &sys::ibv_qp_attr, mask: u32) -> Made<()> {
        let mut local = self.local();
        let shared = &mut *self.lock();
        let at = slot as usize;
        let Qp { object, attr: old, send_cq, receive_cq, .. } = shared.qps[at];
        if shared.devices[object.device as usize].removed {
            return Err(libc::EIO);
        }
        let to = if mask & sys::IBV_QP_STATE != 0 { attr.qp_state } else { old.qp_state };
        if !is_legal(old.qp_state, to, mask) || !is_possible(shared, at, attr, mask) {
            return Err(libc::EINVAL);
        }
        merge(&mut shared.qps[at].attr, attr, mask);
        if to == sys::IBV_QPS_RESET {
            if let Some(queue) = local.sends.get_mut(&slot) {
                queue.waiting.clear();
                queue.used = 0;
            }
            let queue = &mut shared.qps[at].queue;
            (queue.head, queue.used) = (queue.tail, 0);
            forget_completions(shared, slot, send_cq);
            forget_completions(shared, slot, receive_cq);
        } else if to == sys::IBV_QPS_ERR && old.qp_state != to {
            flush_receives(shared, &self.wire(), at);
            self.map.ring(self.me);
        }
        Ok(())
    }
}

/// Counts queue pair `slot` as a user of what it is made of.
fn users(shared: &mut Shared, slot: u32, change: i32) {
    let Qp { pd, send_cq, receive_cq, srq, .. } = shared.qps[slot as usize];
    let count = |users: &mut u32| *users = users.wrapping_add_signed(change);
    count(&mut shared.pds[pd as usize].users);
    count(&mut shared.cqs[send_cq as usize].object.users);
    count(&mut shared.cqs[receive_cq as usize].object.users);
    if srq != NONE {
        count(&mut shared.srqs[srq as usize].object.users);
    }
}

/// Takes the completions of queue pair `slot` out of `cq`: nobody polls them any more.
fn forget_completions(shared: &mut Shared, slot: u32, cq: u32) {
    let cq = cq as usize;
    let (head, tail) = (shared.cqs[cq].head, shared.cqs[cq].tail);
    let mut kept = head;
    for index in head..tail {
        let cqe = shared.cq_rings[cq][place(index)];
        if cqe.qp != slot {
            shared.cq_rings[cq][place(kept)] = cqe;
            kept += 1;
        }
    }
    shared.cqs[cq].tail = kept;
}

fn zeroed_attr(state: u32, cap: sys::ibv_qp_cap) -> sys::ibv_qp_attr {
    // SAFETY: V5. Numbers and bytes only, for which zero is a value.
    let mut attr: sys::ibv_qp_attr = unsafe { std::mem::zeroed() };
    (attr.qp_state, attr.cap) = (state, cap);
    attr
}

/// Whether port and device can do what the attributes ask for.
fn is_possible(shared: &Shared, slot: usize, attr: &sys::ibv_qp_attr, mask: u32) -> bool {
    let device = &shared.devices[shared.qps[slot].object.device as usize];
    let asks = |bit| mask & bit != 0;
    let route = &attr.ah_attr;
    let own = device.gids.get(usize::from(route.grh.sgid_index));
    let routed = (route.is_global != 0 || !device.ethernet)
        && route.port_num == 1
        && (route.is_global == 0 || own.is_some_and(|gid| gid.used));
    let psn = |psn: u32| psn < 1 << 24;
    (!asks(sys::IBV_QP_PORT) || attr.port_num == 1)
        && (!asks(sys::IBV_QP_PKEY_INDEX) || attr.pkey_index == 0)
        && (!asks(sys::IBV_QP_AV) || routed)
        && (!asks(sys::IBV_QP_PATH_MTU) || (1..=device.mtu).contains(&attr.path_mtu))
        && (!asks(sys::IBV_QP_RQ_PSN) || psn(attr.rq_psn))
        && (!asks(sys::IBV_QP_SQ_PSN) || psn(attr.sq_psn))
        && (!asks(sys::IBV_QP_MAX_QP_RD_ATOMIC) || attr.max_rd_atomic <= READS)
        && (!asks(sys::IBV_QP_MAX_DEST_RD_ATOMIC) || attr.max_dest_rd_atomic <= READS)
        && (!asks(sys::IBV_QP_RETRY_CNT) || attr.retry_cnt <= 7)
        && (!asks(sys::IBV_QP_RNR_RETRY) || attr.rnr_retry <= 7)
        && (!asks(sys::IBV_QP_TIMEOUT) || attr.timeout <= 31)
        && (!asks(sys::IBV_QP_MIN_RNR_TIMER) || attr.min_rnr_timer <= 31)
}

/// Takes over the attributes that the mask names.
fn merge(to: &mut sys::ibv_qp_attr, from: &sys::ibv_qp_attr, mask: u32) {
    macro_rules! take {
        ($($bit:ident: $field:ident,)*) => {
            $(if mask & sys::$bit != 0 { to.$field = from.$field; })*
        };
    }
    take! {
        IBV_QP_STATE: qp_state,
        IBV_QP_ACCESS_FLAGS: qp_access_flags,
        IBV_QP_PKEY_INDEX: pkey_index,
        IBV_QP_PORT: port_num,
        IBV_QP_AV: ah_attr,
        IBV_QP_PATH_MTU: path_mtu,
        IBV_QP_TIMEOUT: timeout,
        IBV_QP_RETRY_CNT: retry_cnt,
        IBV_QP_RNR_RETRY: rnr_retry,
        IBV_QP_RQ_PSN: rq_psn,
        IBV_QP_SQ_PSN: sq_psn,
        IBV_QP_MAX_QP_RD_ATOMIC: max_rd_atomic,
        IBV_QP_MAX_DEST_RD_ATOMIC: max_dest_rd_atomic,
        IBV_QP_MIN_RNR_TIMER: min_rnr_timer,
        IBV_QP_DEST_QPN: dest_qp_num,
    }
}
