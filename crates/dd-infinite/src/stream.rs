//! [`Stream`]: a region larger than memory, piece by piece; and work ahead of the reader.

use std::sync::Arc;

use dd_core::{Backend, Bytes};

use crate::def::Def;
use crate::engine::Shared;
use crate::error::Result;
use crate::plan::{Known, Target, estimate, plan};
use crate::read::{Begun, Manner};
use crate::region::{Region, Span};
use crate::slice::Selection;
use crate::split::{Grid, Open};
use crate::tensor::{InfiniteTensor, PlanSummary};

/// In which order a stream gives its pieces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Order {
    /// Row by row, the last dimension fastest.
    #[default]
    Rows,
    /// As computes the least twice: in strips whose halos fit the memory.
    Least,
}

/// The pieces of a region. Dropping it ends it.
pub struct Stream<B: Backend> {
    tensor: InfiniteTensor<B>,
    grid: Grid,
    order: Order,
    open: Open,
}

impl<B: Backend> Stream<B> {
    pub(crate) fn new(tensor: InfiniteTensor<B>, region: &Region, order: Order) -> Self {
        let grid = Grid::chunks(region, &tensor.def().chunk);
        let open = Open::new(if region.is_empty() { Region::new([Span::EMPTY]) } else { grid.cells.clone() });
        Self { tensor, grid, order, open }
    }

    /// The next piece's region; nothing at the end.
    fn advance(&mut self) -> Option<Region> {
        loop {
            let (cells, strip) = self.open.pop()?;
            let (shared, def) = (self.tensor.shared(), self.tensor.def());
            let fits =
                strip.is_some() || self.order == Order::Rows || shared.frontier_fits(def, &self.grid, &cells);
            if !self.open.cut(&cells, strip.clone(), fits) {
                shared.focus(def, &self.grid, strip.as_ref(), &cells);
                return Some(self.grid.elements(&cells));
            }
        }
    }

    /// The next piece, into a buffer that is made as long as it needs.
    ///
    /// # Errors
    /// As [`InfiniteTensor::read`]. The stream then goes on with the piece after it.
    pub fn next_into(&mut self, out: &mut Vec<u8>) -> Result<Option<Region>> {
        let Some(region) = self.advance() else { return Ok(None) };
        let def = self.tensor.def();
        let selection = Selection::of_region(&def.id, &def.shape, &region)?;
        out.resize(usize::try_from(def.bytes(&region)?).unwrap_or(usize::MAX), 0);
        let manner = Manner { cancelled: &|| false, passing: true };
        self.tensor.shared().read(def, &selection, out, &manner)?;
        Ok(Some(region))
    }
}

impl<B: Backend> Drop for Stream<B> {
    fn drop(&mut self) {
        self.tensor.shared().lock().set_focus(self.tensor.def(), None);
    }
}

impl<B: Backend> Iterator for Stream<B> {
    type Item = Result<(Region, Vec<u8>)>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut out = Vec::new();
        self.next_into(&mut out).map(|region| region.map(|region| (region, out))).transpose()
    }
}

impl<B: Backend> Shared<B> {
    /// Plans a whole selection as if nothing were cached, and says what came of it.
    pub(crate) fn summary(&self, def: &Arc<Def<B>>, selection: &Selection) -> Result<PlanSummary> {
        let grid = Grid::of(def, selection);
        let (nodes, edges) = estimate(def, &selection.region)?;
        let nodes = nodes.saturating_add(grid.cells.volume());
        let cells = grid.cells.points().map(|number| grid.elements(&crate::read::point(&number)));
        let cells = if selection.region.is_empty() { Vec::new() } else { cells.collect() };
        let target = Target { cells, folds: true, dense: true, nodes, edges };
        let state = self.lock();
        let planned = plan(&state, def, &target, &Known::new(), true)?.plan;
        drop(state);
        let mut windows: Vec<(usize, String, u64)> =
            planned.defs.iter().map(|def| (def.depth, def.id.to_string(), 0)).collect();
        for node in planned.nodes.iter().filter(|node| node.kind == crate::plan::Kind::Compute) {
            if let Some(row) = windows.get_mut(node.def) {
                row.2 += 1;
            }
        }
        windows.sort();
        let peak = planned.peak(1).first().map_or(0, |(_, bytes)| *bytes);
        Ok(PlanSummary {
            windows: windows.into_iter().map(|(_, id, count)| (id, count)).collect(),
            peak: Bytes(peak),
            steps: planned.order.len(),
        })
    }

    /// After a read: begins with the region that the movement from the last one leads to, if there is memory to spare.
    pub(crate) fn ahead(self: &Arc<Self>, def: &Arc<Def<B>>, region: &Region) {
        let Some(next) = self.next_region(def, region) else { return };
        let Ok((nodes, edges)) = estimate(def, &next) else { return };
        let target = Target { cells: vec![next], folds: false, dense: true, nodes, edges };
        let spare = {
            let state = self.lock();
            state.tiles.get(def.tiles).is_some_and(|store| target.overhead() <= store.budget.available().0)
        };
        if !spare {
            return;
        }
        let mut known = Known::new();
        for _ in 0..=def.depth + 1 {
            match self.begin(def, &target, &mut known, (1, false), (true, false)) {
                Ok(Begun::Again) => {}
                Ok(Begun::Request(_)) => {
                    if self.lock().end_background() {
                        self.notify(); // All of it was there.
                    }
                    return;
                }
                _ => return, // It is only work ahead: whoever needs it will meet the error.
            }
        }
    }

    fn next_region(&self, def: &Arc<Def<B>>, region: &Region) -> Option<Region> {
        let mut state = self.lock();
        if self.threads < 2 || !state.tiles.get(def.tiles)?.prefetch || region.is_empty() {
            return None;
        }
        let windows = state.tensors.get_mut(def.slot)?;
        let last = windows.last.replace(region.clone())?;
        let pairs = last.spans().iter().zip(region.spans());
        if last == *region || pairs.clone().any(|(a, b)| a.len() != b.len()) {
            return None;
        }
        let moved = pairs.map(|(a, b)| {
            let by = i128::from(b.start()) - i128::from(a.start());
            Span::clamped(i128::from(b.start()) + by, i128::from(b.end()) + by)
        });
        let next = Region::new(moved).meet(&def.bounds());
        (!next.is_empty()).then_some(next)
    }
}
