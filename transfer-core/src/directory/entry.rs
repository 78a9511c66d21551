//! What stands in a directory, and the bytes that it stands in.
//!
//! The value of an entry: `HDRE`, version (u8, 1), three zero bytes, time to live in milliseconds (u64, little-endian),
//! then the blob of [`crate::Agent::metadata`], which names the agent and its incarnation itself.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use transfer_proto::codec::{DecodeError, Reader};
use transfer_proto::id::Incarnation;
use transfer_proto::proto::metadata::{AgentMetadata, BLOB_MAX, NAME_MAX};

use super::error::{Corrupt, CorruptCause, DirectoryError};

/// The longest value of an entry.
pub(crate) const VALUE_MAX: usize = HEADER_BYTES + BLOB_MAX;
/// The most entries that one listing holds.
pub(crate) const ENTRIES_MAX: usize = 1 << 16;
/// The most bytes of metadata that one listing holds.
pub(crate) const LISTING_BYTES_MAX: usize = 256 << 20;

const MAGIC: [u8; 4] = *b"HDRE";
const VERSION: u8 = 1;
const HEADER_BYTES: usize = 16;
const TTL_MIN: Duration = Duration::from_millis(100);
const TTL_MAX: Duration = Duration::from_hours(24);

/// An agent, as it registered itself. What it says was checked to be well-formed, not to be true.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// Which life of it.
    pub incarnation: Incarnation,
    /// How long the entry outlives its last renewal.
    pub ttl: Duration,
    /// [`crate::Agent::metadata`] of it, for [`crate::Agent::add_peer`].
    pub blob: Vec<u8>,
}

impl Entry {
    /// Checks what an agent wants to publish.
    ///
    /// # Errors
    /// [`DirectoryError::InvalidBlob`], [`DirectoryError::InvalidName`] for an empty name,
    /// [`DirectoryError::InvalidConfig`] for a `ttl` outside of 100 ms to 24 hours.
    pub fn new(blob: &[u8], ttl: Duration) -> Result<Self, DirectoryError> {
        let metadata = AgentMetadata::from_blob(blob).map_err(DirectoryError::InvalidBlob)?;
        check_name(&metadata.name)?;
        if !(TTL_MIN..=TTL_MAX).contains(&ttl) {
            let problem = format!("is {} ms; it must lie between 100 ms and 24 h", ttl.as_millis());
            return Err(DirectoryError::InvalidConfig { field: "ttl", problem });
        }
        Ok(Self { name: metadata.name, incarnation: metadata.incarnation, ttl, blob: blob.to_vec() })
    }

    /// Its value, in the format that every directory shares.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let ttl_ms = u64::try_from(self.ttl.as_millis()).unwrap_or(u64::MAX);
        let mut out = Vec::with_capacity(HEADER_BYTES + self.blob.len());
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&[VERSION, 0, 0, 0]);
        out.extend_from_slice(&ttl_ms.to_le_bytes());
        out.extend_from_slice(&self.blob);
        out
    }

    /// Reads a value that was found where `name` leads to, and trusts nothing in it. `key` is for the error.
    ///
    /// # Errors
    /// [`Corrupt`].
    pub fn decode(key: &str, name: &str, value: &[u8]) -> Result<Self, Corrupt> {
        Self::read(name, value).map_err(|cause| Corrupt::new(key, name, cause))
    }

    fn read(name: &str, value: &[u8]) -> Result<Self, CorruptCause> {
        if value.len() > VALUE_MAX {
            return Err(CorruptCause::TooLarge { bytes: value.len() as u64, max: VALUE_MAX as u64 });
        }
        let mut reader = Reader::new(value);
        if reader.array("magic").ok() != Some(MAGIC) {
            return Err(CorruptCause::NotAnEntry);
        }
        let [version, zeros @ ..] = reader.array::<4>("version")?;
        if version != VERSION {
            return Err(CorruptCause::Version { theirs: version, ours: VERSION });
        }
        if zeros != [0; 3] {
            let value = u64::from(u32::from_le_bytes([zeros[0], zeros[1], zeros[2], 0]));
            return Err(DecodeError::Invalid { what: "reserved bytes", value }.into());
        }
        let ttl_ms = reader.u64("time to live")?;
        let ttl = Duration::from_millis(ttl_ms);
        if !(TTL_MIN..=TTL_MAX).contains(&ttl) {
            return Err(DecodeError::Invalid { what: "time to live", value: ttl_ms }.into());
        }
        let blob = reader.bytes("metadata", reader.remaining())?;
        let metadata = AgentMetadata::from_blob(blob).map_err(|e| CorruptCause::Metadata(e.to_string()))?;
        if metadata.name != name {
            return Err(CorruptCause::OtherName(metadata.name));
        }
        Ok(Self { name: metadata.name, incarnation: metadata.incarnation, ttl, blob: blob.to_vec() })
    }

    /// Tells one content from another.
    pub(super) fn fingerprint(&self) -> u64 {
        fingerprint(&(self.incarnation, self.ttl, &self.blob))
    }

    /// Whether `other` is of the same life of the same agent.
    pub(super) fn same_life(&self, other: &Self) -> Result<(), DirectoryError> {
        if (&self.name, self.incarnation) == (&other.name, other.incarnation) {
            return Ok(());
        }
        let describe = |entry: &Self| format!("{} ({})", entry.name, entry.incarnation);
        Err(DirectoryError::OtherAgent { registered: describe(self), given: describe(other) })
    }
}

