//! [`ZarrOptions`]: how windows are written.

use serde::{Deserialize, Serialize};

/// When a window is flushed to the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Flush {
    /// In each `put`, before the window gets its name: a power cut may lose the windows since the last `sync`, and leaves no
    /// half one. It costs a flush per window.
    #[default]
    EachWindow,
    /// In `sync` only. A window still outlives the end of the program; a power cut may leave those since the last `sync`
    /// corrupt, which is then told.
    OnSync,
}

/// How windows are written. Inner chunks are decided by the program that makes a tensor; what is there is read as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZarrOptions {
    /// zstd's level, 1 to 9. More takes longer and more memory, and stores less.
    pub level: i32,
    /// The shape of the inner chunks of a window, one entry per dimension, each a divisor of the window's: the window is
    /// then a shard. A tensor whose windows it does not divide, or divides into less than 256 bytes, is written without.
    pub inner: Option<Vec<usize>>,
    /// When windows are flushed.
    pub flush: Flush,
}

impl Default for ZarrOptions {
    /// Level 1, no inner chunks, flushed window by window.
    fn default() -> Self {
        Self { level: 1, inner: None, flush: Flush::default() }
    }
}

/// What of the options belongs to a tensor, as it is stored with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Encoding {
    pub(super) level: i32,
    /// In elements as they are stored; empty without inner chunks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) inner: Vec<u64>,
}
