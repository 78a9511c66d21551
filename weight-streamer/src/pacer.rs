//! The egress cap: when the next bytes may leave. Pure; time is an argument.

use std::time::Duration;

/// Spaces transfers so that in any window of `t` seconds no more than `rate * t` bytes leave, plus one transfer.
///
/// There is no burst to save up: what was not sent is not owed. That is what makes the cap hard.
#[derive(Debug)]
pub(crate) struct Pacer {
    bytes_per_second: u64,
    next: Duration,
}

impl Pacer {
    /// A cap in bytes per second; zero is read as one.
    pub(crate) const fn new(bytes_per_second: u64) -> Self {
        let bytes_per_second = if bytes_per_second == 0 { 1 } else { bytes_per_second };
        Self { bytes_per_second, next: Duration::ZERO }
    }

    /// Books `bytes` and returns when they may leave. `now` and the result count from the same moment.
    pub(crate) fn book(&mut self, now: Duration, bytes: u64) -> Duration {
        let start = self.next.max(now);
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_second);
        let cost = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        self.next = start.saturating_add(cost);
        start
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn idle_time_is_not_saved_up() {
        let mut pacer = Pacer::new(100);
        let second = Duration::from_secs(1);
        assert_eq!(pacer.book(10 * second, 100), 10 * second);
        assert_eq!(pacer.book(10 * second, 50), 11 * second);
        assert_eq!(pacer.book(60 * second, 1), 60 * second);
    }

    proptest! {
        #[test]
        fn no_window_carries_more_than_the_cap(
            rate in 1_u64..1_000_000,
            sends in proptest::collection::vec((0_u64..1_000_000_000, 1_u64..100_000), 1..60),
        ) {
            let mut pacer = Pacer::new(rate);
            let mut now = Duration::ZERO;
            let mut left = Vec::new();
            for (pause, bytes) in sends {
                now += Duration::from_nanos(pause);
                left.push((pacer.book(now, bytes), bytes));
            }
            for first in 0..left.len() {
                let mut sum = 0;
                for &(at, bytes) in &left[first..] {
                    let window = u128::from(rate) * (at - left[first].0).as_nanos() / 1_000_000_000;
                    // One byte for each rounded-down cost.
                    prop_assert!(sum <= u64::try_from(window).unwrap() + 60);
                    sum += bytes;
                }
            }
        }
    }
}
