//! Bounded reading and writing of little-endian bytes.
//!
//! A decoder never trusts a length: counts are checked against the bytes that are really there before anything
//! is allocated, and nothing may be left over.

use alloc::string::String;
use alloc::vec::Vec;

/// Why bytes could not be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The message ends before its content does.
    #[error("the message ends after {at} bytes, inside {what}")]
    Truncated {
        /// What was being read.
        what: &'static str,
        /// Where the message ends.
        at: usize,
    },
    /// The content ends before the message does.
    #[error("{count} bytes left over behind the message")]
    Trailing {
        /// How many.
        count: usize,
    },
    /// A value that the format does not allow.
    #[error("{what} is {value}, which the format does not allow")]
    Invalid {
        /// Which field.
        what: &'static str,
        /// What it held.
        value: u64,
    },
    /// More than a limit of the format.
    #[error("{what}: {value} is over the limit of {max}")]
    TooLarge {
        /// Which field.
        what: &'static str,
        /// What it held.
        value: u64,
        /// What it may hold.
        max: u64,
    },
}

/// Takes values off the front of a message.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// At the start of `bytes`.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Bytes not read yet.
    #[must_use]
    pub fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// The next `len` bytes.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`].
    pub fn bytes(&mut self, what: &'static str, len: usize) -> Result<&'a [u8], DecodeError> {
        let rest = &self.bytes[self.at..];
        let taken = rest.get(..len).ok_or(DecodeError::Truncated { what, at: self.bytes.len() })?;
        self.at += len;
        Ok(taken)
    }

    /// The next `N` bytes.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`].
    pub fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], DecodeError> {
        let mut out = [0; N];
        out.copy_from_slice(self.bytes(what, N)?);
        Ok(out)
    }

    /// The next byte.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`].
    pub fn u8(&mut self, what: &'static str) -> Result<u8, DecodeError> {
        Ok(self.array::<1>(what)?[0])
    }

    /// The next 16-bit number.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`].
    pub fn u16(&mut self, what: &'static str) -> Result<u16, DecodeError> {
        Ok(u16::from_le_bytes(self.array(what)?))
    }

    /// The next 32-bit number.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`].
    pub fn u32(&mut self, what: &'static str) -> Result<u32, DecodeError> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    /// The next 64-bit number.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`].
    pub fn u64(&mut self, what: &'static str) -> Result<u64, DecodeError> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// A count of items that take at least `item_bytes` each, so that it cannot exceed what follows it.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`], [`DecodeError::TooLarge`] over `max`.
    pub fn count(&mut self, what: &'static str, item_bytes: usize, max: usize) -> Result<usize, DecodeError> {
        let raw = self.u32(what)?;
        let count = usize::try_from(raw).unwrap_or(usize::MAX);
        if count > max {
            return Err(DecodeError::TooLarge { what, value: u64::from(raw), max: max as u64 });
        }
        if count.saturating_mul(item_bytes) > self.remaining() {
            return Err(DecodeError::Truncated { what, at: self.bytes.len() });
        }
        Ok(count)
    }

    /// A length and so many bytes.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`], [`DecodeError::TooLarge`] over `max`.
    pub fn blob(&mut self, what: &'static str, max: usize) -> Result<&'a [u8], DecodeError> {
        let len = self.count(what, 1, max)?;
        self.bytes(what, len)
    }

    /// A length and so many bytes of UTF-8.
    ///
    /// # Errors
    /// As [`Reader::blob`], and [`DecodeError::Invalid`] with the place where the text breaks.
    pub fn text(&mut self, what: &'static str, max: usize) -> Result<String, DecodeError> {
        let bytes = self.blob(what, max)?;
        core::str::from_utf8(bytes)
            .map(String::from)
            .map_err(|e| DecodeError::Invalid { what, value: e.valid_up_to() as u64 })
    }

    /// Says that the message must end here.
    ///
    /// # Errors
    /// [`DecodeError::Trailing`].
    pub fn end(self) -> Result<(), DecodeError> {
        match self.remaining() {
            0 => Ok(()),
            count => Err(DecodeError::Trailing { count }),
        }
    }
}

/// Appends a length and `bytes`, as [`Reader::blob`] reads them.
///
/// # Panics
/// Over 4 GiB; all callers have far lower limits.
#[expect(
    clippy::expect_used,
    reason = "every field that goes to the wire is bounded where it enters the crate"
)]
pub fn put_blob(out: &mut Vec<u8>, bytes: &[u8]) {
    let len = u32::try_from(bytes.len()).expect("fields are bounded");
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(bytes);
}
