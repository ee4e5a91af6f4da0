//! Normalisations and softmax.
#![allow(clippy::indexing_slicing, reason = "places are inside the shapes that shape inference checked")]

use super::{Done, size};
use crate::exec::storage::Args;
use crate::layer::{Norm, NormKind};
use crate::program::{Slot, Use};

const EPSILON: f32 = 1e-5;

/// How elements fall into groups that are normalised together, and which channel each has.
struct Groups {
    kind: NormKind,
    /// Columns of a row, or places of a channel.
    inner: usize,
    channels: usize,
    /// Channels of a group.
    each: usize,
    count: usize,
}

impl Groups {
    fn new(norm: &Norm, using: &Use) -> Self {
        let shape = &using.output;
        let total: usize = shape.iter().product();
        let width = norm.width.max(1);
        match norm.kind {
            NormKind::Layer | NormKind::Rms => {
                Self { kind: norm.kind, inner: width, channels: width, each: 1, count: total / width }
            }
            NormKind::Batch => {
                let inner = shape.get(2..).unwrap_or_default().iter().product();
                Self { kind: norm.kind, inner, channels: width, each: 1, count: width }
            }
            NormKind::Group(groups) => {
                let inner = shape.get(2..).unwrap_or_default().iter().product();
                let each = width / groups.max(1);
                Self { kind: norm.kind, inner, channels: width, each, count: size(shape, 0) * groups }
            }
        }
    }

    /// The group and the channel of an element.
    fn of(&self, at: usize) -> (usize, usize) {
        let channel = at / self.inner.max(1) % self.channels;
        match self.kind {
            NormKind::Layer | NormKind::Rms => (at / self.channels, at % self.channels),
            NormKind::Batch => (channel, channel),
            NormKind::Group(_) => (at / self.inner.max(1) / self.each.max(1), channel),
        }
    }

    /// The places of a group.
    fn places(&self, group: usize, total: usize) -> impl Iterator<Item = usize> + use<> {
        let (start, step, len) = match self.kind {
            NormKind::Layer | NormKind::Rms => (group * self.channels, total.max(1), self.channels),
            NormKind::Batch => (group * self.inner, self.channels * self.inner, self.inner),
            NormKind::Group(_) => (group * self.each * self.inner, total.max(1), self.each * self.inner),
        };
        (start..total).step_by(step.max(1)).flat_map(move |start| start..start + len)
    }
}

pub(super) fn forward(norm: &Norm, using: &Use, args: &mut Args<'_>) -> Done {
    let x = args.read(Slot::X(0));
    let (scale, shift) = affine(norm, args);
    let (y, kept) = (args.write(Slot::Out), args.write(Slot::Aux(0)));
    let groups = Groups::new(norm, using);
    for group in 0..groups.count {
        let (mean, inverse) = statistics(norm, &groups, group, x);
        if norm.kind == NormKind::Rms {
            kept.iter_mut().skip(group).take(1).for_each(|slot| *slot = inverse);
        } else {
            kept.iter_mut().skip(2 * group).zip([mean, inverse]).for_each(|(slot, value)| *slot = value);
        }
        for at in groups.places(group, x.len()) {
            let (_, channel) = groups.of(at);
            let normal = (x[at] - mean) * inverse;
            y[at] = normal * scale.get(channel).unwrap_or(&1.0) + shift.get(channel).unwrap_or(&0.0);
        }
    }
    Ok(())
}

/// Scale and shift; a norm without a scale has its shift first.
fn affine<'m>(norm: &Norm, args: &Args<'m>) -> (&'m [f32], &'m [f32]) {
    match (norm.scale, norm.shift) {
        (true, _) => (args.read(Slot::P(0)), args.read(Slot::P(1))),
        (false, true) => (&[], args.read(Slot::P(0))),
        (false, false) => (&[], &[]),
    }
}

fn statistics(norm: &Norm, groups: &Groups, group: usize, x: &[f32]) -> (f32, f32) {
    let (mut count, mut sum, mut squares) = (0.0f64, 0.0f64, 0.0f64);
    for at in groups.places(group, x.len()) {
        let value = f64::from(x[at]);
        count += 1.0;
        sum += value;
        squares += value * value;
    }
    let count = count.max(1.0);
    let mean = if norm.kind == NormKind::Rms { 0.0 } else { sum / count };
    let variance = (squares / count - mean * mean).max(0.0);
    #[allow(clippy::cast_possible_truncation, reason = "rounding to f32 is what computing in f32 means")]
    let rounded = (mean as f32, (1.0 / (variance + f64::from(EPSILON)).sqrt()) as f32);
    rounded
}

pub(super) fn backward(norm: &Norm, using: &Use, args: &mut Args<'_>) -> Done {
    let (dy, x, kept) = (args.read(Slot::Dy), args.read(Slot::X(0)), args.read(Slot::Aux(0)));
    let (scale, _) = affine(norm, args);
    let (dx, first, second) = (args.write(Slot::Dx(0)), args.write(Slot::Dp(0)), args.write(Slot::Dp(1)));
    let (dscale, dshift) = if norm.scale { (first, second) } else { (second, first) };
    let groups = Groups::new(norm, using);
    for group in 0..groups.count {
        let (mean, inverse) = match norm.kind {
            NormKind::Rms => (0.0, kept[group]),
            _ => (kept[2 * group], kept[2 * group + 1]),
        };
        let (mut count, mut sum, mut along) = (0.0, 0.0, 0.0);
        for at in groups.places(group, x.len()) {
            let (_, channel) = groups.of(at);
            let normal = (x[at] - mean) * inverse;
            if let Some(slot) = dscale.get_mut(channel) {
                *slot += dy[at] * normal;
            }
            if let Some(slot) = dshift.get_mut(channel) {
                *slot += dy[at];
            }
            let through = dy[at] * scale.get(channel).unwrap_or(&1.0);
            count += 1.0;
            sum += through;
            along += through * normal;
        }
        if dx.is_empty() {
            continue;
        }
        let sum = if norm.kind == NormKind::Rms { 0.0 } else { sum };
        for at in groups.places(group, x.len()) {
            let (_, channel) = groups.of(at);
            let normal = (x[at] - mean) * inverse;
            let through = dy[at] * scale.get(channel).unwrap_or(&1.0);
            dx[at] += inverse * (through - (sum + normal * along) / count);
        }
    }
    Ok(())
}

pub(super) fn softmax(using: &Use, args: &mut Args<'_>) -> Done {
    let x = args.read(Slot::X(0));
    let y = args.write(Slot::Out);
    let width = using.output.last().copied().unwrap_or(1).max(1);
    for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
        y.copy_from_slice(x);
        softmax_row(y);
    }
    Ok(())
}

/// Turns a row of scores into shares; a row of nothing but −∞ becomes zeros.
pub(super) fn softmax_row(row: &mut [f32]) {
    let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for value in row.iter_mut() {
        *value = if most == f32::NEG_INFINITY { 0.0 } else { (*value - most).exp() };
        sum += *value;
    }
    if sum > 0.0 {
        row.iter_mut().for_each(|value| *value /= sum);
    }
}

pub(super) fn softmax_back(using: &Use, args: &mut Args<'_>) -> Done {
    let y = args.read(Slot::Out);
    let dy = args.write(Slot::Dy);
    let width = using.output.last().copied().unwrap_or(1).max(1);
    for (dy, y) in dy.chunks_exact_mut(width).zip(y.chunks_exact(width)) {
        let along = super::dot(dy, y);
        dy.iter_mut().zip(y).for_each(|(dy, y)| *dy = y * (*dy - along));
    }
    Ok(())
}
