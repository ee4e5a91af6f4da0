//! Widening at fill: what is stored need not be what is in memory.
//!
//! A checkpoint in bf16 or f16 fills f32 tensors exactly, which halves the bytes that are read. The result is bit for
//! bit what a conversion after loading gives (`to_f32` of the [`half`] crate, value by value), quieted NaNs included,
//! so that a paged run and a run in memory compute the same. Both sides are bytes, little-endian, of any alignment.

use dd_core::{Bytes, DType};
use half::f16;
use half::slice::HalfFloatSliceExt;

use crate::error::{Error, Result};
use crate::packed::vector::wide;

/// How many values are converted at once where that goes through aligned memory: 3 KiB of stack, within the L1 cache.
const BLOCK: usize = 512;

/// Whether stored values of `from` can fill memory of `to`: any type fills itself, bf16 and f16 fill f32.
#[must_use]
pub const fn can_widen(from: DType, to: DType) -> bool {
    matches!((from, to), (DType::BF16 | DType::F16, DType::F32)) || from as u32 == to as u32
}

/// How many bytes of memory so many stored bytes fill.
///
/// # Errors
/// [`Error::Invalid`] where `from` cannot fill `to` ([`can_widen`]) or the bytes are no whole number of blocks;
/// [`Error::Core`] where the result passes 64 bits.
///
/// ```
/// use dd_core::{Bytes, DType};
/// use dd_pager::convert::widened;
///
/// assert_eq!(widened(DType::BF16, DType::F32, Bytes(6))?, Bytes(12));
/// assert!(widened(DType::F32, DType::BF16, Bytes(8)).is_err());
/// # Ok::<(), dd_pager::Error>(())
/// ```
pub fn widened(from: DType, to: DType, stored: Bytes) -> Result<Bytes> {
    if !can_widen(from, to) {
        return Err(Error::Invalid {
            what: format!("filling {to} memory"),
            expected: format!("stored {to}, or bf16 or f16 for F32"),
            found: format!("stored {from}"),
        });
    }
    if !stored.0.is_multiple_of(from.block_bytes()) {
        return Err(Error::Invalid {
            what: format!("stored {from}"),
            expected: format!("a multiple of {} B", from.block_bytes()),
            found: format!("{} B", stored.0),
        });
    }
    Ok(to.bytes_for(from.block_elements().saturating_mul(stored.0 / from.block_bytes()))?)
}

/// Fills `dst` with the values of `src`. Both may have any alignment; on an error `dst` is as it was.
///
/// # Errors
/// As [`widened`]; [`Error::Invalid`] where `dst` is not exactly as long as that says.
///
/// ```
/// use dd_core::DType;
///
/// let mut memory = [0; 4];
/// dd_pager::convert::widen(DType::BF16, DType::F32, &[0x80, 0x3f], &mut memory)?; // One, as bf16.
/// assert_eq!(memory, 1f32.to_le_bytes());
/// # Ok::<(), dd_pager::Error>(())
/// ```
pub fn widen(from: DType, to: DType, src: &[u8], dst: &mut [u8]) -> Result<()> {
    let expected = widened(from, to, Bytes::of(src.len()))?;
    if Bytes::of(dst.len()) != expected {
        return Err(Error::Invalid {
            what: format!("memory for {} B of stored {from}", src.len()),
            expected: format!("{} B of {to}", expected.0),
            found: format!("{} B", dst.len()),
        });
    }
    match (from, to) {
        (DType::BF16, DType::F32) => widen_bf16(src.as_chunks().0, dst.as_chunks_mut().0),
        (DType::F16, DType::F32) => widen_f16(src.as_chunks().0, dst.as_chunks_mut().0),
        _ => dst.copy_from_slice(src),
    }
    Ok(())
}

/// The bits of the f32 of a bf16's bits: the upper half, a NaN's quiet bit set.
#[inline(always)]
pub(crate) const fn bf16_bits(bits: u16) -> u32 {
    let quiet = (bits & 0x7fff > 0x7f80) as u32;
    (bits as u32) << 16 | quiet << 22
}

fn widen_bf16(src: &[[u8; 2]], dst: &mut [[u8; 4]]) {
    wide(
        #[inline(always)]
        || {
            for (out, bytes) in dst.iter_mut().zip(src) {
                *out = bf16_bits(u16::from_le_bytes(*bytes)).to_le_bytes();
            }
        },
    )
}

/// Through aligned blocks, since the processor's own conversion is reached only over slices of values.
pub(crate) fn widen_f16(src: &[[u8; 2]], dst: &mut [[u8; 4]]) {
    let (mut stored, mut wide) = ([f16::ZERO; BLOCK], [0f32; BLOCK]);
    for (out, bytes) in dst.chunks_mut(BLOCK).zip(src.chunks(BLOCK)) {
        let (Some(stored), Some(wide)) = (stored.get_mut(..bytes.len()), wide.get_mut(..bytes.len())) else {
            continue; // No chunk is longer than the block.
        };
        stored.iter_mut().zip(bytes).for_each(|(value, bytes)| *value = f16::from_le_bytes(*bytes));
        stored.convert_to_f32_slice(wide);
        out.iter_mut().zip(wide).for_each(|(out, value)| *out = value.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    /// All 65,536 patterns, whole and from odd addresses, against the value-by-value conversion.
    #[test]
    fn every_bit_pattern_is_as_the_scalar_conversion() {
        let stored: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        let bf16_bytes = |bits| bf16::from_bits(bits).to_f32().to_le_bytes();
        let f16_bytes = |bits| f16::from_bits(bits).to_f32().to_le_bytes();
        let rows: [(DType, Vec<u8>); 2] = [
            (DType::BF16, (0..=u16::MAX).flat_map(bf16_bytes).collect()),
            (DType::F16, (0..=u16::MAX).flat_map(f16_bytes).collect()),
        ];
        for (dtype, expected) in rows {
            for shift in [0, 1, 3] {
                let mut src = vec![0; shift];
                src.extend(&stored);
                let mut dst = vec![0; expected.len() + shift];
                widen(dtype, DType::F32, &src[shift..], &mut dst[shift..]).unwrap();
                assert!(dst[shift..] == expected, "{dtype} shifted by {shift}");
            }
        }
    }

    #[test]
    fn lengths_and_types_are_checked() {
        let rows = [
            (DType::BF16, DType::F32, 6, 12, true),
            (DType::F16, DType::F32, 0, 0, true),
            (DType::F16, DType::F32, 2046, 4092, true),
            (DType::I64, DType::I64, 16, 16, true),
            (DType::Q4K, DType::Q4K, 288, 288, true),
            (DType::Q4K, DType::Q4K, 100, 100, false),
            (DType::BF16, DType::F32, 5, 10, false),
            (DType::BF16, DType::F32, 6, 6, false),
            (DType::BF16, DType::F16, 6, 6, false),
            (DType::F32, DType::BF16, 8, 4, false),
            (DType::F32, DType::F32, 8, 4, false),
        ];
        for (from, to, stored, memory, fine) in rows {
            let src = vec![1; stored];
            let mut dst = vec![7; memory];
            let result = widen(from, to, &src, &mut dst);
            assert_eq!(result.is_ok(), fine, "{from} {stored} B to {to} {memory} B: {result:?}");
            assert!(fine || dst.iter().all(|byte| *byte == 7), "{from} to {to} wrote before it refused");
        }
        assert!(widened(DType::BF16, DType::F32, Bytes(u64::MAX - 1)).is_err());
    }
}
