//! The planning problem in plain numbers, and the one question that everything else asks: *how much staging does a
//! choice of residents need?*
//!
//! Sums are taken in 128 bits, so that sizes near the end of 64 bits neither overflow nor saturate on the way.

use super::PlanInput;
use crate::error::{Error, Result};

/// A part that may be resident or streamed: it is not pinned and has bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Movable {
    pub(super) unit: usize,
    pub(super) part: usize,
    pub(super) bytes: u128,
}

/// What is to be planned.
#[derive(Clone, Debug)]
pub(super) struct Problem<'a> {
    /// The units of one pass; every entry is a valid unit.
    pub(super) order: &'a [usize],
    /// All movable parts, by unit, each unit's largest first.
    pub(super) parts: Vec<Movable>,
    /// The range of `parts` that belongs to each unit.
    pub(super) spans: Vec<std::ops::Range<usize>>,
    /// Movable bytes of each unit.
    pub(super) sizes: Vec<u128>,
    /// What the budget leaves for movable residents and staging, after pinned parts and blocks.
    pub(super) room: u128,
    /// Units that other threads may hold beside the one of the pass that is looked at.
    pub(super) others: usize,
}

impl<'a> Problem<'a> {
    /// Checks the input and takes it apart.
    pub(super) fn new(input: &'a PlanInput) -> Result<Self> {
        check(input)?;
        let (parts, spans) = movable(input);
        let sizes: Vec<u128> = spans.iter().map(|span| sum(&parts, span.clone())).collect();
        let others = input.concurrent.max(1) - 1;
        let fixed = pinned(input) + u128::from(input.blocks.0);
        let problem = Self { order: &input.order, parts, spans, sizes, room: 0, others };
        let least = fixed + problem.staging(&problem.sizes, 0);
        let budget = u128::from(input.budget.0);
        if budget < least {
            return Err(too_small(input, least));
        }
        Ok(Self { room: budget - fixed, ..problem })
    }

    /// The staging that streamed bytes (per unit) need when the next `depth` positions are read ahead.
    ///
    /// It is the largest sum over a *set* of units that are in memory at once: any `others + 1` units, or the units of
    /// `depth + 1` positions in a row and the `others` largest of the rest. Being a maximum of sums over sets, it
    /// falls by at most b when b more bytes become resident: residents and staging together never shrink.
    pub(super) fn staging(&self, streamed: &[u128], depth: usize) -> u128 {
        let ranking = Ranking::new(streamed, self.others);
        let mut most = ranking.largest(self.others + 1);
        self.windows(depth, |window| most = most.max(ranking.needed(window)));
        most
    }

    /// The units of a window that needs the most staging; residents elsewhere do not lessen it.
    pub(super) fn tightest(&self, streamed: &[u128], depth: usize) -> Vec<usize> {
        let ranking = Ranking::new(streamed, self.others);
        let mut most = (ranking.largest(self.others + 1), Vec::new());
        self.windows(depth, |window| {
            let needed = ranking.needed(window);
            if needed > most.0 {
                most = (needed, window.to_vec());
            }
        });
        let beside = ranking.by_size.iter().filter(|unit| !most.1.contains(unit)).copied();
        let count = self.others + usize::from(most.1.is_empty());
        let beside: Vec<usize> = beside.take(count).collect();
        most.1.extend(beside);
        most.1
    }

    /// Shows the distinct units of each run of `depth + 1` positions, around the end of the pass too.
    fn windows(&self, depth: usize, mut show: impl FnMut(&[usize])) {
        let count = self.order.len();
        let mut window: Vec<usize> = Vec::with_capacity(depth + 1);
        for first in 0..count {
            window.clear();
            for offset in 0..(depth + 1).min(count) {
                let unit = at(self.order, (first + offset) % count);
                if !window.contains(&unit) {
                    window.push(unit);
                }
            }
            show(&window);
        }
    }
}

/// Units by streamed bytes, for "the largest of the rest".
struct Ranking<'s> {
    streamed: &'s [u128],
    others: usize,
    by_size: Vec<usize>,
    rank: Vec<usize>,
    sums: Vec<u128>,
}

