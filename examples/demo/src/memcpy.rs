//! The roof: what one thread of this machine copies.

#![expect(clippy::disallowed_methods, reason = "this module owns the clock of a measurement")]

use std::hint::black_box;
use std::time::{Duration, Instant};

/// At least so many copies, and at least for so long: the median of fewer says little.
const COPIES_MIN: usize = 9;
const TIME_MIN: Duration = Duration::from_millis(10);

/// Bytes per second of one thread that copies `len` bytes from one buffer to another: the median of several copies,
/// of memory that was written before. 0 for no bytes.
pub(crate) fn bytes_per_second(len: usize) -> f64 {
    if len == 0 {
        return 0.0;
    }
    // Both are written here, so no page is touched for the first time while the clock runs.
    let (source, mut target) = (vec![1_u8; len], vec![2_u8; len]);
    let mut times = Vec::new();
    let start = Instant::now();
    while times.len() < COPIES_MIN || start.elapsed() < TIME_MIN {
        let copy = Instant::now();
        black_box(&mut target).copy_from_slice(black_box(&source));
        black_box(&target);
        times.push(copy.elapsed());
    }
    times.sort_unstable();
    let median = times[times.len() / 2].max(Duration::from_nanos(1));
    len as f64 / median.as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_copies_between_a_megabyte_and_ten_terabytes_a_second() {
        for len in [1 << 12, 1 << 20, 16 << 20] {
            let rate = bytes_per_second(len);
            assert!((1e6..1e13).contains(&rate), "{rate} bytes/s at {len} bytes");
        }
        assert!(bytes_per_second(0).abs() < f64::EPSILON);
    }
}
