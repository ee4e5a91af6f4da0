//! [`BatchSearch`]: the largest batch that fits, by arithmetic first and one run to verify.
//!
//! What a step takes is close to affine in the batch: what is there anyway, and so much per sample. Two small probes give
//! both figures (or a cost model gives them without a run), and the largest batch follows. It is then run once: if that
//! fits, and the line through what was measured says that the next size does not, the search is over after three
//! steps. Where the steps are not on a line, what was measured bends it, and where a run fails without a figure, the
//! interval is halved.
//!
//! A program without a device gets no exception when memory runs out, it is killed. So the steps of a search on the CPU
//! belong in a child process: see [`child`](crate::child).

use dd_core::error::Cause;
use dd_core::{Bytes, CostModel};
use serde::{Deserialize, Serialize};

use crate::axis::whole;
use crate::error::{Error, Result};

/// By how much the batch grows where larger ones were seen to take no more.
const GROWTH: usize = 8;

/// How one step went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepOutcome {
    /// It ran, and this was the most that it held.
    Done {
        /// The peak.
        peak: Bytes,
    },
    /// It ran out of memory.
    OutOfMemory {
        /// How that showed.
        how: String,
    },
}

/// Runs one step of a batch and says what it took.
///
/// Every `FnMut(usize) -> dd_core::Result<Bytes>` is one, that runs the step here: `Ok` is the peak,
/// [`dd_core::Error::OutOfMemory`] says that the batch is too big, and every other error ends the search.
pub trait StepRunner {
    /// Runs one step.
    ///
    /// # Errors
    /// Everything but running out of memory: a bug is never taken for a batch that is too big.
    fn run(&mut self, batch: usize) -> Result<StepOutcome>;
}

impl<F: FnMut(usize) -> dd_core::Result<Bytes>> StepRunner for F {
    fn run(&mut self, batch: usize) -> Result<StepOutcome> {
        match self(batch) {
            Ok(peak) => Ok(StepOutcome::Done { peak }),
            Err(error) if error.is_out_of_memory() => Ok(StepOutcome::OutOfMemory { how: error.to_string() }),
            Err(error) => Err(Error::Step { batch, source: Box::new(error) }),
        }
    }
}

/// What is known before anything runs.
#[derive(Clone, Copy)]
pub enum Prior<'a> {
    /// Nothing: two small probes are run.
    Probes,
    /// What a batch costs: `peak(&[batch])`. Only the answer is run.
    Model(&'a dyn CostModel),
}

/// One step that was run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Its batch.
    pub batch: usize,
    /// How it went.
    pub outcome: StepOutcome,
}

/// What a search found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct BatchReport {
    /// The largest batch that was run and fits; over several ranks, the least of theirs.
    pub batch: usize,
    /// What this rank's largest took, as measured.
    pub peak: Bytes,
    /// What it had to fit: the ceiling less the margin.
    pub limit: Bytes,
    /// Whether the next larger batch is out of bounds, was seen to fail, or would by what is known take more than the
    /// limit. Not so where the search was cut short.
    pub largest: bool,
    /// All steps that were run, in order.
    pub runs: Vec<Run>,
}

/// Finds the largest batch that fits.
///
/// ```
/// use dd_core::Bytes;
/// use dd_scale::{BatchSearch, Prior};
///
/// // 100 MiB whatever the batch, and 3 MiB per sample.
/// let mut step = |batch: usize| Ok(Bytes::mib(100 + 3 * batch as u64));
/// let report = BatchSearch::new(Bytes::gib(1)).find_max_batch(Prior::Probes, &mut step)?;
/// assert_eq!((report.batch, report.runs.len()), (308, 3));
/// # Ok::<(), dd_scale::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BatchSearch {
    ceiling: Bytes,
    min: usize,
    max: usize,
    step: usize,
    margin: f64,
    max_runs: usize,
}

impl BatchSearch {
    /// Any batch of at least one that takes at most `ceiling`, in at most 16 runs.
    #[must_use]
    pub const fn new(ceiling: Bytes) -> Self {
        Self { ceiling, min: 1, max: usize::MAX, step: 1, margin: 0.0, max_runs: 16 }
    }

    /// The least and the largest batch that would do.
    #[must_use]
    pub const fn bounds(self, min: usize, max: usize) -> Self {
        Self { min, max, ..self }
    }

    /// What a batch is to be a multiple of.
    #[must_use]
    pub const fn step(self, step: usize) -> Self {
        Self { step, ..self }
    }

