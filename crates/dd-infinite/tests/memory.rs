//! Promises about memory: what the budget counts and what the allocator says is live stay at or below the limit, the caller's
//! output apart, whatever is read.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "tests"
)]
#![cfg(not(dd_shuttle))]

#[path = "support/stacks.rs"]
mod support;

use dd_core::{Budget, Bytes, HostBackend};
use dd_infinite::{
    Blend, Engine, Error, InfiniteTensor, Region, Span, TensorSpec, TensorWindow, Tiles, Weight,
};
use support::{Rng, hashed, tensor, values};

mod counting {
    #![allow(unsafe_code, reason = "an allocator that counts is unsafe by its trait")]

    use std::alloc::{GlobalAlloc, Layout, System};
    use std::sync::atomic::{AtomicI64, Ordering};

    static LIVE: AtomicI64 = AtomicI64::new(0);
    static PEAK: AtomicI64 = AtomicI64::new(0);

    struct Counting;

    fn grow(size: usize) {
        let size = i64::try_from(size).unwrap_or(i64::MAX);
        PEAK.fetch_max(LIVE.fetch_add(size, Ordering::SeqCst) + size, Ordering::SeqCst);
    }

    // SAFETY: every call goes to the system's allocator unchanged; only sizes are counted.
    unsafe impl GlobalAlloc for Counting {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            grow(layout.size());
            // SAFETY: the caller's promise, passed on.
            unsafe { System.alloc(layout) }
        }

        unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
            grow(layout.size());
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
}

/// What the engine holds whatever is read: its tables, a pool's queues, stacks of helpers being started.
const SLACK: i64 = 16 << 10;

fn random_window(rng: &mut Rng, rank: usize) -> TensorWindow {
    let most = if rank == 1 { 60 } else { 12 };
    let size: Vec<i64> = (0..rank).map(|_| rng.range(1, most)).collect();
    let stride: Vec<i64> = size
        .iter()
        .map(|size| if rng.one_in(2) { *size } else { rng.range(size / 3 + 1, size + 3) })
        .collect();
    let offset: Vec<i64> = (0..rank).map(|_| rng.range(-9, 10)).collect();
    TensorWindow::new(size).unwrap().with_stride(stride).unwrap().with_offset(offset).unwrap()
}

/// A random DAG: each tensor sums what it sees of up to two tensors before it.
fn dag(tiles: &Tiles<HostBackend>, rng: &mut Rng, rank: usize) -> Vec<InfiniteTensor<HostBackend>> {
    let mut made: Vec<InfiniteTensor<HostBackend>> = Vec::new();
    for number in 0..rng.range(1, 5) {
        let window = random_window(rng, rank);
        let blends = [Blend::Sum, Blend::Mean, Blend::Max, Blend::Last, Blend::Weighted(Weight::Linear)];
        // The function's own: the values as bytes, and a few small things.
        let bytes = window.size().iter().product::<i64>() as u64 * 4;
        let mut spec = TensorSpec::new(format!("t{number}"), vec![None; rank], window)
            .blend(blends[rng.range(0, 5) as usize].clone())
            .batch_size(rng.range(1, 4) as usize)
            .workspace(Bytes(bytes + 1024));
        for _ in 0..rng.range(0, 3).min(number) {
            let up = &made[rng.range(0, number) as usize];
            let size: Vec<i64> = (0..rank).map(|_| rng.range(1, 15)).collect();
            let stride: Vec<i64> = (0..rank).map(|_| rng.range(1, 12)).collect();
            spec = spec.arg(up, TensorWindow::new(size).unwrap().with_stride(stride).unwrap());
        }
        let function = move |context: &dd_infinite::Context, args: &[dd_core::HostTensor]| {
            let seen: f32 = args
                .iter()
                .flat_map(|arg| arg.bytes().chunks_exact(4))
                .enumerate()
                .map(|(n, b)| f32::from_le_bytes(b.try_into().unwrap()) / (n + 2) as f32)
                .sum();
            let (region, index) = (context.region(), context.index());
            tensor(region, (0..region.volume()).map(|n| seen / 16.0 + hashed(&[n as i64, index[0]])))
        };
        made.push(tiles.get_or_create(spec, function).unwrap());
    }
    made
}

