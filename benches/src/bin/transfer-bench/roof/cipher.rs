//! What encrypts the path tcp, alone: records of the same length, sealed on one core.

use std::hint::black_box;

use anyhow::{Context as _, Result};
use snow::{Builder, TransportState};

/// As between agents; it is the cipher that counts, not who is met.
const PATTERN: &str = "Noise_NN_25519_AESGCM_BLAKE2s";
/// The longest message of Noise, and what is its tag.
const RECORD_BYTES: usize = 65535;
const TAG_BYTES: usize = 16;
/// Room for a message of the handshake.
const HELLO_BYTES: usize = 64;

/// Seals again and again.
pub(crate) struct Cipher {
    noise: Box<TransportState>,
    plain: Vec<u8>,
    sealed: Vec<u8>,
}

impl Cipher {
    pub(crate) fn new() -> Result<Self> {
        let pattern = || PATTERN.parse().context("a pattern that the library does not know");
        let mut here = Builder::new(pattern()?).build_initiator()?;
        let mut there = Builder::new(pattern()?).build_responder()?;
        let mut hello = [0; HELLO_BYTES];
        let len = here.write_message(&[], &mut hello)?;
        there.read_message(&hello[..len], &mut [])?;
        let len = there.write_message(&[], &mut hello)?;
        here.read_message(&hello[..len], &mut [])?;
        let noise = Box::new(here.into_transport_mode()?);
        Ok(Self { noise, plain: vec![1; RECORD_BYTES - TAG_BYTES], sealed: vec![0; RECORD_BYTES] })
    }

    /// Seals about so many bytes, in records no longer than that; says how many they were.
    pub(crate) fn seal(&mut self, bytes: u64) -> Result<u64> {
        let (mut left, mut sealed) = (usize::try_from(bytes)?, 0);
        while left > 0 {
            let len = left.min(self.plain.len());
            self.noise.write_message(black_box(&self.plain[..len]), &mut self.sealed)?;
            black_box(&mut self.sealed);
            left -= len;
            sealed += len as u64;
        }
        Ok(sealed)
    }
}
