//! Headers of data connections.
//!
//! After the handshake each side sends headers of 32 bytes, each followed by a descriptor list (`descs_len` bytes) and a
//! payload (`payload_len` bytes): type (u8), status (u8), two zero bytes,
//! descs_len (u32), transfer (u64), slice (u32), span (u32), payload_len (u64).

use crate::codec::{DecodeError, Reader};
use crate::desc::DescList;
use crate::id::XferId;

/// Length of a header.
pub const HEADER_BYTES: usize = 32;
/// The longest descriptor list of one slice.
pub const DESCS_BYTES_MAX: u32 = 64 << 10;
/// The longest payload of one slice.
pub const PAYLOAD_MAX: u64 = 64 << 20;

/// What a header announces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "another kind is another version of the protocol")]
pub enum DataKind {
    /// The payload is for these spans of the receiver.
    Write,
    /// Please send these spans.
    ReadRequest,
    /// Here they are, in the payload; or none, with a status.
    ReadReply,
    /// The write of that slice ended with this status.
    Ack,
    /// Behind the payload of a `ReadReply` whose status was [`Status::Pending`]: how it ended.
    Verdict,
}

impl DataKind {
    fn has_descs(self) -> bool {
        matches!(self, Self::Write | Self::ReadRequest)
    }

    fn has_payload(self) -> bool {
        matches!(self, Self::Write | Self::ReadReply)
    }
}

/// How a slice ended at its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Status {
    /// Every byte is where it should be.
    Ok,
    /// A span is not inside a region that the target has; the region may have gone meanwhile.
    BadSpan,
    /// The payload does not have as many bytes as the spans.
    BadLength,
    /// The owner has revoked a block since the generation that the descriptor names.
    Stale,
    /// The region is for reading only.
    ReadOnly,
    /// Told by a `Verdict` behind the payload: memory may be revoked while it is sent.
    Pending,
}

/// A header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DataHeader {
    /// What it announces.
    pub kind: DataKind,
    /// How the slice ended, in replies.
    pub status: Status,
    /// The initiator's transfer.
    pub xfer: XferId,
    /// The number under which a slice of it was posted. A retry has another one.
    pub slice: u32,
    /// In a refusal, which span of the slice was refused; else 0.
    pub span: u32,
    /// Bytes of the descriptor list that follows.
    pub descs_len: u32,
    /// Bytes of the payload behind that.
    pub payload_len: u64,
}

impl DataHeader {
    /// A header for this slice, with nothing behind it.
    #[must_use]
    pub fn new(kind: DataKind, xfer: XferId, slice: u32) -> Self {
        Self { kind, status: Status::Ok, xfer, slice, span: 0, descs_len: 0, payload_len: 0 }
    }

    /// As bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[0] = match self.kind {
            DataKind::Write => 1,
            DataKind::ReadRequest => 2,
            DataKind::ReadReply => 3,
            DataKind::Ack => 4,
            DataKind::Verdict => 5,
        };
        out[1] = match self.status {
            Status::Ok => 0,
            Status::BadSpan => 1,
            Status::BadLength => 2,
            Status::Stale => 3,
            Status::ReadOnly => 4,
            Status::Pending => 5,
        };
        out[4..8].copy_from_slice(&self.descs_len.to_le_bytes());
        out[8..16].copy_from_slice(&self.xfer.to_u64().to_le_bytes());
        out[16..20].copy_from_slice(&self.slice.to_le_bytes());
        out[20..24].copy_from_slice(&self.span.to_le_bytes());
        out[24..].copy_from_slice(&self.payload_len.to_le_bytes());
        out
    }

    /// From bytes.
    ///
    /// # Errors
    /// [`DecodeError`] on unknown codes, on lengths over the limits, and where a kind has parts that it never has.
    pub fn decode(bytes: [u8; HEADER_BYTES]) -> Result<Self, DecodeError> {
        let mut r = Reader::new(&bytes);
        let kind = match r.u8("header type")? {
            1 => DataKind::Write,
            2 => DataKind::ReadRequest,
            3 => DataKind::ReadReply,
            4 => DataKind::Ack,
            5 => DataKind::Verdict,
            value => return Err(DecodeError::Invalid { what: "header type", value: u64::from(value) }),
        };
        let status = match r.u8("status")? {
            0 => Status::Ok,
            1 => Status::BadSpan,
            2 => Status::BadLength,
            3 => Status::Stale,
            4 => Status::ReadOnly,
            5 => Status::Pending,
            value => return Err(DecodeError::Invalid { what: "status", value: u64::from(value) }),
        };
        let _reserved = r.u16("reserved")?;
        let descs_len = r.u32("descriptor bytes")?;
        let xfer = XferId::from_u64(r.u64("transfer")?);
        let slice = r.u32("slice")?;
        let span = r.u32("span")?;
        let payload_len = r.u64("payload bytes")?;
        let descs_max = if kind.has_descs() { DESCS_BYTES_MAX } else { 0 };
        limit("descriptor bytes", u64::from(descs_len), u64::from(descs_max))?;
        limit("payload bytes", payload_len, if kind.has_payload() { PAYLOAD_MAX } else { 0 })?;
        Ok(Self { kind, status, xfer, slice, span, descs_len, payload_len })
    }
}

/// What stands at the front of the bytes that came on a data connection.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "a head is whole or it is not")]
pub enum Head {
    /// So many bytes more are needed, at least; what is there so far is right.
    Missing(usize),
    /// A header with its descriptors (none, in answers), in so many bytes. The payload follows.
    Whole {
        /// The header.
        header: DataHeader,
        /// Its descriptors. They still have to be checked against the regions.
        list: DescList,
        /// Bytes of both.
        len: usize,
    },
}

