//! Residency as a plan: which weights stay in memory, which stream, and when each read starts. Pure arithmetic.
//! An [`OrderRecorder`] finds the order of use that a [`ResidencyPlan`] is made for.
//!
//! Weights W do not fit in a budget M. The *units* (managed modules) are used in a recorded order, again and again. Each
//! unit has *parts* (tensors), and each part is either *resident* (read once, stays) or *streamed* (read anew in every
//! pass, into staging). For a cyclic order an LRU cache of any size below W hits nothing, so it reads W per pass; keeping
//! R bytes resident reads only W − R. The pass then takes max(C, (W − R)/B), for the compute time C and the bandwidth B.
//!
//! Residents are spread over the order part by part, not as a prefix and not as whole units: every unit streams only a
//! share of its bytes, so staging, which must hold the unit in use and the next ones, shrinks with the share, and reads
//! and computation overlap evenly. Residents, staging and the I/O blocks together never exceed the budget.
//!
//! # What a plan promises
//! - *It fits.* At every position, the streamed parts of the units in use and of the reads that
//!   [`may_prefetch`](ResidencyPlan::may_prefetch) allows are within [`staging`](ResidencyPlan::staging).
//! - *It is maximal.* With the same read-ahead, no single further part could be resident.
//! - *It is near the optimum.* Per sweep over the units (a cyclic pass is one sweep, a palindrome two) it reads at most
//!   staging plus one part more than Belady's optimum with the whole budget.
//! - Nothing is read twice whose next use is so near that it fits in staging until then (a palindrome's turning points).
//! - Where everything fits, everything is resident and staging is zero. The blocks still count, since loading needs them;
//!   they may be given back after it.
//!
//! ```
//! use dd_core::Bytes;
//! use dd_offload::plan::{Part, PlanInput, ResidencyPlan, Unit};
//!
//! let part = |name: &str| Part { name: name.to_owned(), bytes: Bytes::mib(1), pinned: false };
//! let layer = |index| Unit {
//!     name: format!("layer.{index}"),
//!     parts: ["query", "key", "value", "output"].map(part).to_vec(),
//!     compute: None,
//! };
//! let plan = ResidencyPlan::new(&PlanInput {
//!     units: (0..12).map(layer).collect(),
//!     order: (0..12).collect(),
//!     budget: Bytes::mib(28), // of 48
//!     blocks: Bytes::ZERO,
//!     bandwidth: None,
//!     prefetch: true,
//!     concurrent: 1,
//! })?;
//! assert_eq!((plan.resident_bytes, plan.staging), (Bytes::mib(24), Bytes::mib(4)));
//! println!("{plan}");
//! # Ok::<(), dd_offload::Error>(())
//! ```
//!
//! # How much read-ahead
//! Reading ahead needs a second staging buffer, whose bytes are then not resident. With measured times the plan takes
//! what a [`simulation`](simulate) of the pass finds fastest. Without them it reads one unit ahead where the budget
//! allows, unless that reads more than 1.618 times as much: from there on the worst-case loss of reading ahead (all
//! reads, no compute) is greater than that of not doing so (as much compute as reads).

mod candidates;
mod fill;
mod order;
mod problem;
mod recorder;
#[cfg(test)]
mod reference;
mod schedule;
mod simulate;
mod spread;
mod table;
#[cfg(test)]
mod tests;

use std::time::Duration;

use dd_core::Bytes;
use serde::{Deserialize, Serialize};

pub use order::OrderKind;
pub use recorder::OrderRecorder;
pub use simulate::simulate;

use crate::error::Result;
use problem::{Problem, at};

/// A tensor of a unit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// The tensor's name.
    pub name: String,
    /// Its size in memory.
    pub bytes: Bytes,
    /// Whether it is always resident.
    pub pinned: bool,
}

/// A managed module: its parts are needed in memory together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unit {
    /// The module's name.
    pub name: String,
    /// Its tensors.
    pub parts: Vec<Part>,
    /// Measured time from acquire to release, if it was measured.
    pub compute: Option<Duration>,
}

/// What to plan for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlanInput {
    /// The managed modules.
    pub units: Vec<Unit>,
    /// Unit indices of one pass, as recorded. Units may occur several times or not at all; the pass repeats for ever.
    pub order: Vec<usize>,
    /// For residents, staging and blocks together.
    pub budget: Bytes,
    /// The pool of I/O blocks: a fixed cost.
    pub blocks: Bytes,
    /// Bytes per second of the disk, if it was measured.
    pub bandwidth: Option<f64>,
    /// Whether reads may start before their unit is asked for.
    pub prefetch: bool,
    /// Units in use at once, at least one: the number of threads.
    pub concurrent: usize,
}

/// What becomes of one unit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitResidency {
    /// The unit's name.
    pub name: String,
    /// Whether each part is resident.
    pub resident: Vec<bool>,
    /// Bytes of the resident parts.
    pub kept: Bytes,
    /// Bytes of the streamed parts.
    pub streamed: Bytes,
}

/// One position of the pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// The position in the order.
    pub position: usize,
    /// The unit that is used there.
    pub unit: usize,
    /// What must be read for it: its streamed parts, or nothing where they are still in staging.
    pub read: Bytes,
    /// The position whose release frees the room: the read may begin after it. Relative to this pass, so a negative one
    /// lies in the pass before; `position − 1` means no read-ahead. Equal to `position` where nothing is read.
    pub start_at: i64,
    /// Whether the streamed parts stay in staging after this position's release, for the unit's next use.
    pub keeps: bool,
}

