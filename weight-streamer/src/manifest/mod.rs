//! What a model directory is made of: files, tensors inside them, fixed-size chunks, and one hash over all of it.
//!
//! A manifest is the contract between a source and a receiver. The receiver learns one root hash from someone it
//! trusts (or from the source itself) and can then check every byte it is given, from whoever gave it:
//! root hash → manifest bytes → chunk hash → chunk. Nothing else about a source has to be believed.
//!
//! The words are wider than what is moved today. An *object* is a named run of bytes; today each is a file, but a
//! tensor that lives only in GPU memory is an object of another kind. Tensors point into objects, so a receiver that
//! wants only its own slices can compute byte ranges from shapes. Hash kind, chunk size, object kinds and
//! extensions are all stated in the encoding, and what a version does not know it refuses by name.
//!
//! This module is pure: no files, no clock, no unsafe.

mod codec;
mod path;

pub use codec::{DecodeError, VERSION};
pub use path::{MAX_PATH_BYTES, PathError, RESERVED_PREFIX, check_path};

use crate::tensors::Dtype;
use std::fmt;
use std::str::FromStr;

/// Chunk size when nothing else is asked for.
pub const DEFAULT_CHUNK_BYTES: u32 = 4 << 20;
/// Smallest chunk size; also the step in which chunk sizes may grow.
pub const MIN_CHUNK_BYTES: u32 = 4 << 10;
/// Largest chunk size.
pub const MAX_CHUNK_BYTES: u32 = 64 << 20;
/// Most files of one manifest.
pub const MAX_OBJECTS: usize = 1 << 20;
/// Most tensors of one manifest.
pub const MAX_TENSORS: usize = 1 << 21;
/// Most chunks of one manifest.
pub const MAX_CHUNKS: usize = 1 << 22;
/// Most bytes all files of one manifest may have together (1 PiB).
pub const MAX_TOTAL_BYTES: u64 = 1 << 50;
/// Longest encoded manifest.
pub const MAX_ENCODED_BYTES: usize = 256 << 20;
/// Longest tensor name.
pub const MAX_NAME_BYTES: usize = 4096;
/// Most dimensions of a tensor.
pub const MAX_RANK: usize = 32;

/// A BLAKE3 hash, shown as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Hash([u8; 32]);

impl Hash {
    /// The hash of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// A hash that came from elsewhere.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The raw 32 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hash({self})")
    }
}

/// A text that is not a hash.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a hash: expected 64 hexadecimal digits, as `weight-streamer manifest DIR` prints them")]
pub struct ParseHashError(());

impl FromStr for Hash {
    type Err = ParseHashError;

    fn from_str(text: &str) -> Result<Self, ParseHashError> {
        let digits = text.as_bytes();
        if digits.len() != 64 || !digits.iter().all(u8::is_ascii_hexdigit) {
            return Err(ParseHashError(()));
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| ParseHashError(()))?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| ParseHashError(()))?;
        }
        Ok(Self(bytes))
    }
}

/// One file of the model.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct FileEntry {
    /// Relative path with `/` between its parts; see [`check_path`].
    pub path: String,
    /// Length in bytes.
    pub size: u64,
    /// Whether the file may be executed. The other mode bits are the receiver's own business.
    pub executable: bool,
    /// Hash of the whole file, as `b3sum` prints it.
    pub hash: Hash,
    /// Id of the file's first chunk; an empty file has no chunk.
    first_chunk: u32,
}

impl FileEntry {
    /// A file of a manifest that is being built.
    #[must_use]
    pub const fn new(path: String, size: u64, executable: bool, hash: Hash) -> Self {
        Self { path, size, executable, hash, first_chunk: 0 }
    }

    /// Id of the file's first chunk.
    #[must_use]
    pub const fn first_chunk(&self) -> u32 {
        self.first_chunk
    }
}

/// One tensor: a run of bytes inside a file.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TensorEntry {
    /// Name, as the model knows it.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions, row-major.
    pub shape: Vec<u64>,
    /// Index of its file in [`Manifest::files`].
    pub file: u32,
    /// Where its bytes begin in the file.
    pub begin: u64,
    /// How many bytes it has.
    pub len: u64,
}

impl TensorEntry {
    /// A tensor of a manifest that is being built.
    #[must_use]
    pub const fn new(name: String, dtype: Dtype, shape: Vec<u64>, file: u32, begin: u64, len: u64) -> Self {
        Self { name, dtype, shape, file, begin, len }
    }
}

