//! [`Reading`]: all that a monitor knows of one moment, and [`Source`]: where it comes from.

use std::path::PathBuf;

use dd_core::{MemoryProvider, MemorySample, Tier, Usage};

use crate::cgroup::{CgroupEvents, EventCounter};
use crate::error::{Error, Result};
use crate::gpu::Gpus;
use crate::pressure::{MemoryPressure, PressureSampler};
use crate::process::{ProcessId, ProcessMemory, ProcessSampler};
use crate::root::Root;
use crate::system::SystemMemory;

/// One tier in a reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct TierReading {
    /// The tier.
    pub tier: Tier,
    /// Its figures.
    pub sample: MemorySample,
}

/// What was read at one moment; what could not be read is not there.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct Reading {
    /// The tiers, nearest first: every device by itself, the host, the disk.
    pub tiers: Vec<TierReading>,
    /// The process.
    pub process: Option<ProcessMemory>,
    /// The pressure.
    pub pressure: Option<MemoryPressure>,
    /// What the container's limit has led to.
    pub events: Option<CgroupEvents>,
    /// The watched budget, by holder.
    pub usage: Option<Usage>,
}

impl Reading {
    /// The figures of a tier.
    #[must_use]
    pub fn tier(&self, tier: Tier) -> Option<MemorySample> {
        self.tiers.iter().find(|reading| reading.tier == tier).map(|reading| reading.sample)
    }

    /// Forgets everything, and keeps the room that it took.
    fn clear(&mut self) {
        let mut tiers = std::mem::take(&mut self.tiers);
        tiers.clear();
        *self = Self { tiers, ..Self::default() };
    }
}

/// Where a monitor's readings come from. Any closure `FnMut(&mut Reading) -> Result<()>` is one.
pub trait Source: Send {
    /// Fills an empty reading.
    ///
    /// # Errors
    /// Where nothing could be read; single figures are left out instead.
    fn read(&mut self, reading: &mut Reading) -> Result<()>;
}

impl<F: FnMut(&mut Reading) -> Result<()> + Send> Source for F {
    fn read(&mut self, reading: &mut Reading) -> Result<()> {
        self(reading)
    }
}

/// Empties a reading and fills it anew.
pub(crate) fn refill(source: &mut dyn Source, reading: &mut Reading) -> Result<()> {
    reading.clear();
    source.read(reading)
}

/// Reads this machine: all tiers, a process, pressure and container events. Files stay open; once the list of tiers has
/// room, a reading allocates nothing of its own (what the driver of a GPU does is its own affair).
#[derive(Debug)]
pub struct SystemSource {
    memory: SystemMemory,
    process: ProcessSampler,
    pressure: Option<PressureSampler>,
    events: Option<EventCounter>,
}

impl SystemSource {
    /// Reads the running system and the process that asks; `disk` is a path on the file system of the disk tier.
    ///
    /// # Errors
    /// As [`SystemMemory::open`] and [`ProcessSampler::open`].
    pub fn open(disk: impl Into<PathBuf>) -> Result<Self> {
        Self::open_at(Root::default(), Gpus::open(), disk, ProcessId::Own)
    }

    /// Reads the tree below a root, these devices, and this process with its container.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_at(root: Root, gpus: Gpus, disk: impl Into<PathBuf>, process: ProcessId) -> Result<Self> {
        let sampler = ProcessSampler::open(&root, process)?;
        let memory = SystemMemory::open_for(root.clone(), process, gpus, disk)?;
        let pressure = PressureSampler::open_nearest(&root, memory.cgroup()).ok();
        let events = EventCounter::open(memory.cgroup()).ok();
        Ok(Self { memory, process: sampler, pressure, events })
    }

    /// The tiers and the container.
    #[must_use]
    pub const fn memory(&self) -> &SystemMemory {
        &self.memory
    }
}

impl Source for SystemSource {
    fn read(&mut self, reading: &mut Reading) -> Result<()> {
        reading.process = Some(self.process.sample()?);
        for tier in self.memory.tiers() {
            match self.memory.sample(*tier) {
                Ok(sample) => reading.tiers.push(TierReading { tier: *tier, sample }),
                Err(error) => tracing::debug!(%tier, %error, "tier left out of a reading"),
            }
        }
        reading.pressure = self.pressure.as_ref().and_then(|sampler| sampler.sample().ok());
        reading.events = self.events.as_ref().and_then(|counter| counter.sample().ok());
        Ok(())
    }
}

/// Reads the tiers of any provider: a backend's own figures, or fixed ones.
pub struct ProviderSource<P>(pub P);

impl<P: MemoryProvider> Source for ProviderSource<P> {
    fn read(&mut self, reading: &mut Reading) -> Result<()> {
        for tier in self.0.tiers() {
            let sample = self.0.sample(*tier);
            let sample = sample.map_err(|error| Error::Provider { tier: *tier, source: Box::new(error) })?;
            reading.tiers.push(TierReading { tier: *tier, sample });
        }
        Ok(())
    }
}
