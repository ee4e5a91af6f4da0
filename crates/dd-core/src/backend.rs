//! [`Backend`] and [`Linalg`]: what a tensor library must be able to do for the crates above.
//!
//! The boundary is bytes: dense, row-major, little-endian. A backend's tensors are handles to storage that may be
//! shared; whoever wants to overwrite storage in place must first know that nobody else sees it
//! ([`Backend::is_unique`]). Calls are synchronous; overlap comes from threads that own what they move.

use crate::bytes::Bytes;
use crate::desc::TensorDesc;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::memory::MemorySample;
use crate::tier::Tier;

/// A tensor library.
///
/// For implementers: `allocate` must either give a tensor whose storage is really there (or will be, without failing)
/// or say [`Error::OutOfMemory`]; it must not abort. `write` and `read` address the dense row-major bytes, whatever
/// strides the library uses inside.
pub trait Backend: Send + Sync + 'static {
    /// A handle to a tensor. `Send` and no more: some libraries' handles are not `Sync`.
    type Tensor: Send + 'static;

    /// The library's name.
    fn name(&self) -> &str;

    /// The tiers in which it can hold tensors, nearest first.
    fn tiers(&self) -> &[Tier];

    /// A tensor's shape and dtype.
    ///
    /// # Errors
    /// [`Error::UnsupportedDType`] for a dtype that dd-core has no name for.
    fn describe(&self, tensor: &Self::Tensor) -> Result<TensorDesc>;

    /// Where a tensor's storage is.
    fn tier_of(&self, tensor: &Self::Tensor) -> Tier;

    /// A new tensor of zeros.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::UnsupportedDType`], [`Error::UnsupportedTier`].
    fn allocate(&self, desc: &TensorDesc, tier: Tier) -> Result<Self::Tensor>;

    /// Overwrites bytes `offset..offset + bytes.len()` of a tensor's storage, in place.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] past the end or where the storage is shared with another handle and the library
    /// can tell; whatever the library says.
    fn write(&self, tensor: &mut Self::Tensor, offset: usize, bytes: &[u8]) -> Result<()>;

    /// Copies bytes `offset..offset + out.len()` of a tensor out.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] past the end; whatever the library says.
    fn read(&self, tensor: &Self::Tensor, offset: usize, out: &mut [u8]) -> Result<()>;

    /// Lends the dense row-major bytes of a tensor's storage to `fill`, so that they can be made where they will be used, and says
    /// whether it did. `false`, without calling `fill`, where the library cannot lend them, as those of a device: then
    /// [`write`](Self::write) is the way.
    ///
    /// # Errors
    /// As [`write`](Self::write); `fill` is then not called.
    fn fill(&self, _tensor: &mut Self::Tensor, _fill: &mut dyn FnMut(&mut [u8])) -> Result<bool> {
        Ok(false)
    }

    /// Another handle to the same storage.
    fn share(&self, tensor: &Self::Tensor) -> Self::Tensor;

    /// Whether this handle is certainly the only one to its storage, so that the storage may be overwritten for
    /// another use. `false` where the library cannot tell: callers then take new storage.
    fn is_unique(&self, tensor: &mut Self::Tensor) -> bool;

    /// Whether [`is_unique`](Self::is_unique) means something here. Where it does, storage that somebody else still
    /// sees stays accounted until they let go; where it does not, nobody can know, and it is given up at once.
    fn can_tell_unique(&self) -> bool {
        true
    }

    /// The most host memory that it takes for itself to move bytes, as page-locked blocks: whoever keeps a budget
    /// reserves it. Nothing for a library that copies directly.
    fn transfer_memory(&self) -> Bytes {
        Bytes::ZERO
    }

    /// How much memory a tier has, as far as the library knows: its own figures, not the system's.
    ///
    /// # Errors
    /// [`Error::UnsupportedTier`]; whatever the library says.
    fn memory(&self, tier: Tier) -> Result<MemorySample>;

    /// Waits until all work queued on a tier is done. Nothing to do for a library that queues none.
    ///
    /// # Errors
    /// Whatever the library says of the queued work.
    fn synchronize(&self, _tier: Tier) -> Result<()> {
        Ok(())
    }

    /// Returns memory that the library keeps for reuse on a tier. Nothing to do for one that keeps none.
    ///
    /// # Errors
    /// Whatever the library says.
    fn trim(&self, _tier: Tier) -> Result<()> {
        Ok(())
    }

    /// A new tensor with these bytes.
    ///
    /// # Errors
    /// As [`allocate`](Self::allocate); [`Error::Mismatch`] where `bytes` is not as long as `desc` says.
    fn upload(&self, desc: &TensorDesc, bytes: &[u8], tier: Tier) -> Result<Self::Tensor> {
        desc.check_len(bytes.len(), "upload")?;
        let mut tensor = self.allocate(desc, tier)?;
        self.write(&mut tensor, 0, bytes)?;
        Ok(tensor)
    }

    /// A tensor's bytes.
    ///
    /// # Errors
    /// As [`describe`](Self::describe) and [`read`](Self::read).
    fn download(&self, tensor: &Self::Tensor) -> Result<Vec<u8>> {
        let mut bytes = vec![0; self.describe(tensor)?.len_in_memory()?];
        self.read(tensor, 0, &mut bytes)?;
        Ok(bytes)
    }
}

