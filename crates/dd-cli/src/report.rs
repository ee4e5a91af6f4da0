//! What runs report, as values that print as tables or as JSON.

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, Table};
use deep_dimensions::core::Bytes;
use serde::{Deserialize, Serialize};

use crate::demo::DemoReport;
use crate::engine::Engine;
use crate::plan::PlanReport;
use crate::plot;
use crate::process::{self, ProcessSample};
use crate::run::RunReport;

/// Time and bytes of one pass.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct PassReport {
    /// Tokens that went through the model.
    pub tokens: usize,
    /// Wall time.
    pub seconds: f64,
    /// Bytes that the kernel fetched from disks for this process.
    pub bytes_read: Option<Bytes>,
}

/// What a run held.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Memory {
    /// All weights, as stored.
    pub weights: Bytes,
    /// What `--memory` allowed.
    pub limit: Option<Bytes>,
    /// The most that was accounted at once.
    pub accounted_peak: Bytes,
    /// Resident before any weight was there: code, threads, packing buffers, what is left of the tokenizer.
    pub constant: Option<Bytes>,
    /// The most that was resident until then, the tokenizer included.
    pub starting_peak: Option<Bytes>,
    /// The most that was resident at once, as the kernel saw it.
    pub resident_peak: Option<Bytes>,
    /// Bytes that the kernel sent to disks for this process during the run.
    pub bytes_written: Option<Bytes>,
}

impl Memory {
    /// What an engine has held by now, with the reading from before it was made.
    #[must_use]
    pub fn of(engine: &Engine, limit: Option<Bytes>, before: &ProcessSample) -> Self {
        Self::new(engine.weights, engine.budget.usage().peak, limit, before)
    }

    /// What a run has held by now, with the reading from before its model was made.
    #[must_use]
    pub fn new(weights: Bytes, accounted_peak: Bytes, limit: Option<Bytes>, before: &ProcessSample) -> Self {
        let now = process::sample();
        let written = now.bytes_written.zip(before.bytes_written).map(|(now, then)| now.saturating_sub(then));
        Self {
            weights,
            limit,
            accounted_peak,
            constant: before.resident,
            starting_peak: before.resident_peak,
            resident_peak: now.resident_peak,
            bytes_written: written,
        }
    }

    pub(crate) fn rows(&self) -> Vec<(&'static str, String)> {
        vec![
            ("weights", self.weights.to_string()),
            ("limit", self.limit.map_or_else(|| "none".to_owned(), |limit| limit.to_string())),
            ("accounted peak", self.accounted_peak.to_string()),
            ("process constant", or_unknown(self.constant)),
            ("peak before the model (tokenizer)", or_unknown(self.starting_peak)),
            ("resident peak (kernel)", or_unknown(self.resident_peak)),
            ("written to disk", or_unknown(self.bytes_written)),
        ]
    }
}

fn or_unknown<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "unknown".to_owned(), |value| value.to_string())
}

pub(crate) fn table<S: ToString>(header: impl IntoIterator<Item = S>) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_header(header.into_iter().map(|cell| cell.to_string()));
    table
}

/// All columns but the first to the right.
pub(crate) fn align(table: &mut Table) {
    table.column_iter_mut().skip(1).for_each(|column| {
        column.set_cell_alignment(CellAlignment::Right);
    });
}

