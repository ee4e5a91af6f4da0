//! What fits stays in memory after it was read, and what is needed last goes first.
//!
//! The order of the next epoch is known, so the cache can do what no cache usually can: keep exactly what will be used soonest
//! (Belady, IBM Systems Journal 5(2), 1966). An entry's key is the time of its next use, counted in identities over all epochs. No
//! other index is needed, because whoever looks for an identity does so at just that time.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use dd_core::{Budget, Bytes, Holder, Reclaim, Reservation};

/// What an entry takes beside its bytes, in the map and in the allocator: an upper bound.
const OVERHEAD: u64 = 96;

/// The samples of one side that are kept.
pub(crate) struct Cache {
    entries: Mutex<Entries>,
    budget: Budget,
    holder: Holder,
    /// Bytes of one entry.
    len: usize,
}

struct Entries {
    by_use: BTreeMap<u64, Box<[u8]>>,
    room: Option<Reservation>,
    /// Entries whose room is reserved: those in the map, and those that a reader has in hand.
    reserved: u64,
}

impl Cache {
    /// Of entries of `len` bytes, within what the budget has left over.
    pub(crate) fn new(budget: &Budget, len: usize) -> Arc<Self> {
        let entries = Entries { by_use: BTreeMap::new(), room: None, reserved: 0 };
        let holder = Holder::new("feed cache");
        let cache = Arc::new(Self { entries: Mutex::new(entries), budget: budget.clone(), holder, len });
        let reclaimer: Weak<Self> = Arc::downgrade(&cache);
        budget.register(0, reclaimer);
        cache
    }

    /// What it holds, as it is accounted.
    #[cfg(test)]
    #[cfg(not(dd_shuttle))]
    pub(crate) fn bytes(&self) -> Bytes {
        self.lock().room.as_ref().map_or(Bytes::ZERO, Reservation::bytes)
    }

    /// Takes out what is used at `time`; it is to be put back.
    pub(crate) fn take(&self, time: u64) -> Option<Box<[u8]>> {
        self.lock().by_use.remove(&time)
    }

    /// Puts back what was taken out, for its next use; without one it goes.
    pub(crate) fn put_back(&self, entry: Box<[u8]>, next_use: Option<u64>) {
        self.settle(&mut self.lock(), entry, next_use);
    }

