//! Payload under seal: the bytes of a data connection in long records, each of them length (u16, of what follows), then
//! ciphertext and tag.
//!
//! As in [`records`](super::records), a record has the number of those before it in its seal. Here sealing and opening
//! are apart from holding, so that who moves payload decides where it lies: what is opened goes to memory that nobody
//! else looks at, and is worth nothing before the whole record has proven to be the peer's.
//!
//! After [`REKEY_AFTER`] records of a direction both sides go on with a key made from the one before, which is
//! forgotten. Numbers go on, so no two records have key and number in common.

use std::fmt;

use snow::TransportState;

use super::records::TAG_BYTES;

const LENGTH_BYTES: usize = 2;
/// The longest message of Noise.
const SEALED_MAX: usize = 65535;
/// Bytes of a record, before they are sealed.
pub(crate) const PLAIN_MAX: usize = SEALED_MAX - TAG_BYTES;
/// The longest record on the wire.
pub(crate) const RECORD_MAX: usize = LENGTH_BYTES + SEALED_MAX;
/// Room to open a record in: its tag is taken along.
pub(crate) const OPENED_ROOM: usize = SEALED_MAX;
/// Records under one key: 4 GiB at most, where AES-GCM begins to be worth less after some 2^36 bytes.
pub(crate) const REKEY_AFTER: u64 = 1 << 16;

/// Something else than the peer's next record came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadRecord {
    /// It does not open.
    #[error("encrypted record {number} was changed, repeated, moved or left out on the way")]
    Tampered {
        /// How many good ones came before it.
        number: u64,
    },
    /// It ends before its end.
    #[error("the connection ended inside of encrypted record {number}")]
    Truncated {
        /// How many good ones came before it.
        number: u64,
    },
}

/// What seals and opens the records of one connection, in both directions.
pub(crate) struct Seals {
    noise: Box<TransportState>,
    sealed: u64,
    opened: u64,
}

impl Seals {
    pub(super) fn new(noise: TransportState) -> Self {
        Self { noise: Box::new(noise), sealed: 0, opened: 0 }
    }

    /// Seals at most [`PLAIN_MAX`] bytes into one record at the front of `out`, which has room for it; says how long it
    /// is. Cost: the cipher, and a copy; no allocation.
    #[expect(clippy::expect_used, reason = "fails on buffers that are too short, or after 2^64 records")]
    pub(crate) fn seal(&mut self, plain: &[u8], out: &mut [u8]) -> usize {
        let (length, body) = out.split_at_mut(LENGTH_BYTES);
        let len = self.noise.write_message(plain, body).expect("room for a record");
        length.copy_from_slice(&u16::try_from(len).expect("records are short").to_le_bytes());
        self.sealed += 1;
        if self.sealed.is_multiple_of(REKEY_AFTER) {
            self.noise.rekey_outgoing();
        }
        LENGTH_BYTES + len
    }

    /// How long the record at the front of `held` is on the wire; `None` while it is not there as a whole.
    pub(crate) fn whole(&self, held: &[u8]) -> Result<Option<usize>, BadRecord> {
        let Some((len, rest)) = held.split_first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
        let len = usize::from(u16::from_le_bytes(*len));
        // One without a byte in it is never sent, and would cost its reader more than its sender.
        if len <= TAG_BYTES {
            return Err(self.tampered());
        }
        Ok((rest.len() >= len).then_some(LENGTH_BYTES + len))
    }

    /// Opens a whole record into `plain`, which has [`OPENED_ROOM`]; says how many bytes were in it. Where it fails, what
    /// `plain` holds is nobody's. Cost: as of [`Seals::seal`].
    pub(crate) fn open(&mut self, record: &[u8], plain: &mut [u8]) -> Result<usize, BadRecord> {
        let len = self.noise.read_message(&record[LENGTH_BYTES..], plain).map_err(|_| self.tampered())?;
        self.opened += 1;
        if self.opened.is_multiple_of(REKEY_AFTER) {
            self.noise.rekey_incoming();
        }
        Ok(len)
    }

    fn tampered(&self) -> BadRecord {
        BadRecord::Tampered { number: self.opened }
    }

