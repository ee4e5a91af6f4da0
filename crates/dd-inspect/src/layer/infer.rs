//! The shape that a layer makes of its inputs' shapes, with every product checked.

use super::{Attention, Conv, Layer, Norm, NormKind, Pool, Target};

/// What is wrong, in words; the caller adds the layer's name.
pub(crate) type Inferred = Result<Vec<usize>, String>;

impl Layer {
    /// The output's shape, or what is wrong. A number of elements past 64 bits is found by whoever sizes the result.
    ///
    /// # Errors
    /// What was expected and what was found.
    pub fn output_shape(&self, inputs: &[&[usize]]) -> Inferred {
        match self {
            Self::Concat { axis } => return concat(*axis, inputs),
            Self::Add | Self::Multiply => return same(inputs),
            Self::MatMul => return matmul(inputs),
            Self::Attention(attention) => return attend(attention, inputs),
            _ => {}
        }
        let [x] = inputs else {
            return Err(format!("expected one input, found {}", inputs.len()));
        };
        match self {
            Self::Linear { inputs, outputs, .. } => replace_last(x, *inputs, *outputs),
            Self::Conv(conv) => convolve(conv, x),
            Self::Norm(norm) => normalise(norm, x),
            Self::Pool(pool) => reduce(pool, x),
            Self::Embedding { width, .. } => Ok([*x, &[*width]].concat()),
            Self::Position { count, width } => {
                let [.., seq, last] = x else {
                    return Err(format!("expected [.., seq, {width}], found {x:?}"));
                };
                if last != width || seq > count {
                    return Err(format!("expected [.., seq of at most {count}, {width}], found {x:?}"));
                }
                Ok(x.to_vec())
            }
            Self::Rotary { head_dim, turned } => {
                let fits =
                    x.len() == 3 && x.last().is_some_and(|w| *head_dim > 0 && w.is_multiple_of(*head_dim));
                if !fits || turned > head_dim || !turned.is_multiple_of(2) {
                    return Err(format!(
                        "expected [batch, seq, heads of {head_dim}] with an even part of {turned} turned, found {x:?}"
                    ));
                }
                Ok(x.to_vec())
            }
            Self::Recurrent(cell) => {
                if x.len() != 3 {
                    return Err(format!("expected [batch, seq, {}], found {x:?}", cell.inputs));
                }
                replace_last(x, cell.inputs, cell.hidden)
            }
            Self::Narrow { axis, start, len } => narrow(x, *axis, *start, *len),
            Self::Reshape(targets) => reshape(x, targets),
            Self::Permute(order) => permute(x, order),
            Self::Upsample { factor } => upsample(x, *factor),
            _ => Ok(x.to_vec()),
        }
    }
}

fn replace_last(x: &[usize], from: usize, to: usize) -> Inferred {
    match x.split_last() {
        Some((last, rest)) if *last == from => Ok([rest, &[to]].concat()),
        _ => Err(format!("expected [.., {from}], found {x:?}")),
    }
}

/// The axes of a picture; a signal has height one.
pub(crate) fn plane(axes: usize, x: &[usize]) -> Option<[usize; 4]> {
    match (axes, x) {
        (1, [batch, channels, length]) => Some([*batch, *channels, 1, *length]),
        (2, [batch, channels, height, width]) => Some([*batch, *channels, *height, *width]),
        _ => None,
    }
}

fn unplane(axes: usize, [batch, channels, height, width]: [usize; 4]) -> Vec<usize> {
    if axes == 1 { vec![batch, channels, width] } else { vec![batch, channels, height, width] }
}

/// How many places a window has along an axis.
fn places(size: usize, kernel: usize, stride: usize, padding: usize, dilation: usize) -> Inferred1 {
    if kernel == 0 || stride == 0 || dilation == 0 {
        return Err("kernel, stride and dilation are at least 1".to_owned());
    }
    let too_large = || format!("a kernel of {kernel} with dilation {dilation} overflows");
    let reach = (kernel - 1).checked_mul(dilation).and_then(|r| r.checked_add(1)).ok_or_else(too_large)?;
    // A size near the address space is refused as too large by whoever sizes the tensor.
    let padded = size.saturating_add(padding.saturating_mul(2));
    let room = padded.checked_sub(reach).ok_or_else(|| {
        format!(
            "expected at least {reach} along each axis for the kernel, found {size} and padding {padding}"
        )
    })?;
    Ok(room / stride + 1)
}

