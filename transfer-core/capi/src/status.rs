//! How calls end: one list of statuses, sorted by what the caller can do.

use std::ffi::{CStr, c_char};

use transfer_core::Error;
use transfer_core::directory::DirectoryError;

/// How a call ended. Zero and above is no failure. The hundreds say what the caller can do:
/// -1xx mend the call; -2xx not to be had here; -3xx try again, perhaps elsewhere; -4xx it was ended, from here or
/// by whom it belongs to; -5xx a fault of this machine; -6xx a fault of the library. Values never change their
/// meaning.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "a C enum; values are only ever added")]
pub enum hr_status_t {
    /// Done.
    HR_OK = 0,
    /// Not yet: a transfer goes on, no event has come, a counter is not there. Not a failure: there is no error object.
    HR_PENDING = 1,

    /// A pointer is NULL or misaligned, text is not UTF-8, a struct's size field is not set, and the like.
    HR_INVALID_ARGUMENT = -101,
    /// A field of the configuration does not hold.
    HR_INVALID_CONFIG = -102,
    /// Text that is no address.
    HR_INVALID_ADDRESS = -103,
    /// A descriptor list, or a selection of it, does not fit the memory that it names.
    HR_BAD_LIST = -104,
    /// The two lists of a transfer have different numbers of bytes.
    HR_LENGTH_MISMATCH = -105,
    /// An access outside a region.
    HR_OUT_OF_BOUNDS = -106,
    /// The region was closed.
    HR_REGION_CLOSED = -107,
    /// A list that was prepared by another agent, or for another peer.
    HR_WRONG_AGENT = -108,
    /// Over a limit of the library; the message names it.
    HR_TOO_LARGE = -109,
    /// A write to a region whose owner lets peers only read it.
    HR_READ_ONLY = -110,

    /// The two agents speak no version of the protocol in common; the message says which one to update.
    HR_VERSION_MISMATCH = -201,
    /// The other end broke the protocol, or is no agent at all.
    HR_PROTOCOL = -202,
    /// Every path to the peer is ruled out; the message says why each.
    HR_NO_PATH = -203,
    /// The peer has no region of that label, or the directory no agent of that name.
    HR_NOT_FOUND = -204,
    /// A key is missing on one of the two sides, or they are on two hosts and neither has one.
    HR_AUTH_REQUIRED = -205,
    /// The other end does not have the same key.
    HR_AUTH_FAILED = -206,
    /// The best path to the peer is ruled out by something that could be mended, and HR_CONFIG_STRICT is set; the message
    /// says by what.
    HR_FALLBACK_REFUSED = -207,

    /// Nobody answers there.
    HR_UNREACHABLE = -301,
    /// The peer died, restarted, froze or left.
    HR_PEER_LOST = -302,
    /// A slice of the transfer failed; the message says which and how.
    HR_TRANSFER_FAILED = -303,
    /// The transfer's deadline passed. Nothing touches its local memory any more.
    HR_DEADLINE = -304,
    /// An answer did not come in time.
    HR_TIMED_OUT = -305,
    /// The peer does not take notifications as fast as they come, or this one is too long.
    HR_NOT_NOTIFIED = -306,
    /// A peer has not let go of a region in time. It must be taken to still touch the memory.
    HR_REGION_BUSY = -307,
    /// A directory could not help; hr_error_retryable() says whether trying again can.
    HR_DIRECTORY = -308,

    /// The transfer was cancelled. Nothing touches its memory any more.
    HR_CANCELLED = -401,
    /// The agent was destroyed.
    HR_AGENT_CLOSED = -402,
    /// What the peer had there is not there any more: it has revoked a block that the transfer touches. Bytes that were
    /// read are not to be used; ask the peer anew.
    HR_STALE = -403,
    /// The name in the directory belongs to another agent now, or to another life of this one, which registered later.
    HR_SUPERSEDED = -404,

    /// A system call failed; see hr_error_os_code().
    HR_OS = -501,

    /// The library failed in itself, which is a bug of it; the message says where. Handles of the call may be freed.
    HR_PANIC = -601,
    /// A failure that this version of the C interface has no name for; see the message.
    HR_OTHER = -602,
}

use hr_status_t::*;

impl From<()> for hr_status_t {
    fn from((): ()) -> Self {
        HR_OK
    }
}

