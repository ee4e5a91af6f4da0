//! [`WeightsSource`]: where a model's tensors come from, in memory or paged.
//!
//! A source opens a checkpoint within a budget and gives the `VarBuilder` that the library's models are made over.
//! [`Paged`] reads nothing: the model's code is the same, and its weights come when they are touched.
//! [`InMemory`] reads every tensor into plain memory, as F32; no file is mapped, so that its peak is honest.

use std::sync::Arc;

use candle_core::DType;
use candle_nn::VarBuilder;
use deep_dimensions::candle::CandleBackend;
use deep_dimensions::candle::paged::{PagedWeights, least_memory};
use deep_dimensions::core::{Budget, Bytes, Device, Holder, Reservation};
use deep_dimensions::offload::checkpoint::Checkpoint;
use deep_dimensions::pager::packed::PackedCheckpoint;

use super::report::Paging;
use super::requirements::Required;
use crate::error::{CliError, Result};
use crate::resolve::ModelFiles;
use crate::{disk, warm};

/// Where tensors come from.
pub trait WeightsSource {
    /// What a model is made over. It may be asked for as long as the source lives.
    fn var_builder(&self) -> VarBuilder<'static>;

    /// What stays and what streams, once a model is made over the source; nothing is said where nothing is paged.
    ///
    /// # Errors
    /// What measuring the disk or the processor gave.
    fn paging(&self, limit: Bytes) -> Result<Paging> {
        let _ = limit;
        Ok(Paging::default())
    }
}

/// What the weights of a model need of a budget, known from headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// The least that the source can do with.
    pub least: Bytes,
    /// What it can make use of beyond that, to be faster.
    pub more: Bytes,
    /// What it takes beside that until the model is made, and not after.
    pub loading: Bytes,
}

/// How weights are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holding {
    /// All of them, in plain memory.
    InMemory,
    /// Paged within what the budget leaves them.
    Paged,
}

impl Holding {
    /// Paged where there is a limit, and nothing asks for plain memory.
    #[must_use]
    pub const fn of(limit: Option<Bytes>, unmanaged: bool) -> Self {
        if limit.is_some() && !unmanaged { Self::Paged } else { Self::InMemory }
    }
}

/// What [`open`] will need.
///
/// # Errors
/// Files that cannot be used.
pub fn needs(checkpoint: &Checkpoint, required: &[Required], holding: Holding) -> Result<Needs> {
    Ok(match holding {
        Holding::Paged => {
            let least = least_memory(Checkpoint::open(checkpoint.path())?)?;
            Needs { least, more: bytes(required), loading: Bytes::ZERO }
        }
        Holding::InMemory => {
            let loading = widening(checkpoint, required);
            Needs { least: bytes(required), more: Bytes::ZERO, loading }
        }
    })
}

/// Opens the weights of a model within what is left of the budget.
///
/// # Errors
/// [`crate::error::CliError::CannotFit`] where they do not fit the budget; files that cannot be used; a kernel that
/// does not let a program page.
pub fn open(
    files: &ModelFiles,
    checkpoint: &Arc<Checkpoint>,
    required: &[Required],
    budget: &Budget,
    holding: Holding,
) -> Result<Box<dyn WeightsSource>> {
    tracing::debug!(shards = files.shards.len(), ?holding, "opening weights");
    Ok(match holding {
        Holding::Paged => Box::new(Paged {
            weights: PagedWeights::open(&files.shards, DType::F32, budget)?,
            files: files.clone(),
        }),
        Holding::InMemory => Box::new(InMemory::open(checkpoint, required, budget)?),
    })
}

/// Weights that come when they are touched.
pub struct Paged {
    weights: PagedWeights,
    files: ModelFiles,
}

impl WeightsSource for Paged {
    fn var_builder(&self) -> VarBuilder<'static> {
        self.weights.var_builder()
    }

    fn paging(&self, limit: Bytes) -> Result<Paging> {
        let plan = self.weights.plan();
        let stored = self.weights.checkpoint().total_bytes().fraction_of(plan.registered).min(1.0);
        let disk = disk::bandwidth(&self.files, limit)?.map(|b| plan.streamed.0 as f64 * stored / b);
        // What is packed was timed when it was opened: reading, and decoding.
        let paging = plan.predicted_seconds_per_pass.or(disk);
        let compute = warm::seconds_for_weights(plan.used)?;
        Ok(Paging {
            resident: Some(plan.resident),
            streamed: Some(plan.streamed),
            packed: (plan.kept > Bytes::ZERO).then_some(plan.kept),
            predicted_seconds_per_token: paging.map(|paging| paging.max(compute)),
            ..Paging::default()
        })
    }
}

/// A tensor that is stored as something else is there twice while it becomes F32: the largest such.
fn widening(checkpoint: &Checkpoint, required: &[Required]) -> Bytes {
    let stored = required.iter().filter_map(|required| checkpoint.get(&required.name));
    let other = stored.filter(|location| location.desc.dtype() != deep_dimensions::core::DType::F32);
    other.map(|location| location.desc.bytes()).max().unwrap_or_default()
}

/// All tensors in memory, as F32.
pub struct InMemory {
    vb: VarBuilder<'static>,
    _held: Reservation,
}

impl InMemory {
    /// Reserves what the model's tensors take. Each is read when the model asks for it, which is once.
    ///
    /// # Errors
    /// [`crate::error::CliError::CannotFit`] where the weights do not fit the budget.
    pub fn open(checkpoint: &Arc<Checkpoint>, required: &[Required], budget: &Budget) -> Result<Self> {
        if PackedCheckpoint::is_packed(checkpoint)? {
            let (place, problem) = (checkpoint.path().display(), "a packed model is unpacked as it is paged");
            return Err(CliError::input(place, problem, "give --memory, without --unmanaged"));
        }
        let held = budget.reserve(bytes(required), &Holder::new("weights"))?;
        let vb = crate::weights::builder(checkpoint, &CandleBackend::new(Device::Cpu)?);
        Ok(Self { vb: vb.to_dtype(DType::F32), _held: held })
    }
}

impl WeightsSource for InMemory {
    fn var_builder(&self) -> VarBuilder<'static> {
        self.vb.clone()
    }
}

/// Bytes of these tensors as F32.
#[must_use]
pub fn bytes(required: &[Required]) -> Bytes {
    required.iter().map(|tensor| Bytes(tensor.elements().saturating_mul(4))).sum()
}
