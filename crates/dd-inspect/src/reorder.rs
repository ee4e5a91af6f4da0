//! Another order of a network's layers, with a lower peak.
//!
//! Any order in which a layer comes after those whose results it reads computes the same; what is held in between differs.
//! The search goes through the orders level by level and keeps, of all beginnings with the same layers done, the one with
//! the lowest peak so far. Up to [`MOST_EXACT`] layers nothing else is dropped and the result is the best there is (in what
//! layers hold and free; a layer's own scratch counts); beyond, only the best beginnings of each level go on.

use std::collections::BTreeMap;

use dd_core::Bytes;

use crate::error::Result;
use crate::graph::{Graph, Sizes};
use crate::liveness::Liveness;
use crate::program::{Inference, Role};

/// Networks of at most so many layers are searched exactly.
pub const MOST_EXACT: usize = 16;
/// Beginnings that go on, beyond.
const WIDTH: usize = 24;
/// Larger networks keep fewer beginnings, so that the work stays in proportion.
const WORK: usize = 400_000;

/// An order and its peaks.
#[derive(Clone, Debug, PartialEq)]
pub struct Reordered {
    /// The network in the best order that was found: its own, where none is better.
    pub graph: Graph,
    /// The live peak of its own order.
    pub before: Bytes,
    /// The live peak of the best.
    pub after: Bytes,
}

/// Searches an order with a lower live peak for a pass forward.
///
/// # Errors
/// As [`Graph::inference`].
pub fn lower_peak(graph: &Graph, sizes: Sizes, options: &Inference) -> Result<Reordered> {
    let program = graph.inference(sizes, options)?;
    let before = Liveness::of(&program).peak;
    let mut best = Reordered { graph: graph.clone(), before, after: before };
    let problem = Problem::new(graph, &program, sizes)?;
    if let Some(order) = problem.search() {
        let other = graph.with_nodes(&order);
        let after = Liveness::of(&other.inference(sizes, options)?).peak;
        if after < best.after {
            best = Reordered { graph: other, before, after };
        }
    }
    Ok(best)
}

/// What each layer holds, frees and waits for.
struct Problem {
    /// Per node: bytes of its result, and of its scratch.
    makes: Vec<u64>,
    scratch: Vec<u64>,
    /// Per node: the memory that its result lies in, by the node that made it; inputs have none.
    reads: Vec<Vec<usize>>,
    /// Per node, how many readers its memory has; outputs have one that never comes.
    readers: Vec<usize>,
    /// Per node, which nodes come before it.
    waits: Vec<Vec<usize>>,
}

#[derive(Clone)]
struct State {
    done: Vec<u64>,
    peak: u64,
    live: u64,
    left: Vec<u32>,
    order: Vec<u32>,
}

