//! [`ProcessSampler`]: what one process takes, from `/proc/<pid>` (proc(5)).
//!
//! Two files with different costs: `statm` is the fast one (resident and virtual size), `status` also knows the peak.
//! Since Linux 6.2 the counters behind `statm` are kept per processor and may lag by some hundred kilobytes; the peak
//! is kept to at least what is resident, so that the two never contradict each other.

use std::fmt;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};

use dd_core::Bytes;

use crate::error::{Error, Result};
use crate::kept::{KeptFile, buffer};
use crate::root::Root;
use crate::{sys, text};

/// Which process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ProcessId {
    /// The one that asks.
    #[default]
    Own,
    /// The one of this number.
    Pid(u32),
}

impl ProcessId {
    fn file(self, name: &str) -> String {
        format!("/proc/{self}/{name}")
    }
}

impl fmt::Display for ProcessId {
    /// The name of its folder in `/proc`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Own => f.pad("self"),
            Self::Pid(pid) => fmt::Display::fmt(pid, f),
        }
    }
}

/// One reading of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct ProcessMemory {
    /// What is in memory now.
    pub resident: Bytes,
    /// The most that has been in memory, since the start or since [`reset_peak`]; only in a full reading.
    pub peak_resident: Option<Bytes>,
    /// The address space, most of which may never have been touched.
    pub virtual_size: Bytes,
}

impl ProcessMemory {
    /// Reads once, the peak included; to read again and again, keep a [`ProcessSampler`].
    ///
    /// # Errors
    /// As [`ProcessSampler::open`] and [`ProcessSampler::sample_with_peak`].
    pub fn read(root: &Root, process: ProcessId) -> Result<Self> {
        ProcessSampler::open(root, process)?.sample_with_peak()
    }
}

/// What a process's memory is made of (`/proc/<pid>/status`, since Linux 4.5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct ProcessParts {
    /// Heap, stacks and the like: what belongs to no file.
    pub anonymous: Bytes,
    /// Pages of files that are mapped: programs, libraries, mapped weights. The kernel may drop them and read them again.
    pub file: Bytes,
    /// Memory shared with other processes.
    pub shared: Bytes,
    /// What is swapped out; not resident.
    pub swap: Bytes,
}

impl ProcessParts {
    /// The parts with their names, as holders of the process's memory.
    #[must_use]
    pub const fn named(&self) -> [(&'static str, Bytes); 4] {
        [("anonymous", self.anonymous), ("file", self.file), ("shared", self.shared), ("swap", self.swap)]
    }

    fn parse(status: &[u8]) -> Option<Self> {
        let mut parts = Self::default();
        let mut known = false;
        for (key, value) in text::fields(status) {
            match key {
                b"RssAnon" => (parts.anonymous, known) = (Bytes(value), true),
                b"RssFile" => parts.file = Bytes(value),
                b"RssShmem" => parts.shared = Bytes(value),
                b"VmSwap" => parts.swap = Bytes(value),
                _ => {}
            }
        }
        known.then_some(parts)
    }
}

/// What a process has read and written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IoCounters {
    /// Bytes fetched from storage; what the page cache held is not counted.
    pub read_bytes: Bytes,
    /// Bytes sent, or bound to be sent, to storage.
    pub write_bytes: Bytes,
    /// Bytes that were bound to be sent and then were not, because the file was removed or cut.
    pub cancelled_write_bytes: Bytes,
}

impl IoCounters {
    /// Reads `/proc/<pid>/io`.
    ///
    /// # Errors
    /// [`Error::Unreadable`] where the kernel does not count or another user's process is asked for;
    /// [`Error::Malformed`] where the file is not what it should be.
    pub fn read(root: &Root, process: ProcessId) -> Result<Self> {
        let file = open(root, &process.file("io"), "the bytes read and written")?;
        let mut buffer = buffer();
        let text = read(&file, &mut buffer, "the bytes read and written")?;
        let counter = |key| text::field(text, key).map(Bytes).ok_or_else(|| malformed(&file, IO_LINES));
        Ok(Self {
            read_bytes: counter("read_bytes")?,
            write_bytes: counter("write_bytes")?,
            cancelled_write_bytes: counter("cancelled_write_bytes")?,
        })
    }

    /// What has been read and written since an earlier reading.
    #[must_use]
    pub const fn since(&self, earlier: &Self) -> Self {
        Self {
            read_bytes: self.read_bytes.saturating_sub(earlier.read_bytes),
            write_bytes: self.write_bytes.saturating_sub(earlier.write_bytes),
            cancelled_write_bytes: self.cancelled_write_bytes.saturating_sub(earlier.cancelled_write_bytes),
        }
    }
}

