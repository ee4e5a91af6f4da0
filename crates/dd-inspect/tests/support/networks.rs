//! The networks that are measured: MLP, CNN with skips, UNet, transformer, LSTM, GRU.
#![allow(dead_code, reason = "each test binary uses some of it")]

use dd_inspect::Result;
use dd_inspect::graph::{Axis, Graph, GraphBuilder, Sizes, ValueId};
use dd_inspect::layer::{
    Activation, Attention, Cell, Conv, Layer, Norm, NormKind, Pool, PoolKind, Recurrent, Target,
};

pub(crate) type Network = (&'static str, fn() -> Result<Graph>, [Sizes; 3]);

pub(crate) const ALL: [Network; 6] = [
    ("mlp", mlp, [Sizes::batch(1), Sizes::batch(8), Sizes::batch(33)]),
    ("cnn", cnn, [Sizes::batch(1), Sizes::batch(3), Sizes::batch(6)]),
    ("unet", unet, [Sizes::batch(1), Sizes::batch(2), Sizes::batch(5)]),
    ("transformer", transformer, [Sizes::new(1, 16), Sizes::new(3, 9), Sizes::new(4, 24)]),
    ("lstm", || recurrent(Cell::Lstm), [Sizes::new(1, 5), Sizes::new(4, 8), Sizes::new(7, 16)]),
    ("gru", || recurrent(Cell::Gru), [Sizes::new(1, 5), Sizes::new(4, 8), Sizes::new(7, 16)]),
];

pub(crate) fn mlp() -> Result<Graph> {
    let mut b = GraphBuilder::new("mlp");
    let mut x = b.input("x", [Axis::Batch, Axis::Fixed(64)]);
    for width in [128, 96, 128] {
        x = b.linear(x, width)?;
        x = b.activation(x, Activation::Gelu)?;
    }
    let y = b.linear(x, 10)?;
    b.finish([y])
}

fn unit(b: &mut GraphBuilder, x: ValueId, inputs: usize, outputs: usize, stride: usize) -> Result<ValueId> {
    let y = b.conv(x, Conv::square(inputs, outputs, 3).stride(stride).padding(1).no_bias())?;
    let y = b.norm(y, Norm { kind: NormKind::Batch, width: outputs, scale: true, shift: true })?;
    let y = b.activation_in_place(y, Activation::Relu)?;
    let y = b.conv(y, Conv::square(outputs, outputs, 3).padding(1).groups(2))?;
    let y = b.norm(y, Norm { kind: NormKind::Group(2), width: outputs, scale: true, shift: true })?;
    let skip = if stride == 1 && inputs == outputs {
        x
    } else {
        b.conv(x, Conv::square(inputs, outputs, 1).stride(stride))?
    };
    let sum = b.add(y, skip)?;
    b.activation(sum, Activation::Relu)
}

pub(crate) fn cnn() -> Result<Graph> {
    let mut b = GraphBuilder::new("cnn");
    let x = b.input("x", [Axis::Batch, Axis::Fixed(3), Axis::Fixed(16), Axis::Fixed(16)]);
    let x = b.conv(x, Conv::square(3, 8, 3).padding(1))?;
    let x = unit(&mut b, x, 8, 8, 1)?;
    let x = unit(&mut b, x, 8, 16, 2)?;
    let x = b.pool(x, Pool::square(PoolKind::Max, 2))?;
    let x = b.pool(x, Pool::global(PoolKind::Average))?;
    let x = b.reshape(x, [Target::Same(0), Target::Rest])?;
    let y = b.linear(x, 10)?;
    b.finish([y])
}

pub(crate) fn unet() -> Result<Graph> {
    let mut b = GraphBuilder::new("unet");
    let x = b.input("x", [Axis::Batch, Axis::Fixed(1), Axis::Fixed(16), Axis::Fixed(16)]);
    let both = |b: &mut GraphBuilder, x, inputs, outputs| -> Result<ValueId> {
        let x = b.conv(x, Conv::square(inputs, outputs, 3).padding(1))?;
        let x = b.activation(x, Activation::Silu)?;
        let x = b.conv(x, Conv::square(outputs, outputs, 3).padding(1))?;
        b.activation_in_place(x, Activation::Relu)
    };
    let first = both(&mut b, x, 1, 4)?;
    let down = b.pool(first, Pool::square(PoolKind::Max, 2))?;
    let second = both(&mut b, down, 4, 8)?;
    let down = b.pool(second, Pool::square(PoolKind::Average, 2))?;
    let deep = both(&mut b, down, 8, 8)?;
    let up = b.layer("up_1", Layer::Upsample { factor: 2 }, &[deep])?;
    let joined = b.concat(&[second, up], 1)?;
    let x = both(&mut b, joined, 16, 4)?;
    let up = b.layer("up_2", Layer::Upsample { factor: 2 }, &[x])?;
    let joined = b.concat(&[first, up], 1)?;
    let x = both(&mut b, joined, 8, 4)?;
    let y = b.conv(x, Conv::square(4, 2, 1))?;
    b.finish([y])
}

/// Two layers, the head tied to the embedding; the second layer holds its scores, the first does not.
pub(crate) fn transformer() -> Result<Graph> {
    let (width, heads) = (32, 4);
    let mut b = GraphBuilder::new("transformer");
    let ids = b.ids("ids", [Axis::Batch, Axis::Seq]);
    let table = b.module("embedding", Layer::Embedding { count: 48, width })?;
    let mut x = b.apply(table, &[ids])?;
    x = b.layer("positions", Layer::Position { count: 32, width }, &[x])?;
    for scores in [false, true] {
        let h = b.layer("norm_1", Layer::rms_norm(width), &[x])?;
        let q = b.linear(h, width)?;
        let k = b.linear(h, width / 2)?;
        let v = b.linear(h, width / 2)?;
        let rotary = Layer::Rotary { head_dim: width / heads, turned: width / heads };
        let q = b.layer("rotary_q", rotary.clone(), &[q])?;
        let k = b.layer("rotary_k", rotary, &[k])?;
        let attention = Attention {
            heads,
            kv_heads: 2,
            head_dim: width / heads,
            causal: true,
            window: None,
            cached: true,
            scores,
        };
        let a = b.attention([q, k, v], attention)?;
        let a = b.linear(a, width)?;
        x = b.add(x, a)?;
        let h = b.layer("norm_2", Layer::layer_norm(width), &[x])?;
        let gate = b.linear(h, 64)?;
        let gate = b.activation(gate, Activation::Silu)?;
        let up = b.linear(h, 64)?;
        let h = b.multiply(gate, up)?;
        let h = b.linear(h, width)?;
        x = b.add(x, h)?;
    }
    let head = b.module_sharing("head", Layer::Linear { inputs: width, outputs: 48, bias: false }, table)?;
    let y = b.apply(head, &[x])?;
    b.finish([y])
}

pub(crate) fn recurrent(cell: Cell) -> Result<Graph> {
    let mut b = GraphBuilder::new("recurrent");
    let x = b.input("x", [Axis::Batch, Axis::Seq, Axis::Fixed(12)]);
    let x = b.recurrent(x, Recurrent { cell, inputs: 12, hidden: 24, bias: true })?;
    let x = b.recurrent(x, Recurrent { cell, inputs: 24, hidden: 16, bias: true })?;
    let y = b.linear(x, 5)?;
    b.finish([y])
}

/// Layers and wirings that the others do not have: a block called twice, a value that goes in twice, permutations,
/// parts of an axis, matrix products, a frozen layer, one-dimensional convolutions, checkpointed segments.
pub(crate) fn odds_and_ends(checkpointed: bool) -> Result<Graph> {
    let mut inner = GraphBuilder::new("block");
    let x = inner.input("x", [Axis::Batch, Axis::Fixed(6), Axis::Fixed(6)]);
    let h = inner.linear(x, 6)?;
    let h = inner.activation(h, Activation::Tanh)?;
    let y = inner.add(h, x)?;
    let inner = inner.finish([y])?;
    let mut b = GraphBuilder::new("odds and ends");
    let x = b.input("x", [Axis::Batch, Axis::Fixed(6), Axis::Fixed(6)]);
    let x = b.frozen(|b| b.linear(x, 6))?;
    let x = b.conv(x, Conv::line(6, 6, 3).padding(2).dilation(2).groups(3))?;
    let block = b.block("twice", inner)?;
    let x =
        if checkpointed { b.checkpointed(|b| Ok(b.call(block, &[x])?[0]))? } else { b.call(block, &[x])?[0] };
    let x = b.layer("swap", Layer::Permute(vec![0, 2, 1]), &[x])?;
    let x =
        if checkpointed { b.checkpointed(|b| Ok(b.call(block, &[x])?[0]))? } else { b.call(block, &[x])?[0] };
    let left = b.layer("left", Layer::Narrow { axis: 1, start: 0, len: 4 }, &[x])?;
    let right = b.layer("right", Layer::Narrow { axis: 1, start: 2, len: 4 }, &[x])?;
    let x = b.concat(&[left, right, left], 1)?;
    let x = b.reshape(x, [Target::Same(0), Target::Fixed(12), Target::Rest])?;
    let squared = b.multiply(x, x)?;
    let doubled = b.add(squared, squared)?;
    let across = b.layer("across", Layer::Permute(vec![0, 2, 1]), &[doubled])?;
    let product = b.layer("product", Layer::MatMul, &[across, doubled])?;
    let y = b.layer("shares", Layer::Softmax, &[product])?;
    let y = b.activation(y, Activation::Sigmoid)?;
    b.finish([y])
}
