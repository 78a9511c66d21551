//! A model directory on the receiver's side: absent, or complete. Nothing between can be mistaken for a model.
//!
//! Everything is put together beside the destination, in `.NAME.headrace-partial/`:
//!
//! ```text
//! lock       held while a process pulls
//! manifest   which model this is
//! journal    which chunks are verified
//! files/     the files, full length from the start
//! ```
//!
//! At the end every file is read back and hashed as a whole, synced, and `files/` is renamed to the destination: one
//! atomic step. A kill at any moment before it leaves a partial directory that the next pull goes on with.

use crate::error::Error;
use crate::journal;
use crate::library::{hash_whole, in_parallel};
use crate::manifest::{Chunk, FileEntry, Hash, Manifest, RESERVED_PREFIX};
use rustix::fs::{FallocateFlags, OFlags};
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Name of the manifest inside a complete directory.
pub(crate) const MARKER: &str = ".headrace-manifest";

fn failed<'a>(op: &'static str, path: &'a Path) -> impl Fn(io::Error) -> Error + 'a {
    move |source| Error::io(op, path, source)
}

/// Where a model goes, and where it is put together.
#[derive(Debug)]
pub(crate) struct Destination {
    dir: PathBuf,
    parent: PathBuf,
    partial: PathBuf,
    retired: PathBuf,
}

impl Destination {
    /// The destination `dir`; creates the folder that it stands in.
    pub(crate) fn new(dir: &Path) -> Result<Self, Error> {
        let bad = || {
            Error::Options(format!("{} cannot be a destination: it has no name of its own", dir.display()))
        };
        let name = dir.file_name().and_then(|name| name.to_str()).ok_or_else(bad)?;
        let parent = match dir.parent() {
            Some(parent) if parent != Path::new("") => parent.to_path_buf(),
            _ => PathBuf::from("."),
        };
        fs::create_dir_all(&parent).map_err(failed("create", &parent))?;
        let beside = |what: &str| parent.join(format!(".{name}{RESERVED_PREFIX}-{what}"));
        Ok(Self { dir: dir.to_path_buf(), partial: beside("partial"), retired: beside("old"), parent })
    }

