//! A directory in a folder that its users share, on one host or by a network file system.
//!
//! Watching looks at the folder again and again, since inotify(7) does not see what other hosts do to a shared file
//! system. A look costs one readdir(3) and a stat(2) for each entry; only files that were written or renewed are read.

mod folder;
mod hold;
mod name;

use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use self::folder::{Folder, Stamp};
use self::hold::FileHold;
use self::name::unescape;
use super::entry::{ENTRIES_MAX, Entry, LISTING_BYTES_MAX, check_name};
use super::error::Corrupt;
use super::watch::{Feed, Listing, News, Revision, Watch};
use super::{Directory, DirectoryError, Registration, Result};
use crate::clock;

/// How long to wait for processes that write to the same folder.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);

/// A directory in a folder: one file for each agent. Several processes may use it at once; killed ones leave nothing that
/// blocks others. Every call ends within five seconds, or as the file system does. A registration runs a thread, which
/// sleeps; publishing reads the folder once, to remove what dead processes left.
///
/// The modification time of a file is its last renewal, so the clocks of hosts that share a folder must agree to well
/// within the time to live. Names may have 249 bytes, of which any but letters, digits, `-` and `_` count as
/// three. Whoever may write to the folder may remove and replace entries.
///
/// # Example
/// ```
/// use std::time::Duration;
/// use transfer_core::directory::{Directory, FileDirectory};
/// use transfer_core::{Agent, Config};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// let directory = FileDirectory::open(folder.path())?;
/// let agent = Agent::new(Config::new("rack 1/prefill-0"))?;
/// let registration = directory.publish(&agent.metadata(), Duration::from_secs(10))?;
///
/// // In any other process:
/// let theirs = FileDirectory::open(folder.path())?;
/// assert_eq!(theirs.lookup("rack 1/prefill-0")?.incarnation, agent.incarnation());
/// registration.close()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct FileDirectory {
    folder: Folder,
    poll_interval: Duration,
}

impl FileDirectory {
    /// The directory in that folder, which is made if it is not there.
    ///
    /// # Errors
    /// [`DirectoryError`], where the folder cannot be made.
    pub fn open(folder: impl Into<PathBuf>) -> Result<Self> {
        let folder = Folder::open(folder.into(), LOCK_TIMEOUT)?;
        Ok(Self { folder, poll_interval: Duration::from_millis(500) })
    }

    /// How often watches look at the folder; at least 10 ms. Default 500 ms.
    #[must_use]
    pub fn poll_interval(mut self, interval: Duration) -> Self {
        self.poll_interval = interval.max(Duration::from_millis(10));
        self
    }
}

impl Directory for FileDirectory {
    fn publish(&self, blob: &[u8], ttl: Duration) -> Result<Registration> {
        let entry = Entry::new(blob, ttl)?;
        let locked = self.folder.lock()?;
        // Not what has just expired: its owner may be late, and would have to write it again.
        let expired = Scan::new(self.folder.clone(), "").expired_for_twice_their_time()?;
        locked.sweep(expired)?;
        let (file, first) = locked.take(&entry)?;
        drop(locked);
        let hold = FileHold::start(self.folder.clone(), entry.clone(), file, first)?;
        Ok(Registration::new(entry, Box::new(hold)))
    }

    fn lookup(&self, name: &str) -> Result<Entry> {
        check_name(name)?;
        match self.folder.read(name)? {
            Some(found) if found.is_alive(clock::wall()) => Ok(found.item?),
            _ => Err(DirectoryError::NotFound { name: name.to_owned(), place: self.folder.place() }),
        }
    }

    fn list(&self, prefix: &str) -> Result<Listing> {
        Scan::new(self.folder.clone(), prefix).all()
    }

    fn watch(&self, prefix: &str, since: &Listing) -> Result<Watch> {
        let scan = Scan::new(self.folder.clone(), prefix);
        let feed =
            FileFeed { scan, every: self.poll_interval, due: None, first: true, news: VecDeque::new() };
        Ok(Watch::new(Box::new(feed), since))
    }
}

/// What was seen of a folder, so that looking again costs little.
#[derive(Debug)]
struct Scan {
    folder: Folder,
    prefix: String,
    seen: HashMap<String, Seen>,
}

/// A file, as it was read last.
#[derive(Clone, Copy, Debug)]
struct Seen {
    stamp: Stamp,
    /// `None` where it is damaged.
    ttl: Option<Duration>,
    /// Whether it counted, and so was told.
    alive: bool,
}

type Item = Result<Entry, Corrupt>;

impl Scan {
    fn new(folder: Folder, prefix: &str) -> Self {
        Self { folder, prefix: prefix.to_owned(), seen: HashMap::new() }
    }

