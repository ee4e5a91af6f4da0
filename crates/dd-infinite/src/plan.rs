//! Bounds inference: the exact windows of every layer for a request, in the order in which they are computed, their last
//! use, and the peak in bytes. All of it is known before anything runs.
//!
//! The order is depth first: a window comes after the windows it needs, and a cell of the output after its windows. It is
//! carried out with a *lookahead* `k`: a step may start when all steps `k` or more before it are done. The step that has
//! waited longest can always start, so nothing can wait for ever; and the most that can be held at once follows from the
//! order and `k` alone ([`Plan::peak`]), whatever the threads do.
#![allow(clippy::indexing_slicing, reason = "node numbers are made by the plan that they index")]

use std::collections::BTreeMap;
use std::sync::Arc;

use dd_core::Backend;
use smallvec::SmallVec;

use crate::def::Def;
use crate::error::Result;
use crate::region::{Index, Region};
use crate::state::{Charge, ENTRY_COST, State};

/// What a node of a plan takes, in all its lists and in the maps of the planner; and what an edge takes.
pub(crate) const NODE_COST: u64 = 448;
pub(crate) const EDGE_COST: u64 = 16;
/// What a step takes for each of its inputs while it runs: handles and boxes.
const INPUT_COST: u64 = 256;

/// What is to be done for a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// There already.
    Cached,
    /// Another request computes it.
    Elsewhere,
    /// The function is called.
    Compute,
    /// Read from the store.
    Load,
    /// A part of the output is folded, by the caller.
    Cell,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    Waiting,
    Running,
    Done,
    Failed,
    /// Done, and given up.
    Released,
}

/// A window, or a cell of the output.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) kind: Kind,
    pub(crate) status: Status,
    pub(crate) def: usize,
    /// The window's index; for a cell its number.
    pub(crate) index: Index,
    /// The entry in the state, once the plan is carried out.
    pub(crate) entry: usize,
    pub(crate) first: usize,
    pub(crate) count: usize,
    /// How many steps still need it.
    pub(crate) uses: usize,
    /// What its output takes while it is there.
    pub(crate) bytes: u64,
    /// What its step takes while it runs.
    pub(crate) need: u64,
}

/// What is to be done, in order. A value: nothing is held by it.
pub(crate) struct Plan<B: Backend> {
    pub(crate) defs: Vec<Arc<Def<B>>>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) inputs: Vec<usize>,
    /// The nodes that are steps.
    pub(crate) order: Vec<usize>,
    pub(crate) cells: Vec<Region>,
    /// What the plan itself takes.
    pub(crate) overhead: u64,
}

impl<B: Backend> Plan<B> {
    pub(crate) fn inputs_of(&self, node: usize) -> &[usize] {
        let node = &self.nodes[node];
        &self.inputs[node.first..node.first + node.count]
    }

    pub(crate) fn def(&self, node: usize) -> &Arc<Def<B>> {
        &self.defs[self.nodes[node].def]
    }

    /// The most bytes that carrying it out holds at once, by store, with this lookahead.
    pub(crate) fn peak(&self, lookahead: usize) -> SmallVec<[(usize, u64); 1]> {
        let mut last = vec![0usize; self.nodes.len()]; // The position of each node's last use, or its own.
        for (at, step) in self.order.iter().enumerate() {
            last[*step] = at;
            for input in self.inputs_of(*step) {
                last[*input] = at;
            }
        }
        let mut stores: SmallVec<[(usize, u64); 1]> = SmallVec::new();
        for def in &self.defs {
            if !stores.iter().any(|(tiles, _)| *tiles == def.tiles) {
                stores.push((def.tiles, 0));
            }
        }
        for (tiles, most) in &mut stores {
            *most = self.peak_of(*tiles, lookahead, &last);
        }
        if let Some(top) = stores.first_mut() {
            top.1 = top.1.saturating_add(self.overhead);
        }
        stores
    }

