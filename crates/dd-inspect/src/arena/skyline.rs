//! The skyline: the lowest place is filled next, by the block that leaves least behind that nothing can fill.
//!
//! Times are cut into segments of equal height. At the lowest segment, the candidates are the blocks that live within it. A
//! candidate leaves a rest to its left and right; a rest that no other candidate fits into is wasted up to the neighbour's
//! height, which harms only as far as it exceeds the slack there: the bound less the height less all that has yet to be
//! placed. Where nothing fits, the segment is raised to its lower neighbour.
#![allow(clippy::indexing_slicing, reason = "items, times and segments are numbered densely by the problem")]

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::{Found, Problem, Random};

/// No segment, no item.
const NONE: usize = usize::MAX;
/// Preferences in the order in which they are tried.
const PREFERENCES: [Preference; 5] =
    [Preference::Critical, Preference::Area, Preference::Long, Preference::Touching, Preference::Covering];
/// Without better results for so many passes, more are of no use.
const PATIENCE: usize = 400;

/// What is preferred among candidates that harm equally.
#[derive(Clone, Copy)]
enum Preference {
    /// Those at the tightest time, then those that touch the ends, then the long.
    Critical,
    /// Those at the tightest time, then the large in bytes times steps.
    Area,
    /// The long.
    Long,
    /// Those that touch the ends, then the long.
    Touching,
    /// Those at the tightest time, then the long.
    Covering,
}

/// Several passes; blocks that came out above the bound are preferred more in the next.
pub(super) fn search(problem: &Problem, seed: u64, budget: &mut u64) -> Option<Found> {
    let order = Order::new(problem);
    let mut bias = vec![0.0; problem.items.len()];
    let mut tried = bias.clone();
    let mut random = Random(88_172_645_463_325_252 + seed);
    let mut best: Option<Found> = None;
    let mut since = 0;
    let mut first = PREFERENCES.iter().filter(|_| seed == 0);
    loop {
        let preference = if let Some(preference) = first.next() {
            *preference
        } else {
            for (tried, bias) in tried.iter_mut().zip(&bias) {
                *tried = bias + 0.4 * random.fraction();
            }
            match random.next() % 7 {
                0 | 1 => Preference::Critical,
                2 | 3 => Preference::Covering,
                4 => Preference::Long,
                5 => Preference::Touching,
                _ => Preference::Area,
            }
        };
        let mut skyline = Skyline::new(problem, &order);
        skyline.run(preference, &tried, budget);
        for ((bias, item), offset) in bias.iter_mut().zip(&problem.items).zip(&skyline.offsets) {
            *bias = if offset + item.size > problem.bound { *bias + 0.3 } else { *bias * 0.9 };
        }
        let top = skyline.top;
        since += 1;
        if skyline.left == 0 && best.as_ref().is_none_or(|best| top < best.top) {
            best = Some(Found { offsets: skyline.offsets, top, proven: false });
            since = 0;
        }
        if *budget == 0 || since > PATIENCE || best.as_ref().is_some_and(|best| best.top <= problem.bound) {
            return best;
        }
    }
}

/// Items by their first time.
struct Order {
    sorted: Vec<usize>,
    /// Per time, the first place in `sorted` that is not before it.
    at: Vec<usize>,
}

impl Order {
    fn new(problem: &Problem) -> Self {
        let mut sorted: Vec<usize> = (0..problem.items.len()).collect();
        sorted.sort_by_key(|at| problem.items[*at].first);
        let place = |time: usize| sorted.partition_point(|at| problem.items[*at].first < time);
        let at = (0..=problem.load.len()).map(place).collect();
        Self { sorted, at }
    }
}

/// A segment of times of one height; segments are found by their first time.
#[derive(Clone, Copy)]
struct Segment {
    end: usize,
    before: usize,
    height: u64,
    alive: bool,
}

