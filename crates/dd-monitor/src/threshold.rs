//! [`Threshold`]: a share of a tier at which someone is told, with hysteresis.
//!
//! A threshold is raised when the used share reaches `rise_fraction`, and cleared only when it has fallen to
//! `fall_fraction`. Between the two nothing happens, so a usage that trembles around the line is told once.

use std::fmt;
use std::time::Duration;

use dd_core::{MemorySample, Tier};

use crate::error::{Error, Result};
use crate::reading::Reading;

/// A share of a tier at which someone is told.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Threshold {
    name: String,
    tier: Tier,
    rise_fraction: f64,
    fall_fraction: f64,
}

impl Threshold {
    /// Rises at `rise_fraction` of the tier (in `0..=1`, above 0) and falls at nine tenths of that.
    ///
    /// # Errors
    /// [`Error::BadSetting`] for a share outside of that.
    pub fn new(name: impl Into<String>, tier: Tier, rise_fraction: f64) -> Result<Self> {
        if !(rise_fraction > 0.0 && rise_fraction <= 1.0) {
            return Err(share("rise_fraction", rise_fraction, "above 0 and at most 1"));
        }
        Ok(Self { name: name.into(), tier, rise_fraction, fall_fraction: rise_fraction * 0.9 })
    }

    /// Falls at this share instead.
    ///
    /// # Errors
    /// [`Error::BadSetting`] for a share that is negative or not below the rising one.
    pub fn falling_at(mut self, fall_fraction: f64) -> Result<Self> {
        if !(fall_fraction >= 0.0 && fall_fraction < self.rise_fraction) {
            return Err(share("fall_fraction", fall_fraction, "at least 0 and below rise_fraction"));
        }
        self.fall_fraction = fall_fraction;
        Ok(self)
    }

    /// The usual ones for a tier: `offload` at 0.85 (until 0.70) and `emergency` at 0.95 (until 0.85) on a device, `full`
    /// at 0.90 (until 0.80) elsewhere.
    #[must_use]
    pub fn usual(tier: Tier) -> Vec<Self> {
        let of = |name: &str, rise_fraction, fall_fraction| Self {
            name: name.to_owned(),
            tier,
            rise_fraction,
            fall_fraction,
        };
        match tier {
            Tier::Device(_) => vec![of("offload", 0.85, 0.70), of("emergency", 0.95, 0.85)],
            _ => vec![of("full", 0.90, 0.80)],
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The tier that is watched.
    #[must_use]
    pub const fn tier(&self) -> Tier {
        self.tier
    }

    /// The share at which it rises.
    #[must_use]
    pub const fn rise_fraction(&self) -> f64 {
        self.rise_fraction
    }

    /// The share at which it falls.
    #[must_use]
    pub const fn fall_fraction(&self) -> f64 {
        self.fall_fraction
    }
}

fn share(what: &'static str, found: f64, expected: &'static str) -> Error {
    Error::BadSetting { what, found: found.to_string(), expected }
}

/// Which way a threshold was passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// Usage rose to it.
    Rose,
    /// Usage fell back.
    Fell,
}

/// A threshold that was passed.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Crossing {
    /// Which one.
    pub threshold: Threshold,
    /// Which way.
    pub direction: Direction,
    /// When, since the monitor was made.
    #[serde(serialize_with = "crate::seconds")]
    pub at: Duration,
    /// The figures that passed it.
    pub sample: MemorySample,
}

impl fmt::Display for Crossing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let way = match self.direction {
            Direction::Rose => "rose to",
            Direction::Fell => "fell to",
        };
        let (name, tier) = (self.threshold.name(), self.threshold.tier());
        write!(f, "{name}: {tier} {way} {:.1} %", self.sample.used_fraction() * 100.0)
    }
}

/// A threshold and whether it is raised.
#[derive(Clone, Debug)]
pub(crate) struct Watch {
    threshold: Threshold,
    raised: bool,
}

impl Watch {
    pub(crate) const fn new(threshold: Threshold) -> Self {
        Self { threshold, raised: false }
    }

    pub(crate) fn raised(&self) -> Option<&Threshold> {
        self.raised.then_some(&self.threshold)
    }

