//! [`Gemma3`]: the library's cache takes several tokens at once only where there is one key head.
//!
//! `candle_nn::kv_cache::KvCache` wants contiguous values, and the library's code hands it a transposed view, which is
//! contiguous where it has one head (as in the models of 270 M and 1 B) or one token. Elsewhere the prompt goes
//! through token by token: the same result, a pass over the weights for each.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::gemma3::{Config, Model as Library};

use super::{Model, flat, loaded};
use crate::generate::config::ModelConfig;

/// The model, and whether it takes a prompt at once.
pub(super) struct Gemma3 {
    model: Library,
    at_once: bool,
}

impl Gemma3 {
    pub(super) fn load(
        config: &ModelConfig,
        vb: &VarBuilder<'static>,
        positions: usize,
    ) -> crate::error::Result<Self> {
        let own: Config = config.library(Some(positions))?;
        let model = loaded(config, Library::new(false, &own, vb.clone()))?;
        Ok(Self { model, at_once: config.sizes.kv_heads == 1 })
    }
}

impl Model for Gemma3 {
    fn forward(&mut self, tokens: &Tensor, position: usize) -> Result<Tensor> {
        let len = tokens.dim(1)?;
        if !self.at_once {
            for index in 0..len.saturating_sub(1) {
                self.model.forward(&tokens.narrow(1, index, 1)?, position + index)?;
            }
            let last = len.saturating_sub(1);
            return flat(self.model.forward(&tokens.narrow(1, last, 1)?, position + last)?);
        }
        flat(self.model.forward(tokens, position)?)
    }

    fn reset(&mut self) {
        self.model.clear_kv_cache();
    }
}
