//! [`State`]: which unit is where, and what is to be done next. Decides, and does nothing itself.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Weak};

use crate::inject::{Breach, breached};
use crate::layout::Layout;
use crate::order::{Group, Order, spread};
use crate::source::Source;
use crate::stats::Stats;

/// A unit's number: its place in the address space.
pub(crate) type Unit = usize;
/// A frame's number: its place in the arena.
pub(crate) type Frame = usize;

/// How gladly a unit is evicted: never refused by the kernel, not planned to stay, far away, mapped long ago.
type Rank = (u32, bool, usize, u64);

/// How many units are read ahead at first, before touches have shown that it pays.
const FIRST_WINDOW: usize = 8;

/// Where a unit is. All but the absent hold a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Nowhere: a touch waits until it is filled.
    Absent,
    /// A loader is filling the frame.
    Filling(Frame),
    /// Filled, and held back so that the first touch tells that the unit is in use.
    Staged(Frame),
    /// In its place. The frame's own place in the arena is empty meanwhile.
    Mapped(Frame),
    /// Evicted, and being kept by its source.
    Storing(Frame),
}

/// A part of a unit that one source fills: whole pages.
#[derive(Clone)]
pub(crate) struct Piece {
    pub(crate) region: u64,
    pub(crate) source: Arc<dyn Source>,
    /// The first byte, counted from the start of the source's pages.
    pub(crate) at: u64,
    /// The bytes of the unit.
    pub(crate) range: Range<usize>,
}

/// What is known of one unit.
pub(crate) struct Entry {
    pub(crate) place: Place,
    pub(crate) pieces: Vec<Piece>,
    /// The group that it is learned with; nothing for a unit of small ranges.
    pub(crate) group: Option<Group>,
    /// Somebody waits for it.
    pub(crate) wanted: bool,
    /// Planned to stay.
    pub(crate) resident: bool,
    /// Reading ahead failed; it is tried again when somebody wants it.
    pub(crate) failed: bool,
    /// When it was last mapped, in units mapped.
    pub(crate) mapped_at: u64,
    /// How often the kernel refused to move it out since then.
    stuck: u32,
}

/// What a unit's first piece is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A range that began in an earlier unit, or goes on from one.
    Goes,
    /// A range that begins here, and with it a group.
    Begins,
    /// Ranges much smaller than a unit: norms, biases. They are used here and there in a pass, so they say nothing of the
    /// order, and stay.
    Small,
}

/// Where the frame for a job comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum From {
    /// It is at hand, its pages present.
    Free,
    /// It was never used: its pages are to be made present.
    Fresh,
    /// This unit is to be moved out of the way first.
    Evict(Unit),
}

/// One unit to be filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Job {
    pub(crate) unit: Unit,
    pub(crate) frame: Frame,
    pub(crate) from: From,
}

/// What a touch of an absent page asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It is there already: let the reader try again.
    Wake,
    /// Move the frame to the unit's place.
    MoveIn(Frame),
    /// Wait for a loader.
    Wait,
    /// Nothing was registered there.
    Stray,
}

/// Units, frames, order.
pub(crate) struct State {
    pub(crate) layout: Layout,
    pub(crate) units: Vec<Entry>,
    /// The units of each group.
    pub(crate) groups: Vec<Range<Unit>>,
    pub(crate) order: Order,
    /// Which unit holds a frame.
    holders: Vec<Option<Unit>>,
    free: Vec<Frame>,
    demand: VecDeque<Unit>,
    /// Threads of the program that may each need a few units at the same moment.
    threads: usize,
    clock: u64,
    window: usize,
    planned: bool,
    pub(crate) stats: Stats,
    /// Sources that may have something to do ahead of time, as long as their ranges are there.
    pub(crate) idle: Vec<Weak<dyn Source>>,
    /// Touches of addresses where nothing is registered, each with how often.
    pub(crate) strays: HashMap<usize, u32>,
    pub(crate) stopping: bool,
}

