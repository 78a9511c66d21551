//! Values of directory entries.

use transfer_core::directory::Entry;

/// The first byte is how many bytes of name follow, under which the rest was found. What is taken belongs to that name, has
/// one encoding, and can be published as it is.
pub fn check(bytes: &[u8]) {
    let Some((len, rest)) = bytes.split_first() else { return };
    let (name, value) = rest.split_at(usize::from(*len).min(rest.len()));
    let Ok(name) = str::from_utf8(name) else { return };
    match Entry::decode("key", name, value) {
        Ok(entry) => {
            assert_eq!(entry.name, name);
            assert_eq!(entry.encode(), value);
            if !name.is_empty() {
                assert_eq!(Entry::new(&entry.blob, entry.ttl).expect("it was published"), entry);
            }
        }
        Err(corrupt) => assert!(!corrupt.to_string().is_empty()),
    }
}
