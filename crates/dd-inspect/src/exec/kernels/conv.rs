//! Convolutions, pools and upsampling over `[batch, channels, height, width]`.
#![allow(
    clippy::indexing_slicing,
    reason = "places are inside the planes whose sizes shape inference checked"
)]

use super::{Done, size};
use crate::exec::storage::Args;
use crate::layer::work::plane;
use crate::layer::{Conv, Pool, PoolKind};
use crate::program::{Slot, Use};

/// The planes of a use: of its input and its output.
fn planes(axes: usize, using: &Use) -> ([usize; 4], [usize; 4]) {
    (plane(axes, using.inputs.first().map_or(&[], Vec::as_slice)), plane(axes, &using.output))
}

/// Where in the input a tap of a window lies.
fn tap(out: usize, tap: usize, stride: usize, dilation: usize, padding: usize, size: usize) -> Option<usize> {
    (out * stride + tap * dilation).checked_sub(padding).filter(|at| *at < size)
}

/// Calls `visit` with (output place, input place, weight place) for every product of the convolution.
fn products(conv: &Conv, using: &Use, mut visit: impl FnMut(usize, usize, usize)) {
    let ([batch, channels, height, width], [_, outputs, rows, columns]) = planes(conv.axes, using);
    let groups = conv.groups.max(1);
    let (each, made) = (channels / groups, outputs / groups);
    let [tall, wide] = conv.kernel;
    for sample in 0..batch {
        for out in 0..outputs {
            for (row, column) in (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column))) {
                let y = ((sample * outputs + out) * rows + row) * columns + column;
                for channel in 0..each {
                    let x = (sample * channels + out / made.max(1) * each + channel) * height;
                    for i in 0..tall {
                        let Some(h) = tap(row, i, conv.stride[0], conv.dilation[0], conv.padding[0], height)
                        else {
                            continue;
                        };
                        for j in 0..wide {
                            let w = tap(column, j, conv.stride[1], conv.dilation[1], conv.padding[1], width);
                            let Some(w) = w else { continue };
                            visit(y, (x + h) * width + w, ((out * each + channel) * tall + i) * wide + j);
                        }
                    }
                }
            }
        }
    }
}

pub(super) fn forward(conv: &Conv, using: &Use, args: &mut Args<'_>) -> Done {
    let (x, weight, bias) = (args.read(Slot::X(0)), args.read(Slot::P(0)), args.read(Slot::P(1)));
    let y = args.write(Slot::Out);
    let (_, [_, outputs, rows, columns]) = planes(conv.axes, using);
    for (at, y) in y.iter_mut().enumerate() {
        *y = bias.get(at / (rows * columns).max(1) % outputs.max(1)).copied().unwrap_or_default();
    }
    products(conv, using, |to, from, by| y[to] += x[from] * weight[by]);
    Ok(())
}

pub(super) fn backward(conv: &Conv, using: &Use, args: &mut Args<'_>) -> Done {
    let (dy, x, weight) = (args.read(Slot::Dy), args.read(Slot::X(0)), args.read(Slot::P(0)));
    let (dx, dw, db) = (args.write(Slot::Dx(0)), args.write(Slot::Dp(0)), args.write(Slot::Dp(1)));
    let (_, [_, outputs, rows, columns]) = planes(conv.axes, using);
    if !db.is_empty() {
        for (at, dy) in dy.iter().enumerate() {
            db[at / (rows * columns).max(1) % outputs.max(1)] += dy;
        }
    }
    let (to_weight, to_input) = (!dw.is_empty(), !dx.is_empty());
    products(conv, using, |to, from, by| {
        if to_weight {
            dw[by] += dy[to] * x[from];
        }
        if to_input {
            dx[from] += dy[to] * weight[by];
        }
    });
    Ok(())
}

