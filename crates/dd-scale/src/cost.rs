//! [`TensorCost`]: the bytes of one dense tensor, as a cost model.

use dd_core::{Bytes, CostModel, DType, Error, Result};

/// What a tensor of a dtype takes, as a function of its dimensions.
///
/// ```
/// use dd_core::{Bytes, CostModel, DType};
/// use dd_scale::cost::TensorCost;
/// assert_eq!(TensorCost(DType::F32).peak(&[1024, 1024, 3])?, Bytes::mib(12));
/// # Ok::<(), dd_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorCost(pub DType);

impl CostModel for TensorCost {
    /// # Errors
    /// [`Error::SizeOverflow`] past 64 bits; [`Error::InvalidArgument`] for a last dimension that is no whole number of
    /// the dtype's blocks.
    fn peak(&self, sizes: &[usize]) -> Result<Bytes> {
        let block = self.0.block_elements();
        let row = sizes.last().map_or(1, |size| *size as u64);
        if !row.is_multiple_of(block) {
            let reason = format!("the last is {row}: {} needs a multiple of {block}", self.0);
            return Err(Error::InvalidArgument { argument: "sizes", reason });
        }
        if sizes.contains(&0) {
            return Ok(Bytes::ZERO);
        }
        let elements = sizes.iter().try_fold(1u64, |product, size| product.checked_mul(*size as u64));
        let bytes = elements.and_then(|elements| (elements / block).checked_mul(self.0.block_bytes()));
        bytes
            .map(Bytes)
            .ok_or_else(|| Error::SizeOverflow { what: format!("a tensor of {sizes:?} {}", self.0) })
    }
}

#[cfg(test)]
mod tests {
    use dd_core::TensorDesc;

    use super::*;

    #[test]
    fn keeps_the_contract() {
        for dtype in [DType::F32, DType::U8, DType::F4, DType::Q4K] {
            dd_conformance::cost_model(&TensorCost(dtype));
        }
    }

    #[test]
    fn agrees_with_the_tensor() {
        for dtype in DType::ALL {
            let last = usize::try_from(dtype.block_elements()).unwrap() * 3;
            let sizes = [5, 7, last];
            let desc = TensorDesc::new(sizes, *dtype).unwrap();
            assert_eq!(TensorCost(*dtype).peak(&sizes).unwrap(), desc.bytes(), "{dtype}");
        }
    }
}
