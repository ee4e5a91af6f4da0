//! What stays and what goes. First go windows of which no dependent can still need anything, or the parts of them that none
//! needs; then those that were used the longest ago. What a request has pinned stays.

use std::sync::Arc;

use dd_core::Backend;
use smallvec::SmallVec;

use crate::def::Def;
use crate::fold::for_each_row;
use crate::plan::for_each_box;
use crate::region::Region;
use crate::state::{Charge, Data, ENTRY_COST, Entry, PENDING_COST, Pending, State};

/// Of a dependent with more windows than this over one window, no count is kept.
const MOST_COUNTED: u64 = 256;

impl<B: Backend> State<B> {
    /// Makes room for `more` bytes at a store, evicting what is not pinned; says whether it could.
    pub(crate) fn make_room(&mut self, tiles: usize, more: u64) -> bool {
        loop {
            let Some(store) = self.tiles.get_mut(tiles) else { return false };
            if store.grow(more) {
                return true;
            }
            if self.evict_one(tiles) == 0 {
                return false;
            }
        }
    }

    /// Evicts one window, or the part of one that nothing needs; says how many bytes that gave, zero for nothing left.
    pub(crate) fn evict_one(&mut self, tiles: usize) -> u64 {
        while let Some(id) = self.pop_dead(tiles) {
            let given = self.shrink(id);
            if given > 0 {
                return given;
            }
        }
        self.pop_live(tiles).map_or(0, |id| self.drop_entry(id))
    }

    fn pop_dead(&mut self, tiles: usize) -> Option<usize> {
        let (_, id) = self.tiles.get_mut(tiles)?.dead.pop_first()?;
        if let Some(entry) = self.entries.get_mut(id) {
            entry.dead_key = None;
        }
        Some(id)
    }

    /// The window that was used the longest ago. Keys are times at which a window was queued: it may have been used since,
    /// and is then queued again.
    fn pop_live(&mut self, tiles: usize) -> Option<usize> {
        loop {
            let (key, id) = self.tiles.get_mut(tiles)?.live.pop_first()?;
            let Some(entry) = self.entries.get_mut(id) else { continue };
            entry.live_key = None;
            if entry.pins > 0 || entry.data.is_none() {
                continue; // Queued again when its last pin goes.
            }
            if entry.used > key {
                entry.live_key = Some(entry.used);
                let used = entry.used;
                self.tiles.get_mut(tiles)?.live.insert(used, id);
                continue;
            }
            return Some(id);
        }
    }

    /// Cuts a window down to what dependents still need of it; says how many bytes that gave.
    fn shrink(&mut self, id: usize) -> u64 {
        let needed = self.needed(id);
        let Some(entry) = self.entries.get_mut(id) else { return 0 };
        if entry.pins > 0 || entry.data.is_none() {
            return 0;
        }
        if needed.is_empty() {
            return self.drop_entry(id);
        }
        let Some(element) = entry.element() else { return 0 };
        let Some(data) = entry.data.as_mut().and_then(Arc::get_mut) else { return 0 };
        let before = data.bytes.len();
        crop(data, &needed, element);
        let given = (before - data.bytes.len()) as u64;
        let tensor = entry.tensor;
        let tiles = self.tensors.get(tensor).map(|windows| windows.tiles);
        if let Some(store) = tiles.and_then(|tiles| self.tiles.get_mut(tiles)) {
            store.used = store.used.saturating_sub(given);
            store.cached = store.cached.saturating_sub(given);
        }
        given
    }

