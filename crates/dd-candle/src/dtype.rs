//! candle's element types and ours, both ways.
//!
//! candle has no `I8`, `U16`, `U64`, `BOOL`, `F8_E5M2`, and holds block-quantised data in another kind of tensor. Its
//! types below a byte have no defined length in memory (`size_in_bytes` is zero), so they are left out here.

use candle_core::DType as Candle;
use dd_core::backend::unsupported_dtype;
use dd_core::{DType, Error, Result};

/// The library's name in errors.
pub(crate) const NAME: &str = "candle";

/// Every dtype that both sides have.
pub const PAIRS: [(DType, Candle); 11] = [
    (DType::F64, Candle::F64),
    (DType::F32, Candle::F32),
    (DType::F16, Candle::F16),
    (DType::BF16, Candle::BF16),
    (DType::F8E4M3, Candle::F8E4M3),
    (DType::F8E8M0, Candle::F8E8M0),
    (DType::I64, Candle::I64),
    (DType::I32, Candle::I32),
    (DType::I16, Candle::I16),
    (DType::U32, Candle::U32),
    (DType::U8, Candle::U8),
];

/// candle's name for one of our dtypes.
///
/// # Errors
/// [`Error::UnsupportedDType`] for one that candle has not.
pub fn to_candle(dtype: DType) -> Result<Candle> {
    let pair = PAIRS.iter().find(|(ours, _)| *ours == dtype);
    pair.map(|(_, theirs)| *theirs).ok_or_else(|| unsupported_dtype(NAME, dtype))
}

/// Our name for one of candle's dtypes.
///
/// # Errors
/// [`Error::Unknown`] for the types below a byte, and any that a later candle adds.
pub fn from_candle(dtype: Candle) -> Result<DType> {
    let pair = PAIRS.iter().find(|(_, theirs)| *theirs == dtype);
    pair.map(|(ours, _)| *ours).ok_or_else(|| Error::Unknown {
        kind: "candle dtype",
        input: dtype.as_str().to_owned(),
        expected: "f64, f32, f16, bf16, f8e4m3, f8e8m0, i64, i32, i16, u32 or u8",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_agree_in_size_and_round_trip() {
        for (ours, theirs) in PAIRS {
            assert_eq!(ours.element_bytes(), Some(theirs.size_in_bytes() as u64), "{ours}");
            assert_eq!(from_candle(to_candle(ours).unwrap()).unwrap(), ours);
        }
        let missing = DType::ALL.iter().filter(|dtype| !PAIRS.iter().any(|(ours, _)| ours == *dtype));
        for dtype in missing {
            assert!(matches!(to_candle(*dtype), Err(Error::UnsupportedDType { .. })), "{dtype}");
        }
        for dtype in [Candle::F4, Candle::F6E2M3, Candle::F6E3M2] {
            assert!(matches!(from_candle(dtype), Err(Error::Unknown { .. })), "{dtype:?}");
        }
    }
}
