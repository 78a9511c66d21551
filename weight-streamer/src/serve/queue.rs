//! Whose turn it is. Pure.
//!
//! Every receiver has its own bounded line; one job is taken from each in turn, so that one receiver that asks for
//! much cannot starve another that asks for little. A receiver has at most a fixed number of jobs in work at once,
//! so that one that does not drain its connection cannot hold every worker.

use std::collections::VecDeque;

/// Most receivers at once.
const MAX_RECEIVERS: usize = 1024;

#[derive(Debug)]
struct Line<K, J> {
    key: K,
    jobs: VecDeque<J>,
    working: usize,
}

/// Lines of jobs, one for each receiver.
#[derive(Debug)]
pub(super) struct FairQueue<K, J> {
    /// The line at the front is next.
    lines: VecDeque<Line<K, J>>,
    line_max: usize,
    working_max: usize,
}

impl<K: Clone + PartialEq, J> FairQueue<K, J> {
    /// At most `line_max` jobs wait for one receiver and at most `working_max` are in work.
    pub(super) const fn new(line_max: usize, working_max: usize) -> Self {
        Self { lines: VecDeque::new(), line_max, working_max }
    }

    /// Puts a job at the end of its receiver's line; gives it back when the line is full.
    pub(super) fn push(&mut self, key: &K, job: J) -> Result<(), J> {
        if let Some(line) = self.lines.iter_mut().find(|line| line.key == *key) {
            if line.jobs.len() >= self.line_max {
                return Err(job);
            }
            line.jobs.push_back(job);
            return Ok(());
        }
        if self.lines.len() >= MAX_RECEIVERS {
            return Err(job);
        }
        self.lines.push_back(Line { key: key.clone(), jobs: VecDeque::from([job]), working: 0 });
        Ok(())
    }

    /// Takes the next job that may be worked on; [`Self::done`] ends it.
    pub(super) fn pop(&mut self) -> Option<(K, J)> {
        let ready = |line: &Line<K, J>| !line.jobs.is_empty() && line.working < self.working_max;
        let place = self.lines.iter().position(ready)?;
        let mut line = self.lines.remove(place)?;
        let job = line.jobs.pop_front()?;
        line.working += 1;
        let key = line.key.clone();
        self.lines.push_back(line);
        Some((key, job))
    }

    /// A job of this receiver is no longer in work.
    pub(super) fn done(&mut self, key: &K) {
        if let Some(line) = self.lines.iter_mut().find(|line| line.key == *key) {
            line.working = line.working.saturating_sub(1);
        }
        self.lines.retain(|line| line.working > 0 || !line.jobs.is_empty());
    }

    /// The receiver is gone: its waiting jobs go with it.
    pub(super) fn forget(&mut self, key: &K) {
        if let Some(line) = self.lines.iter_mut().find(|line| line.key == *key) {
            line.jobs.clear();
        }
        self.lines.retain(|line| line.working > 0 || !line.jobs.is_empty());
    }

    /// The receivers that wait for something, in line or in work.
    pub(super) fn receivers(&self) -> Vec<K> {
        self.lines.iter().map(|line| line.key.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_taken() {
        let mut queue = FairQueue::new(3, 10);
        for job in 0..3 {
            queue.push(&'a', job).unwrap();
        }
        assert_eq!(queue.push(&'a', 9), Err(9));
        queue.push(&'b', 10).unwrap();
        let order: Vec<_> = std::iter::from_fn(|| queue.pop()).collect();
        assert_eq!(order, [('a', 0), ('b', 10), ('a', 1), ('a', 2)]);
    }

    #[test]
    fn one_receiver_cannot_hold_every_worker() {
        let mut queue = FairQueue::new(8, 2);
        (0..4).for_each(|job| queue.push(&'a', job).unwrap());
        assert_eq!(queue.pop(), Some(('a', 0)));
        assert_eq!(queue.pop(), Some(('a', 1)));
        assert_eq!(queue.pop(), None);
        queue.push(&'b', 7).unwrap();
        assert_eq!(queue.pop(), Some(('b', 7)));
        queue.done(&'a');
        assert_eq!(queue.pop(), Some(('a', 2)));
        queue.forget(&'a');
        queue.done(&'a');
        queue.done(&'a');
        queue.done(&'b');
        assert_eq!(queue.pop(), None);
        assert_eq!(queue.lines.len(), 0);
    }
}
