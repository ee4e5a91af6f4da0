//! [`StableLm`]: the library's code cannot forget, so it is made anew, over the same tensors.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Device, Result, Shape, Tensor};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};
use candle_transformers::models::stable_lm::{Config, Model as Library};

use super::{Model, flat, loaded};
use crate::generate::config::ModelConfig;

/// The model, and what it is made of.
pub(super) struct StableLm {
    model: Option<Library>,
    config: Config,
    vb: VarBuilder<'static>,
}

impl StableLm {
    pub(super) fn load(
        config: &ModelConfig,
        vb: &VarBuilder<'static>,
        positions: usize,
    ) -> crate::error::Result<Self> {
        let own: Config = config.library(Some(positions))?;
        let (dtype, device) = (vb.dtype(), vb.device().clone());
        let kept = Kept { source: vb.clone(), tensors: Mutex::default() };
        let vb = VarBuilder::from_backend(Box::new(kept), dtype, device);
        let model = loaded(config, Library::new(&own, vb.clone()))?;
        Ok(Self { model: Some(model), config: own, vb })
    }
}

impl Model for StableLm {
    fn forward(&mut self, tokens: &Tensor, position: usize) -> Result<Tensor> {
        let model = match &mut self.model {
            Some(model) => model,
            none => none.insert(Library::new(&self.config, self.vb.clone())?),
        };
        flat(model.forward(tokens, position)?)
    }

    fn reset(&mut self) {
        self.model = None;
    }
}

/// Gives the same tensors, not copies, each time a model is made.
struct Kept {
    source: VarBuilder<'static>,
    tensors: Mutex<HashMap<String, Tensor>>,
}

impl SimpleBackend for Kept {
    fn get(&self, shape: Shape, name: &str, _: Init, dtype: DType, _: &Device) -> Result<Tensor> {
        let mut tensors = self.tensors.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tensor) = tensors.get(name) {
            return Ok(tensor.clone());
        }
        let tensor = self.source.get_with_hints_dtype(shape, name, Init::default(), dtype)?;
        tensors.insert(name.to_owned(), tensor.clone());
        Ok(tensor)
    }

    fn get_unchecked(&self, name: &str, dtype: DType, _: &Device) -> Result<Tensor> {
        self.source.get_unchecked_dtype(name, dtype)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.source.contains_tensor(name)
    }
}
