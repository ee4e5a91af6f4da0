//! Where memory stands: host, container limits, process, disk, GPU.
//!
//! Readers only measure; what follows from a figure is decided elsewhere. On Linux the figures are the kernel's own
//! files, kept open and read again in place, so that a sample allocates nothing. Every reader of files takes a
//! [`Root`], so that it runs on a tree of fixture files as well as on the machine.
//!
//! | module | what it holds |
//! |---|---|
//! | [`root`] | [`Root`]: the folder that counts as `/` |
//! | [`host`] | [`HostMemory`] and [`HostSampler`]: the machine's memory and swap |
//! | [`cgroup`] | [`CgroupMemory`]: the limits of cgroup v1 and v2, over all ancestors; [`EventCounter`] and [`CgroupAlarm`]: being told of them |
//! | [`process`] | [`ProcessSampler`]: resident, peak and virtual size, bytes read and written |
//! | [`holders`] | [`largest_processes`]: who holds the machine's memory |
//! | [`disk`] | [`DiskSpace`]: the file system that a path is on |
//! | [`gpu`] | [`Gpus`]: NVIDIA devices, or plainly none |
//! | [`pressure`] | [`PressureSampler`] and [`PressureTrigger`]: how long programs waited for memory |
//! | [`system`] | [`SystemMemory`]: all of it as one [`dd_core::MemoryProvider`] |
//! | [`full`] | [`FullSampler`]: process, machine, container and pressure in one reading |
//! | [`report`] | [`MemoryReport`]: one reading of all of it, as a value and as a table |
//! | [`monitor`] | [`MemoryMonitor`]: readings in the background |
//! | [`reading`], [`history`], [`clock`] | what it reads, what it remembers, and by which clock |
//! | [`threshold`], [`predict`], [`summary`] | being told, looking ahead, and advice |
//! | [`profiler`], [`peak`] | [`MemoryProfiler`]: what one operation takes, its peak included |
//! | [`allocator`] | [`CountingAllocator`]: the heap, by tag |
//! | [`timeline`] | [`Timeline`]: memory over time, as CSV, JSON and pictures |
//! | [`error`] | [`Error`]: what can go wrong |
//!
//! ```
//! use dd_core::{MemoryProvider, Tier};
//! use dd_monitor::SystemMemory;
//!
//! let memory = SystemMemory::open(std::env::temp_dir())?;
//! let host = memory.sample(Tier::Host)?; // the least of what the machine and the container leave
//! assert!(host.available <= host.total);
//! println!("{}", memory.report()?);
//! # Ok::<(), dd_core::Error>(())
//! ```

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serializer;

pub mod allocator;
pub mod cgroup;
pub mod clock;
pub mod disk;
pub mod error;
pub mod full;
pub mod gpu;
pub mod history;
pub mod holders;
pub mod host;
mod kept;
pub mod monitor;
pub mod peak;
pub mod predict;
pub mod pressure;
pub mod process;
pub mod profiler;
pub mod reading;
pub mod report;
pub mod root;
pub mod summary;
mod sys;
pub mod system;
mod text;
pub mod threshold;
pub mod timeline;

pub use allocator::{CountingAllocator, HeapTag};
pub use cgroup::{
    CgroupAlarm, CgroupEvents, CgroupFigures, CgroupLevel, CgroupMemory, CgroupReport, CgroupSample,
    CgroupVersion, EventCounter, ReclaimLevel,
};
pub use clock::{Clock, ManualClock, SystemClock};
pub use disk::DiskSpace;
pub use error::{Error, Result, Skipped};
pub use full::{FullSample, FullSampler};
pub use gpu::{GpuMemory, Gpus};
pub use history::{History, Moment};
pub use holders::{ProcessHolder, largest_processes};
pub use host::{HostMemory, HostSampler};
pub use monitor::{MemoryMonitor, MonitorBuilder};
pub use predict::Prediction;
pub use pressure::{MemoryPressure, PressureSampler, PressureTrigger, StallKind};
pub use process::{IoCounters, ProcessId, ProcessMemory, ProcessParts, ProcessSampler, reset_peak};
pub use profiler::{MemoryProfile, MemoryProfiler};
pub use reading::{ProviderSource, Reading, Source, SystemSource, TierReading};
pub use report::MemoryReport;
pub use root::Root;
pub use summary::{MemorySummary, Recommendation};
pub use system::SystemMemory;
pub use threshold::{Crossing, Direction, Threshold};
pub use timeline::Timeline;

/// Locks, taking over from a thread that panicked: every critical section of this crate leaves its data whole.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Durations are written as seconds: a number that every reader of JSON understands.
pub(crate) fn seconds<S: Serializer>(time: &Duration, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.serialize_f64(time.as_secs_f64())
}

pub(crate) fn optional_seconds<S: Serializer>(
    time: &Option<Duration>,
    serializer: S,
) -> std::result::Result<S::Ok, S::Error> {
    serde::Serialize::serialize(&time.map(|time| time.as_secs_f64()), serializer)
}
