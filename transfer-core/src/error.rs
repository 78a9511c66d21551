//! Errors, sorted by what the caller can do.

use std::time::Duration;

use transfer_proto::codec::DecodeError;
use transfer_proto::desc::DescError;
use transfer_proto::id::{Incarnation, RegionId};
use transfer_proto::plan::Explanation;
use transfer_proto::proto::data::Status;
use transfer_proto::proto::link::{LinkError, NotifError};
use transfer_proto::proto::preamble::{PreambleError, VERSIONS, Versions};
use transfer_proto::proto::xfer::{Failure, SliceError};
use transfer_sys::OsError;

use crate::directory::DirectoryError;
use crate::secure::HandshakeError;

/// Result of a call to the engine.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong, with what and where.
#[derive(Clone, Debug, thiserror::Error)]
#[expect(clippy::error_impl_error, reason = "it is read as transfer_core::Error")]
#[non_exhaustive]
pub enum Error {
    // ---- the caller's to mend
    /// A field of the configuration does not hold.
    #[error("configuration: {field} {problem}")]
    InvalidConfig {
        /// Which field.
        field: &'static str,
        /// What is wrong with it, and what to do.
        problem: String,
    },
    /// Text that is no address.
    #[error("{text:?} is no address; write tcp://HOST:PORT or unix:@NAME")]
    InvalidAddress {
        /// The text.
        text: String,
    },
    /// A descriptor list does not fit the memory that it names.
    #[error("{side} list: {source}")]
    BadList {
        /// `local` or `remote`.
        side: &'static str,
        /// What does not fit.
        source: DescError,
    },
    /// The two lists of a transfer have different numbers of bytes.
    #[error("local list selects {local} bytes, remote list {remote}; they must be equal")]
    LengthMismatch {
        /// On this side.
        local: u64,
        /// On the other.
        remote: u64,
    },
    /// An access outside a region.
    #[error("{len} bytes at {offset} are outside region {region} of {size} bytes")]
    OutOfBounds {
        /// Which region.
        region: RegionId,
        /// Where the access begins.
        offset: usize,
        /// Its length.
        len: usize,
        /// What the region has.
        size: usize,
    },
    /// A write to a region whose owner lets peers only read it.
    #[error("region {region} of {peer} is for reading only")]
    ReadOnly {
        /// Which peer.
        peer: String,
        /// Which region.
        region: RegionId,
    },
    /// The region was closed.
    #[error("region {region} is closed")]
    RegionClosed {
        /// Which.
        region: RegionId,
    },
    /// A list that was prepared by another agent, or for another peer.
    #[error("the {side} list was prepared by another agent")]
    WrongAgent {
        /// `local` or `remote`.
        side: &'static str,
    },
    /// A limit of the engine.
    #[error("{what}: {value} is over the limit of {max}")]
    TooLarge {
        /// Of what.
        what: &'static str,
        /// How much was asked for.
        value: u64,
        /// How much there may be.
        max: u64,
    },

