//! Reading: what is cached is copied; the rest is planned, admitted and carried out, in pieces where it does not fit at once.

use std::sync::Arc;

use dd_core::{Backend, Bytes};
use smallvec::SmallVec;

use crate::claim::Refusal;
use crate::def::Def;
use crate::engine::{Ended, Shared, is_inside};
use crate::error::{Error, Result};
use crate::fold::for_each_row;
use crate::plan::{Known, Target, at_most, estimate, plan};
use crate::region::{Index, Region, Span};
use crate::run::{Task, fold_inputs};
use crate::slice::Selection;
use crate::split::{Grid, Open, frontier, rest_of};
use crate::state::{Charge, Data, State};

/// Cells that are copied under one hold of their windows.
const WARM: usize = 32;
/// Of what is there, what a frontier may take; and what the plan itself may take.
const FRONTIER_SHARE: (u64, u64) = (3, 4);
const PLAN_SHARE: u64 = 4;

/// How a read is to be done.
pub(crate) struct Manner<'a> {
    pub(crate) cancelled: &'a dyn Fn() -> bool,
    /// What is read will not be read again soon.
    pub(crate) passing: bool,
}

/// What became of a piece.
enum Piece {
    Done,
    TooLarge { tiles: usize, needed: u64 },
}

/// Where the elements go.
struct Sink<'a, B: Backend> {
    def: &'a Arc<Def<B>>,
    selection: &'a Selection,
    out: &'a mut [u8],
    failed: Option<Error>,
}

impl<B: Backend> Shared<B> {
    /// Reads a selection into a dense buffer of its elements.
    pub(crate) fn read(
        self: &Arc<Self>,
        def: &Arc<Def<B>>,
        selection: &Selection,
        out: &mut [u8],
        manner: &Manner<'_>,
    ) -> Result<()> {
        if is_inside() {
            return Err(Error::Nested { tensor: def.id.to_string() });
        }
        let expected = def.bytes(&selection.packed())?;
        if expected != out.len() as u64 {
            let what = format!("{} of tensor {:?}", selection.region, def.id);
            return Err(Error::Buffer { what, expected, found: out.len() as u64 });
        }
        if expected == 0 {
            return Ok(());
        }
        let grid = Grid::of(def, selection);
        let mut sink = Sink { def, selection, out, failed: None };
        let mut open = Open::new(grid.cells.clone());
        let mut split = false;
        let mut done = Ok(());
        while let Some((cells, strip)) = open.pop() {
            let manner = Manner { cancelled: manner.cancelled, passing: manner.passing || split };
            self.focus(def, &grid, strip.as_ref(), &cells);
            done = match self.piece(&grid, &cells, &mut sink, &manner) {
                Ok(Piece::Done) => sink.failed.take().map_or(Ok(()), Err),
                Ok(Piece::TooLarge { tiles, needed }) => {
                    split = true;
                    let fits = strip.is_some() || self.frontier_fits(def, &grid, &cells);
                    let cut = open.cut(&cells, strip, fits);
                    if cut { Ok(()) } else { Err(self.does_not_fit(def, tiles, needed)) }
                }
                Err(error) => Err(error),
            };
            if done.is_err() {
                break;
            }
        }
        if split {
            self.lock().set_focus(def, None);
        }
        done
    }

    /// While a strip is gone through, only what the rest of it needs is worth keeping.
    pub(crate) fn focus(&self, def: &Arc<Def<B>>, grid: &Grid, strip: Option<&Region>, cells: &Region) {
        if let Some(strip) = strip {
            let rest = grid.elements(&rest_of(strip, cells));
            self.lock().set_focus(def, Some(&rest));
        }
    }

    fn does_not_fit(&self, def: &Def<B>, tiles: usize, needed: u64) -> Error {
        let state = self.lock();
        let store = state.tiles.get(tiles);
        let (place, limit) = store.map_or((String::new(), Bytes::ZERO), |store| {
            (format!("budget {:?}", store.budget.name()), Bytes(store.free()))
        });
        Error::DoesNotFit { tensor: def.id.to_string(), place, least: Bytes(needed), limit }
    }

