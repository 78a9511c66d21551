//! The pool of KV blocks: who holds which, which are free, and which free ones are still worth finding again.
//!
//! A block is free when nobody holds it. A free block whose content has a hash stays findable until it is handed out
//! again; free blocks are handed out least recently used first, blocks without a hash before all others.

use crate::hash::BlockHash;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

/// The index of a block in the KV cache.
pub(crate) type BlockId = u32;

/// What happened to the prefix cache, for those who follow it from outside.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum CacheEvent {
    /// Consecutive blocks can be found from now on.
    Stored { hashes: Vec<BlockHash>, start: RunStart, tokens: Vec<u32> },
    /// These blocks were handed out for other content.
    Removed { hashes: Vec<BlockHash> },
}

/// What a run of consecutive blocks stands on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum RunStart {
    /// Nothing: the run begins its sequence, which may have a cache salt.
    Root(Option<Arc<str>>),
    /// The block before.
    Behind(BlockHash),
}

/// The end of the free list.
const NONE: BlockId = BlockId::MAX;

#[derive(Clone, Copy, Debug)]
struct Slot {
    refs: u32,
    hash: Option<BlockHash>,
    previous: BlockId,
    next: BlockId,
}

/// All blocks of the KV cache, with reference counts, a free list and the prefix cache.
#[derive(Debug)]
pub(crate) struct BlockPool {
    slots: Vec<Slot>,
    head: BlockId,
    tail: BlockId,
    free: usize,
    cached: HashMap<BlockHash, BlockId>,
    events: Vec<CacheEvent>,
}

impl BlockPool {
    /// A pool of `count` free blocks.
    pub(crate) fn new(count: u32) -> Self {
        let slot = Slot { refs: 0, hash: None, previous: NONE, next: NONE };
        let mut pool = Self {
            slots: vec![slot; count as usize],
            head: NONE,
            tail: NONE,
            free: 0,
            cached: HashMap::new(),
            events: Vec::new(),
        };
        (0..count).for_each(|id| pool.push_back(id));
        pool
    }

    /// Number of blocks in the pool.
    pub(crate) fn total(&self) -> usize {
        self.slots.len()
    }

    /// Number of blocks that nobody holds.
    pub(crate) fn free(&self) -> usize {
        self.free
    }

    /// The blocks that hold the longest findable prefix of `hashes`.
    pub(crate) fn lookup(&self, hashes: &[BlockHash]) -> Vec<BlockId> {
        hashes.iter().map_while(|hash| self.cached.get(hash).copied()).collect()
    }

    /// Takes one more hold on each block.
    pub(crate) fn hold(&mut self, blocks: &[BlockId]) {
        for &id in blocks {
            if self.slots[id as usize].refs == 0 {
                self.unlink(id);
            }
            self.slots[id as usize].refs += 1;
        }
    }

    /// Hands out `count` blocks with one hold each, or none at all when fewer are free.
    pub(crate) fn allocate(&mut self, count: usize) -> Option<Vec<BlockId>> {
        if count > self.free {
            return None;
        }
        let mut removed = Vec::new();
        let mut blocks = Vec::with_capacity(count);
        for _ in 0..count {
            let id = self.head;
            self.hold(&[id]);
            if let Some(hash) = self.slots[id as usize].hash.take() {
                self.cached.remove(&hash);
                removed.push(hash);
            }
            blocks.push(id);
        }
        if !removed.is_empty() {
            self.events.push(CacheEvent::Removed { hashes: removed });
        }
        Some(blocks)
    }

    /// Gives back one hold on each block. The blocks are in the order of their sequence: the tail of a prefix is
    /// worth less than its beginning, so it is handed out first.
    pub(crate) fn release(&mut self, blocks: &[BlockId]) {
        for &id in blocks.iter().rev() {
            let slot = &mut self.slots[id as usize];
            slot.refs -= 1;
            match (slot.refs, slot.hash) {
                (0, Some(_)) => self.push_back(id),
                (0, None) => self.push_front(id),
                _ => {}
            }
        }
    }

    /// Makes full blocks findable. `blocks` and `hashes` are consecutive blocks of one sequence from `start` on, and
    /// `tokens` are all their tokens. A content that is findable already keeps its first block.
    pub(crate) fn store(
        &mut self,
        blocks: &[BlockId],
        hashes: &[BlockHash],
        start: RunStart,
        tokens: &[u32],
    ) {
        let block_size = tokens.len() / blocks.len().max(1);
        let mut before = start;
        let mut run: Option<CacheEvent> = None;
        for (index, (&id, &hash)) in blocks.iter().zip(hashes).enumerate() {
            let content = &tokens[index * block_size..(index + 1) * block_size];
            if let Entry::Vacant(entry) = self.cached.entry(hash) {
                entry.insert(id);
                self.slots[id as usize].hash = Some(hash);
                match &mut run {
                    Some(CacheEvent::Stored { hashes, tokens, .. }) => {
                        hashes.push(hash);
                        tokens.extend_from_slice(content);
                    }
                    _ => {
                        run = Some(CacheEvent::Stored {
                            hashes: vec![hash],
                            start: before,
                            tokens: content.to_vec(),
                        });
                    }
                }
            } else {
                self.events.extend(run.take());
            }
            before = RunStart::Behind(hash);
        }
        self.events.extend(run);
    }

