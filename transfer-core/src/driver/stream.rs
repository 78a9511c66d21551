//! Bytes in and out of a connection that does not block.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};

use transfer_sys::{OsError, OsResult};

use crate::shared::Stream;

/// Bytes read in one call.
pub(super) const READ_BYTES: usize = 64 << 10;

impl Stream {
    pub(super) fn set_nonblocking(&self) -> OsResult<()> {
        let result = match self {
            Self::Tcp(stream) => stream.set_nonblocking(true).and_then(|()| stream.set_nodelay(true)),
            Self::Local(stream) => stream.set_nonblocking(true),
        };
        result.map_err(|e| OsError::from_io("fcntl", "O_NONBLOCK", &e))
    }

    /// What has come, at most `out`'s length; `None` where nothing has, an empty slice at the end of the stream.
    pub(super) fn receive<'a>(&mut self, out: &'a mut [u8]) -> OsResult<Option<&'a [u8]>> {
        let result = match self {
            Self::Tcp(stream) => stream.read(out),
            Self::Local(stream) => stream.read(out),
        };
        match result {
            Ok(count) => Ok(Some(&out[..count])),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(None),
            Err(e) => Err(OsError::from_io("read", "connection", &e)),
        }
    }

    /// Sends as much as goes; says how much that was.
    pub(super) fn send(&mut self, bytes: &[u8]) -> OsResult<usize> {
        let mut sent = 0;
        while sent < bytes.len() {
            let result = match self {
                Self::Tcp(stream) => stream.write(&bytes[sent..]),
                Self::Local(stream) => stream.write(&bytes[sent..]),
            };
            match result {
                Ok(count) => sent += count,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) => return Err(OsError::from_io("write", "connection", &e)),
            }
        }
        Ok(sent)
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Local(stream) => stream.as_fd(),
        }
    }
}
