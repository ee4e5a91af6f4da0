//! Text generation with the model code of candle-transformers, not a line of it changed.
//!
//! | module | what it holds |
//! |---|---|
//! | [`family`] | which model code a `config.json` asks for |
//! | [`config`] | `config.json`, its omissions filled in, its sizes checked before anything believes them |
//! | [`model`] | one interface over all families, and the constructor of each |
//! | [`requirements`] | which tensors a model will ask for, known before any is read |
//! | [`weights`] | where tensors come from: memory, or a pager |
//! | [`activations`] | what a run takes beside the weights, bounded before it starts |
//! | [`prompt`], [`chat`] | prompts to tokens and back; the model's chat template |
//! | [`sampling`], [`session`] | choosing tokens; writing a block of texts |
//! | [`plan`] | which prompts go together and what a run takes, decided before anything is read |
//! | [`run`], [`report`] | the command, and what it reports |
//! | [`tiny`] | small random checkpoints in each family's usual layout, for tests |

pub mod activations;
pub mod chat;
pub mod config;
pub mod family;
pub mod model;
pub mod plan;
pub mod prompt;
pub mod report;
pub mod requirements;
pub mod run;
pub mod sampling;
pub mod session;
pub mod tiny;
pub mod weights;

pub use config::ModelConfig;
pub use family::Family;
pub use model::Model;
