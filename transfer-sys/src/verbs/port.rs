//! What a port is like.

use super::sys;

/// Whether a port can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PortState {
    /// No link.
    Down,
    /// A link, but no address yet (InfiniBand: no subnet manager has seen it).
    Initializing,
    /// About to be usable.
    Armed,
    /// Usable.
    Active,
    /// Something else.
    Other(u32),
}

/// The largest piece of a message that goes in one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Mtu {
    /// 256 bytes.
    B256,
    /// 512 bytes.
    B512,
    /// 1024 bytes.
    B1024,
    /// 2048 bytes.
    B2048,
    /// 4096 bytes.
    B4096,
}

impl Mtu {
    /// Its size in bytes.
    #[must_use]
    pub fn bytes(self) -> u32 {
        128 << self.raw()
    }

    /// The number that the interface has for it.
    #[must_use]
    pub fn raw(self) -> u32 {
        match self {
            Self::B256 => sys::IBV_MTU_256,
            Self::B512 => sys::IBV_MTU_512,
            Self::B1024 => sys::IBV_MTU_1024,
            Self::B2048 => sys::IBV_MTU_2048,
            Self::B4096 => sys::IBV_MTU_4096,
        }
    }

    /// The one of that number; the smallest for a number that is none.
    #[must_use]
    pub fn from_raw(raw: u32) -> Self {
        match raw {
            sys::IBV_MTU_512 => Self::B512,
            sys::IBV_MTU_1024 => Self::B1024,
            sys::IBV_MTU_2048 => Self::B2048,
            sys::IBV_MTU_4096 => Self::B4096,
            _ => Self::B256,
        }
    }
}

/// What is below the verbs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LinkLayer {
    /// InfiniBand: ports have LIDs.
    Infiniband,
    /// Ethernet (RoCE): ports are addressed by GIDs only.
    Ethernet,
    /// The provider does not say.
    Unspecified,
}

/// A port, as it is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PortAttr {
    /// Whether it can be used.
    pub state: PortState,
    /// The largest packet that it could send.
    pub max_mtu: Mtu,
    /// The largest packet that the link takes now.
    pub active_mtu: Mtu,
    /// Its local identifier; 0 on Ethernet.
    pub lid: u16,
    /// Places in its table of GIDs.
    pub gid_table_len: u32,
    /// The longest message in bytes.
    pub max_message: u32,
    /// What is below.
    pub link_layer: LinkLayer,
    /// Nominal rate of the link in Mbit/s, over all lanes; 0 where the provider tells something unknown.
    pub rate_mbps: u64,
}

impl PortAttr {
    pub(super) fn from_raw(raw: &sys::ibv_port_attr) -> Self {
        Self {
            state: match raw.state {
                sys::IBV_PORT_DOWN => PortState::Down,
                sys::IBV_PORT_INIT => PortState::Initializing,
                sys::IBV_PORT_ARMED => PortState::Armed,
                sys::IBV_PORT_ACTIVE => PortState::Active,
                other => PortState::Other(other),
            },
            max_mtu: Mtu::from_raw(raw.max_mtu),
            active_mtu: Mtu::from_raw(raw.active_mtu),
            lid: raw.lid,
            gid_table_len: u32::try_from(raw.gid_tbl_len).unwrap_or(0),
            max_message: raw.max_msg_sz,
            link_layer: match u32::from(raw.link_layer) {
                sys::IBV_LINK_LAYER_INFINIBAND => LinkLayer::Infiniband,
                sys::IBV_LINK_LAYER_ETHERNET => LinkLayer::Ethernet,
                _ => LinkLayer::Unspecified,
            },
            rate_mbps: lanes(raw.active_width) * lane_mbps(raw.active_speed),
        }
    }
}

/// Lanes by the code of a width (IBTA, PortInfo.LinkWidthActive).
fn lanes(width: u8) -> u64 {
    match width {
        1 => 1,
        2 => 4,
        4 => 8,
        8 => 12,
        16 => 2,
        _ => 0,
    }
}

/// Nominal rate of a lane by the code of a speed (IBTA, PortInfo.LinkSpeedActive and its extensions).
fn lane_mbps(speed: u8) -> u64 {
    match speed {
        1 => 2_500,
        2 => 5_000,
        4 | 8 => 10_000,
        16 => 14_000,
        32 => 25_000,
        64 => 50_000,
        128 => 100_000,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_become_bytes_and_bits() {
        assert_eq!([1, 2, 3, 4, 5].map(|raw| Mtu::from_raw(raw).bytes()), [256, 512, 1024, 2048, 4096]);
        assert_eq!(lanes(2) * lane_mbps(128), 400_000, "NDR over four lanes");
        assert_eq!(lanes(1) * lane_mbps(4), 10_000, "what SoftRoCE says");
        assert_eq!(lanes(3) * lane_mbps(3), 0);
    }
}
