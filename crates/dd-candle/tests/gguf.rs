//! Stock quantised models within a quarter of their weights: the same bits, no memory beside the budget, all of it back.
#![cfg(target_os = "linux")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs,
    unsafe_code,
    reason = "tests; the allocator that counts is unsafe as every allocator is"
)]

use std::alloc::{GlobalAlloc, Layout};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use candle_core::quantized::GgmlDType;
use candle_transformers::models::quantized_llama::ModelWeights;
use dd_candle::capture::{self, CapturingAllocator};
use dd_candle::gguf::{Error, GgufOptions, PagedGguf};
use dd_core::{Budget, Bytes};

#[path = "support/gguf_model.rs"]
mod model;

/// The capturing allocator, and what it took of the heap: captured memory is the pager's.
struct Counting;

static HEAP: AtomicI64 = AtomicI64::new(0);
static PEAK: AtomicI64 = AtomicI64::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn count(start: *mut u8, bytes: usize, sign: i64) {
    if bytes < 16 << 10 || !capture::contains(start) {
        let change = sign * i64::try_from(bytes).unwrap_or(i64::MAX);
        let now = HEAP.fetch_add(change, Ordering::Relaxed) + change;
        PEAK.fetch_max(now, Ordering::Relaxed);
    }
}

// SAFETY: everything is passed on; `realloc` is the default, made of the others.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        let start = unsafe { CapturingAllocator.alloc(layout) };
        count(start, layout.size(), 1);
        start
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        let start = unsafe { CapturingAllocator.alloc_zeroed(layout) };
        count(start, layout.size(), 1);
        start
    }
    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        count(start, layout.size(), -1);
        // SAFETY: the caller's promise.
        unsafe { CapturingAllocator.dealloc(start, layout) };
    }
}

/// Tests that count memory take turns.
fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

const LAYERS: usize = 4;
const PROMPT: usize = 40; // Long enough for the kernels that take blocks of 32 rows.
const STEPS: usize = 2;
/// Activations, key-value caches, tables, metadata and small tensors of the models here.
const BESIDE: i64 = 6 << 20;

fn mixed(name: &str) -> GgmlDType {
    match name {
        n if n.contains("attn_v") || n.contains("ffn_down") => GgmlDType::Q6K,
        n if n.contains("attn_k") => GgmlDType::Q5K,
        n if n.contains("token_embd") => GgmlDType::Q8_0,
        n if n.contains("blk.1.attn_q") => GgmlDType::F16,
        _ => GgmlDType::Q4K,
    }
}

struct Model {
    name: &'static str,
    path: PathBuf,
    weights: u64,
    expected: Vec<u32>,
}

/// The checkpoints, and what each gives when it is loaded plainly.
static MODELS: LazyLock<Vec<Model>> = LazyLock::new(|| {
    let directory = Box::leak(Box::new(tempfile::tempdir().unwrap())).path();
    type Dtype = fn(&str) -> GgmlDType;
    let rows: [(&str, Dtype); 3] =
        [("q4k", |_| GgmlDType::Q4K), ("q8_0", |_| GgmlDType::Q8_0), ("mixed", mixed)];
    let make = |(name, dtype): (&'static str, Dtype)| {
        let path = directory.join(format!("{name}.gguf"));
        let weights = model::write_llama(&path, LAYERS, dtype).unwrap();
        let expected = model::logits(&mut model::plain(&path).unwrap(), PROMPT, STEPS, 1).unwrap();
        Model { name, path, weights, expected }
    };
    rows.into_iter().map(make).collect()
});

fn open(path: &Path, budget: &Budget) -> Option<PagedGguf> {
    let mut options = GgufOptions::default();
    options.spill.directory = path.parent().map(Path::to_owned);
    match PagedGguf::open_with(path, budget, &options) {
        Err(Error::Pager(dd_pager::Error::Unsupported { reason })) => {
            dd_conformance::skipped!("{reason}");
            None
        }
        other => Some(other.unwrap()),
    }
}

