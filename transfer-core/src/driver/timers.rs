//! When to look at what again.

use std::hash::Hash;

use rustc_hash::FxHashMap;
use transfer_proto::proto::time::Time;

/// One time for each key, the earliest first: a binary heap that knows where each key stands. Keys are numbers of ours.
///
/// Setting, removing and taking cost the logarithm of their number, and no allocation once it has grown.
#[derive(Debug)]
pub(super) struct Timers<K> {
    heap: Vec<(Time, K)>,
    places: FxHashMap<K, usize>,
}

impl<K> Default for Timers<K> {
    fn default() -> Self {
        Self { heap: Vec::new(), places: FxHashMap::default() }
    }
}

impl<K: Copy + Eq + Hash> Timers<K> {
    /// The earliest time.
    pub(super) fn first(&self) -> Option<Time> {
        self.heap.first().map(|(time, _)| *time)
    }

    /// Takes out a key whose time has come.
    pub(super) fn take_due(&mut self, now: Time) -> Option<K> {
        let (time, key) = *self.heap.first()?;
        if time > now {
            return None;
        }
        self.remove(key);
        Some(key)
    }

    /// Sets the time of a key, instead of what it had.
    pub(super) fn set(&mut self, key: K, time: Time) {
        let at = *self.places.entry(key).or_insert(self.heap.len());
        if at == self.heap.len() {
            self.heap.push((time, key));
        } else {
            self.heap[at].0 = time;
        }
        self.settle(at);
    }

    /// Forgets a key.
    pub(super) fn remove(&mut self, key: K) {
        let Some(at) = self.places.remove(&key) else { return };
        self.heap.swap_remove(at);
        if let Some((_, moved)) = self.heap.get(at) {
            self.places.insert(*moved, at);
            self.settle(at);
        }
    }

    /// Moves one entry up or down to where it belongs.
    fn settle(&mut self, mut at: usize) {
        while at > 0 && self.heap[at].0 < self.heap[(at - 1) / 2].0 {
            self.swap(at, (at - 1) / 2);
            at = (at - 1) / 2;
        }
        loop {
            let children = [2 * at + 1, 2 * at + 2].into_iter().filter(|&child| child < self.heap.len());
            let Some(least) = children.min_by_key(|&child| self.heap[child].0) else { return };
            if self.heap[at].0 <= self.heap[least].0 {
                return;
            }
            self.swap(at, least);
            at = least;
        }
    }

    fn swap(&mut self, a: usize, b: usize) {
        self.heap.swap(a, b);
        for at in [a, b] {
            self.places.insert(self.heap[at].1, at);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn at(ms: u64) -> Time {
        Time::at(Duration::from_millis(ms))
    }

    proptest! {
        #[test]
        fn it_gives_what_a_sorted_list_would(
            happenings in prop::collection::vec((0_u8..10, 0_u32..12, 0_u64..50), 0..200)
        ) {
            let (mut timers, mut naive) = (Timers::default(), BTreeMap::new());
            for (what, key, ms) in happenings {
                match what {
                    0..6 => {
                        timers.set(key, at(ms));
                        naive.insert(key, at(ms));
                    }
                    6..8 => {
                        timers.remove(key);
                        naive.remove(&key);
                    }
                    _ => while let Some(due) = timers.take_due(at(ms)) {
                        let time = naive.remove(&due).expect("a key that was set");
                        prop_assert!(time <= at(ms) && naive.values().all(|&other| other >= time));
                    }
                }
                prop_assert_eq!(timers.first(), naive.values().min().copied());
                prop_assert_eq!(timers.heap.len(), timers.places.len());
            }
        }
    }
}
