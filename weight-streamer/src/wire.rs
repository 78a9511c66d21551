//! What a source and a receiver say to each other, as bytes. Pure; every field is bounded.
//!
//! The *hello* travels in the handshake of transfer-core. The manifest is a region that the receiver READs. From
//! then on the receiver sends [`Request`]s and the source WRITEs each chunk where the receiver asked for it, with
//! a [`Reply::Chunk`] behind the data; or it says why not.

use crate::codec::{CodecError, Reader, put_text};
use crate::manifest::{Hash, MAX_ENCODED_BYTES};

/// Version of the hello and of the messages.
pub const PROTOCOL: u16 = 1;
/// Label of the source's region that holds the encoded manifest.
pub const MANIFEST_REGION: &str = "weights.manifest";
/// Label of the receiver's region that chunks are written into.
pub const STAGING_REGION: &str = "weights.staging";
/// Most chunks asked for in one message.
pub const MAX_REQUESTS: usize = 256;
/// Longest reason in a refusal.
const MAX_REASON_BYTES: u16 = 1024;

const MAGIC: &[u8; 4] = b"HRWS";
const TAG_REQUEST: u8 = 1;
const TAG_CHUNK: u8 = 2;
const TAG_REFUSED: u8 = 3;
const TAG_ALIVE: u8 = 4;
const FLAG_RECHECK: u8 = 1;

/// Why a message cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// The peer is no weight source.
    #[error("the peer does not serve weights (is this the address of a `weight-streamer serve`?)")]
    NotASource,
    /// Another version.
    #[error(
        "the peer speaks version {found} of the weight protocol, this program {PROTOCOL}; use the same release"
    )]
    Version {
        /// The version found.
        found: u16,
    },
    /// A value that cannot be.
    #[error("a message with an impossible {0}")]
    Value(&'static str),
    /// Cut short, or broken text.
    #[error("a malformed message")]
    Malformed,
}

impl From<CodecError> for WireError {
    fn from(_: CodecError) -> Self {
        Self::Malformed
    }
}

/// What a source says about itself in the handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Hello {
    /// Root hash of its manifest.
    pub root: Hash,
    /// Length of its encoded manifest.
    pub manifest_len: u64,
    /// Its chunk size, so that a receiver can lay out its staging slots.
    pub chunk_bytes: u32,
}

impl Hello {
    /// A hello of this protocol version.
    #[must_use]
    pub const fn new(root: Hash, manifest_len: u64, chunk_bytes: u32) -> Self {
        Self { root, manifest_len, chunk_bytes }
    }

    /// As bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend_from_slice(&PROTOCOL.to_le_bytes());
        out.extend_from_slice(&[0, 0]);
        out.extend_from_slice(&self.chunk_bytes.to_le_bytes());
        out.extend_from_slice(&self.manifest_len.to_le_bytes());
        out.extend_from_slice(self.root.as_bytes());
        out
    }

    /// From bytes. What a later version appends is ignored; what it changes has another version number.
    ///
    /// # Errors
    /// When the peer is no source, of another version, or says something impossible.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(bytes);
        if reader.array::<4>().ok().as_ref() != Some(MAGIC) {
            return Err(WireError::NotASource);
        }
        match reader.u16()? {
            PROTOCOL => {}
            found => return Err(WireError::Version { found }),
        }
        reader.u16()?;
        let chunk_bytes = reader.u32()?;
        let manifest_len = reader.u64()?;
        let root = Hash::from_bytes(reader.array()?);
        crate::manifest::check_chunk_bytes(chunk_bytes).map_err(|_| WireError::Value("chunk size"))?;
        if manifest_len == 0 || usize::try_from(manifest_len).is_ok_and(|len| len > MAX_ENCODED_BYTES) {
            return Err(WireError::Value("manifest length"));
        }
        Ok(Self { root, manifest_len, chunk_bytes })
    }
}

/// "Write this chunk there."
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Request {
    /// The receiver's own number for this request; comes back with the answer.
    pub ticket: u64,
    /// Which chunk.
    pub chunk: u32,
    /// Where in the receiver's staging region.
    pub offset: u64,
    /// The copy sent before was wrong: look at the file again before sending.
    pub recheck: bool,
}

impl Request {
    /// A request.
    #[must_use]
    pub const fn new(ticket: u64, chunk: u32, offset: u64, recheck: bool) -> Self {
        Self { ticket, chunk, offset, recheck }
    }

    /// Several requests as one message; at most [`MAX_REQUESTS`] of them are taken.
    #[must_use]
    pub fn encode_all(requests: &[Self]) -> Vec<u8> {
        let requests = &requests[..requests.len().min(MAX_REQUESTS)];
        let mut out = vec![TAG_REQUEST];
        out.extend_from_slice(&u16::try_from(requests.len()).unwrap_or(0).to_le_bytes());
        for request in requests {
            out.extend_from_slice(&request.ticket.to_le_bytes());
            out.extend_from_slice(&request.chunk.to_le_bytes());
            out.extend_from_slice(&request.offset.to_le_bytes());
            out.push(if request.recheck { FLAG_RECHECK } else { 0 });
        }
        out
    }

