//! Which chunk to ask whom for next. Pure: arrivals, failures and losses come in, requests go out.
//!
//! Each source has a fixed number of staging slots, so what is outstanding is bounded by memory that was set aside
//! before the first request. A slot that becomes free takes the next chunk, so a faster source brings more of them;
//! towards the end no source holds more than its share of what is missing, so that a slow one does not sit on it all.
//! A chunk that was wrong goes to another source first, and back to the same one only when none is better; a source
//! that stays wrong is left. Everything outstanding at a source that is left goes back to the front of the queue.

use std::collections::{HashMap, VecDeque};

/// How often one source may bring the same chunk wrong before it is left.
pub(crate) const MAX_TRIES: u8 = 3;
/// How many wrong chunks in all one source may bring before it is left.
pub(crate) const MAX_CORRUPT: u64 = 16;

/// One request to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Assignment {
    pub(crate) ticket: u64,
    pub(crate) chunk: u32,
    pub(crate) slot: usize,
    /// This source brought it wrong before.
    pub(crate) recheck: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Slot {
    Free,
    /// Asked for; the source may write into the slot.
    Asked {
        ticket: u64,
        chunk: u32,
    },
    /// Arrived; being verified and written.
    Landing {
        ticket: u64,
        chunk: u32,
    },
}

#[derive(Debug)]
struct Source {
    live: bool,
    slots: Vec<Slot>,
    corrupt: u64,
}

/// The state of one pull.
#[derive(Debug)]
pub(crate) struct Schedule {
    queue: VecDeque<u32>,
    /// Only chunks that were wrong at least once: tries by source.
    wrong: HashMap<u32, Vec<u8>>,
    sources: Vec<Source>,
    missing: usize,
    asked: u64,
}

impl Schedule {
    /// A pull of these chunks, in this order, from sources with so many slots each.
    pub(crate) fn new(chunks: Vec<u32>, slots: &[usize]) -> Self {
        let source = |&slots: &usize| Source { live: true, slots: vec![Slot::Free; slots], corrupt: 0 };
        let sources = slots.iter().map(source).collect();
        Self { missing: chunks.len(), queue: chunks.into(), wrong: HashMap::new(), sources, asked: 0 }
    }

    /// The next request for this source: a free slot and a chunk that it should bring.
    pub(crate) fn assign(&mut self, source: usize) -> Option<Assignment> {
        let state = self.sources.get(source).filter(|state| state.live)?;
        let slot = state.slots.iter().position(|slot| *slot == Slot::Free)?;
        let busy = state.slots.iter().filter(|slot| **slot != Slot::Free).count();
        let live = self.sources.iter().filter(|source| source.live).count();
        if busy >= self.missing.div_ceil(live) {
            return None;
        }
        let place = (0..self.queue.len()).find(|&place| self.may_bring(source, self.queue[place]))?;
        let chunk = self.queue.remove(place)?;
        self.asked += 1;
        let ticket = self.asked;
        self.sources[source].slots[slot] = Slot::Asked { ticket, chunk };
        Some(Assignment { ticket, chunk, slot, recheck: self.tries(chunk, source) > 0 })
    }

    /// No other live source has been wrong about the chunk less often.
    fn may_bring(&self, source: usize, chunk: u32) -> bool {
        let own = self.tries(chunk, source);
        own == 0
            || (0..self.sources.len())
                .filter(|&other| other != source && self.sources[other].live)
                .all(|other| self.tries(chunk, other) >= own)
    }

    fn tries(&self, chunk: u32, source: usize) -> u8 {
        self.wrong.get(&chunk).and_then(|tries| tries.get(source)).copied().unwrap_or(0)
    }