impl From<&Error> for hr_status_t {
    fn from(error: &Error) -> Self {
        match error {
            Error::InvalidConfig { .. } => HR_INVALID_CONFIG,
            Error::InvalidAddress { .. } => HR_INVALID_ADDRESS,
            Error::BadList { .. } => HR_BAD_LIST,
            Error::LengthMismatch { .. } => HR_LENGTH_MISMATCH,
            Error::OutOfBounds { .. } => HR_OUT_OF_BOUNDS,
            Error::RegionClosed { .. } => HR_REGION_CLOSED,
            Error::WrongAgent { .. } => HR_WRONG_AGENT,
            Error::TooLarge { .. } => HR_TOO_LARGE,
            Error::VersionMismatch { .. } => HR_VERSION_MISMATCH,
            Error::Protocol { .. } => HR_PROTOCOL,
            Error::NoPath { .. } => HR_NO_PATH,
            Error::FallbackRefused { .. } => HR_FALLBACK_REFUSED,
            Error::Directory(error) => error.into(),
            Error::ReadOnly { .. } => HR_READ_ONLY,
            Error::Stale { .. } => HR_STALE,
            Error::AuthRequired { .. } => HR_AUTH_REQUIRED,
            Error::AuthFailed { .. } => HR_AUTH_FAILED,
            Error::Unreachable { .. } => HR_UNREACHABLE,
            Error::PeerLost { .. } => HR_PEER_LOST,
            Error::TransferFailed { .. } => HR_TRANSFER_FAILED,
            Error::Deadline { .. } => HR_DEADLINE,
            Error::WaitTimedOut(_) => HR_TIMED_OUT,
            Error::NotNotified { .. } => HR_NOT_NOTIFIED,
            Error::RegionBusy { .. } => HR_REGION_BUSY,
            Error::Cancelled => HR_CANCELLED,
            Error::AgentClosed => HR_AGENT_CLOSED,
            Error::Os(_) => HR_OS,
            _ => HR_OTHER,
        }
    }
}

/// What a macro can make of a list of all statuses: that list, and their names. The match keeps it complete.
macro_rules! statuses {
    ($($status:ident)*) => {
        impl hr_status_t {
            pub(crate) const ALL: &[Self] = &[$($status),*];

            pub(crate) const fn name(self) -> &'static CStr {
                let text = match self {
                    $($status => concat!(stringify!($status), "\0"),)*
                };
                match CStr::from_bytes_with_nul(text.as_bytes()) {
                    Ok(name) => name,
                    Err(_) => c"",
                }
            }
        }
    };
}

statuses! {
    HR_OK HR_PENDING
    HR_INVALID_ARGUMENT HR_INVALID_CONFIG HR_INVALID_ADDRESS HR_BAD_LIST HR_LENGTH_MISMATCH HR_OUT_OF_BOUNDS
    HR_REGION_CLOSED HR_WRONG_AGENT HR_TOO_LARGE HR_READ_ONLY
    HR_VERSION_MISMATCH HR_PROTOCOL HR_NO_PATH HR_NOT_FOUND HR_AUTH_REQUIRED HR_AUTH_FAILED
    HR_FALLBACK_REFUSED
    HR_UNREACHABLE HR_PEER_LOST HR_TRANSFER_FAILED HR_DEADLINE HR_TIMED_OUT HR_NOT_NOTIFIED HR_REGION_BUSY HR_DIRECTORY
    HR_CANCELLED HR_AGENT_CLOSED HR_STALE HR_SUPERSEDED
    HR_OS
    HR_PANIC HR_OTHER
}

impl From<&DirectoryError> for hr_status_t {
    fn from(error: &DirectoryError) -> Self {
        match error {
            DirectoryError::InvalidName { .. } => HR_INVALID_ARGUMENT,
            DirectoryError::InvalidConfig { .. } => HR_INVALID_CONFIG,
            DirectoryError::OtherAgent { .. } => HR_WRONG_AGENT,
            DirectoryError::NotFound { .. } => HR_NOT_FOUND,
            DirectoryError::Superseded { .. } => HR_SUPERSEDED,
            DirectoryError::Os(_) => HR_OS,
            _ => HR_DIRECTORY,
        }
    }
}

/// The name of a status, such as "HR_OK"; "unknown status" for a number that is none. Lives as long as the program.
#[unsafe(no_mangle)]
pub extern "C" fn hr_status_name(status: i32) -> *const c_char {
    let known = hr_status_t::ALL.iter().find(|known| **known as i32 == status);
    known.map_or(c"unknown status", |known| known.name()).as_ptr()
}
