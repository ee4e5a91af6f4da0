//! [`TraceModel`]: the peak of somebody else's program, from recordings of its allocations.
//!
//! A library frees when it likes. So its program is recorded at a few sizes (three batches, say): which allocations it makes
//! and when it frees each. Every allocation is then a polynomial of the size, through the recordings, and the order of
//! freeing is the library's own; the peak at any size is the largest sum along that order. What the polynomials miss at the
//! recordings that they were not made from is added as uncertainty, and so is what is too small to be told apart and what
//! other threads held.

mod recorder;

use dd_core::{Bytes, CostModel};

pub use recorder::{Recording, RecordingAllocator, record};

use crate::error::{Error, Result};

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// So many bytes were allocated.
    Allocate {
        /// How many.
        bytes: u64,
    },
    /// An allocation was freed: the number counts allocations from zero.
    Free {
        /// Which.
        allocation: usize,
    },
}

/// The peak of a recorded program as a function of one size.
///
/// ```
/// use dd_core::{Bytes, CostModel};
/// use dd_inspect::trace::{Event, Recording, TraceModel};
///
/// // Two buffers that grow with the size, and one that does not; the first is freed before the third is made.
/// let at = |size: u64| {
///     let events = vec![
///         Event::Allocate { bytes: 100 * size },
///         Event::Allocate { bytes: 1000 },
///         Event::Free { allocation: 0 },
///         Event::Allocate { bytes: 300 * size },
///     ];
///     Recording::new(events)
/// };
/// let model = TraceModel::fit(&[(1, at(1)), (2, at(2)), (4, at(4))])?;
/// assert_eq!(model.peak(&[100])?, Bytes(1000 + 300 * 100));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct TraceModel {
    events: Vec<Change>,
    /// The largest peak so far is held between sizes, so that more never costs less.
    least_size: usize,
    /// What is not modelled, before each event and after the last: small allocations and other threads.
    beside: Vec<Beside>,
    uncertainty_fraction: f64,
}

/// An event with its size as a polynomial.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Change {
    Allocate(Polynomial),
    Free(usize),
}

/// `c0 + c1 n + c2 n²`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Polynomial([f64; 3]);

/// What lies beside the modelled allocations: what no recording exceeded, and by how much it may grow with the size.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Beside {
    constant: f64,
    per_size: f64,
}

impl TraceModel {
    /// Of recordings at three or more different sizes; the others than the first three only tell how sure it is.
    ///
    /// # Errors
    /// [`Error::Trace`] for fewer recordings, or where they are not of the same events in the same order; what is freed
    /// between two allocations may be freed in any order (that of a hash map is another in every run).
    pub fn fit(recordings: &[(usize, Recording)]) -> Result<Self> {
        let mut tidy: Vec<(usize, Recording)> =
            recordings.iter().map(|(size, recording)| (*size, recording.tidied())).collect();
        tidy.sort_by_key(|(size, _)| *size);
        tidy.dedup_by_key(|(size, _)| *size);
        let sorted: Vec<&(usize, Recording)> = tidy.iter().collect();
        let (Some(first), Some(last)) = (sorted.first(), sorted.last()) else {
            return Err(Error::Trace { problem: "there is none".to_owned() });
        };
        let middle = sorted.get(sorted.len() / 2).filter(|_| sorted.len() >= 3);
        let Some(middle) = middle else {
            return Err(Error::Trace {
                problem: format!("expected three different sizes, found {}", sorted.len()),
            });
        };
        let through = [*first, *middle, *last];
        let mut events = Vec::with_capacity(first.1.events().len());
        for (_, other) in &sorted {
            if other.events().len() != first.1.events().len() {
                let (a, b) = (first.1.events().len(), other.events().len());
                return Err(Error::Trace { problem: format!("one has {a} events, another {b}") });
            }
        }
        for (at, event) in first.1.events().iter().enumerate() {
            events.push(change(at, event, &through)?);
        }
        let mut model =
            Self { events, least_size: first.0, beside: beside(&sorted), uncertainty_fraction: 0.0 };
        for (size, recording) in &sorted {
            let said = model.modelled(*size);
            let missed = (recording.peak().0 as f64 / said.max(1.0) - 1.0).max(0.0);
            model.uncertainty_fraction = model.uncertainty_fraction.max(missed);
        }
        Ok(model)
    }

    /// What was added for what the recordings do not explain, as a share of the peak.
    #[must_use]
    pub const fn uncertainty_fraction(&self) -> f64 {
        self.uncertainty_fraction
    }

