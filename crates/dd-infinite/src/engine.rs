//! [`Engine`]: the threads, and the one lock, that all tensors of a backend share.
//!
//! A step of a plan is started when its inputs are there, by whoever is free: the caller, who waits anyway, or a helper on the
//! pool. Nothing waits inside a step. Where a step's window is being computed by another request, it is simply not ready.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use dd_core::Backend;

use crate::error::{Error, Result};
use crate::primitive::{Condvar, Mutex, MutexGuard, lock, thread_local, wait};
use crate::region::Region;
use crate::run::Task;
use crate::state::State;

/// Threads and shared state. Clones are the same engine; tensors of one engine may depend on each other, also across stores.
pub struct Engine<B: Backend> {
    pub(crate) shared: Arc<Shared<B>>,
}

impl<B: Backend> Clone for Engine<B> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

pub(crate) struct Shared<B: Backend> {
    pub(crate) backend: B,
    pub(crate) threads: usize,
    pool: Pool,
    state: Mutex<State<B>>,
    changed: Condvar,
    /// How many threads wait: counted under the lock, before it is let go.
    waiting: AtomicUsize,
}

/// Where helpers run.
#[derive(Debug)]
pub(crate) enum Pool {
    /// Nowhere: callers do everything.
    None,
    /// On a pool of the ecosystem.
    #[cfg(not(dd_shuttle))]
    Rayon(Arc<rayon::ThreadPool>),
    /// On threads of the model checker.
    #[cfg(dd_shuttle)]
    Model,
}

impl<B: Backend> Engine<B> {
    /// An engine on which up to `threads` threads compute for one caller, the caller's own included. With one, nothing
    /// runs but what callers run, prefetch included.
    ///
    /// # Errors
    /// [`Error::Core`] where the system gives no threads.
    pub fn new(backend: B, threads: usize) -> Result<Self> {
        let pool = pool(threads)?;
        Ok(Self::on(backend, threads.max(1), pool))
    }

    /// An engine whose helpers run on this pool, one per thread of it at most.
    #[cfg(not(dd_shuttle))]
    #[must_use]
    pub fn with_pool(backend: B, pool: Arc<rayon::ThreadPool>) -> Self {
        let threads = pool.current_num_threads().saturating_add(1);
        Self::on(backend, threads, Pool::Rayon(pool))
    }

    fn on(backend: B, threads: usize, pool: Pool) -> Self {
        let state = Mutex::new(State::new());
        Self {
            shared: Arc::new(Shared {
                backend,
                threads,
                pool,
                state,
                changed: Condvar::new(),
                waiting: AtomicUsize::new(0),
            }),
        }
    }

    /// The backend.
    #[must_use]
    pub fn backend(&self) -> &B {
        &self.shared.backend
    }

    /// How many threads compute for one caller, the caller's included.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.shared.threads
    }
}

#[cfg(not(dd_shuttle))]
fn pool(threads: usize) -> Result<Pool> {
    if threads < 2 {
        return Ok(Pool::None);
    }
    let name = |n: usize| format!("tiles-{n}");
    let built = rayon::ThreadPoolBuilder::new().num_threads(threads - 1).thread_name(name).build();
    let failed = |source| Error::from(dd_core::Error::library("rayon", "start threads", source));
    Ok(Pool::Rayon(Arc::new(built.map_err(failed)?)))
}

#[cfg(dd_shuttle)]
fn pool(threads: usize) -> Result<Pool> {
    Ok(if threads < 2 { Pool::None } else { Pool::Model })
}

thread_local! {
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is inside a window function.
pub(crate) fn is_inside() -> bool {
    INSIDE.with(Cell::get)
}

/// Runs a window function, marked as such.
pub(crate) fn inside<T>(run: impl FnOnce() -> T) -> T {
    struct Mark(bool);
    impl Drop for Mark {
        fn drop(&mut self) {
            INSIDE.with(|flag| flag.set(self.0));
        }
    }
    let _mark = Mark(INSIDE.with(|flag| flag.replace(true)));
    run()
}

/// How a request ended.
pub(crate) enum Ended {
    Done,
    Replan,
}

impl<B: Backend> Shared<B> {
    pub(crate) fn lock(&self) -> MutexGuard<'_, State<B>> {
        lock(&self.state)
    }

    pub(crate) fn wait<'a>(&self, guard: MutexGuard<'a, State<B>>) -> MutexGuard<'a, State<B>> {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let guard = wait(&self.changed, guard);
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        guard
    }

    pub(crate) fn notify(&self) {
        if self.waiting.load(Ordering::SeqCst) > 0 {
            self.changed.notify_all();
        }
    }

    /// Carries out a request as its caller: folds its cells, computes what is ready, waits for the rest.
    pub(crate) fn drive(
        self: &Arc<Self>,
        request: usize,
        cancelled: &dyn Fn() -> bool,
        fold: &mut dyn FnMut(&Region, &Task<B>),
    ) -> Result<Ended> {
        let mut state = self.lock();
        loop {
            let Some(there) = state.requests.get_mut(request) else { return Ok(Ended::Replan) };
            if cancelled() && !there.is_done() {
                let tensor = there.plan.defs.first().map_or_else(String::new, |def| def.id.to_string());
                there.fail(Error::Cancelled { tensor });
            }
            if there.is_ending() || there.is_done() {
                if there.running > 0 {
                    state = self.wait(state);
                    continue;
                }
                let ended = state.finish(request);
                state.end_background();
                drop(state);
                self.notify();
                return conclude(ended.as_deref());
            }
            if let Some((cell, task)) = state.pick_cell(request) {
                drop(state);
                fold(&cell, &task);
                state = self.lock();
                state.cell_done(request, task);
                continue;
            }
            let Some(task) = state.pick(Some(request)) else {
                state = self.wait(state);
                continue;
            };
            self.help(&mut state);
            drop(state);
            self.run(task);
            state = self.lock();
        }
    }

    /// Starts helpers for what is ready, up to the number of threads.
    pub(crate) fn help(self: &Arc<Self>, state: &mut State<B>) {
        let room = self.threads.saturating_sub(1).saturating_sub(state.helpers);
        let wanted = if room == 0 { 0 } else { state.ready(room) };
        for _ in 0..wanted {
            state.helpers += 1;
            let shared = Arc::clone(self);
            match &self.pool {
                Pool::None => state.helpers -= 1,
                #[cfg(not(dd_shuttle))]
                Pool::Rayon(pool) => pool.spawn(move || shared.helper()),
                #[cfg(dd_shuttle)]
                Pool::Model => drop(shuttle::thread::spawn(move || shared.helper())),
            }
        }
    }

    /// Computes whatever is ready, and ends when nothing is.
    fn helper(self: Arc<Self>) {
        loop {
            let mut state = self.lock();
            if state.end_background() {
                self.notify();
            }
            let Some(task) = state.pick(None) else {
                state.helpers -= 1;
                return;
            };
            self.help(&mut state);
            drop(state);
            self.run(task);
        }
    }

    fn run(self: &Arc<Self>, task: Task<B>) {
        let done = task.run(&self.backend);
        let mut state = self.lock();
        state.complete(done);
        state.end_background();
        self.help(&mut state);
        drop(state);
        self.notify();
    }
}

fn conclude<B: Backend>(ended: Option<&crate::state::Request<B>>) -> Result<Ended> {
    match ended {
        Some(request) => match &request.failed {
            Some(error) => Err(error.clone()),
            None if request.replan => Ok(Ended::Replan),
            None => Ok(Ended::Done),
        },
        None => Ok(Ended::Replan),
    }
}
