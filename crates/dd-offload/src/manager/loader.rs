//! The loader: one thread that fills what is demanded, and then what the plan lets it read ahead.
//!
//! The read engine asks [`Feed`] for the next block to read and hands back each block that arrived; the feed splits
//! parts into blocks, so that the blocks of the next part are in flight while those of the last one still arrive. Room
//! for all missing parts of a unit is taken at once or not at all: two half-filled units never wait for each other.

use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use dd_core::{Backend, Bytes, Event, TensorDesc};

use super::Inner;
use super::state::{Free, Home, Near, Pressure, State, Stop};
use crate::checkpoint::{Checkpoint, Shard, TensorLocation};
use crate::error::{Error, Result};
use crate::io::{self, BlockRead, DirectFile, ReadEngine, ReadSource};

/// How much must arrive before its time says something about the disk.
const ENOUGH: Bytes = Bytes::mib(32);

/// The loader thread.
pub(super) fn run<B: Backend>(inner: Arc<Inner<B>>) {
    let feed = Feed {
        inner,
        files: HashMap::new(),
        queue: VecDeque::new(),
        jobs: HashMap::new(),
        next_tag: 0,
        delivered: Bytes::ZERO,
        seen: None,
    };
    let mut loader = Loader { feed, engine: None, reading: Duration::ZERO };
    while loader.feed.wait() {
        // A library that panics must not leave everybody waiting.
        if catch_unwind(AssertUnwindSafe(|| loader.serve())).is_err() {
            loader.recover();
        }
    }
    loader.feed.abandon(&Error::Stopped { what: "loading a module".to_owned() });
}

struct Loader<B: Backend> {
    feed: Feed<B>,
    engine: Option<Box<dyn ReadEngine>>,
    /// How long the engine has been reading what was delivered since the last figure.
    reading: Duration,
}

impl<B: Backend> Loader<B> {
    fn serve(&mut self) {
        if let Some(version) = self.feed.inner.idle() {
            self.feed.seen = Some(version);
            return; // Before the first use there is nothing to read, and no plan to cut the engine by.
        }
        if self.engine.is_none() {
            let version = self.feed.inner.lock().version;
            match self.feed.inner.make_engine() {
                Ok(engine) => self.engine = engine,
                Err(error) => {
                    tracing::warn!(%error, "there is no read engine");
                    self.feed.abandon(&error);
                    // Whoever waits is told, one after the other; with nobody there it is tried at the next occasion.
                    if !self.feed.inner.fail_first(error) {
                        self.feed.seen = Some(version);
                    }
                    return;
                }
            }
        }
        let Some(engine) = &mut self.engine else {
            // Nothing here comes from a file: parts are filled as they are picked. A read all the same is for a module
            // that was just wrapped: it waits for the engine.
            if let Some(read) = self.feed.next() {
                self.feed.queue.push_front(read);
            }
            return;
        };
        let span = tracing::debug_span!("read", engine = engine.name()).entered();
        let started = Instant::now();
        let result = engine.run(&mut self.feed);
        drop(span);
        self.reading += started.elapsed();
        if self.feed.delivered >= ENOUGH {
            let (bytes, time) = (std::mem::take(&mut self.feed.delivered), std::mem::take(&mut self.reading));
            self.feed.inner.note_bandwidth(bytes.0 as f64 / time.as_secs_f64());
        }
        if let Err(error) = result {
            tracing::warn!(%error, "the read engine failed; a new one is made");
            self.engine = None;
            self.feed.abandon(&error);
        }
    }

    /// After a panic: what was being filled is absent again, and who waits is told.
    fn recover(&mut self) {
        self.engine = None;
        self.feed.queue.clear();
        self.feed.jobs.clear();
        let (demand, version) = {
            let mut state = self.feed.inner.lock();
            state.forget_filling();
            (state.demand.clone(), state.version)
        };
        self.feed.seen = Some(version); // With nobody to tell it is tried at the next occasion.
        for unit in demand {
            let error = dd_core::Error::library("the backend", "fill a module", Panicked);
            self.feed.inner.fail(unit, error.into());
        }
    }
}

