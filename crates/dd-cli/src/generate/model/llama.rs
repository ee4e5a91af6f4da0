//! [`Llama`]: the library's llama keeps its cache beside it.

use candle_core::{DType, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::llama::{self as library, Cache, LlamaConfig};

use super::{Model, flat, loaded};
use crate::error::Result;
use crate::generate::config::ModelConfig;

/// The model, its cache, and an empty cache to begin anew with: its tables are shared, not copied.
pub(super) struct Llama {
    model: library::Llama,
    cache: Cache,
    empty: Cache,
}

impl Llama {
    pub(super) fn load(config: &ModelConfig, vb: &VarBuilder<'static>, positions: usize) -> Result<Self> {
        let own = config.library::<LlamaConfig>(Some(positions))?.into_config(false);
        let empty = loaded(config, Cache::new(true, DType::F32, &own, vb.device()))?;
        let model = loaded(config, library::Llama::load(vb.clone(), &own))?;
        Ok(Self { model, cache: empty.clone(), empty })
    }
}

impl Model for Llama {
    fn forward(&mut self, tokens: &Tensor, position: usize) -> candle_core::Result<Tensor> {
        flat(self.model.forward(tokens, position, &mut self.cache)?)
    }

    fn reset(&mut self) {
        self.cache = self.empty.clone();
    }
}
