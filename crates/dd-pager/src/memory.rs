//! [`PagedMemory`]: address space whose pages are filled when they are touched, within a budget.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use dd_core::{Budget, Bytes, Holder, Reservation};

use crate::engine::{Engine, OnFatal, leave};
use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::packed::{KeptChunks, PackedUse, Tiers};
use crate::scratch::Scratch;
use crate::shares::Shares;
use crate::source::Source;
use crate::state::{Kind, Piece, State, Unit};
use crate::stats::{Plan, Stats};
use crate::sys::PAGE;

/// How paged memory is made.
#[derive(Clone)]
pub struct Options {
    /// Names it in the budget and in messages.
    pub name: String,
    /// How many bytes of ranges will be registered: no more memory than they need is taken.
    pub expected: Bytes,
    /// Address space for ranges; it costs nothing until used. At least `expected`, and a page more for each range.
    pub capacity: Bytes,
    /// The most memory to take; without it, all that the budget has available.
    pub memory: Option<Bytes>,
    /// Threads of the program that use the ranges at the same time.
    pub threads: usize,
    /// Where ranges are filled from packed tensors: what that takes, and how much is kept packed.
    pub packed: Option<PackedUse>,
    /// Do without moving pages, as on kernels before 6.8. Slower; for tests.
    pub copying: bool,
    /// Called when a reader waits for bytes that cannot be had; then the process ends with exit code 74. The reader can
    /// neither be told nor be given wrong bytes. It must not ask the memory anything, and has five seconds.
    pub on_fatal: OnFatal,
}

impl Options {
    /// For ranges of so many bytes together.
    #[must_use]
    pub fn new(name: impl Into<String>, expected: Bytes) -> Self {
        Self {
            name: name.into(),
            expected,
            capacity: Bytes(expected.0.saturating_mul(2).saturating_add(1 << 30)),
            memory: None,
            threads: std::thread::available_parallelism().map_or(4, usize::from),
            packed: None,
            copying: false,
            on_fatal: Arc::new(|_| {}),
        }
    }
}

/// Address space whose pages are filled when they are touched, and emptied again so that memory stays within a budget.
///
/// Ranges are registered with their [`Source`] and are absent at first. What they take together is fixed when this is
/// made: the frames, all of them reserved from the budget. A clone is another handle to the same memory, which goes
/// when the last handle and the last [`Region`] have gone.
///
/// The ranges are read by ordinary code. What they must not be given to is the kernel, as in `write(2)` from an address
/// in them: it reports a bad address where the page is absent.
#[derive(Clone)]
pub struct PagedMemory {
    owner: Arc<Owner>,
}

struct Owner {
    engine: Arc<Engine>,
    threads: Vec<JoinHandle<()>>,
    next: Mutex<Cursors>,
    regions: AtomicU64,
    layout: Layout,
    packed: Bytes,
    kept: Option<Arc<KeptChunks>>,
    tiers: Option<Tiers>,
    name: String,
    _memory: Reservation,
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.engine.stop();
        for thread in self.threads.drain(..) {
            // A thread that panicked has ended the process.
            drop(thread.join());
        }
    }
}

impl PagedMemory {
    /// Reserves memory from the budget and starts the threads that page. Nothing is read.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where the kernel does not allow it, [`Error::TooSmall`] where too little memory is
    /// available; what the budget or the system refuses.
    pub fn new(budget: &Budget, options: Options) -> Result<Self> {
        let memory = options.memory.map_or(budget.available(), |most| most.min(budget.available()));
        let shares = Shares::of(memory, &options)?;
        let (layout, holder) = (shares.layout, Holder::new(&*options.name));
        let reserved = budget.reserve(layout.memory(), &holder)?;
        let kept = shares.keep(budget, &holder)?;
        let capacity = options.capacity.max(options.expected).to_usize()?.max(layout.unit);
        let state = State::new(layout, options.threads);
        let engine = Arc::new(Engine::new(state, capacity, options.copying, options.on_fatal)?);
        let mut owner = Owner {
            engine: Arc::clone(&engine),
            threads: Vec::new(),
            next: Mutex::new(Cursors::default()),
            regions: AtomicU64::new(0),
            layout,
            packed: options.packed.map_or(Bytes::ZERO, |packed| packed.packed),
            kept,
            tiers: shares.tiers,
            name: options.name,
            _memory: reserved,
        };
        let server = Arc::clone(&engine);
        owner.threads.push(spawn("dd-page-fault".to_owned(), move || server.serve())?);
        for index in 0..layout.loaders {
            let scratch = Scratch::new(layout.unit, layout.decoding)?;
            let engine = Arc::clone(&engine);
            owner.threads.push(spawn(format!("dd-page-load-{index}"), move || engine.load(scratch))?);
        }
        Ok(Self { owner: Arc::new(owner) })
    }

