//! Linear layers and matrix products.

use super::{Done, add_scaled, dot, size};
use crate::exec::storage::Args;
use crate::program::{Slot, Use};

pub(super) fn linear(inputs: usize, outputs: usize, args: &mut Args<'_>) -> Done {
    let (x, weight, bias) = (args.read(Slot::X(0)), args.read(Slot::P(0)), args.read(Slot::P(1)));
    let y = args.write(Slot::Out);
    for (row, x) in y.chunks_exact_mut(outputs.max(1)).zip(x.chunks_exact(inputs.max(1))) {
        for (y, weight) in row.iter_mut().zip(weight.chunks_exact(inputs.max(1))) {
            *y = dot(x, weight);
        }
        add_scaled(row, 1.0, bias);
    }
    Ok(())
}

pub(super) fn linear_back(inputs: usize, outputs: usize, args: &mut Args<'_>) -> Done {
    let (dy, x, weight) = (args.read(Slot::Dy), args.read(Slot::X(0)), args.read(Slot::P(0)));
    let (dx, dw, db) = (args.write(Slot::Dx(0)), args.write(Slot::Dp(0)), args.write(Slot::Dp(1)));
    let (inputs, outputs) = (inputs.max(1), outputs.max(1));
    for dy in dy.chunks_exact(outputs) {
        add_scaled(db, 1.0, dy);
    }
    for (dy, x) in dy.chunks_exact(outputs).zip(x.chunks_exact(inputs)) {
        for (dw, dy) in dw.chunks_exact_mut(inputs).zip(dy) {
            add_scaled(dw, *dy, x);
        }
    }
    for (dx, dy) in dx.chunks_exact_mut(inputs).zip(dy.chunks_exact(outputs)) {
        for (weight, dy) in weight.chunks_exact(inputs).zip(dy) {
            add_scaled(dx, *dy, weight);
        }
    }
    Ok(())
}

/// `n`, `k` and `m` of `[.., n, k] · [.., k, m]`, none of them zero.
fn sizes(using: &Use) -> [usize; 3] {
    let rank = using.output.len();
    let of = |shape: Option<&Vec<usize>>, back: usize| {
        shape.map_or(0, |shape| size(shape, rank.saturating_sub(back)))
    };
    let (a, b) = (using.inputs.first(), using.inputs.get(1));
    [of(a, 2), of(a, 1), of(b, 1)].map(|size| size.max(1))
}

pub(super) fn matmul(using: &Use, args: &mut Args<'_>) -> Done {
    let [n, k, m] = sizes(using);
    let (a, b) = (args.read(Slot::X(0)), args.read(Slot::X(1)));
    let y = args.write(Slot::Out);
    y.fill(0.0);
    for ((y, a), b) in y.chunks_exact_mut(n * m).zip(a.chunks_exact(n * k)).zip(b.chunks_exact(k * m)) {
        for (y, a) in y.chunks_exact_mut(m).zip(a.chunks_exact(k)) {
            a.iter().zip(b.chunks_exact(m)).for_each(|(a, b)| add_scaled(y, *a, b));
        }
    }
    Ok(())
}

pub(super) fn matmul_back(using: &Use, args: &mut Args<'_>) -> Done {
    let [n, k, m] = sizes(using);
    let (dy, a, b) = (args.read(Slot::Dy), args.read(Slot::X(0)), args.read(Slot::X(1)));
    let (da, db) = (args.write(Slot::Dx(0)), args.write(Slot::Dx(1)));
    for ((da, dy), b) in da.chunks_exact_mut(n * k).zip(dy.chunks_exact(n * m)).zip(b.chunks_exact(k * m)) {
        for (da, dy) in da.chunks_exact_mut(k).zip(dy.chunks_exact(m)) {
            da.iter_mut().zip(b.chunks_exact(m)).for_each(|(da, b)| *da += dot(dy, b));
        }
    }
    for ((db, dy), a) in db.chunks_exact_mut(k * m).zip(dy.chunks_exact(n * m)).zip(a.chunks_exact(n * k)) {
        for (dy, a) in dy.chunks_exact(m).zip(a.chunks_exact(k)) {
            a.iter().zip(db.chunks_exact_mut(m)).for_each(|(a, db)| add_scaled(db, *a, dy));
        }
    }
    Ok(())
}
