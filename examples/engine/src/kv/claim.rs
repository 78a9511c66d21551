//! What two engines say to each other around a pull, as notifications without data.
//!
//! The decode side must never use bytes of blocks that were given to somebody else in the meantime. So it claims them
//! first: the prefill side answers that it keeps them for a stated time, counted from an instant that the decode side
//! knows to lie behind its own claim, or says why it does not have them any more. A claim uses the hand-off up.
//!
//! ```text
//! decode  -> prefill   Claim   { id, ticket }     may I read these blocks?
//! prefill -> decode    Granted { id, millis }     yes, for so long
//!                      Refused { id, refusal }    no, because
//! decode  -> prefill   Release { id, ticket }     I have them, or do not need them
//! ```
//!
//! A message is one version byte, one kind byte, the id with a 16-bit length, and the fields of its kind, little
//! endian. A message that is longer than its fields is as invalid as one that is shorter.

use crate::sched::BlockId;
use std::fmt;

/// Version of the messages; a message of another version is not understood.
const VERSION: u8 = 1;
/// The longest request id in a message.
pub(crate) const ID_LEN_MAX: usize = 512;

const CLAIM: u8 = 1;
const GRANTED: u8 = 2;
const REFUSED: u8 = 3;
const RELEASE: u8 = 4;

/// Proof that both sides speak of the same tokens in the same blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Ticket([u8; 32]);

impl Ticket {
    /// The ticket for `tokens` that lie in `blocks`.
    pub(crate) fn new(tokens: &[u32], blocks: &[BlockId]) -> Self {
        let mut hasher = blake3::Hasher::new();
        for list in [tokens, blocks] {
            hasher.update(&(list.len() as u64).to_le_bytes());
            for word in list {
                hasher.update(&word.to_le_bytes());
            }
        }
        Self(hasher.finalize().into())
    }
}

/// Why a claim is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Refusal {
    /// No hand-off of this id is known, not even a past one.
    Unknown,
    /// The hand-off was claimed before.
    Used,
    /// Nobody claimed it in time.
    Expired,
    /// It is a hand-off of other tokens or other blocks.
    Mismatch,
}

impl Refusal {
    const ALL: [(u8, Self); 4] =
        [(1, Self::Unknown), (2, Self::Used), (3, Self::Expired), (4, Self::Mismatch)];
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "no such request is known there",
            Self::Used => "they were used before, and each hand-off can be used once",
            Self::Expired => "their lease has ended and the blocks were given to other requests",
            Self::Mismatch => "they belong to another prompt or to other blocks",
        })
    }
}

/// One message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Message {
    Claim { id: String, ticket: Ticket },
    Granted { id: String, millis: u32 },
    Refused { id: String, refusal: Refusal },
    Release { id: String, ticket: Ticket },
}

/// Why bytes are not a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum DecodeError {
    #[error(
        "version {0} of the hand-off protocol, and this engine speaks version 1: use engines of one release"
    )]
    Version(u8),
    #[error("unknown kind {0} of hand-off message")]
    Kind(u8),
    #[error("hand-off message of the wrong length")]
    Length,
    #[error("hand-off message with an invalid field")]
    Field,
}

