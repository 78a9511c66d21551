//! What a queue pair is told on its way from creation to sending (IBTA volume 1, 10.3.1).

use std::sync::Arc;

use super::cq::CompletionQueue;
use super::gid::Gid;
use super::memory::Access;
use super::port::Mtu;
use super::srq::SharedReceiveQueue;
use super::sys;

/// How much a queue pair holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct QpCaps {
    /// Work requests in the send queue. One keeps its place until it, or a later one, was polled as completed.
    pub send_wrs: u32,
    /// Work requests in the receive queue.
    pub receive_wrs: u32,
    /// Ranges of one work request that sends.
    pub send_sges: u32,
    /// Ranges of one that receives.
    pub receive_sges: u32,
    /// Bytes that one can carry in itself.
    pub inline_bytes: u32,
}

impl Default for QpCaps {
    /// 128 to send, 128 to receive, one range each, nothing inline.
    fn default() -> Self {
        Self { send_wrs: 128, receive_wrs: 128, send_sges: 1, receive_sges: 1, inline_bytes: 0 }
    }
}

impl QpCaps {
    pub(super) fn raw(self) -> sys::ibv_qp_cap {
        sys::ibv_qp_cap {
            max_send_wr: self.send_wrs,
            max_recv_wr: self.receive_wrs,
            max_send_sge: self.send_sges,
            max_recv_sge: self.receive_sges,
            max_inline_data: self.inline_bytes,
        }
    }

    pub(super) fn from_raw(raw: &sys::ibv_qp_cap) -> Self {
        Self {
            send_wrs: raw.max_send_wr,
            receive_wrs: raw.max_recv_wr,
            send_sges: raw.max_send_sge,
            receive_sges: raw.max_recv_sge,
            inline_bytes: raw.max_inline_data,
        }
    }
}

/// What a queue pair is made of.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct QpConfig {
    /// Where sends complete.
    pub send_cq: Arc<CompletionQueue>,
    /// Where receives complete.
    pub receive_cq: Arc<CompletionQueue>,
    /// Where receives come from, if not from a queue of its own.
    pub srq: Option<Arc<SharedReceiveQueue>>,
    /// How much it holds.
    pub caps: QpCaps,
}

impl QpConfig {
    /// One completion queue for both directions, and the default capacities.
    #[must_use]
    pub fn new(cq: &Arc<CompletionQueue>) -> Self {
        Self { send_cq: Arc::clone(cq), receive_cq: Arc::clone(cq), srq: None, caps: QpCaps::default() }
    }
}

/// From RESET to INIT: receives may be posted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ToInit {
    /// The port, from 1.
    pub port: u8,
    /// Place in the port's table of partition keys.
    pub pkey_index: u16,
    /// What the peer may do over this queue pair.
    pub access: Access,
}

impl ToInit {
    /// On `port`, in the default partition; the peer may read and write.
    #[must_use]
    pub fn new(port: u8) -> Self {
        let access = Access::LOCAL_WRITE | Access::REMOTE_WRITE | Access::REMOTE_READ;
        Self { port, pkey_index: 0, access }
    }

    pub(super) fn apply(&self, attr: &mut sys::ibv_qp_attr) -> u32 {
        attr.qp_state = sys::IBV_QPS_INIT;
        attr.port_num = self.port;
        attr.pkey_index = self.pkey_index;
        attr.qp_access_flags = self.access.raw();
        sys::IBV_QP_STATE | sys::IBV_QP_PORT | sys::IBV_QP_PKEY_INDEX | sys::IBV_QP_ACCESS_FLAGS
    }
}

/// The part of a way that goes by GIDs. Always there on Ethernet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct GlobalRoute {
    /// The peer's address.
    pub to: Gid,
    /// Place of the own address in the port's table. Its kind says how packets look, and has to be the peer's.
    pub from_index: u8,
    /// Routers that a packet may pass.
    pub hop_limit: u8,
    /// Traffic class; its upper six bits are the DSCP on RoCE v2.
    pub traffic_class: u8,
    /// Flow label; RoCE v2 chooses its source port by it where the driver does so.
    pub flow_label: u32,
}

impl GlobalRoute {
    /// To `to`, from the own address at `from_index`.
    #[must_use]
    pub fn new(to: Gid, from_index: u8) -> Self {
        Self { to, from_index, hop_limit: 64, traffic_class: 0, flow_label: 0 }
    }
}

/// The way to a peer's port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Route {
    /// The port it leaves by.
    pub port: u8,
    /// The peer's LID; 0 on Ethernet.
    pub lid: u16,
    /// Service level.
    pub service_level: u8,
    /// The part by GIDs.
    pub global: Option<GlobalRoute>,
}

impl Route {
    /// By LID, within an InfiniBand subnet.
    #[must_use]
    pub fn by_lid(port: u8, lid: u16) -> Self {
        Self { port, lid, service_level: 0, global: None }
    }

    /// By GID.
    #[must_use]
    pub fn by_gid(port: u8, global: GlobalRoute) -> Self {
        Self { port, lid: 0, service_level: 0, global: Some(global) }
    }

