//! The engine of a feed: slots of memory that go round between the caller and the threads that fill them.
//!
//! All decisions are taken where the caller asks for a batch: which slots are free again, which batch is filled next. The threads only fill
//! what they are given, and a slot comes with it, so that no thread ever waits for memory. What is read ahead is limited by the slots
//! there are, and they by the budget. Where nothing is being filled, nothing is ready and no slot is free, the caller holds them all:
//! that is an error ([`Error::BatchesHeld`]) and not a wait, since it could be for ever.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Instant;

use crossbeam::channel::{Receiver, Sender, unbounded};
use dd_core::{Backend, Budget, Bytes, Holder};

use crate::cache::Cache;
use crate::error::{Error, Result};
use crate::shared::{Filled, Shared, Slot, Source, Task};
use crate::state::FeedState;
use crate::stats::{add, add_time};
use crate::steps::Steps;

/// What a batch takes beside its samples (handles, messages, lists): an upper bound. It is accounted for all but the first, so that a
/// budget of one sample is enough.
const OVERHEAD: Bytes = Bytes::kib(2);

/// A batch to be filled, with its memory.
struct Job<B: Backend> {
    slot: Slot<B>,
    task: Task,
}

/// A batch that was filled, or could not be.
struct Done<B: Backend> {
    slot: Slot<B>,
    task: Task,
    filled: Result<Filled>,
}

/// A batch as it is handed to the caller.
pub(crate) struct Delivered<B: Backend> {
    pub(crate) tensors: (B::Tensor, B::Tensor),
    pub(crate) samples: usize,
    pub(crate) task: Task,
}

/// What is to be filled next.
struct Cursor {
    epoch: u64,
    index: u64,
}

/// See the [module](self).
pub(crate) struct Engine<B: Backend> {
    shared: Arc<Shared<B>>,
    budget: Budget,
    holder: Holder,
    ordered: bool,
    jobs: Option<Sender<Box<Job<B>>>>,
    done: Receiver<Box<Done<B>>>,
    threads: Vec<JoinHandle<()>>,
    free: Vec<Slot<B>>,
    /// Handed over; free again once the caller has let go of the tensors.
    lent: Vec<Slot<B>>,
    ready: BTreeMap<(u64, u64), Box<Done<B>>>,
    in_flight: usize,
    slots: usize,
    cursor: Cursor,
    /// The epoch whose batches are delivered, where its first began, and its steps.
    epoch: u64,
    from: u64,
    steps: Steps,
    /// Steps of this epoch that came to their end: all below `prefix`, and these.
    prefix: u64,
    beyond: BTreeSet<u64>,
    /// Epochs that the caller dropped before they came.
    dropped: BTreeSet<u64>,
    stopped: bool,
    /// Whether the caller was told last that there is no memory.
    refused: bool,
}

/// How an engine is to run.
pub(crate) struct Settings {
    pub(crate) workers: usize,
    pub(crate) slots: usize,
    pub(crate) ordered: bool,
    pub(crate) start: FeedState,
}

impl<B: Backend> Engine<B> {
    /// Reserves a slot, and as many more as fit up to what is asked for; starts the threads.
    pub(crate) fn new(shared: Shared<B>, budget: &Budget, settings: &Settings) -> Result<Self> {
        let (epoch, from) = (settings.start.epoch, settings.start.position);
        let steps = shared.steps(from)?;
        shared.steps(0)?;
        let shared = Arc::new(shared);
        let (jobs, queue) = unbounded::<Box<Job<B>>>();
        let (finished, done) = unbounded();
        let mut engine = Self {
            shared,
            budget: budget.clone(),
            holder: Holder::new("feed batches"),
            ordered: settings.ordered,
            jobs: (settings.workers > 0).then_some(jobs),
            done,
            threads: Vec::new(),
            free: Vec::new(),
            lent: Vec::new(),
            ready: BTreeMap::new(),
            in_flight: 0,
            slots: 0,
            cursor: Cursor { epoch, index: 0 },
            epoch,
            from,
            steps,
            prefix: 0,
            beyond: BTreeSet::new(),
            dropped: BTreeSet::new(),
            stopped: false,
            refused: false,
        };
        engine.add_slot()?;
        while engine.slots < settings.slots {
            let Ok(room) = engine.budget.try_reserve(engine.slot_bytes(), &engine.holder) else { break };
            engine.free.push(Slot::new(room));
            engine.slots += 1;
        }
        for number in 0..settings.workers {
            engine.start_thread(number, queue.clone(), finished.clone())?;
        }
        Ok(engine)
    }

