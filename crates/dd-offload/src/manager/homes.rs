//! Where parts rest when they are not in the tier that computes, and how they get there.
//!
//! Unchanged weights have their home in the user's own file, so leaving costs nothing. Weights that are in no file are
//! stored away first: in compressed memory where that saves something, else in the spill store. Weights that compute on
//! a device keep a copy in host memory where there is room, since that is the nearest place to load them from again.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use dd_core::{
    Backend, Budget, Bytes, Error as CoreError, Event, Holder, Reservation, TensorDesc, TensorStore, Tier,
};

use super::Inner;
use super::state::{Free, Home, Near, State};
use crate::config::MemoryConfig;
use crate::error::{Error, Result};
use crate::store::{CompressedStore, SpillConfig, SpillStore};

/// The piece in which a part is copied from one place to another.
const PIECE: usize = SpillStore::CHUNK;

/// The share of its size below which packed bytes are worth their memory.
const WORTHWHILE: f64 = 0.9;

/// The places besides the tier that computes and the user's files.
pub(super) struct Stores {
    /// Room for copies in host memory; only where a device computes.
    host: Option<(Budget, Holder)>,
    /// Where compressed weights are accounted, and the zstd level; only where there are any.
    packed: Option<(Budget, i32)>,
    /// Made when first something is stored: finding out what zstd takes has a price of its own.
    compressed: OnceLock<CompressedStore>,
    packed_limit: Bytes,
    spill: Mutex<Option<Arc<SpillStore>>>,
    /// Memory for the pieces that are under way; reserved when first something is stored away.
    scratch: Mutex<Option<Reservation>>,
    next_key: AtomicU64,
    /// What the backend takes to move bytes.
    transfer: Mutex<Option<Reservation>>,
}

/// Where a part went.
enum Place<B: Backend> {
    Home(Home),
    Host(Box<Free<B>>),
    Kept,
}

impl Stores {
    pub(super) fn new(config: &MemoryConfig, budget: &Budget, near: Tier) -> Self {
        let on_device = matches!(near, Tier::Device(_)) && *config.enable_cpu_offload();
        let host_limit = config.tier_limit(Tier::Host).unwrap_or(Bytes::MAX);
        // Compressed weights must not crowd out those in use: a quarter, unless somebody knows better.
        let packed_limit = config.tier_limit(Tier::Compressed).unwrap_or(Bytes(budget.limit().0 / 4));
        let compresses = *config.enable_cpu_offload() && *config.compress_disk_cache();
        Self {
            host: on_device.then(|| (budget.child("host", host_limit), Holder::new("host copies"))),
            packed: compresses.then(|| (budget.child("packed", packed_limit), *config.compression_level())),
            compressed: OnceLock::new(),
            packed_limit,
            spill: Mutex::default(),
            scratch: Mutex::default(),
            transfer: Mutex::default(),
            next_key: AtomicU64::new(0),
        }
    }

    /// What copying and packing one part takes, besides its source and its target.
    fn working_bytes(&self) -> Result<Bytes> {
        Ok(self.compressed()?.map_or(Bytes::of(PIECE), CompressedStore::working_bytes))
    }

    fn compressed(&self) -> Result<Option<&CompressedStore>> {
        let Some((budget, level)) = &self.packed else { return Ok(None) };
        if self.compressed.get().is_none() {
            let made = CompressedStore::new(budget, *level)?;
            return Ok(Some(self.compressed.get_or_init(|| made)));
        }
        Ok(self.compressed.get())
    }

    pub(super) const fn has_host(&self) -> bool {
        self.host.is_some()
    }

    pub(super) const fn has_compressed(&self) -> bool {
        self.packed.is_some()
    }

    pub(super) fn host_usage(&self) -> Option<(Bytes, Bytes)> {
        self.host.as_ref().map(|(budget, _)| (budget.usage().used, budget.limit()))
    }

    pub(super) fn compressed_usage(&self) -> Option<(Bytes, Bytes)> {
        self.packed.as_ref().map(|(budget, _)| (budget.usage().used, self.packed_limit))
    }

    pub(super) fn spilled(&self) -> Bytes {
        self.open_spill().map_or(Bytes::ZERO, |store| store.used())
    }

