//! Warms new replicas: a model directory comes from its peers, verified chunk by chunk, and resumes after a kill.
//!
//! A *source* ([`Server`]) hashes a model directory into a [`manifest`] and serves it. A *receiver* ([`pull()`]) takes
//! the manifest from one or several sources, then every chunk from whichever source brings it, and has a complete
//! working model directory at the end, or none: the directory appears by one rename.
//!
//! From pure to impure:
//! - [`manifest`], [`tensors`], [`wire`], and inside `journal`, `schedule`, `pacer`: formats and decisions, no I/O;
//! - [`library`]: a directory as a source sees it; `destination`: as a receiver does;
//! - [`serve`](mod@serve) and [`mod@pull`]: threads around a transfer-core agent, which moves every byte;
//! - [`cli`]: the command line.

pub mod cli;
mod clock;
mod codec;
mod destination;
pub mod error;
mod journal;
pub mod library;
pub mod manifest;
mod pacer;
pub mod pull;
mod schedule;
pub mod serve;
pub mod tensors;
mod verify;
pub mod wire;

pub use error::{Error, SourceError, SourceFailure};
pub use library::Library;
pub use manifest::{Hash, Manifest};
pub use pull::{Progress, PullEvent, PullOptions, PullReport, Quiet, SourceReport, pull};
pub use serve::{ServeOptions, Server};
pub use verify::verify;