struct Skyline<'a> {
    problem: &'a Problem,
    order: &'a Order,
    /// Per time, how much can still be wasted there.
    slack: Vec<i64>,
    segments: Vec<Segment>,
    lowest: BinaryHeap<Reverse<(u64, usize)>>,
    /// Per place in the order, itself or a later one that is not placed.
    next: Vec<usize>,
    offsets: Vec<u64>,
    top: u64,
    left: usize,
    /// The least slack before a time, and behind it, within the segment.
    before: Vec<i64>,
    behind: Vec<i64>,
}

/// The candidates of a segment at a glance.
struct Glance {
    any: bool,
    /// The earliest end and the latest begin of any.
    ends: usize,
    begins: usize,
    /// The time of the least slack.
    critical: usize,
}

impl<'a> Skyline<'a> {
    fn new(problem: &'a Problem, order: &'a Order) -> Self {
        let times = problem.load.len();
        let bound = i64::try_from(problem.bound).unwrap_or(i64::MAX);
        let slack =
            problem.load.iter().map(|load| bound - i64::try_from(*load).unwrap_or(i64::MAX)).collect();
        let dead = Segment { end: 0, before: NONE, height: 0, alive: false };
        let mut segments = vec![dead; times + 1];
        segments[0] = Segment { end: times, alive: true, ..dead };
        let count = problem.items.len();
        Self {
            problem,
            order,
            slack,
            segments,
            lowest: BinaryHeap::from([Reverse((0, 0))]),
            next: (0..=count).collect(),
            offsets: vec![0; count],
            top: 0,
            left: count,
            before: vec![0; times],
            behind: vec![0; times],
        }
    }

    fn run(&mut self, preference: Preference, bias: &[f64], budget: &mut u64) {
        while self.left > 0 && *budget > 0 {
            let Some(Reverse((height, start))) = self.lowest.pop() else { return };
            let segment = self.segments[start];
            if !segment.alive || segment.height != height {
                continue; // It was raised, merged or split since.
            }
            let walls = self.walls(start);
            let glance = self.glance(start, segment.end, budget);
            let chosen =
                if glance.any { self.choose(start, walls, &glance, preference, bias, budget) } else { None };
            match chosen {
                Some(place) => self.place(start, place),
                None => self.raise(start, walls, budget),
            }
        }
    }

    fn walls(&self, start: usize) -> (u64, u64) {
        let segment = self.segments[start];
        let left = if segment.before == NONE { u64::MAX } else { self.segments[segment.before].height };
        let right =
            if segment.end < self.problem.load.len() { self.segments[segment.end].height } else { u64::MAX };
        (left, right)
    }

    /// The place of the next item in the order that is not placed, from `at` on.
    fn find(&mut self, mut at: usize) -> usize {
        while self.next[at] != at {
            self.next[at] = self.next[self.next[at]];
            at = self.next[at];
        }
        at
    }

    fn glance(&mut self, start: usize, end: usize, budget: &mut u64) -> Glance {
        let mut glance = Glance { any: false, ends: usize::MAX, begins: 0, critical: start };
        let stop = self.order.at[end];
        let mut at = self.find(self.order.at[start]);
        let mut seen = 0;
        while at < stop {
            let item = self.problem.items[self.order.sorted[at]];
            if item.last < end {
                glance.any = true;
                glance.ends = glance.ends.min(item.last);
                glance.begins = glance.begins.max(item.first);
            }
            seen += 1;
            at = self.find(at + 1);
        }
        if glance.any {
            seen += (end - start) as u64;
            let mut least = i64::MAX;
            for time in start..end {
                self.before[time] = least;
                if self.slack[time] < least {
                    (least, glance.critical) = (self.slack[time], time);
                }
            }
            least = i64::MAX;
            for time in (start..end).rev() {
                self.behind[time] = least;
                least = least.min(self.slack[time]);
            }
        }
        *budget = budget.saturating_sub(seen);
        glance
    }