/// The small set of operations that the crates above need of every library. Shapes that do not meet are
/// [`Error::Mismatch`]; dtypes that the library cannot compute with are [`Error::UnsupportedDType`].
pub trait Linalg: Backend {
    /// `[.., m, k] × [.., k, n] → [.., m, n]`, the leading dimensions equal.
    ///
    /// # Errors
    /// [`Error::Mismatch`], [`Error::UnsupportedDType`], [`Error::OutOfMemory`].
    fn matmul(&self, a: &Self::Tensor, b: &Self::Tensor) -> Result<Self::Tensor>;

    /// Element by element `a + b`, shapes equal.
    ///
    /// # Errors
    /// As [`matmul`](Self::matmul).
    fn add(&self, a: &Self::Tensor, b: &Self::Tensor) -> Result<Self::Tensor>;

    /// Element by element `a · b`, shapes equal.
    ///
    /// # Errors
    /// As [`matmul`](Self::matmul).
    fn mul(&self, a: &Self::Tensor, b: &Self::Tensor) -> Result<Self::Tensor>;

    /// Element by element `scale · a + shift`.
    ///
    /// # Errors
    /// As [`matmul`](Self::matmul).
    fn affine(&self, a: &Self::Tensor, scale: f64, shift: f64) -> Result<Self::Tensor>;

    /// Swaps two dimensions.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a dimension that is not there.
    fn transpose(&self, a: &Self::Tensor, first: usize, second: usize) -> Result<Self::Tensor>;

    /// `len` entries of dimension `dim` from `start` on.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a dimension or range that is not there.
    fn narrow(&self, a: &Self::Tensor, dim: usize, start: usize, len: usize) -> Result<Self::Tensor>;

    /// Tensors one after the other along `dim`; all other dimensions equal.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for no tensors; [`Error::Mismatch`].
    fn concat(&self, tensors: &[&Self::Tensor], dim: usize) -> Result<Self::Tensor>;

    /// The same elements in another shape.
    ///
    /// # Errors
    /// [`Error::Mismatch`] where the number of elements differs.
    fn reshape(&self, a: &Self::Tensor, shape: &[usize]) -> Result<Self::Tensor>;
}

/// The error for a dtype that a backend does not have.
#[must_use]
pub fn unsupported_dtype(backend: &str, dtype: DType) -> Error {
    Error::UnsupportedDType { backend: backend.to_owned(), dtype }
}

/// Checks that `offset..offset + len` lies within a tensor of `whole` bytes.
///
/// # Errors
/// [`Error::InvalidArgument`] where it does not.
pub fn check_range(offset: usize, len: usize, whole: usize) -> Result<std::ops::Range<usize>> {
    let end = offset.checked_add(len).filter(|end| *end <= whole);
    end.map(|end| offset..end).ok_or_else(|| Error::InvalidArgument {
        argument: "range",
        reason: format!("bytes {offset}..{offset}+{len} of a tensor of {whole} B"),
    })
}
