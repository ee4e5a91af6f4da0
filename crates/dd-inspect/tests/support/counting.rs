//! An allocator that counts live bytes and their peak.
#![allow(unsafe_code, reason = "only a global allocator sees every allocation, and its trait is unsafe")]

use std::alloc::{GlobalAlloc, Layout};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

pub(crate) struct Counting<A> {
    inner: A,
    live: AtomicUsize,
    peak: AtomicUsize,
}

impl<A> Counting<A> {
    pub(crate) const fn new(inner: A) -> Self {
        Self { inner, live: AtomicUsize::new(0), peak: AtomicUsize::new(0) }
    }

    /// Peak of live bytes during `run`, above those alive when it began.
    pub(crate) fn peak_of<T>(&self, run: impl FnOnce() -> T) -> (T, usize) {
        let before = self.live.load(Relaxed);
        self.peak.store(before, Relaxed);
        let result = run();
        (result, self.peak.load(Relaxed) - before)
    }

    fn add(&self, bytes: usize) {
        let live = self.live.fetch_add(bytes, Relaxed) + bytes;
        self.peak.fetch_max(live, Relaxed);
    }
}

// SAFETY: every call is passed on unchanged; counting neither allocates nor touches the memory.
unsafe impl<A: GlobalAlloc> GlobalAlloc for Counting<A> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.add(layout.size());
        // SAFETY: the caller's promise is passed on.
        unsafe { self.inner.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        self.add(layout.size());
        // SAFETY: the caller's promise is passed on.
        unsafe { self.inner.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        self.live.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { self.inner.dealloc(ptr, layout) }
    }
}
