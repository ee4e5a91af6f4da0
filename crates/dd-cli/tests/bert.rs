//! The streaming encoder against that of candle-transformers, on counted weights and on the real MiniLM.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs, reason = "tests")]

use std::path::Path;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::bert::{BertModel, Config as ReferenceConfig};
use dd_cli::bert::{Bert, Config, Ragged};
use dd_cli::testing;
use dd_cli::weights;
use deep_dimensions::candle::CandleBackend;
use deep_dimensions::offload::checkpoint::Checkpoint;

/// The reference's states of each sentence, `[tokens, hidden]`, run over a padded batch with its mask.
fn reference(vb: VarBuilder, config: &Config, sentences: &[Vec<u32>]) -> Vec<Tensor> {
    let config: ReferenceConfig = serde_json::from_value(serde_json::json!({
        "vocab_size": config.vocab_size, "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers, "num_attention_heads": config.num_attention_heads,
        "intermediate_size": config.intermediate_size, "hidden_act": "gelu", "hidden_dropout_prob": 0.0,
        "max_position_embeddings": config.max_position_embeddings, "type_vocab_size": config.type_vocab_size,
        "initializer_range": 0.02, "layer_norm_eps": config.layer_norm_eps, "pad_token_id": 0,
    }))
    .unwrap();
    let model = BertModel::load(vb, &config).unwrap();
    let longest = sentences.iter().map(Vec::len).max().unwrap();
    let pad = |row: &Vec<u32>| [row.clone(), vec![0; longest - row.len()]].concat();
    let mask = |row: &Vec<u32>| [vec![1u32; row.len()], vec![0; longest - row.len()]].concat();
    let ids = Tensor::new(sentences.iter().map(pad).collect::<Vec<_>>(), &Device::Cpu).unwrap();
    let mask = Tensor::new(sentences.iter().map(mask).collect::<Vec<_>>(), &Device::Cpu).unwrap();
    let states = model.forward(&ids, &ids.zeros_like().unwrap(), Some(&mask)).unwrap();
    let row = |(index, row): (usize, &Vec<u32>)| states.get(index).unwrap().narrow(0, 0, row.len()).unwrap();
    sentences.iter().enumerate().map(row).collect()
}

fn check(vb: VarBuilder, config: &Config, lengths: &[usize]) {
    let vocabulary = u32::try_from(config.vocab_size).unwrap();
    let sentence = |len: &usize| (3..).step_by(7).map(|id| id % vocabulary).take(*len).collect();
    let sentences: Vec<Vec<u32>> = lengths.iter().map(sentence).collect();
    let expected = Tensor::cat(&reference(vb.clone(), config, &sentences), 0).unwrap();
    let batch = Ragged::new(sentences.iter().map(Vec::as_slice));
    let mut layers = 0;
    let states = Bert::held(&vb, config).unwrap().forward(&batch, &mut |done| layers = done).unwrap();
    assert_eq!((layers, states.dims()), (config.num_hidden_layers, expected.dims()));
    let worst = (states - expected).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
    assert!(worst < 1e-5, "{lengths:?}: {worst}");
}

#[test]
fn a_sentence_does_not_depend_on_its_batch() {
    let config = testing::config(144, 4, 192, 2);
    let model = Bert::held(&testing::builder(&config).unwrap(), &config).unwrap();
    let states = |sentences: &[Vec<u32>]| -> Vec<Vec<u32>> {
        let batch = Ragged::new(sentences.iter().map(Vec::as_slice));
        let states = model.forward(&batch, &mut |_| {}).unwrap();
        let bits = |tensor: Tensor| {
            tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits)
        };
        batch.spans().map(|(start, len)| bits(states.narrow(0, start, len).unwrap()).collect()).collect()
    };
    let sentences: Vec<Vec<u32>> =
        [3usize, 120, 6, 2, 40, 130].iter().map(|len| (0..50).cycle().take(*len).collect()).collect();
    let together = states(&sentences);
    for (sentence, expected) in sentences.iter().zip(together) {
        assert!(states(std::slice::from_ref(sentence)) == [expected], "{} tokens", sentence.len());
    }
}

#[test]
fn equals_the_reference_on_counted_weights() {
    let config = testing::config(48, 4, 96, 3);
    let vb = testing::builder(&config).unwrap();
    for lengths in [&[1usize][..], &[5, 9, 1, 7], &[140, 3], &[128], &[300]] {
        check(vb.clone(), &config, lengths);
    }
}

#[test]
fn equals_the_reference_on_the_real_model() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/all-MiniLM-L6-v2");
    let file = folder.join("model.safetensors");
    if !file.exists() {
        dd_conformance::skipped!("{} is not there; cargo xtask fixtures fetches it", file.display());
        return;
    }
    let config = Config::read(&folder.join("config.json")).unwrap();
    let backend = CandleBackend::new(deep_dimensions::core::Device::Cpu).unwrap();
    let vb = weights::builder(&Arc::new(Checkpoint::open(file).unwrap()), &backend);
    check(vb, &config, &[12, 40, 7, 130]);
}
