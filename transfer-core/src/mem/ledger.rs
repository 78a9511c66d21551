//! The ledger of an agent: the generations of its blocks, and who is writing right now.
//!
//! It is a file of words that only its agent writes and every peer of the same host maps. It makes accesses of which
//! the owner of the memory knows nothing (mapped memory, process_vm_*) revocable:
//!
//! - A *reader* copies first and looks at the generation of each block afterwards. What it copied from a block
//!   that was revoked meanwhile is not told as read.
//! - A *writer* enters a lane of its own ledger, looks at the generations, writes, and leaves the lane. Who revokes
//!   raises the generations first and then waits for every lane that it sees entered.
//!
//! Both are Dekker's pattern: each side writes its own word, passes a sequentially consistent fence, and reads the
//! other's. One of the two sees the other, so there is no writer that was not waited for and saw nothing.

use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};

use transfer_proto::proto::metadata::Generations;
#[cfg(not(loom))]
use transfer_sys::words::{OwnWords, PeerWords};

use super::arena::Arena;
#[cfg(loom)]
use super::loom_words::{OwnWords, PeerWords};
use crate::error::{Error, Result};
use crate::sync::prim::{AtomicU64, Ordering, fence, yield_now};

/// Writers of one agent at the same time; a further one waits its turn. At most one bit less than a word has.
const LANES: usize = if cfg!(loom) { 2 } else { 63 };
/// A lane has a cache line, so that writers do not disturb each other.
const LANE_WORDS: usize = 8;
/// Word that tells that the agent is gone and will never write again.
const RETIRED: usize = 0;
/// First generation. The lanes lie before it.
const FIRST: usize = (LANES + 1) * LANE_WORDS;
/// Blocks of all regions of an agent.
const BLOCKS_MAX: usize = if cfg!(loom) { 2 } else { 1 << 24 };
/// Words of a ledger. Pages of the file that nobody touched cost nothing.
const WORDS: usize = FIRST + BLOCKS_MAX;

/// The ledger of this agent. Safe to use from any thread.
#[derive(Debug)]
pub(crate) struct Ledger {
    words: OwnWords,
    /// A bit for each lane that is taken.
    taken: AtomicU64,
    /// The highest generation that was given out.
    latest: AtomicU64,
    blocks: Mutex<Arena>,
    room: usize,
}

impl Ledger {
    /// With room for as many blocks as there may be.
    ///
    /// # Errors
    /// [`Error::Os`].
    #[cfg(test)]
    pub(crate) fn create(agent: &str) -> Result<Self> {
        Self::with_room(agent, BLOCKS_MAX)
    }

    /// With room for so many blocks, at most as many as there may be.
    ///
    /// # Errors
    /// [`Error::Os`].
    pub(crate) fn with_room(agent: &str, blocks: usize) -> Result<Self> {
        let blocks = blocks.min(BLOCKS_MAX);
        let words = OwnWords::create(&format!("{agent}-ledger"), FIRST + blocks)?;
        words.populate(0, FIRST)?;
        // Those beyond do not exist.
        let (taken, latest) = (AtomicU64::new(u64::MAX << LANES), AtomicU64::new(0));
        Ok(Self { words, taken, latest, blocks: Mutex::new(Arena::new(blocks)), room: blocks })
    }

    pub(crate) fn file(&self) -> &OwnedFd {
        self.words.file()
    }

    #[expect(clippy::expect_used, reason = "callers name words of the table only")]
    fn word(&self, at: usize) -> &AtomicU64 {
        self.words.get(at).expect("the ledger has this word")
    }

    // ---- generations

    /// Room for the generations of a new region of `len` bytes.
    ///
    /// # Errors
    /// [`Error::TooLarge`] with more blocks than an agent may have; [`Error::Os`] without memory for them.
    pub(crate) fn register(&self, len: u64, block_bytes: u64) -> Result<Generations> {
        let wanted = len.div_ceil(block_bytes.max(1)).max(1);
        let too_many = || {
            let (what, max) = ("blocks of the regions of an agent (Config::blocks_max)", self.room as u64);
            Error::TooLarge { what, value: wanted, max }
        };
        let count = usize::try_from(wanted).map_err(|_| too_many())?;
        let first = FIRST + self.blocks().take(count).ok_or_else(too_many)?;
        if let Err(error) = self.words.populate(first, count) {
            self.blocks().give_back(first - FIRST, count);
            return Err(error.into());
        }
        let born = self.latest.fetch_add(1, Ordering::SeqCst) + 1;
        (first..first + count).for_each(|at| self.word(at).store(born, Ordering::SeqCst));
        Ok(Generations::new(first as u64, block_bytes.max(1), born))
    }

