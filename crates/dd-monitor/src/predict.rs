//! [`Prediction`]: where usage is going, and when it would be all taken.
//!
//! The line is Theil and Sen's: its slope is the median of the slopes between all pairs of readings, so a spike or a
//! batch that came and went does not bend it (up to 29 % of the readings may be wild). Its confidence interval is
//! Sen's, from the order of the slopes and the variance of Kendall's statistic (P. K. Sen, "Estimates of the regression
//! coefficient based on Kendall's tau", 1968). Growth is claimed only where the whole 95 % interval is above zero.
//! Successive readings are not independent, so the interval is narrower than the truth: a prediction is a hint.

use std::time::Duration;

use dd_core::Bytes;

/// The fewest readings that a line is drawn through.
pub const FEWEST: usize = 6;
/// The most readings that are compared pair by pair; of more, as many are taken evenly.
const MOST: usize = 128;
/// Exhaustion beyond this is no prediction.
const FARTHEST: Duration = Duration::from_secs(365 * 24 * 3600);

/// A line through the last readings of a tier.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Prediction {
    /// How fast usage grows, in bytes per second; negative where it shrinks.
    pub bytes_per_second: f64,
    /// The 95 % interval of that.
    pub bytes_per_second_interval: (f64, f64),
    /// Usage now, as the line has it.
    pub level: Bytes,
    /// How far readings typically lie from the line (the median distance).
    pub spread: Bytes,
    /// The size of the tier.
    pub total: Bytes,
    /// When everything is taken if it goes on like this; nothing where usage does not clearly grow.
    #[serde(serialize_with = "crate::optional_seconds")]
    pub time_to_exhaustion: Option<Duration>,
    /// The same at the upper end of the interval: not before this.
    #[serde(serialize_with = "crate::optional_seconds")]
    pub earliest_exhaustion: Option<Duration>,
}

impl Prediction {
    /// Draws the line through readings of what is taken (not available), oldest first; nothing where there are fewer
    /// than [`FEWEST`] or no time passed between them.
    #[must_use]
    pub fn of(readings: &[(Duration, Bytes)], total: Bytes) -> Option<Self> {
        let points = thinned(readings);
        let slopes = slopes(&points);
        if points.len() < FEWEST || slopes.is_empty() {
            return None;
        }
        let slope = median(&slopes)?;
        let interval = interval(&slopes, points.len())?;
        let (last, _) = *points.last()?;
        let levels = sorted(points.iter().map(|(at, taken)| taken + slope * (last - at)));
        let level = median(&levels)?;
        let spread = median(&sorted(levels.iter().map(|each| (each - level).abs())))?;
        let bytes = |figure: f64| Bytes(1).scaled(figure.max(0.0)).min(total);
        let left = (total.fraction_of(Bytes(1)) - level).max(0.0);
        let grows = interval.0 > 0.0;
        let after = |rate: f64| {
            let time = Duration::try_from_secs_f64(left / rate).ok();
            time.filter(|time| grows && *time <= FARTHEST)
        };
        Some(Self {
            bytes_per_second: slope,
            bytes_per_second_interval: interval,
            level: bytes(level),
            spread: bytes(spread),
            total,
            time_to_exhaustion: after(slope),
            earliest_exhaustion: after(interval.1),
        })
    }

    /// Usage after some time, if it goes on like this: at least nothing, at most everything.
    #[must_use]
    pub fn usage_in(&self, time: Duration) -> Bytes {
        let level = self.level.fraction_of(Bytes(1)) + self.bytes_per_second * time.as_secs_f64();
        Bytes(1).scaled(level.max(0.0)).min(self.total)
    }
}

/// Seconds and bytes, evenly thinned to the most that are compared; the last one stays.
fn thinned(readings: &[(Duration, Bytes)]) -> Vec<(f64, f64)> {
    let step = readings.len().div_ceil(MOST).max(1);
    let point = |(at, taken): &(Duration, Bytes)| (at.as_secs_f64(), taken.fraction_of(Bytes(1)));
    let mut points: Vec<(f64, f64)> = readings.iter().rev().step_by(step).map(point).collect();
    points.reverse();
    points
}

/// The slopes between all pairs that time passed between, in order.
fn slopes(points: &[(f64, f64)]) -> Vec<f64> {
    let pairs = points
        .iter()
        .enumerate()
        .flat_map(|(n, early)| points.iter().skip(n + 1).map(move |late| (early, late)));
    sorted(
        pairs
            .filter(|(early, late)| late.0 > early.0)
            .map(|(early, late)| (late.1 - early.1) / (late.0 - early.0)),
    )
}

fn sorted(figures: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut figures: Vec<f64> = figures.collect();
    figures.sort_by(f64::total_cmp);
    figures
}

/// The middle of what is in order; between the two middle ones where their number is even.
fn median(sorted: &[f64]) -> Option<f64> {
    let upper = sorted.get(sorted.len() / 2)?;
    let lower = sorted.get(sorted.len().saturating_sub(1) / 2)?;
    Some(f64::midpoint(*lower, *upper))
}