    /// Keeps a copy of `parts` (one after the other) if there is room, or if something else is used later.
    pub(crate) fn offer<'a>(&self, next_use: Option<u64>, parts: impl Iterator<Item = &'a [u8]>) {
        let Some(time) = next_use else { return };
        let Some(mut entry) = self.room_for(time) else { return };
        let mut rest = &mut *entry;
        for part in parts {
            let Some((target, after)) = rest.split_at_mut_checked(part.len()) else { break };
            target.copy_from_slice(part);
            rest = after;
        }
        self.put_back(entry, Some(time));
    }

    /// What has stayed behind, because its epoch was left early, under its next use.
    pub(crate) fn rekey(&self, before: u64, next_use: impl Fn(u64) -> Option<u64>) {
        let mut entries = self.lock();
        let after = entries.by_use.split_off(&before);
        let stale = std::mem::replace(&mut entries.by_use, after);
        for (time, entry) in stale {
            self.settle(&mut entries, entry, next_use(time));
        }
    }

    /// One entry per time: of two, as when a batch was read again, one goes.
    fn settle(&self, entries: &mut Entries, entry: Box<[u8]>, next_use: Option<u64>) {
        let kept = next_use.is_some_and(|time| entries.by_use.insert(time, entry).is_none());
        if !kept {
            self.forget(entries, 1);
        }
    }

    /// Room for one more entry used at `time`: new, or that of the entry used last.
    fn room_for(&self, time: u64) -> Option<Box<[u8]>> {
        let each = Bytes(self.len as u64 + OVERHEAD);
        let mut entries = self.lock();
        // Without asking anyone: others would be asked for memory that is only nice to have.
        let got = match &mut entries.room {
            Some(room) => room.try_grow(each).is_ok(),
            none => {
                *none = self.budget.try_reserve(each, &self.holder).ok();
                none.is_some()
            }
        };
        if got {
            entries.reserved += 1;
            drop(entries);
            return Some(vec![0; self.len].into_boxed_slice());
        }
        let last = entries.by_use.last_entry().filter(|last| *last.key() > time)?;
        Some(last.remove())
    }

    /// Gives up the room of `count` entries that are gone.
    fn forget(&self, entries: &mut Entries, count: u64) {
        entries.reserved = entries.reserved.saturating_sub(count);
        let keep = Bytes(entries.reserved.saturating_mul(self.len as u64 + OVERHEAD));
        if let Some(room) = &mut entries.room {
            room.shrink_to(keep);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reclaim for Cache {
    /// Whatever is used last goes first.
    fn reclaim(&self, wanted: Bytes) -> Bytes {
        let each = self.len as u64 + OVERHEAD;
        let mut entries = self.lock();
        let mut given = 0;
        while given * each < wanted.0 && entries.by_use.pop_last().is_some() {
            given += 1;
        }
        self.forget(&mut entries, given);
        Bytes(given * each)
    }
}

#[cfg(test)]
#[cfg(not(dd_shuttle))]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::order::{Order, Shuffle};

    const LEN: usize = 32;
    const EACH: u64 = LEN as u64 + OVERHEAD;

    /// Hits of the cache over epochs of this order, checked for content.
    fn hits(len: u64, room: u64, shuffle: Shuffle, epochs: u64) -> u64 {
        let budget = Budget::new("test", Bytes(room * EACH));
        let cache = Cache::new(&budget, LEN);
        let orders: Vec<Order> = (0..=epochs).map(|epoch| Order::new(len, shuffle, 3, epoch)).collect();
        let mut hits = 0;
        for epoch in 0..epochs {
            for position in 0..len {
                let (time, this) = (epoch * len + position, usize::try_from(epoch).unwrap());
                let identity = orders[this].at(position);
                let next =
                    (epoch + 1 < epochs).then(|| (epoch + 1) * len + orders[this + 1].position_of(identity));
                let content = [u8::try_from(identity % 251).unwrap(); LEN];
                match cache.take(time) {
                    Some(entry) => {
                        assert_eq!(entry[..], content, "{identity}");
                        hits += 1;
                        cache.put_back(entry, next);
                    }
                    None => cache.offer(next, content.chunks(7)),
                }
                assert!(budget.usage().used <= budget.limit());
            }
        }
        drop(cache);
        assert_eq!(budget.usage().used, Bytes::ZERO);
        hits
    }

    /// Belady's algorithm with the whole sequence before it, where nothing need be kept that is not worth it.
    fn belady(len: u64, room: u64, shuffle: Shuffle, epochs: u64) -> u64 {
        let sequence: Vec<u64> = (0..epochs)
            .flat_map(|epoch| {
                let order = Order::new(len, shuffle, 3, epoch);
                (0..len).map(move |position| order.at(position)).collect::<Vec<_>>()
            })
            .collect();
        let next = |after: usize, identity: u64| {
            sequence[after + 1..].iter().position(|i| *i == identity).map(|n| after + 1 + n)
        };
        let mut held = std::collections::BTreeSet::new();
        let mut hits = 0;
        for (time, identity) in sequence.iter().enumerate() {
            hits += u64::from(!held.insert(*identity));
            held.retain(|other| next(time, *other).is_some());
            if held.len() as u64 > room {
                let last = *held.iter().max_by_key(|other| next(time, **other)).unwrap();
                held.remove(&last);
            }
        }
        hits
    }

    proptest! {
        #[test]
        fn hits_are_those_of_belady(len in 1u64..40, room in 0u64..50, epochs in 1u64..5, block in 1u64..9) {
            for shuffle in [Shuffle::None, Shuffle::Full, Shuffle::Blocks { block, window: 2 }] {
                prop_assert_eq!(
                    hits(len, room, shuffle, epochs), belady(len, room, shuffle, epochs), "{:?}", shuffle
                );
            }
        }
    }

    #[test]
    fn gives_back_what_others_need() {
        let budget = Budget::new("test", Bytes(10 * EACH));
        let cache = Cache::new(&budget, LEN);
        for time in 0..20 {
            cache.offer(Some(time), std::iter::once([1; LEN].as_slice()));
        }
        assert_eq!(cache.bytes(), Bytes(10 * EACH));
        let other = budget.reserve(Bytes(4 * EACH - 1), &Holder::new("other")).unwrap();
        assert_eq!(cache.bytes(), Bytes(6 * EACH));
        assert!(cache.take(5).is_some() && cache.take(6).is_none(), "what is used last went");
        drop(other);
    }

    #[test]
    fn what_an_epoch_left_behind_is_found_again() {
        let budget = Budget::unlimited("test");
        let cache = Cache::new(&budget, 1);
        for time in 0..10 {
            cache.offer(Some(time), std::iter::once([u8::try_from(time).unwrap()].as_slice()));
        }
        cache.rekey(6, |time| (time % 2 == 0).then_some(time + 100));
        let held: Vec<(u64, u8)> =
            (0..200).filter_map(|time| cache.take(time).map(|entry| (time, entry[0]))).collect();
        let expected = [(6, 6), (7, 7), (8, 8), (9, 9), (100, 0), (102, 2), (104, 4)];
        assert_eq!(held, expected);
        assert_eq!(cache.bytes(), Bytes(7 * (1 + OVERHEAD)));
    }
}
