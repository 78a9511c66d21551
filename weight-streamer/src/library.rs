//! A model directory on the source's side: scanned and hashed once, then read chunk by chunk.
//!
//! Between the scan and a read the directory may change. Every read compares size, times and inode with the scan and
//! the bytes with the chunk hash, so a change is an error and never a wrong byte.

use crate::error::Error;
use crate::manifest::{
    FileEntry, Hash, Manifest, RESERVED_PREFIX, TensorEntry, check_chunk_bytes, check_path,
};
use crate::tensors::{self, Tensor};
use std::fs::{self, File, Metadata};
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Deepest folder of a model.
const MAX_DEPTH: usize = 32;

/// What a file was when it was hashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    size: u64,
    modified: (i64, i64),
    inode: (u64, u64),
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            inode: (metadata.dev(), metadata.ino()),
        }
    }
}

/// A scanned model directory.
#[derive(Debug)]
pub struct Library {
    dir: PathBuf,
    manifest: Manifest,
    stamps: Vec<Stamp>,
}

impl Library {
    /// Reads and hashes every file below `dir`, on `threads` threads.
    ///
    /// Links to files are followed (hub caches are made of them); links to folders, sockets and the like are refused.
    /// Names that begin with `.headrace` are our own and not part of the model.
    ///
    /// # Errors
    /// When something below `dir` cannot be read or served, or changes meanwhile.
    pub fn scan(dir: &Path, chunk_bytes: u32, threads: usize) -> Result<Self, Error> {
        check_chunk_bytes(chunk_bytes)?;
        let mut found = Vec::new();
        list(dir, "", 0, &mut found)?;
        found.sort();
        let scanned = in_parallel(&found, threads, |_, path| scan_file(dir, path, chunk_bytes))?;
        let (mut files, mut runs, mut hashes, mut stamps) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for file in scanned {
            let index = u32::try_from(files.len()).unwrap_or(u32::MAX);
            let run = |t: Tensor| TensorEntry::new(t.name, t.dtype, t.shape, index, t.begin, t.len);
            runs.extend(file.tensors.into_iter().map(run));
            files.push(file.entry);
            hashes.extend(file.chunks);
            stamps.push(file.stamp);
        }
        if files.is_empty() {
            let reason = "no file in it; name a directory that holds a model".into();
            return Err(Error::Unservable { path: dir.to_path_buf(), reason });
        }
        let manifest = Manifest::new(chunk_bytes, files, runs, hashes)?;
        Ok(Self { dir: dir.to_path_buf(), manifest, stamps })
    }

    /// What the directory holds.
    #[must_use]
    pub const fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Reads a chunk and checks it against the manifest.
    ///
    /// # Errors
    /// When the file cannot be read or is no longer what it was.
    pub fn read_chunk(&self, id: u32, buffer: &mut Vec<u8>) -> Result<(), Error> {
        let unknown = || Error::Options(format!("chunk {id} is not in the manifest"));
        let chunk = self.manifest.chunk(id).ok_or_else(unknown)?;
        let path = self.dir.join(&self.manifest.files()[chunk.file].path);
        let changed = |what| Err(Error::Changed { path: path.clone(), what });
        let file = File::open(&path).map_err(|source| Error::io("open", &path, source))?;
        let metadata = file.metadata().map_err(|source| Error::io("examine", &path, source))?;
        if Stamp::of(&metadata) != self.stamps[chunk.file] {
            return changed("another size, time or inode");
        }
        buffer.resize(usize::try_from(chunk.len).unwrap_or(0), 0);
        file.read_exact_at(buffer, chunk.offset).map_err(|source| Error::io("read", &path, source))?;
        if Hash::of(buffer) == chunk.hash { Ok(()) } else { changed("other bytes") }
    }
}

/// Collects the files below `dir`, as relative paths.
fn list(dir: &Path, prefix: &str, depth: usize, found: &mut Vec<String>) -> Result<(), Error> {
    let refuse = |path: &Path, reason: String| Err(Error::Unservable { path: path.to_path_buf(), reason });
    if depth > MAX_DEPTH {
        return refuse(dir, format!("more than {MAX_DEPTH} folders deep"));
    }
    let entries = fs::read_dir(dir).map_err(|source| Error::io("list", dir, source))?;
    for entry in entries {
        let entry = entry.map_err(|source| Error::io("list", dir, source))?;
        let path = entry.path();
        let name = entry.file_name();
        let Some(name) = name.to_str() else { return refuse(&path, "its name is not UTF-8".into()) };
        if name.starts_with(RESERVED_PREFIX) {
            continue;
        }
        let relative = if prefix.is_empty() { name.to_owned() } else { format!("{prefix}/{name}") };
        let kind = entry.file_type().map_err(|source| Error::io("examine", &path, source))?;
        let target = fs::metadata(&path).map_err(|source| Error::io("examine", &path, source))?;
        if target.is_file() {
            if let Err(reason) = check_path(&relative) {
                return refuse(&path, reason.to_string());
            }
            found.push(relative);
        } else if kind.is_dir() {
            list(&path, &relative, depth + 1, found)?;
        } else {
            return refuse(&path, "neither a file nor a folder (links to folders are not followed)".into());
        }
    }
    Ok(())
}