impl State {
    pub(crate) fn new(layout: Layout, threads: usize) -> Self {
        Self {
            layout,
            units: Vec::new(),
            groups: Vec::new(),
            order: Order::default(),
            holders: Vec::new(),
            free: Vec::new(),
            demand: VecDeque::new(),
            threads: threads.max(1),
            clock: 0,
            window: FIRST_WINDOW,
            planned: false,
            stats: Stats::default(),
            idle: Vec::new(),
            strays: HashMap::new(),
            stopping: false,
        }
    }

    /// Adds a piece to a unit, which is created with all before it where it is new.
    pub(crate) fn add_piece(&mut self, unit: Unit, piece: Piece, kind: Kind) {
        while self.units.len() <= unit {
            let blank = Entry {
                place: Place::Absent,
                pieces: Vec::new(),
                group: None,
                wanted: false,
                resident: false,
                failed: false,
                mapped_at: 0,
                stuck: 0,
            };
            self.units.push(blank);
        }
        let fresh =
            self.units.get(unit).is_some_and(|entry| entry.pieces.is_empty() && entry.group.is_none());
        let group = if fresh { self.group_for(unit, kind) } else { None };
        if let Some(entry) = self.units.get_mut(unit) {
            entry.pieces.push(piece);
            entry.group = entry.group.or(group);
        }
        self.planned = false;
    }

    /// The group of a new unit: the last one while it has room and goes on there, else a new one.
    fn group_for(&mut self, unit: Unit, kind: Kind) -> Option<Group> {
        let most = self.layout.group();
        match (kind, self.groups.last_mut()) {
            (Kind::Small, _) => return None,
            (Kind::Goes, Some(group)) if group.end == unit && group.len() < most => group.end += 1,
            _ => {
                self.groups.push(unit..unit + 1);
                self.order.add(1);
            }
        }
        let group = self.groups.len() - 1;
        self.order.set_units(group, self.groups.last().map_or(0, ExactSizeIterator::len));
        Some(group)
    }

    /// Whether a unit is absent and can still get another piece.
    pub(crate) fn is_open(&self, unit: Unit) -> bool {
        self.units.get(unit).is_none_or(|entry| entry.place == Place::Absent && !entry.wanted)
    }

    /// Somebody touched an absent page of `unit`.
    pub(crate) fn fault(&mut self, unit: Unit) -> Answer {
        let Some(entry) = self.units.get_mut(unit).filter(|entry| !entry.pieces.is_empty()) else {
            return Answer::Stray;
        };
        let (place, group, first) = (entry.place, entry.group, !entry.wanted);
        let sure =
            entry.pieces.iter().all(|piece| entry.pieces.first().is_some_and(|p| p.region == piece.region));
        self.stats.faults += 1;
        if let Place::Mapped(_) = place {
            return Answer::Wake;
        }
        if let (true, Some(group)) = (first, group) {
            self.touched(group, sure, matches!(place, Place::Staged(_)));
        }
        let Some(entry) = self.units.get_mut(unit) else { return Answer::Stray };
        match place {
            Place::Staged(frame) => Answer::MoveIn(frame),
            Place::Filling(frame) if breached(Breach::MapEarly) => Answer::MoveIn(frame),
            Place::Mapped(_) => Answer::Wake,
            Place::Absent | Place::Filling(_) | Place::Storing(_) => {
                if first {
                    entry.wanted = true;
                    self.stats.late += 1;
                    if place == Place::Absent {
                        self.stats.demanded += 1;
                        self.demand.push_back(unit);
                    }
                }
                Answer::Wait
            }
        }
    }