    fn peak_of(&self, tiles: usize, lookahead: usize, last: &[usize]) -> u64 {
        let mut freed = vec![0u64; self.order.len() + 1];
        let mut held = 0u64;
        for (id, node) in self.nodes.iter().enumerate() {
            if self.defs[node.def].tiles == tiles
                && matches!(node.kind, Kind::Elsewhere | Kind::Compute | Kind::Load)
            {
                let at = last[id].saturating_add(lookahead).min(self.order.len());
                freed[at] += node.bytes;
                if node.kind == Kind::Elsewhere {
                    held += node.bytes; // It may come at any time.
                }
            }
        }
        let need = |at: usize| {
            let node = &self.nodes[self.order[at]];
            if self.defs[node.def].tiles == tiles { node.need } else { 0 }
        };
        let (mut most, mut running) = (held, 0u64);
        for (at, step) in self.order.iter().enumerate() {
            held = held.saturating_sub(freed[at]);
            if at >= lookahead {
                running = running.saturating_sub(need(at - lookahead));
            }
            running = running.saturating_add(need(at));
            let node = &self.nodes[*step];
            if self.defs[node.def].tiles == tiles && matches!(node.kind, Kind::Compute | Kind::Load) {
                held = held.saturating_add(node.bytes);
            }
            most = most.max(held.saturating_add(running));
        }
        most
    }
}

/// How many windows and edges a region may need at most: from boxes alone, without listing anything.
pub(crate) fn estimate<B: Backend>(top: &Arc<Def<B>>, region: &Region) -> Result<(u64, u64)> {
    let (mut nodes, mut edges) = (0u64, 0u64);
    for_each_box(top, region, &mut |def, indices| {
        let count = indices.volume();
        let per: u64 =
            def.args.iter().map(|arg| arg.def.most_meeting(&arg.window)).fold(0, u64::saturating_add);
        nodes = nodes.saturating_add(count);
        edges = edges.saturating_add(count.saturating_mul(per));
    });
    Ok((nodes, edges))
}

/// A number of bytes in which a region's windows can certainly be computed: all of them at once, and the largest step. For
/// where not even the plan fits.
pub(crate) fn at_most<B: Backend>(top: &Arc<Def<B>>, region: &Region) -> u64 {
    let (mut windows, mut step) = (0u64, 0u64);
    for_each_box(top, region, &mut |def, indices| {
        let size = def
            .window
            .size()
            .iter()
            .fold(def.element as u64, |all, len| all.saturating_mul(len.unsigned_abs()));
        windows =
            windows.saturating_add(indices.volume().saturating_mul(size.saturating_add(ENTRY_COST * 2)));
        let inputs: u64 =
            def.args.iter().map(|arg| arg.def.most_meeting(&arg.window)).fold(0, u64::saturating_add);
        let first: Index = indices.spans().iter().map(|span| span.start()).collect();
        let need = def.need(&first).unwrap_or(u64::MAX).saturating_add(inputs.saturating_mul(INPUT_COST));
        step = step.max(need.saturating_mul(def.batch as u64));
    });
    windows.saturating_add(step)
}

/// Tensors with the boxes needed of them, by depth and number.
type Boxes<B> = BTreeMap<(usize, usize), (Arc<Def<B>>, Region)>;

/// Calls `visit` with each tensor that a region needs and the least index box that has all windows needed of it, a tensor
/// always before those it is made of.
pub(crate) fn for_each_box<B: Backend>(
    top: &Arc<Def<B>>,
    region: &Region,
    visit: &mut impl FnMut(&Arc<Def<B>>, &Region),
) {
    let mut open: Boxes<B> = BTreeMap::new();
    open.insert((top.depth, top.slot), (Arc::clone(top), top.windows(region)));
    while let Some((_, (def, indices))) = open.pop_last() {
        visit(&def, &indices);
        if indices.is_empty() {
            continue;
        }
        for arg in &def.args {
            let found = arg.def.windows(&arg.window.hull(&indices));
            let empty = Region::default();
            let place =
                open.entry((arg.def.depth, arg.def.slot)).or_insert_with(|| (Arc::clone(&arg.def), empty));
            place.1 = if place.1.rank() == found.rank() { place.1.hull(&found) } else { found };
        }
    }
}

