//! Making and destroying, in the world; the errno of what is refused. What C sees of an object is made in `exports`.
#![allow(unsafe_code, reason = "mapping what is registered by a descriptor")]

use std::fs;

use transfer_sys::verbs::sys;

use crate::engine::{SendQueue, unbind};
use crate::memory::key;
use crate::provider::Provider;
use crate::queues::flush_receives;
use crate::shared::{
    Armed, CQ_ENTRIES, Cq, INLINE_BYTES, MRS, Mr, Mw, NONE, Object, QUEUE_WRS, Qp, READS, RECEIVE_SGES,
    ReceiveQueue, SEND_SGES, Shared, Srq,
};
use crate::states::is_legal;

pub(crate) type Made<T> = Result<T, i32>;

/// Every flag that registrations take.
const ACCESS: u32 = sys::IBV_ACCESS_LOCAL_WRITE
    | sys::IBV_ACCESS_REMOTE_WRITE
    | sys::IBV_ACCESS_REMOTE_READ
    | sys::IBV_ACCESS_MW_BIND
    | sys::IBV_ACCESS_RELAXED_ORDERING;

/// Where memory comes from that is to be registered.
pub(crate) enum Source {
    Address(u64),
    /// A descriptor, and an offset in it.
    Descriptor(i32, u64),
}

fn object(owner: u32, device: u32, context: u32) -> Object {
    Object { live: true, owner, device, context, generation: 0, users: 0 }
}

impl Provider {
    /// An object like the context that it belongs to.
    fn in_context(&self, shared: &Shared, context: u32) -> Made<Object> {
        let device = shared.contexts[context as usize].device;
        if shared.devices[device as usize].removed {
            return Err(libc::EIO);
        }
        Ok(object(self.me, device, context))
    }

    pub(crate) fn open(&self, device: u32) -> Made<u32> {
        let mut shared = self.lock();
        if shared.devices[device as usize].removed {
            return Err(libc::ENODEV);
        }
        let like = object(self.me, device, NONE);
        Object::claim(&mut shared.contexts, |one| one, like).ok_or(libc::EMFILE)
    }

    pub(crate) fn close(&self, context: u32) -> Made<()> {
        let shared = &mut *self.lock();
        release(&mut shared.contexts[context as usize])
    }

    pub(crate) fn alloc_pd(&self, context: u32) -> Made<u32> {
        let shared = &mut *self.lock();
        let like = self.in_context(shared, context)?;
        let slot = Object::claim(&mut shared.pds, |one| one, like).ok_or(libc::ENOMEM)?;
        shared.contexts[context as usize].users += 1;
        Ok(slot)
    }

    pub(crate) fn dealloc_pd(&self, pd: u32) -> Made<()> {
        let shared = &mut *self.lock();
        let context = shared.pds[pd as usize].context;
        release(&mut shared.pds[pd as usize])?;
        shared.contexts[context as usize].users -= 1;
        Ok(())
    }

    /// Slot and key of a new registration.
    pub(crate) fn register(
        &self,
        pd: u32,
        source: &Source,
        len: u64,
        base: Option<u64>,
        access: u32,
    ) -> Made<(u32, u32)> {
        let writes = access & (sys::IBV_ACCESS_REMOTE_WRITE | sys::IBV_ACCESS_REMOTE_ATOMIC) != 0;
        if access & !ACCESS != 0 || len == 0 || writes && access & sys::IBV_ACCESS_LOCAL_WRITE == 0 {
            return Err(libc::EINVAL);
        }
        let (addr, mapped) = match *source {
            Source::Address(addr) => {
                is_mapped(addr, len, access & sys::IBV_ACCESS_LOCAL_WRITE != 0)?;
                (addr, None)
            }
            Source::Descriptor(fd, offset) => {
                let (at, size) = map_descriptor(fd, offset, len)?;
                (at as u64 + offset, Some((at, size)))
            }
        };
        let mut local = self.local();
        let shared = &mut *self.lock();
        let like = self.in_context(shared, shared.pds[pd as usize].context)?;
        let slot = Object::claim(&mut shared.mrs, |mr| &mut mr.object, like).ok_or(libc::ENOMEM)?;
        shared.pds[pd as usize].users += 1;
        let mr = &mut shared.mrs[slot as usize];
        let key = key(slot as usize, &mr.object);
        *mr = Mr { object: mr.object, key, pd, addr, base: base.unwrap_or(addr), len, access };
        if let Some(mapped) = mapped {
            local.mapped.insert(slot, mapped);
        }
        Ok((slot, key))
    }