    /// What it is called when nothing more comes of a record.
    pub(crate) fn truncated(&self) -> BadRecord {
        BadRecord::Truncated { number: self.opened }
    }
}

impl fmt::Debug for Seals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sealed, opened, .. } = self;
        f.debug_struct("Seals").field("sealed", sealed).field("opened", opened).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::super::handshake::tests::encrypted_pair;
    use super::*;

    fn sealed(seals: &mut Seals, plain: &[u8]) -> Vec<u8> {
        let mut out = vec![0; RECORD_MAX];
        let len = seals.seal(plain, &mut out);
        out.truncate(len);
        out
    }

    fn opened(seals: &mut Seals, record: &[u8]) -> Result<Option<Vec<u8>>, BadRecord> {
        let Some(len) = seals.whole(record)? else { return Ok(None) };
        let mut plain = vec![0; OPENED_ROOM];
        let count = seals.open(&record[..len], &mut plain)?;
        plain.truncate(count);
        Ok(Some(plain))
    }

    #[test]
    fn what_is_sealed_is_opened_in_both_directions() {
        let (mut a, mut b) = encrypted_pair();
        for len in [1, 15, 16, 4096, PLAIN_MAX] {
            let plain: Vec<u8> = (0..len).map(|at| at.to_le_bytes()[0]).collect();
            let record = sealed(&mut a, &plain);
            assert_eq!(record.len(), len + LENGTH_BYTES + TAG_BYTES);
            for cut in [0, 1, 2, record.len() - 1] {
                assert_eq!(opened(&mut b, &record[..cut]), Ok(None), "cut after {cut}");
            }
            assert!(opened(&mut b, &record).unwrap().unwrap() == plain, "{len} bytes");
            let back = sealed(&mut b, &plain);
            assert!(back != record, "directions have keys of their own");
            assert!(opened(&mut a, &back).unwrap().unwrap() == plain);
        }
    }

    #[test]
    fn a_flipped_bit_anywhere_yields_nothing() {
        let len = LENGTH_BYTES + 24 + TAG_BYTES;
        for (at, bit) in (0..len).flat_map(|at| (0..8).map(move |bit| (at, bit))) {
            let (mut a, mut b) = encrypted_pair();
            let mut wire = sealed(&mut a, b"twenty-four bytes in it.");
            wire[at] ^= 1 << bit;
            // A longer length waits for more, which then does not fit.
            wire.resize(RECORD_MAX, 0);
            let told = opened(&mut b, &wire);
            assert_eq!(told, Err(BadRecord::Tampered { number: 0 }), "byte {at}, bit {bit}");
        }
    }

    #[test]
    fn records_left_out_repeated_or_swapped_do_not_open() {
        let orders: [&[usize]; 4] = [&[1], &[0, 0], &[1, 0], &[0, 2]];
        for order in orders {
            let (mut a, mut b) = encrypted_pair();
            let wires: Vec<_> = [b"one", b"two", b"tri"].map(|m| sealed(&mut a, m)).into();
            let told = order.iter().try_for_each(|&which| opened(&mut b, &wires[which]).map(drop));
            let good = u64::from(order[0] == 0);
            assert_eq!(told, Err(BadRecord::Tampered { number: good }), "{order:?}");
        }
    }

    #[test]
    fn what_one_side_sealed_does_not_open_there() {
        let (mut a, _b) = encrypted_pair();
        let wire = sealed(&mut a, b"mirrored");
        assert!(opened(&mut a, &wire).is_err());
    }

    #[test]
    fn keys_change_on_both_sides_after_the_same_record() {
        let (mut a, mut b) = encrypted_pair();
        let (mut wire, mut plain) = (vec![0; RECORD_MAX], vec![0; OPENED_ROOM]);
        for number in 0..2 * REKEY_AFTER + 1 {
            let len = a.seal(&number.to_le_bytes(), &mut wire);
            let count = b.open(&wire[..len], &mut plain).unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(plain[..count], number.to_le_bytes());
        }
        // One side alone that forgets to is not understood.
        let (mut a, mut b) = encrypted_pair();
        a.noise.rekey_outgoing();
        let wire = sealed(&mut a, b"under another key");
        assert!(opened(&mut b, &wire).is_err());
    }
}
