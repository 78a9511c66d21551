//! The folder: reading, writing and removing entries so that nobody ever sees half of one.
//!
//! An entry is written beside its place and renamed into it, so a file that is open is one publication for good. Those who
//! write hold the lock of the folder (flock(2), which ends with its holder); readers need none. The time of the last
//! renewal is the file's modification time.

use std::fs::{File, Metadata, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use transfer_proto::id::Incarnation;
use transfer_sys::OsError;

use super::super::entry::{Entry, VALUE_MAX};
use super::super::error::{Corrupt, CorruptCause, DirectoryError};
use super::name::{escape, escape_life, is_entry, is_life};
use crate::agent::random_word;
use crate::clock;

const LOCK: &str = ".lock";
const TEMPORARY: &str = ".new-";
/// Between two looks at a lock that another process holds.
const LOCK_POLL: Duration = Duration::from_millis(5);
/// What a process left behind that died while it wrote.
const TEMPORARY_AGE_MAX: Duration = Duration::from_mins(10);
/// NFS says ESTALE for a file that was replaced between its look-up and its use.
const STALE_RETRIES_MAX: usize = 3;

/// How long it is remembered whose a name was last, from when it was taken.
const LIFE_AGE_MAX: Duration = Duration::from_hours(30 * 24);
/// An incarnation.
const LIFE_BYTES: usize = 16;

/// What tells one publication, or one renewal of it, from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    inode: (u64, u64),
    pub(super) modified: SystemTime,
    len: u64,
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        let modified = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        Self { inode: inode(metadata), modified, len: metadata.len() }
    }

    pub(super) fn is_of(&self, inode: (u64, u64)) -> bool {
        self.inode == inode
    }

    /// Whether an entry of this time to live counts, for one whose clock says `now`. A file from the future is as wrong
    /// as an old one.
    pub(super) fn is_alive(&self, ttl: Duration, now: SystemTime) -> bool {
        let apart = now.duration_since(self.modified).unwrap_or_else(|ahead| ahead.duration());
        apart <= ttl
    }
}

pub(super) fn inode(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// A file, as it was found.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) stamp: Stamp,
    pub(super) item: Result<Entry, Corrupt>,
}

impl Found {
    /// Whether it counts; what is damaged does, since nobody can tell its time.
    pub(super) fn is_alive(&self, now: SystemTime) -> bool {
        self.item.as_ref().map_or(true, |entry| self.stamp.is_alive(entry.ttl, now))
    }
}

/// The lock of the folder, held.
#[derive(Debug)]
pub(super) struct Locked<'a> {
    folder: &'a Folder,
    _lock: File,
}

#[derive(Clone, Debug)]
pub(super) struct Folder {
    path: PathBuf,
    lock_timeout: Duration,
}

impl Folder {
    pub(super) fn open(path: PathBuf, lock_timeout: Duration) -> Result<Self, DirectoryError> {
        std::fs::create_dir_all(&path).map_err(|e| failed("mkdir", &path, &e))?;
        Ok(Self { path, lock_timeout })
    }

    pub(super) fn place(&self) -> String {
        self.path.display().to_string()
    }

    fn path_of(&self, name: &str) -> Result<PathBuf, DirectoryError> {
        Ok(self.path.join(escape(name)?))
    }

    /// The names of files that are meant to be entries.
    pub(super) fn files(
        &self,
    ) -> Result<impl Iterator<Item = Result<String, DirectoryError>>, DirectoryError> {
        let fail = |e: &io::Error| failed("readdir", &self.path, e);
        let items = std::fs::read_dir(&self.path).map_err(|e| fail(&e))?;
        Ok(items.filter_map(move |item| match item {
            // A name that is not even text was not made here.
            Ok(item) => item.file_name().into_string().ok().filter(|file| is_entry(file)).map(Ok),
            Err(e) => Some(Err(fail(&e))),
        }))
    }

    pub(super) fn key(&self, file: &str) -> String {
        self.path.join(file).display().to_string()
    }

    /// Whose file it is now, and since when.
    pub(super) fn stamp(&self, name: &str) -> Result<Option<Stamp>, DirectoryError> {
        let path = self.path_of(name)?;
        missing_is_none(std::fs::symlink_metadata(&path))
            .map_err(|e| failed("stat", &path, &e))
            .map(|found| found.as_ref().map(Stamp::of))
    }

