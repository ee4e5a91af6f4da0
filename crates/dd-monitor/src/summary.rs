//! [`MemorySummary`]: where memory stands, where it is going, and what could be done about it.
//!
//! The summary is a value: every recommendation follows from its figures by a fixed rule, and names them. This crate
//! only recommends; whoever reads it decides.

use std::fmt;
use std::time::Duration;

use dd_core::{Bytes, MemorySample, Tier, Usage};

use crate::cgroup::CgroupEvents;
use crate::history::History;
use crate::predict::Prediction;
use crate::pressure::MemoryPressure;
use crate::process::ProcessMemory;

/// From this share of a device on, something should move off it; from the next one on, at once.
const DEVICE_SHARES: (f64, f64) = (0.85, 0.95);
/// From this share of host memory on.
const HOST_SHARES: (f64, f64) = (0.90, 0.97);
/// From this share of a disk on.
const DISK_SHARES: (f64, f64) = (0.90, 0.98);
/// From these shares of the time on, in which some, or all, tasks stood still.
const STALL_FRACTIONS: (f64, f64) = (0.10, 0.05);
/// Exhaustion sooner than this is worth a word, sooner than the next one an alarm.
const SOON: (Duration, Duration) = (Duration::from_secs(600), Duration::from_secs(60));

/// How much a recommendation matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Good to know.
    Note,
    /// Act before long.
    Warning,
    /// Act now.
    Critical,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Critical => "critical",
        })
    }
}

/// What could be done, and the figures that say so.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Recommendation {
    /// How much it matters.
    pub severity: Severity,
    /// The tier that it is about; none for the machine as a whole.
    pub tier: Option<Tier>,
    /// A sentence.
    pub text: String,
}

impl fmt::Display for Recommendation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.severity, self.text)
    }
}

/// One tier in a summary.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct TierSummary {
    /// The tier.
    pub tier: Tier,
    /// Its figures now.
    pub sample: MemorySample,
    /// The share that is not available, in `0..=1`.
    pub used_fraction: f64,
    /// The most that was taken in the history.
    pub peak: Bytes,
    /// What was taken on average over the readings of the history.
    pub average: Bytes,
    /// Where it is going.
    pub prediction: Option<Prediction>,
}

/// Where memory stands. Prints as a table with the recommendations below it.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct MemorySummary {
    /// Each tier, nearest first.
    pub tiers: Vec<TierSummary>,
    /// The process.
    pub process: Option<ProcessMemory>,
    /// The pressure.
    pub pressure: Option<MemoryPressure>,
    /// What the container's limit has led to since the history's first reading.
    pub events: Option<CgroupEvents>,
    /// The watched budget.
    pub usage: Option<Usage>,
    /// What could be done, the most urgent first.
    pub recommendations: Vec<Recommendation>,
}

impl MemorySummary {
    /// The summary of a history; an empty history has an empty one.
    #[must_use]
    pub fn of(history: &History, predict: impl Fn(Tier) -> Option<Prediction>) -> Self {
        let Some(latest) = history.latest() else { return Self::default() };
        let tier = |tier: Tier, sample: MemorySample| {
            let (peak, average) = history.peak_and_average(tier).unwrap_or((sample.used, sample.used));
            let (used_fraction, prediction) = (sample.used_fraction(), predict(tier));
            TierSummary { tier, sample, used_fraction, peak, average, prediction }
        };
        let reading = &latest.reading;
        let first_events = history.iter().find_map(|moment| moment.reading.events);
        let since_first = |events: CgroupEvents| events.since(&first_events.unwrap_or_default());
        let mut summary = Self {
            tiers: reading.tiers.iter().map(|it| tier(it.tier, it.sample)).collect(),
            process: reading.process,
            pressure: reading.pressure,
            events: reading.events.map(since_first),
            usage: reading.usage.clone(),
            recommendations: Vec::new(),
        };
        summary.recommendations = summary.recommend();
        summary
    }

    /// What follows from the figures, the most urgent first.
    fn recommend(&self) -> Vec<Recommendation> {
        let mut found: Vec<Recommendation> = Vec::new();
        for tier in &self.tiers {
            found.extend(self.on_share(tier));
            found.extend(on_prediction(tier));
        }
        found.extend(self.on_pressure());
        found.extend(self.on_events());
        found.extend(self.on_budget());
        found.sort_by_key(|recommendation| std::cmp::Reverse(recommendation.severity));
        found
    }

    fn available(&self, tier: Tier) -> Option<Bytes> {
        self.tiers.iter().find(|it| it.tier == tier).map(|it| it.sample.available)
    }

