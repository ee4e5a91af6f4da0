//! [`Error`]: what can go wrong between a file, a disk and a budget.

use std::path::PathBuf;

use dd_core::Bytes;

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong. Each variant says what was expected, what was found, where, and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An error of the contracts: out of memory, shapes that do not meet, a backend's own.
    #[error(transparent)]
    Core(#[from] dd_core::Error),
    /// The budget cannot hold even what one step needs.
    #[error("a budget of {budget} is too small: the least that would do is {least} ({} B), for {what}", least.0)]
    BudgetTooSmall {
        /// What was given.
        budget: Bytes,
        /// The least number of bytes that would do.
        least: Bytes,
        /// What needs them.
        what: String,
    },
    /// An option, or a combination of options, that contradicts itself.
    #[error("invalid option {option}: {reason}")]
    InvalidConfig {
        /// The option's name.
        option: &'static str,
        /// What is wrong and what would do.
        reason: String,
    },
    /// A file that is not the checkpoint it claims to be.
    #[error("{} is not a valid checkpoint: {reason}; fetch or export the file again", path.display())]
    InvalidCheckpoint {
        /// The file.
        path: PathBuf,
        /// What was expected and what was found.
        reason: String,
    },
    /// A file that ends before its last tensor.
    #[error("{} is truncated: its header promises {expected} B, the file has {found} B; fetch it again", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// The length that the header promises.
        expected: u64,
        /// The length found.
        found: u64,
    },
    /// A tensor whose bytes lie outside the file, overlap another's or are not as many as its shape says.
    #[error("tensor {tensor:?} in {} has bad offsets {start}..{end}: {reason}; fetch or export the file again", path.display())]
    BadOffsets {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// First byte, counted from the start of the data.
        start: u64,
        /// One past the last byte.
        end: u64,
        /// What is wrong with them.
        reason: String,
    },
    /// A shard that the index names and the folder lacks.
    #[error("shard {} is missing: {} names it for tensor {tensor:?}; fetch the missing file into the same folder", shard.display(), index.display())]
    MissingShard {
        /// The index file.
        index: PathBuf,
        /// The shard's path.
        shard: PathBuf,
        /// A tensor that should be in it.
        tensor: String,
    },
    /// A tensor that the model wants and the checkpoint lacks.
    #[error("no tensor {tensor:?} in {}{}", path.display(), similar.as_ref().map(|name| format!("; did you mean {name:?}?")).unwrap_or_default())]
    MissingTensor {
        /// The checkpoint.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// A name that is much alike, if there is one.
        similar: Option<String>,
    },
    /// A file that is no longer the one that was opened.
    #[error("{} changed while it was in use ({reason}): its weights can no longer be trusted; load the model again", path.display())]
    FileChanged {
        /// The file.
        path: PathBuf,
        /// What changed.
        reason: String,
    },
    /// A read or write that failed.
    #[error("cannot {operation} {}{}: {source}", path.display(), tensor.as_ref().map(|name| format!(" (tensor {name:?})")).unwrap_or_default())]
    Io {
        /// What was being done.
        operation: &'static str,
        /// To which file or folder.
        path: PathBuf,
        /// For which tensor, where that is known.
        tensor: Option<String>,
        /// What the system said.
        source: std::io::Error,
    },
    /// The spill store is at its own limit or the disk is full.
    #[error("no room to spill {tensor:?} in {}: {needed} needed, {available} available; {remedy}", path.display())]
    DiskFull {
        /// The spill directory.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// How much it takes.
        needed: Bytes,
        /// How much there is.
        available: Bytes,
        /// What to do: free the disk, or raise the limit.
        remedy: &'static str,
    },
    /// Stored bytes that are not those that were written.
    #[error("tensor {tensor:?} in {} is corrupt: {reason}", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// What was expected and what was found.
        reason: String,
    },
    /// Two modules of one name.
    #[error("there is a module {name:?} already; give each module a name of its own")]
    DuplicateModule {
        /// The name.
        name: String,
    },
    /// Every byte of the budget is held by modules in use, and every thread that holds one waits for another.
    #[error(
        "module {module:?} needs {needed} and every managed byte is in use by threads that wait in turn; hold fewer modules at once or raise the budget to {least}"
    )]
    AllInUse {
        /// The module that was asked for.
        module: String,
        /// What it needs.
        needed: Bytes,
        /// A budget that would do.
        least: Bytes,
    },
    /// A call on a manager that was cleaned up.
    #[error("the memory manager was cleaned up: {what} is no longer possible; make a new manager")]
    Stopped {
        /// What was asked for.
        what: String,
    },
}

impl Error {
    /// Whether the bytes were not there: the caller may free some and try again.
    #[must_use]
    pub const fn is_out_of_memory(&self) -> bool {
        match self {
            Self::Core(error) => error.is_out_of_memory(),
            Self::BudgetTooSmall { .. } | Self::AllInUse { .. } => true,
            _ => false,
        }
    }
}