    /// The share of the ceiling (in `0..1`) that is to stay free.
    #[must_use]
    pub const fn margin(self, margin: f64) -> Self {
        Self { margin, ..self }
    }

    /// The most steps to run, at least one.
    #[must_use]
    pub const fn max_runs(self, max_runs: usize) -> Self {
        Self { max_runs, ..self }
    }

    /// What a batch has to fit: the ceiling less the margin.
    #[must_use]
    pub fn limit(&self) -> Bytes {
        self.ceiling.scaled(1.0 - self.margin).min(self.ceiling)
    }

    /// Finds the largest batch that fits.
    ///
    /// # Errors
    /// [`Error::Setting`] for bounds, steps or a margin out of range, and for too few runs to find any that fits;
    /// [`dd_core::Error::OutOfMemory`] where not even the least batch fits; what the runner or the cost model says.
    pub fn find_max_batch(&self, prior: Prior<'_>, runner: &mut dyn StepRunner) -> Result<BatchReport> {
        let (min, max) = self.grid()?;
        let mut search = Search { options: *self, limit: self.limit(), min, max, ..Search::default() };
        let report = search.find(prior, runner)?;
        tracing::debug!(batch = report.batch, peak = %report.peak, runs = report.runs.len(), "batch found");
        Ok(report)
    }

    /// The same on one of several ranks: `agree` is given this rank's batch and returns the least of all ranks, as an
    /// all-reduce does. It is called exactly once, with zero where this rank failed, so that no rank waits in vain.
    ///
    /// # Errors
    /// As [`find_max_batch`](Self::find_max_batch); [`Error::Step`] for what `agree` says;
    /// [`Error::Setting`] where another rank failed, or the answer is more than was offered.
    pub fn find_agreed_batch(
        &self,
        prior: Prior<'_>,
        runner: &mut dyn StepRunner,
        agree: &mut dyn FnMut(usize) -> Result<usize, Cause>,
    ) -> Result<BatchReport> {
        let found = self.find_max_batch(prior, runner);
        let own = found.as_ref().map_or(0, |report| report.batch);
        let agreed = agree(own);
        let mut report = found?;
        let agreed = agreed.map_err(|source| Error::Step { batch: own, source })?;
        if agreed == 0 {
            return Err(Error::setting("agreed batch", 0, "another rank found none; see its error"));
        }
        if agreed > own {
            let reason = format!("more than the {own} of this rank; the hook must return the minimum");
            return Err(Error::setting("agreed batch", agreed, reason));
        }
        report.batch = agreed;
        Ok(report)
    }

    /// The least and the largest multiple of the step within the bounds.
    fn grid(&self) -> Result<(usize, usize)> {
        let at_least_one = [("min batch", self.min), ("step", self.step), ("max_runs", self.max_runs)];
        for (option, value) in at_least_one {
            if value == 0 {
                return Err(Error::setting(option, value, "expected at least 1"));
            }
        }
        if !(0.0..1.0).contains(&self.margin) {
            return Err(Error::setting("margin", self.margin, "expected at least 0 and below 1"));
        }
        if self.min > self.max {
            return Err(Error::setting("min batch", self.min, format!("above the largest, {}", self.max)));
        }
        let max = self.max / self.step * self.step;
        let min = self.min.checked_next_multiple_of(self.step).filter(|min| *min <= max);
        let none = || {
            let reason = format!("no multiple of it lies between {} and {}", self.min, self.max);
            Error::setting("step", self.step, reason)
        };
        Ok((min.ok_or_else(none)?, max))
    }
}

/// The middle of two batches, the first below the second: of their logarithms where they are far apart.
fn between(low: usize, high: usize) -> usize {
    if high / 4 > low {
        whole((low as f64 * high as f64).sqrt()).clamp(low, high)
    } else {
        low + (high - low).div_ceil(2)
    }
}

/// What is known so far. All batches are multiples of the step.
struct Search {
    options: BatchSearch,
    limit: Bytes,
    min: usize,
    max: usize,
    runs: Vec<Run>,
    /// What was measured, smallest batch first.
    points: Vec<(usize, Bytes)>,
    /// The largest that fits.
    fits: Option<(usize, Bytes)>,
    /// The least that does not.
    fails: Option<usize>,
}

