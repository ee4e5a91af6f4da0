//! Which block size and depth this disk wants: measured once, in a fraction of a second, and remembered.
//!
//! A few pairs are tried on real bytes of the file at hand, each on a part that no other trial has read. Of those within
//! three percent of the best, the one that takes the least memory wins: memory saved here holds weights. All trials
//! are kept, not only the winner, so a smaller budget finds its own winner without measuring again.
//!
//! Where nothing can be measured (a short file, one in memory or full of holes, no direct reads) the result is the
//! default and says so: [`Calibration::measured`] is false.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use dd_core::Bytes;
use serde::{Deserialize, Serialize};

use super::{BlockRead, DirectFile, EngineKind, Geometry, ReadSource, engine};
use crate::error::Result;

mod cache;

/// The pairs that are tried (KiB per block, depth), by memory.
const PAIRS: [(usize, usize); 13] = [
    (256, 4),
    (256, 8),
    (512, 4),
    (1024, 2),
    (256, 16),
    (512, 8),
    (1024, 4),
    (2048, 2),
    (1024, 8),
    (2048, 4),
    (4096, 2),
    (2048, 8),
    (4096, 4),
];
const SHORTEST_FILE: u64 = 64 << 20;
const CLOSE_ENOUGH: f64 = 0.97;

/// What a calibration may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CalibrationLimits {
    /// How long it may read in all; the last reads of each trial come on top.
    pub time: Duration,
    /// How much its blocks, and those of the engine that it proposes, may take.
    pub memory: Bytes,
}

impl Default for CalibrationLimits {
    /// 300 ms, 16 MiB: enough for every pair that is tried.
    fn default() -> Self {
        Self { time: Duration::from_millis(300), memory: Bytes::mib(16) }
    }
}

/// How to read from a disk, and how fast that is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Calibration {
    /// Bytes per block.
    pub block: usize,
    /// Reads in flight.
    pub depth: usize,
    /// The engine that it was measured with; never [`EngineKind::Auto`] where it was measured.
    pub engine: EngineKind,
    /// What the disk gave, in bytes per second; zero where it was not measured.
    pub bandwidth_bytes_per_sec: u64,
    /// Whether it was measured; if not, block and depth are the defaults, cut to the memory limit.
    pub measured: bool,
}

impl Calibration {
    /// The geometry of an engine by this calibration.
    #[must_use]
    pub const fn geometry(&self) -> Geometry {
        Geometry { block: self.block, depth: self.depth }
    }

    /// The defaults, cut to a memory limit.
    #[must_use]
    pub fn unmeasured(memory: Bytes) -> Self {
        let Geometry { block, depth } = Geometry::within(memory);
        Self { block, depth, engine: EngineKind::Auto, bandwidth_bytes_per_sec: 0, measured: false }
    }

    /// What is remembered of the file's disk, or measured and remembered now.
    ///
    /// The memory lies in `deepdim/io.json` in the user's cache directory (`XDG_CACHE_HOME`, else `~/.cache`), by device and
    /// engine, and is good for 30 days. A cache that cannot be read or written costs a warning and a measurement,
    /// nothing else.
    #[must_use]
    pub fn load_or_run(file: &Arc<DirectFile>, limits: CalibrationLimits) -> Self {
        match cache_path() {
            Some(path) => Self::load_or_run_at(&path, file, limits),
            None => calibrate(file, limits),
        }
    }

    /// The same with a cache file of one's own.
    #[must_use]
    pub fn load_or_run_at(cache: &Path, file: &Arc<DirectFile>, limits: CalibrationLimits) -> Self {
        if !is_measurable(file) {
            return Self::unmeasured(limits.memory);
        }
        let Some(kind) = engine_here() else { return Self::unmeasured(limits.memory) };
        let key = format!("{}:{kind}", file.device());
        if let Some(table) = cache::load(cache, &key).filter(|table| table.covers(limits.memory)) {
            return table.choose(limits.memory);
        }
        let table = Table::measure(file, kind, limits);
        if !table.trials.is_empty() {
            cache::store(cache, &key, &table);
        }
        table.choose(limits.memory)
    }
}

/// Measures how the disk under `file` wants to be read; never fails, see [`Calibration::measured`].
#[must_use]
pub fn calibrate(file: &Arc<DirectFile>, limits: CalibrationLimits) -> Calibration {
    match engine_here() {
        Some(kind) if is_measurable(file) => Table::measure(file, kind, limits).choose(limits.memory),
        _ => Calibration::unmeasured(limits.memory),
    }
}

/// `$XDG_CACHE_HOME/deepdim/io.json`, or the same under `~/.cache`.
fn cache_path() -> Option<PathBuf> {
    let folder = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = folder("XDG_CACHE_HOME").or_else(|| folder("HOME").map(|home| home.join(".cache")))?;
    Some(cache.join("deepdim").join("io.json"))
}