/// What became of the loader's last step.
#[derive(Debug, thiserror::Error)]
#[error("it panicked; its message is on standard error")]
struct Panicked;

/// What the read engine is fed with.
struct Feed<B: Backend> {
    inner: Arc<Inner<B>>,
    files: HashMap<(usize, usize), Arc<DirectFile>>,
    queue: VecDeque<BlockRead>,
    jobs: HashMap<u64, Job<B>>,
    next_tag: u64,
    delivered: Bytes,
    /// The state's version when there was nothing to do.
    seen: Option<u64>,
}

/// A part that is being filled.
struct Job<B: Backend> {
    unit: usize,
    part: usize,
    name: Arc<str>,
    free: Free<B>,
    checkpoint: Arc<Checkpoint>,
    location: TensorLocation,
    blocks_left: usize,
    failed: Option<Error>,
    started: Instant,
}

/// What came of asking for room.
enum Room<B: Backend> {
    Taken(Vec<(usize, Free<B>)>),
    /// Not now: something must be released or arrive first.
    Wait,
    Failed(Error),
}

impl<B: Backend> Feed<B> {
    /// Sleeps until there may be something to do; false when the manager stopped.
    fn wait(&mut self) -> bool {
        let mut state = self.inner.lock();
        while state.stop.is_none() && self.seen == Some(state.version) {
            state = self.inner.work.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.stop.is_none()
    }

    /// Picks a unit, takes room for what it misses, and begins to fill it. False when there is nothing to do now.
    fn begin(&mut self) -> bool {
        let (demand, version) = {
            let state = self.inner.lock();
            if state.stop.is_some() {
                return false;
            }
            let version = state.version;
            match self.inner.plan_now(state) {
                Ok(state) => (state.demand.clone(), state.version),
                Err(error) => {
                    // Each who waits gets an error of its own: the next turn is for the next of them.
                    if !self.inner.fail_first(error) {
                        self.seen = Some(version);
                    }
                    return false;
                }
            }
        };
        for unit in &demand {
            match self.inner.take_room(*unit, Pressure::Demand) {
                Room::Taken(parts) if !parts.is_empty() => return self.fill(*unit, parts),
                Room::Taken(_) | Room::Wait => {}
                Room::Failed(error) => self.inner.fail(*unit, error),
            }
        }
        if demand.is_empty() {
            let candidates = self.inner.lock().candidates();
            for (unit, steps) in candidates {
                match self.inner.take_room(unit, Pressure::Ahead(steps)) {
                    Room::Taken(parts) if parts.is_empty() => {} // All of it is under way.
                    Room::Taken(parts) => return self.fill(unit, parts),
                    Room::Wait | Room::Failed(_) => break,
                }
            }
        } else if self.jobs.is_empty() {
            self.inner.break_deadlock();
        }
        self.seen = Some(version);
        false
    }

    fn fill(&mut self, unit: usize, parts: Vec<(usize, Free<B>)>) -> bool {
        for (part, free) in parts {
            self.fill_part(unit, part, free);
        }
        true
    }

    /// Queues the blocks of a part that is in a file; fills one that is elsewhere at once.
    fn fill_part(&mut self, unit: usize, part: usize, mut free: Free<B>) {
        let started = Instant::now();
        let stopped = |what: String| Error::Stopped { what };
        let filled = match self.inner.source(unit, part) {
            Some((_, _, _, Some(copy))) => self.inner.copy(&copy, &mut free.tensor, &free.desc.clone()),
            Some((name, _, Some(Home::File { checkpoint, location }), None)) => {
                match self.file(&checkpoint, &location) {
                    Ok(file) => {
                        let job = Job {
                            unit,
                            part,
                            name,
                            free,
                            checkpoint,
                            location,
                            blocks_left: 0,
                            failed: None,
                            started,
                        };
                        return self.queue_blocks(job, &file);
                    }
                    Err(error) => Err(error),
                }
            }
            Some((_, _, Some(home), None)) => self.inner.fetch(&home, &mut free.tensor),
            Some((name, own, None, None)) => {
                Err(stopped(format!("filling {name}/{own}, whose values are gone")))
            }
            None => Err(stopped("filling a module".to_owned())),
        };
        self.inner.finish(unit, part, free, filled.map(|()| None), started.elapsed());
    }

    fn queue_blocks(&mut self, mut job: Job<B>, file: &Arc<DirectFile>) {
        let tag = self.next_tag;
        self.next_tag += 1;
        for piece in io::split(file, job.location.offset, job.location.len, self.inner.block_bytes()) {
            self.queue.push_back(BlockRead { tag, ..piece });
            job.blocks_left += 1;
        }
        if job.blocks_left == 0 {
            return self.inner.finish(job.unit, job.part, job.free, Ok(None), Duration::ZERO);
        }
        self.jobs.insert(tag, job);
    }

    fn file(&mut self, checkpoint: &Arc<Checkpoint>, location: &TensorLocation) -> Result<Arc<DirectFile>> {
        let id = (Arc::as_ptr(checkpoint).addr(), location.shard.0);
        if let Some(file) = self.files.get(&id) {
            return Ok(Arc::clone(file));
        }
        let shard = shard_of(checkpoint, location)?;
        let file = DirectFile::from_file(shard.file(), shard.path())?;
        self.files.insert(id, Arc::clone(&file));
        Ok(file)
    }

    /// One more block of a job is accounted for; the last one ends the job.
    fn block_done(&mut self, tag: u64, count: usize) {
        let Some(job) = self.jobs.get_mut(&tag) else { return };
        job.blocks_left = job.blocks_left.saturating_sub(count);
        if job.blocks_left > 0 {
            return;
        }
        let Some(job) = self.jobs.remove(&tag) else { return };
        let result = match job.failed {
            Some(error) => Err(error),
            // The file may have been written to while it was read: only an unchanged one gave true weights.
            None => shard_of(&job.checkpoint, &job.location)
                .and_then(Shard::verify)
                .map(|()| Some(job.free.desc.bytes())),
        };
        tracing::trace!(unit = %job.name, part = job.part, ok = result.is_ok(), "read");
        self.inner.finish(job.unit, job.part, job.free, result, job.started.elapsed());
    }

    /// Gives up everything that was in flight in an engine that failed.
    fn abandon(&mut self, error: &Error) {
        self.queue.clear();
        let jobs: Vec<_> = self.jobs.drain().map(|(_, job)| job).collect();
        for job in jobs {
            let cause = std::io::Error::other(error.to_string());
            let error = dd_core::Error::library("the read engine", "read a module", cause);
            self.inner.finish(job.unit, job.part, job.free, Err(error.into()), job.started.elapsed());
        }
    }
}

impl<B: Backend> ReadSource for Feed<B> {
    fn next(&mut self) -> Option<BlockRead> {
        loop {
            if !self.queue.is_empty() && self.inner.lock().stop == Some(Stop::Freed) {
                self.queue.clear(); // What is left of its jobs is abandoned at the end.
            }
            if let Some(read) = self.queue.pop_front() {
                return Some(read);
            }
            if !self.begin() {
                return None;
            }
        }
    }