    /// What to do where a tier is full.
    fn on_share(&self, tier: &TierSummary) -> Option<Recommendation> {
        let ((warning, critical), advice) = match tier.tier {
            Tier::Device(_) => {
                (DEVICE_SHARES, self.elsewhere("move what is used last to", [Tier::Host, Tier::Disk]))
            }
            Tier::Disk => {
                (DISK_SHARES, "free space, or let the spill folder lie on another file system".to_owned())
            }
            _ => (HOST_SHARES, self.elsewhere("let weights rest in", [Tier::Disk, Tier::Remote])),
        };
        if tier.used_fraction < warning {
            return None;
        }
        let severity = if tier.used_fraction >= critical { Severity::Critical } else { Severity::Warning };
        let (used, left) = (tier.used_fraction * 100.0, tier.sample.available);
        let text = format!("{} is {used:.0} % full, {left} are left: {advice}", tier.tier);
        Some(Recommendation { severity, tier: Some(tier.tier), text })
    }

    /// Where bytes could go instead: the first of these tiers that has room.
    fn elsewhere(&self, what: &str, tiers: [Tier; 2]) -> String {
        let place = tiers.into_iter().find_map(|tier| {
            let available = self.available(tier).filter(|available| *available > Bytes::ZERO)?;
            Some(format!("{what} {tier} ({available} available)"))
        });
        place.unwrap_or_else(|| "take a smaller batch or model: no tier behind it has room".to_owned())
    }

    fn on_pressure(&self) -> Option<Recommendation> {
        let pressure = self.pressure?;
        let (some, full) = (pressure.some.ten_seconds_fraction, pressure.full.ten_seconds_fraction);
        if some < STALL_FRACTIONS.0 && full < STALL_FRACTIONS.1 {
            return None;
        }
        let severity = if full >= STALL_FRACTIONS.1 { Severity::Critical } else { Severity::Warning };
        let text = format!(
            "tasks waited for memory {:.0} % of the last ten seconds (all of them {:.0} %): lower the budget",
            some * 100.0,
            full * 100.0,
        );
        Some(Recommendation { severity, tier: None, text })
    }

    fn on_events(&self) -> Option<Recommendation> {
        let events = self.events?;
        let (severity, text) = if events.oom_kill > 0 {
            (Severity::Critical, format!("the kernel killed {} processes of the container", events.oom_kill))
        } else if events.max > 0 {
            (Severity::Warning, format!("the container reached its limit {} times", events.max))
        } else if events.high > 0 {
            (Severity::Note, format!("the container was slowed down {} times at its soft limit", events.high))
        } else {
            return None;
        };
        let text = format!("{text}: keep the budget below the limit by what the program itself takes");
        Some(Recommendation { severity, tier: Some(Tier::Host), text })
    }

    /// A budget that promises more than there is.
    fn on_budget(&self) -> Option<Recommendation> {
        let usage = self.usage.as_ref().filter(|usage| usage.limit < Bytes::MAX)?;
        let available = self.available(Tier::Host)?;
        let open = usage.limit.saturating_sub(usage.used);
        if open <= available {
            return None;
        }
        let text = format!(
            "the budget {:?} still promises {open}, but only {available} are available on the host: lower it",
            usage.name
        );
        Some(Recommendation { severity: Severity::Warning, tier: Some(Tier::Host), text })
    }
}

fn on_prediction(tier: &TierSummary) -> Option<Recommendation> {
    let prediction = tier.prediction?;
    let time = prediction.time_to_exhaustion.filter(|time| *time <= SOON.0)?;
    let severity = if time <= SOON.1 { Severity::Critical } else { Severity::Warning };
    let rate = Bytes(1).scaled(prediction.bytes_per_second);
    let text = format!("{} grows by {rate}/s and would be full in {:.0} s", tier.tier, time.as_secs_f64());
    Some(Recommendation { severity, tier: Some(tier.tier), text })
}

impl fmt::Display for MemorySummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<12}{:>14}{:>14}{:>8}{:>14}", "tier", "used", "total", "share", "peak")?;
        for it in &self.tiers {
            let (used, total, share) =
                (it.sample.used.to_string(), it.sample.total.to_string(), it.used_fraction * 100.0);
            let (tier, peak) = (it.tier.to_string(), it.peak.to_string());
            writeln!(f, "{tier:<12}{used:>14}{total:>14}{share:>6.1} %{peak:>14}")?;
        }
        if let Some(process) = self.process {
            writeln!(f, "{:<12}{:>14}", "process", process.resident.to_string())?;
        }
        if let Some(usage) = &self.usage {
            let (used, limit, peak) =
                (usage.used.to_string(), usage.limit.to_string(), usage.peak.to_string());
            let share = usage.used.fraction_of(usage.limit) * 100.0;
            writeln!(f, "{:<12}{used:>14}{limit:>14}{share:>6.1} %{peak:>14}", "budget")?;
        }
        if let Some(pressure) = self.pressure {
            let stood = pressure.some.ten_seconds_fraction * 100.0;
            writeln!(f, "{:<12}{stood:>12.1} %  of the last ten seconds", "pressure")?;
        }
        self.recommendations.iter().try_for_each(|recommendation| writeln!(f, "{recommendation}"))
    }
}

#[cfg(test)]
mod tests {
    use dd_core::{Budget, Holder};

    use super::*;
    use crate::history::Moment;
    use crate::pressure::Stall;
    use crate::reading::{Reading, TierReading};

