//! `deepdim run --prompt`: prompts to texts.

use std::sync::Arc;
use std::time::{Duration, Instant};

use deep_dimensions::core::{Budget, Bytes, Holder, Reservation};
use deep_dimensions::offload::checkpoint::Checkpoint;

use super::config::ModelConfig;
use super::plan::RunPlan;
use super::prompt::Prompts;
use super::report::{BlockReport, GenerateReport, Paging, Text};
use super::session::{Block, Session};
use super::weights::{self, Holding, WeightsSource};
use super::{model, requirements};
use crate::args::RunArgs;
use crate::error::{CliError, Result};
use crate::plot::{self, Run};
use crate::process::{self, ProcessSample};
use crate::report::Memory;
use crate::resolve::{self, ModelFiles};
use crate::timeline::Sampler;
use crate::{heap, warm};

/// Runs the command; `told` is given the text of a lone prompt piece by piece, as it comes.
///
/// # Errors
/// Every kind of [`CliError`].
pub fn run(args: &RunArgs, told: &mut dyn FnMut(&str)) -> Result<GenerateReport> {
    let sampling = args.generation.sampling();
    sampling.check()?;
    let files = resolve::resolve(&args.model, args.cache.as_deref())?;
    let config = ModelConfig::read(&files.folder)?;
    if !config.family.generates() {
        let problem = format!("a {} model writes no text", config.family);
        return Err(CliError::input(config.place(), problem, "give --text to embed texts with it"));
    }
    let given = &args.generation;
    let prompts = Prompts::read(&files.folder, &config, &given.prompts, &given.prompt_tokens, given.raw)?;
    heap::trim();
    warm::up()?;
    let before = process::sample();
    let sampler = args.timeline.is_some().then(Sampler::start);
    let started = Instant::now();
    let budget = Budget::new("memory", args.memory.unwrap_or(Bytes::MAX));
    if let Some(sampler) = &sampler {
        sampler.watch(&budget);
    }
    let opened = Opened::open(&config, &files, args, &budget, &prompts.lengths())?;
    let open_seconds = started.elapsed().as_secs_f64();
    let most = given.max_tokens;
    let mut session = Session { model: opened.model, sampling, eos: prompts.eos.clone(), most };
    let texts = vec![None; prompts.all.len()];
    let mut run = Running { prompts: &prompts, texts, blocks: Vec::new(), first: None };
    opened.plan.blocks.iter().try_for_each(|block| run.block(&mut session, block, told))?;
    drop(session);
    let memory = Memory::new(opened.stored, budget.usage().peak, args.memory, &before);
    if let (Some(path), Some(sampler)) = (&args.timeline, sampler) {
        let moments = sampler.stop();
        let drawn = Run { name: "", moments: &moments, accounted: true };
        plot::draw(path, &format!("Memory while {} writes", args.model), &[drawn], args.memory)?;
    }
    drop(opened.held);
    run.report(args, &config, started, (open_seconds, opened.paging), memory)
}

/// A model that is ready to write, and what it stands on.
struct Opened {
    model: Box<dyn model::Model>,
    plan: RunPlan,
    paging: Paging,
    stored: Bytes,
    held: (Box<dyn WeightsSource>, [Reservation; 2]),
}

impl Opened {
    /// Plans, reserves what the model and its states will take, and gives the weights the rest.
    fn open(
        config: &ModelConfig,
        files: &ModelFiles,
        args: &RunArgs,
        budget: &Budget,
        lengths: &[usize],
    ) -> Result<Self> {
        let checkpoint = Arc::new(Checkpoint::open(&files.checkpoint)?);
        let required = requirements::check(config, &checkpoint)?;
        let holding = Holding::of(args.memory, args.unmanaged);
        let needs = weights::needs(&checkpoint, &required, holding)?;
        let plan = RunPlan::make(config, lengths, args.generation.max_tokens, needs, budget.limit())?;
        let tables = budget.reserve(plan.tables, &Holder::new("tables"))?;
        let states = budget.reserve(plan.activations, &Holder::new("activations"))?;
        let source = weights::open(files, &checkpoint, &required, budget, holding)?;
        let model = model::open(config, &source.var_builder(), plan.positions)?;
        let mut paging = source.paging(budget.limit())?;
        paging.least_budget = (holding == Holding::Paged).then_some(plan.least);
        Ok(Self { model, paging, plan, stored: checkpoint.total_bytes(), held: (source, [tables, states]) })
    }
}

