//! The allocator by itself, over memory that is only mapped: what is captured, freed, moved, and by whom.
#![allow(unsafe_code, reason = "an allocator is called as the standard library calls it")]

use std::sync::atomic::AtomicBool;

use super::*;

/// Gives blocks of the system's memory with room to spare, for layouts that it is told of.
struct Lender {
    wanted: Layout,
    lent: AtomicUsize,
    back: Arc<AtomicUsize>,
    panics: AtomicBool,
}

struct Lent {
    start: usize,
    layout: Layout,
    back: Arc<AtomicUsize>,
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.back.fetch_add(1, Ordering::SeqCst);
        // SAFETY: allocated below with this layout, and freed once.
        unsafe { System.dealloc(std::ptr::with_exposed_provenance_mut(self.start), self.layout) };
    }
}

impl Lender {
    fn new(size: usize, align: usize) -> Arc<Self> {
        let wanted = Layout::from_size_align(size, align).unwrap();
        let (lent, back) = (AtomicUsize::new(0), Arc::default());
        Arc::new(Self { wanted, lent, back, panics: AtomicBool::new(false) })
    }

    fn lent(&self) -> usize {
        self.lent.load(Ordering::SeqCst)
    }

    fn back(&self) -> usize {
        self.back.load(Ordering::SeqCst)
    }
}

impl Provider for Lender {
    fn provide(&self, layout: Layout, _: bool) -> Option<Block> {
        assert!(!self.panics.load(Ordering::SeqCst), "a provider that panics");
        if layout != self.wanted {
            return None;
        }
        // No allocation from in here must come back here.
        for _ in 0..3 {
            let inner = Allocation::new(layout, false);
            assert!(!contains(inner.start));
        }
        let wide = Layout::from_size_align(layout.size() + 100, layout.align()).unwrap();
        // SAFETY: the size is not zero.
        let start = NonNull::new(unsafe { System.alloc_zeroed(wide) })?;
        self.lent.fetch_add(1, Ordering::SeqCst);
        let lent =
            Lent { start: start.as_ptr().expose_provenance(), layout: wide, back: Arc::clone(&self.back) };
        Some(Block { start, room: wide.size(), keeper: Arc::new(lent) })
    }
}

/// A block from [`CapturingAllocator`], freed when dropped.
struct Allocation {
    start: *mut u8,
    layout: Layout,
}

// SAFETY: plain memory that is owned.
unsafe impl Send for Allocation {}

impl Allocation {
    fn new(layout: Layout, zeroed: bool) -> Self {
        // SAFETY: the tests' layouts have sizes above zero.
        let start = unsafe {
            if zeroed { CapturingAllocator.alloc_zeroed(layout) } else { CapturingAllocator.alloc(layout) }
        };
        assert!(!start.is_null() && start.addr().is_multiple_of(layout.align()));
        Self { start, layout }
    }

    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: as many bytes as were allocated, by this alone; the tests ask for zeros or have written them.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.layout.size()) }
    }

    fn resize(&mut self, size: usize) {
        // SAFETY: the block is this one's, with this layout; the size is not zero.
        self.start = unsafe { CapturingAllocator.realloc(self.start, self.layout, size) };
        self.layout = Layout::from_size_align(size, self.layout.align()).unwrap();
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        // SAFETY: the block is this one's, with this layout.
        unsafe { CapturingAllocator.dealloc(self.start, self.layout) };
    }
}

fn provider(lender: &Arc<Lender>) -> Arc<dyn Provider> {
    Arc::<Lender>::clone(lender)
}

#[test]
fn only_what_a_provider_wants_is_captured_and_only_within_the_scope() {
    let size = SMALLEST + 8;
    let lender = Lender::new(size, 4);
    let layout = |size, align| Layout::from_size_align(size, align).unwrap();
    let rows = [
        (layout(size, 4), true, true),
        (layout(size, 4), false, false), // Outside the scope.
        (layout(size, 8), true, false),
        (layout(size + 1, 4), true, false),
        (layout(64, 4), true, false), // Too small to be asked about.
    ];
    for (layout, inside, captured) in rows {
        let make = || Allocation::new(layout, true);
        let mut made = if inside { scope(&provider(&lender), make) } else { make() };
        assert_eq!(contains(made.start), captured, "{layout:?}, {inside}");
        assert_eq!(contains(made.start.wrapping_add(layout.size() - 1)), captured);
        assert_eq!(find(made.start).is_some(), captured);
        assert!(made.bytes().iter().all(|byte| *byte == 0));
        made.bytes().fill(7);
        let start = made.start;
        drop(made);
        assert!(!contains(start));
    }
    assert_eq!((lender.lent(), lender.back()), (1, 1));
}

