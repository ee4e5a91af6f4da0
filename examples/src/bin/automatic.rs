//! Automatic management: five lines, the same output.
//!
//! [`ManagedModel::auto`] takes the best device there is, and as much memory as the system says is available. A module
//! is candle's own, in a closure: it is built for each use, with its weights in place. How much memory there may be is
//! then one option, and nothing else changes.

use std::sync::Arc;

use candle_core::Tensor;
use candle_nn::{Module, VarBuilder, linear, seq};
use dd_examples::{Result, Weights, check, same_bits};
use deep_dimensions::candle::CandleBackend;
use deep_dimensions::candle::managed::ManagedModel;
use deep_dimensions::core::{Bytes, Device};
use deep_dimensions::monitor::SystemMemory;
use deep_dimensions::offload::MemoryConfig;

const LAYERS: usize = 16;
const WIDTH: usize = 256;

fn main() -> Result {
    let weights = Weights::random(model)?;
    let backend = CandleBackend::new(Device::Auto)?;
    let x = Tensor::randn(0f32, 1.0, (4, WIDTH), backend.device())?;
    let unmanaged = model(weights.load(backend.device())?)?.forward(&x)?;

    println!("a checkpoint of {}, as much memory as there is:", weights.bytes());
    let managed = automatic(&weights, &x)?;
    check(same_bits(&managed, &unmanaged)?, "the output is that of the unmanaged model, bit for bit")?;

    let limit = Bytes(weights.bytes().0 / 2);
    println!("\nthe same within {limit}:");
    let config = MemoryConfig::builder().memory_limit(limit).build()?;
    let model = ManagedModel::open(weights.folder(), backend, config)?;
    let managed = forward(&model, &x)?;
    check(same_bits(&managed, &unmanaged)?, "the output is that of the unmanaged model, bit for bit")?;
    let peak = model.manager().budget().usage().peak;
    check(peak <= limit, &format!("at most {peak} were held"))
}

/// The five lines.
fn automatic(weights: &Weights, x: &Tensor) -> Result<Tensor> {
    let memory = Arc::new(SystemMemory::open(weights.folder())?); // 1: who says how much memory there is
    let model = ManagedModel::auto(weights.folder(), memory)?; // 2: reads headers, no weights
    let layer = |n| model.module(&format!("layers.{n}"), |vb| linear(WIDTH, WIDTH, vb)); // 3: what is one module
    let layers = (0..LAYERS).map(layer).collect::<Result<Vec<_>, _>>()?; // 4: the model
    let y = layers.iter().try_fold(x.clone(), |x, layer| layer.forward(&x))?; // 5: a pass
    println!("  budget: {}", model.manager().budget().limit());
    Ok(y)
}

/// Lines three to five once more, for the model with a limit.
fn forward(model: &ManagedModel, x: &Tensor) -> Result<Tensor> {
    let layer = |n| model.module(&format!("layers.{n}"), |vb| linear(WIDTH, WIDTH, vb));
    let layers = (0..LAYERS).map(layer).collect::<Result<Vec<_>, _>>()?;
    Ok(layers.iter().try_fold(x.clone(), |x, layer| layer.forward(&x))?)
}

/// The model as candle has it, without any management.
fn model(vb: VarBuilder<'static>) -> candle_core::Result<impl Module> {
    (0..LAYERS).try_fold(seq(), |model, n| Ok(model.add(linear(WIDTH, WIDTH, vb.pp(format!("layers.{n}")))?)))
}