impl Head {
    /// Reads the head at the front of `bytes`. Every length is judged before anything is waited for, so `Missing`
    /// never asks for more than [`HEADER_BYTES`] and [`DESCS_BYTES_MAX`] together.
    ///
    /// # Errors
    /// [`DecodeError`] of the header or of the list, and where the list ends before `descs_len` does.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        Self::decode_with(bytes, &mut DescList::new())
    }

    /// The same, with the memory of `spare` for the list, which takes it along where the head is whole.
    ///
    /// # Errors
    /// As [`Head::decode`].
    pub fn decode_with(bytes: &[u8], spare: &mut DescList) -> Result<Self, DecodeError> {
        let Some((raw, rest)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
            return Ok(Self::Missing(HEADER_BYTES - bytes.len()));
        };
        let header = DataHeader::decode(*raw)?;
        let descs_len = usize::try_from(header.descs_len).unwrap_or(usize::MAX);
        let Some(descs) = rest.get(..descs_len) else {
            return Ok(Self::Missing(descs_len - rest.len()));
        };
        let list = if header.kind.has_descs() {
            let mut reader = Reader::new(descs);
            spare.decode_again(&mut reader)?;
            reader.end()?;
            core::mem::take(spare)
        } else {
            DescList::new()
        };
        Ok(Self::Whole { header, list, len: HEADER_BYTES + descs_len })
    }
}

fn limit(what: &'static str, value: u64, max: u64) -> Result<(), DecodeError> {
    if value > max { Err(DecodeError::TooLarge { what, value, max }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use alloc::vec;
    use alloc::vec::Vec;

    use proptest::prelude::*;

    use super::*;
    use crate::desc::Desc;
    use crate::id::RegionId;

    #[test]
    fn headers_come_back() {
        let mut header = DataHeader::new(DataKind::Write, XferId::new(1, 2), 3);
        (header.descs_len, header.payload_len) = (400, 1 << 20);
        assert_eq!(DataHeader::decode(header.encode()), Ok(header));
        let mut refusal = DataHeader::new(DataKind::ReadReply, XferId::new(9, 9), 0);
        (refusal.status, refusal.span) = (Status::BadSpan, 7);
        assert_eq!(DataHeader::decode(refusal.encode()), Ok(refusal));
    }

    #[test]
    fn parts_that_a_kind_never_has_are_refused() {
        let mut ack = DataHeader::new(DataKind::Ack, XferId::new(0, 0), 0);
        ack.payload_len = 1;
        assert!(DataHeader::decode(ack.encode()).is_err());
        let mut write = DataHeader::new(DataKind::Write, XferId::new(0, 0), 0);
        write.payload_len = u64::MAX;
        assert!(DataHeader::decode(write.encode()).is_err());
    }

    /// A request with some descriptors, as it goes over the wire.
    fn request(kind: DataKind, pages: u32) -> Vec<u8> {
        let list = DescList::from(Desc::paged(RegionId::new(1, 2), 64, 4096, 8192, (0..pages).collect()));
        let mut bytes = vec![0; HEADER_BYTES];
        list.encode(&mut bytes);
        let mut header = DataHeader::new(kind, XferId::new(3, 4), 5);
        header.descs_len = u32::try_from(bytes.len() - HEADER_BYTES).unwrap();
        header.payload_len = if kind == DataKind::Write { u64::from(pages) * 4096 } else { 0 };
        bytes[..HEADER_BYTES].copy_from_slice(&header.encode());
        bytes
    }

    #[test]
    fn a_head_is_whole_with_its_last_byte_and_says_what_is_missing_before() {
        let bytes = request(DataKind::Write, 9);
        for len in 0..bytes.len() {
            let Ok(Head::Missing(missing)) = Head::decode(&bytes[..len]) else { panic!("{len}") };
            assert!(missing > 0 && len + missing <= bytes.len());
        }
        let mut more = bytes.clone();
        more.extend([7; 100]);
        let Ok(Head::Whole { header, list, len }) = Head::decode(&more) else { panic!("whole") };
        assert_eq!((len, list.count(), header.payload_len), (bytes.len(), 9, 9 * 4096));
    }

    #[test]
    fn bytes_behind_the_list_are_refused() {
        let mut bytes = request(DataKind::ReadRequest, 3);
        let len = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]) + 1;
        bytes[4..8].copy_from_slice(&len.to_le_bytes());
        bytes.push(0);
        assert!(Head::decode(&bytes).is_err());
    }

    #[test]
    fn whichever_bit_flips_a_head_stays_within_its_limits() {
        let bytes = request(DataKind::Write, 4);
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            match Head::decode(&flipped) {
                Ok(Head::Missing(missing)) => assert!(missing <= DESCS_BYTES_MAX as usize),
                Ok(Head::Whole { header, len, .. }) => {
                    assert!(len <= flipped.len() && header.payload_len <= PAYLOAD_MAX);
                }
                Err(_) => {}
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_head_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(Head::Whole { len, .. }) = Head::decode(&bytes) {
                prop_assert!(len <= bytes.len());
            }
        }

        #[test]
        fn any_bytes_are_a_header_within_limits_or_an_error(bytes in any::<[u8; HEADER_BYTES]>()) {
            if let Ok(header) = DataHeader::decode(bytes) {
                prop_assert!(header.descs_len <= DESCS_BYTES_MAX && header.payload_len <= PAYLOAD_MAX);
            }
        }
    }
}
