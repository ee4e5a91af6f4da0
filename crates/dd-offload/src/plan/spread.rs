//! Which parts stay: ways to spread the residents over the order.
//!
//! A *ranking* lists all movable parts in the order in which they become resident. Residents and staging together
//! never shrink along it (see `Problem::staging`), so the longest prefix that fits can be found by bisection. The ranking
//! always takes from the unit whose streamed bytes are the most for its weight, so the units come down together, like
//! a water level; among equals, positions are taken in bit-reversed order, so that every prefix is spread evenly.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use super::problem::{Movable, Problem, at, set};

/// How much of each unit is streamed, compared with the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spread {
    /// The same bytes of every unit: least staging.
    Bytes,
    /// The same share of every unit.
    Share,
    /// Bytes in proportion to the compute time before the unit, behind which its read hides.
    Time,
    /// The same share, whole parts alternating regularly over the order (error diffusion).
    Regular,
}

/// Which units come first, whatever their level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Priority {
    /// All are equal.
    None,
    /// Those that the pass uses.
    Used,
    /// Those that the pass uses more often.
    Often,
}

/// A choice of residents.
#[derive(Clone, Debug)]
pub(super) struct Choice {
    /// One per movable part.
    pub(super) resident: Vec<bool>,
    /// Streamed bytes of each unit.
    pub(super) streamed: Vec<u128>,
    /// Movable bytes that are resident.
    pub(super) kept: u128,
    /// The number of positions that the staging reads ahead everywhere.
    pub(super) depth: usize,
}

impl Choice {
    pub(super) fn nothing(problem: &Problem<'_>, depth: usize) -> Self {
        Self { resident: vec![false; problem.parts.len()], streamed: problem.sizes.clone(), kept: 0, depth }
    }

    pub(super) fn keep(&mut self, index: usize, part: Movable) {
        set(&mut self.resident, index, true);
        if let Some(bytes) = self.streamed.get_mut(part.unit) {
            *bytes = bytes.saturating_sub(part.bytes);
        }
        self.kept += part.bytes;
    }

    pub(super) fn release(&mut self, index: usize, part: Movable) {
        set(&mut self.resident, index, false);
        if let Some(bytes) = self.streamed.get_mut(part.unit) {
            *bytes += part.bytes;
        }
        self.kept = self.kept.saturating_sub(part.bytes);
    }

    pub(super) fn keep_all(&mut self, problem: &Problem<'_>, indices: &[usize]) {
        for &index in indices {
            if let Some(part) = problem.parts.get(index) {
                self.keep(index, *part);
            }
        }
    }

    /// The staging that this choice needs.
    pub(super) fn staging(&self, problem: &Problem<'_>) -> u128 {
        problem.staging(&self.streamed, self.depth)
    }

    /// What remains of the room; nothing if it does not fit.
    pub(super) fn left(&self, problem: &Problem<'_>) -> Option<u128> {
        problem.room.checked_sub(self.kept + self.staging(problem))
    }
}

/// Weights of the units for a spread; `time_before` is the compute time before each unit, in seconds.
pub(super) fn weights(problem: &Problem<'_>, spread: Spread, time_before: &[f64]) -> Vec<f64> {
    let of = |unit: usize| match spread {
        Spread::Bytes => 1.0,
        Spread::Share | Spread::Regular => at(&problem.sizes, unit) as f64,
        Spread::Time => at(time_before, unit),
    };
    (0..problem.sizes.len()).map(|unit| of(unit).max(1e-12)).collect()
}

/// All movable parts in the order in which they become resident.
pub(super) fn ranking(problem: &Problem<'_>, priority: Priority, weights: &[f64]) -> Vec<usize> {
    let uses = uses(problem);
    let places = places(problem);
    let mut streamed = problem.sizes.clone();
    let mut next: Vec<usize> = problem.spans.iter().map(|span| span.start).collect();
    let entry = |unit: usize, streamed: u128| Entry {
        class: match priority {
            Priority::None => 0,
            Priority::Used => at(&uses, unit).min(1),
            Priority::Often => at(&uses, unit),
        },
        level: streamed as f64 / at(weights, unit).max(1e-12),
        place: at(&places, unit),
        unit,
    };
    let with_parts = problem.spans.iter().enumerate().filter(|(_, span)| !span.is_empty());
    let mut heap: BinaryHeap<Entry> =
        with_parts.map(|(unit, _)| entry(unit, at(&problem.sizes, unit))).collect();
    let mut ranked = Vec::with_capacity(problem.parts.len());
    while let Some(Entry { unit, .. }) = heap.pop() {
        let index = at(&next, unit);
        let Some(part) = problem.parts.get(index) else { continue };
        ranked.push(index);
        set(&mut next, unit, index + 1);
        let rest = at(&streamed, unit).saturating_sub(part.bytes);
        set(&mut streamed, unit, rest);
        if problem.spans.get(unit).is_some_and(|span| span.contains(&(index + 1))) {
            heap.push(entry(unit, rest));
        }
    }
    ranked
}

/// How often the pass uses each unit; uses in a row count once.
fn uses(problem: &Problem<'_>) -> Vec<usize> {
    let mut uses = vec![0; problem.sizes.len()];
    let mut previous = problem.order.last().filter(|_| problem.order.len() > 1);
    for unit in problem.order {
        if previous != Some(unit) {
            let count = at(&uses, *unit) + 1;
            set(&mut uses, *unit, count);
        }
        previous = Some(unit);
    }
    if let Some(unit) = problem.order.first() {
        let count = at(&uses, *unit).max(1); // A pass of one unit, again and again.
        set(&mut uses, *unit, count);
    }
    uses
}

/// Units by first use, then the unused ones.
pub(super) fn sequence(problem: &Problem<'_>) -> Vec<usize> {
    let mut seen = vec![false; problem.sizes.len()];
    let mut sequence = Vec::with_capacity(seen.len());
    for unit in problem.order.iter().copied().chain(0..problem.sizes.len()) {
        if !at(&seen, unit) {
            set(&mut seen, unit, true);
            sequence.push(unit);
        }
    }
    sequence
}

/// A unit's turn among equals: its place in the order, scaled to a power of two, with the bits reversed.
fn places(problem: &Problem<'_>) -> Vec<u64> {
    let sequence = sequence(problem);
    let mut places = vec![0; sequence.len()];
    for (place, unit) in sequence.iter().enumerate() {
        let scaled = ((place as u128) << 32) / (sequence.len() as u128);
        set(&mut places, *unit, u64::try_from(scaled).unwrap_or(u64::MAX).reverse_bits());
    }
    places
}

/// A unit in the heap: the greatest is served first.
struct Entry {
    class: usize,
    level: f64,
    place: u64,
    unit: usize,
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        let by_level = self.class.cmp(&other.class).then(self.level.total_cmp(&other.level));
        by_level.then(other.place.cmp(&self.place)).then(other.unit.cmp(&self.unit))
    }
}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Entry {}