    pub(crate) fn frontier_fits(&self, def: &Arc<Def<B>>, grid: &Grid, cells: &Region) -> bool {
        let kept = frontier(def, grid, cells);
        let state = self.lock();
        kept.iter().all(|(tiles, bytes)| {
            let free = state.tiles.get(*tiles).map_or(0, |store| store.free());
            *bytes <= free / FRONTIER_SHARE.1 * FRONTIER_SHARE.0
        })
    }

    fn piece(
        self: &Arc<Self>,
        grid: &Grid,
        cells: &Region,
        sink: &mut Sink<'_, B>,
        manner: &Manner<'_>,
    ) -> Result<Piece> {
        let mut numbers = cells.points().peekable();
        self.warm(grid, &mut numbers, sink)?;
        if numbers.peek().is_none() {
            return Ok(Piece::Done);
        }
        let def = Arc::clone(sink.def);
        let (nodes, edges) = estimate(&def, &grid.elements(cells))?;
        let nodes = nodes.saturating_add(cells.volume());
        let edges =
            edges.saturating_add(cells.volume().saturating_mul(def.most_meeting(&grid.cell_window(&def)?)));
        let dense = sink.selection.is_dense();
        let mut target = Target { cells: Vec::new(), folds: true, dense, nodes, edges };
        let free = self.lock().tiles.get(def.tiles).map_or(0, |store| store.free());
        if target.overhead() > free / PLAN_SHARE && cells.volume() > 1 || target.overhead() > free {
            let needed = target.overhead().saturating_add(at_most(&def, &grid.elements(cells)));
            return Ok(Piece::TooLarge { tiles: def.tiles, needed });
        }
        target.cells =
            numbers.map(|number| grid.elements(&point(&number))).filter(|cell| !cell.is_empty()).collect();
        self.cold(&target, sink, manner)
    }

    /// Copies cells as long as all their windows are cached.
    fn warm(
        &self,
        grid: &Grid,
        numbers: &mut std::iter::Peekable<crate::region::Points>,
        sink: &mut Sink<'_, B>,
    ) -> Result<()> {
        let def = Arc::clone(sink.def);
        loop {
            let mut held: SmallVec<[(Index, Arc<Data>); WARM]> = SmallVec::new();
            let mut pins: SmallVec<[usize; WARM]> = SmallVec::new();
            let mut cells: SmallVec<[(Region, usize); WARM]> = SmallVec::new();
            let mut miss = false;
            let mut aside = 0;
            {
                let mut state = self.lock();
                while cells.len() < WARM
                    && held.len() < WARM
                    && let Some(number) = numbers.peek()
                {
                    let cell = grid.elements(&point(number));
                    let extra = def.cell_need(&cell, sink.selection.is_dense())?.saturating_sub(aside);
                    if !state.hold(&def, &cell, &mut held, &mut pins)? || !state.set_aside(def.tiles, extra) {
                        miss = true;
                        break;
                    }
                    aside += extra;
                    cells.push((cell, held.len()));
                    numbers.next();
                }
            }
            let mut from = 0;
            for (cell, to) in &cells {
                sink.fold(cell, held.get(from..*to).unwrap_or_default());
                from = *to;
            }
            let more = !miss && !cells.is_empty();
            drop(held);
            let mut state = self.lock();
            pins.iter().for_each(|id| state.unpin(*id, usize::MAX));
            state.put_back(def.tiles, aside);
            if !more {
                return Ok(());
            }
        }
    }

    fn cold(self: &Arc<Self>, target: &Target, sink: &mut Sink<'_, B>, manner: &Manner<'_>) -> Result<Piece> {
        let def = Arc::clone(sink.def);
        let mut known = Known::new();
        let mut attempt = 0;
        loop {
            let most = if self.threads > 1 { self.threads.saturating_mul(4) } else { 1 };
            let begun =
                self.begin(&def, target, &mut known, (most, attempt == 2), (false, manner.passing))?;
            match begun {
                Begun::Request(request) => {
                    let mut fold = |cell: &Region, task: &Task<B>| sink.fold_task(cell, task);
                    match self.drive(request, manner.cancelled, &mut fold)? {
                        Ended::Done => return Ok(Piece::Done),
                        Ended::Replan => known.clear(),
                    }
                }
                Begun::Again => {}
                Begun::TooLarge { tiles, needed } => {
                    attempt += 1;
                    match attempt {
                        1 => self.ask(tiles, needed), // Others who share the budget may give back.
                        2 if target.cells.len() == 1 => {}
                        _ => return Ok(Piece::TooLarge { tiles, needed }),
                    }
                }
            }
        }
    }