impl Default for Search {
    fn default() -> Self {
        let options = BatchSearch::new(Bytes::ZERO);
        Self {
            options,
            limit: Bytes::ZERO,
            min: 1,
            max: 1,
            runs: Vec::new(),
            points: Vec::new(),
            fits: None,
            fails: None,
        }
    }
}

impl Search {
    fn find(&mut self, prior: Prior<'_>, runner: &mut dyn StepRunner) -> Result<BatchReport> {
        let mut next = match prior {
            Prior::Probes => Some(self.min),
            Prior::Model(model) => Some(self.by_model(model)?),
        };
        let mut by_model = matches!(prior, Prior::Model(_));
        while let Some(batch) = next {
            if self.runs.len() >= self.options.max_runs {
                return self.report(false);
            }
            self.run(batch, runner)?;
            // One run verifies what a model said; only where it does not hold, the search goes on by measuring.
            if by_model && self.fits.is_some() {
                break;
            }
            by_model = false;
            next = self.next();
        }
        self.report(true)
    }

    fn run(&mut self, batch: usize, runner: &mut dyn StepRunner) -> Result<()> {
        let outcome = runner.run(batch)?;
        tracing::debug!(batch, ?outcome, "step run");
        match &outcome {
            StepOutcome::Done { peak } => {
                let at = self.points.partition_point(|(known, _)| *known < batch);
                self.points.insert(at, (batch, *peak));
                if *peak <= self.limit {
                    self.fits = self.fits.max(Some((batch, *peak)));
                } else {
                    self.fail(batch);
                }
            }
            StepOutcome::OutOfMemory { .. } => self.fail(batch),
        }
        self.runs.push(Run { batch, outcome });
        Ok(())
    }

    fn fail(&mut self, batch: usize) {
        self.fails = Some(self.fails.map_or(batch, |known| known.min(batch)));
    }

    /// The batch to run next; nothing where the largest that fits is known.
    fn next(&self) -> Option<usize> {
        let most = self.fails.map_or(self.max, |fails| fails - self.options.step);
        let Some((fits, peak)) = self.fits else {
            // Nothing fits yet: the least batch is the first to know of.
            return (self.fails? > self.min).then_some(self.min);
        };
        if fits >= most {
            return None;
        }
        let predicted = match self.slope() {
            Some(line) => line.largest(self.limit).unwrap_or(fits.saturating_mul(GROWTH)).min(self.max),
            None => self.probe(fits, peak).min(self.max),
        };
        let predicted = self.on_grid(predicted);
        if predicted <= fits {
            None
        } else if predicted > most || self.points.len() < 2 && self.fails.is_some() {
            // What was measured promised more than there is, or too little was: halve.
            Some(self.on_grid(between(fits, most)).max(fits + self.options.step).min(most))
        } else {
            Some(predicted)
        }
    }

    fn on_grid(&self, batch: usize) -> usize {
        batch / self.options.step * self.options.step
    }

    /// A second batch: half of the way to where the first figure alone would reach the limit. A step that is affine fits
    /// there, whatever its constant; and a line through points that are far apart is hardly bent by what libraries round up.
    fn probe(&self, first: usize, peak: Bytes) -> usize {
        let reach = first as u128 * u128::from(self.limit.0) / u128::from(peak.0.max(1));
        let reach = usize::try_from(reach).unwrap_or(usize::MAX).min(self.max);
        let gap = self.on_grid((reach - reach.min(first)) / 2).max(self.options.step);
        first.saturating_add(gap)
    }

    /// The line through the largest that fits and, of the other measured points, the one nearest to the limit.
    fn slope(&self) -> Option<Line> {
        let (fits, peak) = self.fits?;
        let others = self.points.iter().filter(|(batch, _)| *batch != fits);
        let other = others.min_by_key(|(_, peak)| peak.0.abs_diff(self.limit.0))?;
        Some(Line { fits, peak, other: *other })
    }

    /// The largest batch that a model says fits.
    fn by_model(&self, model: &dyn CostModel) -> Result<usize> {
        let step = self.options.step;
        let fits = |steps: usize| match model.peak(&[self.min + steps * step]) {
            Ok(peak) => Ok(peak <= self.limit),
            Err(dd_core::Error::SizeOverflow { .. }) => Ok(false),
            Err(error) => Err(error),
        };
        if !fits(0)? {
            let needed = model.peak(&[self.min])?;
            return Err(self.none(needed));
        }
        let (mut low, mut high) = (0, (self.max - self.min) / step);
        while low < high {
            let middle = low + (high - low).div_ceil(2);
            if fits(middle)? { low = middle } else { high = middle - 1 }
        }
        Ok(self.min + low * step)
    }

