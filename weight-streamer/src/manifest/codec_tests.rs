//! The codec gives back what it was given, and survives everything else.

use super::*;
use crate::manifest::MIN_CHUNK_BYTES;
use proptest::prelude::*;

/// Any valid manifest, small.
fn any_manifest() -> impl Strategy<Value = Manifest> {
    let file = ("[a-z]{1,8}(/[a-z]{1,8}){0,2}", 0_u64..40_000, any::<bool>(), any::<[u8; 32]>());
    let extension = (0_u16..TAG_CRITICAL, proptest::collection::vec(any::<u8>(), 0..20));
    (
        proptest::collection::vec(file, 0..12),
        proptest::collection::vec(("[a-z.]{0,12}", 0_usize..12, 0_u64..500, 0_u64..500), 0..12),
        proptest::collection::vec(extension, 0..3),
        1_u32..4,
        any::<u8>(),
    )
        .prop_filter_map("paths in conflict", |(files, tensors, extensions, factor, seed)| {
            build(files, tensors, extensions, factor, seed)
        })
}

fn build(
    files: Vec<(String, u64, bool, [u8; 32])>,
    tensors: Vec<(String, usize, u64, u64)>,
    extensions: Vec<(u16, Vec<u8>)>,
    factor: u32,
    seed: u8,
) -> Option<Manifest> {
    let chunk_bytes = MIN_CHUNK_BYTES * factor;
    let mut files: Vec<_> = files
        .into_iter()
        .map(|(path, size, executable, hash)| FileEntry::new(path, size, executable, Hash::from_bytes(hash)))
        .collect();
    files.sort_by(|a, b| a.path.cmp(&b.path));
    files.dedup_by(|a, b| a.path == b.path);
    let mut runs: Vec<_> = tensors
        .into_iter()
        .filter(|(_, file, begin, len)| files.get(*file).is_some_and(|file| begin + len * 2 <= file.size))
        .map(|(name, file, begin, len)| {
            let file = u32::try_from(file).unwrap();
            TensorEntry::new(name, Dtype::Bf16, vec![1, len], file, begin, len * 2)
        })
        .collect();
    runs.sort_by(|a, b| (a.file, a.begin, a.len, &a.name).cmp(&(b.file, b.begin, b.len, &b.name)));
    runs.dedup();
    let chunks: u64 = files.iter().map(|file| file.size.div_ceil(u64::from(chunk_bytes))).sum();
    let hashes = (0..chunks).map(|i| Hash::of(&[seed, u8::try_from(i % 251).unwrap()])).collect();
    let extensions = extensions.into_iter().map(|(tag, bytes)| Extension { tag, bytes }).collect();
    Manifest::with_extensions(chunk_bytes, files, runs, hashes, extensions).ok()
}

proptest! {
    #[test]
    fn round_trip(manifest in any_manifest()) {
        let bytes = manifest.encode();
        prop_assert_eq!(&Manifest::decode(&bytes).unwrap(), &manifest);
        for cut in 0..bytes.len() {
            prop_assert!(Manifest::decode(&bytes[..cut]).is_err(), "accepted {} of {} bytes", cut, bytes.len());
        }
        let mut longer = bytes;
        longer.push(0);
        prop_assert!(Manifest::decode(&longer).is_err());
    }

    #[test]
    fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..400), with_head in any::<bool>()) {
        let mut input = if with_head { b"HRWM\x01\0\x01\0\0\0\x40\0".to_vec() } else { Vec::new() };
        input.extend(bytes);
        if let Ok(manifest) = Manifest::decode(&input) {
            prop_assert_eq!(manifest.encode(), input);
        }
    }

    #[test]
    fn a_flipped_bit_never_goes_unseen(manifest in any_manifest(), at in any::<prop::sample::Index>()) {
        let mut bytes = manifest.encode();
        let root = manifest.root();
        let bit = at.index(bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        if let Ok(other) = Manifest::decode(&bytes) {
            prop_assert_eq!(other.encode(), bytes);
            prop_assert_ne!(other.root(), root);
        }
    }

    #[test]
    fn chunks_tile_every_file(manifest in any_manifest()) {
        let mut next = 0;
        for (index, file) in manifest.files().iter().enumerate() {
            let mut offset = 0;
            while offset < file.size {
                let chunk = manifest.chunk(next).unwrap();
                prop_assert_eq!((chunk.file, chunk.offset), (index, offset));
                prop_assert!(chunk.len > 0 && chunk.len <= manifest.chunk_bytes());
                offset += u64::from(chunk.len);
                next += 1;
            }
            prop_assert_eq!(offset, file.size);
        }
        prop_assert_eq!(usize::try_from(next).unwrap(), manifest.chunk_count());
        prop_assert!(manifest.chunk(next).is_none());
    }
}

#[test]
fn a_huge_count_allocates_nothing() {
    let mut bytes = b"HRWM\x01\0\x01\0\0\0\x40\0".to_vec();
    bytes.extend([0xff; 12]);
    assert_eq!(Manifest::decode(&bytes), Err(DecodeError::Limit("the number of files")));
}

#[test]
fn what_is_not_known_is_refused_by_name() {
    let good = Manifest::new(4096, Vec::new(), Vec::new(), Vec::new()).unwrap().encode();
    let with = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] = value;
        Manifest::decode(&bytes)
    };
    assert_eq!(with(4, 9), Err(DecodeError::Version { found: 9 }));
    assert_eq!(with(6, 2), Err(DecodeError::Unknown { what: "hash kind", found: 2 }));
    assert_eq!(with(7, 1), Err(DecodeError::Unknown { what: "reserved field", found: 1 }));
    assert_eq!(with(8, 1), Err(DecodeError::Invalid(ManifestError::ChunkSize(4097))));
}
