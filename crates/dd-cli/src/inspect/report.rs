//! What `deepdim inspect` says, as a value and as a text.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, Table as Grid};
use deep_dimensions::core::Bytes;
use deep_dimensions::inspect::arena::ArenaPlan;
use deep_dimensions::inspect::estimate::Estimate;
use deep_dimensions::inspect::program::Precision;
use deep_dimensions::inspect::read::WeightFiles;
use deep_dimensions::inspect::table::{Row, Table, grouped};
use serde::Serialize;

use super::InspectArgs;

/// More rows than this are shown by their block: repeated ones once.
const MOST_ROWS: usize = 60;
/// How wide the ruler is.
const WIDTH: usize = 108;

/// What a network needs.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// What was inspected.
    pub path: PathBuf,
    /// What it is.
    pub format: String,
    /// What the headers of its weights say.
    pub parameters: Option<Parameters>,
    /// Layer by layer.
    pub table: Option<Table>,
    /// How much memory it takes.
    pub needs: Option<Needs>,
    /// What fits here.
    pub fits: Option<Fits>,
    /// Why there is no network, where there is none.
    pub without_network: Option<String>,
}

/// What headers say of parameters.
#[derive(Clone, Debug, Serialize)]
pub struct Parameters {
    /// How many files.
    pub files: usize,
    /// How many tensors.
    pub tensors: usize,
    /// Their elements.
    pub elements: u64,
    /// Their bytes.
    pub bytes: Bytes,
    /// Their bytes by element type.
    pub by_dtype: BTreeMap<String, Bytes>,
}

impl Parameters {
    pub(super) fn of(weights: &WeightFiles) -> Self {
        Self {
            files: weights.paths.len(),
            tensors: weights.tensors.len(),
            elements: weights.elements(),
            bytes: weights.bytes(),
            by_dtype: weights.by_kind(),
        }
    }
}

/// How much memory a network takes at given sizes.
#[derive(Clone, Debug, Serialize)]
pub struct Needs {
    /// Samples.
    pub batch: usize,
    /// Positions, where there are any.
    pub seq: Option<usize>,
    /// `inference`, or `training with` an optimizer.
    pub work: String,
    /// What is computed in.
    pub dtype: String,
    /// The live peak.
    pub live_peak: Bytes,
    /// What is there all the time.
    pub resident: Bytes,
    /// What is held at the peak, by what it is for.
    pub at_peak: BTreeMap<String, Bytes>,
    /// One block of memory that everything transient fits into.
    pub arena: Bytes,
    /// How much larger that is than the most that is alive at once.
    pub fragmentation_fraction: f64,
}

impl Needs {
    pub(super) fn new(
        args: &InspectArgs,
        precision: Precision,
        estimate: &Estimate,
        plan: &ArenaPlan,
        has_seq: bool,
    ) -> Self {
        let work = args
            .train
            .map_or_else(|| "inference".to_owned(), |optimizer| format!("training with {optimizer}"));
        Self {
            batch: args.batch,
            seq: has_seq.then_some(args.seq),
            work,
            dtype: precision.compute.to_string(),
            live_peak: estimate.peak,
            resident: estimate.resident,
            at_peak: estimate.parts.iter().map(|(role, bytes)| (role.to_string(), *bytes)).collect(),
            arena: plan.size,
            fragmentation_fraction: plan.fragmentation_fraction(),
        }
    }
}

/// What fits.
#[derive(Clone, Debug, Serialize)]
pub struct Fits {
    /// Into how much.
    pub available: Bytes,
    /// Whether the sizes that were asked for fit.
    pub fits: bool,
    /// The largest batch at the given sequence; nothing where not even one sample fits.
    pub largest_batch: Option<usize>,
    /// The longest sequence at the given batch, where there are sequences.
    pub longest_seq: Option<usize>,
}

/// The report as text.
#[must_use]
pub fn text(report: &Report) -> String {
    let mut out = format!("{} ({})\n", report.path.display(), report.format);
    if let Some(table) = &report.table {
        write_table(&mut out, table);
    }
    if let Some(parameters) = &report.parameters {
        let Parameters { files, tensors, elements, bytes, .. } = parameters;
        let elements = grouped(*elements);
        line(
            &mut out,
            "Stored weights",
            &format!("{elements} in {tensors} tensors of {files} file(s), {bytes}"),
        );
        for (dtype, bytes) in &parameters.by_dtype {
            line(&mut out, &format!("  of them {dtype}"), &bytes.to_string());
        }
    }
    if let Some(reason) = &report.without_network {
        line(&mut out, "No network", reason);
    }
    if let Some(needs) = &report.needs {
        write_needs(&mut out, needs);
    }
    if let Some(fits) = &report.fits {
        write_fits(&mut out, fits);
    }
    out.trim_end().to_owned()
}