    fn apply(&self, attr: &mut sys::ibv_ah_attr) {
        attr.dlid = self.lid;
        attr.sl = self.service_level;
        attr.port_num = self.port;
        if let Some(global) = &self.global {
            attr.is_global = 1;
            attr.grh = sys::ibv_global_route {
                dgid: global.to.raw(),
                flow_label: global.flow_label,
                sgid_index: global.from_index,
                hop_limit: global.hop_limit,
                traffic_class: global.traffic_class,
            };
        }
    }
}

/// From INIT to RTR: messages of one peer are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ToReceive {
    /// The way to the peer.
    pub route: Route,
    /// The peer's queue pair.
    pub peer_qp: u32,
    /// Number of the peer's first packet, 24 bits.
    pub peer_psn: u32,
    /// Bytes of a packet; both ends have to say the same.
    pub mtu: Mtu,
    /// READs of the peer that are served at once.
    pub reads_served: u8,
    /// How long the peer has to wait when nothing is posted to receive with (code of IBTA volume 1, 9.7.5.2.8;
    /// 12 is 0.64 ms).
    pub not_ready_timer: u8,
}

impl ToReceive {
    /// From queue pair `peer_qp`, whose first packet has number `peer_psn`.
    #[must_use]
    pub fn new(route: Route, peer_qp: u32, peer_psn: u32) -> Self {
        Self { route, peer_qp, peer_psn, mtu: Mtu::B1024, reads_served: 1, not_ready_timer: 12 }
    }

    pub(super) fn apply(&self, attr: &mut sys::ibv_qp_attr) -> u32 {
        attr.qp_state = sys::IBV_QPS_RTR;
        attr.path_mtu = self.mtu.raw();
        attr.dest_qp_num = self.peer_qp;
        attr.rq_psn = self.peer_psn;
        attr.max_dest_rd_atomic = self.reads_served;
        attr.min_rnr_timer = self.not_ready_timer;
        self.route.apply(&mut attr.ah_attr);
        sys::IBV_QP_STATE
            | sys::IBV_QP_AV
            | sys::IBV_QP_PATH_MTU
            | sys::IBV_QP_DEST_QPN
            | sys::IBV_QP_RQ_PSN
            | sys::IBV_QP_MAX_DEST_RD_ATOMIC
            | sys::IBV_QP_MIN_RNR_TIMER
    }
}

/// From RTR to RTS: sends may be posted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ToSend {
    /// Number of the first packet, 24 bits.
    pub psn: u32,
    /// How long an answer may take: 4.096 µs times two to the power of this; 0 is for ever.
    pub timeout: u8,
    /// How often a packet without an answer is sent again, at most 7, which some devices take as for ever.
    pub retries: u8,
    /// How often a peer that has nothing to receive with is asked again; 7 is for ever.
    pub not_ready_retries: u8,
    /// READs that are under way at once.
    pub reads: u8,
}

impl ToSend {
    /// With `psn` as the first packet's number; 67 ms for an answer, six more attempts of each kind: seven would be
    /// for ever where a peer is not ready, and on SoftRoCE also where it does not answer.
    #[must_use]
    pub fn new(psn: u32) -> Self {
        Self { psn, timeout: 14, retries: 6, not_ready_retries: 6, reads: 1 }
    }

    pub(super) fn apply(&self, attr: &mut sys::ibv_qp_attr) -> u32 {
        attr.qp_state = sys::IBV_QPS_RTS;
        attr.sq_psn = self.psn;
        attr.timeout = self.timeout;
        attr.retry_cnt = self.retries;
        attr.rnr_retry = self.not_ready_retries;
        attr.max_rd_atomic = self.reads;
        sys::IBV_QP_STATE
            | sys::IBV_QP_SQ_PSN
            | sys::IBV_QP_TIMEOUT
            | sys::IBV_QP_RETRY_CNT
            | sys::IBV_QP_RNR_RETRY
            | sys::IBV_QP_MAX_QP_RD_ATOMIC
    }
}

/// Where a queue pair is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum QpState {
    /// Just made.
    Reset,
    /// Takes work requests to receive.
    Init,
    /// Receives.
    Receiving,
    /// Receives and sends.
    Sending,
    /// Finishes what was posted, and begins nothing.
    Draining,
    /// Failed, or told to: everything posted comes back as flushed.
    Error,
    /// Something else.
    Other(u32),
}

impl QpState {
    pub(super) fn from_raw(raw: sys::ibv_qp_state) -> Self {
        match raw {
            sys::IBV_QPS_RESET => Self::Reset,
            sys::IBV_QPS_INIT => Self::Init,
            sys::IBV_QPS_RTR => Self::Receiving,
            sys::IBV_QPS_RTS => Self::Sending,
            sys::IBV_QPS_SQD => Self::Draining,
            sys::IBV_QPS_SQE | sys::IBV_QPS_ERR => Self::Error,
            other => Self::Other(other),
        }
    }
}

/// A queue pair, as the device knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct QpStatus {
    /// Where it is.
    pub state: QpState,
    /// How much it holds.
    pub caps: QpCaps,
    /// The peer's queue pair.
    pub peer_qp: u32,
}

impl QpStatus {
    pub(super) fn from_raw(attr: &sys::ibv_qp_attr) -> Self {
        let (state, caps) = (QpState::from_raw(attr.qp_state), QpCaps::from_raw(&attr.cap));
        Self { state, caps, peer_qp: attr.dest_qp_num }
    }
}