fn load(gguf: &PagedGguf) -> ModelWeights {
    gguf.load(ModelWeights::from_gguf).unwrap()
}

/// What a model may have left behind in the heap: libraries keep 2 MiB of workspace per thread for the next f32 product.
const KEPT: i64 = 5 << 19;

fn grown(since: i64) -> i64 {
    PEAK.load(Ordering::Relaxed) - since
}

fn begin() -> i64 {
    let now = HEAP.load(Ordering::Relaxed);
    PEAK.store(now, Ordering::Relaxed);
    now
}

#[test]
fn within_a_budget_stock_models_give_the_same_bits() {
    let _alone = alone();
    let quarter = |weights: u64| weights / 4;
    // Which model, its budget, and how many passes.
    type Limit = fn(u64) -> u64;
    let rows: [(usize, Limit, usize); 5] = [
        (0, quarter, 2),
        (1, quarter, 2),
        (2, quarter, 1),
        (0, |weights| weights / 8, 1),
        (0, |weights| weights * 8, 1),
    ];
    for (index, limit, passes) in rows {
        let Model { name, path, weights, expected } = &MODELS[index];
        let budget = Budget::new(name, Bytes(limit(*weights)));
        let before = begin();
        let Some(gguf) = open(path, &budget) else { return };
        let mut model = load(&gguf);
        for pass in 0..passes {
            let found = model::logits(&mut model, PROMPT, STEPS, 1).unwrap();
            assert!(found == *expected, "{name} within {}, pass {pass}", budget.limit());
        }
        let captured = gguf.capture_stats();
        assert!(captured.live_bytes.0 > *weights, "{captured:?}");
        assert_eq!(captured.refused, 0, "{captured:?}");
        assert!(grown(before) < BESIDE, "{name}: {} B of heap beside {weights} B of weights", grown(before));
        assert!(budget.usage().peak <= budget.limit());
        drop(gguf); // The model outlives it.
        let again = model::logits(&mut model, PROMPT, 0, 1).unwrap();
        assert_eq!(again, expected[..model::WORDS], "{name}");
        drop(model);
        assert_eq!(budget.usage().used, Bytes::ZERO, "{name}");
        let left = HEAP.load(Ordering::Relaxed) - before;
        assert!(left < KEPT, "{name}: {left} B of heap left behind");
    }
}

#[test]
fn the_least_budget_and_others_give_the_same_bits() {
    let _alone = alone();
    for Model { name, path, weights, .. } in &MODELS[..2] {
        let expected = model::logits(&mut model::plain(path).unwrap(), 3, 1, 1).unwrap();
        let refused = PagedGguf::open(path, &Budget::new(name, Bytes(1)));
        let least = match refused {
            Err(Error::Pager(dd_pager::Error::TooSmall { least, .. })) => least,
            other => panic!("{other:?}"),
        };
        for limit in [least, Bytes(weights / 8), Bytes(weights / 6)] {
            let budget = Budget::new(name, limit);
            let Some(gguf) = open(path, &budget) else { return };
            let mut model = load(&gguf);
            for _ in 0..2 {
                let found = model::logits(&mut model, 3, 1, 1).unwrap();
                assert!(found == expected, "{name} within {limit}");
            }
            std::thread::scope(|threads| {
                for _ in 0..4 {
                    let mut model = model.clone();
                    let expected = &expected;
                    threads.spawn(move || {
                        let found = model::logits(&mut model, 3, 1, 1).unwrap();
                        assert!(found == *expected, "{name} within {limit}, four threads");
                    });
                }
            });
            assert!(budget.usage().peak <= limit, "{name} within {limit}");
        }
    }
}

