//! How long a sentence takes: a classifier's 50th and 99th percentile, unmanaged and in half of the memory.
//!
//! Where single answers count, the slow ones do. The embedding is most of such a model and a sentence needs a few of
//! its rows, so reading rows on demand already saves much; of the layers, as many weights stay as fit, and the rest is
//! read while the layer before computes. Both runs must agree on every sentence. The times are reported, not demanded:
//! they are this machine's.

use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};
use candle_nn::{Module, Sequential, VarBuilder, embedding, linear, seq};
use dd_examples::{EncoderLayer, EncoderSizes, Result, Weights, check, same_bits};
use deep_dimensions::candle::CandleBackend;
use deep_dimensions::candle::managed::ManagedModel;
use deep_dimensions::core::{self, Bytes};
use deep_dimensions::offload::MemoryConfig;

const LAYERS: usize = 4;
const CLASSES: usize = 3;
const VOCABULARY: usize = 8000;
const SIZES: EncoderSizes = EncoderSizes { hidden: 256, heads: 4, intermediate: 512 };
const SENTENCES: usize = 200;
const LONGEST: usize = 24;
const WANTED: Duration = Duration::from_millis(100);

fn main() -> Result {
    let weights = Weights::random(unmanaged)?;
    let limit = Bytes(weights.bytes().0 / 2);
    let sentences: Vec<Tensor> = (0..SENTENCES).map(sentence).collect::<Result<_>>()?;
    println!("{SENTENCES} sentences of 4 to {LONGEST} tokens; weights {}, budget {limit}", weights.bytes());

    let expected = run("unmanaged", &unmanaged(weights.load(&Device::Cpu)?)?, &sentences)?;

    let config = MemoryConfig::builder().memory_limit(limit).build()?;
    let model = ManagedModel::open(weights.folder(), CandleBackend::new(core::Device::Cpu)?, config)?;
    let classifier = managed(&model)?;
    let _activations = model.reserve_activations(SIZES.activation_bytes(LONGEST))?;
    let scores = run("managed", &classifier, &sentences)?;

    let summary = model.manager().memory_summary();
    println!("\n{} of layers and rows read, at most {} held", summary.read, summary.budget.peak);
    let same: Vec<bool> =
        scores.iter().zip(&expected).map(|(a, b)| same_bits(a, b)).collect::<Result<_>>()?;
    check(same == [true; SENTENCES], "both gave each sentence the same scores, bit for bit")?;
    check(summary.budget.peak <= limit, "the budget was kept")
}

/// Classifies each sentence by itself and prints how long they took.
fn run(name: &str, classifier: &Sequential, sentences: &[Tensor]) -> Result<Vec<Tensor>> {
    if let Some(first) = sentences.first() {
        classifier.forward(first)?; // The first one also starts threads and finds the order of use: not counted.
    }
    let mut times = Vec::with_capacity(sentences.len());
    let mut scores = Vec::with_capacity(sentences.len());
    for sentence in sentences {
        let started = Instant::now();
        scores.push(classifier.forward(sentence)?);
        times.push(started.elapsed());
    }
    times.sort_unstable();
    let (half, most) = (percentile(&times, 50), percentile(&times, 99));
    let verdict = if most < WANTED { "under" } else { "NOT under" };
    println!("{name:<10}  p50 {half:>8.1?}  p99 {most:>8.1?}  p99 is {verdict} {WANTED:?}");
    Ok(scores)
}

/// The least of the sorted times that `percent` of them do not exceed (the nearest rank).
fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

/// The classifier as candle has it: `[1, positions]` token ids to `[1, classes]` scores, by the mean of the last
/// layer's states.
fn unmanaged(vb: VarBuilder<'static>) -> candle_core::Result<Sequential> {
    let mut model = seq().add(embedding(VOCABULARY, SIZES.hidden, vb.pp("embeddings"))?);
    for n in 0..LAYERS {
        model = model.add(EncoderLayer::new(SIZES, vb.pp(format!("layers.{n}")))?);
    }
    Ok(model.add_fn(|x| x.mean(1)).add(linear(SIZES.hidden, CLASSES, vb.pp("head"))?))
}

/// The same, module by module, with managed weights.
fn managed(model: &ManagedModel) -> Result<Sequential> {
    let mut classifier = seq().add(model.embedding("embeddings.weight")?);
    for n in 0..LAYERS {
        let layer = model.module(&format!("layers.{n}"), |vb| EncoderLayer::new(SIZES, vb))?;
        classifier = classifier.add(layer);
    }
    let head = model.module("head", |vb| linear(SIZES.hidden, CLASSES, vb))?;
    Ok(classifier.add_fn(|x| x.mean(1)).add(head))
}

/// Token ids of sentence `number`: `[1, positions]`.
fn sentence(number: usize) -> Result<Tensor> {
    let positions = 4 + number * 7 % (LONGEST - 3);
    let id = |position: usize| u32::try_from((number * 131 + position * 2903) % VOCABULARY);
    let ids: Vec<u32> = (0..positions).map(id).collect::<Result<_, _>>()?;
    Ok(Tensor::from_vec(ids, (1, positions), &Device::Cpu)?)
}
