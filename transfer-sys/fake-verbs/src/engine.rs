//! Carrying out what was posted to send: in order, as a NIC would, without the peer's help.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use transfer_sys::verbs::sys;

use crate::faults::strike;
use crate::memory::{self, NotMoved, Ranges};
use crate::pairs::pair_slot;
use crate::provider::{Local, Provider, now};
use crate::queues::{complete, fail, has_receive, next_receive, receive_failed, wc};
use crate::shared::{Cqe, NONE, SEND_SGES, Shared};
use crate::states::not_ready_us;
use crate::windows::{Binding, bind, invalidate};

/// Bytes that are moved at once, after which everything is looked at again: a peer may fail in mid-message.
const STEP_BYTES: u64 = 1 << 20;
/// How often somebody who does not answer is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(2);

/// The send queue of a queue pair of this process.
#[derive(Default)]
pub(crate) struct SendQueue {
    pub(crate) waiting: VecDeque<Request>,
    pub(crate) capacity: u32,
    pub(crate) sges: u32,
    pub(crate) inline_bytes: u32,
    pub(crate) signal_all: bool,
    /// Places that are taken: until a completion of the work request, or of a later one, is polled.
    pub(crate) used: u32,
    /// Done without a completion, since the last one.
    pub(crate) silent: u32,
}

/// A work request on its way.
pub(crate) struct Request {
    pub(crate) wr_id: u64,
    pub(crate) opcode: u32,
    pub(crate) flags: u32,
    /// The immediate number in network order, or the key to take back.
    pub(crate) number: u32,
    pub(crate) addr: u64,
    pub(crate) key: u32,
    pub(crate) sges: [sys::ibv_sge; SEND_SGES],
    pub(crate) count: usize,
    pub(crate) inline: Option<Vec<u8>>,
    pub(crate) len: u64,
    pub(crate) bind: Option<Binding>,
    pub(crate) state: Attempt,
}

/// How far a work request is.
#[derive(Default)]
pub(crate) struct Attempt {
    begun: bool,
    done: u64,
    not_before: Option<Instant>,
    give_up: Option<Instant>,
    not_ready: u8,
    pub(crate) lost: bool,
    pub(crate) wrong_key: bool,
    /// Bytes after which no answer comes.
    pub(crate) stop_at: Option<u64>,
}

/// What became of an attempt.
pub(crate) enum Step {
    Done,
    More,
    Later(Duration),
    Failed(u32),
}

impl Provider {
    /// Carries on with all queue pairs; when the next one has to be looked at.
    pub(crate) fn progress_all(&self) -> Option<Instant> {
        let mut local = self.local();
        let slots: Vec<u32> = local.sends.keys().copied().collect();
        slots.into_iter().filter_map(|slot| self.progress(&mut local, slot)).min()
    }

    /// Carries on with queue pair `slot`; when it has to be looked at again.
    pub(crate) fn progress(&self, local: &mut Local, slot: u32) -> Option<Instant> {
        let mut queue = local.sends.remove(&slot)?;
        let next = self.carry_on(local, slot, &mut queue);
        local.sends.insert(slot, queue);
        next
    }

    fn carry_on(&self, local: &mut Local, slot: u32, queue: &mut SendQueue) -> Option<Instant> {
        loop {
            let mut shared = self.lock();
            let qp = &shared.qps[slot as usize];
            let (state, device) = (qp.attr.qp_state, &shared.devices[qp.object.device as usize]);
            if device.removed || (state != sys::IBV_QPS_RTS && state != sys::IBV_QPS_ERR) {
                return None;
            }
            let request = queue.waiting.front_mut()?;
            if state == sys::IBV_QPS_ERR {
                self.finish(&mut shared, slot, queue, sys::IBV_WC_WR_FLUSH_ERR);
                continue;
            }
            let time = now();
            if let Some(then) = request.state.not_before.filter(|then| *then > time) {
                return Some(then);
            }
            match self.attempt(&mut shared, local, slot, request) {
                Step::More => {}
                Step::Later(wait) => request.state.not_before = Some(time + wait),
                Step::Done => self.finish(&mut shared, slot, queue, sys::IBV_WC_SUCCESS),
                Step::Failed(status) => {
                    self.finish(&mut shared, slot, queue, status);
                    fail(&mut shared, &self.wire(), slot as usize, None);
                }
            }
        }
    }