    /// Whether the model is there already. An error when something else is and must not be replaced.
    pub(crate) fn is_complete(
        &self,
        manifest: &Manifest,
        force: bool,
        threads: usize,
    ) -> Result<bool, Error> {
        let metadata = match fs::symlink_metadata(&self.dir) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(Error::io("examine", &self.dir, error)),
        };
        let occupied = |found: String| Err(Error::Occupied { dir: self.dir.clone(), found });
        if !fs::metadata(&self.dir).is_ok_and(|target| target.is_dir()) {
            return occupied("it is not a directory".into());
        }
        let mut entries = fs::read_dir(&self.dir).map_err(failed("list", &self.dir))?;
        if entries.next().is_none() && metadata.is_dir() {
            return Ok(false);
        }
        match check_dir(&self.dir, manifest, threads) {
            Ok(()) => Ok(true),
            Err(_) if force && metadata.is_dir() => Ok(false),
            Err(Error::Mismatch { found, .. }) => occupied(found),
            Err(other) => Err(other),
        }
    }

    /// Opens the partial directory, goes on with what is verified there, and makes room for the rest.
    pub(crate) fn open(&self, manifest: &Manifest, root: Hash, threads: usize) -> Result<Partial, Error> {
        create_dir(&self.partial)?;
        let lock = self.lock()?;
        let files = self.partial.join("files");
        let encoded = manifest.encode();
        let manifest_path = self.partial.join("manifest");
        let journal_path = self.partial.join("journal");
        let claimed = if fs::read(&manifest_path).is_ok_and(|found| found == encoded) {
            journal::claims(&read_bounded(&journal_path, manifest)?, &root, manifest.chunk_count())
        } else {
            remove_dir(&files)?;
            Vec::new()
        };
        let resumed = recheck(&files, manifest, &claimed, threads);
        if let Err(error) = make_room(&files, manifest) {
            if resumed.is_empty() && matches!(error, Error::DiskFull { .. }) {
                // Nothing is worth keeping, and a full disk should not stay full because of us.
                remove_dir(&self.partial)?;
            }
            return Err(error);
        }
        write_whole(&journal_path, &journal_of(&root, &resumed))?;
        write_whole(&manifest_path, &encoded)?;
        let journal = open_new(&journal_path, OpenOptions::new().append(true))?;
        Ok(Partial {
            path: self.partial.clone(),
            files,
            root,
            journal: Mutex::new(journal),
            journal_path,
            resumed,
            _lock: lock,
        })
    }

    /// Takes the lock of the partial directory; it is let go when the file is dropped, or the process killed.
    fn lock(&self) -> Result<File, Error> {
        let path = self.partial.join("lock");
        let lock = open_new(&path, OpenOptions::new().write(true).create(true).truncate(false))?;
        match lock.try_lock() {
            Ok(()) => Ok(lock),
            Err(TryLockError::WouldBlock) => Err(Error::Busy { dir: self.dir.clone() }),
            Err(TryLockError::Error(error)) => Err(Error::io("lock", &path, error)),
        }
    }

    /// Removes what a pull left that was killed after the model was complete.
    pub(crate) fn tidy(&self) -> Result<(), Error> {
        if fs::symlink_metadata(&self.partial).is_ok_and(|found| found.is_dir()) {
            let _lock = self.lock()?;
            remove_dir(&self.partial)?;
        }
        remove_dir(&self.retired)
    }

    /// Checks every file as a whole and gives the destination its name.
    pub(crate) fn finish(&self, partial: Partial, manifest: &Manifest, threads: usize) -> Result<(), Error> {
        let files = &partial.files;
        check_dir(files, manifest, threads)?;
        let marker = files.join(MARKER);
        write_whole(&marker, &manifest.encode())?;
        in_parallel(manifest.files(), threads, |_, entry| {
            let path = files.join(&entry.path);
            let file = File::open(&path).map_err(failed("open", &path))?;
            let mode = if entry.executable { 0o755 } else { 0o644 };
            file.set_permissions(fs::Permissions::from_mode(mode))
                .map_err(failed("set the mode of", &path))?;
            file.sync_all().map_err(failed("sync", &path))
        })?;
        sync_dirs(files)?;
        fs::set_permissions(files, fs::Permissions::from_mode(0o755))
            .map_err(failed("set the mode of", files))?;
        self.swap_in(files)?;
        sync_dir(&self.parent)?;
        remove_dir(&self.retired)?;
        remove_dir(&self.partial)
    }

    /// Renames `files` to the destination, moving what stands there out of the way first.
    fn swap_in(&self, files: &Path) -> Result<(), Error> {
        let rename =
            |from: &Path, to: &Path| fs::rename(from, to).map_err(failed("rename a directory to", to));
        let occupied = fs::read_dir(&self.dir).is_ok_and(|mut entries| entries.next().is_some());
        if !occupied {
            // An empty directory is replaced by the rename itself.
            return rename(files, &self.dir);
        }
        remove_dir(&self.retired)?;
        rename(&self.dir, &self.retired)?;
        rename(files, &self.dir)
    }
}

/// A model that is being put together; holds the lock.
#[derive(Debug)]
pub(crate) struct Partial {
    path: PathBuf,
    files: PathBuf,
    root: Hash,
    journal: Mutex<File>,
    journal_path: PathBuf,
    resumed: Vec<u32>,
    _lock: File,
}

impl Partial {
    /// The chunks that were there already and are right, in order.
    pub(crate) fn resumed(&self) -> &[u32] {
        &self.resumed
    }

    /// Where the parts are kept.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Puts a verified chunk in its place, then into the journal.
    pub(crate) fn land(&self, entry: &FileEntry, id: u32, chunk: Chunk, bytes: &[u8]) -> Result<(), Error> {
        let path = self.files.join(&entry.path);
        let file = open_new(&path, OpenOptions::new().write(true))?;
        file.write_all_at(bytes, chunk.offset).map_err(failed("write", &path))?;
        let mut journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        journal.write_all(&journal::record(&self.root, id)).map_err(failed("append to", &self.journal_path))
    }
}

/// Compares a directory with a manifest, file by file.
pub(crate) fn check_dir(dir: &Path, manifest: &Manifest, threads: usize) -> Result<(), Error> {
    in_parallel(manifest.files(), threads, |_, entry| {
        let mismatch =
            |what| Error::Mismatch { dir: dir.to_path_buf(), found: format!("{} {what}", entry.path) };
        let path = dir.join(&entry.path);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if is_absence(&error) => return Err(mismatch("is missing")),
            Err(error) => return Err(Error::io("open", &path, error)),
        };
        let metadata = file.metadata().map_err(failed("examine", &path))?;
        if !metadata.is_file() || metadata.len() != entry.size {
            return Err(mismatch("has another size"));
        }
        let found = hash_whole(&file, entry.size).map_err(failed("read", &path))?;
        if found == entry.hash { Ok(()) } else { Err(mismatch("has other bytes")) }
    })
    .map(drop)
}

