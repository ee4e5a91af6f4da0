//! [`CountingAllocator`]: how much the heap holds, and for what.
//!
//! A program that wants to know installs it as its global allocator. Every block then carries a small header with the
//! tag that was in force on the thread that allocated it, so that it is taken off the same tag wherever and whenever it
//! is given back. A tag holds from [`HeapTag::enter`] until the guard is dropped; tags nest.
//!
//! ```
//! use dd_monitor::allocator::{CountingAllocator, HeapTag, heap_usage};
//!
//! #[global_allocator]
//! static ALLOCATOR: CountingAllocator = CountingAllocator::system();
//!
//! let weights = HeapTag::named("weights");
//! let block = {
//!     let _scope = weights.enter();
//!     vec![0u8; 1 << 20]
//! };
//! assert!(weights.counts().held.0 >= 1 << 20);
//! drop(block);
//! assert_eq!(weights.counts().held.0, 0);
//! assert!(heap_usage().is_some_and(|heap| heap.total.peak.0 >= 1 << 20));
//! ```
//!
//! The cost: 8 bytes per block (the alignment, where that is larger), and a few atomic additions per call. Counted is
//! what was asked for, not what the allocator beneath rounds it up to.
#![allow(
    unsafe_code,
    reason = "a global allocator cannot be written without; each block states why it is sound"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, OnceLock};

use dd_core::Bytes;

use crate::lock;
use crate::peak::PeakScopes;

/// The most tags; later ones count as untagged.
pub const MOST_TAGS: usize = 64;
/// What a block is preceded by: its tag, in the last four bytes of at least this many.
const HEADER: usize = 8;

/// What is counted, of one tag or of all.
struct Counter {
    held: AtomicU64,
    peak: AtomicU64,
    allocations: AtomicU64,
}

impl Counter {
    const fn new() -> Self {
        Self { held: AtomicU64::new(0), peak: AtomicU64::new(0), allocations: AtomicU64::new(0) }
    }

    fn take(&self, bytes: u64) {
        let held = self.held.fetch_add(bytes, Relaxed).wrapping_add(bytes);
        self.peak.fetch_max(held, Relaxed);
    }

    fn give_back(&self, bytes: u64) {
        self.held.fetch_sub(bytes, Relaxed);
    }

    /// Counts a block that changed its size. Only what is added counts towards the peak, as if it grew in place.
    fn resize(&self, old: u64, new: u64) {
        match new.checked_sub(old) {
            Some(more) => self.take(more),
            None => self.give_back(old - new),
        }
    }

    fn counts(&self) -> HeapCounts {
        let held = Bytes(self.held.load(Relaxed));
        let peak = Bytes(self.peak.load(Relaxed)).max(held);
        HeapCounts { held, peak, allocations: self.allocations.load(Relaxed) }
    }

    fn reset_peak(&self) {
        self.peak.store(self.held.load(Relaxed), Relaxed);
    }
}

static TOTAL: Counter = Counter::new();
static BY_TAG: [Counter; MOST_TAGS] = [const { Counter::new() }; MOST_TAGS];
static NAMES: [OnceLock<&'static str>; MOST_TAGS] = [const { OnceLock::new() }; MOST_TAGS];
static NAMING: Mutex<()> = Mutex::new(());
/// The scopes of the heap's own high-water mark, which the whole process shares.
pub(crate) static HEAP_PEAKS: PeakScopes = PeakScopes::new();

thread_local! {
    // Without a destructor and without an allocation: the allocator itself reads it.
    static TAG: Cell<u32> = const { Cell::new(0) };
}

/// What the heap, or a tag of it, holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct HeapCounts {
    /// Held now.
    pub held: Bytes,
    /// The most that was held at once, since the start or since the last reset.
    pub peak: Bytes,
    /// How often something was allocated.
    pub allocations: u64,
}

