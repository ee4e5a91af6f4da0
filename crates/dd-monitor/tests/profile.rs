//! The profiler on the running system. One test, because the resident peak belongs to the whole process.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use dd_monitor::profiler::{PeakSource, change};
use dd_monitor::{MemoryProfile, MemoryProfiler, Root};

const MIB: i64 = 1 << 20;

/// Takes this many MiB, writes to every page, and gives them back.
fn touch(mib: usize) {
    let mut block = vec![0u8; mib << 20];
    block.iter_mut().step_by(1024).for_each(|byte| *byte = 1);
    std::hint::black_box(block);
}

/// How far the peak rose above what there was before, in MiB.
fn risen(profile: &MemoryProfile) -> i64 {
    change(profile.before.resident.unwrap(), profile.peak.resident.unwrap()) / MIB
}

#[test]
fn peaks_nest_and_are_not_seen_at_either_end() {
    let profiler = MemoryProfiler::open(&Root::default());
    let (inner, outer) = profiler.profile_operation("outer", || {
        touch(96);
        let ((), inner) = profiler.profile_operation("inner", || touch(32));
        inner
    });
    let after = profiler.profile_operation("after", || ()).1;
    println!("{outer}{inner}{after}");
    assert_eq!((outer.depth, inner.depth, after.depth), (0, 1, 0));
    let kept = change(outer.before.resident.unwrap(), outer.after.resident.unwrap()) / MIB;
    assert!(kept < 32, "{kept} MiB are kept");
    if outer.resident_peak == PeakSource::Sampled || after.resident_peak == PeakSource::Sampled {
        dd_conformance::skipped!("this kernel does not let a process reset its peak");
        return;
    }
    let rows = [("outer", &outer, 96), ("inner", &inner, 32), ("after", &after, 0)];
    for (name, profile, expected) in rows {
        let risen = risen(profile);
        assert!((expected - 8..expected + 16).contains(&risen), "{name}: {risen} MiB, not {expected}");
    }
}
