//! Paths and operations, by the names that users type and programs read.

use std::fmt;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use transfer_core::Path;

/// A path to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum PathName {
    /// Shared memory: regions that agents allocate, mapped by the peer
    Shm,
    /// The kernel copies between the processes: regions that the application brought along
    ProcessVm,
    /// Sockets on loopback
    Tcp,
}

impl PathName {
    /// All of them, the best first.
    pub const ALL: [Self; 3] = [Self::Shm, Self::ProcessVm, Self::Tcp];

    /// What the engine calls it.
    #[must_use]
    pub fn core(self) -> Path {
        match self {
            Self::Shm => Path::SharedMemory,
            Self::ProcessVm => Path::ProcessMemory,
            Self::Tcp => Path::Tcp,
        }
    }

    /// Whether its regions are the application's own memory instead of the agent's.
    #[must_use]
    pub fn is_foreign(self) -> bool {
        self == Self::ProcessVm
    }
}

impl fmt::Display for PathName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Shm => "shm",
            Self::ProcessVm => "process-vm",
            Self::Tcp => "tcp",
        })
    }
}

/// Which way the bytes go, seen from the process that posts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
#[expect(clippy::exhaustive_enums, reason = "bytes come or go")]
pub enum Op {
    /// From the target
    Read,
    /// To the target
    Write,
}

impl Op {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Read, Self::Write];
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Read => "read",
            Self::Write => "write",
        })
    }
}
