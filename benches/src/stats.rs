//! Medians and percentiles.

/// The middle value; the mean of the two in the middle of an even number. `NaN` of none.
#[must_use]
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_unstable_by(f64::total_cmp);
    let middle = values.len() / 2;
    match (values.len(), values.len() % 2) {
        (0, _) => f64::NAN,
        (_, 1) => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

/// The smallest value that at least `percent` of a hundred values do not exceed, of values in ascending order; so of
/// fewer than a hundred values the 99th is the largest. Zero of none.
#[must_use]
pub fn percentile(sorted: &[u64], percent: usize) -> u64 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or(0)
}

/// Gigabytes (10^9 bytes) per second. A byte per nanosecond is one of them.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "a measurement has fewer digits")]
pub fn gbps(bytes: u64, elapsed: std::time::Duration) -> f64 {
    bytes as f64 / elapsed.as_nanos().max(1) as f64
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_middle_is_found_whatever_the_order() {
        assert!((median([3.0, 1.0, 2.0]) - 2.0).abs() < 1e-12);
        assert!((median([4.0, 1.0, 3.0, 2.0]) - 2.5).abs() < 1e-12);
        assert!(median([]).is_nan());
    }

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let hundred: Vec<u64> = (1..=100).collect();
        assert_eq!(
            (percentile(&hundred, 50), percentile(&hundred, 99), percentile(&hundred, 100)),
            (50, 99, 100)
        );
        let thousand: Vec<u64> = (1..=1000).collect();
        assert_eq!(percentile(&thousand, 99), 990);
        assert_eq!((percentile(&[5, 9], 50), percentile(&[5, 9], 99), percentile(&[7], 1)), (5, 9, 7));
        assert_eq!(percentile(&[], 50), 0);
    }

    #[test]
    fn gigabytes_are_decimal() {
        assert!((gbps(2_000_000_000, Duration::from_secs(1)) - 2.0).abs() < 1e-12);
    }
}