fn is_absence(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// The claimed chunks whose bytes are really there.
fn recheck(files: &Path, manifest: &Manifest, claimed: &[u32], threads: usize) -> Vec<u32> {
    let right = |&id: &u32| -> Option<u32> {
        let chunk = manifest.chunk(id)?;
        let path = files.join(&manifest.files().get(chunk.file)?.path);
        let file = open_new(&path, OpenOptions::new().read(true)).ok()?;
        let mut bytes = vec![0; usize::try_from(chunk.len).ok()?];
        file.read_exact_at(&mut bytes, chunk.offset).ok()?;
        (Hash::of(&bytes) == chunk.hash).then_some(id)
    };
    let checked = in_parallel(claimed, threads, |_, id| Ok(right(id))).unwrap_or_default();
    checked.into_iter().flatten().collect()
}

/// Creates every folder and every file at its full length, with its blocks set aside where the file system can.
fn make_room(files: &Path, manifest: &Manifest) -> Result<(), Error> {
    create_dir(files)?;
    for entry in manifest.files() {
        for (end, _) in entry.path.match_indices('/') {
            create_dir(&files.join(&entry.path[..end]))?;
        }
        let path = files.join(&entry.path);
        let file = open_new(&path, OpenOptions::new().write(true).create(true).truncate(false))?;
        file.set_len(entry.size).map_err(failed("set the length of", &path))?;
        if entry.size == 0 {
            continue;
        }
        match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, entry.size) {
            // Some file systems cannot promise blocks; a full disk then shows while writing.
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {}
            Err(error) => return Err(Error::io("set aside blocks for", &path, error.into())),
        }
    }
    Ok(())
}

fn journal_of(root: &Hash, chunks: &[u32]) -> Vec<u8> {
    let mut bytes = journal::header(root).to_vec();
    chunks.iter().for_each(|&chunk| bytes.extend_from_slice(&journal::record(root, chunk)));
    bytes
}

/// Reads a journal, but no more than one that claims every chunk twice.
fn read_bounded(path: &Path, manifest: &Manifest) -> Result<Vec<u8>, Error> {
    let max = journal::HEADER_BYTES + 2 * journal::RECORD_BYTES * manifest.chunk_count();
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_file() && usize::try_from(metadata.len()).is_ok_and(|len| len <= max) => {
            fs::read(path).map_err(failed("read", path))
        }
        _ => Ok(Vec::new()),
    }
}

/// Opens a file of ours, never through a link that somebody put in its place.
fn open_new(path: &Path, options: &mut OpenOptions) -> Result<File, Error> {
    let no_follow = i32::try_from(OFlags::NOFOLLOW.bits()).unwrap_or(0);
    options.mode(0o600).custom_flags(no_follow).open(path).map_err(failed("open", path))
}

/// Replaces a small file as a whole: readers see the old one or the new one.
fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let beside = path.with_extension("new");
    let mut file = open_new(&beside, OpenOptions::new().write(true).create(true).truncate(true))?;
    file.write_all(bytes).map_err(failed("write", &beside))?;
    file.set_permissions(fs::Permissions::from_mode(0o644)).map_err(failed("set the mode of", &beside))?;
    file.sync_all().map_err(failed("sync", &beside))?;
    fs::rename(&beside, path).map_err(failed("rename to", path))
}

/// Creates a folder, or takes the one that is there; a link in its place is refused.
fn create_dir(path: &Path) -> Result<(), Error> {
    match DirBuilder::new().mode(0o755).create(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            if fs::symlink_metadata(path).is_ok_and(|found| found.is_dir()) {
                Ok(())
            } else {
                Err(Error::io("create", path, error))
            }
        }
        Err(error) => Err(Error::io("create", path, error)),
    }
}

fn remove_dir(path: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", path, error)),
        _ => Ok(()),
    }
}

fn sync_dir(path: &Path) -> Result<(), Error> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(failed("sync", path))
}

/// Syncs a folder and every folder below it.
fn sync_dirs(path: &Path) -> Result<(), Error> {
    for entry in fs::read_dir(path).map_err(failed("list", path))? {
        let entry = entry.map_err(failed("list", path))?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            sync_dirs(&entry.path())?;
        }
    }
    sync_dir(path)
}