    /// Learns from a touch.
    fn touched(&mut self, group: Group, sure: bool, ahead: bool) {
        let most = self.layout.staging(self.units.len()).max(FIRST_WINDOW);
        self.window = if ahead { (self.window * 2).min(most) } else { self.window };
        let (units, groups) = (&self.units, &self.groups);
        let mapped = |group: Group| {
            let entries = groups.get(group).and_then(|range| units.get(range.clone())).unwrap_or_default();
            entries.iter().filter(|entry| matches!(entry.place, Place::Mapped(_))).count()
        };
        let expected = self.order.distance(group);
        let touch = self.order.touch(group, sure, &mapped);
        if !self.order.is_learned() && touch.moved && expected != Some(1) {
            self.window = FIRST_WINDOW;
        }
        if touch.changed {
            self.planned = false;
        }
    }

    /// The unit is in its place now.
    pub(crate) fn mapped(&mut self, unit: Unit, frame: Frame) {
        self.clock += 1;
        let now = self.clock;
        if let Some(entry) = self.units.get_mut(unit) {
            (entry.place, entry.wanted, entry.mapped_at) = (Place::Mapped(frame), false, now);
            entry.stuck = 0;
        }
    }

    /// The next unit to fill, its frame taken; the unit is [`Place::Filling`] from now on. Where a unit is to be evicted
    /// for it, that one is absent (or storing) from now on.
    pub(crate) fn next_job(&mut self) -> Option<Job> {
        self.plan_if_needed();
        if let Some(&unit) = self.demand.front() {
            let taken = self.take_frame(None)?;
            self.demand.pop_front();
            return Some(self.start(unit, taken));
        }
        let (unit, distance) = self.ahead()?;
        let taken = self.take_frame(Some(distance))?;
        Some(self.start(unit, taken))
    }

    /// A source that is asked to work ahead while no unit is to be filled: once a pass was seen, so that none waits for it.
    pub(crate) fn idle_work(&mut self) -> Option<Arc<dyn Source>> {
        while self.order.is_learned() {
            if let Some(source) = self.idle.pop()?.upgrade() {
                return Some(source);
            }
        }
        None
    }

    fn start(&mut self, unit: Unit, (frame, from): (Frame, From)) -> Job {
        if let Some(entry) = self.units.get_mut(unit) {
            entry.place = Place::Filling(frame);
        }
        if let Some(holder) = self.holders.get_mut(frame) {
            *holder = Some(unit);
        }
        Job { unit, frame, from }
    }

    /// The next absent unit in the order of use, within the window, and how far ahead its group is.
    fn ahead(&self) -> Option<(Unit, usize)> {
        if self.stats.faults == 0 {
            return None; // Nobody has begun; a model may still be under construction.
        }
        let most = match self.order.is_learned() {
            true => self.layout.frames,
            false => self.window,
        };
        let mut waiting = 0;
        for (distance, group) in self.order.upcoming().enumerate() {
            if !self.order.is_dense(group) {
                continue;
            }
            for unit in self.groups.get(group).cloned().unwrap_or_default() {
                let Some(entry) = self.units.get(unit) else { continue };
                match entry.place {
                    Place::Absent if !entry.failed && !entry.pieces.is_empty() => {
                        return Some((unit, distance));
                    }
                    Place::Staged(_) | Place::Filling(_) => waiting += 1,
                    _ => {}
                }
                if waiting >= most {
                    return None;
                }
            }
        }
        None
    }

    /// A frame: at hand, never used, or a unit's that may go. `None` as distance: somebody waits, so any may go.
    fn take_frame(&mut self, distance: Option<usize>) -> Option<(Frame, From)> {
        if let Some(frame) = self.free.pop() {
            if breached(Breach::ShareFrame) {
                self.free.push(frame);
            }
            return Some((frame, From::Free));
        }
        if self.holders.len() < self.layout.frames {
            self.holders.push(None);
            return Some((self.holders.len() - 1, From::Fresh));
        }
        let (victim, frame) = self.victim(distance)?;
        let entry = self.units.get_mut(victim)?;
        if matches!(entry.place, Place::Staged(_)) {
            entry.place = Place::Absent;
            self.stats.unused += 1;
            return Some((frame, From::Free));
        }
        entry.place = if entry.is_writable() { Place::Storing(frame) } else { Place::Absent };
        self.stats.evicted += 1;
        Some((frame, From::Evict(victim)))
    }

