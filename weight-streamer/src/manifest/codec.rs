//! The manifest as bytes. All numbers are little-endian.
//!
//! ```text
//! magic "HRWM" · version u16 · hash kind u8 (1 = BLAKE3-256) · reserved u8 (0)
//! chunk bytes u32 · objects u32 · tensors u32 · extensions u32
//! object:    kind u8 (1 = file) · flags u8 (bit 0: executable) · path (u16 + UTF-8) · size u64 · hash 32 bytes ·
//!            one 32-byte hash for each chunk
//! tensor:    name (u16 + UTF-8) · dtype u8 · rank u8 · dimensions u64 each · object u32 · begin u64 · len u64
//! extension: tag u16 (bit 15: must be understood) · len u32 · bytes
//! ```
//! The encoding is canonical: what decodes encodes to the same bytes again, so a hash over it names the model.

use super::{
    Extension, FileEntry, Hash, MAX_CHUNKS, MAX_ENCODED_BYTES, MAX_OBJECTS, MAX_TENSORS, Manifest,
    ManifestError, TensorEntry,
};
use crate::codec::{CodecError, Reader, put_text};
use crate::tensors::Dtype;

const MAGIC: &[u8; 4] = b"HRWM";
/// Version of the encoding that this program writes and reads.
pub const VERSION: u16 = 1;
const HASH_BLAKE3: u8 = 1;
const KIND_FILE: u8 = 1;
const FLAG_EXECUTABLE: u8 = 1;
const TAG_CRITICAL: u16 = 1 << 15;
const MAX_EXTENSIONS: usize = 64;
const OBJECT_BYTES_MIN: usize = 1 + 1 + 2 + 8 + 32;
const TENSOR_BYTES_MIN: usize = 2 + 1 + 1 + 4 + 8 + 8;
const EXTENSION_BYTES_MIN: usize = 2 + 4;

