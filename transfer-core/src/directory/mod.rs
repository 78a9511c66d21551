//! Directories: how agents find each other by name.
//!
//! A [`Directory`] maps the name of an agent to its metadata. An entry is there while its [`Registration`] is held, and
//! for its time to live after the process is gone. What a directory says is a hint: [`Agent::connect_by_name`] looks the
//! agent up and goes to it, and the agent itself says who it is. So a stale or forged entry costs a failed connection,
//! and an application may keep its directory where it keeps other things that are no secrets.
//!
//! [`MemoryDirectory`] is for one process, [`FileDirectory`] for those that share a folder, `EtcdDirectory` (feature
//! `etcd`) for a cluster. Products take `&dyn Directory`, and others can be written: see [`Hold`] and [`Feed`].
//!
//! # Example
//! ```
//! use std::time::Duration;
//! use transfer_core::directory::{Change, Directory, Listing, MemoryDirectory};
//! use transfer_core::{Agent, Config};
//!
//! # fn main() -> Result<(), transfer_core::Error> {
//! let directory = MemoryDirectory::new();
//! let prefill = Agent::new(Config::new("prefill-0"))?;
//! let registration = directory.publish(&prefill.metadata(), Duration::from_secs(10))?;
//!
//! let decode = Agent::new(Config::new("decode-0"))?;
//! let peer = decode.connect_by_name(&directory, "prefill-0")?;
//! assert_eq!(peer.incarnation(), prefill.incarnation());
//!
//! // Whoever watches learns of everyone, and that somebody leaves.
//! let mut watch = directory.watch("prefill-", &Listing::default())?;
//! let event = watch.next(Duration::from_secs(5))?.expect("there is one");
//! assert!(matches!(event.change, Change::Added(entry) if entry.name == "prefill-0"));
//! drop(registration);
//! let event = watch.next(Duration::from_secs(5))?.expect("it left");
//! assert!(matches!(event.change, Change::Removed { name, .. } if name == "prefill-0"));
//! # Ok(())
//! # }
//! ```
//!
//! # Lives
//! A name belongs to whoever published last. The registration that had it before notices ([`Registration::check`]),
//! stops renewing, and can neither overwrite nor remove what stands there now, however late its calls arrive; nor does the
//! name come back to it when its successor has left. For that a directory remembers whose a name was last, in a
//! folder for 30 days (`NAME.life`), in etcd for good (`NAMESPACE/lives/NAME`, 16 bytes), and neither where the only life that
//! a name had has left it by itself.

mod entry;
mod error;
#[cfg(feature = "etcd")]
mod etcd;
mod file;
mod memory;
mod watch;

use std::fmt;
use std::time::Duration;

pub use entry::Entry;
pub use error::{CertificateProblem, Corrupt, CorruptCause, DirectoryError};
#[cfg(feature = "etcd")]
pub use etcd::{EtcdConfig, EtcdDirectory, EtcdTls, Pem};
pub use file::FileDirectory;
#[cfg(fuzzing)]
pub(crate) use file::fuzzing;
pub use memory::MemoryDirectory;
use transfer_proto::id::Incarnation;
pub use watch::{Change, Event, Feed, Listing, News, Revision, Watch};

use crate::agent::Agent;
use crate::peer::Peer;

type Result<T, E = DirectoryError> = std::result::Result<T, E>;

/// Maps names of agents to their metadata. Safe to use from any thread; every call ends within a bound that the
/// implementation states, and asks for no async runtime.
pub trait Directory: Send + Sync + fmt::Debug {
    /// Registers the agent that `blob` ([`Agent::metadata`]) speaks of under its name, and takes the name from whoever
    /// has it. The entry outlives the last renewal by `ttl` (100 ms to 24 hours), and is renewed until the registration
    /// is dropped.
    ///
    /// # Errors
    /// [`DirectoryError`]; [`DirectoryError::Superseded`] where another life took the name during the call.
    fn publish(&self, blob: &[u8], ttl: Duration) -> Result<Registration>;

    /// The agent of that name.
    ///
    /// # Errors
    /// [`DirectoryError::NotFound`]; [`DirectoryError::Corrupt`] where what stands there cannot be used; others of
    /// [`DirectoryError`].
    fn lookup(&self, name: &str) -> Result<Entry>;

