//! [`Convert`]: bytes to floats with a scale and an offset, in the same pass that copies them.

use dd_core::DType;
use half::{bf16, f16};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// `value = byte · scale + offset`, from `U8` to `F32`, `F16` or `BF16` (computed in `f32`).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Convert {
    /// The factor.
    pub scale: f32,
    /// What is added.
    pub offset: f32,
}

impl Convert {
    /// 0..=255 to 0..=1.
    pub const UNIT: Self = Self { scale: 1.0 / 255.0, offset: 0.0 };
    /// 0..=255 to -1..=1.
    pub const SIGNED: Self = Self { scale: 2.0 / 255.0, offset: -1.0 };
}

/// How bytes that were read become those that are delivered: as they are, or by a table of all 256.
#[derive(Clone, Debug)]
pub(crate) enum Conversion {
    Copy,
    To32(Convert),
    /// The two bytes of each result.
    To16(Box<[[u8; 2]; 256]>),
}

/// Bytes converted at a time: small enough for the stack and the nearest cache.
const CHUNK: usize = 256;

impl Conversion {
    /// From what is stored to what is delivered.
    pub(crate) fn new(
        side: &'static str,
        convert: Option<Convert>,
        stored: DType,
        delivered: DType,
    ) -> Result<Self> {
        let Some(convert) = convert else {
            if stored == delivered {
                return Ok(Self::Copy);
            }
            let what = format!("dtype of the {side} samples (a conversion from U8 has to be asked for)");
            return Err(Error::mismatch(what, delivered, stored));
        };
        if stored != DType::U8 {
            return Err(Error::mismatch(
                format!("dtype of the {side} samples to convert"),
                DType::U8,
                stored,
            ));
        }
        let value = |byte: u8| f32::from(byte) * convert.scale + convert.offset;
        let table = |bytes: fn(f32) -> [u8; 2]| {
            let mut table = Box::new([[0; 2]; 256]);
            for (byte, entry) in (0..=u8::MAX).zip(table.iter_mut()) {
                *entry = bytes(value(byte));
            }
            table
        };
        match delivered {
            DType::F32 => Ok(Self::To32(convert)),
            DType::F16 => Ok(Self::To16(table(|value| f16::from_f32(value).to_le_bytes()))),
            DType::BF16 => Ok(Self::To16(table(|value| bf16::from_f32(value).to_le_bytes()))),
            other => Err(Error::mismatch(
                format!("dtype to convert the {side} samples to"),
                "F32, F16 or BF16",
                other,
            )),
        }
    }

    /// How many bytes come of one.
    pub(crate) const fn growth(&self) -> usize {
        match self {
            Self::Copy => 1,
            Self::To32(_) => 4,
            Self::To16(_) => 2,
        }
    }

    /// Fills `to` from `from`, which has as many elements.
    pub(crate) fn apply(&self, from: &[u8], to: &mut [u8]) {
        match self {
            Self::Copy if from.len() == to.len() => to.copy_from_slice(from),
            Self::Copy => {}
            Self::To32(convert) => to_32(*convert, from, to),
            Self::To16(table) => to_16(table, from, to),
        }
    }

    /// Converts a row in place, whose stored bytes are its last. Each chunk is taken out before it is written over, and what is
    /// written never reaches what is not yet taken.
    pub(crate) fn apply_in_place(&self, row: &mut [u8]) {
        let growth = self.growth();
        if growth == 1 {
            return;
        }
        let elements = row.len() / growth;
        let start = row.len() - elements;
        let mut chunk = [0; CHUNK];
        let mut done = 0;
        while done < elements {
            let len = CHUNK.min(elements - done);
            let (Some(taken), Some(stored)) =
                (chunk.get_mut(..len), row.get(start + done..start + done + len))
            else {
                return;
            };
            taken.copy_from_slice(stored);
            if let Some(target) = row.get_mut(done * growth..(done + len) * growth) {
                self.apply(taken, target);
            }
            done += len;
        }
    }
}

fn to_32(convert: Convert, from: &[u8], to: &mut [u8]) {
    let (scale, offset) = (convert.scale, convert.offset);
    for (value, target) in from.iter().zip(to.as_chunks_mut::<4>().0) {
        *target = (f32::from(*value) * scale + offset).to_le_bytes();
    }
}

fn to_16(table: &[[u8; 2]; 256], from: &[u8], to: &mut [u8]) {
    for (value, target) in from.iter().zip(to.as_chunks_mut::<2>().0) {
        #[allow(clippy::indexing_slicing, reason = "a byte is below 256")]
        let bytes = table[usize::from(*value)];
        *target = bytes;
    }
}

#[cfg(test)]
#[cfg(not(dd_shuttle))]
mod tests {
    use super::*;

    #[test]
    fn all_bytes_at_all_lengths_in_place_and_not() {
        let convert = Convert { scale: 0.25, offset: -3.0 };
        let value = |byte: u8| f32::from(byte) * 0.25 - 3.0; // Exact.
        for len in [0, 1, 2, 63, 255, 256, 257, 300, 1000] {
            let raw: Vec<u8> = (0..len).map(|n: usize| u8::try_from(n * 7 % 256).unwrap()).collect();
            for dtype in [DType::F32, DType::F16, DType::BF16] {
                let expected: Vec<u8> = match dtype {
                    DType::F32 => raw.iter().flat_map(|b| value(*b).to_le_bytes()).collect(),
                    DType::F16 => raw.iter().flat_map(|b| f16::from_f32(value(*b)).to_le_bytes()).collect(),
                    _ => raw.iter().flat_map(|b| bf16::from_f32(value(*b)).to_le_bytes()).collect(),
                };
                let conversion = Conversion::new("input", Some(convert), DType::U8, dtype).unwrap();
                let mut out = vec![0xAA; expected.len()];
                conversion.apply(&raw, &mut out);
                assert_eq!(out, expected, "{dtype} {len}");
                let mut row = vec![0xAA; expected.len()];
                let start = row.len() - raw.len();
                row[start..].copy_from_slice(&raw);
                conversion.apply_in_place(&mut row);
                assert_eq!(row, expected, "{dtype} {len} in place");
            }
        }
    }

    #[test]
    fn unit_ends_at_one_and_what_is_no_byte_is_refused() {
        let conversion = Conversion::new("input", Some(Convert::UNIT), DType::U8, DType::F32).unwrap();
        let mut out = [0; 8];
        conversion.apply(&[0, 255], &mut out);
        assert_eq!(out, [0f32.to_le_bytes(), 1f32.to_le_bytes()].concat()[..]);
        assert!(Conversion::new("input", None, DType::U8, DType::F32).is_err());
        assert!(Conversion::new("input", Some(Convert::UNIT), DType::I8, DType::F32).is_err());
        assert!(Conversion::new("input", Some(Convert::UNIT), DType::U8, DType::I32).is_err());
        assert!(Conversion::new("input", None, DType::I32, DType::I32).is_ok());
    }
}