    fn open_spill(&self) -> Option<Arc<SpillStore>> {
        self.spill.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn spill(&self, config: &MemoryConfig) -> Result<Arc<SpillStore>> {
        let mut spill = self.spill.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(store) = &*spill {
            return Ok(Arc::clone(store));
        }
        let store = Arc::new(SpillStore::open(&SpillConfig {
            directory: config.spill_directory().clone(),
            limit: *config.max_disk_usage(),
            compression: config.compress_disk_cache().then_some(*config.compression_level()),
        })?);
        *spill = Some(Arc::clone(&store));
        Ok(store)
    }

    /// Removes what is stored for a part, wherever that is.
    pub(super) fn forget(&self, home: Option<&Home>) {
        let removed = match home {
            Some(Home::Compressed(key)) => self.compressed.get().map(|store| store.remove(key)),
            Some(Home::Spill(key)) => self.open_spill().map(|store| store.remove(key)),
            Some(Home::File { .. }) | None => None,
        };
        if let Some(Err(error)) = removed {
            tracing::warn!(%error, "could not remove a stored parameter");
        }
    }

    /// A key under which nothing was ever stored.
    fn new_key(&self, name: &str) -> Arc<str> {
        format!("{name}#{}", self.next_key.fetch_add(1, Ordering::Relaxed)).into()
    }

    /// Gives back the spilled files and the compressed memory.
    pub(super) fn close(&self) {
        let spill = self.spill.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(spill);
        *self.scratch.lock().unwrap_or_else(PoisonError::into_inner) = None;
        *self.transfer.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// A part's name in messages and in the names of stored files.
pub(super) fn full_name(unit: &str, part: &str) -> String {
    format!("{unit}/{part}")
}

impl<B: Backend> Inner<B> {
    /// Reserves, once, the memory through which parts are copied when they are stored away.
    pub(super) fn reserve_scratch(&self) -> Result<()> {
        let mut scratch = self.stores.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        if scratch.is_none() {
            drop(scratch); // Whoever is asked to give back may come here too.
            let room = self.budget.reserve(self.stores.working_bytes()?, &Holder::new("transfer scratch"))?;
            scratch = self.stores.scratch.lock().unwrap_or_else(PoisonError::into_inner);
            scratch.get_or_insert(room);
        }
        Ok(())
    }

    /// Reserves, once, what the backend takes to move bytes.
    pub(super) fn reserve_transfer(&self) -> Result<()> {
        let bytes = self.backend.transfer_memory();
        let reserved = self.stores.transfer.lock().unwrap_or_else(PoisonError::into_inner).is_some();
        if bytes > Bytes::ZERO && !reserved {
            let room = self.budget.reserve(bytes, &Holder::new("pinned staging"))?;
            self.stores.transfer.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(room);
        }
        Ok(())
    }

    /// Makes a filled part of an idle unit leave the tier that computes; says how many bytes that freed.
    pub(super) fn leave(
        &self,
        mut state: MutexGuard<'_, State<B>>,
        (unit, number): (usize, usize),
    ) -> Result<Bytes> {
        let Some(own) = state.units.get_mut(unit) else { return Ok(Bytes::ZERO) };
        let name = Arc::clone(&own.name);
        let Some(part) = own.parts.get_mut(number) else { return Ok(Bytes::ZERO) };
        let free = match std::mem::replace(&mut part.near, Near::Leaving) {
            Near::Filled(free) => free,
            other => {
                part.near = other;
                return Ok(Bytes::ZERO);
            }
        };
        let (bytes, full) = (part.desc.bytes(), full_name(&name, &part.name));
        let copied = part.host.is_some();
        let home = part.home.clone();
        if copied || home.is_some() && self.stores.host.is_none() {
            part.near = Near::Absent;
            let to = part.tier(self.near);
            state.set_free(&self.backend, *free);
            state.stats.offloads += 1;
            drop(state);
            self.tell(&Event::Moved { unit: &name, from: self.near, to, bytes, took: Duration::ZERO });
            return Ok(bytes);
        }
        state.moving += 1;
        drop(state);
        let started = std::time::Instant::now();
        let span = tracing::debug_span!("store away", part = %full).entered();
        let placed = self.store_away(&full, &free.tensor, &free.desc, home.as_ref());
        drop(span);
        let mut state = self.lock();
        state.moving -= 1;
        let result = self.settle(&mut state, (unit, number), free, placed);
        state.poke();
        drop(state);
        self.changed.notify_all();
        self.work.notify_one();
        let to = result?;
        self.tell(&Event::Moved { unit: &name, from: self.near, to, bytes, took: started.elapsed() });
        Ok(bytes)
    }

    /// Records where a part went, or that it could not leave.
    fn settle(
        &self,
        state: &mut State<B>,
        (unit, number): (usize, usize),
        free: Box<Free<B>>,
        placed: Result<Place<B>>,
    ) -> Result<Tier> {
        let Some(part) = state.part(unit, number) else { return Ok(self.near) };
        let place = match placed {
            Ok(place) => place,
            Err(error) => {
                part.near = Near::Filled(free);
                part.stuck = true;
                return Err(error);
            }
        };
        part.near = Near::Absent;
        part.stuck = false;
        match place {
            Place::Home(home) => part.home = Some(home),
            Place::Host(copy) => part.host = Some(*copy),
            Place::Kept => {}
        }
        let tier = part.tier(self.near);
        state.set_free(&self.backend, *free);
        state.stats.offloads += 1;
        Ok(tier)
    }

    /// Stores the values of a part in the nearest place that takes them.
    fn store_away(
        &self,
        name: &str,
        tensor: &B::Tensor,
        desc: &TensorDesc,
        home: Option<&Home>,
    ) -> Result<Place<B>> {
        match self.copy_to_host(tensor, desc) {
            Ok(Some(copy)) => return Ok(Place::Host(Box::new(copy))),
            Ok(None) => {}
            Err(error) if error.is_out_of_memory() => {}
            Err(error) => return Err(error),
        }
        match home {
            Some(Home::File { .. }) if !*self.config.enable_disk_offload() => return Err(self.nowhere(desc)),
            Some(_) => return Ok(Place::Kept),
            None => {}
        }
        self.put(name, desc, &mut |offset, piece| Ok(self.backend.read(tensor, offset, piece)?))
            .map(Place::Home)
    }

    /// Stores values that are in no file: compressed in memory where that fits, else on disk.
    pub(super) fn put(
        &self,
        name: &str,
        desc: &TensorDesc,
        read: &mut dyn FnMut(usize, &mut [u8]) -> Result<()>,
    ) -> Result<Home> {
        let key = self.stores.new_key(name);
        // Only into room that is there: asking others to give back would only move the trouble.
        let room = self.budget.available().min(self.stores.packed_limit);
        if let Some(store) = self.stores.compressed()?.filter(|store| store.used() + desc.bytes() <= room) {
            let before = store.used();
            match store.write_from(&key, desc, read) {
                Ok(()) => {
                    let packed = store.used().saturating_sub(before);
                    if packed.fraction_of(desc.bytes()) <= WORTHWHILE || !*self.config.enable_disk_offload() {
                        return Ok(Home::Compressed(key));
                    }
                    store.remove(&key)?;
                }
                Err(error) if error.is_out_of_memory() => {} // Somebody else was quicker to take the room.
                Err(error) => return Err(error),
            }
        }
        if !*self.config.enable_disk_offload() {
            return Err(self.nowhere(desc));
        }
        self.stores.spill(&self.config)?.write_from(&key, desc, read)?;
        Ok(Home::Spill(key))
    }

    fn nowhere(&self, desc: &TensorDesc) -> Error {
        let place = "the tiers below (disk offload is switched off)".to_owned();
        let available = self.budget.available();
        CoreError::OutOfMemory { place, needed: desc.bytes(), available }.into()
    }

    /// A copy in host memory, if there are such copies and there is room for one.
    pub(super) fn copy_to_host(&self, tensor: &B::Tensor, desc: &TensorDesc) -> Result<Option<Free<B>>> {
        let Some((budget, holder)) = &self.stores.host else { return Ok(None) };
        if self.host_pressed() {
            return Ok(None);
        }
        let room = budget.try_reserve(desc.bytes(), holder)?;
        let mut copy = self.backend.allocate(desc, Tier::Host)?;
        self.copy(tensor, &mut copy, desc)?;
        Ok(Some(Free { tensor: copy, desc: desc.clone(), room }))
    }

    /// Copies one tensor's values into another, piece by piece.
    pub(super) fn copy(&self, from: &B::Tensor, to: &mut B::Tensor, desc: &TensorDesc) -> Result<()> {
        let len = desc.len_in_memory()?;
        let mut piece = vec![0; len.min(PIECE)];
        for offset in (0..len).step_by(PIECE) {
            let piece = piece.get_mut(..PIECE.min(len - offset)).unwrap_or_default();
            self.backend.read(from, offset, piece)?;
            self.backend.write(to, offset, piece)?;
        }
        Ok(())
    }

    /// Fills new storage from compressed memory or the spill store.
    pub(super) fn fetch(&self, home: &Home, to: &mut B::Tensor) -> Result<()> {
        let mut write = |offset: usize, piece: &[u8]| Ok(self.backend.write(to, offset, piece)?);
        match home {
            Home::Compressed(key) => match self.stores.compressed.get() {
                Some(store) => store.read_chunks(key, &mut write),
                None => Err(Error::Stopped { what: "reading compressed weights".to_owned() }),
            },
            Home::Spill(key) => self.stores.spill(&self.config)?.read_chunks(key, &mut write),
            Home::File { .. } => {
                Err(Error::Stopped { what: "reading a file outside of the read engine".to_owned() })
            }
        }
    }

    /// Drops host copies whose values are elsewhere too; the others go to compressed memory or disk. For when host
    /// memory is short. Says how many bytes that freed.
    pub(super) fn demote_host(&self, at_most: usize) -> Result<Bytes> {
        let mut freed = Bytes::ZERO;
        for _ in 0..at_most {
            let mut state = self.lock();
            let keep_files = !*self.config.enable_disk_offload(); // Then a file is no place to rest.
            let Some((unit, number)) = state.host_copy_to_drop(keep_files) else { break };
            let name = state.units.get(unit).map(|u| Arc::clone(&u.name)).unwrap_or_else(|| "".into());
            let Some(part) = state.part(unit, number) else { break };
            let Some(copy) = part.host.take() else { break };
            let (bytes, full, has_home) =
                (copy.desc.bytes(), full_name(&name, &part.name), part.home.is_some());
            if !has_home && !part.is_filled() {
                part.near = Near::Leaving; // Nobody may fill it from a copy that is on its way out.
                state.moving += 1;
                drop(state);
                let stored = self.put(&full, &copy.desc, &mut |offset, piece| {
                    Ok(self.backend.read(&copy.tensor, offset, piece)?)
                });
                state = self.lock();
                state.moving -= 1;
                state.poke();
                let Some(part) = state.part(unit, number) else { break };
                part.near = Near::Absent;
                match stored {
                    Ok(home) => part.home = Some(home),
                    Err(error) => {
                        part.host = Some(copy);
                        drop(state);
                        self.work.notify_one(); // It can be filled again.
                        self.changed.notify_all();
                        return Err(error);
                    }
                }
                drop(state);
                self.changed.notify_all();
            }
            freed += bytes;
        }
        self.work.notify_one();
        Ok(freed)
    }
}

impl<B: Backend> State<B> {
    /// The host copy that is needed last.
    fn host_copy_to_drop(&self, keep_files: bool) -> Option<(usize, usize)> {
        let parts = self.units.iter().enumerate().flat_map(|(unit, own)| {
            let idle = own.is_idle();
            own.parts.iter().enumerate().map(move |(number, part)| (unit, number, part, idle))
        });
        let copies = parts.filter(|(_, _, part, idle)| {
            part.host.is_some()
                && !(keep_files && !part.is_filled() && matches!(part.home, Some(Home::File { .. })))
                && (*idle || part.is_filled())
                && !matches!(part.near, Near::Filling | Near::Leaving)
        });
        copies.max_by_key(|(unit, ..)| self.next_use(*unit)).map(|(unit, number, ..)| (unit, number))
    }
}