    fn complete(&mut self, read: BlockRead, data: Result<&[u8]>) {
        self.delivered += Bytes::of(read.len);
        let Some(job) = self.jobs.get_mut(&read.tag) else { return };
        let offset = usize::try_from(read.offset.saturating_sub(job.location.offset));
        let written = data.and_then(|bytes| match offset {
            Ok(offset) => Ok(self.inner.backend.write(&mut job.free.tensor, offset, bytes)?),
            Err(_) => Err(dd_core::Error::SizeOverflow { what: "an offset in a tensor".to_owned() }.into()),
        });
        let mut done = 1;
        if let Err(error) = written {
            job.failed.get_or_insert(named(error, &job.name));
            let before = self.queue.len();
            self.queue.retain(|queued| queued.tag != read.tag);
            done += before - self.queue.len();
        }
        self.block_done(read.tag, done);
    }
}

/// The file that a tensor is in.
pub(super) fn shard_of<'a>(checkpoint: &'a Checkpoint, location: &TensorLocation) -> Result<&'a Shard> {
    let gone = || Error::InvalidCheckpoint {
        path: checkpoint.path().to_owned(),
        reason: format!("there is no shard number {}", location.shard.0),
    };
    checkpoint.shard(location.shard).ok_or_else(gone)
}

/// The same error, with the module for which it was read.
fn named(error: Error, module: &str) -> Error {
    match error {
        Error::Io { operation, path, tensor: None, source } => {
            Error::Io { operation, path, tensor: Some(module.to_owned()), source }
        }
        other => other,
    }
}

