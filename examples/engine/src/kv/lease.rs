//! The prefill side's books: which blocks are kept for whom, until when, and how each hand-off ended.
//!
//! ```text
//! hold -> Held --claim--> Claimed --release, peer lost, deadline--> ended
//!           \--release, lease end--> ended
//! ```
//! Blocks leave the table exactly once, as the return value of the call that ended their hand-off. Time is an
//! argument.

use super::claim::{Refusal, Ticket};
use crate::sched::BlockId;
use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

/// How many ended hand-offs are remembered, so that a late claim hears why it is refused.
const ENDED_MAX: usize = 4096;

#[derive(Debug)]
enum State {
    Held { until: Instant },
    Claimed { by: String, until: Instant },
}

#[derive(Debug)]
struct Entry {
    blocks: Vec<BlockId>,
    ticket: Ticket,
    state: State,
}

/// A hand-off that ended without a release.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Ended {
    pub(crate) id: String,
    pub(crate) blocks: Vec<BlockId>,
    /// Whether it had been claimed.
    pub(crate) claimed: bool,
}

/// All hand-offs of an engine.
#[derive(Debug, Default)]
pub(crate) struct LeaseTable {
    entries: HashMap<String, Entry>,
    ended: HashMap<String, Refusal>,
    ended_order: VecDeque<String>,
}

impl LeaseTable {
    /// Keeps `blocks` until `until`. The id must be new.
    pub(crate) fn hold(&mut self, id: String, blocks: Vec<BlockId>, ticket: Ticket, until: Instant) {
        self.entries.insert(id, Entry { blocks, ticket, state: State::Held { until } });
    }

    /// A peer asks to read: from now on the blocks are its own for `grant`.
    pub(crate) fn claim(
        &mut self,
        id: &str,
        ticket: Ticket,
        by: &str,
        now: Instant,
        grant: Duration,
    ) -> Result<(), Refusal> {
        let Some(entry) = self.entries.get_mut(id) else {
            return Err(self.ended.get(id).copied().unwrap_or(Refusal::Unknown));
        };
        match entry.state {
            State::Claimed { .. } => Err(Refusal::Used),
            State::Held { until } if until <= now => Err(Refusal::Expired),
            State::Held { .. } if entry.ticket != ticket => Err(Refusal::Mismatch),
            State::Held { .. } => {
                entry.state = State::Claimed { by: by.to_owned(), until: now + grant };
                Ok(())
            }
        }
    }

    /// A peer has what it wants. Returns the blocks, unless the hand-off is another's or has ended.
    pub(crate) fn release(&mut self, id: &str, ticket: Ticket, by: &str) -> Option<Vec<BlockId>> {
        let entry = self.entries.get(id)?;
        let allowed = match &entry.state {
            State::Held { .. } => entry.ticket == ticket,
            State::Claimed { by: owner, .. } => owner == by,
        };
        if allowed { self.end(id, Refusal::Used).map(|ended| ended.blocks) } else { None }
    }

    /// A peer is gone, and with it all of its claims.
    pub(crate) fn peer_lost(&mut self, peer: &str) -> Vec<Ended> {
        self.end_all(Refusal::Used, |state| matches!(state, State::Claimed { by, .. } if by == peer))
    }

    /// Ends what is overdue: leases that nobody claimed, and claims whose reader should long have finished.
    pub(crate) fn expire(&mut self, now: Instant) -> Vec<Ended> {
        let mut ended =
            self.end_all(Refusal::Expired, |state| matches!(state, State::Held { until } if *until <= now));
        ended.extend(
            self.end_all(
                Refusal::Used,
                |state| matches!(state, State::Claimed { until, .. } if *until <= now),
            ),
        );
        ended
    }

    /// Number of blocks that are kept.
    pub(crate) fn blocks(&self) -> usize {
        self.entries.values().map(|entry| entry.blocks.len()).sum()
    }

    /// Number of hand-offs that were claimed and have not ended.
    pub(crate) fn claims(&self) -> usize {
        self.entries.values().filter(|entry| matches!(entry.state, State::Claimed { .. })).count()
    }

    fn end_all(&mut self, why: Refusal, which: impl Fn(&State) -> bool) -> Vec<Ended> {
        let matching = self.entries.iter().filter(|(_, entry)| which(&entry.state));
        let ids: Vec<String> = matching.map(|(id, _)| id.clone()).collect();
        ids.iter().filter_map(|id| self.end(id, why)).collect()
    }

