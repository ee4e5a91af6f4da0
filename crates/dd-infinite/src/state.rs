//! What the engine's one lock guards: cached and claimed windows, requests, and how much memory each store's tensors hold.

use std::collections::BTreeMap;
use std::sync::Arc;

use dd_core::{Backend, Budget, Bytes, Holder, Reservation};
use slab::Slab;
use smallvec::SmallVec;

use crate::def::Def;
use crate::error::Error;
use crate::plan::Plan;
use crate::region::{Index, Region};
use crate::store::TileStore;
use crate::window::TensorWindow;

/// What keeping a window takes beside its bytes: its entry, and its places in maps and queues.
pub(crate) const ENTRY_COST: u64 = 768;

/// What each dependent but the first adds to that.
pub(crate) const PENDING_COST: u64 = 192;

/// What a store with a large limit reserves ahead.
pub(crate) const SPARE: u64 = 256 << 10;

/// The bytes of a window, or of the part of it that is still needed.
#[derive(Debug)]
pub(crate) struct Data {
    pub(crate) region: Region,
    pub(crate) bytes: Vec<u8>,
}

/// Who has reserved a window's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Charge {
    /// The cache.
    Cache,
    /// A request, in its peak.
    Request(usize),
}

/// A window that is there, or that a request has claimed and will compute.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) tensor: usize,
    pub(crate) index: Index,
    pub(crate) data: Option<Arc<Data>>,
    /// How many requests need it to stay.
    pub(crate) pins: usize,
    pub(crate) charge: Charge,
    /// Requests that have it in their peaks too.
    pub(crate) sharers: SmallVec<[usize; 1]>,
    /// Requests and their nodes that wait for the data.
    pub(crate) waiters: SmallVec<[(usize, usize); 1]>,
    /// No longer in the map: freed when the last pin goes.
    pub(crate) orphan: bool,
    /// What it takes beside its bytes.
    pub(crate) overhead: u64,
    /// Given to a stream that will not come back: to be evicted first.
    pub(crate) passed: bool,
    pub(crate) used: u64,
    pub(crate) live_key: Option<u64>,
    pub(crate) dead_key: Option<u64>,
    /// Per dependent: which of the windows that need this one are not computed yet.
    pub(crate) pending: SmallVec<[Pending; 1]>,
}

impl Entry {
    /// What it takes.
    pub(crate) fn cost(&self) -> u64 {
        self.overhead + self.data.as_ref().map_or(0, |data| data.bytes.len() as u64)
    }

    /// Whether windows depend on it, and all of them are computed.
    pub(crate) fn is_unneeded(&self) -> bool {
        self.passed || (!self.pending.is_empty() && self.pending.iter().all(Pending::is_none))
    }
}

/// Windows of one dependent that need a window.
#[derive(Debug)]
pub(crate) enum Pending {
    /// Too many to keep count.
    Unknown,
    /// Of the index box, those whose bits are set.
    Some(Region, SmallVec<[u64; 1]>),
}

impl Pending {
    pub(crate) fn is_none(&self) -> bool {
        matches!(self, Self::Some(_, bits) if bits.iter().all(|word| *word == 0))
    }
}

/// Another tensor's argument that sees this one.
#[derive(Clone, Debug)]
pub(crate) struct Dependent {
    pub(crate) tensor: usize,
    pub(crate) arg: usize,
    pub(crate) window: TensorWindow,
    pub(crate) domain: Region,
}

/// A tensor's windows.
#[derive(Debug, Default)]
pub(crate) struct Windows {
    pub(crate) tiles: usize,
    pub(crate) map: BTreeMap<Index, usize>,
    pub(crate) dependents: Vec<Dependent>,
    pub(crate) cleanup: bool,
    /// While a region is gone through in pieces: the windows that the rest of it needs.
    pub(crate) focus: Option<Region>,
    /// The last region read, for prefetch.
    pub(crate) last: Option<Region>,
    /// Calls of the function, in windows.
    pub(crate) computed: u64,
}