    /// The part of a window that windows not computed yet need.
    fn needed(&self, id: usize) -> Region {
        let Some(entry) = self.entries.get(id) else { return Region::default() };
        let Some(data) = &entry.data else { return Region::default() };
        let nothing = Region::new(data.region.spans().iter().map(|_| crate::region::Span::EMPTY));
        if entry.passed {
            return nothing;
        }
        let dependents = self.tensors.get(entry.tensor).map(|windows| windows.dependents.as_slice());
        let mut needed = nothing;
        for (pending, dependent) in entry.pending.iter().zip(dependents.unwrap_or_default()) {
            let Pending::Some(indices, bits) = pending else { return data.region.clone() };
            let focus = self.tensors.get(dependent.tensor).and_then(|windows| windows.focus.as_ref());
            for (number, index) in indices.points().enumerate() {
                if focus.is_some_and(|focus| !focus.holds(&index)) {
                    continue;
                }
                let set = bits.get(number / 64).is_some_and(|word| word >> (number % 64) & 1 == 1);
                if set && let Ok(seen) = dependent.window.bounds(&index) {
                    needed = needed.hull(&seen.meet(&data.region));
                }
            }
        }
        needed
    }

    /// Whether other windows need it, and all that do are computed, or it was passed on for good.
    fn is_spent(&self, id: usize) -> bool {
        let counted = self.entries.get(id).is_some_and(|entry| entry.passed || !entry.pending.is_empty());
        counted && self.needed(id).is_empty()
    }

    /// Has the windows that a region of `top` needs count as the only ones that will be.
    pub(crate) fn set_focus(&mut self, top: &Arc<Def<B>>, region: Option<&Region>) {
        let whole = top.bounds();
        for_each_box(top, region.unwrap_or(&whole), &mut |def, indices| {
            if let Some(windows) = self.tensors.get_mut(def.slot) {
                windows.focus = region.map(|_| indices.clone());
            }
        });
    }

    /// Forgets a window that nobody has pinned; says how many bytes the cache had reserved for it.
    pub(crate) fn drop_entry(&mut self, id: usize) -> u64 {
        let Some(entry) = self.entries.try_remove(id) else { return 0 };
        let cost = entry.cost();
        let windows = self.tensors.get_mut(entry.tensor);
        let tiles = windows.map(|windows| {
            if !entry.orphan {
                windows.map.remove(&entry.index);
            }
            windows.tiles
        });
        let Some(store) = tiles.and_then(|tiles| self.tiles.get_mut(tiles)) else { return 0 };
        entry.live_key.map(|key| store.live.remove(&key));
        entry.dead_key.map(|key| store.dead.remove(&key));
        drop(entry.data);
        if entry.charge == Charge::Cache {
            store.used = store.used.saturating_sub(cost);
            store.cached = store.cached.saturating_sub(cost);
            store.windows = store.windows.saturating_sub(1);
            return cost;
        }
        0
    }

    /// Takes a window out of the map: nobody finds it any more, and it goes with its last pin.
    pub(crate) fn orphan(&mut self, id: usize) {
        let Some(entry) = self.entries.get_mut(id) else { return };
        if !entry.orphan {
            entry.orphan = true;
            if let Some(windows) = self.tensors.get_mut(entry.tensor) {
                windows.map.remove(&entry.index);
            }
        }
        if self.entries.get(id).is_some_and(|entry| entry.pins == 0) {
            self.drop_entry(id);
        }
    }

    /// A window's data is there: notes which windows still need it, and that it needs its own inputs no more.
    pub(crate) fn arrived(&mut self, def: &Def<B>, id: usize) {
        if let Some(pending) = self.pending_of(id)
            && let Some(entry) = self.entries.get_mut(id)
        {
            entry.pending = pending;
        }
        let Some(index) = self.entries.get(id).map(|entry| entry.index.clone()) else { return };
        for (number, arg) in def.args.iter().enumerate() {
            let Ok(region) = def.arg_region(arg, &index) else { continue };
            for upstream in arg.def.windows(&region).points() {
                if let Some(input) = self.find(arg.def.slot, &upstream) {
                    self.satisfied(input, (def.slot, number), &index);
                }
            }
        }
    }

