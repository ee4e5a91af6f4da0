//! [`MemoryManager`]: modules in, guards out. It carries out the [plan](crate::plan) within the budget.
//!
//! A *module* is a set of parameters that are needed together. Wrapping one reads nothing. [`ModuleHandle::acquire`]
//! waits until its parameters are in the tier that computes, and the guard keeps them there. One loader thread fills
//! what is demanded, and reads ahead what the order of use foretells; between the two, the plan decides what stays.
//! Correctness never depends on the plan: a module that nobody foresaw is read when it is asked for.
//!
//! Everything that is held in memory is reserved from one [`Budget`]: weights (a child named for their tier), copies
//! in host memory, compressed weights, and the blocks through which files are read. The manager is a reclaimer of that
//! budget: another user who needs memory gets what no module is using.
//!
//! ```
//! use dd_core::{Backend, Bytes, DType, HostBackend, TensorDesc, Tier};
//! use dd_offload::manager::{MemoryManager, ModuleSpec, Parameter, Source};
//! use dd_offload::MemoryConfig;
//!
//! let backend = HostBackend::default();
//! let desc = TensorDesc::new([256, 256], DType::F32)?;
//! let config = MemoryConfig::builder().memory_limit(Bytes::mib(4)).build()?;
//! let manager = MemoryManager::new(backend.clone(), config)?;
//! let modules: Vec<_> = (0u8..32)
//!     .map(|n| {
//!         let weight = backend.upload(&desc, &vec![n; 262_144], Tier::Host)?;
//!         let parameters = vec![Parameter { name: "weight".into(), source: Source::Tensor(weight) }];
//!         manager.wrap_module(ModuleSpec { name: format!("layer.{n}"), kind: "Linear".into(), parameters, pinned: false })
//!     })
//!     .collect::<Result<_, _>>()?; // 8 MiB of weights in 4 MiB
//! for (n, module) in modules.iter().enumerate() {
//!     let guard = module.acquire()?;
//!     let weight = guard.tensor("weight").ok_or("no such parameter")?;
//!     assert!(weight.bytes().iter().all(|b| usize::from(*b) == n));
//! }
//! assert!(manager.budget().usage().peak <= Bytes::mib(4));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use dd_core::{
    Backend, Budget, Bytes, Event, Holder, MemoryProvider, Observer, Reclaim, Reservation, TensorDesc, Tier,
};

use crate::config::MemoryConfig;
use crate::error::{Error, Result};
use crate::plan::{PlanInput, ResidencyPlan};

mod blocks;
mod homes;
mod loader;
mod module;
mod rows;
mod select;
mod state;
mod summary;
mod watch;
mod wrap;

pub use blocks::block_allowance;
pub use module::{ModuleGuard, ModuleHandle, ModuleSpec, Parameter, Source, kind_of};
pub use rows::RowTable;
pub use select::{Selection, auto_manage_model, modules_of};
pub use summary::{MemorySummary, ModuleSummary, TierSummary};

use blocks::ReadBlocks;
use homes::Stores;
use state::{Planned, Pressure, State, Stop};

/// What [`MemoryManager::cleanup`] leaves behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cleanup {
    /// Every parameter in place, for good: handles work on, nothing is moved any more.
    Whole,
    /// Nothing: all memory and spilled files are given back, and handles say so.
    Freed,
}

/// Manages modules' weights within a budget. See the [module](self). Clones are the same manager; when the last clone
/// and the last handle are gone, so are its threads, its memory and its spilled files.
pub struct MemoryManager<B: Backend> {
    inner: Arc<Inner<B>>,
    owner: Arc<Owner<B>>,
}

impl<B: Backend> Clone for MemoryManager<B> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner), owner: Arc::clone(&self.owner) }
    }
}

struct Inner<B: Backend> {
    backend: B,
    config: MemoryConfig,
    budget: Budget,
    /// The tier that computes, and the child of the budget that its weights take.
    near: Tier,
    near_budget: Budget,
    weights: Holder,
    /// Room for the blocks through which files are read; what a fill needs besides its target.
    blocks: Mutex<Option<ReadBlocks>>,
    state: Mutex<State<B>>,
    /// Told when a unit became ready or failed.
    changed: Condvar,
    /// Told when there may be something to load.
    work: Condvar,
    /// Told when the threads are to end.
    halt: Condvar,
    stores: Stores,
    provider: Option<Arc<dyn MemoryProvider>>,
    /// Bytes per second that the files were seen to give.
    bandwidth: Mutex<Option<f64>>,
    /// Whether device memory was above its emergency threshold and not below its reload threshold since.
    emergency: AtomicBool,
    observed: AtomicBool,
    observers: RwLock<Vec<Arc<dyn Observer>>>,
}

