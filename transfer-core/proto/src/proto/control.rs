//! Frames of the control connection: length (u32, of what follows), type (u8), content.

use alloc::vec::Vec;

use crate::codec::{DecodeError, Reader, put_blob};
use crate::id::{CounterId, Incarnation, RailId, RegionId};
use crate::proto::metadata::{AgentMetadata, RegionInfo};
use crate::proto::rails::RAILS_MAX;

/// The longest frame: a handshake with as many regions as an agent may have.
pub const FRAME_MAX: usize = 8 << 20;
/// The longest notification.
pub const NOTIF_MAX: usize = 64 << 10;
/// Bytes in front of a frame's content.
const HEADER: usize = 4;

/// Why an agent leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Farewell {
    /// It is shutting down, or its application let go of the peer.
    Closing,
    /// Another connection between the same two agents stands.
    Duplicate,
    /// It does not accept peers from there without authentication.
    NotAllowed,
    /// What the peer sent broke the protocol.
    Protocol,
}

impl Farewell {
    fn code(self) -> u8 {
        match self {
            Self::Closing => 0,
            Self::Duplicate => 1,
            Self::NotAllowed => 2,
            Self::Protocol => 3,
        }
    }
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Frame {
    /// Who I am, and a word that later connections of the peer must show.
    Hello {
        /// All about the sender.
        metadata: AgentMetadata,
        /// What the peer's further connections must show.
        token: u64,
    },
    /// All further connections stand; from the side that opened this one.
    Ready,
    /// Bytes for the application.
    Notif(Vec<u8>),
    /// A transfer that ends with this has landed; count it.
    Bump {
        /// The receiver's counter.
        counter: CounterId,
        /// By how much.
        by: u64,
    },
    /// A region was registered.
    RegionAdd(RegionInfo),
    /// A region goes; its generations are void already.
    RegionDel(RegionId),
    /// I live.
    Ping,
    /// Answer when you have taken in what came before.
    Sync,
    /// I have.
    Synced,
    /// This rail is closed at my end: nothing that comes on it lands any more. Close yours, and say so too.
    RailClosed(RailId),
    /// I go.
    Bye {
        /// Why.
        farewell: Farewell,
        /// Who says it, since a refused peer may not know yet.
        incarnation: Incarnation,
    },
}

const HELLO: u8 = 1;
const READY: u8 = 2;
const NOTIF: u8 = 3;
const REGION_ADD: u8 = 4;
const REGION_DEL: u8 = 5;
const PING: u8 = 7;
const BYE: u8 = 8;
const SYNC: u8 = 9;
const SYNCED: u8 = 10;
const RAIL_CLOSED: u8 = 11;
const BUMP: u8 = 12;

impl Frame {
    /// Appends the frame with its length.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&[0; HEADER]);
        match self {
            Self::Hello { metadata, token } => {
                out.push(HELLO);
                out.extend_from_slice(&token.to_le_bytes());
                metadata.encode(out);
            }
            Self::Ready => out.push(READY),
            Self::Notif(bytes) => {
                out.push(NOTIF);
                put_blob(out, bytes);
            }
            Self::RegionAdd(info) => {
                out.push(REGION_ADD);
                info.encode(out);
            }
            Self::RegionDel(id) => put_id(out, REGION_DEL, id.to_u64()),
            Self::RailClosed(id) => put_id(out, RAIL_CLOSED, id.to_u64()),
            Self::Bump { counter, by } => {
                put_id(out, BUMP, counter.to_u64());
                out.extend_from_slice(&by.to_le_bytes());
            }
            Self::Ping => out.push(PING),
            Self::Sync => out.push(SYNC),
            Self::Synced => out.push(SYNCED),
            Self::Bye { farewell, incarnation } => {
                out.extend_from_slice(&[BYE, farewell.code()]);
                out.extend_from_slice(&incarnation.to_bytes());
            }
        }
        let len = u32::try_from(out.len() - start - HEADER).unwrap_or(u32::MAX);
        out[start..start + HEADER].copy_from_slice(&len.to_le_bytes());
    }

    fn decode(content: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(content);
        let r = &mut reader;
        let frame = match r.u8("frame type")? {
            HELLO => {
                let token = r.u64("token")?;
                Self::Hello { token, metadata: AgentMetadata::decode(r)? }
            }
            READY => Self::Ready,
            NOTIF => Self::Notif(r.blob("notification", NOTIF_MAX)?.to_vec()),
            REGION_ADD => Self::RegionAdd(RegionInfo::decode(r)?),
            REGION_DEL => Self::RegionDel(RegionId::from_u64(r.u64("region")?)),
            BUMP => {
                let counter = CounterId::from_u64(r.u64("counter")?);
                Self::Bump { counter, by: r.u64("count")? }
            }
            PING => Self::Ping,
            SYNC => Self::Sync,
            SYNCED => Self::Synced,
            RAIL_CLOSED => Self::RailClosed(rail(r.u64("rail")?)?),
            BYE => {
                let farewell = match r.u8("farewell")? {
                    0 => Farewell::Closing,
                    1 => Farewell::Duplicate,
                    2 => Farewell::NotAllowed,
                    3 => Farewell::Protocol,
                    value => {
                        return Err(DecodeError::Invalid { what: "farewell", value: u64::from(value) });
                    }
                };
                Self::Bye { farewell, incarnation: Incarnation::from_bytes(r.array("incarnation")?) }
            }
            value => return Err(DecodeError::Invalid { what: "frame type", value: u64::from(value) }),
        };
        reader.end()?;
        Ok(frame)
    }

