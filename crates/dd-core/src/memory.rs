//! [`MemoryProvider`]: who reports how much memory there is, tier by tier.

use crate::bytes::Bytes;
use crate::error::{Error, Result};
use crate::tier::Tier;

/// One reading of one tier. The three figures are what the source reports; `available` may be less than
/// `total − used` (a container's limit) or more (caches that can be given back).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct MemorySample {
    /// How much there is.
    pub total: Bytes,
    /// How much is taken.
    pub used: Bytes,
    /// How much could be taken now without pushing anything out.
    pub available: Bytes,
}

impl MemorySample {
    /// The share of the total that is not available, in `0..=1`.
    #[must_use]
    pub fn used_fraction(&self) -> f64 {
        self.total.saturating_sub(self.available).fraction_of(self.total).clamp(0.0, 1.0)
    }
}

/// Reports memory. Implementations only measure; what follows from a figure is decided elsewhere.
pub trait MemoryProvider: Send + Sync {
    /// The tiers it reports, nearest first, without repeats.
    fn tiers(&self) -> &[Tier];

    /// Reads one tier now.
    ///
    /// # Errors
    /// [`Error::UnsupportedTier`] for a tier not in [`tiers`](Self::tiers); otherwise what the source said.
    fn sample(&self, tier: Tier) -> Result<MemorySample>;
}

/// The reference provider: fixed figures, for tests and for budgets that are given rather than measured.
#[derive(Clone, Debug, Default)]
pub struct FixedMemory {
    tiers: Vec<Tier>,
    samples: Vec<MemorySample>,
}

impl FixedMemory {
    /// Reports these samples; of several for one tier, the last counts.
    #[must_use]
    pub fn new(rows: impl IntoIterator<Item = (Tier, MemorySample)>) -> Self {
        let by_tier: std::collections::BTreeMap<_, _> = rows.into_iter().collect();
        let (tiers, samples) = by_tier.into_iter().unzip();
        Self { tiers, samples }
    }
}

impl MemoryProvider for FixedMemory {
    fn tiers(&self) -> &[Tier] {
        &self.tiers
    }

    fn sample(&self, tier: Tier) -> Result<MemorySample> {
        let row = self.tiers.iter().zip(&self.samples).find(|(t, _)| **t == tier);
        row.map(|(_, sample)| *sample).ok_or_else(|| unsupported("fixed memory", tier, &self.tiers))
    }
}

/// The error for a tier that is not among `tiers`.
#[must_use]
pub fn unsupported(backend: &str, tier: Tier, tiers: &[Tier]) -> Error {
    let names: Vec<String> = tiers.iter().map(Tier::to_string).collect();
    let available = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    Error::UnsupportedTier { backend: backend.to_owned(), tier, available }
}