    /// A chunk lies in its slot. None when nobody asked for it (a late or invented answer).
    pub(crate) fn arrived(&mut self, source: usize, ticket: u64) -> Option<(u32, usize)> {
        let slots = &mut self.sources.get_mut(source)?.slots;
        let wanted = |slot: &Slot| matches!(slot, Slot::Asked { ticket: asked, .. } if *asked == ticket);
        let slot = slots.iter().position(wanted)?;
        let Slot::Asked { ticket, chunk } = slots[slot] else { return None };
        slots[slot] = Slot::Landing { ticket, chunk };
        Some((chunk, slot))
    }

    fn landed(&mut self, source: usize, ticket: u64) -> Option<u32> {
        let slots = &mut self.sources.get_mut(source)?.slots;
        let wanted =
            |slot: &Slot| matches!(slot, Slot::Landing { ticket: landing, .. } if *landing == ticket);
        let slot = slots.iter().position(wanted)?;
        let Slot::Landing { chunk, .. } = slots[slot] else { return None };
        slots[slot] = Slot::Free;
        Some(chunk)
    }

    /// The chunk was right and is written. False when its source was left meanwhile: it is asked for again.
    pub(crate) fn verified(&mut self, source: usize, ticket: u64) -> bool {
        let landed = self.landed(source, ticket).is_some();
        self.missing -= usize::from(landed);
        landed
    }

    /// The chunk was wrong. Returns how often this source has now brought it wrong, and whether to leave it.
    pub(crate) fn corrupt(&mut self, source: usize, ticket: u64) -> (u8, bool) {
        let Some(chunk) = self.landed(source, ticket) else { return (0, false) };
        let count = self.sources.len();
        let tries = &mut self.wrong.entry(chunk).or_insert_with(|| vec![0; count])[source];
        *tries = tries.saturating_add(1);
        let tries = *tries;
        self.queue.push_front(chunk);
        self.sources[source].corrupt += 1;
        (tries, tries >= MAX_TRIES || self.sources[source].corrupt >= MAX_CORRUPT)
    }

    /// The source is gone or no longer trusted.
    pub(crate) fn leave(&mut self, source: usize) {
        let Some(state) = self.sources.get_mut(source) else { return };
        state.live = false;
        for slot in std::mem::take(&mut state.slots).into_iter().rev() {
            if let Slot::Asked { chunk, .. } | Slot::Landing { chunk, .. } = slot {
                self.queue.push_front(chunk);
            }
        }
    }

    /// Whether anything asked of this source has not come yet.
    pub(crate) fn waits_for(&self, source: usize) -> bool {
        let asked = |slot: &Slot| matches!(slot, Slot::Asked { .. });
        self.sources.get(source).is_some_and(|state| state.slots.iter().any(asked))
    }

    /// Whether the source is still asked.
    pub(crate) fn is_live(&self, source: usize) -> bool {
        self.sources.get(source).is_some_and(|state| state.live)
    }

    /// Whether any source is left.
    pub(crate) fn any_live(&self) -> bool {
        self.sources.iter().any(|state| state.live)
    }

    /// Chunks not verified yet.
    pub(crate) const fn missing(&self) -> usize {
        self.missing
    }