type Inferred1 = Result<usize, String>;

fn convolve(conv: &Conv, x: &[usize]) -> Inferred {
    let expected = || format!("expected [batch, {}, {} axes], found {x:?}", conv.inputs, conv.axes);
    let [batch, channels, height, width] = plane(conv.axes, x).ok_or_else(expected)?;
    if channels != conv.inputs {
        return Err(expected());
    }
    let divides = |n: usize| conv.groups > 0 && n.is_multiple_of(conv.groups);
    if !divides(conv.inputs) || !divides(conv.outputs) {
        let found = format!("{} in and {} out", conv.inputs, conv.outputs);
        return Err(format!("expected channels that are multiples of {} groups, found {found}", conv.groups));
    }
    let along = |axis: usize, size| {
        let at = |all: [usize; 2]| all.get(axis).copied().unwrap_or(1);
        places(size, at(conv.kernel), at(conv.stride), at(conv.padding), at(conv.dilation))
    };
    Ok(unplane(conv.axes, [batch, conv.outputs, along(0, height)?, along(1, width)?]))
}

fn reduce(pool: &Pool, x: &[usize]) -> Inferred {
    let expected = || format!("expected [batch, channels, {} axes], found {x:?}", pool.axes);
    let [batch, channels, height, width] = plane(pool.axes, x).ok_or_else(expected)?;
    if pool.kernel == [0; 2] {
        return Ok(unplane(pool.axes, [batch, channels, height.min(1), width.min(1)]));
    }
    let [k0, k1] = pool.kernel;
    let ([s0, s1], [p0, p1]) = (pool.stride, pool.padding);
    if p0 >= k0.max(1) || p1 >= k1.max(1) {
        return Err(format!("expected padding below the window {:?}, found {:?}", pool.kernel, pool.padding));
    }
    Ok(unplane(pool.axes, [batch, channels, places(height, k0, s0, p0, 1)?, places(width, k1, s1, p1, 1)?]))
}

fn normalise(norm: &Norm, x: &[usize]) -> Inferred {
    let found = match norm.kind {
        NormKind::Layer | NormKind::Rms => x.last(),
        NormKind::Batch | NormKind::Group(_) => x.get(1),
    };
    if found != Some(&norm.width) {
        return Err(format!("expected {} channels to normalise, found {x:?}", norm.width));
    }
    match norm.kind {
        NormKind::Group(groups) if groups == 0 || !norm.width.is_multiple_of(groups) => {
            Err(format!("expected channels that are a multiple of {groups} groups, found {}", norm.width))
        }
        _ => Ok(x.to_vec()),
    }
}

fn same(inputs: &[&[usize]]) -> Inferred {
    match inputs {
        [a, b] if a == b => Ok(a.to_vec()),
        _ => Err(format!("expected two inputs of one shape, found {inputs:?}")),
    }
}

fn matmul(inputs: &[&[usize]]) -> Inferred {
    if let [[lead @ .., n, k], [lead2 @ .., k2, m]] = inputs
        && lead == lead2
        && k == k2
    {
        return Ok([lead, &[*n, *m]].concat());
    }
    Err(format!("expected [.., n, k] and [.., k, m] with the same leading axes, found {inputs:?}"))
}

fn concat(axis: usize, inputs: &[&[usize]]) -> Inferred {
    let Some(first) = inputs.first() else {
        return Err("expected at least one input, found none".to_owned());
    };
    let mut shape = first.to_vec();
    for other in inputs.iter().skip(1) {
        let fits = other.len() == first.len()
            && first.iter().zip(*other).enumerate().all(|(at, (a, b))| at == axis || a == b);
        let more = other.get(axis).copied().unwrap_or_default();
        let Some(size) = shape.get_mut(axis).filter(|_| fits) else {
            return Err(format!("expected shapes that differ along axis {axis} only, found {inputs:?}"));
        };
        *size = size.checked_add(more).ok_or_else(|| format!("axis {axis} overflows"))?;
    }
    if axis >= shape.len() {
        return Err(format!("expected an axis below {}, found {axis}", shape.len()));
    }
    Ok(shape)
}