    fn end(&mut self, id: &str, why: Refusal) -> Option<Ended> {
        let (id, entry) = self.entries.remove_entry(id)?;
        if self.ended_order.len() == ENDED_MAX
            && let Some(oldest) = self.ended_order.pop_front()
        {
            self.ended.remove(&oldest);
        }
        self.ended_order.push_back(id.clone());
        self.ended.insert(id.clone(), why);
        Some(Ended { id, blocks: entry.blocks, claimed: matches!(entry.state, State::Claimed { .. }) })
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "the tests count from some instant")]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(30);
    const GRANT: Duration = Duration::from_secs(10);

    fn ticket(n: u32) -> Ticket {
        Ticket::new(&[n], &[n])
    }

    fn held(now: Instant) -> LeaseTable {
        let mut table = LeaseTable::default();
        table.hold("a".into(), vec![1, 2], ticket(1), now + LEASE);
        table
    }

    #[test]
    fn a_hand_off_is_used_once() {
        let now = Instant::now();
        let mut table = held(now);
        assert_eq!(table.claim("a", ticket(1), "d", now, GRANT), Ok(()));
        assert_eq!(table.claim("a", ticket(1), "d", now, GRANT), Err(Refusal::Used));
        assert_eq!(table.release("a", ticket(1), "someone else"), None);
        assert_eq!(table.release("a", ticket(1), "d"), Some(vec![1, 2]));
        assert_eq!(table.release("a", ticket(1), "d"), None);
        assert_eq!(table.claim("a", ticket(1), "d", now, GRANT), Err(Refusal::Used));
        assert_eq!((table.blocks(), table.claims()), (0, 0));
    }

    #[test]
    fn a_claim_for_other_tokens_is_refused_and_uses_nothing_up() {
        let now = Instant::now();
        let mut table = held(now);
        assert_eq!(table.claim("a", ticket(2), "d", now, GRANT), Err(Refusal::Mismatch));
        assert_eq!(table.release("a", ticket(2), "d"), None);
        assert_eq!(table.claim("b", ticket(1), "d", now, GRANT), Err(Refusal::Unknown));
        assert_eq!(table.claim("a", ticket(1), "d", now, GRANT), Ok(()));
    }

    #[test]
    fn an_unclaimed_lease_ends_and_the_late_claim_hears_why() {
        let now = Instant::now();
        let mut table = held(now);
        assert_eq!(table.expire(now + LEASE / 2), []);
        assert_eq!(table.claim("a", ticket(1), "d", now + LEASE, GRANT), Err(Refusal::Expired));
        let ended = table.expire(now + LEASE);
        assert_eq!(ended, [Ended { id: "a".into(), blocks: vec![1, 2], claimed: false }]);
        assert_eq!(table.claim("a", ticket(1), "d", now, GRANT), Err(Refusal::Expired));
    }

    #[test]
    fn a_claim_outlives_the_lease_but_not_its_own_deadline_or_its_peer() {
        let now = Instant::now();
        let mut table = held(now);
        table.hold("b".into(), vec![3], ticket(2), now + LEASE);
        let late = now + LEASE - Duration::from_secs(1);
        table.claim("a", ticket(1), "d", late, GRANT).unwrap();
        table.claim("b", ticket(2), "e", late, GRANT).unwrap();
        assert_eq!(table.expire(now + LEASE), []);
        assert_eq!(table.peer_lost("e")[0].blocks, [3]);
        assert_eq!(table.expire(late + GRANT)[0].blocks, [1, 2]);
        assert_eq!(table.blocks(), 0);
    }

    #[test]
    fn a_release_without_a_claim_ends_the_hand_off() {
        let now = Instant::now();
        let mut table = held(now);
        assert_eq!(table.release("a", ticket(1), "d"), Some(vec![1, 2]));
        assert_eq!(table.claim("a", ticket(1), "d", now, GRANT), Err(Refusal::Used));
    }

    #[test]
    fn only_so_many_ended_hand_offs_are_remembered() {
        let now = Instant::now();
        let mut table = LeaseTable::default();
        for n in 0..ENDED_MAX + 10 {
            table.hold(n.to_string(), vec![1], ticket(1), now);
        }
        table.expire(now);
        assert_eq!((table.ended.len(), table.ended_order.len()), (ENDED_MAX, ENDED_MAX));
    }
}
