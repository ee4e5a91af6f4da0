//! Every family's stock code over paged weights: the bits of the run in memory, whatever the budget.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, missing_docs, reason = "tests")]

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use dd_cli::generate::config::ModelConfig;
use dd_cli::generate::weights::{InMemory, WeightsSource};
use dd_cli::generate::{Family, model, requirements, tiny};
use deep_dimensions::candle::paged::{Error, PagedWeights};
use deep_dimensions::core::{Budget, Bytes};
use deep_dimensions::offload::checkpoint::Checkpoint;
use deep_dimensions::pager::Layout;

const PROMPT: [u32; 9] = [3, 141, 59, 265, 35, 89, 79, 323, 84];

/// The prompt, then a token, and the same once more after a reset: the bits of all logits.
fn passes(config: &ModelConfig, vb: &VarBuilder<'static>) -> Vec<u32> {
    let mut model = model::open(config, vb, 32).unwrap();
    let mut all = Vec::new();
    for _ in 0..2 {
        model.reset();
        let mut position = 0;
        for tokens in [&PROMPT[..], &[7]] {
            let tokens = Tensor::new(tokens, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
            let logits = model.forward(&tokens, position).unwrap();
            position += tokens.dim(1).unwrap();
            all.extend(logits.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits));
        }
    }
    all
}

#[test]
fn every_family_gives_the_bits_of_the_run_in_memory() {
    for family in Family::ALL {
        let folder = tempfile::tempdir().unwrap();
        let config = tiny::write_tiny(family, folder.path(), 4 << 20, 11).unwrap();
        let path = folder.path().join("model.safetensors");
        let checkpoint = Arc::new(Checkpoint::open(&path).unwrap());
        let required = requirements::check(&config, &checkpoint).unwrap();
        let source = InMemory::open(&checkpoint, &required, &Budget::unlimited("plain")).unwrap();
        let expected = passes(&config, &source.var_builder());
        let most = Bytes(checkpoint.total_bytes().0 / 4);
        let least = Layout::least();
        let between = |share: u64| Bytes(least.0 + (most.0 - least.0) * share / 3);
        let limits = [least, between(1), between(2), most];
        for (limit, threads) in limits.into_iter().flat_map(|limit| [(limit, 1), (limit, 4)]) {
            let budget = Budget::new("memory", limit);
            let weights = match PagedWeights::open(std::slice::from_ref(&path), DType::F32, &budget) {
                Ok(weights) => weights,
                Err(Error::Pager(error @ deep_dimensions::pager::Error::Unsupported { .. })) => {
                    dd_conformance::skipped!("{error}");
                    return;
                }
                Err(error) => panic!("{error}"),
            };
            let vb = weights.var_builder();
            std::thread::scope(|scope| {
                for _ in 0..threads {
                    scope.spawn(|| {
                        assert!(passes(&config, &vb) == expected, "{family} in {limit}, {threads} threads");
                    });
                }
            });
            assert!(weights.stats().evicted > 0, "{family} in {limit}: {:?}", weights.stats());
            assert!(budget.usage().peak <= limit, "{family}: {} of {limit}", budget.usage().peak);
            drop((vb, weights));
            assert_eq!(budget.usage().used, Bytes::ZERO, "{family}");
        }
    }
}