/// Why bytes are not a manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// It does not begin like a manifest.
    #[error("not a manifest")]
    Magic,
    /// Another version.
    #[error("manifest version {found}, this program reads {VERSION}; use the same release on both sides")]
    Version {
        /// The version found.
        found: u16,
    },
    /// Something that this version does not know and must not ignore.
    #[error("{what} {found} is not known to this release; a newer one may read it")]
    Unknown {
        /// What it is.
        what: &'static str,
        /// Its number.
        found: u32,
    },
    /// Longer than any manifest may be, or with counts that cannot be true.
    #[error("{0} is beyond the limit or the bytes that follow")]
    Limit(&'static str),
    /// The bytes break off, go on too long, or hold broken text.
    #[error("{0}")]
    Bytes(&'static str),
    /// Readable, but not true.
    #[error(transparent)]
    Invalid(#[from] ManifestError),
}

impl From<CodecError> for DecodeError {
    fn from(error: CodecError) -> Self {
        Self::Bytes(match error {
            CodecError::Short => "the manifest is cut short",
            CodecError::Text => "a name in the manifest is not UTF-8",
            CodecError::Trailing => "bytes follow the end of the manifest",
        })
    }
}

pub(super) fn encode(manifest: &Manifest) -> Vec<u8> {
    let mut out = Vec::with_capacity(64 + manifest.chunk_hashes.len() * 32 + manifest.files.len() * 96);
    let count = |len: usize| u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes();
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&[HASH_BLAKE3, 0]);
    out.extend_from_slice(&manifest.chunk_bytes.to_le_bytes());
    out.extend_from_slice(&count(manifest.files.len()));
    out.extend_from_slice(&count(manifest.tensors.len()));
    out.extend_from_slice(&count(manifest.extensions.len()));
    let mut hashes = manifest.chunk_hashes.iter();
    for file in &manifest.files {
        out.extend_from_slice(&[KIND_FILE, if file.executable { FLAG_EXECUTABLE } else { 0 }]);
        put_text(&mut out, &file.path, u16::MAX);
        out.extend_from_slice(&file.size.to_le_bytes());
        out.extend_from_slice(file.hash.as_bytes());
        let chunks = usize::try_from(file.size.div_ceil(u64::from(manifest.chunk_bytes))).unwrap_or(0);
        hashes.by_ref().take(chunks).for_each(|hash| out.extend_from_slice(hash.as_bytes()));
    }
    for tensor in &manifest.tensors {
        put_text(&mut out, &tensor.name, u16::MAX);
        out.extend_from_slice(&[tensor.dtype.code(), u8::try_from(tensor.shape.len()).unwrap_or(u8::MAX)]);
        tensor.shape.iter().for_each(|dimension| out.extend_from_slice(&dimension.to_le_bytes()));
        out.extend_from_slice(&tensor.file.to_le_bytes());
        out.extend_from_slice(&tensor.begin.to_le_bytes());
        out.extend_from_slice(&tensor.len.to_le_bytes());
    }
    for extension in &manifest.extensions {
        out.extend_from_slice(&extension.tag.to_le_bytes());
        out.extend_from_slice(&count(extension.bytes.len()));
        out.extend_from_slice(&extension.bytes);
    }
    out
}

pub(super) fn decode(bytes: &[u8]) -> Result<Manifest, DecodeError> {
    if bytes.len() > MAX_ENCODED_BYTES {
        return Err(DecodeError::Limit("the length of the manifest"));
    }
    let mut reader = Reader::new(bytes);
    if reader.array::<4>()? != *MAGIC {
        return Err(DecodeError::Magic);
    }
    match reader.u16()? {
        VERSION => {}
        found => return Err(DecodeError::Version { found }),
    }
    expect_one("hash kind", reader.u8()?, HASH_BLAKE3)?;
    expect_one("reserved field", reader.u8()?, 0)?;
    let chunk_bytes = reader.u32()?;
    super::check_chunk_bytes(chunk_bytes)?;
    let counts = [reader.u32()?, reader.u32()?, reader.u32()?];
    let objects = bounded("the number of files", counts[0], MAX_OBJECTS, &reader, OBJECT_BYTES_MIN)?;
    let (files, hashes) = read_objects(&mut reader, objects, chunk_bytes)?;
    let tensors = bounded("the number of tensors", counts[1], MAX_TENSORS, &reader, TENSOR_BYTES_MIN)?;
    let tensors = (0..tensors).map(|_| read_tensor(&mut reader)).collect::<Result<Vec<_>, _>>()?;
    let extensions =
        bounded("the number of extensions", counts[2], MAX_EXTENSIONS, &reader, EXTENSION_BYTES_MIN)?;
    let extensions = (0..extensions).map(|_| read_extension(&mut reader)).collect::<Result<Vec<_>, _>>()?;
    reader.end()?;
    Ok(Manifest::with_extensions(chunk_bytes, files, tensors, hashes, extensions)?)
}

fn expect_one(what: &'static str, found: u8, known: u8) -> Result<(), DecodeError> {
    if found == known { Ok(()) } else { Err(DecodeError::Unknown { what, found: u32::from(found) }) }
}

/// A count is believed only if the limit allows it and the bytes for it can still follow.
fn bounded(
    what: &'static str,
    count: u32,
    limit: usize,
    reader: &Reader<'_>,
    each: usize,
) -> Result<usize, DecodeError> {
    let count = usize::try_from(count).map_err(|_| DecodeError::Limit(what))?;
    if count > limit || count.checked_mul(each).is_none_or(|bytes| bytes > reader.remaining()) {
        return Err(DecodeError::Limit(what));
    }
    Ok(count)
}

fn read_objects(
    reader: &mut Reader<'_>,
    count: usize,
    chunk_bytes: u32,
) -> Result<(Vec<FileEntry>, Vec<Hash>), DecodeError> {
    let (mut files, mut hashes) = (Vec::with_capacity(count), Vec::new());
    for _ in 0..count {
        expect_one("object kind", reader.u8()?, KIND_FILE)?;
        let flags = reader.u8()?;
        if flags & !FLAG_EXECUTABLE != 0 {
            return Err(DecodeError::Unknown { what: "file flags", found: u32::from(flags) });
        }
        let path = reader.text()?.to_owned();
        let size = reader.u64()?;
        let hash = Hash::from_bytes(reader.array()?);
        files.push(FileEntry::new(path, size, flags & FLAG_EXECUTABLE != 0, hash));
        let chunks = u32::try_from(size.div_ceil(u64::from(chunk_bytes)))
            .map_err(|_| DecodeError::Limit("the number of chunks"))?;
        let chunks = bounded("the number of chunks", chunks, MAX_CHUNKS, reader, 32)?;
        for _ in 0..chunks {
            hashes.push(Hash::from_bytes(reader.array()?));
        }
    }
    Ok((files, hashes))
}

fn read_tensor(reader: &mut Reader<'_>) -> Result<TensorEntry, DecodeError> {
    let name = reader.text()?.to_owned();
    let code = reader.u8()?;
    let dtype = Dtype::from_code(code)
        .ok_or_else(|| DecodeError::Unknown { what: "dtype", found: u32::from(code) })?;
    let rank = u32::from(reader.u8()?);
    let rank = bounded("the rank of a tensor", rank, super::MAX_RANK, reader, 8)?;
    let shape = (0..rank).map(|_| reader.u64()).collect::<Result<Vec<_>, _>>()?;
    Ok(TensorEntry::new(name, dtype, shape, reader.u32()?, reader.u64()?, reader.u64()?))
}

fn read_extension(reader: &mut Reader<'_>) -> Result<Extension, DecodeError> {
    let tag = reader.u16()?;
    if tag & TAG_CRITICAL != 0 {
        return Err(DecodeError::Unknown { what: "extension", found: u32::from(tag) });
    }
    let len = usize::try_from(reader.u32()?).map_err(|_| DecodeError::Limit("an extension"))?;
    Ok(Extension { tag, bytes: reader.bytes(len)?.to_vec() })
}

#[cfg(test)]
#[path = "codec_tests.rs"]
mod tests;