/// Ends the threads when the last manager and handle are gone.
struct Owner<B: Backend> {
    inner: Arc<Inner<B>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    _reclaimer: Arc<Reclaimer<B>>,
}

struct Reclaimer<B: Backend>(Weak<Inner<B>>);

impl<B: Backend> Reclaim for Reclaimer<B> {
    fn reclaim(&self, wanted: Bytes) -> Bytes {
        self.0.upgrade().map_or(Bytes::ZERO, |inner| inner.give_back(wanted))
    }
}

impl<B: Backend> MemoryManager<B> {
    /// A manager with a budget of its own, as large as the configuration's memory limit.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] without a limit and without figures to take one from.
    pub fn new(backend: B, config: MemoryConfig) -> Result<Self> {
        Self::build(backend, config, None, None)
    }

    /// A manager that takes its memory from a budget shared with others.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] where the configuration's memory limit is above the budget's.
    pub fn with_budget(backend: B, config: MemoryConfig, budget: &Budget) -> Result<Self> {
        Self::build(backend, config, Some(budget), None)
    }

    /// A manager that also looks at the system's figures: its thresholds then see what others take.
    ///
    /// # Errors
    /// As [`new`](Self::new); what the provider says.
    pub fn with_provider(
        backend: B,
        config: MemoryConfig,
        budget: Option<&Budget>,
        provider: Arc<dyn MemoryProvider>,
    ) -> Result<Self> {
        Self::build(backend, config, budget, Some(provider))
    }

    fn build(
        backend: B,
        config: MemoryConfig,
        shared: Option<&Budget>,
        provider: Option<Arc<dyn MemoryProvider>>,
    ) -> Result<Self> {
        let near = backend.tiers().iter().copied().find(|tier| tier.is_computable()).unwrap_or(Tier::Host);
        let limit = memory_limit(&config, shared, provider.as_deref(), &backend)?;
        let budget = match shared {
            Some(budget) => budget.child("offload", limit),
            None => Budget::new("memory", limit),
        };
        let near_limit = match (config.tier_limit(near), near) {
            (Some(limit), _) => limit,
            (None, Tier::Device(_)) => backend.memory(near)?.total.scaled(*config.gpu_offload_threshold()),
            (None, _) => Bytes::MAX,
        };
        let near_budget = budget.child(&near.to_string(), near_limit);
        let inner = Arc::new(Inner {
            stores: Stores::new(&config, &budget, near),
            backend,
            config,
            budget,
            near,
            near_budget,
            weights: Holder::new("weights"),
            blocks: Mutex::default(),
            state: Mutex::new(State::new()),
            changed: Condvar::new(),
            work: Condvar::new(),
            halt: Condvar::new(),
            provider,
            bandwidth: Mutex::default(),
            emergency: AtomicBool::new(false),
            observed: AtomicBool::new(false),
            observers: RwLock::default(),
        });
        let reclaimer = Arc::new(Reclaimer(Arc::downgrade(&inner)));
        let weak: Weak<dyn Reclaim> = Arc::downgrade(&reclaimer) as Weak<dyn Reclaim>;
        inner.budget.register(100, weak);
        let owner = Owner { inner: Arc::clone(&inner), threads: Mutex::default(), _reclaimer: reclaimer };
        Ok(Self { inner, owner: Arc::new(owner) })
    }

    /// Starts the loader and the threshold watch. Idempotent, and called by itself when the first module is wrapped.
    ///
    /// # Errors
    /// [`Error::BudgetTooSmall`] where not even the read blocks fit; [`Error::Stopped`] after a cleanup;
    /// [`dd_core::Error::Library`] where the system starts no thread.
    pub fn start(&self) -> Result<()> {
        self.owner.start()
    }

    /// The budget: its usage says what is held by whom, and what was held at most.
    #[must_use]
    pub fn budget(&self) -> &Budget {
        &self.inner.budget
    }

