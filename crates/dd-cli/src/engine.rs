//! [`Engine`]: a model that is ready to run, with the budget that its bytes are taken from.
//!
//! Every byte of a run has its reservation: weights while they are in memory, the blocks they are read through,
//! activations before a pass begins, results as long as they are kept. What the process needs for itself is the
//! constant, measured before.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::{DType, Tensor};
use candle_nn::{VarBuilder, layer_norm};
use deep_dimensions::candle::CandleBackend;
use deep_dimensions::candle::managed::{ManagedEmbedding, ManagedModel, ManagedModule};
use deep_dimensions::core::{Budget, Bytes, Device, Holder, Reservation};
use deep_dimensions::offload::MemoryManager;
use deep_dimensions::offload::checkpoint::Checkpoint;
use deep_dimensions::offload::config::MemoryConfig;
use deep_dimensions::offload::manager::block_allowance;
use deep_dimensions::offload::plan::ResidencyPlan;

use crate::activations;
use crate::bert::{Bert, Config, Embed, EncoderLayer, Part, Ragged, prefix_of};
use crate::error::{CliError, Result};
use crate::resolve::ModelFiles;
use crate::weights;

/// The most tokens of one batch, whatever the memory: more gives no more speed.
const MOST_TOKENS: usize = 4096;

/// A model that is ready to run.
pub struct Engine {
    /// The encoder's sizes.
    pub config: Config,
    /// Where its bytes are taken from.
    pub budget: Budget,
    /// Bytes of all weights as they are stored.
    pub weights: Bytes,
    bert: Bert,
    manager: Option<MemoryManager<CandleBackend>>,
    /// Bytes of the largest module once it is F32, where it is stored as something else.
    widened: Bytes,
    held: Vec<Reservation>,
}

impl Engine {
    /// The model within a limit, its weights managed; without a limit, or where `unmanaged` asks for it, all weights
    /// are held in memory.
    ///
    /// # Errors
    /// As [`held`](Self::held) and [`managed`](Self::managed).
    pub fn open(files: &ModelFiles, limit: Option<Bytes>, unmanaged: bool) -> Result<Self> {
        match limit {
            Some(limit) if !unmanaged => Self::managed(files, limit),
            limit => Self::held(files, limit),
        }
    }

    /// Reads all weights into memory; with a limit, weights and activations together stay within it.
    ///
    /// # Errors
    /// [`CliError::CannotFit`] where the weights alone are more; files that cannot be used.
    pub fn held(files: &ModelFiles, limit: Option<Bytes>) -> Result<Self> {
        let config = Config::read(&files.folder.join("config.json"))?;
        let checkpoint = Arc::new(Checkpoint::open(&files.checkpoint)?);
        let budget = Budget::new("memory", limit.unwrap_or(Bytes::MAX));
        let held = budget.reserve(weights::bytes_in_memory(&checkpoint), &Holder::new("weights"))?;
        let prefix = prefix_of(|name| checkpoint.contains(name));
        let vb = weights::builder(&checkpoint, &CandleBackend::new(Device::Cpu)?);
        let vb = if prefix.is_empty() { vb } else { vb.pp(prefix.trim_end_matches('.')) };
        let (bert, weights) = (Bert::held(&vb, &config)?, checkpoint.total_bytes());
        Ok(Self { config, budget, weights, bert, manager: None, widened: Bytes::ZERO, held: vec![held] })
    }

    /// Reads no weight: each layer is a managed module, and the embedding tables are read by rows.
    ///
    /// # Errors
    /// [`CliError::CannotFit`] with the least limit that would do; files that cannot be used.
    pub fn managed(files: &ModelFiles, limit: Bytes) -> Result<Self> {
        let config = Config::read(&files.folder.join("config.json"))?;
        let checkpoint = Arc::new(Checkpoint::open(&files.checkpoint)?);
        let options = MemoryConfig::builder().memory_limit(limit).build()?;
        let manager = MemoryManager::new(CandleBackend::new(Device::Cpu)?, options)?;
        let (budget, weights) = (manager.budget().clone(), checkpoint.total_bytes());
        let widened = widened(&checkpoint);
        let model = ManagedModel::new(checkpoint, manager);
        let bert = managed_bert(&model, &config)?;
        let manager = Some(model.manager().clone());
        Ok(Self { config, budget, weights, bert, manager, widened, held: Vec::new() })
    }