/// What the scan of one file found.
struct Scanned {
    entry: FileEntry,
    chunks: Vec<Hash>,
    tensors: Vec<Tensor>,
    stamp: Stamp,
}

fn scan_file(dir: &Path, relative: &str, chunk_bytes: u32) -> Result<Scanned, Error> {
    let path = dir.join(relative);
    let failed = |op| {
        let path = path.clone();
        move |source| Error::io(op, &path, source)
    };
    let file = File::open(&path).map_err(failed("open"))?;
    let before = file.metadata().map_err(failed("examine"))?;
    let size = before.size();
    let tensors =
        if relative.ends_with(".safetensors") { read_tensors(&file, size, &path)? } else { Vec::new() };
    let (hash, chunks) = hash_file(&file, size, chunk_bytes).map_err(failed("read"))?;
    let after = fs::metadata(&path).map_err(failed("examine"))?;
    if Stamp::of(&after) != Stamp::of(&before) {
        return Err(Error::Changed { path, what: "while it was being hashed" });
    }
    let entry = FileEntry::new(relative.to_owned(), size, before.mode() & 0o111 != 0, hash);
    Ok(Scanned { entry, chunks, tensors, stamp: Stamp::of(&before) })
}

fn read_tensors(file: &File, size: u64, path: &Path) -> Result<Vec<Tensor>, Error> {
    let malformed = |source| Error::Tensors { path: path.to_path_buf(), source };
    let mut first = Vec::new();
    file.take(8).read_to_end(&mut first).map_err(|source| Error::io("read", path, source))?;
    let len = tensors::header_len(&first, size).map_err(malformed)?;
    let mut header = vec![0; usize::try_from(len).unwrap_or(0)];
    file.read_exact_at(&mut header, 8).map_err(|source| Error::io("read", path, source))?;
    tensors::parse_header(&header, size).map_err(malformed)
}

/// The hash of the whole file and of each of its chunks, reading it once.
fn hash_file(file: &File, size: u64, chunk_bytes: u32) -> std::io::Result<(Hash, Vec<Hash>)> {
    let step = u64::from(chunk_bytes);
    let mut whole = blake3::Hasher::new();
    let mut chunks = Vec::with_capacity(usize::try_from(size.div_ceil(step)).unwrap_or(0));
    let mut buffer = vec![0; usize::try_from(step.min(size)).unwrap_or(0)];
    let mut offset = 0;
    while offset < size {
        let part = &mut buffer[..usize::try_from(step.min(size - offset)).unwrap_or(0)];
        file.read_exact_at(part, offset)?;
        whole.update(part);
        chunks.push(Hash::of(part));
        offset += step;
    }
    Ok((Hash::from_bytes(*whole.finalize().as_bytes()), chunks))
}

/// The hash of the first `size` bytes of a file.
pub(crate) fn hash_whole(file: &File, size: u64) -> std::io::Result<Hash> {
    const STEP: u64 = 1 << 20;
    let mut whole = blake3::Hasher::new();
    let mut buffer = vec![0; usize::try_from(STEP.min(size)).unwrap_or(0)];
    let mut offset = 0;
    while offset < size {
        let part = &mut buffer[..usize::try_from(STEP.min(size - offset)).unwrap_or(0)];
        file.read_exact_at(part, offset)?;
        whole.update(part);
        offset += STEP;
    }
    Ok(Hash::from_bytes(*whole.finalize().as_bytes()))
}

/// Does `work` for every item on at most `threads` threads; results in order, or the first error.
pub(crate) fn in_parallel<T: Sync, R: Send>(
    items: &[T],
    threads: usize,
    work: impl Fn(usize, &T) -> Result<R, Error> + Sync,
) -> Result<Vec<R>, Error> {
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Vec::with_capacity(items.len()));
    let run = || {
        while let Some((index, item)) = {
            let index = next.fetch_add(1, Ordering::Relaxed);
            items.get(index).map(|item| (index, item))
        } {
            let result = work(index, item);
            if result.is_err() {
                // Let the others stop soon.
                next.store(items.len(), Ordering::Relaxed);
            }
            results.lock().unwrap_or_else(PoisonError::into_inner).push((index, result));
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads.min(items.len()) {
            scope.spawn(run);
        }
        run();
    });
    let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.sort_by_key(|(index, _)| *index);
    results.into_iter().map(|(_, result)| result).collect()
}
