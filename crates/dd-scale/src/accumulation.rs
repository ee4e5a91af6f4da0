//! [`AccumulationPlan`]: how many micro-batches make up a global batch that does not fit at once.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The micro-batches of one optimiser step, on every rank the same. Each contributes to the gradient by its share of
/// the global batch, so that the step is the one that a batch of that size would make.
///
/// ```
/// use dd_scale::AccumulationPlan;
///
/// let plan = AccumulationPlan::new(256, 100, 1, 1)?; // 100 samples fit, 256 are wanted
/// assert_eq!((plan.micro_batch, plan.micro_steps, plan.last), (86, 3, 84));
/// # Ok::<(), dd_scale::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct AccumulationPlan {
    /// Samples per optimiser step, over all ranks.
    pub global_batch: usize,
    /// How many ranks share them.
    pub ranks: usize,
    /// Samples of every micro-batch but the last; at most what fits.
    pub micro_batch: usize,
    /// Micro-batches per rank and optimiser step.
    pub micro_steps: usize,
    /// Samples of the last micro-batch: at least one, at most `micro_batch`.
    pub last: usize,
}

impl AccumulationPlan {
    /// The fewest micro-batches of at most `fits` samples, as even as multiples of `step` allow.
    ///
    /// # Errors
    /// [`Error::Setting`] for a zero, for ranks that do not divide the global batch, and for a step above what fits.
    pub fn new(global_batch: usize, fits: usize, ranks: usize, step: usize) -> Result<Self> {
        for (option, value) in
            [("global_batch", global_batch), ("fits", fits), ("ranks", ranks), ("step", step)]
        {
            if value == 0 {
                return Err(Error::setting(option, value, "expected at least 1"));
            }
        }
        if !global_batch.is_multiple_of(ranks) {
            let reason = format!("expected a multiple of the {ranks} ranks, so that each has as much");
            return Err(Error::setting("global_batch", global_batch, reason));
        }
        if step > fits {
            return Err(Error::setting("step", step, format!("above the {fits} samples that fit")));
        }
        let share = global_batch / ranks;
        let most = fits / step * step;
        let even = share.div_ceil(share.div_ceil(most));
        let micro_batch = even.checked_next_multiple_of(step).unwrap_or(most).min(most).min(share);
        let micro_steps = share.div_ceil(micro_batch);
        let last = share - micro_batch * (micro_steps - 1);
        Ok(Self { global_batch, ranks, micro_batch, micro_steps, last })
    }

    /// The micro-batches of one rank, in order.
    pub fn micro_batches(&self) -> impl Iterator<Item = usize> + use<> {
        let Self { micro_batch, micro_steps, last, .. } = *self;
        (1..=micro_steps).map(move |step| if step < micro_steps { micro_batch } else { last })
    }

    /// What a micro-batch's mean loss is to be weighted with, so that the gradients add up to that of the global batch.
    #[must_use]
    pub fn weight(&self, micro_batch: usize) -> f64 {
        micro_batch as f64 / (self.global_batch / self.ranks.max(1)).max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sample_once_in_the_fewest_steps() {
        for (global, fits, ranks, step) in [
            (256, 100, 1, 1),
            (256, 100, 4, 1),
            (255, 100, 5, 8),
            (7, 100, 7, 1),
            (1000, 33, 2, 16),
            (9, 8, 1, 8),
        ] {
            let plan = AccumulationPlan::new(global, fits, ranks, step).unwrap();
            let share = global / ranks;
            assert_eq!(plan.micro_batches().sum::<usize>(), share, "{plan:?}");
            assert!(plan.micro_batches().all(|batch| batch > 0 && batch <= fits), "{plan:?}");
            assert_eq!(plan.micro_steps, share.div_ceil(fits / step * step), "{plan:?}");
            let weights: f64 = plan.micro_batches().map(|batch| plan.weight(batch)).sum();
            assert!((weights - 1.0).abs() < 1e-12, "{plan:?}");
        }
    }

    #[test]
    fn what_cannot_be_kept_is_named() {
        let rows = [
            ((0, 1, 1, 1), "global_batch is 0"),
            ((8, 0, 1, 1), "fits is 0"),
            ((8, 1, 0, 1), "ranks is 0"),
            ((8, 1, 1, 0), "step is 0"),
            ((10, 4, 3, 1), "global_batch is 10"),
            ((8, 4, 1, 5), "step is 5"),
        ];
        for ((global, fits, ranks, step), message) in rows {
            let error = AccumulationPlan::new(global, fits, ranks, step).unwrap_err().to_string();
            assert!(error.starts_with(message), "{error}");
        }
    }
}