    /// Ends the first work request of the queue.
    fn finish(&self, shared: &mut Shared, slot: u32, queue: &mut SendQueue, status: u32) {
        let Some(request) = queue.waiting.pop_front() else { return };
        queue.silent += 1;
        let signaled = queue.signal_all || request.flags & sys::IBV_SEND_SIGNALED != 0;
        if status == sys::IBV_WC_SUCCESS && !signaled {
            return;
        }
        let opcode = match request.opcode {
            sys::IBV_WR_RDMA_READ => sys::IBV_WC_RDMA_READ,
            sys::IBV_WR_SEND | sys::IBV_WR_SEND_WITH_IMM => sys::IBV_WC_SEND,
            sys::IBV_WR_LOCAL_INV => sys::IBV_WC_LOCAL_INV,
            sys::IBV_WR_BIND_MW => sys::IBV_WC_BIND_MW,
            _ => sys::IBV_WC_RDMA_WRITE,
        };
        let qp = &shared.qps[slot as usize];
        let (cq, mut wc) = (qp.send_cq, wc(request.wr_id, status, opcode, qp.number));
        if opcode == sys::IBV_WC_RDMA_READ {
            wc.byte_len = u32::try_from(request.len).unwrap_or(u32::MAX);
        }
        let cqe = Cqe { wc, qp: slot, frees: std::mem::take(&mut queue.silent) };
        complete(shared, &self.wire(), cq, cqe, false);
    }

    fn attempt(&self, shared: &mut Shared, local: &mut Local, slot: u32, request: &mut Request) -> Step {
        if !request.state.begun {
            request.state.begun = true;
            if let Some(step) = strike(shared, &self.wire(), slot, request) {
                return step;
            }
        }
        match request.opcode {
            sys::IBV_WR_LOCAL_INV => return invalidate(shared, slot, request.number),
            sys::IBV_WR_BIND_MW => return bind(shared, slot, request.bind),
            _ => {}
        }
        if request.len > 1 << 31 {
            return Step::Failed(sys::IBV_WC_LOC_LEN_ERR);
        }
        let qp = &shared.qps[slot as usize];
        let reads = request.opcode == sys::IBV_WR_RDMA_READ;
        let own = (qp.object.owner, qp.pd);
        let here = match &request.inline {
            Some(bytes) => Ranges::one(bytes.as_ptr().expose_provenance() as u64, bytes.len() as u64),
            None => match memory::local(shared, own, &request.sges[..request.count], reads) {
                Some(ranges) => ranges,
                None => return Step::Failed(sys::IBV_WC_LOC_PROT_ERR),
            },
        };
        let Some(peer) = reachable(shared, slot).filter(|_| !request.state.lost) else {
            return self.no_answer(shared, slot, request);
        };
        let owner = shared.qps[peer as usize].object.owner;
        if owner != self.me && !memory::lives(shared, local, owner) {
            return self.no_answer(shared, slot, request);
        }
        request.state.give_up = None;
        let step = if matches!(request.opcode, sys::IBV_WR_SEND | sys::IBV_WR_SEND_WITH_IMM) {
            self.send(shared, local, peer, request, &here)
        } else {
            self.touch(shared, local, (slot, peer), request, &here)
        };
        match step {
            Step::Failed(sys::IBV_WC_RETRY_EXC_ERR) => self.no_answer(shared, slot, request),
            Step::Failed(sys::IBV_WC_RNR_RETRY_EXC_ERR) => not_ready(shared, slot, peer, request),
            other => other,
        }
    }

    /// Nobody answers: asks again, until all attempts that the queue pair was told to make are over.
    fn no_answer(&self, shared: &Shared, slot: u32, request: &mut Request) -> Step {
        let attr = &shared.qps[slot as usize].attr;
        let each = Duration::from_nanos(4096 << attr.timeout.min(31));
        let patience = Duration::from_millis(shared.patience_ms);
        // SoftRoCE takes seven as for ever.
        let for_ever = attr.timeout == 0 || attr.retry_cnt == 7;
        let all = each * (u32::from(attr.retry_cnt) + 1);
        let time = now();
        let give_up = match request.state.give_up {
            Some(give_up) => give_up,
            None if for_ever => return Step::Later(ASK_AGAIN),
            None => *request.state.give_up.insert(time + all.min(patience)),
        };
        if time >= give_up {
            return Step::Failed(sys::IBV_WC_RETRY_EXC_ERR);
        }
        Step::Later(ASK_AGAIN)
    }

