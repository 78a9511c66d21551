//! What can go wrong with a directory, sorted by what the caller can do.

use std::time::Duration;

use transfer_proto::codec::DecodeError;
use transfer_proto::id::Incarnation;
use transfer_proto::proto::preamble::PreambleError;
use transfer_sys::OsError;

/// Everything that can go wrong with a directory, with what and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DirectoryError {
    // ---- the caller's to mend
    /// A name that this directory cannot hold.
    #[error("{name:?} cannot be a name here: {problem}")]
    InvalidName {
        /// The name.
        name: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The bytes to publish are no metadata of an agent.
    #[error("what is published must be Agent::metadata(): {0}")]
    InvalidBlob(PreambleError),
    /// A registration was given the metadata of another agent.
    #[error("this registration is of {registered}, the metadata of {given}; publish that one by itself")]
    OtherAgent {
        /// Name and incarnation of the registration.
        registered: String,
        /// Those of the metadata.
        given: String,
    },
    /// A field of the configuration does not hold.
    #[error("configuration: {field} {problem}")]
    InvalidConfig {
        /// Which field.
        field: &'static str,
        /// What is wrong with it, and what to do.
        problem: String,
    },
    /// More than the directory takes, or than this side reads.
    #[error("{what} is over the limit: {limit}")]
    TooLarge {
        /// What.
        what: String,
        /// The limit, and whose it is.
        limit: String,
    },
    /// The directory does not let this client do that: credentials or permissions are missing.
    #[error("{place} does not allow it: {cause}")]
    Denied {
        /// Where.
        place: String,
        /// What it says.
        cause: String,
    },

    /// One side does not take the other's certificate.
    #[error("{place}: {problem}")]
    Certificate {
        /// Where.
        place: String,
        /// Whose, why, and what to do.
        problem: CertificateProblem,
    },

    // ---- not there
    /// Nobody of that name is registered now.
    #[error("no agent {name:?} in {place}")]
    NotFound {
        /// The name.
        name: String,
        /// Where it was looked for.
        place: String,
    },
    /// Another life of the agent, or another agent of its name, has taken the name.
    #[error("{name:?} belongs to {by} now, which registered later")]
    Superseded {
        /// The name.
        name: String,
        /// Who has it.
        by: Incarnation,
    },

    // ---- somebody else's to mend
    /// What stands there cannot be used.
    #[error(transparent)]
    Corrupt(#[from] Corrupt),
    /// What answers is no directory of this kind.
    #[error("{place} answers with something else: {cause}")]
    Protocol {
        /// Where.
        place: String,
        /// What it said.
        cause: String,
    },
    /// The directory has no room left.
    #[error("{place} is full: {cause}")]
    Full {
        /// Where.
        place: String,
        /// What it says.
        cause: String,
    },

    // ---- try again
    /// Nobody answers there.
    #[error("cannot reach {place}: {cause}")]
    Unreachable {
        /// Where.
        place: String,
        /// Why.
        cause: String,
    },
    /// No answer in time. A change that was asked for may have been made.
    #[error("{place} did not answer within {} ms", .waited.as_millis())]
    Timeout {
        /// Where.
        place: String,
        /// How long was waited.
        waited: Duration,
    },

    // ---- a fault of this machine
    /// A system call failed.
    #[error(transparent)]
    Os(#[from] OsError),
}

impl DirectoryError {
    /// Whether the same call may succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Timeout { .. })
    }
}

/// Why a certificate is refused: the server's here, or this client's there.
#[derive(Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum CertificateProblem {
    /// No authority that this side trusts vouches for the server's.
    #[error(
        "its certificate is signed by nobody whom tls.ca trusts; add its authority there, if it is the right server"
    )]
    ServerUntrusted,
    /// The server's is over.
    #[error("its certificate has expired; whoever runs it has to renew it")]
    ServerExpired,
    /// Something else is wrong with the server's.
    #[error("its certificate does not do: {0}")]
    ServerRefused(String),
    /// The server wants one, and this client has none.
    #[error("it wants a certificate of its clients and tls.identity has none; set it")]
    ClientMissing,
    /// The server does not trust whoever vouches for this client's.
    #[error(
        "it does not trust the authority that signed tls.identity; get a certificate of the one that it trusts"
    )]
    ClientUntrusted,
    /// This client's is over.
    #[error("the certificate in tls.identity has expired; renew it and make the directory again")]
    ClientExpired,
    /// etcd's gateway refuses client certificates that have a name, while authentication is enabled.
    #[error(
        "with authentication enabled it takes no certificate that has a common name over its gateway; get one for \
         tls.identity whose subject has no CN"
    )]
    ClientNamed,
    /// Something else is wrong with this client's.
    #[error("it refuses the certificate in tls.identity ({0}); see what it logs")]
    ClientRefused(String),
}

/// A place in a directory whose content cannot be used, and why. Whoever wrote it has to mend it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("entry {key:?} is damaged: {cause}")]
#[non_exhaustive]
pub struct Corrupt {
    /// The name that its place stands for; the key again where that is none.
    pub name: String,
    /// Its key, or the path of its file.
    pub key: String,
    /// What is wrong with it.
    pub cause: CorruptCause,
}

impl Corrupt {
    /// What is wrong with the place `key` of the agent `name`.
    #[must_use]
    pub fn new(key: impl Into<String>, name: impl Into<String>, cause: CorruptCause) -> Self {
        Self { key: key.into(), name: name.into(), cause }
    }

    /// A place that belongs to no name.
    #[must_use]
    pub fn nameless(key: impl Into<String>) -> Self {
        let key = key.into();
        Self { name: key.clone(), key, cause: CorruptCause::Key }
    }
}

/// What is wrong with an entry.
#[derive(Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum CorruptCause {
    /// It is no entry at all.
    #[error("it does not begin like an entry")]
    NotAnEntry,
    /// It has another version than this code reads: one of the two sides must be updated.
    #[error("it has version {theirs}, this side reads version {ours}")]
    Version {
        /// What it has.
        theirs: u8,
        /// What is read here.
        ours: u8,
    },
    /// Its envelope is damaged.
    #[error("{0}")]
    Envelope(String),
    /// The metadata in it is damaged.
    #[error("{0}")]
    Metadata(String),
    /// It speaks of another agent than its place says.
    #[error("it is of agent {0:?}")]
    OtherName(String),
    /// Its key is none that an agent's name leads to.
    #[error("its key is no name")]
    Key,
    /// It is larger than an entry may be.
    #[error("it has {bytes} bytes; an entry has at most {max}")]
    TooLarge {
        /// Its size.
        bytes: u64,
        /// What an entry may have.
        max: u64,
    },
    /// It cannot be read.
    #[error("it cannot be read: {0}")]
    Unreadable(String),
}

impl From<DecodeError> for CorruptCause {
    fn from(error: DecodeError) -> Self {
        Self::Envelope(error.to_string())
    }
}
