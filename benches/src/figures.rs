//! What the reports of many rounds amount to: a table that lines up, ratios taken within a round, and both as JSON.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

use crate::contest::{Pass, Report};
use crate::rounds::median;
use crate::{Error, Result};

/// Passes that do not count: the first reads everything, the second settles.
pub const SETTLING: usize = 2;

impl Report {
    /// The median over the passes that count.
    pub fn per_pass(&self, of: impl Fn(&Pass) -> f64) -> f64 {
        median(self.passes.iter().skip(SETTLING).map(of))
    }

    /// Seconds per pass.
    #[must_use]
    pub fn seconds(&self) -> f64 {
        self.per_pass(|pass| pass.seconds)
    }
}

/// Medians over the rounds, one contestant.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    name: String,
    load_s: f64,
    first_token_s: f64,
    pass_s: f64,
    read_per_pass: f64,
    cpu_s_per_pass: f64,
    paging_cpu_s_per_pass: f64,
    written: f64,
    peak_resident: f64,
    charged: Option<f64>,
    faults: Option<f64>,
    late: Option<f64>,
    resident_weights: Option<f64>,
}

/// A figure that is taken in each round against that round's own controls.
#[derive(Clone, Debug, Serialize)]
pub struct Ratio {
    name: String,
    median: f64,
    least: f64,
    most: f64,
    wanted: String,
}

/// Everything that was reported, round by round.
#[derive(Debug, Default, Serialize)]
pub struct Figures {
    reports: BTreeMap<String, Vec<Report>>,
    order: Vec<String>,
    ratios: Vec<Ratio>,
    notes: Vec<String>,
}

impl Figures {
    /// Takes what one turn reported.
    pub fn add(&mut self, name: &str, report: Report) {
        if !self.reports.contains_key(name) {
            self.order.push(name.to_owned());
        }
        self.reports.entry(name.to_owned()).or_default().push(report);
    }

    /// The reports of a contestant, none where it did not take part.
    #[must_use]
    pub fn of(&self, name: &str) -> &[Report] {
        self.reports.get(name).map_or(&[], Vec::as_slice)
    }

    /// A remark that stands below the table.
    pub fn note(&mut self, note: String) {
        self.notes.push(note);
    }

    /// Takes a figure of each round: `values` in the order of rounds; nothing where there are none.
    pub fn ratio(&mut self, name: &str, values: impl Iterator<Item = f64>, wanted: &str) {
        let values: Vec<f64> = values.collect();
        if values.is_empty() {
            return;
        }
        self.ratios.push(Ratio {
            name: name.to_owned(),
            median: median(values.iter().copied()),
            least: values.iter().copied().fold(f64::INFINITY, f64::min),
            most: values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            wanted: wanted.to_owned(),
        });
    }

    /// `f` of two contestants' reports, round by round.
    pub fn per_round(&self, first: &str, second: &str, f: impl Fn(&Report, &Report) -> f64) -> Vec<f64> {
        self.of(first).iter().zip(self.of(second)).map(|(first, second)| f(first, second)).collect()
    }

    /// Checks that a report holds the same logits, bit by bit, as the first report of `control`.
    ///
    /// # Errors
    /// Where it does not.
    pub fn same(&self, control: &str, name: &str, report: &Report) -> Result<()> {
        match self.of(control).first() {
            Some(first) if first.checksum != report.checksum => Err(Error::from(format!(
                "the logits of {name} differ from those of {control}: {} and {}",
                report.checksum, first.checksum
            ))),
            _ => Ok(()),
        }
    }

    /// Checks that the last logits come close to those of `control`, for who adds in another order.
    ///
    /// # Errors
    /// Where one is off by more than a thousandth of the largest.
    pub fn close(&self, control: &str, name: &str, report: &Report) -> Result<()> {
        let Some(first) = self.of(control).first() else { return Ok(()) };
        let largest = first.logits.iter().fold(0.0_f32, |most, logit| most.max(logit.abs()));
        let off = |(a, b): (&f32, &f32)| (a - b).abs();
        let most = first.logits.iter().zip(&report.logits).map(off).fold(0.0, f32::max);
        match first.logits.len() == report.logits.len() && most <= largest / 1000.0 {
            true => Ok(()),
            false => Err(format!("the logits of {name} are off by {most}, the largest is {largest}").into()),
        }
    }

    fn rows(&self) -> Vec<Row> {
        self.order.iter().map(|name| Row::of(name, self.of(name))).collect()
    }

