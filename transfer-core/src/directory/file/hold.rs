//! An agent's own file, and the thread that renews it.
//!
//! Renewing sets the modification time through the descriptor of the file that was written here. However late that comes,
//! it cannot touch a later publication, which is another file under the same name.

use std::fs::File;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use transfer_sys::OsError;

use super::super::entry::Entry;
use super::super::{DirectoryError, Hold, Result};
use super::folder::{Folder, Locked, failed, inode};
use crate::clock;

/// Renewals in a time to live, so that two may be missed.
const RENEWALS_PER_TTL: u32 = 3;

#[derive(Debug)]
pub(super) struct FileHold {
    own: Arc<Own>,
    /// Dropped to end the thread.
    renewing: Mutex<Option<(Sender<()>, JoinHandle<()>)>>,
}

#[derive(Debug)]
struct Own {
    folder: Folder,
    /// Held over calls to the file system.
    state: Mutex<State>,
    /// What happened at the last renewal. Superseded is for good.
    last: Mutex<Result<()>>,
}

#[derive(Debug)]
struct State {
    entry: Entry,
    /// The file that was written here.
    file: File,
    /// Nobody had the name before, so nobody has to be kept from coming back.
    first: bool,
}

impl FileHold {
    pub(super) fn start(folder: Folder, entry: Entry, file: File, first: bool) -> Result<Self> {
        let every = entry.ttl / RENEWALS_PER_TTL;
        let name = format!("{}-entry", entry.name);
        let state = Mutex::new(State { entry, file, first });
        let own = Arc::new(Own { folder, state, last: Mutex::new(Ok(())) });
        let (stop, stopped) = crossbeam_channel::bounded(0);
        let renewed = Arc::clone(&own);
        let thread = std::thread::Builder::new()
            // Not more than a thread's name may have, and no zero bytes, which it may not have either.
            .name(name.chars().filter(|c| *c != '\0').take(15).collect())
            .spawn(move || renewed.keep_alive(every, &stopped))
            .map_err(|e| OsError::from_io("pthread_create", name, &e))?;
        Ok(Self { own, renewing: Mutex::new(Some((stop, thread))) })
    }
}

impl Own {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn last(&self) -> MutexGuard<'_, Result<()>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep_alive(&self, every: Duration, stopped: &Receiver<()>) {
        while stopped.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
            let mut state = self.lock();
            if self.done(self.renew(&mut state), &state.entry.name) {
                return;
            }
        }
    }

    /// Keeps what happened; says whether the registration has come to its end.
    fn done(&self, result: Result<()>, name: &str) -> bool {
        let over = matches!(result, Err(DirectoryError::Superseded { .. }));
        let mut last = self.last();
        if let Err(error) = &result
            && result != *last
        {
            tracing::warn!(name, %error, "a directory entry was not renewed");
        }
        *last = result;
        over
    }

    fn renew(&self, state: &mut State) -> Result<()> {
        if self.is_own(state)? {
            let fail = |e: &std::io::Error| failed("utimensat", self.folder.place().as_ref(), e);
            return state.file.set_modified(clock::wall()).map_err(|e| fail(&e));
        }
        // Somebody removed it, took it for dead (this process was stopped for longer than the time to live), or took the
        // name.
        let locked = self.folder.lock()?;
        self.check_free(state, &locked)?;
        state.file = locked.write(&state.entry)?;
        Ok(())
    }

    fn is_own(&self, state: &State) -> Result<bool> {
        let name = &state.entry.name;
        let own = state.file.metadata().map_err(|e| failed("fstat", name.as_ref(), &e))?;
        Ok(self.folder.stamp(name)?.is_some_and(|stamp| stamp.is_of(inode(&own))))
    }

    /// Whether the name is this registration's to write. Another life that took it keeps it from this one for good, also
    /// when it has left.
    fn check_free(&self, state: &State, locked: &Locked<'_>) -> Result<()> {
        if self.is_own(state)? {
            return Ok(());
        }
        let name = &state.entry.name;
        if let Some(by) = locked.last_life(name)?.filter(|&last| last != state.entry.incarnation) {
            return Err(DirectoryError::Superseded { name: name.clone(), by });
        }
        match self.folder.read(name)? {
            Some(found) if found.is_alive(clock::wall()) => match found.item {
                Ok(other) => Err(DirectoryError::Superseded { name: name.clone(), by: other.incarnation }),
                Err(_) => Ok(()),
            },
            _ => Ok(()),
        }
    }
}

impl Hold for FileHold {
    fn check(&self) -> Result<()> {
        self.own.last().clone()
    }

    fn update(&self, entry: Entry) -> Result<()> {
        let mut state = self.own.lock();
        if let over @ Err(DirectoryError::Superseded { .. }) = self.check() {
            return over;
        }
        let locked = self.own.folder.lock()?;
        self.own.check_free(&state, &locked)?;
        state.file = locked.write(&entry)?;
        state.entry = entry;
        Ok(())
    }

    fn end(&self, remove: bool) -> Result<()> {
        let renewing = self.renewing.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((stop, thread)) = renewing {
            drop(stop);
            // A panic there was told on its own thread.
            let _ended = thread.join();
        }
        if !remove {
            return Ok(());
        }
        let state = self.own.lock();
        let locked = self.own.folder.lock()?;
        if !self.own.is_own(&state)? {
            return Ok(());
        }
        locked.remove(&state.entry.name)?;
        if state.first { locked.forget(&state.entry.name) } else { Ok(()) }
    }
}
