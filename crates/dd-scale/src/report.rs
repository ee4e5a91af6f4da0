//! Results for people and for scripts: a table of plain text, and a value that serialises.

use std::fmt::Write as _;

use dd_core::Bytes;
use serde::{Deserialize, Serialize};

use crate::fit::ScalingResult;

/// A result with what it came from, flat.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Report {
    /// What was decided.
    #[serde(flatten)]
    pub result: ScalingResult,
    /// What the target is a share of.
    pub available: Bytes,
    /// The share of the target that is used, in `0..=1`.
    pub used_fraction: f64,
}

impl Report {
    /// The report of a result for what was available.
    #[must_use]
    pub fn new(result: ScalingResult, available: Bytes) -> Self {
        Self { used_fraction: result.used_fraction(), result, available }
    }
}

/// A result as a table: one row per dimension with its realised factor, then what it takes of the target.
///
/// ```
/// use dd_core::{Bytes, DType};
/// use dd_scale::{Scaler, ScalingConfig, report};
///
/// let result = Scaler::new(ScalingConfig::default()).fit(&[1024, 1024, 3], DType::F32, Bytes::mib(2))?;
/// assert_eq!(report::text(&result), "\
/// dimension  wished  taken  factor
///         0    1024    512   0.500
///         1    1024    512   0.500
///         2       3      2   0.667
///
/// (1024, 1024, 3) -> (512, 512, 2) F32, linear
/// 2.00 MiB (2097152 B) of a target of 2.00 MiB: 100.0 %; wished were 12.00 MiB
/// ");
/// # Ok::<(), dd_scale::Error>(())
/// ```
#[must_use]
pub fn text(result: &ScalingResult) -> String {
    let mut rows = vec![["dimension", "wished", "taken", "factor"].map(str::to_owned)];
    let sizes = result.original.iter().zip(&result.dims).zip(&result.factors);
    for (index, ((wished, taken), factor)) in sizes.enumerate() {
        rows.push([index.to_string(), wished.to_string(), taken.to_string(), format!("{factor:.3}")]);
    }
    let width =
        |column: usize| rows.iter().filter_map(|row| row.get(column)).map(String::len).max().unwrap_or(0);
    let widths = [0, 1, 2, 3].map(width);
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:>width$}"));
        push(&mut text, &cells.collect::<Vec<_>>().join("  "));
    }
    push(&mut text, "");
    let (from, to) = (shape(&result.original), shape(&result.dims));
    let change = if result.scaled { format!("{from} -> {to}") } else { format!("{to}, as wished") };
    push(&mut text, &format!("{change} {}, {}", result.dtype, result.strategy));
    push(
        &mut text,
        &format!(
            "{} ({} B) of a target of {}: {:.1} %; wished were {}",
            result.bytes,
            result.bytes.0,
            result.target,
            result.used_fraction() * 100.0,
            result.original_bytes
        ),
    );
    text
}

fn push(text: &mut String, line: &str) {
    // Writing to a string cannot fail.
    let _written = writeln!(text, "{}", line.trim_end());
}

/// Sizes as a tuple.
fn shape(dims: &[usize]) -> String {
    let sizes: Vec<String> = dims.iter().map(usize::to_string).collect();
    format!("({})", sizes.join(", "))
}
