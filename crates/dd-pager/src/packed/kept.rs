//! [`KeptChunks`]: packed bytes that stay in memory once they were read, so that the disk is not asked again.
//!
//! The memory is reserved when this is made and filled from its start on; nothing is ever taken out, so a chunk that was
//! kept is there for good and is read without a lock.
#![allow(unsafe_code, reason = "slices of its own mapping; each block says why")]

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use dd_core::{Budget, Bytes, Holder, Reservation};

use crate::error::Result;
use crate::sys::map::Mapping;

/// Memory for packed chunks, accounted for from the start.
#[derive(Debug)]
pub struct KeptChunks {
    arena: Mapping,
    reserved: usize,
    used: Mutex<usize>,
    /// Also chunks of units that stay unpacked: there is room for all.
    everything: bool,
    /// Which part of the chunks that stream is kept.
    share: f64,
    _memory: Reservation,
}

impl KeptChunks {
    /// Room for so many bytes of chunks, of which `streamed` are read in every pass and `all` in the first.
    ///
    /// # Errors
    /// What the budget or the system refuses.
    pub(crate) fn new(
        budget: &Budget,
        holder: &Holder,
        reserved: Bytes,
        (streamed, all): (Bytes, Bytes),
    ) -> Result<Self> {
        let memory = budget.reserve(reserved, holder)?;
        let reserved_bytes = reserved.to_usize()?;
        let share = if streamed <= reserved { 1.0 } else { reserved.fraction_of(streamed) };
        Ok(Self {
            arena: Mapping::reserve(reserved_bytes, false)?,
            reserved: reserved_bytes,
            used: Mutex::new(0),
            everything: reserved >= all,
            share,
            _memory: memory,
        })
    }

    /// How much it may hold.
    #[must_use]
    pub const fn reserved(&self) -> Bytes {
        Bytes::of(self.reserved)
    }

    /// How much it holds.
    #[must_use]
    pub fn used(&self) -> Bytes {
        Bytes::of(*self.used.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether a tensor's chunk of this number is to be kept: all, or a part of those that stream, evenly spread, so
    /// that the disk is busy throughout a pass.
    fn wants(&self, index: usize, stays: bool) -> bool {
        let upto = |index: usize| (index as f64 * self.share).floor();
        self.everything || !stays && (self.share >= 1.0 || upto(index + 1) > upto(index))
    }
}

/// The chunks of one tensor that are kept.
#[derive(Debug)]
pub(super) struct KeptTensor {
    chunks: Arc<KeptChunks>,
    places: Box<[OnceLock<Range<usize>>]>,
    /// Chunks below this were looked at by [`missing`](Self::missing).
    looked_at: AtomicUsize,
}

impl KeptTensor {
    pub(super) fn new(chunks: Arc<KeptChunks>, count: usize) -> Self {
        Self { chunks, places: (0..count).map(|_| OnceLock::new()).collect(), looked_at: AtomicUsize::new(0) }
    }

    /// Where all chunks are to be kept, the next one that nobody has read so far; each is named once.
    pub(super) fn missing(&self) -> Option<usize> {
        if !self.chunks.everything {
            return None;
        }
        loop {
            let index = self.looked_at.fetch_add(1, Ordering::Relaxed);
            if self.places.get(index)?.get().is_none() {
                return Some(index);
            }
        }
    }

    /// The stored bytes of a chunk, if they are here.
    pub(super) fn get(&self, index: usize) -> Option<&[u8]> {
        let place = self.places.get(index)?.get()?;
        // SAFETY: places are only made by `keep`, in this arena: the range was written in full before it was published,
        // and nothing writes to it again while the mapping, which `self` holds, exists.
        Some(unsafe { std::slice::from_raw_parts(self.chunks.arena.at(place.start), place.len()) })
    }

    /// Keeps the stored bytes of a chunk where they are wanted and there is room. `stays`: the unit that they fill does.
    pub(super) fn keep(&self, index: usize, stored: &[u8], stays: bool) {
        let Some(place) = self.places.get(index).filter(|_| self.chunks.wants(index, stays)) else { return };
        let mut used = self.chunks.used.lock().unwrap_or_else(PoisonError::into_inner);
        let end = used.checked_add(stored.len()).filter(|end| *end <= self.chunks.reserved);
        let (Some(end), None) = (end, place.get()) else { return };
        let range = *used..end;
        // SAFETY: the range lies within the arena, behind all that was ever given out, and is written under the lock;
        // nobody has a slice of it before its place is published below. `stored` lies elsewhere.
        unsafe {
            std::ptr::copy_nonoverlapping(stored.as_ptr(), self.chunks.arena.at(range.start), stored.len());
        }
        *used = end;
        drop(place.set(range)); // It was empty, and only the lock's holder sets it.
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_what_fits_and_gives_it_again() {
        let budget = Budget::new("memory", Bytes(100));
        // (reserved, streamed, all): which of ten chunks of ten bytes are kept, where the unit stays and where not.
        let rows = [
            (100, 100, 100, 0b11_1111_1111, 0b11_1111_1111),
            (60, 50, 100, 0, 0b00_0011_1111),
            (50, 100, 100, 0, 0b10_1010_1010),
            (25, 25, 100, 0, 0b00_0000_0011),
        ];
        for (reserved, streamed, all, staying, passing) in rows {
            for (stays, expected) in [(true, staying), (false, passing)] {
                let holder = Holder::new("kept");
                let kept = KeptChunks::new(&budget, &holder, Bytes(reserved), (Bytes(streamed), Bytes(all)));
                let tensor = KeptTensor::new(Arc::new(kept.unwrap()), 10);
                for _ in 0..2 {
                    (0..10u8).for_each(|index| tensor.keep(usize::from(index), &[index; 10], stays));
                }
                let found = (0..10u8).filter(|index| tensor.get(usize::from(*index)) == Some(&[*index; 10]));
                assert_eq!(found.fold(0, |bits, index| bits | 1 << index), expected, "{reserved} B, {stays}");
                assert!(tensor.chunks.used() <= tensor.chunks.reserved());
                assert!(tensor.get(10).is_none());
                tensor.keep(10, &[0], false);
            }
        }
        assert_eq!((budget.usage().used, budget.usage().peak), (Bytes::ZERO, Bytes(100)));
    }
}
