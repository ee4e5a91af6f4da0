//! [`ScalingStrategy`]: which sizes to take so that the cost stays within a limit.

use crate::bytes::Bytes;
use crate::cost::CostModel;
use crate::error::{Error, Result};

/// One dimension that a strategy may shrink: between `min` and `size`, by whole `step`s counted from `min`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Dim {
    /// The wished size, and the largest that a plan gives.
    pub size: usize,
    /// The smallest that would still do. Equal to `size` for a frozen dimension.
    pub min: usize,
    /// The unit of change; at least one.
    pub step: usize,
}

impl Dim {
    /// A dimension that may shrink to one.
    #[must_use]
    pub const fn scalable(size: usize) -> Self {
        Self { size, min: if size == 0 { 0 } else { 1 }, step: 1 }
    }

    /// A dimension that keeps its size.
    #[must_use]
    pub const fn frozen(size: usize) -> Self {
        Self { size, min: size, step: 1 }
    }

    /// The values that it may take, smallest first.
    pub fn values(self) -> impl Iterator<Item = usize> {
        (self.min..=self.size).step_by(self.step.max(1))
    }

    /// Checks the bounds; `index` is for the message.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] where `min` is above `size` or `step` is zero.
    pub fn check(&self, index: usize) -> Result<()> {
        let wrong = |reason: String| Err(Error::InvalidArgument { argument: "dimension", reason });
        if self.step == 0 {
            return wrong(format!("dimension {index} has step 0; give at least 1"));
        }
        if self.min > self.size {
            return wrong(format!("dimension {index} has min {} above its size {}", self.min, self.size));
        }
        Ok(())
    }
}

/// What a strategy decided.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ScalingPlan {
    /// The sizes to take, one per dimension.
    pub sizes: Vec<usize>,
    /// What they cost by the model that was asked.
    pub cost: Bytes,
    /// Whether any size differs from the wished one.
    pub scaled: bool,
}

/// Chooses sizes. A plan fits the limit, keeps every [`Dim`]'s bounds and step, and is maximal: no dimension can grow
/// by its step and still fit.
pub trait ScalingStrategy: Send + Sync {
    /// The strategy's name, as a user writes it.
    fn name(&self) -> &str;

    /// Chooses sizes for these dimensions under this limit.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] where even the smallest sizes cost more; [`Error::InvalidArgument`] for bounds that
    /// contradict each other; whatever the cost model says.
    fn plan(&self, dims: &[Dim], cost: &dyn CostModel, limit: Bytes) -> Result<ScalingPlan>;
}

/// The reference strategy: from the smallest sizes, the dimension with the smallest share of its wished size grows by
/// one step while that fits. Simple and maximal; its time is proportional to the number of steps.
#[derive(Clone, Copy, Debug, Default)]
pub struct StepwiseGrowth;

impl ScalingStrategy for StepwiseGrowth {
    fn name(&self) -> &str {
        "stepwise"
    }

    fn plan(&self, dims: &[Dim], cost: &dyn CostModel, limit: Bytes) -> Result<ScalingPlan> {
        dims.iter().enumerate().try_for_each(|(index, dim)| dim.check(index))?;
        let mut sizes: Vec<usize> = dims.iter().map(|dim| dim.min).collect();
        let mut peak = cost.peak(&sizes)?;
        if peak > limit {
            return Err(Error::OutOfMemory {
                place: "scaling limit".to_owned(),
                needed: peak,
                available: limit,
            });
        }
        let mut open: Vec<usize> = (0..dims.len()).collect();
        while let Some(index) = take_smallest_share(&mut open, dims, &sizes) {
            let grown = grow(&sizes, dims, index);
            match grown.as_deref().map(|sizes| cost.peak(sizes)) {
                Some(Ok(bytes)) if bytes <= limit => {
                    peak = bytes;
                    sizes = grown.unwrap_or(sizes);
                    open.push(index);
                }
                None | Some(Ok(_) | Err(Error::SizeOverflow { .. })) => {} // At its end: it stays closed.
                Some(Err(error)) => return Err(error),
            }
        }
        let scaled = sizes.iter().zip(dims).any(|(size, dim)| *size != dim.size);
        Ok(ScalingPlan { sizes, cost: peak, scaled })
    }
}

fn take_smallest_share(open: &mut Vec<usize>, dims: &[Dim], sizes: &[usize]) -> Option<usize> {
    let share = |index: usize| match (sizes.get(index), dims.get(index)) {
        (Some(size), Some(dim)) => *size as f64 / dim.size.max(1) as f64,
        _ => f64::INFINITY,
    };
    let (position, _) = open.iter().enumerate().min_by(|(_, a), (_, b)| share(**a).total_cmp(&share(**b)))?;
    Some(open.swap_remove(position))
}

fn grow(sizes: &[usize], dims: &[Dim], index: usize) -> Option<Vec<usize>> {
    let mut grown = sizes.to_vec();
    let (size, dim) = (grown.get_mut(index)?, dims.get(index)?);
    *size = size.checked_add(dim.step).filter(|next| *next <= dim.size)?;
    Some(grown)
}