    // ---- not to be had here
    /// The two agents speak no version of the protocol in common: one of them must be updated.
    #[error(
        "{address} speaks version {theirs} of the protocol, this agent version {ours}; update {}",
        Versions::older(*ours, *theirs)
    )]
    VersionMismatch {
        /// Who.
        address: String,
        /// Its versions.
        theirs: Versions,
        /// This agent's.
        ours: Versions,
    },
    /// A key is missing on one of the two sides.
    #[error("{address}: {missing}")]
    AuthRequired {
        /// Who.
        address: String,
        /// Where, and what to do.
        missing: KeyMissing,
    },
    /// The other end did not prove that it has the same key, or did not accept this agent's proof.
    #[error(
        "{address} does not have the same key as this agent (or somebody on the way changes what is sent)"
    )]
    AuthFailed {
        /// Who.
        address: String,
    },
    /// The other end broke the protocol, or is no agent at all.
    #[error("{address}: {source}")]
    Protocol {
        /// Who.
        address: String,
        /// What it did.
        source: ProtocolError,
    },
    /// The best path is ruled out by something that could be mended, and the policy is strict.
    #[error("the policy is strict, and the best path to {peer} is not to be had: {explanation}")]
    FallbackRefused {
        /// Which peer.
        peer: String,
        /// What would be taken, and what speaks against the better one.
        explanation: Explanation,
    },
    /// Every path to the peer is ruled out.
    #[error("no path to {peer}: {explanation}")]
    NoPath {
        /// Which peer.
        peer: String,
        /// What speaks against each.
        explanation: Explanation,
    },

    // ---- try again, perhaps elsewhere
    /// Nobody answers there.
    #[error("cannot reach {address}: {cause}")]
    Unreachable {
        /// Where.
        address: String,
        /// Why.
        cause: String,
    },
    /// The peer was lost: it died, restarted, froze or left.
    #[error("lost {peer} ({incarnation}): {cause}")]
    PeerLost {
        /// Its name.
        peer: String,
        /// Which life of it.
        incarnation: Incarnation,
        /// How it was noticed.
        cause: LinkError,
    },
    /// A slice of a transfer failed.
    #[error("transfer with {peer} failed at {source}")]
    TransferFailed {
        /// Which peer.
        peer: String,
        /// Which slice, where, and how.
        source: Failure,
    },
    /// The transfer's deadline passed. Nothing touches its local buffers any more.
    #[error("transfer with {peer} did not finish within {} ms", .timeout.as_millis())]
    Deadline {
        /// Which peer.
        peer: String,
        /// How long it had.
        timeout: Duration,
    },
    /// A wait ended before what it waited for; that goes on.
    #[error("not finished within {} ms; it goes on", .0.as_millis())]
    WaitTimedOut(Duration),
    /// The peer does not take notifications as fast as they come.
    #[error("notification to {peer}: {source}")]
    NotNotified {
        /// Which peer.
        peer: String,
        /// Why.
        source: NotifError,
    },
    /// A peer has not let go of a region in time. It must be taken to still touch the memory.
    #[error("{peer} did not let go of region {region} within {} ms", .waited.as_millis())]
    RegionBusy {
        /// Which region.
        region: RegionId,
        /// Who is inside: a peer with its process, `this agent`, or `a transfer`.
        peer: String,
        /// How long was waited.
        waited: Duration,
    },

    /// A directory could not help. Whether trying again can is up to the cause.
    #[error(transparent)]
    Directory(#[from] DirectoryError),

    // ---- ended from here
    /// What the peer had there is not there any more: it has revoked a block that the transfer touches. Bytes that were
    /// read are not to be used; ask the peer anew.
    #[error("{peer} has revoked memory that the transfer names: {source}; ask it anew")]
    Stale {
        /// Which peer.
        peer: String,
        /// Which slice, and where.
        source: Failure,
    },
    /// The caller cancelled the transfer. Nothing touches its buffers any more.
    #[error("cancelled")]
    Cancelled,
    /// The agent is gone.
    #[error("the agent was dropped")]
    AgentClosed,

    // ---- a fault of this machine
    /// A system call failed.
    #[error(transparent)]
    Os(#[from] OsError),
}

/// On which side a key is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyMissing {
    /// The other end asks for one, and this agent has none.
    #[error("it asks for a key, and this agent has none; set Config::key to the one that it has")]
    Here,
    /// This agent asks for one, and the other end has none.
    #[error("it has no key, and this agent asks for one; set its Config::key to the one that this agent has")]
    There,
    /// Neither has one, and they are not on one host.
    #[error(
        "it is on another host, and this agent has no key; set Config::key to the same one on both sides (or \
         insecure_remote_without_key, where all who reach the network may read and write all regions)"
    )]
    Beyond,
}

/// How an agent, or whatever is at the other end, broke the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProtocolError {
    /// Its first bytes are not those of an agent.
    #[error(transparent)]
    Preamble(#[from] PreambleError),
    /// A message that cannot be decoded.
    #[error("malformed message: {0}")]
    Malformed(#[from] DecodeError),
    /// The link came to an end over it.
    #[error(transparent)]
    Link(LinkError),
    /// It did not accept a further connection.
    #[error("it refused the {0} connection")]
    Refused(&'static str),
}

impl Error {
    /// Whether the same call may succeed later, or with another peer.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::TransferFailed { source, .. } => return source.is_retryable(),
            Self::Directory(error) => return error.is_retryable(),
            _ => {}
        }
        matches!(
            self,
            Self::Unreachable { .. }
                | Self::PeerLost { .. }
                | Self::Deadline { .. }
                | Self::WaitTimedOut(_)
                | Self::NotNotified { source: NotifError::Busy { .. }, .. }
                | Self::RegionBusy { .. }
        )
    }

    /// How a slice failed, as the transfer's error.
    pub(crate) fn of_slice(peer: &str, source: Failure) -> Self {
        let peer = peer.to_owned();
        match source.error {
            SliceError::Refused { status: Status::Stale, .. } => Self::Stale { peer, source },
            _ => Self::TransferFailed { peer, source },
        }
    }

    /// The error of something that began with the wrong bytes.
    pub(crate) fn from_preamble(address: String, cause: PreambleError) -> Self {
        match cause {
            PreambleError::Version { theirs } => Self::VersionMismatch { address, theirs, ours: VERSIONS },
            error => Self::Protocol { address, source: error.into() },
        }
    }

    /// The error of a connection on which the two sides did not come to terms.
    pub(crate) fn from_handshake(address: String, cause: HandshakeError) -> Self {
        match cause {
            HandshakeError::Preamble(error) => Self::from_preamble(address, error),
            HandshakeError::AuthRequired(missing) => Self::AuthRequired { address, missing },
            HandshakeError::AuthFailed => Self::AuthFailed { address },
            HandshakeError::NoSession => {
                Self::Protocol { address, source: ProtocolError::Refused("further") }
            }
        }
    }

    /// The error of a link that ended before the peer was up.
    pub(crate) fn from_meeting(address: &str, cause: LinkError) -> Self {
        let address = address.to_owned();
        match cause {
            LinkError::Tampered => Self::AuthFailed { address },
            LinkError::Malformed(error) => Self::Protocol { address, source: error.into() },
            LinkError::Unexpected { .. } | LinkError::Farewell { .. } => {
                Self::Protocol { address, source: ProtocolError::Link(cause) }
            }
            other => Self::Unreachable { address, cause: other.to_string() },
        }
    }

    pub(crate) fn unreachable(address: &impl ToString, cause: &impl ToString) -> Self {
        Self::Unreachable { address: address.to_string(), cause: cause.to_string() }
    }
}