impl Problem {
    fn new(graph: &Graph, program: &crate::program::Program, sizes: Sizes) -> Result<Self> {
        let shapes = graph.shapes(sizes)?;
        let count = graph.nodes().len();
        let mut problem = Self {
            makes: vec![0; count],
            scratch: vec![0; count],
            reads: vec![Vec::new(); count],
            readers: vec![0; count],
            waits: vec![Vec::new(); count],
        };
        for step in program.steps() {
            let Some(slot) = step.node.and_then(|node| problem.scratch.get_mut(node)) else { continue };
            let buffers = step.operands.iter().filter_map(|operand| program.buffer(operand.buffer));
            *slot +=
                buffers.filter(|buffer| buffer.role == Role::Scratch).map(|buffer| buffer.bytes).sum::<u64>();
        }
        // Per value, the node whose memory it lies in, and who has read that memory so far.
        let mut home: Vec<Option<usize>> = vec![None; graph.values];
        let mut maker: Vec<Option<usize>> = vec![None; graph.values];
        let mut users: Vec<Vec<usize>> = vec![Vec::new(); count];
        let element = program.outputs().first().and_then(|id| program.buffer(*id));
        let element = element.and_then(|buffer| buffer.dtype.element_bytes()).unwrap_or(4);
        for (at, node) in graph.nodes().iter().enumerate() {
            let Some(module) = graph.module_of(node) else { continue };
            let homes: Vec<usize> =
                node.inputs.iter().filter_map(|v| home.get(v.index()).copied().flatten()).collect();
            let makers = node.inputs.iter().filter_map(|v| maker.get(v.index()).copied().flatten());
            let mut waits: Vec<usize> = makers.collect();
            let shares = module.layer.is_view() || module.layer.is_in_place();
            if module.layer.is_in_place() {
                // Whoever reads what is overwritten comes first.
                waits.extend(homes.iter().flat_map(|home| users.get(*home).into_iter().flatten().copied()));
            }
            let mine = if shares { homes.first().copied() } else { Some(at) };
            if !shares && let Some(slot) = problem.makes.get_mut(at) {
                *slot = shapes.elements(node.output)?.saturating_mul(element);
            }
            let mut distinct = homes;
            distinct.sort_unstable();
            distinct.dedup();
            for home in &distinct {
                problem.readers.iter_mut().skip(*home).take(1).for_each(|readers| *readers += 1);
                users.iter_mut().skip(*home).take(1).for_each(|users| users.push(at));
            }
            for (list, value) in [(&mut problem.reads, distinct), (&mut problem.waits, waits)] {
                list.iter_mut().skip(at).take(1).for_each(|slot| slot.clone_from(&value));
            }
            for (list, value) in [(&mut home, mine), (&mut maker, Some(at))] {
                list.iter_mut().skip(node.output.index()).take(1).for_each(|slot| *slot = value);
            }
        }
        for value in graph.outputs() {
            if let Some(home) = home.get(value.index()).copied().flatten() {
                problem.readers.iter_mut().skip(home).take(1).for_each(|readers| *readers += 1);
            }
        }
        Ok(problem)
    }

    fn search(&self) -> Option<Vec<usize>> {
        let count = self.makes.len();
        let width = if count <= MOST_EXACT { usize::MAX } else { WIDTH.min(WORK / count.max(1)).max(1) };
        let left = self.readers.iter().map(|readers| u32::try_from(*readers).unwrap_or(u32::MAX)).collect();
        let first = State { done: vec![0; count.div_ceil(64)], peak: 0, live: 0, left, order: Vec::new() };
        let mut level = vec![first];
        for _ in 0..count {
            let mut next: BTreeMap<Vec<u64>, State> = BTreeMap::new();
            for state in &level {
                for node in (0..count).filter(|node| self.is_ready(state, *node)) {
                    let after = self.run(state, node);
                    let known = next.get(&after.done);
                    if known.is_none_or(|known| after.peak < known.peak) {
                        next.insert(after.done.clone(), after);
                    }
                }
            }
            level = next.into_values().collect();
            level.sort_by_key(|state| (state.peak, state.live));
            level.truncate(width);
        }
        let best = level.into_iter().min_by_key(|state| state.peak)?;
        best.order.into_iter().map(|node| usize::try_from(node).ok()).collect()
    }

    fn is_ready(&self, state: &State, node: usize) -> bool {
        !has(&state.done, node)
            && self.waits.get(node).is_some_and(|waits| waits.iter().all(|before| has(&state.done, *before)))
    }

    fn run(&self, state: &State, node: usize) -> State {
        let mut after = state.clone();
        let size = |of: &Vec<u64>, at: usize| of.get(at).copied().unwrap_or_default();
        after.live = after.live.saturating_add(size(&self.makes, node));
        after.peak = after.peak.max(after.live.saturating_add(size(&self.scratch, node)));
        for home in self.reads.get(node).into_iter().flatten() {
            let Some(left) = after.left.get_mut(*home) else { continue };
            *left = left.saturating_sub(1);
            if *left == 0 {
                after.live = after.live.saturating_sub(size(&self.makes, *home));
            }
        }
        // A result that nobody reads is gone at once.
        if self.readers.get(node) == Some(&0) {
            after.live = after.live.saturating_sub(size(&self.makes, node));
        }
        if let Some(word) = after.done.get_mut(node / 64) {
            *word |= 1 << (node % 64);
        }
        after.order.push(u32::try_from(node).unwrap_or(u32::MAX));
        after
    }
}

fn has(set: &[u64], node: usize) -> bool {
    set.get(node / 64).is_some_and(|word| word >> (node % 64) & 1 == 1)
}
