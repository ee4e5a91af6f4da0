//! [`Error`]: what was wrong, where, and what to do about it.

use dd_core::Bytes;
use dd_core::error::Cause;

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong. Cloning shares the cause: one failure reaches everybody who waited for the same window.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An error of the contracts: a backend's, a budget's.
    #[error("{source}")]
    Core {
        /// The error.
        source: std::sync::Arc<dd_core::Error>,
    },
    /// A shape, window or argument that cannot be used, found when a tensor is made.
    #[error("tensor {tensor:?}, {field}: {reason}")]
    Spec {
        /// The tensor's id.
        tensor: String,
        /// Which part of its configuration.
        field: &'static str,
        /// What is wrong and what would do.
        reason: String,
    },
    /// A window that cannot be used, whatever the tensor.
    #[error("window, {field}: {reason}")]
    Window {
        /// Which of its parts.
        field: &'static str,
        /// What is wrong and what would do.
        reason: String,
    },
    /// An id that is there with another configuration.
    #[error(
        "tensor {tensor:?} is there with another {field}: stored {stored}, asked for {asked}; open it as it was made, \
         take another id, or clear it"
    )]
    Conflict {
        /// The tensor's id.
        tensor: String,
        /// The first field that differs.
        field: String,
        /// What the store has.
        stored: String,
        /// What was asked for.
        asked: String,
    },
    /// A region that cannot be read.
    #[error("region of tensor {tensor:?}, dimension {dimension}: {reason}")]
    Region {
        /// The tensor's id.
        tensor: String,
        /// Which dimension, counted from zero; the rank where it is about the number of entries.
        dimension: usize,
        /// What is wrong and what would do.
        reason: String,
    },
    /// Coordinates past 64 bits.
    #[error("{what}: coordinates exceed 64 bits")]
    Overflow {
        /// What was being computed.
        what: String,
    },
    /// A tensor from a user's function that is not what its window promises.
    #[error("tensor {tensor:?}, window {index:?}: the function gave {found}, expected {expected}")]
    Output {
        /// The tensor's id.
        tensor: String,
        /// The window's index (the first of the batch where the batch is at fault).
        index: Vec<i64>,
        /// What was expected.
        expected: String,
        /// What came.
        found: String,
    },
    /// A user's function that failed.
    #[error("tensor {tensor:?}, window {index:?}: {source}")]
    Function {
        /// The tensor's id.
        tensor: String,
        /// The window's index (the first of the batch).
        index: Vec<i64>,
        /// What the function said.
        source: std::sync::Arc<dyn std::error::Error + Send + Sync>,
    },
    /// A user's function that panicked.
    #[error("tensor {tensor:?}, window {index:?}: the function panicked: {message}")]
    Panicked {
        /// The tensor's id.
        tensor: String,
        /// The window's index (the first of the batch).
        index: Vec<i64>,
        /// The panic's message.
        message: String,
    },
    /// A request of which even the smallest piece does not fit.
    #[error(
        "reading tensor {tensor:?} needs at least {least} ({} B) in {place}, which allows {limit}; raise the limit to that, \
         or make the windows smaller", least.0
    )]
    DoesNotFit {
        /// The tensor's id.
        tensor: String,
        /// The budget or limit that is too small.
        place: String,
        /// The least that would do.
        least: Bytes,
        /// What there is.
        limit: Bytes,
    },
    /// A buffer of the wrong length.
    #[error("the buffer for {what} has {found} B, expected {expected} B")]
    Buffer {
        /// What it is for.
        what: String,
        /// The length that would do.
        expected: u64,
        /// The length that it has.
        found: u64,
    },
    /// A read inside a user's function, which could wait for itself.
    #[error(
        "tensor {tensor:?} was read inside a window function: name it in `args` with its window, and it arrives sliced"
    )]
    Nested {
        /// The tensor's id.
        tensor: String,
    },
    /// A read that was given up because its handle was dropped or cancelled.
    #[error("reading tensor {tensor:?} was cancelled")]
    Cancelled {
        /// The tensor's id.
        tensor: String,
    },
    /// Bytes in a store that are not those that were put. Nothing else is affected: remove the window, and it is computed
    /// again.
    #[error(
        "tensor {tensor:?}, window {index:?} in {place} is corrupt: {reason}; remove it to have it computed again"
    )]
    Corrupt {
        /// The tensor's id.
        tensor: String,
        /// The window's index; empty where the manifest is meant.
        index: Vec<i64>,
        /// The store.
        place: String,
        /// What was found wrong.
        reason: String,
    },
    /// A store that has no room. What was stored before is intact.
    #[error("no room in {place} for {needed} of tensor {tensor:?}: {source}")]
    Full {
        /// The tensor's id.
        tensor: String,
        /// The store.
        place: String,
        /// How much was to be stored.
        needed: Bytes,
        /// What the medium said.
        source: std::sync::Arc<dyn std::error::Error + Send + Sync>,
    },
    /// A store that failed otherwise. What was stored before is intact.
    #[error("cannot {operation} tensor {tensor:?} in {place}: {source}")]
    Store {
        /// What was being done.
        operation: &'static str,
        /// The tensor's id.
        tensor: String,
        /// The store.
        place: String,
        /// What the medium said.
        source: std::sync::Arc<dyn std::error::Error + Send + Sync>,
    },
}

impl Error {
    /// Wraps what a store's medium said.
    #[must_use]
    pub fn store(operation: &'static str, tensor: &str, place: &str, source: impl Into<Cause>) -> Self {
        let source = std::sync::Arc::from(source.into());
        Self::Store { operation, tensor: tensor.to_owned(), place: place.to_owned(), source }
    }

    /// Whether bytes were not there: the caller may free some, or ask for less, and try again.
    #[must_use]
    pub fn is_out_of_memory(&self) -> bool {
        match self {
            Self::Core { source } => source.is_out_of_memory(),
            Self::DoesNotFit { .. } => true,
            _ => false,
        }
    }
}

impl From<dd_core::Error> for Error {
    fn from(source: dd_core::Error) -> Self {
        Self::Core { source: std::sync::Arc::new(source) }
    }
}