/// Calls `visit` with an output place and the input places of its window.
fn windows(pool: &Pool, using: &Use, mut visit: impl FnMut(usize, &mut dyn Iterator<Item = usize>)) {
    let ([batch, channels, height, width], [_, _, rows, columns]) = planes(pool.axes, using);
    let all = pool.kernel == [0; 2];
    let [tall, wide] = if all { [height, width] } else { pool.kernel };
    for one in 0..batch * channels {
        for (row, column) in (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column))) {
            let inside = |i: usize, j: usize| {
                let h = tap(row, i, pool.stride[0], 1, pool.padding[0], height)?;
                let w = tap(column, j, pool.stride[1], 1, pool.padding[1], width)?;
                Some((one * height + h) * width + w)
            };
            let mut taps =
                (0..tall).flat_map(|i| (0..wide).map(move |j| (i, j))).filter_map(|(i, j)| inside(i, j));
            visit((one * rows + row) * columns + column, &mut taps);
        }
    }
}

/// One over the size of the window; padding counts.
fn share(pool: &Pool, using: &Use) -> f32 {
    let ([_, _, height, width], _) = planes(pool.axes, using);
    let count = if pool.kernel == [0; 2] { height * width } else { pool.kernel[0] * pool.kernel[1] };
    1.0 / count.max(1) as f32
}

pub(super) fn pool(pool: &Pool, using: &Use, args: &mut Args<'_>) -> Done {
    let x = args.read(Slot::X(0));
    let (y, places) = (args.write(Slot::Out), args.write(Slot::Aux(0)));
    let share = share(pool, using);
    windows(pool, using, |to, from| match pool.kind {
        PoolKind::Average => y[to] = from.map(|at| x[at]).sum::<f32>() * share,
        PoolKind::Max => {
            let best = from.reduce(|best, at| if x[at] > x[best] { at } else { best }).unwrap_or_default();
            y[to] = x.get(best).copied().unwrap_or_default();
            if let Some(place) = places.get_mut(to) {
                *place = f32::from_bits(u32::try_from(best).unwrap_or_default());
            }
        }
    });
    Ok(())
}

pub(super) fn pool_back(pool: &Pool, using: &Use, args: &mut Args<'_>) -> Done {
    let (dy, places) = (args.read(Slot::Dy), args.read(Slot::Aux(0)));
    let dx = args.write(Slot::Dx(0));
    if pool.kind == PoolKind::Max {
        for (dy, place) in dy.iter().zip(places) {
            dx[place.to_bits() as usize] += dy;
        }
        return Ok(());
    }
    let share = share(pool, using);
    windows(pool, using, |to, from| from.for_each(|at| dx[at] += dy[to] * share));
    Ok(())
}

pub(super) fn upsample(factor: usize, using: &Use, args: &mut Args<'_>) -> Done {
    let x = args.read(Slot::X(0));
    let y = args.write(Slot::Out);
    each_pixel(factor, using, |to, from| y[to] = x[from]);
    Ok(())
}

pub(super) fn upsample_back(factor: usize, using: &Use, args: &mut Args<'_>) -> Done {
    let dy = args.read(Slot::Dy);
    let dx = args.write(Slot::Dx(0));
    each_pixel(factor, using, |to, from| dx[from] += dy[to]);
    Ok(())
}

fn each_pixel(factor: usize, using: &Use, mut visit: impl FnMut(usize, usize)) {
    let (_, [batch, channels, rows, columns]) = planes(2, using);
    let factor = factor.max(1);
    for one in 0..batch * channels {
        for row in 0..rows {
            for column in 0..columns {
                let from = (one * (rows / factor) + row / factor) * (columns / factor) + column / factor;
                visit((one * rows + row) * columns + column, from);
            }
        }
    }
}

/// The strides of a row-major shape.
fn strides(shape: &[usize]) -> Vec<usize> {
    (0..shape.len()).map(|axis| shape[axis + 1..].iter().product()).collect()
}

/// Calls `visit` with (output place, input place) for every element of a permutation.
pub(super) fn permuted(order: &[usize], using: &Use, mut visit: impl FnMut(usize, usize)) {
    let from = strides(using.inputs.first().map_or(&[], Vec::as_slice));
    let to = strides(&using.output);
    for at in 0..using.output.iter().product() {
        let places = order.iter().enumerate();
        let place = places
            .map(|(axis, source)| at / to[axis].max(1) % size(&using.output, axis).max(1) * from[*source]);
        visit(at, place.sum());
    }
}