    /// Splits sentences, in order, into batches that fit, and reserves the activations of the largest for all passes
    /// to come. Fewer and larger batches are better: each pass reads what is streamed once.
    ///
    /// # Errors
    /// [`CliError::CannotFit`] with the least limit that would do.
    pub fn prepare(&mut self, lengths: &[usize]) -> Result<Vec<Range<usize>>> {
        let mut room = self.budget.available();
        if let Some(manager) = &self.manager {
            let least = manager.plan()?.least_budget + self.beside_plan(manager);
            room = self.budget.limit().saturating_sub(least + self.widened);
        }
        let taken = self.budget.limit().saturating_sub(room);
        let batches = batches(&self.config, lengths, room, taken).map_err(|error| self.with_blocks(error))?;
        let peak = |batch: &Range<usize>| {
            activations::peak(&self.config, lengths.get(batch.clone()).unwrap_or_default())
        };
        let most = batches.iter().map(peak).max().unwrap_or_default() + self.widened;
        let reserved = match &self.manager {
            Some(manager) => manager.reserve_activations(most)?,
            None => self.budget.reserve(most, &Holder::new("activations"))?,
        };
        self.held.push(reserved);
        Ok(batches)
    }

    /// With more memory the read blocks take more as well: the least that is named must do for them too.
    fn with_blocks(&self, error: CliError) -> CliError {
        let CliError::CannotFit { what, needed, available, remedy } = error else { return error };
        let Some(manager) = &self.manager else {
            return CliError::CannotFit { what, needed, available, remedy };
        };
        let blocks = |limit| block_allowance(manager.config(), limit);
        let rest = needed.saturating_sub(blocks(self.budget.limit()));
        let needed = (0..32).fold(needed, |enough, _| rest + blocks(enough));
        CliError::CannotFit { what, needed, available, remedy }
    }

    /// What is reserved for as long as the model is open and is no part of the plan: the rows' buffers, results.
    fn beside_plan(&self, manager: &MemoryManager<CandleBackend>) -> Bytes {
        let planned = ["weights", "read blocks"];
        let holders = manager.budget().usage().holders;
        holders
            .iter()
            .filter(|holder| !planned.contains(&holder.name.as_str()))
            .map(|holder| holder.used)
            .sum()
    }

    /// What stays and what streams; nothing where all weights are held.
    ///
    /// # Errors
    /// [`CliError::CannotFit`] with the least limit that would do.
    pub fn plan(&self) -> Result<Option<ResidencyPlan>> {
        Ok(self.manager.as_ref().map(MemoryManager::plan).transpose()?)
    }

    /// Tells the plan what to count on before anything was measured: the disk's bandwidth, and the time of one layer,
    /// taken on a layer of zeros with so many tokens.
    ///
    /// # Errors
    /// What the tensor library says.
    pub fn suppose(&self, bandwidth: f64, tokens: usize) -> Result<()> {
        let Some(manager) = &self.manager else { return Ok(()) };
        let took = time_of_layer(&self.config, tokens)?;
        let time = |module: &str| if module.contains("encoder.layer.") { took } else { Duration::ZERO };
        manager.suppose(bandwidth, |module| Some(time(module)));
        Ok(())
    }

    /// One pass, for whose activations [`prepare`](Self::prepare) made room: runs the encoder and hands the states to
    /// `consume`.
    ///
    /// # Errors
    /// What the pass or `consume` says.
    pub fn pass<T>(
        &self,
        batch: &Ragged,
        on_layer: &mut dyn FnMut(usize),
        consume: impl FnOnce(&Tensor) -> Result<T>,
    ) -> Result<T> {
        consume(&self.bert.forward(batch, on_layer)?)
    }
}

/// Bytes of the largest group of tensors once it is F32, if any of it is stored as something else.
fn widened(checkpoint: &Checkpoint) -> Bytes {
    let mut groups = std::collections::BTreeMap::<&str, (Bytes, bool)>::new();
    for (name, location) in checkpoint.tensors() {
        let layer = name.split_once("encoder.layer.").and_then(|(_, rest)| rest.split('.').next());
        if let Some(layer) = layer {
            let (bytes, other) = groups.entry(layer).or_default();
            *bytes += Bytes(location.desc.elements().saturating_mul(4));
            *other |= location.desc.dtype() != deep_dimensions::core::DType::F32;
        }
    }
    groups.values().filter(|(_, other)| *other).map(|(bytes, _)| *bytes).max().unwrap_or_default()
}

