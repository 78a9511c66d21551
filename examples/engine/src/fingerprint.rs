//! What tells two models apart before their KV blocks are mixed.
//!
//! Hashing every byte of a large model would double its start, so the hash covers the configuration, the type that
//! is computed in, and of each weights file its name, its size, its beginning with the tensor index, and samples all
//! through it. Weights of another training differ in all samples; damage is the weight streamer's business.

use crate::error::StartError;
use crate::kv::layout::Fingerprint;
use engine_model::Dtype;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Samples per file, and bytes of each.
const SAMPLES: u64 = 64;
const SAMPLE_LEN: usize = 16 << 10;

/// The fingerprint of the model in `dir` when computed in `dtype`.
pub(crate) fn of_model(dir: &Path, dtype: Dtype) -> Result<Fingerprint, StartError> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(dtype.name().as_bytes());
    let config = dir.join("config.json");
    hasher.update(&fs::read(&config).map_err(failed(&config))?);
    for path in weights_files(dir).map_err(failed(dir))? {
        let name = path.file_name().unwrap_or_default().as_encoded_bytes();
        hasher.update(name);
        sample(&path, &mut hasher).map_err(failed(&path))?;
    }
    Ok(Fingerprint(hasher.finalize().into()))
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> StartError {
    let path = path.to_owned();
    move |source| StartError::Fingerprint { path, source }
}

fn weights_files(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let paths: io::Result<Vec<_>> = fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect();
    let mut paths = paths?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "safetensors"));
    paths.sort();
    Ok(paths)
}

fn sample(path: &Path, hasher: &mut blake3::Hasher) -> io::Result<()> {
    let file = File::open(path)?;
    let size = file.metadata()?.len();
    hasher.update(&size.to_le_bytes());
    let mut buffer = vec![0; SAMPLE_LEN];
    for index in 0..SAMPLES {
        let offset = size / SAMPLES * index;
        let read = file.read_at(&mut buffer, offset)?;
        hasher.update(&buffer[..read]);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fingerprint_tells_weights_configuration_and_type_apart() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| fs::write(dir.path().join(name), bytes).unwrap();
        let of = |dtype| of_model(dir.path(), dtype).unwrap();
        write("config.json", b"{}");
        write("model.safetensors", &[1; 5000]);
        let first = of(Dtype::F32);
        assert_eq!(first, of(Dtype::F32));
        assert_ne!(first, of(Dtype::Bf16));
        write("model.safetensors", &[2; 5000]);
        assert_ne!(first, of(Dtype::F32));
        write("model.safetensors", &[1; 5000]);
        write("unrelated.txt", b"x");
        assert_eq!(first, of(Dtype::F32));
        write("config.json", b"{} ");
        assert_ne!(first, of(Dtype::F32));
    }
}
