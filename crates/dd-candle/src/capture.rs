//! [`CapturingAllocator`]: a global allocator that lets chosen large allocations of other people's code be paged.
//!
//! A library that loads weights allocates them itself, and no argument of its loader says where. The one place that
//! every such allocation goes through is the program's global allocator. This one passes everything on to the system
//! until somebody asks for a share: a *scope* asks on its own thread while a closure runs (a loader), a *watch* asks on
//! all threads for allocations of exact layouts (the copies that a library makes of its weights at their first use). What
//! they take comes from a provider; giving it back works from any thread, at any time, also long after the scope.
//!
//! While nobody asks, an allocation pays one comparison (and, when it is large, one relaxed load); a deallocation pays
//! two relaxed loads.
//!
//! What is still in use when nobody else knows of it any more, such as a cache that a library fills once, on the loader's
//! thread, keeps its memory captured for as long as it lives.
//!
//! The code that runs inside an allocation must not be asked again: it allocates itself. A flag of the thread sees to
//! that, and a panic in it is caught, since an allocation must not unwind; the system serves the request then.
#![allow(
    unsafe_code,
    reason = "a global allocator is unsafe by its nature; every block says why it is sound"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::any::Any;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Smaller allocations are never captured: they would waste most of a page, and there are many of them.
pub(crate) const SMALLEST: usize = 16 << 10;

/// The program's allocator: the system's, but for what is captured. A binary that pages GGUF models installs it:
///
/// ```
/// #[global_allocator]
/// static ALLOCATOR: dd_candle::capture::CapturingAllocator = dd_candle::capture::CapturingAllocator;
/// # fn main() {}
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct CapturingAllocator;

/// Where captured allocations get their memory.
pub(crate) trait Provider: Send + Sync {
    /// Memory for `layout`, all zero; nothing leaves the request to the system. `zeroed` says whether the caller asked for
    /// zeros. Runs inside an allocation: it must not wait for anything that may itself wait for this thread.
    fn provide(&self, layout: Layout, zeroed: bool) -> Option<Block>;
}

/// Memory that a provider gives.
pub(crate) struct Block {
    /// Its first byte, aligned as the layout asked.
    pub(crate) start: NonNull<u8>,
    /// How long it may get without moving: at least the layout's size.
    pub(crate) room: usize,
    /// Keeps it; dropped when the allocation is freed.
    pub(crate) keeper: Keeper,
}

/// What keeps a block; also how whoever knows its type finds out about a captured pointer.
pub(crate) type Keeper = Arc<dyn Any + Send + Sync>;

struct Entry {
    room: usize,
    keeper: Keeper,
}

/// How many scopes and watches there are.
static LISTENERS: AtomicUsize = AtomicUsize::new(0);
/// All captured allocations lie in `LOW..=HIGH`; other addresses in between are the system's.
static LOW: AtomicUsize = AtomicUsize::new(usize::MAX);
static HIGH: AtomicUsize = AtomicUsize::new(0);
static CAPTURED: Mutex<BTreeMap<usize, Entry>> = Mutex::new(BTreeMap::new());
static WATCHES: Mutex<Vec<(u64, Arc<dyn Provider>)>> = Mutex::new(Vec::new());

// None of these has a destructor, so they can be read at any time of a thread's life.
thread_local! {
    static SCOPE: Cell<Option<NonNull<Arc<dyn Provider>>>> = const { Cell::new(None) };
    static QUIET: Cell<bool> = const { Cell::new(false) };
    static IN_TABLE: Cell<bool> = const { Cell::new(false) };
}

