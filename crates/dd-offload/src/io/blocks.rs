//! One aligned allocation, cut into blocks that can be handed to threads and to the kernel.
//!
//! A [`Block`] is a piece of the allocation that only it can reach. All blocks together keep the allocation alive: it
//! is freed with the last of them, so a block that is still in flight keeps its bytes valid, whatever became of the
//! engine.
#![allow(
    unsafe_code,
    reason = "aligned memory, cut into pieces that different threads own, is beyond safe Rust"
)]

use std::alloc::Layout;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;

use super::{ALIGNMENT, Geometry, sys};
use crate::error::Result;

/// The size of a huge page where there are any: a range that is such a page is one piece of physical memory.
const HUGE: usize = 2 << 20;

/// The allocation that the blocks share.
struct Region {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the region itself reads and writes nothing through its pointer; it only frees it, once, in its drop.
unsafe impl Send for Region {}
// SAFETY: as above; a shared reference gives access to no byte.
unsafe impl Sync for Region {}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: `start` came from `alloc` with this very layout and is freed nowhere else.
        unsafe { std::alloc::dealloc(self.start.as_ptr(), self.layout) }
    }
}

/// A piece of the allocation, owned by whoever holds it.
pub(super) struct Block {
    start: NonNull<u8>,
    len: usize,
    _region: Arc<Region>, // Keeps `start..start + len` alive.
}

// SAFETY: a block is the only way to its bytes, as a `Box<[u8]>` is.
unsafe impl Send for Block {}

impl Deref for Block {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `start..start + len` lies in the region, which `_region` keeps; it was zeroed when allocated, so it is
        // initialised; no other block overlaps it, so a shared borrow of this block excludes writes.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for Block {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; the unique borrow of this block is a unique borrow of its bytes.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

/// Allocates `depth` blocks of `block` bytes in one piece, zeroed and aligned to [`ALIGNMENT`].
///
/// In huge pages, as far as the system has them: a disk takes a block that is one piece of memory as one entry of its
/// queue, and one of scattered pages as hundreds. A queue of 256 entries, as a virtual disk has, then holds one or two
/// reads of 512 KiB, however many were sent.
///
/// # Errors
/// [`Error::InvalidConfig`](crate::Error::InvalidConfig) as [`Geometry::validate`]; out of memory where the allocator refuses.
pub(super) fn allocate(geometry: Geometry) -> Result<Vec<Block>> {
    geometry.validate()?; // So the product below neither overflows nor is zero.
    let refused = || dd_core::Error::OutOfMemory {
        place: "host memory for read blocks".to_owned(),
        needed: geometry.memory(),
        available: dd_core::Bytes::ZERO,
    };
    let size = geometry.block * geometry.depth;
    let alignment = if size < HUGE { ALIGNMENT } else { HUGE };
    let layout = Layout::from_size_align(size, alignment).map_err(|_| refused())?;
    // SAFETY: the layout's size is not zero: neither factor is.
    let start = NonNull::new(unsafe { std::alloc::alloc(layout) }).ok_or_else(refused)?;
    sys::prefer_huge_pages(start, size - size % HUGE);
    // SAFETY: the allocation is `size` bytes long, and nobody else knows of it yet.
    unsafe { start.write_bytes(0, size) };
    let region = Arc::new(Region { start, layout });
    let block = |n: usize| Block {
        // SAFETY: `n < depth`, so the offset stays inside the allocation of `depth × block` bytes. The pieces of different
        // `n` do not overlap, and each `n` is used once.
        start: unsafe { start.add(n * geometry.block) },
        len: geometry.block,
        _region: Arc::clone(&region),
    };
    Ok((0..geometry.depth).map(block).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_aligned_zeroed_apart_and_outlive_each_other() {
        for (block, depth) in [(4096, 1), (8192, 3), (1 << 20, 2)] {
            let mut blocks = allocate(Geometry { block, depth }).unwrap();
            assert_eq!(blocks.len(), depth);
            for (n, piece) in blocks.iter_mut().enumerate() {
                assert_eq!(piece.as_ptr().addr() % ALIGNMENT, 0);
                assert!(piece.len() == block && piece.iter().all(|byte| *byte == 0));
                piece.fill(u8::try_from(n).unwrap() + 1);
            }
            let last = blocks.pop().unwrap();
            assert!(
                blocks.iter().enumerate().all(|(n, piece)| piece.iter().all(|b| usize::from(*b) == n + 1))
            );
            drop(blocks);
            let there = std::thread::spawn(move || last.iter().all(|b| usize::from(*b) == depth));
            assert!(there.join().unwrap());
        }
    }

    #[test]
    fn what_no_machine_has_is_an_error() {
        let error = allocate(Geometry { block: 1 << 30, depth: 0 }).map(|_| ()).unwrap_err();
        assert!(matches!(error, crate::Error::InvalidConfig { option: "io.depth", .. }), "{error}");
    }
}
