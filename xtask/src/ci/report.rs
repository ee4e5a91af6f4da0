//! What came of the stages: one row each, and below them everything that was skipped, so that no green run hides it.

use std::fmt::{self, Write};

use crate::workspace::Result;

/// What came of a stage.
#[derive(Debug, PartialEq)]
pub(super) enum Outcome {
    Passed,
    Failed(String),
    /// This machine lacks what the stage needs.
    Skipped(String),
    /// An earlier stage failed.
    NotRun,
}

impl From<Result<()>> for Outcome {
    fn from(result: Result<()>) -> Self {
        result.map_or_else(|error| Self::Failed(error.to_string()), |()| Self::Passed)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passed => write!(out, "ok"),
            Self::Failed(reason) => write!(out, "FAILED: {reason}"),
            Self::Skipped(reason) => write!(out, "skipped: {reason}"),
            Self::NotRun => write!(out, "not run"),
        }
    }
}

/// The rows of the final table, in the order of the stages.
#[derive(Default)]
pub(super) struct Report {
    rows: Vec<(&'static str, Outcome, f64)>,
}

impl Report {
    pub(super) fn add(&mut self, stage: &'static str, outcome: Outcome, seconds: f64) {
        self.rows.push((stage, outcome, seconds));
    }

    pub(super) fn failed(&self) -> bool {
        self.rows.iter().any(|(_, outcome, _)| matches!(outcome, Outcome::Failed(_)))
    }

    /// The table, then the lines that tests left in the skip log, each once.
    pub(super) fn print(&self, skipped: &[String]) -> String {
        let mut text = String::from("stage       seconds  result\n");
        for (stage, outcome, seconds) in &self.rows {
            let _ = writeln!(text, "{stage:10} {seconds:8.1}  {outcome}");
        }
        let mut lines: Vec<&String> = skipped.iter().collect();
        lines.sort();
        lines.dedup();
        let _ = match lines.len() {
            0 => writeln!(text, "\nNothing was skipped within the stages."),
            count => writeln!(text, "\nSkipped within the stages: {count}"),
        };
        lines.iter().for_each(|line| text.push_str(&format!("  {line}\n")));
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_passed_failed_and_was_skipped() {
        let mut report = Report::default();
        report.add("fmt", Outcome::from(Ok(())), 0.5);
        report.add("fixtures", Outcome::Skipped("no network".into()), 1.0);
        assert!(!report.failed());
        report.add("test", Outcome::from(Err("`cargo` ended with 101".into())), 60.25);
        report.add("docs", Outcome::NotRun, 0.0);
        assert!(report.failed());
        let text = report.print(&["skipped: no GPU".into(), "skipped: no GPU".into()]);
        for row in [
            "fmt             0.5  ok\n",
            "fixtures        1.0  skipped: no network\n",
            "test           60.2  FAILED: `cargo` ended with 101\n",
            "docs            0.0  not run\n",
            "Skipped within the stages: 1\n  skipped: no GPU\n",
        ] {
            assert!(text.contains(row), "no {row:?} in:\n{text}");
        }
    }
}
