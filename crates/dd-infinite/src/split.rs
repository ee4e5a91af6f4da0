//! Cutting a region that does not fit into pieces, in an order that computes little twice.
//!
//! A region is a grid of cells. It is cut *across* first, into strips so narrow that what a strip's next row shares with the
//! rows before it (the frontier of every layer) fits the memory; then *along*, into rows. So within a strip nothing is
//! computed twice; between strips, what their halos share may be.

use std::collections::BTreeMap;
use std::sync::Arc;

use dd_core::Backend;
use smallvec::SmallVec;

use crate::def::Def;
use crate::plan::for_each_box;
use crate::region::{Region, Span};
use crate::slice::Selection;
use crate::state::ENTRY_COST;
use crate::window::TensorWindow;

/// The cells of a selection.
#[derive(Clone, Debug)]
pub(crate) struct Grid {
    region: Region,
    steps: SmallVec<[i64; 4]>,
    /// Where cell 0 begins along each dimension, and how long cells are.
    axes: SmallVec<[(i64, i64); 4]>,
    /// The numbers of all cells.
    pub(crate) cells: Region,
}

impl Grid {
    /// Cells as long as the windows' steps, so that few windows meet each; longer where windows overlap many times.
    pub(crate) fn of<B: Backend>(def: &Def<B>, selection: &Selection) -> Self {
        let axes =
            def.window.axes().zip(selection.region.spans()).map(|(axis, span)| match axis.coordinate {
                Some(_) => (axis.offset, axis.stride.saturating_mul((axis.size / axis.stride / 2).max(1))),
                None => (span.start(), i64::try_from(span.len()).unwrap_or(i64::MAX).max(1)),
            });
        Self::new(selection.region.clone(), selection.steps.clone(), axes.collect())
    }

    /// Cells of this size, from the region's start on.
    pub(crate) fn chunks(region: &Region, size: &[i64]) -> Self {
        let axes = region.spans().iter().zip(size).map(|(span, size)| (span.start(), (*size).max(1)));
        Self::new(region.clone(), region.spans().iter().map(|_| 1).collect(), axes.collect())
    }

    fn new(region: Region, steps: SmallVec<[i64; 4]>, axes: SmallVec<[(i64, i64); 4]>) -> Self {
        let cells = region.spans().iter().zip(&axes).map(|(span, (base, len))| {
            let number = |at: i64| (i128::from(at) - i128::from(*base)).div_euclid(i128::from(*len));
            if span.is_empty() {
                Span::EMPTY
            } else {
                Span::clamped(number(span.start()), number(span.end() - 1) + 1)
            }
        });
        let cells = Region::new(cells);
        Self { region, steps, axes, cells }
    }

    /// The elements of a box of cells: the least box of those that are selected; empty where none is.
    pub(crate) fn elements(&self, cells: &Region) -> Region {
        let parts = self.region.spans().iter().zip(&self.steps).zip(self.axes.iter().zip(cells.spans()));
        Region::new(parts.map(|((span, step), ((base, len), cells))| {
            let edge = |number: i64| i128::from(number) * i128::from(*len) + i128::from(*base);
            let part = Span::clamped(edge(cells.start()), edge(cells.end())).meet(*span);
            let (start, step) = (i128::from(span.start()), i128::from(*step));
            let up = |at: i64| (i128::from(at) - start + step - 1).div_euclid(step); // The first selected one from there on.
            if part.is_empty() {
                return Span::EMPTY;
            }
            let (first, after) = (up(part.start()), up(part.end()));
            if first >= after {
                Span::EMPTY
            } else {
                Span::clamped(start + first * step, start + (after - 1) * step + 1)
            }
        }))
    }
}

impl Grid {
    /// A cell as a window, to count what meets it.
    pub(crate) fn cell_window<B: Backend>(&self, def: &Def<B>) -> crate::error::Result<TensorWindow> {
        let size: SmallVec<[i64; 4]> = self.axes.iter().map(|(_, len)| *len).collect();
        TensorWindow::new(&size)?.with_dimension_map(def.window.dimension_map())
    }
}

/// Boxes of cells still to be done, the next one last.
#[derive(Debug)]
pub(crate) struct Open {
    boxes: Vec<(Region, Option<Region>)>,
}

impl Open {
    pub(crate) fn new(cells: Region) -> Self {
        Self { boxes: if cells.is_empty() { Vec::new() } else { vec![(cells, None)] } }
    }

    /// The next box, and the strip that it is part of.
    pub(crate) fn pop(&mut self) -> Option<(Region, Option<Region>)> {
        self.boxes.pop()
    }

