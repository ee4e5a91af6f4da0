//! Threads, failures, batches, stores, cleanup: what happens around the reading.
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

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use dd_core::{Backend, Budget, Bytes, DType, HostBackend, TensorDesc, Tier};
use dd_infinite::{
    Blend, Cancel, EdgeMode, Engine, Error, MemoryTileStore, Region, Slice, Span, TensorSpec, TensorWindow,
    TileStore, Tiles,
};
use support::{Calls, base, hashed, pyramid, tensor, values};

type Host = HostBackend;

fn engine(threads: usize) -> Engine<Host> {
    Engine::new(HostBackend::default(), threads).unwrap()
}

fn square(size: i64) -> TensorWindow {
    TensorWindow::new([size, size]).unwrap()
}

fn plane(id: &str, size: i64) -> TensorSpec<Host> {
    TensorSpec::new(id, [None, None], square(size))
}

#[test]
fn any_number_of_threads_gives_the_same_bits_and_no_call_twice() {
    let region = Region::new([Span::new(-50, 130), Span::new(-20, 90)]);
    let mut first: Option<(Vec<u8>, u64)> = None;
    for threads in [1, 2, 3, 8, 64] {
        let engine = engine(threads);
        let tiles = Tiles::in_memory(&engine, Budget::new("tiles", Bytes::mib(64)));
        let calls = Calls::default();
        let overlapping = square(16).with_stride([12, 9]).unwrap();
        let windows = [overlapping.clone(), square(10), overlapping];
        let top = pyramid(&tiles, &[None, None], &windows, 2, &calls, |spec| spec.blend(Blend::Mean));
        let mut out = vec![0; region.volume() as usize * 4];
        top.read_region(&region, &mut out).unwrap();
        let (bits, count) = first.get_or_insert((out.clone(), calls.get()));
        assert!(*bits == out, "{threads} threads give other bits");
        assert_eq!(*count, calls.get(), "{threads} threads: calls");
    }
}

