//! The first eight bytes of every connection, from both sides: `HDRC`, version, kind, two zero bytes.
//!
//! They never change their meaning, so that agents of any two versions can tell each other why they part.

use crate::codec::DecodeError;

/// The version that this code speaks.
pub const VERSION: u8 = 1;
/// Length of a preamble.
pub const PREAMBLE_BYTES: usize = 8;

const MAGIC: [u8; 4] = *b"HDRC";

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// [`crate::proto::control`].
    Control,
    /// [`crate::proto::local`].
    Local,
    /// [`crate::proto::data`].
    Data,
}

/// Why a connection is not one of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PreambleError {
    /// Something else than Headrace is at the other end.
    #[error("the other end does not speak Headrace's protocol")]
    NotHeadrace,
    /// Another version is.
    #[error("the peer speaks version {theirs} of the protocol, this agent version {}", VERSION)]
    Version {
        /// The peer's version.
        theirs: u8,
    },
    /// The rest of the preamble is not as it should be.
    #[error(transparent)]
    Malformed(#[from] DecodeError),
}

/// The preamble of a connection of this kind.
#[must_use]
pub fn encode(kind: Kind) -> [u8; PREAMBLE_BYTES] {
    let kind = match kind {
        Kind::Control => 1,
        Kind::Local => 2,
        Kind::Data => 3,
    };
    let [h, d, r, c] = MAGIC;
    [h, d, r, c, VERSION, kind, 0, 0]
}

/// Reads a preamble.
///
/// # Errors
/// [`PreambleError`], the magic first, then the version, so that a peer of another version is told apart.
pub fn decode(bytes: [u8; PREAMBLE_BYTES]) -> Result<Kind, PreambleError> {
    let [m0, m1, m2, m3, version, kind, z0, z1] = bytes;
    if [m0, m1, m2, m3] != MAGIC {
        return Err(PreambleError::NotHeadrace);
    }
    if version != VERSION {
        return Err(PreambleError::Version { theirs: version });
    }
    if [z0, z1] != [0, 0] {
        let value = u64::from(u16::from_le_bytes([z0, z1]));
        return Err(DecodeError::Invalid { what: "reserved bytes of the preamble", value }.into());
    }
    match kind {
        1 => Ok(Kind::Control),
        2 => Ok(Kind::Local),
        3 => Ok(Kind::Data),
        value => Err(DecodeError::Invalid { what: "connection kind", value: u64::from(value) }.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_comes_back() {
        for kind in [Kind::Control, Kind::Local, Kind::Data] {
            assert_eq!(decode(encode(kind)), Ok(kind));
        }
    }

    #[test]
    fn what_is_wrong_is_told_apart() {
        let with = |at: usize, value: u8| {
            let mut bytes = encode(Kind::Control);
            bytes[at] = value;
            decode(bytes)
        };
        assert_eq!(decode(*b"GET / HT"), Err(PreambleError::NotHeadrace));
        assert_eq!(with(4, 9), Err(PreambleError::Version { theirs: 9 }));
        assert!(matches!(with(5, 77), Err(PreambleError::Malformed(_))));
        assert!(matches!(with(7, 1), Err(PreambleError::Malformed(_))));
    }
}
