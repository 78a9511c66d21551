//! The scheduler against a model that "computes" by writing token values into blocks.

use super::*;
use proptest::prelude::*;

const LIMITS: Limits = Limits { block_size: 4, blocks: 16, max_seqs: 4, max_batched_tokens: 16 };

/// A scheduler, and a cache in which every position holds a hash over the tokens up to it: wrong blocks, stale
/// blocks and recomputed positions all show.
struct Rig {
    sched: Scheduler,
    cache: Vec<Option<BlockHash>>,
    limits: Limits,
}

fn prefix_hash(tokens: &[u32]) -> BlockHash {
    BlockHash::of(None, tokens)
}

impl Rig {
    fn new(limits: Limits) -> Self {
        let positions = limits.blocks as usize * limits.block_size;
        Self { sched: Scheduler::new(limits), cache: vec![None; positions], limits }
    }

    fn slot(&self, blocks: &[BlockId], position: usize) -> usize {
        blocks[position / self.limits.block_size] as usize * self.limits.block_size
            + position % self.limits.block_size
    }

    /// Runs a step; returns the sequences that sampled, in order.
    fn step(&mut self) -> Vec<SeqId> {
        self.step_and_fetch().0
    }

    /// Does what another engine does for a fetch: fills the blocks of a sequence up to its last prompt token.
    fn fill(&mut self, seq: SeqId) {
        let (tokens, blocks) = {
            let sequence = &self.sched.sequences[&seq];
            (sequence.tokens.clone(), sequence.blocks.clone())
        };
        for end in 1..tokens.len() {
            let slot = self.slot(&blocks, end - 1);
            self.cache[slot] = Some(prefix_hash(&tokens[..end]));
        }
    }

    fn step_and_fetch(&mut self) -> (Vec<SeqId>, Vec<Fetch>) {
        let step = self.sched.schedule();
        let total: usize = step.work.iter().map(|work| work.count).sum();
        assert!(total <= self.limits.max_batched_tokens, "{step:?}");
        assert!(step.work.len() <= self.limits.max_seqs, "{step:?}");
        for work in &step.work {
            let (tokens, blocks) = self.sched.chunk(work);
            let (tokens, blocks) = (tokens.to_vec(), blocks.to_vec());
            let all = self.sched.sequences[&work.seq].tokens.clone();
            assert_eq!(tokens, all[work.start..work.start + work.count]);
            for end in 1..=work.start {
                let slot = self.slot(&blocks, end - 1);
                assert_eq!(
                    self.cache[slot],
                    Some(prefix_hash(&all[..end])),
                    "position {} of {work:?}",
                    end - 1
                );
            }
            for end in work.start + 1..=work.start + work.count {
                let slot = self.slot(&blocks, end - 1);
                self.cache[slot] = Some(prefix_hash(&all[..end]));
            }
            self.sched.computed(work);
        }
        let sampled = step.work.iter().filter(|work| work.samples).map(|work| work.seq).collect();
        (sampled, step.fetches)
    }

    /// Runs until each sequence has generated `outputs` tokens; the token is a function of the sequence so far.
    fn run(&mut self, outputs: usize) -> HashMap<SeqId, Vec<u32>> {
        let mut done = HashMap::new();
        for _ in 0..10_000 {
            if self.sched.sequences.is_empty() {
                return done;
            }
            for seq in self.step() {
                let sequence = &self.sched.sequences[&seq];
                let token = u32::try_from(prefix_hash(&sequence.tokens).low_u64() % 1000).unwrap();
                let generated = sequence.tokens.len() - sequence.prompt_len + 1;
                self.sched.push_token(seq, token);
                if generated == outputs {
                    done.insert(seq, self.sched.sequences[&seq].tokens.clone());
                    self.sched.finish(seq);
                }
            }
        }
        panic!("no progress: {:?}", self.sched);
    }
}

fn prompt(length: u32, salt: u32) -> Vec<u32> {
    (0..length).map(|n| n * 7 + salt).collect()
}

#[test]
fn a_long_prompt_is_computed_in_chunks_and_a_decode_goes_first() {
    let mut rig = Rig::new(LIMITS);
    rig.sched.add(SeqId(1), prompt(3, 0), None, false);
    assert_eq!(rig.step(), [SeqId(1)]);
    rig.sched.push_token(SeqId(1), 9);
    rig.sched.add(SeqId(2), prompt(40, 1), None, false);
    let step = rig.sched.schedule();
    assert_eq!(
        step.work,
        [
            Work { seq: SeqId(1), start: 3, count: 1, samples: true },
            Work { seq: SeqId(2), start: 0, count: 15, samples: false },
        ]
    );
}