    /// A WRITE or READ.
    fn touch(
        &self,
        shared: &mut Shared,
        local: &mut Local,
        (slot, peer): (u32, u32),
        request: &mut Request,
        here: &Ranges,
    ) -> Step {
        let reads = request.opcode == sys::IBV_WR_RDMA_READ;
        let access = if reads { sys::IBV_ACCESS_REMOTE_READ } else { sys::IBV_ACCESS_REMOTE_WRITE };
        let (own, target) = (&shared.qps[slot as usize].attr, &shared.qps[peer as usize]);
        if reads && own.max_rd_atomic == 0 {
            return Step::Failed(sys::IBV_WC_LOC_QP_OP_ERR);
        }
        // Devices differ in whether they notice one that is too many; here none may be possible.
        let too_many = reads && own.max_rd_atomic > target.attr.max_dest_rd_atomic;
        if target.attr.qp_access_flags & access == 0 || too_many {
            fail(shared, &self.wire(), peer as usize, Some(sys::IBV_EVENT_QP_REQ_ERR));
            return Step::Failed(sys::IBV_WC_REM_INV_REQ_ERR);
        }
        let owner = target.object.owner;
        let with_number = request.opcode == sys::IBV_WR_RDMA_WRITE_WITH_IMM;
        let there = memory::remote(shared, peer, request.key, (request.addr, request.len), access);
        let there = there.filter(|_| !request.state.wrong_key);
        let Some(there) = there.or_else(|| (request.len == 0).then(|| Ranges::one(0, 0))) else {
            fail(shared, &self.wire(), peer as usize, Some(sys::IBV_EVENT_QP_ACCESS_ERR));
            return Step::Failed(sys::IBV_WC_REM_ACCESS_ERR);
        };
        let end = request.state.stop_at.unwrap_or(request.len).min(request.len);
        let bytes = (end - request.state.done).min(STEP_BYTES);
        if bytes > 0 {
            let size = |value| usize::try_from(value).unwrap_or(usize::MAX);
            let (at, count) = (size(request.state.done), size(bytes));
            let parts = (&here.part(at, count), &there.part(at, count));
            match memory::copy(shared, local, (self.me, owner), parts, !reads) {
                Ok(()) => request.state.done += bytes,
                Err(NotMoved::Gone) => return Step::Failed(sys::IBV_WC_RETRY_EXC_ERR),
                Err(NotMoved::Fault) => return Step::Failed(sys::IBV_WC_REM_OP_ERR),
            }
        }
        if request.state.done == end && end < request.len {
            request.state.lost = true;
            return Step::More;
        }
        if request.state.done < request.len {
            return Step::More;
        }
        if with_number { self.tell(shared, peer, request) } else { Step::Done }
    }

    /// The number of a WRITE, behind its data.
    fn tell(&self, shared: &mut Shared, peer: u32, request: &Request) -> Step {
        let Some(receive) = next_receive(shared, &self.wire(), peer as usize) else {
            return Step::Failed(sys::IBV_WC_RNR_RETRY_EXC_ERR);
        };
        self.received(shared, peer, request, receive.wr_id, sys::IBV_WC_RECV_RDMA_WITH_IMM);
        Step::Done
    }

    fn received(&self, shared: &mut Shared, peer: u32, request: &Request, wr_id: u64, opcode: u32) {
        let target = &shared.qps[peer as usize];
        let (cq, mut wc) = (target.receive_cq, wc(wr_id, sys::IBV_WC_SUCCESS, opcode, target.number));
        wc.byte_len = u32::try_from(request.len).unwrap_or(u32::MAX);
        if matches!(request.opcode, sys::IBV_WR_SEND_WITH_IMM | sys::IBV_WR_RDMA_WRITE_WITH_IMM) {
            wc.wc_flags = sys::IBV_WC_WITH_IMM;
            wc.__bindgen_anon_1 = sys::ibv_wc__bindgen_ty_1 { imm_data: request.number };
        }
        let solicited = request.flags & sys::IBV_SEND_SOLICITED != 0;
        complete(shared, &self.wire(), cq, Cqe { wc, qp: peer, frees: 0 }, solicited);
    }

