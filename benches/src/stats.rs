//! Medians, percentiles, and a histogram that takes any number of measurements.

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

/// The smallest and the largest. `NaN` of none.
#[must_use]
pub fn spread(values: impl IntoIterator<Item = f64>) -> (f64, f64) {
    let both = |(low, high): (f64, f64), value: f64| (low.min(value), high.max(value));
    values.into_iter().fold((f64::NAN, f64::NAN), both)
}

/// Gigabytes (10^9 bytes) per second. A byte per nanosecond is one of them.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "a measurement has fewer digits")]
pub fn gbps(bytes: u64, elapsed: std::time::Duration) -> f64 {
    bytes as f64 / elapsed.as_nanos().max(1) as f64
}

/// Buckets for each doubling: a value is told to within half of 1/128, less than one percent.
const SUB: u64 = 128;
const SUB_BITS: u32 = SUB.trailing_zeros();
const BUCKETS: usize = 58 * 128;

/// How often which value came. Takes 58 KiB whatever comes, so that a long measurement needs no more memory than a
/// short one. Small values are kept exactly, others to within half a percent.
#[derive(Clone, Debug)]
pub struct Histogram {
    counts: Vec<u64>,
    count: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; BUCKETS], count: 0 }
    }
}

impl Histogram {
    /// Counts a value. Cost: a few nanoseconds.
    pub fn record(&mut self, value: u64) {
        self.counts[bucket(value)] += 1;
        self.count += 1;
    }

    /// Counts all that another one has.
    pub fn add(&mut self, other: &Self) {
        self.counts.iter_mut().zip(&other.counts).for_each(|(mine, more)| *mine += more);
        self.count += other.count;
    }

    /// How many values came.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The smallest value that at least `permille` of a thousand values do not exceed; so of fewer than a thousand
    /// values the 999th is the largest. `NaN` of none.
    #[must_use]
    pub fn quantile(&self, permille: u64) -> f64 {
        let rank = u128::from(self.count) * u128::from(permille);
        let rank = rank.div_ceil(1000).max(1);
        let mut seen = 0_u128;
        for (index, count) in self.counts.iter().enumerate() {
            seen += u128::from(*count);
            if seen >= rank {
                return middle(index);
            }
        }
        f64::NAN
    }
}

/// Where a value is counted: below [`SUB`] each has a bucket, above that each doubling has [`SUB`] of them.
fn bucket(value: u64) -> usize {
    let shift = (u64::BITS - value.leading_zeros()).saturating_sub(SUB_BITS + 1);
    let index = u64::from(shift) * SUB + (value >> shift);
    usize::try_from(index).unwrap_or(BUCKETS - 1)
}

/// The value in the middle of a bucket.
#[expect(clippy::cast_precision_loss, reason = "a measurement has fewer digits")]
fn middle(index: usize) -> f64 {
    let index = index as u64;
    let shift = (index / SUB).saturating_sub(1);
    let low = (index - shift * SUB) << shift;
    low as f64 + ((1_u64 << shift) - 1) as f64 / 2.0
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
        assert_eq!(spread([2.0, 1.0, 3.0]), (1.0, 3.0));
        assert!(spread([]).0.is_nan());
    }

    #[test]
    fn small_values_are_exact_and_ranks_are_those_of_the_sorted_list() {
        let mut histogram = Histogram::default();
        assert!(histogram.quantile(500).is_nan());
        (1..=100).rev().for_each(|value| histogram.record(value));
        let told = [500, 990, 999, 1000].map(|permille| histogram.quantile(permille));
        assert_eq!(told, [50.0, 99.0, 100.0, 100.0]);
        assert_eq!(histogram.count(), 100);
        let mut both = histogram.clone();
        both.add(&histogram);
        assert_eq!((both.count(), both.quantile(500)), (200, 50.0));
    }

    #[test]
    fn every_value_is_told_to_within_half_a_percent() {
        let mut value = 1_u64;
        while value < u64::MAX / 3 {
            let mut histogram = Histogram::default();
            histogram.record(value);
            #[expect(clippy::cast_precision_loss, reason = "compared to half a percent")]
            let exact = value as f64;
            assert!((histogram.quantile(500) - exact).abs() <= exact * 0.004, "{value}");
            value += value / 3 + 1;
        }
        Histogram::default().record(u64::MAX);
    }

    #[test]
    fn gigabytes_are_decimal() {
        assert!((gbps(2_000_000_000, Duration::from_secs(1)) - 2.0).abs() < 1e-12);
    }
}