#[test]
fn a_shared_prefix_is_computed_once_but_never_the_whole_prompt() {
    let mut rig = Rig::new(LIMITS);
    rig.sched.add(SeqId(1), prompt(8, 0), None, false);
    rig.run(1);
    rig.sched.add(SeqId(2), prompt(8, 0), None, false);
    let step = rig.sched.schedule();
    assert_eq!(step.work, [Work { seq: SeqId(2), start: 4, count: 4, samples: true }]);
    assert_eq!(rig.sched.cached_tokens(SeqId(2)), 4);
    let load = rig.sched.load();
    assert_eq!((load.prefix_queries, load.prefix_hits), (16, 4));
}

#[test]
fn sequences_that_outgrow_the_blocks_give_way_and_still_end_the_same() {
    let alone: Vec<_> = (0..4)
        .map(|n| {
            let mut rig = Rig::new(Limits { blocks: 64, ..LIMITS });
            rig.sched.add(SeqId(n), prompt(9, u32::try_from(n).unwrap()), None, false);
            rig.run(20).remove(&SeqId(n)).unwrap()
        })
        .collect();
    let mut rig = Rig::new(Limits { blocks: 9, ..LIMITS });
    for n in 0..4 {
        rig.sched.add(SeqId(n), prompt(9, u32::try_from(n).unwrap()), None, false);
    }
    let together = rig.run(20);
    assert!(rig.sched.load().preemptions > 0);
    for (n, tokens) in (0..4).zip(&alone) {
        assert_eq!(&together[&SeqId(n)], tokens);
    }
    assert_eq!(rig.sched.load().blocks_used, 0);
}

#[test]
fn a_remote_sequence_waits_for_its_blocks_while_others_run() {
    let mut rig = Rig::new(LIMITS);
    rig.sched.add(SeqId(1), prompt(4, 0), None, false);
    rig.run(1);
    rig.sched.add(SeqId(2), prompt(10, 0), None, true);
    rig.sched.add(SeqId(3), prompt(5, 1), None, false);
    let step = rig.sched.schedule();
    let [fetch] = &step.fetches[..] else { panic!("{step:?}") };
    assert_eq!((fetch.seq, fetch.have, fetch.blocks.len()), (SeqId(2), 1, 2));
    assert_eq!(step.work.len(), 1);
    rig.sched.computed(&step.work[0]);
    rig.sched.finish(SeqId(3));

    rig.fill(SeqId(2));
    rig.sched.landed(SeqId(2));
    let done = rig.run(6);
    assert_eq!(done[&SeqId(2)].len(), 16);
    assert_eq!(rig.sched.load().blocks_used, 0);
}

#[test]
fn a_remote_prompt_that_is_all_here_needs_nothing() {
    let mut rig = Rig::new(LIMITS);
    rig.sched.add(SeqId(1), prompt(9, 0), None, false);
    rig.run(1);
    rig.sched.add(SeqId(2), prompt(9, 0), None, true);
    rig.sched.add(SeqId(3), vec![5], None, true);
    let step = rig.sched.schedule();
    assert_eq!(step.fetches[0], Fetch { seq: SeqId(2), have: 2, blocks: vec![] });
    assert_eq!(step.fetches[1], Fetch { seq: SeqId(3), have: 0, blocks: vec![] });
}

#[test]
fn a_sequence_that_gave_way_does_not_block_one_whose_blocks_have_arrived() {
    let mut rig = Rig::new(Limits { blocks: 5, max_seqs: 1, ..LIMITS });
    rig.sched.add(SeqId(1), prompt(7, 0), None, false);
    assert_eq!(rig.step(), [SeqId(1)]);
    rig.sched.add(SeqId(2), prompt(12, 1), None, true);
    assert_eq!(rig.sched.schedule().fetches.len(), 1);
    rig.sched.push_token(SeqId(1), 5);
    rig.step();
    rig.sched.landed(SeqId(2));
    // No block is left for the ninth token: the sequence gives way, and what has landed goes on.
    rig.sched.push_token(SeqId(1), 6);
    let step = rig.sched.schedule();
    assert_eq!(step.work, [Work { seq: SeqId(2), start: 11, count: 1, samples: true }]);
    rig.sched.finish(SeqId(2));
    assert_eq!(rig.step(), [SeqId(1)]);
}

#[test]
fn a_fetch_that_fails_is_computed_here() {
    let mut rig = Rig::new(LIMITS);
    rig.sched.add(SeqId(1), prompt(10, 0), None, true);
    assert_eq!(rig.sched.schedule().fetches.len(), 1);
    rig.sched.recompute(SeqId(1));
    assert_eq!(rig.run(3)[&SeqId(1)].len(), 13);
    assert_eq!(rig.sched.load().blocks_used, 0);
}