fn one_dag(seed: u64) -> (usize, usize) {
    let mut rng = Rng(seed);
    let rank = rng.range(1, 3) as usize;
    let threads = if rng.one_in(8) { 3 } else { 1 };
    let limit = Bytes::kib(rng.range(12, 120) as u64);
    let (free_engine, bound_engine) = (
        Engine::new(HostBackend::default(), 1).unwrap(),
        Engine::new(HostBackend::default(), threads).unwrap(),
    );
    let free = Tiles::in_memory(&free_engine, Budget::unlimited("free"));
    let budget = Budget::new("bound", limit);
    let bound = Tiles::in_memory(&bound_engine, budget.clone());
    let again = rng.clone();
    let expected = dag(&free, &mut rng, rank);
    let tensors = dag(&bound, &mut again.clone(), rank);
    let (mut read, mut refused, mut held) = (0, 0, 0);
    for round in 0..2 {
        let which = rng.range(0, tensors.len() as i64) as usize;
        let region = Region::new((0..rank).map(|_| {
            let start = rng.range(-40, 40);
            Span::new(start, start + rng.range(1, if rank == 1 { 300 } else { 40 }))
        }));
        let mut whole = vec![0u8; region.volume() as usize * 4];
        expected[which].read_region(&region, &mut whole).unwrap();
        let mut out = vec![0u8; whole.len()];
        // What the cache holds since the last read counts too: as much as is really there, not as much as is reserved.
        let before = counting::begin() - held;
        let result = tensors[which].read_region(&region, &mut out);
        let peak = counting::peak() - before;
        held = counting::begin() - before;
        let what = format!("seed {seed}, round {round}: {region}, {threads} threads, limit {limit}");
        assert!(budget.usage().peak <= limit, "{what}: {:?}", budget.usage());
        assert!(peak <= limit.0 as i64 + SLACK, "{what}: {peak} B live, {} allowed", limit.0);
        match result {
            Ok(()) => {
                read += 1;
                assert!(out == whole, "{what}: {:?} against {:?}", values(&out), values(&whole));
            }
            Err(Error::DoesNotFit { least, limit, .. }) => {
                refused += 1;
                assert!(least > limit, "{what}: {least} fits {limit}");
            }
            Err(error) => panic!("{what}: {error}"),
        }
    }
    bound.clear_cache();
    assert_eq!(budget.usage().used, Bytes::ZERO, "seed {seed}: something is held for ever");
    (read, refused)
}

/// One test, so that no other allocates meanwhile.
#[test]
fn nothing_exceeds_the_limit() {
    if let Some(seed) = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()) {
        one_dag(seed);
        return;
    }
    let (mut read, mut refused) = (0, 0);
    let cases = std::env::var("DD_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(3_000);
    for seed in 0..cases {
        let (a, b) = one_dag(seed);
        (read, refused) = (read + a, refused + b);
    }
    println!("{read} reads, {refused} refused");
    assert!(
        read > cases as usize && refused > cases as usize / 100,
        "{read} reads, {refused} refused: the cases are no test"
    );
    a_large_read();
}

/// 4096² of three halo layers under 16 MiB.
fn a_large_read() {
    let engine = Engine::new(HostBackend::default(), 1).unwrap();
    let budget = Budget::new("bound", Bytes::mib(16));
    let tiles = Tiles::in_memory(&engine, budget.clone());
    let mut top: Option<InfiniteTensor<HostBackend>> = None;
    for layer in 0..4 {
        let window = TensorWindow::new([256, 256]).unwrap();
        let mut spec = TensorSpec::new(format!("layer {layer}"), [None, None], window.clone())
            .workspace(Bytes::kib(257));
        if let Some(below) = &top {
            spec = spec.arg(below, support::widened(&window, 8));
        }
        let made = tiles.get_or_create(spec, move |context, _| {
            tensor(context.region(), std::iter::repeat_n(layer as f32, 256 * 256))
        });
        top = Some(made.unwrap());
    }
    let mut out = vec![0u8; 4096 * 4096 * 4];
    let before = counting::begin();
    top.unwrap().read_into(&[(0..4096).into(), (0..4096).into()], &mut out).unwrap();
    let peak = counting::peak() - before;
    println!("4096²: {peak} B live, {:?}", budget.usage().peak);
    assert!(peak <= Bytes::mib(16).0 as i64 + SLACK, "{peak}");
    assert!(budget.usage().peak <= Bytes::mib(16));
    assert!(out.chunks_exact(4).all(|b| b == 3f32.to_le_bytes()));
}
