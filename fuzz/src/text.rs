//! Text that people, configurations and directories give: addresses, keys and names of files.

use transfer_core::fuzzing::{file_of_name, name_of_file};
use transfer_core::{Address, Key};

/// What is read comes back when it is written, and a key is never told in what is said of it.
pub fn check(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    if let Ok(address) = text.parse::<Address>() {
        assert_eq!(address.to_string().parse::<Address>().ok(), Some(address));
    }
    if let Err(error) = text.parse::<Key>() {
        assert!(text.trim().len() < 20 || !error.to_string().contains(text.trim()), "it tells the key");
    }
    if let Some(name) = name_of_file(text) {
        assert_eq!(file_of_name(&name).as_deref(), Some(text), "two files for one name");
    }
    if let Some(file) = file_of_name(text) {
        assert!(!file.starts_with('.') || text.is_empty(), "it is hidden");
        assert!(!file.contains(['/', '\0']) && file.len() <= 255, "it leads out of the folder");
        assert_eq!(name_of_file(&file), (!text.is_empty()).then(|| text.to_owned()));
    }
}
