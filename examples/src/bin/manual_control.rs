//! Manual control: which modules may leave, sending them away and back, changing weights, and the two ways to end.
//!
//! Under the model there is the manager. It knows modules by name, and a handle of each can send it away, bring it
//! back, or replace a parameter. Weights of a file go back there for nothing; those that are in no file, or not any
//! more, are packed in memory or spilled to disk, and come back bit for bit.

use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use candle_nn::{Linear, Module, Sequential, VarBuilder, embedding, layer_norm, linear, seq};
use dd_examples::{Result, Weights, check, same_bits};
use deep_dimensions::candle::CandleBackend;
use deep_dimensions::candle::managed::ManagedModule;
use deep_dimensions::core::{self, Bytes, Tier};
use deep_dimensions::offload::checkpoint::Checkpoint;
use deep_dimensions::offload::manager::{Cleanup, ModuleHandle, ModuleSpec, Selection, modules_of};
use deep_dimensions::offload::{Error, MemoryConfig, MemoryManager};

const LAYERS: usize = 8;
const WIDTH: usize = 256;
const VOCABULARY: usize = 1024;

type Manager = MemoryManager<CandleBackend>;
type Spec = ModuleSpec<CandleBackend>;

fn main() -> Result {
    let weights = Weights::random(model)?;
    let checkpoint = Arc::new(Checkpoint::open(weights.folder())?);
    selections(&checkpoint)?;

    let spill = tempfile::tempdir()?;
    let manager = manager(Bytes(weights.bytes().0 * 2), spill.path())?;
    manager.wrap_model(modules_of(&checkpoint)?, &Selection::All)?;
    away_and_back(&manager)?;
    update(&manager)?;
    own_tensors(&manager, spill.path())?;
    println!("\n{}", manager.memory_summary());
    whole(&manager)?;
    freed(&checkpoint, spill.path())
}

fn manager(limit: Bytes, spill: &Path) -> Result<Manager> {
    let config = MemoryConfig::builder().memory_limit(limit).spill_directory(spill.to_owned()).build()?;
    Ok(MemoryManager::new(CandleBackend::new(core::Device::Cpu)?, config)?)
}

/// By layer type, by name, by a function: what is selected may leave, the rest stays once it is there. So the least
/// memory that would do depends on the selection.
fn selections(checkpoint: &Arc<Checkpoint>) -> Result {
    let not_the_head = |spec: &Spec| spec.name != "head";
    let rows = [
        ("all", Selection::All),
        ("all but the head", Selection::Where(&not_the_head)),
        ("of type Linear", Selection::Kinds(&["Linear"])),
        ("named layers.*", Selection::Pattern("layers.*")),
    ];
    println!("{} of weights", checkpoint.total_bytes());
    println!("{:<16}  {:>8}  {:>12}", "selected", "modules", "least budget");
    let mut least = Vec::new();
    for (name, selection) in rows {
        let folder = tempfile::tempdir()?;
        let manager = manager(checkpoint.total_bytes(), folder.path())?;
        let specs = modules_of(checkpoint)?;
        let selected = specs.iter().filter(|spec| selection.takes(spec)).count();
        manager.wrap_model(specs, &selection)?;
        let plan = manager.plan()?;
        println!("{name:<16}  {selected:>8}  {:>12}", plan.least_budget);
        least.push(plan.least_budget);
    }
    check(least.is_sorted(), "the fewer modules may leave, the more memory it takes")
}

/// The handle of a module that is managed already.
fn handle(manager: &Manager, name: &str) -> Result<ModuleHandle<CandleBackend>> {
    Ok(manager.module(name).ok_or_else(|| format!("there is no module {name}"))?)
}

/// A module's parameter, as it is now. The guard keeps it in place until the copy is made.
fn parameter(module: &ModuleHandle<CandleBackend>, name: &str) -> Result<Tensor> {
    let guard = module.acquire()?;
    Ok(guard.tensor(name).ok_or_else(|| format!("there is no parameter {name}"))?.copy()?)
}

/// All modules, then one by itself.
fn away_and_back(manager: &Manager) -> Result {
    println!();
    manager.load_all()?;
    let layer = handle(manager, "layers.0")?;
    let before = parameter(&layer, "weight")?;
    check(layer.tier() == Tier::Host, "after load_all the layer is in host memory")?;
    let left = manager.offload_all()?;
    check(
        layer.tier() == Tier::Disk,
        &format!("after offload_all it rests in its file; {left} left memory"),
    )?;
    layer.load_all()?;
    check(layer.tier() == Tier::Host, "loaded by itself, it is back")?;
    check(same_bits(&before, &parameter(&layer, "weight")?)?, "with the same weights")?;
    let freed = layer.offload_all()?;
    check(freed == layer.bytes(), &format!("offloaded by itself, it gave back {freed}"))
}