    /// Requests sent in all.
    pub(crate) const fn asked(&self) -> u64 {
        self.asked
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_wrong_chunk_goes_to_the_other_source() {
        let mut schedule = Schedule::new(vec![0], &[1, 1]);
        let first = schedule.assign(0).unwrap();
        assert_eq!(schedule.assign(1), None);
        assert_eq!(schedule.arrived(0, first.ticket), Some((0, 0)));
        assert_eq!(schedule.arrived(0, first.ticket), None, "a second answer to one request");
        assert_eq!(schedule.corrupt(0, first.ticket), (1, false));
        assert_eq!(schedule.assign(0), None);
        let second = schedule.assign(1).unwrap();
        assert!(!second.recheck);
        schedule.arrived(1, second.ticket).unwrap();
        assert!(schedule.verified(1, second.ticket));
        assert_eq!((schedule.missing(), schedule.asked()), (0, 2));
    }

    #[test]
    fn no_source_takes_more_than_its_share() {
        let mut schedule = Schedule::new((0..5).collect(), &[9, 9]);
        let take_all = |schedule: &mut Schedule, source| {
            std::iter::from_fn(|| schedule.assign(source)).map(|next| next.ticket).collect::<Vec<_>>()
        };
        let first = take_all(&mut schedule, 0);
        assert_eq!((first.len(), take_all(&mut schedule, 1).len()), (3, 2));
        schedule.leave(1);
        assert_eq!(take_all(&mut schedule, 0).len(), 2, "what the other one had");
    }

    #[test]
    fn a_single_source_has_three_tries() {
        let mut schedule = Schedule::new(vec![7], &[2]);
        for tries in 1..=MAX_TRIES {
            let assignment = schedule.assign(0).unwrap();
            assert_eq!(assignment.recheck, tries > 1);
            schedule.arrived(0, assignment.ticket).unwrap();
            assert_eq!(schedule.corrupt(0, assignment.ticket), (tries, tries == MAX_TRIES));
        }
        schedule.leave(0);
        assert!(!schedule.any_live());
        assert_eq!((schedule.missing(), schedule.assign(0)), (1, None));
    }

    #[test]
    fn what_a_lost_source_had_is_asked_elsewhere_and_its_late_answers_do_not_count() {
        let mut schedule = Schedule::new(vec![0, 1, 2], &[2, 1]);
        let landing = schedule.assign(0).unwrap();
        let asked = schedule.assign(0).unwrap();
        schedule.arrived(0, landing.ticket).unwrap();
        schedule.leave(0);
        assert!(!schedule.verified(0, landing.ticket));
        assert_eq!(schedule.arrived(0, asked.ticket), None);
        let mut order = Vec::new();
        while let Some(next) = schedule.assign(1) {
            order.push(next.chunk);
            schedule.arrived(1, next.ticket).unwrap();
            assert!(schedule.verified(1, next.ticket));
        }
        assert_eq!((order, schedule.missing()), (vec![0, 1, 2], 0));
    }

    proptest! {
        /// Whatever sources do, every chunk is verified exactly once or all sources are gone.
        #[test]
        fn every_chunk_lands_once(
            chunks in 0_u32..40,
            slots in proptest::collection::vec(1_usize..4, 1..4),
            script in proptest::collection::vec((0_usize..4, 0_u8..20), 0..600),
        ) {
            let mut schedule = Schedule::new((0..chunks).collect(), &slots);
            let mut asked: Vec<Vec<Assignment>> = vec![Vec::new(); slots.len()];
            let mut landed = vec![0; usize::try_from(chunks).unwrap()];
            let drain = (0..slots.len()).cycle().take(400).map(|source| (source, 5));
            for (source, action) in script.into_iter().chain(drain) {
                let source = source % slots.len();
                if let Some(next) = schedule.assign(source) {
                    prop_assert!(asked[source].iter().all(|other| other.slot != next.slot));
                    asked[source].push(next);
                }
                prop_assert!(asked[source].len() <= slots[source]);
                if action == 0 {
                    schedule.leave(source);
                    asked[source].clear();
                } else if let Some(next) = asked[source].pop() {
                    prop_assert_eq!(schedule.arrived(source, next.ticket), Some((next.chunk, next.slot)));
                    if action == 1 {
                        if schedule.corrupt(source, next.ticket).1 {
                            schedule.leave(source);
                            asked[source].clear();
                        }
                    } else if schedule.verified(source, next.ticket) {
                        landed[usize::try_from(next.chunk).unwrap()] += 1;
                    }
                }
            }
            prop_assert!(landed.iter().all(|&times| times <= 1));
            prop_assert_eq!(landed.iter().filter(|&&times| times == 0).count(), schedule.missing());
            if schedule.any_live() {
                prop_assert_eq!(schedule.missing(), 0);
            }
        }
    }
}
