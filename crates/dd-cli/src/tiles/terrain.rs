//! The demo's endless terrain: height as noise of several octaves, a blur with a halo, and a shaded relief.
//!
//! Every value depends on its coordinates alone, and every sum is added in one order, so a window's bits are the same
//! whatever window it is computed in.

use std::f32::consts::FRAC_1_SQRT_2;

/// How far the blur looks in each direction.
pub const BLUR: usize = 3;

/// How far the relief looks in each direction.
pub const SLOPE: usize = 1;

/// Octaves of noise: the wavelength of the first and the number of halvings.
const WAVELENGTH: i64 = 256;
const OCTAVES: u32 = 6;

/// The blur's weights, a row of Pascal's triangle, and their sum squared.
const WEIGHTS: [f32; 2 * BLUR + 1] = [1.0, 6.0, 15.0, 20.0, 15.0, 6.0, 1.0];
const WEIGHT: f32 = 64.0;

/// Below this height is water.
const SEA: f32 = 0.42;

/// Colours by height above the sea, as a fraction of what is left.
const TINTS: [(f32, [f32; 3]); 6] = [
    (0.0, [214.0, 202.0, 152.0]),
    (0.08, [120.0, 160.0, 84.0]),
    (0.30, [74.0, 122.0, 66.0]),
    (0.50, [128.0, 112.0, 84.0]),
    (0.72, [150.0, 146.0, 142.0]),
    (1.0, [250.0, 250.0, 252.0]),
];

/// Heights in 0..=1 of a window from `(top, left)` on, row by row into `out` of `width` columns.
pub fn heights(seed: u64, top: i64, left: i64, width: usize, out: &mut [f32]) {
    for (row, y) in out.chunks_exact_mut(width.max(1)).zip(top..) {
        for (value, x) in row.iter_mut().zip(left..) {
            *value = height(seed, y, x);
        }
    }
}

/// The height at one place.
fn height(seed: u64, y: i64, x: i64) -> f32 {
    let octave = |n: u32| {
        let amplitude = 0.5f32.powi(n.cast_signed());
        amplitude * noise(seed.wrapping_add(u64::from(n)), y, x, WAVELENGTH >> n)
    };
    let sum: f32 = (0..OCTAVES).map(octave).sum();
    (0.5 + 0.62 * sum).clamp(0.0, 1.0)
}

/// Gradient noise of one wavelength, about −0.7..=0.7: Ken Perlin, “Improving noise”, SIGGRAPH 2002.
fn noise(seed: u64, y: i64, x: i64, wavelength: i64) -> f32 {
    let (cell_y, cell_x) = (y.div_euclid(wavelength), x.div_euclid(wavelength));
    let within = |at: i64| (at.rem_euclid(wavelength) as f32 + 0.5) / wavelength as f32;
    let (fy, fx) = (within(y), within(x));
    let corner = |dy: i64, dx: i64| {
        let (gy, gx) = gradient(seed, cell_y.wrapping_add(dy), cell_x.wrapping_add(dx));
        gy * (fy - dy as f32) + gx * (fx - dx as f32)
    };
    let (v, u) = (fade(fy), fade(fx));
    let top = lerp(u, corner(0, 0), corner(0, 1));
    let bottom = lerp(u, corner(1, 0), corner(1, 1));
    lerp(v, top, bottom)
}