    /// Cuts a box that was taken and is too large; says whether it could.
    pub(crate) fn cut(&mut self, cells: &Region, strip: Option<Region>, fits: bool) -> bool {
        let strip = strip.or_else(|| fits.then(|| cells.clone()));
        let Some((first, second)) = halves(cells, strip.is_some()) else { return false };
        self.boxes.push((second, strip.clone()));
        self.boxes.push((first, strip));
        true
    }
}

/// What of a strip is still to be done when a box of its cells is next.
pub(crate) fn rest_of(strip: &Region, cells: &Region) -> Region {
    let first = along(strip);
    let part = |(d, (all, next)): (usize, (&Span, &Span))| {
        if Some(d) == first { Span::new(next.start(), all.end()) } else { *all }
    };
    Region::new(strip.spans().iter().zip(cells.spans()).enumerate().map(part))
}

/// The dimension along which a box of cells is gone through: the first with several.
fn along(cells: &Region) -> Option<usize> {
    cells.spans().iter().position(|span| span.len() > 1)
}

/// Cuts a box of cells in two, the first to be done before the second; nothing for a single cell. `fits` says whether
/// strips of this box's breadth can be gone through without computing anything twice.
fn halves(cells: &Region, fits: bool) -> Option<(Region, Region)> {
    let first = along(cells)?;
    let across = cells.spans().iter().enumerate().skip(first + 1).filter(|(_, span)| span.len() > 1);
    let widest = across.max_by_key(|(_, span)| span.len()).map(|(d, _)| d);
    let d = if fits { first } else { widest.unwrap_or(first) };
    let span = *cells.spans().get(d)?;
    let middle =
        Span::clamped(i128::from(span.start()) + i128::from(span.len().div_ceil(2)), span.end().into())
            .start();
    let with = |part: Span| {
        Region::new(cells.spans().iter().enumerate().map(|(at, span)| if at == d { part } else { *span }))
    };
    Some((with(Span::new(span.start(), middle)), with(Span::new(middle, span.end()))))
}

/// What each store must keep from row to row while a box of cells is gone through along its first dimension.
pub(crate) fn frontier<B: Backend>(top: &Arc<Def<B>>, grid: &Grid, cells: &Region) -> BTreeMap<usize, u64> {
    let mut kept = BTreeMap::new();
    let Some(d) = along(cells) else { return kept };
    let Some(span) = cells.spans().get(d) else { return kept };
    let middle = span.start() + i64::try_from(span.len() / 2).unwrap_or(0);
    let row = |at: i64| {
        let part = Span::new(at, at.saturating_add(1));
        let spans = cells.spans().iter().enumerate();
        grid.elements(&Region::new(spans.map(|(at, span)| if at == d { part } else { *span })))
    };
    let mut before: BTreeMap<usize, Region> = BTreeMap::new();
    for_each_box(top, &row(middle - 1), &mut |def, indices| {
        before.insert(def.slot, indices.clone());
    });
    for_each_box(top, &row(middle), &mut |def, indices| {
        let Some(had) = before.get(&def.slot) else { return };
        let new = beyond(indices, had);
        for arg in &def.args {
            let Some(had) = before.get(&arg.def.slot) else { continue };
            let again = arg.window.hull(&new).meet(&arg.def.window.hull(had)).meet(&arg.def.bounds());
            if new.is_empty() || again.is_empty() {
                continue;
            }
            let windows = arg.def.windows(&again).volume().saturating_mul(ENTRY_COST);
            let bytes = again.volume().saturating_mul(arg.def.element as u64).saturating_add(windows);
            let place: &mut u64 = kept.entry(arg.def.tiles).or_default();
            *place = place.saturating_add(bytes);
        }
    });
    kept
}

/// The part of an index box that another does not have: exact where it sticks out on one side only.
fn beyond(indices: &Region, had: &Region) -> Region {
    if had.covers(indices) {
        return Region::new(indices.spans().iter().map(|_| Span::EMPTY));
    }
    let out: SmallVec<[usize; 4]> = indices
        .spans()
        .iter()
        .zip(had.spans())
        .enumerate()
        .filter(|(_, (new, had))| !had.covers(**new))
        .map(|(d, _)| d)
        .collect();
    let [d] = out.as_slice() else { return indices.clone() };
    let part = |(at, (new, had)): (usize, (&Span, &Span))| {
        if at == *d && new.start() >= had.start() {
            Span::new(new.start().max(had.end()), new.end())
        } else {
            *new
        }
    };
    Region::new(indices.spans().iter().zip(had.spans()).enumerate().map(part))
}
