//! [`EncoderLayer`]: attention and feed-forward, in an order of operations whose memory is known.
//!
//! What is alive at each step is written down in [`crate::activations`]; a change here is a change there, and the
//! test with the counting allocator tells when the two disagree.

use candle_core::{Result, Tensor};
use candle_nn::{LayerNorm, Linear, Module, VarBuilder, layer_norm, linear};

use super::config::{Activation, Config};
use super::rows::{Ragged, blocks, by_blocks};

/// One layer of the encoder: `[tokens, hidden] → [tokens, hidden]`.
#[derive(Clone, Debug)]
pub struct EncoderLayer {
    query: Linear,
    key: Linear,
    value: Linear,
    attention_output: Linear,
    attention_norm: LayerNorm,
    intermediate: Linear,
    output: Linear,
    output_norm: LayerNorm,
    activation: Activation,
    heads: usize,
}

impl EncoderLayer {
    /// Builds the layer from a `VarBuilder` rooted at the layer (`encoder.layer.N`).
    ///
    /// # Errors
    /// Where a tensor is missing or has another shape.
    pub fn load(vb: &VarBuilder, config: &Config) -> Result<Self> {
        let (hidden, inner, eps) = (config.hidden_size, config.intermediate_size, config.layer_norm_eps);
        let square = |name: &str| linear(hidden, hidden, vb.pp(name));
        Ok(Self {
            query: square("attention.self.query")?,
            key: square("attention.self.key")?,
            value: square("attention.self.value")?,
            attention_output: square("attention.output.dense")?,
            attention_norm: layer_norm(hidden, eps, vb.pp("attention.output.LayerNorm"))?,
            intermediate: linear(hidden, inner, vb.pp("intermediate.dense"))?,
            output: linear(inner, hidden, vb.pp("output.dense"))?,
            output_norm: layer_norm(hidden, eps, vb.pp("output.LayerNorm"))?,
            activation: config.hidden_act,
            heads: config.num_attention_heads,
        })
    }

    /// Runs the layer over a batch's rows, `[tokens, hidden]`.
    ///
    /// # Errors
    /// Where shapes do not meet.
    pub fn forward(&self, states: &Tensor, batch: &Ragged) -> Result<Tensor> {
        let context = self.attend(states, batch)?;
        by_blocks(states.dims2()?, states, |start, len| {
            self.finish(&states.narrow(0, start, len)?, &context.narrow(0, start, len)?)
        })
    }

    /// Attention within each sentence: `[tokens, hidden] → [tokens, hidden]`.
    fn attend(&self, states: &Tensor, batch: &Ragged) -> Result<Tensor> {
        let (_, width) = states.dims2()?;
        let scale = ((width / self.heads) as f64).powf(-0.5);
        let query = project(&self.query, states)?;
        let key = project(&self.key, states)?;
        let value = project(&self.value, states)?;
        let context = Tensor::zeros_like(states)?;
        for (start, len) in batch.spans() {
            let key = self.split_heads(&key.narrow(0, start, len)?)?.t()?;
            let value = self.split_heads(&value.narrow(0, start, len)?)?;
            for (first, rows) in blocks(len) {
                let query = (query.narrow(0, start + first, rows)? * scale)?;
                let block = weigh(&self.split_heads(&query)?, &key, &value)?;
                let block = block.transpose(0, 1)?.reshape((rows, width))?;
                context.slice_set(&block, 0, start + first)?;
            }
        }
        Ok(context)
    }

    /// `[rows, hidden] → [heads, rows, head]`, without a copy.
    fn split_heads(&self, rows: &Tensor) -> Result<Tensor> {
        let (len, width) = rows.dims2()?;
        rows.reshape((len, self.heads, width / self.heads))?.transpose(0, 1)
    }

    /// What follows attention, on a block of rows.
    fn finish(&self, states: &Tensor, context: &Tensor) -> Result<Tensor> {
        let projected = self.attention_output.forward(context)?;
        let attended = add_norm(projected, states, &self.attention_norm)?;
        let inner = self.intermediate.forward(&attended)?;
        let inner = activate(inner, self.activation)?;
        let projected = self.output.forward(&inner)?;
        drop(inner);
        add_norm(projected, &attended, &self.output_norm)
    }
}

fn project(linear: &Linear, states: &Tensor) -> Result<Tensor> {
    by_blocks(states.dims2()?, states, |start, len| linear.forward(&states.narrow(0, start, len)?))
}

/// `softmax(query · key) · value`: `[heads, rows, head] · [heads, head, len] · [heads, len, head]`.
fn weigh(query: &Tensor, key: &Tensor, value: &Tensor) -> Result<Tensor> {
    let scores = query.matmul(key)?;
    let weights = candle_nn::ops::softmax_last_dim(&scores)?;
    drop(scores);
    weights.matmul(value)
}

fn activate(inner: Tensor, activation: Activation) -> Result<Tensor> {
    match activation {
        Activation::Gelu => inner.gelu_erf(),
        Activation::GeluNew => inner.gelu(),
        Activation::Relu => inner.relu(),
    }
}

fn add_norm(projected: Tensor, residual: &Tensor, norm: &LayerNorm) -> Result<Tensor> {
    let sum = (&projected + residual)?;
    drop(projected);
    norm.forward(&sum)
}