/// The engine that [`EngineKind::Auto`] stands for on this machine.
fn engine_here() -> Option<EngineKind> {
    let smallest = Geometry { block: super::ALIGNMENT, depth: 1 };
    match engine(EngineKind::Auto, smallest) {
        Ok(engine) if engine.name() == "io_uring" => Some(EngineKind::IoUring),
        Ok(_) => Some(EngineKind::Threads),
        Err(error) => {
            tracing::warn!(%error, "no engine to calibrate");
            None
        }
    }
}

/// Whether reads of this file say anything about a disk: direct, long enough, and not mostly holes.
fn is_measurable(file: &DirectFile) -> bool {
    let solid = |(len, held): (u64, u64)| len >= SHORTEST_FILE && held >= len / 10 * 9;
    file.is_direct() && file.extent().is_ok_and(solid)
}

/// One pair and what it reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Trial {
    geometry: Geometry,
    bandwidth: u64,
}

/// All that was tried on one disk with one engine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Table {
    engine: EngineKind,
    memory_limit: Bytes,
    trials: Vec<Trial>,
}

impl Table {
    /// Tries the pairs that fit the limits, each in an equal share of the time and on bytes of its own.
    fn measure(file: &Arc<DirectFile>, engine: EngineKind, limits: CalibrationLimits) -> Self {
        let pairs = pairs_within(limits.memory);
        let share = limits.time / u32::try_from(pairs.len().max(1)).unwrap_or(u32::MAX);
        let mut table = Self { engine, memory_limit: limits.memory, trials: Vec::new() };
        let mut sweep = Sweep::over(file);
        let part = sweep.end / (pairs.len() as u64).max(1);
        for geometry in pairs {
            let memory = geometry.memory();
            if !table.turns_over(memory, share) || !sweep.start(geometry, part, share) {
                continue;
            }
            match sweep.run(engine, geometry) {
                Ok(Some(bandwidth)) => table.trials.push(Trial { geometry, bandwidth }),
                Ok(None) => {}
                Err(error) => tracing::warn!(%error, %geometry, "a trial of the calibration failed"),
            }
        }
        tracing::debug!(?table, "calibrated");
        table
    }

    /// Whether the disk, as far as it is known, fills that much memory within the time; else the trial would show
    /// nothing and take long.
    fn turns_over(&self, memory: Bytes, time: Duration) -> bool {
        self.trials
            .iter()
            .map(|trial| trial.bandwidth)
            .max()
            .is_none_or(|bandwidth| memory.0 as f64 <= bandwidth as f64 * time.as_secs_f64())
    }

    /// Whether a measurement under this limit would have tried no more.
    fn covers(&self, memory: Bytes) -> bool {
        pairs_within(memory).len() <= pairs_within(self.memory_limit).len()
    }

    /// Of the trials that fit, the one of least memory within three percent of the best.
    fn choose(&self, memory: Bytes) -> Calibration {
        let fitting = || self.trials.iter().filter(|trial| trial.geometry.memory() <= memory);
        let best = fitting().map(|trial| trial.bandwidth).max().unwrap_or(0) as f64;
        let close = fitting().filter(|trial| trial.bandwidth as f64 >= best * CLOSE_ENOUGH);
        let least = close.min_by_key(|trial| (trial.geometry.memory(), std::cmp::Reverse(trial.bandwidth)));
        match least {
            Some(Trial { geometry, bandwidth }) => Calibration {
                block: geometry.block,
                depth: geometry.depth,
                engine: self.engine,
                bandwidth_bytes_per_sec: *bandwidth,
                measured: true,
            },
            None => Calibration::unmeasured(memory),
        }
    }
}

fn pairs_within(memory: Bytes) -> Vec<Geometry> {
    let pairs = PAIRS.iter().map(|(kib, depth)| Geometry { block: kib << 10, depth: *depth });
    pairs.filter(|geometry| geometry.memory() <= memory).collect()
}

/// The source of the trials: goes through the file once, from trial to trial.
struct Sweep {
    file: Arc<DirectFile>,
    at: u64,
    end: u64,
    // Of the trial under way:
    block: u64,
    stop: u64,
    deadline: Instant,
    began: Instant,
    bytes: u64,
    last: Instant,
    failure: Result<()>,
}

impl Sweep {
    fn over(file: &Arc<DirectFile>) -> Self {
        let (now, end) = (Instant::now(), file.extent().map_or(0, |(len, _)| len));
        let file = Arc::clone(file);
        let (block, stop, bytes, failure) = (0, 0, 0, Ok(()));
        Self { file, at: 0, end, block, stop, deadline: now, began: now, bytes, last: now, failure }
    }

