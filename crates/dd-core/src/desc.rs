//! [`TensorDesc`]: a shape and a dtype, with its size in bytes checked once, at construction.

use std::fmt;

use crate::bytes::Bytes;
use crate::dtype::DType;
use crate::error::{Error, Result};

/// A dense row-major tensor's shape and dtype. A `TensorDesc` that exists has a size that fits 64 bits.
///
/// ```
/// use dd_core::{Bytes, DType, TensorDesc};
///
/// let desc = TensorDesc::new([1024, 1024, 3], DType::F32)?;
/// assert_eq!(desc.bytes(), Bytes::mib(12));
/// assert!(TensorDesc::new([usize::MAX, 2], DType::F32).is_err());
/// # Ok::<(), dd_core::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(try_from = "Parts", into = "Parts")
)]
pub struct TensorDesc {
    shape: Box<[usize]>,
    dtype: DType,
    elements: u64,
    bytes: Bytes,
}

impl TensorDesc {
    /// A tensor of this shape (`[]` is a scalar; a zero makes it empty) and dtype.
    ///
    /// # Errors
    /// [`Error::SizeOverflow`] where the elements or bytes exceed 64 bits; [`Error::Mismatch`] where the last
    /// dimension of a sub-byte or block-quantised tensor is no whole number of blocks.
    pub fn new(shape: impl Into<Box<[usize]>>, dtype: DType) -> Result<Self> {
        let shape = shape.into();
        let overflow =
            || Error::SizeOverflow { what: format!("a tensor of shape {shape:?} and dtype {dtype}") };
        let mut elements = 1u64;
        if !shape.contains(&0) {
            for dim in &shape {
                let dim = u64::try_from(*dim).map_err(|_| overflow())?;
                elements = elements.checked_mul(dim).ok_or_else(overflow)?;
            }
        } else {
            elements = 0;
        }
        let row = shape.last().map_or(1, |dim| *dim as u64);
        if elements > 0 {
            dtype.bytes_for(row)?; // A block never spans rows.
        }
        let bytes = dtype.bytes_for(elements).map_err(|_| overflow())?;
        Ok(Self { shape, dtype, elements, bytes })
    }

    /// The dimensions, outermost first.
    #[must_use]
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The element type.
    #[must_use]
    pub const fn dtype(&self) -> DType {
        self.dtype
    }

    /// How many dimensions.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// How many elements: one for a scalar.
    #[must_use]
    pub const fn elements(&self) -> u64 {
        self.elements
    }

    /// The size.
    #[must_use]
    pub const fn bytes(&self) -> Bytes {
        self.bytes
    }

    /// The size as a length in memory.
    ///
    /// # Errors
    /// [`Error::SizeOverflow`] where the address space is smaller than that.
    pub fn len_in_memory(&self) -> Result<usize> {
        self.bytes.to_usize()
    }

    /// Checks that a buffer holds exactly this tensor.
    ///
    /// # Errors
    /// [`Error::Mismatch`] with both lengths.
    pub fn check_len(&self, len: usize, context: &str) -> Result<()> {
        if self.bytes == Bytes::of(len) {
            return Ok(());
        }
        Err(Error::Mismatch {
            context: context.to_owned(),
            expected: format!("{} B for {self}", self.bytes.0),
            found: format!("{len} B"),
        })
    }
}

impl fmt::Display for TensorDesc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{:?} {}", self.shape, self.dtype))
    }
}

#[cfg(feature = "serde")]
#[derive(serde::Serialize, serde::Deserialize)]
struct Parts {
    shape: Vec<usize>,
    dtype: DType,
}

#[cfg(feature = "serde")]
impl TryFrom<Parts> for TensorDesc {
    type Error = Error;

    fn try_from(parts: Parts) -> Result<Self> {
        Self::new(parts.shape, parts.dtype)
    }
}

#[cfg(feature = "serde")]
impl From<TensorDesc> for Parts {
    fn from(desc: TensorDesc) -> Self {
        Self { shape: desc.shape.into_vec(), dtype: desc.dtype }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_are_checked() {
        let rows: [(&[usize], DType, Option<u64>); 8] = [
            (&[], DType::F32, Some(4)),
            (&[0], DType::F32, Some(0)),
            (&[usize::MAX, usize::MAX, 0], DType::F64, Some(0)),
            (&[2, 256], DType::Q4K, Some(288)),
            (&[256, 2], DType::Q4K, None),
            (&[1 << 32, 1 << 32], DType::U8, None),
            (&[usize::MAX], DType::F16, None),
            (&[3, 2], DType::F4, Some(3)),
        ];
        for (shape, dtype, expected) in rows {
            assert_eq!(
                TensorDesc::new(shape, dtype).ok().map(|d| d.bytes().0),
                expected,
                "{shape:?} {dtype}"
            );
        }
    }

    proptest! {
        #[test]
        fn never_panics_and_is_exact(shape in proptest::collection::vec(any::<usize>(), 0..5), small in proptest::collection::vec(0usize..50, 0..5)) {
            for dtype in DType::ALL {
                let _any = TensorDesc::new(shape.as_slice(), *dtype);
            }
            let desc = TensorDesc::new(small.as_slice(), DType::F32).unwrap();
            prop_assert_eq!(desc.bytes().0, small.iter().map(|d| *d as u64).product::<u64>() * 4);
        }
    }
}