    pub(crate) fn deregister(&self, slot: u32) -> Made<()> {
        let mut local = self.local();
        let shared = &mut *self.lock();
        let pd = shared.mrs[slot as usize].pd;
        release(&mut shared.mrs[slot as usize].object)?;
        shared.pds[pd as usize].users -= 1;
        if let Some((at, size)) = local.mapped.remove(&slot) {
            // SAFETY: V5 (docs/ARCHITECTURE.md). Mapped when it was registered; nobody has its address.
            unsafe { libc::munmap(std::ptr::with_exposed_provenance_mut(at), size) };
        }
        Ok(())
    }

    pub(crate) fn alloc_mw(&self, pd: u32, kind: u32) -> Made<(u32, u32)> {
        let shared = &mut *self.lock();
        let like = self.in_context(shared, shared.pds[pd as usize].context)?;
        if kind != sys::IBV_MW_TYPE_2 || !shared.devices[like.device as usize].windows {
            return Err(libc::EOPNOTSUPP);
        }
        let slot = Object::claim(&mut shared.mws, |mw| &mut mw.object, like).ok_or(libc::ENOMEM)?;
        shared.pds[pd as usize].users += 1;
        let mw = &mut shared.mws[slot as usize];
        let key = key(MRS + slot as usize, &mw.object);
        let object = mw.object;
        *mw = Mw { object, key, pd, bound: false, mr: NONE, qp: NONE, base: 0, len: 0, access: 0 };
        Ok((slot, key))
    }

    pub(crate) fn dealloc_mw(&self, slot: u32) -> Made<()> {
        let shared = &mut *self.lock();
        unbind(shared, slot as usize);
        let pd = shared.mws[slot as usize].pd;
        release(&mut shared.mws[slot as usize].object)?;
        shared.pds[pd as usize].users -= 1;
        Ok(())
    }

    /// Slot and generation of a new channel.
    pub(crate) fn create_channel(&self, context: u32) -> Made<u32> {
        let shared = &mut *self.lock();
        let like = self.in_context(shared, context)?;
        let slot = Object::claim(&mut shared.channels, |one| one, like).ok_or(libc::EMFILE)?;
        shared.contexts[context as usize].users += 1;
        Ok(slot)
    }

    pub(crate) fn destroy_channel(&self, slot: u32) -> Made<()> {
        let shared = &mut *self.lock();
        let context = shared.channels[slot as usize].context;
        release(&mut shared.channels[slot as usize])?;
        shared.contexts[context as usize].users -= 1;
        Ok(())
    }

    pub(crate) fn create_cq(&self, context: u32, entries: i32, channel: Option<u32>) -> Made<u32> {
        let capacity = u32::try_from(entries).map_err(|_| libc::EINVAL)?;
        if capacity == 0 || capacity as usize > CQ_ENTRIES {
            return Err(libc::EINVAL);
        }
        let shared = &mut *self.lock();
        let like = self.in_context(shared, context)?;
        let slot = Object::claim(&mut shared.cqs, |cq| &mut cq.object, like).ok_or(libc::ENOMEM)?;
        shared.contexts[context as usize].users += 1;
        if let Some(channel) = channel {
            shared.channels[channel as usize].users += 1;
        }
        let cq = &mut shared.cqs[slot as usize];
        let (object, channel) = (cq.object, channel.unwrap_or(NONE));
        *cq = Cq { object, capacity, head: 0, tail: 0, armed: Armed::No, channel, broken: false };
        Ok(slot)
    }

