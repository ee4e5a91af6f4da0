//! What all threads of a feed share, and how a batch is filled.

use std::collections::BTreeMap;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use dd_core::error::Cause;
use dd_core::{Backend, Reservation, Tier};

use crate::cache::Cache;
use crate::convert::Conversion;
use crate::error::{Error, Result};
use crate::forward::Windows;
use crate::order::{Order, Shuffle};
use crate::plan::FeedPlan;
use crate::seed::sample_seed;
use crate::stats::{Counters, ErrorPolicy, add, add_time};
use crate::steps::Steps;
use crate::stream::{Origin, Samples, Stream};

/// How many epochs ahead the next use of a sample is looked for, where other ranks may have it in between.
const LOOK_AHEAD: u64 = 3;
/// How many epochs' orders are kept.
const ORDERS: usize = 6;

/// Changes a delivered sample in place, by its seed.
pub(crate) type Augment = dyn Fn(&mut [u8], u64) + Send + Sync;

/// Inputs, or outputs: from what is stored to what is delivered.
#[derive(Clone)]
pub(crate) struct Side {
    pub(crate) conversion: Conversion,
    /// Bytes of a sample as it is stored.
    pub(crate) stored: usize,
    /// Bytes of a sample as it is delivered.
    pub(crate) row: usize,
    pub(crate) augment: Option<Arc<Augment>>,
    pub(crate) cache: Option<Arc<Cache>>,
}

/// Where samples come from.
pub(crate) enum Source {
    Anywhere(Arc<dyn Stream>, Arc<dyn Stream>),
    Forward(Windows),
}

/// What all threads share.
pub(crate) struct Shared<B: Backend> {
    pub(crate) backend: Arc<B>,
    pub(crate) tier: Tier,
    pub(crate) plan: FeedPlan,
    pub(crate) source: Source,
    pub(crate) input: Side,
    pub(crate) output: Side,
    pub(crate) variations: usize,
    pub(crate) seed: u64,
    pub(crate) shuffle: Shuffle,
    pub(crate) rank: u64,
    pub(crate) ranks: u64,
    /// The first epoch that is not asked for.
    pub(crate) end: u64,
    pub(crate) policy: ErrorPolicy,
    pub(crate) orders: Mutex<BTreeMap<u64, Arc<Order>>>,
    pub(crate) counters: Arc<Counters>,
    /// Epochs below this were left by the caller.
    pub(crate) floor: AtomicU64,
}

/// One batch to be filled.
#[derive(Clone, Debug)]
pub(crate) struct Task {
    pub(crate) epoch: u64,
    pub(crate) index: u64,
    pub(crate) positions: Range<u64>,
}

/// The memory of one batch.
pub(crate) struct Slot<B: Backend> {
    pub(crate) tensors: Option<(B::Tensor, B::Tensor)>,
    /// Samples that the tensors have room for.
    pub(crate) samples: usize,
    /// For backends that do not lend their storage.
    staging: Vec<u8>,
    _room: Reservation,
}

/// How filling a batch ended.
pub(crate) enum Filled {
    /// With so many samples; none where all were left out.
    Samples(usize),
    /// Its epoch was left by the caller.
    Abandoned,
}

impl<B: Backend> Slot<B> {
    pub(crate) const fn new(room: Reservation) -> Self {
        Self { tensors: None, samples: 0, staging: Vec::new(), _room: room }
    }
}

/// The place of one identity in a batch that is being filled.
struct Place<'a> {
    origin: Origin,
    position: u64,
    input: &'a mut [u8],
    output: &'a mut [u8],
}

impl<B: Backend> Shared<B> {
    /// The order of an epoch.
    pub(crate) fn order(&self, epoch: u64) -> Arc<Order> {
        let mut orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        let make = || Arc::new(Order::new(self.plan.identities, self.shuffle, self.seed, epoch));
        let order = Arc::clone(orders.entry(epoch).or_insert_with(make));
        while orders.len() > ORDERS {
            orders.pop_first();
        }
        order
    }

    /// The steps of an epoch from a position on.
    pub(crate) fn steps(&self, from: u64) -> Result<Steps> {
        Steps::new(from, self.plan.identities, self.plan.reads_per_batch(), self.rank, self.ranks)
    }

    /// A moment, counted in identities over all epochs.
    pub(crate) const fn time(&self, epoch: u64, position: u64) -> u64 {
        epoch.saturating_mul(self.plan.identities).saturating_add(position)
    }

    /// When this rank uses an identity next, from `epoch` on.
    pub(crate) fn next_use(&self, identity: u64, epoch: u64) -> Option<u64> {
        let end = self.end.min(epoch.saturating_add(LOOK_AHEAD));
        let steps = self.steps(0).ok()?;
        (epoch..end).find_map(|epoch| {
            let position = self.order(epoch).position_of(identity);
            steps.owns(position).then(|| self.time(epoch, position))
        })
    }