    fn choose(
        &mut self,
        start: usize,
        (left, right): (u64, u64),
        glance: &Glance,
        preference: Preference,
        bias: &[f64],
        budget: &mut u64,
    ) -> Option<usize> {
        let Segment { end, height, .. } = self.segments[start];
        let stop = self.order.at[end];
        let mut best: Option<(i64, f64, usize)> = None;
        let mut at = self.find(self.order.at[start]);
        while at < stop {
            let id = self.order.sorted[at];
            let item = self.problem.items[id];
            *budget = budget.saturating_sub(1);
            if item.last < end {
                let mut harm = 0;
                if item.first > start && glance.ends >= item.first {
                    harm += harm_of(left, height, item.size, self.before[item.first]);
                }
                if item.last + 1 < end && glance.begins <= item.last {
                    harm += harm_of(right, height, item.size, self.behind[item.last]);
                }
                let long = (item.last - item.first + 1) as f64 * (1.0 + bias[id]);
                let covers =
                    f64::from(u8::from(item.first <= glance.critical && glance.critical <= item.last));
                let touches = f64::from(u8::from(item.first == start) + u8::from(item.last + 1 == end));
                let score = match preference {
                    Preference::Critical => covers * 4e12 + touches * 1e12 + long,
                    Preference::Area => covers * 1e30 + long * item.size as f64,
                    Preference::Long => long,
                    Preference::Touching => touches * 1e12 + long,
                    Preference::Covering => covers * 1e12 + long,
                };
                if best.is_none_or(|(least, most, _)| harm < least || harm == least && score > most) {
                    best = Some((harm, score, at));
                }
            }
            at = self.find(at + 1);
        }
        best.map(|(_, _, at)| at)
    }

    fn place(&mut self, start: usize, place: usize) {
        let id = self.order.sorted[place];
        let item = self.problem.items[id];
        self.next[place] = place + 1;
        self.left -= 1;
        let Segment { end, before, height, .. } = self.segments[start];
        self.offsets[id] = height;
        let raised = height + item.size;
        self.top = self.top.max(raised);
        self.segments[start].alive = false;
        let mut previous = before;
        if item.first > start {
            previous = self.put(start, item.first, height, previous);
        }
        previous = self.put(item.first, item.last + 1, raised, previous);
        if item.last + 1 < end {
            previous = self.put(item.last + 1, end, height, previous);
        }
        self.join(previous, end);
    }

    /// A new segment, or more of the one before where that is as high.
    fn put(&mut self, start: usize, end: usize, height: u64, before: usize) -> usize {
        let mut at = start;
        if before != NONE && self.segments[before].alive && self.segments[before].height == height {
            self.segments[before].end = end;
            at = before;
        } else {
            self.segments[start] = Segment { end, before, height, alive: true };
        }
        self.segments[end].before = at;
        self.lowest.push(Reverse((height, at)));
        at
    }

    /// Joins a segment with the next where both are as high.
    fn join(&mut self, at: usize, next: usize) {
        if at == NONE
            || next >= self.problem.load.len()
            || self.segments[next].height != self.segments[at].height
        {
            return;
        }
        let end = self.segments[next].end;
        self.segments[next].alive = false;
        self.segments[at].end = end;
        self.segments[end].before = at;
    }

    fn raise(&mut self, start: usize, (left, right): (u64, u64), budget: &mut u64) {
        let Segment { end, before, height, .. } = self.segments[start];
        let raised = left.min(right);
        if raised == u64::MAX {
            return;
        }
        let wasted = i64::try_from(raised - height).unwrap_or(i64::MAX);
        for slack in &mut self.slack[start..end] {
            *slack = slack.saturating_sub(wasted);
        }
        *budget = budget.saturating_sub((end - start) as u64);
        self.segments[start].alive = false;
        let at = self.put(start, end, raised, before);
        self.join(at, end);
    }
}

/// By how much a rest below a wall exceeds what can be wasted there, where a block of `size` stands beside it.
fn harm_of(wall: u64, height: u64, size: u64, slack: i64) -> i64 {
    let wasted = wall.min(height + size) - height;
    (i64::try_from(wasted).unwrap_or(i64::MAX) - slack.max(0)).max(0)
}
