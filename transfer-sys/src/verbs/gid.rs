//! The addresses of a port.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use super::sys;

/// A global identifier: the address of a port, in the form of an IPv6 address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Gid([u8; 16]);

impl Gid {
    /// From its bytes, in network order.
    #[must_use]
    pub fn new(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Its bytes, in network order.
    #[must_use]
    pub fn bytes(&self) -> [u8; 16] {
        self.0
    }

    /// Whether it is made from the hardware address (`fe80::/10`): it leads to ports of the same link only.
    #[must_use]
    pub fn is_link_local(&self) -> bool {
        Ipv6Addr::from(self.0).is_unicast_link_local()
    }

    /// The IPv4 address in it, where it is one.
    #[must_use]
    pub fn ipv4(&self) -> Option<Ipv4Addr> {
        Ipv6Addr::from(self.0).to_ipv4_mapped()
    }

    /// Whether the entry of the table is unused.
    #[must_use]
    pub fn is_zero(&self) -> bool {
        self.0 == [0; 16]
    }

    pub(super) fn raw(self) -> sys::ibv_gid {
        sys::ibv_gid { raw: self.0 }
    }
}

impl fmt::Display for Gid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ipv6Addr::from(self.0).fmt(f)
    }
}

/// What a packet looks like that is sent from an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum GidKind {
    /// InfiniBand.
    Infiniband,
    /// RoCE version 1: an Ethernet frame of its own type, which no router passes on.
    RoceV1,
    /// RoCE version 2: UDP.
    RoceV2,
    /// Something that this library does not know.
    Other(u32),
}

impl GidKind {
    pub(super) fn from_raw(raw: sys::ibv_gid_type) -> Self {
        match raw {
            sys::IBV_GID_TYPE_IB => Self::Infiniband,
            sys::IBV_GID_TYPE_ROCE_V1 => Self::RoceV1,
            sys::IBV_GID_TYPE_ROCE_V2 => Self::RoceV2,
            other => Self::Other(other),
        }
    }

    /// From the text in sysfs (`gid_attrs/types`), which has one word for two of them.
    pub(super) fn from_sysfs(text: &str, ethernet: bool) -> Self {
        match text.trim() {
            "RoCE v2" => Self::RoceV2,
            _ if ethernet => Self::RoceV1,
            _ => Self::Infiniband,
        }
    }
}

/// An entry of a port's table of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct GidEntry {
    /// The address.
    pub gid: Gid,
    /// Its place in the table, by which a queue pair names its own address.
    pub index: u32,
    /// How packets from it look.
    pub kind: GidKind,
    /// The network interface that it belongs to (`if_nametoindex(3)`); 0 for none.
    pub interface: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_of_addresses_are_told_apart() {
        let v4 = Gid::new(Ipv4Addr::new(10, 77, 0, 1).to_ipv6_mapped().octets());
        let local = Gid::new("fe80::1".parse::<Ipv6Addr>().unwrap().octets());
        assert_eq!((v4.ipv4(), v4.is_link_local()), (Some(Ipv4Addr::new(10, 77, 0, 1)), false));
        assert_eq!((local.ipv4(), local.is_link_local()), (None, true));
        assert!(Gid::default().is_zero() && !v4.is_zero());
        assert_eq!(v4.to_string(), "::ffff:10.77.0.1");
    }

    #[test]
    fn sysfs_names_both_ib_and_roce_v1_alike() {
        assert_eq!(GidKind::from_sysfs("RoCE v2\n", true), GidKind::RoceV2);
        assert_eq!(GidKind::from_sysfs("IB/RoCE v1\n", true), GidKind::RoceV1);
        assert_eq!(GidKind::from_sysfs("IB/RoCE v1\n", false), GidKind::Infiniband);
    }
}
