//! A data connection that is encrypted: memory, a buffer of this process, and the socket behind it.
//!
//! What leaves is gathered from memory into a buffer and sealed from there, so that nobody changes it meanwhile; then it
//! is as good as sent. What comes is opened in a buffer, a record at a time, and copied to where it belongs only when
//! the whole record has proven to be the peer's. The buffers are there for as long as the connection; nothing else is
//! allocated.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::ops::Range;

use transfer_sys::{OsError, OsResult, RawRange, copy};

use super::conn::ConnError;
use super::wire::Came;
use crate::secure::{OPENED_ROOM, PLAIN_MAX, RECORD_MAX, Seals};

/// Records that are sealed for one call to the socket, and may wait for it.
const RECORDS_OUT: usize = 4;
/// Bytes asked of the socket at once: a few records.
const READ_BYTES: usize = 4 * RECORD_MAX;

/// Room that holds bytes in a part of it.
struct Buffer {
    bytes: Box<[u8]>,
    held: Range<usize>,
}

impl Buffer {
    fn new(len: usize) -> Self {
        Self { bytes: vec![0; len].into_boxed_slice(), held: 0..0 }
    }

    fn held(&self) -> &[u8] {
        &self.bytes[self.held.clone()]
    }

    fn took(&mut self, count: usize) {
        self.held.start += count;
    }
}

/// Both directions of an encrypted connection.
pub(super) struct Sealed {
    stream: TcpStream,
    seals: Seals,
    /// What is gathered for a record.
    gathered: Box<[u8]>,
    /// Records that the socket has not taken.
    out: Buffer,
    /// Records as they came, the last of which may be a part of one.
    came: Buffer,
    /// What was in the last record that was opened.
    opened: Buffer,
}

impl Sealed {
    pub(super) fn new(stream: TcpStream, seals: Seals) -> Self {
        let gathered = vec![0; PLAIN_MAX].into_boxed_slice();
        let (out, came) = (Buffer::new(RECORDS_OUT * RECORD_MAX), Buffer::new(READ_BYTES));
        Self { stream, seals, gathered, out, came, opened: Buffer::new(OPENED_ROOM) }
    }

    pub(super) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    pub(super) fn has_unsent(&self) -> bool {
        !self.out.held.is_empty()
    }

    /// See [`Wire::is_holding`](super::wire::Wire::is_holding).
    pub(super) fn is_holding(&self) -> bool {
        // One that will not open counts: who looks is told.
        !self.opened.held.is_empty() || !matches!(self.seals.whole(self.came.held()), Ok(None))
    }

    /// See [`Wire::due`](super::wire::Wire::due). A record is longer than what is in it.
    pub(super) fn due(&self, left: u64) -> u64 {
        left.saturating_sub((self.opened.held.len() + self.came.held.len()) as u64)
    }

