//! Headers of data connections.
//!
//! After the preamble and a [`DataHello`], each side sends headers of 32 bytes, each followed by a descriptor
//! list (`descs_len` bytes) and a payload (`payload_len` bytes): type (u8), status (u8), two zero bytes,
//! descs_len (u32), transfer (u64), slice (u32), span (u32), payload_len (u64).

use crate::codec::{DecodeError, Reader};
use crate::id::{Incarnation, RailId, XferId};

/// Length of a header.
pub const HEADER_BYTES: usize = 32;
/// Length of the greeting.
pub const HELLO_BYTES: usize = 32;
/// The longest descriptor list of one slice.
pub const DESCS_BYTES_MAX: u32 = 64 << 10;
/// The longest payload of one slice.
pub const PAYLOAD_MAX: u64 = 64 << 20;

/// Who opened a data connection, and the word it got on the control connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DataHello {
    /// The sender.
    pub incarnation: Incarnation,
    /// From the receiver's `Hello`.
    pub token: u64,
    /// What both sides call this connection from here on.
    pub rail: RailId,
}

impl DataHello {
    /// All fields.
    #[must_use]
    pub fn new(incarnation: Incarnation, token: u64, rail: RailId) -> Self {
        Self { incarnation, token, rail }
    }

    /// As bytes.
    #[must_use]
    pub fn encode(self) -> [u8; HELLO_BYTES] {
        let mut out = [0; HELLO_BYTES];
        out[..16].copy_from_slice(&self.incarnation.to_bytes());
        out[16..24].copy_from_slice(&self.token.to_le_bytes());
        out[24..].copy_from_slice(&self.rail.to_u64().to_le_bytes());
        out
    }

    /// From bytes.
    ///
    /// # Errors
    /// None today; every 32 bytes are a greeting, right or wrong.
    pub fn decode(bytes: [u8; HELLO_BYTES]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(&bytes);
        let incarnation = Incarnation::from_bytes(reader.array("incarnation")?);
        let token = reader.u64("token")?;
        Ok(Self { incarnation, token, rail: RailId::from_u64(reader.u64("rail")?) })
    }
}

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
        };
        out[1] = match self.status {
            Status::Ok => 0,
            Status::BadSpan => 1,
            Status::BadLength => 2,
            Status::Stale => 3,
            Status::ReadOnly => 4,
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
            value => return Err(DecodeError::Invalid { what: "header type", value: u64::from(value) }),
        };
        let status = match r.u8("status")? {
            0 => Status::Ok,
            1 => Status::BadSpan,
            2 => Status::BadLength,
            3 => Status::Stale,
            4 => Status::ReadOnly,
            value => return Err(DecodeError::Invalid { what: "status", value: u64::from(value) }),
        };
        let _reserved = r.u16("reserved")?;
        let descs_len = r.u32("descriptor bytes")?;
        let xfer = XferId::from_u64(r.u64("transfer")?);
        let slice = r.u32("slice")?;
        let span = r.u32("span")?;
        let payload_len = r.u64("payload bytes")?;
        let has_descs = matches!(kind, DataKind::Write | DataKind::ReadRequest);
        let has_payload = matches!(kind, DataKind::Write | DataKind::ReadReply);
        limit(
            "descriptor bytes",
            u64::from(descs_len),
            if has_descs { u64::from(DESCS_BYTES_MAX) } else { 0 },
        )?;
        limit("payload bytes", payload_len, if has_payload { PAYLOAD_MAX } else { 0 })?;
        Ok(Self { kind, status, xfer, slice, span, descs_len, payload_len })
    }
}

fn limit(what: &'static str, value: u64, max: u64) -> Result<(), DecodeError> {
    if value > max { Err(DecodeError::TooLarge { what, value, max }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn headers_come_back() {
        let mut header = DataHeader::new(DataKind::Write, XferId::new(1, 2), 3);
        (header.descs_len, header.payload_len) = (400, 1 << 20);
        assert_eq!(DataHeader::decode(header.encode()), Ok(header));
        let mut refusal = DataHeader::new(DataKind::ReadReply, XferId::new(9, 9), 0);
        (refusal.status, refusal.span) = (Status::BadSpan, 7);
        assert_eq!(DataHeader::decode(refusal.encode()), Ok(refusal));
        let hello = DataHello::new(Incarnation::from_bytes([1; 16]), 42, RailId::new(3, 1));
        assert_eq!(DataHello::decode(hello.encode()), Ok(hello));
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

    proptest! {
        #[test]
        fn any_bytes_are_a_header_within_limits_or_an_error(bytes in any::<[u8; HEADER_BYTES]>()) {
            if let Ok(header) = DataHeader::decode(bytes) {
                prop_assert!(header.descs_len <= DESCS_BYTES_MAX && header.payload_len <= PAYLOAD_MAX);
            }
        }
    }
}