    /// Sets a trial's part of the file and its time, counted from here; false where too little of the file is left.
    fn start(&mut self, geometry: Geometry, part: u64, time: Duration) -> bool {
        let least = geometry.memory().0.saturating_mul(2); // Every block is read twice at the very least.
        self.at = Bytes(self.at).round_up(super::ALIGNMENT as u64).0;
        self.block = geometry.block as u64;
        self.stop = self.end.min(self.at.saturating_add(part.max(least)));
        self.deadline = Instant::now() + time;
        self.bytes = 0;
        self.failure = Ok(());
        self.stop.saturating_sub(self.at) >= least
    }

    /// Reads until the part or the time is used up; bytes per second, or nothing where not every block was read.
    fn run(&mut self, kind: EngineKind, geometry: Geometry) -> Result<Option<u64>> {
        let mut engine = engine(kind, geometry)?;
        self.began = Instant::now();
        self.last = self.began;
        engine.run(self)?;
        std::mem::replace(&mut self.failure, Ok(()))?;
        let seconds = self.last.duration_since(self.began).as_secs_f64();
        let is_enough = self.bytes > geometry.memory().0 && seconds > 0.0;
        Ok(is_enough.then(|| Bytes(self.bytes).scaled(1.0 / seconds).0))
    }
}

impl ReadSource for Sweep {
    fn next(&mut self) -> Option<BlockRead> {
        let offset = self.at;
        let is_over = self.stop.saturating_sub(offset) < self.block || Instant::now() >= self.deadline;
        if is_over || self.failure.is_err() {
            return None;
        }
        self.at += self.block;
        let len = usize::try_from(self.block).ok()?;
        Some(BlockRead { file: Arc::clone(&self.file), offset, len, tag: 0 })
    }

    fn complete(&mut self, _: BlockRead, data: Result<&[u8]>) {
        self.last = Instant::now();
        match data {
            Ok(data) => self.bytes += data.len() as u64,
            Err(error) => self.failure = Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(rows: &[(usize, usize, u64)]) -> Table {
        let trial = |(kib, depth, bandwidth): &(usize, usize, u64)| Trial {
            geometry: Geometry { block: kib << 10, depth: *depth },
            bandwidth: *bandwidth,
        };
        let trials = rows.iter().map(trial).collect();
        Table { engine: EngineKind::Threads, memory_limit: Bytes::mib(16), trials }
    }

    #[test]
    fn the_least_memory_within_three_percent_of_the_best_wins() {
        let rows = [(256, 4, 500), (512, 4, 965), (1024, 2, 975), (1024, 4, 1000), (4096, 4, 990)];
        let wins = [
            (Bytes::mib(16), Some((1024, 2, 975))),
            (Bytes::mib(2), Some((1024, 2, 975))),
            (Bytes::mib(1), Some((256, 4, 500))),
            (Bytes::kib(512), None),
        ];
        for (memory, expected) in wins {
            let found = table(&rows).choose(memory);
            let measured = expected.map(|(kib, depth, bandwidth)| Calibration {
                block: kib << 10,
                depth,
                engine: EngineKind::Threads,
                bandwidth_bytes_per_sec: bandwidth,
                measured: true,
            });
            assert_eq!(found, measured.unwrap_or_else(|| Calibration::unmeasured(memory)), "{memory}");
            assert!(found.geometry().memory() <= memory);
        }
    }

    #[test]
    fn a_table_serves_limits_that_would_try_no_more() {
        for (limit, expected) in [(Bytes::ZERO, true), (Bytes::mib(16), true), (Bytes::MAX, true)] {
            assert_eq!(table(&[]).covers(limit), expected);
        }
        let small = Table { memory_limit: Bytes::mib(1), ..table(&[]) };
        assert!(small.covers(Bytes::mib(1)) && !small.covers(Bytes::mib(4)));
    }

    #[test]
    fn every_pair_is_valid_and_they_are_in_order_of_memory() {
        let pairs = pairs_within(CalibrationLimits::default().memory);
        assert_eq!(pairs.len(), PAIRS.len());
        assert!(pairs.iter().all(|pair| pair.validate().is_ok()));
        assert!(pairs.is_sorted_by_key(Geometry::memory));
    }

    #[test]
    fn slow_disks_are_not_asked_for_what_they_cannot_fill() {
        let slow = table(&[(256, 4, 10 << 20)]);
        let time = Duration::from_millis(200);
        assert!(slow.turns_over(Bytes::mib(2), time) && !slow.turns_over(Bytes::mib(4), time));
        assert!(table(&[]).turns_over(Bytes::mib(4), time), "unknown is tried");
    }
}
