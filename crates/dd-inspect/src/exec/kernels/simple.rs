//! What goes element by element or only moves: activations, sums, tables, copies, optimizers.

use super::conv::permuted;
use super::{Done, add_scaled};
use crate::exec::storage::Args;
use crate::layer::{Activation, Layer};
use crate::program::{Optimizer, Part, Slot, Use};

/// What an optimizer multiplies gradients by.
const RATE: f32 = 1e-3;
const MOMENTUM: f32 = 0.9;
const BETAS: (f32, f32) = (0.9, 0.999);
const DECAY: f32 = 1e-2;

pub(super) fn forward(using: &Use, args: &mut Args<'_>) -> Done {
    let (a, b) = (args.read(Slot::X(0)), args.read(Slot::X(1)));
    let table = args.read(Slot::P(0));
    let y = args.write(Slot::Out);
    match &using.layer {
        Layer::Activation { function, in_place } => {
            if !in_place {
                y.copy_from_slice(a);
            }
            y.iter_mut().for_each(|y| *y = value(*function, *y));
        }
        Layer::Add => y.iter_mut().zip(a.iter().zip(b)).for_each(|(y, (a, b))| *y = a + b),
        Layer::Multiply => y.iter_mut().zip(a.iter().zip(b)).for_each(|(y, (a, b))| *y = a * b),
        Layer::Embedding { width, .. } => {
            for (y, id) in y.chunks_exact_mut((*width).max(1)).zip(a) {
                y.copy_from_slice(
                    row(table, *id, *width).ok_or_else(|| format!("id {id} is not in the table"))?,
                );
            }
        }
        Layer::Position { width, .. } => {
            y.copy_from_slice(a);
            let sample = sample_len(using, *width);
            y.chunks_exact_mut(sample.max(1)).for_each(|y| add_scaled(y, 1.0, table));
        }
        Layer::Rotary { head_dim, turned } => {
            y.copy_from_slice(a);
            turn(using, *head_dim, *turned, 1.0, y);
        }
        Layer::Permute(order) => permuted(order, using, |to, from| copy(y, to, a, from)),
        other => return Err(format!("there is no kernel for {other}")),
    }
    Ok(())
}

pub(super) fn backward(using: &Use, args: &mut Args<'_>) -> Done {
    let (dy, x, other, y) =
        (args.read(Slot::Dy), args.read(Slot::X(0)), args.read(Slot::X(1)), args.read(Slot::Out));
    match &using.layer {
        Layer::Activation { function, .. } => {
            let kept = if function.keeps_output() { y } else { x };
            let dy = args.write(Slot::Dy);
            dy.iter_mut().zip(kept).for_each(|(dy, kept)| *dy *= slope(*function, *kept));
        }
        Layer::Multiply => {
            let (da, db) = (args.write(Slot::Dx(0)), args.write(Slot::Dx(1)));
            da.iter_mut().zip(dy.iter().zip(other)).for_each(|(da, (dy, b))| *da += dy * b);
            db.iter_mut().zip(dy.iter().zip(x)).for_each(|(db, (dy, a))| *db += dy * a);
        }
        Layer::Embedding { width, .. } => {
            let table = args.write(Slot::Dp(0));
            for (dy, id) in dy.chunks_exact((*width).max(1)).zip(x) {
                let start = whole(*id).saturating_mul(*width);
                if let Some(row) = table.get_mut(start..start.saturating_add(*width)) {
                    add_scaled(row, 1.0, dy);
                }
            }
        }
        Layer::Position { width, .. } => {
            let table = args.write(Slot::Dp(0));
            let sample = sample_len(using, *width);
            dy.chunks_exact(sample.max(1)).for_each(|dy| add_scaled(table, 1.0, dy));
        }
        Layer::Rotary { head_dim, turned } => turn(using, *head_dim, *turned, -1.0, args.write(Slot::Dy)),
        Layer::Permute(order) => {
            let dx = args.write(Slot::Dx(0));
            permuted(order, using, |to, from| {
                if let (Some(dx), Some(dy)) = (dx.get_mut(from), dy.get(to)) {
                    *dx += dy;
                }
            });
        }
        other => return Err(format!("there is no gradient kernel for {other}")),
    }
    Ok(())
}

fn copy(y: &mut [f32], to: usize, x: &[f32], from: usize) {
    if let (Some(y), Some(x)) = (y.get_mut(to), x.get(from)) {
        *y = *x;
    }
}

/// The elements of one sample of `[batch, seq, width]`.
fn sample_len(using: &Use, width: usize) -> usize {
    using.output.iter().rev().nth(1).copied().unwrap_or(1) * width
}

fn whole(id: f32) -> usize {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "float casts saturate")]
    let id = id as usize;
    id
}

fn row(table: &[f32], id: f32, width: usize) -> Option<&[f32]> {
    let start = whole(id).checked_mul(width)?;
    table.get(start..start.checked_add(width)?)
}

/// √(2/π), of the tanh formula.
const GELU: f32 = 0.797_884_6;
const GELU_CUBE: f32 = 0.044_715;