/// Which windows are in their stores, as far as a request has asked.
pub(crate) type Known = BTreeMap<(usize, Index), bool>;

/// What planning came to.
pub(crate) struct Planned<B: Backend> {
    pub(crate) plan: Plan<B>,
    /// Windows of which it must be asked first whether they are stored.
    pub(crate) unknown: Vec<(Arc<Def<B>>, Index)>,
}

/// Plans the cells of a region of `top`, or only its windows where there are no cells.
pub(crate) fn plan<B: Backend>(
    state: &State<B>,
    top: &Arc<Def<B>>,
    target: &Target,
    known: &Known,
    fresh: bool,
) -> Result<Planned<B>> {
    let mut planner = Planner {
        state,
        known,
        fresh,
        unknown: Vec::new(),
        seen: BTreeMap::new(),
        plan: Plan {
            defs: vec![Arc::clone(top)],
            nodes: Vec::with_capacity(usize::try_from(target.nodes).unwrap_or(0)),
            inputs: Vec::with_capacity(usize::try_from(target.edges).unwrap_or(0)),
            order: Vec::with_capacity(usize::try_from(target.nodes).unwrap_or(0)),
            cells: target.cells.clone(),
            overhead: target.overhead(),
        },
    };
    for (number, cell) in target.cells.iter().enumerate() {
        planner.cell(top, number, cell, target)?;
    }
    let Planner { plan, unknown, .. } = planner;
    Ok(Planned { plan, unknown })
}

/// What is to be planned.
pub(crate) struct Target {
    pub(crate) cells: Vec<Region>,
    /// Whether the caller folds the cells; else their windows are only computed.
    pub(crate) folds: bool,
    /// Whether cells are folded straight into the output.
    pub(crate) dense: bool,
    pub(crate) nodes: u64,
    pub(crate) edges: u64,
}

impl Target {
    pub(crate) fn overhead(&self) -> u64 {
        self.nodes.saturating_mul(NODE_COST).saturating_add(self.edges.saturating_mul(EDGE_COST))
    }
}

struct Planner<'a, B: Backend> {
    state: &'a State<B>,
    known: &'a Known,
    /// As if nothing were cached.
    fresh: bool,
    seen: BTreeMap<(usize, Index), usize>,
    unknown: Vec<(Arc<Def<B>>, Index)>,
    plan: Plan<B>,
}