#[test]
fn readers_at_once_share_every_window() {
    let engine = engine(3);
    let tiles = Tiles::in_memory(&engine, Budget::new("tiles", Bytes::mib(64)));
    let seen: Arc<Mutex<BTreeMap<Vec<i64>, u32>>> = Arc::default();
    let noted = Arc::clone(&seen);
    let t = tiles
        .get_or_create(plane("t", 16), move |context, args| {
            *noted.lock().unwrap().entry(context.index().to_vec()).or_default() += 1;
            base(context, args)
        })
        .unwrap();
    let top = tiles
        .get_or_create(plane("top", 16).arg(&t, support::widened(&square(16), 3)), |context, args| {
            support::blur(context, args, 3)
        })
        .unwrap();
    let results: Vec<Vec<u8>> = std::thread::scope(|scope| {
        let read = || top.read(&[(0..160).into(), (0..160).into()]).unwrap().bytes;
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(read)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(results.iter().all(|bytes| *bytes == results[0]));
    let seen = seen.lock().unwrap();
    assert_eq!(seen.len(), 12 * 12);
    assert!(seen.values().all(|count| *count == 1), "{seen:?}");
}

#[test]
fn a_failure_reaches_the_reader_and_can_be_tried_again() {
    let engine = engine(2);
    let budget = Budget::new("tiles", Bytes::mib(4));
    let tiles = Tiles::in_memory(&engine, budget.clone());
    let fails = Arc::new(AtomicUsize::new(2)); // 2 fails, 1 panics, 0 works.
    let how = Arc::clone(&fails);
    let t = tiles
        .get_or_create(plane("t", 8), move |context, args| match how.load(Ordering::SeqCst) {
            2 if context.index() == [1, 1] => Err("the disk is on fire".into()),
            1 if context.index() == [1, 1] => panic!("unexpected"),
            _ => base(context, args),
        })
        .unwrap();
    let top = tiles
        .get_or_create(plane("top", 8).arg(&t, square(8)), |context, args| support::blur(context, args, 0))
        .unwrap();
    let slices: [Slice; 2] = [(0..32).into(), (0..32).into()];
    match top.read(&slices) {
        Err(Error::Function { tensor, index, source }) => {
            assert_eq!((tensor.as_str(), index), ("t", vec![1, 1]));
            assert_eq!(source.to_string(), "the disk is on fire");
        }
        other => panic!("{other:?}"),
    }
    fails.store(1, Ordering::SeqCst);
    match top.read(&slices) {
        Err(Error::Panicked { message, .. }) => assert_eq!(message, "unexpected"),
        other => panic!("{other:?}"),
    }
    fails.store(0, Ordering::SeqCst);
    assert_eq!(top.read(&slices).unwrap().bytes.len(), 32 * 32 * 4);
    tiles.clear_cache();
    assert_eq!(budget.usage().used, Bytes::ZERO);
}

#[test]
fn what_a_function_gives_is_checked() {
    let tiles = Tiles::in_memory(&engine(1), Budget::unlimited("tiles"));
    let upload = |shape: [usize; 2], dtype: DType| {
        let desc = TensorDesc::new(shape, dtype)?;
        let bytes = vec![0; desc.len_in_memory()?];
        HostBackend::default().upload(&desc, &bytes, Tier::Host)
    };
    for (number, (shape, dtype)) in
        [([4, 5], DType::F32), ([4, 4], DType::F64), ([16, 1], DType::F32)].into_iter().enumerate()
    {
        let t = tiles
            .get_or_create(plane(&format!("t{number}"), 4), move |_, _| Ok(upload(shape, dtype)?))
            .unwrap();
        let error = t.read(&[0.into(), 0.into()]).unwrap_err();
        assert!(matches!(error, Error::Output { .. }), "{shape:?} {dtype}: {error}");
    }
    let two = HostBackend::with_tiers([(Tier::Device(0), Bytes::MAX), (Tier::Host, Bytes::MAX)]);
    let tiles = Tiles::in_memory(&Engine::new(two, 1).unwrap(), Budget::unlimited("tiles"));
    let t = tiles
        .get_or_create(plane("device", 4).tier(Tier::Device(0)), move |_, _| Ok(upload([4, 4], DType::F32)?))
        .unwrap();
    assert!(
        matches!(t.read(&[0.into(), 0.into()]), Err(Error::Output { .. })),
        "on the host, not the device"
    );
    let t = tiles
        .get_or_create_batched(plane("count", 4).batch_size(3), move |_, _| {
            Ok(vec![upload([4, 4], DType::F32)?])
        })
        .unwrap();
    let error = t.read(&[(0..4).into(), (0..40).into()]).unwrap_err();
    assert!(matches!(&error, Error::Output { expected, .. } if expected.starts_with('3')), "{error}");
}

#[test]
fn bad_specs_are_refused_by_name() {
    let engine = engine(1);
    let tiles = Tiles::in_memory(&engine, Budget::unlimited("tiles"));
    let up = tiles.get_or_create(plane("up", 4), base).unwrap();
    let other = Tiles::in_memory(&self::engine(1), Budget::unlimited("other"));
    let foreign = other.get_or_create(plane("foreign", 4), base).unwrap();
    let line = TensorWindow::new([4]).unwrap();
    let gap = square(4).with_dimension_map([Some(1), Some(1)]).unwrap();
    let rows: Vec<(TensorSpec<Host>, &str)> = vec![
        (plane("", 4), "id"),
        (plane(&"x".repeat(600), 4), "id"),
        (TensorSpec::new("a", [Some(0), None], square(4)), "shape"),
        (TensorSpec::new("a", [None, None], line.clone()), "window"),
        (TensorSpec::new("a", [None, None], gap), "window"),
        (plane("a", 4).arg(&up, line), "args_windows"),
        (plane("a", 4).arg(&foreign, square(4)), "args"),
        (plane("a", 4).batch_size(0), "batch_size"),
        (plane("a", 4).dtype(DType::Q4K), "dtype"),
        (
            TensorSpec::new("a", [None, None], square(4).with_stride([2, 4]).unwrap()).dtype(DType::F8E4M3),
            "dtype",
        ),
        (plane("a", 4).tier(Tier::Device(3)), "device"),
        (plane("a", 4).chunk_size([0, 1]), "chunk_size"),
        (plane("a", 4).blend(Blend::Weighted(dd_infinite::Weight::Gaussian { sigma: 0.0 })), "blend"),
    ];
    for (spec, expected) in rows {
        match tiles.get_or_create(spec, base) {
            Err(Error::Spec { field, .. }) => assert_eq!(field, expected),
            Err(error) => panic!("{expected}: {error}"),
            Ok(_) => panic!("{expected}: accepted"),
        }
    }
    for (size, stride) in [([0, 4], [1, 1]), ([4, 4], [0, 1]), ([-1, 4], [1, 1])] {
        let window = TensorWindow::new(size).and_then(|window| window.with_stride(stride));
        assert!(matches!(window, Err(Error::Window { .. })), "{size:?} {stride:?}");
    }
}

#[test]
fn bad_reads_are_refused_and_empty_ones_call_nothing() {
    let tiles = Tiles::in_memory(&engine(1), Budget::unlimited("tiles"));
    let calls = Calls::default();
    let counted = calls.clone();
    let spec = TensorSpec::new("t", [Some(10), None], square(4));
    let t = tiles
        .get_or_create(spec, move |context, args| {
            counted.note();
            base(context, args)
        })
        .unwrap();
    let reversed = Slice::Range { start: Some(5), end: Some(2), step: 1 };
    let rows: Vec<Vec<Slice>> = vec![
        vec![reversed, 0.into()],
        vec![(0..11).into(), 0.into()],
        vec![(-1).into(), 0.into()],
        vec![(..).into(), (..).into()],
        vec![Slice::step(0..4, 0), 0.into()],
        vec![0.into()],
        vec![0.into(), 0.into(), 0.into()],
        vec![Slice::Ellipsis, Slice::Ellipsis],
        vec![0.into(), i64::MAX.into()],
    ];
    for slices in rows {
        let error = t.read(&slices).unwrap_err();
        assert!(matches!(error, Error::Region { .. }), "{slices:?}: {error}");
    }
    for slices in [[(3..3).into(), (0..5).into()], [(0..10).into(), (7..7).into()]] as [[Slice; 2]; 2] {
        assert!(t.read(&slices).unwrap().bytes.is_empty());
    }
    assert!(matches!(t.read_into(&[0.into(), 0.into()], &mut [0; 5]), Err(Error::Buffer { .. })));
    let far = i64::MAX - 3;
    let error = t.read(&[0.into(), (far..far + 2).into()]).unwrap_err();
    assert!(matches!(error, Error::Overflow { .. }), "{error}");
    assert_eq!(calls.get(), 0);
}

#[test]
fn the_least_that_would_do_does() {
    let make = |limit: Bytes| {
        let tiles = Tiles::in_memory(&engine(1), Budget::new("tiles", limit));
        pyramid(&tiles, &[None, None], &[square(32), square(32)], 4, &Calls::default(), |spec| spec)
    };
    let slices: [Slice; 2] = [(0..320).into(), (0..320).into()];
    let least = match make(Bytes::kib(8)).read(&slices) {
        Err(Error::DoesNotFit { least, limit, .. }) => {
            assert!(least > limit);
            least
        }
        other => panic!("{:?}", other.map(|read| read.desc)),
    };
    let fits = make(least).read(&slices).unwrap();
    assert_eq!(fits, make(Bytes::gib(1)).read(&slices).unwrap());
}

#[test]
fn a_read_inside_a_function_is_refused() {
    let tiles = Tiles::in_memory(&engine(2), Budget::unlimited("tiles"));
    let up = tiles.get_or_create(plane("up", 4), base).unwrap();
    let t = tiles
        .get_or_create(plane("t", 4), move |context, _| {
            let error = up.read(&[0.into(), 0.into()]).unwrap_err();
            assert!(matches!(error, Error::Nested { .. }));
            base(context, &[])
        })
        .unwrap();
    t.read(&[0.into(), 0.into()]).unwrap();
}

#[test]
fn batches_are_gathered_and_give_the_same() {
    let sizes: Arc<Mutex<Vec<usize>>> = Arc::default();
    let read = |batch: usize, sizes: Arc<Mutex<Vec<usize>>>| {
        let tiles = Tiles::in_memory(&engine(1), Budget::new("tiles", Bytes::mib(8)));
        let t = tiles
            .get_or_create_batched(plane("t", 8).batch_size(batch), move |contexts, args| {
                sizes.lock().unwrap().push(contexts.len());
                contexts.iter().zip(args).map(|(context, args)| base(context, args)).collect()
            })
            .unwrap();
        t.read(&[(0..64).into(), (-3..61).into()]).unwrap().bytes
    };
    let alone = read(1, Arc::default());
    assert_eq!(read(5, Arc::clone(&sizes)), alone);
    let sizes = sizes.lock().unwrap();
    assert_eq!(sizes.iter().sum::<usize>(), 8 * 9);
    assert!(sizes.iter().all(|n| *n <= 5) && sizes.iter().filter(|n| **n == 5).count() > 8, "{sizes:?}");
}

#[test]
fn seeds_depend_on_seed_id_and_index_alone() {
    let draw = |id: &str, seed: u64, threads: usize, region: [Slice; 2]| {
        let tiles = Tiles::in_memory(&engine(threads), Budget::unlimited("tiles"));
        let t = tiles
            .get_or_create(plane(id, 1).seed(seed), |context, _| {
                tensor(
                    context.region(),
                    std::iter::once(f32::from_bits((context.seed() >> 40) as u32 | 0x3f00_0000)),
                )
            })
            .unwrap();
        t.read(&region).unwrap().bytes
    };
    let one: [Slice; 2] = [7.into(), (-9).into()];
    let row: [Slice; 2] = [7.into(), (-12..0).into()];
    assert_eq!(draw("a", 1, 1, one), draw("a", 1, 4, row)[12..16]);
    assert_ne!(draw("a", 1, 1, one), draw("b", 1, 1, one));
    assert_ne!(draw("a", 1, 1, one), draw("a", 2, 1, one));
    let all: std::collections::BTreeSet<Vec<u8>> =
        draw("a", 1, 1, [(0..10).into(), (0..10).into()]).chunks(4).map(<[u8]>::to_vec).collect();
    assert_eq!(all.len(), 100);
}

#[test]
fn a_cancelled_read_ends_and_others_take_over() {
    let tiles = Tiles::in_memory(&engine(1), Budget::new("tiles", Bytes::mib(8)));
    let (cancel, armed) = (Cancel::default(), Arc::new(AtomicBool::new(true)));
    let (trip, arm) = (cancel.clone(), Arc::clone(&armed));
    let t = tiles
        .get_or_create(plane("t", 4), move |context, args| {
            if context.index() == [2, 2] && arm.load(Ordering::SeqCst) {
                trip.cancel();
            }
            base(context, args)
        })
        .unwrap();
    let mut out = vec![0; 40 * 40 * 4];
    let slices: [Slice; 2] = [(0..40).into(), (0..40).into()];
    assert!(matches!(t.read_unless(&slices, &mut out, &cancel), Err(Error::Cancelled { .. })));
    assert!(t.computed() < 100, "{} windows for a read that was cancelled at the 23rd", t.computed());
    armed.store(false, Ordering::SeqCst);
    t.read_into(&slices, &mut out).unwrap();
    let expected: Vec<f32> =
        Region::new([Span::new(0, 40), Span::new(0, 40)]).points().map(|at| hashed(&at)).collect();
    assert_eq!(values(&out), expected);
}

#[test]
fn windows_come_back_from_a_store_and_conflicts_are_named() {
    let store: Arc<dyn TileStore> = Arc::new(MemoryTileStore::new(Budget::unlimited("store")));
    let open = |calls: &Calls| {
        let tiles = Tiles::with_store(&engine(1), Budget::new("tiles", Bytes::mib(8)), Arc::clone(&store));
        let shape = [Some(20), None];
        (tiles.clone(), pyramid(&tiles, &shape, &[square(8), square(8)], 2, calls, |spec| spec.version("1")))
    };
    let slices: [Slice; 2] = [(..).into(), (-11..30).into()];
    let (first, second) = (Calls::default(), Calls::default());
    let bytes = open(&first).1.read(&slices).unwrap().bytes;
    assert!(first.get() > 0);
    let (tiles, top) = open(&second);
    assert_eq!(top.read(&slices).unwrap().bytes, bytes);
    assert_eq!(second.get(), 0, "everything was stored");
    assert!(store.remove("blur 1", &[1, 1]).unwrap());
    tiles.clear_cache();
    assert_eq!(top.read(&slices).unwrap().bytes, bytes);
    assert_eq!(second.get(), 1, "what was removed is computed again, from stored windows");
    let rows: Vec<(&str, TensorSpec<Host>)> = vec![
        ("version", TensorSpec::new("base", [Some(20), None], square(8)).version("2")),
        ("shape", TensorSpec::new("base", [Some(21), None], square(8)).version("1")),
        ("dtype", TensorSpec::new("base", [Some(20), None], square(8)).version("1").dtype(DType::F64)),
        (
            "window",
            TensorSpec::new("base", [Some(20), None], square(8).with_edge(EdgeMode::Drop)).version("1"),
        ),
        ("blend", TensorSpec::new("base", [Some(20), None], square(8)).version("1").blend(Blend::Max)),
    ];
    for (field, spec) in rows {
        match tiles.get_or_create(spec, base) {
            Err(Error::Conflict { field: found, .. }) => assert_eq!(found, field),
            other => panic!("{field}: {:?}", other.map(|t| t.id().to_owned())),
        }
    }
}

#[test]
fn a_full_store_is_an_error_and_loses_nothing() {
    let store: Arc<dyn TileStore> =
        Arc::new(MemoryTileStore::new(Budget::new("store", Bytes(8 * 8 * 4 * 3))));
    let tiles = Tiles::with_store(&engine(1), Budget::new("tiles", Bytes::mib(1)), Arc::clone(&store));
    let t = tiles.get_or_create(plane("t", 8), base).unwrap();
    let read = |y: i64| t.read(&[(y * 8..y * 8 + 8).into(), (0..8).into()]);
    let stored: Vec<_> = (0..3).map(|y| read(y).unwrap()).collect();
    assert!(matches!(read(3), Err(Error::Full { .. })));
    tiles.clear_cache();
    assert_eq!((0..3).map(|y| read(y).unwrap()).collect::<Vec<_>>(), stored);
}

#[test]
fn marked_upstream_windows_go_when_nothing_can_need_them() {
    let tiles = Tiles::in_memory(&engine(1), Budget::new("tiles", Bytes::mib(64)));
    let up = tiles.get_or_create(plane("up", 8), base).unwrap();
    let top = tiles
        .get_or_create(plane("top", 8).arg(&up, support::widened(&square(8), 2)), |context, args| {
            support::blur(context, args, 2)
        })
        .unwrap();
    top.read(&[(0..40).into(), (0..40).into()]).unwrap();
    assert_eq!(tiles.usage().windows, 25 + 49);
    up.mark_for_cleanup();
    // Those in the middle have all nine dependents; those at the rim may still be needed.
    assert_eq!(tiles.usage().windows, 25 + 49 - 9);
    top.read(&[(0..40).into(), (40..80).into()]).unwrap();
    assert_eq!(up.computed(), 49 + 7 * 5);
    let guard = top.scoped();
    drop(guard);
    up.clear();
    assert_eq!((tiles.usage().windows, tiles.usage().cached), (0, Bytes::ZERO));
}

#[test]
fn a_window_limit_holds() {
    let tiles = Tiles::in_memory(&engine(1), Budget::new("tiles", Bytes::mib(64)));
    tiles.set_window_limit(10);
    let t = tiles.get_or_create(plane("t", 8), base).unwrap();
    t.read(&[(0..80).into(), (0..80).into()]).unwrap();
    assert!(tiles.usage().windows <= 10);
    assert_eq!(t.computed(), 100);
}

#[test]
fn the_cache_gives_way_to_others_of_the_same_budget() {
    let budget = Budget::new("job", Bytes::mib(1));
    let tiles = Tiles::in_memory(&engine(1), budget.clone());
    let t = tiles.get_or_create(plane("t", 32), base).unwrap();
    t.read(&[(0..320).into(), (0..320).into()]).unwrap();
    assert!(budget.usage().used > Bytes::kib(256));
    let other = budget.reserve(Bytes::kib(960), &dd_core::Holder::new("other")).unwrap();
    assert!(
        t.read(&[(0..320).into(), (0..320).into()]).is_ok(),
        "64 KiB are enough for one window at a time"
    );
    drop(other);
}

#[test]
fn work_ahead_follows_the_movement() {
    let tiles = Tiles::in_memory(&engine(2), Budget::new("tiles", Bytes::mib(16)));
    tiles.set_prefetch(true);
    let t = tiles.get_or_create(plane("t", 8), base).unwrap();
    t.read(&[(0..16).into(), (0..16).into()]).unwrap();
    t.read(&[(0..16).into(), (16..32).into()]).unwrap();
    // Two reads of four windows, and the next four ahead: they are there, or being computed, or about to be.
    t.read(&[(0..16).into(), (32..48).into()]).unwrap();
    assert!(t.computed() >= 12);
    while t.computed() < 16 {
        std::thread::yield_now(); // The region after the last one, by a helper.
    }
    assert_eq!(t.computed(), 16);
}

#[test]
fn a_dag_may_span_several_stores() {
    let engine = engine(2);
    let (small, large) = (Budget::new("small", Bytes::kib(64)), Budget::new("large", Bytes::mib(8)));
    let (a, b) = (Tiles::in_memory(&engine, small.clone()), Tiles::in_memory(&engine, large));
    let up = a.get_or_create(plane("up", 16), base).unwrap();
    let top = b
        .get_or_create(plane("top", 16).arg(&up, support::widened(&square(16), 2)), |context, args| {
            support::blur(context, args, 2)
        })
        .unwrap();
    let read = top.read(&[(0..160).into(), (0..160).into()]).unwrap();
    let mut dense = support::Dense::default();
    let expected: Vec<f32> = Region::new([Span::new(0, 160), Span::new(0, 160)])
        .points()
        .map(|at| dense.at(1, 2, &[None, None], &at).unwrap())
        .collect();
    assert_eq!(values(&read.bytes), expected);
    assert!(small.usage().peak <= Bytes::kib(64));
}