    /// Has everybody who shares a store's budget asked to give back.
    fn ask(&self, tiles: usize, needed: u64) {
        let found = {
            let state = self.lock();
            state.tiles.get(tiles).map(|store| {
                let held = store.room.as_ref().map_or(0, |room| room.bytes().0);
                (
                    store.budget.clone(),
                    store.holder.clone(),
                    needed.saturating_sub(held.saturating_sub(store.used)),
                )
            })
        };
        if let Some((budget, holder, missing)) = found {
            drop(budget.reserve(Bytes(missing), &holder));
        }
    }

    /// Plans and admits, or says why not. Waits where others hold the memory.
    pub(crate) fn begin(
        self: &Arc<Self>,
        def: &Arc<Def<B>>,
        target: &Target,
        known: &mut Known,
        (most, fresh): (usize, bool),
        (background, passing): (bool, bool),
    ) -> Result<Begun> {
        let unknown = {
            let mut state = self.lock();
            if fresh {
                while state.evict_one(def.tiles) > 0 {}
            }
            if !state.make_room(def.tiles, target.overhead()) {
                return Ok(self.refused(state, Refusal::of(def.tiles, target.overhead()), background));
            }
            let planned = plan(&state, def, target, known, false)?;
            if planned.unknown.is_empty() {
                // Steps of other tensors and cells lie between those that are to be gathered.
                let batch = planned.plan.defs.iter().map(|def| def.batch).max().unwrap_or(1);
                let batch = if batch > 1 { batch.saturating_mul(4) } else { 1 };
                return Ok(match state.admit(planned.plan, most.max(batch), (background, passing)) {
                    Ok(request) => {
                        self.help(&mut state);
                        Begun::Request(request)
                    }
                    Err(refusal) => self.refused(state, refusal, background),
                });
            }
            planned.unknown
        };
        for (def, index) in unknown {
            if let Some(store) = &def.store {
                let there = store.contains(&def.id, &index)?;
                known.insert((def.slot, index), there);
            }
        }
        Ok(Begun::Again)
    }

    fn refused(
        &self,
        mut state: crate::primitive::MutexGuard<'_, State<B>>,
        refusal: Refusal,
        background: bool,
    ) -> Begun {
        state.tiles.iter_mut().for_each(|(_, store)| store.settle()); // What was taken to try.
        let (tiles, needed) = match refusal {
            Refusal::TooLarge { tiles, needed } => (tiles, needed),
            Refusal::Wait => (usize::MAX, 0),
        };
        let busy = refusal == Refusal::Wait || state.tiles.get(tiles).is_some_and(|store| store.active > 0);
        if background || !busy {
            return Begun::TooLarge { tiles, needed };
        }
        for (_, request) in &mut state.requests {
            if request.background {
                request.replan = true; // Work ahead gives way.
            }
        }
        if state.end_background() {
            self.notify();
            return Begun::Again;
        }
        drop(self.wait(state));
        Begun::Again
    }
}

/// What became of an attempt to begin.
pub(crate) enum Begun {
    Request(usize),
    Again,
    TooLarge { tiles: usize, needed: u64 },
}

impl Refusal {
    const fn of(tiles: usize, needed: u64) -> Self {
        Self::TooLarge { tiles, needed }
    }
}

impl<B: Backend> State<B> {
    /// Reserves a little for a while; says whether it could.
    fn set_aside(&mut self, tiles: usize, bytes: u64) -> bool {
        if bytes == 0 {
            return true;
        }
        let there = self.make_room(tiles, bytes);
        if let Some(store) = self.tiles.get_mut(tiles).filter(|_| there) {
            store.used += bytes;
        }
        there
    }