    /// The tensor library.
    #[must_use]
    pub fn backend(&self) -> &B {
        &self.inner.backend
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &MemoryConfig {
        &self.inner.config
    }

    /// Reserves memory for a pass's activations. Hold it for as long as passes run: the plan then counts on it.
    ///
    /// # Errors
    /// [`dd_core::Error::OutOfMemory`] where it does not fit beside what modules in use hold.
    pub fn reserve_activations(&self, bytes: Bytes) -> Result<Reservation> {
        let reservation = self.inner.budget.reserve(bytes, &Holder::new("activations"))?;
        self.inner.lock().stale = true;
        Ok(reservation)
    }

    /// The plan for the modules wrapped so far, in the order recorded, or in which they were wrapped before any pass.
    ///
    /// # Errors
    /// [`Error::BudgetTooSmall`] with the least budget that would do.
    pub fn plan(&self) -> Result<ResidencyPlan> {
        let mut state = self.inner.lock();
        self.inner.ensure_plan(&mut state).map_err(|error| self.inner.with_least(error))?;
        state = self.inner.announce(state);
        let plan = state.planned.as_ref().map(|planned| planned.plan.clone());
        plan.ok_or_else(|| Error::Stopped { what: "a plan".to_owned() })
    }

    /// Supposes a bandwidth (bytes per second) and, by module name, times of use, until they are measured: with them
    /// the plan predicts the time of a pass before there was one.
    pub fn suppose(&self, bandwidth: f64, compute: impl Fn(&str) -> Option<Duration>) {
        self.inner.bandwidth.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(bandwidth);
        let mut state = self.inner.lock();
        for unit in &mut state.units {
            unit.compute = unit.compute.or_else(|| compute(&unit.name));
        }
        state.stale = true;
    }

    /// The bandwidth that files were seen to give, or that was supposed, in bytes per second.
    #[must_use]
    pub fn bandwidth(&self) -> Option<f64> {
        *self.inner.bandwidth.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says that a pass over the model ended here, for models whose order does not repeat by itself.
    pub fn end_pass(&self) {
        self.inner.lock().recorder.end_pass();
    }

    /// Tells this observer of everything that happens from now on.
    pub fn observe(&self, observer: Arc<dyn Observer>) {
        self.inner.observers.write().unwrap_or_else(PoisonError::into_inner).push(observer);
        self.inner.observed.store(true, Ordering::Release);
    }

    /// Moves everything out of the tier that computes, except modules in use; says how much left.
    ///
    /// # Errors
    /// What storing a parameter that is in no file gave; it then stays where it is.
    pub fn offload_all(&self) -> Result<Bytes> {
        let units = self.inner.lock().units.len();
        (0..units).map(|unit| self.inner.offload_unit(unit)).sum::<Result<Bytes>>()
    }

    /// Brings everything into place.
    ///
    /// # Errors
    /// [`Error::BudgetTooSmall`] before anything is read, where not all of it fits at once; otherwise as
    /// [`ModuleHandle::acquire`].
    pub fn load_all(&self) -> Result<()> {
        self.hold_all().map(drop)
    }

    fn hold_all(&self) -> Result<Vec<ModuleGuard<B>>> {
        let (units, whole) = {
            let state = self.inner.lock();
            (state.units.len(), state.units.iter().map(|unit| unit.bytes()).sum::<Bytes>())
        };
        let held = self.inner.near_budget.usage().used;
        let room = self.inner.near_budget.available() + held;
        if whole > room {
            let what = format!("all {units} modules at once in {}", self.inner.near);
            let spare = self.inner.budget.limit().saturating_sub(room);
            return Err(Error::BudgetTooSmall {
                budget: self.inner.budget.limit(),
                least: whole + spare,
                what,
            });
        }
        (0..units).map(|unit| self.inner.acquire(unit)).collect()
    }

    /// Ends the management. With [`Cleanup::Whole`] the model is left complete in memory, or, where it does not fit,
    /// the call fails and nothing has changed; with [`Cleanup::Freed`] all memory is given back. Never half a model.
    ///
    /// # Errors
    /// As [`load_all`](Self::load_all) for `Whole`; [`Error::AllInUse`] for `Freed` while a guard lives.
    pub fn cleanup(&self, cleanup: Cleanup) -> Result<()> {
        match cleanup {
            Cleanup::Whole => {
                let guards = self.hold_all()?;
                self.inner.lock().stop.get_or_insert(Stop::Whole);
                drop(guards);
            }
            Cleanup::Freed => self.inner.free_all()?,
        }
        self.owner.join();
        if cleanup == Cleanup::Freed {
            self.inner.free_unused(); // What a thread had still in its hands is back by now.
        }
        Ok(())
    }
}

/// The one budget: the configured limit, else the shared budget's, else what the figures say is available.
fn memory_limit<B: Backend>(
    config: &MemoryConfig,
    shared: Option<&Budget>,
    provider: Option<&dyn MemoryProvider>,
    backend: &B,
) -> Result<Bytes> {
    let wanted = *config.memory_limit();
    match (wanted, shared) {
        (Some(limit), Some(budget)) if limit > budget.limit() => Err(Error::InvalidConfig {
            option: "memory_limit",
            reason: format!("{limit} is above the shared budget {:?} of {}", budget.name(), budget.limit()),
        }),
        (Some(limit), _) => Ok(limit),
        (None, Some(budget)) => Ok(budget.limit()),
        (None, None) => {
            let sample = provider
                .map_or_else(|| backend.memory(Tier::Host), |provider| provider.sample(Tier::Host))?;
            if sample.available == Bytes::MAX {
                let reason =
                    "there is no limit to keep; give one, for example 4GiB, or a memory provider".to_owned();
                return Err(Error::InvalidConfig { option: "memory_limit", reason });
            }
            Ok(sample.available.scaled(*config.cpu_offload_threshold()))
        }
    }
}

impl<B: Backend> Owner<B> {
    fn start(&self) -> Result<()> {
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        if !threads.is_empty() {
            return Ok(());
        }
        self.inner.lock().check_running("start")?;
        self.inner.reserve_blocks()?;
        if self.inner.stores.has_host() {
            self.inner.reserve_scratch()?;
        }
        self.inner.reserve_transfer()?;
        let spawn = |name: &str, run: fn(Arc<Inner<B>>)| {
            let inner = Arc::clone(&self.inner);
            let built = std::thread::Builder::new().name(name.to_owned()).spawn(move || run(inner));
            built
                .map_err(|error| dd_core::Error::library("the system", format!("start thread {name}"), error))
        };
        threads.push(spawn("deepdim-loader", loader::run)?);
        threads.push(spawn("deepdim-watch", watch::run)?);
        Ok(())
    }

    fn join(&self) {
        self.inner.lock().stop.get_or_insert(Stop::Freed);
        self.inner.work.notify_all();
        self.inner.changed.notify_all();
        self.inner.halt.notify_all();
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        // The last handle may go in an observer, on one of these threads: that one cannot wait for itself.
        let this = std::thread::current().id();
        for thread in threads.into_iter().filter(|thread| thread.thread().id() != this) {
            if thread.join().is_err() {
                tracing::error!("a thread of the memory manager panicked");
            }
        }
        // Nothing is read any more.
        let blocks = self.inner.blocks.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(blocks);
    }
}

impl<B: Backend> Drop for Owner<B> {
    fn drop(&mut self) {
        self.join();
        self.inner.free_unused(); // A guard may live on, with its own module's weights and no others.
    }
}

/// A number for the calling thread, never used again.
fn this_thread() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    std::thread_local! {
        static NUMBER: u64 = NEXT.fetch_add(1, Ordering::Relaxed);
    }
    NUMBER.with(|number| *number)
}

impl<B: Backend> State<B> {
    fn check_running(&self, what: &str) -> Result<()> {
        match self.stop {
            None => Ok(()),
            Some(_) => Err(Error::Stopped { what: what.to_owned() }),
        }
    }
}

impl<B: Backend> Inner<B> {
    fn lock(&self) -> MutexGuard<'_, State<B>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, event: &Event<'_>) {
        if self.observed.load(Ordering::Acquire) {
            // A copy, since an observer may add another.
            let observers = self.observers.read().unwrap_or_else(PoisonError::into_inner).clone();
            for observer in observers {
                // It is told while guards are dropped too: there a panic would end the process.
                if catch_unwind(AssertUnwindSafe(|| observer.on_event(event))).is_err() {
                    tracing::error!("an observer panicked");
                }
            }
        }
    }

