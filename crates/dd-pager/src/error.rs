//! What can go wrong with paged memory, and what to do about it.

use std::path::PathBuf;

use dd_core::Bytes;

/// The result of this crate's operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel does not let this process serve its own page faults.
    #[error("demand paging is not available here: {reason}; managed modules (dd-offload) do without it")]
    Unsupported {
        /// What was asked for and what the kernel answered.
        reason: String,
    },
    /// The budget leaves less than the least with which paging makes progress.
    #[error(
        "paging {what} takes at least {least}, and {available} are available; raise the limit to {least} or more"
    )]
    TooSmall {
        /// What was to be paged.
        what: String,
        /// The least that would do.
        least: Bytes,
        /// What the budget leaves.
        available: Bytes,
    },
    /// A file could not be read, or does not hold what it should.
    #[error("cannot read {what} from {}: {reason}", path.display())]
    Read {
        /// The tensor, and where in it.
        what: String,
        /// The file.
        path: PathBuf,
        /// What was expected and found.
        reason: String,
    },
    /// A file could not be written. What was begun was removed.
    #[error("cannot {operation} {}{}: {source}; nothing was left behind", path.display(), tensor.as_ref().map(|name| format!(" (tensor {name:?})")).unwrap_or_default())]
    Write {
        /// What was being done.
        operation: &'static str,
        /// The file or folder that was asked for.
        path: PathBuf,
        /// The tensor that was being written, where it was one.
        tensor: Option<String>,
        /// What the system said.
        source: std::io::Error,
    },
    /// Bytes that do not decode.
    #[error("{what} does not decode: {reason}; the file is damaged, make it anew")]
    Damaged {
        /// The tensor or chunk.
        what: String,
        /// What was expected and found.
        reason: String,
    },
    /// A request that cannot be meant.
    #[error("{what}: expected {expected}, found {found}")]
    Invalid {
        /// The argument.
        what: String,
        /// What would do.
        expected: String,
        /// What was given.
        found: String,
    },
    /// The budget refused.
    #[error(transparent)]
    Core(#[from] dd_core::Error),
    /// The foundation's files and reads.
    #[error(transparent)]
    Offload(#[from] dd_offload::error::Error),
    /// The system refused.
    #[error("{operation}: {source}")]
    System {
        /// What was tried.
        operation: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
}
