//! A BERT encoder written for streaming and for a memory limit.
//!
//! Sentences are not padded: a batch is the rows of all its tokens, one sentence after the other
//! ([`Ragged`]), and only attention looks at one sentence at a time. Everything that works on rows works on blocks
//! of at most [`rows::ROWS`] rows, so that what a pass holds beyond its inputs and outputs does not grow with the
//! batch, and is known before it starts ([`crate::activations`]).
//!
//! Each layer is a module of its own ([`EncoderLayer`]), reached through [`Part`]: plainly held ([`Held`]) or managed.
//! Both run the same operations in the same order, so their results are equal bit for bit.
//!
//! Source: Devlin et al., *BERT: Pre-training of Deep Bidirectional Transformers* (2018); the names of the tensors
//! are those of Hugging Face checkpoints.

mod config;
mod layer;
mod model;
mod part;
mod rows;

pub use config::{Activation, Config};
pub use layer::EncoderLayer;
pub use model::{Bert, prefix_of};
pub use part::{Embed, Held, Part};
pub use rows::{ROWS, Ragged, largest_block};