    /// What happened to the prefix cache since the last call.
    pub(crate) fn take_events(&mut self) -> Vec<CacheEvent> {
        std::mem::take(&mut self.events)
    }

    fn push_back(&mut self, id: BlockId) {
        let tail = self.tail;
        self.slots[id as usize].previous = tail;
        self.slots[id as usize].next = NONE;
        match tail {
            NONE => self.head = id,
            _ => self.slots[tail as usize].next = id,
        }
        self.tail = id;
        self.free += 1;
    }

    fn push_front(&mut self, id: BlockId) {
        let head = self.head;
        self.slots[id as usize].next = head;
        self.slots[id as usize].previous = NONE;
        match head {
            NONE => self.tail = id,
            _ => self.slots[head as usize].previous = id,
        }
        self.head = id;
        self.free += 1;
    }

    fn unlink(&mut self, id: BlockId) {
        let Slot { previous, next, .. } = self.slots[id as usize];
        match previous {
            NONE => self.head = next,
            _ => self.slots[previous as usize].next = next,
        }
        match next {
            NONE => self.tail = previous,
            _ => self.slots[next as usize].previous = previous,
        }
        self.free -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hashes(count: u32) -> Vec<BlockHash> {
        (0..count).map(|n| BlockHash::of(None, &[n])).collect()
    }

    #[test]
    fn a_pool_hands_out_every_block_once_and_no_more() {
        let mut pool = BlockPool::new(4);
        let mut blocks = pool.allocate(3).unwrap();
        assert_eq!(pool.allocate(2), None);
        blocks.extend(pool.allocate(1).unwrap());
        blocks.sort_unstable();
        assert_eq!(blocks, [0, 1, 2, 3]);
        assert_eq!(pool.free(), 0);
        pool.release(&blocks);
        assert_eq!(pool.free(), 4);
    }

    #[test]
    fn stored_blocks_are_found_until_they_are_handed_out_again() {
        let mut pool = BlockPool::new(3);
        let hash = hashes(3);
        let blocks = pool.allocate(2).unwrap();
        pool.store(&blocks, &hash[..2], RunStart::Root(None), &[0, 1]);
        assert_eq!(
            pool.take_events(),
            [CacheEvent::Stored {
                hashes: hash[..2].to_vec(),
                start: RunStart::Root(None),
                tokens: vec![0, 1]
            }]
        );
        pool.release(&blocks);
        assert_eq!(pool.lookup(&hash), blocks);

        // The block without content goes first, then the tail of the prefix.
        let fresh = pool.allocate(2).unwrap();
        assert!(!blocks.contains(&fresh[0]));
        assert_eq!(fresh[1], blocks[1]);
        assert_eq!(pool.lookup(&hash), blocks[..1]);
        assert_eq!(pool.take_events(), [CacheEvent::Removed { hashes: vec![hash[1]] }]);
    }

    #[test]
    fn a_held_block_is_not_handed_out_while_anyone_holds_it() {
        let mut pool = BlockPool::new(2);
        let hash = hashes(1);
        let first = pool.allocate(1).unwrap();
        pool.store(&first, &hash, RunStart::Root(None), &[7]);
        pool.hold(&first);
        pool.release(&first);
        assert_eq!(pool.allocate(2), None);
        pool.release(&first);
        pool.hold(&pool.lookup(&hash));
        assert_eq!(pool.free(), 1);
        assert_eq!(pool.allocate(2), None);
    }

    #[test]
    fn a_content_that_is_known_already_splits_the_event_and_keeps_its_block() {
        let mut pool = BlockPool::new(4);
        let hash = hashes(3);
        let known = pool.allocate(1).unwrap();
        pool.store(&known, &hash[1..2], RunStart::Behind(hash[0]), &[1]);
        pool.take_events();
        let blocks = pool.allocate(3).unwrap();
        let root = RunStart::Root(Some("salt".into()));
        pool.store(&blocks, &hash, root.clone(), &[0, 1, 2]);
        assert_eq!(
            pool.take_events(),
            [
                CacheEvent::Stored { hashes: vec![hash[0]], start: root, tokens: vec![0] },
                CacheEvent::Stored {
                    hashes: vec![hash[2]],
                    start: RunStart::Behind(hash[1]),
                    tokens: vec![2]
                },
            ]
        );
        assert_eq!(pool.lookup(&hash), [blocks[0], known[0], blocks[2]]);
    }
}
