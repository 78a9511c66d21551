//! A directory within one process: for tests, and for agents that share one.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use transfer_proto::id::Incarnation;

use super::entry::{Entry, check_name};
use super::watch::{Feed, Listing, News, Revision, Watch};
use super::{Directory, DirectoryError, Hold, Registration, Result};
use crate::clock::{self, Clock};

/// A directory within one process. Clones name the same one. No call waits for anything but a lock.
///
/// Entries need no renewal: the process that would do it is the one that holds them. The time to live begins when a
/// registration is abandoned.
#[derive(Clone, Debug)]
pub struct MemoryDirectory {
    store: Arc<Store>,
}

#[derive(Debug)]
struct Store {
    clock: Clock,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Goes up with every change.
    revision: u64,
    slots: BTreeMap<String, Slot>,
}

/// Who took the name from a registration.
type Fate = OnceLock<Incarnation>;

#[derive(Debug)]
struct Slot {
    entry: Entry,
    /// Shared with the registration.
    fate: Arc<Fate>,
    /// When it ends; `None` while it is held.
    expires: Option<Duration>,
}

impl Default for MemoryDirectory {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryDirectory {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        let store = Store { clock: Clock::start(), state: Mutex::default(), changed: Condvar::new() };
        Self { store: Arc::new(store) }
    }
}

impl Store {
    /// The state without what has expired.
    fn lock(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.sweep(self.clock.elapsed());
        state
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.lock();
        state.revision += 1;
        let result = change(&mut state);
        drop(state);
        self.changed.notify_all();
        result
    }
}

impl State {
    fn sweep(&mut self, now: Duration) {
        let before = self.slots.len();
        self.slots.retain(|_, slot| slot.expires.is_none_or(|at| at > now));
        self.revision += u64::from(self.slots.len() != before);
    }

    fn listing(&self, prefix: &str) -> Listing {
        let slots = self.slots.range(prefix.to_owned()..).take_while(|(name, _)| name.starts_with(prefix));
        let entries = slots.map(|(_, slot)| slot.entry.clone()).collect();
        Listing::new(Revision::new(self.revision), entries, Vec::new())
    }
}

impl Directory for MemoryDirectory {
    fn publish(&self, blob: &[u8], ttl: Duration) -> Result<Registration> {
        let entry = Entry::new(blob, ttl)?;
        let name = entry.name.clone();
        let fate = Arc::new(Fate::new());
        let slot = Slot { entry: entry.clone(), fate: Arc::clone(&fate), expires: None };
        self.store.change(|state| {
            if let Some(before) = state.slots.insert(name.clone(), slot) {
                // Whoever held it has one successor at most.
                let _first = before.fate.set(entry.incarnation);
            }
        });
        let hold = MemoryHold { store: Arc::clone(&self.store), name, fate };
        Ok(Registration::new(entry, Box::new(hold)))
    }

    fn lookup(&self, name: &str) -> Result<Entry> {
        check_name(name)?;
        let state = self.store.lock();
        let nowhere = || DirectoryError::NotFound { name: name.to_owned(), place: "this process".to_owned() };
        state.slots.get(name).map(|slot| slot.entry.clone()).ok_or_else(nowhere)
    }

    fn list(&self, prefix: &str) -> Result<Listing> {
        Ok(self.store.lock().listing(prefix))
    }

    fn watch(&self, prefix: &str, since: &Listing) -> Result<Watch> {
        let feed = MemoryFeed { store: Arc::clone(&self.store), prefix: prefix.to_owned(), seen: None };
        Ok(Watch::new(Box::new(feed), since))
    }
}

#[derive(Debug)]
struct MemoryHold {
    store: Arc<Store>,
    name: String,
    fate: Arc<Fate>,
}

impl Hold for MemoryHold {
    fn check(&self) -> Result<()> {
        match self.fate.get() {
            Some(&by) => Err(DirectoryError::Superseded { name: self.name.clone(), by }),
            None => Ok(()),
        }
    }

    fn update(&self, entry: Entry) -> Result<()> {
        self.store.change(|state| {
            self.check()?;
            if let Some(slot) = state.slots.get_mut(&self.name) {
                slot.entry = entry;
            }
            Ok(())
        })
    }

    fn end(&self, remove: bool) -> Result<()> {
        let now = self.store.clock.elapsed();
        self.store.change(|state| {
            if let Some(slot) = state.slots.get_mut(&self.name)
                && Arc::ptr_eq(&slot.fate, &self.fate)
            {
                slot.expires = Some(if remove { now } else { now.saturating_add(slot.entry.ttl) });
                state.sweep(now);
            }
        });
        Ok(())
    }
}

/// Tells everything whenever something changed; the watch compares.
#[derive(Debug)]
struct MemoryFeed {
    store: Arc<Store>,
    prefix: String,
    /// Revision of what was told last.
    seen: Option<u64>,
}

impl Feed for MemoryFeed {
    fn next(&mut self, timeout: Duration) -> Result<Option<News>> {
        let end = clock::end_of_wait(timeout);
        let mut state = self.store.lock();
        while self.seen == Some(state.revision) {
            let Some(left) = clock::left(end) else { return Ok(None) };
            let next_expiry = state.slots.values().filter_map(|slot| slot.expires).min();
            let wait = next_expiry.map_or(left, |at| at.saturating_sub(self.store.clock.elapsed()).min(left));
            let (guard, _) =
                self.store.changed.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner);
            state = guard;
            state.sweep(self.store.clock.elapsed());
        }
        self.seen = Some(state.revision);
        Ok(Some(News::All(state.listing(&self.prefix))))
    }
}
