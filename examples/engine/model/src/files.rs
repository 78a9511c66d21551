//! Reading small files of a model directory: bounded, and never outside the directory.

use std::fs::File;
use std::io::Read as _;
use std::path::{Component, Path, PathBuf};

use serde::de::DeserializeOwned;

use crate::error::ModelError;

/// Largest configuration or index file that is read.
pub(crate) const CONFIG_BYTES_MAX: u64 = 32 << 20;
/// Largest `tokenizer.json` that is read; the biggest published ones are near 35 MB.
pub(crate) const TOKENIZER_BYTES_MAX: u64 = 256 << 20;

/// Opens a regular file, following links; anything else could block for ever or never end.
pub(crate) fn open(path: &Path) -> Result<File, ModelError> {
    let io = |source| ModelError::Io { path: path.to_owned(), source };
    if !std::fs::metadata(path).map_err(io)?.is_file() {
        return Err(ModelError::Malformed { path: path.to_owned(), reason: "not a regular file".to_owned() });
    }
    File::open(path).map_err(io)
}

/// Reads a file of at most `max` bytes. `Ok(None)` if it does not exist.
pub(crate) fn read_optional(path: &Path, max: u64) -> Result<Option<Vec<u8>>, ModelError> {
    let file = match open(path) {
        Ok(file) => file,
        Err(ModelError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    let io = |source| ModelError::Io { path: path.to_owned(), source };
    file.take(max + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > max {
        let reason = format!("larger than {max} bytes");
        return Err(ModelError::Malformed { path: path.to_owned(), reason });
    }
    Ok(Some(bytes))
}

/// Reads a file of at most `max` bytes that has to exist.
pub(crate) fn read_required(path: &Path, max: u64) -> Result<Vec<u8>, ModelError> {
    read_optional(path, max)?
        .ok_or_else(|| ModelError::Io { path: path.to_owned(), source: std::io::ErrorKind::NotFound.into() })
}

/// Parses JSON, naming the file in the error.
pub(crate) fn parse_json<T: DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<T, ModelError> {
    serde_json::from_slice(bytes)
        .map_err(|error| ModelError::Malformed { path: path.to_owned(), reason: error.to_string() })
}

/// Joins a name that came from a file to the directory; a name that is not a plain file name is refused.
pub(crate) fn join_inside(dir: &Path, index: &Path, name: &str) -> Result<PathBuf, ModelError> {
    let mut parts = Path::new(name).components();
    match (parts.next(), parts.next()) {
        (Some(Component::Normal(part)), None) if part == name => Ok(dir.join(name)),
        _ => Err(ModelError::Malformed {
            path: index.to_owned(),
            reason: format!("it names {name:?}, which is not a file of this directory"),
        }),
    }
}
