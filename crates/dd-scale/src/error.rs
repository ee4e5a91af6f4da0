//! [`Error`]: what was wrong, where, and what to do about it.

use dd_core::Bytes;
use dd_core::error::Cause;

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong. That nothing fits is [`dd_core::Error::OutOfMemory`] inside [`Error::Core`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An error of the contracts: out of memory, an unknown dtype, a tier that a backend lacks.
    #[error(transparent)]
    Core {
        /// The error.
        #[from]
        source: dd_core::Error,
    },
    /// A dimension that cannot be used.
    #[error("dimension {index} is {value}: {reason}")]
    Dimension {
        /// Which one, counted from zero.
        index: usize,
        /// What was given.
        value: String,
        /// What is wrong and what would do.
        reason: String,
    },
    /// A shape without dimensions.
    #[error("no dimensions given: expected at least one, such as 1024,1024,3")]
    Empty,
    /// A list with another number of entries than there are dimensions.
    #[error(
        "{option} has {found} entries for {expected} dimensions: entry {index} ({value}) has no partner; give one per dimension"
    )]
    Rank {
        /// The list.
        option: &'static str,
        /// How many dimensions there are.
        expected: usize,
        /// How many entries it has.
        found: usize,
        /// The first index that only one of the two has.
        index: usize,
        /// The dimension, or the entry, there.
        value: usize,
    },
    /// An entry of a list of bounds, steps or frozen dimensions that cannot be used.
    #[error("{option}[{index}] is {value}: {reason}")]
    Entry {
        /// The list.
        option: &'static str,
        /// Which entry, counted from zero.
        index: usize,
        /// What was given.
        value: usize,
        /// What is wrong and what would do.
        reason: String,
    },
    /// An option outside its range.
    #[error("{option} is {value}: {reason}")]
    Setting {
        /// The option.
        option: &'static str,
        /// What was given.
        value: String,
        /// What is wrong and what would do.
        reason: String,
    },
    /// A fill value that the dtype cannot hold.
    #[error("{dtype} cannot hold the fill value {value}: {reason}")]
    Fill {
        /// The element type.
        dtype: dd_core::DType,
        /// The value.
        value: f64,
        /// What is wrong and what would do.
        reason: &'static str,
    },
    /// The step that was to be measured failed, for another reason than memory.
    #[error("the step failed at batch {batch}, and not for lack of memory: {source}")]
    Step {
        /// The batch.
        batch: usize,
        /// What it said.
        source: Cause,
    },
    /// A child process that could not be started, or did not end as it should.
    #[error("the child for batch {batch} {what}{}", tail(stderr))]
    Child {
        /// The batch.
        batch: usize,
        /// How it ended.
        what: String,
        /// The end of what it wrote to standard error.
        stderr: String,
    },
}

impl Error {
    /// Whether no size fits: the caller may give more, or ask for less.
    #[must_use]
    pub const fn is_out_of_memory(&self) -> bool {
        matches!(self, Self::Core { source } if source.is_out_of_memory())
    }

    pub(crate) fn out_of_memory(place: impl Into<String>, needed: Bytes, available: Bytes) -> Self {
        Self::Core { source: dd_core::Error::OutOfMemory { place: place.into(), needed, available } }
    }

    pub(crate) fn setting(option: &'static str, value: impl ToString, reason: impl Into<String>) -> Self {
        Self::Setting { option, value: value.to_string(), reason: reason.into() }
    }
}

fn tail(stderr: &str) -> String {
    let text = stderr.trim();
    if text.is_empty() { String::new() } else { format!("; it last wrote:\n{text}") }
}
