//! Where tensors rest that have no file of their own: on disk ([`SpillStore`]) or compressed in memory
//! ([`CompressedStore`]).
//!
//! Unchanged weights rest in the user's checkpoint and never come here. What was changed (training) or never had a
//! file (weights made in the program, caches) does. Both stores work in chunks of [`CHUNK`] bytes, so that a tensor
//! of any size goes through a buffer of known size; `working_bytes` says how much a call takes besides what is
//! stored, for the caller to reserve.
//!
//! | module | what it holds |
//! |---|---|
//! | `spill` | [`SpillStore`]: one checksummed file per tensor, within a limit |
//! | `directory` | the directory of one process: private, locked, removed at the end or by the next start |
//! | `format` | the layout of a spill file, its writer and its reader |
//! | `compressed` | [`CompressedStore`]: the same in memory, within a budget |
//! | `codec` | packing one chunk |

mod codec;
mod compressed;
mod directory;
mod format;
mod spill;
mod user;

pub use codec::CHUNK;
pub use compressed::CompressedStore;
pub use spill::{SpillConfig, SpillStore};

use crate::error::Error;

/// This crate's error in the words of dd-core's [`TensorStore`](dd_core::TensorStore).
fn into_core(error: Error) -> dd_core::Error {
    match error {
        Error::Core(error) => error,
        Error::DiskFull { path, needed, available, .. } => {
            dd_core::Error::OutOfMemory { place: path.display().to_string(), needed, available }
        }
        Error::Corrupt { path, tensor, reason } => {
            dd_core::Error::Corrupt { name: tensor, place: path.display().to_string(), reason }
        }
        Error::Io { operation, path, source, .. } => dd_core::Error::Io { operation, path, source },
        other => dd_core::Error::library("dd-offload", "store a tensor", other),
    }
}
