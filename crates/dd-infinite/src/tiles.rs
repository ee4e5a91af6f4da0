//! [`Tiles`]: a place for infinite tensors: their ids, their memory, and the store behind it.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use dd_core::{Backend, Budget, Bytes, Holder, Reclaim};

use crate::def::{Context, Function, FunctionError};
use crate::engine::{Engine, Shared};
use crate::error::{Error, Result};
use crate::spec::TensorSpec;
use crate::state::{Dependent, State, Tiles as Kept, Windows};
use crate::store::{Manifest, TileStore};
use crate::tensor::InfiniteTensor;

/// A store's tensors and the memory that they share. Clones are the same. Its tensors stay until they are
/// [removed](Self::remove), or until the engine and everything made from it is gone.
pub struct Tiles<B: Backend> {
    shared: Arc<Shared<B>>,
    id: usize,
    _reclaimer: Arc<Reclaimer<B>>,
}

impl<B: Backend> Clone for Tiles<B> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), id: self.id, _reclaimer: Arc::clone(&self._reclaimer) }
    }
}

/// Gives cached windows back when others need the memory.
struct Reclaimer<B: Backend> {
    shared: Weak<Shared<B>>,
    tiles: usize,
}

impl<B: Backend> Reclaim for Reclaimer<B> {
    fn reclaim(&self, wanted: Bytes) -> Bytes {
        let Some(shared) = self.shared.upgrade() else { return Bytes::ZERO };
        let mut state = shared.lock();
        let mut given = 0u64;
        while given < wanted.0 {
            match state.evict_one(self.tiles) {
                0 => break,
                bytes => given = given.saturating_add(bytes),
            }
        }
        if let Some(store) = state.tiles.get_mut(self.tiles) {
            let held = store.room.as_ref().map_or(0, |room| room.bytes().0);
            given = given.max(held.saturating_sub(store.used));
            store.settle();
        }
        drop(state);
        Bytes(given)
    }
}

/// What a store's tensors hold and have done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TilesUsage {
    /// Windows in the cache.
    pub windows: usize,
    /// What they take, with their entries.
    pub cached: Bytes,
    /// What is reserved: the cache, and the peaks of the requests that run.
    pub reserved: Bytes,
    /// Windows computed so far, by tensor.
    pub computed: BTreeMap<String, u64>,
}

impl<B: Backend> Tiles<B> {
    /// A place for tensors whose memory comes from `budget`: give it a child of its own to bound it. Windows are kept in
    /// memory alone.
    #[must_use]
    pub fn in_memory(engine: &Engine<B>, budget: Budget) -> Self {
        Self::make(engine, budget, None)
    }

    /// The same; windows also go to a store, and come from there.
    #[must_use]
    pub fn with_store(engine: &Engine<B>, budget: Budget, store: Arc<dyn TileStore>) -> Self {
        Self::make(engine, budget, Some(store))
    }

    fn make(engine: &Engine<B>, budget: Budget, store: Option<Arc<dyn TileStore>>) -> Self {
        let shared = Arc::clone(&engine.shared);
        let kept = Kept {
            holder: Holder::new("tiles"),
            store,
            room: None,
            is_roomy: budget.limit() >= Bytes::mib(64),
            used: 0,
            cached: 0,
            windows: 0,
            window_limit: usize::MAX,
            live: BTreeMap::new(),
            dead: BTreeMap::new(),
            active: 0,
            tensors: BTreeMap::new(),
            prefetch: false,
            budget: budget.clone(),
        };
        let id = shared.lock().tiles.insert(kept);
        let reclaimer = Arc::new(Reclaimer { shared: Arc::downgrade(&shared), tiles: id });
        let dynamic: Arc<dyn Reclaim> = Arc::clone(&reclaimer) as Arc<dyn Reclaim>;
        budget.register(0, Arc::downgrade(&dynamic));
        Self { shared, id, _reclaimer: reclaimer }
    }

