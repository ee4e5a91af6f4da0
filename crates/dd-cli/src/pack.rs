//! `deepdim pack`: a checkpoint in fewer bytes, without loss, for reading less in every pass.

use std::path::{Path, PathBuf};

use deep_dimensions::core::{Budget, Bytes};
use deep_dimensions::offload::checkpoint::Checkpoint;
use deep_dimensions::pager::packed::{PackOptions, pack as pack_checkpoint};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::args::PackArgs;
use crate::error::{CliError, Result};
use crate::report::{align, rate, table};
use crate::resolve;

/// What packing came to; `--json` prints it.
#[derive(Clone, Debug, Serialize)]
pub struct PackedReport {
    /// MODEL as given.
    pub model: String,
    /// Where the packed model is.
    pub out: PathBuf,
    /// Tensors that are packed.
    pub packed_tensors: usize,
    /// Tensors that are stored as they were: packing would not gain.
    pub plain_tensors: usize,
    /// All weights as they were.
    pub raw: Bytes,
    /// All weights as they are stored now.
    pub stored: Bytes,
    /// Raw bytes per stored one.
    pub ratio: f64,
    /// Raw bytes packed per second, on one thread.
    pub encode_bytes_per_second: Option<f64>,
    /// Raw bytes unpacked per second, on one thread.
    pub decode_bytes_per_second: Option<f64>,
}

/// Runs the command.
///
/// # Errors
/// [`CliError::Input`] where OUT is there already or the model cannot be used; [`CliError::Io`] where the disk is full.
pub fn pack(args: &PackArgs) -> Result<PackedReport> {
    let files = resolve::resolve(&args.model, None)?;
    let checkpoint = Checkpoint::open(&files.checkpoint)?;
    let chunk = args.chunk.to_usize()?;
    let options = PackOptions { chunk, budget: Budget::new("memory", args.memory) };
    let template = "packing {bar:40} {bytes} of {total_bytes}, {bytes_per_sec}";
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::new(checkpoint.total_bytes().0).with_style(style);
    let packed = pack_checkpoint(&checkpoint, &args.out, &options, &mut |bytes| bar.inc(bytes))?;
    bar.finish_and_clear();
    if args.out.is_dir() {
        copy_small_files(&files.folder, &args.out)?;
    }
    let count = packed.tensors.iter().filter(|tensor| tensor.packed).count();
    Ok(PackedReport {
        model: args.model.clone(),
        out: args.out.clone(),
        packed_tensors: count,
        plain_tensors: packed.tensors.len() - count,
        raw: packed.raw(),
        stored: packed.stored(),
        ratio: packed.ratio(),
        encode_bytes_per_second: packed.encode_speed(),
        decode_bytes_per_second: packed.decode_speed(),
    })
}

/// Puts the model's small files, such as its config and its tokenizer, beside the packed weights.
fn copy_small_files(from: &Path, to: &Path) -> Result<()> {
    for name in resolve::SMALL {
        let (source, target) = (from.join(name), to.join(name));
        if !source.is_file() || target.exists() {
            continue;
        }
        if let Some(folder) = target.parent() {
            std::fs::create_dir_all(folder).map_err(|e| CliError::io("make", folder, e))?;
        }
        std::fs::copy(&source, &target).map_err(|e| CliError::io("copy", &source, e))?;
    }
    Ok(())
}

/// The report as text.
#[must_use]
pub fn pack_text(report: &PackedReport) -> String {
    let mut figures = table(["", report.model.as_str()]);
    figures.add_row(["weights".to_owned(), report.raw.to_string()]);
    figures.add_row(["stored".to_owned(), report.stored.to_string()]);
    figures.add_row(["ratio".to_owned(), format!("{:.3}", report.ratio)]);
    figures.add_row(["tensors packed".to_owned(), report.packed_tensors.to_string()]);
    figures.add_row(["tensors as they were".to_owned(), report.plain_tensors.to_string()]);
    let speed =
        |speed: Option<f64>| speed.map_or_else(|| "nothing packed".to_owned(), |b| format!("{}/s", rate(b)));
    figures.add_row(["packing, per thread".to_owned(), speed(report.encode_bytes_per_second)]);
    figures.add_row(["unpacking, per thread".to_owned(), speed(report.decode_bytes_per_second)]);
    align(&mut figures);
    format!("{figures}\n\n{} is ready", report.out.display())
}