impl<B: Backend> Planner<'_, B> {
    fn cell(&mut self, top: &Arc<Def<B>>, number: usize, cell: &Region, target: &Target) -> Result<()> {
        let mut inputs: SmallVec<[usize; 16]> = SmallVec::new();
        self.windows(top, cell, &mut inputs)?;
        if !target.folds {
            return Ok(());
        }
        let mut node = self.blank(Kind::Cell, top);
        node.index = SmallVec::from_slice(&[i64::try_from(number).unwrap_or(i64::MAX)]);
        node.need = top.cell_need(cell, target.dense)?;
        self.push(node, &inputs);
        Ok(())
    }

    /// The nodes of all windows of `def` that have something of a region, in window order.
    fn windows(
        &mut self,
        def: &Arc<Def<B>>,
        region: &Region,
        found: &mut SmallVec<[usize; 16]>,
    ) -> Result<()> {
        for index in def.windows(region).points() {
            let needed = def.output(&index)?.meet(region);
            if !needed.is_empty() {
                found.push(self.window(def, &index, &needed)?);
            }
        }
        Ok(())
    }

    fn window(&mut self, def: &Arc<Def<B>>, index: &Index, needed: &Region) -> Result<usize> {
        if let Some(node) = self.seen.get(&(def.slot, index.clone())).copied() {
            let there = &self.plan.nodes[node];
            if there.entry == usize::MAX
                || self.covers(there.entry, needed)
                || there.status == Status::Waiting
            {
                return Ok(node);
            }
        }
        let entry = self.state.find(def.slot, index).filter(|_| !self.fresh);
        let node = match entry {
            Some(entry) if self.state.entries.get(entry).is_some_and(|e| e.data.is_none()) => {
                let mut node = self.blank(Kind::Elsewhere, def);
                node.bytes = def.bytes(&def.output(index)?)? + self.state.entry_cost(def.slot);
                node.entry = entry;
                self.place(node, index)
            }
            Some(entry) if self.covers(entry, needed) && self.is_charged(entry) => {
                let mut node = self.blank(Kind::Elsewhere, def);
                node.bytes = self.state.entries.get(entry).map_or(0, |e| e.cost());
                (node.entry, node.status) = (entry, Status::Done);
                self.place(node, index)
            }
            Some(entry) if self.covers(entry, needed) => {
                let mut node = self.blank(Kind::Cached, def);
                (node.entry, node.status) = (entry, Status::Done);
                self.place(node, index)
            }
            _ => self.made(def, index)?,
        };
        self.seen.insert((def.slot, index.clone()), node);
        Ok(node)
    }

    /// A node for a window that has to be loaded or computed, after those that it needs.
    fn made(&mut self, def: &Arc<Def<B>>, index: &Index) -> Result<usize> {
        let stored = def.store.as_ref().is_some_and(|_| match self.known.get(&(def.slot, index.clone())) {
            Some(stored) => *stored,
            None => {
                self.unknown.push((Arc::clone(def), index.clone()));
                false
            }
        });
        let mut inputs: SmallVec<[usize; 16]> = SmallVec::new();
        if !stored {
            for arg in &def.args {
                let region = def.arg_region(arg, index)?;
                self.windows(&arg.def, &region, &mut inputs)?;
            }
        }
        let mut node = self.blank(if stored { Kind::Load } else { Kind::Compute }, def);
        node.bytes = def.bytes(&def.output(index)?)? + self.state.entry_cost(def.slot);
        node.need = if stored { def.store_need() } else { def.need(index)? };
        node.index = index.clone();
        Ok(self.push(node, &inputs))
    }

    fn covers(&self, entry: usize, needed: &Region) -> bool {
        let data = self.state.entries.get(entry).and_then(|entry| entry.data.as_ref());
        data.is_some_and(|data| data.region.covers(needed))
    }

    /// Whether a request, not the cache, has reserved the window.
    fn is_charged(&self, entry: usize) -> bool {
        self.state.entries.get(entry).is_some_and(|entry| entry.charge != Charge::Cache)
    }

    fn blank(&mut self, kind: Kind, def: &Arc<Def<B>>) -> Node {
        let known = self.plan.defs.iter().position(|known| known.slot == def.slot);
        let def = known.unwrap_or_else(|| {
            self.plan.defs.push(Arc::clone(def));
            self.plan.defs.len() - 1
        });
        let status = Status::Waiting;
        Node {
            kind,
            status,
            def,
            index: Index::new(),
            entry: usize::MAX,
            first: 0,
            count: 0,
            uses: 0,
            bytes: 0,
            need: 0,
        }
    }

    /// Adds a node that is no step.
    fn place(&mut self, mut node: Node, index: &Index) -> usize {
        node.index = index.clone();
        self.plan.nodes.push(node);
        self.plan.nodes.len() - 1
    }

    /// Adds a step.
    fn push(&mut self, mut node: Node, inputs: &[usize]) -> usize {
        (node.first, node.count) = (self.plan.inputs.len(), inputs.len());
        node.need = node.need.saturating_add(INPUT_COST.saturating_mul(inputs.len() as u64));
        for input in inputs {
            self.plan.nodes[*input].uses += 1;
        }
        self.plan.inputs.extend_from_slice(inputs);
        self.plan.nodes.push(node);
        let id = self.plan.nodes.len() - 1;
        self.plan.order.push(id);
        id
    }
}
