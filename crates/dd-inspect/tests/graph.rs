//! Networks: counts, shapes, tables, shared parameters, and the cost model's contract.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, missing_docs, reason = "tests")]

#[path = "support/networks.rs"]
mod networks;

use dd_core::{Bytes, DType};
use dd_inspect::estimate::{NetworkCost, Work};
use dd_inspect::graph::{Axis, Graph, GraphBuilder, Sizes};
use dd_inspect::layer::{
    Activation, Attention, Cell, Conv, Layer, Norm, NormKind, Pool, PoolKind, Recurrent, Target,
};
use dd_inspect::program::{Inference, Optimizer, Precision, Role, Training};
use dd_inspect::{Error, InspectNetwork};

fn seed() -> [Layer; 3] {
    [
        Layer::Linear { inputs: 10, outputs: 20, bias: true },
        Layer::activation(Activation::Relu),
        Layer::Linear { inputs: 20, outputs: 5, bias: true },
    ]
}

#[test]
fn the_seeds_network_has_its_counts() {
    let network = InspectNetwork::sequential(seed(), &[10]).unwrap();
    assert_eq!(network.parameter_count(), 325);
    assert_eq!(network.trainable_count(), 325);
    assert_eq!(network.intermediate_variable_count(), 45);
    assert_eq!(network.intermediate_variable_bytes(DType::F16).unwrap(), Bytes(90));
    let picture = [Layer::Conv(Conv::square(3, 8, 3)), Layer::activation(Activation::Relu), Layer::flatten()];
    let network = InspectNetwork::sequential(picture, &[3, 10, 12]).unwrap();
    assert_eq!(network.parameter_count(), 3 * 9 * 8 + 8);
    assert_eq!(network.intermediate_variable_count(), 2 * 8 * 8 * 10);
    let refused = InspectNetwork::sequential(seed(), &[11]).unwrap_err().to_string();
    assert!(refused.contains("expected [.., 10], found [1, 11]"), "{refused}");
}

