//! Gives out runs of numbers and takes them back.

use std::collections::BTreeMap;

/// The free runs of the numbers below a limit, by where they start.
#[derive(Debug)]
pub(crate) struct Arena {
    free: BTreeMap<usize, usize>,
}

impl Arena {
    /// All numbers below `limit` are free.
    pub(crate) fn new(limit: usize) -> Self {
        Self { free: BTreeMap::from([(0, limit)]) }
    }

    /// Takes the first `count` numbers that lie together, and says where they start.
    pub(crate) fn take(&mut self, count: usize) -> Option<usize> {
        let (start, len) = self.free.iter().find(|(_, len)| **len >= count).map(|(s, l)| (*s, *l))?;
        self.free.remove(&start);
        if len > count {
            self.free.insert(start + count, len - count);
        }
        Some(start)
    }

    /// Gives back what [`Arena::take`] gave.
    pub(crate) fn give_back(&mut self, mut start: usize, mut count: usize) {
        if let Some((&before, &len)) = self.free.range(..start).next_back()
            && before + len == start
        {
            self.free.remove(&before);
            (start, count) = (before, len + count);
        }
        if let Some(len) = self.free.remove(&(start + count)) {
            count += len;
        }
        self.free.insert(start, count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_come_back_and_join_their_neighbours() {
        let mut arena = Arena::new(100);
        assert_eq!((arena.take(30), arena.take(30), arena.take(30)), (Some(0), Some(30), Some(60)));
        assert_eq!(arena.take(11), None);
        arena.give_back(0, 30);
        arena.give_back(60, 30);
        arena.give_back(30, 30);
        assert_eq!(arena.take(100), Some(0));
        assert_eq!(arena.take(1), None);
    }
}