// SAFETY: every block comes either from the system, and goes back there with the layout it was made with, or from a
// provider, which promises memory of that layout that is nobody else's until its keeper is dropped; the table says which.
// Nothing here unwinds: what could panic is caught in `captured`, and the rest does not.
unsafe impl GlobalAlloc for CapturingAllocator {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match captured(layout, false) {
            Some(start) => start.as_ptr(),
            // SAFETY: the caller's promise.
            None => unsafe { System.alloc(layout) },
        }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        match captured(layout, true) {
            Some(start) => start.as_ptr(), // Providers give zeros.
            // SAFETY: the caller's promise.
            None => unsafe { System.alloc_zeroed(layout) },
        }
    }

    #[inline]
    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        if !(may_be_captured(start) && release(start)) {
            // SAFETY: the pointer is not in the table, so the system made it, with this layout (the caller's promise).
            unsafe { System.dealloc(start, layout) };
        }
    }

    #[inline]
    unsafe fn realloc(&self, start: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let room = if may_be_captured(start) { room_of(start) } else { None };
        match room {
            Some(room) if size <= room => start,
            None if size < SMALLEST || LISTENERS.load(Ordering::Relaxed) == 0 => {
                // SAFETY: the system made the pointer, as in `dealloc`; the rest is the caller's promise.
                unsafe { System.realloc(start, layout, size) }
            }
            // SAFETY: the caller's promise.
            _ => unsafe { self.move_to(start, layout, size) },
        }
    }
}

impl CapturingAllocator {
    /// Allocates anew, copies and frees.
    ///
    /// # Safety
    /// As for [`GlobalAlloc::realloc`].
    unsafe fn move_to(self, start: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller of `realloc` promises that the size, rounded up to the alignment, does not overflow, and
        // that it is not zero; both blocks are live and apart, and as long as what is copied.
        unsafe {
            let new = self.alloc(Layout::from_size_align_unchecked(size, layout.align()));
            if !new.is_null() {
                std::ptr::copy_nonoverlapping(start, new, layout.size().min(size));
                self.dealloc(start, layout);
            }
            new
        }
    }
}

#[inline]
fn captured(layout: Layout, zeroed: bool) -> Option<NonNull<u8>> {
    if layout.size() < SMALLEST || LISTENERS.load(Ordering::Relaxed) == 0 {
        return None;
    }
    capture(layout, zeroed)
}

#[cold]
fn capture(layout: Layout, zeroed: bool) -> Option<NonNull<u8>> {
    let _quiet = Quiet::begin()?;
    if std::thread::panicking() {
        return None; // What a panic allocates, to say where it happened, may stay for the program's life.
    }
    let provided = catch_unwind(AssertUnwindSafe(|| provide(layout, zeroed))).ok().flatten();
    let Block { start, room, keeper } = provided?;
    let address = start.as_ptr().expose_provenance();
    debug_assert!(address.is_multiple_of(layout.align()) && room >= layout.size());
    table(|captured| {
        captured.insert(address, Entry { room, keeper });
        note_bounds(captured);
    });
    Some(start)
}

fn provide(layout: Layout, zeroed: bool) -> Option<Block> {
    if let Some(scope) = SCOPE.get() {
        // SAFETY: the pointer was made from a reference by `scope`, on this thread, which takes it back before that
        // reference ends.
        let provider = unsafe { scope.as_ref() };
        if let Some(block) = provider.provide(layout, zeroed) {
            return Some(block);
        }
    }
    let watches = lock(&WATCHES).clone();
    watches.iter().find_map(|(_, provider)| provider.provide(layout, zeroed))
}

#[inline]
fn may_be_captured(start: *mut u8) -> bool {
    // Relaxed will do: whoever got the pointer from another thread has also got the bounds that were noted before.
    let address = start.addr();
    address >= LOW.load(Ordering::Relaxed) && address <= HIGH.load(Ordering::Relaxed)
}

fn note_bounds(captured: &BTreeMap<usize, Entry>) {
    let first = captured.first_key_value().map_or(usize::MAX, |(address, _)| *address);
    let last = captured.last_key_value().map_or(0, |(address, _)| *address);
    LOW.store(first, Ordering::Relaxed);
    HIGH.store(last, Ordering::Relaxed);
}

#[cold]
fn release(start: *mut u8) -> bool {
    if IN_TABLE.get() {
        return false; // The table frees a node of its own.
    }
    let quiet = QUIET.replace(true);
    let entry = table(|captured| {
        let entry = captured.remove(&start.addr());
        note_bounds(captured);
        entry
    });
    let was_captured = entry.is_some();
    // Outside the table's lock: giving the memory back may wait for whoever is still filling it.
    let _panicked = catch_unwind(AssertUnwindSafe(|| drop(entry)));
    QUIET.set(quiet);
    was_captured
}

