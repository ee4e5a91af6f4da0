//! What the disk gives: measured once and remembered, for plans and for the share of it that a run reached.

use deep_dimensions::core::Bytes;
use deep_dimensions::offload::MemoryConfig;
use deep_dimensions::offload::checkpoint::Checkpoint;
use deep_dimensions::offload::io::{Calibration, CalibrationLimits, DirectFile};
use deep_dimensions::offload::manager::block_allowance;

use crate::error::Result;
use crate::resolve::ModelFiles;

/// The bandwidth in bytes per second of the disk that holds the model; nothing where it cannot be measured (a file in
/// memory, or too small a one). `limit` is the budget of the run to come.
///
/// # Errors
/// Files that cannot be used.
pub fn bandwidth(files: &ModelFiles, limit: Bytes) -> Result<Option<f64>> {
    let checkpoint = Checkpoint::open(&files.checkpoint)?;
    let largest = checkpoint.shards().iter().max_by_key(|shard| shard.identity().size);
    let Some(shard) = largest else { return Ok(None) };
    let file = DirectFile::from_file(shard.file(), shard.path())?;
    // As the manager will ask: then it finds what is remembered here, and the run itself writes nothing.
    let memory = block_allowance(&MemoryConfig::default(), limit);
    let found = Calibration::load_or_run(&file, CalibrationLimits { memory, ..CalibrationLimits::default() });
    Ok(found.measured.then_some(found.bandwidth_bytes_per_sec as f64))
}
