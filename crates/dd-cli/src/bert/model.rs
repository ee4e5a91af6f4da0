//! [`Bert`]: embeddings and layers, each reached through its [`Part`].

use candle_core::{Device, Tensor};
use candle_nn::{LayerNorm, Module, VarBuilder, embedding, layer_norm};

use super::config::Config;
use super::layer::EncoderLayer;
use super::part::{Embed, Held, Part};
use super::rows::Ragged;
use crate::error::{CliError, Result};

/// A BERT encoder: token ids to states, `[tokens] → [tokens, hidden]`.
pub struct Bert {
    /// Word embeddings, `[vocab, hidden]`.
    pub words: Box<dyn Embed>,
    /// Position embeddings, `[max positions, hidden]`.
    pub positions: Box<dyn Embed>,
    /// Token type embeddings, `[types, hidden]`.
    pub types: Box<dyn Embed>,
    /// The layer norm after the embeddings.
    pub norm: Box<dyn Part<LayerNorm>>,
    /// The layers, first to last.
    pub layers: Vec<Box<dyn Part<EncoderLayer>>>,
}

impl Bert {
    /// A model whose weights are all plainly held in memory; `vb` is rooted where `embeddings` and `encoder` are
    /// ([`prefix_of`]).
    ///
    /// # Errors
    /// Where a tensor is missing, has another shape, or cannot be read.
    pub fn held(vb: &VarBuilder, config: &Config) -> Result<Self> {
        let table = |name: &str, rows: usize| {
            let name = format!("embeddings.{name}");
            let table = embedding(rows, config.hidden_size, vb.pp(&name));
            table.map(|table| Held::new(&name, table)).map_err(CliError::tensor(name))
        };
        let norm = layer_norm(config.hidden_size, config.layer_norm_eps, vb.pp("embeddings.LayerNorm"));
        let layer = |index: usize| -> Result<Box<dyn Part<EncoderLayer>>> {
            let name = format!("encoder.layer.{index}");
            let layer = EncoderLayer::load(&vb.pp(&name), config).map_err(CliError::tensor(name.as_str()))?;
            Ok(Box::new(Held::new(name, layer)))
        };
        Ok(Self {
            words: Box::new(table("word_embeddings", config.vocab_size)?),
            positions: Box::new(table("position_embeddings", config.max_position_embeddings)?),
            types: Box::new(table("token_type_embeddings", config.type_vocab_size)?),
            norm: Box::new(Held::new("embeddings.LayerNorm", norm.map_err(CliError::tensor("embeddings"))?)),
            layers: (0..config.num_hidden_layers).map(layer).collect::<Result<_>>()?,
        })
    }

    /// Runs the encoder; `on_layer` is told how many layers are done.
    ///
    /// # Errors
    /// [`CliError::Input`] for a batch without a token; where shapes do not meet; what bringing the weights says.
    pub fn forward(&self, batch: &Ragged, on_layer: &mut dyn FnMut(usize)) -> Result<Tensor> {
        if batch.ids().is_empty() {
            return Err(CliError::input("batch", "it has no token", "give at least one text"));
        }
        let mut states = self.embed(batch)?;
        for (index, layer) in self.layers.iter().enumerate() {
            states = layer.with(&mut |layer| layer.forward(&states, batch))?;
            on_layer(index + 1);
        }
        Ok(states)
    }

    fn embed(&self, batch: &Ragged) -> Result<Tensor> {
        let failed = || CliError::tensor("embeddings");
        let ids = |ids: &[u32]| Tensor::new(ids, &Device::Cpu).map_err(failed());
        let words = self.words.rows(&ids(batch.ids())?)?;
        let types = self.types.rows(&ids(&[0])?)?; // Every text is of the first type.
        let typed = words.broadcast_add(&types).map_err(failed())?;
        drop(words);
        let positions = self.positions.rows(&ids(&batch.positions())?)?;
        let sum = (&typed + &positions).map_err(failed())?;
        drop((typed, positions));
        self.norm.with(&mut |norm| norm.forward(&sum))
    }
}

/// The prefix under which a checkpoint keeps `embeddings` and `encoder`: `""`, or `"bert."` where a task's head was
/// saved beside the encoder.
#[must_use]
pub fn prefix_of(contains: impl Fn(&str) -> bool) -> &'static str {
    if contains("bert.embeddings.word_embeddings.weight") { "bert." } else { "" }
}
