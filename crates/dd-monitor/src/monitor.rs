//! [`MemoryMonitor`]: readings in the background, a bounded history, and being told.
//!
//! A monitor has a source of readings, a clock and a history. [`tick`](MemoryMonitor::tick) takes one reading on the
//! caller's thread; [`start`](MemoryMonitor::start) has a thread do so at an interval, until [`stop`](MemoryMonitor::stop).
//! Both can be mixed, and a stopped monitor can be started again; its history goes on. Monitors share nothing, so there
//! may be several, each with its own interval and source.
//!
//! ```
//! use dd_core::{MemorySample, Bytes, Tier};
//! use dd_monitor::{MemoryMonitor, Reading, Threshold, TierReading};
//!
//! let mut used = 0;
//! let source = move |reading: &mut Reading| {
//!     used += 30;
//!     let sample = MemorySample { total: Bytes(100), used: Bytes(used), available: Bytes(100 - used) };
//!     reading.tiers.push(TierReading { tier: Tier::Host, sample });
//!     Ok(())
//! };
//! let monitor = MemoryMonitor::builder().source(source).build()?;
//! monitor.on_crossing(Threshold::new("nearly full", Tier::Host, 0.85)?, |crossing| println!("{crossing}"));
//! for _ in 0..3 {
//!     monitor.tick()?; // The third one tells: `nearly full: host rose to 90.0 %`.
//! }
//! assert_eq!(monitor.raised().len(), 1);
//! # Ok::<(), dd_monitor::Error>(())
//! ```

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use dd_core::{Budget, Bytes, Tier};

use crate::clock::{Clock, SystemClock};
use crate::error::{Error, Result};
use crate::history::{History, Moment};
use crate::lock;
use crate::predict::Prediction;
use crate::reading::{Source, SystemSource, refill};
use crate::summary::MemorySummary;
use crate::threshold::{Crossing, Threshold, Watch};
use crate::timeline::Timeline;

/// How often a reading is taken unless something else is said.
pub const DEFAULT_INTERVAL: Duration = Duration::from_millis(100);
/// How many readings are kept unless something else is said: a minute of the default interval.
pub const DEFAULT_HISTORY: usize = 600;
/// How far back a prediction looks unless something else is said.
pub const DEFAULT_LOOK_BACK: Duration = Duration::from_secs(30);

const LEAST_INTERVAL: Duration = Duration::from_millis(1);
const MOST_HISTORY: usize = 1 << 20;

type Callback = Box<dyn FnMut(&Crossing) + Send>;

/// What a monitor is made of.
#[must_use]
pub struct MonitorBuilder {
    interval: Duration,
    history: usize,
    look_back: Duration,
    source: Option<Box<dyn Source>>,
    clock: Arc<dyn Clock>,
    budget: Option<Budget>,
}

impl MonitorBuilder {
    /// How often the background thread takes a reading, at least a millisecond.
    pub const fn interval(mut self, interval: Duration) -> Self {
        self.interval = interval;
        self
    }

    /// How many readings are kept, in `2..=1048576`.
    pub const fn history(mut self, readings: usize) -> Self {
        self.history = readings;
        self
    }

    /// How far back a prediction looks.
    pub const fn look_back(mut self, time: Duration) -> Self {
        self.look_back = time;
        self
    }

    /// Where readings come from; this machine unless given.
    pub fn source(mut self, source: impl Source + 'static) -> Self {
        self.source = Some(Box::new(source));
        self
    }

    /// By which clock readings are dated; the system's unless given.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Notes this budget's usage, by holder, with every reading.
    pub fn budget(mut self, budget: &Budget) -> Self {
        self.budget = Some(budget.clone());
        self
    }

    /// Makes the monitor; it takes no reading yet.
    ///
    /// # Errors
    /// [`Error::BadSetting`] for an interval or a history out of range; as [`SystemSource::open`] where no source was
    /// given.
    pub fn build(self) -> Result<MemoryMonitor> {
        if self.interval < LEAST_INTERVAL {
            let found = format!("{:?}", self.interval);
            return Err(Error::BadSetting { what: "an interval", found, expected: "at least 1 ms" });
        }
        if !(2..=MOST_HISTORY).contains(&self.history) {
            let found = format!("{} readings", self.history);
            return Err(Error::BadSetting { what: "a history", found, expected: "2 to 1048576 readings" });
        }
        let source = match self.source {
            Some(source) => source,
            None => Box::new(SystemSource::open(std::env::temp_dir())?),
        };
        let shared = Shared {
            origin: self.clock.now(),
            clock: self.clock,
            look_back: self.look_back,
            budget: self.budget,
            source: Mutex::new((source, Moment::default())),
            state: Mutex::new(State { history: History::new(self.history), ..State::default() }),
            watches: Mutex::default(),
        };
        Ok(MemoryMonitor { shared: Arc::new(shared), interval: self.interval, thread: Mutex::default() })
    }
}

