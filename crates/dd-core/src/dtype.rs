//! [`DType`]: the element types, sub-byte and block-quantised ones included.

use std::fmt;
use std::str::FromStr;

use crate::bytes::Bytes;
use crate::error::{Error, Result};

macro_rules! dtypes {
    ($($(#[$doc:meta])* $name:ident, $text:literal, $elements:literal, $bytes:literal;)*) => {
        /// An element type. Every type is a *block*: so many elements in so many bytes; for plain types, one element.
        ///
        /// The names are those of safetensors for plain types and of GGUF for quantised ones; block sizes as in
        /// [ggml-common.h](https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h).
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(try_from = "String", into = "String"))]
        #[non_exhaustive]
        pub enum DType { $($(#[$doc])* $name,)* }

        impl DType {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// How many elements a block holds: one for plain types.
            #[must_use]
            pub const fn block_elements(self) -> u64 {
                match self { $(Self::$name => $elements,)* }
            }

            /// How many bytes a block takes.
            #[must_use]
            pub const fn block_bytes(self) -> u64 {
                match self { $(Self::$name => $bytes,)* }
            }

            /// The name, as safetensors or GGUF write it.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

dtypes! {
    /// 64-bit IEEE float.
    F64, "F64", 1, 8;
    /// 32-bit IEEE float.
    F32, "F32", 1, 4;
    /// 16-bit IEEE float.
    F16, "F16", 1, 2;
    /// 16-bit float with the exponent of `F32`.
    BF16, "BF16", 1, 2;
    /// 8-bit float, 4 bits of exponent.
    F8E4M3, "F8_E4M3", 1, 1;
    /// 8-bit float, 5 bits of exponent.
    F8E5M2, "F8_E5M2", 1, 1;
    /// 8-bit power of two (a scale).
    F8E8M0, "F8_E8M0", 1, 1;
    /// 4-bit float, two in a byte.
    F4, "F4", 2, 1;
    /// 64-bit signed integer.
    I64, "I64", 1, 8;
    /// 32-bit signed integer.
    I32, "I32", 1, 4;
    /// 16-bit signed integer.
    I16, "I16", 1, 2;
    /// 8-bit signed integer.
    I8, "I8", 1, 1;
    /// 64-bit unsigned integer.
    U64, "U64", 1, 8;
    /// 32-bit unsigned integer.
    U32, "U32", 1, 4;
    /// 16-bit unsigned integer.
    U16, "U16", 1, 2;
    /// 8-bit unsigned integer.
    U8, "U8", 1, 1;
    /// One byte, zero or one.
    Bool, "BOOL", 1, 1;
    /// 4 bits and a scale per 32.
    Q4_0, "Q4_0", 32, 18;
    /// 4 bits, a scale and a minimum per 32.
    Q4_1, "Q4_1", 32, 20;
    /// 5 bits and a scale per 32.
    Q5_0, "Q5_0", 32, 22;
    /// 5 bits, a scale and a minimum per 32.
    Q5_1, "Q5_1", 32, 24;
    /// 8 bits and a scale per 32.
    Q8_0, "Q8_0", 32, 34;
    /// 8 bits, a scale and a sum per 32.
    Q8_1, "Q8_1", 32, 36;
    /// 2 bits in super-blocks of 256.
    Q2K, "Q2_K", 256, 84;
    /// 3 bits in super-blocks of 256.
    Q3K, "Q3_K", 256, 110;
    /// 4 bits in super-blocks of 256.
    Q4K, "Q4_K", 256, 144;
    /// 5 bits in super-blocks of 256.
    Q5K, "Q5_K", 256, 176;
    /// 6 bits in super-blocks of 256.
    Q6K, "Q6_K", 256, 210;
    /// 8 bits in super-blocks of 256.
    Q8K, "Q8_K", 256, 292;
}

impl DType {
    /// The bytes of one element, where that is a whole number: nothing for sub-byte and block types.
    #[must_use]
    pub const fn element_bytes(self) -> Option<u64> {
        if self.block_elements() == 1 { Some(self.block_bytes()) } else { None }
    }

    /// The bytes of `elements` consecutive elements.
    ///
    /// # Errors
    /// [`Error::Mismatch`] where they are no whole number of blocks; [`Error::SizeOverflow`] past 64 bits.
    pub fn bytes_for(self, elements: u64) -> Result<Bytes> {
        if !elements.is_multiple_of(self.block_elements()) {
            return Err(Error::Mismatch {
                context: format!("{self} data"),
                expected: format!("a multiple of {} elements", self.block_elements()),
                found: elements.to_string(),
            });
        }
        Bytes(elements / self.block_elements())
            .checked_mul(self.block_bytes())
            .ok_or_else(|| Error::SizeOverflow { what: format!("{elements} elements of {self}") })
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for DType {
    type Err = Error;

    /// Understands the names of safetensors and GGUF in any case, and the long names (`float32`, `bfloat16`, `int64`, …).
    fn from_str(text: &str) -> Result<Self> {
        let upper = text.trim().to_ascii_uppercase();
        let long = match upper.as_str() {
            "FLOAT64" | "DOUBLE" => Some(Self::F64),
            "FLOAT32" | "FLOAT" => Some(Self::F32),
            "FLOAT16" | "HALF" => Some(Self::F16),
            "BFLOAT16" => Some(Self::BF16),
            "F8E4M3" | "FLOAT8_E4M3FN" => Some(Self::F8E4M3),
            "F8E5M2" | "FLOAT8_E5M2" => Some(Self::F8E5M2),
            "INT64" => Some(Self::I64),
            "INT32" => Some(Self::I32),
            "INT16" => Some(Self::I16),
            "INT8" => Some(Self::I8),
            "UINT64" => Some(Self::U64),
            "UINT32" => Some(Self::U32),
            "UINT16" => Some(Self::U16),
            "UINT8" => Some(Self::U8),
            _ => None,
        };
        long.or_else(|| Self::ALL.iter().copied().find(|d| d.as_str() == upper)).ok_or_else(|| {
            Error::Unknown {
                kind: "dtype",
                input: text.to_owned(),
                expected: "a name such as f32, bf16, i64, u8, bool or Q4_K",
            }
        })
    }
}

impl TryFrom<String> for DType {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<DType> for String {
    fn from(dtype: DType) -> Self {
        dtype.as_str().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for dtype in DType::ALL {
            assert_eq!(dtype.as_str().parse::<DType>().unwrap(), *dtype);
            assert_eq!(dtype.as_str().to_lowercase().parse::<DType>().unwrap(), *dtype);
        }
        assert_eq!("bfloat16".parse::<DType>().unwrap(), DType::BF16);
        assert!(matches!("f31".parse::<DType>(), Err(Error::Unknown { kind: "dtype", .. })));
    }

    #[test]
    fn sizes_by_block() {
        let rows = [
            (DType::F32, 3, Some(12)),
            (DType::F4, 4, Some(2)),
            (DType::F4, 3, None),
            (DType::Q4K, 512, Some(288)),
            (DType::Q8_0, 33, None),
            (DType::Bool, 0, Some(0)),
        ];
        for (dtype, elements, expected) in rows {
            assert_eq!(dtype.bytes_for(elements).ok(), expected.map(Bytes), "{elements} of {dtype}");
        }
        assert!(matches!(DType::F64.bytes_for(u64::MAX), Err(Error::SizeOverflow { .. })));
    }
}
