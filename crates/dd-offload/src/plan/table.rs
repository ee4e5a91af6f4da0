//! The plan as a table that people can read.

use std::fmt;

use dd_core::Bytes;

use super::{Bound, ResidencyPlan, UnitResidency};

/// Prints one line per unit, or per run of units that are treated alike, then the totals and the prediction.
impl fmt::Display for ResidencyPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = rows(&self.units);
        let width = rows.iter().map(|row| row.name.chars().count()).max().unwrap_or(0).max("unit".len());
        writeln!(f, "{:<width$}  {:>12}  {:>12}  {:>8}", "unit", "kept", "streamed", "streamed")?;
        for Row { name, kept, streamed } in &rows {
            let share = streamed.fraction_of(*kept + *streamed) * 100.0;
            writeln!(f, "{name:<width$}  {kept:>12}  {streamed:>12}  {share:>7.1}%")?;
        }
        self.totals(f)
    }
}

impl ResidencyPlan {
    fn totals(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total = self.resident_bytes + self.staging + self.blocks;
        writeln!(
            f,
            "resident {} + staging {} + blocks {} = {total} of {}",
            self.resident_bytes, self.staging, self.blocks, self.budget
        )?;
        writeln!(
            f,
            "{} order of {} steps, {} read per pass, {} unit(s) read ahead; least budget {}, with read-ahead {}",
            self.order,
            self.steps.len(),
            self.streamed_bytes,
            self.lookahead,
            self.least_budget,
            self.ideal_budget
        )?;
        let Some(predicted) = self.predicted else {
            return write!(f, "no prediction: the compute times or the bandwidth are not measured yet");
        };
        let bound = match predicted.bound {
            Bound::Compute => "compute",
            Bound::Disk => "disk",
        };
        write!(
            f,
            "predicted {:.3} s per pass: compute {:.3} s, reads {:.3} s, bound by {bound}",
            predicted.pass.as_secs_f64(),
            predicted.compute.as_secs_f64(),
            predicted.read.as_secs_f64()
        )
    }
}

struct Row {
    name: String,
    kept: Bytes,
    streamed: Bytes,
}

/// Units in a row of the same sizes share a row.
fn rows(units: &[UnitResidency]) -> Vec<Row> {
    let alike = |a: &UnitResidency, b: &UnitResidency| (a.kept, a.streamed) == (b.kept, b.streamed);
    let runs = units.chunk_by(alike);
    runs.filter_map(|run| {
        let (first, last) = (run.first()?, run.last()?);
        let name = match run.len() {
            1 => first.name.clone(),
            count => format!("{} … {} ({count}, each)", first.name, last.name),
        };
        Some(Row { name, kept: first.kept, streamed: first.streamed })
    })
    .collect()
}
