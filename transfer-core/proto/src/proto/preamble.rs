//! The first eight bytes of every connection, from both sides: `HDRC`, highest version spoken (u8), kind (u8), lowest
//! version spoken (u8), flags (u8).
//!
//! Magic, versions and kind never change their meaning, so that agents of any two versions can tell each other why
//! they part. Version 1 wrote zeros for the last two, which says the same as naming 1 twice. What a flag means
//! belongs to the version; one that is not known is refused, since it asks for something.

use core::fmt;

use crate::codec::DecodeError;

/// What this code speaks.
pub const VERSIONS: Versions = Versions::new(2, 2);
/// Length of a preamble.
pub const PREAMBLE_BYTES: usize = 8;

const MAGIC: [u8; 4] = *b"HDRC";

/// The versions of the protocol that an agent speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Versions {
    lowest: u8,
    highest: u8,
}

impl Versions {
    /// From `lowest` up to and with `highest`.
    #[must_use]
    pub const fn new(lowest: u8, highest: u8) -> Self {
        Self { lowest, highest }
    }

    /// The highest that both speak.
    #[must_use]
    pub fn common(self, other: Self) -> Option<u8> {
        let highest = self.highest.min(other.highest);
        (highest >= self.lowest.max(other.lowest)).then_some(highest)
    }

    /// Which of two agents without a common version to update: `ours` is this one's.
    #[must_use]
    pub fn older(ours: Self, theirs: Self) -> &'static str {
        if theirs.highest < ours.lowest { "the peer" } else { "this agent" }
    }
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self { lowest, highest } if lowest == highest => write!(f, "{highest}"),
            Self { lowest, highest } => write!(f, "{lowest} to {highest}"),
        }
    }
}

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

/// What an agent asks of a connection. Both sides must ask for the same, but for [`Flags::ENCRYPT`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags(u8);

impl Flags {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// Both sides prove that they have the same key.
    pub const KEY: Self = Self(1);

    /// Data connections are encrypted, also where the other side does not ask for it. Only with [`Flags::KEY`].
    pub const ENCRYPT: Self = Self(2);

    const KNOWN: u8 = Self::KEY.0 | Self::ENCRYPT.0;

    /// Whether all of `other` are among these.
    #[must_use]
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both.
    #[must_use]
    pub fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Why a connection is not one of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PreambleError {
    /// Something else than Headrace is at the other end.
    #[error("the other end does not speak Headrace's protocol")]
    NotHeadrace,
    /// It speaks no version that this code speaks.
    #[error(
        "the peer speaks version {theirs} of the protocol, this agent version {}; update {}",
        VERSIONS,
        Versions::older(VERSIONS, *theirs)
    )]
    Version {
        /// The peer's versions.
        theirs: Versions,
    },
    /// The rest of the preamble is not as it should be.
    #[error(transparent)]
    Malformed(#[from] DecodeError),
}

/// What a preamble says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Preamble {
    /// The highest version that both sides speak.
    pub version: u8,
    /// What the connection is for.
    pub kind: Kind,
    /// What the sender asks of it.
    pub flags: Flags,
}

/// The preamble of a connection of this kind.
#[must_use]
pub fn encode(kind: Kind, flags: Flags) -> [u8; PREAMBLE_BYTES] {
    let kind = match kind {
        Kind::Control => 1,
        Kind::Local => 2,
        Kind::Data => 3,
    };
    let [h, d, r, c] = MAGIC;
    [h, d, r, c, VERSIONS.highest, kind, VERSIONS.lowest, flags.0]
}

/// Reads a preamble.
///
/// # Errors
/// [`PreambleError`], the magic first, then the versions, so that a peer of another version is told apart.
pub fn decode(bytes: [u8; PREAMBLE_BYTES]) -> Result<Preamble, PreambleError> {
    let [m0, m1, m2, m3, highest, kind, lowest, flags] = bytes;
    if [m0, m1, m2, m3] != MAGIC {
        return Err(PreambleError::NotHeadrace);
    }
    let theirs = Versions::new(if lowest == 0 { highest } else { lowest }, highest);
    if theirs.lowest > theirs.highest {
        return Err(DecodeError::Invalid { what: "lowest version", value: u64::from(lowest) }.into());
    }
    let version = VERSIONS.common(theirs).ok_or(PreambleError::Version { theirs })?;
    let keyless = Flags(flags).contains(Flags::ENCRYPT) && !Flags(flags).contains(Flags::KEY);
    if flags & !Flags::KNOWN != 0 || keyless {
        return Err(DecodeError::Invalid { what: "flags of the preamble", value: u64::from(flags) }.into());
    }
    let kind = match kind {
        1 => Kind::Control,
        2 => Kind::Local,
        3 => Kind::Data,
        value => {
            return Err(DecodeError::Invalid { what: "connection kind", value: u64::from(value) }.into());
        }
    };
    Ok(Preamble { version, kind, flags: Flags(flags) })
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_said_comes_back() {
        for kind in [Kind::Control, Kind::Local, Kind::Data] {
            for flags in [Flags::NONE, Flags::KEY, Flags::KEY.union(Flags::ENCRYPT)] {
                let said = Preamble { version: 2, kind, flags };
                assert_eq!(decode(encode(kind, flags)), Ok(said));
            }
        }
    }

    #[test]
    fn what_is_wrong_is_told_apart() {
        let with = |changes: &[(usize, u8)]| {
            let mut bytes = encode(Kind::Control, Flags::NONE);
            changes.iter().for_each(|&(at, value)| bytes[at] = value);
            decode(bytes)
        };
        assert_eq!(decode(*b"GET / HT"), Err(PreambleError::NotHeadrace));
        assert!(matches!(with(&[(5, 77)]), Err(PreambleError::Malformed(_))));
        assert!(matches!(with(&[(7, 128)]), Err(PreambleError::Malformed(_))), "a flag of the future");
        assert!(matches!(with(&[(7, 2)]), Err(PreambleError::Malformed(_))), "encryption without a key");
        assert!(matches!(with(&[(6, 3)]), Err(PreambleError::Malformed(_))), "a range the wrong way round");
        // Others may speak more than we do; what counts is what is common.
        assert_eq!(with(&[(4, 9), (6, 1)]).map(|p| p.version), Ok(2));
        assert_eq!(with(&[(4, 9), (6, 2)]).map(|p| p.version), Ok(2));
    }

    #[test]
    fn agents_without_a_common_version_are_told_which_of_them_to_update() {
        let told = |bytes: [u8; 8]| decode(bytes).unwrap_err().to_string();
        // As version 1 wrote it.
        let older = told(*b"HDRC\x01\x01\0\0");
        assert!(older.contains("speaks version 1 ") && older.ends_with("update the peer"), "{older}");
        let newer = told(*b"HDRC\x07\x01\x05\x80");
        assert!(
            newer.contains("speaks version 5 to 7 of") && newer.ends_with("update this agent"),
            "{newer}"
        );
    }

    proptest! {
        #[test]
        fn the_common_version_is_spoken_by_both(a in 1_u8..9, more in 0_u8..4, b in 1_u8..9, yet in 0_u8..4) {
            let (left, right) = (Versions::new(a, a + more), Versions::new(b, b + yet));
            let both = (0..20).rev().find(|v| (a..=a + more).contains(v) && (b..=b + yet).contains(v));
            prop_assert_eq!(left.common(right), both);
            prop_assert_eq!(right.common(left), both);
        }
    }
}
