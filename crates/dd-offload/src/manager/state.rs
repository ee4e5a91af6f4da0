//! What the manager knows, behind its one lock: units, their parts, and who uses, wants or fills them.
//!
//! A part is `Absent`, `Filling` (the loader owns its new storage), `Filled`, or `Leaving` (somebody is storing it
//! away). Only the loader fills; anybody may make a part leave, as long as its unit has no user and no waiter. A part
//! that left keeps a home from which it can be filled again: there is no state in which its values are nowhere.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use dd_core::{Backend, Bytes, Reservation, TensorDesc, Tier};

use crate::checkpoint::{Checkpoint, TensorLocation};
use crate::error::{Error, Result};
use crate::plan::{OrderRecorder, ResidencyPlan};

/// Everything behind the lock.
pub(super) struct State<B: Backend> {
    pub(super) units: Vec<Unit<B>>,
    pub(super) names: HashMap<String, usize>,
    /// Storage that is free for other weights of the same shape and dtype.
    pub(super) pool: Vec<Free<B>>,
    /// Storage that left while somebody still saw it: accounted until they let go.
    pub(super) lingering: Vec<Free<B>>,
    /// Units that a thread waits for, first come first.
    pub(super) demand: VecDeque<usize>,
    pub(super) planned: Option<Planned>,
    /// Whether the plan is to be made anew at the next occasion.
    pub(super) stale: bool,
    pub(super) recorder: OrderRecorder,
    pub(super) cursors: Vec<Cursor>,
    /// How many guards each thread holds.
    pub(super) holders: HashMap<u64, usize>,
    /// Threads that wait.
    pub(super) blocked: Vec<u64>,
    /// Parts being filled or leaving.
    pub(super) moving: usize,
    /// Whether a threshold stopped reading ahead.
    pub(super) paused: bool,
    /// Whether room was given to others, who are about to take it: nothing is read ahead until the next use.
    pub(super) yielded: bool,
    /// Threads that wait for a part to arrive or leave, to change it.
    pub(super) updating: usize,
    /// A plan that observers have not heard of: they are told without the lock.
    pub(super) announce: Option<(Bytes, Bytes)>,
    pub(super) stop: Option<Stop>,
    /// Counts everything that may give the loader something to do.
    pub(super) version: u64,
    pub(super) stats: Stats,
}

/// Why nothing is read any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// Everything is in place and stays there.
    Whole,
    /// Everything was given back.
    Freed,
}

/// Figures since the start.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Stats {
    pub(super) acquires: u64,
    pub(super) ready: u64,
    pub(super) waited: Duration,
    pub(super) read: Bytes,
    pub(super) loads: u64,
    pub(super) offloads: u64,
    pub(super) passes: u64,
    pub(super) read_at_pass: Bytes,
    pub(super) last_pass_read: Bytes,
}

/// Where a thread is in the order.
pub(super) struct Cursor {
    pub(super) thread: u64,
    pub(super) position: usize,
    pub(super) tick: u64,
}

/// A plan with what is needed to look things up in it.
pub(super) struct Planned {
    pub(super) plan: ResidencyPlan,
    pub(super) order: Vec<usize>,
    /// For each unit, its positions in the order, ascending.
    positions: Vec<Vec<usize>>,
}

impl Planned {
    pub(super) fn new(plan: ResidencyPlan, order: Vec<usize>, units: usize) -> Self {
        let mut positions = vec![Vec::new(); units];
        for (position, unit) in order.iter().enumerate() {
            if let Some(list) = positions.get_mut(*unit) {
                list.push(position);
            }
        }
        Self { plan, order, positions }
    }

    /// How many steps from `position` to the next use of `unit`, at least one; nothing if it is not in the order.
    pub(super) fn steps_to(&self, unit: usize, position: usize) -> Option<usize> {
        let list = self.positions.get(unit)?;
        let next = list.get(list.partition_point(|p| *p <= position));
        let wrapped = || list.first().map(|first| first + self.order.len());
        next.copied().or_else(wrapped).map(|next| next - position)
    }
}

/// Storage with the bytes that are reserved for it.
pub(super) struct Free<B: Backend> {
    pub(super) tensor: B::Tensor,
    pub(super) desc: TensorDesc,
    pub(super) room: Reservation,
}

/// A managed module.
pub(super) struct Unit<B: Backend> {
    pub(super) name: Arc<str>,
    pub(super) kind: String,
    pub(super) parts: Vec<Part<B>>,
    pub(super) users: usize,
    pub(super) waiters: usize,
    pub(super) failed: Option<Error>,
    pub(super) since: Option<Instant>,
    pub(super) compute: Option<Duration>,
    pub(super) uses: u64,
}