/// Sen's 95 % interval: the slopes at `(N ∓ 1.96 σ) / 2`, where σ² = n(n−1)(2n+5)/18.
fn interval(slopes: &[f64], points: usize) -> Option<(f64, f64)> {
    let (n, pairs) = (points as f64, slopes.len() as f64);
    let half = 1.96 * (n * (n - 1.0) * (2.0 * n + 5.0) / 18.0).sqrt();
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to the list")]
    let at = |rank: f64| slopes.get(rank.clamp(0.0, pairs - 1.0) as usize).copied();
    Some((at(((pairs - half) / 2.0).floor())?, at(f64::midpoint(pairs, half).ceil())?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Readings at every tenth of a second.
    fn readings(taken: impl Fn(u64) -> u64, count: u64) -> Vec<(Duration, Bytes)> {
        (0..count).map(|n| (Duration::from_millis(n * 100), Bytes(taken(n)))).collect()
    }

    /// Noise that is the same in every run: a multiplicative hash of the number.
    fn noise(n: u64, most: u64) -> u64 {
        ((n.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40) & 0xFFFF) % (most + 1)
    }

    #[test]
    fn a_line_is_found_through_noise_and_spikes() {
        let spike = |n: u64| if n % 5 == 2 { 400_000 } else { 0 };
        let rows: [(&str, Vec<(Duration, Bytes)>); 4] = [
            ("clean", readings(|n| 100_000 + 1000 * n, 60)),
            ("spikes", readings(|n| 100_000 + 1000 * n + spike(n), 60)),
            ("noise", readings(|n| 100_000 + 1000 * n + noise(n, 2000), 60)),
            ("many readings", readings(|n| 100_000 + 1000 * n, 5000)),
        ];
        for (name, readings) in rows {
            let found = Prediction::of(&readings, Bytes(10_000_000)).unwrap();
            assert!((found.bytes_per_second / 10_000.0 - 1.0).abs() < 0.1, "{name}: {found:?}");
            let left = 10_000_000.0 - readings.last().unwrap().1.0.min(10_000_000) as f64;
            let time = found.time_to_exhaustion.unwrap().as_secs_f64();
            assert!((time - left / 10_000.0).abs() < 50.0, "{name}: {found:?}");
            assert!(found.earliest_exhaustion.unwrap().as_secs_f64() <= time, "{name}: {found:?}");
        }
    }

    #[test]
    fn what_does_not_clearly_grow_is_not_exhausted() {
        let rows: [(&str, Vec<(Duration, Bytes)>); 4] = [
            ("flat", readings(|_| 500, 50)),
            ("saw teeth", readings(|n| 1000 + 100 * (n % 5), 50)),
            ("shrinking", readings(|n| 100_000 - 1000 * n, 50)),
            ("one step", readings(|n| if n < 48 { 100 } else { 900_000 }, 50)),
        ];
        for (name, readings) in rows {
            let found = Prediction::of(&readings, Bytes(1_000_000)).unwrap();
            assert_eq!(
                (found.time_to_exhaustion, found.earliest_exhaustion),
                (None, None),
                "{name}: {found:?}"
            );
        }
        let slow = Prediction::of(&readings(|n| n, 50), Bytes(1 << 50)).unwrap();
        assert_eq!(slow.time_to_exhaustion, None, "in three million years: {slow:?}");
    }

    #[test]
    fn too_little_is_no_line() {
        let same_time = vec![(Duration::ZERO, Bytes(1)); 50];
        for readings in [readings(|n| n, 0), readings(|n| n, FEWEST as u64 - 1), same_time] {
            assert_eq!(Prediction::of(&readings, Bytes(100)), None);
        }
    }

    #[test]
    fn usage_stays_within_the_tier() {
        let grows = Prediction::of(&readings(|n| 1000 * n, 11), Bytes(20_000)).unwrap();
        let shrinks = Prediction::of(&readings(|n| 20_000 - 1000 * n, 11), Bytes(20_000)).unwrap();
        let rows = [
            (grows, 0, 10_000),
            (grows, 500, 15_000),
            (grows, 9000, 20_000),
            (shrinks, 500, 5000),
            (shrinks, 9000, 0),
        ];
        for (prediction, millis, expected) in rows {
            let found = prediction.usage_in(Duration::from_millis(millis)).0;
            assert!(found.abs_diff(expected) <= 1, "{millis} ms: {found}, not {expected}");
        }
    }

    proptest! {
        #[test]
        fn any_readings(taken in proptest::collection::vec(any::<u64>(), 0..40), total: u64) {
            let readings = readings(|n| taken[usize::try_from(n).unwrap()], taken.len() as u64);
            if let Some(found) = Prediction::of(&readings, Bytes(total)) {
                prop_assert!(found.level <= Bytes(total) && found.bytes_per_second.is_finite());
                prop_assert!(found.bytes_per_second_interval.0 <= found.bytes_per_second_interval.1);
                prop_assert!(found.usage_in(Duration::from_secs(5)) <= Bytes(total));
            }
        }
    }
}