/// The memory and the tensors of one store.
pub(crate) struct Tiles<B: Backend> {
    pub(crate) budget: Budget,
    pub(crate) holder: Holder,
    pub(crate) store: Option<Arc<dyn TileStore>>,
    pub(crate) room: Option<Reservation>,
    /// Whether the limit is large against [`SPARE`].
    pub(crate) is_roomy: bool,
    /// Of the room: cached windows and the peaks of requests.
    pub(crate) used: u64,
    /// Of that, what is cached.
    pub(crate) cached: u64,
    pub(crate) windows: usize,
    pub(crate) window_limit: usize,
    pub(crate) live: BTreeMap<u64, usize>,
    pub(crate) dead: BTreeMap<u64, usize>,
    /// Requests that hold memory.
    pub(crate) active: usize,
    pub(crate) tensors: BTreeMap<Arc<str>, Arc<Def<B>>>,
    pub(crate) prefetch: bool,
}

/// A request that holds memory and claims.
pub(crate) struct Request<B: Backend> {
    pub(crate) plan: Plan<B>,
    pub(crate) lookahead: usize,
    /// Every step before this one is done.
    pub(crate) low: usize,
    pub(crate) running: usize,
    pub(crate) failed: Option<Error>,
    pub(crate) replan: bool,
    pub(crate) allotted: SmallVec<[(usize, u64); 1]>,
    /// No caller: done by helpers alone, after everything else.
    pub(crate) background: bool,
    /// Windows of the top tensor are not to stay.
    pub(crate) passing: bool,
}

impl<B: Backend> Request<B> {
    pub(crate) fn is_ending(&self) -> bool {
        self.failed.is_some() || self.replan
    }

    pub(crate) fn is_done(&self) -> bool {
        self.low >= self.plan.order.len()
    }
}

/// All of it.
pub(crate) struct State<B: Backend> {
    pub(crate) entries: Slab<Box<Entry>>,
    pub(crate) tensors: Slab<Windows>,
    pub(crate) tiles: Slab<Tiles<B>>,
    pub(crate) requests: Slab<Box<Request<B>>>,
    pub(crate) clock: u64,
    pub(crate) helpers: usize,
}

impl<B: Backend> State<B> {
    pub(crate) const fn new() -> Self {
        Self {
            entries: Slab::new(),
            tensors: Slab::new(),
            tiles: Slab::new(),
            requests: Slab::new(),
            clock: 0,
            helpers: 0,
        }
    }

    pub(crate) fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// The entry of a window that is in the map.
    pub(crate) fn find(&self, tensor: usize, index: &[i64]) -> Option<usize> {
        self.tensors.get(tensor)?.map.get(index).copied()
    }
}

impl<B: Backend> Tiles<B> {
    /// Makes the room at least `used + more`, without asking anyone; says whether it could.
    pub(crate) fn grow(&mut self, more: u64) -> bool {
        let held = self.room.as_ref().map_or(0, |room| room.bytes().0);
        let missing = (self.used.saturating_add(more)).saturating_sub(held);
        if missing == 0 {
            return true;
        }
        // A little more where there is plenty, so that not every window asks. What stays unused goes with the next settling.
        let plenty = missing.saturating_add(SPARE);
        match &mut self.room {
            Some(room) => {
                (self.is_roomy && room.try_grow(Bytes(plenty)).is_ok())
                    || room.try_grow(Bytes(missing)).is_ok()
            }
            None => {
                self.room = self.budget.try_reserve(Bytes(missing), &self.holder).ok();
                self.room.is_some()
            }
        }
    }

    /// What this store could hold now, beside what requests have reserved: its cache may go.
    pub(crate) fn free(&self) -> u64 {
        let held = self.room.as_ref().map_or(0, |room| room.bytes().0);
        self.budget.available().0.saturating_add(held).saturating_sub(self.used.saturating_sub(self.cached))
    }

    /// Gives back what is not used.
    pub(crate) fn settle(&mut self) {
        if let Some(room) = &mut self.room {
            room.shrink_to(Bytes(self.used));
        }
    }
}
