//! What is read is what would be computed without windows: bit for bit, on any region, for any windows, threads and limits.
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
    Blend, EdgeMode, Engine, Error, Order, Region, Slice, Span, TensorSpec, TensorWindow, Tiles, Weight,
};
use support::{Calls, Dense, Rng, base, pyramid, tensor, values};

fn random_window(rng: &mut Rng, rank: usize, most: i64) -> TensorWindow {
    let size: Vec<i64> = (0..rank).map(|_| rng.range(1, most)).collect();
    let stride: Vec<i64> =
        size.iter().map(|size| if rng.one_in(2) { *size } else { rng.range(1, size + 1) }).collect();
    let offset: Vec<i64> = (0..rank).map(|_| rng.range(-9, 10)).collect();
    let edge = if rng.one_in(3) { EdgeMode::Pad } else { EdgeMode::Clip };
    TensorWindow::new(size).unwrap().with_stride(stride).unwrap().with_offset(offset).unwrap().with_edge(edge)
}

fn same(found: &[f32], expected: &[f32], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (n, (a, b)) in found.iter().zip(expected).enumerate() {
        assert_eq!(a.to_bits(), b.to_bits(), "{what}: element {n}: {a} against {b}");
    }
}

/// One random stack of blurs, read in random regions.
fn seamless(seed: u64) {
    let mut rng = Rng(seed);
    let rank = rng.range(1, 4) as usize;
    let most = if rank == 3 { 5 } else { 12 };
    let depth = rng.range(1, if rank == 3 { 3 } else { 5 }) as usize;
    let halo = rng.range(0, 3).min(if rank == 3 { 1 } else { 2 });
    let shape: Vec<Option<i64>> =
        (0..rank).map(|_| if rng.one_in(2) { None } else { Some(rng.range(1, 30)) }).collect();
    let windows: Vec<TensorWindow> = (0..=depth).map(|_| random_window(&mut rng, rank, most)).collect();
    let threads = [1, 1, 2, 4][rng.range(0, 4) as usize];
    let engine = Engine::new(HostBackend::default(), threads).unwrap();
    let limit = if rng.one_in(2) { Bytes::mib(64) } else { Bytes::kib(rng.range(60, 200) as u64) };
    let tiles = Tiles::in_memory(&engine, Budget::new("tiles", limit));
    // Beyond an edge a padded argument holds the initial value: only that of a sum adds nothing.
    let padded = windows.iter().any(|window| window.edge() == EdgeMode::Pad);
    let blends = [Blend::Last, Blend::Mean, Blend::Max, Blend::Min];
    let blend = blends[rng.range(0, if padded { 2 } else { 4 }) as usize].clone();
    let top = pyramid(&tiles, &shape, &windows, halo, &Calls::default(), |spec| {
        spec.blend(blend.clone()).batch_size(1)
    });
    let mut dense = Dense::default();
    for read in 0..4 {
        let spans = shape.iter().map(|len| match len {
            None => {
                let start = rng.range(-25, 25);
                Span::new(start, start + rng.range(1, if rank == 3 { 6 } else { 20 }))
            }
            Some(len) => {
                let start = rng.range(0, *len);
                Span::new(start, rng.range(start, *len) + 1)
            }
        });
        let region = Region::new(spans);
        let mut out = vec![0xaau8; region.volume() as usize * 4];
        let what =
            format!("seed {seed}, read {read}: {region} of {shape:?}, {threads} threads, limit {limit}");
        match top.read_region(&region, &mut out) {
            Ok(()) => {}
            Err(Error::DoesNotFit { least, limit, .. }) if least > limit => continue,
            Err(error) => panic!("{what}: {error}"),
        }
        let expected: Vec<f32> =
            region.points().map(|at| dense.at(depth, halo, &shape, &at).unwrap()).collect();
        same(&values(&out), &expected, &what);
    }
}

#[test]
fn windows_leave_no_seam() {
    let from = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok());
    match from {
        Some(seed) => seamless(seed),
        None => (0..250).for_each(seamless),
    }
}