    /// What was written since the last look, and which names are gone.
    fn look(&mut self) -> Result<(Vec<Item>, Vec<String>)> {
        let (mut items, mut bytes) = (Vec::new(), 0);
        let mut before = std::mem::take(&mut self.seen);
        for file in self.folder.files()? {
            let file = file?;
            let Some(name) = unescape(&file) else {
                items.push(Err(Corrupt::nameless(self.folder.key(&file))));
                continue;
            };
            if !name.starts_with(&self.prefix) {
                continue;
            }
            let (seen, item) = self.look_at(&name, before.get(&name).copied())?;
            let Some(seen) = seen else { continue };
            if let Some(item) = item {
                bytes += item.as_ref().map_or(0, |entry| entry.blob.len());
                items.push(item);
            }
            if seen.alive {
                before.remove(&name);
            }
            self.seen.insert(name, seen);
            if self.seen.len() + items.len() > 2 * ENTRIES_MAX || bytes > LISTING_BYTES_MAX {
                let limit = format!("{ENTRIES_MAX} entries and {LISTING_BYTES_MAX} bytes are read at once");
                return Err(DirectoryError::TooLarge { what: self.folder.place(), limit });
            }
        }
        Ok((items, before.into_iter().filter(|(_, seen)| seen.alive).map(|(name, _)| name).collect()))
    }

    /// One name: what it is now, and its content where that has to be told.
    fn look_at(&self, name: &str, before: Option<Seen>) -> Result<(Option<Seen>, Option<Item>)> {
        let now = clock::wall();
        if let (Some(before), Some(stamp)) = (before, self.folder.stamp(name)?)
            && before.stamp == stamp
        {
            let alive = before.ttl.is_none_or(|ttl| stamp.is_alive(ttl, now));
            if alive == before.alive {
                return Ok((Some(before), None));
            }
        }
        let Some(found) = self.folder.read(name)? else { return Ok((None, None)) };
        let alive = found.is_alive(now);
        let ttl = found.item.as_ref().ok().map(|entry| entry.ttl);
        let seen = Seen { stamp: found.stamp, ttl, alive };
        Ok((Some(seen), alive.then_some(found.item)))
    }

    fn all(&mut self) -> Result<Listing> {
        self.seen.clear();
        let (items, _) = self.look()?;
        let (mut entries, mut corrupt) = (Vec::new(), Vec::new());
        for item in items {
            match item {
                Ok(entry) => entries.push(entry),
                Err(damage) => corrupt.push(damage),
            }
        }
        Ok(Listing::new(Revision::default(), entries, corrupt))
    }

    fn expired_for_twice_their_time(&mut self) -> Result<Vec<String>> {
        self.all()?;
        let now = clock::wall();
        let over = |seen: &Seen| seen.ttl.is_some_and(|ttl| !seen.stamp.is_alive(ttl.saturating_mul(2), now));
        Ok(self.seen.iter().filter(|(_, seen)| over(seen)).map(|(name, _)| name.clone()).collect())
    }
}

#[derive(Debug)]
struct FileFeed {
    scan: Scan,
    every: Duration,
    /// When to look again; `None`: at once.
    due: Option<Instant>,
    /// Nothing was told yet.
    first: bool,
    news: VecDeque<News>,
}

impl FileFeed {
    fn look(&mut self) -> Result<()> {
        // Also after a failure, so that a folder that is gone is not asked for without end.
        self.due = clock::end_of_wait(self.every);
        if self.first {
            self.news.push_back(News::All(self.scan.all()?));
            self.first = false;
            return Ok(());
        }
        let looked = self.scan.look();
        // Half a look has lost what was seen before it.
        self.first = looked.is_err();
        let (items, gone) = looked?;
        self.news.extend(gone.into_iter().map(|name| News::Gone(Revision::default(), name)));
        self.news.extend(items.into_iter().map(|item| News::Put(Revision::default(), item)));
        Ok(())
    }
}

impl Feed for FileFeed {
    fn next(&mut self, timeout: Duration) -> Result<Option<News>> {
        let end = clock::end_of_wait(timeout);
        loop {
            if let Some(news) = self.news.pop_front() {
                return Ok(Some(news));
            }
            match self.due.and_then(|due| clock::left(Some(due))) {
                None => self.look()?,
                Some(until_due) => match clock::left(end) {
                    None => return Ok(None),
                    Some(left) => std::thread::sleep(until_due.min(left)),
                },
            }
        }
    }
}

/// For `crate::fuzzing`.
#[cfg(fuzzing)]
pub(crate) mod fuzzing {
    /// The file of the agent `name`, where it can have one.
    #[must_use]
    pub fn file_of_name(name: &str) -> Option<String> {
        super::name::escape(name).ok()
    }

    /// The agent whose file that is.
    #[must_use]
    pub fn name_of_file(file: &str) -> Option<String> {
        super::unescape(file)
    }
}
