//! [`Error`]: what can go wrong, as values that callers branch on.

use std::path::PathBuf;

use crate::bytes::Bytes;
use crate::dtype::DType;
use crate::tier::Tier;

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The cause of an error in a library that this crate does not name.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// What can go wrong in the contracts. Running out of memory is an expected outcome, not a fault.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The bytes are not there.
    #[error("out of memory in {place}: {needed} needed ({} B), {available} available ({} B)", needed.0, available.0)]
    OutOfMemory {
        /// The budget (a path of names) or the tier that refused.
        place: String,
        /// How many bytes were asked for.
        needed: Bytes,
        /// How many were there.
        available: Bytes,
    },
    /// A text that is not a number of bytes.
    #[error("{input:?} is not a number of bytes: {reason}; write for example 32MiB, 1.5GiB or 4096")]
    InvalidBytes {
        /// The text.
        input: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A text that names nothing of its kind.
    #[error("unknown {kind} {input:?}; expected {expected}")]
    Unknown {
        /// What was to be named: a dtype, a device.
        kind: &'static str,
        /// The text.
        input: String,
        /// What would be understood.
        expected: &'static str,
    },
    /// A size that no machine can hold.
    #[error("size overflow: {what} does not fit the address space")]
    SizeOverflow {
        /// What was being sized.
        what: String,
    },
    /// Shapes, lengths or dtypes that do not meet.
    #[error("{context}: expected {expected}, found {found}")]
    Mismatch {
        /// Where: an operation, a tensor's name.
        context: String,
        /// What was expected.
        expected: String,
        /// What was found.
        found: String,
    },
    /// An argument outside its range.
    #[error("invalid {argument}: {reason}")]
    InvalidArgument {
        /// The argument's name.
        argument: &'static str,
        /// What is wrong and what would do.
        reason: String,
    },
    /// A dtype that this backend cannot hold.
    #[error("{backend} has no tensors of dtype {dtype}")]
    UnsupportedDType {
        /// The backend.
        backend: String,
        /// The dtype.
        dtype: DType,
    },
    /// A tier that this backend does not have.
    #[error("{backend} has no tier {tier}; it has {available}")]
    UnsupportedTier {
        /// The backend.
        backend: String,
        /// The tier that was asked for.
        tier: Tier,
        /// The tiers that there are.
        available: String,
    },
    /// Nothing of that name.
    #[error("no tensor {name:?} in {place}")]
    NotFound {
        /// The name.
        name: String,
        /// The store, file or model that was searched.
        place: String,
    },
    /// Bytes that are not what was written.
    #[error("{name:?} in {place} is corrupt: {reason}")]
    Corrupt {
        /// The tensor.
        name: String,
        /// The store or file.
        place: String,
        /// What was found wrong.
        reason: String,
    },
    /// A file operation that failed.
    #[error("cannot {operation} {}: {source}", path.display())]
    Io {
        /// What was being done.
        operation: &'static str,
        /// To which file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// An error of the library behind a backend, provider or store.
    #[error("{library} failed to {operation}: {source}")]
    Library {
        /// The library.
        library: String,
        /// What was being done.
        operation: String,
        /// What the library said.
        source: Cause,
    },
}

impl Error {
    /// Whether the bytes were not there: the caller may free some and try again.
    #[must_use]
    pub const fn is_out_of_memory(&self) -> bool {
        matches!(self, Self::OutOfMemory { .. })
    }

    /// Wraps an error of the library behind an implementation.
    #[must_use]
    pub fn library(library: &str, operation: impl Into<String>, source: impl Into<Cause>) -> Self {
        Self::Library { library: library.to_owned(), operation: operation.into(), source: source.into() }
    }
}
