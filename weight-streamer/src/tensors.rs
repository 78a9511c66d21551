//! A strict reader of safetensors headers.
//!
//! Stricter than the format's own library where that accepts what two readers may understand in two ways: duplicate
//! tensor names (also through an escape), duplicate or unknown fields, entries as arrays, a null `__metadata__`, a
//! shape whose product overflows before a zero saves it. Everything accepted here is accepted there too.

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use std::collections::HashSet;
use std::fmt;

/// Longest header.
pub const MAX_HEADER_BYTES: u64 = 100_000_000;

/// Element type of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the names are those of the safetensors format")]
#[rustfmt::skip]
pub enum Dtype {
    Bool, F4, F6E2m3, F6E3m2, U8, I8, F8E5m2, F8E4m3, F8E8m0, F8E4m3fnuz, F8E5m2fnuz,
    I16, U16, F16, Bf16, I32, U32, F32, C64, F64, I64, U64,
}

/// Name, bits of one element, and the type. The position, from 1, is the code in a manifest: only append.
const DTYPES: [(&str, u64, Dtype); 22] = [
    ("BOOL", 8, Dtype::Bool),
    ("F4", 4, Dtype::F4),
    ("F6_E2M3", 6, Dtype::F6E2m3),
    ("F6_E3M2", 6, Dtype::F6E3m2),
    ("U8", 8, Dtype::U8),
    ("I8", 8, Dtype::I8),
    ("F8_E5M2", 8, Dtype::F8E5m2),
    ("F8_E4M3", 8, Dtype::F8E4m3),
    ("F8_E8M0", 8, Dtype::F8E8m0),
    ("F8_E4M3FNUZ", 8, Dtype::F8E4m3fnuz),
    ("F8_E5M2FNUZ", 8, Dtype::F8E5m2fnuz),
    ("I16", 16, Dtype::I16),
    ("U16", 16, Dtype::U16),
    ("F16", 16, Dtype::F16),
    ("BF16", 16, Dtype::Bf16),
    ("I32", 32, Dtype::I32),
    ("U32", 32, Dtype::U32),
    ("F32", 32, Dtype::F32),
    ("C64", 64, Dtype::C64),
    ("F64", 64, Dtype::F64),
    ("I64", 64, Dtype::I64),
    ("U64", 64, Dtype::U64),
];

impl Dtype {
    fn from_name(name: &str) -> Option<Self> {
        DTYPES.iter().find(|(known, ..)| *known == name).map(|&(_, _, dtype)| dtype)
    }

    /// Its name in the format.
    #[must_use]
    pub fn name(self) -> &'static str {
        DTYPES.iter().find(|(.., dtype)| *dtype == self).map_or("?", |&(name, ..)| name)
    }

    /// Its number in a manifest.
    pub(crate) fn code(self) -> u8 {
        let index = DTYPES.iter().position(|(.., dtype)| *dtype == self).unwrap_or(usize::MAX - 1);
        u8::try_from(index + 1).unwrap_or(0)
    }

    /// The type with this number in a manifest.
    pub(crate) fn from_code(code: u8) -> Option<Self> {
        DTYPES.get(usize::from(code).checked_sub(1)?).map(|&(_, _, dtype)| dtype)
    }

    /// Bytes of a tensor of this shape; none when that overflows or is no whole number.
    ///
    /// Zeros are left out of the product first, so that the answer does not depend on their place in the shape.
    #[must_use]
    pub fn bytes_of(self, shape: &[u64]) -> Option<u64> {
        let bits = DTYPES.iter().find(|(.., dtype)| *dtype == self).map(|&(_, bits, _)| bits)?;
        let elements =
            shape.iter().filter(|&&dim| dim != 0).try_fold(1_u64, |product, &dim| product.checked_mul(dim));
        let elements = if shape.contains(&0) { elements.map(|_| 0) } else { elements };
        let bits = elements?.checked_mul(bits)?;
        bits.is_multiple_of(8).then_some(bits / 8)
    }
}

/// A tensor of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Tensor {
    /// Name.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions.
    pub shape: Vec<u64>,
    /// Where its bytes begin in the file (not in the data buffer).
    pub begin: u64,
    /// How many bytes it has.
    pub len: u64,
}

/// What is wrong with a safetensors file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TensorError {
    /// Shorter than its length field, or than its header.
    #[error("the file ends inside its header")]
    HeaderCut,
    /// The header is longer than allowed.
    #[error("the header says it has {0} bytes, more than {MAX_HEADER_BYTES}")]
    HeaderTooLong(u64),
    /// Not UTF-8, not JSON, or not what a header may hold.
    #[error("the header cannot be read: {0}")]
    Header(String),
    /// One tensor does not fit its own description or its neighbour.
    #[error("tensor {name:?}: {reason}")]
    Tensor {
        /// The tensor.
        name: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// Data after the last tensor, or missing data.
    #[error("the tensors end at byte {expected}, the file at byte {found}")]
    Length {
        /// Where the last tensor ends.
        expected: u64,
        /// Size of the file.
        found: u64,
    },
}

