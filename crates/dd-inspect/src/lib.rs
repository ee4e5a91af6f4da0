//! What a network needs: parameters, activations, live peak, memory plans, file headers.
//!
//! | module | what it holds |
//! |---|---|
//! | [`layer`], [`graph`] | layers, and networks of them: a builder, shapes, shared weights, sub-graphs |
//! | [`network`] | [`InspectNetwork`]: counts, as one call each |
//! | [`table`] | a row per layer: shapes, parameters, multiply-adds, bytes |
//! | [`program`] | what a network does to memory, step by step: inference and training |
//! | [`liveness`], [`estimate`] | the live peak, as a value and as a cost model |
//! | [`arena`] | where each buffer lies in one block of memory |
//! | [`reorder`] | another order of the layers, with a lower peak |
//! | [`exec`] | running a program, on the heap or in its planned arena, with canaries |
//! | [`read`] | headers of safetensors, GGUF and ONNX files, and `config.json` |
//! | [`error`] | what can go wrong |

pub mod arena;
pub mod error;
pub mod estimate;
pub mod exec;
pub mod graph;
pub mod layer;
pub mod liveness;
pub mod network;
pub mod program;
pub mod read;
pub mod reorder;
pub mod table;

pub use error::{Error, Result};
pub use estimate::NetworkCost;
pub use graph::{Graph, GraphBuilder, Sizes};
pub use network::InspectNetwork;
