//! The key that agents share.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::str::FromStr;

use zeroize::{Zeroize, Zeroizing};

use crate::error::{Error, Result};

/// Length of a key.
pub(crate) const KEY_BYTES: usize = 32;
/// More than a key file can hold, however it is written.
const FILE_BYTES_MAX: usize = 256;

/// 32 random bytes that all agents of a group have and nobody else; see [`Config::key`](crate::Config::key).
///
/// Made by `openssl rand -hex 32 > key; chmod 600 key`, say. A password is no key: it can be guessed, and is not
/// slowed down here. It is never shown, and wiped from memory when it is dropped.
#[derive(Clone)]
pub struct Key(Zeroizing<[u8; KEY_BYTES]>);

impl Key {
    /// From its bytes.
    #[must_use]
    pub fn from_bytes(bytes: [u8; KEY_BYTES]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// From a file that holds it as text (see [`Key::from_str`]) or as 32 bytes, and that nobody but its owner may
    /// read or write.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] where the file cannot be read, others may read or write it, or it holds no key.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let unreadable = |e: std::io::Error| invalid(format!("cannot be read from {}: {e}", path.display()));
        let file = File::open(path).map_err(unreadable)?;
        let mode = file.metadata().map_err(unreadable)?.mode();
        if mode & 0o077 != 0 {
            let path = path.display();
            let problem =
                format!("file {path} is open to others (mode {:o}); chmod 600 {path}", mode & 0o777);
            return Err(invalid(problem));
        }
        let mut content = Zeroizing::new(Vec::with_capacity(FILE_BYTES_MAX));
        file.take(FILE_BYTES_MAX as u64).read_to_end(&mut content).map_err(unreadable)?;
        if let Ok(bytes) = <[u8; KEY_BYTES]>::try_from(content.as_slice()) {
            return Ok(Self::from_bytes(bytes));
        }
        let text = std::str::from_utf8(&content).map_err(|_| no_key())?;
        text.parse()
    }

    pub(crate) fn bytes(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }
}

/// Text of 64 hexadecimal digits, or of 44 characters of base64 (RFC 4648, the last of which may be missing); white
/// space around it does not count.
impl FromStr for Key {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let text = text.trim().as_bytes();
        let mut key = Self::from_bytes([0; KEY_BYTES]);
        let read = match text.len() {
            64 => hex(text, &mut key.0),
            44 if text[43] == b'=' => base64(&text[..43], &mut key.0),
            43 => base64(text, &mut key.0),
            _ => None,
        };
        read.map(|()| key).ok_or_else(no_key)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

fn invalid(problem: String) -> Error {
    Error::InvalidConfig { field: "key", problem }
}

fn no_key() -> Error {
    invalid("is no key; 64 hexadecimal digits, 44 characters of base64 or a file of 32 bytes are".to_owned())
}

fn hex(text: &[u8], out: &mut [u8; KEY_BYTES]) -> Option<()> {
    let digit = |c: u8| char::from(c).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    for (pair, byte) in text.chunks_exact(2).zip(out) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(())
}

/// 43 characters: 256 bits, and two that must be zero.
fn base64(text: &[u8], out: &mut [u8; KEY_BYTES]) -> Option<()> {
    let (mut held, mut bits, mut at) = (0_u32, 0, 0);
    for &c in text {
        let value = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        held = held << 6 | u32::from(value);
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            *out.get_mut(at)? = u8::try_from(held >> bits).ok()?;
            held &= (1 << bits) - 1;
            at += 1;
        }
    }
    let rest = held;
    held.zeroize();
    (rest == 0).then_some(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const HEX: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191A1B1C1D1E1F";
    const BASE64: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

    fn counted() -> [u8; KEY_BYTES] {
        std::array::from_fn(|at| u8::try_from(at).unwrap())
    }

    #[test]
    fn a_key_is_read_as_it_is_written_and_never_shown() {
        for text in [HEX, BASE64, &BASE64[..43], &format!(" {HEX}\n")] {
            let key: Key = text.parse().unwrap();
            assert_eq!(*key.bytes(), counted(), "{text:?}");
            assert_eq!(format!("{key:?}"), "Key(..)");
        }
        let high = "//////////////////////////////////////////8=".parse::<Key>().unwrap();
        assert_eq!(*high.bytes(), [255; KEY_BYTES]);
        let wrong = [
            "",
            "secret",
            &HEX[1..],
            &HEX.replace(['f', 'F'], "g"),
            &BASE64.replace('=', "A"),
            &BASE64[1..],
            "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh9=",
            "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdH-8=",
        ];
        for text in wrong {
            let error = text.parse::<Key>().unwrap_err().to_string();
            assert!(error.contains("is no key") && (text.is_empty() || !error.contains(text)), "{error}");
        }
    }

    #[test]
    fn a_key_file_is_for_its_owner_only() {
        let path = std::env::temp_dir().join(format!("headrace-key-{}", std::process::id()));
        let file = |content: &[u8], mode| {
            std::fs::write(&path, content).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
            let key = Key::from_file(&path);
            std::fs::remove_file(&path).unwrap();
            key
        };
        for content in [HEX.as_bytes(), format!("{BASE64}\n").as_bytes(), &counted()] {
            assert_eq!(*file(content, 0o600).unwrap().bytes(), counted());
        }
        for mode in [0o640, 0o604, 0o620, 0o602] {
            let error = file(HEX.as_bytes(), mode).unwrap_err().to_string();
            assert!(error.contains("open to others") && error.contains("chmod 600"), "{error}");
        }
        assert!(file(&[0; 400], 0o600).is_err());
        let error = Key::from_file("/nonexistent").unwrap_err().to_string();
        assert!(error.contains("key cannot be read from /nonexistent"), "{error}");
    }
}
