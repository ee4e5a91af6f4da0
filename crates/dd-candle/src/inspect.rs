//! The peak of a candle program: [`measure`] runs it, [`trace`] runs it at a few small sizes and says what larger ones take.
//!
//! candle's tensors are freed when the last handle goes, and what holds handles is candle's own code. So the order of
//! freeing is not guessed: it is recorded (see [`dd_inspect::trace`]). A program that traces installs the recording
//! allocator:
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use dd_candle::inspect::{RecordingAllocator, trace};
//! use dd_core::CostModel as _;
//!
//! #[global_allocator]
//! static ALLOCATOR: RecordingAllocator<std::alloc::System> = RecordingAllocator::new(std::alloc::System);
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let model = trace(&[8, 16, 32], |batch| {
//!     let x = Tensor::ones((batch, 1024), DType::F32, &Device::Cpu)?;
//!     let y = x.relu()?;
//!     y.sum_all()
//! })?;
//! // Two results of 4 KiB per sample.
//! let peak = model.peak(&[1000])?;
//! assert!(peak.0 >= 2 * 4096 * 1000 && peak.0 < 2 * 4096 * 1010);
//! # Ok(())
//! # }
//! ```
//!
//! What other threads hold at a moment (workspaces of products and convolutions) depends on how they are scheduled, and is the
//! largest that was seen; with one worker of rayon's it is always the same.
//!
//! # Where candle holds more than is needed
//!
//! Compared with the live peak of the same network ([`dd_inspect::NetworkCost`]), candle 0.11 holds more in these places:
//!
//! - **Forward over variables.** Every result keeps its operands alive for a gradient that may be asked for; there is no way to
//!   say that none will be. A pass for inference over a `VarMap` holds what training holds; over plain tensors it does not.
//! - **Gradients.** A gradient begins as zeros, to which the contribution is added into new memory: three of a size where one
//!   would do. The results of the forward pass stay until the loss is dropped, though the gradient is past them.
//! - **Elementwise layers.** Each operation of a formula (GELU, a norm, a softmax) gives a result of its own, and its gradient
//!   several; nothing is done in place.
//! - **Convolutions** unfold their input first (*im2col*): the kernel's area times its size, for the time of the product.
//! - **The optimizer** makes new tensors for parameters and states of one variable before it stores them.

use dd_inspect::trace::{Recording, TraceModel, record};

pub use dd_inspect::trace::RecordingAllocator;

/// Smaller allocations are candle's bookkeeping: shapes, handles, operations. They are added up, not told apart.
const LEAST: u64 = 1024;

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// candle refused.
    #[error("candle failed at size {size}: {source}")]
    Candle {
        /// The size that was run.
        size: usize,
        /// What it said.
        source: candle_core::Error,
    },
    /// The recording failed, or recordings do not fit together.
    #[error(transparent)]
    Inspect {
        /// Why.
        #[from]
        source: dd_inspect::Error,
    },
}

/// The result of this module's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Runs `step` at a size and says what it allocated: [`Recording::peak`] is the peak of all threads, above what was there.
///
/// # Errors
/// [`Error::Candle`] for what candle refuses; [`Error::Inspect`] where the recording allocator is not installed.
pub fn measure<T>(size: usize, step: impl FnOnce(usize) -> candle_core::Result<T>) -> Result<Recording> {
    let (done, recording) = record(LEAST, || step(size).map(drop))?;
    done.map_err(|source| Error::Candle { size, source })?;
    Ok(recording)
}

/// Runs `step` at each of the sizes (three or more, each of at least a kibibyte per tensor that matters), and gives its peak
/// as a function of the size. What is made in `step` counts: the inputs, and the model and optimizer where they are made in
/// it. It is run once at the largest size before anything is recorded, so that what candle keeps for good is there.
///
/// # Errors
/// As [`measure`]; [`dd_inspect::Error::Trace`] where the step does not do the same at each size.
pub fn trace<T>(
    sizes: &[usize],
    mut step: impl FnMut(usize) -> candle_core::Result<T>,
) -> Result<TraceModel> {
    if let Some(size) = sizes.iter().copied().max() {
        step(size).map(drop).map_err(|source| Error::Candle { size, source })?;
    }
    let mut recordings = Vec::with_capacity(sizes.len());
    for size in sizes {
        recordings.push((*size, measure(*size, &mut step)?));
    }
    Ok(TraceModel::fit(&recordings)?)
}