    /// Takes the room back. Readers of the region that had it see a later generation, whoever has it next.
    pub(crate) fn unregister(&self, generations: &Generations, len: u64) {
        self.raise(generations, 0, len.max(1));
        let (first, end) = generations.blocks(0, len.max(1));
        if let (Ok(first), Ok(end)) = (usize::try_from(first), usize::try_from(end)) {
            self.blocks().give_back(first - FIRST, end - first);
        }
    }

    fn blocks(&self) -> std::sync::MutexGuard<'_, Arena> {
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The generation that names what stands in the blocks now.
    pub(crate) fn generation(&self) -> u64 {
        self.latest.load(Ordering::SeqCst)
    }

    /// Makes all older generations void for the blocks that these bytes touch. Writers that saw an older one may
    /// still be inside: see [`Guests::inside`](super::Guests::inside).
    pub(crate) fn raise(&self, generations: &Generations, offset: u64, len: u64) -> u64 {
        let generation = self.latest.fetch_add(1, Ordering::SeqCst) + 1;
        let (first, end) = generations.blocks(offset, len);
        for at in first..end {
            let word = self.word(usize::try_from(at).unwrap_or(usize::MAX));
            // Not a store: of two that revoke at once, the higher generation stays.
            word.fetch_max(generation, Ordering::SeqCst);
        }
        // Before the lanes are looked at, and before the owner writes anything new into the blocks.
        fence(Ordering::SeqCst);
        generation
    }

    // ---- lanes

    /// Says that this thread writes into memory of others, until the lane is dropped. Generations are looked at
    /// inside. Cost: no allocation, no lock, no syscall; waits only where 63 threads write already.
    pub(crate) fn enter(&self) -> Lane<'_> {
        let lane = self.take_lane();
        self.word(lane_word(lane)).fetch_add(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        Lane { ledger: self, lane }
    }

    fn take_lane(&self) -> usize {
        loop {
            let taken = self.taken.load(Ordering::Relaxed);
            let lane = taken.trailing_ones();
            if lane >= u64::BITS {
                yield_now();
                continue;
            }
            let (old, new) = (taken, taken | (1 << lane));
            if self.taken.compare_exchange_weak(old, new, Ordering::Acquire, Ordering::Relaxed).is_ok() {
                return lane as usize;
            }
        }
    }

    /// The agent is gone: nobody has to look at its lanes any more.
    pub(crate) fn retire(&self) {
        self.word(RETIRED).store(1, Ordering::Release);
    }
}

fn lane_word(lane: usize) -> usize {
    (lane + 1) * LANE_WORDS
}

/// The right to write into memory of others whose generations were looked at after it was taken.
#[derive(Debug)]
pub(crate) struct Lane<'a> {
    ledger: &'a Ledger,
    lane: usize,
}

impl Drop for Lane<'_> {
    fn drop(&mut self) {
        // After everything that was written inside.
        self.ledger.word(lane_word(self.lane)).fetch_add(1, Ordering::Release);
        self.ledger.taken.fetch_and(!(1 << self.lane), Ordering::Release);
    }
}

/// A ledger that can be looked at: this agent's, or a peer's.
pub(crate) trait View {
    /// What stands in a word, relaxed.
    fn load(&self, at: usize) -> Option<u64>;

    /// Whether its agent is gone.
    fn is_retired(&self) -> bool {
        self.load(RETIRED) != Some(0)
    }

    /// The entry that stands in a lane now, or `None` where nobody is in it.
    fn entry(&self, lane: usize) -> Option<u64> {
        self.load(lane_word(lane)).filter(|count| count % 2 == 1)
    }

    /// Whether who names `generation` may access these bytes. A reader passes an acquire fence between the last byte and
    /// this call, a writer enters a lane before it.
    fn admits(&self, generations: &Generations, generation: u64, offset: u64, len: u64) -> bool {
        let (first, end) = generations.blocks(offset, len);
        let current = |at: u64| usize::try_from(at).ok().and_then(|at| self.load(at));
        // What the ledger does not have, a lying peer told; nothing can be promised for it.
        (first..end).all(|at| current(at).is_some_and(|current| generations.admits(generation, current)))
    }
}

