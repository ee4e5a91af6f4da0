//! [`ArenaPlan`]: where each buffer lies in one block of memory.
//!
//! Two buffers may share an address where they do not live at the same time. How small the block can be is the dynamic
//! storage allocation problem, which is hard; the *live lower bound* (the most bytes alive at once) cannot be beaten.
//! Several searches share a budget of work, each beginning where the one before left off, and end early at the bound:
//!
//! 1. a skyline: at its lowest place goes the block that leaves least behind that nothing can fill, judged by how much can
//!    be wasted there (the bound less what lives there); blocks that came out too high are preferred in the next pass;
//! 2. first fit, the largest in the most crowded times first; what does not fit below the goal ejects what is cheapest to
//!    place again;
//! 3. best fit by size, the classic; and
//! 4. for small problems, branch and bound over the order of offsets, which proves its result.

mod exact;
mod shelf;
mod skyline;

use dd_core::Bytes;

use crate::error::{Error, Result};
use crate::liveness::Liveness;
use crate::program::{BufferId, Program};

/// Problems of at most so many blocks are searched exactly.
pub const MOST_EXACT: usize = 48;

/// Problems of more blocks are large.
const LARGE: usize = 1200;

/// A piece of memory with the time in which it is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Block {
    /// Bytes.
    pub size: u64,
    /// The first step that needs it.
    pub first: usize,
    /// The last, included.
    pub last: usize,
}

/// How to plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PlanOptions {
    /// Every offset is a multiple of this; at least one.
    pub align: u64,
    /// Bytes that stay free behind every block, for canaries.
    pub guard: u64,
    /// About how many elementary steps the searches may take: 1,000,000 are a few milliseconds.
    pub work: u64,
}

impl Default for PlanOptions {
    fn default() -> Self {
        Self { align: 64, guard: 0, work: 2_000_000 }
    }
}

/// Offsets of blocks in an arena.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArenaPlan {
    /// Per block, where it begins; zero for one without bytes.
    pub offsets: Vec<u64>,
    /// Per buffer of the program, its block; empty where the plan is of blocks.
    blocks: Vec<Option<usize>>,
    /// Bytes that are free behind every block.
    pub guard: u64,
    /// How large the arena is.
    pub size: Bytes,
    /// The most bytes that are alive at once, each block rounded up to the alignment and with its guard.
    pub lower_bound: Bytes,
    /// Whether no plan is smaller: the bound is met, or the exact search ended.
    pub optimal: bool,
}

impl ArenaPlan {
    /// Plans blocks.
    ///
    /// # Errors
    /// [`Error::Setting`] for a block that ends before it begins or an alignment of zero; a size overflow where all blocks
    /// together do not fit 63 bits.
    pub fn of_blocks(blocks: &[Block], options: &PlanOptions) -> Result<Self> {
        if options.align == 0 {
            return Err(Error::setting("align", 0, "offsets are multiples of at least 1"));
        }
        let mut total = 0u64;
        for block in blocks {
            if block.last < block.first {
                let reason = "expected a last step that is not before the first";
                return Err(Error::setting("block", format!("{block:?}"), reason));
            }
            let size = padded(*block, options).ok_or_else(|| Error::overflow("a block with its guard"))?;
            total = total
                .checked_add(size)
                .filter(|total| i64::try_from(*total).is_ok())
                .ok_or_else(|| Error::overflow(format!("{} blocks together", blocks.len())))?;
        }
        let problem = Problem::new(blocks, options);
        let found = solve(&problem, options.work);
        let mut offsets = vec![0; blocks.len()];
        for (item, offset) in problem.ids.iter().zip(&found.offsets) {
            if let Some(slot) = offsets.get_mut(*item) {
                *slot = *offset;
            }
        }
        let size = Bytes(found.top);
        let lower_bound = Bytes(problem.bound);
        Ok(Self {
            offsets,
            blocks: Vec::new(),
            guard: options.guard,
            size,
            lower_bound,
            optimal: found.proven,
        })
    }

    /// Plans everything of a program that is not there all the time: results, gradients, scratch.
    ///
    /// # Errors
    /// As [`of_blocks`](Self::of_blocks).
    pub fn of_program(program: &Program, options: &PlanOptions) -> Result<Self> {
        let live = Liveness::of(program);
        let mut blocks = Vec::new();
        let mut of_buffers = Vec::new();
        for (buffer, span) in program.buffers().iter().zip(&live.spans) {
            of_buffers.push(span.map(|_| blocks.len()));
            blocks.extend(span.map(|span| Block { size: buffer.bytes, first: span.first, last: span.last }));
        }
        Ok(Self { blocks: of_buffers, ..Self::of_blocks(&blocks, options)? })
    }

    /// Where a program's buffer begins; nothing for one that is not in the arena.
    #[must_use]
    pub fn offset(&self, buffer: BufferId) -> Option<u64> {
        self.offsets.get(self.blocks.get(buffer.index()).copied().flatten()?).copied()
    }