    pub(crate) fn destroy_cq(&self, slot: u32) -> Made<()> {
        let mut local = self.local();
        let shared = &mut *self.lock();
        let Cq { object, channel, .. } = shared.cqs[slot as usize];
        release(&mut shared.cqs[slot as usize].object)?;
        local.cqs.remove(&slot);
        shared.contexts[object.context as usize].users -= 1;
        if channel != NONE {
            shared.channels[channel as usize].users -= 1;
        }
        Ok(())
    }

    pub(crate) fn create_srq(&self, pd: u32, attr: &sys::ibv_srq_attr) -> Made<u32> {
        let queue =
            receive_queue(attr.max_wr, attr.max_sge).filter(|_| attr.max_wr > 0).ok_or(libc::EINVAL)?;
        let shared = &mut *self.lock();
        let like = self.in_context(shared, shared.pds[pd as usize].context)?;
        let slot = Object::claim(&mut shared.srqs, |srq| &mut srq.object, like).ok_or(libc::ENOMEM)?;
        shared.pds[pd as usize].users += 1;
        let srq = &mut shared.srqs[slot as usize];
        *srq = Srq { object: srq.object, pd, limit: 0, queue };
        Ok(slot)
    }

    pub(crate) fn destroy_srq(&self, slot: u32) -> Made<()> {
        let mut local = self.local();
        let shared = &mut *self.lock();
        let pd = shared.srqs[slot as usize].pd;
        release(&mut shared.srqs[slot as usize].object)?;
        local.srqs.remove(&slot);
        shared.pds[pd as usize].users -= 1;
        Ok(())
    }

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
        // 24 bits: generation, a one, slot.
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

/// Frees the slot of an object that nothing else needs.
fn release(object: &mut Object) -> Made<()> {
    if object.users > 0 {
        return Err(libc::EBUSY);
    }
    object.live = false;
    Ok(())
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

/// Where entry `index` of a completion queue lies.
pub(crate) fn place(index: u64) -> usize {
    usize::try_from(index).unwrap_or(0) % CQ_ENTRIES
}

fn receive_queue(capacity: u32, sges: u32) -> Option<ReceiveQueue> {
    let fits = capacity as usize <= QUEUE_WRS && sges as usize <= RECEIVE_SGES;
    fits.then_some(ReceiveQueue { capacity, sges, head: 0, tail: 0, used: 0 })
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

/// Whether all of the memory is mapped, and writable where it is to be written: pinning it fails otherwise.
fn is_mapped(addr: u64, len: u64, writable: bool) -> Made<()> {
    let end = addr.checked_add(len).ok_or(libc::EINVAL)?;
    let maps = fs::read_to_string("/proc/self/maps").map_err(|_| libc::ENOMEM)?;
    let mut at = addr;
    for line in maps.lines() {
        let mut words = line.split_whitespace();
        let (range, rights) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
        let Some((from, to)) = range.split_once('-') else { continue };
        let number = |text| u64::from_str_radix(text, 16).unwrap_or(0);
        let allowed = rights.starts_with('r') && (!writable || rights[1..].starts_with('w'));
        if (number(from)..number(to)).contains(&at) && allowed {
            at = number(to);
        }
        if at >= end {
            return Ok(());
        }
    }
    Err(libc::EFAULT)
}

/// Maps a descriptor that stands for a dma-buf: a memfd, the nearest thing that needs no driver.
fn map_descriptor(fd: i32, offset: u64, len: u64) -> Made<(usize, usize)> {
    let link = fs::read_link(format!("/proc/self/fd/{fd}")).map_err(|_| libc::EBADF)?;
    if !link.to_string_lossy().starts_with("/memfd:") {
        return Err(libc::EINVAL);
    }
    let size = fs::metadata(format!("/proc/self/fd/{fd}")).map_err(|_| libc::EBADF)?.len();
    if offset.checked_add(len).is_none_or(|end| end > size) {
        return Err(libc::EINVAL);
    }
    let size = usize::try_from(size).map_err(|_| libc::EINVAL)?;
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: V5. A new mapping, which goes when the registration does.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), size, prot, libc::MAP_SHARED, fd, 0) };
    if at == libc::MAP_FAILED { Err(libc::EINVAL) } else { Ok((at.expose_provenance(), size)) }
}
