//! The scheduler: which tokens of which sequences go through the model in the next step, and in which blocks.
//!
//! Continuous batching in vLLM's manner. Each step has a budget of tokens; sequences that decode get theirs first,
//! then prefills that have begun, then new sequences, in chunks where a prompt is longer than what is left of the
//! budget. When blocks run out, the youngest running sequence gives all of its blocks back and is computed again
//! later. A sequence whose keys and values come from another engine waits for them without holding up the others.
//!
//! Everything here is arithmetic over ids and counters: no I/O, no clock, no model.

mod pool;
mod stop;
#[cfg(test)]
mod tests;

pub(crate) use pool::{BlockId, CacheEvent, RunStart};
pub(crate) use stop::StopStrings;

use crate::hash::BlockHash;
use pool::BlockPool;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// The name of a sequence within one engine.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct SeqId(pub(crate) u64);

/// What bounds a step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Tokens in a block.
    pub(crate) block_size: usize,
    /// Blocks in the KV cache.
    pub(crate) blocks: u32,
    /// Sequences that run at the same time.
    pub(crate) max_seqs: usize,
    /// Tokens of all sequences in one step.
    pub(crate) max_batched_tokens: usize,
}

/// Some consecutive tokens of one sequence that the next step computes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Work {
    pub(crate) seq: SeqId,
    /// Position of the first token.
    pub(crate) start: usize,
    /// Number of tokens.
    pub(crate) count: usize,
    /// Whether these are the last known tokens of the sequence, so that the next token is to be sampled.
    pub(crate) samples: bool,
}

/// The blocks of one sequence that have to come from another engine before it can run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Fetch {
    pub(crate) seq: SeqId,
    /// Leading blocks of the sequence that are here already.
    pub(crate) have: usize,
    /// Where the blocks behind those go.
    pub(crate) blocks: Vec<BlockId>,
}

/// What the scheduler wants done next.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Step {
    pub(crate) work: Vec<Work>,
    pub(crate) fetches: Vec<Fetch>,
}

/// Counters and gauges for `/metrics`.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Load {
    pub(crate) running: usize,
    pub(crate) waiting: usize,
    pub(crate) blocks_used: usize,
    pub(crate) blocks_total: usize,
    pub(crate) prefix_queries: u64,
    pub(crate) prefix_hits: u64,
    pub(crate) preemptions: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// In the queue, holds no blocks.
    Waiting,
    /// In the queue; its keys and values are to come from another engine.
    Remote,
    /// Out of the queue until its keys and values are here.
    Fetching,
    /// In the other queue, with all of its blocks.
    Landed,
    /// Takes part in the steps.
    Running,
}

#[derive(Debug)]
struct Sequence {
    /// The prompt and what was generated so far.
    tokens: Vec<u32>,
    prompt_len: usize,
    /// Shares blocks only with sequences of the same salt.
    salt: Option<Arc<str>>,
    /// Leading tokens whose keys and values are in `blocks`.
    computed: usize,
    /// Prompt tokens that did not have to be computed here; `None` until that is known.
    cached: Option<usize>,
    blocks: Vec<BlockId>,
    /// Hashes of the full blocks of `tokens`, as far as they were needed.
    hashes: Vec<BlockHash>,
    /// Leading blocks that were offered to the prefix cache.
    stored: usize,
    phase: Phase,
}

impl Sequence {
    /// Extends `hashes` to `count` full blocks.
    fn hash_blocks(&mut self, count: usize, block_size: usize) {
        for index in self.hashes.len()..count {
            let tokens = &self.tokens[index * block_size..(index + 1) * block_size];
            let parent = self.hashes.last().copied().or_else(|| self.salt.as_deref().map(BlockHash::of_salt));
            self.hashes.push(BlockHash::of(parent, tokens));
        }
    }

    fn decodes(&self) -> bool {
        self.tokens.len() - self.computed == 1
    }
}

