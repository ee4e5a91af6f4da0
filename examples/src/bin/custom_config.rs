//! Custom configuration: presets, a builder, JSON, and what each choice does.
//!
//! A [`MemoryConfig`] that exists is consistent: the builder and JSON both refuse what contradicts itself, by name.
//! What a choice does is known before anything runs, since the plan is a value: how much stays, how much streams, and
//! the least budget that would do.

use candle_core::{Device, Tensor};
use candle_nn::{Module, Sequential, VarBuilder, linear, seq};
use dd_examples::{Result, Weights, check, same_bits};
use deep_dimensions::candle::CandleBackend;
use deep_dimensions::candle::managed::ManagedModel;
use deep_dimensions::core::{self, Bytes};
use deep_dimensions::offload::plan::ResidencyPlan;
use deep_dimensions::offload::{Error, MemoryConfig};

const LAYERS: usize = 16;
const WIDTH: usize = 256;

fn main() -> Result {
    options()?;
    refusals()?;
    let weights = Weights::random(unmanaged)?;
    let x = Tensor::randn(0f32, 1.0, (1, WIDTH), &Device::Cpu)?;
    let y = unmanaged(weights.load(&Device::Cpu)?)?.forward(&x)?;
    choices(&weights, &x, &y)?;
    too_small(&weights, &x, &y)
}

/// The presets and a file's options, side by side; and one option changed in one of them.
fn options() -> Result {
    let json = r#"{"memory_limit": "32MiB", "memory_check_interval": 0.25, "compress_disk_cache": false}"#;
    let rows = [
        ("default", MemoryConfig::default()),
        ("for_low_memory", MemoryConfig::for_low_memory()),
        ("for_high_performance", MemoryConfig::for_high_performance()),
        ("from JSON", serde_json::from_str(json)?),
    ];
    println!(
        "{:<20}  {:>9}  {:>7}  {:>6}  {:>8}  {:>9}  {:>5}",
        "options", "limit", "offload", "reload", "interval", "1-d leave", "batch"
    );
    for (name, config) in &rows {
        println!(
            "{name:<20}  {:>9}  {:>7}  {:>6}  {:>8?}  {:>9}  {:>5}",
            config.memory_limit().map_or_else(|| "measured".to_owned(), |limit| limit.to_string()),
            config.gpu_offload_threshold(),
            config.gpu_reload_threshold(),
            config.memory_check_interval().0,
            config.offload_1d_parameters(),
            config.offload_batch_size(),
        );
    }
    let patient = MemoryConfig::for_low_memory().to_builder().offload_batch_size(2_usize).build()?;
    let written = serde_json::to_string(&patient)?;
    check(serde_json::from_str::<MemoryConfig>(&written)? == patient, "what is written as JSON is read back")
}

/// What contradicts itself is refused, with the option's name and what would do.
fn refusals() -> Result {
    println!();
    let crossed = MemoryConfig::builder().gpu_reload_threshold(0.9).build();
    let named = matches!(crossed, Err(Error::InvalidConfig { option: "gpu_reload_threshold", .. }));
    println!("{}", crossed.err().map(|error| error.to_string()).unwrap_or_default());
    check(named, "the error names the option")?;
    let unknown = serde_json::from_str::<MemoryConfig>(r#"{"gpu_treshold": 0.9}"#).err();
    check(unknown.is_some(), "an option that does not exist is refused, too")
}

/// The same model in the same memory, with one choice at a time.
fn choices(weights: &Weights, x: &Tensor, y: &Tensor) -> Result {
    let limit = Bytes(weights.bytes().0 / 2);
    let builder = || MemoryConfig::builder().memory_limit(limit);
    let rows = [
        ("default", builder().build()?),
        ("prefetch_enabled(false)", builder().prefetch_enabled(false).build()?),
        ("offload_1d_parameters(true)", builder().offload_1d_parameters(true).build()?),
        ("io_block(4 KiB), io_depth(2)", builder().io_block(Bytes::kib(4)).io_depth(2).build()?),
    ];
    println!("\nweights {}, budget {limit}", weights.bytes());
    println!(
        "{:<28}  {:>10}  {:>10}  {:>10}  {:>12}  {:>12}",
        "choice", "stays", "staging", "blocks", "read a pass", "least budget"
    );
    let (mut plans, mut same) = (Vec::new(), Vec::new());
    for (name, config) in rows {
        let (output, plan) = run(weights, config, x)?;
        println!(
            "{name:<28}  {:>10}  {:>10}  {:>10}  {:>12}  {:>12}",
            plan.resident_bytes, plan.staging, plan.blocks, plan.streamed_bytes, plan.least_budget
        );
        same.push(same_bits(&output, y)?);
        plans.push(plan);
    }
    check(same == [true; 4], "whatever the choice, the output is that of the unmanaged model, bit for bit")?;
    if let [usual, unhurried, biases, small_blocks] = plans.as_slice() {
        check(
            unhurried.streamed_bytes < usual.streamed_bytes,
            "without reading ahead, more stays and less is read",
        )?;
        check(biases.least_budget < usual.least_budget, "where biases may leave too, less memory would do")?;
        check(small_blocks.blocks < usual.blocks, "small blocks take less of the budget")?;
    }
    Ok(())
}

/// Too little memory is an expected outcome: the error comes before anything is read, and says what would do.
fn too_small(weights: &Weights, x: &Tensor, y: &Tensor) -> Result {
    let config =
        |limit| MemoryConfig::builder().memory_limit(limit).io_block(Bytes::kib(4)).io_depth(2).build();
    println!();
    let Err(refused) = run(weights, config(Bytes::kib(100))?, x) else {
        return Err("a model that does not fit was run".into());
    };
    println!("{refused}");
    let least = least_of(&*refused).ok_or("the error does not say what would do")?;
    let (output, plan) = run(weights, config(least)?, x)?;
    println!("\n{plan}\n");
    check(same_bits(&output, y)?, "the least budget that the error names is enough")
}

/// The budget that an error says would do.
fn least_of(error: &(dyn std::error::Error + 'static)) -> Option<Bytes> {
    match error.downcast_ref::<Error>()? {
        Error::BudgetTooSmall { least, .. } => Some(*least),
        _ => None,
    }
}

/// Two passes with this configuration: the output, and the plan by which it came.
fn run(weights: &Weights, config: MemoryConfig, x: &Tensor) -> Result<(Tensor, ResidencyPlan)> {
    let model = ManagedModel::open(weights.folder(), CandleBackend::new(core::Device::Cpu)?, config)?;
    let layer = |n| model.module(&format!("layers.{n}"), |vb| linear(WIDTH, WIDTH, vb));
    let layers = (0..LAYERS).map(layer).collect::<Result<Vec<_>, _>>()?;
    let plan = model.manager().plan()?; // Known before anything is read.
    let pass = || layers.iter().try_fold(x.clone(), |x, layer| layer.forward(&x));
    pass()?;
    Ok((pass()?, plan))
}

/// The model as candle has it.
fn unmanaged(vb: VarBuilder<'static>) -> candle_core::Result<Sequential> {
    (0..LAYERS).try_fold(seq(), |model, n| Ok(model.add(linear(WIDTH, WIDTH, vb.pp(format!("layers.{n}")))?)))
}
