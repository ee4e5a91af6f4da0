//! What management costs when everything is resident: a managed forward against the same forward without.
//!
//! Two modules, with a budget of twice their weights, so that nothing ever leaves:
//!
//! | module | what one forward is |
//! |---|---|
//! | `linear_4096` | one linear of 4096 × 4096 at batch 1: 67 MB of weights are read once, the least work per byte |
//! | `encoder_384` | one layer as of MiniLM: 384 wide, 12 heads, 16 tensors, a sentence of 32 tokens: the most handling per work |
//!
//! | contestant | what one turn is: the fastest of [`FORWARDS`] |
//! |---|---|
//! | `managed` | a forward of the managed module |
//! | `plain`, `again` | control, twice: `forward` of a module that was built once |
//! | `handling` | what management adds, alone: the lock taken twice, the tensors handed out, the module built from them and dropped; no forward |
//!
//! Managed and plain have the same input and the same weights; their outputs are compared bit by bit first.
//!
//! How to read it: two figures that should both be at most 0.01. The median over the rounds of `managed / plain − 1` is
//! what a user sees, and as noisy as the machine: `again / plain − 1` says how noisy. `handling / plain` has no such
//! noise.

use std::hint::black_box;
use std::time::{Duration, Instant};

use candle_core::{DType, Device, Tensor};
use candle_nn::{Module, VarBuilder, linear};
use criterion::Criterion;
use dd_benches::Result;
use dd_benches::checkpoint::{Values, write};
use dd_benches::model::{Block, Shape};
use dd_benches::rounds::{Contestant, Rounds};
use dd_benches::settings::Settings;
use deep_dimensions::candle::CandleBackend;
use deep_dimensions::candle::managed::ManagedModel;
use deep_dimensions::core::{self, Bytes};
use deep_dimensions::offload::MemoryConfig;

/// Forwards per turn.
const FORWARDS: u32 = 8;
/// Rounds per round that was asked for: they are short.
const SHORT: usize = 10;

fn main() -> Result<()> {
    let settings = Settings::read(env!("CARGO_TARGET_TMPDIR"))?;
    let mut criterion = settings.criterion();
    let width = if settings.quick { 256 } else { 4096 };
    let tensors = [("linear.weight".to_owned(), vec![width, width]), ("linear.bias".to_owned(), vec![width])];
    let load = move |vb: VarBuilder<'static>| linear(width, width, vb);
    let input = Shape { width, layers: 1 }.input(1)?;
    compare(&settings, &mut criterion, ("linear_4096", "linear"), &tensors, &input, load)?;
    let shape = Shape { width: 384, layers: 1 };
    let load = move |vb: VarBuilder<'static>| Block::load(shape.width, 12, &vb);
    let (tensors, input) = (shape.tensors(), shape.input(32)?);
    compare(&settings, &mut criterion, ("encoder_384", "layers.0"), &tensors, &input, load)?;
    criterion.final_summary();
    Ok(())
}

/// Compares the module of all tensors under `prefix`, made by `load`, managed and plain.
fn compare<M: Module>(
    settings: &Settings,
    criterion: &mut Criterion,
    (name, prefix): (&str, &str),
    tensors: &[(String, Vec<usize>)],
    input: &Tensor,
    load: impl Fn(VarBuilder<'static>) -> candle_core::Result<M>,
) -> Result<()> {
    let folder = settings.scratch()?;
    let file = folder.path().join("model.safetensors");
    let size = write(&file, tensors, Values::Random)?;
    let weights = candle_core::safetensors::load(&file, &Device::Cpu)?;
    let plain = load(VarBuilder::from_tensors(weights, DType::F32, &Device::Cpu).pp(prefix))?;
    let config = MemoryConfig::builder().memory_limit(Bytes(size * 2 + (64 << 20))).build()?;
    let model = ManagedModel::open(&file, CandleBackend::new(core::Device::Cpu)?, config)?;
    let managed = model.module(prefix, load)?;
    let (expected, found) = (plain.forward(input)?, managed.forward(input)?);
    if expected.to_vec2::<f32>()? != found.to_vec2::<f32>()? {
        return Err("the managed module gives another output than the plain one".into());
    }
    let forward = |module: &dyn Module| fastest(|| module.forward(black_box(input)));
    let rounds = Rounds::run(
        if settings.quick { 1 } else { settings.rounds * SHORT },
        &mut [
            Contestant::new("plain", || forward(&plain)),
            Contestant::new("managed", || forward(&managed)),
            Contestant::new("again", || forward(&plain)),
            Contestant::new("handling", || fastest(|| Ok(managed.with(|_| Ok(()))?))),
        ],
    )?;
    rounds.report(criterion, &format!("overhead_{name}"), |_| None);
    let ratio = |name| rounds.median_of(name, "plain", |this, plain| this / plain) * 100.0;
    println!(
        "{name}: plain {:.1} µs, managed {:.1} µs, handling {:.2} µs per forward",
        rounds.median("plain") * 1e6,
        rounds.median("managed") * 1e6,
        rounds.median("handling") * 1e6,
    );
    println!(
        "{name}: managed / plain − 1 = {:+.2} % (noise: {:+.2} %); handling / plain = {:.2} %",
        ratio("managed") - 100.0,
        ratio("again") - 100.0,
        ratio("handling"),
    );
    Ok(())
}

/// The time of the fastest of a few: the one that was disturbed least.
fn fastest<T>(mut work: impl FnMut() -> candle_core::Result<T>) -> Result<Duration> {
    let mut least = Duration::MAX;
    for _ in 0..FORWARDS {
        let started = Instant::now();
        black_box(work()?);
        least = least.min(started.elapsed());
    }
    Ok(least)
}