#[test]
fn four_threads_share_a_model() {
    let _alone = alone();
    for Model { name, path, weights, expected } in &MODELS[..2] {
        let budget = Budget::new(name, Bytes(weights / 4));
        let Some(gguf) = open(path, &budget) else { return };
        let model = load(&gguf);
        std::thread::scope(|threads| {
            for _ in 0..4 {
                let mut model = model.clone();
                threads.spawn(move || {
                    let found = model::logits(&mut model, PROMPT, STEPS, 1).unwrap();
                    assert!(found == *expected, "{name}");
                });
            }
        });
        assert!(budget.usage().peak <= budget.limit());
        // Another thread may be the last that has it.
        std::thread::spawn(move || drop((model, gguf))).join().unwrap();
        assert_eq!(budget.usage().used, Bytes::ZERO, "{name}");
    }
}

#[test]
fn loaders_that_read_in_their_own_way_and_loaders_that_fail() {
    let _alone = alone();
    let Model { name, path, weights, expected } = &MODELS[0];
    let budget = Budget::new(name, Bytes(weights / 4));
    let before = begin();
    let Some(gguf) = open(path, &budget) else { return };
    let used = budget.usage().used;
    // A buffer of the loader's own is captured as well, so nothing is read straight to a tensor's.
    let buffered = gguf.load(|content, reader, device| {
        let mut reader = std::io::BufReader::with_capacity(300_000, reader);
        ModelWeights::from_gguf(content, &mut reader, device)
    });
    let mut model = buffered.unwrap();
    assert_eq!(gguf.capture_stats().held, 0);
    assert!(model::logits(&mut model, PROMPT, STEPS, 1).unwrap() == *expected);
    // A second model of the same file, while the first lives.
    let mut second = load(&gguf);
    assert!(model::logits(&mut second, PROMPT, STEPS, 1).unwrap() == *expected);
    drop((model, second));
    assert_eq!(gguf.capture_stats().live, 0);

    // Before anything fails: candle's errors carry a backtrace where the environment asks for one, and making it reads debug
    // information into the heap.
    assert!(grown(before) < BESIDE, "{} B", grown(before));
    let failed = gguf.load(|content, reader, device| {
        content.tensor(reader, "blk.0.ffn_up.weight", device)?;
        content.tensor(reader, "no such tensor", device)
    });
    let text = failed.unwrap_err().to_string();
    assert!(text.contains("no such tensor") && text.contains("q4k.gguf"), "{text}");
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        gguf.load::<()>(|content, reader, device| {
            let tensor = content.tensor(reader, "blk.0.ffn_up.weight", device)?;
            panic!("a loader that panics with {tensor:?}")
        })
    }));
    assert!(panicked.is_err());
    assert_eq!((gguf.capture_stats().live, budget.usage().used), (0, used));
}

#[test]
fn what_cannot_work_is_refused_before_anything_is_read() {
    let _alone = alone();
    let Model { path, weights, .. } = &MODELS[0];
    // Too little memory: the message has the number that would do, and it does.
    let small = Budget::new("small", Bytes::kib(64));
    let least = match PagedGguf::open(path, &small) {
        Err(Error::Pager(dd_pager::Error::TooSmall { least, .. })) => least,
        other => panic!("{other:?}"),
    };
    assert!(least < Bytes(weights / 4) && small.usage().peak == Bytes::ZERO);
    let Some(gguf) = open(path, &Budget::new("least", least)) else { return };
    drop(gguf);
    // Files that are not whole.
    let directory = tempfile::tempdir().unwrap();
    let bytes = std::fs::read(path).unwrap();
    for len in [0, 4, 100, bytes.len() / 2, bytes.len() - 32] {
        let cut = directory.path().join("cut.gguf");
        std::fs::write(&cut, &bytes[..len]).unwrap();
        let budget = Budget::new("whole", Bytes::mib(64));
        let error = PagedGguf::open(&cut, &budget).unwrap_err();
        assert!(matches!(error, Error::Malformed { .. }), "{len}: {error}");
        assert!(error.to_string().contains("cut.gguf"), "{error}");
        assert_eq!(budget.usage().peak, Bytes::ZERO);
    }
    for path in [directory.path().join("absent.gguf"), directory.path().to_owned()] {
        let error = PagedGguf::open(&path, &Budget::unlimited("any")).unwrap_err();
        assert!(matches!(error, Error::Io { .. }), "{error}");
    }
}