    fn start_thread(
        &mut self,
        number: usize,
        queue: Receiver<Box<Job<B>>>,
        finished: Sender<Box<Done<B>>>,
    ) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let work = move || {
            for job in queue {
                if finished.send(Box::new(perform(&shared, *job))).is_err() {
                    break;
                }
            }
        };
        let started = std::thread::Builder::new().name(format!("dd-feed {number}")).spawn(work);
        let reason =
            |error| Error::Threads { reason: format!("number {number} could not be started: {error}") };
        self.threads.push(started.map_err(reason)?);
        Ok(())
    }

    /// The next batch of an epoch; nothing at its end. Nothing, too, where there was no memory and still is none: a caller that collects
    /// everything comes to an end, with the error.
    pub(crate) fn next(&mut self, epoch: u64) -> Option<Result<Delivered<B>>> {
        self.skip_dropped();
        if self.stopped || epoch < self.epoch {
            return None;
        }
        if epoch > self.epoch {
            return Some(Err(Error::EpochOrder { asked: epoch, current: self.epoch }));
        }
        loop {
            if self.prefix == self.steps.count() {
                self.begin_epoch(epoch + 1);
                return None;
            }
            self.recycle();
            self.dispatch();
            if let Some(done) = self.take_ready() {
                match self.deliver(*done) {
                    Some(Err(error)) => {
                        self.stopped = true;
                        return Some(Err(error));
                    }
                    Some(delivered) => return Some(delivered),
                    None => continue, // All of it was left out.
                }
            }
            if let Err(error) = self.obtain() {
                let again = std::mem::replace(&mut self.refused, true);
                return (!again).then_some(Err(error));
            }
        }
    }

    /// Where the feed stands; nothing while batches that came out of order leave gaps.
    pub(crate) fn state(&self) -> Option<FeedState> {
        if !self.beyond.is_empty() {
            return None;
        }
        let before = self.prefix.checked_sub(1).and_then(|index| self.steps.step(index));
        let position = before.map_or(self.from, |step| step.global.end);
        let (identities, seed) = (self.shared.plan.identities, self.shared.seed);
        let (epoch, position) =
            if position == identities { (self.epoch + 1, 0) } else { (self.epoch, position) };
        let variations = self.shared.plan.one_read_count;
        let fingerprint = crate::state::fingerprint(identities, variations, self.shared.shuffle);
        Some(FeedState { epoch, position, seed, fingerprint })
    }

    /// The caller wants no more of an epoch.
    pub(crate) fn abandon(&mut self, epoch: u64) {
        if epoch >= self.epoch {
            self.dropped.insert(epoch);
        }
        self.skip_dropped();
    }

    /// Whether the feed has ended with an error.
    pub(crate) const fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// How many batches this epoch still has.
    pub(crate) fn left(&self, epoch: u64) -> u64 {
        if epoch < self.epoch || self.stopped {
            return 0;
        }
        if epoch > self.epoch {
            return self.shared.steps(0).map_or(0, |steps| steps.count());
        }
        self.steps.count() - self.prefix - self.beyond.len() as u64
    }

    fn skip_dropped(&mut self) {
        while self.dropped.remove(&self.epoch) {
            self.begin_epoch(self.epoch + 1);
        }
    }

    /// Goes on to an epoch. Whatever is left of those before is given up.
    fn begin_epoch(&mut self, epoch: u64) {
        let left_early = self.prefix < self.steps.count();
        self.shared.floor.store(epoch, Ordering::Relaxed);
        let after = self.ready.split_off(&(epoch, 0));
        let stale = std::mem::replace(&mut self.ready, after);
        self.free.extend(stale.into_values().map(|done| done.slot));
        if self.cursor.epoch < epoch {
            self.cursor = Cursor { epoch, index: 0 };
        }
        (self.epoch, self.from, self.prefix) = (epoch, 0, 0);
        self.beyond.clear();
        if let Ok(steps) = self.shared.steps(0) {
            self.steps = steps;
        }
        if left_early {
            self.rekey();
        }
    }

    /// What the cache kept for the epoch that was left is kept for a later one.
    fn rekey(&self) {
        let shared = &self.shared;
        let identities = shared.plan.identities.max(1);
        let next_use = |time: u64| {
            let identity = shared.order(time / identities).at(time % identities);
            shared.next_use(identity, self.epoch)
        };
        let caches = [&shared.input.cache, &shared.output.cache].into_iter().flatten();
        caches.for_each(|cache: &Arc<Cache>| cache.rekey(shared.time(self.epoch, 0), next_use));
    }

    /// Slots whose tensors nobody sees any more are free.
    fn recycle(&mut self) {
        let backend = &self.shared.backend;
        let seen = |slot: &mut Slot<B>| match &mut slot.tensors {
            Some((input, output)) => !(backend.is_unique(input) && backend.is_unique(output)),
            None => false,
        };
        self.free.extend(self.lent.extract_if(.., |slot| !seen(slot)));
    }

    /// The next batch to fill, with memory for it.
    fn next_job(&mut self) -> Option<Box<Job<B>>> {
        let task = self.next_task()?;
        let slot = self.free.pop()?;
        self.cursor.index += 1;
        if let Source::Forward(windows) = &self.shared.source {
            windows.begin(self.shared.time(task.epoch, task.positions.start));
        }
        Some(Box::new(Job { slot, task }))
    }

    fn next_task(&mut self) -> Option<Task> {
        loop {
            let (epoch, index) = (self.cursor.epoch, self.cursor.index);
            if epoch >= self.shared.end {
                return None;
            }
            let steps = if epoch == self.epoch { self.steps } else { self.shared.steps(0).ok()? };
            match steps.step(index) {
                Some(step) => return Some(Task { epoch, index, positions: step.own }),
                None => self.cursor = Cursor { epoch: epoch + 1, index: 0 },
            }
        }
    }

    /// Gives the threads all that there is memory for.
    fn dispatch(&mut self) {
        while self.jobs.is_some() {
            let Some(job) = self.next_job() else { return };
            if let Some(Err(unsent)) = self.jobs.as_ref().map(|jobs| jobs.send(job)) {
                self.free.push(unsent.0.slot);
                return;
            }
            self.in_flight += 1;
        }
    }

    fn take_ready(&mut self) -> Option<Box<Done<B>>> {
        if self.ordered {
            return self.ready.remove(&(self.epoch, self.prefix));
        }
        let first = self.ready.first_entry().filter(|first| first.key().0 == self.epoch);
        first.map(|first| first.remove())
    }

    /// Waits for a batch, or fills one where there are no threads, or says that there is no memory.
    fn obtain(&mut self) -> Result<()> {
        let start = Instant::now();
        if self.jobs.is_none()
            && let Some(job) = self.next_job()
        {
            self.keep(Box::new(perform(&self.shared, *job)));
        } else if self.in_flight > 0 {
            let gone = |_| Error::Threads { reason: "they are gone".to_owned() };
            let done = self.done.recv().map_err(gone)?;
            self.in_flight -= 1;
            self.keep(done);
        } else {
            return self.add_slot().map_err(|error| match self.slots {
                0 => error,
                held => Error::BatchesHeld { held, limit: self.budget.limit() },
            });
        }
        add_time(&self.shared.counters.wait, start);
        Ok(())
    }

    fn keep(&mut self, done: Box<Done<B>>) {
        match done.task.epoch < self.epoch {
            true => self.free.push(done.slot),
            false => drop(self.ready.insert((done.task.epoch, done.task.index), done)),
        }
    }

    /// One slot more, asking others to give back.
    fn add_slot(&mut self) -> Result<()> {
        let room = self.budget.reserve(self.slot_bytes(), &self.holder)?;
        self.free.push(Slot::new(room));
        self.slots += 1;
        Ok(())
    }

    /// What one slot more takes.
    fn slot_bytes(&self) -> Bytes {
        let bytes = self.shared.plan.batch_bytes;
        if self.slots == 0 { bytes } else { bytes + OVERHEAD }
    }

    /// Counts a batch as come to its end, and hands over what is in it.
    fn deliver(&mut self, done: Done<B>) -> Option<Result<Delivered<B>>> {
        let Done { mut slot, task, filled } = done;
        self.beyond.insert(task.index);
        while self.beyond.remove(&self.prefix) {
            self.prefix += 1;
        }
        let samples = match filled {
            Ok(Filled::Samples(samples)) if samples > 0 => samples,
            Ok(_) => {
                self.free.push(slot);
                return None;
            }
            Err(error) => {
                self.free.push(slot);
                return Some(Err(error));
            }
        };
        let tensors = self.lend(&mut slot)?;
        self.refused = false;
        self.lent.push(slot);
        let counters = &self.shared.counters;
        add(&counters.batches, 1);
        add(&counters.samples, samples as u64);
        add(&counters.bytes, self.shared.plan.sample_bytes.0.saturating_mul(samples as u64));
        Some(Ok(Delivered { tensors, samples, task }))
    }

    /// Handles for the caller. Where nobody can tell when they are dropped, the storage itself goes.
    fn lend(&self, slot: &mut Slot<B>) -> Option<(B::Tensor, B::Tensor)> {
        let backend = &self.shared.backend;
        if !backend.can_tell_unique() {
            return slot.tensors.take();
        }
        slot.tensors.as_ref().map(|(input, output)| (backend.share(input), backend.share(output)))
    }
}

impl<B: Backend> Drop for Engine<B> {
    fn drop(&mut self) {
        self.shared.floor.store(u64::MAX, Ordering::Relaxed);
        self.jobs = None;
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread that reads ahead panicked");
            }
        }
    }
}

fn perform<B: Backend>(shared: &Shared<B>, job: Job<B>) -> Done<B> {
    let Job { mut slot, task } = job;
    let filled = shared.fill(&mut slot, &task);
    Done { slot, task, filled }
}
