//! Messages of the Unix socket between agents of one host, which passes the file descriptors of regions.
//!
//! After preamble and [`crate::proto::session::SessionHello`] all have 40 bytes: type (u8), seven zero bytes, a number (u64), a probe (u64), 16 bytes of incarnation.
//!
//! A probe is an address in the sender's process at which its incarnation stands, so that the receiver can try
//! whether the kernel lets it read there, and whether it reads the right process.

use crate::codec::{DecodeError, Reader};
use crate::id::{Incarnation, RegionId};

/// Length of a message.
pub const LOCAL_BYTES: usize = 40;

/// One message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LocalMessage {
    /// Who connects.
    Hello {
        /// The sender.
        incarnation: Incarnation,
        /// The sender's probe.
        probe: u64,
    },
    /// The connection is accepted.
    Welcome {
        /// The sender.
        incarnation: Incarnation,
        /// The sender's probe.
        probe: u64,
    },
    /// Asks for the file behind a region.
    Map(RegionId),
    /// The answer; the descriptor travels with it.
    Mapped(RegionId),
    /// The answer where there is no such region, or no file behind it.
    NotMapped(RegionId),
}

impl LocalMessage {
    /// As bytes.
    #[must_use]
    pub fn encode(self) -> [u8; LOCAL_BYTES] {
        let none = Incarnation::from_bytes([0; 16]);
        let (tag, number, probe, incarnation) = match self {
            Self::Hello { incarnation, probe } => (1, 0, probe, incarnation),
            Self::Welcome { incarnation, probe } => (2, 0, probe, incarnation),
            Self::Map(id) => (3, id.to_u64(), 0, none),
            Self::Mapped(id) => (4, id.to_u64(), 0, none),
            Self::NotMapped(id) => (5, id.to_u64(), 0, none),
        };
        let mut out = [0; LOCAL_BYTES];
        out[0] = tag;
        out[8..16].copy_from_slice(&number.to_le_bytes());
        out[16..24].copy_from_slice(&probe.to_le_bytes());
        out[24..].copy_from_slice(&incarnation.to_bytes());
        out
    }

    /// From bytes.
    ///
    /// # Errors
    /// [`DecodeError::Invalid`].
    pub fn decode(bytes: [u8; LOCAL_BYTES]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(&bytes);
        let tag = reader.u8("message type")?;
        let _reserved = reader.bytes("reserved", 7)?;
        let number = reader.u64("number")?;
        let probe = reader.u64("probe")?;
        let incarnation = Incarnation::from_bytes(reader.array("incarnation")?);
        match tag {
            1 => Ok(Self::Hello { incarnation, probe }),
            2 => Ok(Self::Welcome { incarnation, probe }),
            3 => Ok(Self::Map(RegionId::from_u64(number))),
            4 => Ok(Self::Mapped(RegionId::from_u64(number))),
            5 => Ok(Self::NotMapped(RegionId::from_u64(number))),
            value => Err(DecodeError::Invalid { what: "local message type", value: u64::from(value) }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_message_comes_back() {
        let incarnation = Incarnation::from_bytes([9; 16]);
        let id = RegionId::new(5, 6);
        for message in [
            LocalMessage::Hello { incarnation, probe: 2 },
            LocalMessage::Welcome { incarnation, probe: u64::MAX },
            LocalMessage::Map(id),
            LocalMessage::Mapped(id),
            LocalMessage::NotMapped(id),
        ] {
            assert_eq!(LocalMessage::decode(message.encode()), Ok(message));
        }
        assert!(LocalMessage::decode([0; LOCAL_BYTES]).is_err());
    }
}
