//! The decode side's own memory of the hand-offs it has used, for those that needed no claim.

use std::collections::{HashSet, VecDeque};

/// How many hand-offs are remembered.
const USED_MAX: usize = 4096;

/// The last hand-offs that were used here, by engine and request.
#[derive(Debug, Default)]
pub(crate) struct UsedParams {
    known: HashSet<(String, String)>,
    order: VecDeque<(String, String)>,
}

impl UsedParams {
    /// Notes a use. `false`: it was used before.
    pub(crate) fn note(&mut self, engine_id: &str, request_id: &str) -> bool {
        let key = (engine_id.to_owned(), request_id.to_owned());
        if !self.known.insert(key.clone()) {
            return false;
        }
        if self.order.len() == USED_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        self.order.push_back(key);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_use_is_noted_once_and_forgotten_only_behind_many_others() {
        let mut used = UsedParams::default();
        assert!(used.note("e", "r"));
        assert!(!used.note("e", "r"));
        assert!(used.note("f", "r"));
        for n in 0..USED_MAX {
            assert!(used.note("e", &n.to_string()));
        }
        assert!(used.note("e", "r"));
        assert!(used.known.len() <= USED_MAX && used.order.len() <= USED_MAX);
    }
}