/// A part's module name, own name, home and host copy.
type Origin<B> = (Arc<str>, Arc<str>, Option<Home>, Option<<B as Backend>::Tensor>);

impl<B: Backend> Inner<B> {
    fn source(&self, unit: usize, part: usize) -> Option<Origin<B>> {
        let mut state = self.lock();
        let own = state.units.get_mut(unit)?;
        let name = Arc::clone(&own.name);
        let part = own.parts.get(part)?;
        let copy = part.host.as_ref().map(|copy| self.backend.share(&copy.tensor));
        Some((name, Arc::clone(&part.name), part.home.clone(), copy))
    }

    /// The state's version, while no module was ever asked for.
    fn idle(&self) -> Option<u64> {
        let state = self.lock();
        (state.demand.is_empty() && state.cursors.is_empty()).then_some(state.version)
    }

    /// Takes storage for all parts that a unit misses, or for none.
    fn take_room(&self, unit: usize, pressure: Pressure) -> Room<B> {
        loop {
            let mut state = self.lock();
            if state.stop.is_some() {
                return Room::Wait; // Nothing is to be filled any more.
            }
            state.sweep(&self.backend);
            let missing = match state.missing(unit) {
                Some(missing) => missing,
                None => return Room::Wait, // A part of it is on its way out.
            };
            let (reused, fresh) = state.reuse(&missing);
            let needed: Bytes = fresh.iter().map(|(_, desc)| desc.bytes()).sum();
            if needed > self.near_budget.available() {
                // What is left in the pool now is of other shapes, or more than is missing: it goes first.
                let spare = state.pool.pop();
                state.pool.extend(reused.into_iter().map(|(_, free)| free));
                if spare.is_some() {
                    drop(spare);
                    continue;
                }
                match self.make_room(state, unit, needed, pressure) {
                    Ok(true) => continue,
                    Ok(false) => return Room::Wait,
                    Err(error) => return Room::Failed(error),
                }
            }
            let rooms: dd_core::Result<Vec<_>> = fresh
                .iter()
                .map(|(_, desc)| self.near_budget.try_reserve(desc.bytes(), &self.weights))
                .collect();
            let Ok(rooms) = rooms else {
                state.pool.extend(reused.into_iter().map(|(_, free)| free));
                continue; // Somebody else was quicker.
            };
            for (part, _) in &missing {
                if let Some(part) = state.part(unit, *part) {
                    part.near = Near::Filling;
                }
            }
            state.moving += missing.len();
            drop(state);
            return self.allocate(unit, reused, fresh, rooms);
        }
    }

    /// Frees something for `unit`; false where nothing may go under this pressure.
    fn make_room(
        &self,
        mut state: std::sync::MutexGuard<'_, State<B>>,
        unit: usize,
        needed: Bytes,
        pressure: Pressure,
    ) -> Result<bool> {
        if let Some(victim) = state.victim(unit, pressure) {
            let stuck = state.part(victim.0, victim.1).is_some_and(|part| part.stuck);
            return match self.leave(state, victim) {
                Err(error) if stuck => Err(error), // Nothing else is left that could go.
                _ => Ok(true),
            };
        }
        if pressure != Pressure::Demand || state.moving > 0 {
            return Ok(false);
        }
        if let Some(victim) = state.waiting_victim(unit) {
            self.leave(state, victim)?;
            return Ok(true);
        }
        if !state.is_stuck() {
            return Ok(false);
        }
        let holds = !state.holders.is_empty();
        drop(state);
        // Everything of ours is out: the rest is with others who share the budget.
        match self.near_budget.reserve(needed, &self.weights) {
            Ok(_given_back) => Ok(true),
            Err(_) if holds => Ok(false), // Our own guards are in the way; see `break_deadlock`.
            Err(error) => Err(error.into()),
        }
    }

