//! Bytes in and out of a connection that does not block.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use transfer_sys::{OsError, OsResult, socket};

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

    /// The same, with a descriptor that came along over a Unix socket.
    pub(super) fn receive_with_file<'a>(
        &mut self,
        out: &'a mut [u8],
    ) -> OsResult<Option<(&'a [u8], Option<OwnedFd>)>> {
        let Self::Local(stream) = self else { return Ok(self.receive(out)?.map(|came| (came, None))) };
        match socket::recv_with_fd(stream.as_fd(), out) {
            Ok((count, file)) => Ok(Some((&out[..count], file))),
            Err(error) if error.would_block() => Ok(None),
            Err(error) => Err(error),
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
