//! Which chunks were verified, as a file that survives `kill -9`: a header that names the model, then one small
//! checksummed record for each chunk, appended after the chunk lies in its place.
//!
//! The journal only ever *claims*. Who resumes hashes every claimed chunk again, so that a lost page of the disk
//! costs a refetch and never a wrong byte. A torn or damaged tail ends the reading; what stands before it counts.
//!
//! ```text
//! header: magic "HRWJ" · version u16 · reserved u16 · root hash 32 bytes · checksum 8 bytes
//! record: chunk u32 · checksum u32 (of root hash and chunk)
//! ```

use crate::codec::Reader;
use crate::manifest::Hash;

const MAGIC: &[u8; 4] = b"HRWJ";
const VERSION: u16 = 1;
/// Length of the header.
pub(crate) const HEADER_BYTES: usize = 48;
/// Length of one record.
pub(crate) const RECORD_BYTES: usize = 8;

/// The header of a journal of this model.
pub(crate) fn header(root: &Hash) -> [u8; HEADER_BYTES] {
    let mut out = [0; HEADER_BYTES];
    out[..4].copy_from_slice(MAGIC);
    out[4..6].copy_from_slice(&VERSION.to_le_bytes());
    out[8..40].copy_from_slice(root.as_bytes());
    let checksum = Hash::of(&out[..40]);
    out[40..].copy_from_slice(&checksum.as_bytes()[..8]);
    out
}

/// The record of one verified chunk.
pub(crate) fn record(root: &Hash, chunk: u32) -> [u8; RECORD_BYTES] {
    let mut input = [0; 36];
    input[..32].copy_from_slice(root.as_bytes());
    input[32..].copy_from_slice(&chunk.to_le_bytes());
    let mut out = [0; RECORD_BYTES];
    out[..4].copy_from_slice(&chunk.to_le_bytes());
    out[4..].copy_from_slice(&Hash::of(&input).as_bytes()[..4]);
    out
}

/// The chunks that a journal claims, each once, in order; none when it is the journal of something else.
pub(crate) fn claims(bytes: &[u8], root: &Hash, chunk_count: usize) -> Vec<u32> {
    let mut reader = Reader::new(bytes);
    if reader.array::<HEADER_BYTES>().ok() != Some(header(root)) {
        return Vec::new();
    }
    let mut claimed = Vec::new();
    while let Ok(raw) = reader.array::<RECORD_BYTES>() {
        let [a, b, c, d, ..] = raw;
        let chunk = u32::from_le_bytes([a, b, c, d]);
        let known = usize::try_from(chunk).is_ok_and(|chunk| chunk < chunk_count);
        if !known || raw != record(root, chunk) {
            break;
        }
        claimed.push(chunk);
    }
    claimed.sort_unstable();
    claimed.dedup();
    claimed
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn journal(root: &Hash, chunks: &[u32]) -> Vec<u8> {
        let mut bytes = header(root).to_vec();
        chunks.iter().for_each(|&chunk| bytes.extend(record(root, chunk)));
        bytes
    }

    #[test]
    fn another_model_claims_nothing() {
        let (ours, theirs) = (Hash::of(b"ours"), Hash::of(b"theirs"));
        assert_eq!(claims(&journal(&ours, &[3, 1, 3]), &ours, 4), [1, 3]);
        assert!(claims(&journal(&theirs, &[1]), &ours, 4).is_empty());
        assert!(claims(b"", &ours, 4).is_empty());
    }

    proptest! {
        #[test]
        fn a_torn_or_damaged_tail_keeps_what_stands_before(
            chunks in proptest::collection::vec(0_u32..50, 0..40),
            at in any::<prop::sample::Index>(), bit in 0_u8..8, tear in any::<bool>(),
        ) {
            let root = Hash::of(b"model");
            let mut bytes = journal(&root, &chunks);
            let at = at.index(bytes.len());
            if tear { bytes.truncate(at) } else { bytes[at] ^= 1 << bit }
            let whole = at.checked_sub(HEADER_BYTES).map_or(0, |past| past / RECORD_BYTES);
            let mut expected = chunks[..whole].to_vec();
            expected.sort_unstable();
            expected.dedup();
            prop_assert_eq!(claims(&bytes, &root, 50), expected);
        }

        #[test]
        fn any_tail_is_survived(tail in proptest::collection::vec(any::<u8>(), 0..100)) {
            let root = Hash::of(b"model");
            let mut bytes = header(&root).to_vec();
            bytes.extend(tail);
            prop_assert!(claims(&bytes, &root, 5).iter().all(|&chunk| chunk < 5));
        }
    }
}