    /// All agents whose names begin with `prefix`; a damaged entry does not hide the others.
    ///
    /// # Errors
    /// [`DirectoryError`]; [`DirectoryError::TooLarge`] over 65536 entries or 256 MiB.
    fn list(&self, prefix: &str) -> Result<Listing>;

    /// What changes from `since` on among the names with `prefix`. From [`Listing::default`] the watch begins with
    /// everyone who is there; from a listing of this directory, with what it missed.
    ///
    /// # Errors
    /// [`DirectoryError`].
    fn watch(&self, prefix: &str, since: &Listing) -> Result<Watch>;
}

/// What stands behind a [`Registration`]. Only for implementations of [`Directory`].
pub trait Hold: Send + Sync + fmt::Debug {
    /// As [`Registration::check`].
    ///
    /// # Errors
    /// What keeps the entry from being renewed.
    fn check(&self) -> Result<()>;

    /// Replaces the entry by `entry`, of the same life, if the name still belongs to this registration.
    ///
    /// # Errors
    /// [`DirectoryError::Superseded`], or what kept it from being written.
    fn update(&self, entry: Entry) -> Result<()>;

    /// Ends renewing. Removes the entry if `remove` says so and the name still belongs to this registration. Called
    /// once.
    ///
    /// # Errors
    /// What kept it from being removed.
    fn end(&self, remove: bool) -> Result<()>;
}

/// An agent's place in a directory, renewed until this is dropped. Safe to use from any thread.
///
/// Dropping it removes the entry, if the name still belongs to it, and may wait for the directory; a failure is logged
/// and left to the time to live. See [`Registration::close`] to learn of it.
#[derive(Debug)]
pub struct Registration {
    hold: Box<dyn Hold>,
    entry: Entry,
    ended: bool,
}

impl Registration {
    /// A registration of `entry`. Only for implementations of [`Directory`].
    #[must_use]
    pub fn new(entry: Entry, hold: Box<dyn Hold>) -> Self {
        Self { hold, entry, ended: false }
    }

    /// Under which name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.entry.name
    }

    /// Which life of the agent.
    #[must_use]
    pub fn incarnation(&self) -> Incarnation {
        self.entry.incarnation
    }

    /// Whether the entry stands, as of the last renewal. Cost: a lock, no wait for the directory.
    ///
    /// # Errors
    /// [`DirectoryError::Superseded`], which lasts; anything else is tried again at the next renewal.
    pub fn check(&self) -> Result<()> {
        self.hold.check()
    }

    /// Publishes what the agent says of itself now (regions were registered, say).
    ///
    /// # Errors
    /// [`DirectoryError::OtherAgent`] for a blob of another agent or life; [`DirectoryError::Superseded`]; others of
    /// [`DirectoryError`].
    pub fn update(&self, blob: &[u8]) -> Result<()> {
        let entry = Entry::new(blob, self.entry.ttl)?;
        self.entry.same_life(&entry)?;
        self.hold.update(entry)
    }

    /// Removes the entry, if the name still belongs to this registration.
    ///
    /// # Errors
    /// What kept it from being removed; the time to live will.
    pub fn close(mut self) -> Result<()> {
        self.ended = true;
        self.hold.end(true)
    }

    /// Stops renewing and leaves the entry to its time to live, as the end of the process would.
    ///
    /// # Errors
    /// What the directory could not be told.
    pub fn abandon(mut self) -> Result<()> {
        self.ended = true;
        self.hold.end(false)
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        if !self.ended
            && let Err(error) = self.hold.end(true)
        {
            tracing::warn!(name = self.entry.name, %error, "an entry was left to its time to live");
        }
    }
}

impl Agent {
    /// Looks `name` up and connects to the agent, or returns the peer where it is connected already. Blocks as the
    /// directory does, then as [`Agent::connect`]. It tries once: after [`crate::Error::Unreachable`], because the entry
    /// was stale, say, a [`Watch`] tells when there is something new to try.
    ///
    /// # Errors
    /// [`crate::Error::Directory`]; as [`Agent::add_peer`].
    pub fn connect_by_name(&self, directory: &dyn Directory, name: &str) -> crate::Result<Peer> {
        self.add_peer(&directory.lookup(name)?.blob)
    }
}
