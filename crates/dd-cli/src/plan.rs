//! `deepdim plan`: what would stay in memory, what would stream, and how long a pass would take.

use deep_dimensions::core::Bytes;
use deep_dimensions::offload::plan::ResidencyPlan;
use serde::Serialize;

use crate::args::PlanArgs;
use crate::engine::Engine;
use crate::error::{CliError, Result};
use crate::generate::ModelConfig;
use crate::generate::plan::GeneratePlan;
use crate::resolve::ModelFiles;
use crate::{activations, disk, generate, resolve, warm};

/// What a plan reports; `--json` prints it.
#[derive(Debug, Serialize)]
pub struct PlanReport {
    /// MODEL as given.
    pub model: String,
    /// What `--memory` allows.
    pub limit: Bytes,
    /// All weights, as stored.
    pub weights: Bytes,
    /// Tokens of the pass that is planned.
    pub tokens: usize,
    /// What its activations take.
    pub activations: Bytes,
    /// What the disk gives, in bytes per second, where it can be measured.
    pub bandwidth: Option<f64>,
    /// The plan.
    pub plan: ResidencyPlan,
}

/// A plan for a model that embeds, or for one that writes.
#[derive(Debug)]
pub enum Planned {
    /// An encoder of managed modules.
    Embeds(PlanReport),
    /// A language model.
    Writes(GeneratePlan),
}

/// Runs the command. Reads headers, and the disk's bandwidth where it is not remembered; no weights.
///
/// # Errors
/// [`CliError::CannotFit`] with the least limit that would do; files that cannot be used.
pub fn plan(args: &PlanArgs) -> Result<Planned> {
    let files = resolve::resolve(&args.model, args.cache.as_deref())?;
    let config = ModelConfig::read(&files.folder)?;
    if config.family.generates() {
        return Ok(Planned::Writes(generate::plan::plan(args, &files, &config)?));
    }
    embedding(args, &files).map(Planned::Embeds)
}

fn embedding(args: &PlanArgs, files: &ModelFiles) -> Result<PlanReport> {
    let mut engine = Engine::managed(files, args.memory)?;
    engine.prepare(&[args.tokens])?;
    let bandwidth = disk::bandwidth(files, args.memory)?;
    if let Some(bandwidth) = bandwidth {
        warm::up()?;
        engine.suppose(bandwidth, args.tokens)?;
    }
    let Some(plan) = engine.plan()? else {
        return Err(CliError::input("plan", "the model is not managed", "report this"));
    };
    let activations = activations::peak(&engine.config, &[args.tokens]);
    let (model, limit, weights, tokens) = (args.model.clone(), args.memory, engine.weights, args.tokens);
    Ok(PlanReport { model, limit, weights, tokens, activations, bandwidth, plan })
}
