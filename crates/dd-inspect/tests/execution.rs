//! What is said about memory against what is really held, and that plans hold.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, missing_docs, reason = "tests")]

#[path = "support/counting.rs"]
mod counting;
#[path = "support/networks.rs"]
mod networks;

use std::alloc::System;
use std::sync::{Mutex, PoisonError};

use dd_core::{Budget, Bytes};
use dd_inspect::arena::{ArenaPlan, PlanOptions};
use dd_inspect::estimate::{NetworkCost, Work};
use dd_inspect::exec::Executor;
use dd_inspect::graph::{Axis, Graph, GraphBuilder, Sizes};
use dd_inspect::layer::{Activation, Layer};
use dd_inspect::liveness::Liveness;
use dd_inspect::program::{Inference, Optimizer, Program, Training};
use dd_inspect::{Error, reorder};

use counting::Counting;

#[global_allocator]
static ALLOCATOR: Counting<System> = Counting::new(System);
/// One test at a time: the allocator counts all threads.
static TURN: Mutex<()> = Mutex::new(());

fn unlimited() -> Budget {
    Budget::unlimited("test")
}

fn works() -> Vec<Work> {
    let training = |optimizer| Work::Training(Training { optimizer, ..Training::default() });
    let mut all = vec![Work::default()];
    all.extend([Optimizer::Sgd, Optimizer::Momentum, Optimizer::AdamW].map(training));
    all
}

#[test]
fn the_peak_is_never_below_what_is_measured_and_within_two_percent() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    for (name, build, sizes) in networks::ALL {
        let graph = build().unwrap();
        for (work, size) in works().into_iter().flat_map(|work| sizes.map(|size| (work, size))) {
            let said = NetworkCost::new(graph.clone(), work).estimate(size).unwrap().at_most;
            let program = work.program(&graph, size).unwrap();
            let mut executor = Executor::on_heap(&program, &unlimited()).unwrap();
            let ((), measured) = ALLOCATOR.peak_of(|| {
                executor.start(3).unwrap();
                executor.run().unwrap();
            });
            let (said, measured) = (said.0 as f64, measured as f64);
            assert!(said >= measured, "{name} {work:?} {size:?}: said {said}, measured {measured}");
            assert!(said <= measured * 1.02, "{name} {work:?} {size:?}: said {said}, measured {measured}");
        }
    }
}

/// Results of the outputs and gradients, on the heap or in an arena.
fn results(program: &Program, arena: bool) -> Vec<Vec<u32>> {
    let mut executor = if arena {
        let options = PlanOptions { guard: 64, ..PlanOptions::default() };
        let plan = ArenaPlan::of_program(program, &options).unwrap();
        Executor::in_arena(program, plan, &unlimited()).unwrap()
    } else {
        Executor::on_heap(program, &unlimited()).unwrap()
    };
    executor.start(5).unwrap();
    executor.run().unwrap();
    let wanted = program.outputs().iter().chain(program.gradients().iter().flatten()).chain(program.params());
    let read = |id| executor.read(id).unwrap().iter().map(|value| value.to_bits()).collect::<Vec<u32>>();
    let all: Vec<Vec<u32>> = wanted.map(|id| read(*id)).collect();
    assert!(
        all.iter().flatten().all(|bits| f32::from_bits(*bits).is_finite()),
        "what was not written was read"
    );
    all
}

fn keep_all(program: &mut Program) {
    let wanted: Vec<_> =
        program.outputs().iter().chain(program.gradients().iter().flatten()).copied().collect();
    wanted.into_iter().for_each(|id| program.keep(id));
}

#[test]
fn an_arena_gives_the_same_results_bit_by_bit() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let mut graphs: Vec<(Graph, Sizes)> =
        networks::ALL.iter().map(|(_, build, sizes)| (build().unwrap(), sizes[1])).collect();
    graphs.push((networks::odds_and_ends(false).unwrap(), Sizes::batch(3)));
    graphs.push((networks::odds_and_ends(true).unwrap(), Sizes::batch(3)));
    for (graph, sizes) in graphs {
        for work in works() {
            let mut program = work.program(&graph, sizes).unwrap();
            keep_all(&mut program);
            assert_eq!(results(&program, false), results(&program, true), "{} {work:?}", graph.name());
        }
    }
}

