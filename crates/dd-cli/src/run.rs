//! `deepdim run`: texts to embeddings and their similarity.

use std::time::Instant;

use deep_dimensions::core::{Bytes, Holder};
use deep_dimensions::offload::plan::ResidencyPlan;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::args::RunArgs;
use crate::bert::{Config, Ragged};
use crate::engine::Engine;
use crate::error::Result;
use crate::plot::{self, Run};
use crate::pooling::{Pooling, cosine};
use crate::report::{Memory, PassReport};
use crate::timeline::Sampler;
use crate::{disk, heap, process, resolve, text, warm};

/// What a run reports; `--json` prints it.
#[derive(Debug, Serialize)]
pub struct RunReport {
    /// MODEL as given.
    pub model: String,
    /// The texts as given.
    pub texts: Vec<String>,
    /// Tokens of each text.
    pub tokens: Vec<usize>,
    /// What followed the encoder.
    pub pooling: Pooling,
    /// One vector per text.
    pub embeddings: Vec<Vec<f32>>,
    /// Cosines between the vectors of all texts.
    pub similarity: Vec<Vec<f32>>,
    /// What stays in memory and what streams; nothing where all weights are held.
    pub plan: Option<ResidencyPlan>,
    /// What the disk gives, in bytes per second, where it was measured.
    pub bandwidth: Option<f64>,
    /// Time and bytes of each batch.
    pub passes: Vec<PassReport>,
    /// What was held.
    pub memory: Memory,
}

/// Runs the command; `announce` is told the plan before anything is read.
///
/// # Errors
/// Every kind of [`crate::error::CliError`].
pub fn run(args: &RunArgs, announce: impl Fn(&ResidencyPlan)) -> Result<RunReport> {
    let files = resolve::resolve(&args.model, args.cache.as_deref())?;
    let config = Config::read(&files.folder.join("config.json"))?;
    let pooling = Pooling::read(&files.folder)?;
    let sentences = text::tokenize(&files.folder, &config, &args.texts)?;
    let lengths: Vec<usize> = sentences.iter().map(Vec::len).collect();
    heap::trim();
    warm::up()?;
    let managed = args.memory.filter(|_| !args.unmanaged);
    let bandwidth = managed.map(|limit| disk::bandwidth(&files, limit)).transpose()?.flatten();
    let before = process::sample();
    let sampler = args.timeline.is_some().then(Sampler::start);
    let mut engine = Engine::open(&files, args.memory, args.unmanaged)?;
    if let Some(sampler) = &sampler {
        sampler.watch(&engine.budget);
    }
    let results = Bytes::of(4 * pooling.modes.len() * config.hidden_size * lengths.len());
    let kept = engine.budget.reserve(results, &Holder::new("results"))?;
    let mut embeddings = Vec::with_capacity(sentences.len());
    let mut passes = Vec::new();
    let batches = engine.prepare(&lengths)?;
    if let Some(bandwidth) = bandwidth {
        engine.suppose(bandwidth, lengths.iter().sum())?;
    }
    let plan = engine.plan()?;
    if let Some(plan) = &plan {
        announce(plan);
    }
    for range in batches {
        let batch = Ragged::new(sentences.get(range).unwrap_or_default().iter().map(Vec::as_slice));
        let bar = progress(config.num_hidden_layers);
        let start = Started::now();
        let vectors = engine
            .pass(&batch, &mut |done| bar.set_position(done as u64), |states| pooling.pool(states, &batch))?;
        bar.finish_and_clear();
        passes.push(start.report(batch.ids().len()));
        embeddings.extend(vectors);
    }
    drop(kept);
    let memory = Memory::of(&engine, args.memory, &before);
    if let (Some(path), Some(sampler)) = (&args.timeline, sampler) {
        let moments = sampler.stop();
        let run = Run { name: "", moments: &moments, accounted: true };
        let name =
            files.folder.file_name().map_or_else(|| args.model.clone().into(), |name| name.to_string_lossy());
        plot::draw(path, &format!("Memory while running {name}"), &[run], args.memory)?;
    }
    let similarity = similarities(&embeddings);
    let (model, texts) = (args.model.clone(), args.texts.clone());
    Ok(RunReport {
        model,
        texts,
        tokens: lengths,
        pooling,
        embeddings,
        similarity,
        plan,
        bandwidth,
        passes,
        memory,
    })
}

/// When a pass began, and what had been read by then.
pub(crate) struct Started {
    time: Instant,
    read: Option<Bytes>,
}

impl Started {
    pub(crate) fn now() -> Self {
        Self { time: Instant::now(), read: process::sample().bytes_read }
    }

    pub(crate) fn report(self, tokens: usize) -> PassReport {
        let seconds = self.time.elapsed().as_secs_f64();
        let read = process::sample().bytes_read.zip(self.read).map(|(now, then)| now.saturating_sub(then));
        PassReport { tokens, seconds, bytes_read: read }
    }
}

fn similarities(vectors: &[Vec<f32>]) -> Vec<Vec<f32>> {
    vectors.iter().map(|a| vectors.iter().map(|b| cosine(a, b)).collect()).collect()
}

/// A bar over layers, on standard error, and only where that is a terminal.
fn progress(layers: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:40} layer {pos} of {len}, {elapsed}");
    let bar = ProgressBar::new(layers as u64);
    style.map_or_else(|_| bar.clone(), |style| bar.clone().with_style(style))
}