#[test]
fn detached_blocks_stay_held_until_they_are_released() {
    let mut rig = Rig::new(LIMITS);
    rig.sched.add(SeqId(1), prompt(6, 0), None, false);
    rig.step();
    let blocks = rig.sched.detach(SeqId(1));
    assert_eq!(blocks.len(), 2);
    assert_eq!(rig.sched.load().blocks_used, 2);
    rig.sched.release(&blocks);
    assert_eq!(rig.sched.load().blocks_used, 0);
}

#[test]
fn a_waiting_sequence_that_does_not_fit_holds_nothing() {
    let mut rig = Rig::new(Limits { blocks: 4, ..LIMITS });
    rig.sched.add(SeqId(1), prompt(12, 0), None, false);
    rig.step();
    rig.sched.add(SeqId(2), prompt(8, 3), None, false);
    rig.sched.add(SeqId(3), prompt(8, 4), None, true);
    let step = rig.sched.schedule();
    assert!(step.fetches.is_empty());
    assert_eq!(rig.sched.load().blocks_used, 3);
    rig.sched.finish(SeqId(1));
    rig.sched.finish(SeqId(3));
    assert_eq!(rig.run(2).len(), 1);
}

/// Something that happens to an engine.
#[derive(Clone, Debug)]
enum Happening {
    /// A prompt of so many tokens that shares its beginning with others of the same salt.
    Arrives { length: u32, salt: u32, remote: bool },
    /// A step, after which every sequence that sampled goes on.
    Step,
    /// One of the fetches lands, or fails.
    Fetched { which: usize, lands: bool },
    /// One of the sequences ends, and its blocks are kept or not.
    Ends { which: usize, kept: bool },
    /// Kept blocks are released.
    Released,
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        2 => (1..40_u32, 0..3_u32, any::<bool>())
            .prop_map(|(length, salt, remote)| Happening::Arrives { length, salt, remote }),
        4 => Just(Happening::Step),
        2 => (any::<usize>(), any::<bool>()).prop_map(|(which, lands)| Happening::Fetched { which, lands }),
        1 => (any::<usize>(), any::<bool>()).prop_map(|(which, kept)| Happening::Ends { which, kept }),
        1 => Just(Happening::Released),
    ]
}

/// Plays what happens. The rig itself checks that every step reads what belongs to its sequence.
fn play(happenings: Vec<Happening>) {
    let mut rig = Rig::new(Limits { blocks: 14, max_seqs: 3, ..LIMITS });
    let (mut next, mut fetching, mut kept) = (0, Vec::<Fetch>::new(), Vec::new());
    for happening in happenings {
        match happening {
            Happening::Arrives { length, salt, remote } => {
                rig.sched.add(SeqId(next), prompt(length, salt), None, remote);
                next += 1;
            }
            Happening::Step => {
                let (sampled, fetches) = rig.step_and_fetch();
                fetching.extend(fetches);
                for seq in sampled {
                    rig.sched.push_token(seq, 7);
                }
            }
            Happening::Fetched { which, lands } if !fetching.is_empty() => {
                let fetch = fetching.swap_remove(which % fetching.len());
                if lands {
                    rig.fill(fetch.seq);
                    rig.sched.landed(fetch.seq);
                } else {
                    rig.sched.recompute(fetch.seq);
                }
            }
            Happening::Ends { which, kept: keep } => {
                let mut all: Vec<_> = rig.sched.sequences.keys().copied().collect();
                all.retain(|seq| fetching.iter().all(|fetch| fetch.seq != *seq));
                all.sort_unstable();
                if let Some(&seq) = all.get(which % all.len().max(1)) {
                    kept.push(rig.sched.detach(seq));
                    if !keep {
                        rig.sched.release(&kept.pop().unwrap());
                    }
                }
            }
            Happening::Released => kept.drain(..).for_each(|blocks| rig.sched.release(&blocks)),
            Happening::Fetched { .. } => {}
        }
    }
    kept.drain(..).for_each(|blocks| rig.sched.release(&blocks));
    for seq in rig.sched.sequences.keys().copied().collect::<Vec<_>>() {
        rig.sched.finish(seq);
    }
    assert_eq!(rig.sched.load().blocks_used, 0);
}

proptest! {
    #[test]
    fn whatever_happens_no_sequence_reads_foreign_blocks_and_none_leak(
        happenings in proptest::collection::vec(happening(), 1..120)
    ) {
        play(happenings);
    }
}
