//! [`MemorySummary`]: where everything is and what was done so far, as a value and as a table.

use std::fmt;
use std::time::Duration;

use dd_core::{Backend, Bytes, Tier, Usage};
use serde::Serialize;

use super::{Inner, MemoryManager};

/// Where everything is and what was done so far.
#[derive(Clone, Debug, Serialize)]
pub struct MemorySummary {
    /// The budget, by holder.
    pub budget: Usage,
    /// The tiers, nearest first.
    pub tiers: Vec<TierSummary>,
    /// The modules, in the order in which they were wrapped.
    pub modules: Vec<ModuleSummary>,
    /// How often a module was asked for.
    pub acquires: u64,
    /// How often it was there.
    pub ready: u64,
    /// How long threads waited for modules, added up.
    pub waited: Duration,
    /// Bytes read from checkpoints.
    pub read: Bytes,
    /// Bytes read in the last whole pass.
    pub read_last_pass: Bytes,
    /// Parameters brought into place.
    pub loads: u64,
    /// Parameters that left.
    pub offloads: u64,
    /// Whole passes seen.
    pub passes: u64,
}

/// One tier.
#[derive(Clone, Debug, Serialize)]
pub struct TierSummary {
    /// Which.
    pub tier: Tier,
    /// What is there.
    pub used: Bytes,
    /// What may be there. For the disk, both figures are those of the spill store: files are the user's own.
    pub limit: Bytes,
    /// Modules that are there as a whole.
    pub modules: usize,
}

/// One module.
#[derive(Clone, Debug, Serialize)]
pub struct ModuleSummary {
    /// Its name.
    pub name: String,
    /// Its layer type.
    pub kind: String,
    /// The nearest tier that has all of it.
    pub tier: Tier,
    /// All of its bytes.
    pub bytes: Bytes,
    /// Those in the tier that computes.
    pub in_place: Bytes,
    /// How often it was used.
    pub uses: u64,
    /// The mean time of a use, if there was one.
    pub compute: Option<Duration>,
}

impl<B: Backend> MemoryManager<B> {
    /// Where everything is and what was done so far.
    #[must_use]
    pub fn memory_summary(&self) -> MemorySummary {
        self.inner.summary()
    }
}

impl<B: Backend> Inner<B> {
    fn summary(&self) -> MemorySummary {
        let (modules, stats) = {
            let state = self.lock();
            let row = |unit: &super::state::Unit<B>| ModuleSummary {
                name: unit.name.to_string(),
                kind: unit.kind.clone(),
                tier: unit.parts.iter().map(|part| part.tier(self.near)).max().unwrap_or(self.near),
                bytes: unit.bytes(),
                in_place: unit.near_bytes(),
                uses: unit.uses,
                compute: unit.compute,
            };
            (state.units.iter().map(row).collect::<Vec<_>>(), state.stats)
        };
        let near = self.near_budget.usage();
        let mut tiers = vec![(self.near, near.used, Some(near.limit))];
        if let Some((used, limit)) = self.stores.host_usage() {
            tiers.push((Tier::Host, used, Some(limit)));
        }
        if let Some((used, limit)) = self.stores.compressed_usage() {
            tiers.push((Tier::Compressed, used, Some(limit)));
        }
        tiers.push((Tier::Disk, self.stores.spilled(), None));
        let count = |tier| modules.iter().filter(|module| module.tier == tier).count();
        let tiers = tiers
            .into_iter()
            .map(|(tier, used, limit)| {
                let limit =
                    limit.map_or(*self.config.max_disk_usage(), |limit| limit.min(self.budget.limit()));
                TierSummary { tier, used, limit, modules: count(tier) }
            })
            .collect();
        MemorySummary {
            budget: self.budget.usage(),
            tiers,
            modules,
            acquires: stats.acquires,
            ready: stats.ready,
            waited: stats.waited,
            read: stats.read,
            read_last_pass: stats.last_pass_read,
            loads: stats.loads,
            offloads: stats.offloads,
            passes: stats.passes,
        }
    }
}

impl fmt::Display for MemorySummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let budget = &self.budget;
        writeln!(
            f,
            "budget {:?}: {} of {} used, {} at most",
            budget.name, budget.used, budget.limit, budget.peak
        )?;
        for holder in &budget.holders {
            writeln!(f, "  {:<20} {:>12}  at most {:>12}", holder.name, holder.used, holder.peak)?;
        }
        writeln!(f, "{:<14} {:>12} {:>12} {:>8}", "tier", "used", "limit", "modules")?;
        for tier in &self.tiers {
            writeln!(f, "{:<14} {:>12} {:>12} {:>8}", tier.tier, tier.used, tier.limit, tier.modules)?;
        }
        let width = self.modules.iter().map(|module| module.name.chars().count()).max().unwrap_or(0).max(6);
        writeln!(
            f,
            "{:<width$} {:<10} {:<12} {:>12} {:>12} {:>6}",
            "module", "kind", "tier", "bytes", "in place", "uses"
        )?;
        for module in &self.modules {
            let ModuleSummary { name, kind, tier, bytes, in_place, uses, .. } = module;
            writeln!(f, "{name:<width$} {kind:<10} {tier:<12} {bytes:>12} {in_place:>12} {uses:>6}")?;
        }
        let Self { acquires, ready, waited, passes, read, read_last_pass, .. } = self;
        write!(
            f,
            "{acquires} uses, {ready} without waiting, {waited:.1?} waited; {passes} passes, {read} read, {read_last_pass} in the last pass"
        )
    }
}
