//! [`MemoryInfo`]: what counts as available, and which figure it came from.

use dd_core::{Bytes, MemorySample, Tier};
use serde::{Deserialize, Serialize};

/// One figure that was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Figure {
    /// Who reported it: a provider, the backend, or the budget's path.
    pub source: String,
    /// Of which tier.
    pub tier: Tier,
    /// What was reported.
    pub sample: MemorySample,
}

/// Where memory stands for tensors of one tier. The least of all figures is what is available.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct MemoryInfo {
    /// Where tensors are made.
    pub tier: Tier,
    /// All figures: of the backend, of every provider, and of the budget.
    pub figures: Vec<Figure>,
    /// The least available among them.
    pub available: Bytes,
    /// What sizes are fitted into: available × (threshold − margin).
    pub target: Bytes,
}

impl MemoryInfo {
    /// The figure that binds.
    #[must_use]
    pub fn bound_by(&self) -> Option<&Figure> {
        self.figures.iter().min_by_key(|figure| figure.sample.available)
    }
}