    fn put_back(&mut self, tiles: usize, bytes: u64) {
        if let Some(store) = self.tiles.get_mut(tiles).filter(|_| bytes > 0) {
            store.used = store.used.saturating_sub(bytes);
            store.settle();
        }
    }

    /// Pins all windows of a cell, if all are cached.
    fn hold(
        &mut self,
        def: &Arc<Def<B>>,
        cell: &Region,
        held: &mut SmallVec<[(Index, Arc<Data>); WARM]>,
        pins: &mut SmallVec<[usize; WARM]>,
    ) -> Result<bool> {
        let (held_before, pins_before) = (held.len(), pins.len());
        let clock = self.tick();
        for index in def.windows(cell).points() {
            let needed = def.output(&index)?.meet(cell);
            if needed.is_empty() {
                continue;
            }
            let id = self.find(def.slot, &index);
            let entry =
                id.and_then(|id| self.entries.get_mut(id)).filter(|entry| entry.charge == Charge::Cache);
            let data = entry
                .as_ref()
                .and_then(|entry| entry.data.clone())
                .filter(|data| data.region.covers(&needed));
            let (Some(id), Some(entry), Some(data)) = (id, entry, data) else {
                held.truncate(held_before);
                let undo: SmallVec<[usize; 8]> = pins.drain(pins_before..).collect();
                undo.iter().for_each(|id| self.unpin(*id, usize::MAX));
                return Ok(false);
            };
            entry.pins += 1;
            entry.used = clock;
            held.push((index, data));
            pins.push(id);
        }
        Ok(true)
    }
}

impl<B: Backend> Sink<'_, B> {
    fn fold_task(&mut self, cell: &Region, task: &Task<B>) {
        task.with_inputs(|inputs| self.fold(cell, inputs));
    }

    fn fold(&mut self, cell: &Region, inputs: &[(Index, Arc<Data>)]) {
        if cell.is_empty() {
            return;
        }
        let done = if self.selection.is_dense() {
            fold_inputs(self.def, inputs, cell, &self.selection.region, self.out)
        } else {
            self.pick(cell, inputs)
        };
        if let Err(error) = done {
            self.failed.get_or_insert(error);
        }
    }

    /// With steps: the cell is folded aside, and the selected elements are taken from it.
    fn pick(&mut self, cell: &Region, inputs: &[(Index, Arc<Data>)]) -> Result<()> {
        let element = self.def.element;
        let mut whole = vec![0u8; usize::try_from(self.def.bytes(cell)?).unwrap_or(usize::MAX)];
        fold_inputs(self.def, inputs, cell, cell, &mut whole)?;
        let (steps, region) = (&self.selection.steps, &self.selection.region);
        let place = |(span, (all, step)): (&Span, (&Span, &i64))| {
            let number = |at: i64| i128::from(at.abs_diff(all.start())) / i128::from(*step);
            Span::clamped(number(span.start()), number(span.end() - 1) + 1)
        };
        let packed = Region::new(cell.spans().iter().zip(region.spans().iter().zip(steps)).map(place));
        let view = self.selection.packed();
        for target in packed.points() {
            let from = target.iter().zip(region.spans().iter().zip(steps)).map(|(at, (all, step))| {
                let at = i128::from(*at) * i128::from(*step) + i128::from(all.start());
                Span::clamped(at, at + 1)
            });
            let (from, to) = (Region::new(from), point(&target));
            let mut start = 0;
            for_each_row(&from, &[cell], |starts, _| start = starts.first().copied().unwrap_or(0) * element);
            let out = &mut *self.out;
            for_each_row(&to, &[&view], |starts, _| {
                let place = starts.first().copied().unwrap_or(0) * element;
                let pair = (out.get_mut(place..place + element), whole.get(start..start + element));
                if let (Some(place), Some(value)) = pair {
                    place.copy_from_slice(value);
                }
            });
        }
        Ok(())
    }
}

/// The box of one point.
pub(crate) fn point(at: &[i64]) -> Region {
    Region::new(at.iter().map(|at| Span::new(*at, at.saturating_add(1))))
}