/// A layer, its input's shape, and the output's or a part of the refusal.
type Row = (Layer, &'static [usize], Result<&'static [usize], &'static str>);

#[test]
fn shapes_follow_from_inputs() {
    let conv = |conv: Conv| Layer::Conv(conv);
    let rows: Vec<Row> = vec![
        (conv(Conv::square(4, 6, 3).stride(2).padding(1)), &[2, 4, 9, 8], Ok(&[2, 6, 5, 4])),
        (conv(Conv::square(4, 6, 3).dilation(2)), &[2, 4, 9, 8], Ok(&[2, 6, 5, 4])),
        (conv(Conv::line(4, 6, 5).stride(3)), &[2, 4, 11], Ok(&[2, 6, 3])),
        (conv(Conv::square(4, 6, 3).groups(4)), &[2, 4, 9, 8], Err("multiples of 4 groups")),
        (conv(Conv::square(4, 6, 3)), &[2, 4, 2, 8], Err("at least 3")),
        (conv(Conv::square(4, 6, 0)), &[2, 4, 2, 8], Err("at least 1")),
        (conv(Conv::square(4, 6, 3)), &[2, 4, 8], Err("2 axes")),
        (Layer::Pool(Pool::square(PoolKind::Max, 2)), &[1, 3, 5, 4], Ok(&[1, 3, 2, 2])),
        (Layer::Pool(Pool::global(PoolKind::Average)), &[1, 3, 5, 4], Ok(&[1, 3, 1, 1])),
        (
            Layer::Norm(Norm { kind: NormKind::Group(4), width: 6, scale: true, shift: true }),
            &[1, 6],
            Err("4 groups"),
        ),
        (Layer::layer_norm(6), &[2, 5], Err("6 channels")),
        (Layer::Embedding { count: 9, width: 4 }, &[2, 7], Ok(&[2, 7, 4])),
        (Layer::Position { count: 9, width: 4 }, &[2, 10, 4], Err("at most 9")),
        (Layer::Rotary { head_dim: 4, turned: 3 }, &[2, 7, 8], Err("even")),
        (
            Layer::Recurrent(Recurrent { cell: Cell::Lstm, inputs: 3, hidden: 7, bias: true }),
            &[2, 5, 3],
            Ok(&[2, 5, 7]),
        ),
        (Layer::Reshape(vec![Target::Same(0), Target::Fixed(2), Target::Rest]), &[3, 4, 5], Ok(&[3, 2, 10])),
        (Layer::Reshape(vec![Target::Same(0), Target::Fixed(3), Target::Rest]), &[3, 4, 5], Err("elements")),
        (Layer::Reshape(vec![Target::Rest, Target::Rest]), &[3, 4], Err("one open")),
        (Layer::Reshape(vec![Target::Same(0), Target::Rest]), &[0, 4], Ok(&[0, 4])),
        (Layer::Narrow { axis: 1, start: 2, len: 3 }, &[3, 5], Ok(&[3, 3])),
        (Layer::Narrow { axis: 1, start: usize::MAX, len: 3 }, &[3, 5], Err("axis 1")),
        (Layer::Permute(vec![1, 0]), &[3, 5], Ok(&[5, 3])),
        (Layer::Permute(vec![1, 1]), &[3, 5], Err("each of the 2 axes")),
        (Layer::Upsample { factor: usize::MAX }, &[1, 1, 3, 5], Err("overflows")),
    ];
    for (layer, input, expected) in rows {
        match (layer.output_shape(&[input]), expected) {
            (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{layer:?}"),
            (Err(found), Err(expected)) => assert!(found.contains(expected), "{layer:?}: {found}"),
            (found, expected) => panic!("{layer:?}: expected {expected:?}, found {found:?}"),
        }
    }
    let attention = Attention {
        heads: 4,
        kv_heads: 3,
        head_dim: 2,
        causal: true,
        window: None,
        cached: true,
        scores: true,
    };
    let refused =
        Layer::Attention(attention).output_shape(&[&[1, 2, 8], &[1, 2, 6], &[1, 2, 6]]).unwrap_err();
    assert!(refused.contains("multiple of the key heads"), "{refused}");
    let refused = Layer::Concat { axis: 1 }.output_shape(&[&[1, 2], &[2, 2]]).unwrap_err();
    assert!(refused.contains("axis 1"), "{refused}");
}

#[test]
fn sizes_that_overflow_are_errors() {
    let mut b = GraphBuilder::new("large");
    let x = b.input("x", [Axis::Batch, Axis::Fixed(1 << 20)]);
    let y = b.linear(x, 1 << 20).unwrap();
    let graph = b.finish([y]).unwrap();
    assert!(graph.shapes(Sizes::batch(usize::MAX)).unwrap_err().is_overflow());
    assert!(graph.inference(Sizes::batch(1 << 42), &Inference::default()).unwrap_err().is_overflow());
    let mut b = GraphBuilder::new("larger");
    let x = b.input("x", [Axis::Batch, Axis::Fixed(usize::MAX)]);
    assert!(b.linear(x, 2).unwrap_err().is_overflow());
    let half = Precision::all(DType::Q4K);
    let refused = graph.inference(Sizes::batch(1), &Inference { precision: half, past: None }).unwrap_err();
    assert!(refused.to_string().contains("Q4_K"), "{refused}");
}

#[test]
fn shared_parameters_count_once() {
    let graph = networks::transformer().unwrap();
    let table = graph.table(Sizes::new(2, 8), Precision::default()).unwrap();
    let head = table.rows.iter().find(|row| row.name == "head").unwrap();
    assert!(head.again && head.parameters == 48 * 32);
    let once: u64 = table.rows.iter().filter(|row| !row.again).map(|row| row.parameters).sum();
    assert_eq!((once, table.parameters), (graph.parameter_count().unwrap(), once));
    let odds = networks::odds_and_ends(false).unwrap();
    let twice: Vec<_> = odds.table(Sizes::batch(1), Precision::default()).unwrap().rows;
    assert_eq!(twice.iter().filter(|row| row.kind == "Linear" && row.again).count(), 1);
    assert_eq!(
        twice.iter().filter(|row| row.kind == "Linear" && row.trainable == 0).count(),
        1,
        "the frozen one"
    );
    let text = table.to_string();
    assert!(text.contains("(shared)") && text.contains("Total parameters"), "{text}");
}

#[test]
fn multiply_adds_are_those_of_the_papers() {
    let table = |graph: Graph, sizes| graph.table(sizes, Precision::default()).unwrap();
    assert_eq!(
        table(networks::mlp().unwrap(), Sizes::batch(3)).multiply_adds,
        3 * (64 * 128 + 2 * 128 * 96 + 128 * 10)
    );
    let mut b = GraphBuilder::new("conv");
    let x = b.input("x", [Axis::Batch, Axis::Fixed(8), Axis::Fixed(10), Axis::Fixed(10)]);
    let y = b.conv(x, Conv::square(8, 16, 3).padding(1).groups(4)).unwrap();
    assert_eq!(table(b.finish([y]).unwrap(), Sizes::batch(2)).multiply_adds, 2 * 16 * 100 * 2 * 9);
    let row = |kind: &str, graph: Graph, sizes| {
        table(graph, sizes).rows.into_iter().find(|row| row.kind == kind).unwrap().multiply_adds
    };
    assert_eq!(row("Attention", networks::transformer().unwrap(), Sizes::new(2, 8)), 2 * 2 * 4 * 8 * 8 * 8);
    assert_eq!(
        row("LSTM", networks::recurrent(Cell::Lstm).unwrap(), Sizes::new(2, 5)),
        10 * 4 * 24 * (12 + 24)
    );
}

fn costs() -> Vec<(String, NetworkCost)> {
    let mut all = Vec::new();
    for (name, build, _) in networks::ALL {
        let training = Training { optimizer: Optimizer::AdamW, ..Training::default() };
        for work in [Work::default(), Work::Training(training)] {
            all.push((format!("{name} {work:?}"), NetworkCost::new(build().unwrap(), work)));
        }
    }
    all
}

#[test]
fn costs_keep_the_contract() {
    for (_, cost) in costs() {
        dd_conformance::cost_model(&cost);
        dd_conformance::cost_model(&cost.granularity(512).uncertainty(0.1));
    }
}

#[test]
fn optimizers_and_precisions_take_what_they_keep() {
    let graph = networks::mlp().unwrap();
    let parameters = graph.parameter_count().unwrap();
    let of = |precision, optimizer, role| {
        let program = graph.training(Sizes::batch(2), &Training { precision, optimizer }).unwrap();
        program.buffers().iter().filter(|buffer| buffer.role == role).map(|buffer| buffer.bytes).sum::<u64>()
    };
    let plain = Precision::default();
    for (optimizer, states) in
        [(Optimizer::Sgd, 0), (Optimizer::Momentum, 1), (Optimizer::Adam, 2), (Optimizer::AdamW, 2)]
    {
        assert_eq!(of(plain, optimizer, Role::OptimizerState), 4 * states * parameters, "{optimizer}");
    }
    // Weights of at least 4096 elements, in blocks of 256 with a scale of four bytes; the rest in full.
    let mut expected = 0;
    for param in graph.params() {
        let elements = param.shape.iter().product::<usize>() as u64;
        expected += if elements >= 4096 { elements + 4 * elements.div_ceil(256) } else { 4 * elements };
    }
    assert_eq!(of(plain, Optimizer::AdamW8Bit, Role::OptimizerState), 2 * expected);
    assert_eq!(of(plain, Optimizer::Momentum8Bit, Role::OptimizerState), expected);
    let mixed = Precision::mixed(DType::BF16);
    assert_eq!(of(mixed, Optimizer::Sgd, Role::Master), 4 * parameters);
    assert_eq!(of(mixed, Optimizer::Sgd, Role::Parameter), 2 * parameters);
    assert_eq!(of(mixed, Optimizer::Sgd, Role::ParameterGradient), 2 * parameters);
    assert_eq!("AdamW-8bit".parse::<Optimizer>().unwrap(), Optimizer::AdamW8Bit);
    assert!("lion".parse::<Optimizer>().unwrap_err().to_string().contains("adamw8bit"));
}

#[test]
fn frozen_parts_get_no_gradient_and_nothing_trainable_is_an_error() {
    let mut b = GraphBuilder::new("frozen");
    let x = b.input("x", [Axis::Batch, Axis::Fixed(4)]);
    let y = b.frozen(|b| b.linear(x, 4)).unwrap();
    let graph = b.finish([y]).unwrap();
    let refused = graph.training(Sizes::batch(1), &Training::default()).unwrap_err();
    assert!(refused.to_string().contains("trainable"), "{refused}");
}

#[test]
fn things_of_another_graph_are_refused() {
    let mut other = GraphBuilder::new("other");
    let far = other.input("a", [Axis::Batch]);
    let far = other.activation(far, Activation::Relu).unwrap();
    let mut b = GraphBuilder::new("one");
    b.input("x", [Axis::Batch]);
    assert!(matches!(b.activation(far, Activation::Relu), Err(Error::Missing { what: "value", .. })));
    assert!(matches!(b.finish([far]), Err(Error::Missing { .. })));
}