    /// A range of `len` bytes, absent until touched, whose first byte lies `head` bytes into its first page.
    ///
    /// # Errors
    /// [`Error::Invalid`] where `head` is no less than a page, the address space is used up, or the range is writable and
    /// this kernel cannot move pages.
    pub fn register(&self, name: &str, len: usize, head: u16, source: Arc<dyn Source>) -> Result<Region> {
        let head = usize::from(head);
        let invalid = |expected: &str, found: String| Error::Invalid {
            what: format!("the range {name}"),
            expected: expected.to_owned(),
            found,
        };
        if source.is_writable() && !self.owner.engine.faults.moves() {
            // A copy could miss what is written while it is made.
            let moves =
                "a kernel that can move pages (6.8 or later, and not Options::copying) for a writable range";
            return Err(invalid(moves, "one that can only copy them".to_owned()));
        }
        if head >= PAGE {
            return Err(invalid("a head of less than a page", format!("{head} B")));
        }
        let most = self.owner.layout.decoding.map_or(PAGE, |decoding| decoding.filled().max(PAGE));
        if source.grain() > most {
            let found = format!("chunks that fill {} B", source.grain());
            return Err(invalid("what Options::packed was made for", found));
        }
        let pages = head.checked_add(len).and_then(|bytes| bytes.checked_next_multiple_of(PAGE));
        let pages = pages.ok_or_else(|| invalid("a size that fits memory", format!("{len} B")))?;
        let mut next = self.owner.next.lock().unwrap_or_else(PoisonError::into_inner);
        let mut state = self.owner.engine.state();
        let unit = self.owner.layout.unit;
        let grain = source.grain().clamp(PAGE, unit);
        let small = pages <= (unit / 8).max(2 * PAGE);
        let (start, end) = next
            .place(pages, small, grain, unit, &|unit| state.is_open(unit))
            .filter(|(_, end)| *end <= self.owner.engine.space.len())
            .ok_or_else(|| {
                let left = self.owner.engine.space.len().saturating_sub(next.top);
                invalid(
                    "an address space that holds it (Options::capacity)",
                    format!("{pages} B of {left} B left"),
                )
            })?;
        let region = self.owner.regions.fetch_add(1, Ordering::Relaxed);
        for (index, piece) in pieces(start..end, unit) {
            let at = (index * unit + piece.start - start) as u64;
            let piece = Piece { region, source: Arc::clone(&source), at, range: piece };
            let begins = at < unit as u64;
            let kind = if small {
                Kind::Small
            } else if begins {
                Kind::Begins
            } else {
                Kind::Goes
            };
            state.add_piece(index, piece, kind);
        }
        next.took(start..end, small, unit);
        if self.owner.kept.is_some() {
            state.idle.push(Arc::downgrade(&source));
        }
        drop(state);
        let units = if pages == 0 { 0..0 } else { start / unit..end.div_ceil(unit) };
        Ok(Region { memory: self.clone(), region, units, start: start + head, len })
    }

    /// Whether the address lies in this memory.
    #[must_use]
    pub fn contains(&self, address: *const u8) -> bool {
        let space = &self.owner.engine.space;
        address.addr().wrapping_sub(space.addr()) < space.len()
    }

    #[cfg(test)]
    pub(crate) fn moves(&self) -> bool {
        self.owner.engine.faults.moves()
    }

    /// Where sources are to keep the packed bytes that they read; nothing where none are to be kept.
    #[must_use]
    pub fn kept(&self) -> Option<Arc<KeptChunks>> {
        self.owner.kept.clone()
    }