/// The heap by tag.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct HeapUsage {
    /// All of it.
    pub total: HeapCounts,
    /// Each tag, in the order in which they were named; what no tag was in force for is `untagged`, first.
    pub tags: Vec<(&'static str, HeapCounts)>,
}

/// What the counting allocator has counted; nothing where it is not this program's allocator.
#[must_use]
pub fn heap_usage() -> Option<HeapUsage> {
    let total = heap_total()?;
    let named = NAMES
        .iter()
        .zip(&BY_TAG)
        .skip(1)
        .filter_map(|(name, counter)| Some((*name.get()?, counter.counts())));
    let untagged = BY_TAG.first().map(|counter| ("untagged", counter.counts()));
    Some(HeapUsage { total, tags: untagged.into_iter().chain(named).collect() })
}

/// The sum over all tags; nothing where it is not counted. Allocates nothing.
#[must_use]
pub fn heap_total() -> Option<HeapCounts> {
    Some(TOTAL.counts()).filter(|counts| counts.allocations > 0)
}

/// Lowers the heap's peak, and every tag's, to what is held now.
pub fn reset_heap_peaks() {
    TOTAL.reset_peak();
    BY_TAG.iter().for_each(Counter::reset_peak);
}

/// Lowers the peak of the sum alone.
pub(crate) fn reset_total_peak() {
    TOTAL.reset_peak();
}

/// A name under which heap blocks are counted. Cheap to copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeapTag(u32);

impl HeapTag {
    /// What no tag was in force for.
    pub const UNTAGGED: Self = Self(0);

    /// The tag of this name; two of one name are the same. Once there are [`MOST_TAGS`], further names are untagged.
    #[must_use]
    pub fn named(name: &'static str) -> Self {
        let _naming = lock(&NAMING);
        let tags = (0u32..).zip(&NAMES).skip(1);
        let mut known = tags.filter(|(_, known)| known.get_or_init(|| name) == &name);
        known.next().map_or(Self::UNTAGGED, |(number, _)| Self(number))
    }

    /// What blocks of this tag hold.
    #[must_use]
    pub fn counts(self) -> HeapCounts {
        counter(self.0).counts()
    }

    /// Puts what this thread allocates under this tag until the guard is dropped.
    #[must_use = "the tag holds until the guard is dropped"]
    pub fn enter(self) -> TagGuard {
        TagGuard { before: TAG.replace(self.0), own_thread: PhantomData }
    }
}

/// Puts the former tag in force again when it is dropped.
#[derive(Debug)]
pub struct TagGuard {
    before: u32,
    own_thread: PhantomData<*const ()>, // The tag is this thread's: the guard must not leave it.
}

impl Drop for TagGuard {
    fn drop(&mut self) {
        TAG.set(self.before);
    }
}

/// The counter of a tag; a number that is no tag (a header that something overwrote) counts as untagged.
fn counter(tag: u32) -> &'static Counter {
    let [untagged, ..] = &BY_TAG;
    usize::try_from(tag).ok().and_then(|tag| BY_TAG.get(tag)).unwrap_or(untagged)
}

/// Counts what passes through to the allocator beneath it.
#[derive(Clone, Copy, Debug, Default)]
pub struct CountingAllocator<A = System> {
    inner: A,
}

impl CountingAllocator<System> {
    /// Over the system's allocator.
    #[must_use]
    pub const fn system() -> Self {
        Self { inner: System }
    }
}

impl<A> CountingAllocator<A> {
    /// Over any allocator.
    pub const fn new(inner: A) -> Self {
        Self { inner }
    }
}

/// A block with room for its header in front, and how far the block is from its start. The distance is a multiple of
/// the alignment and of [`HEADER`].
fn with_header(layout: Layout) -> Option<(Layout, usize)> {
    let align = layout.align().max(HEADER);
    let size = layout.size().checked_add(align)?;
    Some((Layout::from_size_align(size, align).ok()?, align))
}

