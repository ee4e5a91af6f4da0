//! [`T5`]: the text is encoded at position 0; from then on the decoder is given its own words.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::t5::{Config, T5ForConditionalGeneration};

use super::{Model, flat, loaded};
use crate::error::CliError;
use crate::generate::config::ModelConfig;

/// The model, and what the encoder said.
pub(super) struct T5 {
    model: T5ForConditionalGeneration,
    encoded: Option<Tensor>,
    start: u32,
}

impl T5 {
    pub(super) fn load(config: &ModelConfig, vb: &VarBuilder<'static>) -> crate::error::Result<Self> {
        let own: Config = config.library(None)?;
        let start = config.decoder_start().ok_or_else(|| {
            CliError::input(config.place(), "decoder_start_token_id is missing", "take a whole config.json")
        })?;
        let model = loaded(config, T5ForConditionalGeneration::load(vb.clone(), &own))?;
        Ok(Self { model, encoded: None, start })
    }
}

impl Model for T5 {
    fn forward(&mut self, tokens: &Tensor, position: usize) -> Result<Tensor> {
        if let Some(encoded) = &self.encoded
            && position > 0
        {
            return flat(self.model.decode(tokens, encoded)?);
        }
        self.reset();
        let encoded = self.model.encode(tokens)?;
        let start = Tensor::full(self.start, (tokens.dim(0)?, 1), tokens.device())?;
        let logits = self.model.decode(&start, &encoded)?;
        self.encoded = Some(encoded);
        flat(logits)
    }

    fn reset(&mut self) {
        self.encoded = None;
        self.model.clear_kv_cache();
    }
}