    /// Fills a batch.
    pub(crate) fn fill(&self, slot: &mut Slot<B>, task: &Task) -> Result<Filled> {
        let mut mark = self.time(task.epoch, task.positions.start);
        // A function of the user's that panics must not leave others waiting.
        let fill = AssertUnwindSafe(|| self.fill_marked(slot, task, &mut mark));
        let filled = catch_unwind(fill).unwrap_or_else(|panic| Err(panicked(&*panic)));
        if let Source::Forward(windows) = &self.source {
            windows.finish(mark);
        }
        filled
    }

    /// What cannot be read is left out, and the batch is then filled again: only so is it known how many samples it has before it gets
    /// memory.
    fn fill_marked(&self, slot: &mut Slot<B>, task: &Task, mark: &mut u64) -> Result<Filled> {
        let mut left_out = Vec::new();
        loop {
            let identities = task.positions.clone().count() - left_out.len();
            if identities == 0 {
                return Ok(Filled::Samples(0));
            }
            self.prepare(slot, identities * self.variations)?;
            let before = left_out.len();
            let whole = self.with_bytes(slot, |x, y| self.rows(task, &mut left_out, mark, x, y))?;
            if !whole {
                return Ok(Filled::Abandoned);
            }
            if left_out.len() == before {
                return Ok(Filled::Samples(identities * self.variations));
            }
        }
    }

    /// Gives the slot tensors of this many samples. The old ones go first, so that both are never there.
    fn prepare(&self, slot: &mut Slot<B>, samples: usize) -> Result<()> {
        if slot.tensors.is_some() && slot.samples == samples {
            return Ok(());
        }
        slot.tensors = None;
        slot.staging = Vec::new();
        let input = self.backend.allocate(&self.plan.input_batch(samples)?, self.tier)?;
        let output = self.backend.allocate(&self.plan.output_batch(samples)?, self.tier)?;
        slot.tensors = Some((input, output));
        slot.samples = samples;
        Ok(())
    }

    /// Runs `fill` on the bytes of both tensors: in place where the backend lends them.
    fn with_bytes<R>(
        &self,
        slot: &mut Slot<B>,
        mut fill: impl FnMut(&mut [u8], &mut [u8]) -> Result<R>,
    ) -> Result<R> {
        let Some((input, output)) = &mut slot.tensors else {
            return Err(Error::Threads { reason: "a batch without memory".to_owned() });
        };
        let mut result = None;
        let mut inner = Ok(true);
        let lent = self.backend.fill(input, &mut |x| {
            inner = self.backend.fill(output, &mut |y| result = Some(fill(x, y)));
        })?;
        inner?;
        if let Some(result) = result {
            return result;
        }
        debug_assert!(!lent, "a backend lends both or none");
        let split = slot.samples * self.input.row;
        slot.staging.resize(slot.samples * (self.input.row + self.output.row), 0);
        let (x, y) = slot.staging.split_at_mut(split);
        let result = fill(x, y)?;
        self.backend.write(input, 0, x)?;
        self.backend.write(output, 0, y)?;
        Ok(result)
    }

    /// Fills the rows of a batch one identity after the other; what cannot be read and may be left out is noted, and its place taken by
    /// the next. Says whether it came to the end.
    fn rows(
        &self,
        task: &Task,
        left_out: &mut Vec<u64>,
        mark: &mut u64,
        x: &mut [u8],
        y: &mut [u8],
    ) -> Result<bool> {
        let order = self.order(task.epoch);
        let (wide_x, wide_y) = (self.input.row * self.variations, self.output.row * self.variations);
        let mut places = x.chunks_exact_mut(wide_x).zip(y.chunks_exact_mut(wide_y));
        let mut start = Instant::now();
        let known = left_out.clone();
        let mut next = places.next();
        for position in task.positions.clone() {
            if known.contains(&position) {
                continue;
            }
            if task.epoch < self.floor.load(Ordering::Relaxed) {
                return Ok(false);
            }
            let Some((input, output)) = next.take() else { break };
            let identity = order.at(position);
            let origin = Origin { seed: self.seed, epoch: task.epoch, identity };
            let mut place = Place { origin, position, input, output };
            match self.place(&order, &mut place, mark, &mut start) {
                Ok(()) => next = places.next(),
                Err(error) => {
                    self.leave_out(error)?;
                    left_out.push(position);
                    next = Some((place.input, place.output));
                }
            }
        }
        add_time(&self.counters.read, start);
        Ok(true)
    }

    /// Counts what is left out, where the policy lets it be.
    fn leave_out(&self, error: Error) -> Result<()> {
        let (Some(at_most), Error::Read { .. }) = (self.policy.skips(), &error) else { return Err(error) };
        if matches!(self.source, Source::Forward(_)) {
            return Err(error); // What comes after it cannot be trusted.
        }
        let skipped = self.counters.skipped.fetch_add(1, Ordering::Relaxed) + 1;
        if skipped > at_most {
            return Err(Error::TooManySkipped { skipped, at_most, source: Box::new(error) });
        }
        tracing::warn!(%error, "left out");
        Ok(())
    }

