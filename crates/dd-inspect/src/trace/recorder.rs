//! [`RecordingAllocator`]: a global allocator that can write down what one thread allocates and frees.
#![allow(unsafe_code, reason = "only a global allocator sees every allocation, and its trait is unsafe")]

use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

use dd_core::Bytes;

use super::Event;
use crate::error::{Error, Result};

/// Whether anybody records; read at every allocation.
static RECORDING: AtomicBool = AtomicBool::new(false);
static BOOK: Mutex<Option<Book>> = Mutex::new(None);
/// Held for a whole recording: there is one at a time.
static TURN: Mutex<()> = Mutex::new(());

thread_local! {
    /// Whether this thread's allocations are written down one by one.
    static MINE: Cell<bool> = const { Cell::new(false) };
    /// Whether this thread is in the recorder itself.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// What was allocated and freed while something ran.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recording {
    events: Vec<Event>,
    /// The most bytes that were alive at once of everything.
    peak: u64,
    /// Before each event, and after the last, since the event before: the most that was alive of what is no event, small
    /// allocations and those of other threads.
    beside: Vec<u64>,
}

impl Recording {
    /// Of events that were seen elsewhere.
    #[must_use]
    pub fn new(events: Vec<Event>) -> Self {
        let peak = peak_of(&events);
        Self { beside: vec![0; events.len() + 1], events, peak }
    }

    /// What happened, in order.
    #[must_use]
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// The most bytes that were alive at once, of all threads and sizes, above those alive when it began.
    #[must_use]
    pub const fn peak(&self) -> Bytes {
        Bytes(self.peak)
    }

    /// The most bytes alive at once of the events alone.
    #[must_use]
    pub fn modelled_peak(&self) -> Bytes {
        Bytes(peak_of(&self.events))
    }

    /// With what is freed between two allocations in the order in which it was allocated.
    pub(super) fn tidied(&self) -> Self {
        let number = |event: &Event| match event {
            Event::Allocate { .. } => usize::MAX,
            Event::Free { allocation } => *allocation,
        };
        let (mut events, mut beside) = (self.events.clone(), self.beside.clone());
        let is_free = |event: &Event| matches!(event, Event::Free { .. });
        let mut rest = beside.as_mut_slice();
        for run in events.chunk_by_mut(|a, b| is_free(a) && is_free(b)) {
            run.sort_by_key(number);
            let (mine, others) = rest.split_at_mut(run.len().min(rest.len()));
            let most = mine.iter().copied().max().unwrap_or_default();
            mine.fill(most);
            rest = others;
        }
        Self { events, beside, peak: self.peak }
    }

    /// What was alive beside the events, before each of them and after the last.
    pub(super) fn beside(&self) -> &[u64] {
        &self.beside
    }
}

fn peak_of(events: &[Event]) -> u64 {
    let mut sizes = Vec::new();
    let (mut live, mut peak) = (0u64, 0u64);
    for event in events {
        match event {
            Event::Allocate { bytes } => {
                sizes.push(*bytes);
                live = live.saturating_add(*bytes);
                peak = peak.max(live);
            }
            Event::Free { allocation } => {
                live = live.saturating_sub(sizes.get(*allocation).copied().unwrap_or_default());
            }
        }
    }
    peak
}

/// What is being written down.
struct Book {
    least: u64,
    recording: Recording,
    allocations: usize,
    /// Of each block that is alive: its allocation's number (or that it is none), and its bytes.
    alive: HashMap<usize, (Option<usize>, u64)>,
    live: u64,
    live_beside: u64,
    /// The most of that since the last event.
    most_beside: u64,
}

/// The program's allocator: another, whose calls are written down while [`record`] runs.
///
/// ```
/// use dd_inspect::trace::{RecordingAllocator, record};
///
/// #[global_allocator]
/// static ALLOCATOR: RecordingAllocator<std::alloc::System> = RecordingAllocator::new(std::alloc::System);
///
/// # fn main() -> dd_inspect::Result<()> {
/// let (sum, recording) = record(1024, || {
///     let block = vec![1u8; 100_000];
///     block.iter().map(|one| u64::from(*one)).sum::<u64>()
/// })?;
/// assert_eq!(sum, 100_000);
/// assert!(recording.peak().0 >= 100_000);
/// assert_eq!(recording.events().len(), 2);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct RecordingAllocator<A> {
    inner: A,
}

impl<A> RecordingAllocator<A> {
    /// Over another allocator.
    #[must_use]
    pub const fn new(inner: A) -> Self {
        Self { inner }
    }
}

