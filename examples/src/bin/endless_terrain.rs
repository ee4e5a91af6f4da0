//! An endless map of three layers: heights, the heights blurred, and the blurred heights shaded.
//!
//! Each layer is made of windows of 64 × 64, and the two upper ones look beyond the windows of the one below. Whatever part of
//! the map is read, in one piece or cut anywhere, with one thread or with four, through a cache or from a store on disk: an
//! element is the same to the last bit, so nothing shows where the pieces meet.
#![allow(
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "an example: short, and its numbers are small"
)]

use std::sync::Arc;

use dd_examples::{Pictures, Result, check, floats, to_bytes};
use deep_dimensions::core::{Backend as _, Budget, Bytes, DType, HostBackend, HostTensor, TensorDesc, Tier};
use deep_dimensions::infinite::zarr::{ZarrOptions, ZarrTileStore};
use deep_dimensions::infinite::{
    Context, Engine, FunctionError, InfiniteTensor, Slice, TensorSpec, TensorWindow, Tiles,
};

const SIDE: i64 = 64;

/// How far the blur and the shading look beyond a window.
const BLUR: i64 = 4;
const SLOPE: i64 = 1;

fn main() -> Result {
    let pictures = Pictures::new()?;
    let budget = Budget::new("map", Bytes::mib(4));
    let engine = Engine::new(HostBackend::default(), 4)?;
    let map = layers(&Tiles::in_memory(&engine, budget.clone()))?;

    println!("a view of 448 x 640 that begins at (-300, 1000000):");
    let (rows, columns) = (-300..148, 1_000_000..1_000_640);
    let whole = map.read(&[rows.clone().into(), columns.clone().into()])?.bytes;
    let gray: Vec<u8> = floats(&whole).iter().map(|light| (light * 255.0) as u8).collect();
    pictures.write("terrain.png", 640, 448, &gray)?;

    let mut pieces = vec![0; whole.len()];
    for (top, bottom) in [(-300, -299), (-299, -157), (-157, 3), (3, 148)] {
        for (left, right) in [(0, 7), (7, 333), (333, 640)] {
            let part = map.read(&[(top..bottom).into(), (1_000_000 + left..1_000_000 + right).into()])?.bytes;
            let width = (right - left) as usize * 4;
            for (n, row) in part.chunks(width).enumerate() {
                let start = ((top + 300) as usize + n) * 640 * 4 + left as usize * 4;
                pieces[start..start + width].copy_from_slice(row);
            }
        }
    }
    check(pieces == whole, "cut into twelve pieces it is the same picture, bit for bit")?;
    let peak = budget.usage().peak;
    check(peak <= budget.limit(), &format!("at most {peak} were held, of {}", budget.limit()))?;

    let one = Engine::new(HostBackend::default(), 1)?;
    let alone = layers(&Tiles::in_memory(&one, Budget::new("small", Bytes::kib(512))))?;
    let read = alone.read(&[rows.clone().into(), columns.clone().into()])?.bytes;
    check(read == whole, "one thread in an eighth of the memory gives the same bits")?;

    println!("\nthe same map from a store on disk:");
    let store = Arc::new(ZarrTileStore::open(pictures.path("store"), ZarrOptions::default())?);
    let view: [Slice; 2] = [(-300..-172).into(), (1_000_000..1_000_128).into()];
    let written = layers(&Tiles::with_store(&engine, Budget::new("written", Bytes::mib(4)), store.clone()))?;
    let first = written.read(&view)?.bytes;
    let again = layers(&Tiles::with_store(&engine, Budget::new("again", Bytes::mib(4)), store))?;
    let second = again.read(&view)?.bytes;
    check(first == second, "what another program would read of it is the same")?;
    check(again.computed() == 0, "and nothing was computed for it")
}

