//! The blocks through which files are read: how large they may be, how large this disk wants them, and the engine.

use std::sync::{Arc, PoisonError};

use dd_core::{Backend, Bytes, Holder, Reservation};

use super::Inner;
use super::loader::shard_of;
use super::state::Home;
use crate::checkpoint::{Checkpoint, TensorLocation};
use crate::config::MemoryConfig;
use crate::error::{Error, Result};
use crate::io::{self, Calibration, CalibrationLimits, DirectFile, Geometry, ReadEngine};

/// More than this in flight gained nothing on any disk that was measured.
const MOST: Bytes = Bytes::mib(8);

/// What is reserved for reading, and how the engine is cut.
pub(super) struct ReadBlocks {
    pub(super) room: Reservation,
    geometry: Geometry,
    /// Whether the geometry is final: configured, measured, or as good as can be known.
    settled: bool,
}

/// What the read blocks may take of a budget: what is configured, else a sixteenth of it within useful bounds.
/// Calibration for less memory may find another geometry, so it is remembered by this figure.
#[must_use]
pub fn block_allowance(config: &MemoryConfig, budget: Bytes) -> Bytes {
    let fitted = fitted(config, budget);
    match (config.io_block(), config.io_depth()) {
        (None, None) => fitted.memory().max(share(budget).min(MOST)),
        _ => fitted.memory(),
    }
}

/// The configured geometry; where it leaves something open, the default within its share of the budget.
fn fitted(config: &MemoryConfig, budget: Bytes) -> Geometry {
    let fitted = Geometry::within(share(budget));
    let block = config.io_block().and_then(|block| block.to_usize().ok()).unwrap_or(fitted.block);
    Geometry { block, depth: config.io_depth().unwrap_or(fitted.depth) }
}

const fn share(budget: Bytes) -> Bytes {
    Bytes(budget.0 / 16)
}

impl<B: Backend> Inner<B> {
    /// Reserves room for the read blocks, once.
    pub(super) fn reserve_blocks(&self) -> Result<()> {
        if self.blocks.lock().unwrap_or_else(PoisonError::into_inner).is_some() {
            return Ok(());
        }
        // Without the lock: whoever is asked to give back may plan, which needs it.
        let (allowance, limit) = (self.block_allowance(), self.budget.limit());
        let room = self.budget.reserve(allowance, &Holder::new("read blocks")).map_err(|_| {
            Error::BudgetTooSmall {
                budget: limit,
                least: limit + allowance.saturating_sub(self.budget.available()),
                what: "the blocks through which files are read".to_owned(),
            }
        })?;
        let geometry = fitted(&self.config, limit);
        let blocks = ReadBlocks { room, geometry, settled: false };
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(blocks);
        Ok(())
    }

    /// What the read blocks take, or will.
    pub(super) fn block_allowance(&self) -> Bytes {
        let reserved = self.blocks.lock().unwrap_or_else(PoisonError::into_inner);
        let reserved = reserved.as_ref().map(|blocks| blocks.room.bytes());
        reserved.unwrap_or_else(|| block_allowance(&self.config, self.budget.limit()))
    }

    pub(super) fn block_bytes(&self) -> usize {
        self.geometry().0.block
    }

    /// How the read engine is cut, and whether that is final: as was reserved, whatever became of the budget since.
    fn geometry(&self) -> (Geometry, bool) {
        let reserved = self.blocks.lock().unwrap_or_else(PoisonError::into_inner);
        let reserved = reserved.as_ref().map(|blocks| (blocks.geometry, blocks.settled));
        reserved.unwrap_or_else(|| (fitted(&self.config, self.budget.limit()), false))
    }

    /// The read engine, once there is a part to read from a file.
    pub(super) fn make_engine(&self) -> Result<Option<Box<dyn ReadEngine>>> {
        let Some((checkpoint, location)) = self.largest_in_file() else { return Ok(None) };
        let (mut geometry, settled) = self.geometry();
        if !settled {
            geometry = self.calibrated(&checkpoint, &location)?.unwrap_or(geometry);
        }
        let engine = io::engine(*self.config.io_engine(), geometry)?;
        tracing::debug!(engine = engine.name(), %geometry, "reading");
        if let Some(blocks) = &mut *self.blocks.lock().unwrap_or_else(PoisonError::into_inner) {
            blocks.room.shrink_to(engine.memory());
            (blocks.geometry, blocks.settled) = (geometry, true);
        }
        self.lock().stale = true; // What the blocks do not need, weights may have.
        Ok(Some(engine))
    }

    /// The largest part that is in a file.
    fn largest_in_file(&self) -> Option<(Arc<Checkpoint>, TensorLocation)> {
        let state = self.lock();
        let homes = state.units.iter().flat_map(|unit| &unit.parts).filter_map(|part| part.home.as_ref());
        let files = homes.filter_map(|home| match home {
            Home::File { checkpoint, location } => Some((checkpoint, location)),
            Home::Compressed(_) | Home::Spill(_) => None,
        });
        files
            .max_by_key(|(_, location)| location.len)
            .map(|(checkpoint, location)| (Arc::clone(checkpoint), location.clone()))
    }

    /// What was measured for the disk that the weights are on, if they will be streamed and nothing else was asked for.
    fn calibrated(
        &self,
        checkpoint: &Arc<Checkpoint>,
        location: &TensorLocation,
    ) -> Result<Option<Geometry>> {
        let asked = self.config.io_block().is_some() || self.config.io_depth().is_some();
        let streams = self.lock().planned.as_ref().is_some_and(|p| p.plan.streamed_bytes > Bytes::ZERO);
        if asked || !streams || !*self.config.calibrate_io() {
            return Ok(None);
        }
        let shard = shard_of(checkpoint, location)?;
        let file = DirectFile::from_file(shard.file(), shard.path())?;
        let limits = CalibrationLimits { memory: self.block_allowance(), ..CalibrationLimits::default() };
        let calibration = Calibration::load_or_run(&file, limits);
        if calibration.measured {
            self.note_bandwidth(calibration.bandwidth_bytes_per_sec as f64);
        }
        Ok(Some(calibration.geometry()))
    }

    /// Takes a measured bandwidth into the running mean. The first one makes a new plan worth while.
    pub(super) fn note_bandwidth(&self, bytes_per_second: f64) {
        let mut bandwidth = self.bandwidth.lock().unwrap_or_else(PoisonError::into_inner);
        let first = bandwidth.is_none();
        *bandwidth = Some(bandwidth.map_or(bytes_per_second, |mean| 0.75 * mean + 0.25 * bytes_per_second));
        drop(bandwidth);
        if first {
            self.lock().stale = true;
        }
    }
}