    /// The unit that is needed last. What was mapped a moment ago is spared: threads may be in the middle of it.
    fn victim(&self, distance: Option<usize>) -> Option<(Unit, Frame)> {
        let recent = self.clock.saturating_sub(((self.threads * 4).min(self.layout.frames / 3)) as u64);
        let current = self.order.current();
        let mut best: Option<(Rank, Unit, Frame)> = None;
        for (frame, unit) in self.holders.iter().enumerate() {
            let Some((unit, entry)) = unit.and_then(|unit| Some((unit, self.units.get(unit)?))) else {
                continue;
            };
            let mapped = match entry.place {
                Place::Mapped(_) => true,
                Place::Staged(_) => false,
                Place::Filling(_) if breached(Breach::EvictFilling) => return Some((unit, frame)),
                _ => continue,
            };
            if entry.wanted || mapped && entry.mapped_at > recent {
                continue;
            }
            let away = entry.group.and_then(|group| self.order.distance(group)).unwrap_or(usize::MAX);
            let in_use = entry.group.is_some() && entry.group == current;
            let goes = match distance {
                Some(distance) => !entry.resident && !in_use && away > distance && entry.stuck == 0,
                None => true,
            };
            let away = if in_use || entry.is_small() { 0 } else { away };
            // Of units equally far away, the one mapped longest ago; what cannot be moved only where nothing else can.
            let rank = (u32::MAX - entry.stuck, !entry.resident, away, u64::MAX - entry.mapped_at);
            if goes && best.is_none_or(|(other, ..)| rank > other) {
                best = Some((rank, unit, frame));
            }
        }
        best.map(|(_, unit, frame)| (unit, frame))
    }

    /// A fill ended well: whether somebody waits, so that the unit is to be moved to its place; else it is staged.
    pub(crate) fn filled(&mut self, unit: Unit, frame: Frame) -> bool {
        self.stats.filled += 1;
        let Some(entry) = self.units.get_mut(unit) else { return false };
        if entry.pieces.is_empty() {
            // Its ranges were given back meanwhile.
            self.abandon(unit, frame);
            return false;
        }
        entry.place = Place::Staged(frame);
        entry.failed = false;
        let (wanted, group) = (entry.wanted && !breached(Breach::SkipWake), entry.group);
        let in_use = group.is_some_and(|group| self.order.current() == Some(group) && self.is_known(group));
        if let (true, false, Some(group)) = (in_use, wanted, group) {
            self.order.count(group, 1);
        }
        wanted || in_use
    }

    /// Whether a touch of one unit of the group tells of all of them.
    fn is_known(&self, group: Group) -> bool {
        self.order.is_learned() && self.order.is_dense(group)
    }

    /// What is to be moved to its place with a unit that was touched: once the order is known, a group is used as a whole,
    /// and one fault is enough for it.
    pub(crate) fn companions(&mut self, unit: Unit) -> Vec<(Unit, Frame)> {
        let group = self.units.get(unit).and_then(|entry| entry.group).filter(|group| self.is_known(*group));
        let Some((group, range)) = group.and_then(|group| Some((group, self.groups.get(group)?.clone())))
        else {
            return Vec::new();
        };
        let staged = |other: Unit| match self.units.get(other)?.place {
            Place::Staged(frame) if other != unit => Some((other, frame)),
            _ => None,
        };
        let companions: Vec<_> = range.filter_map(staged).collect();
        self.order.count(group, companions.len());
        companions
    }