    fn pending_of(&self, id: usize) -> Option<SmallVec<[Pending; 1]>> {
        let entry = self.entries.get(id)?;
        let region = &entry.data.as_ref()?.region;
        let pending = |dependent: &crate::state::Dependent| {
            let indices = dependent.window.indices(region, &dependent.domain);
            if indices.volume() > MOST_COUNTED {
                return Pending::Unknown;
            }
            let mut bits: SmallVec<[u64; 1]> = (0..indices.volume().div_ceil(64)).map(|_| 0).collect();
            for (number, index) in indices.points().enumerate() {
                let there = self.find(dependent.tensor, &index).and_then(|id| self.entries.get(id));
                if there.is_none_or(|entry| entry.data.is_none())
                    && let Some(word) = bits.get_mut(number / 64)
                {
                    *word |= 1 << (number % 64);
                }
            }
            Pending::Some(indices, bits)
        };
        Some(self.tensors.get(entry.tensor)?.dependents.iter().map(pending).collect())
    }

    /// One window of a dependent needs this one no more.
    fn satisfied(&mut self, id: usize, (tensor, arg): (usize, usize), index: &[i64]) {
        let Some(entry) = self.entries.get_mut(id) else { return };
        let Some(windows) = self.tensors.get(entry.tensor) else { return };
        let which = windows.dependents.iter().position(|d| d.tensor == tensor && d.arg == arg);
        let Some(Pending::Some(indices, bits)) = which.and_then(|which| entry.pending.get_mut(which)) else {
            return;
        };
        let Some(number) = indices.number(index).and_then(|number| usize::try_from(number).ok()) else {
            return;
        };
        if let Some(word) = bits.get_mut(number / 64) {
            *word &= !(1 << (number % 64));
        }
        self.queue_if_dead(id);
    }

    /// Queues a window to be evicted or cut down first where less than half of it is still needed.
    fn queue_if_dead(&mut self, id: usize) {
        if self.entries.get(id).is_none_or(|entry| entry.pending.is_empty() && !entry.passed) {
            return;
        }
        let needed = self.needed(id).volume();
        let Some(entry) = self.entries.get_mut(id) else { return };
        let held = entry.data.as_ref().map_or(0, |data| data.region.volume());
        if entry.pending.is_empty() && !entry.passed
            || entry.dead_key.is_some()
            || needed.saturating_mul(2) > held
        {
            return;
        }
        if entry.charge != Charge::Cache || entry.pins > 0 {
            return; // Looked at again when its last pin goes.
        }
        self.clock += 1;
        entry.dead_key = Some(self.clock);
        let (key, tensor) = (self.clock, entry.tensor);
        let Some(windows) = self.tensors.get(tensor) else { return };
        let (tiles, cleanup) = (windows.tiles, windows.cleanup);
        if let Some(store) = self.tiles.get_mut(tiles) {
            store.dead.insert(key, id);
        }
        if cleanup && needed == 0 {
            self.drop_entry(id);
        }
    }

    /// One pin less. A window without pins is the cache's, if there is room for it.
    pub(crate) fn unpin(&mut self, id: usize, request: usize) {
        let Some(entry) = self.entries.get_mut(id) else { return };
        entry.pins = entry.pins.saturating_sub(1);
        if let Some(at) = entry.sharers.iter().position(|sharer| *sharer == request) {
            entry.sharers.swap_remove(at);
        }
        if entry.charge == Charge::Request(request)
            && let Some(next) = entry.sharers.pop()
        {
            entry.charge = Charge::Request(next);
        }
        if entry.pins > 0 {
            return;
        }
        if entry.orphan || entry.data.is_none() {
            self.drop_entry(id);
            return;
        }
        self.rest(id, request);
    }

