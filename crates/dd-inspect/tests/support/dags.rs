//! Random DAGs of tensors, as blocks with lifetimes.
#![allow(
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    reason = "small numbers of a test's own making"
)]

use super::Block;

/// A small generator (xorshift): the same DAGs in every run.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn within(&mut self, low: usize, high: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        low + (self.0 % (high - low + 1) as u64) as usize
    }
}

/// A DAG of `count` tensors in a topological order. Each tensor is made of one to three earlier ones: mostly of the last few
/// (how few is drawn per DAG, from 4 to all), one in ten of any. Sizes are even from 64 B to 1 MiB, powers of two, or spread
/// evenly over the orders of magnitude. A tensor lives from its making to its last use.
pub(crate) fn dag(random: &mut Random, count: usize) -> Vec<Block> {
    let reach = [4, 16, 64, count][random.within(0, 3)];
    let sizes = random.within(0, 2);
    let mut last: Vec<usize> = (0..count).collect();
    for at in 1..count {
        for _ in 0..random.within(1, 3) {
            let far = random.within(0, 9) == 0;
            let back = random.within(1, if far { at } else { reach.min(at) });
            last[at - back] = last[at - back].max(at);
        }
    }
    let mut size = || match sizes {
        0 => 64 * random.within(1, 1 << 14) as u64,
        1 => 64u64 << random.within(0, 14),
        _ => {
            let magnitude = random.within(0, 13);
            (64u64 << magnitude) + 64 * random.within(0, 1 << magnitude) as u64
        }
    };
    (0..count).map(|at| Block { size: size(), first: at, last: last[at] }).collect()
}
