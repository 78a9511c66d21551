//! Completions, events and posted receives: what one process leaves for another to find.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use transfer_sys::verbs::sys;

use crate::shared::{
    Armed, CQ_ENTRIES, Cqe, Map, NONE, Object, QUEUE_WRS, Qp, Receive, ReceiveQueue, Shared,
};

/// The ways to another process: its doorbell, and the pipes that its descriptors read from.
pub(crate) struct Wire<'a> {
    pub(crate) map: &'a Map,
    pub(crate) folder: &'a Path,
}

/// A record in a pipe: what, and to which object.
pub(crate) type Record = [u32; 4];
pub(crate) const RECORD_BYTES: usize = size_of::<Record>();

impl Wire<'_> {
    /// Nobody reads it: the process has ended, and nothing has to be told. It is never full: an armed queue tells
    /// once, and other events are rare.
    fn tell(&self, pipe: &Path, record: Record) {
        let bytes: Vec<u8> = record.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let pipe = OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(pipe);
        if let Ok(mut pipe) = pipe {
            let _lost_with_its_reader = pipe.write(&bytes);
        }
    }
}

/// The pipe of a context's or channel's descriptor.
pub(crate) fn pipe(folder: &Path, kind: &str, slot: usize, object: &Object) -> PathBuf {
    folder.join(format!("{kind}-{slot}-{}", object.generation))
}

/// Tells context `context` of an event; `element` is the slot of an object, or the number of a port.
fn event(shared: &Shared, wire: &Wire<'_>, context: usize, kind: u32, element: u32) {
    let object = &shared.contexts[context];
    if object.live {
        wire.tell(&pipe(wire.folder, "events", context, object), [kind, element, 0, 0]);
    }
}

/// Tells every context on `device`.
pub(crate) fn event_of_device(shared: &Shared, wire: &Wire<'_>, device: usize, kind: u32) {
    for (slot, object) in shared.contexts.iter().enumerate() {
        if object.live && object.device as usize == device {
            event(shared, wire, slot, kind, 1);
            wire.map.ring(object.owner);
        }
    }
}

/// A completion of work request `wr_id`.
pub(crate) fn wc(wr_id: u64, status: u32, opcode: u32, number: u32) -> sys::ibv_wc {
    sys::ibv_wc {
        wr_id,
        status,
        opcode,
        vendor_err: if status == sys::IBV_WC_SUCCESS { 0 } else { 0x100 | status },
        byte_len: 0,
        __bindgen_anon_1: sys::ibv_wc__bindgen_ty_1 { imm_data: 0 },
        qp_num: number,
        src_qp: 0,
        wc_flags: 0,
        pkey_index: 0,
        slid: 0,
        sl: 0,
        dlid_path_bits: 0,
    }
}

/// Puts a completion into queue `cq`. A full queue is broken by that, and with it whatever completes into it.
pub(crate) fn complete(shared: &mut Shared, wire: &Wire<'_>, cq: u32, cqe: Cqe, solicited: bool) {
    let slot = cq as usize;
    let queue = &mut shared.cqs[slot];
    if queue.broken {
        return;
    }
    if queue.tail - queue.head >= u64::from(queue.capacity) {
        queue.broken = true;
        let context = queue.object.context as usize;
        event(shared, wire, context, sys::IBV_EVENT_CQ_ERR, cq);
        for qp in 0..shared.qps.len() {
            let it = &shared.qps[qp];
            if it.object.live && (it.send_cq == cq || it.receive_cq == cq) {
                fail(shared, wire, qp, Some(sys::IBV_EVENT_QP_FATAL));
            }
        }
        return;
    }
    let place = usize::try_from(queue.tail).unwrap_or(0) % CQ_ENTRIES;
    let failed = cqe.wc.status != sys::IBV_WC_SUCCESS;
    shared.cq_rings[slot][place] = cqe;
    let queue = &mut shared.cqs[slot];
    queue.tail += 1;
    let tells = match queue.armed {
        Armed::No => false,
        Armed::Solicited => solicited || failed,
        Armed::Any => true,
    };
    if tells && queue.channel != NONE {
        queue.armed = Armed::No;
        let (channel, generation) = (queue.channel as usize, queue.object.generation);
        let pipe = pipe(wire.folder, "channel", channel, &shared.channels[channel]);
        wire.tell(&pipe, [0, cq, generation, 0]);
    }
}