/// Bytes that a later version adds and this one carries along without reading.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Extension {
    /// What it is; the highest bit set means that a reader which does not know it must refuse the manifest.
    pub tag: u16,
    /// Its content.
    pub bytes: Vec<u8>,
}

/// One chunk: where its bytes belong and what they must hash to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Chunk {
    /// Index of its file in [`Manifest::files`].
    pub file: usize,
    /// Offset in the file.
    pub offset: u64,
    /// Length; only the last chunk of a file is shorter than the chunk size.
    pub len: u32,
    /// Hash of its bytes.
    pub hash: Hash,
}

/// Why a manifest cannot be what it says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// The chunk size is out of range.
    #[error(
        "chunk size {0} is not a multiple of {MIN_CHUNK_BYTES} between {MIN_CHUNK_BYTES} and {MAX_CHUNK_BYTES}"
    )]
    ChunkSize(u32),
    /// More of something than a manifest may have.
    #[error("{count} {what}, more than the limit of {limit}")]
    TooMany {
        /// What there is too much of.
        what: &'static str,
        /// How many there are.
        count: u64,
        /// How many there may be.
        limit: u64,
    },
    /// A path that must not be written.
    #[error("path {path:?}: {reason}")]
    Path {
        /// The path.
        path: String,
        /// What is wrong with it.
        reason: PathError,
    },
    /// Two files cannot both exist.
    #[error(
        "paths {first:?} and {second:?} are in conflict (same name, or one is a folder of the other), or not sorted"
    )]
    Conflict {
        /// One path.
        first: String,
        /// The other.
        second: String,
    },
    /// The list of chunk hashes does not fit the file sizes.
    #[error("{found} chunk hashes for files that have {expected} chunks")]
    ChunkCount {
        /// Hashes given.
        found: usize,
        /// Chunks by the file sizes.
        expected: usize,
    },
    /// A tensor does not fit its file or its own shape.
    #[error("tensor {name:?}: {reason}")]
    Tensor {
        /// The tensor.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
}

/// Files, tensors and chunk hashes of one model, checked.
///
/// A value of this type is always valid: paths are safe and unique, counts are within the limits, tensors lie inside
/// their files. Two equal manifests have equal encodings and so equal root hashes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    chunk_bytes: u32,
    files: Vec<FileEntry>,
    tensors: Vec<TensorEntry>,
    chunk_hashes: Vec<Hash>,
    extensions: Vec<Extension>,
    total_bytes: u64,
}

impl Manifest {
    /// Puts a manifest together and checks it. `files` must be sorted by path and `tensors` by file and offset;
    /// `chunk_hashes` run over all files in order.
    ///
    /// # Errors
    /// When a limit, a path, an order or a tensor is wrong.
    pub fn new(
        chunk_bytes: u32,
        files: Vec<FileEntry>,
        tensors: Vec<TensorEntry>,
        chunk_hashes: Vec<Hash>,
    ) -> Result<Self, ManifestError> {
        Self::with_extensions(chunk_bytes, files, tensors, chunk_hashes, Vec::new())
    }

    fn with_extensions(
        chunk_bytes: u32,
        mut files: Vec<FileEntry>,
        tensors: Vec<TensorEntry>,
        chunk_hashes: Vec<Hash>,
        extensions: Vec<Extension>,
    ) -> Result<Self, ManifestError> {
        check_chunk_bytes(chunk_bytes)?;
        at_most("files", files.len(), MAX_OBJECTS)?;
        at_most("tensors", tensors.len(), MAX_TENSORS)?;
        path::check_all(&files)?;
        let (total_bytes, chunks) = lay_out(chunk_bytes, &mut files)?;
        if chunks != chunk_hashes.len() {
            return Err(ManifestError::ChunkCount { found: chunk_hashes.len(), expected: chunks });
        }
        check_tensors(&files, &tensors)?;
        Ok(Self { chunk_bytes, files, tensors, chunk_hashes, extensions, total_bytes })
    }

