//! Bytes off a data connection: heads into a buffer, payload straight to where it belongs.
//!
//! After a long payload only what the next head needs is asked for, and the end of one payload and the header
//! behind it come with one call, so no payload goes through the buffer. Between short messages a few KiB are asked
//! for at once, so that a small slice comes whole with one call.

use std::ops::Range;

use transfer_proto::codec::DecodeError;
use transfer_proto::desc::DescList;
use transfer_proto::proto::data::{DESCS_BYTES_MAX, HEADER_BYTES, Head};
use transfer_sys::process::RANGES_MAX;
use transfer_sys::{RawRange, copy};

use super::conn::ConnError;
use super::wire::{Came, Wire};
use crate::backend::shm::advance;

/// Bytes asked for at a time between short messages, and the longest payload that may go through the buffer.
const SHORT_BYTES: usize = 8 << 10;
/// A header with the longest descriptor list.
const BUFFER_BYTES: usize = HEADER_BYTES + DESCS_BYTES_MAX as usize;
/// Payload bytes of one call: they take the kernel less than a millisecond.
const READ_BYTES: usize = 2 << 20;

/// Where a payload goes, as far as it has not come.
pub(super) struct Target {
    pub(super) ranges: Vec<RawRange>,
    at: usize,
    pub(super) left: u64,
}

impl Target {
    /// `ranges` have `left` bytes.
    pub(super) fn new(ranges: Vec<RawRange>, left: u64) -> Self {
        Self { ranges, at: 0, left }
    }

    fn took(&mut self, count: usize) {
        self.left -= count as u64;
        self.at += advance(&mut self.ranges[self.at..], count);
    }
}

/// The receiving half of a data connection.
pub(super) struct Intake {
    buffer: Box<[u8]>,
    /// The part of the buffer that holds bytes.
    held: Range<usize>,
    /// The last payload was a long one.
    bulk: bool,
    /// Ranges of one call, kept for the next.
    scratch: Vec<RawRange>,
    /// Memory for the next list.
    spare: DescList,
}

impl Intake {
    pub(super) fn new() -> Self {
        let buffer = vec![0; BUFFER_BYTES].into_boxed_slice();
        Self { buffer, held: 0..0, bulk: false, scratch: Vec::new(), spare: DescList::new() }
    }

    /// The head at the front of what is held; it stays there until it is taken.
    pub(super) fn head(&mut self) -> Result<Head, DecodeError> {
        Head::decode_with(&self.buffer[self.held.clone()], &mut self.spare)
    }

    /// A list whose memory the next one may have.
    pub(super) fn reuse(&mut self, list: DescList) {
        self.spare = list;
    }

    /// Takes a head off, behind which so many bytes of payload come.
    pub(super) fn take_head(&mut self, len: usize, payload_len: u64) {
        self.held.start += len;
        self.bulk = payload_len > SHORT_BYTES as u64;
    }

    /// Drops held bytes, at most `max`; says how many.
    pub(super) fn discard(&mut self, max: u64) -> usize {
        let count = usize::try_from(max).unwrap_or(usize::MAX).min(self.held.len());
        self.held.start += count;
        count
    }

    /// Copies what is held of a payload to where it belongs.
    pub(super) fn land_held(&mut self, target: &mut Target) -> bool {
        let before = self.held.start;
        while target.left > 0 && !self.held.is_empty() {
            let range = target.ranges[target.at];
            let len = range.len().min(self.held.len());
            let bytes = &self.buffer[self.held.start..self.held.start + len];
            let part = range.sub(0, len).unwrap_or(range);
            #[allow(unsafe_code, reason = "lands bytes in registered memory")]
            // SAFETY: I1 and I2. Whoever made the target keeps the memory; the ranges were checked against it.
            unsafe {
                copy::copy_in(part, bytes);
            }
            self.held.start += len;
            target.took(len);
        }
        self.held.start > before
    }

    /// Reads what is missing of a head, and more where messages are short.
    pub(super) fn read_head(&mut self, wire: &mut Wire, missing: usize) -> Result<Came, ConnError> {
        if self.held.start > 0 {
            self.buffer.copy_within(self.held.clone(), 0);
            self.held = 0..self.held.len();
        }
        let wanted = if self.bulk { missing } else { missing.max(SHORT_BYTES) };
        let end = (self.held.end + wanted).min(self.buffer.len());
        let came = wire.read_slice(&mut self.buffer[self.held.end..end])?;
        self.held.end += came.bytes;
        Ok(came)
    }

    /// Reads payload to where it belongs, and the header behind it. Nothing may be held.
    pub(super) fn land(&mut self, wire: &mut Wire, target: &mut Target) -> Result<Came, ConnError> {
        self.scratch.clear();
        let mut asked = 0;
        for range in target.ranges[target.at..].iter().take(RANGES_MAX - 1) {
            let part = range.sub(0, range.len().min(READ_BYTES - asked)).unwrap_or(*range);
            self.scratch.push(part);
            asked += part.len();
            if asked == READ_BYTES {
                break;
            }
        }
        self.held = 0..0;
        let behind = if asked as u64 == target.left { HEADER_BYTES } else { 0 };
        self.scratch.push(RawRange::new(self.buffer.as_mut_ptr(), behind));
        #[allow(unsafe_code, reason = "reads into registered memory")]
        // SAFETY: I1 and I2, as above; the last range is the front of the buffer, which nobody else looks at.
        let came = unsafe { wire.read(&self.scratch) }?;
        target.took(came.bytes.min(asked));
        self.held = 0..came.bytes.saturating_sub(asked);
        Ok(came)
    }

    /// Reads payload that belongs nowhere. Nothing may be held.
    pub(super) fn sink(&mut self, wire: &mut Wire, left: u64) -> Result<Came, ConnError> {
        let end = usize::try_from(left).unwrap_or(usize::MAX).min(self.buffer.len());
        let came = wire.read_slice(&mut self.buffer[..end])?;
        self.held = 0..came.bytes;
        Ok(came)
    }
}
