//! What paging did: [`Stats`], and what it means to do: [`Plan`].

use dd_core::Bytes;
use serde::Serialize;

use crate::layout::Layout;

/// What was counted since the memory was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Stats {
    /// Touches of absent or held-back units.
    pub faults: u64,
    /// Faults whose unit was not there yet.
    pub late: u64,
    /// Faults whose unit nobody had begun to read.
    pub demanded: u64,
    /// Units filled.
    pub filled: u64,
    /// Units moved out again.
    pub evicted: u64,
    /// Units read ahead and given up before anything touched them.
    pub unused: u64,
    /// Units copied because their pages could not be moved.
    pub copied: u64,
    /// Bytes read from files.
    pub bytes_read: u64,
    /// Bytes handed to sources to be kept.
    pub bytes_stored: u64,
    /// Passes seen.
    pub passes: u64,
}

/// What stays in memory and what streams through it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Plan {
    /// How memory is cut.
    pub layout: Layout,
    /// All ranges, in whole units.
    pub registered: Bytes,
    /// What a pass uses, as far as is known.
    pub used: Bytes,
    /// What of that stays.
    pub resident: Bytes,
    /// What of that is filled in every pass.
    pub streamed: Bytes,
    /// Frames for what passes through.
    pub staging: Bytes,
    /// What all weights take where they are packed; zero where they are not.
    pub packed: Bytes,
    /// Memory for packed bytes that are kept once they were read.
    pub kept: Bytes,
    /// How long a pass should take by what was measured, where paging is what it waits for; nothing where it was not.
    pub predicted_seconds_per_pass: Option<f64>,
    /// Everything that is accounted for: frames, the loaders' scratch and what is kept packed.
    pub memory: Bytes,
    /// The least memory with which paging makes progress.
    pub least: Bytes,
    /// The order of use was seen, rather than guessed.
    pub learned: bool,
}
