//! Is a directory what it should be?

use crate::destination::{MARKER, check_dir};
use crate::error::Error;
use crate::manifest::{Hash, MAX_ENCODED_BYTES, Manifest};
use std::fs;
use std::path::Path;

/// Hashes every file of a pulled directory and compares it with the manifest that was kept with it.
///
/// # Errors
/// When the directory has no manifest, is another model than `expect`, or a file is missing or different.
pub fn verify(dir: &Path, expect: Option<Hash>, threads: usize) -> Result<Manifest, Error> {
    let path = dir.join(MARKER);
    let mismatch = |found: String| Error::Mismatch { dir: dir.to_path_buf(), found };
    let len = fs::metadata(&path).map_err(|source| Error::io("read the manifest in", &path, source))?.len();
    if usize::try_from(len).is_ok_and(|len| len > MAX_ENCODED_BYTES) {
        return Err(mismatch(format!("{MARKER} is larger than any manifest")));
    }
    let bytes = fs::read(&path).map_err(|source| Error::io("read the manifest in", &path, source))?;
    let manifest =
        Manifest::decode(&bytes).map_err(|error| mismatch(format!("{MARKER} cannot be read: {error}")))?;
    let root = manifest.root();
    if let Some(expected) = expect.filter(|expected| *expected != root) {
        return Err(mismatch(format!("its root hash is {root}, not {expected}")));
    }
    check_dir(dir, &manifest, threads)?;
    Ok(manifest)
}