/// New values of a parameter are kept from then on, wherever they rest: the file is no longer asked, nor written.
fn update(manager: &Manager) -> Result {
    println!();
    let layer = handle(manager, "layers.1")?;
    let doubled = (parameter(&layer, "weight")? * 2.0)?;
    layer.update("weight", doubled.clone())?;
    layer.offload_all()?;
    println!("  the updated layer rests in: {}", layer.tier());
    check(same_bits(&doubled, &parameter(&layer, "weight")?)?, "updated weights come back as they were given")
}

/// A module of tensors that were never in a file. The manager takes them over; this one is sent to the disk and back.
fn own_tensors(manager: &Manager, spill: &Path) -> Result {
    println!();
    let weight = Tensor::randn(0f32, 1.0, (WIDTH, WIDTH), &Device::Cpu)?;
    let bias = Tensor::zeros(WIDTH, DType::F32, &Device::Cpu)?;
    let x = Tensor::randn(0f32, 1.0, (1, WIDTH), &Device::Cpu)?;
    let y = Linear::new(weight.clone(), Some(bias.clone())).forward(&x)?;

    let tensors = [("weight".to_owned(), weight), ("bias".to_owned(), bias)];
    let adapter = ManagedModule::from_tensors(manager, "adapter", tensors, |vb| linear(WIDTH, WIDTH, vb))?;
    check(same_bits(&adapter.forward(&x)?, &y)?, "a module of the user's own tensors computes as before")?;
    adapter.handle().offload_all()?;
    println!("  offloaded, it rests in: {}", adapter.handle().tier());
    check(files_under(spill)? > 0, "random weights do not compress: they are in the spill folder")?;
    check(same_bits(&adapter.forward(&x)?, &y)?, "and come back bit for bit")
}

/// Ends the management and keeps the model: everything is brought into place and stays there.
fn whole(manager: &Manager) -> Result {
    println!();
    manager.cleanup(Cleanup::Whole)?;
    let tiers: Vec<Tier> = manager.memory_summary().modules.iter().map(|module| module.tier).collect();
    check(tiers.iter().all(|tier| *tier == Tier::Host), "cleaned up as a whole, every module is in place")?;
    let layer = handle(manager, "layers.3")?;
    check(parameter(&layer, "bias")?.dims() == [WIDTH], "and handles work on")
}

/// A model that does not fit as a whole is not left half loaded; it can be freed.
fn freed(checkpoint: &Arc<Checkpoint>, spill: &Path) -> Result {
    println!();
    let manager = manager(Bytes(checkpoint.total_bytes().0 / 2), spill)?;
    let modules = manager.wrap_model(modules_of(checkpoint)?, &Selection::All)?;
    let refused = manager.cleanup(Cleanup::Whole);
    println!("{}", refused.as_ref().err().map(ToString::to_string).unwrap_or_default());
    check(matches!(refused, Err(Error::BudgetTooSmall { .. })), "what does not fit as a whole is refused")?;
    check(modules.iter().all(|module| module.acquire().is_ok()), "and then nothing has changed")?;
    manager.cleanup(Cleanup::Freed)?;
    let held: Bytes =
        manager.budget().usage().holders.iter().filter(|h| h.name == "weights").map(|h| h.used).sum();
    check(held == Bytes::ZERO, "freed, no weight is in memory")?;
    let stopped = modules.iter().all(|module| matches!(module.acquire(), Err(Error::Stopped { .. })));
    check(stopped, "and the handles say so")
}

/// How many files there are below a folder.
fn files_under(folder: &Path) -> Result<usize> {
    let mut files = 0;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        files += if entry.file_type()?.is_dir() { files_under(&entry.path())? } else { 1 };
    }
    Ok(files)
}

/// The model that the checkpoint is of.
fn model(vb: VarBuilder<'static>) -> candle_core::Result<Sequential> {
    let mut model = seq().add(embedding(VOCABULARY, WIDTH, vb.pp("embeddings"))?);
    for n in 0..LAYERS {
        model = model.add(linear(WIDTH, WIDTH, vb.pp(format!("layers.{n}")))?);
    }
    Ok(model.add(layer_norm(WIDTH, 1e-5, vb.pp("norm"))?).add(linear(WIDTH, VOCABULARY, vb.pp("head"))?))
}