    /// Fills the place of one identity, both sides.
    fn place(&self, order: &Order, place: &mut Place<'_>, mark: &mut u64, start: &mut Instant) -> Result<()> {
        match &self.source {
            Source::Anywhere(inputs, outputs) => {
                self.side(&self.input, &**inputs, place.origin, place.position, place.input, start)?;
                self.side(&self.output, &**outputs, place.origin, place.position, place.output, start)
            }
            Source::Forward(windows) => {
                let window =
                    windows.get(&|epoch| self.order(epoch), place.origin.epoch, place.position, mark)?;
                let at = order.blocks().map_or(0, |blocks| blocks.place_in_window(place.position));
                let (input, output) = window.row(at).unwrap_or_default();
                self.convert(&self.input, place.origin, input, place.input);
                self.convert(&self.output, place.origin, output, place.output);
                Ok(())
            }
        }
    }

    /// Fills one side of an identity's place: from memory, from the cache, or by reading. `start` is when the time that counts as
    /// reading began.
    fn side(
        &self,
        side: &Side,
        stream: &dyn Stream,
        origin: Origin,
        position: u64,
        rows: &mut [u8],
        start: &mut Instant,
    ) -> Result<()> {
        if let Some(stored) = stream.borrow(origin.identity) {
            self.check_borrowed(side, stream, origin, position, stored.len())?;
            self.convert(side, origin, stored, rows);
            return Ok(());
        }
        let time = self.time(origin.epoch, position);
        if let Some(cache) = &side.cache {
            if let Some(entry) = cache.take(time) {
                add(&self.counters.hits, 1);
                self.convert(side, origin, &entry, rows);
                cache.put_back(entry, self.next_use(origin.identity, origin.epoch + 1));
                return Ok(());
            }
            add(&self.counters.misses, 1);
        }
        let constant = self.read(side, stream, origin, position, rows)?;
        if let (Some(cache), true) = (&side.cache, constant) {
            let next = self.next_use(origin.identity, origin.epoch + 1);
            let stored = rows.chunks_exact(side.row).map(|row| tail(row, side.stored));
            cache.offer(next, stored);
        }
        add_time(&self.counters.read, *start);
        *start = Instant::now();
        for row in rows.chunks_exact_mut(side.row) {
            side.conversion.apply_in_place(row);
        }
        self.augment(side, origin, rows);
        add_time(&self.counters.convert, *start);
        *start = Instant::now();
        Ok(())
    }

    fn check_borrowed(
        &self,
        side: &Side,
        stream: &dyn Stream,
        origin: Origin,
        position: u64,
        found: usize,
    ) -> Result<()> {
        if found == side.stored || found == side.stored * self.variations {
            return Ok(());
        }
        let reason = format!(
            "expected {} B or one sample of {} B, found {found}",
            side.stored * self.variations,
            side.stored
        );
        Err(failed(stream, origin, position, reason.into()))
    }

    /// Reads all samples of an identity into the ends of their rows, trying again as the policy says. Says whether they are the same in
    /// every epoch.
    fn read(
        &self,
        side: &Side,
        stream: &dyn Stream,
        origin: Origin,
        position: u64,
        rows: &mut [u8],
    ) -> Result<bool> {
        let mut tries = 0;
        loop {
            let mut samples = Samples::new(rows, self.variations, side.stored, origin);
            let read = || {
                stream
                    .read(origin.identity, &mut samples)
                    .and_then(|()| samples.check().map(|()| samples.is_constant()))
            };
            match catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|panic| Err(panic_text(&*panic).into()))
            {
                Ok(constant) => return Ok(constant),
                Err(_) if tries < self.policy.retries() => {
                    tries += 1;
                    add(&self.counters.retried, 1);
                }
                Err(source) => return Err(failed(stream, origin, position, source)),
            }
        }
    }

    /// From stored bytes to delivered rows, in one pass. Stored bytes of one sample stand for all.
    fn convert(&self, side: &Side, origin: Origin, stored: &[u8], rows: &mut [u8]) {
        if stored.len() == side.stored {
            for row in rows.chunks_exact_mut(side.row) {
                side.conversion.apply(stored, row);
            }
        } else {
            side.conversion.apply(stored, rows);
        }
        self.augment(side, origin, rows);
    }

    fn augment(&self, side: &Side, origin: Origin, rows: &mut [u8]) {
        let Some(augment) = &side.augment else { return };
        for (variation, row) in (0..).zip(rows.chunks_exact_mut(side.row)) {
            augment(row, sample_seed(origin.seed, origin.epoch, origin.identity, variation));
        }
    }
}

fn failed(stream: &dyn Stream, origin: Origin, position: u64, source: Cause) -> Error {
    let (index, epoch) = (origin.identity, origin.epoch);
    Error::Read { identity: stream.identity(index).into_owned(), index, epoch, position, source }
}

fn tail(row: &[u8], len: usize) -> &[u8] {
    row.get(row.len().saturating_sub(len)..).unwrap_or_default()
}

/// The error for a panic on a thread that reads.
pub(crate) fn panicked(panic: &(dyn std::any::Any + Send)) -> Error {
    Error::Threads { reason: panic_text(panic) }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    format!("it panicked: {}", text.unwrap_or_default())
}