const IO_LINES: &str = "lines `read_bytes: N`, `write_bytes: N` and `cancelled_write_bytes: N`";

/// Reads one process again and again, from files that stay open; a sample allocates nothing.
///
/// It stays with the process that it was opened for: after a `fork` it still reports the parent, and once the process
/// has ended every reading is an error, also when another process has been given the same number.
#[derive(Debug)]
pub struct ProcessSampler {
    statm: KeptFile,
    status: KeptFile,
    page: u64,
}

impl ProcessSampler {
    /// Opens the files of a process.
    ///
    /// # Errors
    /// [`Error::Unreadable`] where there is no such process, or the system has no `/proc`.
    pub fn open(root: &Root, process: ProcessId) -> Result<Self> {
        let open = |name| open(root, &process.file(name), "the memory of a process");
        Ok(Self { statm: open("statm")?, status: open("status")?, page: sys::page_size() })
    }

    /// Opens the files of the process that asks.
    ///
    /// # Errors
    /// [`Error::Unreadable`] where the system has no `/proc`.
    pub fn own() -> Result<Self> {
        Self::open(&Root::default(), ProcessId::Own)
    }

    /// Reads resident and virtual size.
    ///
    /// # Errors
    /// [`Error::Unreadable`] once the process has ended; [`Error::Malformed`] where the file is not what it should be.
    pub fn sample(&self) -> Result<ProcessMemory> {
        let mut buffer = buffer();
        let statm = read(&self.statm, &mut buffer, "the memory of a process")?;
        let mut pages = text::words(statm).map(text::number);
        let mut next = || pages.next().flatten().and_then(|count| count.checked_mul(self.page)).map(Bytes);
        let (Some(virtual_size), Some(resident)) = (next(), next()) else {
            return Err(malformed(&self.statm, "numbers of pages, virtual size and resident first"));
        };
        Ok(ProcessMemory { resident, peak_resident: None, virtual_size })
    }

    /// Reads the peak too, which costs several times as much.
    ///
    /// # Errors
    /// As [`sample`](Self::sample). A process without memory of its own (a kernel thread) has no peak:
    /// [`Error::Malformed`].
    pub fn sample_with_peak(&self) -> Result<ProcessMemory> {
        let sample = self.sample()?;
        let mut buffer = buffer();
        let status = read(&self.status, &mut buffer, "the peak of a process")?;
        let peak = text::field(status, "VmHWM")
            .map(Bytes)
            .ok_or_else(|| malformed(&self.status, "a line `VmHWM: N kB`"))?;
        Ok(ProcessMemory { peak_resident: Some(peak.max(sample.resident)), ..sample })
    }

    /// Reads what the memory is made of.
    ///
    /// # Errors
    /// [`Error::Unreadable`] once the process has ended; [`Error::Malformed`] where the kernel does not tell.
    pub fn parts(&self) -> Result<ProcessParts> {
        let mut buffer = buffer();
        let status = read(&self.status, &mut buffer, "the parts of a process's memory")?;
        ProcessParts::parse(status).ok_or_else(|| malformed(&self.status, "a line `RssAnon: N kB`"))
    }
}

/// Lets the peak of the process that asks begin again at what is resident now, by writing `5` to
/// `/proc/self/clear_refs` (proc(5)).
///
/// # Errors
/// [`Error::PeakNotResettable`] where the kernel refuses: it was built without that file, or a sandbox has it
/// read-only.
pub fn reset_peak(root: &Root) -> Result<()> {
    let path = root.join("/proc/self/clear_refs");
    let written = OpenOptions::new().write(true).open(&path).and_then(|mut file| file.write_all(b"5"));
    written.map_err(|source| Error::PeakNotResettable { path, source })
}

fn open(root: &Root, path: &str, what: &'static str) -> Result<KeptFile> {
    KeptFile::open(root, path).map_err(|source| unreadable(what, &root.join(path), source))
}

fn read<'b>(file: &KeptFile, buffer: &'b mut crate::kept::Buffer, what: &'static str) -> Result<&'b [u8]> {
    file.read(buffer).map_err(|source| unreadable(what, file.path(), source))
}

fn unreadable(what: &'static str, path: &Path, source: std::io::Error) -> Error {
    Error::Unreadable { what, path: PathBuf::from(path), source }
}

