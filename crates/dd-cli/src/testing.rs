//! Small models with counted weights, for tests: this crate's own and those in `tests/`.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;

use crate::bert::{Activation, Config};
use crate::demo::counted_weights;

/// A configuration with a vocabulary of 50 and at most 512 positions.
#[must_use]
pub fn config(hidden: usize, heads: usize, inner: usize, layers: usize) -> Config {
    Config {
        model_type: "bert".to_owned(),
        vocab_size: 50,
        hidden_size: hidden,
        num_hidden_layers: layers,
        num_attention_heads: heads,
        intermediate_size: inner,
        hidden_act: Activation::Gelu,
        max_position_embeddings: 512,
        type_vocab_size: 2,
        layer_norm_eps: 1e-12,
        position_embedding_type: None,
        is_decoder: false,
    }
}

/// Every tensor of a model, in memory, with deterministic weights.
///
/// # Errors
/// What the tensor library says.
pub fn weights(config: &Config) -> candle_core::Result<HashMap<String, Tensor>> {
    let tensors = crate::demo::tensors_of(config);
    let make = |(index, (name, shape)): (u64, (String, Vec<usize>))| {
        let len = shape.iter().product();
        let values: Vec<f32> = counted_weights(index, &name, config).take(len).collect();
        Ok((name, Tensor::from_vec(values, shape, &Device::Cpu)?))
    };
    (0..).zip(tensors).map(make).collect()
}

/// A `VarBuilder` over [`weights`].
///
/// # Errors
/// What the tensor library says.
pub fn builder(config: &Config) -> candle_core::Result<VarBuilder<'static>> {
    Ok(VarBuilder::from_tensors(weights(config)?, DType::F32, &Device::Cpu))
}
