//! A discrete-event simulation of the pass: one reader that serves the reads in order, each as soon as its room is
//! free, and one computation that waits for its unit.
//!
//! Per position i, with bandwidth B:
//! `read_end(i) = max(read_end(i − 1), release(start_at(i))) + bytes(i) / B` and
//! `release(i) = max(release(i − 1), read_end(i)) + compute(i)`. Such a system settles into a steady rhythm; the time of
//! a pass is the mean over passes late enough to have settled.

use std::time::Duration;

use super::{Bound, Prediction, Step};

/// Passes that are simulated, and how many of the last of them are averaged.
const PASSES: usize = 12;
const AVERAGED: usize = 6;

/// What a pass takes in steady state: `compute` is the seconds of each position, `bandwidth` in bytes per second.
///
/// The result is never below max(C, bytes read / B), which [`Prediction::bound`] names.
#[must_use]
pub fn simulate(steps: &[Step], compute: &[f64], bandwidth: f64) -> Prediction {
    let mut ends = Vec::with_capacity(PASSES + 1);
    let mut clock = Clock { released: Vec::new(), reader: 0.0, now: 0.0 };
    for pass in 0..PASSES {
        ends.push(clock.now);
        for (position, step) in steps.iter().enumerate() {
            clock.step(pass * steps.len(), step, bandwidth, seconds(compute, position));
        }
    }
    let settled = PASSES - AVERAGED;
    let start = ends.get(settled).copied().unwrap_or(0.0);
    let pass = (clock.now - start) / AVERAGED as f64;
    let compute: f64 = (0..steps.len()).map(|position| seconds(compute, position)).sum();
    let read = steps.iter().map(|step| step.read.0 as f64).sum::<f64>() / bandwidth;
    Prediction {
        pass: duration(pass.max(compute).max(read)),
        compute: duration(compute),
        read: duration(read),
        bound: if compute >= read { Bound::Compute } else { Bound::Disk },
    }
}

/// The time of each release so far, when the reader is free, and when the computation is.
struct Clock {
    released: Vec<f64>,
    reader: f64,
    now: f64,
}

impl Clock {
    fn step(&mut self, base: usize, step: &Step, bandwidth: f64, compute: f64) {
        if step.read.0 > 0 {
            let room = self.released_at(base, step.start_at);
            self.reader = self.reader.max(room) + step.read.0 as f64 / bandwidth;
            self.now = self.now.max(self.reader);
        }
        self.now += compute;
        self.released.push(self.now);
    }

    fn released_at(&self, base: usize, position: i64) -> f64 {
        let base = i64::try_from(base).unwrap_or(i64::MAX);
        let index = usize::try_from(base.saturating_add(position)).ok();
        index.and_then(|index| self.released.get(index)).copied().unwrap_or(0.0)
    }
}

fn seconds(compute: &[f64], position: usize) -> f64 {
    compute.get(position).copied().unwrap_or(0.0)
}

/// Saturates: a time beyond what a duration holds is the longest duration.
fn duration(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX)
}