fn line(out: &mut String, name: &str, value: &str) {
    let _infallible = writeln!(out, "{name:<28}{value}");
}

fn rule(out: &mut String) {
    let _infallible = writeln!(out, "{}", "=".repeat(WIDTH));
}

fn write_table(out: &mut String, table: &Table) {
    let mut grid = Grid::new();
    grid.load_style(NOTHING).set_header(["Layer", "Kind", "Input", "Output", "Parameters", "Mult-adds"]);
    let (rows, hidden) = shown(&table.rows);
    for row in rows {
        let parameters = match (row.parameters, row.again) {
            (0, _) => "--".to_owned(),
            (_, true) => "(shared)".to_owned(),
            (count, false) if row.trainable < count => format!("({})", grouped(count)),
            (count, false) => grouped(count),
        };
        let work = if row.multiply_adds == 0 { "--".to_owned() } else { grouped(row.multiply_adds) };
        let input = row.inputs.first().map(|shape| format!("{shape:?}")).unwrap_or_default();
        let output = format!("{:?}", row.output);
        grid.add_row([row.name.as_str(), &row.kind, &input, &output, &parameters, &work]);
    }
    for column in [4, 5] {
        if let Some(column) = grid.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    rule(out);
    for line in grid.to_string().lines() {
        let _infallible = writeln!(out, "{}", line.trim_end());
    }
    if hidden > 0 {
        let _infallible = writeln!(out, " … and {hidden} more of the same; --json has them all");
    }
    rule(out);
    line(out, "Parameters", &grouped(table.parameters));
    line(out, "Trainable", &grouped(table.trainable));
    for (dtype, bytes) in &table.bytes_by_dtype {
        line(out, &format!("Parameters in {dtype}"), &bytes.to_string());
    }
    line(out, "Multiply-adds", &grouped(table.multiply_adds));
    line(out, "All results together", &table.output_bytes.to_string());
}

/// The rows of a long table: of blocks that are numbered, the first alone.
fn shown(rows: &[Row]) -> (Vec<&Row>, usize) {
    let is_later = |row: &&Row| {
        let number = row.name.split('.').find_map(|part| part.parse::<usize>().ok());
        rows.len() > MOST_ROWS && number.is_some_and(|number| number > 0)
    };
    let mut shown: Vec<&Row> = rows.iter().filter(|row| !is_later(row)).collect();
    shown.truncate(10 * MOST_ROWS);
    let hidden = rows.len() - shown.len();
    (shown, hidden)
}

fn write_needs(out: &mut String, needs: &Needs) {
    rule(out);
    let seq = needs.seq.map(|seq| format!(", {seq} positions")).unwrap_or_default();
    line(out, "Work", &format!("{} of batch {}{seq} in {}", needs.work, needs.batch, needs.dtype));
    line(out, "Live peak", &format!("{} ({} B)", needs.live_peak, needs.live_peak.0));
    let mut parts: Vec<(&String, &Bytes)> = needs.at_peak.iter().collect();
    parts.sort_by_key(|(_, bytes)| std::cmp::Reverse(**bytes));
    for (role, bytes) in parts {
        line(out, &format!("  {role}"), &bytes.to_string());
    }
    let more = 100.0 * needs.fragmentation_fraction;
    let arena = format!("{} for everything transient, {more:.2} % above the least", needs.arena);
    line(out, "One arena", &arena);
}

fn write_fits(out: &mut String, fits: &Fits) {
    rule(out);
    let verdict = if fits.fits { "this fits" } else { "this does not fit" };
    line(out, "Available", &format!("{}: {verdict}", fits.available));
    let batch = fits.largest_batch.map_or_else(|| "not one sample fits".to_owned(), |n| n.to_string());
    line(out, "Largest batch", &batch);
    if let Some(seq) = fits.longest_seq {
        line(out, "Longest sequence", &seq.to_string());
    }
}