/// Brings queue pair `slot` into the error state: its receives come back at once, and its sends when its own process
/// hears of it.
pub(crate) fn fail(shared: &mut Shared, wire: &Wire<'_>, slot: usize, why: Option<u32>) {
    let qp = &mut shared.qps[slot];
    if !qp.object.live || matches!(qp.attr.qp_state, sys::IBV_QPS_ERR | sys::IBV_QPS_RESET) {
        return;
    }
    qp.attr.qp_state = sys::IBV_QPS_ERR;
    let (context, owner, number) = (qp.object.context as usize, qp.object.owner, slot_number(slot));
    let srq = qp.srq;
    if let Some(kind) = why {
        event(shared, wire, context, kind, number);
    }
    if srq == NONE {
        flush_receives(shared, wire, slot);
    } else {
        event(shared, wire, context, sys::IBV_EVENT_QP_LAST_WQE_REACHED, number);
    }
    wire.map.ring(owner);
}

fn slot_number(slot: usize) -> u32 {
    u32::try_from(slot).unwrap_or(NONE)
}

/// Gives back every receive that queue pair `slot` has in a queue of its own.
pub(crate) fn flush_receives(shared: &mut Shared, wire: &Wire<'_>, slot: usize) {
    while let Some(receive) = take(&mut shared.qps[slot].queue, &shared.qp_rings[slot]) {
        receive_failed(shared, wire, slot, &receive, sys::IBV_WC_WR_FLUSH_ERR);
    }
}

/// Ends a receive without a message.
pub(crate) fn receive_failed(
    shared: &mut Shared,
    wire: &Wire<'_>,
    slot: usize,
    receive: &Receive,
    status: u32,
) {
    let Qp { number, receive_cq, .. } = shared.qps[slot];
    let cqe =
        Cqe { wc: wc(receive.wr_id, status, sys::IBV_WC_RECV, number), qp: slot_number(slot), frees: 0 };
    complete(shared, wire, receive_cq, cqe, true);
}

fn take(queue: &mut ReceiveQueue, ring: &[Receive]) -> Option<Receive> {
    if queue.head == queue.tail {
        return None;
    }
    let receive = ring[usize::try_from(queue.head).unwrap_or(0) % QUEUE_WRS];
    queue.head += 1;
    Some(receive)
}

/// The receive that the next message for queue pair `slot` goes into.
pub(crate) fn next_receive(shared: &mut Shared, wire: &Wire<'_>, slot: usize) -> Option<Receive> {
    let srq = shared.qps[slot].srq;
    if srq == NONE {
        return take(&mut shared.qps[slot].queue, &shared.qp_rings[slot]);
    }
    let at = srq as usize;
    let receive = take(&mut shared.srqs[at].queue, &shared.srq_rings[at])?;
    let queue = &mut shared.srqs[at];
    if queue.limit > 0 && queue.queue.tail - queue.queue.head < u64::from(queue.limit) {
        queue.limit = 0;
        let context = queue.object.context as usize;
        event(shared, wire, context, sys::IBV_EVENT_SRQ_LIMIT_REACHED, srq);
    }
    Some(receive)
}

/// Whether a message for queue pair `slot` would find a receive.
pub(crate) fn has_receive(shared: &Shared, slot: usize) -> bool {
    let qp = &shared.qps[slot];
    let queue = if qp.srq == NONE { &qp.queue } else { &shared.srqs[qp.srq as usize].queue };
    queue.head != queue.tail
}

/// Appends a receive; an errno where it does not fit.
pub(crate) fn post(queue: &mut ReceiveQueue, ring: &mut [Receive], receive: Receive) -> Result<(), i32> {
    if receive.count > queue.sges {
        return Err(libc::EINVAL);
    }
    if queue.used >= queue.capacity {
        return Err(libc::ENOMEM);
    }
    ring[usize::try_from(queue.tail).unwrap_or(0) % QUEUE_WRS] = receive;
    queue.tail += 1;
    queue.used += 1;
    Ok(())
}
