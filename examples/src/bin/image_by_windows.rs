//! An image larger than the memory that is allowed, sharpened window by window.
//!
//! The image lies in a file (PGM, 4.6 MiB); its tensor reads the part of each window when it is needed. Sharpening looks two
//! pixels beyond a window, and stops at the image's edge. The result is written as it comes, in bands of a window's height, within 512 KiB.
#![allow(
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "an example: short, and its numbers are small"
)]

use std::fs::File;
use std::io::{BufWriter, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::sync::Mutex;

use dd_examples::{Pictures, Result, check};
use deep_dimensions::core::{Backend as _, Budget, Bytes, DType, HostBackend, HostTensor, TensorDesc, Tier};
use deep_dimensions::infinite::{
    Context, Engine, FunctionError, InfiniteTensor, TensorSpec, TensorWindow, Tiles,
};

const HEIGHT: i64 = 2100;
const WIDTH: i64 = 2300;
const SIDE: i64 = 128;

/// How far sharpening looks.
const REACH: i64 = 2;

fn main() -> Result {
    let pictures = Pictures::new()?;
    let (source, target) = (pictures.path("image.pgm"), pictures.path("sharpened.pgm"));
    let start = write_image(&source)?;
    let budget = Budget::new("image", Bytes::kib(512));
    let engine = Engine::new(HostBackend::default(), 2)?;
    let tiles = Tiles::in_memory(&engine, budget.clone());
    let sharpened = sharpened(&tiles, &source, start)?;

    println!("an image of {} in {}:", Bytes((HEIGHT * WIDTH) as u64), budget.limit());
    let mut out = BufWriter::new(File::create(&target)?);
    write!(out, "P5\n{WIDTH} {HEIGHT}\n255\n")?;
    let mut band = vec![0; (SIDE * WIDTH) as usize];
    for top in (0..HEIGHT).step_by(SIDE as usize) {
        let bottom = (top + SIDE).min(HEIGHT);
        let rows = &mut band[..((bottom - top) * WIDTH) as usize];
        sharpened.read_into(&[(top..bottom).into(), (..).into()], rows)?;
        out.write_all(rows)?;
    }
    out.into_inner()?.sync_all()?;
    let peak = budget.usage().peak;
    check(
        peak <= budget.limit(),
        &format!("at most {peak} were held, beside a band of {}", Bytes::of(band.len())),
    )?;
    let windows = ((HEIGHT + SIDE - 1) / SIDE * ((WIDTH + SIDE - 1) / SIDE)) as u64;
    check(
        sharpened.computed() == windows,
        &format!("{} windows were computed for {windows}", sharpened.computed()),
    )?;

    let image = std::fs::read(&source)?;
    let result = std::fs::read(&target)?;
    let (image, result) = (&image[start as usize..], &result[start as usize..]);
    let same = (0..HEIGHT * WIDTH).all(|n| result[n as usize] == sharp(image, n / WIDTH, n % WIDTH));
    check(same, "every pixel is that of the whole image sharpened at once, the edges too")?;
    let corner = |pixels: &[u8]| -> Vec<u8> {
        (0..400).flat_map(|y| pixels[(y * WIDTH) as usize..][..400].to_vec()).collect()
    };
    pictures.write("before.png", 400, 400, &corner(image))?;
    pictures.write("after.png", 400, 400, &corner(result))?;
    Ok(())
}

/// The image in a file and, on top of it, the same sharpened.
fn sharpened(tiles: &Tiles<HostBackend>, path: &Path, start: u64) -> Result<InfiniteTensor<HostBackend>> {
    let shape = [Some(HEIGHT), Some(WIDTH)];
    let window = TensorWindow::new([SIDE, SIDE])?;
    let file = Mutex::new(File::open(path)?);
    let spec = TensorSpec::new("image", shape, window.clone()).dtype(DType::U8);
    let image = tiles.get_or_create(spec, move |at, _| read_window(&file, start, at))?;
    let around = TensorWindow::new([SIDE + 2 * REACH; 2])?;
    let around = around.with_stride([SIDE, SIDE])?.with_offset([-REACH, -REACH])?;
    let spec = TensorSpec::new("sharpened", shape, window).dtype(DType::U8).arg(&image, around);
    Ok(tiles.get_or_create(spec, sharpen)?)
}

/// The rows of a window, each from its place in the file.
fn read_window(file: &Mutex<File>, start: u64, at: &Context) -> Result<HostTensor, FunctionError> {
    let [rows, columns] = at.region().spans() else { return Err("two dimensions".into()) };
    let mut pixels = vec![0; (rows.len() * columns.len()) as usize];
    let mut file = file.lock().map_err(|_| "another window failed")?;
    for (row, y) in pixels.chunks_mut(columns.len() as usize).zip(rows.start()..) {
        file.seek(SeekFrom::Start(start + (y * WIDTH + columns.start()) as u64))?;
        file.read_exact(row)?;
    }
    upload(at, &pixels)
}

/// Each pixel, and half of what it has more than the mean around it.
fn sharpen(at: &Context, args: &[HostTensor]) -> Result<HostTensor, FunctionError> {
    // At the image's edge there is less around a window: it is clipped.
    let (Some(source), [rows, columns]) = (at.arg_region(0), at.region().spans()) else {
        return Err("one argument of two dimensions".into());
    };
    let (top, left) = (source.spans()[0], source.spans()[1]);
    let pixels = args[0].bytes();
    let get = |y: i64, x: i64| {
        let inside = (top.start()..top.end()).contains(&y) && (left.start()..left.end()).contains(&x);
        inside.then(|| pixels[((y - top.start()) * left.len().cast_signed() + x - left.start()) as usize])
    };
    let places =
        (rows.start()..rows.end()).flat_map(|y| (columns.start()..columns.end()).map(move |x| (y, x)));
    let values: Vec<u8> = places.map(|(y, x)| sharp_pixel(&get, y, x)).collect();
    upload(at, &values)
}

/// The same for the whole image, to check by.
fn sharp(image: &[u8], y: i64, x: i64) -> u8 {
    let inside = |y: i64, x: i64| (0..HEIGHT).contains(&y) && (0..WIDTH).contains(&x);
    sharp_pixel(&|y, x| inside(y, x).then(|| image[(y * WIDTH + x) as usize]), y, x)
}

fn sharp_pixel(get: &impl Fn(i64, i64) -> Option<u8>, y: i64, x: i64) -> u8 {
    let (mut sum, mut count) = (0, 0);
    for dy in -REACH..=REACH {
        for dx in -REACH..=REACH {
            if let Some(pixel) = get(y + dy, x + dx) {
                (sum, count) = (sum + i32::from(pixel), count + 1);
            }
        }
    }
    let pixel = i32::from(get(y, x).unwrap_or(0));
    (pixel + (pixel * count - sum) / count / 2).clamp(0, 255) as u8
}

fn upload(at: &Context, pixels: &[u8]) -> Result<HostTensor, FunctionError> {
    let desc = TensorDesc::new(at.region().shape()?.as_slice(), DType::U8)?;
    Ok(HostBackend::default().upload(&desc, pixels, Tier::Host)?)
}

/// Rings and stripes, row by row; says where the pixels begin.
fn write_image(path: &Path) -> Result<u64> {
    let mut file = BufWriter::new(File::create(path)?);
    let header = format!("P5\n{WIDTH} {HEIGHT}\n255\n");
    file.write_all(header.as_bytes())?;
    for y in 0..HEIGHT {
        let pixel = |x: i64| {
            let ring = ((y * y + x * x) / 4096 % 64 - 32).abs() * 4;
            let stripe = if (x / 24 + y / 40) % 3 == 0 { 40 } else { 80 };
            (ring + stripe) as u8
        };
        file.write_all(&(0..WIDTH).map(pixel).collect::<Vec<u8>>())?;
    }
    file.into_inner()?.sync_all()?;
    Ok(header.len() as u64)
}