    /// A fill failed, or is of no more use: whether somebody waits for it.
    pub(crate) fn abandon(&mut self, unit: Unit, frame: Frame) -> bool {
        self.put_back(frame);
        let Some(entry) = self.units.get_mut(unit) else { return false };
        entry.place = Place::Absent;
        entry.failed = true;
        std::mem::take(&mut entry.wanted)
    }

    /// An evicted unit was kept by its source.
    pub(crate) fn stored(&mut self, unit: Unit) {
        let Some(entry) = self.units.get_mut(unit) else { return };
        entry.place = Place::Absent;
        if entry.wanted {
            self.demand.push_back(unit);
        }
    }

    /// A unit could not be moved out and stays; the frame it holds is its own again.
    pub(crate) fn keep(&mut self, unit: Unit, frame: Frame) {
        let stuck = self.units.get(unit).map_or(0, |entry| entry.stuck);
        self.mapped(unit, frame);
        if let Some(entry) = self.units.get_mut(unit) {
            entry.stuck = stuck.saturating_add(1);
        }
        if let Some(holder) = self.holders.get_mut(frame) {
            *holder = Some(unit);
        }
    }

    /// A job without a frame: its unit waits again.
    pub(crate) fn put_off(&mut self, unit: Unit) {
        let Some(entry) = self.units.get_mut(unit) else { return };
        entry.place = Place::Absent;
        if entry.wanted {
            self.demand.push_front(unit);
        }
    }

    /// A frame nobody holds any more.
    pub(crate) fn put_back(&mut self, frame: Frame) {
        if let Some(holder) = self.holders.get_mut(frame) {
            *holder = None;
            self.free.push(frame);
        }
    }

    /// What is used has changed.
    pub(crate) fn order_changed(&mut self) {
        self.planned = false;
    }

    /// Marks anew what stays, after the order or the units have changed.
    pub(crate) fn plan_if_needed(&mut self) {
        if std::mem::replace(&mut self.planned, true) {
            return;
        }
        let order: Vec<Unit> = self.used_units();
        let (small, resident) = self.staying(order.len(), self.small_units().count());
        self.units.iter_mut().for_each(|entry| entry.resident = false);
        let smalls = self.units.iter_mut().filter(|entry| entry.is_small());
        smalls.take(small).for_each(|entry| entry.resident = true);
        for (unit, stays) in order.iter().zip(spread(order.len(), resident)) {
            if let Some(entry) = self.units.get_mut(*unit) {
                entry.resident = stays;
            }
        }
    }

    fn small_units(&self) -> impl Iterator<Item = &Entry> {
        self.units.iter().filter(|entry| entry.is_small())
    }

    /// How many of the `small` units and of the `used` others stay.
    fn staying(&self, used: usize, small: usize) -> (usize, usize) {
        let frames = self.layout.frames;
        let staging = self.layout.staging(used + small);
        let small = small.min(frames / 4);
        (small, if staging == 0 { used } else { frames.saturating_sub(staging + small).min(used) })
    }

    /// The units of which a pass uses all, in the order of use.
    fn used_units(&self) -> Vec<Unit> {
        let dense = self.order.cycle().iter().filter(|group| self.order.is_dense(**group));
        let units = dense.filter_map(|group| self.groups.get(*group)).flat_map(Clone::clone);
        units.filter(|unit| self.units.get(*unit).is_some_and(|entry| !entry.pieces.is_empty())).collect()
    }

    /// Units that a pass uses, and those of them that stay.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let (used, all) = (self.used_units().len(), self.small_units().count());
        let (small, resident) = self.staying(used, all);
        (used + all, resident + small)
    }
}

impl Entry {
    /// A unit of small ranges.
    fn is_small(&self) -> bool {
        self.group.is_none() && !self.pieces.is_empty()
    }

    fn is_writable(&self) -> bool {
        self.pieces.iter().any(|piece| piece.source.is_writable())
    }
}

#[cfg(test)]
mod tests;
