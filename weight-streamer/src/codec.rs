//! Reading and writing little-endian fields of our own small formats, with bounds on everything.

/// Why bytes cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CodecError {
    /// The bytes end inside a field.
    #[error("the bytes end early")]
    Short,
    /// A text is not UTF-8.
    #[error("a text is not UTF-8")]
    Text,
    /// Bytes are left over.
    #[error("bytes are left over at the end")]
    Trailing,
}

/// Reads fields from the front of a slice.
#[derive(Debug)]
pub(crate) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) const fn remaining(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Result<&'a [u8], CodecError> {
        let (head, tail) = self.0.split_at_checked(len).ok_or(CodecError::Short)?;
        self.0 = tail;
        Ok(head)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], CodecError> {
        let (head, tail) = self.0.split_first_chunk::<N>().ok_or(CodecError::Short)?;
        self.0 = tail;
        Ok(*head)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, CodecError> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, CodecError> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, CodecError> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, CodecError> {
        self.array().map(u64::from_le_bytes)
    }

    /// A text behind its 16-bit length.
    pub(crate) fn text(&mut self) -> Result<&'a str, CodecError> {
        let len = usize::from(self.u16()?);
        std::str::from_utf8(self.bytes(len)?).map_err(|_| CodecError::Text)
    }

    pub(crate) const fn end(&self) -> Result<(), CodecError> {
        if self.0.is_empty() { Ok(()) } else { Err(CodecError::Trailing) }
    }
}

/// Appends a text behind its 16-bit length, cut at a character border when it is longer than `max` bytes.
pub(crate) fn put_text(out: &mut Vec<u8>, text: &str, max: u16) {
    let text = &text[..text.floor_char_boundary(usize::from(max))];
    out.extend_from_slice(&u16::try_from(text.len()).unwrap_or(max).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}