    /// See [`Wire::flush`](super::wire::Wire::flush).
    pub(super) fn flush(&mut self) -> OsResult<usize> {
        let mut sent = 0;
        while self.has_unsent() {
            match (&self.stream).write(self.out.held()) {
                Ok(count) => {
                    self.out.took(count);
                    sent += count;
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(OsError::from_io("send", "encrypted data connection", &e)),
            }
        }
        Ok(sent)
    }

    /// See [`Wire::write`](super::wire::Wire::write), as for the contract.
    #[allow(unsafe_code, reason = "passes on the contract of the call below")]
    pub(super) unsafe fn write(&mut self, ranges: &[RawRange]) -> OsResult<usize> {
        self.flush()?;
        if self.has_unsent() {
            return Err(OsError::new("send", "encrypted data connection", libc::EAGAIN));
        }
        let (mut rest, mut taken) = (Cursor::new(ranges), 0);
        loop {
            // SAFETY: S1. The caller's contract is the callee's.
            let sealed = unsafe { self.seal(&mut rest) };
            taken += sealed;
            self.flush()?;
            if sealed == 0 || self.has_unsent() {
                return Ok(taken);
            }
        }
    }

    /// Seals as much as the buffer has room for, which is empty; says how many bytes of the ranges that were.
    #[allow(unsafe_code, reason = "copies memory that others may write")]
    unsafe fn seal(&mut self, rest: &mut Cursor<'_>) -> usize {
        let (mut taken, mut end) = (0, 0);
        for _ in 0..RECORDS_OUT {
            let mut count = 0;
            while let Some(part) = rest.next(PLAIN_MAX - count) {
                // SAFETY: S1. The caller's contract: the ranges are mapped.
                unsafe {
                    copy::copy_out(&mut self.gathered[count..count + part.len()], part);
                }
                count += part.len();
            }
            if count == 0 {
                break;
            }
            end += self.seals.seal(&self.gathered[..count], &mut self.out.bytes[end..]);
            taken += count;
        }
        self.out.held = 0..end;
        taken
    }

    /// See [`Wire::read`](super::wire::Wire::read), as for the contract.
    #[allow(unsafe_code, reason = "passes on the contract of the call below")]
    pub(super) unsafe fn read(&mut self, ranges: &[RawRange]) -> Result<Came, ConnError> {
        let (mut room, mut bytes, mut asked) = (Cursor::new(ranges), 0, None);
        loop {
            // SAFETY: S1. The caller's contract is the callee's.
            bytes += unsafe { self.hand_out(&mut room) };
            if !self.opened.held.is_empty() || room.is_full() {
                return Ok(Came { bytes, drained: false });
            }
            if self.open()? {
                continue;
            }
            // Whoever reads asks again, unless the socket has no more.
            if let Some(drained) = asked {
                return Ok(Came { bytes, drained });
            }
            match self.fetch() {
                Err(ConnError::Closed) if bytes > 0 => return Ok(Came { bytes, drained: false }),
                fetched => asked = Some(fetched?),
            }
        }
    }

    /// Copies what is open to the ranges, as far as they have room.
    #[allow(unsafe_code, reason = "lands bytes in memory that others may write")]
    unsafe fn hand_out(&mut self, room: &mut Cursor<'_>) -> usize {
        let mut count = 0;
        while let Some(part) = room.next(self.opened.held.len()) {
            // SAFETY: S1. The caller's contract: the ranges are mapped and writable.
            unsafe {
                copy::copy_in(part, &self.opened.held()[..part.len()]);
            }
            self.opened.took(part.len());
            count += part.len();
        }
        count
    }

    /// Opens the next record, if it is there as a whole. Nothing may be open.
    fn open(&mut self) -> Result<bool, ConnError> {
        let Some(len) = self.seals.whole(self.came.held())? else { return Ok(false) };
        let count = self.seals.open(&self.came.held()[..len], &mut self.opened.bytes)?;
        self.opened.held = 0..count;
        self.came.took(len);
        Ok(true)
    }

    /// One call to the socket; whether it has no more now.
    fn fetch(&mut self) -> Result<bool, ConnError> {
        let held = self.came.held.clone();
        self.came.bytes.copy_within(held.clone(), 0);
        self.came.held = 0..held.len();
        match (&self.stream).read(&mut self.came.bytes[held.len()..]) {
            Ok(0) if held.is_empty() => Err(ConnError::Closed),
            Ok(0) => Err(self.seals.truncated().into()),
            Ok(count) => {
                self.came.held.end += count;
                Ok(self.came.held.end < self.came.bytes.len())
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(true),
            Err(e) if e.kind() == ErrorKind::Interrupted => Ok(false),
            Err(e) => Err(ConnError::Os(OsError::from_io("recv", "encrypted data connection", &e))),
        }
    }
}

/// Goes through ranges part by part.
struct Cursor<'a> {
    ranges: &'a [RawRange],
    offset: usize,
}

impl<'a> Cursor<'a> {
    fn new(ranges: &'a [RawRange]) -> Self {
        Self { ranges, offset: 0 }
    }

    /// The next part, of at most `max` bytes and one at least.
    fn next(&mut self, max: usize) -> Option<RawRange> {
        while let Some(range) = self.ranges.first()
            && max > 0
        {
            let part = range.sub(self.offset, (range.len() - self.offset).min(max))?;
            self.offset += part.len();
            if self.offset == range.len() {
                (self.ranges, self.offset) = (&self.ranges[1..], 0);
            }
            if !part.is_empty() {
                return Some(part);
            }
        }
        None
    }

    /// Nothing is left.
    fn is_full(&self) -> bool {
        self.ranges.iter().all(RawRange::is_empty)
    }
}

#[cfg(test)]
mod tests;