/// Runs `work` and writes down what this thread allocates and when it is freed. What is smaller than `least` bytes, and what
/// other threads allocate meanwhile, is only added up. One recording runs at a time; others wait.
///
/// # Errors
/// [`Error::Trace`] where the program's global allocator is no [`RecordingAllocator`], or `work` records itself.
pub fn record<T>(least: u64, work: impl FnOnce() -> T) -> Result<(T, Recording)> {
    if MINE.get() {
        return Err(Error::Trace { problem: "a recording is running on this thread".to_owned() });
    }
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    begin(0);
    drop(std::hint::black_box(Vec::<u8>::with_capacity(64)));
    if end().events.is_empty() {
        let problem =
            "the program's global allocator is no RecordingAllocator; install it with #[global_allocator]";
        return Err(Error::Trace { problem: problem.to_owned() });
    }
    begin(least);
    let guard = Guard;
    let done = work();
    drop(guard);
    Ok((done, end()))
}

/// Ends a recording also where the work panics.
struct Guard;

impl Drop for Guard {
    fn drop(&mut self) {
        MINE.set(false);
        RECORDING.store(false, Relaxed);
    }
}

fn begin(least: u64) {
    let book = Book {
        least,
        recording: Recording { events: Vec::with_capacity(1 << 12), ..Recording::default() },
        allocations: 0,
        alive: HashMap::with_capacity(1 << 12),
        live: 0,
        live_beside: 0,
        most_beside: 0,
    };
    *open() = Some(book);
    MINE.set(true);
    RECORDING.store(true, Relaxed);
}

fn end() -> Recording {
    MINE.set(false);
    RECORDING.store(false, Relaxed);
    let book = open().take();
    let finish = |mut book: Book| {
        book.recording.beside.push(book.most_beside);
        book.recording
    };
    book.map(finish).unwrap_or_default()
}

fn open() -> MutexGuard<'static, Option<Book>> {
    BOOK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs `write` on the book, unless this thread is in it already: what the book itself allocates is not written down.
#[cold]
fn note(write: impl FnOnce(&mut Book)) {
    if INSIDE.replace(true) {
        return;
    }
    if let Some(book) = open().as_mut() {
        write(book);
    }
    INSIDE.set(false);
}

impl Book {
    fn allocated(&mut self, address: usize, bytes: u64, mine: bool) {
        let number = (mine && bytes >= self.least).then_some(self.allocations);
        if number.is_some() {
            self.allocations += 1;
            self.event(Event::Allocate { bytes });
        } else {
            self.live_beside += bytes;
            self.most_beside = self.most_beside.max(self.live_beside);
        }
        self.live += bytes;
        self.recording.peak = self.recording.peak.max(self.live);
        self.alive.insert(address, (number, bytes));
    }

    fn event(&mut self, event: Event) {
        self.recording.beside.push(self.most_beside);
        self.recording.events.push(event);
        self.most_beside = self.live_beside;
    }

    fn freed(&mut self, address: usize) {
        // What was allocated before the recording is not known to it.
        let Some((number, bytes)) = self.alive.remove(&address) else { return };
        self.live = self.live.saturating_sub(bytes);
        match number {
            Some(allocation) => self.event(Event::Free { allocation }),
            None => self.live_beside = self.live_beside.saturating_sub(bytes),
        }
    }
}

fn allocated(pointer: *mut u8, bytes: usize) {
    if RECORDING.load(Relaxed) && !pointer.is_null() {
        let mine = MINE.get();
        note(|book| book.allocated(pointer.addr(), bytes as u64, mine));
    }
}

fn freed(pointer: *mut u8) {
    if RECORDING.load(Relaxed) {
        note(|book| book.freed(pointer.addr()));
    }
}

// SAFETY: every call is passed on unchanged to the inner allocator; what is written down neither touches the memory nor
// unwinds, and the thread's flag keeps the recorder's own allocations from entering it again. The flags have no destructor,
// so they can be read at any time of a thread's life.
unsafe impl<A: GlobalAlloc> GlobalAlloc for RecordingAllocator<A> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise is passed on.
        let pointer = unsafe { self.inner.alloc(layout) };
        allocated(pointer, layout.size());
        pointer
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise is passed on.
        let pointer = unsafe { self.inner.alloc_zeroed(layout) };
        allocated(pointer, layout.size());
        pointer
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        freed(pointer);
        // SAFETY: the caller's promise is passed on.
        unsafe { self.inner.dealloc(pointer, layout) }
    }
}