impl View for Ledger {
    fn load(&self, at: usize) -> Option<u64> {
        self.words.get(at).map(|word| word.load(Ordering::Relaxed))
    }
}

/// The ledger of a peer on the same host.
#[derive(Debug)]
pub(crate) struct PeerLedger {
    words: PeerWords,
}

impl PeerLedger {
    /// Maps the file that a peer sent.
    ///
    /// # Errors
    /// [`Error::Os`].
    pub(crate) fn map(file: &OwnedFd) -> Result<Self> {
        Ok(Self { words: PeerWords::map(file, WORDS)? })
    }

    /// As a peer sees it.
    #[cfg(loom)]
    pub(crate) fn of(ledger: &Ledger) -> Self {
        Self { words: ledger.words.seen_by_peers() }
    }
}

impl View for PeerLedger {
    fn load(&self, at: usize) -> Option<u64> {
        self.words.load(at)
    }
}

/// The entries that stand in the lanes of a ledger now.
pub(crate) fn entries(view: &impl View) -> impl Iterator<Item = (usize, u64)> + '_ {
    (0..LANES).filter_map(|lane| view.entry(lane).map(|entry| (lane, entry)))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn what_was_revoked_is_void_for_older_generations_only() {
        let ledger = Ledger::create("test").unwrap();
        let blocks = ledger.register(100, 10).unwrap();
        let granted = ledger.generation();
        assert!(ledger.admits(&blocks, granted, 0, 100) && ledger.admits(&blocks, 0, 0, 100));
        let raised = ledger.raise(&blocks, 15, 10);
        assert!(ledger.admits(&blocks, granted, 0, 10) && ledger.admits(&blocks, granted, 30, 70));
        assert!(!ledger.admits(&blocks, granted, 19, 1) && !ledger.admits(&blocks, granted, 20, 5));
        assert!(ledger.admits(&blocks, raised, 0, 100));
        assert!(!ledger.admits(&blocks, 0, 10, 1), "the first generation is one like any other");
    }

    #[test]
    fn the_next_region_at_the_same_place_is_not_the_old_one() {
        let ledger = Ledger::create("test").unwrap();
        let old = ledger.register(100, 10).unwrap();
        let granted = ledger.generation();
        ledger.unregister(&old, 100);
        let new = ledger.register(100, 10).unwrap();
        assert_eq!(old.first, new.first);
        assert!(!ledger.admits(&old, granted, 0, 100) && !ledger.admits(&old, 0, 0, 1));
        assert!(ledger.admits(&new, 0, 0, 100));
    }

    #[test]
    fn more_blocks_than_there_are_words_are_refused() {
        let ledger = Ledger::create("test").unwrap();
        assert!(matches!(ledger.register(u64::MAX, 1), Err(Error::TooLarge { .. })));
        assert!(ledger.register(u64::MAX, u64::MAX).is_ok());
    }

    #[test]
    fn a_peer_sees_who_is_inside_and_who_left() {
        let ledger = Ledger::create("test").unwrap();
        let peer = PeerLedger::map(ledger.file()).unwrap();
        let (a, b) = (ledger.enter(), ledger.enter());
        assert_eq!(entries(&peer).count(), 2);
        let first: Vec<_> = entries(&peer).collect();
        drop(a);
        let c = ledger.enter();
        let now: Vec<_> = entries(&peer).collect();
        assert_eq!(now.len(), 2);
        assert!(now.contains(&first[1]) && !now.contains(&first[0]), "{first:?} {now:?}");
        drop((b, c));
        assert_eq!(entries(&peer).count(), 0);
        assert!(!peer.is_retired());
        ledger.retire();
        assert!(peer.is_retired());
    }

    #[test]
    fn every_lane_can_be_taken_and_a_further_writer_waits() {
        let ledger = Ledger::create("test").unwrap();
        let lanes: Vec<_> = (0..LANES).map(|_| ledger.enter()).collect();
        std::thread::scope(|scope| {
            let late = scope.spawn(|| drop(ledger.enter()));
            assert_eq!(entries(&ledger).count(), LANES);
            drop(lanes);
            late.join().unwrap();
        });
        assert_eq!(entries(&ledger).count(), 0);
    }
}
