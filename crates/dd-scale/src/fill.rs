//! One value as the bytes of an element, for every dtype that has such.

use dd_core::DType;
use half::{bf16, f16};

use crate::error::{Error, Result};

/// The bytes of the shortest run of elements of this value that is a whole number of bytes. Floats are rounded to the
/// nearest; whole numbers must be exact.
///
/// # Errors
/// [`Error::Fill`] for a value that the dtype cannot hold.
pub(crate) fn pattern(value: f64, dtype: DType) -> Result<Vec<u8>> {
    let wrong = |reason| Error::Fill { dtype, value, reason };
    if dtype.block_elements() > 2 {
        // A block whose scales are zero is zero.
        let zeros = vec![0; usize::try_from(dtype.block_bytes()).unwrap_or(0)];
        return if value == 0.0 {
            Ok(zeros)
        } else {
            Err(wrong("quantised types can only be filled with 0"))
        };
    }
    let whole = |low: f64, high: f64| {
        let fits = value.fract() == 0.0 && value >= low && value <= high;
        #[allow(clippy::cast_possible_truncation, reason = "checked to be whole and in range")]
        let whole = value as i128;
        if fits { Ok(whole) } else { Err(wrong("expected a whole number within its range")) }
    };
    macro_rules! integer {
        ($type:ty) => {{
            let whole = whole(<$type>::MIN as f64, <$type>::MAX as f64)?;
            <$type>::try_from(whole)
                .map_err(|_| wrong("expected a whole number within its range"))?
                .to_le_bytes()
                .to_vec()
        }};
    }
    #[allow(clippy::cast_possible_truncation, reason = "rounding to the nearest is what is meant")]
    let bytes = match dtype {
        DType::F64 => value.to_le_bytes().to_vec(),
        DType::F32 => finite(value, f64::from(value as f32), (value as f32).to_le_bytes(), wrong)?,
        DType::F16 => {
            finite(value, f16::from_f64(value).to_f64(), f16::from_f64(value).to_le_bytes(), wrong)?
        }
        DType::BF16 => {
            finite(value, bf16::from_f64(value).to_f64(), bf16::from_f64(value).to_le_bytes(), wrong)?
        }
        DType::F8E4M3 => {
            vec![small(value, &Small { exponent: 4, mantissa: 3, most: 0x7e }).ok_or_else(|| wrong(RANGE))?]
        }
        DType::F8E5M2 => {
            vec![small(value, &Small { exponent: 5, mantissa: 2, most: 0x7b }).ok_or_else(|| wrong(RANGE))?]
        }
        DType::F4 => {
            let code =
                small(value, &Small { exponent: 2, mantissa: 1, most: 0x07 }).ok_or_else(|| wrong(RANGE))?;
            vec![code << 4 | code]
        }
        DType::F8E8M0 => {
            let exponent = value.log2();
            let holds = value > 0.0 && exponent.fract() == 0.0 && (-127.0..=127.0).contains(&exponent);
            let code = if holds { exponent + 127.0 } else { return Err(wrong("expected a power of two")) };
            #[allow(clippy::cast_sign_loss, reason = "from 0 to 254")]
            let code = code as u8;
            vec![code]
        }
        DType::I64 => integer!(i64),
        DType::I32 => integer!(i32),
        DType::I16 => integer!(i16),
        DType::I8 => integer!(i8),
        DType::U64 => integer!(u64),
        DType::U32 => integer!(u32),
        DType::U16 => integer!(u16),
        DType::U8 => integer!(u8),
        DType::Bool => vec![u8::from(whole(0.0, 1.0)? == 1)],
        _ => return Err(wrong("this type cannot be filled")),
    };
    Ok(bytes)
}

const RANGE: &str = "it is outside the type's range";

/// The bytes, unless a finite value became infinite.
fn finite<const N: usize>(
    value: f64,
    stored: f64,
    bytes: [u8; N],
    wrong: impl Fn(&'static str) -> Error,
) -> Result<Vec<u8>> {
    if value.is_finite() && !stored.is_finite() { Err(wrong(RANGE)) } else { Ok(bytes.to_vec()) }
}

/// A float of at most eight bits, sign first.
struct Small {
    exponent: u32,
    mantissa: u32,
    /// The code of the largest finite value.
    most: u8,
}

impl Small {
    /// What a code without its sign means.
    fn decode(&self, code: u8) -> f64 {
        let (fields, bias) = (u32::from(code), (1 << (self.exponent - 1)) - 1);
        let fraction = f64::from(fields & ((1 << self.mantissa) - 1)) / f64::from(1u32 << self.mantissa);
        match (fields >> self.mantissa, bias) {
            (0, bias) => fraction * f64::from(1 - bias).exp2(),
            (exponent, bias) => (1.0 + fraction) * (f64::from(exponent) - f64::from(bias)).exp2(),
        }
    }
}

/// The code of the nearest value, the even one of two that are equally near; nothing for what is outside the range.
fn small(value: f64, format: &Small) -> Option<u8> {
    let size = value.abs();
    if !size.is_finite() || size > format.decode(format.most) {
        return None;
    }
    let distance = |code: u8| (format.decode(code) - size).abs();
    let code = (0..=format.most)
        .min_by(|a, b| distance(*a).total_cmp(&distance(*b)).then((*a % 2).cmp(&(*b % 2))))?;
    let sign = u8::from(value.is_sign_negative()) << (format.exponent + format.mantissa);
    Some(sign | code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_become_bytes_or_are_refused() {
        let rows: [(f64, DType, Option<&[u8]>); 31] = [
            (1.5, DType::F64, Some(&1.5f64.to_le_bytes())),
            (1.5, DType::F32, Some(&1.5f32.to_le_bytes())),
            (1e39, DType::F32, None),
            (f64::INFINITY, DType::F32, Some(&f32::INFINITY.to_le_bytes())),
            (1.0, DType::F16, Some(&[0x00, 0x3c])),
            (70000.0, DType::F16, None),
            (1.0, DType::BF16, Some(&[0x80, 0x3f])),
            (1.0, DType::F8E4M3, Some(&[0x38])),
            (-448.0, DType::F8E4M3, Some(&[0xfe])),
            (500.0, DType::F8E4M3, None),
            (1.0, DType::F8E5M2, Some(&[0x3c])),
            (57344.0, DType::F8E5M2, Some(&[0x7b])),
            (0.0, DType::F8E8M0, None),
            (1.0, DType::F8E8M0, Some(&[127])),
            (3.0, DType::F8E8M0, None),
            (1.0, DType::F4, Some(&[0x22])),
            (-6.0, DType::F4, Some(&[0xff])),
            (7.0, DType::F4, None),
            (-1.0, DType::I64, Some(&[0xff; 8])),
            (-2147483648.0, DType::I32, Some(&[0, 0, 0, 0x80])),
            (2147483648.0, DType::I32, None),
            (0.5, DType::I16, None),
            (f64::NAN, DType::I8, None),
            (-1.0, DType::U64, None),
            (18446744073709551616.0, DType::U64, None),
            (300.0, DType::U8, None),
            (255.0, DType::U8, Some(&[255])),
            (1.0, DType::Bool, Some(&[1])),
            (2.0, DType::Bool, None),
            (0.0, DType::Q8_0, Some(&[0; 34])),
            (1.0, DType::Q8_0, None),
        ];
        for (value, dtype, expected) in rows {
            assert_eq!(pattern(value, dtype).ok().as_deref(), expected, "{value} as {dtype}");
        }
    }
}