    /// Makes the storage for which room was taken. A device that is out of memory all the same gets everything out that
    /// is not in use, once, before that is an error.
    fn allocate(
        &self,
        unit: usize,
        mut parts: Vec<(usize, Free<B>)>,
        fresh: Vec<(usize, TensorDesc)>,
        rooms: Vec<dd_core::Reservation>,
    ) -> Room<B> {
        let mut failed = None;
        for ((part, desc), room) in fresh.into_iter().zip(rooms) {
            match failed.is_none().then(|| self.allocate_one(unit, &desc)) {
                Some(Ok(tensor)) => parts.push((part, Free { tensor, desc, room })),
                Some(Err(error)) => failed = Some((part, error)),
                None => self.give_up(unit, part),
            }
        }
        let Some((part, error)) = failed else { return Room::Taken(parts) };
        self.give_up(unit, part);
        let mut state = self.lock();
        for (part, free) in parts {
            state.moving -= 1;
            if let Some(part) = state.part(unit, part) {
                part.near = Near::Absent;
            }
            state.set_free(&self.backend, free);
        }
        Room::Failed(error)
    }

    fn give_up(&self, unit: usize, part: usize) {
        let mut state = self.lock();
        state.moving -= 1;
        if let Some(part) = state.part(unit, part) {
            part.near = Near::Absent;
        }
    }

    fn allocate_one(&self, unit: usize, desc: &TensorDesc) -> Result<B::Tensor> {
        let refused = match self.backend.allocate(desc, self.near) {
            Ok(tensor) => return Ok(tensor),
            Err(error) if error.is_out_of_memory() => error,
            Err(error) => return Err(error.into()),
        };
        tracing::warn!(error = %refused, "out of memory: everything that is not in use leaves, and once more");
        loop {
            let mut state = self.lock();
            state.stale = true;
            state.pool.clear();
            let Some(victim) = state.victim(unit, Pressure::Demand) else { break };
            self.leave(state, victim)?;
        }
        self.backend.trim(self.near)?;
        Ok(self.backend.allocate(desc, self.near)?)
    }

    /// Ends the filling of a part; `read` says how many bytes came from a file.
    fn finish(&self, unit: usize, part: usize, free: Free<B>, result: Result<Option<Bytes>>, took: Duration) {
        let bytes = free.desc.bytes();
        let mut state = self.lock();
        state.moving -= 1;
        state.poke();
        let from = state.part(unit, part).map(|own| own.tier(self.near));
        let error = match result {
            Ok(read) => {
                state.stats.read += read.unwrap_or_default();
                state.stats.loads += 1;
                if let Some(own) = state.part(unit, part) {
                    own.near = Near::Filled(Box::new(free));
                }
                None
            }
            Err(error) => {
                if let Some(own) = state.part(unit, part) {
                    own.near = Near::Absent;
                }
                state.set_free(&self.backend, free);
                Some(error)
            }
        };
        let name = state.units.get(unit).map(|own| Arc::clone(&own.name));
        let ready = state.units.get(unit).is_some_and(|own| own.is_ready());
        let watched = state.updating > 0;
        drop(state);
        match error {
            Some(error) => self.fail(unit, error),
            None if ready || watched => self.changed.notify_all(),
            None => {}
        }
        if let (Some(name), Some(from)) = (name, from) {
            self.tell(&Event::Moved { unit: &name, from, to: self.near, bytes, took });
        }
    }

