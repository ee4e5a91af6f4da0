//! [`MemoryReport`]: one reading of everything, as a value and as a table.

use std::fmt;
use std::path::PathBuf;

use dd_core::{Bytes, MemorySample};

use crate::cgroup::{CgroupLevel, CgroupReport};
use crate::disk::DiskSpace;
use crate::error::Skipped;
use crate::gpu::GpuMemory;
use crate::host::HostMemory;
use crate::process::ProcessMemory;

/// One reading of everything. Prints as an aligned table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryReport {
    /// The machine.
    pub host: HostMemory,
    /// The container.
    pub cgroup: CgroupReport,
    /// What this process may use of both: the host tier.
    pub effective: MemorySample,
    /// This process.
    pub process: Option<ProcessMemory>,
    /// The devices.
    pub gpus: Vec<GpuMemory>,
    /// Why there is no device, where there is none.
    pub no_gpu: Option<String>,
    /// A path and its file system.
    pub disk: Option<(PathBuf, DiskSpace)>,
    /// What else could not be read, and why; the container's own are in [`CgroupReport::skipped`].
    pub skipped: Vec<Skipped>,
}

/// A row of the table: a name, three figures and a remark.
struct Row {
    name: &'static str,
    figures: [Option<Bytes>; 3],
    remark: String,
}

impl Row {
    fn new(name: &'static str, figures: [Option<Bytes>; 3], remark: impl Into<String>) -> Self {
        Self { name, figures, remark: remark.into() }
    }
}

impl MemoryReport {
    fn rows(&self) -> Vec<Row> {
        let mut rows = self.host_rows();
        rows.extend(self.cgroup.levels.iter().map(|level| self.cgroup_row(level)));
        let MemorySample { total, used, available } = self.effective;
        let remark = "the least of machine and container";
        rows.push(Row::new("usable", [Some(total), Some(used), Some(available)], remark));
        rows.extend(self.process.as_ref().map(process_row));
        rows.extend(self.gpus.iter().map(gpu_row));
        rows.extend(self.disk.as_ref().map(|(path, space)| {
            let figures = [Some(space.total), Some(space.used()), Some(space.available)];
            Row::new("disk", figures, path.display().to_string())
        }));
        rows
    }

    fn host_rows(&self) -> Vec<Row> {
        let host = &self.host;
        let mut rows =
            vec![Row::new("machine", [Some(host.total), Some(host.used), Some(host.available)], "")];
        if host.swap_total > Bytes::ZERO {
            let free = host.swap_total.saturating_sub(host.swap_used);
            rows.push(Row::new("swap", [Some(host.swap_total), Some(host.swap_used), Some(free)], ""));
        }
        rows
    }

    fn cgroup_row(&self, level: &CgroupLevel) -> Row {
        let figures = &level.figures;
        let version = self.cgroup.version.map(|version| version.to_string()).unwrap_or_default();
        let mut remark = format!("{version} {}", level.path.display());
        if figures.effective_limit().is_none() {
            remark.push_str(", no limit");
        }
        if let Some(soft) = figures.soft_limit {
            remark.push_str(&format!(", slows down at {soft}"));
        }
        Row::new("container", [figures.effective_limit(), figures.working_set(), figures.available()], remark)
    }

    fn notes(&self) -> impl Iterator<Item = String> {
        let no_gpu = self.no_gpu.iter().map(|reason| format!("no GPU: {reason}"));
        let unlimited = self.cgroup.summary().limit.is_none();
        let unlimited = unlimited.then(|| "no container limit".to_owned());
        let skipped =
            self.cgroup.skipped.iter().chain(&self.skipped).map(|skipped| format!("skipped {skipped}"));
        unlimited.into_iter().chain(no_gpu).chain(skipped)
    }
}

fn process_row(process: &ProcessMemory) -> Row {
    let peak = process.peak_resident.map(|peak| format!("peak {peak}, ")).unwrap_or_default();
    let remark = format!("{peak}address space {}", process.virtual_size);
    Row::new("process", [None, Some(process.resident), None], remark)
}

fn gpu_row(gpu: &GpuMemory) -> Row {
    let remark = format!("device:{} {}", gpu.index, gpu.name);
    Row::new("GPU", [Some(gpu.total), Some(gpu.used), Some(gpu.free)], remark)
}

/// Writes one aligned line without blanks at its end.
fn line(f: &mut fmt::Formatter<'_>, name: &str, figures: [&str; 3], remark: &str) -> fmt::Result {
    let [total, used, available] = figures;
    let text = format!("{name:<10}{total:>14}{used:>14}{available:>14}  {remark}");
    writeln!(f, "{}", text.trim_end())
}

impl fmt::Display for MemoryReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        line(f, "memory", ["total", "used", "available"], "")?;
        for row in self.rows() {
            let [total, used, available] =
                row.figures.map(|figure| figure.map_or_else(|| "–".to_owned(), |bytes| bytes.to_string()));
            line(f, row.name, [&total, &used, &available], &row.remark)?;
        }
        self.notes().try_for_each(|note| writeln!(f, "{note}"))
    }
}