/// How long the header is, from the first eight bytes of the file.
///
/// # Errors
/// When the file is too short for it, or the header too long.
pub fn header_len(first: &[u8], file_len: u64) -> Result<u64, TensorError> {
    let field = first.first_chunk::<8>().ok_or(TensorError::HeaderCut)?;
    let len = u64::from_le_bytes(*field);
    if len > MAX_HEADER_BYTES {
        return Err(TensorError::HeaderTooLong(len));
    }
    if len > file_len.saturating_sub(8) { Err(TensorError::HeaderCut) } else { Ok(len) }
}

/// The tensors of a file of `file_len` bytes with this header (the JSON behind the length field), sorted by offset.
///
/// # Errors
/// What is wrong with the header.
pub fn parse_header(header: &[u8], file_len: u64) -> Result<Vec<Tensor>, TensorError> {
    let text = std::str::from_utf8(header).map_err(|error| TensorError::Header(error.to_string()))?;
    let Header(entries) =
        serde_json::from_str(text).map_err(|error| TensorError::Header(error.to_string()))?;
    let data =
        u64::try_from(header.len()).ok().and_then(|len| len.checked_add(8)).ok_or(TensorError::HeaderCut)?;
    let mut entries = entries;
    entries.sort_by(|a, b| (a.1.offsets, &a.0).cmp(&(b.1.offsets, &b.0)));
    let mut tensors = Vec::with_capacity(entries.len());
    let mut end = 0;
    for (name, entry) in entries {
        let fail = |reason| TensorError::Tensor { name: name.clone(), reason };
        if entry.offsets.0 != end {
            return Err(fail("it does not begin where the one before it ends"));
        }
        let len = entry.offsets.1.checked_sub(end).ok_or_else(|| fail("it ends before it begins"))?;
        if entry.dtype.bytes_of(&entry.shape) != Some(len) {
            return Err(fail("its offsets do not fit its shape and dtype"));
        }
        let begin = data.checked_add(end).ok_or_else(|| fail("its offset is too large"))?;
        tensors.push(Tensor { dtype: entry.dtype, shape: entry.shape, begin, len, name });
        end = entry.offsets.1;
    }
    let expected = data.saturating_add(end);
    if expected == file_len { Ok(tensors) } else { Err(TensorError::Length { expected, found: file_len }) }
}

/// The whole header: tensor entries in file order, names unique.
struct Header(Vec<(String, Entry)>);

struct Entry {
    dtype: Dtype,
    shape: Vec<u64>,
    offsets: (u64, u64),
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = Header;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
        let (mut seen, mut entries) = (HashSet::new(), Vec::new());
        while let Some(name) = map.next_key::<String>()? {
            if !seen.insert(name.clone()) {
                return Err(A::Error::custom(format_args!("the name {name:?} is there twice")));
            }
            if name == "__metadata__" {
                map.next_value::<Metadata>()?;
            } else {
                entries.push((name, map.next_value()?));
            }
        }
        Ok(Header(entries))
    }
}

/// `__metadata__`: read only to see that it is what it may be.
struct Metadata;

impl<'de> Deserialize<'de> for Metadata {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Texts;
        impl<'de> Visitor<'de> for Texts {
            type Value = Metadata;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of texts")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Metadata, A::Error> {
                let mut seen = HashSet::new();
                while let Some((key, _)) = map.next_entry::<String, String>()? {
                    if !seen.insert(key) {
                        return Err(A::Error::custom("a key of __metadata__ is there twice"));
                    }
                }
                Ok(Metadata)
            }
        }
        deserializer.deserialize_map(Texts)
    }
}

impl<'de> Deserialize<'de> for Entry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Entry;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with dtype, shape and data_offsets")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entry, A::Error> {
                let (mut dtype, mut shape, mut offsets) = (None, None, None);
                while let Some(key) = map.next_key::<String>()? {
                    let again = match key.as_str() {
                        "dtype" => {
                            let name: String = map.next_value()?;
                            let known = Dtype::from_name(&name);
                            let known = known
                                .ok_or_else(|| A::Error::custom(format_args!("unknown dtype {name:?}")))?;
                            dtype.replace(known).is_some()
                        }
                        "shape" => shape.replace(map.next_value::<Vec<u64>>()?).is_some(),
                        "data_offsets" => offsets.replace(map.next_value::<(u64, u64)>()?).is_some(),
                        _ => return Err(A::Error::custom(format_args!("unknown field {key:?}"))),
                    };
                    if again {
                        return Err(A::Error::custom(format_args!("the field {key:?} is there twice")));
                    }
                }
                match (dtype, shape, offsets) {
                    (Some(dtype), Some(shape), Some(offsets)) => Ok(Entry { dtype, shape, offsets }),
                    _ => Err(A::Error::custom("dtype, shape or data_offsets is missing")),
                }
            }
        }
        deserializer.deserialize_map(Fields)
    }
}

#[cfg(test)]
#[path = "tensors_tests.rs"]
mod tests;