    /// Hands a window without pins over to the cache, or drops it where there is no room.
    fn rest(&mut self, id: usize, request: usize) {
        let clock = self.tick();
        let Some(entry) = self.entries.get_mut(id) else { return };
        entry.used = clock;
        let settled = entry.charge == Charge::Cache && entry.live_key.is_some() && entry.pending.is_empty();
        if settled && !entry.passed && self.tensors.get(entry.tensor).is_some_and(|windows| !windows.cleanup)
        {
            return; // As it was.
        }
        let (cost, tensor, charge, queued) =
            (entry.cost(), entry.tensor, entry.charge, entry.live_key.is_some());
        let dead = self.is_spent(id);
        let Some((tiles, cleanup)) = self.tensors.get(tensor).map(|windows| (windows.tiles, windows.cleanup))
        else {
            return;
        };
        let alone = self.tensors.get(tensor).is_some_and(|windows| windows.dependents.is_empty());
        if cleanup && (dead || alone) {
            self.drop_entry(id);
            return;
        }
        if charge == Charge::Request(request) {
            if dead && !self.tiles.get_mut(tiles).is_some_and(|store| store.grow(cost)) {
                self.drop_entry(id);
                return;
            }
            let full =
                |state: &Self| state.tiles.get(tiles).is_none_or(|store| store.windows >= store.window_limit);
            while full(self) {
                if self.evict_one(tiles) == 0 {
                    break;
                }
            }
            if full(self) || !self.make_room(tiles, cost) {
                self.drop_entry(id);
                return;
            }
            if let Some(store) = self.tiles.get_mut(tiles) {
                store.used += cost;
                store.cached += cost;
                store.windows += 1;
            }
            if let Some(entry) = self.entries.get_mut(id) {
                entry.charge = Charge::Cache;
            }
        }
        if !queued && let Some(store) = self.tiles.get_mut(tiles) {
            store.live.insert(clock, id);
            if let Some(entry) = self.entries.get_mut(id) {
                entry.live_key = Some(clock);
            }
        }
        self.queue_if_dead(id);
    }

    /// What keeping a window of a tensor takes beside its bytes.
    pub(crate) fn entry_cost(&self, tensor: usize) -> u64 {
        let dependents = self.tensors.get(tensor).map_or(0, |windows| windows.dependents.len());
        ENTRY_COST + PENDING_COST * dependents.saturating_sub(1) as u64
    }

    /// From now on windows of a tensor go as soon as nothing can need them.
    pub(crate) fn mark_for_cleanup(&mut self, tensor: usize) {
        let Some(windows) = self.tensors.get_mut(tensor) else { return };
        windows.cleanup = true;
        let alone = windows.dependents.is_empty();
        let there: Vec<usize> = windows.map.values().copied().collect();
        for id in there {
            let gone = self.entries.get(id).is_some_and(|entry| {
                entry.pins == 0 && entry.data.is_some() && (alone || entry.is_unneeded())
            });
            if gone {
                self.drop_entry(id);
            }
        }
    }

    /// Forgets all windows of a tensor that are not pinned, and the pinned ones with their last pin.
    pub(crate) fn clear_tensor(&mut self, tensor: usize) {
        let there: Vec<usize> = self
            .tensors
            .get(tensor)
            .map(|windows| windows.map.values().copied().collect())
            .unwrap_or_default();
        for id in there {
            if self.entries.get(id).is_some_and(|entry| entry.data.is_some()) {
                self.orphan(id);
            }
        }
    }
}

impl Entry {
    /// The bytes of an element, from what is held.
    fn element(&self) -> Option<usize> {
        let data = self.data.as_ref()?;
        let volume = usize::try_from(data.region.volume()).ok()?;
        data.bytes.len().checked_div(volume)
    }
}

/// Moves the elements of `keep` to the front, and gives the rest back.
pub(crate) fn crop(data: &mut Data, keep: &Region, element: usize) {
    let from = data.region.clone();
    let bytes = &mut data.bytes;
    for_each_row(keep, &[&from, keep], |starts, len| {
        let [source, target] = starts else { return };
        let (source, target, len) = (source * element, target * element, len * element);
        if source.saturating_add(len) <= bytes.len() && target <= source {
            bytes.copy_within(source..source + len, target);
        }
    });
    bytes.truncate(usize::try_from(keep.volume()).unwrap_or(0).saturating_mul(element));
    bytes.shrink_to_fit();
    data.region = keep.clone();
}
