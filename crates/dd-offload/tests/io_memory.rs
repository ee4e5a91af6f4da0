//! An engine takes the memory that it says, all of it at the start, and gives it back.
#![allow(clippy::unwrap_used, unsafe_code, reason = "tests; an allocator that counts is unsafe by its trait")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::Write as _;
use std::sync::atomic::{AtomicI64, Ordering};

use dd_offload::io::{DirectFile, EngineKind, Geometry, engine, read_into};

/// Live bytes in allocations of a page and more: the blocks, and whatever else would grow with them.
static LIVE: AtomicI64 = AtomicI64::new(0);

struct Counting;

fn count(layout: Layout, sign: i64) {
    if layout.size() >= 4096 {
        LIVE.fetch_add(sign * i64::try_from(layout.size()).unwrap_or(0), Ordering::Relaxed);
    }
}

// SAFETY: every call goes to the system's allocator unchanged; only sizes are counted.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout, 1);
        // SAFETY: the caller's promise, passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        count(layout, -1);
        // SAFETY: the caller's promise, passed on.
        unsafe { System.dealloc(start, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn memory_is_what_is_really_taken() {
    let mut named = tempfile::NamedTempFile::new().unwrap();
    named.write_all(&vec![3; 3 << 20]).unwrap();
    let file = DirectFile::open(named.path()).unwrap();
    let mut buffer = vec![0; 2 << 20];
    for kind in [EngineKind::Threads, EngineKind::IoUring] {
        for geometry in [Geometry { block: 1 << 20, depth: 3 }, Geometry { block: 64 << 10, depth: 16 }] {
            let before = LIVE.load(Ordering::Relaxed);
            let mut engine = match engine(kind, geometry) {
                Ok(engine) => engine,
                Err(error) => {
                    dd_conformance::skipped!("{error}");
                    continue;
                }
            };
            let taken = || u64::try_from(LIVE.load(Ordering::Relaxed) - before).unwrap();
            let memory = engine.memory();
            assert_eq!(memory, geometry.memory());
            let (made, slack) = (taken(), 16 << 10); // The slack is the queue of flights, not blocks.
            assert!(made >= memory.0 && made <= memory.0 + slack, "{kind} {geometry}: {made} B");
            read_into(&mut *engine, &file, 1000, &mut buffer).unwrap();
            assert!(taken() <= memory.0 + slack, "{kind} {geometry}: grew to {} B by reading", taken());
            drop(engine);
            assert!(taken() <= slack, "{kind} {geometry}: {} B kept after the drop", taken());
        }
    }
    assert!(buffer.iter().all(|byte| *byte == 3));
}
