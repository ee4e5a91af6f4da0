//! What the allocator says is live is what the budget says, within a stated constant; and passes that have settled
//! allocate nothing for weights, since storage is reused.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]

use std::sync::Arc;

use dd_core::{Backend, Bytes, DType, HostBackend, TensorDesc, Tier};
use dd_offload::checkpoint::Checkpoint;
use dd_offload::manager::{ModuleHandle, ModuleSpec, Parameter, Source, modules_of};
use dd_offload::{MemoryConfig, MemoryManager};
use safetensors::tensor::{Dtype, TensorView};

mod counting {
    #![allow(unsafe_code, reason = "an allocator that counts is unsafe by its trait")]

    use std::alloc::{GlobalAlloc, Layout, System};
    use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

    static LIVE: AtomicI64 = AtomicI64::new(0);
    static PEAK: AtomicI64 = AtomicI64::new(0);
    static LARGE: AtomicU64 = AtomicU64::new(0);

    /// From this size on an allocation can be a weight's.
    pub(super) const WEIGHT: usize = 64 << 10;

    struct Counting;

    fn grow(size: usize) {
        let size = i64::try_from(size).unwrap_or(i64::MAX);
        PEAK.fetch_max(LIVE.fetch_add(size, Ordering::SeqCst) + size, Ordering::SeqCst);
    }

    fn note(size: usize) {
        if size >= WEIGHT {
            LARGE.fetch_add(1, Ordering::SeqCst);
        }
        grow(size);
    }

    // SAFETY: every call goes to the system's allocator unchanged; only sizes are counted.
    unsafe impl GlobalAlloc for Counting {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            note(layout.size());
            // SAFETY: the caller's promise, passed on.
            unsafe { System.alloc(layout) }
        }

        unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
            note(layout.size());
            // SAFETY: the caller's promise, passed on.
            unsafe { System.alloc_zeroed(layout) }
        }

        unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
            LIVE.fetch_sub(i64::try_from(layout.size()).unwrap_or(i64::MAX), Ordering::SeqCst);
            // SAFETY: the caller's promise, passed on.
            unsafe { System.dealloc(start, layout) }
        }
    }

    #[global_allocator]
    static ALLOCATOR: Counting = Counting;

    /// Live bytes now; the peak starts anew.
    pub(super) fn begin() -> i64 {
        let live = LIVE.load(Ordering::SeqCst);
        PEAK.store(live, Ordering::SeqCst);
        live
    }

    pub(super) fn peak() -> i64 {
        PEAK.load(Ordering::SeqCst)
    }

    /// Allocations that could be a weight's.
    pub(super) fn large() -> u64 {
        LARGE.load(Ordering::SeqCst)
    }
}

/// What the manager's own books, threads and file handles may take, which no budget counts.
const OWN: i64 = 256 << 10;
const SIDE: usize = 192; // A weight is 144 KiB.
const LAYERS: u8 = 24;

fn values(layer: u8) -> Vec<u8> {
    (0..SIDE * SIDE * 4)
        .map(|i| u8::try_from(((i * 7919) >> 3) % 251).unwrap().wrapping_mul(layer | 1))
        .collect()
}

fn check(modules: &[ModuleHandle<HostBackend>], expected: &[Vec<u8>]) {
    for (module, expected) in modules.iter().zip(expected) {
        let guard = module.acquire().unwrap();
        assert!(guard.tensor("weight").unwrap().bytes() == *expected, "{}", module.name());
    }
}

#[test]
fn the_allocator_agrees_with_the_budget() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let expected: Vec<_> = (0..LAYERS).map(values).collect();
    let path = dir.path().join("model.safetensors");
    let names: Vec<String> = (0..LAYERS).map(|layer| format!("layers.{layer}.weight")).collect();
    let view = |bytes: &'static [u8]| TensorView::new(Dtype::F32, vec![SIDE, SIDE], bytes).unwrap();
    let leaked: Vec<&'static [u8]> = expected.iter().map(|bytes| &*bytes.clone().leak()).collect();
    let views = names.iter().zip(&leaked).map(|(name, bytes)| (name, view(bytes)));
    safetensors::serialize_to_file(views, None, &path).unwrap();
    for (in_file, compress, megabytes) in
        [(true, true, 1), (true, true, 2), (false, false, 3), (false, true, 5)]
    {
        let config = MemoryConfig::builder()
            .memory_limit(Bytes::mib(megabytes))
            .io_block(Bytes::kib(32))
            .compress_disk_cache(compress)
            .spill_directory(dir.path().to_owned());
        let before = counting::begin();
        let backend = HostBackend::default();
        let manager = MemoryManager::new(backend.clone(), config.build().unwrap()).unwrap();
        let modules: Vec<_> = if in_file {
            let checkpoint = Arc::new(Checkpoint::open(&path).unwrap());
            let specs = modules_of(&checkpoint).unwrap();
            specs.into_iter().map(|spec| manager.wrap_module(spec).unwrap()).collect()
        } else {
            let desc = TensorDesc::new([SIDE, SIDE], DType::F32).unwrap();
            let spec = |(n, bytes): (usize, &Vec<u8>)| {
                let tensor = backend.upload(&desc, bytes, Tier::Host).unwrap(); // The caller's, until it is stored.
                let parameters = vec![Parameter { name: "weight".into(), source: Source::Tensor(tensor) }];
                ModuleSpec { name: n.to_string(), kind: "Linear".into(), parameters, pinned: false }
            };
            expected.iter().enumerate().map(|unit| manager.wrap_module(spec(unit)).unwrap()).collect()
        };
        let callers = i64::try_from(SIDE * SIDE * 4).unwrap();
        for _ in 0..4 {
            check(&modules, &expected);
        }
        let settled = counting::large();
        for _ in 0..4 {
            check(&modules, &expected);
        }
        let large = counting::large() - settled;
        let row = format!("in a file: {in_file}, compressed: {compress}, {megabytes} MiB");
        let accounted = i64::try_from(manager.budget().usage().peak.0).unwrap();
        let live = counting::peak() - before;
        assert!(live <= accounted + callers + OWN, "{row}: {live} B live, {accounted} B accounted");
        assert!(manager.memory_summary().loads > u64::from(LAYERS), "{row}: it streamed");
        if in_file {
            assert_eq!(large, 0, "{row}: settled passes allocate nothing as large as a weight");
        }
        drop((manager, modules));
        let left = counting::begin() - before;
        assert!(left <= OWN, "{row}: {left} B are left at the end");
    }
}
