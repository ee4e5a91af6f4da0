//! [`History`]: the last readings, in bounded memory.

use std::collections::VecDeque;
use std::time::Duration;

use dd_core::{Bytes, MemorySample, Tier};

use crate::reading::Reading;

/// A reading and when it was taken.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct Moment {
    /// Since the monitor was made.
    #[serde(serialize_with = "crate::seconds")]
    pub at: Duration,
    /// What was read.
    pub reading: Reading,
}

/// The last readings, oldest first. When it is full, the oldest goes, and its room is used again.
#[derive(Clone, Debug)]
pub struct History {
    moments: VecDeque<Moment>,
    capacity: usize,
}

impl History {
    /// Keeps at most this many readings, at least one.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self { moments: VecDeque::new(), capacity: capacity.max(1) }
    }

    /// How many are kept at most.
    #[must_use]
    pub const fn capacity(&self) -> usize {
        self.capacity
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.moments.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.moments.is_empty()
    }

    /// Adds the newest; gives back the oldest where the history was full, so that its room can be used again.
    pub fn push(&mut self, moment: Moment) -> Option<Moment> {
        let is_full = self.moments.len() >= self.capacity;
        let oldest = if is_full { self.moments.pop_front() } else { None };
        self.moments.push_back(moment);
        oldest
    }

    /// The newest.
    #[must_use]
    pub fn latest(&self) -> Option<&Moment> {
        self.moments.back()
    }

    /// All, oldest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Moment> {
        self.moments.iter()
    }

    /// The figures of a tier over time, oldest first.
    pub fn tier(&self, tier: Tier) -> impl DoubleEndedIterator<Item = (Duration, MemorySample)> {
        self.iter().filter_map(move |moment| Some((moment.at, moment.reading.tier(tier)?)))
    }

    /// The most of a tier that was taken, and its average over the readings; nothing where it was never read.
    #[must_use]
    pub fn peak_and_average(&self, tier: Tier) -> Option<(Bytes, Bytes)> {
        let (mut peak, mut sum, mut count) = (Bytes::ZERO, 0.0, 0.0);
        for (_, sample) in self.tier(tier) {
            peak = peak.max(sample.used);
            sum += sample.used.fraction_of(Bytes(1));
            count += 1.0;
        }
        (count > 0.0).then(|| (peak, Bytes(1).scaled(sum / count)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reading::TierReading;

    fn moment(second: u64, used: u64) -> Moment {
        let sample = MemorySample { total: Bytes(100), used: Bytes(used), available: Bytes(100 - used) };
        let reading = Reading { tiers: vec![TierReading { tier: Tier::Host, sample }], ..Reading::default() };
        Moment { at: Duration::from_secs(second), reading }
    }

    #[test]
    fn the_oldest_goes_when_it_is_full() {
        for capacity in [0, 1, 3, 10] {
            let mut history = History::new(capacity);
            for n in 0..8 {
                let oldest = history.push(moment(n, n * 10)).map(|it| it.at.as_secs());
                assert_eq!(oldest, n.checked_sub(capacity.max(1) as u64), "{capacity}, {n}");
                assert!(history.len() <= history.capacity());
            }
            assert_eq!(history.latest().unwrap(), &moment(7, 70));
            let kept = history.len() as u64;
            assert_eq!(history.iter().next().unwrap().at, Duration::from_secs(8 - kept));
        }
    }

    #[test]
    fn peak_and_average_of_a_tier() {
        let mut history = History::new(8);
        assert_eq!(history.peak_and_average(Tier::Host), None);
        [10, 40, 10].iter().enumerate().for_each(|(n, used)| drop(history.push(moment(n as u64, *used))));
        assert_eq!(history.peak_and_average(Tier::Host), Some((Bytes(40), Bytes(20))));
        assert_eq!(history.peak_and_average(Tier::Disk), None);
    }
}
