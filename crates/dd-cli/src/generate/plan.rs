//! [`RunPlan`]: which prompts go together and what a run takes, decided before anything is read; and `deepdim plan`
//! for a model that writes.

use std::sync::Arc;

use deep_dimensions::core::{Budget, Bytes, Holder};
use deep_dimensions::offload::checkpoint::Checkpoint;
use serde::Serialize;

use super::activations::{self, Work};
use super::config::ModelConfig;
use super::report::Paging;
use super::requirements::Required;
use super::weights::{self, Holding, Needs};
use super::{prompt, requirements};
use crate::args::PlanArgs;
use crate::error::{CliError, Result};
use crate::resolve::ModelFiles;

/// Blocks of prompts, and the bytes of a run within a limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RunPlan {
    /// Numbers of the prompts of each block: all of one length, and as many as fit.
    pub blocks: Vec<Vec<usize>>,
    /// The most new tokens of each prompt.
    pub new: usize,
    /// How many positions the model is made for.
    pub positions: usize,
    /// What the model holds for itself as long as it is open.
    pub tables: Bytes,
    /// What the largest block takes, and loading, which comes before.
    pub activations: Bytes,
    /// The least that all of it takes, with one prompt at a time.
    pub least: Bytes,
}

impl RunPlan {
    /// The plan for prompts of these lengths in tokens, for a model whose weights need `needs`.
    ///
    /// Larger blocks are better: a pass reads the weights once for all of them. But weights that stay are not read at
    /// all. So of what is left beside the weights' least, blocks get what the weights cannot use, and at least half.
    ///
    /// # Errors
    /// [`CliError::CannotFit`] with the least limit that would do; [`CliError::Input`] where a text would be longer
    /// than the model knows.
    pub fn make(
        config: &ModelConfig,
        lengths: &[usize],
        new: usize,
        needs: Needs,
        limit: Bytes,
    ) -> Result<Self> {
        let positions = lengths.iter().copied().max().unwrap_or(1).saturating_add(new);
        super::model::check_positions(config, positions)?;
        let tables = activations::tables(config, positions);
        let peak = |block: &[usize]| {
            let prompt = block.first().and_then(|number| lengths.get(*number)).copied().unwrap_or(1);
            activations::peak(config, positions, Work { batch: block.len(), prompt, new })
        };
        let groups = prompt::blocks(lengths);
        let alone =
            groups.iter().map(|group| peak(group.get(..1).unwrap_or_default())).max().unwrap_or_default();
        let least = needs.least + tables + alone.max(needs.loading);
        if least > limit {
            return Err(too_small(config, positions, new, least, limit));
        }
        let room = limit.saturating_sub(needs.least + tables);
        // Half of it, where the weights could use the other half as well.
        let room = room.saturating_sub(needs.more).max(Bytes(room.0 / 2));
        let blocks: Vec<Vec<usize>> = groups.iter().flat_map(|group| split(group, room, &peak)).collect();
        let most = blocks.iter().map(|block| peak(block)).max().unwrap_or_default();
        Ok(Self { blocks, new, positions, tables, activations: most.max(needs.loading), least })
    }
}

fn too_small(config: &ModelConfig, positions: usize, new: usize, least: Bytes, limit: Bytes) -> CliError {
    let prompt = positions.saturating_sub(new);
    CliError::CannotFit {
        what: format!("the {} model with a prompt of {prompt} tokens and {new} new ones", config.family),
        needed: least,
        available: limit,
        remedy: format!("give at least --memory {}, or fewer --max-tokens", least.0),
    }
}

/// Even parts of a group, the fewest that fit.
fn split(group: &[usize], room: Bytes, peak: &dyn Fn(&[usize]) -> Bytes) -> Vec<Vec<usize>> {
    let fits = |count: usize| peak(group.get(..count).unwrap_or_default()) <= room;
    let parts = |count: &usize| group.len().div_ceil(*count);
    let count = (1..=group.len()).map(|count| parts(&count)).find(|count| fits(*count)).unwrap_or(1);
    group.chunks(count.max(1)).map(<[usize]>::to_vec).collect()
}

