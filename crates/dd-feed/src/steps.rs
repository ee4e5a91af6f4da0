//! [`Steps`]: which positions of an epoch make which batch, on which rank.
//!
//! A global step takes as many identities as all ranks together hold in a batch; each rank takes its slice. Every rank makes the same
//! number of steps, and none of its batches is empty. What is left at the end is split evenly; where it would not reach every rank, the
//! last two global steps are made equal. Nothing is repeated and nothing left out.

use std::ops::Range;

use crate::error::{Error, Result};

/// The batches of one epoch on one rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Steps {
    from: u64,
    len: u64,
    ranks: u64,
    rank: u64,
    global: u64,
}

/// One batch: its positions on all ranks, and those of this one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) global: Range<u64>,
    pub(crate) own: Range<u64>,
}

impl Steps {
    /// The steps over positions `from..len`, with at most `batch` identities on each of `ranks`.
    pub(crate) fn new(from: u64, len: u64, batch: u64, rank: u64, ranks: u64) -> Result<Self> {
        if rank >= ranks {
            return Err(Error::setting("rank", rank, format!("expected less than the {ranks} ranks")));
        }
        let left = len.saturating_sub(from);
        let global = batch.saturating_mul(ranks);
        if left > 0 && left < ranks {
            let reason = format!("more than the {left} identities; use as many ranks at most");
            return Err(Error::setting("ranks", ranks, reason));
        }
        if batch == 1 && !left.is_multiple_of(ranks) {
            let reason = format!(
                "with one identity per batch, {left} identities do not come out even; allow a batch of two, or use ranks that divide them"
            );
            return Err(Error::setting("ranks", ranks, reason));
        }
        Ok(Self { from, len, ranks, rank, global })
    }

    /// How many there are, on every rank.
    pub(crate) const fn count(&self) -> u64 {
        self.len.saturating_sub(self.from).div_ceil(self.global)
    }

    /// Whether a position is one of this rank.
    pub(crate) fn owns(&self, position: u64) -> bool {
        if self.ranks == 1 {
            return position >= self.from && position < self.len;
        }
        let near = position.saturating_sub(self.from) / self.global;
        // The last two may have been cut elsewhere.
        let around = near.saturating_sub(1)..near.saturating_add(2);
        around.filter_map(|index| self.step(index)).any(|step| step.own.contains(&position))
    }

    /// Step `index`; nothing past the last.
    pub(crate) fn step(&self, index: u64) -> Option<Step> {
        let count = self.count();
        if index >= count {
            return None;
        }
        let start = self.from + index * self.global;
        let mut global = start..(start + self.global).min(self.len);
        let tail = self.len - (self.from + (count - 1) * self.global);
        if count >= 2 && tail < self.ranks {
            // The last two are made equal.
            let middle = self.len - (self.global + tail) / 2;
            if index + 2 == count {
                global.end = middle;
            } else if index + 1 == count {
                global.start = middle;
            }
        }
        let cut = |rank: u64| {
            let share = u128::from(global.end - global.start) * u128::from(rank) / u128::from(self.ranks);
            global.start + u64::try_from(share).unwrap_or(u64::MAX)
        };
        let own = cut(self.rank)..cut(self.rank + 1);
        Some(Step { global, own })
    }
}

#[cfg(test)]
#[cfg(not(dd_shuttle))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn ranks_share_everything_evenly(from in 0u64..50, left in 0u64..300, batch in 1u64..12, ranks in 1u64..9) {
            let len = from + left;
            let all: Result<Vec<Steps>> = (0..ranks).map(|rank| Steps::new(from, len, batch, rank, ranks)).collect();
            let Ok(all) = all else {
                prop_assert!(left < ranks || (batch == 1 && left % ranks > 0));
                return Ok(());
            };
            let mut next = from;
            for index in 0..all[0].count() {
                let mut least = u64::MAX;
                let mut most = 0;
                for steps in &all {
                    let step = steps.step(index).unwrap();
                    prop_assert_eq!(step.own.start, next);
                    next = step.own.end;
                    let size = step.own.end - step.own.start;
                    least = least.min(size);
                    most = most.max(size);
                }
                prop_assert!(least >= 1 && most <= batch && most - least <= 1, "{least}..={most} of {batch}");
                prop_assert_eq!(all[0].step(index).unwrap().global.end, next);
                // From here on, the same steps come as without a break.
                let resumed = Steps::new(next, len, batch, 0, ranks).unwrap();
                prop_assert_eq!(resumed.step(0), all[0].step(index + 1));
            }
            prop_assert_eq!(next, len);
            for position in from..len {
                prop_assert_eq!(all.iter().filter(|steps| steps.owns(position)).count(), 1);
            }
            prop_assert!(all.iter().all(|steps| steps.count() == all[0].count()));
            prop_assert!(all.iter().all(|steps| steps.step(steps.count()).is_none()));
        }
    }

    #[test]
    fn what_cannot_be_even_is_refused() {
        for (len, batch, rank, ranks) in [(3, 4, 0, 4), (5, 1, 0, 2), (8, 2, 2, 2), (8, 2, 0, 0)] {
            assert!(Steps::new(0, len, batch, rank, ranks).is_err(), "{len} {batch} {rank} {ranks}");
        }
    }
}
