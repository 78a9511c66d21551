//! The last pulls with their numbers.

use serde::Serialize;
use std::collections::VecDeque;

/// How many pulls are remembered.
const RECORDS_MAX: usize = 1024;

/// One pull as `/headrace/info` shows it.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub(crate) struct PullRecord {
    /// The id of the answer that the blocks were for.
    pub(crate) id: String,
    /// The client's `X-Request-Id`, if it sent one.
    pub(crate) request_id: Option<String>,
    /// Leading blocks that were here already.
    pub(crate) local_blocks: usize,
    /// Blocks that were pulled.
    pub(crate) blocks: usize,
    /// Bytes that were pulled.
    pub(crate) bytes: u64,
    /// Seconds the transfer of the bytes took.
    pub(crate) seconds: f64,
    /// Seconds from asking for the blocks to having them: connection, claim and transfer.
    pub(crate) total_seconds: f64,
    /// The path the bytes took; empty when none were needed.
    pub(crate) path: String,
    /// Why the pull failed, if it did.
    pub(crate) error: Option<String>,
}

/// A bounded log of pulls.
#[derive(Debug, Default)]
pub(crate) struct PullLog {
    records: VecDeque<PullRecord>,
}

impl PullLog {
    /// Adds a record and forgets the oldest beyond the bound.
    pub(crate) fn push(&mut self, record: PullRecord) {
        if self.records.len() == RECORDS_MAX {
            self.records.pop_front();
        }
        self.records.push_back(record);
    }

    /// The records of one request, by the id of the answer or by `X-Request-Id`; without an id, all of them.
    pub(crate) fn find(&self, id: Option<&str>) -> Vec<PullRecord> {
        let matches = |record: &&PullRecord| {
            id.is_none_or(|id| record.id == id || record.request_id.as_deref() == Some(id))
        };
        self.records.iter().filter(matches).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(n: usize) -> PullRecord {
        PullRecord {
            id: format!("cmpl-{n}"),
            request_id: Some(n.to_string()),
            local_blocks: 0,
            blocks: 1,
            bytes: 1,
            seconds: 0.5,
            total_seconds: 1.0,
            path: "shm".into(),
            error: None,
        }
    }

    #[test]
    fn the_log_is_bounded_and_found_by_either_id() {
        let mut log = PullLog::default();
        (0..RECORDS_MAX + 5).for_each(|n| log.push(record(n)));
        assert_eq!(log.find(None).len(), RECORDS_MAX);
        assert_eq!(log.find(Some("cmpl-9")), [record(9)]);
        assert_eq!(log.find(Some("9")), [record(9)]);
        assert_eq!(log.find(Some("4")), []);
    }
}