/// What `deepdim plan` reports for a model that writes; `--json` prints it.
#[derive(Debug, Serialize)]
pub struct GeneratePlan {
    /// MODEL as given.
    pub model: String,
    /// Which model code would run.
    pub family: String,
    /// What `--memory` allows.
    pub limit: Bytes,
    /// All weights, as stored.
    pub weights: Bytes,
    /// All weights, as the model has them in memory.
    pub weights_in_memory: Bytes,
    /// Tokens of the prompt that is planned for.
    pub tokens: usize,
    /// What it takes.
    pub plan: RunPlan,
    /// What stays and what streams.
    pub paging: Paging,
}

/// Plans a run of one prompt. Reads headers only.
///
/// # Errors
/// [`CliError::CannotFit`] with the least limit that would do; files that cannot be used.
pub fn plan(args: &PlanArgs, files: &ModelFiles, config: &ModelConfig) -> Result<GeneratePlan> {
    let checkpoint = Arc::new(Checkpoint::open(&files.checkpoint)?);
    let required = requirements::check(config, &checkpoint)?;
    let needs = weights::needs(&checkpoint, &required, Holding::Paged)?;
    let plan = RunPlan::make(config, &[args.tokens.max(1)], args.max_tokens, needs, args.memory)?;
    let paging = paging(args, files, config, &checkpoint, &required, &plan)?;
    Ok(GeneratePlan {
        model: args.model.clone(),
        family: config.family.to_string(),
        limit: args.memory,
        weights: checkpoint.total_bytes(),
        weights_in_memory: weights::bytes(&required),
        tokens: args.tokens,
        paging: Paging { least_budget: Some(plan.least), ..paging },
        plan,
    })
}

/// Makes the model over paged weights, which reads none, and asks what would stay.
fn paging(
    args: &PlanArgs,
    files: &ModelFiles,
    config: &ModelConfig,
    checkpoint: &Arc<Checkpoint>,
    required: &[Required],
    plan: &RunPlan,
) -> Result<Paging> {
    let budget = Budget::new("memory", args.memory);
    let _rest = budget.reserve(plan.tables + plan.activations, &Holder::new("activations"))?;
    let source = weights::open(files, checkpoint, required, &budget, Holding::Paged)?;
    let model = super::model::open(config, &source.var_builder(), plan.positions)?;
    let paging = source.paging(args.memory);
    drop(model);
    paging
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate::{Family, tiny};

    #[test]
    fn blocks_fit_are_as_large_as_they_can_be_and_the_least_is_enough() {
        let needs = Needs { least: Bytes::mib(1), more: Bytes(0), loading: Bytes(0) };
        let lengths = [9, 9, 4, 9, 9, 9, 4, 9];
        for family in Family::ALL {
            let config = ModelConfig::parse(&tiny::config(family, 64, 3).to_string(), "c").unwrap();
            let plan = |limit| RunPlan::make(&config, &lengths, 5, needs, limit);
            let whole = plan(Bytes::MAX).unwrap();
            assert_eq!(whole.blocks, [vec![0, 1, 3, 4, 5, 7], vec![2, 6]], "{family}");
            let tight = plan(whole.least).unwrap();
            assert!(tight.blocks.iter().all(|block| block.len() == 1 || *block == [2, 6]), "{family}");
            assert!(plan(whole.least.saturating_sub(Bytes(1))).is_err(), "{family}");
            for kib in [1100, 1200, 1400, 1800, 2600] {
                let Ok(plan) = plan(Bytes::kib(kib)) else { continue };
                let mut all = plan.blocks.concat();
                all.sort_unstable();
                assert_eq!(all, (0..8).collect::<Vec<_>>());
                assert!(needs.least + plan.tables + plan.activations <= Bytes::kib(kib), "{family}");
            }
        }
    }

    #[test]
    fn parts_are_even() {
        let peak = |block: &[usize]| Bytes(block.len() as u64);
        let sizes = |room| split(&[7; 10], Bytes(room), &peak).iter().map(Vec::len).collect::<Vec<_>>();
        assert_eq!(sizes(99), [10]);
        assert_eq!(sizes(9), [5, 5]);
        assert_eq!(sizes(4), [4, 4, 2]);
        assert_eq!(sizes(0), [1; 10]);
    }
}
