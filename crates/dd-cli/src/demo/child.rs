//! One run of the demo, in a process of its own: the same binary with a hidden subcommand, whose report is JSON on
//! standard output.

use std::path::Path;
use std::process::{Command, Stdio};

use candle_core::Tensor;
use deep_dimensions::core::Bytes;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use crate::args::DemoPassArgs;
use crate::bert::{Config, Ragged};
use crate::engine::Engine;
use crate::error::{CliError, ErrorReport, Result};
use crate::report::{Memory, PassReport};
use crate::run::Started;
use crate::timeline::{Moment, Sampler};
use crate::{disk, process, resolve, warm};

/// Sentences and tokens per sentence of the demo's input.
const INPUT: (u32, u32) = (2, 64);

/// What one run reports.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChildReport {
    /// XXH3 of the last pass's output bytes.
    pub checksum: String,
    /// Time until the model could be used.
    pub open_seconds: f64,
    /// Bytes that were read from disks until then.
    pub open_bytes_read: Option<Bytes>,
    /// The passes in order.
    pub passes: Vec<PassReport>,
    /// What was held.
    pub memory: Memory,
    /// Memory over time.
    pub timeline: Vec<Moment>,
}

impl ChildReport {
    /// The median of all passes but the first, which records the order of use; of the first where it is alone.
    #[must_use]
    pub fn seconds_per_pass(&self) -> f64 {
        let mut seconds: Vec<f64> = self.steady().map(|pass| pass.seconds).collect();
        seconds.sort_by(f64::total_cmp);
        seconds.get(seconds.len() / 2).copied().unwrap_or(0.0)
    }

    /// Bytes read per pass, on average over the same passes.
    #[must_use]
    pub fn bytes_per_pass(&self) -> Option<Bytes> {
        let count = self.steady().count().max(1) as u64;
        let sum = self.steady().try_fold(0u64, |sum, pass| Some(sum.saturating_add(pass.bytes_read?.0)))?;
        Some(Bytes(sum / count))
    }

    fn steady(&self) -> impl Iterator<Item = &PassReport> {
        self.passes.iter().skip(usize::from(self.passes.len() > 1))
    }
}

/// Is the child: runs the model and gives the report.
///
/// # Errors
/// Every kind of [`CliError`].
pub fn child(args: &DemoPassArgs) -> Result<ChildReport> {
    let files = resolve::resolve(&args.folder.to_string_lossy(), None)?;
    warm::up()?;
    if let Some(limit) = args.memory {
        disk::bandwidth(&files, limit)?; // Measured and remembered now, so that the run itself does not.
    }
    let before = process::sample();
    let sampler = Sampler::start();
    let opening = Started::now();
    let mut engine = Engine::open(&files, args.memory, false)?;
    sampler.watch(&engine.budget);
    let sentences = input(&engine.config);
    engine.prepare(&sentences.iter().map(Vec::len).collect::<Vec<_>>())?;
    let open = opening.report(0);
    let batch = Ragged::new(sentences.iter().map(Vec::as_slice));
    let mut passes = Vec::new();
    let mut checksum = String::new();
    for _ in 0..args.passes {
        let start = Started::now();
        checksum = engine
            .pass(&batch, &mut |_| {}, |states| checksum_of(states).map_err(CliError::tensor("checksum")))?;
        passes.push(start.report(batch.ids().len()));
    }
    let timeline = sampler.stop();
    let memory = Memory::of(&engine, args.memory, &before);
    let (open_seconds, open_bytes_read) = (open.seconds, open.bytes_read);
    Ok(ChildReport { checksum, open_seconds, open_bytes_read, passes, memory, timeline })
}

fn input(config: &Config) -> Vec<Vec<u32>> {
    let words = u32::try_from(config.vocab_size).unwrap_or(u32::MAX);
    let (sentences, tokens) = INPUT;
    let token = |at: u32| at.wrapping_mul(2_654_435_761) % words;
    (0..sentences).map(|s| (0..tokens).map(|t| token(s * tokens + t)).collect()).collect()
}

fn checksum_of(states: &Tensor) -> candle_core::Result<String> {
    let mut hash = Xxh3::new();
    for row in 0..states.dim(0)? {
        let values = states.get(row)?.to_vec1::<f32>()?;
        if let Some(value) = values.iter().find(|value| !value.is_finite()) {
            candle_core::bail!("a state is {value}: the output is not finite");
        }
        values.iter().for_each(|value| hash.update(&value.to_le_bytes()));
    }
    Ok(format!("{:016x}", hash.digest()))
}

/// Starts the child and reads its report.
///
/// # Errors
/// The child's own error with its exit code; [`CliError::Io`] where it cannot be started or was killed.
pub(super) fn spawn(folder: &Path, passes: u32, limit: Option<Bytes>) -> Result<ChildReport> {
    let program = std::env::current_exe().map_err(|e| CliError::io("find", Path::new("deepdim"), e))?;
    let failed = |e: std::io::Error| CliError::io("run", &program, e);
    let mut command = Command::new(&program);
    command.args(["--json", "demo-pass", "--passes", &passes.to_string(), "--folder"]).arg(folder);
    if let Some(limit) = limit {
        command.args(["--memory", &limit.0.to_string()]);
    }
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output().map_err(failed)?;
    if output.status.success() {
        return serde_json::from_slice(&output.stdout).map_err(|e| failed(e.into()));
    }
    match serde_json::from_slice::<ErrorReport>(&output.stdout) {
        Ok(report) => Err(CliError::Child { report }),
        Err(_) => Err(failed(std::io::Error::other(format!("it ended with {}", output.status)))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_pass_is_not_in_the_figures() {
        let pass = |seconds, read| PassReport { tokens: 1, seconds, bytes_read: Some(Bytes(read)) };
        let mut report = ChildReport {
            checksum: String::new(),
            open_seconds: 0.0,
            open_bytes_read: None,
            passes: vec![pass(9.0, 900), pass(1.0, 100), pass(3.0, 300), pass(2.0, 200)],
            memory: Memory {
                weights: Bytes::ZERO,
                limit: None,
                accounted_peak: Bytes::ZERO,
                constant: None,
                starting_peak: None,
                resident_peak: None,
                bytes_written: None,
            },
            timeline: Vec::new(),
        };
        assert_eq!((report.seconds_per_pass(), report.bytes_per_pass()), (2.0, Some(Bytes(200))));
        report.passes.truncate(1);
        assert_eq!((report.seconds_per_pass(), report.bytes_per_pass()), (9.0, Some(Bytes(900))));
        let text = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<ChildReport>(&text).unwrap(), report);
    }
}
