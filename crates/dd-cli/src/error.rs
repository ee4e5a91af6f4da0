//! [`CliError`]: what a user is told, and the exit code that a script sees.
//!
//! Every message says what happened, where, and what to do about it. The exit codes are part of the interface:
//! 0 done, 2 bad usage or input, 3 cannot fit, 4 I/O.

use std::fmt::Display;
use std::path::{Path, PathBuf};

use deep_dimensions::candle::{managed, paged};
use deep_dimensions::core::{self, Bytes};
use deep_dimensions::{offload, pager};
use serde::{Deserialize, Serialize};

/// The result of this crate's functions.
pub type Result<T, E = CliError> = std::result::Result<T, E>;

/// What can go wrong in the command.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CliError {
    /// Arguments or input files that cannot be used.
    #[error("{place}: {problem}; {remedy}")]
    Input {
        /// Where: an option, a path, a tensor.
        place: String,
        /// What was expected and what was found.
        problem: String,
        /// What to do.
        remedy: String,
    },
    /// A budget that cannot hold the work.
    #[error("{what} does not fit: {needed} ({} B) needed, {available} available; {remedy}", needed.0)]
    CannotFit {
        /// What was to be held.
        what: String,
        /// The least number of bytes that would do.
        needed: Bytes,
        /// What there is.
        available: Bytes,
        /// What to do.
        remedy: String,
    },
    /// A file, disk or network that failed.
    #[error("cannot {operation} {}: {source}; {remedy}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: Box<dyn std::error::Error + Send + Sync>,
        /// What to do.
        remedy: String,
    },
    /// A checkpoint that is not what the model needs; the message names the file and the remedy.
    #[error(transparent)]
    Model {
        /// What is wrong with it.
        source: offload::Error,
    },
    /// A run in another process that failed.
    #[error("{}", report.error)]
    Child {
        /// What it said.
        report: ErrorReport,
    },
    /// The tensor library refused a computation.
    #[error("{place}: {source}; check that config.json and the weights belong together")]
    Tensor {
        /// Which part of the model.
        place: String,
        /// What the library said.
        source: candle_core::Error,
    },
}

/// An error as `--json` prints it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ErrorReport {
    /// The message.
    pub error: String,
    /// The exit code.
    pub exit_code: u8,
    /// For exit code 3: the least number of bytes that would do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub needed_bytes: Option<u64>,
}

impl CliError {
    /// Bad usage or input.
    pub fn input(place: impl Display, problem: impl Display, remedy: impl Into<String>) -> Self {
        Self::Input { place: place.to_string(), problem: problem.to_string(), remedy: remedy.into() }
    }

    /// A failed file operation.
    pub fn io(
        operation: &'static str,
        path: &Path,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        let remedy = "check that it is there, that it may be used, and that the disk has room".to_owned();
        Self::Io { operation, path: path.to_owned(), source: source.into(), remedy }
    }

    /// A wrapper for the tensor library's errors, naming the part of the model.
    pub fn tensor(place: impl Into<String>) -> impl FnOnce(candle_core::Error) -> Self {
        let place = place.into();
        move |source| Self::Tensor { place, source }
    }

    /// What a managed module said, naming it.
    #[must_use]
    pub fn of_module(name: &str, error: managed::Error) -> Self {
        match error {
            managed::Error::Offload(error) => error.into(),
            managed::Error::Candle(error) => Self::tensor(name)(error),
            other => Self::input(name, other, "see deepdim --help"),
        }
    }

    /// The process's exit code.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Input { .. } | Self::Tensor { .. } | Self::Model { .. } => 2,
            Self::CannotFit { .. } => 3,
            Self::Io { .. } => 4,
            Self::Child { report } => report.exit_code,
        }
    }

    /// The error as a value to print as JSON.
    #[must_use]
    pub fn report(&self) -> ErrorReport {
        let needed_bytes = match self {
            Self::CannotFit { needed, .. } => Some(needed.0),
            Self::Child { report } => report.needed_bytes,
            _ => None,
        };
        ErrorReport { error: self.to_string(), exit_code: self.exit_code(), needed_bytes }
    }
}

impl From<core::Error> for CliError {
    fn from(error: core::Error) -> Self {
        match error {
            core::Error::OutOfMemory { place, needed, available } => Self::CannotFit {
                what: place,
                needed,
                available,
                remedy: "give more with --memory, or fewer or shorter texts".to_owned(),
            },
            core::Error::Io { operation, path, source } => Self::io(operation, &path, source),
            other => Self::input("model", &other, "see deepdim --help"),
        }
    }
}

impl From<managed::Error> for CliError {
    fn from(error: managed::Error) -> Self {
        Self::of_module("model", error)
    }
}

impl From<offload::Error> for CliError {
    fn from(error: offload::Error) -> Self {
        match error {
            offload::Error::Core(error) => error.into(),
            offload::Error::BudgetTooSmall { budget, least, what } => {
                let remedy = format!("give at least --memory {}", least.0);
                Self::CannotFit { what, needed: least, available: budget, remedy }
            }
            offload::Error::Io { operation, path, source, .. } => Self::io(operation, &path, source),
            offload::Error::FileChanged { ref path, .. } => {
                let path = path.clone();
                Self::io("trust", &path, error)
            }
            offload::Error::DiskFull { ref path, .. } => {
                let path = path.clone();
                Self::io("spill to", &path, error)
            }
            // The message names the file and says what to do.
            other => Self::Model { source: other },
        }
    }
}

impl From<pager::Error> for CliError {
    fn from(error: pager::Error) -> Self {
        match error {
            pager::Error::Core(error) => error.into(),
            pager::Error::Offload(error) => error.into(),
            pager::Error::TooSmall { what, least, available } => {
                let remedy = format!("give {} more with --memory", least.saturating_sub(available));
                Self::CannotFit { what: format!("paging {what}"), needed: least, available, remedy }
            }
            pager::Error::Read { ref path, .. } => {
                let path = path.clone();
                Self::io("read", &path, error)
            }
            pager::Error::Write { ref path, .. } => {
                let path = path.clone();
                Self::io("write", &path, error)
            }
            pager::Error::System { operation, source } => Self::io(operation, Path::new("memory"), source),
            pager::Error::Unsupported { .. } => {
                Self::input("demand paging", error, "run with --unmanaged where the weights fit")
            }
            other => Self::input("weights", other, "see deepdim --help"),
        }
    }
}

impl From<paged::Error> for CliError {
    fn from(error: paged::Error) -> Self {
        match error {
            paged::Error::Pager(error) => error.into(),
            paged::Error::Offload(error) => error.into(),
            paged::Error::Core(error) => error.into(),
            other => Self::input("weights", other, "see deepdim --help"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_follow_the_kind() {
        let fit = core::Error::OutOfMemory {
            place: "budget".to_owned(),
            needed: Bytes::mib(5),
            available: Bytes::mib(4),
        };
        let io = CliError::io("read", Path::new("/nowhere"), std::io::Error::other("gone"));
        let rows = [
            (CliError::input("--text", "nothing given", "give one"), 2, None),
            (CliError::from(fit), 3, Some(5 << 20)),
            (io, 4, None),
            (CliError::tensor("layer 0")(candle_core::Error::Msg("shape".to_owned())), 2, None),
        ];
        for (error, code, needed) in rows {
            let report = error.report();
            assert_eq!((report.exit_code, report.needed_bytes), (code, needed), "{error}");
        }
    }
}