    /// The entry of that name, alive or not.
    pub(super) fn read(&self, name: &str) -> Result<Option<Found>, DirectoryError> {
        let path = self.path_of(name)?;
        let key = path.display().to_string();
        for _ in 0..STALE_RETRIES_MAX {
            match missing_is_none(read_file(&path)) {
                Ok(None) => return Ok(None),
                Ok(Some((stamp, Err(cause)))) => {
                    return Ok(Some(Found { stamp, item: Err(Corrupt::new(key, name, cause)) }));
                }
                Ok(Some((stamp, Ok(value)))) => {
                    return Ok(Some(Found { stamp, item: Entry::decode(&key, name, &value) }));
                }
                Err(e) if e.raw_os_error() == Some(libc::ESTALE) => {}
                Err(e) => return Err(failed("open", &path, &e)),
            }
        }
        Err(failed("open", &path, &io::Error::from_raw_os_error(libc::ESTALE)))
    }

    /// Takes the lock of the folder, which another process may hold for the time of a few system calls.
    pub(super) fn lock(&self) -> Result<Locked<'_>, DirectoryError> {
        let path = self.path.join(LOCK);
        let fail = |e: &io::Error| failed("flock", &path, e);
        let file =
            OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(|e| fail(&e))?;
        let end = clock::end_of_wait(self.lock_timeout);
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Locked { folder: self, _lock: file }),
                Err(TryLockError::Error(e)) => return Err(fail(&e)),
                Err(TryLockError::WouldBlock) if clock::left(end).is_some() => std::thread::sleep(LOCK_POLL),
                Err(TryLockError::WouldBlock) => {
                    let place = path.display().to_string();
                    return Err(DirectoryError::Timeout { place, waited: self.lock_timeout });
                }
            }
        }
    }
}

impl Locked<'_> {
    /// Puts an entry into its place, all of it or nothing. The file that is returned is that publication and no other.
    pub(super) fn write(&self, entry: &Entry) -> Result<File, DirectoryError> {
        self.put(self.folder.path_of(&entry.name)?, &entry.encode())
    }

    /// Whose the name was last, whether he is there or not; `None` where nobody has had it, or what is written there
    /// cannot be read.
    pub(super) fn last_life(&self, name: &str) -> Result<Option<Incarnation>, DirectoryError> {
        let path = self.folder.path.join(escape_life(name)?);
        let found = missing_is_none(read_file(&path)).map_err(|e| failed("open", &path, &e))?;
        let bytes = found.and_then(|(_, value)| <[u8; LIFE_BYTES]>::try_from(value.ok()?).ok());
        Ok(bytes.map(Incarnation::from_bytes))
    }

    /// Takes the name for `entry`, and writes down whose it is now, which outlives the entry. Says whether it was nobody
    /// else's before.
    pub(super) fn take(&self, entry: &Entry) -> Result<(File, bool), DirectoryError> {
        let last = self.last_life(&entry.name)?;
        self.remember(&entry.name, entry.incarnation)?;
        let taken = self.write(entry);
        if taken.is_err() {
            // The first error counts. Where this fails too, an older life may give up that needed not.
            let _undone = match last {
                Some(last) => self.remember(&entry.name, last),
                None => self.forget(&entry.name),
            };
        }
        taken.map(|file| (file, last.is_none_or(|last| last == entry.incarnation)))
    }

    fn remember(&self, name: &str, life: Incarnation) -> Result<(), DirectoryError> {
        self.put(self.folder.path.join(escape_life(name)?), &life.to_bytes()).map(|_| ())
    }

    /// Forgets that the name was anybody's.
    pub(super) fn forget(&self, name: &str) -> Result<(), DirectoryError> {
        let path = self.folder.path.join(escape_life(name)?);
        missing_is_none(std::fs::remove_file(&path)).map(|_| ()).map_err(|e| failed("unlink", &path, &e))
    }

    fn put(&self, path: PathBuf, value: &[u8]) -> Result<File, DirectoryError> {
        let beside = self.folder.path.join(format!("{TEMPORARY}{:016x}", random_word()));
        let written =
            write_file(&beside, value).and_then(|file| std::fs::rename(&beside, &path).map(|()| file));
        written.map_err(|e| {
            // What could not be written is not left lying about; where that fails too, a later sweep takes it.
            let _removed = std::fs::remove_file(&beside);
            failed("write", &path, &e)
        })
    }

    /// Removes the entry of that name.
    pub(super) fn remove(&self, name: &str) -> Result<(), DirectoryError> {
        let path = self.folder.path_of(name)?;
        missing_is_none(std::fs::remove_file(&path)).map(|_| ()).map_err(|e| failed("unlink", &path, &e))
    }

    /// Removes what outlived its time by that time again, and what dead writers left.
    pub(super) fn sweep(&self, expired: impl IntoIterator<Item = String>) -> Result<(), DirectoryError> {
        for name in expired {
            self.remove(&name)?;
        }
        let path = &self.folder.path;
        for item in std::fs::read_dir(path).map_err(|e| failed("readdir", path, &e))?.flatten() {
            let file = item.file_name();
            let age_max = match file.to_str() {
                Some(file) if file.starts_with(TEMPORARY) => TEMPORARY_AGE_MAX,
                Some(file) if is_life(file) => LIFE_AGE_MAX,
                _ => continue,
            };
            let old = |metadata: Metadata| !Stamp::of(&metadata).is_alive(age_max, clock::wall());
            if item.metadata().is_ok_and(old) {
                // Another process may have been faster.
                let _removed = std::fs::remove_file(item.path());
            }
        }
        Ok(())
    }
}