    /// The table, the ratios and the remarks.
    #[must_use]
    pub fn table(&self) -> String {
        let mut text = format!(
            "{:<18} {:>8} {:>8} {:>8} {:>10} {:>8} {:>8} {:>10} {:>9} {:>9} {:>7} {:>6}\n",
            "",
            "load s",
            "first s",
            "s/pass",
            "read MB",
            "CPU s",
            "paging s",
            "written MB",
            "peak MiB",
            "cap MiB",
            "faults",
            "late"
        );
        for row in self.rows() {
            let optional =
                |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.0}"));
            let _ = writeln!(
                text,
                "{:<18} {:>8.3} {:>8.3} {:>8.3} {:>10.1} {:>8.3} {:>8.3} {:>10.1} {:>9.0} {:>9} {:>7} {:>6}",
                row.name,
                row.load_s,
                row.first_token_s,
                row.pass_s,
                row.read_per_pass / 1e6,
                row.cpu_s_per_pass,
                row.paging_cpu_s_per_pass,
                row.written / 1e6,
                row.peak_resident / MIB,
                optional(row.charged.map(|charged| charged / MIB)),
                optional(row.faults),
                optional(row.late),
            );
        }
        for Ratio { name, median, least, most, wanted } in &self.ratios {
            let _ = writeln!(text, "{name:<62} {median:>7.3} (rounds from {least:.3} to {most:.3}) {wanted}");
        }
        for note in &self.notes {
            let _ = writeln!(text, "{note}");
        }
        text
    }

    /// All of it: medians, ratios, remarks, and every report.
    ///
    /// # Errors
    /// None that is expected: all of it is plain data.
    pub fn json(&self) -> Result<String> {
        #[derive(Serialize)]
        struct All<'a> {
            medians: Vec<Row>,
            #[serde(flatten)]
            figures: &'a Figures,
        }
        Ok(serde_json::to_string_pretty(&All { medians: self.rows(), figures: self })?)
    }
}

const MIB: f64 = 1024.0 * 1024.0;

impl Row {
    fn of(name: &str, reports: &[Report]) -> Self {
        let of = |figure: &dyn Fn(&Report) -> f64| median(reports.iter().map(figure));
        let some = |figure: &dyn Fn(&Report) -> Option<f64>| {
            let values: Vec<f64> = reports.iter().filter_map(figure).collect();
            (!values.is_empty()).then(|| median(values.into_iter()))
        };
        Self {
            name: name.to_owned(),
            load_s: of(&|report| report.load),
            first_token_s: of(&|report| report.first),
            pass_s: of(&Report::seconds),
            read_per_pass: of(&|report| report.per_pass(|pass| pass.read as f64)),
            cpu_s_per_pass: of(&|report| report.per_pass(|pass| pass.cpu)),
            paging_cpu_s_per_pass: of(&|report| report.per_pass(|pass| pass.paging_cpu)),
            written: of(&|report| report.written as f64),
            peak_resident: of(&|report| report.peak as f64),
            charged: some(&|report| report.charged.map(|charged| charged as f64)),
            faults: some(&|report| report.pager.map(|_| report.per_pass(|pass| pass.faults as f64))),
            late: some(&|report| report.pager.map(|_| report.per_pass(|pass| pass.late as f64))),
            resident_weights: some(&|report| report.pager.map(|pager| pager.resident as f64)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(checksum: &str, seconds: &[f64], logits: &[f32]) -> Report {
        let passes = seconds.iter().map(|&seconds| Pass { seconds, ..Pass::default() }).collect();
        Report { checksum: checksum.to_owned(), passes, logits: logits.to_vec(), ..Report::default() }
    }

    #[test]
    fn the_first_passes_do_not_count() {
        let report = report("", &[90.0, 80.0, 1.0, 3.0, 2.0], &[]);
        assert!((report.seconds() - 2.0).abs() < 1e-12);
    }

    #[test]
    fn other_logits_are_an_error() {
        let mut figures = Figures::default();
        figures.add("control", report("a", &[], &[1.0, -200.0]));
        let rows: [(&str, &[f32], bool, bool); 4] = [
            ("a", &[1.0, -200.0], true, true),
            ("b", &[1.1, -200.0], false, true),
            ("b", &[1.3, -200.0], false, false),
            ("b", &[1.0], false, false),
        ];
        for (checksum, logits, same, close) in rows {
            let report = report(checksum, &[], logits);
            assert_eq!(figures.same("control", "x", &report).is_ok(), same, "{checksum} {logits:?}");
            assert_eq!(figures.close("control", "x", &report).is_ok(), close, "{checksum} {logits:?}");
        }
        let unequal = figures.same("control", "x", &report("b", &[], &[]));
        assert!(unequal.unwrap_err().to_string().contains("differ from those of control"));
    }

    #[test]
    fn the_table_lines_up() {
        let mut figures = Figures::default();
        figures.add("in_memory", report("a", &[1.0, 1.0, 0.5], &[]));
        figures.add("paged", report("a", &[1.0, 1.0, 123.456], &[]));
        figures.ratio("share", [0.5, 0.7, 0.6].into_iter(), "0.95 or more");
        let table = figures.table();
        let widths: Vec<usize> = table.lines().take(3).map(|line| line.chars().count()).collect();
        assert!(widths.iter().all(|width| Some(width) == widths.first()), "{table}");
        assert!(table.contains("0.600 (rounds from 0.500 to 0.700) 0.95 or more"), "{table}");
        assert!(figures.json().unwrap().contains("\"pass_s\": 123.456"));
    }
}
