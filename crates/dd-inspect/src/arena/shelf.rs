//! Placing blocks into gaps, in a chosen order; and ejecting what is in the way.
//!
//! The placed blocks are kept in the order of their offsets, one array per field, so that those which share a time with a
//! block are found by comparing whole words at a time.
#![allow(
    clippy::indexing_slicing,
    reason = "items are numbered densely by the problem; the arrays grow together"
)]

use std::collections::BinaryHeap;

use super::{Found, Item, Problem, Random};

/// Goals of the repair, as shares of the bound.
const GOALS: [f64; 4] = [1.019, 1.012, 1.004, 1.0];

#[derive(Default)]
struct Shelf {
    first: Vec<u32>,
    last: Vec<u32>,
    start: Vec<u64>,
    end: Vec<u64>,
    id: Vec<usize>,
}

/// Best fit into the narrowest gap, the largest first: the order of most inference engines.
pub(super) fn best_fit_by_size(problem: &Problem) -> Found {
    let sizes: Vec<f64> = problem.items.iter().map(|item| item.size as f64).collect();
    place_all(problem, &descending(&sizes), true)
}

/// What does not fit below the goal ejects what is cheapest to place again.
pub(super) fn repair(problem: &Problem, _: u64, budget: &mut u64) -> Option<Found> {
    let bound = problem.bound.max(1) as f64;
    let keys = crowded_sizes(problem);
    let order = descending(&keys);
    let mut best: Option<Found> = None;
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for share in GOALS {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "float casts saturate")]
        let goal = (bound * share) as u64;
        let mut attempt = Attempt {
            problem,
            keys: &keys,
            goal: goal.max(problem.bound),
            shelf: Shelf::default(),
            offsets: vec![0; problem.items.len()],
            ejected: vec![0; problem.items.len()],
            budget: *budget,
        };
        let done = attempt.run(&order, &mut random);
        *budget = attempt.budget;
        if !done {
            break;
        }
        best = Some(found(problem, attempt.offsets));
    }
    best
}

/// First fit, the largest in the most crowded times first.
pub(super) fn in_order(problem: &Problem) -> Found {
    place_all(problem, &descending(&crowded_sizes(problem)), false)
}

/// Sizes, less where a block lives in times that are not crowded.
fn crowded_sizes(problem: &Problem) -> Vec<f64> {
    let bound = problem.bound.max(1) as f64;
    let crowd = |item: &Item| {
        problem.load[item.first..=item.last].iter().copied().max().unwrap_or_default() as f64 / bound
    };
    problem.items.iter().map(|item| item.size as f64 * crowd(item).powi(10)).collect()
}

fn descending(keys: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..keys.len()).collect();
    order.sort_by(|a, b| keys[*b].total_cmp(&keys[*a]).then(a.cmp(b)));
    order
}

fn place_all(problem: &Problem, order: &[usize], narrowest: bool) -> Found {
    let mut shelf = Shelf::default();
    let mut offsets = vec![0; problem.items.len()];
    let mut unbounded = u64::MAX;
    for at in order {
        let item = problem.items[*at];
        let offset = shelf.fit(item, u64::MAX, narrowest, &mut unbounded).unwrap_or_default();
        offsets[*at] = offset;
        shelf.insert(item, offset, *at);
    }
    found(problem, offsets)
}

fn found(problem: &Problem, offsets: Vec<u64>) -> Found {
    let ends = problem.items.iter().zip(&offsets).map(|(item, offset)| item.size + offset);
    Found { top: ends.max().unwrap_or_default(), offsets, proven: false }
}

impl Shelf {
    fn insert(&mut self, item: Item, offset: u64, id: usize) {
        let at = self.start.partition_point(|start| *start <= offset);
        self.first.insert(at, narrow(item.first));
        self.last.insert(at, narrow(item.last));
        self.start.insert(at, offset);
        self.end.insert(at, offset + item.size);
        self.id.insert(at, id);
    }

    fn remove(&mut self, offset: u64, id: usize) {
        let mut at = self.start.partition_point(|start| *start < offset);
        while at < self.id.len() && self.id[at] != id {
            at += 1;
        }
        if at < self.id.len() {
            self.first.remove(at);
            self.last.remove(at);
            self.start.remove(at);
            self.end.remove(at);
            self.id.remove(at);
        }
    }

    /// Visits those that share a time with `item`, by offset, until `visit` says that it has seen enough.
    fn overlapping(&self, item: Item, budget: &mut u64, mut visit: impl FnMut(usize) -> bool) {
        let (first, last) = (narrow(item.first), narrow(item.last));
        for (chunk, (firsts, lasts)) in self.first.chunks(64).zip(self.last.chunks(64)).enumerate() {
            let mut flags = [0u8; 64];
            for ((flag, a), b) in flags.iter_mut().zip(firsts).zip(lasts) {
                *flag = u8::from(*a <= last && *b >= first);
            }
            let mut mask = 0u64;
            for (group, bytes) in flags.as_chunks::<8>().0.iter().enumerate() {
                // Gathers the lowest bit of each byte.
                let bits = u64::from_le_bytes(*bytes).wrapping_mul(0x0102_0408_1020_4080) >> 56;
                mask |= bits << (8 * group);
            }
            *budget = budget.saturating_sub(8 + u64::from(mask.count_ones()));
            while mask != 0 {
                if !visit(chunk * 64 + mask.trailing_zeros() as usize) {
                    return;
                }
                mask &= mask - 1;
            }
        }
    }

