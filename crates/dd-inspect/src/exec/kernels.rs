//! What a step computes, in plain loops over `F32`.
//!
//! Forward steps write all of their result. Backward steps add to gradients, which are zeros before where they are new. A
//! gradient that nobody wants has an empty slice.

mod attention;
mod conv;
mod dense;
mod norm;
mod recurrent;
mod simple;

use super::storage::Args;
use crate::error::{Error, Result};
use crate::layer::Layer;
use crate::program::{Op, Use};

/// Runs one step.
pub(super) fn run(op: &Op, mut args: Args<'_>) -> Result<()> {
    match op {
        Op::Forward(using) => forward(using, &mut args),
        Op::Backward(using) => backward(using, &mut args),
        Op::Insert(part) => simple::insert(part, &mut args),
        Op::Extract(part) => simple::extract(part, &mut args),
        Op::Loss => simple::loss(&mut args),
        Op::Accumulate => simple::accumulate(&mut args),
        Op::Update(optimizer) => simple::update(*optimizer, &mut args),
    }
    .map_err(|reason| Error::Unsupported { what: format!("{op:?}"), reason })
}

/// What a kernel refuses, in words.
type Done = std::result::Result<(), String>;

fn forward(using: &Use, args: &mut Args<'_>) -> Done {
    match &using.layer {
        Layer::Linear { inputs, outputs, .. } => dense::linear(*inputs, *outputs, args),
        Layer::MatMul => dense::matmul(using, args),
        Layer::Conv(conv) => conv::forward(conv, using, args),
        Layer::Pool(pool) => conv::pool(pool, using, args),
        Layer::Upsample { factor } => conv::upsample(*factor, using, args),
        Layer::Norm(norm) => norm::forward(norm, using, args),
        Layer::Softmax => norm::softmax(using, args),
        Layer::Attention(attention) => attention::forward(attention, using, args),
        Layer::Recurrent(recurrent) => recurrent::forward(recurrent, using, args),
        _ => simple::forward(using, args),
    }
}

fn backward(using: &Use, args: &mut Args<'_>) -> Done {
    match &using.layer {
        Layer::Linear { inputs, outputs, .. } => dense::linear_back(*inputs, *outputs, args),
        Layer::MatMul => dense::matmul_back(using, args),
        Layer::Conv(conv) => conv::backward(conv, using, args),
        Layer::Pool(pool) => conv::pool_back(pool, using, args),
        Layer::Upsample { factor } => conv::upsample_back(*factor, using, args),
        Layer::Norm(norm) => norm::backward(norm, using, args),
        Layer::Softmax => norm::softmax_back(using, args),
        Layer::Attention(attention) => attention::backward(attention, using, args),
        Layer::Recurrent(recurrent) => recurrent::backward(recurrent, using, args),
        _ => simple::backward(using, args),
    }
}

/// The sum of the products of two rows.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// `y += factor · x`.
fn add_scaled(y: &mut [f32], factor: f32, x: &[f32]) {
    y.iter_mut().zip(x).for_each(|(y, x)| *y += factor * x);
}

/// The size of a shape's axis.
fn size(shape: &[usize], axis: usize) -> usize {
    shape.get(axis).copied().unwrap_or_default()
}
