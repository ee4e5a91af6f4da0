//! [`Plain`]: the families whose code spells a pass `forward(tokens, position)` and a reset `clear_kv_cache()`.

use candle_core::{Result, Tensor};
use candle_transformers::models as library;

use super::{Model, flat};

/// A model of the library as a [`Model`].
pub(super) struct Plain<M>(pub(super) M);

macro_rules! plain {
    ($($model:ty),* $(,)?) => {$(
        impl Model for Plain<$model> {
            fn forward(&mut self, tokens: &Tensor, position: usize) -> Result<Tensor> {
                flat(self.0.forward(tokens, position)?)
            }

            fn reset(&mut self) {
                self.0.clear_kv_cache();
            }
        }
    )*};
}

plain!(
    library::mistral::Model,
    library::qwen2::ModelForCausalLM,
    library::qwen3::ModelForCausalLM,
    library::phi3::Model,
    library::gemma::Model,
    library::gemma2::Model,
    library::starcoder2::Model,
    library::olmo::Model,
    library::olmo2::Model,
);