fn ones(
    tiles: &Tiles<HostBackend>,
    id: &str,
    window: TensorWindow,
    shape: &[Option<i64>],
) -> dd_infinite::InfiniteTensor<HostBackend> {
    let spec = TensorSpec::new(id, shape, window);
    tiles
        .get_or_create(spec, |context, _| {
            let value = context.index().iter().sum::<i64>() as f32;
            tensor(context.region(), context.region().points().map(|_| value))
        })
        .unwrap()
}

fn unlimited() -> (Engine<HostBackend>, Tiles<HostBackend>) {
    let engine = Engine::new(HostBackend::default(), 1).unwrap();
    let tiles = Tiles::in_memory(&engine, Budget::unlimited("tiles"));
    (engine, tiles)
}

/// Each blend against a fold by hand, in window order, of 1-D windows of 4 that move by 2.
#[test]
fn blends_fold_in_window_order() {
    let (_engine, tiles) = unlimited();
    let window = TensorWindow::new([4]).unwrap().with_stride([2]).unwrap();
    let custom = dd_infinite::CustomFold::new("digits", 7.0, |all, next| all * 10.0 + next);
    let linear = |a: f64, b: f64, at: f64| {
        // Place `at` of the earlier window is place `at - 2` of the later one.
        let weight = |i: f64| ((i + 0.5) / 2.0f64).min(2.0 - (i + 0.5) / 2.0);
        (weight(at) * a + weight(at - 2.0) * b) / (weight(at) + weight(at - 2.0))
    };
    type ByHand = Box<dyn Fn(f64, f64, f64) -> f64>;
    let rows: Vec<(Blend, ByHand)> = vec![
        (Blend::Sum, Box::new(|a, b, _| a + b)),
        (Blend::Mean, Box::new(|a, b, _| (a + b) / 2.0)),
        (Blend::Max, Box::new(|a, b, _| a.max(b))),
        (Blend::Min, Box::new(|a, b, _| a.min(b))),
        (Blend::Last, Box::new(|_, b, _| b)),
        (Blend::Weighted(Weight::Linear), Box::new(linear)),
        (Blend::Custom(custom), Box::new(|a, b, _| (70.0 + a) * 10.0 + b)),
    ];
    for (number, (blend, by_hand)) in rows.into_iter().enumerate() {
        let name = format!("{blend:?}");
        let spec = TensorSpec::new(format!("t{number}"), [None], window.clone()).blend(blend);
        let t = tiles
            .get_or_create(spec, |context, _| {
                tensor(context.region(), context.region().points().map(|_| context.index()[0] as f32))
            })
            .unwrap();
        let read = t.read(&[(-10..10).into()]).unwrap();
        let expected = (-10..10i64).map(|x| {
            let later = x.div_euclid(2);
            by_hand((later - 1) as f64, later as f64, (x - 2 * (later - 1)) as f64) as f32
        });
        same(&values(&read.bytes), &expected.collect::<Vec<f32>>(), &name);
    }
}

#[test]
fn every_weight_hides_a_constant() {
    let (_engine, tiles) = unlimited();
    let weights = [Weight::Linear, Weight::Cosine, Weight::SmootherStep, Weight::Gaussian { sigma: 0.125 }];
    for (number, weight) in weights.into_iter().enumerate() {
        let window = TensorWindow::new([6, 5]).unwrap().with_stride([2, 3]).unwrap();
        let spec = TensorSpec::new(format!("w{number}"), [None, None], window).blend(Blend::Weighted(weight));
        let t = tiles
            .get_or_create(spec, |context, _| {
                tensor(context.region(), context.region().points().map(|_| 3.5))
            })
            .unwrap();
        let read = values(&t.read(&[(-7..9).into(), (-4..11).into()]).unwrap().bytes);
        assert!(read.iter().all(|x| (x - 3.5).abs() < 1e-5), "{weight:?}: {read:?}");
    }
}

#[test]
fn gaps_hold_the_initial_value_everywhere() {
    let (_engine, tiles) = unlimited();
    let window = TensorWindow::new([2]).unwrap().with_stride([5]).unwrap();
    let spec = TensorSpec::new("gaps", [None], window).initial(-1.0);
    let t = tiles.get_or_create(spec, base).unwrap();
    let expected: Vec<f32> =
        (-6..9i64).map(|x| if x.rem_euclid(5) < 2 { support::hashed(&[x]) } else { -1.0 }).collect();
    same(&values(&t.read(&[(-6..9).into()]).unwrap().bytes), &expected, "gaps");
}

