//! Input that is read as a sequence of steps, for what has a state.

use std::time::Duration;

use transfer_proto::proto::time::Time;

/// Takes small numbers off the front of an input.
#[derive(Clone, Copy, Debug)]
pub struct Steps<'a>(&'a [u8]);

impl<'a> Steps<'a> {
    /// At the start of `bytes`.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The next byte, or `None` at the end.
    pub fn next_step(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    /// The next byte, 0 after the end.
    pub fn byte(&mut self) -> u8 {
        self.next_step().unwrap_or(0)
    }

    /// The next two bytes as a number.
    pub fn wide(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    /// The next `len` bytes, or what is left.
    pub fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }
}

/// So many milliseconds after the start.
#[must_use]
pub fn at(ms: u64) -> Time {
    Time::at(Duration::from_millis(ms))
}