    /// The requests of one message.
    ///
    /// # Errors
    /// When it is no such message.
    pub fn decode_all(bytes: &[u8]) -> Result<Vec<Self>, WireError> {
        let mut reader = Reader::new(bytes);
        if reader.u8()? != TAG_REQUEST {
            return Err(WireError::Value("message kind"));
        }
        let count = usize::from(reader.u16()?);
        if count > MAX_REQUESTS {
            return Err(WireError::Value("number of requests"));
        }
        let mut requests = Vec::with_capacity(count);
        for _ in 0..count {
            let (ticket, chunk, offset) = (reader.u64()?, reader.u32()?, reader.u64()?);
            requests.push(Self { ticket, chunk, offset, recheck: reader.u8()? & FLAG_RECHECK != 0 });
        }
        reader.end()?;
        Ok(requests)
    }
}

/// What a source answers.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reply {
    /// The chunk of this ticket lies in its slot.
    Chunk {
        /// The request's ticket.
        ticket: u64,
    },
    /// It will not come from here.
    Refused {
        /// The request's ticket.
        ticket: u64,
        /// Why, for people.
        reason: String,
    },
    /// Nothing to send just now (the egress cap, other receivers first), but your requests stand.
    Alive,
}

impl Reply {
    /// As bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Self::Chunk { ticket } => {
                out.push(TAG_CHUNK);
                out.extend_from_slice(&ticket.to_le_bytes());
            }
            Self::Refused { ticket, reason } => {
                out.push(TAG_REFUSED);
                out.extend_from_slice(&ticket.to_le_bytes());
                put_text(&mut out, reason, MAX_REASON_BYTES);
            }
            Self::Alive => out.push(TAG_ALIVE),
        }
        out
    }

    /// From bytes.
    ///
    /// # Errors
    /// When it is no such message.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(bytes);
        let reply = match reader.u8()? {
            TAG_CHUNK => Self::Chunk { ticket: reader.u64()? },
            TAG_REFUSED => {
                let ticket = reader.u64()?;
                let reason = reader.text()?;
                if reason.len() > usize::from(MAX_REASON_BYTES) {
                    return Err(WireError::Value("reason"));
                }
                // A reason ends up on a terminal.
                let reason = reason.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
                Self::Refused { ticket, reason }
            }
            TAG_ALIVE => Self::Alive,
            _ => return Err(WireError::Value("message kind")),
        };
        reader.end()?;
        Ok(reply)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hello() -> Hello {
        Hello::new(Hash::of(b"root"), 1000, 4 << 20)
    }

    #[test]
    fn hello_round_trip_and_refusals() {
        let bytes = hello().encode();
        assert_eq!(Hello::decode(&bytes), Ok(hello()));
        assert_eq!(Hello::decode(b""), Err(WireError::NotASource));
        assert_eq!(Hello::decode(b"{\"layout\":1}"), Err(WireError::NotASource));
        for cut in 4..bytes.len() {
            assert_eq!(Hello::decode(&bytes[..cut]), Err(WireError::Malformed), "{cut}");
        }
        let with = |at: usize, value: &[u8]| {
            let mut bytes = bytes.clone();
            bytes[at..at + value.len()].copy_from_slice(value);
            Hello::decode(&bytes)
        };
        assert_eq!(with(4, &[7, 0]), Err(WireError::Version { found: 7 }));
        assert_eq!(with(8, &[1]), Err(WireError::Value("chunk size")));
        assert_eq!(with(12, &[0xff; 6]), Err(WireError::Value("manifest length")));
        assert_eq!(with(12, &[0; 8]), Err(WireError::Value("manifest length")));
    }

    #[test]
    fn a_reason_is_cut_and_made_harmless() {
        let long = Reply::Refused { ticket: 1, reason: "ü".repeat(2000) };
        let Ok(Reply::Refused { reason, .. }) = Reply::decode(&long.encode()) else { panic!("not decoded") };
        assert_eq!(reason.len(), 1024);
        let nasty = Reply::Refused { ticket: 1, reason: "\u{1b}[2J".into() };
        assert_eq!(Reply::decode(&nasty.encode()), Ok(Reply::Refused { ticket: 1, reason: "?[2J".into() }));
    }

    proptest! {
        #[test]
        fn messages_round_trip(raw in proptest::collection::vec(any::<(u64, u32, u64, bool)>(), 0..300), text in ".{0,40}") {
            let requests: Vec<_> = raw.iter().map(|&(t, c, o, r)| Request::new(t, c, o, r)).collect();
            let taken = &requests[..requests.len().min(MAX_REQUESTS)];
            prop_assert_eq!(&Request::decode_all(&Request::encode_all(&requests)).unwrap(), taken);
            let text: String = text.chars().filter(|c| !c.is_control()).collect();
            for reply in [Reply::Chunk { ticket: 7 }, Reply::Alive, Reply::Refused { ticket: 9, reason: text }] {
                prop_assert_eq!(Reply::decode(&reply.encode()).unwrap(), reply);
            }
        }

        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            drop(Request::decode_all(&bytes));
            drop(Reply::decode(&bytes));
            let mut hello = MAGIC.to_vec();
            hello.extend(&bytes);
            drop(Hello::decode(&hello));
        }
    }
}
