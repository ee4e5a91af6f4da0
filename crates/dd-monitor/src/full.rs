//! [`FullSampler`]: process, machine, container and pressure in one reading that allocates nothing.

use dd_core::MemorySample;

use crate::cgroup::{CgroupMemory, CgroupSample};
use crate::error::Result;
use crate::host::{HostMemory, HostSampler};
use crate::pressure::{MemoryPressure, PressureSampler};
use crate::process::{ProcessId, ProcessMemory, ProcessSampler};
use crate::root::Root;

/// One reading of everything that a decision about host memory depends on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FullSample {
    /// The process.
    pub process: ProcessMemory,
    /// The machine.
    pub host: HostMemory,
    /// The container.
    pub cgroup: CgroupSample,
    /// The least of machine and container.
    pub usable: MemorySample,
    /// The pressure, where the kernel tells it.
    pub pressure: Option<MemoryPressure>,
}

/// Reads all of it again and again, from files that stay open.
#[derive(Debug)]
pub struct FullSampler {
    process: ProcessSampler,
    host: HostSampler,
    cgroup: CgroupMemory,
    pressure: Option<PressureSampler>,
}

impl FullSampler {
    /// Opens the files of the process that asks, on the running system.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn own() -> Result<Self> {
        Self::open(&Root::default(), ProcessId::Own)
    }

    /// Opens the files of a process. No container and no pressure information are no errors.
    ///
    /// # Errors
    /// As [`ProcessSampler::open`] and [`HostSampler::open`].
    pub fn open(root: &Root, process: ProcessId) -> Result<Self> {
        let cgroup = CgroupMemory::open_for(root, process);
        let pressure = PressureSampler::open_nearest(root, &cgroup);
        let absent = |error: &_| tracing::debug!(%error, "no memory pressure");
        Ok(Self {
            process: ProcessSampler::open(root, process)?,
            host: HostSampler::open(root)?,
            cgroup,
            pressure: pressure.inspect_err(absent).ok(),
        })
    }

    /// The container's groups.
    #[must_use]
    pub const fn cgroup(&self) -> &CgroupMemory {
        &self.cgroup
    }

    /// The process's own files.
    #[must_use]
    pub const fn process(&self) -> &ProcessSampler {
        &self.process
    }

    /// Reads everything now.
    ///
    /// # Errors
    /// As [`ProcessSampler::sample`] and [`HostSampler::sample`]. What the container and the pressure do not tell is
    /// left out.
    pub fn sample(&self) -> Result<FullSample> {
        let (process, host, cgroup) = (self.process.sample()?, self.host.sample()?, self.cgroup.sample());
        let pressure = self.pressure.as_ref().and_then(|sampler| sampler.sample().ok());
        Ok(FullSample { process, host, cgroup, usable: host.within(&cgroup), pressure })
    }
}
