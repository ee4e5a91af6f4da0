//! From a choice of residents to the steps of a pass: what is read where, how early, and what is kept for its next use.
//!
//! A sliding window over the order answers both questions. A unit's streamed bytes stay in staging until its next use
//! if all the units of the positions from the one use to the next fit in staging together (the reuse distance of an
//! LRU stack, in bytes). A read may begin at the release after which it, all reads before it that are still needed, and
//! everything kept across it fit. Both left ends only move forward, so each takes one sweep over two passes.

use super::Step;
use super::problem::{at, set};

/// The set of units in staging, with the bytes that it needs.
struct Held<'a> {
    streamed: &'a [u128],
    /// Units by streamed bytes, largest first; empty if nobody else holds units.
    by_size: Vec<usize>,
    others: usize,
    count: Vec<usize>,
    sum: u128,
}

impl<'a> Held<'a> {
    fn new(streamed: &'a [u128], others: usize) -> Self {
        let mut by_size: Vec<usize> = if others == 0 { Vec::new() } else { (0..streamed.len()).collect() };
        by_size.sort_by_key(|&unit| (std::cmp::Reverse(at(streamed, unit)), unit));
        Self { streamed, by_size, others, count: vec![0; streamed.len()], sum: 0 }
    }

    fn add(&mut self, unit: usize) {
        let count = at(&self.count, unit);
        set(&mut self.count, unit, count + 1);
        if count == 0 {
            self.sum += at(self.streamed, unit);
        }
    }

    fn remove(&mut self, unit: usize) {
        let count = at(&self.count, unit);
        set(&mut self.count, unit, count.saturating_sub(1));
        if count == 1 {
            self.sum -= at(self.streamed, unit);
        }
    }

    /// The bytes of the held units and of the largest that other threads may hold beside them.
    fn needed(&self) -> u128 {
        let outside = self.by_size.iter().filter(|unit| at(&self.count, **unit) == 0);
        self.sum + outside.take(self.others).map(|unit| at(self.streamed, *unit)).sum::<u128>()
    }
}

/// What the steps are made from.
pub(super) struct Schedule<'a> {
    pub(super) order: &'a [usize],
    pub(super) streamed: &'a [u128],
    pub(super) staging: u128,
    pub(super) others: usize,
    pub(super) prefetch: bool,
}

impl Schedule<'_> {
    /// One step per position.
    pub(super) fn steps(&self) -> Vec<Step> {
        let keeps = self.keeps();
        let starts = self.starts(&keeps);
        let mut kept_for = vec![false; self.order.len()];
        for (position, next) in self.next_uses().into_iter().enumerate() {
            if at(&keeps, position) {
                set(&mut kept_for, next % self.order.len().max(1), true);
            }
        }
        let positions = self.order.iter().enumerate();
        let step = |(position, &unit): (usize, &usize)| {
            let bytes = if at(&kept_for, position) { 0 } else { at(self.streamed, unit) };
            let start_at = if bytes == 0 { signed(position) } else { at(&starts, position) };
            Step { position, unit, read: super::narrow(bytes), start_at, keeps: at(&keeps, position) }
        };
        positions.map(step).collect()
    }

    /// Where the unit of each position is used next: a position of this pass or, plus its length, of the next one.
    fn next_uses(&self) -> Vec<usize> {
        let length = self.order.len();
        let mut last = vec![0; self.streamed.len()];
        for (position, &unit) in self.order.iter().enumerate().rev() {
            set(&mut last, unit, position + length);
        }
        let mut next = vec![0; length];
        for (position, &unit) in self.order.iter().enumerate().rev() {
            set(&mut next, position, at(&last, unit));
            set(&mut last, unit, position);
        }
        next
    }

    /// Whether what was streamed for each position stays in staging for the unit's next use.
    fn keeps(&self) -> Vec<bool> {
        let length = self.order.len();
        let next = self.next_uses();
        let mut previous = vec![None; length * 2 + 1];
        for (position, next) in next.iter().enumerate() {
            set(&mut previous, *next, Some(position));
            set(&mut previous, *next + length, Some(position + length));
        }
        let mut keeps = vec![false; length];
        let mut held = Held::new(self.streamed, self.others);
        let mut left = 0;
        for right in 0..length * 2 {
            held.add(self.unit(right));
            while left < right && (held.needed() > self.staging || right - left > length) {
                held.remove(self.unit(left));
                left += 1;
            }
            if let Some(from) = at(&previous, right)
                && from >= left
            {
                set(&mut keeps, from % length, at(self.streamed, self.unit(right)) > 0);
            }
        }
        keeps
    }

    /// The release after which the read of each position may begin.
    fn starts(&self, keeps: &[bool]) -> Vec<i64> {
        let length = self.order.len();
        if !self.prefetch {
            return (0..length).map(|position| signed(position) - 1).collect();
        }
        let next = self.next_uses();
        let mut held = Held::new(self.streamed, self.others);
        let mut ends = vec![false; length];
        for (position, next) in next.iter().enumerate().filter(|(position, _)| at(keeps, *position)) {
            set(&mut ends, next % length, true);
            if *next >= length {
                held.add(self.unit(position)); // Kept across the beginning of the first of the two passes.
            }
        }
        let mut starts = vec![0; length];
        let mut left = 0;
        for right in 0..length * 2 {
            let here = right % length;
            held.add(self.unit(right));
            if at(&ends, here) {
                held.remove(self.unit(right)); // Its keeping ends here; the position itself holds it now.
            }
            while left < right && (held.needed() > self.staging || right - left >= length) {
                held.remove(self.unit(left));
                left += 1;
            }
            set(&mut starts, here, signed(left) - 1 - if right < length { 0 } else { signed(length) });
            if at(keeps, here) {
                held.add(self.unit(right)); // Its keeping begins here.
            }
        }
        starts
    }

    fn unit(&self, position: usize) -> usize {
        at(self.order, position % self.order.len().max(1))
    }
}

fn signed(position: usize) -> i64 {
    i64::try_from(position).unwrap_or(i64::MAX)
}
