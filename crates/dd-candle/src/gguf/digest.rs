//! [`Digests`]: what each page's share of a tensor hashes to, noted while the file is read.
//!
//! A loader reads a tensor into one allocation and copies it to another. That the second holds what the file holds must
//! not be assumed, and comparing the two would read both again. So each page of the *file* is hashed when it is read, and
//! each page of the copy when it is evicted; the copy's pages lie over the same pages of the file.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use dd_offload::io::ALIGNMENT;
use xxhash_rust::xxh3::xxh3_64;

pub(crate) const PAGE: usize = ALIGNMENT;

/// A hash of bytes that is never zero. A change that goes unnoticed has a chance of 2⁻⁶⁴ per page and change.
pub(crate) fn digest(bytes: &[u8]) -> u64 {
    xxh3_64(bytes).max(1)
}

/// The pages of a file that a tensor lies in; only the tensor's own bytes of the first and the last one count.
#[derive(Debug)]
pub(crate) struct Digests {
    range: Range<u64>,
    table: Vec<AtomicU64>, // Zero: not read yet.
}

impl Digests {
    /// For the bytes `range` of a file.
    pub(crate) fn of(range: Range<u64>) -> Self {
        let pages = range.end.div_ceil(PAGE as u64) - range.start / PAGE as u64;
        Self { table: (0..pages).map(|_| AtomicU64::new(0)).collect(), range }
    }

    /// The tensor's bytes of the file.
    pub(crate) fn range(&self) -> Range<u64> {
        self.range.clone()
    }

    /// Notes bytes of the file as they were read from `offset`, a multiple of the page. Pages that are not there whole are
    /// left out, but for what the tensor does not reach.
    pub(crate) fn note(&self, offset: u64, bytes: &[u8]) {
        let first = self.range.start / PAGE as u64;
        for (index, page) in (offset / PAGE as u64..).zip(bytes.chunks(PAGE)) {
            let start = index * PAGE as u64;
            let own = self.range.start.max(start)..self.range.end.min(start + PAGE as u64);
            let own = own.start.saturating_sub(start)..own.end.saturating_sub(start);
            let slot = index.checked_sub(first).and_then(|at| self.table.get(usize::try_from(at).ok()?));
            let unknown = slot.filter(|slot| slot.load(Ordering::Acquire) == 0);
            if let (Some(slot), Some(own)) = (unknown, slice(page, own)) {
                slot.store(digest(own), Ordering::Release);
            }
        }
    }

    /// The digest of the tensor's share of its page number `page`; nothing where it was not read.
    pub(crate) fn get(&self, page: usize) -> Option<u64> {
        self.table.get(page).map(|slot| slot.load(Ordering::Acquire)).filter(|digest| *digest > 0)
    }
}

fn slice(bytes: &[u8], range: Range<u64>) -> Option<&[u8]> {
    bytes.get(usize::try_from(range.start).ok()?..usize::try_from(range.end).ok()?).filter(|s| !s.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_noted_for_the_tensors_share_alone() {
        let file: Vec<u8> = (0..5 * PAGE).map(|i| u8::try_from(i % 251).unwrap()).collect();
        let (start, end) = (PAGE + 96, 3 * PAGE + 32);
        let digests = Digests::of(start as u64..end as u64);
        assert_eq!((0..4).map(|page| digests.get(page)).collect::<Vec<_>>(), vec![None; 4]);
        // The whole neighbourhood, with pages that are not the tensor's and one that is cut short.
        digests.note(0, &file[..2 * PAGE + 100]);
        assert_eq!(digests.get(0), Some(digest(&file[start..2 * PAGE])));
        assert_eq!(digests.get(1), None, "only a part of it was there");
        digests.note(2 * PAGE as u64, &file[2 * PAGE..3 * PAGE + 32]);
        assert_eq!(digests.get(1), Some(digest(&file[2 * PAGE..3 * PAGE])));
        assert_eq!(digests.get(2), Some(digest(&file[3 * PAGE..end])));
        assert_eq!(digests.get(3), None);
    }
}
