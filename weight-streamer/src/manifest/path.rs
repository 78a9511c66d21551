//! Which paths a manifest may name. A receiver creates these under its own directory, so a path is hostile input.

use super::{FileEntry, ManifestError};

/// Longest path of a file.
pub const MAX_PATH_BYTES: usize = 4096;
/// Longest part of a path.
const MAX_PART_BYTES: usize = 255;
/// Names that begin like this are our own book-keeping and never part of a model.
pub const RESERVED_PREFIX: &str = ".headrace";

/// What is wrong with a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PathError {
    /// Empty, or with an empty part (`a//b`, a leading or trailing `/`).
    #[error("it is absolute or has an empty part")]
    EmptyPart,
    /// `.` or `..`.
    #[error("it has a part that is `.` or `..`")]
    Dots,
    /// Too long.
    #[error("it is too long")]
    TooLong,
    /// Characters that would change a terminal or a path.
    #[error("it has a control character or a backslash")]
    Character,
    /// One of our own names.
    #[error("names beginning with {RESERVED_PREFIX} are reserved")]
    Reserved,
}

/// Checks one path: relative, `/` between parts, no way out of the directory, printable, not reserved.
///
/// # Errors
/// What is wrong with it.
pub fn check_path(path: &str) -> Result<(), PathError> {
    if path.len() > MAX_PATH_BYTES {
        return Err(PathError::TooLong);
    }
    if path.chars().any(|c| c.is_control() || c == '\\') {
        return Err(PathError::Character);
    }
    path.split('/').try_for_each(|part| match part {
        "" => Err(PathError::EmptyPart),
        "." | ".." => Err(PathError::Dots),
        _ if part.len() > MAX_PART_BYTES => Err(PathError::TooLong),
        _ if part.starts_with(RESERVED_PREFIX) => Err(PathError::Reserved),
        _ => Ok(()),
    })
}

/// Checks all paths: each on its own, sorted strictly, and none a folder of another.
pub(super) fn check_all(files: &[FileEntry]) -> Result<(), ManifestError> {
    for file in files {
        check_path(&file.path).map_err(|reason| ManifestError::Path { path: file.path.clone(), reason })?;
    }
    let conflict = |first: &FileEntry, second: &FileEntry| ManifestError::Conflict {
        first: first.path.clone(),
        second: second.path.clone(),
    };
    if let Some(pair) = files.windows(2).find(|pair| pair[0].path >= pair[1].path) {
        return Err(conflict(&pair[0], &pair[1]));
    }
    for file in files {
        for (end, _) in file.path.match_indices('/') {
            if let Ok(index) = files.binary_search_by(|other| other.path.as_str().cmp(&file.path[..end])) {
                return Err(conflict(&files[index], file));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::Hash;

    #[test]
    fn escapes_are_refused() {
        for (path, reason) in [
            ("", PathError::EmptyPart),
            ("/etc/passwd", PathError::EmptyPart),
            ("a//b", PathError::EmptyPart),
            ("a/", PathError::EmptyPart),
            ("..", PathError::Dots),
            ("a/../../b", PathError::Dots),
            ("./a", PathError::Dots),
            ("a\\b", PathError::Character),
            ("a\0b", PathError::Character),
            ("a\u{1b}[31m", PathError::Character),
            (".headrace-manifest", PathError::Reserved),
            ("x/.headrace", PathError::Reserved),
        ] {
            assert_eq!(check_path(path), Err(reason), "{path:?}");
        }
        assert_eq!(check_path(&"a".repeat(256)), Err(PathError::TooLong));
        assert_eq!(check_path(&"a/".repeat(3000)), Err(PathError::TooLong));
        for path in ["a", "config.json", "...", "a/b c/ü.bin", ".gitattributes"] {
            assert_eq!(check_path(path), Ok(()), "{path:?}");
        }
    }

    #[test]
    fn a_file_is_no_folder() {
        let entry = |path: &str| FileEntry::new(path.into(), 0, false, Hash::of(b""));
        assert!(check_all(&[entry("a"), entry("a.b"), entry("b/c")]).is_ok());
        assert!(check_all(&[entry("a"), entry("a.b"), entry("a/b")]).is_err());
        assert!(check_all(&[entry("a"), entry("a")]).is_err());
        assert!(check_all(&[entry("b"), entry("a")]).is_err());
    }
}
