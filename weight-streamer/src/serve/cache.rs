//! Chunks in memory that the engine can send from: one region, cut into slots.
//!
//! A chunk is read from its file once, checked, and then sent from its slot to whoever asks until the slot is needed
//! for another. When the whole model fits, it is read once and stays; when it does not, the same slots are a staging
//! ring. The region is the memory bound: nothing else grows with the model or with the number of receivers.

use crate::error::Error;
use crate::library::Library;
use crate::manifest::Hash;
use std::collections::HashMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use transfer_core::Region;

#[derive(Debug, Default, Clone, Copy)]
struct Slot {
    chunk: Option<u32>,
    /// Jobs that send from the slot or fill it; such a slot is not given to another chunk.
    pins: usize,
    ready: bool,
    used: u64,
}

#[derive(Debug, Default)]
struct State {
    slots: Vec<Slot>,
    places: HashMap<u32, usize>,
    turn: u64,
}

/// The slots of one server.
#[derive(Debug)]
pub(super) struct Cache {
    region: Region,
    slot_bytes: usize,
    state: Mutex<State>,
    changed: Condvar,
}

/// A chunk that stays in its slot as long as this lives.
#[derive(Debug)]
pub(super) struct Pinned<'a> {
    cache: &'a Cache,
    slot: usize,
}

impl Cache {
    pub(super) fn new(region: Region, slots: usize, chunk_bytes: u32) -> Self {
        let state = State { slots: vec![Slot::default(); slots], ..State::default() };
        let slot_bytes = usize::try_from(chunk_bytes).unwrap_or(usize::MAX);
        Self { region, slot_bytes, state: Mutex::new(state), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Brings a chunk into a slot and keeps it there. `buffer` is scratch space of the calling thread.
    pub(super) fn pin(
        &self,
        library: &Library,
        chunk: u32,
        buffer: &mut Vec<u8>,
    ) -> Result<Pinned<'_>, Error> {
        let Some(slot) = self.claim(chunk) else {
            return Ok(Pinned { cache: self, slot: self.find_ready(chunk) });
        };
        let pinned = Pinned { cache: self, slot };
        let loaded = self.load(library, chunk, slot, buffer);
        let mut state = self.lock();
        match loaded {
            Ok(()) => state.slots[slot].ready = true,
            Err(_) => {
                state.slots[slot].chunk = None;
                state.places.remove(&chunk);
            }
        }
        drop(state);
        self.changed.notify_all();
        loaded.map(|()| pinned)
    }

    /// A pinned slot to load the chunk into, or none when it is in a slot already, which is then pinned.
    fn claim(&self, chunk: u32) -> Option<usize> {
        let mut state = self.lock();
        loop {
            state.turn += 1;
            let turn = state.turn;
            if let Some(&place) = state.places.get(&chunk) {
                if state.slots[place].ready {
                    state.slots[place].pins += 1;
                    state.slots[place].used = turn;
                    return None;
                }
            } else if let Some(slot) = Self::oldest_unpinned(&state) {
                if let Some(old) = state.slots[slot].chunk {
                    state.places.remove(&old);
                }
                state.slots[slot] = Slot { chunk: Some(chunk), pins: 1, ready: false, used: turn };
                state.places.insert(chunk, slot);
                return Some(slot);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn oldest_unpinned(state: &State) -> Option<usize> {
        let unpinned = state.slots.iter().enumerate().filter(|(_, slot)| slot.pins == 0);
        unpinned.min_by_key(|(_, slot)| slot.used).map(|(index, _)| index)
    }

    /// The slot of a chunk that [`Self::claim`] pinned; it cannot have moved.
    fn find_ready(&self, chunk: u32) -> usize {
        self.lock().places.get(&chunk).copied().unwrap_or(0)
    }

    fn load(&self, library: &Library, chunk: u32, slot: usize, buffer: &mut Vec<u8>) -> Result<(), Error> {
        library.read_chunk(chunk, buffer)?;
        self.region.write_at(self.offset(slot), buffer)?;
        Ok(())
    }

    const fn offset(&self, slot: usize) -> usize {
        slot.saturating_mul(self.slot_bytes)
    }
}

impl Pinned<'_> {
    /// Where the chunk lies in the region.
    pub(super) const fn offset(&self) -> usize {
        self.cache.offset(self.slot)
    }

    /// A receiver says that the chunk was wrong: looks at the copy in memory and takes it from the file again when
    /// it is not what it should be.
    pub(super) fn recheck(&self, library: &Library, chunk: u32, buffer: &mut Vec<u8>) -> Result<(), Error> {
        let Some(expected) = library.manifest().chunk(chunk) else { return Ok(()) };
        buffer.resize(usize::try_from(expected.len).unwrap_or(0), 0);
        self.cache.region.read_at(self.offset(), buffer)?;
        if Hash::of(buffer) == expected.hash {
            return Ok(());
        }
        tracing::warn!(chunk, "a cached chunk is damaged; reading it from its file again");
        self.cache.load(library, chunk, self.slot, buffer)
    }
}

impl Drop for Pinned<'_> {
    fn drop(&mut self) {
        let mut state = self.cache.lock();
        let slot = &mut state.slots[self.slot];
        slot.pins = slot.pins.saturating_sub(1);
        drop(state);
        self.cache.changed.notify_all();
    }
}
