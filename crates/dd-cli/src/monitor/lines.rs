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

/// `host 3.20 GiB of 8.00 GiB, 40 %`. The share is of what is not available; where that is more than what is used (what a
/// container may have and the machine has not), what is left is named too.
#[must_use]
pub fn share(tier: Tier, sample: &MemorySample) -> String {
    let MemorySample { total, used, available } = *sample;
    let left = if used + available == total { String::new() } else { format!(" {available} left,") };
    format!("{tier} {used} of {total},{left} {:.0} %", sample.used_fraction() * 100.0)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use deep_dimensions::core::Bytes;
    use deep_dimensions::monitor::pressure::Stall;

    use super::*;

    #[test]
    fn a_share_fits_the_figures_beside_it() {
        let rows = [
            ((8, 2, 6), "disk 2.00 GiB of 8.00 GiB, 25 %"),
            ((8, 2, 4), "disk 2.00 GiB of 8.00 GiB, 4.00 GiB left, 50 %"),
            ((8, 9, 0), "disk 9.00 GiB of 8.00 GiB, 0 B left, 100 %"),
        ];
        for ((total, used, available), expected) in rows {
            let [total, used, available] = [total, used, available].map(Bytes::gib);
            assert_eq!(share(Tier::Disk, &MemorySample { total, used, available }), expected);
        }
    }

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
