//! What can go wrong, by what the caller can do about it.

use crate::manifest::{Hash, ManifestError};
use crate::tensors::TensorError;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// Why serving or pulling did not work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(
    clippy::error_impl_error,
    reason = "the crate's one error, named with the crate: weight_streamer::Error"
)]
pub enum Error {
    /// An option that cannot be. Change it.
    #[error("{0}")]
    Options(String),
    /// Something in a model directory that cannot be served. Remove or mend it.
    #[error("{path}: {reason}", path = path.display())]
    Unservable {
        /// What it is about.
        path: PathBuf,
        /// Why it cannot be served.
        reason: String,
    },
    /// A file with the name of a safetensors file that is none.
    #[error("{path}: not a valid safetensors file: {source}; fetch the file again, or take it out of the directory", path = path.display())]
    Tensors {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: TensorError,
    },
    /// The directory has more of something than a manifest can hold.
    #[error("the directory has no manifest: {0}")]
    Manifest(#[from] ManifestError),
    /// A file changed after the manifest was made. Restart the server.
    #[error("{path} changed after its manifest was made ({what}); restart the server to serve what is there now", path = path.display())]
    Changed {
        /// The file.
        path: PathBuf,
        /// What is different.
        what: &'static str,
    },
    /// The operating system refused.
    #[error("cannot {op} {path}: {source}", path = path.display())]
    Io {
        /// What was tried.
        op: &'static str,
        /// On what.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// No room. Make some and pull again: what is verified stays.
    #[error("no room to {op} {path} ({source}); make room and pull again, verified chunks are kept", path = path.display())]
    DiskFull {
        /// What was tried.
        op: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The destination holds something else.
    #[error("{dir} holds something that is not this model ({found}); choose another directory, or replace it with --force", dir = dir.display())]
    Occupied {
        /// The destination.
        dir: PathBuf,
        /// What is different.
        found: String,
    },
    /// Another process pulls into the same directory.
    #[error("another process is pulling into {dir}; wait for it, or choose another directory", dir = dir.display())]
    Busy {
        /// The destination.
        dir: PathBuf,
    },
    /// Two sources serve different models.
    #[error(
        "sources disagree: {first} serves {first_root}, {second} serves {second_root}; name sources of one model, or choose with --expect ROOT"
    )]
    Disagree {
        /// One source.
        first: String,
        /// What it serves.
        first_root: Hash,
        /// Another.
        second: String,
        /// What that serves.
        second_root: Hash,
    },
    /// No source can be used.
    #[error("no source can be used: {}", List(failures))]
    NoSource {
        /// Every source and what is wrong with it.
        failures: Vec<SourceFailure>,
    },
    /// All sources were lost before the model was complete. Pull again to go on where it stopped.
    #[error(
        "{verified} of {total} chunks verified, then every source was lost: {}; pull again to resume, the verified chunks are kept in {}",
        List(failures), kept.display()
    )]
    SourcesLost {
        /// Every source and why it was left.
        failures: Vec<SourceFailure>,
        /// Chunks that are verified and kept.
        verified: usize,
        /// Chunks of the model.
        total: usize,
        /// Where they are kept.
        kept: PathBuf,
    },
    /// The directory is not what its manifest says.
    #[error("{dir} is not what its manifest says: {found}", dir = dir.display())]
    Mismatch {
        /// The directory.
        dir: PathBuf,
        /// What is different.
        found: String,
    },
    /// The transfer engine could not start or go on.
    #[error("transfer engine: {0}")]
    Transfer(#[from] transfer_core::Error),
}

impl Error {
    /// An error of the operating system, sorted: a full disk is its own case.
    pub(crate) fn io(op: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_path_buf();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                Self::DiskFull { op, path, source }
            }
            _ => Self::Io { op, path, source },
        }
    }

    /// Whether the same call may succeed later without a change on this side; what was verified is not lost.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::NoSource { failures } | Self::SourcesLost { failures, .. } => {
                failures.iter().any(|failure| failure.error.is_retryable())
            }
            Self::Busy { .. } | Self::DiskFull { .. } => true,
            Self::Transfer(error) => error.is_retryable(),
            _ => false,
        }
    }
}

/// One source and why it is not used (any more).
#[derive(Debug, Clone, thiserror::Error)]
#[error("{address}: {error}")]
#[non_exhaustive]
pub struct SourceFailure {
    /// The source.
    pub address: String,
    /// What happened.
    pub error: SourceError,
}

/// What happened with one source.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// It could not be reached.
    #[error("cannot connect: {0}")]
    Unreachable(transfer_core::Error),
    /// It went away.
    #[error("lost: {0}")]
    Lost(transfer_core::Error),
    /// It is connected and sends nothing.
    #[error("sent nothing for {seconds} s")]
    Stalled {
        /// How long.
        seconds: u64,
    },
    /// It brings a chunk that does not hash to what the manifest says.
    #[error("chunk {chunk} of {file} is corrupt ({tries} tries)")]
    Corrupt {
        /// The chunk.
        chunk: u32,
        /// The file it belongs to.
        file: String,
        /// How often it came wrong.
        tries: u8,
    },
    /// It says that it cannot send a chunk.
    #[error("refuses chunk {chunk} of {file}: {reason}")]
    Refused {
        /// The chunk.
        chunk: u32,
        /// The file it belongs to.
        file: String,
        /// Its reason.
        reason: String,
    },
    /// Its hello or a message makes no sense.
    #[error(transparent)]
    Wire(#[from] crate::wire::WireError),
    /// Its manifest could not be read.
    #[error("cannot read its manifest: {0}")]
    Manifest(transfer_core::Error),
    /// Its manifest does not hash to the root that it names itself.
    #[error("its manifest hashes to {found}, not to {claimed} as it claims")]
    FalseManifest {
        /// The root in its hello.
        claimed: Hash,
        /// The hash of what it sent.
        found: Hash,
    },
    /// Its manifest cannot be read.
    #[error("its manifest cannot be used: {0}")]
    BadManifest(#[from] crate::manifest::DecodeError),
    /// It serves another model than the one asked for.
    #[error("serves {found}, not the expected {expected}")]
    Unexpected {
        /// What `--expect` says.
        expected: Hash,
        /// What it serves.
        found: Hash,
    },
    /// Its chunks do not fit the receiver's staging memory.
    #[error(
        "its chunks of {chunk_bytes} bytes do not fit the staging memory of {staging_bytes}; raise --staging-mb"
    )]
    ChunkTooLarge {
        /// Its chunk size.
        chunk_bytes: u32,
        /// The staging memory.
        staging_bytes: u64,
    },
}

impl SourceError {
    /// Whether the source may be good again later.
    #[must_use]
    pub const fn is_retryable(&self) -> bool {
        matches!(self, Self::Unreachable(_) | Self::Lost(_) | Self::Stalled { .. })
    }
}

struct List<'a>(&'a [SourceFailure]);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, failure) in self.0.iter().enumerate() {
            write!(f, "{}{failure}", if index == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}