#[test]
fn a_broken_plan_is_found_out() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let program = networks::unet().unwrap().inference(Sizes::batch(2), &Inference::default()).unwrap();
    let options = PlanOptions { guard: 16, ..PlanOptions::default() };
    let good = ArenaPlan::of_program(&program, &options).unwrap();
    let mut found = 0;
    for at in 0..good.offsets.len() {
        // Each block is moved onto whatever begins at zero.
        let mut broken = good.clone();
        if std::mem::replace(&mut broken.offsets[at], 0) == 0 {
            continue;
        }
        let mut executor = Executor::in_arena(&program, broken, &unlimited()).unwrap();
        executor.start(1).unwrap();
        let same = executor.run().is_ok()
            && program.outputs().iter().all(|id| {
                let mut right = Executor::on_heap(&program, &unlimited()).unwrap();
                right.start(1).unwrap();
                right.run().unwrap();
                let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                bits(right.read(*id).unwrap()) == bits(executor.read(*id).unwrap())
            });
        found += usize::from(!same);
    }
    assert!(found * 2 > good.offsets.len(), "{found} of {} broken plans were found out", good.offsets.len());
}

#[test]
fn gradients_are_those_of_small_differences() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let mut graphs: Vec<(Graph, Sizes)> =
        networks::ALL.iter().map(|(_, build, sizes)| (build().unwrap(), sizes[0])).collect();
    graphs.push((networks::odds_and_ends(false).unwrap(), Sizes::batch(2)));
    graphs.push((networks::odds_and_ends(true).unwrap(), Sizes::batch(2)));
    for (graph, sizes) in graphs {
        check_gradients(&graph, sizes);
    }
}

fn check_gradients(graph: &Graph, sizes: Sizes) {
    let mut training = graph.training(sizes, &Training::default()).unwrap();
    keep_all(&mut training);
    let forward = graph.inference(sizes, &Inference::default()).unwrap();
    let mut executor = Executor::on_heap(&training, &unlimited()).unwrap();
    executor.start(9).unwrap();
    let start: Vec<Vec<f32>> =
        training.params().iter().map(|id| executor.read(*id).unwrap().to_vec()).collect();
    let inputs: Vec<Vec<f32>> =
        training.inputs().iter().map(|id| executor.read(*id).unwrap().to_vec()).collect();
    executor.run().unwrap();
    let mut again = Executor::on_heap(&forward, &unlimited()).unwrap();
    again.start(9).unwrap();
    for (id, values) in forward.inputs().iter().zip(&inputs) {
        again.set(*id, values).unwrap();
    }
    let mut loss = |params: &[Vec<f32>]| {
        forward.params().iter().zip(params).for_each(|(id, values)| again.set(*id, values).unwrap());
        again.run().unwrap();
        let of = |id| {
            let y = again.read(id).unwrap();
            y.iter().map(|y| f64::from(*y) * f64::from(*y)).sum::<f64>() / (2.0 * y.len() as f64)
        };
        forward.outputs().iter().map(|id| of(*id)).sum::<f64>()
    };
    for (at, gradient) in training.gradients().iter().enumerate() {
        let Some(gradient) = gradient else { continue };
        let gradient = executor.read(*gradient).unwrap();
        let largest = gradient.iter().map(|g| g.abs()).fold(0.0f32, f32::max);
        for element in [0, gradient.len() / 3, gradient.len() - 1] {
            // Kinks of ReLU and of the largest of a window spoil large steps, rounding small ones: the best of some counts.
            let errors = [3e-2f32, 1e-2, 3e-3, 1e-3].map(|step| {
                let mut moved = start.clone();
                moved[at][element] += step;
                let up = loss(&moved);
                moved[at][element] = start[at][element] - step;
                let down = loss(&moved);
                ((up - down) / f64::from(2.0 * step) - f64::from(gradient[element])).abs()
            });
            let error = errors.into_iter().fold(f64::MAX, f64::min);
            let name = &graph.params()[at].name;
            let scale = f64::from(gradient[element].abs().max(0.05 * largest)).max(1e-5);
            assert!(error <= 0.05 * scale, "{} {name}[{element}]: off by {error} of {scale}", graph.name());
        }
    }
}

#[test]
fn checkpointed_segments_hold_less_and_give_the_same_gradients() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let chain = |checkpointed: bool| {
        let mut b = GraphBuilder::new("chain");
        let mut x = b.input("x", [Axis::Batch, Axis::Fixed(32)]);
        for _ in 0..6 {
            let part = |b: &mut GraphBuilder| {
                let mut h = x;
                for _ in 0..4 {
                    h = b.linear(h, 32)?;
                    h = b.activation(h, Activation::Gelu)?;
                }
                Ok(h)
            };
            x = if checkpointed { b.checkpointed(part).unwrap() } else { part(&mut b).unwrap() };
        }
        b.finish([x]).unwrap().training(Sizes::batch(64), &Training::default()).unwrap()
    };
    let [mut plain, mut segmented] = [false, true].map(chain);
    let transient = |program: &Program| {
        let live = Liveness::of(program);
        live.peak.0 - live.resident.0
    };
    assert!(
        transient(&segmented) * 2 < transient(&plain),
        "{} of {}",
        transient(&segmented),
        transient(&plain)
    );
    keep_all(&mut plain);
    keep_all(&mut segmented);
    let gradients = |program: &Program| {
        let outputs = program.outputs().len();
        results(program, true)[outputs..].to_vec()
    };
    assert_eq!(gradients(&plain), gradients(&segmented));
}