    /// How much larger the arena is than the bound: 0 is perfect.
    #[must_use]
    pub fn fragmentation_fraction(&self) -> f64 {
        (self.size.fraction_of(self.lower_bound) - 1.0).max(0.0)
    }

    /// Two blocks that share an address while both live, or one outside the arena; nothing where the plan holds.
    #[must_use]
    pub fn conflict(&self, blocks: &[Block], guard: u64) -> Option<(usize, usize)> {
        let mut placed: Vec<(usize, &Block, u64)> =
            blocks.iter().enumerate().zip(&self.offsets).map(|((at, b), o)| (at, b, *o)).collect();
        placed.retain(|(_, block, _)| block.size > 0);
        placed.sort_by_key(|(_, block, _)| block.first);
        for (rank, (at, block, offset)) in placed.iter().enumerate() {
            let end = offset.saturating_add(block.size).saturating_add(guard);
            if end > self.size.0 {
                return Some((*at, *at));
            }
            let later = placed.iter().skip(rank + 1).take_while(|(_, other, _)| other.first <= block.last);
            for (other_at, other, other_offset) in later {
                if *offset < other_offset.saturating_add(other.size).saturating_add(guard)
                    && *other_offset < end
                {
                    return Some((*at, *other_at));
                }
            }
        }
        None
    }
}

fn padded(block: Block, options: &PlanOptions) -> Option<u64> {
    if block.size == 0 {
        return Some(0);
    }
    block.size.checked_add(options.guard)?.checked_next_multiple_of(options.align)
}

/// A block in dense time: only steps at which a block begins are distinguished.
#[derive(Clone, Copy, Debug)]
struct Item {
    size: u64,
    first: usize,
    last: usize,
}

/// What the searches work on.
struct Problem {
    items: Vec<Item>,
    /// Which block each item is.
    ids: Vec<usize>,
    /// Bytes alive at each time.
    load: Vec<u64>,
    bound: u64,
}

/// A placement.
#[derive(Clone, Debug)]
struct Found {
    offsets: Vec<u64>,
    top: u64,
    proven: bool,
}

impl Problem {
    fn new(blocks: &[Block], options: &PlanOptions) -> Self {
        let mut starts: Vec<usize> =
            blocks.iter().filter(|block| block.size > 0).map(|block| block.first).collect();
        starts.sort_unstable();
        starts.dedup();
        let mut problem = Self { items: Vec::new(), ids: Vec::new(), load: vec![0; starts.len()], bound: 0 };
        let mut deltas = vec![0i64; starts.len() + 1];
        for (id, block) in blocks.iter().enumerate().filter(|(_, block)| block.size > 0) {
            let first = starts.partition_point(|start| *start < block.first);
            let last = starts.partition_point(|start| *start <= block.last).saturating_sub(1);
            let size = padded(*block, options).unwrap_or(block.size);
            problem.items.push(Item { size, first, last });
            problem.ids.push(id);
            let signed = i64::try_from(size).unwrap_or(i64::MAX);
            for (at, delta) in [(first, signed), (last + 1, -signed)] {
                if let Some(slot) = deltas.get_mut(at) {
                    *slot += delta;
                }
            }
        }
        let mut live = 0i64;
        for (load, delta) in problem.load.iter_mut().zip(&deltas) {
            live += delta;
            *load = u64::try_from(live).unwrap_or_default();
        }
        problem.bound = problem.load.iter().copied().max().unwrap_or_default();
        problem
    }
}

/// Looks for a placement within a budget of work; the seed tells two searches of a kind apart.
type Search = fn(&Problem, u64, &mut u64) -> Option<Found>;

fn solve(problem: &Problem, work: u64) -> Found {
    if problem.items.is_empty() {
        return Found { offsets: Vec::new(), top: 0, proven: true };
    }
    // In a large problem each pass costs, and what repairs a whole placement gets furthest; in a small one passes are cheap.
    let large = problem.items.len() > LARGE;
    let mut best = if large { shelf::in_order(problem) } else { shelf::best_fit_by_size(problem) };
    let searches: [(Search, u64, u64); 3] = if large {
        [(shelf::repair as Search, 0, 3), (skyline::search, 0, 1), (skyline::search, 1, 0)]
    } else {
        [(skyline::search as Search, 0, 2), (shelf::repair, 0, 1), (skyline::search, 1, 1)]
    };
    let (mut budget, mut shares) = (work, searches.iter().map(|(_, _, share)| share).sum::<u64>());
    for (search, seed, share) in searches {
        if best.top <= problem.bound || share == 0 {
            continue;
        }
        let given = budget / shares.max(1) * share;
        let mut left = given;
        if let Some(found) = search(problem, seed, &mut left)
            && found.top < best.top
        {
            best = found;
        }
        budget -= given - left.min(given);
        shares -= share;
    }
    best.proven = best.top <= problem.bound;
    if !best.proven && problem.items.len() <= MOST_EXACT {
        best = exact::search(problem, best, work);
    }
    best
}

/// A small generator (xorshift): the same plan in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number of 0 to 1.
    fn fraction(&mut self) -> f64 {
        (self.next() >> 40) as f64 / f64::from(1 << 24)
    }
}