#[test]
fn blocks_may_be_freed_by_other_threads_after_the_scope() {
    let lender = Lender::new(SMALLEST + 16, 16);
    let made = scope(&provider(&lender), || {
        (0..8).map(|_| Allocation::new(lender.wanted, false)).collect::<Vec<_>>()
    });
    assert_eq!((lender.lent(), lender.back()), (8, 0));
    std::thread::scope(|threads| {
        for allocation in made {
            threads.spawn(move || drop(allocation));
        }
    });
    assert_eq!(lender.back(), 8);
}

#[test]
fn a_watch_sees_all_threads_while_it_lives() {
    let lender = Lender::new(SMALLEST + 24, 8);
    let make = || Allocation::new(lender.wanted, false);
    let watch = watch(provider(&lender));
    let there = std::thread::scope(|threads| threads.spawn(make).join().unwrap());
    let here = make();
    assert!(contains(there.start) && contains(here.start));
    drop(watch);
    let after = make();
    assert!(!contains(after.start));
    assert_eq!(lender.lent(), 2);
    drop((there, here));
    assert_eq!(lender.back(), 2);
}

#[test]
fn resizing_keeps_the_bytes_wherever_they_go() {
    let size = SMALLEST + 32;
    let lender = Lender::new(size, 2);
    let (room, system) = (size + 100, size + 101);
    // From a size to a size, whether the second is in a captured block, and how many blocks were lent in all.
    let rows = [
        (size, size - 5000, true, 1), // It stays.
        (size, room, true, 1),        // There is room.
        (size, system, false, 1),     // Moved to the system.
        (system, size, true, 1),      // Moved from there.
        (size, 100, true, 1),
        (64, 128, false, 0), // The system's own affair.
    ];
    for (from, to, captured, lent) in rows {
        let before = lender.lent();
        scope(&provider(&lender), || {
            let mut made = Allocation::new(Layout::from_size_align(from, 2).unwrap(), true);
            for (byte, value) in made.bytes().iter_mut().zip((0..=250u8).cycle()) {
                *byte = value;
            }
            made.resize(to);
            assert_eq!(contains(made.start), captured, "{from} to {to}");
            let kept = made.bytes().iter().take(from.min(to)).zip((0..=250u8).cycle());
            assert!(kept.into_iter().all(|(byte, value)| *byte == value), "{from} to {to}");
        });
        assert_eq!(lender.lent() - before, lent, "{from} to {to}");
    }
    assert_eq!(lender.lent(), lender.back());
}

#[test]
fn a_provider_that_panics_or_is_asked_by_itself_leaves_it_to_the_system() {
    let lender = Lender::new(SMALLEST + 40, 4);
    lender.panics.store(true, Ordering::SeqCst);
    let made = scope(&provider(&lender), || Allocation::new(lender.wanted, false));
    assert!(!contains(made.start));
    lender.panics.store(false, Ordering::SeqCst);
    // The thread is not left quiet.
    let made = scope(&provider(&lender), || Allocation::new(lender.wanted, false));
    assert!(contains(made.start));
}

#[test]
fn scopes_nest_and_end_by_panics_too() {
    let (outer, inner) = (Lender::new(SMALLEST + 48, 4), Lender::new(SMALLEST + 56, 4));
    scope(&provider(&outer), || {
        let ended = catch_unwind(|| scope(&provider(&inner), || panic!("a loader that panics")));
        assert!(ended.is_err());
        let made = Allocation::new(outer.wanted, false);
        assert!(contains(made.start));
        let made = Allocation::new(inner.wanted, false);
        assert!(!contains(made.start));
    });
}

#[test]
fn says_whether_it_is_installed() {
    assert!(!is_installed(), "this test's program has the system's allocator");
}
