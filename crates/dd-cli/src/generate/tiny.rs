//! Small random checkpoints in each family's usual layout, for tests: `config.json` and `model.safetensors`, F32.
//!
//! Names and shapes are those that the library's own constructor asks for ([`requirements`]), so
//! that they cannot be wrong, and one function serves all families. Values are seeded: matrices keep the size of what
//! goes through them, norms are near the identity, biases are small.

mod files;

use std::path::Path;

pub use safetensors::Dtype;
use serde_json::{Value, json};

use super::config::ModelConfig;
use super::family::Family;
use super::requirements::{self, Required};
use super::weights::bytes;
use crate::error::{CliError, Result};

/// Words of every tiny model.
pub const VOCAB: usize = 512;
/// Positions of every tiny model.
pub const POSITIONS: usize = 1024;

/// How a checkpoint is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// `F32`, `BF16` or `F16`; the same seed gives the same values, rounded.
    pub dtype: Dtype,
    /// In how many files; with an index where there are several.
    pub shards: usize,
}

impl Default for Layout {
    fn default() -> Self {
        Self { dtype: Dtype::F32, shards: 1 }
    }
}

/// Writes a random checkpoint of at least `approx_bytes` of weights (and less than a layer more, from three layers on)
/// into `folder`, and gives its config. The same arguments write the same bytes.
///
/// The file is as published ones are: tensors sorted by name, one after the other.
///
/// # Errors
/// [`CliError::Io`] where the folder cannot be written.
pub fn write_tiny(family: Family, folder: &Path, approx_bytes: u64, seed: u64) -> Result<ModelConfig> {
    write(&config_for(family, approx_bytes)?, folder, seed, Layout::default())
}

/// Writes the random checkpoint that a `config.json` asks for, for sizes and layouts that [`write_tiny`] does not
/// choose.
///
/// # Errors
/// [`CliError::Input`] where the config cannot be; [`CliError::Io`] where the folder cannot be written.
pub fn write(json: &Value, folder: &Path, seed: u64, layout: Layout) -> Result<ModelConfig> {
    let path = folder.join("config.json");
    let text = format!("{json:#}\n");
    std::fs::write(&path, &text).map_err(|e| CliError::io("write", &path, e))?;
    let config = ModelConfig::parse(&text, &path.display().to_string())?;
    let mut tensors = required(&config)?;
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    let tensors: Vec<(u64, Required)> = (0..).zip(tensors).collect();
    files::write(&config, folder, &tensors, seed, layout)?;
    Ok(config)
}