fn attend(attention: &Attention, inputs: &[&[usize]]) -> Inferred {
    let Attention { heads, kv_heads, head_dim, .. } = *attention;
    if heads == 0 || kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
        return Err(format!(
            "expected query heads that are a multiple of the key heads, found {heads} and {kv_heads}"
        ));
    }
    let width =
        |n: usize| n.checked_mul(head_dim).ok_or_else(|| "the width of the heads overflows".to_owned());
    let (queries, keys) = (width(heads)?, width(kv_heads)?);
    if let [[b, _, w], [b2, t, kw], [b3, t2, vw]] = inputs
        && b == b2
        && b == b3
        && t == t2
        && *w == queries
        && *kw == keys
        && *vw == keys
    {
        return Ok(inputs.first().map(|q| q.to_vec()).unwrap_or_default());
    }
    Err(format!(
        "expected queries [batch, seq, {queries}], keys and values [batch, positions, {keys}], found {inputs:?}"
    ))
}

fn narrow(x: &[usize], axis: usize, start: usize, len: usize) -> Inferred {
    let mut shape = x.to_vec();
    let fits = |size: &&mut usize| start.checked_add(len).is_some_and(|end| end <= **size);
    let Some(size) = shape.get_mut(axis).filter(fits) else {
        return Err(format!("expected axis {axis} to reach {start} + {len}, found {x:?}"));
    };
    *size = len;
    Ok(shape)
}

fn permute(x: &[usize], order: &[usize]) -> Inferred {
    let mut sorted = order.to_vec();
    sorted.sort_unstable();
    if !sorted.into_iter().eq(0..x.len()) {
        return Err(format!("expected each of the {} axes once, found {order:?}", x.len()));
    }
    Ok(order.iter().filter_map(|axis| x.get(*axis).copied()).collect())
}

fn upsample(x: &[usize], factor: usize) -> Inferred {
    let [batch, channels, height, width] =
        plane(2, x).ok_or_else(|| format!("expected [batch, channels, height, width], found {x:?}"))?;
    let times = |n: usize| n.checked_mul(factor).ok_or_else(|| format!("{n} times {factor} overflows"));
    Ok(vec![batch, channels, times(height)?, times(width)?])
}

fn reshape(x: &[usize], targets: &[Target]) -> Inferred {
    // What `Same` takes over is left out of both sides, so that a batch of zero or of any size goes through.
    let mut kept = vec![false; x.len()];
    let mut known: u128 = 1;
    let mut rest = None;
    let mut shape = Vec::with_capacity(targets.len());
    for (at, target) in targets.iter().enumerate() {
        match target {
            Target::Fixed(size) => {
                known = known.saturating_mul(*size as u128);
                shape.push(*size);
            }
            Target::Same(axis) => {
                let (Some(size), Some(kept)) = (x.get(*axis), kept.get_mut(*axis)) else {
                    return Err(format!("expected an axis below {}, found {axis}", x.len()));
                };
                if std::mem::replace(kept, true) {
                    known = known.saturating_mul(*size as u128);
                }
                shape.push(*size);
            }
            Target::Rest if rest.is_none() => {
                rest = Some(at);
                shape.push(0);
            }
            Target::Rest => return Err("expected one open dimension at most, found two".to_owned()),
        }
    }
    let left = x.iter().zip(&kept).filter(|(_, kept)| !**kept);
    let left = left.fold(1u128, |product, (size, _)| product.saturating_mul(*size as u128));
    let wrong = || format!("{x:?} does not have the elements of {targets:?}");
    let Some(at) = rest else {
        return if left == known { Ok(shape) } else { Err(wrong()) };
    };
    if left > 0 && (known == 0 || !left.is_multiple_of(known)) {
        return Err(wrong());
    }
    let open = if left == 0 { 0 } else { left / known };
    let open = usize::try_from(open).map_err(|_| wrong())?;
    if let Some(size) = shape.get_mut(at) {
        *size = open;
    }
    Ok(shape)
}
