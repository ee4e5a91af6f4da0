//! A sample allocates nothing: the process's allocator counts.
#![cfg(target_os = "linux")]
#![allow(unsafe_code, reason = "a global allocator cannot be written without")]
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use dd_core::{Bytes, MemoryProvider, Tier};
use dd_monitor::{
    CgroupMemory, DiskSpace, EventCounter, FullSampler, Gpus, HostSampler, MemoryMonitor, PressureSampler,
    ProcessId, ProcessSampler, Root, SystemMemory, SystemSource, Threshold,
};

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call goes to the system's allocator unchanged; the counter is a plain cell without a destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.set(COUNT.get() + 1);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the pointer came from `alloc` above, which is the system's.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Runs `sample` and says how often this thread allocated meanwhile.
fn allocations(sample: impl Fn()) -> u64 {
    let before = COUNT.get();
    (0..10).for_each(|_| sample());
    COUNT.get() - before
}

#[test]
fn samples_allocate_nothing() {
    let root = Root::default();
    let (process, host) = (ProcessSampler::own().unwrap(), HostSampler::open(&root).unwrap());
    let cgroup = CgroupMemory::open(&root);
    let full = FullSampler::own().unwrap();
    let (pressure, events) = (PressureSampler::open(&root), EventCounter::open(&cgroup));
    let folder = std::env::temp_dir().join("not/made/yet");
    let system = SystemMemory::open_at(root.clone(), Gpus::absent("not asked"), &folder).unwrap();
    let nearest = PressureSampler::open_nearest(&root, &cgroup);
    let rows: [(&str, u64); 12] = [
        ("process", allocations(|| assert!(process.sample().is_ok()))),
        ("process with peak", allocations(|| assert!(process.sample_with_peak().is_ok()))),
        ("host", allocations(|| assert!(host.sample().is_ok()))),
        ("container", allocations(|| assert!(cgroup.sample().limit != Some(Bytes::MAX)))),
        ("full", allocations(|| assert!(full.sample().is_ok()))),
        (
            "pressure",
            allocations(|| {
                assert!(pressure.as_ref().is_ok_and(|it| it.sample().is_ok()) || pressure.is_err())
            }),
        ),
        (
            "events",
            allocations(|| assert!(events.as_ref().is_ok_and(|it| it.sample().is_ok()) || events.is_err())),
        ),
        ("process's parts", allocations(|| assert!(process.parts().is_ok()))),
        (
            "nearest pressure",
            allocations(|| assert!(nearest.as_ref().is_ok_and(|it| it.sample().is_ok()) || nearest.is_err())),
        ),
        ("disk", allocations(|| assert!(DiskSpace::of(&folder).is_ok()))),
        ("disk tier", allocations(|| assert!(system.sample(Tier::Disk).is_ok()))),
        ("host tier", allocations(|| assert!(system.sample(Tier::Host).is_ok()))),
    ];
    for (name, count) in rows {
        assert_eq!(count, 0, "{name}");
    }
    a_monitor_allocates_nothing();
    assert!(allocations(|| drop(std::hint::black_box(Box::new(1)))) >= 10, "the counter does not count");
}

/// Once its history is full, a monitor with its thresholds goes on in the room that it has.
fn a_monitor_allocates_nothing() {
    let root = Root::default();
    let source =
        SystemSource::open_at(root, Gpus::absent("not asked"), std::env::temp_dir(), ProcessId::Own).unwrap();
    let monitor = MemoryMonitor::builder().source(source).history(4).build().unwrap();
    for threshold in [Tier::Host, Tier::Disk].into_iter().flat_map(Threshold::usual) {
        monitor.on_crossing(threshold, |_| {});
    }
    // A crossing is kept, which takes room; after the first few readings there is none unless memory moves by tenths.
    (0..8).for_each(|_| monitor.tick().unwrap());
    let crossed = monitor.crossings().len();
    let count = allocations(|| monitor.tick().unwrap());
    assert!(count == 0 || monitor.crossings().len() > crossed, "a monitor's reading: {count}");
}
