//! The engine under a model checker that chooses the order of its threads: nothing hangs, no window is computed twice, the bits
//! are the same, nothing stays reserved. Built with `RUSTFLAGS="--cfg dd_shuttle"` only. `DD_SCHEDULES` says how many
//! schedules each scenario tries.
#![cfg(dd_shuttle)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "tests"
)]

#[path = "support/stacks.rs"]
mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use dd_core::{Budget, Bytes, HostBackend};
use dd_infinite::{Cancel, Engine, Error, InfiniteTensor, TensorSpec, TensorWindow, Tiles};
use shuttle::thread;
use support::{Calls, base, blur, hashed, values, widened};

fn in_every_order(scenario: fn()) {
    let schedules = std::env::var("DD_SCHEDULES").ok().and_then(|n| n.parse().ok()).unwrap_or(3_000);
    shuttle::check_random(scenario, schedules);
    shuttle::check_pct(scenario, schedules / 2, 3);
}

struct Scene {
    tiles: Tiles<HostBackend>,
    budget: Budget,
    top: InfiniteTensor<HostBackend>,
    calls: Calls,
    broken: Arc<AtomicBool>,
}

/// Windows of two elements; a blur on top of them. While `broken`, window 1 of the base fails.
fn scene(threads: usize, limit: Bytes) -> Scene {
    let budget = Budget::new("tiles", limit);
    let tiles = Tiles::in_memory(&Engine::new(HostBackend::default(), threads).unwrap(), budget.clone());
    let (calls, broken) = (Calls::default(), Arc::new(AtomicBool::new(false)));
    let window = TensorWindow::new([2]).unwrap();
    let (counted, fails) = (calls.clone(), Arc::clone(&broken));
    let up = tiles
        .get_or_create(TensorSpec::new("up", [None], window.clone()), move |context, args| {
            counted.note();
            if fails.load(Ordering::SeqCst) && context.index() == [1] {
                return Err("broken".into());
            }
            base(context, args)
        })
        .unwrap();
    let counted = calls.clone();
    let spec = TensorSpec::new("top", [None], window.clone()).arg(&up, widened(&window, 1));
    let top = tiles
        .get_or_create(spec, move |context, args| {
            counted.note();
            blur(context, args, 1)
        })
        .unwrap();
    Scene { tiles, budget, top, calls, broken }
}

fn check(bytes: &[u8], from: i64) {
    for (n, value) in values(bytes).into_iter().enumerate() {
        let expected = support::around(&[from + n as i64], 1, |at| Some(hashed(at)));
        assert_eq!(value.to_bits(), expected.to_bits());
    }
}

/// Whatever happened: with no reader left nothing is reserved but the cache.
fn at_rest(scene: &Scene) {
    assert!(scene.budget.usage().peak <= scene.budget.limit());
    scene.tiles.clear_cache();
    assert_eq!(scene.budget.usage().used, Bytes::ZERO);
}

fn read(scene: &Arc<Scene>, from: i64, to: i64) -> thread::JoinHandle<Result<(), Error>> {
    let scene = Arc::clone(scene);
    thread::spawn(move || {
        let read = scene.top.read(&[(from..to).into()])?;
        check(&read.bytes, from);
        Ok(())
    })
}

#[test]
fn overlapping_readers_compute_each_window_once() {
    in_every_order(|| {
        let scene = Arc::new(scene(3, Bytes::mib(1)));
        let readers = [read(&scene, 0, 4), read(&scene, 2, 6), read(&scene, 0, 2)];
        readers.into_iter().for_each(|reader| reader.join().unwrap().unwrap());
        assert_eq!(scene.calls.get(), 3 + 5);
        at_rest(&scene);
    });
}

#[test]
fn readers_who_must_take_turns_all_end() {
    in_every_order(|| {
        // Enough for a window at a time of one reader, not of two.
        let scene = Arc::new(scene(2, Bytes(9000)));
        let readers = [read(&scene, 0, 4), read(&scene, 2, 6)];
        for reader in readers {
            match reader.join().unwrap() {
                Ok(()) => {}
                Err(Error::DoesNotFit { least, limit, .. }) => assert!(least > limit),
                Err(error) => panic!("{error}"),
            }
        }
        at_rest(&scene);
    });
}

#[test]
fn a_failure_reaches_all_and_leaves_the_key_free() {
    in_every_order(|| {
        let scene = Arc::new(scene(2, Bytes::mib(1)));
        scene.broken.store(true, Ordering::SeqCst);
        let readers = [read(&scene, 0, 4), read(&scene, 2, 4)];
        for reader in readers {
            assert!(matches!(reader.join().unwrap(), Err(Error::Function { .. })));
        }
        scene.broken.store(false, Ordering::SeqCst);
        check(&scene.top.read(&[(0..4).into()]).unwrap().bytes, 0);
        at_rest(&scene);
    });
}

#[test]
fn who_waits_for_a_cancelled_reader_takes_over() {
    in_every_order(|| {
        let scene = Arc::new(scene(2, Bytes::mib(1)));
        let cancel = Cancel::default();
        let (other, trip) = (Arc::clone(&scene), cancel.clone());
        let cancelled = thread::spawn(move || {
            let mut out = vec![0; 16];
            match other.top.read_unless(&[(0..4).into()], &mut out, &cancel) {
                Ok(()) => check(&out, 0),
                Err(Error::Cancelled { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        });
        let reader = read(&scene, 0, 4);
        let tripping = thread::spawn(move || trip.cancel());
        cancelled.join().unwrap();
        tripping.join().unwrap();
        reader.join().unwrap().unwrap();
        at_rest(&scene);
    });
}

#[test]
fn work_ahead_gives_way() {
    in_every_order(|| {
        let scene = Arc::new(scene(2, Bytes(16_000)));
        scene.tiles.set_prefetch(true);
        for from in [0, 2, 4] {
            match scene.top.read(&[(from..from + 2).into()]) {
                Ok(read) => check(&read.bytes, from),
                Err(Error::DoesNotFit { least, limit, .. }) => assert!(least > limit),
                Err(error) => panic!("{error}"),
            }
        }
    });
}
