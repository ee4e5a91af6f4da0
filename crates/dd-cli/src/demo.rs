//! `deepdim demo`: a model larger than its memory, made on the spot, run plainly and managed, side by side.
//!
//! Each run is a process of its own, so that the kernel's peak is that of the run alone; before each, the checkpoint
//! is put out of the page cache, so that every byte that is read is read from the disk.

mod checkpoint;
mod child;
mod weights;

use std::path::{Path, PathBuf};

use deep_dimensions::core::Bytes;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

pub use checkpoint::{Checkpoint, config_for, tensors_of};
pub use child::{ChildReport, child};
pub use weights::counted_weights;
pub(crate) use weights::uniform;

use crate::args::DemoArgs;
use crate::error::{CliError, Result};
use crate::plot::{self, Run};
use crate::{interrupt, page_cache};

/// Both runs, side by side.
#[derive(Clone, Debug, Serialize)]
pub struct DemoReport {
    /// Whether both runs gave the same bytes.
    pub identical: bool,
    /// All weights in memory.
    pub unmanaged: ChildReport,
    /// Within the limit.
    pub managed: ChildReport,
    /// Where memory over time was drawn.
    pub plot: PathBuf,
    /// The checkpoint's folder, where it was kept.
    pub kept: Option<PathBuf>,
}

/// Runs the command.
///
/// # Errors
/// Every kind of [`CliError`]; [`CliError::Input`] where the outputs differ.
pub fn demo(args: &DemoArgs) -> Result<DemoReport> {
    let config = config_for(args.size);
    let parent = args.dir.clone().unwrap_or_else(|| PathBuf::from("."));
    let own = parent.clone();
    interrupt::tidy_then_exit(move || checkpoint::remove_own(&own));
    let bar = bytes_bar(checkpoint::weight_bytes(&config));
    let made = Checkpoint::write(&parent, &config, &mut |bytes| bar.inc(bytes))?;
    bar.finish_and_clear();
    let limit = args.memory.unwrap_or(Bytes(made.weights.0 / 2));
    let unmanaged = run_child(&made, args.passes, None)?;
    let managed = run_child(&made, args.passes, Some(limit))?;
    draw(&args.plot, &unmanaged, &managed, limit)?;
    let kept = args.keep.then(|| made.keep());
    let identical = unmanaged.checksum == managed.checksum;
    Ok(DemoReport { identical, unmanaged, managed, plot: args.plot.clone(), kept })
}

fn run_child(made: &Checkpoint, passes: u32, limit: Option<Bytes>) -> Result<ChildReport> {
    page_cache::evict(&made.path().join("model.safetensors"))?;
    let spinner = ProgressBar::new_spinner();
    spinner.set_message(limit.map_or_else(|| "running unmanaged".to_owned(), |l| format!("running in {l}")));
    spinner.enable_steady_tick(std::time::Duration::from_millis(100));
    let report = child::spawn(made.path(), passes, limit);
    spinner.finish_and_clear();
    report
}

fn draw(path: &Path, unmanaged: &ChildReport, managed: &ChildReport, limit: Bytes) -> Result<()> {
    let runs = [
        Run { name: "unmanaged", moments: &unmanaged.timeline, accounted: false },
        Run { name: "managed", moments: &managed.timeline, accounted: true },
    ];
    let title = format!("The same model, {} of weights, unmanaged and in {limit}", managed.memory.weights);
    plot::draw(path, &title, &runs, Some(limit))
}

/// A bar over bytes, on standard error, and only where that is a terminal.
fn bytes_bar(total: u64) -> ProgressBar {
    let template = "making the checkpoint {bar:40} {bytes} of {total_bytes}, {bytes_per_sec}";
    let bar = ProgressBar::new(total);
    ProgressStyle::with_template(template).map_or_else(|_| bar.clone(), |style| bar.clone().with_style(style))
}

impl DemoReport {
    /// An error where the outputs differ: nothing else of a demo matters then.
    ///
    /// # Errors
    /// [`CliError::Input`] where they do.
    pub fn check(&self) -> Result<()> {
        if self.identical {
            return Ok(());
        }
        let problem = format!("checksums {} and {} differ", self.unmanaged.checksum, self.managed.checksum);
        Err(CliError::input("demo", problem, "report this with the output of --json"))
    }
}
