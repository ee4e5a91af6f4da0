//! Floats as planes of bytes, and back.
//!
//! A trained weight's sign and mantissa are close to noise; its exponent is not: a handful of values make up nearly all
//! of a tensor. In memory the two share bytes, which hides the one behind the other from any coder that sees bytes. So
//! the values are taken apart into planes of one byte per value:
//!
//! | plane | of a 16-bit float | of a 32-bit float |
//! |---|---|---|
//! | 0 | bits 14..=7 | bits 30..=23 |
//! | 1 | bit 15, then bits 6..=0 | bit 31, then bits 22..=16 |
//! | 2 | | bits 15..=8 |
//! | 3 | | bits 7..=0 |
//!
//! Plane 0 is the whole exponent of bf16 and f32. Of f16 it is the five bits of exponent and the three that follow,
//! which costs nothing: bits that are noise take their own number of bits in an entropy code too. The upper half of an
//! f32 *is* a bf16, so that both take the same path, and an f32 that was a bf16 once has empty planes 2 and 3.
//!
//! The loops are plain ones over arrays of known size: the compiler makes vector code of them.

use dd_core::DType;

use super::vector::wide;
use crate::convert;

/// The most planes that there are.
pub(super) const MAX_PLANES: usize = 4;

/// How many values are merged at once where they go on to a further conversion.
const BLOCK: usize = 1024;

/// How many planes a type is taken apart into; none where that promises no gain.
pub(super) const fn of(dtype: DType) -> usize {
    match dtype {
        DType::BF16 | DType::F16 => 2,
        DType::F32 => 4,
        _ => 0,
    }
}

#[inline(always)]
fn halves(bits: u16) -> (u8, u8) {
    let [low, high] = bits.to_le_bytes();
    let [exponent, _] = (bits >> 7).to_le_bytes();
    (exponent, high & 0x80 | low & 0x7f)
}

#[inline(always)]
fn whole(exponent: u8, rest: u8) -> u16 {
    let rest = u16::from(rest);
    (rest & 0x80) << 8 | u16::from(exponent) << 7 | rest & 0x7f
}

/// Takes 16-bit values apart. All slices hold as many values.
pub(super) fn split_two(src: &[[u8; 2]], [exponents, rests]: [&mut [u8]; 2]) {
    wide(
        #[inline(always)]
        || {
            for ((bytes, exponent), rest) in src.iter().zip(exponents).zip(rests) {
                (*exponent, *rest) = halves(u16::from_le_bytes(*bytes));
            }
        },
    )
}

/// Takes 32-bit values apart. All slices hold as many values.
pub(super) fn split_four(src: &[[u8; 4]], [exponents, rests, uppers, lowers]: [&mut [u8]; 4]) {
    wide(
        #[inline(always)]
        || {
            let planes = exponents.iter_mut().zip(rests).zip(uppers.iter_mut().zip(lowers));
            for ([a, b, c, d], ((exponent, rest), (upper, lower))) in src.iter().zip(planes) {
                (*exponent, *rest) = halves(u16::from_le_bytes([*c, *d]));
                (*upper, *lower) = (*b, *a);
            }
        },
    )
}

/// The inverse of [`split_two`].
pub(super) fn merge_two([exponents, rests]: [&[u8]; 2], out: &mut [[u8; 2]]) {
    wide(
        #[inline(always)]
        || {
            for ((out, exponent), rest) in out.iter_mut().zip(exponents).zip(rests) {
                *out = whole(*exponent, *rest).to_le_bytes();
            }
        },
    )
}

/// The inverse of [`split_four`].
pub(super) fn merge_four([exponents, rests, uppers, lowers]: [&[u8]; 4], out: &mut [[u8; 4]]) {
    wide(
        #[inline(always)]
        || {
            let planes = exponents.iter().zip(rests).zip(uppers.iter().zip(lowers));
            for (out, ((exponent, rest), (upper, lower))) in out.iter_mut().zip(planes) {
                let high = u32::from(whole(*exponent, *rest));
                *out = (high << 16 | u32::from(*upper) << 8 | u32::from(*lower)).to_le_bytes();
            }
        },
    )
}

/// Merges bf16 planes straight into f32 values.
pub(super) fn merge_bf16([exponents, rests]: [&[u8]; 2], out: &mut [[u8; 4]]) {
    wide(
        #[inline(always)]
        || {
            for ((out, exponent), rest) in out.iter_mut().zip(exponents).zip(rests) {
                *out = convert::bf16_bits(whole(*exponent, *rest)).to_le_bytes();
            }
        },
    )
}

/// Merges f16 planes into f32 values, a block of 2 KiB at a time.
pub(super) fn merge_f16([exponents, rests]: [&[u8]; 2], out: &mut [[u8; 4]]) {
    let mut merged = [[0; 2]; BLOCK];
    let planes = exponents.chunks(BLOCK).zip(rests.chunks(BLOCK));
    for (out, (exponents, rests)) in out.chunks_mut(BLOCK).zip(planes) {
        if let Some(merged) = merged.get_mut(..out.len()) {
            merge_two([exponents, rests], merged);
            convert::widen_f16(merged, out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_planes_hold_every_value() {
        let src: Vec<[u8; 2]> = (0..=u16::MAX).map(u16::to_le_bytes).collect();
        let (mut exponents, mut rests) = (vec![0; src.len()], vec![0; src.len()]);
        split_two(&src, [&mut exponents, &mut rests]);
        let mut back = vec![[0; 2]; src.len()];
        merge_two([&exponents, &rests], &mut back);
        assert!(back == src);
        assert_eq!((exponents[0x3f80], rests[0x3f80]), (127, 0)); // One, as bf16.
        assert_eq!((exponents[0xff80], rests[0xff80]), (255, 0x80)); // Minus infinity.
    }

    #[test]
    fn four_planes_hold_every_half() {
        let src: Vec<[u8; 4]> = (0..=u16::MAX)
            .map(|n| (u32::from(n) << 16 | u32::from(n.reverse_bits())).to_le_bytes())
            .collect();
        let mut planes = [const { Vec::new() }; MAX_PLANES];
        planes.iter_mut().for_each(|plane| plane.resize(src.len(), 0));
        split_four(&src, planes.each_mut().map(Vec::as_mut_slice));
        let mut back = vec![[0; 4]; src.len()];
        merge_four(planes.each_ref().map(Vec::as_slice), &mut back);
        assert!(back == src);
    }
}
