//! What a pull says while it runs and when it is over.

use super::source::Link;
use crate::error::SourceFailure;
use crate::manifest::{Hash, Manifest};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Hears how a pull goes on. Called on the thread that called [`super::pull`]; a slow one slows only the display.
pub trait Progress {
    /// Something happened.
    fn event(&mut self, event: &PullEvent<'_>);
}

/// Hears nothing.
#[derive(Debug, Clone, Copy, Default)]
#[expect(clippy::exhaustive_structs, reason = "a unit that will stay one")]
pub struct Quiet;

impl Progress for Quiet {
    fn event(&mut self, _: &PullEvent<'_>) {}
}

/// What can happen while pulling.
#[derive(Debug)]
#[non_exhaustive]
pub enum PullEvent<'a> {
    /// A source answered.
    Connected {
        /// Which.
        address: &'a str,
        /// The root hash of what it serves.
        root: Hash,
    },
    /// Chunks begin to move.
    #[non_exhaustive]
    Started {
        /// The root hash of the model.
        root: Hash,
        /// Bytes of the model.
        total_bytes: u64,
        /// Bytes that were verified by an earlier pull.
        resumed_bytes: u64,
        /// Sources in use.
        sources: usize,
    },
    /// So much is verified now.
    Moved {
        /// Bytes that are verified, with those of an earlier pull.
        bytes: u64,
        /// Bytes of the model.
        total_bytes: u64,
    },
    /// A chunk came that is not what the manifest says; it is asked for again.
    Corrupt {
        /// Who brought it.
        address: &'a str,
        /// Which chunk.
        chunk: u32,
        /// The file it belongs to.
        file: &'a str,
        /// How often this source has brought it wrong.
        tries: u8,
    },
    /// A source is no longer used.
    SourceLost(&'a SourceFailure),
    /// Every chunk is there; the files are read back and checked as a whole.
    Checking {
        /// How much that is.
        bytes: u64,
    },
}

/// What one source did.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct SourceReport {
    /// The source.
    pub address: String,
    /// The path that the transfer engine took; none when nothing moved.
    pub path: Option<String>,
    /// Good chunks it brought.
    pub chunks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Wrong chunks it brought.
    pub corrupt: u64,
    /// Why it was left, if it was.
    pub lost: Option<String>,
}

/// What a pull did.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct PullReport {
    /// The complete directory.
    pub dir: PathBuf,
    /// The root hash of the model in it.
    pub root: String,
    /// It was complete before; nothing was moved.
    pub already_complete: bool,
    /// Files of the model.
    pub files: usize,
    /// Tensors of the model.
    pub tensors: usize,
    /// Bytes of the model.
    pub bytes: u64,
    /// Chunks of the model.
    pub chunks: usize,
    /// Chunks that an earlier pull had verified.
    pub chunks_resumed: usize,
    /// Chunks that came and were right.
    pub chunks_fetched: u64,
    /// Requests beyond one for each chunk: it was wrong, or its source was lost.
    pub chunks_refetched: u64,
    /// Bytes of the chunks that came and were right.
    pub bytes_fetched: u64,
    /// Time in which they came.
    pub transfer_seconds: f64,
    /// Time of everything: connecting, resuming, moving, checking, syncing.
    pub seconds: f64,
    /// What each source did.
    pub sources: Vec<SourceReport>,
}

impl PullReport {
    /// Gigabytes (10^9) a second while chunks moved.
    #[must_use]
    pub fn gigabytes_per_second(&self) -> f64 {
        if self.transfer_seconds > 0.0 {
            approximate(self.bytes_fetched) / 1e9 / self.transfer_seconds
        } else {
            0.0
        }
    }
}

/// Near enough for a rate: exact below 2^53.
fn approximate(value: u64) -> f64 {
    let (high, low) = (value >> 32, value & u64::from(u32::MAX));
    f64::from(u32::try_from(high).unwrap_or(u32::MAX)) * 4_294_967_296.0
        + f64::from(u32::try_from(low).unwrap_or(u32::MAX))
}

/// The report while it grows.
#[derive(Debug)]
pub(super) struct Tally {
    report: PullReport,
    resumed_bytes: u64,
}

impl Tally {
    pub(super) fn new(
        dir: &Path,
        root: Hash,
        manifest: &Manifest,
        links: &[Link],
        lost: &[SourceFailure],
    ) -> Self {
        let blank = |address: &str| SourceReport {
            address: address.to_owned(),
            path: None,
            chunks: 0,
            bytes: 0,
            corrupt: 0,
            lost: None,
        };
        let used = links.iter().map(|link| SourceReport { path: link.path.clone(), ..blank(&link.address) });
        let unused = lost
            .iter()
            .map(|failure| SourceReport { lost: Some(failure.error.to_string()), ..blank(&failure.address) });
        let report = PullReport {
            dir: dir.to_path_buf(),
            root: root.to_string(),
            already_complete: false,
            files: manifest.files().len(),
            tensors: manifest.tensors().len(),
            bytes: manifest.total_bytes(),
            chunks: manifest.chunk_count(),
            chunks_resumed: 0,
            chunks_fetched: 0,
            chunks_refetched: 0,
            bytes_fetched: 0,
            transfer_seconds: 0.0,
            seconds: 0.0,
            sources: used.chain(unused).collect(),
        };
        Self { report, resumed_bytes: 0 }
    }

    pub(super) fn resumed(&mut self, manifest: &Manifest, chunks: &[u32]) {
        self.report.chunks_resumed = chunks.len();
        let bytes = chunks.iter().filter_map(|&id| manifest.chunk(id)).map(|chunk| u64::from(chunk.len));
        self.resumed_bytes = bytes.sum();
    }

    pub(super) const fn resumed_bytes(&self) -> u64 {
        self.resumed_bytes
    }

    pub(super) const fn verified_bytes(&self) -> u64 {
        self.resumed_bytes + self.report.bytes_fetched
    }

    pub(super) const fn total_bytes(&self) -> u64 {
        self.report.bytes
    }

    pub(super) fn verified(&mut self, source: usize, bytes: u64) {
        self.report.chunks_fetched += 1;
        self.report.bytes_fetched += bytes;
        self.report.sources[source].chunks += 1;
        self.report.sources[source].bytes += bytes;
    }

    pub(super) fn corrupt(&mut self, source: usize) {
        self.report.sources[source].corrupt += 1;
    }

    pub(super) fn lost(&mut self, source: usize, failure: &SourceFailure) {
        self.report.sources[source].lost = Some(failure.error.to_string());
    }

    pub(super) fn asked(&mut self, requests: u64) {
        self.report.chunks_refetched = requests.saturating_sub(self.report.chunks_fetched);
    }

    pub(super) fn already_complete(mut self, seconds: Duration) -> PullReport {
        self.report.already_complete = true;
        self.report.seconds = seconds.as_secs_f64();
        self.report
    }

    pub(super) fn finished(mut self, moved: Duration, seconds: Duration) -> PullReport {
        self.report.transfer_seconds = moved.as_secs_f64();
        self.report.seconds = seconds.as_secs_f64();
        self.report
    }
}
