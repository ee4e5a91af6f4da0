//! What can go wrong with a paged GGUF model, and what to do about it.

use std::path::PathBuf;

/// The result of paging GGUF models.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file cannot be opened or read.
    #[error("cannot {operation} {}: {source}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not what GGUF prescribes; nothing of its tensors was read.
    #[error("{} is no usable GGUF file: {what} at byte {offset}: expected {expected}, found {found}; download it again", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The field or tensor.
        what: String,
        /// Where in the file.
        offset: u64,
        /// What would do.
        expected: String,
        /// What is there.
        found: String,
    },
    /// The program's allocator does not let allocations be captured.
    #[error(
        "the loader's allocations cannot be paged: declare `#[global_allocator] static ALLOCATOR: \
         dd_candle::capture::CapturingAllocator = dd_candle::capture::CapturingAllocator;` in the program"
    )]
    NoAllocator,
    /// The model's loader failed.
    #[error("loading {}: {source}", path.display())]
    Load {
        /// The file.
        path: PathBuf,
        /// candle's error.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The budget refused.
    #[error(transparent)]
    Core(#[from] dd_core::Error),
    /// The store for what is not in the file.
    #[error(transparent)]
    Offload(#[from] dd_offload::Error),
    /// The pager refused.
    #[error(transparent)]
    Pager(#[from] dd_pager::Error),
}