/// What has been written so far.
struct Running<'a> {
    prompts: &'a Prompts,
    texts: Vec<Option<Text>>,
    blocks: Vec<BlockReport>,
    first: Option<Instant>,
}

impl Running<'_> {
    fn block(&mut self, session: &mut Session, block: &[usize], told: &mut dyn FnMut(&str)) -> Result<()> {
        let before: ProcessSample = process::sample();
        let started = Instant::now();
        let prompts = self.prompts;
        let rows: Vec<(usize, &[u32])> = block
            .iter()
            .filter_map(|number| Some((*number, prompts.all.get(*number)?.tokens.as_slice())))
            .collect();
        let mut stream =
            prompts.tokenizer.as_ref().filter(|_| prompts.all.len() == 1).map(|t| t.decode_stream(true));
        let mut shown = String::new();
        let mut on_token = |_: usize, token: u32| {
            // What the stream cannot say yet, it says with a later token; what it never says comes at the end.
            if let Some(Ok(Some(piece))) = stream.as_mut().map(|stream| stream.step(token)) {
                told(&piece);
                shown.push_str(&piece);
            }
        };
        let done = session.write(&rows, &mut on_token)?;
        drop(stream);
        self.first.get_or_insert(done.first);
        let read =
            process::sample().bytes_read.zip(before.bytes_read).map(|(now, then)| now.saturating_sub(then));
        self.blocks.push(BlockReport::of(&rows, &done, started, read));
        self.keep(&rows, done)?;
        if let (1, Some(Some(text))) = (prompts.all.len(), self.texts.first()) {
            let text = text.text.as_deref().unwrap_or_default();
            told(text.strip_prefix(shown.as_str()).unwrap_or_default());
        }
        Ok(())
    }

    fn keep(&mut self, rows: &[(usize, &[u32])], done: Block) -> Result<()> {
        for ((number, prompt), written) in rows.iter().zip(done.written) {
            let text = self.prompts.decode(&written.tokens)?;
            let given = self.prompts.all.get(*number).and_then(|prompt| prompt.text.clone());
            if let Some(place) = self.texts.get_mut(*number) {
                let (tokens, finish) = (written.tokens, written.finish);
                *place = Some(Text { prompt: given, prompt_tokens: prompt.len(), text, tokens, finish });
            }
        }
        Ok(())
    }

    fn report(
        self,
        args: &RunArgs,
        config: &ModelConfig,
        started: Instant,
        (open_seconds, paging): (f64, Paging),
        memory: Memory,
    ) -> Result<GenerateReport> {
        let seconds = |duration: Duration| duration.as_secs_f64();
        let (steps, stepping) = self
            .blocks
            .iter()
            .fold((0, 0.0), |(steps, seconds), block| (steps + block.steps, seconds + block.step_seconds));
        let actual = (steps > 0).then(|| stepping / steps as f64);
        let texts: Vec<Text> = self.texts.into_iter().flatten().collect();
        let tokens: usize = texts.iter().map(|text| text.tokens.len()).sum();
        let writing: f64 = self.blocks.iter().map(|block| block.seconds).sum();
        Ok(GenerateReport {
            model: args.model.clone(),
            family: config.family.to_string(),
            chat: self.prompts.chat,
            texts,
            tokens,
            tokens_per_second: if writing > 0.0 { tokens as f64 / writing } else { 0.0 },
            open_seconds,
            seconds_to_first_token: self.first.map(|first| seconds(first.duration_since(started))),
            blocks: self.blocks,
            paging: Paging { seconds_per_token: actual, ..paging },
            memory,
        })
    }
}
