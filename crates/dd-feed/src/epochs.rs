//! [`Epochs`], [`Epoch`] and [`Batch`]: what a caller iterates over.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dd_core::error::Cause;
use dd_core::{Backend, Event, Observer};

use crate::engine::{Delivered, Engine};
use crate::error::{Error, Result};
use crate::feeder::Apply;
use crate::state::FeedState;

/// Epochs of batches. Each is to be finished or dropped before the next is asked for a batch. Dropping all of them ends the threads and gives
/// the memory back.
pub struct Epochs<B: Backend, X, Y> {
    common: Common<B, X, Y>,
    numbers: Range<u64>,
}

/// One epoch's batches.
///
/// Where the caller holds all batches for which there is memory, [`Error::BatchesHeld`] comes once, then nothing, until one of them is dropped:
/// then the epoch goes on. Every other error ends the feed.
pub struct Epoch<B: Backend, X, Y> {
    common: Common<B, X, Y>,
    number: u64,
    total: u64,
}

/// A batch: inputs and outputs, of as many samples each.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Batch<X, Y> {
    /// The inputs: `[samples, ..]`, or what was made of them.
    pub input: X,
    /// The outputs: `[samples, ..]`, or what was made of them.
    pub output: Y,
    /// How many samples.
    pub samples: usize,
    /// The epoch.
    pub epoch: u64,
    /// The positions in the order of the epoch that its identities have: [`Feeder::order`](crate::Feeder::order) tells which those are.
    /// Fewer samples than that were delivered where identities were left out.
    pub positions: Range<u64>,
}

impl<X, Y> Batch<X, Y> {
    /// Inputs and outputs.
    pub fn into_pair(self) -> (X, Y) {
        (self.input, self.output)
    }
}

struct Common<B: Backend, X, Y> {
    engine: Arc<Mutex<Engine<B>>>,
    input: Apply<B::Tensor, X>,
    output: Apply<B::Tensor, Y>,
    observer: Option<Arc<dyn Observer>>,
}

impl<B: Backend, X, Y> Clone for Common<B, X, Y> {
    fn clone(&self) -> Self {
        Self {
            engine: Arc::clone(&self.engine),
            input: Arc::clone(&self.input),
            output: Arc::clone(&self.output),
            observer: self.observer.clone(),
        }
    }
}

impl<B: Backend, X, Y> Common<B, X, Y> {
    fn engine(&self) -> MutexGuard<'_, Engine<B>> {
        self.engine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn apply(&self, delivered: Delivered<B>) -> Result<Batch<X, Y>> {
        let Delivered { tensors, samples, task } = delivered;
        let (epoch, position) = (task.epoch, task.positions.start);
        let failed = |side: &'static str| move |source: Cause| Error::Apply { side, epoch, position, source };
        Ok(Batch {
            input: (self.input)(tensors.0).map_err(failed("input"))?,
            output: (self.output)(tensors.1).map_err(failed("output"))?,
            samples,
            epoch,
            positions: task.positions,
        })
    }
}

impl<B: Backend, X, Y> Epochs<B, X, Y> {
    pub(crate) fn new(
        engine: Engine<B>,
        numbers: Range<u64>,
        input: Apply<B::Tensor, X>,
        output: Apply<B::Tensor, Y>,
        observer: Option<Arc<dyn Observer>>,
    ) -> Self {
        let engine = Arc::new(Mutex::new(engine));
        Self { common: Common { engine, input, output, observer }, numbers }
    }

    /// Where the feed stands: what comes after the last batch that was delivered. Nothing while batches that came out of order leave gaps.
    #[must_use]
    pub fn state(&self) -> Option<FeedState> {
        self.common.engine().state()
    }
}

impl<B: Backend, X, Y> Iterator for Epochs<B, X, Y> {
    type Item = Epoch<B, X, Y>;

    fn next(&mut self) -> Option<Epoch<B, X, Y>> {
        if self.common.engine().is_stopped() {
            return None;
        }
        let number = self.numbers.next()?;
        let total = self.common.engine().left(number);
        Some(Epoch { common: self.common.clone(), number, total })
    }
}

impl<B: Backend, X, Y> Epoch<B, X, Y> {
    /// Its number, counted from zero over the whole run.
    #[must_use]
    pub const fn number(&self) -> u64 {
        self.number
    }

    /// How many batches are still to come.
    #[must_use]
    pub fn left(&self) -> u64 {
        self.common.engine().left(self.number)
    }

    /// Where the feed stands, as [`Epochs::state`].
    #[must_use]
    pub fn state(&self) -> Option<FeedState> {
        self.common.engine().state()
    }

    fn tell(&self, left: u64) {
        let Some(observer) = &self.common.observer else { return };
        let task = format!("epoch {}", self.number);
        let done = self.total.saturating_sub(left);
        observer.on_event(&Event::Progress { task: &task, done, total: self.total });
    }
}

impl<B: Backend, X, Y> Iterator for Epoch<B, X, Y> {
    type Item = Result<Batch<X, Y>>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut engine = self.common.engine();
        let delivered = engine.next(self.number)?;
        let left = engine.left(self.number);
        drop(engine);
        self.tell(left);
        Some(delivered.and_then(|delivered| self.common.apply(delivered)))
    }
}

impl<B: Backend, X, Y> Drop for Epoch<B, X, Y> {
    fn drop(&mut self) {
        self.common.engine().abandon(self.number);
    }
}