impl Message {
    /// The bytes of the message.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let (kind, id) = match self {
            Self::Claim { id, .. } => (CLAIM, id),
            Self::Granted { id, .. } => (GRANTED, id),
            Self::Refused { id, .. } => (REFUSED, id),
            Self::Release { id, .. } => (RELEASE, id),
        };
        let id = &id.as_bytes()[..id.len().min(ID_LEN_MAX)];
        let id_len = u16::try_from(id.len()).unwrap_or(u16::MAX);
        let mut bytes = vec![VERSION, kind];
        bytes.extend(id_len.to_le_bytes());
        bytes.extend(id);
        match self {
            Self::Claim { ticket, .. } | Self::Release { ticket, .. } => bytes.extend(ticket.0),
            Self::Granted { millis, .. } => bytes.extend(millis.to_le_bytes()),
            Self::Refused { refusal, .. } => {
                bytes.extend(Refusal::ALL.iter().filter(|(_, known)| known == refusal).map(|(code, _)| code));
            }
        }
        bytes
    }

    /// Reads a message.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let (&[version, kind], rest) = bytes.split_first_chunk().ok_or(DecodeError::Length)?;
        if version != VERSION {
            return Err(DecodeError::Version(version));
        }
        let (&id_len, rest) = rest.split_first_chunk().ok_or(DecodeError::Length)?;
        let id_len = usize::from(u16::from_le_bytes(id_len));
        if id_len > ID_LEN_MAX || id_len > rest.len() {
            return Err(DecodeError::Length);
        }
        let (id, body) = rest.split_at(id_len);
        let id = String::from_utf8(id.to_vec()).map_err(|_| DecodeError::Field)?;
        match kind {
            CLAIM => Ok(Self::Claim { id, ticket: Ticket(exactly(body)?) }),
            GRANTED => Ok(Self::Granted { id, millis: u32::from_le_bytes(exactly(body)?) }),
            REFUSED => {
                let [code] = exactly(body)?;
                let found = Refusal::ALL.iter().find(|(known, _)| *known == code);
                let (_, refusal) = *found.ok_or(DecodeError::Field)?;
                Ok(Self::Refused { id, refusal })
            }
            RELEASE => Ok(Self::Release { id, ticket: Ticket(exactly(body)?) }),
            kind => Err(DecodeError::Kind(kind)),
        }
    }
}

fn exactly<const N: usize>(bytes: &[u8]) -> Result<[u8; N], DecodeError> {
    bytes.try_into().map_err(|_| DecodeError::Length)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples() -> Vec<Message> {
        let ticket = Ticket::new(&[1, 2, 3], &[7]);
        let id = || "cmpl-ü".to_owned();
        let refused = Refusal::ALL.map(|(_, refusal)| Message::Refused { id: id(), refusal });
        let mut messages = vec![
            Message::Claim { id: id(), ticket },
            Message::Granted { id: String::new(), millis: 30_000 },
            Message::Release { id: "x".repeat(ID_LEN_MAX), ticket },
        ];
        messages.extend(refused);
        messages
    }

    #[test]
    fn every_message_survives_the_wire() {
        for message in samples() {
            assert_eq!(Message::decode(&message.encode()), Ok(message));
        }
    }

    #[test]
    fn cut_and_lengthened_messages_are_refused() {
        for message in samples() {
            let mut bytes = message.encode();
            for cut in 0..bytes.len() {
                assert!(Message::decode(&bytes[..cut]).is_err(), "{message:?} cut to {cut}");
            }
            bytes.push(0);
            assert_eq!(Message::decode(&bytes), Err(DecodeError::Length));
        }
    }

    #[test]
    fn hostile_fields_are_refused() {
        assert_eq!(Message::decode(&[9, 1, 0, 0]), Err(DecodeError::Version(9)));
        assert_eq!(Message::decode(&[1, 77, 0, 0]), Err(DecodeError::Kind(77)));
        assert_eq!(Message::decode(&[1, REFUSED, 0, 0, 99]), Err(DecodeError::Field));
        assert_eq!(Message::decode(&[1, REFUSED, 1, 0, 0xff, 1]), Err(DecodeError::Field));
        assert_eq!(Message::decode(&[1, CLAIM, 0xff, 0xff]), Err(DecodeError::Length));
    }

    #[test]
    fn a_ticket_tells_tokens_and_blocks_apart() {
        assert_eq!(Ticket::new(&[1], &[2]), Ticket::new(&[1], &[2]));
        assert_ne!(Ticket::new(&[1], &[2]), Ticket::new(&[2], &[1]));
        assert_ne!(Ticket::new(&[1, 2], &[]), Ticket::new(&[1], &[2]));
    }
}