/// A parameter of a managed module.
pub(super) struct Part<B: Backend> {
    pub(super) name: Arc<str>,
    pub(super) desc: TensorDesc,
    pub(super) pinned: bool,
    pub(super) near: Near<B>,
    pub(super) home: Option<Home>,
    /// A copy in host memory, for parts that compute on a device.
    pub(super) host: Option<Free<B>>,
    /// Whether it could not be stored away when it was last tried: others leave first.
    pub(super) stuck: bool,
}

/// The state of a part in the tier that computes.
pub(super) enum Near<B: Backend> {
    Absent,
    Filling,
    Filled(Box<Free<B>>),
    Leaving,
}

/// Where a part's values can be had again. What is stored has a key that was never used before, so that new values
/// never take the place of old ones before they are whole.
#[derive(Clone)]
pub(super) enum Home {
    File { checkpoint: Arc<Checkpoint>, location: TensorLocation },
    Compressed(Arc<str>),
    Spill(Arc<str>),
}

impl Home {
    pub(super) const fn tier(&self) -> Tier {
        match self {
            Self::Compressed(_) => Tier::Compressed,
            Self::File { .. } | Self::Spill(_) => Tier::Disk,
        }
    }
}

impl<B: Backend> Part<B> {
    pub(super) const fn is_filled(&self) -> bool {
        matches!(self.near, Near::Filled(_))
    }

    /// Where its values are, nearest place first.
    pub(super) fn tier(&self, near: Tier) -> Tier {
        match (&self.near, &self.host, &self.home) {
            (Near::Filled(_) | Near::Leaving, _, _) => near,
            (_, Some(_), _) => Tier::Host,
            (_, None, home) => home.as_ref().map_or(near, Home::tier),
        }
    }
}

impl<B: Backend> Unit<B> {
    pub(super) fn is_ready(&self) -> bool {
        self.parts.iter().all(Part::is_filled)
    }

    pub(super) const fn is_idle(&self) -> bool {
        self.users == 0 && self.waiters == 0
    }

    pub(super) fn bytes(&self) -> Bytes {
        self.parts.iter().map(|part| part.desc.bytes()).sum()
    }

    pub(super) fn near_bytes(&self) -> Bytes {
        self.parts.iter().filter(|part| part.is_filled()).map(|part| part.desc.bytes()).sum()
    }
}

/// How far making room may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pressure {
    /// Only streamed parts that are needed later than this many steps from now.
    Ahead(usize),
    /// Whatever is not in use: streamed parts first, then resident ones, the farthest next use first.
    Demand,
}

impl<B: Backend> State<B> {
    pub(super) fn new() -> Self {
        Self {
            units: Vec::new(),
            names: HashMap::new(),
            pool: Vec::new(),
            lingering: Vec::new(),
            demand: VecDeque::new(),
            planned: None,
            stale: true,
            recorder: OrderRecorder::new(),
            cursors: Vec::new(),
            holders: HashMap::new(),
            blocked: Vec::new(),
            moving: 0,
            paused: false,
            yielded: false,
            updating: 0,
            announce: None,
            stop: None,
            version: 0,
            stats: Stats::default(),
        }
    }

    /// Notes that the loader may find something to do; whoever calls this wakes it up.
    pub(super) const fn poke(&mut self) {
        self.version += 1;
    }

    pub(super) fn unit(&mut self, unit: usize) -> Result<&mut Unit<B>> {
        let missing =
            || dd_core::Error::NotFound { name: format!("module {unit}"), place: "this manager".to_owned() };
        Ok(self.units.get_mut(unit).ok_or_else(missing)?)
    }

    pub(super) fn part(&mut self, unit: usize, part: usize) -> Option<&mut Part<B>> {
        self.units.get_mut(unit)?.parts.get_mut(part)
    }

    pub(super) fn is_resident(&self, unit: usize, part: usize) -> bool {
        let pinned = self.units.get(unit).and_then(|u| u.parts.get(part)).is_some_and(|p| p.pinned);
        pinned || self.planned.as_ref().is_some_and(|planned| planned.plan.is_resident(unit, part))
    }

    /// Steps to the next use of a unit by any thread; the largest number where none is foreseen.
    pub(super) fn next_use(&self, unit: usize) -> usize {
        let Some(planned) = &self.planned else { return usize::MAX };
        let steps = |position| planned.steps_to(unit, position).unwrap_or(usize::MAX);
        self.cursors.iter().map(|cursor| steps(cursor.position)).min().unwrap_or_else(|| steps(0))
    }

