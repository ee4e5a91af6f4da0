//! Branch and bound over placements whose blocks rest on each other.
//!
//! Every placement can be pushed down until each block rests on the ground or on another. Taken in the order of their
//! offsets, each block then begins at the highest end of those before it that it overlaps in time. So it suffices to search
//! orders in which offsets do not fall. What is left of a partial placement depends only on which blocks are left and on
//! how high the ground is for them; a state that was seen is not searched again.
#![allow(clippy::indexing_slicing, reason = "items and times are numbered densely by the problem")]

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};

use super::{Found, Problem};

/// The most states that are remembered: a few megabytes.
const MOST_SEEN: usize = 1 << 18;

struct Search<'a> {
    problem: &'a Problem,
    best: Found,
    offsets: Vec<u64>,
    /// Per time, bytes of the blocks that are not placed.
    rest: Vec<u64>,
    seen: HashSet<(u64, u64)>,
    steps: u64,
    cut: bool,
}

/// The best placement, proven where the search ended within so much work.
pub(super) fn search(problem: &Problem, best: Found, work: u64) -> Found {
    let mut search = Search {
        problem,
        offsets: vec![0; problem.items.len()],
        rest: problem.load.clone(),
        best,
        seen: HashSet::new(),
        steps: work,
        cut: false,
    };
    let all = u64::MAX >> (64 - problem.items.len().min(64));
    search.descend(all, &vec![0; problem.load.len()], (0, 0));
    Found { proven: !search.cut, ..search.best }
}

impl Search<'_> {
    fn descend(&mut self, left: u64, ground: &[u64], last: (u64, usize)) {
        if left == 0 {
            let ends = self.problem.items.iter().zip(&self.offsets).map(|(item, offset)| item.size + offset);
            let top = ends.max().unwrap_or_default();
            if top < self.best.top {
                self.best = Found { offsets: self.offsets.clone(), top, proven: false };
            }
            return;
        }
        if self.best.top <= self.problem.bound || self.is_cut(ground.len() as u64) {
            return;
        }
        let mut next: Vec<(u64, usize)> = self
            .problem
            .items
            .iter()
            .enumerate()
            .filter(|(at, _)| left >> at & 1 == 1)
            .map(|(at, item)| (ground[item.first..=item.last].iter().copied().max().unwrap_or_default(), at))
            .filter(|place| *place >= last)
            .collect();
        next.sort_by_key(|(offset, at)| (*offset, std::cmp::Reverse(self.problem.items[*at].size), *at));
        for (offset, at) in next {
            self.place(left, ground, (offset, at));
        }
    }

    fn place(&mut self, left: u64, ground: &[u64], (offset, at): (u64, usize)) {
        let item = self.problem.items[at];
        let mut raised = ground.to_vec();
        raised[item.first..=item.last].fill(offset + item.size);
        self.rest[item.first..=item.last].iter_mut().for_each(|rest| *rest -= item.size);
        // Nothing that is left goes below this offset any more.
        let mut fits = offset + item.size < self.best.top;
        for (ground, rest) in raised.iter_mut().zip(&self.rest) {
            *ground = if *rest == 0 { 0 } else { (*ground).max(offset) };
            fits &= *rest == 0 || *ground + *rest < self.best.top;
        }
        let left = left & !(1 << at);
        if fits && self.is_new(left, &raised, (offset, at)) {
            self.offsets[at] = offset;
            self.descend(left, &raised, (offset, at));
        }
        self.rest[item.first..=item.last].iter_mut().for_each(|rest| *rest += item.size);
    }

    fn is_new(&mut self, left: u64, ground: &[u64], last: (u64, usize)) -> bool {
        if left == 0 || self.seen.len() >= MOST_SEEN {
            return true;
        }
        let mut hasher = DefaultHasher::new();
        (ground, last).hash(&mut hasher);
        self.seen.insert((left, hasher.finish()))
    }

    fn is_cut(&mut self, cost: u64) -> bool {
        let cost = cost + 16;
        self.cut |= self.steps < cost;
        self.steps = self.steps.saturating_sub(cost);
        self.cut
    }
}
