//! [`Memory`]: what captured allocations of a GGUF model are made of, and the two askers for it: [`Loading`] and
//! [`Repacking`].

use std::alloc::Layout;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use dd_core::{Bytes, Reservation};
use dd_pager::{PagedMemory, Region};

use super::backing::{Backing, FileRange};
use super::digest::{Digests, PAGE};
use super::error::Error;
use super::file::ModelFile;
use super::packs::Packs;
use super::spill::Spill;
use crate::capture::{self, Block, Provider, Watch};

/// The memory of one opened file: pager, file and spill.
#[derive(Debug)]
pub(crate) struct Memory {
    pub(crate) pager: PagedMemory,
    pub(crate) file: Arc<ModelFile>,
    pub(crate) path: PathBuf,
    pub(crate) spill: Arc<Spill>,
    pub(crate) packs: Packs,
    /// What sizes the file's tensors have: a buffer of zeros of one of them is probably for reading it to.
    pub(crate) sizes: BTreeSet<u64>,
    pub(crate) counts: Counts,
    /// Whoever loads joins the watch for repacked copies; it ends with the last allocation that was loaded.
    pub(crate) watch: Mutex<Weak<Watched>>,
    pub(crate) _tables: Reservation,
}

/// What was captured.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) captured: AtomicU64,
    pub(crate) live: AtomicUsize,
    pub(crate) live_bytes: AtomicU64,
    pub(crate) held: AtomicU64,
    pub(crate) read: AtomicU64,
    pub(crate) repacked: AtomicU64,
    pub(crate) refused: AtomicU64,
}

/// Keeps a captured allocation. Fields are dropped in this order: first the pages, so that nobody fills or stores them
/// any more, then what backs them.
#[derive(Debug)]
pub(crate) struct Captured {
    region: Region,
    pub(crate) backing: Arc<Backing>,
    memory: Arc<Memory>,
    _watched: Option<Arc<Watched>>, // While anything that was loaded lives, so does the watch for copies of it.
}

impl Drop for Captured {
    fn drop(&mut self) {
        let counts = &self.memory.counts;
        counts.live.fetch_sub(1, Ordering::Relaxed);
        counts.live_bytes.fetch_sub(self.region.len() as u64, Ordering::Relaxed);
    }
}

/// What an allocation may be a copy of.
type Copied = (FileRange, Arc<Digests>);

impl Memory {
    fn region(
        self: &Arc<Self>,
        what: &str,
        layout: Layout,
        (copied, may_hold): (Option<Copied>, bool),
        watched: Option<Arc<Watched>>,
    ) -> Result<(NonNull<u8>, Captured), Error> {
        let aligned = |head: &usize| head.is_multiple_of(layout.align());
        let head = copied.as_ref().map(|(file, _)| file.head()).filter(aligned).unwrap_or(0);
        let number = self.counts.captured.fetch_add(1, Ordering::Relaxed);
        let name = format!("{what} {number} ({} B) of {}", layout.size(), self.path.display());
        let spill = Arc::clone(&self.spill);
        let backing = Backing::new(name.clone(), (head, layout.size()), spill, copied);
        let backing = Arc::new(if may_hold { backing.awaiting() } else { backing });
        let source = Arc::clone(&backing);
        let small = u16::try_from(head).unwrap_or(0); // Below a page.
        let region = self.pager.register(&name, layout.size(), small, source)?;
        let start = NonNull::new(region.as_ptr()).ok_or(dd_pager::Error::Invalid {
            what: name,
            expected: "an address".to_owned(),
            found: "none".to_owned(),
        })?;
        self.counts.live.fetch_add(1, Ordering::Relaxed);
        self.counts.live_bytes.fetch_add(layout.size() as u64, Ordering::Relaxed);
        Ok((start, Captured { region, backing, memory: Arc::clone(self), _watched: watched }))
    }

    /// The watch for repacked copies, begun if there is none.
    pub(crate) fn watched(self: &Arc<Self>) -> Arc<Watched> {
        let mut watch = lock(&self.watch);
        if let Some(watched) = watch.upgrade() {
            return watched;
        }
        let repacking = Arc::new(Repacking { memory: Arc::clone(self) });
        let watched = Arc::new(Watched { _watch: capture::watch(repacking) });
        *watch = Arc::downgrade(&watched);
        watched
    }
}

/// A watch for repacked copies.
#[derive(Debug)]
pub(crate) struct Watched {
    _watch: Watch,
}

/// Takes every large allocation of a loader.
#[derive(Debug)]
pub(crate) struct Loading {
    memory: Arc<Memory>,
    watched: Arc<Watched>,
    state: Mutex<LoadState>,
}

#[derive(Debug, Default)]
struct LoadState {
    /// The buffer that the last tensor was read to, while it lives: the next allocation of its size is its copy.
    last: Option<(Weak<Captured>, Copied)>,
    refused: Option<Error>,
}

impl Loading {
    pub(crate) fn new(memory: &Arc<Memory>) -> Self {
        Self { memory: Arc::clone(memory), watched: memory.watched(), state: Mutex::default() }
    }

