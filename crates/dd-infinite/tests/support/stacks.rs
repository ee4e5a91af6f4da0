//! Tensors to test with: a base of hashed coordinates, halo blurs on top, and the same computed densely.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part")]

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dd_core::{Backend, Bytes, DType, HostBackend, HostTensor, TensorDesc, Tier};
use dd_infinite::{Context, FunctionError, InfiniteTensor, Region, Span, TensorSpec, TensorWindow, Tiles};

pub type Host = HostBackend;

/// A generator of test cases.
#[derive(Clone)]
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn range(&mut self, from: i64, to: i64) -> i64 {
        from + (self.next() % (to - from).unsigned_abs()) as i64
    }

    pub fn one_in(&mut self, n: u64) -> bool {
        self.next().is_multiple_of(n)
    }
}

/// A value for a place, from its coordinates alone.
pub fn hashed(at: &[i64]) -> f32 {
    let mut rng = Rng(at
        .iter()
        .fold(7, |all, x| all ^ (*x as u64).wrapping_mul(0x2545_f491_4f6c_dd1d).rotate_left(23)));
    (rng.next() % 4096) as f32 / 64.0 - 20.0
}

/// Shares the bytes of a function's output: no copy, so that what it takes is what it declares.
pub fn tensor(region: &Region, values: impl Iterator<Item = f32>) -> Result<HostTensor, FunctionError> {
    let shape = region.shape()?;
    let desc = TensorDesc::new(shape.as_slice(), DType::F32)?;
    let mut bytes = Vec::with_capacity(desc.len_in_memory()?);
    values.for_each(|value| bytes.extend_from_slice(&value.to_le_bytes()));
    Ok(HostBackend::default().upload(&desc, &bytes, Tier::Host)?)
}

pub fn values(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

/// Gives hashed coordinates.
pub fn base(context: &Context, _args: &[HostTensor]) -> Result<HostTensor, FunctionError> {
    tensor(context.region(), context.region().points().map(|at| hashed(&at)))
}

fn offset(region: &Region, at: &[i64]) -> Option<usize> {
    region.number(at).map(|n| n as usize)
}

/// The sum over a halo, in order, of what is inside.
pub fn blur(context: &Context, args: &[HostTensor], halo: i64) -> Result<HostTensor, FunctionError> {
    let seen = context.arg_region(0).unwrap();
    let from = args[0].bytes();
    let look =
        |at: &[i64]| offset(seen, at).map(|n| f32::from_le_bytes(from[n * 4..n * 4 + 4].try_into().unwrap()));
    tensor(context.region(), context.region().points().map(|at| around(&at, halo, look)))
}

/// `x/2 + Σ neighbours / 8`, in a fixed order, over what `look` has.
pub fn around(at: &[i64], halo: i64, mut look: impl FnMut(&[i64]) -> Option<f32>) -> f32 {
    let hood = Region::new(at.iter().map(|x| Span::new(x - halo, x + halo + 1)));
    hood.points().filter_map(|near| look(&near)).fold(0.0, |sum, x| sum + x / 8.0) * 0.75
}

/// The same, computed without windows.
#[derive(Default)]
pub struct Dense {
    known: HashMap<(usize, Vec<i64>), f32>,
}

impl Dense {
    pub fn at(&mut self, depth: usize, halo: i64, shape: &[Option<i64>], at: &[i64]) -> Option<f32> {
        let inside = at.iter().zip(shape).all(|(x, len)| len.is_none_or(|len| *x >= 0 && *x < len));
        if !inside {
            return None;
        }
        if depth == 0 {
            return Some(hashed(at));
        }
        if let Some(value) = self.known.get(&(depth, at.to_vec())) {
            return Some(*value);
        }
        let value = around(at, halo, |near| self.at(depth - 1, halo, shape, near));
        self.known.insert((depth, at.to_vec()), value);
        Some(value)
    }
}

/// A window that gives another's box, widened by a halo.
pub fn widened(window: &TensorWindow, halo: i64) -> TensorWindow {
    let size: Vec<i64> = window.size().iter().map(|s| s + 2 * halo).collect();
    let offset: Vec<i64> = window.offset().iter().map(|o| o - halo).collect();
    TensorWindow::new(size)
        .unwrap()
        .with_stride(window.stride())
        .unwrap()
        .with_offset(offset)
        .unwrap()
        .with_dimension_map(window.dimension_map())
        .unwrap()
        .with_edge(window.edge())
}

/// Counts calls of functions.
#[derive(Clone, Default)]
pub struct Calls(pub Arc<AtomicU64>);

impl Calls {
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }

    pub fn note(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// A base and `depth` halo blurs on it, the last one returned; `calls` counts all.
pub fn pyramid(
    tiles: &Tiles<Host>,
    shape: &[Option<i64>],
    windows: &[TensorWindow],
    halo: i64,
    calls: &Calls,
    each: impl Fn(TensorSpec<Host>) -> TensorSpec<Host>,
) -> InfiniteTensor<Host> {
    let counted = calls.clone();
    let size = |window: &TensorWindow| Bytes(window.size().iter().product::<i64>() as u64 * 4 + 1024);
    let spec = TensorSpec::new("base", shape, windows[0].clone()).workspace(size(&windows[0]));
    let mut top = tiles
        .get_or_create(each(spec), move |context, args| {
            counted.note();
            base(context, args)
        })
        .unwrap();
    for (depth, window) in windows.iter().enumerate().skip(1) {
        let counted = calls.clone();
        let spec = TensorSpec::new(format!("blur {depth}"), shape, window.clone()).workspace(size(window));
        let spec = each(spec.arg(&top, widened(window, halo)));
        top = tiles
            .get_or_create(spec, move |context, args| {
                counted.note();
                blur(context, args, halo)
            })
            .unwrap();
    }
    top
}