struct Shared {
    clock: Arc<dyn Clock>,
    origin: Duration,
    look_back: Duration,
    budget: Option<Budget>,
    /// The source, and room for the next reading.
    source: Mutex<(Box<dyn Source>, Moment)>,
    state: Mutex<State>,
    watches: Mutex<Vec<Registered>>,
}

struct Registered {
    number: usize,
    watch: Watch,
    /// Taken out while it runs, so that no lock is held.
    callback: Option<Callback>,
}

struct State {
    history: History,
    crossings: Vec<Crossing>,
    taken: u64,
    failed: u64,
}

impl Default for State {
    fn default() -> Self {
        Self { history: History::new(1), crossings: Vec::new(), taken: 0, failed: 0 }
    }
}

/// The most crossings that are remembered.
const MOST_CROSSINGS: usize = 256;

struct Running {
    stop: Sender<()>,
    thread: JoinHandle<()>,
}

/// Takes readings, remembers the last ones, and tells when a threshold is passed. See the [module](self).
pub struct MemoryMonitor {
    shared: Arc<Shared>,
    interval: Duration,
    thread: Mutex<Option<Running>>,
}

impl MemoryMonitor {
    /// What a monitor is made of: 100 ms, 600 readings, this machine.
    pub fn builder() -> MonitorBuilder {
        MonitorBuilder {
            interval: DEFAULT_INTERVAL,
            history: DEFAULT_HISTORY,
            look_back: DEFAULT_LOOK_BACK,
            source: None,
            clock: Arc::new(SystemClock::default()),
            budget: None,
        }
    }

    /// A monitor of this machine and this process with the usual settings.
    ///
    /// # Errors
    /// As [`SystemSource::open`].
    pub fn system() -> Result<Self> {
        Self::builder().build()
    }

    /// Takes a reading now, on this thread, and tells those whose thresholds it passes.
    ///
    /// # Errors
    /// What the source says; the history then stays as it is.
    pub fn tick(&self) -> Result<()> {
        self.shared.tick()
    }

    /// Takes readings in the background, the first one at once, until [`stop`](Self::stop) or until this is dropped. A
    /// monitor that runs already goes on running.
    ///
    /// # Errors
    /// [`Error::NoThread`].
    pub fn start(&self) -> Result<()> {
        let mut running = lock(&self.thread);
        if running.as_ref().is_some_and(|running| !running.thread.is_finished()) {
            return Ok(());
        }
        let (stop, stopped) = channel();
        let (shared, interval) = (Arc::clone(&self.shared), self.interval);
        let thread = std::thread::Builder::new().name("memory-monitor".to_owned()).stack_size(512 << 10);
        let thread = thread.spawn(move || shared.run(interval, &stopped));
        *running = Some(Running { stop, thread: thread.map_err(|source| Error::NoThread { source })? });
        Ok(())
    }

    /// Stops the background thread and waits until it has ended; after this no callback runs. From inside a callback it
    /// does not wait, since that would be for itself.
    pub fn stop(&self) {
        let Some(running) = lock(&self.thread).take() else { return };
        drop(running.stop);
        let is_itself = running.thread.thread().id() == std::thread::current().id();
        if !is_itself && running.thread.join().is_err() {
            tracing::error!("the memory monitor's thread had panicked");
        }
    }

    /// Whether readings are taken in the background.
    #[must_use]
    pub fn is_running(&self) -> bool {
        lock(&self.thread).as_ref().is_some_and(|running| !running.thread.is_finished())
    }

    /// Has this function called on every crossing of a threshold, in both directions, on the thread that took the
    /// reading and with no lock of the monitor held: it may ask the monitor anything, and stop it. A function that panics
    /// is told to the log; the monitor goes on. A crossing that is found while its function still runs (because another
    /// thread took a reading too) is only remembered.
    pub fn on_crossing(&self, threshold: Threshold, callback: impl FnMut(&Crossing) + Send + 'static) {
        let mut watches = lock(&self.shared.watches);
        let number = watches.len();
        watches.push(Registered { number, watch: Watch::new(threshold), callback: Some(Box::new(callback)) });
    }

    /// The thresholds that are raised now.
    #[must_use]
    pub fn raised(&self) -> Vec<Threshold> {
        lock(&self.shared.watches).iter().filter_map(|it| it.watch.raised().cloned()).collect()
    }

    /// The last crossings, oldest first, at most 256.
    #[must_use]
    pub fn crossings(&self) -> Vec<Crossing> {
        lock(&self.shared.state).crossings.clone()
    }

    /// The newest reading.
    #[must_use]
    pub fn latest(&self) -> Option<Moment> {
        self.with_history(|history| history.latest().cloned())
    }

    /// A copy of the history.
    #[must_use]
    pub fn history(&self) -> History {
        self.with_history(History::clone)
    }

