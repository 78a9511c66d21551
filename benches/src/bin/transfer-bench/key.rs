//! A key for two processes of this run and nobody else, to see what proving it and encrypting with it costs.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result};

use crate::cli::Trust;

const KEY_BYTES: usize = 32;

/// A file with a random key that only this user may read; removed when this is dropped.
#[derive(Debug)]
pub(crate) struct KeyFile {
    path: PathBuf,
    trust: Trust,
}

impl KeyFile {
    /// Makes one, in the place for temporary files.
    pub(crate) fn make() -> Result<Self> {
        let mut random = [0; KEY_BYTES + 8];
        getrandom::fill(&mut random).context("no random bytes")?;
        let (key, name) = random.split_at(KEY_BYTES);
        let name: String = name.iter().map(|byte| format!("{byte:02x}")).collect();
        let path = std::env::temp_dir().join(format!("transfer-bench-{name}.key"));
        // Nothing that stands there already is followed or written to.
        let file = File::options().write(true).create_new(true).mode(0o600).open(&path);
        let mut file = file.with_context(|| format!("cannot make {}", path.display()))?;
        let made = Self { trust: Trust { key_file: Some(path.clone()), ..Trust::default() }, path };
        file.write_all(key).with_context(|| format!("cannot write {}", made.path.display()))?;
        Ok(made)
    }

    /// Who has it may connect.
    pub(crate) fn trust(&self) -> &Trust {
        &self.trust
    }
}

impl Drop for KeyFile {
    fn drop(&mut self) {
        // Whoever cleans the place up may have been quicker.
        let _gone = fs::remove_file(&self.path);
    }
}
