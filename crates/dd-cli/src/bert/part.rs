//! [`Part`] and [`Embed`]: how a model reaches its weights, wherever they are.

use candle_core::Tensor;
use candle_nn::{Embedding, Module};

use crate::error::{CliError, Result};

/// A part of a model that can be used while its weights are there.
pub trait Part<M> {
    /// Calls `run` with the part. Must call it exactly once where it returns `Ok`.
    ///
    /// # Errors
    /// What `run` says; and where the weights must first be brought: what bringing them says.
    fn with(&self, run: &mut dyn FnMut(&M) -> candle_core::Result<Tensor>) -> Result<Tensor>;
}

/// A table of rows that are looked up by id.
pub trait Embed {
    /// The rows of these ids: `[n] → [n, width]`.
    ///
    /// # Errors
    /// For an id past the table's end; what reading the rows says.
    fn rows(&self, ids: &Tensor) -> Result<Tensor>;
}

/// A part whose weights are plainly held in memory, under its name.
#[derive(Debug)]
pub struct Held<M> {
    name: String,
    part: M,
}

impl<M> Held<M> {
    /// Wraps a part; the name is for messages.
    pub fn new(name: impl Into<String>, part: M) -> Self {
        Self { name: name.into(), part }
    }
}

impl<M> Part<M> for Held<M> {
    fn with(&self, run: &mut dyn FnMut(&M) -> candle_core::Result<Tensor>) -> Result<Tensor> {
        run(&self.part).map_err(CliError::tensor(self.name.as_str()))
    }
}

impl Embed for Held<Embedding> {
    fn rows(&self, ids: &Tensor) -> Result<Tensor> {
        self.part.forward(ids).map_err(CliError::tensor(self.name.as_str()))
    }
}