    /// The name it was made with.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.owner.name
    }

    /// What was done so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let state = self.owner.engine.state();
        Stats { passes: state.order.passes(), ..state.stats }
    }

    /// What stays and what streams, as far as is known.
    #[must_use]
    pub fn plan(&self) -> Plan {
        let state = self.owner.engine.state();
        let layout = self.owner.layout;
        let bytes = |units: usize| Bytes::of(units.saturating_mul(layout.unit));
        let (used, resident) = state.counts();
        let kept = self.owner.kept.as_ref().map_or(Bytes::ZERO, |kept| kept.reserved());
        Plan {
            layout,
            registered: bytes(state.units.len()),
            used: bytes(used),
            resident: bytes(resident),
            streamed: bytes(used - resident),
            staging: bytes(layout.staging(used)),
            packed: self.owner.packed,
            kept,
            predicted_seconds_per_pass: self.owner.tiers.map(|tiers| tiers.seconds),
            memory: layout.memory() + kept,
            least: Layout::least_for(layout.decoding),
            learned: state.order.is_learned(),
        }
    }
}

impl std::fmt::Debug for PagedMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PagedMemory")
            .field("name", &self.owner.name)
            .field("layout", &self.owner.layout)
            .finish()
    }
}

/// A range of paged memory. Dropping it gives its pages back; nothing may touch it afterwards.
#[derive(Debug)]
pub struct Region {
    memory: PagedMemory,
    region: u64,
    units: Range<Unit>,
    start: usize, // In the address space.
    len: usize,
}

impl Region {
    /// The first byte.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.memory.owner.engine.space.at(self.start)
    }

    /// Bytes.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The memory it is part of.
    #[must_use]
    pub const fn memory(&self) -> &PagedMemory {
        &self.memory
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        self.memory.owner.engine.release(self.region, self.units.clone());
    }
}

/// Where the next ranges go. Large ones lie one after the other, in the order of registration; small ones share units of
/// their own, so that a unit in the middle of large ones tells what is being used.
#[derive(Debug, Default)]
struct Cursors {
    large: usize,
    /// What is left of the unit of small ranges.
    small: Range<usize>,
    /// The first byte that nobody has.
    top: usize,
}

impl Cursors {
    /// From where to where a range of whole pages goes; nothing where that overflows. `is_open` says whether a unit may get
    /// more.
    fn place(
        &self,
        pages: usize,
        small: bool,
        grain: usize,
        unit: usize,
        is_open: &dyn Fn(Unit) -> bool,
    ) -> Option<(usize, usize)> {
        let fresh = self.top.checked_next_multiple_of(unit)?;
        let goes_on = |start: usize| start.is_multiple_of(unit) || is_open(start / unit);
        if small {
            let fits = self.small.len() >= pages && goes_on(self.small.start);
            let start = if fits { self.small.start } else { fresh };
            return Some((start, start.checked_add(pages)?));
        }
        let start = if pages > grain { self.large.checked_next_multiple_of(grain)? } else { self.large };
        let end = start.checked_add(pages)?;
        // Behind the last large range there may be a unit of small ones.
        let room = if self.large.next_multiple_of(unit) >= fresh {
            usize::MAX
        } else {
            self.large.next_multiple_of(unit)
        };
        if goes_on(start) && end <= room {
            Some((start, end))
        } else {
            Some((fresh, fresh.checked_add(pages)?))
        }
    }

    /// Remembers that a range was put there.
    fn took(&mut self, range: Range<usize>, small: bool, unit: usize) {
        self.top = self.top.max(range.end);
        if !small {
            self.large = range.end;
            return;
        }
        let end = range.start / unit * unit + unit;
        self.top = self.top.max(end);
        self.small = range.end..end;
    }
}

/// The units that a stretch of the address space meets, and which bytes of each.
fn pieces(range: Range<usize>, unit: usize) -> impl Iterator<Item = (Unit, Range<usize>)> {
    let units = if range.is_empty() { 0..0 } else { range.start / unit..range.end.div_ceil(unit) };
    units.map(move |index| {
        let base = index * unit;
        (index, range.start.saturating_sub(base)..(range.end - base).min(unit))
    })
}

/// Starts a thread whose panic ends the process: readers that wait for it would wait for ever.
fn spawn(name: String, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    let guarded = move || {
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)).is_err() {
            leave(&Error::System {
                operation: "page",
                source: std::io::Error::other("a paging thread panicked"),
            });
        }
    };
    let started = std::thread::Builder::new().name(name).stack_size(512 << 10).spawn(guarded);
    started.map_err(|source| Error::System { operation: "start a paging thread", source })
}
