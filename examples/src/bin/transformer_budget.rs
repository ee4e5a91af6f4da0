//! A transformer within half of its weights: the same logits, and what each pass read, against the plan.
//!
//! The model's code is candle's, and the same for both runs: a sequence of modules. In the managed run the layers and
//! the head are managed modules, and the embedding's rows are read when they are asked for. What a pass holds besides
//! weights is reserved first, so that the budget covers it too. The first pass shows the order of use; from then on
//! the plan says what stays in memory and how much each pass reads.

use candle_core::{Device, Tensor};
use candle_nn::{Module, Sequential, VarBuilder, embedding, layer_norm, linear, seq};
use dd_examples::{EncoderLayer, EncoderSizes, Result, Weights, check, same_bits};
use deep_dimensions::candle::CandleBackend;
use deep_dimensions::candle::managed::ManagedModel;
use deep_dimensions::core::{self, Bytes};
use deep_dimensions::offload::MemoryConfig;
use deep_dimensions::offload::plan::ResidencyPlan;

const LAYERS: usize = 8;
const VOCABULARY: usize = 2048;
const POSITIONS: usize = 32;
const SIZES: EncoderSizes = EncoderSizes { hidden: 256, heads: 4, intermediate: 1024 };
const PASSES: usize = 8;

fn main() -> Result {
    let weights = Weights::random(unmanaged)?;
    let limit = Bytes(weights.bytes().0 / 2);
    println!("weights {}, budget {limit}", weights.bytes());

    let ids = tokens()?;
    let expected = unmanaged(weights.load(&Device::Cpu)?)?.forward(&ids)?;

    let config = MemoryConfig::builder().memory_limit(limit).build()?;
    let model = ManagedModel::open(weights.folder(), CandleBackend::new(core::Device::Cpu)?, config)?;
    let transformer = managed(&model)?;
    let activations = model.reserve_activations(activation_bytes())?; // Held for as long as passes run.
    let (logits, reads) = passes(&model, &transformer, &ids)?;
    let plan = model.manager().plan()?;
    println!("\n{plan}\n\n{}\n", model.manager().memory_summary());

    let same: Vec<bool> = logits.iter().map(|logits| same_bits(logits, &expected)).collect::<Result<_>>()?;
    check(same == [true; PASSES], "every pass gave the unmanaged model's logits, bit for bit")?;
    compare(&plan, &reads)?;
    let usage = model.manager().budget().usage();
    check(
        usage.peak <= limit,
        &format!("at most {} were held, {} of it by activations", usage.peak, activations.bytes()),
    )
}

/// Passes over the model: the logits of each, and what it read.
fn passes(model: &ManagedModel, transformer: &Sequential, ids: &Tensor) -> Result<(Vec<Tensor>, Vec<Bytes>)> {
    println!("{:>4}  {:>12}", "pass", "read");
    let mut before = Bytes::ZERO;
    let mut pass = |number| {
        let logits = transformer.forward(ids)?;
        let now = model.manager().memory_summary().read;
        let read = now.saturating_sub(std::mem::replace(&mut before, now));
        println!("{number:>4}  {read:>12}");
        Ok((logits, read))
    };
    (1..=PASSES).map(&mut pass).collect()
}

/// Compares the later half of the passes with the plan. Together they read what the plan says, but for what was read
/// ahead when the first of them began or the last one ended: both are at most the plan's staging.
fn compare(plan: &ResidencyPlan, reads: &[Bytes]) -> Result {
    let later = reads.get(PASSES / 2..).unwrap_or_default();
    let read: Bytes = later.iter().copied().sum();
    let passes = u64::try_from(later.len())?;
    let rows = Bytes::of(POSITIONS * SIZES.hidden * size_of::<f32>());
    let planned = Bytes((plan.streamed_bytes + rows).0 * passes);
    println!("read in the last {passes} passes: {read}; by the plan, with the embedding's rows: {planned}");
    check(Bytes(read.0.abs_diff(planned.0)) <= plan.staging, "the passes read what the plan says")
}

/// The transformer as candle has it: `[1, positions]` token ids to `[1, positions, vocabulary]` logits.
fn unmanaged(vb: VarBuilder<'static>) -> candle_core::Result<Sequential> {
    let mut model = seq().add(embedding(VOCABULARY, SIZES.hidden, vb.pp("embeddings"))?);
    for n in 0..LAYERS {
        model = model.add(EncoderLayer::new(SIZES, vb.pp(format!("layers.{n}")))?);
    }
    let norm = layer_norm(SIZES.hidden, 1e-12, vb.pp("norm"))?;
    Ok(model.add(norm).add(linear(SIZES.hidden, VOCABULARY, vb.pp("head"))?))
}

/// The same, module by module, with managed weights.
fn managed(model: &ManagedModel) -> Result<Sequential> {
    let mut transformer = seq().add(model.embedding("embeddings.weight")?);
    for n in 0..LAYERS {
        let layer = model.module(&format!("layers.{n}"), |vb| EncoderLayer::new(SIZES, vb))?;
        transformer = transformer.add(layer);
    }
    let norm = model.module("norm", |vb| layer_norm(SIZES.hidden, 1e-12, vb))?;
    let head = model.module("head", |vb| linear(SIZES.hidden, VOCABULARY, vb))?;
    Ok(transformer.add(norm).add(head))
}

/// Token ids, no two alike: `[1, positions]`.
fn tokens() -> Result<Tensor> {
    let ids = (0..u32::try_from(POSITIONS)?).map(|n| n * 61 % 2048);
    Ok(Tensor::from_iter(ids, &Device::Cpu)?.reshape((1, POSITIONS))?)
}

/// What a pass holds at most besides weights: a layer's activations or the logits, and the embedded tokens.
fn activation_bytes() -> Bytes {
    let floats = |count: usize| Bytes::of(count * size_of::<f32>());
    let logits = floats(2 * POSITIONS * VOCABULARY);
    SIZES.activation_bytes(POSITIONS).max(logits) + floats(POSITIONS * SIZES.hidden)
}