    fn tiers(rows: &[(Tier, u64)]) -> Vec<TierReading> {
        let tier = |(tier, used): &(Tier, u64)| {
            let (total, used) = (Bytes::mib(100), Bytes::mib(*used));
            let sample = MemorySample { total, used, available: total.saturating_sub(used) };
            TierReading { tier: *tier, sample }
        };
        rows.iter().map(tier).collect()
    }

    fn summary(readings: Vec<Reading>) -> MemorySummary {
        let mut history = History::new(100);
        for (second, reading) in (0..).zip(readings) {
            history.push(Moment { at: Duration::from_secs(second), reading });
        }
        MemorySummary::of(&history, |tier| {
            let taken: Vec<_> = history.tier(tier).map(|(at, sample)| (at, sample.used)).collect();
            Prediction::of(&taken, Bytes::mib(100))
        })
    }

    #[test]
    fn recommendations_follow_from_the_figures() {
        let stalled = |some: f64, full: f64| {
            let stall = |share| Stall { ten_seconds_fraction: share, ..Stall::default() };
            let pressure = Some(MemoryPressure { some: stall(some), full: stall(full) });
            vec![Reading { pressure, ..Reading::default() }]
        };
        let happened = |events: CgroupEvents| {
            let reading = |events| Reading { events: Some(events), ..Reading::default() };
            vec![reading(CgroupEvents { max: 5, ..CgroupEvents::default() }), reading(events)]
        };
        let full = |rows: &[(Tier, u64)]| vec![Reading { tiers: tiers(rows), ..Reading::default() }];
        let growing = |from: u64| {
            (0..20)
                .map(|n| Reading { tiers: tiers(&[(Tier::Host, from + n)]), ..Reading::default() })
                .collect()
        };
        let budget = Budget::new("job", Bytes::mib(80));
        let _held = budget.reserve(Bytes::mib(10), &Holder::new("weights")).unwrap();
        let promised = vec![Reading {
            usage: Some(budget.usage()),
            tiers: tiers(&[(Tier::Host, 50)]),
            ..Reading::default()
        }];
        let device = Tier::Device(1);
        let rows: Vec<(Vec<Reading>, &[&str])> = vec![
            (vec![], &[]),
            (full(&[(device, 84), (Tier::Host, 89), (Tier::Disk, 89)]), &[]),
            (
                full(&[(device, 86), (Tier::Host, 50)]),
                &[
                    "warning: device:1 is 86 % full, 14.00 MiB are left: move what is used last to host (50.00 MiB available)",
                ],
            ),
            (
                full(&[(device, 97), (Tier::Host, 100), (Tier::Disk, 50)]),
                &[
                    "critical: device:1 is 97 % full",
                    "critical: host is 100 % full, 0 B are left: let weights rest in disk",
                ],
            ),
            (
                full(&[(Tier::Host, 95)]),
                &["warning: host is 95 % full, 5.00 MiB are left: take a smaller batch"],
            ),
            (full(&[(Tier::Disk, 99)]), &["critical: disk is 99 % full, 1.00 MiB are left: free space"]),
            (growing(10), &["warning: host grows by 1.00 MiB/s and would be full in 71 s"]),
            (growing(50), &["critical: host grows by 1.00 MiB/s and would be full in 31 s"]),
            (stalled(0.05, 0.01), &[]),
            (stalled(0.2, 0.01), &["warning: tasks waited for memory 20 %"]),
            (
                stalled(0.2, 0.1),
                &["critical: tasks waited for memory 20 % of the last ten seconds (all of them 10 %)"],
            ),
            (happened(CgroupEvents { max: 5, ..CgroupEvents::default() }), &[]),
            (
                happened(CgroupEvents { max: 7, ..CgroupEvents::default() }),
                &["warning: the container reached its limit 2"],
            ),
            (
                happened(CgroupEvents { max: 7, oom_kill: 1, ..CgroupEvents::default() }),
                &["critical: the kernel killed 1"],
            ),
            (
                promised,
                &["warning: the budget \"job\" still promises 70.00 MiB, but only 50.00 MiB are available"],
            ),
        ];
        for (number, (readings, expected)) in rows.into_iter().enumerate() {
            let found: Vec<String> =
                summary(readings).recommendations.iter().map(ToString::to_string).collect();
            assert_eq!(found.len(), expected.len(), "row {number}: {found:#?}");
            for (found, expected) in found.iter().zip(expected) {
                assert!(found.starts_with(expected), "row {number}: {found}");
            }
        }
    }

    #[test]
    fn it_prints_as_a_table_and_as_json() {
        let summary = summary(vec![Reading { tiers: tiers(&[(Tier::Host, 95)]), ..Reading::default() }]);
        let text = summary.to_string();
        assert!(
            text.lines()
                .nth(1)
                .unwrap()
                .starts_with("host             95.00 MiB    100.00 MiB  95.0 %     95.00 MiB"),
            "{text}"
        );
        let json = serde_json::to_value(&summary).unwrap();
        assert_eq!(json["tiers"][0]["used_fraction"], 0.95);
        assert_eq!(json["recommendations"][0]["severity"], "warning");
    }
}
