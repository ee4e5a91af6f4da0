//! [`Error`]: what was wrong, where, and what to do about it.

use std::path::PathBuf;

use dd_core::Bytes;

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An error of the contracts: out of memory, a size that overflows.
    #[error(transparent)]
    Core {
        /// The error.
        #[from]
        source: dd_core::Error,
    },
    /// A layer that cannot take what it is given.
    #[error("layer {layer:?}: {problem}")]
    Layer {
        /// The layer's name.
        layer: String,
        /// What was expected and what was found.
        problem: String,
    },
    /// Something that the graph does not have.
    #[error("no {what} number {index} in graph {graph:?}, which has {count}; take it from the same builder")]
    Missing {
        /// A value, a module, a block.
        what: &'static str,
        /// The number that was given.
        index: usize,
        /// How many there are.
        count: usize,
        /// The graph.
        graph: String,
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
    /// A memory plan that does not hold for the program that it is used with.
    #[error("the memory plan is broken at step {step}: {problem}")]
    Plan {
        /// The step.
        step: usize,
        /// What was found.
        problem: String,
    },
    /// Something that the executor does not do.
    #[error("the executor cannot run {what}: {reason}")]
    Unsupported {
        /// A step, a dtype.
        what: String,
        /// Why, and what would do.
        reason: String,
    },
    /// A file operation that failed.
    #[error("cannot {operation} {}: {source}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file that is not what its format says.
    #[error("{} at byte {offset}: {problem}; fetch the file again", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Where in it.
        offset: u64,
        /// What was expected and what was found.
        problem: String,
    },
    /// A configuration that cannot be.
    #[error("{place}: {problem}; take config.json from the model as published")]
    Config {
        /// The file.
        place: String,
        /// The field, what was expected and what was found.
        problem: String,
    },
    /// A header that needs more memory than this crate takes for one.
    #[error("{} has a header of {needed}, more than the {allowed} allowed; raise the limit with ReadLimits", path.display())]
    HeaderTooLarge {
        /// The file.
        path: PathBuf,
        /// What it claims.
        needed: Bytes,
        /// The limit.
        allowed: Bytes,
    },
}

impl Error {
    pub(crate) fn layer(layer: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Layer { layer: layer.into(), problem: problem.into() }
    }

    pub(crate) fn setting(option: &'static str, value: impl ToString, reason: impl Into<String>) -> Self {
        Self::Setting { option, value: value.to_string(), reason: reason.into() }
    }

    pub(crate) fn overflow(what: impl Into<String>) -> Self {
        Self::Core { source: dd_core::Error::SizeOverflow { what: what.into() } }
    }

    /// Whether a size did not fit 64 bits.
    #[must_use]
    pub const fn is_overflow(&self) -> bool {
        matches!(self, Self::Core { source: dd_core::Error::SizeOverflow { .. } })
    }
}
