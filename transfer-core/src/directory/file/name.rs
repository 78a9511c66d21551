//! Names of agents as names of files: nothing but letters, digits, `-` and `_` stands for itself, everything else is
//! `%` and two digits. So no name leads out of the folder, is hidden, or differs from another in case only on paper.

use super::super::error::DirectoryError;

/// What the file of an agent ends with.
const SUFFIX: &str = ".agent";
/// What the file ends with that says whose a name was last. It is no longer than [`SUFFIX`].
const LIFE_SUFFIX: &str = ".life";
/// What file systems take.
const FILE_NAME_MAX: usize = 255;

/// The file of the agent `name`.
pub(super) fn escape(name: &str) -> Result<String, DirectoryError> {
    let mut out = String::with_capacity(name.len() + SUFFIX.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_' {
            out.push(char::from(byte));
        } else {
            out.push('%');
            out.extend(
                [byte >> 4, byte & 15].map(|digit| char::from(b"0123456789ABCDEF"[usize::from(digit)])),
            );
        }
    }
    out.push_str(SUFFIX);
    if out.len() > FILE_NAME_MAX {
        let problem = "as the name of a file it would be longer than 255 bytes";
        return Err(DirectoryError::InvalidName { name: name.to_owned(), problem });
    }
    Ok(out)
}

/// The file that says whose the name was last.
pub(super) fn escape_life(name: &str) -> Result<String, DirectoryError> {
    let file = escape(name)?;
    Ok(file.strip_suffix(SUFFIX).unwrap_or_default().to_owned() + LIFE_SUFFIX)
}

/// The agent whose file that is. `None` for a file that [`escape`] never gives.
pub(super) fn unescape(file: &str) -> Option<String> {
    let mut rest = file.strip_suffix(SUFFIX)?.as_bytes();
    let mut name = Vec::with_capacity(rest.len());
    while let [byte, tail @ ..] = rest {
        (rest, name) = match (*byte, tail) {
            (b'%', [high, low, tail @ ..]) => {
                let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|d| u8::try_from(d).ok());
                name.push(digit(*high)? << 4 | digit(*low)?);
                (tail, name)
            }
            (byte, tail) => {
                name.push(byte);
                (tail, name)
            }
        };
    }
    let name = String::from_utf8(name).ok()?;
    // One name, one file: a second spelling would be a second agent of the name.
    (escape(&name).ok()? == file && !name.is_empty()).then_some(name)
}

/// Whether it is meant to be the file of an agent.
pub(super) fn is_entry(file: &str) -> bool {
    file.ends_with(SUFFIX)
}

/// Whether it says whose a name was last.
pub(super) fn is_life(file: &str) -> bool {
    file.ends_with(LIFE_SUFFIX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn nothing_leads_out_of_the_folder() {
        assert_eq!(escape("../../etc/passwd").unwrap(), "%2E%2E%2F%2E%2E%2Fetc%2Fpasswd.agent");
        assert_eq!(escape(".").unwrap(), "%2E.agent");
        assert_eq!(escape("a\0b").unwrap(), "a%00b.agent");
        assert!(escape(&"é".repeat(100)).is_err());
    }

    #[test]
    fn second_spellings_are_no_names() {
        for file in ["%61.agent", "%2e.agent", "..agent", ".agent", "a", "%4.agent", "%FF.agent", "%+4.agent"]
        {
            assert_eq!(unescape(file), None, "{file}");
        }
    }

    proptest! {
        #[test]
        fn every_name_comes_back(name in "\\PC{1,20}") {
            prop_assert_eq!(unescape(&escape(&name).unwrap()), Some(name));
        }

        #[test]
        fn no_file_name_panics(file in "\\PC{0,40}") {
            let _name = unescape(&format!("{file}.agent"));
        }
    }
}