    fn none(&self, needed: Bytes) -> Error {
        Error::out_of_memory(format!("a step of batch {}", self.min), needed, self.limit)
    }

    fn report(&mut self, largest: bool) -> Result<BatchReport> {
        if self.fits.is_none() && self.fails != Some(self.min) {
            let reason = format!("no batch that fits was run, and not the least, {}; allow more", self.min);
            return Err(Error::setting("max_runs", self.options.max_runs, reason));
        }
        let measured = self.points.first().map(|(_, peak)| *peak);
        let needed = measured.unwrap_or(self.limit + Bytes(1));
        let (batch, peak) = self.fits.ok_or_else(|| self.none(needed))?;
        let runs = std::mem::take(&mut self.runs);
        Ok(BatchReport { batch, peak, limit: self.limit, largest, runs })
    }
}

/// A line through two measured points, of which the first fits.
struct Line {
    fits: usize,
    peak: Bytes,
    other: (usize, Bytes),
}

impl Line {
    /// The largest batch at which it is not above the limit; nothing where it does not rise.
    fn largest(&self, limit: Bytes) -> Option<usize> {
        let (batch, peak) = (i128::try_from(self.fits).ok()?, i128::from(self.peak.0));
        let run = i128::try_from(self.other.0).ok()? - batch;
        let rise = i128::from(self.other.1.0) - peak;
        let (run, rise) = if run < 0 { (-run, -rise) } else { (run, rise) };
        if rise <= 0 {
            return None;
        }
        usize::try_from(batch + (i128::from(limit.0) - peak).checked_mul(run)? / rise).ok()
    }
}

#[cfg(test)]
mod tests {
    use dd_core::cost::AffineCost;

    use super::*;

