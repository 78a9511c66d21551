//! What the bytes of a data connection travel in, on their way between memory and socket.
//!
//! [`send`](super::send) and [`intake`](super::intake) see a stream of bytes in both directions, and none of what makes it.

use std::net::TcpStream;
use std::os::fd::AsFd;

use transfer_sys::{OsResult, RawRange, socket};

use super::conn::ConnError;
use super::sealed::Sealed;
use crate::shared::DataStream;

/// What a call for bytes brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Came {
    pub(super) bytes: usize,
    /// There was less than was asked for: nothing is left, here or in the socket.
    pub(super) drained: bool,
}

/// Both directions of a connection that does not block.
pub(super) enum Wire {
    /// As they are.
    Plain(TcpStream),
    /// In records that only the peer can have sealed, and only the peer can open.
    Sealed(Box<Sealed>),
}

impl Wire {
    pub(super) fn new(DataStream { stream, seals }: DataStream) -> Self {
        match seals {
            None => Self::Plain(stream),
            Some(seals) => Self::Sealed(Box::new(Sealed::new(stream, seals))),
        }
    }

    pub(super) fn is_encrypted(&self) -> bool {
        matches!(self, Self::Sealed(_))
    }

    /// The socket, to be watched.
    pub(super) fn stream(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Sealed(sealed) => sealed.stream(),
        }
    }

    /// Takes the first bytes of the ranges, in order; returns how many. Their memory is not looked at after the call.
    /// At most 1024 ranges are looked at.
    ///
    /// # Errors
    /// Those of the socket; [`transfer_sys::OsError::would_block`] where it takes nothing now.
    ///
    /// # Safety
    /// The ranges must be mapped through the call.
    #[allow(unsafe_code, reason = "passes on the contract of the call below")]
    pub(super) unsafe fn write(&mut self, ranges: &[RawRange]) -> OsResult<usize> {
        match self {
            // SAFETY: S1. The caller's contract is the callee's.
            Self::Plain(stream) => unsafe { socket::write_ranges(stream.as_fd(), ranges) },
            // SAFETY: S1. As above.
            Self::Sealed(sealed) => unsafe { sealed.write(ranges) },
        }
    }

    /// Sends what was taken and is still held here; returns how many bytes the socket took.
    ///
    /// # Errors
    /// Those of the socket; that it takes nothing now is none of them.
    pub(super) fn flush(&mut self) -> OsResult<usize> {
        match self {
            Self::Plain(_) => Ok(0),
            Self::Sealed(sealed) => sealed.flush(),
        }
    }

    /// Whether bytes that were taken have yet to be given to the socket, by [`Wire::flush`] or the next write.
    pub(super) fn has_unsent(&self) -> bool {
        match self {
            Self::Plain(_) => false,
            Self::Sealed(sealed) => sealed.has_unsent(),
        }
    }

    /// Whether bytes of the peer are held here, so that the socket gives no sign of them.
    pub(super) fn is_holding(&self) -> bool {
        match self {
            Self::Plain(_) => false,
            Self::Sealed(sealed) => sealed.is_holding(),
        }
    }

    /// How many bytes the socket has yet to bring at least, where the peer has announced `left` more of them.
    pub(super) fn due(&self, left: u64) -> u64 {
        match self {
            Self::Plain(_) => left,
            Self::Sealed(sealed) => sealed.due(left),
        }
    }

    /// Fills the ranges, in order, as far as there are bytes. At most 1024 ranges are looked at; they have a byte at
    /// least.
    ///
    /// # Errors
    /// [`ConnError::Closed`] where the stream has ended; those of the socket.
    ///
    /// # Safety
    /// The ranges must be mapped and writable through the call and not be borrowed by safe code.
    #[allow(unsafe_code, reason = "passes on the contract of the call below")]
    pub(super) unsafe fn read(&mut self, ranges: &[RawRange]) -> Result<Came, ConnError> {
        match self {
            // SAFETY: S1. The caller's contract is the callee's.
            Self::Plain(stream) => match unsafe { socket::read_ranges(stream.as_fd(), ranges) } {
                Ok(0) => Err(ConnError::Closed),
                Ok(bytes) => {
                    let asked: usize = ranges.iter().map(RawRange::len).sum();
                    Ok(Came { bytes, drained: bytes < asked })
                }
                Err(error) if error.would_block() => Ok(Came { bytes: 0, drained: true }),
                Err(error) if error.interrupted() => Ok(Came { bytes: 0, drained: false }),
                Err(error) => Err(ConnError::Os(error)),
            },
            // SAFETY: S1. As above.
            Self::Sealed(sealed) => unsafe { sealed.read(ranges) },
        }
    }

    /// The same for memory of this process alone.
    pub(super) fn read_slice(&mut self, to: &mut [u8]) -> Result<Came, ConnError> {
        let range = RawRange::new(to.as_mut_ptr(), to.len());
        #[allow(unsafe_code, reason = "reads into a borrowed slice")]
        // SAFETY: S1. The range is a slice that is borrowed mutably through the call.
        unsafe {
            self.read(&[range])
        }
    }
}
