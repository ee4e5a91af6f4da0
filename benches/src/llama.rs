//! A Llama of any size for candle-transformers' own, unmodified model: its configuration, its tensors, and a session
//! that feeds it the same tokens every time.

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::llama::{Cache, Config, Llama};
use serde::{Deserialize, Serialize};

use crate::Result;

/// How large a Llama is. Tables of tokens are small, so that nearly every byte of the weights is used in every pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LlamaShape {
    /// Width of the residual stream; heads are 128 wide, and three of them share their keys and values.
    pub hidden: usize,
    /// Width of the feed-forward part.
    pub intermediate: usize,
    /// Decoder blocks.
    pub layers: usize,
    /// Tokens there are.
    pub vocabulary: usize,
}

const HEAD: usize = 128;
/// Heads that share keys and values.
const SHARING: usize = 3;
/// Tokens that a session may take.
const POSITIONS: usize = 512;

impl LlamaShape {
    /// As many blocks of 100 MB as come closest to `bytes` as F32, at least two; `small` takes blocks of 6.5 MB.
    #[must_use]
    pub fn of_size(bytes: u64, small: bool) -> Self {
        let (hidden, intermediate, vocabulary) = if small { (384, 1024, 512) } else { (1536, 4096, 4096) };
        let empty = Self { hidden, intermediate, layers: 0, vocabulary };
        let one = Self { layers: 1, ..empty }.bytes() - empty.bytes();
        let layers = (bytes.saturating_sub(empty.bytes()) + one / 2) / one;
        Self { layers: usize::try_from(layers).unwrap_or(2).max(2), ..empty }
    }

    /// Bytes of all weights as F32.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.tensors().iter().map(|(_, shape)| shape.iter().product::<usize>() as u64 * 4).sum()
    }

    /// Bytes, as F32, of the table of which a token needs one row only.
    #[must_use]
    pub fn table_bytes(&self) -> u64 {
        (self.vocabulary * self.hidden) as u64 * 4
    }

    const fn heads(&self) -> usize {
        self.hidden / HEAD
    }

    const fn shared_heads(&self) -> usize {
        self.heads() / SHARING
    }

    /// Every tensor's name and shape, in the order of use.
    #[must_use]
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (d, wide, shared) = (self.hidden, self.intermediate, self.shared_heads() * HEAD);
        let block: [(&str, Vec<usize>); 9] = [
            ("input_layernorm", vec![d]),
            ("self_attn.q_proj", vec![d, d]),
            ("self_attn.k_proj", vec![shared, d]),
            ("self_attn.v_proj", vec![shared, d]),
            ("self_attn.o_proj", vec![d, d]),
            ("post_attention_layernorm", vec![d]),
            ("mlp.gate_proj", vec![wide, d]),
            ("mlp.up_proj", vec![wide, d]),
            ("mlp.down_proj", vec![d, wide]),
        ];
        let mut tensors = vec![("model.embed_tokens.weight".to_owned(), vec![self.vocabulary, d])];
        for n in 0..self.layers {
            let named =
                block.iter().map(|(name, shape)| (format!("model.layers.{n}.{name}.weight"), shape.clone()));
            tensors.extend(named);
        }
        tensors.push(("model.norm.weight".to_owned(), vec![d]));
        tensors.push(("lm_head.weight".to_owned(), vec![self.vocabulary, d]));
        tensors
    }

    /// candle-transformers' configuration of it.
    #[must_use]
    pub fn config(&self) -> Config {
        Config {
            hidden_size: self.hidden,
            intermediate_size: self.intermediate,
            vocab_size: self.vocabulary,
            num_hidden_layers: self.layers,
            num_attention_heads: self.heads(),
            num_key_value_heads: self.shared_heads(),
            use_flash_attn: false,
            rms_norm_eps: 1e-5,
            rope_theta: 10_000.0,
            bos_token_id: None,
            eos_token_id: None,
            rope_scaling: None,
            max_position_embeddings: POSITIONS,
            tie_word_embeddings: false,
        }
    }

    /// The tokens of one pass: `rows` prompts, each at its token number `position`.
    fn tokens(&self, rows: usize, position: usize) -> candle_core::Result<Tensor> {
        let token = |row: usize| (row * 31 + position * 7919 + 13) % self.vocabulary;
        let tokens: Vec<u32> = (0..rows).filter_map(|row| u32::try_from(token(row)).ok()).collect();
        Tensor::from_vec(tokens, (rows, 1), &Device::Cpu)
    }
}

/// `rows` prompts that run as a block, one token of each per pass.
pub struct Session {
    model: Llama,
    cache: Cache,
    shape: LlamaShape,
    rows: usize,
    position: usize,
}

impl Session {
    /// Loads the model in the ordinary way.
    ///
    /// # Errors
    /// candle's: a tensor that is not there, or of another shape.
    pub fn load(vb: VarBuilder<'_>, shape: LlamaShape, rows: usize) -> Result<Self> {
        let config = shape.config();
        let cache = Cache::new(true, DType::F32, &config, &Device::Cpu)?;
        Ok(Self { model: Llama::load(vb, &config)?, cache, shape, rows, position: 0 })
    }

    /// One pass over all weights: the next token of every prompt goes in, `[rows × vocabulary]` logits come out.
    ///
    /// # Errors
    /// candle's.
    pub fn pass(&mut self) -> Result<Vec<f32>> {
        let tokens = self.shape.tokens(self.rows, self.position)?;
        let logits = self.model.forward(&tokens, self.position, &mut self.cache)?;
        self.position += 1;
        Ok(logits.flatten_all()?.to_vec1()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_come_close_to_what_was_asked() {
        for (bytes, small) in [(1_u64 << 30, false), (1_288_490_188, false), (48 << 20, true)] {
            let shape = LlamaShape::of_size(bytes, small);
            let off = shape.bytes().abs_diff(bytes) as f64 / bytes as f64;
            assert!(off < 0.08, "{shape:?} has {} of {bytes} B", shape.bytes());
            assert!(shape.table_bytes() * 20 < shape.bytes());
        }
    }

    #[test]
    fn the_tensors_are_those_that_the_model_asks_for() {
        let shape = LlamaShape { hidden: 384, intermediate: 64, layers: 2, vocabulary: 32 };
        let tensors = shape
            .tensors()
            .into_iter()
            .map(|(name, shape)| (name, Tensor::ones(shape, DType::F32, &Device::Cpu).unwrap()));
        let vb = VarBuilder::from_tensors(tensors.collect(), DType::F32, &Device::Cpu);
        let mut session = Session::load(vb, shape, 2).unwrap();
        assert_eq!(session.pass().unwrap().len(), 2 * 32);
        assert_eq!(session.pass().unwrap().len(), 2 * 32);
    }
}
