//! `deepdim tiles inspect`: what a tile store on disk holds.

use std::path::PathBuf;

use clap::Args as ClapArgs;
use deep_dimensions::core::Bytes;
use deep_dimensions::infinite::zarr::{StoreSummary, TensorSummary, ZarrOptions, ZarrTileStore};
use serde::Serialize;

use crate::error::{CliError, Result};
use crate::report::{align, table};

/// `deepdim tiles inspect`.
#[derive(Clone, Debug, ClapArgs)]
pub struct InspectArgs {
    /// The store's folder.
    pub store: PathBuf,
    /// Read every window too, and list those that are not what was written.
    #[arg(long)]
    pub verify: bool,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct InspectReport {
    /// The store.
    #[serde(flatten)]
    pub store: StoreSummary,
    /// Whether every window was read.
    pub verified: bool,
}

impl InspectReport {
    /// An error where a window is corrupt, so that a script sees it.
    ///
    /// # Errors
    /// [`CliError::Input`] naming the first one.
    pub fn check(&self) -> Result<()> {
        let mut corrupt =
            self.store.tensors.iter().flat_map(|t| t.corrupt.iter().map(move |found| (t, found)));
        let Some((tensor, (index, reason))) = corrupt.next() else { return Ok(()) };
        let (place, more) = (&self.store.place, corrupt.count());
        let problem = format!("window {index:?} of {:?} is corrupt: {reason} ({more} more)", tensor.id);
        Err(CliError::input(place, problem, "remove these chunks to have the windows computed again"))
    }
}

/// Runs the command.
///
/// # Errors
/// [`CliError::Input`] for a folder that is no store; [`CliError::Io`] where it cannot be read.
pub fn inspect(args: &InspectArgs) -> Result<InspectReport> {
    let store = ZarrTileStore::open_existing(&args.store, ZarrOptions::default())?;
    let summary = if args.verify { store.verify()? } else { store.summary()? };
    Ok(InspectReport { store: summary, verified: args.verify })
}

/// A report as text.
#[must_use]
pub fn inspect_text(report: &InspectReport) -> String {
    let mut table =
        table(["tensor", "window", "windows", "from", "to", "in memory", "stored", "ratio", "version"]);
    for tensor in &report.store.tensors {
        table.add_row(row(tensor));
    }
    align(&mut table);
    let mut text = format!("{table}\n");
    for tensor in &report.store.tensors {
        for (index, reason) in &tensor.corrupt {
            text.push_str(&format!("corrupt: {:?} {index:?}: {reason}\n", tensor.id));
        }
    }
    let stored: Bytes = report.store.tensors.iter().map(|tensor| tensor.stored).sum();
    let read = if report.verified { "; every window was read" } else { "" };
    text.push_str(&format!(
        "{} tensors, {stored} in {}{read}",
        report.store.tensors.len(),
        report.store.place
    ));
    text
}

fn row(tensor: &TensorSummary) -> [String; 9] {
    let index = |index: &[i64]| if index.is_empty() { "–".to_owned() } else { format!("{index:?}") };
    let ratio = tensor.bytes.0 as f64 / (tensor.stored.0 as f64).max(1.0);
    let version = tensor.manifest.fields.get("version");
    let version = version.map(|version| version.as_str().map_or_else(|| version.to_string(), str::to_owned));
    [
        tensor.id.clone(),
        tensor.window.to_string(),
        tensor.windows.to_string(),
        index(&tensor.first),
        index(&tensor.last),
        tensor.bytes.to_string(),
        tensor.stored.to_string(),
        if tensor.windows == 0 { "–".to_owned() } else { format!("{ratio:.2}") },
        version.unwrap_or_default(),
    ]
}