    /// Reads an encoded manifest; see [`VERSION`].
    ///
    /// # Errors
    /// When the bytes are not exactly one manifest of a version that this program knows.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        codec::decode(bytes)
    }

    /// The canonical encoding.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        codec::encode(self)
    }

    /// The hash that names this model: of the canonical encoding.
    #[must_use]
    pub fn root(&self) -> Hash {
        Hash::of(&self.encode())
    }

    /// Size of all chunks but the last of each file.
    #[must_use]
    pub const fn chunk_bytes(&self) -> u32 {
        self.chunk_bytes
    }

    /// The files, sorted by path.
    #[must_use]
    pub fn files(&self) -> &[FileEntry] {
        &self.files
    }

    /// The tensors of all safetensors files, sorted by file and offset.
    #[must_use]
    pub fn tensors(&self) -> &[TensorEntry] {
        &self.tensors
    }

    /// How many chunks there are; their ids are `0..chunk_count()`.
    #[must_use]
    pub const fn chunk_count(&self) -> usize {
        self.chunk_hashes.len()
    }

    /// Bytes of all files together.
    #[must_use]
    pub const fn total_bytes(&self) -> u64 {
        self.total_bytes
    }

    /// The chunk with this id, or none.
    #[must_use]
    pub fn chunk(&self, id: u32) -> Option<Chunk> {
        let hash = *self.chunk_hashes.get(usize::try_from(id).ok()?)?;
        let file = self.files.partition_point(|file| file.first_chunk <= id).checked_sub(1)?;
        let entry = self.files.get(file)?;
        let offset = u64::from(id - entry.first_chunk) * u64::from(self.chunk_bytes);
        let len = u32::try_from(entry.size.checked_sub(offset)?.min(u64::from(self.chunk_bytes))).ok()?;
        Some(Chunk { file, offset, len, hash })
    }

    /// The path of the file that a chunk belongs to, for messages.
    #[must_use]
    pub fn chunk_path(&self, id: u32) -> &str {
        self.chunk(id).and_then(|chunk| self.files.get(chunk.file)).map_or("?", |file| &file.path)
    }
}

/// Checks a chunk size before work is put into it.
pub(crate) fn check_chunk_bytes(chunk_bytes: u32) -> Result<(), ManifestError> {
    let in_range = (MIN_CHUNK_BYTES..=MAX_CHUNK_BYTES).contains(&chunk_bytes);
    if in_range && chunk_bytes.is_multiple_of(MIN_CHUNK_BYTES) {
        Ok(())
    } else {
        Err(ManifestError::ChunkSize(chunk_bytes))
    }
}

fn at_most(what: &'static str, count: usize, limit: usize) -> Result<(), ManifestError> {
    if count > limit {
        let wide = |value: usize| u64::try_from(value).unwrap_or(u64::MAX);
        return Err(ManifestError::TooMany { what, count: wide(count), limit: wide(limit) });
    }
    Ok(())
}

/// Gives every file its first chunk id; returns total bytes and chunk count.
fn lay_out(chunk_bytes: u32, files: &mut [FileEntry]) -> Result<(u64, usize), ManifestError> {
    let (mut total, mut chunks) = (0_u64, 0_u64);
    let limit = u64::try_from(MAX_CHUNKS).unwrap_or(u64::MAX);
    for file in files {
        total = total
            .checked_add(file.size)
            .filter(|&total| total <= MAX_TOTAL_BYTES)
            .ok_or(ManifestError::TooMany { what: "bytes", count: u64::MAX, limit: MAX_TOTAL_BYTES })?;
        let too_many = ManifestError::TooMany { what: "chunks", count: chunks, limit };
        file.first_chunk = u32::try_from(chunks).map_err(|_| too_many)?;
        chunks += file.size.div_ceil(u64::from(chunk_bytes));
        if chunks > limit {
            return Err(ManifestError::TooMany { what: "chunks", count: chunks, limit });
        }
    }
    Ok((total, usize::try_from(chunks).unwrap_or(usize::MAX)))
}

fn check_tensors(files: &[FileEntry], tensors: &[TensorEntry]) -> Result<(), ManifestError> {
    for tensor in tensors {
        let fail = |reason| Err(ManifestError::Tensor { name: tensor.name.clone(), reason });
        let Some(file) = usize::try_from(tensor.file).ok().and_then(|index| files.get(index)) else {
            return fail("its file is not in the list");
        };
        if tensor.name.len() > MAX_NAME_BYTES || tensor.shape.len() > MAX_RANK {
            return fail("its name or its shape is too long");
        }
        if tensor.begin.checked_add(tensor.len).is_none_or(|end| end > file.size) {
            return fail("it reaches past the end of its file");
        }
        if tensor.dtype.bytes_of(&tensor.shape) != Some(tensor.len) {
            return fail("its length is not that of its shape and dtype");
        }
    }
    let key = |tensor: &TensorEntry| (tensor.file, tensor.begin, tensor.len, tensor.name.clone());
    match tensors.windows(2).find(|pair| key(&pair[0]) >= key(&pair[1])) {
        Some(pair) => Err(ManifestError::Tensor {
            name: pair[1].name.clone(),
            reason: "it is listed twice, or not in the order of file and offset",
        }),
        None => Ok(()),
    }
}
