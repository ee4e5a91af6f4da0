//! Calibration measures where there is a disk, says so where there is none, and remembers.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use dd_core::Bytes;
use dd_offload::Error;
use dd_offload::io::bandwidth::measure_direct;
use dd_offload::io::{Calibration, CalibrationLimits, DirectFile, EngineKind, Geometry, calibrate, engine};

fn file_of(path: &Path, bytes: usize) -> Arc<DirectFile> {
    std::fs::write(path, vec![1; bytes]).unwrap();
    File::open(path).unwrap().sync_all().unwrap();
    DirectFile::open(path).unwrap()
}

const LIMITS: CalibrationLimits =
    CalibrationLimits { time: Duration::from_millis(60), memory: Bytes::mib(4) };

#[test]
fn a_disk_is_measured_and_remembered() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("cache").join("io.json");
    let file = file_of(&folder.path().join("weights"), 64 << 20);
    if !file.is_direct() {
        dd_conformance::skipped!("no direct reads in {}", folder.path().display());
        return;
    }
    let first = Calibration::load_or_run_at(&cache, &file, LIMITS);
    if !first.measured {
        dd_conformance::skipped!("this disk is too slow or too busy for the time given");
        return;
    }
    assert!(first.bandwidth_bytes_per_sec > 0 && first.engine != EngineKind::Auto);
    assert!(first.geometry().memory() <= LIMITS.memory);
    assert_eq!(engine(first.engine, first.geometry()).unwrap().memory(), first.geometry().memory());
    let written = std::fs::read(&cache).unwrap();
    assert_eq!(Calibration::load_or_run_at(&cache, &file, LIMITS), first, "remembered, not measured again");
    let less = CalibrationLimits { memory: Bytes::mib(1), ..LIMITS };
    assert!(Calibration::load_or_run_at(&cache, &file, less).geometry().memory() <= less.memory);
    assert_eq!(std::fs::read(&cache).unwrap(), written, "less memory needs no new measurement");
    let text = serde_json::to_string(&first).unwrap();
    assert_eq!(serde_json::from_str::<Calibration>(&text).unwrap(), first);
}

#[test]
fn where_nothing_can_be_measured_it_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("io.json");
    let short = file_of(&folder.path().join("short"), 100_000);
    let hole = folder.path().join("hole");
    File::create(&hole).unwrap().set_len(10 << 30).unwrap();
    let mut files = vec![short, DirectFile::open(&hole).unwrap()];
    let in_memory = tempfile::NamedTempFile::new_in("/dev/shm").ok();
    files.extend(in_memory.as_ref().map(|named| file_of(named.path(), 65 << 20)));
    for file in files {
        for memory in [Bytes::ZERO, Bytes::mib(1), Bytes::mib(16)] {
            let limits = CalibrationLimits { memory, ..LIMITS };
            let expected = Calibration::unmeasured(memory);
            assert!(!expected.measured && expected.geometry() == Geometry::within(memory));
            assert_eq!(calibrate(&file, limits), expected, "{}", file.path().display());
            assert_eq!(Calibration::load_or_run_at(&cache, &file, limits), expected);
        }
    }
    assert!(!cache.exists(), "what was not measured is not remembered");
}

#[test]
fn the_bare_loop_reads_what_there_is() {
    let folder = tempfile::tempdir().unwrap();
    let geometry = Geometry { block: 64 << 10, depth: 3 };
    let file = file_of(&folder.path().join("weights"), 1_000_001);
    for bytes in [Bytes(1), Bytes(500_000), Bytes::MAX] {
        let bandwidth = measure_direct(&file, bytes, geometry).unwrap();
        assert!(bandwidth.is_finite() && bandwidth > 0.0, "{bytes}: {bandwidth}");
    }
    let nothing = measure_direct(&file, Bytes::ZERO, geometry).unwrap_err();
    assert!(matches!(nothing, Error::Core(dd_core::Error::InvalidArgument { .. })), "{nothing}");
    let odd = measure_direct(&file, Bytes::MAX, Geometry { block: 5, depth: 1 }).unwrap_err();
    assert!(matches!(odd, Error::InvalidConfig { .. }), "{odd}");
}
