//! [`HostMemory`]: the machine's memory and swap.
//!
//! On Linux this is `/proc/meminfo` (proc(5)), kept open. Where there is no such file, `sysinfo` answers.

use dd_core::{Bytes, MemorySample};
use sysinfo::{MemoryRefreshKind, RefreshKind, System};

use crate::cgroup::CgroupSample;
use crate::error::{Error, Result};
use crate::kept::{KeptFile, buffer};
use crate::root::Root;
use crate::text;

/// One reading of the machine's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostMemory {
    /// How much there is.
    pub total: Bytes,
    /// How much a program can take without swapping: what is free and what caches would give back.
    pub available: Bytes,
    /// The total less what is available.
    pub used: Bytes,
    /// How much swap there is.
    pub swap_total: Bytes,
    /// How much swap is taken.
    pub swap_used: Bytes,
}

impl HostMemory {
    /// Reads once; to read again and again, keep a [`HostSampler`].
    ///
    /// # Errors
    /// As [`HostSampler::open`] and [`HostSampler::sample`].
    pub fn read(root: &Root) -> Result<Self> {
        HostSampler::open(root)?.sample()
    }

    /// The least of this and a container's figures. Total and used are those of whichever has the smaller total; what is
    /// available must be available in both. A container's usage that could not be read counts as none.
    #[must_use]
    pub fn within(&self, cgroup: &CgroupSample) -> MemorySample {
        let host = MemorySample { total: self.total, used: self.used, available: self.available };
        let inner = match (cgroup.limit, cgroup.used) {
            (Some(limit), used) if limit < self.total => {
                MemorySample { total: limit, used: used.unwrap_or_default(), ..host }
            }
            _ => host,
        };
        let available = cgroup.available.unwrap_or(Bytes::MAX).min(host.available).min(inner.total);
        MemorySample { available, ..inner }
    }

    /// Reads the text of `/proc/meminfo`; without a total it is not that text. Kernels before 3.14 do not say what is
    /// available: there it is what is free, the buffers and the page cache.
    fn parse(meminfo: &[u8]) -> Option<Self> {
        let (mut total, mut available) = (None, None);
        let (mut idle, mut swap_total, mut swap_free) = (Bytes::ZERO, Bytes::ZERO, Bytes::ZERO);
        for (key, value) in text::fields(meminfo) {
            let value = Bytes(value);
            match key {
                b"MemTotal" => total = Some(value),
                b"MemAvailable" => available = Some(value),
                b"MemFree" | b"Buffers" | b"Cached" => idle += value,
                b"SwapTotal" => swap_total = value,
                b"SwapFree" => {
                    swap_free = value;
                    // The kernel writes this one last, and most of the text behind it.
                    if total.is_some() && available.is_some() {
                        break;
                    }
                }
                _ => {}
            }
        }
        let swap = (swap_total, swap_total.saturating_sub(swap_free));
        Some(Self::from_parts(total?, available.unwrap_or(idle), swap))
    }

    fn from_parts(total: Bytes, available: Bytes, (swap_total, swap_used): (Bytes, Bytes)) -> Self {
        let available = available.min(total);
        Self { total, available, used: total.saturating_sub(available), swap_total, swap_used }
    }
}

/// Reads host memory again and again, from a file that stays open.
#[derive(Debug)]
pub struct HostSampler {
    source: Source,
}

#[derive(Debug)]
enum Source {
    Kernel(KeptFile),
    Sysinfo,
}

impl HostSampler {
    /// Opens `/proc/meminfo` below the root. On the running system, where there is no such file, asks `sysinfo`.
    ///
    /// # Errors
    /// [`Error::Unreadable`] where the file cannot be opened; [`Error::UnknownHost`] where nothing else answers.
    pub fn open(root: &Root) -> Result<Self> {
        match KeptFile::open(root, "/proc/meminfo") {
            Ok(file) => Ok(Self { source: Source::Kernel(file) }),
            Err(_) if root.is_system() => {
                from_sysinfo()?;
                Ok(Self { source: Source::Sysinfo })
            }
            Err(source) => Err(unreadable(&root.join("/proc/meminfo"), source)),
        }
    }

    /// Reads now. Allocates nothing where the kernel has its file.
    ///
    /// # Errors
    /// [`Error::Unreadable`], [`Error::Malformed`]: the file changed its mind since it was opened;
    /// [`Error::UnknownHost`] where there is no file.
    pub fn sample(&self) -> Result<HostMemory> {
        match &self.source {
            Source::Kernel(file) => sample_kernel(file),
            Source::Sysinfo => from_sysinfo(),
        }
    }
}

