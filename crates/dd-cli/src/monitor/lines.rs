//! A reading as a line of text.

use deep_dimensions::core::{MemorySample, Tier};

use crate::monitor::watch::View;

/// One line: the time, the process, each tier, the pressure, and the first recommendation.
#[must_use]
pub fn line(view: &View) -> String {
    let time = format!("{:>8.1} s", view.at.as_secs_f64());
    let resident = view.resident.map(|bytes| format!("resident {bytes}"));
    let tiers = view.tiers.iter().map(|(tier, sample)| share(*tier, sample));
    let pressure =
        view.pressure.map(|(some, _)| format!("waiting {:.1} %", some.ten_seconds_fraction * 100.0));
    let advice = view.recommendations.first().cloned();
    let parts = [time].into_iter().chain(resident).chain(tiers).chain(pressure).chain(advice);
    parts.collect::<Vec<_>>().join("  ")
}

/// `host 3.20 GiB of 8.00 GiB, 40 %`.
#[must_use]
pub fn share(tier: Tier, sample: &MemorySample) -> String {
    format!("{tier} {} of {}, {:.0} %", sample.used, sample.total, sample.used_fraction() * 100.0)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use deep_dimensions::core::Bytes;
    use deep_dimensions::monitor::pressure::Stall;

    use super::*;

    #[test]
    fn a_line_has_what_there_is() {
        let sample = MemorySample { total: Bytes::gib(8), used: Bytes::gib(2), available: Bytes::gib(6) };
        let stall = Stall { ten_seconds_fraction: 0.125, ..Stall::default() };
        let full = View {
            at: Duration::from_millis(12_340),
            tiers: vec![(Tier::Device(1), sample), (Tier::Host, sample)],
            resident: Some(Bytes::mib(100)),
            pressure: Some((stall, stall)),
            recommendations: vec!["warning: a".to_owned(), "note: b".to_owned()],
            ..View::default()
        };
        let expected = "    12.3 s  resident 100.00 MiB  device:1 2.00 GiB of 8.00 GiB, 25 %  \
                        host 2.00 GiB of 8.00 GiB, 25 %  waiting 12.5 %  warning: a";
        assert_eq!(line(&full), expected);
        assert_eq!(line(&View::default()), "     0.0 s");
    }
}