/// One of eight directions for a point of the lattice.
fn gradient(seed: u64, y: i64, x: i64) -> (f32, f32) {
    let mut hash = seed ^ y.cast_unsigned().wrapping_mul(0x9e37_79b9_7f4a_7c15);
    hash = (hash ^ (hash >> 32)).wrapping_add(x.cast_unsigned()).wrapping_mul(0xd6e8_feb8_6659_fd93);
    hash = (hash ^ (hash >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    match hash >> 61 {
        0 => (1.0, 0.0),
        1 => (-1.0, 0.0),
        2 => (0.0, 1.0),
        3 => (0.0, -1.0),
        4 => (FRAC_1_SQRT_2, FRAC_1_SQRT_2),
        5 => (FRAC_1_SQRT_2, -FRAC_1_SQRT_2),
        6 => (-FRAC_1_SQRT_2, FRAC_1_SQRT_2),
        _ => (-FRAC_1_SQRT_2, -FRAC_1_SQRT_2),
    }
}

fn fade(t: f32) -> f32 {
    t * t * t * (t * (t * 6.0 - 15.0) + 10.0)
}

fn lerp(t: f32, a: f32, b: f32) -> f32 {
    a + t * (b - a)
}

/// Blurs a window whose source reaches [`BLUR`] further on every side; `width` is the window's.
pub fn blur(source: &[f32], width: usize, out: &mut [f32]) {
    let wide = width + 2 * BLUR;
    let row = |from: &[f32]| -> Vec<f32> {
        from.windows(WEIGHTS.len())
            .map(|near| near.iter().zip(WEIGHTS).map(|(value, weight)| value * weight).sum())
            .collect()
    };
    let rows: Vec<Vec<f32>> = source.chunks_exact(wide).map(row).collect();
    for (out, near) in out.chunks_exact_mut(width.max(1)).zip(rows.windows(WEIGHTS.len())) {
        out.fill(0.0);
        for (row, weight) in near.iter().zip(WEIGHTS) {
            out.iter_mut().zip(row).for_each(|(out, value)| *out += value * weight);
        }
        out.iter_mut().for_each(|out| *out /= WEIGHT * WEIGHT);
    }
}

/// The memory that [`blur`] takes for a window, in bytes.
pub const fn blur_memory(height: usize, width: usize) -> u64 {
    ((height + 2 * BLUR) * (width * size_of::<f32>() + size_of::<Vec<f32>>())) as u64
}

/// Shades a window of heights that reach [`SLOPE`] further on every side: light from the north-west, colours by height.
/// `out` holds red, green and blue of each element.
pub fn shade(heights: &[f32], width: usize, out: &mut [u8]) {
    let wide = width + 2 * SLOPE;
    let rows: Vec<&[f32]> = heights.chunks_exact(wide).collect();
    for (out, near) in out.chunks_exact_mut((3 * width).max(1)).zip(rows.windows(3)) {
        let [above, here, below] = near else { continue };
        let columns = above.windows(3).zip(here.windows(3)).zip(below.windows(3));
        for (pixel, ((above, here), below)) in out.chunks_exact_mut(3).zip(columns) {
            if let ([_, north, _], [west, height, east], [_, south, _]) = (above, here, below) {
                pixel.copy_from_slice(&colour(*height, east - west, south - north));
            }
        }
    }
}

fn colour(height: f32, slope_x: f32, slope_y: f32) -> [u8; 3] {
    let (tint, relief) = match height < SEA {
        true => {
            let depth = height / SEA;
            ([24.0 + 60.0 * depth, 60.0 + 90.0 * depth, 110.0 + 80.0 * depth], 6.0)
        }
        false => (tint((height - SEA) / (1.0 - SEA)), 40.0),
    };
    // The surface's normal times the light's direction.
    let (nx, ny) = (-slope_x * relief, -slope_y * relief);
    let light = (1.3 - 0.5 * nx - 0.5 * ny) / (nx * nx + ny * ny + 1.0).sqrt() / 1.3;
    tint.map(|channel| byte(channel * light.clamp(0.35, 1.25)))
}

fn tint(share: f32) -> [f32; 3] {
    let mut colour = TINTS.map(|(_, colour)| colour).into_iter().next_back().unwrap_or_default();
    for pair in TINTS.windows(2) {
        if let [(from, a), (to, b)] = pair
            && share < *to
        {
            let t = ((share - from) / (to - from)).clamp(0.0, 1.0);
            colour = [lerp(t, a[0], b[0]), lerp(t, a[1], b[1]), lerp(t, a[2], b[2])];
            break;
        }
    }
    colour
}

/// A height or a channel as a byte.
pub fn byte(value: f32) -> u8 {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "float casts saturate")]
    let byte = value as u8;
    byte
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(top: i64, left: i64, height: usize, width: usize) -> Vec<f32> {
        let mut out = vec![0.0; height * width];
        heights(7, top, left, width, &mut out);
        out
    }

    #[test]
    fn heights_depend_on_the_place_alone() {
        let whole = field(-40, i64::MAX - 99, 64, 64);
        let part = field(-40 + 9, i64::MAX - 99 + 30, 16, 16);
        for y in 0..16 {
            assert_eq!(part[y * 16..][..16], whole[(y + 9) * 64 + 30..][..16], "row {y}");
        }
        assert!(whole.iter().all(|height| (0.0..=1.0).contains(height)));
    }

    #[test]
    fn a_blur_keeps_a_plain_and_spreads_a_peak() {
        let mut out = vec![0.0; 15];
        blur(&vec![0.5; (3 + 2 * BLUR) * (5 + 2 * BLUR)], 5, &mut out);
        assert_eq!(out, [0.5; 15]);
        let mut peak = vec![0.0; (2 * BLUR + 1) * (2 * BLUR + 1)];
        peak[BLUR * (2 * BLUR + 1) + BLUR] = 1.0;
        blur(&peak, 1, &mut out[..1]);
        assert_eq!(out[0], 400.0 / 4096.0);
    }

    #[test]
    fn the_sea_is_blue_and_slopes_catch_the_light() {
        let pixel = |height, x, y| colour(height, x, y);
        let [red, green, blue] = pixel(0.2, 0.0, 0.0);
        assert!(blue > green && green > red);
        let sum = |pixel: [u8; 3]| pixel.iter().map(|channel| u32::from(*channel)).sum::<u32>();
        // Land that rises to the south-east faces the light in the north-west.
        assert!(sum(pixel(0.6, 0.02, 0.02)) > sum(pixel(0.6, -0.02, -0.02)));
    }
}