    /// Moves a thread's cursor to its next position of `unit`; says whether that ended a pass.
    pub(super) fn advance(&mut self, thread: u64, unit: usize) -> bool {
        self.stats.acquires += 1;
        let (tick, len) =
            (self.stats.acquires, self.planned.as_ref().map_or(0, |planned| planned.order.len()));
        let from = self.cursors.iter().position(|cursor| cursor.thread == thread);
        let cursor = from.map(|index| self.cursors.swap_remove(index));
        let start = cursor.map_or(len.saturating_sub(1), |cursor| cursor.position);
        let steps = self.planned.as_ref().and_then(|planned| planned.steps_to(unit, start));
        let oldest = tick.saturating_sub(4 * len as u64); // A thread that was not seen for so long has ended.
        self.cursors.retain(|cursor| cursor.tick >= oldest);
        let Some(steps) = steps.filter(|_| len > 0) else { return false };
        self.cursors.insert(0, Cursor { thread, position: (start + steps) % len, tick });
        tick > 1 && start + steps >= len
    }

    /// The units to read ahead, the nearest first, each with how many steps away it is.
    pub(super) fn candidates(&self) -> Vec<(usize, usize)> {
        let rests = self.paused || self.yielded;
        let Some(planned) = self.planned.as_ref().filter(|_| !rests) else { return Vec::new() };
        let len = planned.order.len();
        let mut found = Vec::new();
        let mut open: Vec<usize> = self.cursors.iter().map(|cursor| cursor.position).collect();
        for steps in 1..len {
            open.retain(|from| planned.plan.may_prefetch(*from, (from + steps) % len));
            for from in &open {
                let unit = planned.order.get((from + steps) % len).copied();
                let unit = unit.filter(|unit| self.units.get(*unit).is_some_and(|u| !u.is_ready()));
                found.extend(unit.map(|unit| (unit, steps)));
            }
            if open.is_empty() || found.len() > 4 {
                break;
            }
        }
        found
    }

    /// The part that should leave first under this pressure, never one of `keep`.
    pub(super) fn victim(&self, keep: usize, pressure: Pressure) -> Option<(usize, usize)> {
        let idle = self.units.iter().enumerate().filter(|(index, unit)| *index != keep && unit.is_idle());
        type Scored = ((bool, bool, usize), (usize, usize));
        let mut best: Option<Scored> = None;
        for (index, unit) in idle {
            let next = self.next_use(index);
            if matches!(pressure, Pressure::Ahead(steps) if next <= steps) {
                continue;
            }
            for (number, part) in unit.parts.iter().enumerate() {
                let resident = self.is_resident(index, number);
                let stays = part.pinned || resident && pressure != Pressure::Demand;
                let score = (!part.stuck, !resident, next);
                if part.is_filled() && !stays && best.is_none_or(|(most, _)| score > most) {
                    best = Some((score, (index, number)));
                }
            }
        }
        best.map(|(_, victim)| victim)
    }

    /// A part of a unit that somebody waits for, behind the first of all who wait: without this, the units of several
    /// threads could each keep a part of the room and none of them get enough.
    pub(super) fn waiting_victim(&self, unit: usize) -> Option<(usize, usize)> {
        if self.demand.front() != Some(&unit) {
            return None;
        }
        let behind = self.demand.iter().skip(1).rev().filter(|other| **other != unit);
        let waiting = behind.filter_map(|index| Some((*index, self.units.get(*index)?)));
        let open = waiting.filter(|(_, own)| own.users == 0 && !own.is_ready());
        let mut parts = open.flat_map(|(index, own)| {
            own.parts.iter().enumerate().map(move |(number, part)| ((index, number), part))
        });
        parts.find(|(_, part)| part.is_filled() && !part.pinned && !part.stuck).map(|(victim, _)| victim)
    }

    /// Whether a unit that somebody waits for is there: they only have not woken up yet.
    pub(super) fn is_served(&self) -> bool {
        self.demand.iter().any(|unit| self.units.get(*unit).is_some_and(Unit::is_ready))
    }

    /// Puts storage up for reuse, or under watch where somebody still sees it.
    pub(super) fn set_free(&mut self, backend: &B, mut free: Free<B>) {
        if backend.is_unique(&mut free.tensor) {
            self.pool.push(free);
        } else if backend.can_tell_unique() {
            self.lingering.push(free);
        }
    }

    /// Gives back what lingered and is seen by nobody any more; says how much.
    pub(super) fn sweep(&mut self, backend: &B) -> Bytes {
        let held = |lingering: &[Free<B>]| lingering.iter().map(|free| free.room.bytes()).sum::<Bytes>();
        let before = held(&self.lingering);
        self.lingering.retain_mut(|free| !backend.is_unique(&mut free.tensor));
        before.saturating_sub(held(&self.lingering))
    }

    /// Whether every thread that holds a guard waits, so that nothing will be released.
    pub(super) fn is_stuck(&self) -> bool {
        self.moving == 0
            && !self.is_served()
            && self.holders.iter().all(|(thread, guards)| *guards == 0 || self.blocked.contains(thread))
    }
}
