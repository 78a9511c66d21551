//! A stream of bytes, cut into records that only the other end of the handshake can have sealed: length (u16, of what
//! follows), then as many bytes of ciphertext and tag as that.
//!
//! Each record has the number of those before it in its seal, so one that is left out, repeated or moved does not
//! open, and neither does any after it.

use std::fmt;

use snow::TransportState;

/// Bytes of a record, before they are sealed.
const PLAIN_MAX: usize = 16 << 10;
const LENGTH_BYTES: usize = 2;
pub(super) const TAG_BYTES: usize = 16;

/// Something else than the peer's next record came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tampered;

/// Both directions of a sealed connection.
pub(crate) struct Records {
    noise: Box<TransportState>,
    /// The part of a record that has come.
    held: Vec<u8>,
}

impl Records {
    pub(super) fn new(noise: TransportState) -> Self {
        Self { noise: Box::new(noise), held: Vec::new() }
    }

    /// Seals the first bytes of `plain` into one record behind `out`; says how many that were.
    #[expect(clippy::expect_used, reason = "fails on buffers that are too short, or after 2^64 records")]
    pub(crate) fn seal(&mut self, plain: &[u8], out: &mut Vec<u8>) -> usize {
        let plain = &plain[..plain.len().min(PLAIN_MAX)];
        let len = u16::try_from(plain.len() + TAG_BYTES).expect("records are short");
        let start = out.len() + LENGTH_BYTES;
        out.extend_from_slice(&len.to_le_bytes());
        out.resize(start + usize::from(len), 0);
        self.noise.write_message(plain, &mut out[start..]).expect("the buffer is as long as the record");
        plain.len()
    }

    /// Takes bytes off the connection and appends what was sealed in them; where one record does not open, what was
    /// sealed in those before it.
    pub(crate) fn open(&mut self, bytes: &[u8], plain: &mut Vec<u8>) -> Result<(), Tampered> {
        self.held.extend_from_slice(bytes);
        let mut at = 0;
        while let Some((len, rest)) = self.held[at..].split_first_chunk::<LENGTH_BYTES>() {
            let len = usize::from(u16::from_le_bytes(*len));
            if !(TAG_BYTES..=PLAIN_MAX + TAG_BYTES).contains(&len) {
                return Err(Tampered);
            }
            let Some(sealed) = rest.get(..len) else { break };
            let start = plain.len();
            plain.resize(start + len - TAG_BYTES, 0);
            if self.noise.read_message(sealed, &mut plain[start..]).is_err() {
                plain.truncate(start);
                return Err(Tampered);
            }
            at += LENGTH_BYTES + len;
        }
        self.held.drain(..at);
        Ok(())
    }
}

impl fmt::Debug for Records {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Records").field("held", &self.held.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::super::handshake::tests::sealed_pair;
    use super::*;

    fn sealed(records: &mut Records, mut plain: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        while !plain.is_empty() {
            let taken = records.seal(plain, &mut out);
            plain = &plain[taken..];
        }
        out
    }

    #[test]
    fn what_is_sealed_is_opened_however_the_stream_is_cut() {
        let message: Vec<u8> = (0..50_000_u32).map(|at| at.to_le_bytes()[0]).collect();
        for step in [1, 7, 20_000, 60_000] {
            let (mut a, mut b) = sealed_pair();
            for _direction in 0..2 {
                let mut got = Vec::new();
                for part in sealed(&mut a, &message).chunks(step) {
                    b.open(part, &mut got).unwrap();
                }
                assert!(got == message && b.held.is_empty(), "in steps of {step}");
                std::mem::swap(&mut a, &mut b);
            }
        }
    }

    #[test]
    fn a_flipped_bit_anywhere_yields_nothing() {
        for at in 0..40 {
            for bit in 0..8 {
                let (mut a, mut b) = sealed_pair();
                let mut wire = sealed(&mut a, b"twenty-two bytes, sealed");
                wire[at] ^= 1 << bit;
                let mut got = Vec::new();
                let opened = b.open(&wire, &mut got);
                // A longer length waits for more, which then does not fit.
                let longer = opened.is_ok() && b.open(&[0; 1 << 16], &mut got).is_err();
                assert!(opened.is_err() || longer, "byte {at}, bit {bit}");
                assert!(got.is_empty(), "byte {at}, bit {bit}");
            }
        }
    }

    #[test]
    fn records_left_out_repeated_or_swapped_do_not_open() {
        let orders: [&[usize]; 4] = [&[1], &[0, 0], &[1, 0], &[0, 2]];
        for order in orders {
            let (mut a, mut b) = sealed_pair();
            let wires: Vec<_> = [b"one", b"two", b"tri"].map(|m| sealed(&mut a, m)).into();
            let mut got = Vec::new();
            let opened = order.iter().try_for_each(|&which| b.open(&wires[which], &mut got));
            assert_eq!(opened, Err(Tampered), "{order:?}");
        }
    }

    #[test]
    fn what_one_side_sealed_does_not_open_there() {
        let (mut a, _b) = sealed_pair();
        let wire = sealed(&mut a, b"mirrored");
        assert_eq!(a.open(&wire, &mut Vec::new()), Err(Tampered));
    }
}