    /// The most windows that the cache keeps, whatever their bytes.
    pub fn set_window_limit(&self, windows: usize) {
        let mut state = self.shared.lock();
        if let Some(store) = state.tiles.get_mut(self.id) {
            store.window_limit = windows;
        }
        while state.tiles.get(self.id).is_some_and(|store| store.windows > windows) {
            if state.evict_one(self.id) == 0 {
                break;
            }
        }
    }

    /// Whether reads are followed by work ahead: the region next in the direction of movement, at low priority, in
    /// memory that nobody else needs. It takes an engine of more than one thread.
    pub fn set_prefetch(&self, on: bool) {
        if let Some(store) = self.shared.lock().tiles.get_mut(self.id) {
            store.prefetch = on;
        }
    }

    /// Makes a tensor, or opens the one of this id, if it has the same configuration. `function` gives one window: it gets
    /// the arguments' parts in the order in which they were added.
    ///
    /// # Errors
    /// [`Error::Spec`] for what cannot be used; [`Error::Conflict`] naming the field in which the one that is there differs;
    /// what the store says.
    pub fn get_or_create<F>(&self, spec: TensorSpec<B>, function: F) -> Result<InfiniteTensor<B>>
    where
        F: Fn(&Context, &[B::Tensor]) -> Result<B::Tensor, FunctionError> + Send + Sync + 'static,
    {
        let each = move |contexts: &[Context], args: &[Vec<B::Tensor>]| {
            contexts.iter().zip(args).map(|(context, args)| function(context, args)).collect()
        };
        self.get_or_create_batched(spec, each)
    }

    /// The same with a function of several windows: up to the batch size of contexts and their arguments come in, as
    /// many outputs go out, in the same order.
    ///
    /// # Errors
    /// As [`get_or_create`](Self::get_or_create).
    pub fn get_or_create_batched<F>(&self, spec: TensorSpec<B>, function: F) -> Result<InfiniteTensor<B>>
    where
        F: Fn(&[Context], &[Vec<B::Tensor>]) -> Result<Vec<B::Tensor>, FunctionError> + Send + Sync + 'static,
    {
        spec.check(&self.shared.backend)?;
        for (upstream, _) in &spec.args {
            if !Arc::ptr_eq(upstream.shared(), &self.shared) {
                let reason = format!("{:?} belongs to another engine; make both on one", upstream.id());
                return Err(Error::Spec { tensor: spec.id.clone(), field: "args", reason });
            }
        }
        let manifest = spec.manifest()?;
        if let Some(there) =
            self.shared.lock().tiles.get(self.id).and_then(|store| store.tensors.get(spec.id.as_str()))
        {
            let there = Arc::clone(there);
            return self.open(&spec, there, &manifest);
        }
        let store = self.shared.lock().tiles.get(self.id).and_then(|store| store.store.clone());
        if let Some(store) = &store
            && let Some(stored) = store.create(&spec.id, &manifest)?
        {
            stored.check_same(&manifest, &spec.id)?;
        }
        Ok(self.insert(spec, Arc::new(function), store, manifest))
    }

    /// Makes a tensor under an id of its own that no store remembers.
    ///
    /// # Errors
    /// As [`get_or_create`](Self::get_or_create); [`Error::Spec`] where the id is taken.
    pub fn create<F>(&self, spec: TensorSpec<B>, function: F) -> Result<InfiniteTensor<B>>
    where
        F: Fn(&Context, &[B::Tensor]) -> Result<B::Tensor, FunctionError> + Send + Sync + 'static,
    {
        let taken = {
            let state = self.shared.lock();
            state.tiles.get(self.id).is_some_and(|store| store.tensors.contains_key(spec.id.as_str()))
        };
        if taken {
            let reason = "is taken; open it with get_or_create, or choose another".to_owned();
            return Err(Error::Spec { tensor: spec.id.clone(), field: "id", reason });
        }
        self.get_or_create(spec.persist(false), function)
    }