/// A table of names and values under a title.
pub(crate) fn figures(title: &str, rows: impl IntoIterator<Item = (&'static str, String)>) -> Table {
    let mut figures = table(["", title]);
    rows.into_iter().for_each(|(name, value)| {
        figures.add_row([name.to_owned(), value]);
    });
    align(&mut figures);
    figures
}

/// A run's report as text.
#[must_use]
pub fn run_text(report: &RunReport) -> String {
    let mut similarity =
        table(std::iter::once(String::new()).chain((1..=report.texts.len()).map(|n| n.to_string())));
    for ((index, text), row) in (1..).zip(&report.texts).zip(&report.similarity) {
        let name = format!("{index} {}", shorten(text));
        similarity.add_row(std::iter::once(name).chain(row.iter().map(|cosine| format!("{cosine:.4}"))));
    }
    align(&mut similarity);
    let seconds: f64 = report.passes.iter().map(|pass| pass.seconds).sum();
    let read: Option<Bytes> = report.passes.iter().map(|pass| pass.bytes_read).sum_all();
    let mut figures = table(["", report.model.as_str()]);
    figures.add_row(["batches".to_owned(), report.passes.len().to_string()]);
    figures.add_row(["seconds".to_owned(), format!("{seconds:.3}")]);
    figures.add_row(["read from disk in passes".to_owned(), or_unknown(read)]);
    if let (Some(bandwidth), Some(read)) = (report.bandwidth, read) {
        let share = read.0 as f64 / seconds / bandwidth;
        figures.add_row([
            "of the disk's bandwidth".to_owned(),
            format!("{:.0} % of {}/s", share * 100.0, rate(bandwidth)),
        ]);
    }
    report.memory.rows().into_iter().for_each(|(name, value)| {
        figures.add_row([name.to_owned(), value]);
    });
    align(&mut figures);
    let stated =
        if report.pooling.stated { "as the model's files say" } else { "no file of the model says so" };
    let pooling =
        format!("pooling {:?}, normalised {}: {stated}", report.pooling.modes, report.pooling.normalize);
    format!("Cosine similarity\n{similarity}\n{pooling}\n{figures}")
}

/// A bandwidth, as bytes of one second.
pub(crate) fn rate(bytes_per_second: f64) -> Bytes {
    Bytes(1 << 20).scaled(bytes_per_second / f64::from(1 << 20))
}

/// A plan's report as text.
#[must_use]
pub fn plan_text(report: &PlanReport) -> String {
    let mut figures = table(["", report.model.as_str()]);
    figures.add_row(["limit".to_owned(), report.limit.to_string()]);
    figures.add_row(["weights".to_owned(), report.weights.to_string()]);
    figures.add_row([format!("activations of {} tokens", report.tokens), report.activations.to_string()]);
    figures.add_row([
        "disk".to_owned(),
        report.bandwidth.map_or_else(|| "not measured".to_owned(), |b| format!("{}/s", rate(b))),
    ]);
    if let Some(predicted) = &report.plan.predicted {
        figures.add_row([
            "seconds per pass, predicted".to_owned(),
            format!("{:.3}", predicted.pass.as_secs_f64()),
        ]);
    }
    align(&mut figures);
    format!("{}\n\n{figures}", report.plan)
}

/// The sum, or nothing where one is unknown.
trait SumAll {
    fn sum_all(self) -> Option<Bytes>;
}

impl<I: Iterator<Item = Option<Bytes>>> SumAll for I {
    fn sum_all(mut self) -> Option<Bytes> {
        self.try_fold(Bytes::ZERO, |sum, value| Some(sum + value?))
    }
}

fn shorten(text: &str) -> String {
    const MOST: usize = 40;
    match text.char_indices().nth(MOST) {
        None => text.to_owned(),
        Some((cut, _)) => format!("{}…", text.get(..cut).unwrap_or(text)),
    }
}

/// A demo's report as text.
#[must_use]
pub fn demo_text(report: &DemoReport) -> String {
    let runs = [&report.unmanaged, &report.managed];
    let mut side = table(["", "unmanaged", "managed"]);
    let mut row = |name: &str, value: &dyn Fn(&crate::demo::ChildReport) -> String| {
        side.add_row(std::iter::once(name.to_owned()).chain(runs.iter().map(|run| value(run))));
    };
    row("output checksum", &|run| run.checksum.clone());
    row("memory limit", &|run| run.memory.limit.map_or_else(|| "none".to_owned(), |limit| limit.to_string()));
    row("accounted peak", &|run| run.memory.accounted_peak.to_string());
    row("process constant", &|run| or_unknown(run.memory.constant));
    row("resident peak (kernel)", &|run| or_unknown(run.memory.resident_peak));
    row("seconds to open", &|run| format!("{:.3}", run.open_seconds));
    row("seconds per pass", &|run| format!("{:.3}", run.seconds_per_pass()));
    row("read from disk to open", &|run| or_unknown(run.open_bytes_read));
    row("read from disk per pass", &|run| or_unknown(run.bytes_per_pass()));
    row("written to disk", &|run| or_unknown(run.memory.bytes_written));
    align(&mut side);
    let verdict = if report.identical { "The outputs are identical." } else { "THE OUTPUTS DIFFER." };
    let top = runs.iter().filter_map(|run| run.memory.resident_peak).max().unwrap_or_default();
    let line = |name: &str, run: &crate::demo::ChildReport| {
        format!("{name:>10} {}", plot::sparkline(&run.timeline, top, 64))
    };
    let lines = [line("unmanaged", &report.unmanaged), line("managed", &report.managed)].join("\n");
    let plot = format!("Resident memory over time, of {top}; drawn in {}", report.plot.display());
    format!("{side}\n{verdict}\n\n{lines}\n{plot}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_shortened_at_a_character() {
        assert_eq!(shorten("short"), "short");
        assert_eq!(shorten(&"ä".repeat(41)), format!("{}…", "ä".repeat(40)));
    }

    #[test]
    fn an_unknown_addend_makes_the_sum_unknown() {
        assert_eq!([Some(Bytes(1)), Some(Bytes(2))].into_iter().sum_all(), Some(Bytes(3)));
        assert_eq!([Some(Bytes(1)), None].into_iter().sum_all(), None);
    }
}