    /// Takes a reading into account; a tier that was not read changes nothing.
    pub(crate) fn observe(&mut self, at: Duration, reading: &Reading) -> Option<Crossing> {
        let sample = reading.tier(self.threshold.tier)?;
        let used = sample.used_fraction();
        let direction = match self.raised {
            false if used >= self.threshold.rise_fraction => Direction::Rose,
            true if used <= self.threshold.fall_fraction => Direction::Fell,
            _ => return None,
        };
        self.raised = direction == Direction::Rose;
        Some(Crossing { threshold: self.threshold.clone(), direction, at, sample })
    }
}

#[cfg(test)]
mod tests {
    use dd_core::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::reading::TierReading;

    fn reading(tier: Tier, percent: u64) -> Reading {
        let sample =
            MemorySample { total: Bytes(100), used: Bytes(percent), available: Bytes(100 - percent) };
        Reading { tiers: vec![TierReading { tier, sample }], ..Reading::default() }
    }

    /// What happens at each of these shares, in percent: `+` rose, `-` fell, `.` nothing.
    fn told(rise: f64, fall: f64, shares: &[u64]) -> String {
        let threshold = Threshold::new("t", Tier::Host, rise).unwrap().falling_at(fall).unwrap();
        let mut watch = Watch::new(threshold);
        let mut tell = |percent: &u64| match watch.observe(Duration::ZERO, &reading(Tier::Host, *percent)) {
            Some(crossing) if crossing.direction == Direction::Rose => '+',
            Some(_) => '-',
            None => '.',
        };
        shares.iter().map(&mut tell).collect()
    }

    #[test]
    fn hysteresis() {
        let rows: [(f64, f64, &[u64], &str); 5] = [
            (0.9, 0.8, &[0, 89, 90, 85, 81, 80, 85, 90], "..+..-.+"),
            (0.9, 0.8, &[100, 0, 100, 0], "+-+-"),
            (0.9, 0.8, &[85, 86, 84, 85], "...."),
            (0.9, 0.0, &[90, 1, 0], "+.-"),
            (1.0, 0.5, &[99, 100, 51, 50], ".+.-"),
        ];
        for (rise, fall, shares, expected) in rows {
            assert_eq!(told(rise, fall, shares), expected, "{rise}/{fall}: {shares:?}");
        }
    }

    #[test]
    fn a_tier_that_was_not_read_changes_nothing() {
        let mut watch = Watch::new(Threshold::new("t", Tier::Device(1), 0.5).unwrap());
        assert!(watch.observe(Duration::ZERO, &reading(Tier::Device(0), 100)).is_none());
        assert!(watch.observe(Duration::ZERO, &reading(Tier::Device(1), 100)).is_some());
        assert!(watch.observe(Duration::ZERO, &Reading::default()).is_none());
        assert_eq!(watch.raised().unwrap().name(), "t");
    }

    #[test]
    fn shares_are_checked() {
        let rows = [
            (0.9, 0.8, true),
            (1.0, 0.0, true),
            (0.0, 0.0, false),
            (1.1, 0.5, false),
            (f64::NAN, 0.0, false),
        ];
        let more = [(0.5, 0.5, false), (0.5, -0.1, false), (0.5, f64::NAN, false), (-0.1, -0.2, false)];
        for (rise, fall, good) in rows.into_iter().chain(more) {
            let made = Threshold::new("t", Tier::Host, rise).and_then(|it| it.falling_at(fall));
            assert_eq!(made.is_ok(), good, "{rise}/{fall}: {made:?}");
        }
        for tier in [Tier::Device(3), Tier::Host, Tier::Disk] {
            for threshold in Threshold::usual(tier) {
                let remade = Threshold::new(threshold.name(), tier, threshold.rise_fraction());
                assert_eq!(remade.unwrap().falling_at(threshold.fall_fraction()).unwrap(), threshold);
            }
        }
    }

    proptest! {
        /// Rises and falls take turns, a rise first, each at its own side of its line.
        #[test]
        fn crossings_take_turns(shares in proptest::collection::vec(0u64..=100, 0..60)) {
            let told = told(0.9, 0.7, &shares);
            let turns: String = told.chars().filter(|it| *it != '.').collect();
            prop_assert!("+-".repeat(turns.len()).starts_with(&turns), "{}", told);
            for (share, what) in shares.iter().zip(told.chars()) {
                prop_assert!(what != '+' || *share >= 90);
                prop_assert!(what != '-' || *share <= 70);
            }
        }
    }
}
