//! [`Model`]: one interface over all families, and [`open`], the constructor of each.
//!
//! Each family is the library's own code over the `VarBuilder` that is handed in: whether the weights are in memory or
//! paged in under it, no adapter knows. The adapters here only say how the library spells a forward pass and how it
//! forgets what it has cached.

mod bert;
mod gemma3;
mod llama;
mod plain;
mod stable_lm;
mod t5;

use candle_core::{DType, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models as library;

use super::config::ModelConfig;
use super::family::Family;
use crate::error::{CliError, Result};
use plain::Plain;

/// A model that takes tokens and gives the logits of what comes next.
pub trait Model: Send {
    /// One pass over `tokens`, u32 of shape `[batch, seq]`, the first of which stands at `position`: the logits of
    /// what follows the last, F32 of shape `[batch, vocab]`. What came before `position` must have gone through before.
    ///
    /// An encoder with a decoder takes the text to encode at position 0, and gives the logits of the decoder's first
    /// word; then the decoder's words, one at a time, at 1, 2 and so on. An encoder alone gives the states of the last
    /// position, `[batch, hidden]`.
    ///
    /// # Errors
    /// What the tensor library says.
    fn forward(&mut self, tokens: &Tensor, position: usize) -> candle_core::Result<Tensor>;

    /// Forgets all tokens; the next pass begins at position 0.
    fn reset(&mut self);
}

/// The model that `config` asks for, over the tensors that `vb` gives, for texts of at most `positions` tokens.
///
/// `vb` must give every tensor of [`super::requirements::of`]: the library unwraps where one is missing.
/// [`super::requirements::check`] says so first.
///
/// # Errors
/// [`CliError::Input`] where a field of the config is missing or wrong, or `positions` is more than the model knows;
/// [`CliError::Tensor`] where a tensor is missing or has another shape.
pub fn open(config: &ModelConfig, vb: &VarBuilder<'static>, positions: usize) -> Result<Box<dyn Model>> {
    check_positions(config, positions)?;
    let vb = vb.clone();
    let at = Some(positions);
    Ok(match config.family {
        Family::Llama => Box::new(llama::Llama::load(config, &vb, positions)?),
        Family::Mistral => {
            let own = config.library(at)?;
            Box::new(Plain(loaded(config, library::mistral::Model::new(&own, vb))?))
        }
        Family::Qwen2 => {
            let own = config.library(at)?;
            Box::new(Plain(loaded(config, library::qwen2::ModelForCausalLM::new(&own, vb))?))
        }
        Family::Qwen3 => {
            let own = config.library(at)?;
            Box::new(Plain(loaded(config, library::qwen3::ModelForCausalLM::new(&own, vb))?))
        }
        Family::Phi3 => {
            let own = config.library(at)?;
            Box::new(Plain(loaded(config, library::phi3::Model::new(&own, vb))?))
        }
        Family::Gemma => {
            let own = config.library(at)?;
            Box::new(Plain(loaded(config, library::gemma::Model::new(false, &own, vb))?))
        }
        Family::Gemma2 => {
            let own = config.library(at)?;
            Box::new(Plain(loaded(config, library::gemma2::Model::new(false, &own, vb))?))
        }
        Family::Gemma3 => Box::new(gemma3::Gemma3::load(config, &vb, positions)?),
        Family::StarCoder2 => {
            let own = config.library(at)?;
            Box::new(Plain(loaded(config, library::starcoder2::Model::new(&own, vb))?))
        }
        Family::StableLm => Box::new(stable_lm::StableLm::load(config, &vb, positions)?),
        Family::Olmo => {
            let own = config.library(at)?;
            Box::new(Plain(loaded(config, library::olmo::Model::new(&own, vb))?))
        }
        Family::Olmo2 => {
            let own = config.library(at)?;
            Box::new(Plain(loaded(config, library::olmo2::Model::new(&own, vb))?))
        }
        Family::T5 => Box::new(t5::T5::load(config, &vb)?),
        Family::Bert => Box::new(bert::Bert::load(config, &vb)?),
    })
}

/// Refuses texts that are longer than the model knows.
pub(super) fn check_positions(config: &ModelConfig, positions: usize) -> Result<()> {
    if positions <= config.sizes.positions {
        return Ok(());
    }
    let problem = format!("{positions} tokens are more than the {} that it knows", config.sizes.positions);
    Err(CliError::input(config.place(), problem, "give a shorter prompt or fewer --max-tokens"))
}

/// Names the model where the library refuses to load it.
fn loaded<T>(config: &ModelConfig, result: candle_core::Result<T>) -> Result<T> {
    result.map_err(CliError::tensor(format!("the {} of {}", config.family, config.place())))
}

/// Logits of shape `[batch, 1, vocab]` or `[batch, vocab]` as F32 of shape `[batch, vocab]`.
fn flat(logits: Tensor) -> candle_core::Result<Tensor> {
    let logits = if logits.rank() == 3 { logits.squeeze(1)? } else { logits };
    logits.to_dtype(DType::F32)
}