fn sample_kernel(file: &KeptFile) -> Result<HostMemory> {
    let mut buffer = buffer();
    let meminfo = file.read(&mut buffer).map_err(|source| unreadable(file.path(), source))?;
    HostMemory::parse(meminfo)
        .ok_or_else(|| Error::Malformed { path: file.path().clone(), expected: "a line `MemTotal: N kB`" })
}

fn unreadable(path: &std::path::Path, source: std::io::Error) -> Error {
    Error::Unreadable { what: "host memory", path: path.to_owned(), source }
}

/// What `sysinfo` knows of this system.
fn from_sysinfo() -> Result<HostMemory> {
    let wanted = RefreshKind::nothing().with_memory(MemoryRefreshKind::everything());
    let system = System::new_with_specifics(wanted)
        .map_err(|error| Error::UnknownHost { reason: format!("{error:?}") })?;
    let total = Bytes(system.total_memory());
    if total == Bytes::ZERO {
        return Err(Error::UnknownHost { reason: "a total of zero".to_owned() });
    }
    // Some systems report nothing as available; there it is what is not used.
    let available = match system.available_memory() {
        0 => total.saturating_sub(Bytes(system.used_memory())),
        available => Bytes(available),
    };
    let swap = (Bytes(system.total_swap()), Bytes(system.used_swap()));
    Ok(HostMemory::from_parts(total, available, swap))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn host(total: u64, available: u64, swap_total: u64, swap_used: u64) -> HostMemory {
        let kib = Bytes::kib;
        HostMemory::from_parts(kib(total), kib(available), (kib(swap_total), kib(swap_used)))
    }

    #[test]
    fn meminfo() {
        let rows = [
            (
                "MemTotal: 100 kB\nMemFree: 1 kB\nMemAvailable: 60 kB\nSwapTotal: 10 kB\nSwapFree: 4 kB\n",
                Some(host(100, 60, 10, 6)),
            ),
            (
                "MemTotal: 100 kB\nMemFree: 10 kB\nBuffers: 5 kB\nCached: 20 kB\nSwapCached: 9 kB\n",
                Some(host(100, 35, 0, 0)),
            ),
            ("MemTotal: 100 kB\nMemAvailable: 200 kB\n", Some(host(100, 100, 0, 0))),
            (
                "MemTotal: 100 kB\nMemAvailable: 7 kB\nSwapTotal: 1 kB\nSwapFree: 9 kB",
                Some(host(100, 7, 1, 0)),
            ),
            ("MemTotal: 18446744073709551615 kB\n", None),
            ("MemTotal: many kB\n", None),
            ("", None),
        ];
        for (text, expected) in rows {
            assert_eq!(HostMemory::parse(text.as_bytes()), expected, "{text:?}");
        }
    }

    #[test]
    fn the_least_of_host_and_container() {
        let host = host(1000, 600, 0, 0);
        let sample = |limit: Option<u64>, used: Option<u64>, available: Option<u64>| {
            let kib = |figure: Option<u64>| figure.map(Bytes::kib);
            host.within(&CgroupSample {
                limit: kib(limit),
                used: kib(used),
                available: kib(available),
                ..CgroupSample::default()
            })
        };
        let rows = [
            (sample(None, Some(50), None), (1000, 400, 600)),
            (sample(Some(200), Some(50), Some(150)), (200, 50, 150)),
            (sample(Some(800), Some(50), Some(750)), (800, 50, 600)),
            (sample(Some(5000), Some(50), Some(4950)), (1000, 400, 600)),
            (sample(Some(200), None, None), (200, 0, 200)),
            (sample(Some(0), Some(0), Some(0)), (0, 0, 0)),
        ];
        for (number, (found, (total, used, available))) in rows.into_iter().enumerate() {
            let kib = Bytes::kib;
            let expected = MemorySample { total: kib(total), used: kib(used), available: kib(available) };
            assert_eq!(found, expected, "row {number}");
        }
    }

    #[test]
    fn the_fallback_agrees_with_the_kernel() {
        let fallback = from_sysinfo().unwrap();
        let kernel = HostMemory::read(&Root::default()).unwrap();
        assert_eq!((fallback.total, fallback.swap_total), (kernel.total, kernel.swap_total));
        assert!(fallback.available <= fallback.total && fallback.available > Bytes::ZERO);
    }

    #[test]
    fn a_tree_without_the_file_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let error = HostSampler::open(&Root::new(folder.path())).unwrap_err();
        assert!(matches!(error, Error::Unreadable { .. }), "{error}");
        std::fs::create_dir(folder.path().join("proc")).unwrap();
        std::fs::write(folder.path().join("proc/meminfo"), "nothing\n").unwrap();
        let error = HostMemory::read(&Root::new(folder.path())).unwrap_err();
        assert!(matches!(error, Error::Malformed { .. }), "{error}");
    }

    proptest! {
        #[test]
        fn never_panics(text in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _host = HostMemory::parse(&text);
        }
    }
}