    /// A SEND: what is wrong with the receive is the peer's fault, and told to both.
    fn send(
        &self,
        shared: &mut Shared,
        local: &mut Local,
        peer: u32,
        request: &Request,
        here: &Ranges,
    ) -> Step {
        if !has_receive(shared, peer as usize) {
            return Step::Failed(sys::IBV_WC_RNR_RETRY_EXC_ERR);
        }
        let wire = self.wire();
        let Some(receive) = next_receive(shared, &wire, peer as usize) else { return Step::More };
        let target = &shared.qps[peer as usize];
        let owner = target.object.owner;
        let sges = &receive.sges[..receive.count as usize];
        let room: u64 = sges.iter().map(|sge| u64::from(sge.length)).sum();
        let there = memory::local(shared, (owner, target.pd), sges, true);
        let (wrong, told) = match (&there, room < request.len) {
            (_, true) => (sys::IBV_WC_LOC_LEN_ERR, sys::IBV_WC_REM_INV_REQ_ERR),
            (None, _) => (sys::IBV_WC_LOC_PROT_ERR, sys::IBV_WC_REM_OP_ERR),
            (Some(there), _) => match memory::copy(shared, local, (self.me, owner), (here, there), true) {
                Ok(()) => {
                    self.received(shared, peer, request, receive.wr_id, sys::IBV_WC_RECV);
                    return Step::Done;
                }
                Err(_) => (sys::IBV_WC_LOC_PROT_ERR, sys::IBV_WC_REM_OP_ERR),
            },
        };
        receive_failed(shared, &wire, peer as usize, &receive, wrong);
        fail(shared, &wire, peer as usize, None);
        Step::Failed(told)
    }
}

/// The peer's queue pair, if packets of queue pair `slot` get there and are taken.
fn reachable(shared: &Shared, slot: u32) -> Option<u32> {
    let qp = &shared.qps[slot as usize];
    let peer = pair_slot(qp.attr.dest_qp_num);
    if !shared.qps[peer].object.live || shared.qps[peer].number != qp.attr.dest_qp_num {
        return None;
    }
    let target = &shared.qps[peer];
    let (from, to) =
        (&shared.devices[qp.object.device as usize], &shared.devices[target.object.device as usize]);
    let linked = from.port_up && to.port_up && from.wire == to.wire && !to.removed;
    let route = &qp.attr.ah_attr;
    let addressed = if route.is_global != 0 {
        // Each end sends from the address that the other one sends to, and packets of both look alike.
        let own = &from.gids[usize::from(route.grh.sgid_index)];
        let back = &target.attr.ah_attr.grh;
        let theirs = &to.gids[usize::from(back.sgid_index)];
        raw(&route.grh.dgid) == theirs.bytes && raw(&back.dgid) == own.bytes && own.kind == theirs.kind
    } else {
        to.lid == route.dlid
    };
    let listens = matches!(target.attr.qp_state, sys::IBV_QPS_RTR | sys::IBV_QPS_RTS);
    let fits = target.attr.dest_qp_num == qp.number
        && target.attr.rq_psn == qp.attr.sq_psn
        && target.attr.path_mtu == qp.attr.path_mtu;
    (linked && addressed && listens && fits).then(|| u32::try_from(peer).unwrap_or(NONE))
}

/// The bytes of an address.
pub(crate) fn raw(gid: &sys::ibv_gid) -> [u8; 16] {
    #[allow(unsafe_code, reason = "a union of bytes")]
    // SAFETY: V5 (docs/ARCHITECTURE.md). Both variants are sixteen bytes.
    unsafe {
        gid.raw
    }
}

/// The peer has nothing to receive with: asks again, as often as the queue pair was told to.
fn not_ready(shared: &Shared, slot: u32, peer: u32, request: &mut Request) -> Step {
    let retries = shared.qps[slot as usize].attr.rnr_retry;
    if retries != 7 {
        if request.state.not_ready >= retries {
            return Step::Failed(sys::IBV_WC_RNR_RETRY_EXC_ERR);
        }
        request.state.not_ready += 1;
    }
    Step::Later(Duration::from_micros(not_ready_us(shared.qps[peer as usize].attr.min_rnr_timer)))
}
