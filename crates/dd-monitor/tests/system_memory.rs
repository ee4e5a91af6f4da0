//! [`SystemMemory`] as a provider and as a report, on fixture trees and on the running system.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, missing_docs, reason = "tests")]

use std::fs;
use std::path::Path;

use dd_core::{Bytes, Error, MemoryProvider, MemorySample, Tier};
use dd_monitor::{Gpus, Root, SystemMemory};

/// A container of 200 MiB on a machine of 1000 MiB, with the files of a process.
fn tree(root: &Path) {
    let files = [
        (
            "proc/meminfo",
            "MemTotal: 1024000 kB\nMemAvailable: 614400 kB\nSwapTotal: 2048 kB\nSwapFree: 1024 kB\n",
        ),
        ("proc/self/cgroup", "0::/app\n"),
        ("proc/self/mountinfo", "31 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"),
        ("proc/self/statm", "1000 0 0 0 0 0 0\n"),
        ("proc/self/status", "VmHWM: 8192 kB\n"),
        ("sys/fs/cgroup/app/memory.max", "209715200\n"),
        ("sys/fs/cgroup/app/memory.high", "157286400\n"),
        ("sys/fs/cgroup/app/memory.current", "83886080\n"),
        ("sys/fs/cgroup/app/memory.stat", "inactive_file 31457280\n"),
    ];
    for (path, text) in files {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
}

fn open(folder: &Path) -> SystemMemory {
    SystemMemory::open_at(Root::new(folder), Gpus::absent("a tree of files has none"), folder).unwrap()
}

#[test]
fn keeps_the_contract_of_a_memory_provider() {
    let folder = tempfile::tempdir().unwrap();
    tree(folder.path());
    dd_conformance::memory_provider(&open(folder.path()));
    dd_conformance::memory_provider(&SystemMemory::open(std::env::temp_dir()).unwrap());
}

#[test]
fn the_host_tier_is_the_least_of_machine_and_container() {
    let folder = tempfile::tempdir().unwrap();
    tree(folder.path());
    let memory = open(folder.path());
    assert_eq!(memory.tiers(), [Tier::Host, Tier::Disk]);
    let mib = Bytes::mib;
    let expected = MemorySample { total: mib(200), used: mib(50), available: mib(150) };
    assert_eq!(memory.sample(Tier::Host).unwrap(), expected);
    assert!(memory.sample(Tier::Disk).unwrap().total > Bytes::ZERO);
    for tier in [Tier::Device(0), Tier::Remote, Tier::PinnedHost, Tier::Compressed] {
        let error = memory.sample(tier).unwrap_err();
        assert!(matches!(error, Error::UnsupportedTier { .. }), "{tier}: {error}");
    }
}

#[test]
fn a_tree_without_host_memory_is_a_typed_error() {
    let folder = tempfile::tempdir().unwrap();
    let error =
        SystemMemory::open_at(Root::new(folder.path()), Gpus::absent("none"), folder.path()).unwrap_err();
    assert!(matches!(error, dd_monitor::Error::Unreadable { .. }), "{error}");
    let error = Error::from(error);
    assert!(matches!(&error, Error::Library { library, .. } if library == "dd-monitor"), "{error}");
    assert!(error.to_string().contains("proc/meminfo"), "{error}");
}

#[test]
fn the_report_is_an_aligned_table() {
    let folder = tempfile::tempdir().unwrap();
    tree(folder.path());
    let text = open(folder.path()).report().unwrap().to_string();
    let lines: Vec<&str> = text.lines().collect();
    let rows = [
        (0, "memory             total          used     available"),
        (1, "machine      1000.00 MiB    400.00 MiB    600.00 MiB"),
        (2, "swap            2.00 MiB      1.00 MiB      1.00 MiB"),
        (3, "container     200.00 MiB     50.00 MiB    150.00 MiB  v2 "),
        (4, "usable        200.00 MiB     50.00 MiB    150.00 MiB  the least of machine and container"),
        (5, "process                –           0 B             –  peak 8.00 MiB, address space"),
        (6, "disk  "),
        (7, "no GPU: a tree of files has none"),
    ];
    for (number, start) in rows {
        assert!(lines[number].starts_with(start), "line {number} is not {start:?}:\n{text}");
    }
    assert!(lines[3].ends_with("sys/fs/cgroup/app, slows down at 150.00 MiB"), "{text}");
    assert_eq!(lines.len(), rows.len(), "{text}");
}

#[test]
fn what_is_missing_is_noted() {
    let folder = tempfile::tempdir().unwrap();
    tree(folder.path());
    for path in ["proc/self/cgroup", "proc/self/status"] {
        fs::remove_file(folder.path().join(path)).unwrap();
    }
    let report = open(folder.path()).report().unwrap();
    assert_eq!((report.process, report.skipped.len(), report.cgroup.skipped.len()), (None, 1, 1));
    let text = report.to_string();
    for expected in ["no container limit", "proc/self/cgroup", "proc/self/status", "No such file"] {
        assert!(text.contains(expected), "{expected} is not in\n{text}");
    }
}

#[test]
fn the_running_system() {
    let memory = SystemMemory::open(std::env::temp_dir()).unwrap();
    for tier in memory.tiers() {
        let sample = memory.sample(*tier).unwrap();
        assert!(sample.total > Bytes::ZERO && sample.available <= sample.total, "{tier}: {sample:?}");
    }
    let report = memory.report().unwrap();
    assert!(report.effective.total <= report.host.total);
    assert_eq!(report.gpus.is_empty(), report.no_gpu.is_some());
    assert!(report.process.unwrap().resident > Bytes::ZERO);
    println!("{report}");
}
