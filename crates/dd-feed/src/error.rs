//! [`Error`]: what was wrong, where, and what to do about it.

use std::path::PathBuf;

use dd_core::error::Cause;

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong. Too little memory is [`dd_core::Error::OutOfMemory`] inside [`Error::Core`], [`Error::Limit`], or
/// [`Error::BatchesHeld`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An error of the contracts: out of memory, a dtype or a tier that a backend lacks.
    #[error(transparent)]
    Core {
        /// The error.
        #[from]
        source: dd_core::Error,
    },
    /// An option outside its range, or one that is missing.
    #[error("{option} is {value}: {reason}")]
    Setting {
        /// The option.
        option: &'static str,
        /// What was given.
        value: String,
        /// What is wrong and what would do.
        reason: String,
    },
    /// A memory limit in which not one read fits.
    #[error(
        "{option} of {limit} ({} B) is too small for {what}: at least {least} ({} B) would do",
        limit.0, least.0
    )]
    Limit {
        /// The limit.
        option: &'static str,
        /// What was given.
        limit: dd_core::Bytes,
        /// What has to fit.
        what: String,
        /// The least limit that would do.
        least: dd_core::Bytes,
    },
    /// Inputs and outputs, a list and its plan, or ranks that do not belong together.
    #[error("{what}: expected {expected}, found {found}")]
    Mismatch {
        /// What was compared.
        what: String,
        /// What was expected.
        expected: String,
        /// What was found.
        found: String,
    },
    /// A reader failed for one identity.
    #[error("cannot read {identity:?} (number {index}, position {position} of epoch {epoch}): {source}")]
    Read {
        /// Which sample: its identity.
        identity: String,
        /// Its number in the list.
        index: u64,
        /// The epoch.
        epoch: u64,
        /// Where in the order of that epoch it stands.
        position: u64,
        /// What the reader said.
        source: Cause,
    },
    /// More were skipped than the policy allows.
    #[error("{skipped} identities could not be read and {at_most} may be skipped; the last: {source}")]
    TooManySkipped {
        /// How many failed.
        skipped: u64,
        /// How many may.
        at_most: u64,
        /// The last failure.
        source: Box<Error>,
    },
    /// What was to be applied on a batch failed.
    #[error("cannot apply on the {side} of the batch at {position} of epoch {epoch}: {source}")]
    Apply {
        /// Input or output.
        side: &'static str,
        /// The epoch.
        epoch: u64,
        /// Where the batch begins.
        position: u64,
        /// What the function said.
        source: Cause,
    },
    /// Every batch that the memory has room for is still held by the caller. Not the end: drop one and go on.
    #[error(
        "all {held} batches for which there is memory are held; drop one of them, or allow more than {limit}"
    )]
    BatchesHeld {
        /// How many there are.
        held: usize,
        /// The memory limit.
        limit: dd_core::Bytes,
    },
    /// An epoch was asked for a batch before the one before it was finished or dropped.
    #[error(
        "epoch {asked} was asked for a batch while epoch {current} is not finished; finish or drop that one first"
    )]
    EpochOrder {
        /// The epoch that was asked.
        asked: u64,
        /// The epoch that is not finished.
        current: u64,
    },
    /// A state to resume from that is damaged, or belongs to another feed.
    #[error("cannot resume: {reason}")]
    State {
        /// What is wrong and what would do.
        reason: String,
    },
    /// A file that is not what it should be.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What was expected, what was found, and where.
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
    /// Worker threads that could not be started, or that are gone.
    #[error("the threads that read ahead: {reason}")]
    Threads {
        /// What happened.
        reason: String,
    },
}

impl Error {
    /// Whether memory is what lacks: the caller may give some back, or allow more, and go on.
    #[must_use]
    pub const fn is_out_of_memory(&self) -> bool {
        match self {
            Self::Core { source } => source.is_out_of_memory(),
            Self::Limit { .. } | Self::BatchesHeld { .. } => true,
            _ => false,
        }
    }

    pub(crate) fn setting(option: &'static str, value: impl ToString, reason: impl Into<String>) -> Self {
        Self::Setting { option, value: value.to_string(), reason: reason.into() }
    }

    pub(crate) fn mismatch(what: impl Into<String>, expected: impl ToString, found: impl ToString) -> Self {
        Self::Mismatch { what: what.into(), expected: expected.to_string(), found: found.to_string() }
    }

    pub(crate) fn file(path: &std::path::Path, reason: impl Into<String>) -> Self {
        Self::File { path: path.to_owned(), reason: reason.into() }
    }

    pub(crate) fn io(operation: &'static str, path: &std::path::Path, source: std::io::Error) -> Self {
        Self::Io { operation, path: path.to_owned(), source }
    }
}
