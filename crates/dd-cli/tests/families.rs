//! Every family's stock code over a tiny random checkpoint: repeatable, and the same alone as in a block.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs, reason = "tests")]

use std::path::Path;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use dd_cli::generate::sampling::Sampling;
use dd_cli::generate::session::Session;
use dd_cli::generate::weights::{InMemory, WeightsSource};
use dd_cli::generate::{Family, Model, ModelConfig, model, requirements, tiny};
use deep_dimensions::core::Budget;
use deep_dimensions::offload::checkpoint::Checkpoint;

const PROMPT: [u32; 9] = [3, 141, 59, 265, 35, 89, 79, 323, 84];
const OTHER: [u32; 9] = [2, 71, 82, 81, 82, 84, 59, 45, 23];

/// Opens a tiny model of the family, for texts of at most so many tokens.
fn open(family: Family, positions: usize) -> Box<dyn Model> {
    let folder = tempfile::tempdir().unwrap();
    let config = tiny::write_tiny(family, folder.path(), 1 << 20, 11).unwrap();
    load(&config, folder.path(), positions)
}

fn load(config: &ModelConfig, folder: &Path, positions: usize) -> Box<dyn Model> {
    let checkpoint = Arc::new(Checkpoint::open(folder.join("model.safetensors")).unwrap());
    let required = requirements::check(config, &checkpoint).unwrap();
    let budget = Budget::unlimited("test");
    let source = InMemory::open(&checkpoint, &required, &budget).unwrap();
    model::open(config, &source.var_builder(), positions).unwrap()
}

fn tensor(rows: &[&[u32]]) -> Tensor {
    let all: Vec<u32> = rows.concat();
    Tensor::from_vec(all, (rows.len(), rows[0].len()), &Device::Cpu).unwrap()
}

/// The prompt, then four tokens one by one: the logits of each pass.
fn passes(model: &mut dyn Model, rows: &[&[u32]]) -> Vec<Vec<Vec<f32>>> {
    let mut all = vec![model.forward(&tensor(rows), 0).unwrap()];
    for (step, token) in [7u32, 8, 9, 10].into_iter().enumerate() {
        let next: Vec<[u32; 1]> = rows.iter().map(|_| [token]).collect();
        let next: Vec<&[u32]> = next.iter().map(|row| &row[..]).collect();
        let position = rows[0].len() + step;
        all.push(model.forward(&tensor(&next), position).unwrap());
    }
    all.iter().map(|logits| logits.to_vec2().unwrap()).collect()
}

#[test]
fn passes_are_repeatable_to_the_bit_and_a_reset_forgets_everything() {
    for family in Family::ALL {
        let mut model = open(family, 32);
        let first = passes(&mut *model, &[&PROMPT]);
        model.reset();
        assert_eq!(first, passes(&mut *model, &[&PROMPT]), "{family}: after a reset");
        assert_eq!(first, passes(&mut *open(family, 32), &[&PROMPT]), "{family}: made anew");
        assert_eq!(first, passes(&mut *open(family, 1000), &[&PROMPT]), "{family}: with longer tables");
        model.reset();
        let other = passes(&mut *model, &[&OTHER]);
        assert_ne!(first[0], other[0], "{family}: another prompt");
        let width = if family.generates() { tiny::VOCAB } else { 64 };
        assert!(first.iter().flatten().all(|row| row.len() == width && row.iter().all(|x| x.is_finite())));
    }
}

#[test]
fn a_block_gives_what_each_prompt_gives_alone() {
    for family in Family::ALL {
        let mut model = open(family, 32);
        let block = passes(&mut *model, &[&PROMPT, &OTHER]);
        for (row, prompt) in [PROMPT, OTHER].iter().enumerate() {
            model.reset();
            for (pass, alone) in passes(&mut *model, &[prompt]).iter().enumerate() {
                let difference = alone[0].iter().zip(&block[pass][row]).map(|(a, b)| (a - b).abs());
                let most = difference.fold(0.0, f32::max);
                assert!(most < 1e-4, "{family}, prompt {row}, pass {pass}: {most}");
            }
        }
    }
}

#[test]
fn what_was_cached_gives_what_the_whole_text_gives() {
    let whole: Vec<u32> = PROMPT.into_iter().chain([7, 8, 9, 10]).collect();
    for family in Family::ALL.into_iter().filter(|family| !matches!(family, Family::T5 | Family::Bert)) {
        let mut model = open(family, 32);
        let steps = passes(&mut *model, &[&PROMPT]);
        model.reset();
        let at_once: Vec<Vec<f32>> = model.forward(&tensor(&[&whole]), 0).unwrap().to_vec2().unwrap();
        let difference = at_once[0].iter().zip(&steps[4][0]).map(|(a, b)| (a - b).abs());
        let most = difference.fold(0.0, f32::max);
        assert!(most < 1e-4, "{family}: {most}");
    }
}

#[test]
fn a_seed_writes_the_same_text_in_any_block() {
    let sampling = Sampling { temperature: 0.9, top_p: Some(0.95), seed: 4 };
    for family in Family::ALL.into_iter().filter(|family| family.generates()) {
        let model = open(family, 32);
        let mut session = Session { model, sampling, eos: Vec::new(), most: 8 };
        let mut write = |rows: &[(usize, &[u32])]| session.write(rows, &mut |_, _| {}).unwrap().written;
        let block = write(&[(0, &PROMPT), (1, &OTHER)]);
        assert_eq!(block, write(&[(0, &PROMPT), (1, &OTHER)]), "{family}: once more");
        assert_eq!(block[1..], write(&[(1, &OTHER)]), "{family}: alone");
        assert!(block.iter().all(|text| text.tokens.len() == 8), "{family}");
    }
}

/// The library's cache refuses several tokens of several key heads at once; the adapter gives them one by one.
#[test]
fn gemma_3_with_several_key_heads_sees_the_whole_prompt() {
    let mut json = tiny::config(Family::Gemma3, 64, 3);
    json["num_key_value_heads"] = 2.into();
    let folder = tempfile::tempdir().unwrap();
    let config = tiny::write(&json, folder.path(), 5, tiny::Layout::default()).unwrap();
    let mut model = load(&config, folder.path(), 32);
    let steps = passes(&mut *model, &[&PROMPT]);
    let whole: Vec<u32> = PROMPT.into_iter().chain([7, 8, 9, 10]).collect();
    model.reset();
    let at_once: Vec<Vec<f32>> = model.forward(&tensor(&[&whole]), 0).unwrap().to_vec2().unwrap();
    assert_eq!(at_once, steps[4]);
    model.reset();
    assert_ne!(at_once, model.forward(&tensor(&[&whole[1..]]), 0).unwrap().to_vec2::<f32>().unwrap());
}