impl<'s> Ranking<'s> {
    fn new(streamed: &'s [u128], others: usize) -> Self {
        let mut by_size: Vec<usize> = (0..streamed.len()).collect();
        let largest_first = |&unit: &usize| (std::cmp::Reverse(at(streamed, unit)), unit);
        if others == 0 {
            by_size = by_size.into_iter().min_by_key(largest_first).into_iter().collect(); // The largest will do.
        } else {
            by_size.sort_by_key(largest_first);
        }
        let mut rank = vec![0; streamed.len()];
        let mut sums = vec![0];
        let mut total = 0;
        for (place, &unit) in by_size.iter().enumerate() {
            set(&mut rank, unit, place);
            total += at(streamed, unit);
            sums.push(total);
        }
        Self { streamed, others, by_size, rank, sums }
    }

    /// The sum of the `count` largest.
    fn largest(&self, count: usize) -> u128 {
        at(&self.sums, count.min(self.by_size.len()))
    }

    /// The bytes of the window and of the `others` largest units outside it.
    fn needed(&self, window: &[usize]) -> u128 {
        let inside: u128 = window.iter().map(|&unit| at(self.streamed, unit)).sum();
        if self.others == 0 {
            return inside;
        }
        let mut ranks: Vec<usize> = window.iter().map(|&unit| at(&self.rank, unit)).collect();
        ranks.sort_unstable();
        let (mut count, mut counted_twice) = (self.others, 0);
        for rank in ranks {
            if rank < count {
                count += 1;
                counted_twice += self.by_size.get(rank).map_or(0, |&unit| at(self.streamed, unit));
            }
        }
        inside + self.largest(count) - counted_twice
    }
}

/// The item at `index`, or zero.
pub(super) fn at<T: Copy + Default>(items: &[T], index: usize) -> T {
    items.get(index).copied().unwrap_or_default()
}

/// Sets the item at `index`, if there is one.
pub(super) fn set<T>(items: &mut [T], index: usize, value: T) {
    if let Some(item) = items.get_mut(index) {
        *item = value;
    }
}

/// Pinned bytes.
pub(super) fn pinned(input: &PlanInput) -> u128 {
    let parts = input.units.iter().flat_map(|unit| &unit.parts);
    parts.filter(|part| part.pinned).map(|part| u128::from(part.bytes.0)).sum()
}

fn check(input: &PlanInput) -> Result<()> {
    let invalid = |option, reason| Err(Error::InvalidConfig { option, reason });
    if let Some((place, unit)) = input.order.iter().enumerate().find(|(_, unit)| **unit >= input.units.len())
    {
        let reason = format!("position {place} names unit {unit}, but there are {} units", input.units.len());
        return invalid("order", reason);
    }
    match input.bandwidth {
        Some(rate) if !(rate.is_finite() && rate > 0.0) => {
            invalid("bandwidth", format!("{rate} B/s; give a finite number above zero, or none"))
        }
        _ => Ok(()),
    }
}

fn movable(input: &PlanInput) -> (Vec<Movable>, Vec<std::ops::Range<usize>>) {
    let (mut all, mut spans) = (Vec::new(), Vec::with_capacity(input.units.len()));
    for (index, unit) in input.units.iter().enumerate() {
        let first = all.len();
        let movable = unit.parts.iter().enumerate().filter(|(_, part)| !part.pinned && part.bytes.0 > 0);
        let mut parts: Vec<Movable> = movable
            .map(|(part, found)| Movable { unit: index, part, bytes: u128::from(found.bytes.0) })
            .collect();
        parts.sort_by_key(|part| (std::cmp::Reverse(part.bytes), part.part));
        all.append(&mut parts);
        spans.push(first..all.len());
    }
    (all, spans)
}

fn sum(parts: &[Movable], span: std::ops::Range<usize>) -> u128 {
    parts.get(span).unwrap_or_default().iter().map(|part| part.bytes).sum()
}

fn too_small(input: &PlanInput, least: u128) -> Error {
    Error::BudgetTooSmall {
        budget: input.budget,
        least: super::narrow(least),
        what: format!(
            "the pinned parts, {} of I/O blocks and the {} largest unit(s) in use at once",
            input.blocks,
            input.concurrent.max(1)
        ),
    }
}