    /// Tells who waits for a unit that it could not be had.
    fn fail(&self, unit: usize, error: Error) {
        let mut state = self.lock();
        state.demand.retain(|wanted| *wanted != unit);
        state.poke();
        if let Some(own) = state.units.get_mut(unit) {
            if own.waiters > 0 {
                own.failed = Some(error);
            } else {
                tracing::warn!(%error, unit = %own.name, "reading ahead failed; it is tried again when it is needed");
            }
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Tells the first who waits; false where nobody does.
    fn fail_first(&self, error: Error) -> bool {
        let first = self.lock().demand.front().copied();
        first.map(|unit| self.fail(unit, error)).is_some()
    }

    /// Where every thread that holds a module waits for another, one of them must be told.
    fn break_deadlock(&self) {
        let state = self.lock();
        let Some(unit) = state.demand.front().copied().filter(|_| state.is_stuck()) else { return };
        if state.holders.is_empty() {
            return; // Nothing of ours is in the way: asking the others has said what is wrong.
        }
        let Some(own) = state.units.get(unit) else { return };
        let needed = own.bytes().saturating_sub(own.near_bytes());
        let least = self.budget.limit() + needed;
        let error = Error::AllInUse { module: own.name.to_string(), needed, least };
        drop(state);
        self.fail(unit, error);
    }

    /// Gives everything back, unless something is in use.
    pub(super) fn free_all(&self) -> Result<()> {
        let mut state = self.lock();
        if let Some(own) = state.units.iter().find(|unit| unit.users > 0) {
            let module = own.name.to_string();
            return Err(Error::AllInUse { module, needed: Bytes::ZERO, least: self.budget.limit() });
        }
        state.stop = Some(Stop::Freed);
        self.work.notify_all();
        self.changed.notify_all();
        while state.moving > 0 {
            drop(state);
            std::thread::sleep(Duration::from_millis(1)); // What is in flight arrives first.
            state = self.lock();
        }
        drop(state);
        self.free_unused();
        Ok(())
    }

    /// Gives back everything but the modules in use; nothing is loaded any more.
    pub(super) fn free_unused(&self) {
        let mut state = self.lock();
        let unused = state.units.iter_mut().filter(|unit| unit.users == 0);
        let parts: Vec<_> = unused.flat_map(|unit| unit.parts.drain(..)).collect();
        let pool = std::mem::take(&mut state.pool);
        state.sweep(&self.backend);
        drop(state);
        parts.iter().for_each(|part| self.stores.forget(part.home.as_ref()));
        drop((parts, pool));
        self.stores.close();
    }
}

impl<B: Backend> State<B> {
    /// Takes back what the loader had begun to fill when it panicked.
    fn forget_filling(&mut self) {
        let parts = self.units.iter_mut().flat_map(|unit| &mut unit.parts);
        let begun: Vec<_> = parts.filter(|part| matches!(part.near, Near::Filling)).collect();
        self.moving = self.moving.saturating_sub(begun.len());
        begun.into_iter().for_each(|part| part.near = Near::Absent);
        self.poke();
    }

    /// The parts of a unit that must be filled; nothing while one of them is still leaving.
    fn missing(&self, unit: usize) -> Option<Vec<(usize, TensorDesc)>> {
        let own = self.units.get(unit)?;
        if own.parts.iter().any(|part| matches!(part.near, Near::Leaving)) {
            return None;
        }
        let absent = own.parts.iter().enumerate().filter(|(_, part)| matches!(part.near, Near::Absent));
        Some(absent.map(|(index, part)| (index, part.desc.clone())).collect())
    }

    /// Takes storage of the right shapes out of the pool; says which parts still need new storage.
    #[allow(clippy::type_complexity, reason = "two lists of parts, by how they get their storage")]
    fn reuse(
        &mut self,
        missing: &[(usize, TensorDesc)],
    ) -> (Vec<(usize, Free<B>)>, Vec<(usize, TensorDesc)>) {
        let (mut reused, mut fresh) = (Vec::new(), Vec::new());
        for (part, desc) in missing {
            match self.pool.iter().position(|free| free.desc == *desc) {
                Some(index) => reused.push((*part, self.pool.swap_remove(index))),
                None => fresh.push((*part, desc.clone())),
            }
        }
        (reused, fresh)
    }
}