    /// The largest sum along the order of the events.
    fn modelled(&self, size: usize) -> f64 {
        let mut sizes = Vec::new();
        let (mut live, mut peak) = (0.0f64, 0.0f64);
        let mut beside = self.beside.iter().map(|beside| beside.at(size));
        for event in &self.events {
            peak = peak.max(live + beside.next().unwrap_or_default());
            match event {
                Change::Allocate(polynomial) => {
                    let bytes = polynomial.at(size as f64).max(0.0);
                    sizes.push(bytes);
                    live += bytes;
                    peak = peak.max(live);
                }
                Change::Free(allocation) => live -= sizes.get(*allocation).copied().unwrap_or_default(),
            }
        }
        peak.max(live + beside.next().unwrap_or_default())
    }
}

impl CostModel for TraceModel {
    /// # Errors
    /// [`dd_core::Error::InvalidArgument`] for another number of sizes than one; a size overflow past 64 bits.
    fn peak(&self, sizes: &[usize]) -> dd_core::Result<Bytes> {
        let [size] = *sizes else {
            let reason = format!("expected [size], found {} sizes", sizes.len());
            return Err(dd_core::Error::InvalidArgument { argument: "sizes", reason });
        };
        // Below the smallest recording it costs no more than there.
        let size = size.max(self.least_size);
        let bytes = self.modelled(size) * (1.0 + self.uncertainty_fraction);
        if bytes.is_nan() || bytes >= u64::MAX as f64 {
            return Err(dd_core::Error::SizeOverflow { what: format!("the recorded peak at size {size}") });
        }
        Ok(Bytes(1).scaled(bytes.ceil()))
    }
}

impl Polynomial {
    /// Through three points. Sizes of tensors are whole polynomials; where the curve is no more than rounding, it is a line.
    fn through([(x0, y0), (x1, y1), (x2, y2)]: [(f64, f64); 3]) -> Self {
        let first = (y1 - y0) / (x1 - x0);
        let second = (y2 - y1) / (x2 - x1);
        let bend = (second - first) / (x2 - x0);
        // A curve that falls before it rises is taken for a line as well: more never costs less.
        let falls = first < bend * (x1 - x0);
        if bend <= 0.0 || falls || bend * (x2 - x0) * (x2 - x0) < 0.5 {
            // Not convex: the steeper of the lines through the last point stays above from there on.
            let slope =
                if bend < 0.0 { ((y2 - y0) / (x2 - x0)).max(second) } else { (y2 - y0) / (x2 - x0) }.max(0.0);
            return Self([y2 - slope * x2, slope, 0.0]);
        }
        Self([y0 - first * x0 + bend * x0 * x1, first - bend * (x0 + x1), bend])
    }

    fn at(self, n: f64) -> f64 {
        let [c0, c1, c2] = self.0;
        c0 + n * (c1 + n * c2)
    }
}

impl Beside {
    fn at(self, size: usize) -> f64 {
        self.constant + self.per_size * size as f64
    }
}

fn change(at: usize, event: &Event, through: &[&(usize, Recording); 3]) -> Result<Change> {
    let differ = || Error::Trace { problem: format!("event {at} is not the same in all") };
    let mut points = [(0.0, 0.0); 3];
    for (point, (size, recording)) in points.iter_mut().zip(through) {
        match (event, recording.events().get(at)) {
            (Event::Allocate { .. }, Some(Event::Allocate { bytes })) => {
                *point = (*size as f64, *bytes as f64)
            }
            (Event::Free { allocation }, Some(Event::Free { allocation: other })) if allocation == other => {}
            _ => return Err(differ()),
        }
    }
    Ok(match event {
        Event::Allocate { .. } => Change::Allocate(Polynomial::through(points)),
        Event::Free { allocation } => Change::Free(*allocation),
    })
}

/// The most beside the modelled events at each place, growing at the rate at which it grew from the first recording to the
/// last.
fn beside(sorted: &[&(usize, Recording)]) -> Vec<Beside> {
    let (Some((low, first)), Some((high, last))) = (sorted.first(), sorted.last()) else { return Vec::new() };
    let places = first.beside().iter().zip(last.beside()).enumerate();
    let of =
        |at: usize, recording: &Recording| recording.beside().get(at).copied().unwrap_or_default() as f64;
    let line = |(at, (first, last)): (usize, (&u64, &u64))| {
        let per_size = (*last as f64 - *first as f64).max(0.0) / ((high - low).max(1) as f64);
        let above = sorted.iter().map(|(size, one)| of(at, one) - per_size * *size as f64);
        Beside { constant: above.fold(0.0, f64::max), per_size }
    };
    places.map(line).collect()
}
