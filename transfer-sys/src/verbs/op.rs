//! What a work request does, on which memory.

use std::ops::BitOr;

use super::memory::{Access, LocalKey, MemoryRegion, MemoryWindow, RemoteKey};
use super::sys;

/// Where a peer's registered memory is touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RemoteMemory {
    /// As the peer names it.
    pub addr: u64,
    /// The peer's key.
    pub key: RemoteKey,
}

impl RemoteMemory {
    /// At `addr`, by `key`.
    #[must_use]
    pub fn new(addr: u64, key: RemoteKey) -> Self {
        Self { addr, key }
    }
}

/// A range of this process's registered memory.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct Sge(pub(super) sys::ibv_sge);

impl Sge {
    /// `len` bytes from `addr`, as the registration of `key` names them.
    #[must_use]
    pub fn new(addr: u64, len: u32, key: LocalKey) -> Self {
        Self(sys::ibv_sge { addr, length: len, lkey: key.0 })
    }
}

/// How a work request is treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SendFlags(pub(super) u32);

impl SendFlags {
    /// No completion, unless it fails.
    pub const NONE: Self = Self(0);
    /// It completes in the queue.
    pub const SIGNALED: Self = Self(sys::IBV_SEND_SIGNALED);
    /// It begins after the READs before it.
    pub const FENCE: Self = Self(sys::IBV_SEND_FENCE);
    /// The peer's queue tells of it also where it was armed for solicited messages only.
    pub const SOLICITED: Self = Self(sys::IBV_SEND_SOLICITED);
}

impl BitOr for SendFlags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// What a window is bound to.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Bind<'a> {
    /// The window, which is bound to nothing.
    pub window: &'a MemoryWindow,
    /// The key that peers will use, of [`MemoryWindow::next_key`].
    pub key: RemoteKey,
    /// The registration, with [`Access::BIND`].
    pub region: &'a MemoryRegion,
    /// First byte, as the registration names it.
    pub addr: u64,
    /// Bytes.
    pub len: u64,
    /// What peers may do.
    pub access: Access,
}

impl<'a> Bind<'a> {
    /// `window` to all of `region`, by `key`.
    #[must_use]
    pub fn all(window: &'a MemoryWindow, key: RemoteKey, region: &'a MemoryRegion, access: Access) -> Self {
        Self { window, key, region, addr: region.base(), len: region.len() as u64, access }
    }
}

/// What a work request does.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum SendOp<'a> {
    /// Writes the ranges to the peer's memory.
    Write(RemoteMemory),
    /// The same; then the number completes a receive of the peer.
    WriteImm(RemoteMemory, u32),
    /// Reads the peer's memory into the ranges.
    Read(RemoteMemory),
    /// Sends the ranges into what the peer posted to receive with.
    Send,
    /// The same, with a number.
    SendImm(u32),
    /// Takes back the key of a window.
    Invalidate(RemoteKey),
    /// Gives a window a key.
    Bind(Bind<'a>),
}

impl SendOp<'_> {
    pub(super) fn opcode(&self) -> sys::ibv_wr_opcode {
        match self {
            Self::Write(_) => sys::IBV_WR_RDMA_WRITE,
            Self::WriteImm(..) => sys::IBV_WR_RDMA_WRITE_WITH_IMM,
            Self::Read(_) => sys::IBV_WR_RDMA_READ,
            Self::Send => sys::IBV_WR_SEND,
            Self::SendImm(_) => sys::IBV_WR_SEND_WITH_IMM,
            Self::Invalidate(_) => sys::IBV_WR_LOCAL_INV,
            Self::Bind(_) => sys::IBV_WR_BIND_MW,
        }
    }

    pub(super) fn apply(&self, wr: &mut sys::ibv_send_wr) {
        match *self {
            Self::Write(at) | Self::Read(at) | Self::WriteImm(at, _) => {
                let rdma =
                    sys::ibv_send_wr__bindgen_ty_2__bindgen_ty_1 { remote_addr: at.addr, rkey: at.key.raw() };
                wr.wr = sys::ibv_send_wr__bindgen_ty_2 { rdma };
            }
            Self::Invalidate(key) => {
                wr.__bindgen_anon_1 = sys::ibv_send_wr__bindgen_ty_1 { invalidate_rkey: key.raw() };
            }
            Self::Bind(bind) => {
                let bind_info = sys::ibv_mw_bind_info {
                    mr: bind.region.raw(),
                    addr: bind.addr,
                    length: bind.len,
                    mw_access_flags: bind.access.raw(),
                };
                let bind_mw = sys::ibv_send_wr__bindgen_ty_4__bindgen_ty_1 {
                    mw: bind.window.raw(),
                    rkey: bind.key.raw(),
                    bind_info,
                };
                wr.__bindgen_anon_2 = sys::ibv_send_wr__bindgen_ty_4 { bind_mw };
            }
            Self::Send | Self::SendImm(_) => {}
        }
        if let Self::WriteImm(_, imm) | Self::SendImm(imm) = *self {
            wr.__bindgen_anon_1 = sys::ibv_send_wr__bindgen_ty_1 { imm_data: imm.to_be() };
        }
    }
}