    /// What it is called in an error.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Hello { .. } => "Hello",
            Self::Ready => "Ready",
            Self::Notif(_) => "Notif",
            Self::RegionAdd(_) => "RegionAdd",
            Self::RegionDel(_) => "RegionDel",
            Self::Bump { .. } => "Bump",
            Self::Ping => "Ping",
            Self::Sync => "Sync",
            Self::Synced => "Synced",
            Self::RailClosed(_) => "RailClosed",
            Self::Bye { .. } => "Bye",
        }
    }
}

fn put_id(out: &mut Vec<u8>, tag: u8, id: u64) {
    out.push(tag);
    out.extend_from_slice(&id.to_le_bytes());
}

fn rail(raw: u64) -> Result<RailId, DecodeError> {
    let (id, max) = (RailId::from_u64(raw), u64::from(RAILS_MAX) - 1);
    let value = u64::from(id.slot());
    if value > max { Err(DecodeError::TooLarge { what: "rail", value, max }) } else { Ok(id) }
}

/// Cuts a stream of bytes into frames. Holds at most one frame that is not complete.
#[derive(Debug, Default)]
pub struct Deframer {
    held: Vec<u8>,
    /// Where the next frame starts in `held`.
    start: usize,
}

impl Deframer {
    /// Takes bytes off the connection.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.held.drain(..self.start);
            self.start = 0;
        }
        self.held.extend_from_slice(bytes);
    }

    /// The next complete frame.
    ///
    /// # Errors
    /// [`DecodeError`]; the connection cannot go on after it.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, DecodeError> {
        let rest = &self.held[self.start..];
        let Some((header, rest)) = rest.split_first_chunk::<HEADER>() else { return Ok(None) };
        let len = u32::from_le_bytes(*header);
        let size = usize::try_from(len).unwrap_or(usize::MAX);
        if size > FRAME_MAX {
            let (what, max) = ("frame length", FRAME_MAX as u64);
            return Err(DecodeError::TooLarge { what, value: u64::from(len), max });
        }
        let Some(content) = rest.get(..size) else { return Ok(None) };
        let frame = Frame::decode(content)?;
        self.start += HEADER + size;
        Ok(Some(frame))
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use proptest::prelude::*;

    use super::*;
    use crate::proto::metadata::tests::sample;

    fn all() -> Vec<Frame> {
        let metadata = sample();
        vec![
            Frame::RegionAdd(metadata.regions[0].clone()),
            Frame::Hello { metadata, token: 99 },
            Frame::Ready,
            Frame::Notif(vec![]),
            Frame::Notif(vec![5; NOTIF_MAX]),
            Frame::Bump { counter: CounterId::new(1, 2), by: 3 },
            Frame::RegionDel(RegionId::new(1, 2)),
            Frame::Ping,
            Frame::Sync,
            Frame::Synced,
            Frame::RailClosed(RailId::new(RAILS_MAX - 1, 5)),
            Frame::Bye { farewell: Farewell::Duplicate, incarnation: Incarnation::from_bytes([3; 16]) },
        ]
    }

    #[test]
    fn frames_come_back_however_the_stream_is_cut() {
        let mut stream = vec![];
        all().iter().for_each(|frame| frame.encode(&mut stream));
        for step in [1, 2, 7, 1000, stream.len()] {
            let (mut deframer, mut got) = (Deframer::default(), vec![]);
            for part in stream.chunks(step) {
                deframer.push(part);
                while let Some(frame) = deframer.next_frame().unwrap() {
                    got.push(frame);
                }
            }
            assert_eq!(got, all(), "in steps of {step}");
        }
    }

    #[test]
    fn a_huge_length_is_refused_before_its_bytes_come() {
        let mut deframer = Deframer::default();
        deframer.push(&u32::MAX.to_le_bytes());
        assert!(matches!(deframer.next_frame(), Err(DecodeError::TooLarge { what: "frame length", .. })));
    }

    #[test]
    fn a_rail_that_cannot_be_is_refused() {
        let (mut deframer, mut bytes) = (Deframer::default(), vec![]);
        Frame::RailClosed(RailId::new(RAILS_MAX, 0)).encode(&mut bytes);
        deframer.push(&bytes);
        assert!(matches!(deframer.next_frame(), Err(DecodeError::TooLarge { what: "rail", .. })));
    }

    proptest! {
        #[test]
        fn any_bytes_are_frames_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut deframer = Deframer::default();
            deframer.push(&bytes);
            while let Ok(Some(_)) = deframer.next_frame() {}
        }

        #[test]
        fn a_flipped_bit_never_panics(
            which in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), bit in 0_u8..8
        ) {
            let mut bytes = vec![];
            which.get(&all()).encode(&mut bytes);
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            let mut deframer = Deframer::default();
            deframer.push(&bytes);
            let _result = deframer.next_frame();
        }
    }
}