#[test]
fn edges_are_clipped_padded_or_dropped() {
    let (_engine, tiles) = unlimited();
    for (edge, covered) in [(EdgeMode::Clip, 10), (EdgeMode::Pad, 10), (EdgeMode::Drop, 8)] {
        let window = TensorWindow::new([4]).unwrap().with_edge(edge);
        let spec = TensorSpec::new(format!("{edge:?}"), [Some(10)], window);
        let t = tiles.get_or_create(spec, base).unwrap();
        let expected: Vec<f32> =
            (0..10i64).map(|x| if x < covered { support::hashed(&[x]) } else { 0.0 }).collect();
        same(&values(&t.read(&[(..).into()]).unwrap().bytes), &expected, &format!("{edge:?}"));
    }
}

/// A map that swaps coordinates transposes; one that repeats a coordinate gives windows along the diagonal.
#[test]
fn dimension_maps_swap_and_repeat() {
    let (_engine, tiles) = unlimited();
    let swapped = TensorWindow::new([3, 2]).unwrap().with_dimension_map([Some(1), Some(0)]).unwrap();
    let plain = TensorWindow::new([2, 3]).unwrap();
    let up = tiles
        .get_or_create(TensorSpec::new("up", [None, None], TensorWindow::new([2, 3]).unwrap()), base)
        .unwrap();
    let spec = TensorSpec::new("transposed", [None, None], plain).arg(&up, swapped);
    let t = tiles
        .get_or_create(spec, |context, args| {
            let (seen, from) = (context.arg_region(0).unwrap(), values(args[0].bytes()));
            let at = |p: &[i64]| from[seen.number(&[p[1], p[0]]).unwrap() as usize];
            tensor(context.region(), context.region().points().map(|p| at(&p)))
        })
        .unwrap();
    let region = Region::new([Span::new(-5, 6), Span::new(-4, 7)]);
    let mut out = vec![0; region.volume() as usize * 4];
    t.read_region(&region, &mut out).unwrap();
    let expected: Vec<f32> = region.points().map(|p| support::hashed(&[p[1], p[0]])).collect();
    same(&values(&out), &expected, "swapped");

    let diagonal = TensorWindow::new([2, 2]).unwrap().with_dimension_map([Some(0), Some(0)]).unwrap();
    let d = ones(&tiles, "diagonal", diagonal, &[None, None]);
    let read = values(&d.read(&[(-4..6).into(), (-4..6).into()]).unwrap().bytes);
    let expected: Vec<f32> = Region::new([Span::new(-4, 6), Span::new(-4, 6)])
        .points()
        .map(|p| if p[0].div_euclid(2) == p[1].div_euclid(2) { p[0].div_euclid(2) as f32 } else { 0.0 })
        .collect();
    same(&read, &expected, "diagonal");
}

#[test]
fn slices_squeeze_step_and_expand() {
    let (_engine, tiles) = unlimited();
    let shape = [Some(3), None, None];
    let t = tiles
        .get_or_create(TensorSpec::new("t", shape, TensorWindow::new([3, 4, 5]).unwrap()), base)
        .unwrap();
    type Row = (Vec<Slice>, Vec<usize>, Vec<Vec<i64>>);
    let rows: Vec<Row> = vec![
        (
            vec![1.into(), (-2..1).into(), (0..2).into()],
            vec![3, 2],
            vec![vec![1], vec![-2, -1, 0], vec![0, 1]],
        ),
        (
            vec![(..).into(), Slice::step(-7..8, 6), (-1).into()],
            vec![3, 3],
            vec![vec![0, 1, 2], vec![-7, -1, 5], vec![-1]],
        ),
        (
            vec![Slice::Ellipsis, (4..5).into(), Slice::step(0..1000, 333)],
            vec![3, 1, 4],
            vec![vec![0, 1, 2], vec![4], vec![0, 333, 666, 999]],
        ),
        (
            vec![(1..).into(), 3.into(), 4.into(), Slice::Ellipsis],
            vec![2],
            vec![vec![1, 2], vec![3], vec![4]],
        ),
        (vec![0.into(), (5..5).into(), (0..3).into()], vec![0, 3], vec![vec![], vec![], vec![]]),
    ];
    for (slices, shape, coordinates) in rows {
        let read = t.read(&slices).unwrap();
        assert_eq!(read.desc.shape(), shape, "{slices:?}");
        let mut expected = Vec::new();
        for a in &coordinates[0] {
            for b in &coordinates[1] {
                expected.extend(coordinates[2].iter().map(|c| support::hashed(&[*a, *b, *c])));
            }
        }
        same(&values(&read.bytes), &expected, &format!("{slices:?}"));
    }
}