fn malformed(file: &KeptFile, expected: &'static str) -> Error {
    Error::Malformed { path: file.path().clone(), expected }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tree with the files of process 7, each row `(name, text)`.
    fn tree(files: &[(&str, &str)]) -> (tempfile::TempDir, Root) {
        let folder = tempfile::tempdir().unwrap();
        let process = folder.path().join("proc/7");
        std::fs::create_dir_all(&process).unwrap();
        for (name, text) in files {
            std::fs::write(process.join(name), text).unwrap();
        }
        let root = Root::new(folder.path());
        (folder, root)
    }

    #[test]
    fn memory() {
        let pages = |count: u64| Bytes(count * sys::page_size());
        let page = sys::page_size();
        let full = |resident, peak| {
            Some(ProcessMemory {
                resident: pages(resident),
                peak_resident: Some(peak),
                virtual_size: pages(900),
            })
        };
        let rows = [
            ("900 20 3 1 0 2 0\n", "Name:\tx\nVmHWM:\t 1024 kB\n", full(20, Bytes::mib(1))),
            ("900 200 3 1 0 2 0\n", "VmHWM:\t 4 kB\n", full(200, Bytes(200 * page))),
            ("900 0 0 0 0 0 0\n", "VmHWM: 0 kB", full(0, Bytes::ZERO)),
            ("900 20", "Name: kthread\n", None),
            ("900", "VmHWM: 4 kB\n", None),
            ("x 20", "VmHWM: 4 kB\n", None),
            ("18446744073709551615 20", "VmHWM: 4 kB\n", None),
            ("", "", None),
        ];
        for (statm, status, expected) in rows {
            let (_folder, root) = tree(&[("statm", statm), ("status", status)]);
            let found = ProcessMemory::read(&root, ProcessId::Pid(7));
            match expected {
                Some(expected) => assert_eq!(found.unwrap(), expected, "{statm:?}"),
                None => assert!(matches!(found, Err(Error::Malformed { .. })), "{statm:?}: {found:?}"),
            }
        }
    }

    #[test]
    fn io_counters() {
        let rows = [
            (
                "rchar: 9\nread_bytes: 4096\nwrite_bytes: 8192\ncancelled_write_bytes: 1\n",
                Some((4096, 8192, 1)),
            ),
            ("read_bytes: 4096\nwrite_bytes: 8192\n", None),
            ("", None),
        ];
        for (text, expected) in rows {
            let (_folder, root) = tree(&[("io", text)]);
            let found = IoCounters::read(&root, ProcessId::Pid(7)).ok();
            let found = found.map(|io| (io.read_bytes.0, io.write_bytes.0, io.cancelled_write_bytes.0));
            assert_eq!(found, expected, "{text:?}");
        }
        let (early, late) =
            (IoCounters { read_bytes: Bytes(3), ..IoCounters::default() }, IoCounters::default());
        assert_eq!(early.since(&late), early);
        assert_eq!(late.since(&early), late);
    }

    #[test]
    fn parts() {
        let parts = |anonymous, file, shared, swap| {
            let [anonymous, file, shared, swap] = [anonymous, file, shared, swap].map(Bytes::kib);
            Some(ProcessParts { anonymous, file, shared, swap })
        };
        let rows = [
            ("RssAnon: 5 kB\nRssFile: 4 kB\nRssShmem: 3 kB\nVmSwap: 2 kB\n", parts(5, 4, 3, 2)),
            ("RssAnon: 5 kB\n", parts(5, 0, 0, 0)),
            ("VmHWM: 5 kB\n", None),
            ("", None),
        ];
        for (status, expected) in rows {
            let (_folder, root) = tree(&[("statm", "1 1"), ("status", status)]);
            let found = ProcessSampler::open(&root, ProcessId::Pid(7)).unwrap().parts();
            assert_eq!(found.ok(), expected, "{status:?}");
        }
    }

    #[test]
    fn absent_files_are_errors() {
        let (_folder, root) = tree(&[("statm", "1 1")]);
        for error in [
            ProcessSampler::open(&root, ProcessId::Pid(7)).unwrap_err(),
            ProcessSampler::open(&root, ProcessId::Pid(8)).unwrap_err(),
            ProcessSampler::open(&root, ProcessId::Own).unwrap_err(),
            IoCounters::read(&root, ProcessId::Pid(7)).unwrap_err(),
        ] {
            assert!(matches!(error, Error::Unreadable { .. }), "{error}");
        }
        let error = reset_peak(&root).unwrap_err();
        assert!(matches!(error, Error::PeakNotResettable { .. }), "{error}");
        assert!(!root.join("/proc/self/clear_refs").exists());
    }
}