    /// Has the captured allocation that is exactly `buffer` hold the file's bytes from `offset` on without reading them;
    /// `false` where it is none, or was touched.
    pub(crate) fn hold(&self, buffer: &[u8], offset: u64) -> bool {
        let Some(captured) =
            capture::find(buffer.as_ptr()).and_then(|keeper| keeper.downcast::<Captured>().ok())
        else {
            return false;
        };
        let Some(end) = offset.checked_add(buffer.len() as u64) else { return false };
        let range = FileRange { file: Arc::clone(&self.memory.file), range: offset..end };
        let Some(digests) = captured.backing.hold(range.clone()) else { return false };
        self.memory.counts.held.fetch_add(1, Ordering::Relaxed);
        lock(&self.state).last = Some((Arc::downgrade(&captured), (range, digests)));
        true
    }

    /// Notes that a captured allocation was filled by reading the file's bytes from `offset` on.
    pub(crate) fn was_read(&self, buffer: &[u8], digests: Digests) {
        let Some(captured) =
            capture::find(buffer.as_ptr()).and_then(|keeper| keeper.downcast::<Captured>().ok())
        else {
            return;
        };
        self.memory.counts.read.fetch_add(1, Ordering::Relaxed);
        let range = FileRange { file: Arc::clone(&self.memory.file), range: digests.range() };
        lock(&self.state).last = Some((Arc::downgrade(&captured), (range, Arc::new(digests))));
    }

    /// Why an allocation could not be captured, the first time that this happened.
    pub(crate) fn take_refused(&self) -> Option<Error> {
        lock(&self.state).refused.take()
    }

    pub(crate) fn was_refused(&self) -> bool {
        lock(&self.state).refused.is_some()
    }

    fn copied(&self, layout: Layout, zeroed: bool) -> Option<Copied> {
        let mut state = lock(&self.state);
        let (buffer, (file, digests)) = state.last.as_ref()?;
        let is_copy =
            !zeroed && buffer.strong_count() > 0 && file.range.end - file.range.start == layout.size() as u64;
        let copied = is_copy.then(|| (file.clone(), Arc::clone(digests)));
        if is_copy {
            state.last = None;
        }
        copied
    }
}

impl Provider for Loading {
    fn provide(&self, layout: Layout, zeroed: bool) -> Option<Block> {
        if layout.align() > PAGE {
            return None;
        }
        let copied = self.copied(layout, zeroed);
        let may_hold = zeroed && self.memory.sizes.contains(&(layout.size() as u64));
        match self.memory.region("allocation", layout, (copied, may_hold), Some(Arc::clone(&self.watched))) {
            Ok((start, captured)) => Some(Block { start, room: layout.size(), keeper: Arc::new(captured) }),
            Err(error) => {
                self.memory.counts.refused.fetch_add(1, Ordering::Relaxed);
                lock(&self.state).refused.get_or_insert(error);
                None
            }
        }
    }
}

/// Takes the repacked copies that candle makes of the file's tensors, on whatever thread; and whatever else has exactly
/// the layout of one, which is then paged needlessly, but rightly.
#[derive(Debug)]
pub(crate) struct Repacking {
    memory: Arc<Memory>,
}

impl Provider for Repacking {
    fn provide(&self, layout: Layout, zeroed: bool) -> Option<Block> {
        if zeroed || !self.memory.packs.expects(layout) {
            return None;
        }
        match self.memory.region("repacked copy", layout, (None, false), None) {
            Ok((start, captured)) => {
                self.memory.counts.repacked.fetch_add(1, Ordering::Relaxed);
                Some(Block { start, room: layout.size(), keeper: Arc::new(captured) })
            }
            Err(error) => {
                self.memory.counts.refused.fetch_add(1, Ordering::Relaxed);
                tracing::error!(%error, bytes = layout.size(), "a repacked copy of weights is not within the budget");
                None
            }
        }
    }
}

/// What is captured now, and what was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CaptureStats {
    /// Allocations that are paged now.
    pub live: usize,
    /// Their bytes.
    pub live_bytes: Bytes,
    /// Allocations that were ever captured.
    pub captured: u64,
    /// Buffers that a tensor was to be read to and that got the file's range instead.
    pub held: u64,
    /// Buffers that a tensor was really read to, because they had been touched before.
    pub read: u64,
    /// Repacked copies among those captured.
    pub repacked: u64,
    /// Allocations that could not be captured: memory beyond the budget.
    pub refused: u64,
    /// Bytes written to the spill file.
    pub spilled: Bytes,
}

impl Memory {
    pub(crate) fn capture_stats(&self) -> CaptureStats {
        let Counts { captured, live, live_bytes, held, read, repacked, refused } = &self.counts;
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        CaptureStats {
            live: live.load(Ordering::Relaxed),
            live_bytes: Bytes(get(live_bytes)),
            captured: get(captured),
            held: get(held),
            read: get(read),
            repacked: get(repacked),
            refused: get(refused),
            spilled: self.spill.written(),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