    /// Looks at the history without copying it; readings wait meanwhile.
    pub fn with_history<T>(&self, look: impl FnOnce(&History) -> T) -> T {
        look(&lock(&self.shared.state).history)
    }

    /// How many readings were taken, and how many failed.
    #[must_use]
    pub fn counts(&self) -> (u64, u64) {
        let state = lock(&self.shared.state);
        (state.taken, state.failed)
    }

    /// Where the usage of a tier is going; nothing where there are too few readings.
    #[must_use]
    pub fn predict(&self, tier: Tier) -> Option<Prediction> {
        self.with_history(|history| predict(history, tier, self.shared.look_back))
    }

    /// Where memory stands, where it is going, and what could be done.
    ///
    /// # Errors
    /// As [`tick`](Self::tick), where no reading has been taken yet and this one fails.
    pub fn summary(&self) -> Result<MemorySummary> {
        if self.latest().is_none() {
            self.tick()?;
        }
        let look_back = self.shared.look_back;
        Ok(self.with_history(|history| MemorySummary::of(history, |tier| predict(history, tier, look_back))))
    }

    /// The history as a timeline, with the crossings marked.
    #[must_use]
    pub fn timeline(&self) -> Timeline {
        let state = lock(&self.shared.state);
        Timeline::of_history(&state.history, &state.crossings)
    }
}

impl Drop for MemoryMonitor {
    fn drop(&mut self) {
        self.stop();
    }
}

impl fmt::Debug for MemoryMonitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (taken, failed) = self.counts();
        let mut debug = f.debug_struct("MemoryMonitor");
        debug.field("interval", &self.interval).field("running", &self.is_running());
        debug.field("taken", &taken).field("failed", &failed).finish_non_exhaustive()
    }
}

/// The line through what was taken of a tier in the last time.
fn predict(history: &History, tier: Tier, look_back: Duration) -> Option<Prediction> {
    let (now, newest) = history.tier(tier).next_back()?;
    let recent = history.tier(tier).filter(|(at, _)| now.saturating_sub(*at) <= look_back);
    let taken: Vec<(Duration, Bytes)> =
        recent.map(|(at, sample)| (at, sample.total.saturating_sub(sample.available))).collect();
    Prediction::of(&taken, newest.total)
}

impl Shared {
    /// Takes readings until the other end is dropped. A reading that takes longer than the interval delays the next one;
    /// none is made up for.
    fn run(&self, interval: Duration, stopped: &Receiver<()>) {
        let mut next = Instant::now();
        loop {
            if let Err(error) = self.tick() {
                tracing::warn!(%error, "the memory monitor could not take a reading");
            }
            next = (next + interval).max(Instant::now());
            let wait = next.saturating_duration_since(Instant::now());
            match stopped.recv_timeout(wait) {
                Err(RecvTimeoutError::Timeout) => {}
                Ok(()) | Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn tick(&self) -> Result<()> {
        let found = self.take_reading()?;
        for (number, crossing) in &found {
            self.tell(*number, crossing);
        }
        Ok(())
    }

    /// Takes one reading into the history; says which thresholds it passes, by number.
    fn take_reading(&self) -> Result<Vec<(usize, Crossing)>> {
        let mut source = lock(&self.source);
        let (source, spare) = &mut *source;
        if let Err(error) = refill(&mut **source, &mut spare.reading) {
            lock(&self.state).failed += 1;
            return Err(error);
        }
        spare.at = self.clock.now().saturating_sub(self.origin);
        spare.reading.usage = self.budget.as_ref().map(Budget::usage);
        let found = self.observe(spare);
        let mut state = lock(&self.state);
        state.taken += 1;
        let oldest = state.history.push(std::mem::take(spare));
        *spare = oldest.unwrap_or_default();
        state.crossings.extend(found.iter().map(|(_, crossing)| crossing.clone()));
        let surplus = state.crossings.len().saturating_sub(MOST_CROSSINGS);
        state.crossings.drain(..surplus);
        Ok(found)
    }

    fn observe(&self, moment: &Moment) -> Vec<(usize, Crossing)> {
        let mut watches = lock(&self.watches);
        let passed = |it: &mut Registered| Some((it.number, it.watch.observe(moment.at, &moment.reading)?));
        watches.iter_mut().filter_map(passed).collect()
    }

    fn tell(&self, number: usize, crossing: &Crossing) {
        let take = |it: &mut Registered| it.callback.take();
        let Some(mut callback) = lock(&self.watches).get_mut(number).and_then(take) else { return };
        if catch_unwind(AssertUnwindSafe(|| callback(crossing))).is_err() {
            tracing::error!(%crossing, "a function that was told of this crossing panicked");
        }
        if let Some(registered) = lock(&self.watches).get_mut(number) {
            registered.callback = Some(callback);
        }
    }
}