    /// The lowest gap below `goal`, or the narrowest.
    fn fit(&self, item: Item, goal: u64, narrowest: bool, budget: &mut u64) -> Option<u64> {
        let (mut free, mut chosen, mut width) = (0u64, None, u64::MAX);
        self.overlapping(item, budget, |at| {
            let gap = self.start[at].saturating_sub(free);
            if gap >= item.size && gap < width {
                (chosen, width) = (Some(free), gap);
                if !narrowest {
                    return false;
                }
            }
            free = free.max(self.end[at]);
            free.saturating_add(item.size) <= goal
        });
        let above = goal.saturating_sub(free);
        let fits = above >= item.size;
        if fits && (chosen.is_none() || narrowest && goal != u64::MAX && above < width) {
            Some(free)
        } else {
            chosen
        }
    }
}

fn narrow(time: usize) -> u32 {
    u32::try_from(time).unwrap_or(u32::MAX)
}

struct Attempt<'a> {
    problem: &'a Problem,
    keys: &'a [f64],
    goal: u64,
    shelf: Shelf,
    offsets: Vec<u64>,
    ejected: Vec<u32>,
    budget: u64,
}

/// One that is in the way: where it lies, and what ejecting it costs.
struct InTheWay {
    start: u64,
    end: u64,
    cost: f64,
    id: usize,
}

impl Attempt<'_> {
    fn run(&mut self, order: &[usize], random: &mut Random) -> bool {
        let mut queue = BinaryHeap::new();
        for at in order {
            let item = self.problem.items[*at];
            match self.shelf.fit(item, self.goal, false, &mut self.budget) {
                Some(offset) => self.put(*at, offset),
                None => queue.push((item.size, *at)),
            }
            if self.budget == 0 {
                return false;
            }
        }
        while let Some((_, at)) = queue.pop() {
            if self.budget == 0 {
                return false;
            }
            let item = self.problem.items[at];
            let offset = match self.shelf.fit(item, self.goal, true, &mut self.budget) {
                Some(offset) => offset,
                None => self.eject(item, &mut queue, random),
            };
            self.put(at, offset);
            self.ejected[at] += 1;
        }
        true
    }

    fn put(&mut self, at: usize, offset: u64) {
        self.offsets[at] = offset;
        self.shelf.insert(self.problem.items[at], offset, at);
        self.budget = self.budget.saturating_sub(self.problem.items.len() as u64 / 64);
    }

    /// Makes room where it is cheapest; those that were in the way are to be placed again.
    fn eject(&mut self, item: Item, queue: &mut BinaryHeap<(u64, usize)>, random: &mut Random) -> u64 {
        let mut all = Vec::new();
        let mut budget = self.budget;
        self.shelf.overlapping(item, &mut budget, |at| {
            let id = self.shelf.id[at];
            let cost = self.keys[id] * (1.0 + f64::from(self.ejected[id]));
            all.push(InTheWay { start: self.shelf.start[at], end: self.shelf.end[at], cost, id });
            true
        });
        self.budget = budget.saturating_sub(8 * all.len() as u64);
        let offset = self.cheapest(item.size, &all, random);
        for one in all.iter().filter(|one| one.start < offset + item.size && one.end > offset) {
            self.shelf.remove(one.start, one.id);
            self.ejected[one.id] += 1;
            queue.push((self.problem.items[one.id].size, one.id));
            self.budget = self.budget.saturating_sub(50);
        }
        offset
    }

    fn cheapest(&self, size: u64, all: &[InTheWay], random: &mut Random) -> u64 {
        let highest = self.goal.saturating_sub(size);
        let mut places = vec![0, highest];
        places.extend(all.iter().map(|one| one.end).filter(|end| *end <= highest));
        places.extend(
            all.iter().filter_map(|one| one.start.checked_sub(size)).filter(|start| *start <= highest),
        );
        places.sort_unstable();
        places.dedup();
        let mut ends: Vec<(u64, f64)> = all.iter().map(|one| (one.end, one.cost)).collect();
        ends.sort_by_key(|(end, _)| *end);
        let (mut begun, mut ended) = (all.iter().peekable(), ends.iter().peekable());
        let (mut cost, mut best, mut chosen) = (0.0, f64::MAX, 0);
        for place in places {
            while let Some(one) = begun.next_if(|one| one.start < place + size) {
                cost += one.cost;
            }
            while let Some((_, gone)) = ended.next_if(|(end, _)| *end <= place) {
                cost -= gone;
            }
            let judged = cost * (1.0 + 0.1 * random.fraction());
            if judged < best {
                (best, chosen) = (judged, place);
            }
        }
        chosen
    }
}