/// Sizes fit 64 bits on every target.
const fn bytes(size: usize) -> u64 {
    size as u64
}

/// Writes the tag into the header of a new block and counts it.
///
/// # Safety
/// `start` begins a fresh block with at least `distance` bytes, a multiple of [`HEADER`], before what the caller gets.
unsafe fn hand_out(start: *mut u8, distance: usize, size: usize) -> *mut u8 {
    if start.is_null() {
        return start;
    }
    let tag = TAG.try_with(Cell::get).unwrap_or(0);
    // SAFETY: the block is at least `distance` bytes long, so this stays inside it.
    let block = unsafe { start.add(distance) };
    // SAFETY: `distance` is at least 8 and `block` is aligned to 8, so the four bytes before it are inside the block,
    // aligned for a u32, and nobody else's.
    unsafe { block.cast::<u32>().sub(1).write(tag) };
    for counter in [&TOTAL, counter(tag)] {
        counter.allocations.fetch_add(1, Relaxed);
        counter.take(bytes(size));
    }
    block
}

/// The tag in a block's header.
///
/// # Safety
/// `block` was given out by [`hand_out`] and not given back since.
unsafe fn tag_of(block: *mut u8) -> u32 {
    // SAFETY: `hand_out` wrote a u32 there, aligned, inside the same allocation.
    unsafe { block.cast::<u32>().sub(1).read() }
}

// SAFETY: blocks come from the inner allocator, which keeps the contract; each is larger than asked for by the header,
// has at least the alignment that was asked for, and is given back to it with the layout that it was taken with.
// Counting touches only atomics and a thread-local without a destructor, so it neither allocates nor unwinds.
unsafe impl<A: GlobalAlloc> GlobalAlloc for CountingAllocator<A> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let Some((whole, distance)) = with_header(layout) else { return std::ptr::null_mut() };
        // SAFETY: `whole` is not empty, since it holds the header.
        let start = unsafe { self.inner.alloc(whole) };
        // SAFETY: `start` begins a fresh block of `whole`, which has `distance` bytes in front.
        unsafe { hand_out(start, distance, layout.size()) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let Some((whole, distance)) = with_header(layout) else { return std::ptr::null_mut() };
        // SAFETY: as in `alloc`. The header is written before the block; the block itself stays zero.
        let start = unsafe { self.inner.alloc_zeroed(whole) };
        // SAFETY: as in `alloc`.
        unsafe { hand_out(start, distance, layout.size()) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        let Some((whole, distance)) = with_header(layout) else { return };
        // SAFETY: the caller gives back a block of this allocator.
        let tag = unsafe { tag_of(block) };
        TOTAL.give_back(bytes(layout.size()));
        counter(tag).give_back(bytes(layout.size()));
        // SAFETY: `alloc` gave the block out `distance` bytes behind the start of an allocation of layout `whole`.
        unsafe { self.inner.dealloc(block.sub(distance), whole) }
    }

    /// Grows in place where the inner allocator can; the block keeps its tag.
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        let grown = Layout::from_size_align(new_size, layout.align()).ok().and_then(with_header);
        let (Some((whole, distance)), Some((grown, _))) = (with_header(layout), grown) else {
            return std::ptr::null_mut();
        };
        // SAFETY: the caller hands in a block of this allocator.
        let tag = unsafe { tag_of(block) };
        // SAFETY: the allocation has layout `whole` and starts `distance` bytes before the block; the new size is not
        // zero, and is that of a valid layout of the same alignment.
        let start = unsafe { self.inner.realloc(block.sub(distance), whole, grown.size()) };
        if start.is_null() {
            return start;
        }
        for counter in [&TOTAL, counter(tag)] {
            counter.resize(bytes(layout.size()), bytes(new_size));
        }
        // SAFETY: the header moved along with the rest; the new allocation is longer than `distance`.
        unsafe { start.add(distance) }
    }
}