#[test]
fn streams_give_every_element_once_in_any_order() {
    for (order, limit) in
        [(Order::Rows, Bytes::mib(8)), (Order::Least, Bytes::kib(100)), (Order::Least, Bytes::mib(8))]
    {
        let engine = Engine::new(HostBackend::default(), 2).unwrap();
        let tiles = Tiles::in_memory(&engine, Budget::new("tiles", limit));
        let windows = vec![TensorWindow::new([8, 8]).unwrap(); 3];
        let top = pyramid(&tiles, &[None, None], &windows, 2, &Calls::default(), |spec| spec);
        let region = Region::new([Span::new(-19, 50), Span::new(3, 77)]);
        let (mut seen, mut dense) = (0, Dense::default());
        for piece in top.stream(&region, order).unwrap() {
            let (part, bytes) = piece.unwrap();
            assert!(region.covers(&part));
            seen += part.volume();
            let expected: Vec<f32> =
                part.points().map(|at| dense.at(2, 2, &[None, None], &at).unwrap()).collect();
            same(&values(&bytes), &expected, &format!("{order:?} {part}"));
        }
        assert_eq!(seen, region.volume(), "{order:?}");
    }
}

/// The raster test: windows of 256², halo 8, depth 3, reads of 512² over 4096². 1,464 windows are distinct.
#[test]
fn a_raster_computes_little_twice() {
    let raster = |limit: Bytes, stream: bool| {
        let engine = Engine::new(HostBackend::default(), 1).unwrap();
        let tiles = Tiles::in_memory(&engine, Budget::new("tiles", limit));
        let calls = Calls::default();
        let mut top: Option<dd_infinite::InfiniteTensor<HostBackend>> = None;
        for layer in 0..4 {
            let window = TensorWindow::new([256, 256]).unwrap();
            let mut spec = TensorSpec::new(format!("layer {layer}"), [None, None], window.clone());
            if let Some(below) = &top {
                spec = spec.arg(below, support::widened(&window, 8));
            }
            let counted = calls.clone();
            let made = tiles.get_or_create(spec, move |context, _| {
                counted.note();
                tensor(context.region(), std::iter::repeat_n(1.0, 256 * 256))
            });
            top = Some(made.unwrap());
        }
        let (top, mut out) = (top.unwrap(), vec![0u8; 512 * 512 * 4]);
        if stream {
            let region = Region::new([Span::new(0, 4096), Span::new(0, 4096)]);
            let mut buffer = Vec::new();
            let mut pieces = top.stream(&region, Order::Least).unwrap();
            while pieces.next_into(&mut buffer).unwrap().is_some() {}
        } else {
            for y in (0..4096).step_by(512) {
                for x in (0..4096).step_by(512) {
                    top.read_into(&[(y..y + 512).into(), (x..x + 512).into()], &mut out).unwrap();
                }
            }
        }
        calls.get()
    };
    let distinct = 16 * 16 + 18 * 18 + 20 * 20 + 22 * 22;
    for (limit, stream, most) in [
        (Bytes::gib(1), false, 1.0),
        (Bytes::mib(64), false, 1.05),
        (Bytes::mib(64), true, 1.05),
        (Bytes::mib(16), true, 1.5),
    ] {
        let ratio = raster(limit, stream) as f64 / f64::from(distinct);
        println!("{limit}, as one stream {stream}: {ratio:.3}");
        assert!(
            ratio <= most,
            "{limit}, as one stream {stream}: {ratio:.3} of the distinct windows, at most {most}"
        );
    }
}
