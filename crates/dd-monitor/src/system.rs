//! [`SystemMemory`]: everything this crate reads, as one [`MemoryProvider`].

use std::path::{Path, PathBuf};

use dd_core::memory::unsupported;
use dd_core::{MemoryProvider, MemorySample, Tier};

use crate::cgroup::CgroupMemory;
use crate::disk::DiskSpace;
use crate::error::{Result, Skipped};
use crate::gpu::Gpus;
use crate::host::HostSampler;
use crate::process::{ProcessId, ProcessMemory, ProcessSampler};
use crate::report::MemoryReport;
use crate::root::Root;

/// The memory of this machine as this process may use it: each GPU, the host, and the disk of a given path.
///
/// The host tier is the least of what the machine and the container leave. Files stay open; a sample of the host
/// allocates nothing.
#[derive(Debug)]
pub struct SystemMemory {
    root: Root,
    host: HostSampler,
    cgroup: CgroupMemory,
    gpus: Gpus,
    disk: PathBuf,
    tiers: Vec<Tier>,
}

impl SystemMemory {
    /// Reads the running system; `disk` is a path on the file system that the disk tier stands for (it need not exist
    /// yet).
    ///
    /// # Errors
    /// As [`HostSampler::open`]. No GPU and no container are no errors.
    pub fn open(disk: impl Into<PathBuf>) -> Result<Self> {
        Self::open_at(Root::default(), Gpus::open(), disk)
    }

    /// Reads the tree below a root, and these devices.
    ///
    /// # Errors
    /// As [`HostSampler::open`].
    pub fn open_at(root: Root, gpus: Gpus, disk: impl Into<PathBuf>) -> Result<Self> {
        Self::open_for(root, ProcessId::Own, gpus, disk)
    }

    /// Reads the tree below a root with the container of a process, and these devices.
    ///
    /// # Errors
    /// As [`HostSampler::open`].
    pub fn open_for(root: Root, process: ProcessId, gpus: Gpus, disk: impl Into<PathBuf>) -> Result<Self> {
        let (host, cgroup) = (HostSampler::open(&root)?, CgroupMemory::open_for(&root, process));
        let tiers = (0..gpus.count()).map(Tier::Device).chain([Tier::Host, Tier::Disk]).collect();
        Ok(Self { root, host, cgroup, gpus, disk: disk.into(), tiers })
    }

    /// The devices.
    #[must_use]
    pub const fn gpus(&self) -> &Gpus {
        &self.gpus
    }

    /// The container.
    #[must_use]
    pub const fn cgroup(&self) -> &CgroupMemory {
        &self.cgroup
    }

    /// The path whose file system is the disk tier.
    #[must_use]
    pub fn disk(&self) -> &Path {
        &self.disk
    }

    /// Reads everything now.
    ///
    /// # Errors
    /// As [`HostSampler::sample`]. Whatever else cannot be read is left out, with the reason in
    /// [`MemoryReport::skipped`].
    pub fn report(&self) -> Result<MemoryReport> {
        let (host, cgroup) = (self.host.sample()?, self.cgroup.report());
        let effective = host.within(&cgroup.summary());
        let mut skipped = Vec::new();
        let process_folder = self.root.join("/proc/self");
        let process = self.process().map_err(|error| skipped.push(Skipped::new(process_folder, error))).ok();
        let disk =
            DiskSpace::of(&self.disk).map_err(|error| skipped.push(Skipped::new(&self.disk, error))).ok();
        let read = |index| {
            self.gpus
                .read(index)
                .map_err(|error| skipped.push(Skipped::new(Tier::Device(index).to_string(), error)))
        };
        let gpus = (0..self.gpus.count()).map(read).filter_map(Result::ok).collect();
        let no_gpu = self.gpus.absence().map(str::to_owned);
        let disk = disk.map(|space| (self.disk.clone(), space));
        Ok(MemoryReport { host, cgroup, effective, process, gpus, no_gpu, disk, skipped })
    }

    fn process(&self) -> Result<ProcessMemory> {
        ProcessSampler::open(&self.root, ProcessId::Own)?.sample_with_peak()
    }

    fn sample_disk(&self) -> Result<MemorySample> {
        Ok(DiskSpace::of(&self.disk)?.sample())
    }
}

impl MemoryProvider for SystemMemory {
    fn tiers(&self) -> &[Tier] {
        &self.tiers
    }

    fn sample(&self, tier: Tier) -> dd_core::Result<MemorySample> {
        let sample = match tier {
            Tier::Host => self.host.sample().map(|host| host.within(&self.cgroup.sample())),
            Tier::Disk => self.sample_disk(),
            Tier::Device(index) if index < self.gpus.count() => self.gpus.sample(index),
            _ => return Err(unsupported("the memory monitor", tier, &self.tiers)),
        };
        Ok(sample?)
    }
}