#[cold]
fn room_of(start: *mut u8) -> Option<usize> {
    if IN_TABLE.get() {
        return None;
    }
    table(|captured| captured.get(&start.addr()).map(|entry| entry.room))
}

/// What keeps the captured allocation that begins at `start`, if there is one.
pub(crate) fn find(start: *const u8) -> Option<Keeper> {
    table(|captured| captured.get(&start.addr()).map(|entry| Arc::clone(&entry.keeper)))
}

/// Whether the address lies in a captured allocation. System calls must not be given such memory: the kernel's own touches
/// are not served, so a `read` to it or a `write` from it reports a bad address.
#[must_use]
pub fn contains(address: *const u8) -> bool {
    let address = address.addr();
    if address < LOW.load(Ordering::Relaxed) {
        return false;
    }
    table(|captured| {
        let before = captured.range(..=address).next_back();
        before.is_some_and(|(first, entry)| address - first < entry.room)
    })
}

fn table<R>(act: impl FnOnce(&mut BTreeMap<usize, Entry>) -> R) -> R {
    let quiet = QUIET.replace(true);
    let mut captured = lock(&CAPTURED);
    IN_TABLE.set(true);
    let done = act(&mut captured);
    IN_TABLE.set(false);
    drop(captured);
    QUIET.set(quiet);
    done
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// This thread's allocations are not captured while it lives.
struct Quiet;

impl Quiet {
    fn begin() -> Option<Self> {
        (!QUIET.replace(true)).then(|| Self) // Not made, so not dropped, where it is another's.
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        QUIET.set(false);
    }
}

/// Whether the program's global allocator is [`CapturingAllocator`].
pub(crate) fn is_installed() -> bool {
    struct Asked(AtomicUsize);
    impl Provider for Asked {
        fn provide(&self, _: Layout, _: bool) -> Option<Block> {
            self.0.fetch_add(1, Ordering::Relaxed);
            None
        }
    }
    let asked = Arc::new(Asked(AtomicUsize::new(0)));
    let provider: Arc<dyn Provider> = asked.clone();
    scope(&provider, || drop(std::hint::black_box(Vec::<u8>::with_capacity(SMALLEST))));
    asked.0.load(Ordering::Relaxed) > 0
}

/// Runs `act` with none of this thread's allocations captured: for code whose memory is used to serve captured memory. Were
/// it captured itself, serving it would wait for itself.
pub(crate) fn quietly<R>(act: impl FnOnce() -> R) -> R {
    let _quiet = Quiet::begin(); // Nothing where the thread is quiet already, which then stays so.
    act()
}

/// Runs `act`; `provider` is asked first about each large allocation that this thread makes meanwhile.
pub(crate) fn scope<R>(provider: &Arc<dyn Provider>, act: impl FnOnce() -> R) -> R {
    struct Ended(Option<NonNull<Arc<dyn Provider>>>);
    impl Drop for Ended {
        fn drop(&mut self) {
            SCOPE.set(self.0);
            LISTENERS.fetch_sub(1, Ordering::Relaxed);
        }
    }
    LISTENERS.fetch_add(1, Ordering::Relaxed);
    let _ended = Ended(SCOPE.replace(Some(NonNull::from(provider))));
    act()
}

/// While it lives, a provider is asked about the large allocations of all threads.
#[derive(Debug)]
pub(crate) struct Watch(u64);

/// Begins a [`Watch`].
pub(crate) fn watch(provider: Arc<dyn Provider>) -> Watch {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let _quiet = Quiet::begin();
    let number = NEXT.fetch_add(1, Ordering::Relaxed) as u64;
    lock(&WATCHES).push((number, provider));
    LISTENERS.fetch_add(1, Ordering::Relaxed);
    Watch(number)
}

impl Drop for Watch {
    fn drop(&mut self) {
        let quiet = QUIET.replace(true);
        LISTENERS.fetch_sub(1, Ordering::Relaxed);
        let ended: Vec<_> = lock(&WATCHES).extract_if(.., |(number, _)| *number == self.0).collect();
        drop(ended); // Outside the lock: it may be the last of the provider.
        QUIET.set(quiet);
    }
}

#[cfg(test)]
mod tests;