/// Reads a file that anybody may have put there: a link, a pipe or a huge one is told and not followed.
fn read_file(path: &Path) -> io::Result<(Stamp, Result<Vec<u8>, CorruptCause>)> {
    let options = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path);
    let unreadable = |e: &io::Error| CorruptCause::Unreadable(e.to_string());
    let file = match options {
        Ok(file) => file,
        // It is there, and cannot be opened: a link, a socket, or not ours to read.
        Err(e)
            if !matches!(
                e.raw_os_error(),
                Some(libc::ENOENT | libc::ESTALE | libc::EMFILE | libc::ENFILE)
            ) =>
        {
            return Ok((Stamp::of(&std::fs::symlink_metadata(path)?), Err(unreadable(&e))));
        }
        Err(e) => return Err(e),
    };
    let metadata = file.metadata()?;
    let stamp = Stamp::of(&metadata);
    if !metadata.is_file() {
        return Ok((stamp, Err(CorruptCause::Unreadable("it is no file".to_owned()))));
    }
    if stamp.len > VALUE_MAX as u64 {
        return Ok((stamp, Err(CorruptCause::TooLarge { bytes: stamp.len, max: VALUE_MAX as u64 })));
    }
    let mut value = Vec::new();
    match file.take(VALUE_MAX as u64).read_to_end(&mut value) {
        Ok(_) => Ok((stamp, Ok(value))),
        Err(e) if e.raw_os_error() == Some(libc::ESTALE) => Err(e),
        Err(e) => Ok((stamp, Err(unreadable(&e)))),
    }
}

fn write_file(path: &Path, value: &[u8]) -> io::Result<File> {
    let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
    file.write_all(value)?;
    // The clock of this process, which is the one that readers compare with, and not that of a file server.
    file.set_modified(clock::wall())?;
    // Else a crash of the machine could leave the name and not the content.
    file.sync_all()?;
    Ok(file)
}

fn missing_is_none<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// What a failed call on a path means for the caller.
pub(super) fn failed(op: &'static str, path: &Path, error: &io::Error) -> DirectoryError {
    let (place, cause) = (path.display().to_string(), error.to_string());
    match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG) => DirectoryError::Full { place, cause },
        Some(libc::EACCES | libc::EPERM | libc::EROFS) => DirectoryError::Denied { place, cause },
        // The folder is not there, or its server is not.
        Some(
            libc::ENOENT | libc::ENOTDIR | libc::ESTALE | libc::ETIMEDOUT | libc::EHOSTDOWN | libc::ENOTCONN,
        ) => DirectoryError::Unreachable { place, cause },
        _ => OsError::from_io(op, place, error).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_sorted_by_what_can_be_done() {
        let of = |errno| failed("write", Path::new("/d/a"), &io::Error::from_raw_os_error(errno));
        assert!(matches!(of(libc::ENOSPC), DirectoryError::Full { place, .. } if place == "/d/a"));
        assert!(matches!(of(libc::EROFS), DirectoryError::Denied { .. }));
        assert!(of(libc::ESTALE).is_retryable());
        assert!(matches!(of(libc::EIO), DirectoryError::Os(_)));
    }

    #[test]
    fn a_file_from_the_future_counts_no_longer_than_one_from_the_past() {
        let now = clock::wall();
        let at = |modified| Stamp { inode: (0, 0), modified, len: 0 };
        let (ttl, much) = (Duration::from_secs(10), Duration::from_secs(11));
        assert!(
            at(now).is_alive(ttl, now)
                && at(now - ttl).is_alive(ttl, now)
                && at(now + ttl).is_alive(ttl, now)
        );
        assert!(!at(now - much).is_alive(ttl, now) && !at(now + much).is_alive(ttl, now));
    }
}