/// What a pass waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Bound {
    /// The computation: reads hide behind it.
    Compute,
    /// The disk.
    Disk,
}

/// What a pass takes once it has settled, by [`simulate`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prediction {
    /// Time per pass.
    pub pass: Duration,
    /// The computation's share of it, were everything in memory: C.
    pub compute: Duration,
    /// The reads' share, were there no computation: (W − R)/B.
    pub read: Duration,
    /// The larger of the two.
    pub bound: Bound,
}

/// Which parts stay, which stream, and when each read starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResidencyPlan {
    /// Per unit, what stays.
    pub units: Vec<UnitResidency>,
    /// The budget that was given.
    pub budget: Bytes,
    /// For streamed parts in use, kept for their next use, or read ahead.
    pub staging: Bytes,
    /// The pool of I/O blocks.
    pub blocks: Bytes,
    /// Bytes of all resident parts, the pinned ones too.
    pub resident_bytes: Bytes,
    /// Bytes read per pass.
    pub streamed_bytes: Bytes,
    /// The least budget for which there is a plan.
    pub least_budget: Bytes,
    /// The least budget with which reads overlap the computation everywhere (one position of read-ahead).
    pub ideal_budget: Bytes,
    /// Positions for which there is room ahead of every position in use.
    pub lookahead: usize,
    /// The shape of the order.
    pub order: OrderKind,
    /// One per position of the pass.
    pub steps: Vec<Step>,
    /// What a pass takes, where the compute time of all used units and the bandwidth are known.
    pub predicted: Option<Prediction>,
}

/// From this ratio of bytes on, reading ahead can lose more than it can win: the golden ratio.
const WORTHWHILE: f64 = 1.618;

impl ResidencyPlan {
    /// Plans.
    ///
    /// # Errors
    /// [`Error::BudgetTooSmall`](crate::Error::BudgetTooSmall), with the least budget that would do;
    /// [`Error::InvalidConfig`](crate::Error::InvalidConfig) for an order that names a unit that is not there, or a
    /// bandwidth that is not a finite number above zero.
    pub fn new(input: &PlanInput) -> Result<Self> {
        let problem = Problem::new(input)?;
        let best = candidates::best(input, &problem);
        // There is always one: nothing resident and nothing read ahead fits in the least budget.
        best.ok_or(crate::Error::BudgetTooSmall {
            budget: input.budget,
            least: least_budget(&input.units, input.blocks, input.concurrent),
            what: "any plan".to_owned(),
        })
    }

    /// Whether a part stays in memory; not, where there is no such part.
    #[must_use]
    pub fn is_resident(&self, unit: usize, part: usize) -> bool {
        self.units.get(unit).is_some_and(|unit| at(&unit.resident, part))
    }

    /// Whether the read for `candidate` may be under way or done while `position` is in use.
    ///
    /// A candidate before the position in use is that of the next pass. The answer supposes that reads start in the
    /// order of their positions, and that what was streamed is freed at release unless its step [keeps](Step::keeps) it.
    #[must_use]
    pub fn may_prefetch(&self, position: usize, candidate: usize) -> bool {
        let (Some(step), Some(_)) = (self.steps.get(candidate), self.steps.get(position)) else {
            return false;
        };
        if step.read == Bytes::ZERO || position == candidate {
            return true;
        }
        let pass = if candidate < position { self.steps.len() } else { 0 };
        let signed = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        step.start_at.saturating_add(signed(pass)) < signed(position)
    }

    /// Whether this plan is the better one of two for the same input: faster by more than a thousandth where times
    /// are known, else with fewer bytes to read (see "How much read-ahead" for plans of different depth).
    fn beats(&self, other: &Self) -> bool {
        if let (Some(mine), Some(others)) = (self.predicted, other.predicted) {
            let (mine, others) = (mine.pass.as_secs_f64(), others.pass.as_secs_f64());
            if (mine - others).abs() > others * 1e-3 {
                return mine < others;
            }
        }
        let (mine, others) = (self.streamed_bytes, other.streamed_bytes);
        if self.predicted.is_some() {
            return mine < others || (mine == others && self.lookahead > other.lookahead);
        }
        match self.lookahead.cmp(&other.lookahead) {
            std::cmp::Ordering::Equal => mine < others,
            std::cmp::Ordering::Greater => mine <= others.scaled(WORTHWHILE),
            std::cmp::Ordering::Less => others > mine.scaled(WORTHWHILE),
        }
    }
}

/// The least budget for which there is a plan: all pinned parts, the blocks, and the `concurrent` units (at least one)
/// whose other parts are the largest. Saturates.
#[must_use]
pub fn least_budget(units: &[Unit], blocks: Bytes, concurrent: usize) -> Bytes {
    let mut pinned = 0;
    let mut movable: Vec<u128> = Vec::with_capacity(units.len());
    for unit in units {
        let (fixed, rest): (Vec<&Part>, Vec<&Part>) = unit.parts.iter().partition(|part| part.pinned);
        pinned += bytes(fixed.into_iter());
        movable.push(bytes(rest.into_iter()));
    }
    movable.sort_unstable_by_key(|&bytes| std::cmp::Reverse(bytes));
    narrow(pinned + u128::from(blocks.0) + movable.iter().take(concurrent.max(1)).sum::<u128>())
}

fn bytes<'a>(parts: impl Iterator<Item = &'a Part>) -> u128 {
    parts.map(|part| u128::from(part.bytes.0)).sum()
}

/// As 64 bits; saturates.
fn narrow(bytes: u128) -> Bytes {
    Bytes(u64::try_from(bytes).unwrap_or(u64::MAX))
}