    /// What a batch takes, and how many runs may go into finding the largest.
    type Model = (&'static str, fn(u64) -> u64, usize);

    const MODELS: [Model; 7] = [
        ("per sample", |b| 3_000 * b, 3),
        ("weights and activations", |b| 1_000_000 + 4_097 * b, 3),
        ("weights alone nearly fill it", |b| 9_990_000 + 9 * b, 3),
        ("large samples", |b| 100_000 + 1_234_567 * b, 3),
        ("blocks of 512", |b| (700_001 + 3_333 * b).next_multiple_of(512), 5),
        ("loading is the peak at first", |b| (4_000 * b).max(3_000_000), 16),
        ("quadratic", |b| 500_000 + 1_000 * b + 3 * b * b, 12),
    ];

    #[test]
    fn the_largest_batch_exactly_in_few_runs() {
        for (name, takes, most_runs) in MODELS {
            for ceiling in [9_995_000, 10_000_000, 12_345_678, 40_000_000] {
                for (step, margin) in [(1, 0.0), (8, 0.0), (1, 0.1)] {
                    let search = BatchSearch::new(Bytes(ceiling)).step(step).margin(margin);
                    let problem = format!("{name}, ceiling {ceiling}, step {step}, margin {margin}");
                    let limit = search.limit();
                    let fitting = (1..).map(|n: usize| n * step).take_while(|b| takes(*b as u64) <= limit.0);
                    let expected = fitting.last();
                    let mut step = |batch: usize| Ok(Bytes(takes(batch as u64)));
                    match (search.find_max_batch(Prior::Probes, &mut step), expected) {
                        (Ok(report), Some(expected)) => {
                            assert_eq!((report.batch, report.largest), (expected, true), "{problem}");
                            assert_eq!(report.peak, Bytes(takes(expected as u64)), "{problem}");
                            assert!(report.runs.len() <= most_runs, "{problem}: {:?}", report.runs);
                        }
                        (Err(error), None) => assert!(error.is_out_of_memory(), "{problem}: {error}"),
                        (found, expected) => panic!("{problem}: expected {expected:?}, found {found:?}"),
                    }
                }
            }
        }
    }

    #[test]
    fn without_figures_the_interval_is_halved() {
        // A device that says only that it is full, and a first figure that promises too much.
        let mut step = |batch: usize| match batch {
            0..=37 => Ok(Bytes(batch as u64)),
            _ => Err(dd_core::Error::OutOfMemory {
                place: "device".to_owned(),
                needed: Bytes(1),
                available: Bytes::ZERO,
            }),
        };
        let report = BatchSearch::new(Bytes(1000)).find_max_batch(Prior::Probes, &mut step).unwrap();
        assert_eq!((report.batch, report.largest), (37, true), "{report:?}");
        let cut = BatchSearch::new(Bytes(1000)).max_runs(4).find_max_batch(Prior::Probes, &mut step).unwrap();
        assert!(cut.batch <= 37 && !cut.largest && cut.runs.len() == 4, "{cut:?}");
    }

    #[test]
    fn a_model_needs_one_run_and_is_not_believed_blindly() {
        let model = AffineCost { constant: Bytes(100), per_element: Bytes(10) };
        let search = BatchSearch::new(Bytes(1000)).bounds(1, 1000);
        let rows = [(100, 10, 90, 1), (90, 10, 90, 1), (100, 20, 45, 4)];
        for (constant, each, expected, most_runs) in rows {
            let mut step = |batch: usize| Ok(Bytes(constant + each * batch as u64));
            let report = search.find_max_batch(Prior::Model(&model), &mut step).unwrap();
            assert_eq!(report.batch, expected, "{report:?}");
            assert!(report.runs.len() <= most_runs, "{report:?}");
        }
    }

    #[test]
    fn too_few_runs_are_no_lack_of_memory() {
        let model = AffineCost { constant: Bytes::ZERO, per_element: Bytes(1) };
        let mut step = |batch: usize| Ok(Bytes(10 * batch as u64));
        let search = BatchSearch::new(Bytes(100)).max_runs(1);
        let found = search.find_max_batch(Prior::Model(&model), &mut step);
        assert!(matches!(found, Err(Error::Setting { option: "max_runs", .. })), "{found:?}");
    }

    #[test]
    fn bounds_hold_and_bugs_are_errors() {
        let mut step = |batch: usize| Ok(Bytes(10 * batch as u64));
        let mut bug = |_| Err(dd_core::Error::NotFound { name: "w".to_owned(), place: "model".to_owned() });
        let search = BatchSearch::new(Bytes(1000));
        let rows = [
            (search.bounds(3, 17), "17"),
            (search.bounds(3, 17).step(8), "16"),
            (search.bounds(100, 100), "100"),
            (search.bounds(101, 200), "out of memory in a step of batch 101"),
            (search.bounds(0, 9), "min batch is 0"),
            (search.bounds(9, 3), "min batch is 9"),
            (search.bounds(9, 15).step(8), "step is 8"),
            (search.step(0), "step is 0"),
            (search.max_runs(0), "max_runs is 0"),
            (search.margin(1.0), "margin is 1"),
            (search.margin(f64::NAN), "margin is NaN"),
        ];
        for (search, expected) in rows {
            let found = search.find_max_batch(Prior::Probes, &mut step);
            let found = found.map_or_else(|error| error.to_string(), |report| report.batch.to_string());
            assert!(found.starts_with(expected), "expected {expected}, found {found}");
        }
        let found = search.find_max_batch(Prior::Probes, &mut bug);
        assert!(matches!(found, Err(Error::Step { batch: 1, .. })), "{found:?}");
    }

    #[test]
    fn ranks_agree_on_the_least_and_all_are_asked() {
        let search = BatchSearch::new(Bytes(1000));
        type Others = fn(usize) -> Result<usize, Cause>;
        let rows: [(u64, Others, usize, &str); 6] = [
            (10, |own| Ok(own), 100, "100"),
            (10, |own| Ok(own.min(64)), 100, "64"),
            (10, |_| Ok(0), 100, "agreed batch is 0"),
            (10, |own| Ok(own + 1), 100, "agreed batch is 101"),
            (10, |_| Err("rank 3 is gone".into()), 100, "the step failed at batch 100"),
            (2000, |own| Ok(own), 0, "out of memory"),
        ];
        for (each, others, offered, expected) in rows {
            let mut asked = Vec::new();
            let mut agree = |own| {
                asked.push(own);
                others(own)
            };
            let mut step = |batch: usize| Ok(Bytes(each * batch as u64));
            let found = search.find_agreed_batch(Prior::Probes, &mut step, &mut agree);
            let found = found.map_or_else(|error| error.to_string(), |report| report.batch.to_string());
            assert!(found.starts_with(expected), "expected {expected}, found {found}");
            assert_eq!(asked, [offered], "{expected}");
        }
    }
}