/// The `config.json` of a tiny model with states of width `hidden`, a multiple of 16, and so many layers.
#[must_use]
pub fn config(family: Family, hidden: usize, layers: usize) -> Value {
    let mut json = json!({
        "architectures": [family.architecture()], "model_type": family.model_type(), "vocab_size": VOCAB,
        "hidden_size": hidden, "intermediate_size": hidden * 3, "num_hidden_layers": layers,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": POSITIONS,
        "rope_theta": 10000.0, "torch_dtype": "float32",
    });
    let more = match family {
        Family::Llama => json!({"rms_norm_eps": 1e-5, "tie_word_embeddings": false, "hidden_act": "silu"}),
        Family::Mistral => json!({"rms_norm_eps": 1e-5, "sliding_window": null, "hidden_act": "silu"}),
        Family::Qwen2 => json!({"rms_norm_eps": 1e-6, "tie_word_embeddings": true, "hidden_act": "silu",
            "use_sliding_window": false, "sliding_window": 512, "max_window_layers": layers}),
        Family::Qwen3 => json!({"rms_norm_eps": 1e-6, "tie_word_embeddings": true, "hidden_act": "silu",
            "use_sliding_window": false, "sliding_window": null, "max_window_layers": layers,
            "head_dim": hidden / 4, "attention_bias": false}),
        Family::Phi3 => json!({"rms_norm_eps": 1e-5, "hidden_act": "silu", "rope_scaling": null}),
        Family::Gemma => {
            json!({"rms_norm_eps": 1e-6, "hidden_act": "gelu_pytorch_tanh", "head_dim": hidden / 4,
            "attention_bias": false})
        }
        Family::Gemma2 => json!({"rms_norm_eps": 1e-6, "hidden_activation": "gelu_pytorch_tanh",
            "head_dim": hidden / 4, "attention_bias": false, "query_pre_attn_scalar": hidden / 4,
            "final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0, "sliding_window": 512}),
        Family::Gemma3 => json!({"rms_norm_eps": 1e-6, "hidden_activation": "gelu_pytorch_tanh",
            "head_dim": hidden / 4, "attention_bias": false, "query_pre_attn_scalar": hidden / 4,
            "num_key_value_heads": 1, "rope_local_base_freq": 10000.0, "sliding_window": 32, "sliding_window_pattern": 2}),
        Family::StarCoder2 => {
            json!({"norm_epsilon": 1e-5, "use_bias": true, "hidden_act": "gelu_pytorch_tanh",
            "sliding_window": null})
        }
        Family::StableLm => {
            json!({"layer_norm_eps": 1e-5, "partial_rotary_factor": 0.25, "hidden_act": "silu",
            "use_cache": true, "use_qkv_bias": false})
        }
        Family::Olmo => json!({"attention_bias": false, "tie_word_embeddings": false, "hidden_act": "silu",
            "clip_qkv": null}),
        Family::Olmo2 => json!({"attention_bias": false, "tie_word_embeddings": false, "hidden_act": "silu",
            "rms_norm_eps": 1e-6}),
        Family::T5 => return t5(hidden, layers),
        Family::Bert => json!({"hidden_act": "gelu", "layer_norm_eps": 1e-12, "type_vocab_size": 2,
            "hidden_dropout_prob": 0.1, "initializer_range": 0.02, "pad_token_id": 0}),
    };
    if let (Value::Object(all), Value::Object(more)) = (&mut json, more) {
        all.extend(more);
    }
    json
}

fn t5(hidden: usize, layers: usize) -> Value {
    json!({
        "architectures": [Family::T5.architecture()], "model_type": "t5", "vocab_size": VOCAB, "d_model": hidden,
        "d_ff": hidden * 3, "d_kv": hidden / 4, "num_heads": 4, "num_layers": layers, "num_decoder_layers": layers,
        "relative_attention_num_buckets": 32, "relative_attention_max_distance": 128, "dropout_rate": 0.1,
        "layer_norm_epsilon": 1e-6, "initializer_factor": 1.0, "feed_forward_proj": "relu",
        "tie_word_embeddings": true, "is_encoder_decoder": true, "use_cache": true, "pad_token_id": 0,
        "eos_token_id": 1, "decoder_start_token_id": 0,
    })
}

/// As many layers, at least three, as make up so many bytes.
fn config_for(family: Family, approx_bytes: u64) -> Result<Value> {
    let hidden = match approx_bytes >> 20 {
        0..2 => 64,
        2..32 => 128,
        32..256 => 256,
        _ => 512,
    };
    let size = |layers| -> Result<u64> {
        let config = ModelConfig::parse(&config(family, hidden, layers).to_string(), "config.json")?;
        Ok(bytes(&required(&config)?).0)
    };
    let (one, two) = (size(1)?, size(2)?);
    let layers = approx_bytes.saturating_sub(one).div_ceil(two.saturating_sub(one).max(1)) + 1;
    let layers = usize::try_from(layers).unwrap_or(usize::MAX).clamp(3, 4096);
    Ok(config(family, hidden, layers))
}

/// Every tensor; T5's shared table under its usual name.
fn required(config: &ModelConfig) -> Result<Vec<Required>> {
    requirements::of(config, &|name| name == "shared.weight")
}

#[cfg(test)]
mod tests {
    use deep_dimensions::offload::checkpoint::Checkpoint;

    use super::*;

    #[test]
    fn every_family_is_written_in_its_layout_and_size() {
        for family in Family::ALL {
            let folder = tempfile::tempdir().unwrap();
            let size = 4 << 20;
            let config = write_tiny(family, folder.path(), size, 7).unwrap();
            let checkpoint = Checkpoint::open(folder.path().join("model.safetensors")).unwrap();
            let all = requirements::check(&config, &checkpoint).unwrap();
            assert_eq!(
                all.len(),
                checkpoint.len(),
                "{family}: the file has what the library asks for, no more"
            );
            let found = checkpoint.total_bytes().0;
            assert!((size..size * 3 / 2).contains(&found), "{family}: {found} B");
            assert!(config.sizes.layers >= 3, "{family}");
        }
    }

    #[test]
    fn half_precision_and_shards_hold_the_same_values() {
        let folders = [(); 3].map(|()| tempfile::tempdir().unwrap());
        let layouts = [(Dtype::F32, 1), (Dtype::BF16, 3), (Dtype::F16, 2)];
        let json = config(Family::Olmo2, 64, 3);
        let values = folders.iter().zip(layouts).map(|(folder, (dtype, shards))| {
            let config = write(&json, folder.path(), 9, Layout { dtype, shards }).unwrap();
            let checkpoint = Checkpoint::open(folder.path()).unwrap();
            assert_eq!(checkpoint.shards().len(), shards);
            requirements::check(&config, &checkpoint).unwrap();
            let backend =
                deep_dimensions::candle::CandleBackend::new(deep_dimensions::core::Device::Cpu).unwrap();
            let vb = crate::weights::builder(&std::sync::Arc::new(checkpoint), &backend);
            let tensor = vb.get_unchecked("model.layers.1.mlp.up_proj.weight").unwrap();
            tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        });
        let values: Vec<Vec<f32>> = values.collect();
        for (rounded, step) in [(&values[1], 1.0 / 256.0), (&values[2], 1.0 / 2048.0)] {
            let close = |(a, b): (&f32, &f32)| (a - b).abs() <= step * a.abs() + 1e-7;
            assert!(values[0].iter().zip(rounded).all(close) && values[0] != *rounded);
        }
    }

    #[test]
    fn a_seed_is_repeatable_and_another_is_not() {
        let written = |seed| {
            let folder = tempfile::tempdir().unwrap();
            write_tiny(Family::Llama, folder.path(), 1 << 20, seed).unwrap();
            std::fs::read(folder.path().join("model.safetensors")).unwrap()
        };
        assert_eq!(written(1), written(1));
        assert_ne!(written(1), written(2));
    }
}
