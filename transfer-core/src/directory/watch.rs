//! Watching: what changed since the caller looked, as a sequence of changes that is never wrong.
//!
//! Directories tell what they know in their own way: change by change, or all at once where a folder was read or a
//! server has forgotten its past. A [`Watch`] compares that with what it has told before. So whoever applies its events
//! to what he knew has what stands there, whatever was missed in between.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::time::Duration;

use transfer_proto::id::Incarnation;

use super::entry::{Entry, fingerprint};
use super::error::{Corrupt, DirectoryError};
use crate::clock;

/// How far a directory's history had gone. Only equality and order mean anything, and only within one directory;
/// always zero where a directory keeps no history.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Revision(pub(crate) u64);

impl Revision {
    /// From the number that a directory gave it.
    #[must_use]
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// That number.
    #[must_use]
    pub const fn number(self) -> u64 {
        self.0
    }
}

/// What stood in a directory at one moment, sorted by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Listing {
    /// Which moment.
    pub revision: Revision,
    /// The agents.
    pub entries: Vec<Entry>,
    /// Places whose content cannot be used.
    pub corrupt: Vec<Corrupt>,
}

impl Listing {
    /// What stood there at `revision`; it is sorted here.
    #[must_use]
    pub fn new(revision: Revision, mut entries: Vec<Entry>, mut corrupt: Vec<Corrupt>) -> Self {
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        corrupt.sort_by(|a, b| a.key.cmp(&b.key));
        Self { revision, entries, corrupt }
    }

    /// The entry of that name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Entry> {
        let at = self.entries.binary_search_by(|entry| entry.name.as_str().cmp(name)).ok()?;
        self.entries.get(at)
    }

    /// Takes in what a watch told, so that `entries` stays what stands there; `corrupt` stays as it was. Cost: linear
    /// in the number of entries.
    pub fn apply(&mut self, event: Event) {
        self.revision = event.revision;
        match event.change {
            Change::Added(entry) | Change::Changed(entry) => {
                match self.entries.binary_search_by(|known| known.name.cmp(&entry.name)) {
                    Ok(at) => self.entries[at] = entry,
                    Err(at) => self.entries.insert(at, entry),
                }
            }
            Change::Removed { name, .. } => self.entries.retain(|entry| entry.name != name),
            Change::Corrupt(_) => {}
        }
    }
}

/// One change, and the moment of it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Event {
    /// Which moment.
    pub revision: Revision,
    /// What changed.
    pub change: Change,
}

/// What can happen to a name.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Change {
    /// An agent that was not there.
    Added(Entry),
    /// An agent that was there: another life of it, or other metadata.
    Changed(Entry),
    /// An agent left, was lost, or its entry was damaged.
    Removed {
        /// Its name.
        name: String,
        /// Which life of it was there.
        incarnation: Incarnation,
    },
    /// Something stands there that cannot be used.
    Corrupt(Corrupt),
}

/// What a directory tells a [`Watch`]. Only for implementations of [`super::Directory`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum News {
    /// All that stands there; whatever is not in it is gone.
    All(Listing),
    /// Something was written.
    Put(Revision, Result<Entry, Corrupt>),
    /// A name was removed.
    Gone(Revision, String),
}

/// Where a [`Watch`] learns what happens. Only for implementations of [`super::Directory`].
pub trait Feed: Send + fmt::Debug {
    /// The next thing that was learned; `None` when `timeout` is over first.
    ///
    /// # Errors
    /// [`DirectoryError`]. After one that can be retried, the feed must be able to go on without a loss.
    fn next(&mut self, timeout: Duration) -> Result<Option<News>, DirectoryError>;
}

/// A watch over the names with one prefix. Dropping it ends it at once.
///
/// It holds a name and a few words for each entry. Nothing queues up without bound while nobody takes events: changes
/// that were overtaken meanwhile are told as one, or wait at the directory.
#[derive(Debug)]
pub struct Watch {
    feed: Box<dyn Feed>,
    known: BTreeMap<String, Known>,
    ready: VecDeque<Event>,
}

/// What was told of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Known {
    /// `None`: that it is corrupt.
    incarnation: Option<Incarnation>,
    fingerprint: u64,
}

impl Known {
    fn of(item: &Result<Entry, Corrupt>) -> Self {
        match item {
            Ok(entry) => Self { incarnation: Some(entry.incarnation), fingerprint: entry.fingerprint() },
            Err(corrupt) => Self { incarnation: None, fingerprint: fingerprint(&corrupt.cause) },
        }
    }
}

impl Watch {
    /// A watch of one who knows `since`. Only for implementations of [`super::Directory`].
    #[must_use]
    pub fn new(feed: Box<dyn Feed>, since: &Listing) -> Self {
        let items = since.entries.iter().map(|entry| (entry.name.clone(), Known::of(&Ok(entry.clone()))));
        let corrupt = since.corrupt.iter().map(|c| (c.name.clone(), Known::of(&Err(c.clone()))));
        Self { feed, known: items.chain(corrupt).collect(), ready: VecDeque::new() }
    }

    /// The next change; `None` when `timeout` is over first.
    ///
    /// # Errors
    /// [`DirectoryError`]. After one that can be retried the watch goes on: call again, and nothing is missed.
    pub fn next(&mut self, timeout: Duration) -> Result<Option<Event>, DirectoryError> {
        let end = clock::end_of_wait(timeout);
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(Some(event));
            }
            let left = clock::left(end);
            match self.feed.next(left.unwrap_or_default())? {
                Some(news) => self.learn(news),
                None if left.is_none() => return Ok(None),
                None => {}
            }
        }
    }

    fn learn(&mut self, news: News) {
        match news {
            News::Put(revision, item) => self.put(revision, item),
            News::Gone(revision, name) => self.gone(revision, name),
            News::All(listing) => {
                let Listing { revision, entries, corrupt } = listing;
                let items = entries.into_iter().map(Ok).chain(corrupt.into_iter().map(Err));
                let items: BTreeMap<_, _> = items.map(|item| (slot(&item).to_owned(), item)).collect();
                let left: Vec<_> =
                    self.known.keys().filter(|&name| !items.contains_key(name)).cloned().collect();
                left.into_iter().for_each(|name| self.gone(revision, name));
                items.into_values().for_each(|item| self.put(revision, item));
            }
        }
    }

    fn put(&mut self, revision: Revision, item: Result<Entry, Corrupt>) {
        let (name, now) = (slot(&item).to_owned(), Known::of(&item));
        let before = self.known.insert(name.clone(), now);
        if before == Some(now) {
            return;
        }
        let before = before.and_then(|known| known.incarnation);
        let change = match (item, before) {
            (Ok(entry), None) => Change::Added(entry),
            (Ok(entry), Some(_)) => Change::Changed(entry),
            (Err(corrupt), None) => Change::Corrupt(corrupt),
            (Err(corrupt), Some(incarnation)) => {
                self.ready.push_back(Event { revision, change: Change::Removed { name, incarnation } });
                Change::Corrupt(corrupt)
            }
        };
        self.ready.push_back(Event { revision, change });
    }

    fn gone(&mut self, revision: Revision, name: String) {
        if let Some(Known { incarnation: Some(incarnation), .. }) = self.known.remove(&name) {
            self.ready.push_back(Event { revision, change: Change::Removed { name, incarnation } });
        }
    }
}

fn slot(item: &Result<Entry, Corrupt>) -> &str {
    match item {
        Ok(entry) => &entry.name,
        Err(corrupt) => &corrupt.name,
    }
}