/// All sequences and all blocks of an engine.
#[derive(Debug)]
pub(crate) struct Scheduler {
    limits: Limits,
    pool: BlockPool,
    sequences: HashMap<SeqId, Sequence>,
    waiting: VecDeque<SeqId>,
    /// Sequences whose blocks have arrived. They go before all that wait: they need no further block to begin, and
    /// nobody else could use theirs meanwhile.
    landed: VecDeque<SeqId>,
    /// In the order of admission: the last one gives way first.
    running: Vec<SeqId>,
    prefix_queries: u64,
    prefix_hits: u64,
    preemptions: u64,
}

impl Scheduler {
    /// A scheduler with an empty cache.
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            pool: BlockPool::new(limits.blocks),
            limits,
            sequences: HashMap::new(),
            waiting: VecDeque::new(),
            landed: VecDeque::new(),
            running: Vec::new(),
            prefix_queries: 0,
            prefix_hits: 0,
            preemptions: 0,
        }
    }

    /// Queues a sequence. `remote`: its keys and values are to come from another engine.
    pub(crate) fn add(&mut self, seq: SeqId, prompt: Vec<u32>, salt: Option<Arc<str>>, remote: bool) {
        let sequence = Sequence {
            prompt_len: prompt.len(),
            tokens: prompt,
            salt,
            computed: 0,
            cached: None,
            blocks: Vec::new(),
            hashes: Vec::new(),
            stored: 0,
            phase: if remote { Phase::Remote } else { Phase::Waiting },
        };
        self.sequences.insert(seq, sequence);
        self.waiting.push_back(seq);
    }

    /// Decides the next step.
    pub(crate) fn schedule(&mut self) -> Step {
        let mut step = Step::default();
        let mut budget = self.limits.max_batched_tokens;
        for decodes in [true, false] {
            self.plan_running(decodes, &mut budget, &mut step);
        }
        while let Some(&seq) = self.landed.front() {
            if !self.admit(seq, &mut budget, &mut step) {
                break;
            }
            self.landed.pop_front();
        }
        while let Some(&seq) = self.waiting.front() {
            let admitted = match self.sequences[&seq].phase {
                Phase::Remote => self.begin_fetch(seq, &mut step),
                _ => self.admit(seq, &mut budget, &mut step),
            };
            if !admitted {
                break;
            }
            self.waiting.pop_front();
        }
        step
    }

    /// The tokens and the blocks of planned work.
    pub(crate) fn chunk(&self, work: &Work) -> (&[u32], &[BlockId]) {
        let sequence = &self.sequences[&work.seq];
        let end = work.start + work.count;
        (&sequence.tokens[work.start..end], &sequence.blocks[..self.blocks_for(end)])
    }

    /// The work was done: its keys and values are in their blocks.
    pub(crate) fn computed(&mut self, work: &Work) {
        if let Some(sequence) = self.sequences.get_mut(&work.seq) {
            sequence.computed += work.count;
            self.store_full_blocks(work.seq);
        }
    }

    /// Appends a sampled token.
    pub(crate) fn push_token(&mut self, seq: SeqId, token: u32) {
        if let Some(sequence) = self.sequences.get_mut(&seq) {
            sequence.tokens.push(token);
        }
    }

    /// The keys and values of a fetching sequence are here, all but those of its last prompt token.
    pub(crate) fn landed(&mut self, seq: SeqId) {
        if let Some(sequence) = self.sequences.get_mut(&seq) {
            sequence.computed = sequence.prompt_len - 1;
            sequence.cached = Some(sequence.computed);
            sequence.phase = Phase::Landed;
            self.store_full_blocks(seq);
            self.landed.push_back(seq);
        }
    }

    /// The keys and values of a fetching sequence will not come: compute them here.
    pub(crate) fn recompute(&mut self, seq: SeqId) {
        if self.sequences.contains_key(&seq) {
            self.requeue(seq);
        }
    }

    /// Removes a sequence and gives its blocks back.
    pub(crate) fn finish(&mut self, seq: SeqId) {
        let blocks = self.detach(seq);
        self.pool.release(&blocks);
    }

    /// Removes a sequence; its blocks stay held until they are given to [`Self::release`].
    pub(crate) fn detach(&mut self, seq: SeqId) -> Vec<BlockId> {
        self.waiting.retain(|&other| other != seq);
        self.landed.retain(|&other| other != seq);
        self.running.retain(|&other| other != seq);
        self.sequences.remove(&seq).map_or_else(Vec::new, |sequence| sequence.blocks)
    }

    /// Gives back blocks that were kept beyond their sequence.
    pub(crate) fn release(&mut self, blocks: &[BlockId]) {
        self.pool.release(blocks);
    }

    /// Prompt tokens of a sequence whose keys and values did not have to be computed here.
    pub(crate) fn cached_tokens(&self, seq: SeqId) -> usize {
        self.sequences.get(&seq).and_then(|sequence| sequence.cached).unwrap_or(0)
    }

    /// What happened to the prefix cache since the last call.
    pub(crate) fn take_events(&mut self) -> Vec<CacheEvent> {
        self.pool.take_events()
    }

    /// The present load.
    pub(crate) fn load(&self) -> Load {
        Load {
            running: self.running.len(),
            waiting: self.sequences.len() - self.running.len(),
            blocks_used: self.pool.total() - self.pool.free(),
            blocks_total: self.pool.total(),
            prefix_queries: self.prefix_queries,
            prefix_hits: self.prefix_hits,
            preemptions: self.preemptions,
        }
    }

    fn blocks_for(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.limits.block_size)
    }

    /// Plans one kind of running sequences: those that decode, or those in the middle of their prompt.
    fn plan_running(&mut self, decodes: bool, budget: &mut usize, step: &mut Step) {
        for seq in self.running.clone() {
            let Some(sequence) = self.sequences.get(&seq) else { continue };
            let planned = step.work.iter().any(|work| work.seq == seq);
            if *budget == 0 || planned || sequence.phase != Phase::Running || sequence.decodes() != decodes {
                continue;
            }
            let count = (sequence.tokens.len() - sequence.computed).min(*budget);
            if self.grow(seq, sequence.computed + count, step) {
                self.plan(seq, count, budget, step);
            }
        }
    }

    /// Gets the blocks for the first `tokens` of a running sequence, if need be from the youngest sequences that are
    /// not in this step yet. `false`: the sequence itself was the youngest and had to give way.
    fn grow(&mut self, seq: SeqId, tokens: usize, step: &Step) -> bool {
        loop {
            if self.allocate(seq, tokens) {
                return true;
            }
            let planned = |other: &SeqId| step.work.iter().any(|work| work.seq == *other);
            let victim = self.running.iter().rev().copied().find(|other| !planned(other)).unwrap_or(seq);
            self.preemptions += 1;
            self.running.retain(|&other| other != victim);
            self.requeue(victim);
            if victim == seq {
                return false;
            }
        }
    }

    /// Extends the blocks of a sequence to its first `tokens`, or leaves everything as it is.
    fn allocate(&mut self, seq: SeqId, tokens: usize) -> bool {
        let wanted = self.blocks_for(tokens);
        let Some(sequence) = self.sequences.get_mut(&seq) else { return false };
        let Some(blocks) = self.pool.allocate(wanted.saturating_sub(sequence.blocks.len())) else {
            return false;
        };
        sequence.blocks.extend(blocks);
        true
    }

    /// Takes the blocks of a sequence and puts it at the head of the queue.
    fn requeue(&mut self, seq: SeqId) {
        if let Some(sequence) = self.sequences.get_mut(&seq) {
            self.pool.release(&std::mem::take(&mut sequence.blocks));
            sequence.computed = 0;
            sequence.stored = 0;
            sequence.phase = Phase::Waiting;
            self.waiting.push_front(seq);
        }
    }

    /// Lets the sequence at the head of a queue run, if there is room for it.
    fn admit(&mut self, seq: SeqId, budget: &mut usize, step: &mut Step) -> bool {
        if *budget == 0 || self.running.len() >= self.limits.max_seqs {
            return false;
        }
        let landed = self.sequences[&seq].phase == Phase::Landed;
        if !landed {
            self.take_prefix(seq);
        }
        let sequence = &self.sequences[&seq];
        let count = (sequence.tokens.len() - sequence.computed).min(*budget);
        if !self.allocate(seq, sequence.computed + count) {
            if !landed {
                self.drop_prefix(seq);
            }
            return false;
        }
        if let Some(sequence) = self.sequences.get_mut(&seq) {
            sequence.phase = Phase::Running;
            if sequence.cached.is_none() {
                sequence.cached = Some(sequence.computed);
                self.prefix_queries += sequence.tokens.len() as u64;
                self.prefix_hits += sequence.computed as u64;
            }
        }
        self.running.push(seq);
        self.plan(seq, count, budget, step);
        true
    }

    /// Gets the blocks of a sequence whose keys and values come from another engine, and asks for what is not here.
    fn begin_fetch(&mut self, seq: SeqId, step: &mut Step) -> bool {
        self.take_prefix(seq);
        let prompt_len = self.sequences[&seq].prompt_len;
        if !self.allocate(seq, prompt_len) {
            self.drop_prefix(seq);
            return false;
        }
        // The last prompt token is computed here in any case, so a block that holds nothing else is not needed.
        let needed = self.blocks_for(prompt_len - 1);
        if let Some(sequence) = self.sequences.get_mut(&seq) {
            sequence.phase = Phase::Fetching;
            let have = sequence.stored;
            self.prefix_queries += prompt_len as u64;
            self.prefix_hits += sequence.computed as u64;
            step.fetches.push(Fetch { seq, have, blocks: sequence.blocks[have..needed].to_vec() });
        }
        true
    }

    /// Holds the blocks of the longest prefix that is in the cache. The last token is never taken from it: something
    /// has to go through the model to know what comes next.
    fn take_prefix(&mut self, seq: SeqId) {
        let Some(sequence) = self.sequences.get_mut(&seq) else { return };
        let full = (sequence.tokens.len() - 1) / self.limits.block_size;
        sequence.hash_blocks(full, self.limits.block_size);
        let blocks = self.pool.lookup(&sequence.hashes[..full]);
        self.pool.hold(&blocks);
        sequence.stored = blocks.len();
        sequence.computed = blocks.len() * self.limits.block_size;
        sequence.blocks = blocks;
    }

    fn drop_prefix(&mut self, seq: SeqId) {
        if let Some(sequence) = self.sequences.get_mut(&seq) {
            self.pool.release(&std::mem::take(&mut sequence.blocks));
            sequence.computed = 0;
            sequence.stored = 0;
        }
    }

    fn plan(&self, seq: SeqId, count: usize, budget: &mut usize, step: &mut Step) {
        let sequence = &self.sequences[&seq];
        let start = sequence.computed;
        *budget -= count;
        step.work.push(Work { seq, start, count, samples: start + count == sequence.tokens.len() });
    }

    /// Offers the blocks that have become full to the prefix cache.
    fn store_full_blocks(&mut self, seq: SeqId) {
        let block_size = self.limits.block_size;
        let Some(sequence) = self.sequences.get_mut(&seq) else { return };
        let full = sequence.computed / block_size;
        let from = sequence.stored;
        if full <= from {
            return;
        }
        sequence.hash_blocks(full, block_size);
        let start = match from.checked_sub(1) {
            None => RunStart::Root(sequence.salt.clone()),
            Some(index) => RunStart::Behind(sequence.hashes[index]),
        };
        let tokens = &sequence.tokens[from * block_size..full * block_size];
        self.pool.store(&sequence.blocks[from..full], &sequence.hashes[from..full], start, tokens);
        sequence.stored = full;
    }
}