/// The map's layers, each made of the one before.
fn layers(tiles: &Tiles<HostBackend>) -> Result<InfiniteTensor<HostBackend>> {
    let plane = [None, None];
    let window = TensorWindow::new([SIDE, SIDE])?;
    let around = |reach: i64| -> Result<TensorWindow> {
        let size = [SIDE + 2 * reach; 2];
        Ok(TensorWindow::new(size)?.with_stride([SIDE, SIDE])?.with_offset([-reach, -reach])?)
    };
    let heights = tiles.get_or_create(TensorSpec::new("heights", plane, window.clone()), heights)?;
    let spec = TensorSpec::new("blurred", plane, window.clone()).arg(&heights, around(BLUR)?);
    let blurred = tiles.get_or_create(spec, blurred)?;
    let spec = TensorSpec::new("shaded", plane, window).arg(&blurred, around(SLOPE)?);
    Ok(tiles.get_or_create(spec, shaded)?)
}

/// Heights: five octaves of noise, each of half the wavelength and half the amplitude of the one before.
fn heights(at: &Context, _: &[HostTensor]) -> Result<HostTensor, FunctionError> {
    each(at, |y, x| {
        let octave = |n: i32| 0.5f32.powi(n) * noise(y, x, 128 >> n);
        (0..5).map(octave).sum()
    })
}

/// The mean of the elements around each one.
fn blurred(at: &Context, args: &[HostTensor]) -> Result<HostTensor, FunctionError> {
    let (source, width) = (floats(args[0].bytes()), SIDE + 2 * BLUR);
    let (top, left) = corner(at);
    each(at, |y, x| {
        let mut sum = 0.0;
        for dy in 0..=2 * BLUR {
            for dx in 0..=2 * BLUR {
                sum += source[((y - top + dy) * width + x - left + dx) as usize];
            }
        }
        sum / ((2 * BLUR + 1) * (2 * BLUR + 1)) as f32
    })
}

/// Light from the north-west on the slopes, 0 to 1.
fn shaded(at: &Context, args: &[HostTensor]) -> Result<HostTensor, FunctionError> {
    let (source, width) = (floats(args[0].bytes()), SIDE + 2 * SLOPE);
    let (top, left) = corner(at);
    each(at, |y, x| {
        let height = |dy: i64, dx: i64| source[((y - top + 1 + dy) * width + x - left + 1 + dx) as usize];
        let (down, right) = (height(1, 0) - height(-1, 0), height(0, 1) - height(0, -1));
        (0.55 + 6.0 * (down + right) + 0.25 * height(0, 0)).clamp(0.0, 1.0)
    })
}

fn corner(at: &Context) -> (i64, i64) {
    let spans = at.region().spans();
    (spans[0].start(), spans[1].start())
}

/// A window whose elements are a function of their place.
fn each(at: &Context, value: impl Fn(i64, i64) -> f32) -> Result<HostTensor, FunctionError> {
    let (top, left) = corner(at);
    let values: Vec<f32> = (0..SIDE * SIDE).map(|n| value(top + n / SIDE, left + n % SIDE)).collect();
    let desc = TensorDesc::new([SIDE as usize, SIDE as usize], DType::F32)?;
    Ok(HostBackend::default().upload(&desc, &to_bytes(&values), Tier::Host)?)
}

/// Value noise: random numbers on a lattice, and a smooth way from one to the next.
fn noise(y: i64, x: i64, wavelength: i64) -> f32 {
    let smooth = |at: i64| {
        let t = at.rem_euclid(wavelength) as f32 / wavelength as f32;
        t * t * (3.0 - 2.0 * t)
    };
    let corner = |dy: i64, dx: i64| {
        let point = [wavelength, y.div_euclid(wavelength) + dy, x.div_euclid(wavelength) + dx];
        let hash = point.iter().fold(7u64, |hash, part| {
            let mixed = (hash ^ *part as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            mixed ^ (mixed >> 29)
        });
        (hash >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    let (v, u) = (smooth(y), smooth(x));
    let row = |dy: i64| corner(dy, 0) + u * (corner(dy, 1) - corner(dy, 0));
    row(0) + v * (row(1) - row(0))
}