fn managed_bert(model: &ManagedModel, config: &Config) -> Result<Bert> {
    let prefix = prefix_of(|name| model.checkpoint().contains(name));
    let table = |name: &str| -> Result<Box<dyn Embed>> {
        Ok(Box::new(model.embedding(&format!("{prefix}embeddings.{name}.weight"))?))
    };
    let (hidden, eps) = (config.hidden_size, config.layer_norm_eps);
    let norm = model.module_as(&format!("{prefix}embeddings.LayerNorm"), DType::F32, move |vb| {
        layer_norm(hidden, eps, vb)
    })?;
    let layer = |index: usize| -> Result<Box<dyn Part<EncoderLayer>>> {
        let own = config.clone();
        let build = move |vb: VarBuilder<'static>| EncoderLayer::load(&vb, &own);
        Ok(Box::new(model.module_as(&format!("{prefix}encoder.layer.{index}"), DType::F32, build)?))
    };
    Ok(Bert {
        words: table("word_embeddings")?,
        positions: table("position_embeddings")?,
        types: table("token_type_embeddings")?,
        norm: Box::new(norm),
        layers: (0..config.num_hidden_layers).map(layer).collect::<Result<_>>()?,
    })
}

impl<M, F: Fn(VarBuilder<'static>) -> candle_core::Result<M>> Part<M> for ManagedModule<F> {
    fn with(&self, run: &mut dyn FnMut(&M) -> candle_core::Result<Tensor>) -> Result<Tensor> {
        ManagedModule::with(self, |part| run(part))
            .map_err(|error| CliError::of_module(&self.handle().name(), error))
    }
}

impl Embed for ManagedEmbedding {
    fn rows(&self, ids: &Tensor) -> Result<Tensor> {
        let rows = Self::rows(self, ids).map_err(|error| CliError::of_module("embeddings", error))?;
        rows.to_dtype(DType::F32).map_err(CliError::tensor("embeddings"))
    }
}

/// The least of three runs of one layer of zeros.
fn time_of_layer(config: &Config, tokens: usize) -> Result<Duration> {
    let failed = || CliError::tensor("a layer of zeros");
    let one = Config { num_hidden_layers: 1, vocab_size: 1, ..config.clone() };
    let vb = VarBuilder::zeros(DType::F32, &candle_core::Device::Cpu);
    let layer = EncoderLayer::load(&vb.pp("encoder.layer.0"), &one).map_err(failed())?;
    let ids = vec![0; tokens.max(1)];
    let batch = Ragged::new([ids.as_slice()]);
    let states = Tensor::zeros((ids.len(), one.hidden_size), DType::F32, &candle_core::Device::Cpu)
        .map_err(failed())?;
    let time = |_| {
        let started = Instant::now();
        layer.forward(&states, &batch).map(|_| started.elapsed()).map_err(failed())
    };
    Ok((0..3).map(time).collect::<Result<Vec<_>>>()?.into_iter().min().unwrap_or_default())
}

/// Splits sentences, in order, into batches whose activations stay within `limit`, beside what is taken already.
///
/// # Errors
/// [`CliError::CannotFit`] where a single sentence needs more.
pub fn batches(config: &Config, lengths: &[usize], limit: Bytes, taken: Bytes) -> Result<Vec<Range<usize>>> {
    let mut all = Vec::new();
    let mut start = 0;
    while start < lengths.len() {
        let rest = lengths.get(start..).unwrap_or_default();
        let fits = |count: &usize| {
            let batch = rest.get(..*count).unwrap_or_default();
            let tokens: usize = batch.iter().sum();
            *count == 1 || (tokens <= MOST_TOKENS && activations::peak(config, batch) <= limit)
        };
        let count = (1..=rest.len()).take_while(fits).last().unwrap_or(1);
        let needed = activations::peak(config, rest.get(..count).unwrap_or_default());
        if needed > limit {
            return Err(CliError::CannotFit {
                what: format!("text {} with the model", start + 1),
                needed: needed + taken,
                available: limit + taken,
                remedy: "give more with --memory, or a shorter text".to_owned(),
            });
        }
        all.push(start..start + count);
        start += count;
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn batches_keep_the_order_and_the_limit() {
        let config = testing::config(64, 4, 256, 1);
        let lengths = [10, 20, 30, 40, 50, 5, 5];
        for limit in [Bytes::kib(400), Bytes::mib(1), Bytes::MAX] {
            let found = batches(&config, &lengths, limit, Bytes::ZERO).unwrap();
            assert_eq!(found.iter().cloned().flatten().collect::<Vec<_>>(), (0..7).collect::<Vec<_>>());
            assert!(found.iter().all(|batch| activations::peak(&config, &lengths[batch.clone()]) <= limit));
        }
        assert_eq!(batches(&config, &[3000, 3000], Bytes::MAX, Bytes::ZERO).unwrap(), [0..1, 1..2]);
        assert_eq!(batches(&config, &lengths, Bytes::kib(20), Bytes::ZERO).unwrap_err().exit_code(), 3);
    }
}