    fn open(
        &self,
        spec: &TensorSpec<B>,
        def: Arc<crate::def::Def<B>>,
        manifest: &Manifest,
    ) -> Result<InfiniteTensor<B>> {
        def.manifest.check_same(manifest, &spec.id)?;
        Ok(InfiniteTensor::new(Arc::clone(&self.shared), def))
    }

    fn insert(
        &self,
        spec: TensorSpec<B>,
        function: Function<B>,
        store: Option<Arc<dyn TileStore>>,
        manifest: Manifest,
    ) -> InfiniteTensor<B> {
        let mut state = self.shared.lock();
        if let Some(there) = state.tiles.get(self.id).and_then(|store| store.tensors.get(spec.id.as_str())) {
            return InfiniteTensor::new(Arc::clone(&self.shared), Arc::clone(there)); // Another thread made it just now.
        }
        let slot = state.tensors.insert(Windows { tiles: self.id, ..Windows::default() });
        let def = Arc::new(spec.build((slot, self.id), function, store, manifest));
        for (arg, upstream) in def.args.iter().enumerate() {
            let dependent =
                Dependent { tensor: slot, arg, window: upstream.window.clone(), domain: def.domain.clone() };
            state.add_dependent(upstream.def.slot, dependent);
        }
        if let Some(kept) = state.tiles.get_mut(self.id) {
            kept.tensors.insert(Arc::clone(&def.id), Arc::clone(&def));
        }
        drop(state);
        InfiniteTensor::new(Arc::clone(&self.shared), def)
    }

    /// Forgets a tensor and its cached windows; what a store holds of it stays. Handles to it, and tensors made of it, go on
    /// working. Says whether there was one.
    pub fn remove(&self, id: &str) -> bool {
        let mut state = self.shared.lock();
        let removed = state.tiles.get_mut(self.id).and_then(|store| store.tensors.remove(id));
        if let Some(def) = &removed {
            state.clear_tensor(def.slot);
            state.settle(self.id);
        }
        drop(state);
        removed.is_some()
    }

    /// Forgets all cached windows that no request uses. What a store holds stays.
    pub fn clear_cache(&self) {
        let mut state = self.shared.lock();
        while state.evict_one(self.id) > 0 {}
        state.settle(self.id);
    }

    /// What is held now, and how often functions were called so far.
    #[must_use]
    pub fn usage(&self) -> TilesUsage {
        let state = self.shared.lock();
        let store = state.tiles.get(self.id);
        let computed = |(id, def): (&Arc<str>, &Arc<crate::def::Def<B>>)| {
            (id.to_string(), state.tensors.get(def.slot).map_or(0, |windows| windows.computed))
        };
        TilesUsage {
            windows: store.map_or(0, |store| store.windows),
            cached: Bytes(store.map_or(0, |store| store.cached)),
            reserved: Bytes(store.map_or(0, |store| store.used)),
            computed: store.map(|store| store.tensors.iter().map(computed).collect()).unwrap_or_default(),
        }
    }
}

impl<B: Backend> State<B> {
    pub(crate) fn settle(&mut self, tiles: usize) {
        if let Some(store) = self.tiles.get_mut(tiles) {
            store.settle();
        }
    }

    /// What was counted of windows that are there says nothing of the new dependent: nothing more is said of them.
    fn add_dependent(&mut self, upstream: usize, dependent: Dependent) {
        if let Some(windows) = self.tensors.get_mut(upstream) {
            windows.dependents.push(dependent);
        }
        let there: Vec<usize> = self
            .tensors
            .get(upstream)
            .map(|windows| windows.map.values().copied().collect())
            .unwrap_or_default();
        for id in there {
            if let Some(entry) = self.entries.get_mut(id) {
                entry.pending.clear();
            }
        }
    }
}