    fn unit_name(&self, unit: usize) -> String {
        self.lock().units.get(unit).map_or_else(String::new, |unit| unit.name.to_string())
    }

    fn bandwidth(&self) -> Option<f64> {
        *self.bandwidth.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unit_parameters(&self, unit: usize) -> Vec<(Arc<str>, TensorDesc)> {
        let state = self.lock();
        let parts = state.units.get(unit).map_or(&[][..], |unit| &unit.parts);
        parts.iter().map(|part| (Arc::clone(&part.name), part.desc.clone())).collect()
    }

    fn unit_bytes(&self, unit: usize) -> Bytes {
        self.lock().units.get(unit).map_or(Bytes::ZERO, |unit| unit.bytes())
    }

    fn unit_tier(&self, unit: usize) -> Tier {
        let state = self.lock();
        let parts =
            state.units.get(unit).map(|unit| unit.parts.iter().map(|part| part.tier(self.near)).max());
        parts.flatten().unwrap_or(self.near)
    }

    /// As [`ensure_plan`](Self::ensure_plan), and asks those who share the budget to give back what is missing.
    fn plan_now<'a>(&'a self, mut state: MutexGuard<'a, State<B>>) -> Result<MutexGuard<'a, State<B>>> {
        let Err(error) = self.ensure_plan(&mut state) else { return Ok(self.announce(state)) };
        drop(state); // Whoever is asked may need it, this manager included.
        if let Error::BudgetTooSmall { budget, least, .. } = &error {
            let free = self.near_budget.available() + least.saturating_sub(*budget);
            let refused = |_| self.with_least(error);
            drop(self.near_budget.reserve(free, &self.weights).map_err(refused)?);
        }
        let mut state = self.lock();
        self.ensure_plan(&mut state).map_err(|error| self.with_least(error))?;
        Ok(self.announce(state))
    }

    /// The same error in terms of the whole budget: with what else is held in it, and with the blocks that a larger one
    /// would have.
    fn with_least(&self, error: Error) -> Error {
        let Error::BudgetTooSmall { budget, least, what } = error else { return error };
        let (limit, blocks, tier) = (self.budget.limit(), self.block_allowance(), self.near_budget.limit());
        if least.saturating_sub(blocks) > tier {
            let what = format!("{what}; {} has a limit of its own of {tier}", self.near);
            return Error::BudgetTooSmall { budget, least, what };
        }
        let short = limit + least.saturating_sub(budget);
        let mut enough = short;
        for _ in 0..16 {
            enough = short + block_allowance(&self.config, enough).saturating_sub(blocks);
        }
        Error::BudgetTooSmall { budget: limit, least: enough, what }
    }

    /// Tells the observers of a new plan, without the lock: they may ask the manager what it is about.
    fn announce<'a>(&'a self, mut state: MutexGuard<'a, State<B>>) -> MutexGuard<'a, State<B>> {
        let Some((resident, streamed)) = state.announce.take() else { return state };
        if !self.observed.load(Ordering::Acquire) {
            return state;
        }
        drop(state);
        self.tell(&Event::Planned { resident, streamed });
        self.lock()
    }

    /// Makes the plan if there is none, or if what it was made from has changed.
    fn ensure_plan(&self, state: &mut State<B>) -> Result<()> {
        if !state.stale && state.planned.is_some() {
            return Ok(());
        }
        let _span = tracing::debug_span!("plan", units = state.units.len()).entered();
        state.sweep(&self.backend); // What nobody sees any more is room for the plan.
        let recorded = state.recorder.order().map(<[usize]>::to_vec);
        let known = |order: &Vec<usize>| order.iter().all(|unit| *unit < state.units.len());
        let order = recorded.filter(known).unwrap_or_else(|| (0..state.units.len()).collect());
        let plan = ResidencyPlan::new(&self.plan_input(state, &order))?;
        state.announce = Some((plan.resident_bytes, plan.streamed_bytes));
        tracing::debug!(resident = %plan.resident_bytes, streamed = %plan.streamed_bytes, "planned");
        let planned = Planned::new(plan, order, state.units.len());
        // A cursor stays on its unit, wherever the new order has it.
        let units: Vec<_> = state
            .cursors
            .iter()
            .map(|c| state.planned.as_ref().and_then(|p| p.order.get(c.position).copied()))
            .collect();
        for (cursor, unit) in state.cursors.iter_mut().zip(units) {
            let last = planned.order.len().saturating_sub(1);
            let steps = unit.and_then(|unit| planned.steps_to(unit, last));
            cursor.position = steps.map_or(last, |steps| (last + steps) % planned.order.len().max(1));
        }
        state.planned = Some(planned);
        state.stale = false;
        Ok(())
    }

    fn plan_input(&self, state: &State<B>, order: &[usize]) -> PlanInput {
        let lingering: Bytes = state.lingering.iter().map(|free| free.room.bytes()).sum();
        let held = self.near_budget.usage().used.saturating_sub(lingering);
        let blocks = self.blocks.lock().unwrap_or_else(PoisonError::into_inner);
        let reserved = blocks.as_ref().map(|blocks| blocks.room.bytes());
        drop(blocks);
        let started = reserved.is_some();
        let blocks = reserved.unwrap_or_else(|| self.block_allowance());
        let free = self.near_budget.available() + held;
        PlanInput {
            units: state.units.iter().map(|unit| unit.to_plan()).collect(),
            order: order.to_vec(),
            budget: if started { free + blocks } else { free },
            blocks,
            bandwidth: *self.bandwidth.lock().unwrap_or_else(PoisonError::into_inner),
            prefetch: *self.config.prefetch_enabled(),
            concurrent: *self.config.concurrent_modules(),
        }
    }

    fn acquire(self: &Arc<Self>, unit: usize) -> Result<ModuleGuard<B>> {
        let (thread, started) = (this_thread(), Instant::now());
        let mut state = self.lock();
        if state.stop == Some(Stop::Freed) {
            return Err(Error::Stopped { what: "using a module".to_owned() });
        }
        let ready = state.unit(unit)?.is_ready();
        let waited = if ready {
            state.stats.ready += 1;
            Duration::ZERO
        } else {
            state = self.plan_now(state)?;
            state = self.wait_for(state, unit, thread)?;
            started.elapsed()
        };
        state.stats.waited += waited;
        state.yielded = false;
        let guard = self.enter(&mut state, unit, thread)?;
        let ended = state.advance(thread, unit);
        let pass = ended.then(|| state.end_pass());
        if ended && self.bandwidth().is_some() {
            state.replan_once_timed();
        }
        let streams =
            state.stale || state.planned.as_ref().is_none_or(|p| p.plan.streamed_bytes > Bytes::ZERO);
        let name = self
            .observed
            .load(Ordering::Acquire)
            .then(|| state.units.get(unit).map(|u| Arc::clone(&u.name)))
            .flatten();
        state.poke();
        drop(state);
        if streams {
            self.work.notify_one();
        }
        if let Some(name) = name {
            self.tell(&Event::Acquired { unit: &name, waited });
            if let Some((passes, read)) = pass {
                self.tell(&Event::PassEnded { passes, read });
            }
        }
        Ok(guard)
    }

    /// Waits until a unit is ready; on success its waiter count has been given up, under the same lock.
    fn wait_for<'a>(
        &'a self,
        mut state: MutexGuard<'a, State<B>>,
        unit: usize,
        thread: u64,
    ) -> Result<MutexGuard<'a, State<B>>> {
        let _span = tracing::debug_span!("wait", unit).entered();
        state.unit(unit)?.waiters += 1;
        state.blocked.push(thread);
        let result = loop {
            let freed = state.stop == Some(Stop::Freed);
            let own = match state.unit(unit) {
                Ok(own) => own,
                Err(error) => break Err(error),
            };
            if own.is_ready() && !freed {
                break Ok(());
            }
            if let Some(error) = own.failed.take() {
                break Err(error);
            }
            if let Err(error) = state.check_running("loading a module") {
                break Err(error);
            }
            if !state.demand.contains(&unit) {
                state.demand.push_back(unit);
            }
            state.poke();
            self.work.notify_one();
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        };
        if let Some(index) = state.blocked.iter().position(|blocked| *blocked == thread) {
            state.blocked.swap_remove(index);
        }
        if let Ok(own) = state.unit(unit) {
            own.waiters -= 1;
            if own.waiters == 0 {
                own.failed = None; // It was for those who waited then.
                state.demand.retain(|wanted| *wanted != unit);
            }
        }
        result.map(|()| state)
    }

    fn enter(self: &Arc<Self>, state: &mut State<B>, unit: usize, thread: u64) -> Result<ModuleGuard<B>> {
        let own = state.unit(unit)?;
        let share = |part: &state::Part<B>| match &part.near {
            state::Near::Filled(free) => Some((Arc::clone(&part.name), self.backend.share(&free.tensor))),
            _ => None,
        };
        let tensors = own.parts.iter().filter_map(share).collect();
        own.users += 1;
        own.uses += 1;
        own.since.get_or_insert_with(Instant::now);
        *state.holders.entry(thread).or_default() += 1;
        state.recorder.record(thread, unit);
        if state.recorder.order().is_some_and(|order| state.planned.as_ref().is_none_or(|p| p.order != order))
        {
            state.stale = true;
        }
        Ok(ModuleGuard { inner: Arc::clone(self), unit, thread, tensors })
    }

    fn release(&self, unit: usize, thread: u64) {
        let mut state = self.lock();
        if let Some(guards) = state.holders.get_mut(&thread) {
            *guards = guards.saturating_sub(1);
            if *guards == 0 {
                state.holders.remove(&thread);
            }
        }
        let streams = !state.demand.is_empty()
            || state.planned.as_ref().is_none_or(|p| p.plan.streamed_bytes > Bytes::ZERO);
        let mut name = None;
        if let Some(own) = state.units.get_mut(unit) {
            own.users = own.users.saturating_sub(1);
            if own.users == 0 {
                own.measure();
                name = self.observed.load(Ordering::Acquire).then(|| Arc::clone(&own.name));
            }
        }
        state.poke();
        drop(state);
        if streams {
            self.work.notify_one();
        }
        if let Some(name) = name {
            self.tell(&Event::Released { unit: &name });
        }
    }

    /// Gives back about `wanted` bytes of what no module is using; says how many.
    fn give_back(&self, wanted: Bytes) -> Bytes {
        let mut given = Bytes::ZERO;
        while given < wanted {
            let mut state = self.lock();
            if state.stop.is_some() {
                break; // What was left whole stays whole.
            }
            given += state.sweep(&self.backend);
            if let Some(free) = state.pool.pop() {
                drop(state);
                given += free.room.bytes();
                continue;
            }
            let Some((unit, part)) = state.victim(usize::MAX, Pressure::Demand) else {
                drop(state);
                match self.demote_host(1) {
                    Ok(bytes) if bytes > Bytes::ZERO => given += bytes,
                    _ => break,
                }
                continue;
            };
            // Or the loader would take the room before those who asked can.
            state.yielded = true;
            let stuck = state.part(unit, part).is_some_and(|part| part.stuck);
            if self.leave(state, (unit, part)).is_err() && stuck {
                break;
            }
        }
        if given > Bytes::ZERO {
            self.lock().stale = true;
        }
        given
    }
}