/// Tells one value from another; collisions only cost a missed "changed".
pub(super) fn fingerprint(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// Whether `name` can be the name of an agent.
pub(crate) fn check_name(name: &str) -> Result<(), DirectoryError> {
    let problem = match name.len() {
        0 => "it is empty",
        1..=NAME_MAX => return Ok(()),
        _ => "it is longer than 255 bytes",
    };
    Err(DirectoryError::InvalidName { name: name.to_owned(), problem })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample() -> Entry {
        let metadata = AgentMetadata::new("prefill-0".to_owned(), Incarnation::from_bytes([7; 16]));
        Entry::new(&metadata.to_blob(), Duration::from_secs(10)).unwrap()
    }

    fn cause(value: &[u8]) -> CorruptCause {
        Entry::decode("k", "prefill-0", value).unwrap_err().cause
    }

    #[test]
    fn a_value_comes_back() {
        assert_eq!(Entry::decode("k", "prefill-0", &sample().encode()), Ok(sample()));
    }

    #[test]
    fn what_is_wrong_is_told_apart() {
        let value = sample().encode();
        assert_eq!(cause(b"garbage"), CorruptCause::NotAnEntry);
        assert_eq!(cause(&[]), CorruptCause::NotAnEntry);
        let newer = [&value[..4], &[9], &value[5..]].concat();
        assert_eq!(cause(&newer), CorruptCause::Version { theirs: 9, ours: 1 });
        assert!(matches!(cause(&value[..10]), CorruptCause::Envelope(_)));
        assert!(matches!(cause(&value[..value.len() - 1]), CorruptCause::Metadata(_)));
        let large = vec![0; VALUE_MAX + 1];
        assert!(matches!(cause(&large), CorruptCause::TooLarge { .. }));
        let elsewhere = Entry::decode("k", "decode-0", &value).unwrap_err();
        assert_eq!(elsewhere.cause, CorruptCause::OtherName("prefill-0".to_owned()));
        assert_eq!(elsewhere.to_string(), "entry \"k\" is damaged: it is of agent \"prefill-0\"");
    }

    #[test]
    fn what_cannot_be_published_is_named() {
        let ttl = Duration::from_secs(10);
        let nameless = AgentMetadata::new(String::new(), Incarnation::from_bytes([7; 16])).to_blob();
        assert!(matches!(Entry::new(b"?", ttl), Err(DirectoryError::InvalidBlob(_))));
        assert!(matches!(Entry::new(&nameless, ttl), Err(DirectoryError::InvalidName { .. })));
        let never = Entry::new(&sample().blob, Duration::ZERO);
        assert!(matches!(never, Err(DirectoryError::InvalidConfig { field: "ttl", .. })));
    }

    proptest! {
        #[test]
        fn flipped_bits_and_cuts_never_panic(at in 0_usize..100, bit in 0_u8..8, len in 0_usize..100) {
            let mut value = sample().encode();
            let at = at % value.len();
            value[at] ^= 1 << bit;
            value.truncate(len);
            let _result = Entry::decode("k", "prefill-0", &value);
        }
    }
}
