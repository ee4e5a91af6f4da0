//! [`Bert`]: the library's encoder; it has no logits, so that a pass gives the states of the last position.

use candle_core::{DType, IndexOp, Result, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::bert::{BertModel, Config};

use super::{Model, loaded};
use crate::bert::prefix_of;
use crate::generate::config::ModelConfig;

/// The encoder.
pub(super) struct Bert(BertModel);

impl Bert {
    pub(super) fn load(config: &ModelConfig, vb: &VarBuilder<'static>) -> crate::error::Result<Self> {
        let own: Config = config.library(None)?;
        let prefix = prefix_of(|name| vb.contains_tensor(name));
        let vb = if prefix.is_empty() { vb.clone() } else { vb.pp(prefix.trim_end_matches('.')) };
        Ok(Self(loaded(config, BertModel::load(vb, &own))?))
    }
}

impl Model for Bert {
    fn forward(&mut self, tokens: &Tensor, _: usize) -> Result<Tensor> {
        let last = tokens.dim(1)?.saturating_sub(1);
        let states = self.0.forward(tokens, &tokens.zeros_like()?, None)?;
        states.i((.., last))?.contiguous()?.to_dtype(DType::F32)
    }

    fn reset(&mut self) {}
}