fn value(function: Activation, x: f32) -> f32 {
    let sigmoid = |x: f32| 1.0 / (1.0 + (-x).exp());
    match function {
        Activation::Relu => x.max(0.0),
        Activation::Gelu => 0.5 * x * (1.0 + (GELU * (x + GELU_CUBE * x * x * x)).tanh()),
        Activation::Silu => x * sigmoid(x),
        Activation::Sigmoid => sigmoid(x),
        Activation::Tanh => x.tanh(),
    }
}

/// The derivative, of what [`Activation::keeps_output`] says is kept.
fn slope(function: Activation, kept: f32) -> f32 {
    match function {
        Activation::Relu => f32::from(u8::from(kept > 0.0)),
        Activation::Sigmoid => kept * (1.0 - kept),
        Activation::Tanh => 1.0 - kept * kept,
        Activation::Silu => {
            let s = 1.0 / (1.0 + (-kept).exp());
            s * (1.0 + kept * (1.0 - s))
        }
        Activation::Gelu => {
            let t = (GELU * (kept + GELU_CUBE * kept * kept * kept)).tanh();
            0.5 * (1.0 + t) + 0.5 * kept * (1.0 - t * t) * GELU * (1.0 + 3.0 * GELU_CUBE * kept * kept)
        }
    }
}

/// Turns pairs of columns (the first half of the turned part with the second) by their position.
fn turn(using: &Use, head_dim: usize, turned: usize, sign: f32, y: &mut [f32]) {
    let (seq, width) =
        (using.output.get(1).copied().unwrap_or(1).max(1), using.output.last().copied().unwrap_or(1));
    let half = turned / 2;
    for (at, row) in y.chunks_exact_mut(width.max(1)).enumerate() {
        let position = (at % seq) as f32;
        for head in row.chunks_exact_mut(head_dim.max(1)) {
            let (first, second) = head.split_at_mut(half);
            for (pair, (a, b)) in first.iter_mut().zip(second).enumerate() {
                let angle = sign * position * 10_000f32.powf(-(pair as f32) / half.max(1) as f32);
                let (sin, cos) = angle.sin_cos();
                (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
            }
        }
    }
}

pub(super) fn insert(part: &Part, args: &mut Args<'_>) -> Done {
    let x = args.read(Slot::X(0));
    let y = args.write(Slot::Out);
    let (row, run) = (part.axis * part.inner, part.len * part.inner);
    for (y, x) in y.chunks_exact_mut(row.max(1)).zip(x.chunks_exact(run.max(1))) {
        y.iter_mut().skip(part.start * part.inner).zip(x).for_each(|(y, x)| *y += x);
    }
    Ok(())
}

pub(super) fn extract(part: &Part, args: &mut Args<'_>) -> Done {
    let x = args.read(Slot::X(0));
    let y = args.write(Slot::Out);
    let (row, run) = (part.axis * part.inner, part.len * part.inner);
    for (y, x) in y.chunks_exact_mut(run.max(1)).zip(x.chunks_exact(row.max(1))) {
        y.iter_mut().zip(x.iter().skip(part.start * part.inner)).for_each(|(y, x)| *y += x);
    }
    Ok(())
}

pub(super) fn loss(args: &mut Args<'_>) -> Done {
    let x = args.read(Slot::X(0));
    let share = 1.0 / x.len().max(1) as f32;
    args.write(Slot::Dx(0)).iter_mut().zip(x).for_each(|(dx, x)| *dx = x * share);
    Ok(())
}

pub(super) fn accumulate(args: &mut Args<'_>) -> Done {
    let dy = args.read(Slot::Dy);
    add_scaled(args.write(Slot::Dx(0)), 1.0, dy);
    Ok(())
}

pub(super) fn update(optimizer: Optimizer, args: &mut Args<'_>) -> Done {
    let gradient = args.read(Slot::Dp(0));
    let (weights, first, second) =
        (args.write(Slot::P(0)), args.write(Slot::State(0)), args.write(Slot::State(1)));
    match optimizer {
        Optimizer::Sgd => add_scaled(weights, -RATE, gradient),
        Optimizer::Momentum => {
            for ((w, m), g) in weights.iter_mut().zip(first).zip(gradient) {
                *m = MOMENTUM * *m + g;
                *w -= RATE * *m;
            }
        }
        Optimizer::Adam | Optimizer::AdamW => {
            let decay = if optimizer == Optimizer::AdamW { DECAY } else { 0.0 };
            for ((w, g), (m, v)) in weights.iter_mut().zip(gradient).zip(first.iter_mut().zip(second)) {
                *m = BETAS.0 * *m + (1.0 - BETAS.0) * g;
                *v = BETAS.1 * *v + (1.0 - BETAS.1) * g * g;
                *w -= RATE * (*m / (v.sqrt() + 1e-8) + decay * *w);
            }
        }
        other => return Err(format!("{other} keeps its state in 8 bits")),
    }
    Ok(())
}