#[test]
fn a_cache_of_keys_and_values_grows_with_positions_and_runs() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let graph = networks::transformer().unwrap();
    let step = |past| {
        graph.inference(Sizes::new(2, 1), &Inference { past: Some(past), ..Inference::default() }).unwrap()
    };
    let resident = |past| Liveness::of(&step(past)).resident.0;
    // Two layers, keys and values, two samples, sixteen columns of four bytes.
    assert_eq!(resident(100) - resident(0), 2 * 2 * 2 * 16 * 4 * 100);
    // With nothing before, a pass with a cache gives what a pass without gives.
    let plain = graph.inference(Sizes::new(2, 9), &Inference::default()).unwrap();
    let cached =
        graph.inference(Sizes::new(2, 9), &Inference { past: Some(0), ..Inference::default() }).unwrap();
    assert_eq!(results(&plain, true)[0], results(&cached, true)[0]);
    let long = step(40);
    assert_eq!(results(&long, false), results(&long, true));
}

#[test]
fn another_order_gives_the_same_and_holds_less() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    // Wide results that each end in a narrow one: one after the other they fit, side by side they do not.
    let build = |branches: usize| {
        let mut b = GraphBuilder::new("branches");
        let x = b.input("x", [Axis::Batch, Axis::Fixed(8)]);
        let wide: Vec<_> = (0..branches).map(|_| b.linear(x, 512).unwrap()).collect();
        let narrow: Vec<_> = wide.into_iter().map(|wide| b.linear(wide, 8).unwrap()).collect();
        let y = b.concat(&narrow, 1).unwrap();
        b.finish([y]).unwrap()
    };
    for branches in [3, 5, 20] {
        let graph = build(branches);
        let found = reorder::lower_peak(&graph, Sizes::batch(16), &Inference::default()).unwrap();
        let resident =
            Liveness::of(&graph.inference(Sizes::batch(16), &Inference::default()).unwrap()).resident;
        let (before, after) = (found.before.0 - resident.0, found.after.0 - resident.0);
        assert!(after < before * 2 / branches as u64, "{branches}: {after} of {before}");
        let run = |graph: &Graph| {
            let program = graph.inference(Sizes::batch(16), &Inference::default()).unwrap();
            results(&program, true)
        };
        assert_eq!(run(&graph), run(&found.graph), "{branches}");
    }
    for (name, build, sizes) in networks::ALL {
        let found = reorder::lower_peak(&build().unwrap(), sizes[1], &Inference::default()).unwrap();
        assert!(found.after <= found.before, "{name}");
    }
}

#[test]
fn memory_is_reserved_first_and_refusals_are_typed() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let graph = networks::mlp().unwrap();
    let program = graph.inference(Sizes::batch(4), &Inference::default()).unwrap();
    let peak = Liveness::of(&program).peak;
    let enough = Budget::new("enough", peak);
    let executor = Executor::on_heap(&program, &enough).unwrap();
    assert_eq!(enough.usage().used, peak);
    drop(executor);
    assert_eq!(enough.usage().used, Bytes::ZERO);
    let little = Budget::new("little", Bytes(peak.0 - 1));
    let refused = Executor::on_heap(&program, &little).unwrap_err();
    assert!(matches!(refused, Error::Core { source } if source.is_out_of_memory()));
    let eight = Training { optimizer: Optimizer::AdamW8Bit, ..Training::default() };
    let program = graph.training(Sizes::batch(4), &eight).unwrap();
    let refused = Executor::on_heap(&program, &unlimited()).map(drop).unwrap_err();
    assert!(matches!(refused, Error::Unsupported { .. }), "{refused}");
    let mut b = GraphBuilder::new("in place");
    let x = b.input("x", [Axis::Batch, Axis::Fixed(4)]);
    let h = b.linear(x, 4).unwrap();
    let y = b.activation_in_place(h, Activation::Gelu).unwrap();
    let refused = b.finish([y]).unwrap().training(Sizes::batch(1), &Training::default()).unwrap_err();
    assert!(refused.to_string().contains("in place"), "{refused}");
    let mut b = GraphBuilder::new("lost");
    let x = b.input("x", [Axis::Batch, Axis::Fixed(4)]);
    let h = b.linear(x, 4).unwrap();
    let y = b.layer("relu", Layer::Activation { function: Activation::Relu, in_place: true }, &[h]).unwrap();
    let z = b.add(y, h).unwrap();
    assert!(b.finish([z]).unwrap_err().to_string().contains("relu"));
}
