//! Which sizes fit: dimensions of a tensor, and batches of a model. Arithmetic and search; nothing here measures memory.
//!
//! A tensor that is too large is made smaller, never refused while some size fits. What comes out always costs at most the
//! target, is *maximal* (no dimension can grow by its step and still fit), and among the maximal results is the one that
//! distorts the wished shape least. All of it is decided before anything is allocated, and can be printed.
//!
//! | module | what it holds |
//! |---|---|
//! | [`config`] | [`ScalingConfig`]: thresholds, bounds, steps, frozen dimensions, the strategy; validated when built |
//! | [`family`] | [`PowerLaw`]: the strategies d' = min(d, κ·d^γ), linear and exponential among them |
//! | [`fit`] | [`Scaler`] and [`ScalingResult`]: sizes for a target in bytes, without a tensor library |
//! | [`scaler`] | [`AutoScaler`]: the same for what is available now, and tensors of these sizes on any backend |
//! | [`memory`] | [`MemoryInfo`]: what counts as available, and which figure it came from |
//! | [`batch`] | [`BatchSearch`]: the largest batch that fits, verified by a run |
//! | [`child`] | runs in a child process under a limit, and what its end means |
//! | [`accumulation`] | [`AccumulationPlan`]: micro-batches that keep a global batch |
//! | [`cost`] | [`TensorCost`](cost::TensorCost): the bytes of one tensor as a cost model |
//! | [`parse`], [`report`] | dimensions as a user writes them; results as a table |
//! | [`error`] | [`Error`]: what was wrong, where, and what to do |

pub mod accumulation;
mod axis;
pub mod batch;
#[cfg(unix)]
pub mod child;
pub mod config;
pub mod cost;
pub mod error;
pub mod family;
mod fill;
pub mod fit;
pub mod memory;
mod model;
pub mod parse;
pub mod report;
pub mod scaler;
mod search;
#[cfg(unix)]
mod sys;

pub use accumulation::AccumulationPlan;
pub use batch::{BatchReport, BatchSearch, Prior, StepOutcome, StepRunner};
#[cfg(unix)]
pub use child::ChildRunner;
pub use config::{ScalingConfig, ScalingConfigBuilder, Strategy};
pub use error::{Error, Result};
pub use family::PowerLaw;
pub use fit::{Scaler, ScalingResult};
pub use memory::MemoryInfo;
pub use scaler::{AutoScaler, ScaledTensor};