impl<B: Backend> State<B> {
    /// After the first pass whose times are all known, they make a better plan.
    fn replan_once_timed(&mut self) {
        let Some(planned) = self.planned.as_ref().filter(|planned| planned.plan.predicted.is_none()) else {
            return;
        };
        let timed = |unit: &usize| self.units.get(*unit).is_some_and(|unit| unit.compute.is_some());
        if planned.order.iter().all(timed) {
            self.stale = true;
        }
    }

    fn end_pass(&mut self) -> (u64, Bytes) {
        self.stats.passes += 1;
        self.stats.last_pass_read = self.stats.read.saturating_sub(self.stats.read_at_pass);
        self.stats.read_at_pass = self.stats.read;
        (self.stats.passes, self.stats.last_pass_read)
    }
}

impl<B: Backend> state::Unit<B> {
    fn to_plan(&self) -> crate::plan::Unit {
        let part = |part: &state::Part<B>| crate::plan::Part {
            name: part.name.to_string(),
            bytes: part.desc.bytes(),
            pinned: part.pinned,
        };
        crate::plan::Unit {
            name: self.name.to_string(),
            parts: self.parts.iter().map(part).collect(),
            compute: self.compute,
        }
    }

    /// Takes the time of this use into the running mean.
    fn measure(&mut self) {
        if let Some(took) = self.since.take().map(|since| since.elapsed()) {
            self.compute = Some(self.compute.map_or(took, |mean| mean.mul_f64(0.75) + took.mul_f64(0.25)));
        }
    }
}
