//! [`CostModel`]: what a choice of sizes costs in memory, without running it.

use crate::bytes::Bytes;
use crate::error::{Error, Result};

/// The peak memory of a piece of work as a function of its sizes (a batch, dimensions of a tensor).
pub trait CostModel: Send + Sync {
    /// The peak in bytes at these sizes. Never decreases when a size grows.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for sizes this model does not know; [`Error::SizeOverflow`] past 64 bits.
    fn peak(&self, sizes: &[usize]) -> Result<Bytes>;
}

/// The reference model: a constant plus so many bytes per element of the product of all sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct AffineCost {
    /// The bytes that do not depend on the sizes.
    pub constant: Bytes,
    /// The bytes of each element.
    pub per_element: Bytes,
}

impl CostModel for AffineCost {
    fn peak(&self, sizes: &[usize]) -> Result<Bytes> {
        let overflow = || Error::SizeOverflow { what: format!("the cost of sizes {sizes:?}") };
        if sizes.contains(&0) {
            return Ok(self.constant);
        }
        let elements =
            sizes.iter().try_fold(1u64, |n, size| n.checked_mul(*size as u64)).ok_or_else(overflow)?;
        let variable = self.per_element.checked_mul(elements).ok_or_else(overflow)?;
        self.constant.checked_add(variable).ok_or_else(overflow)
    }
}
