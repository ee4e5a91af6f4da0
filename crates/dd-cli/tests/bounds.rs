//! What is reserved for a run's tables, caches and states against what the allocator counts, for every family.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs, reason = "tests")]

#[path = "support/counting.rs"]
mod counting;

use std::alloc::System;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use dd_cli::generate::activations::{self, Work};
use dd_cli::generate::sampling::Sampling;
use dd_cli::generate::session::Session;
use dd_cli::generate::weights::{InMemory, WeightsSource};
use dd_cli::generate::{Family, ModelConfig, model, requirements, tiny};
use deep_dimensions::core::Budget;
use deep_dimensions::offload::checkpoint::Checkpoint;

#[global_allocator]
static COUNTING: counting::Counting<System> = counting::Counting::new(System);

/// Tensors that are there already, so that making a model is counted without its weights.
fn weights(config: &ModelConfig, folder: &std::path::Path) -> VarBuilder<'static> {
    let checkpoint = Arc::new(Checkpoint::open(folder.join("model.safetensors")).unwrap());
    let required = requirements::check(config, &checkpoint).unwrap();
    let source = InMemory::open(&checkpoint, &required, &Budget::unlimited("test")).unwrap();
    let vb = source.var_builder();
    let tensor = |name: &str| (name.to_owned(), vb.get_unchecked(name).unwrap());
    let all = required.iter().map(|required| tensor(&required.name)).collect();
    VarBuilder::from_tensors(all, DType::F32, &Device::Cpu)
}

/// The peaks of making the model and of writing a block.
fn measure(config: &ModelConfig, vb: &VarBuilder<'static>, positions: usize, work: Work) -> (usize, usize) {
    let (model, made) = COUNTING.peak_of(|| model::open(config, vb, positions).unwrap());
    let sampling = Sampling { temperature: 0.8, top_p: Some(0.9), seed: 1 };
    let mut session = Session { model, sampling, eos: Vec::new(), most: work.new };
    let rows: Vec<Vec<u32>> = (5..).take(work.batch).map(|word| vec![word; work.prompt]).collect();
    let rows: Vec<(usize, &[u32])> = rows.iter().enumerate().map(|(row, ids)| (row, &ids[..])).collect();
    let (_block, written) = COUNTING.peak_of(|| session.write(&rows, &mut |_, _| {}).unwrap());
    (made, written)
}

/// A wider model of two layers and 9,000 words, its weights zero.
fn wide(family: Family) -> (ModelConfig, VarBuilder<'static>) {
    let mut json = tiny::config(family, 512, 2);
    json["vocab_size"] = 9000.into();
    let config = ModelConfig::parse(&json.to_string(), "config.json").unwrap();
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    let all = requirements::of(&config, &|name| name == "shared.weight").unwrap();
    let all = all.into_iter().map(|required| (required.name, zeros(&required.shape))).collect();
    (config, VarBuilder::from_tensors(all, DType::F32, &Device::Cpu))
}

/// One test, so that nothing else allocates meanwhile.
#[test]
fn the_bounds_hold_for_every_family_and_are_not_far_off() {
    dd_cli::warm::up().unwrap();
    let works = [(1, 160, 2), (6, 50, 2), (4, 3, 32), (1, 20, 6)];
    for family in Family::ALL {
        let folder = tempfile::tempdir().unwrap();
        let config = tiny::write_tiny(family, folder.path(), 2 << 20, 5).unwrap();
        let vb = weights(&config, folder.path());
        check(&config, &vb, &works);
        let (config, vb) = wide(family);
        check(&config, &vb, &[(1, 64, 2), (12, 2, 2)]);
    }
}

fn check(config: &ModelConfig, vb: &VarBuilder<'static>, works: &[(usize, usize, usize)]) {
    let family = config.family;
    for &(batch, prompt, new) in works {
        let work = Work { batch, prompt, new };
        let positions = work.positions();
        let (made, written) = measure(config, vb, positions, work);
        let tables = activations::tables(config, positions).to_usize().unwrap();
        let peak = activations::peak(config, positions, work).to_usize().unwrap();
        println!("{family} {batch}×({prompt}+{new}): made {made} of {tables}, wrote {written} of {peak}");
        assert!(made <= tables, "{family}: {made} B while it is made, {tables} B reserved");
        assert!(written <= peak, "{family} {work:?}: {written} B while it writes, {peak} B reserved");
        let slack = 128 << 10; // Beside which a tiny model's states are small.
        assert!(tables <= 4 * made + slack, "{family}: {tables} B reserved for {made} B");
        assert!(peak <= 4 * written + slack, "{family} {work:?}: {peak} B reserved for {written} B");
    }
}
