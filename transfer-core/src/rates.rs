//! How fast transfers are expected to be: what those before gave, and before the first one what this machine's memory
//! gives.

use std::hint::black_box;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use transfer_proto::plan::Path;

use crate::clock::Clock;

/// A shorter transfer says more of its overheads than of its path.
const BYTES_MIN: u64 = 256 << 10;
/// Bytes that are copied to see how fast that is: more than a second-level cache, and well under a millisecond.
const SAMPLE_BYTES: usize = 4 << 20;

/// What was seen of the paths to one peer. Safe to use from any thread; notes that meet at the same time may get lost.
#[derive(Debug, Default)]
pub(crate) struct Rates([AtomicU64; Path::ALL.len()]);

impl Rates {
    fn of(&self, path: Path) -> Option<&AtomicU64> {
        Path::ALL.iter().position(|&other| other == path).and_then(|at| self.0.get(at))
    }

    /// Takes in a transfer that is done: a quarter of what is expected from now on. Cost: two atomic accesses.
    pub(crate) fn note(&self, path: Path, bytes: u64, elapsed: Duration) {
        let nanos = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX).max(1);
        if bytes < BYTES_MIN {
            return;
        }
        let Some(rate) = self.of(path) else { return };
        let seen = u128::from(bytes) * 1_000_000_000 / u128::from(nanos);
        let seen = u64::try_from(seen).unwrap_or(u64::MAX);
        let before = rate.load(Ordering::Relaxed);
        let now = if before == 0 { seen } else { before - before / 4 + seen / 4 };
        rate.store(now.max(1), Ordering::Relaxed);
    }

    /// Bytes in a second, or `None` before the first transfer.
    pub(crate) fn seen(&self, path: Path) -> Option<u64> {
        self.of(path).map(|rate| rate.load(Ordering::Relaxed)).filter(|&rate| rate > 0)
    }
}

/// How fast one thread of this process copies memory; measured when it is asked for first, in a few milliseconds.
#[derive(Debug, Default)]
pub(crate) struct CopyRate(OnceLock<u64>);

impl CopyRate {
    pub(crate) fn get(&self, clock: &Clock) -> u64 {
        *self.0.get_or_init(|| {
            let (from, mut to) = (vec![1_u8; SAMPLE_BYTES], vec![0_u8; SAMPLE_BYTES]);
            let mut best = Duration::MAX;
            for _ in 0..3 {
                let start = clock.elapsed();
                black_box(&mut to).copy_from_slice(black_box(&from));
                best = best.min(clock.elapsed().saturating_sub(start));
            }
            let nanos = best.as_nanos().max(1);
            u64::try_from(SAMPLE_BYTES as u128 * 1_000_000_000 / nanos).unwrap_or(u64::MAX)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_seen_last_counts_most() {
        let (rates, second) = (Rates::default(), Duration::from_secs(1));
        assert_eq!(rates.seen(Path::Tcp), None);
        rates.note(Path::Tcp, BYTES_MIN - 1, second);
        assert_eq!(rates.seen(Path::Tcp), None, "too short to tell");
        rates.note(Path::Tcp, 4 << 30, second);
        assert_eq!((rates.seen(Path::Tcp), rates.seen(Path::SharedMemory)), (Some(4 << 30), None));
        (0..40).for_each(|_| rates.note(Path::Tcp, 1 << 30, second));
        let now = rates.seen(Path::Tcp).unwrap();
        assert!(now.abs_diff(1 << 30) < 1 << 20, "{now}");
        rates.note(Path::Tcp, u64::MAX, Duration::ZERO);
    }

    #[test]
    fn a_copy_has_a_rate_and_is_measured_once() {
        let (clock, rate) = (Clock::start(), CopyRate::default());
        let first = rate.get(&clock);
        assert!(first > 1 << 20);
        assert_eq!(rate.get(&clock), first);
    }
}
