//! [`Slice`]: a region as a user writes it: integers, ranges, steps, an ellipsis.

use std::ops::{Range, RangeFrom, RangeFull, RangeInclusive, RangeTo};

use smallvec::SmallVec;

use crate::error::{Error, Result};
use crate::region::{Region, Span};

/// One entry of a slice.
///
/// An integer takes one element, and its dimension goes; a range keeps it. `..` is all of a finite dimension;
/// [`Slice::Ellipsis`] is `..` as often as entries are missing. Coordinates are as they are: −1 is the element before 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slice {
    /// One element; the dimension is squeezed.
    At(i64),
    /// Elements from the first (the start of a finite dimension where there is none) up to the second, every `step`-th.
    Range {
        /// The first.
        start: Option<i64>,
        /// The one after the last.
        end: Option<i64>,
        /// From one to the next.
        step: i64,
    },
    /// All of every dimension that no other entry stands for. Once at most.
    Ellipsis,
}

impl Slice {
    /// Every `step`-th element of a range.
    #[must_use]
    pub const fn step(range: Range<i64>, step: i64) -> Self {
        Self::Range { start: Some(range.start), end: Some(range.end), step }
    }
}

impl From<i64> for Slice {
    fn from(at: i64) -> Self {
        Self::At(at)
    }
}

impl From<Range<i64>> for Slice {
    fn from(range: Range<i64>) -> Self {
        Self::step(range, 1)
    }
}

impl From<RangeInclusive<i64>> for Slice {
    fn from(range: RangeInclusive<i64>) -> Self {
        Self::Range { start: Some(*range.start()), end: range.end().checked_add(1), step: 1 }
    }
}

impl From<RangeFrom<i64>> for Slice {
    fn from(range: RangeFrom<i64>) -> Self {
        Self::Range { start: Some(range.start), end: None, step: 1 }
    }
}

impl From<RangeTo<i64>> for Slice {
    fn from(range: RangeTo<i64>) -> Self {
        Self::Range { start: None, end: Some(range.end), step: 1 }
    }
}

impl From<RangeFull> for Slice {
    fn from(_all: RangeFull) -> Self {
        Self::Range { start: None, end: None, step: 1 }
    }
}

/// A slice, checked against a tensor: which elements, and the shape of what is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Selection {
    /// The least box that has all of the elements.
    pub(crate) region: Region,
    pub(crate) steps: SmallVec<[i64; 4]>,
    /// Dimensions that integers have squeezed are gone.
    pub(crate) shape: SmallVec<[usize; 4]>,
}

impl Selection {
    pub(crate) fn new(tensor: &str, shape: &[Option<i64>], slices: &[Slice]) -> Result<Self> {
        let slices = spread(tensor, shape.len(), slices)?;
        let mut spans: SmallVec<[Span; 4]> = SmallVec::new();
        let (mut steps, mut out): (SmallVec<[i64; 4]>, SmallVec<[usize; 4]>) =
            (SmallVec::new(), SmallVec::new());
        for (dimension, (slice, len)) in slices.iter().zip(shape).enumerate() {
            let error = |reason: String| Error::Region { tensor: tensor.to_owned(), dimension, reason };
            let (span, step) = resolve(*slice, *len).map_err(error)?;
            if !matches!(slice, Slice::At(_)) {
                let count = span.len().div_ceil(step.unsigned_abs());
                out.push(
                    usize::try_from(count).map_err(|_| error(format!("{count} elements exceed memory")))?,
                );
            }
            // Up to the last element taken, not beyond.
            let last = span.len().saturating_sub(1) / step.unsigned_abs() * step.unsigned_abs();
            let end = i128::from(span.start()) + i128::from(last) + 1;
            spans.push(if span.is_empty() { span } else { Span::clamped(span.start().into(), end) });
            steps.push(step);
        }
        Ok(Self { region: Region::new(spans), steps, shape: out })
    }

    pub(crate) fn of_region(tensor: &str, shape: &[Option<i64>], region: &Region) -> Result<Self> {
        let slices: SmallVec<[Slice; 4]> =
            region.spans().iter().map(|span| Slice::from(span.start()..span.end())).collect();
        Self::new(tensor, shape, &slices)
    }

    pub(crate) fn is_dense(&self) -> bool {
        self.steps.iter().all(|step| *step == 1)
    }

    /// The elements' own box: element `k` along a dimension is `k` here.
    pub(crate) fn packed(&self) -> Region {
        let spans = self.region.spans().iter().zip(&self.steps);
        Region::new(
            spans.map(|(span, step)| Span::clamped(0, span.len().div_ceil(step.unsigned_abs()).into())),
        )
    }
}

/// One entry per dimension.
fn spread(tensor: &str, rank: usize, slices: &[Slice]) -> Result<SmallVec<[Slice; 4]>> {
    let error = |reason: String| Error::Region { tensor: tensor.to_owned(), dimension: rank, reason };
    let dots = slices.iter().filter(|slice| **slice == Slice::Ellipsis).count();
    let given = slices.len() - dots;
    if dots > 1 {
        return Err(error(format!("{dots} ellipses; give one at most")));
    }
    if given > rank || (dots == 0 && given != rank) {
        return Err(error(format!(
            "{given} entries for {rank} dimensions; give one per dimension, or an ellipsis"
        )));
    }
    let mut found = SmallVec::new();
    for slice in slices {
        match slice {
            Slice::Ellipsis => found.extend((0..rank - given).map(|_| Slice::from(..))),
            other => found.push(*other),
        }
    }
    Ok(found)
}

fn resolve(slice: Slice, len: Option<i64>) -> Result<(Span, i64), String> {
    let (start, end, step) = match slice {
        Slice::At(at) => (at, at.checked_add(1).ok_or("the last coordinate of 64 bits cannot be read")?, 1),
        Slice::Ellipsis => return Err("an ellipsis inside".to_owned()),
        Slice::Range { start, end, step } => {
            let open = || "open on an unbounded dimension; give both ends".to_owned();
            let start = start.or(len.map(|_| 0)).ok_or_else(open)?;
            (start, end.or(len).ok_or_else(open)?, step)
        }
    };
    if step < 1 {
        return Err(format!("step {step}; expected at least 1"));
    }
    if end < start {
        return Err(format!("reversed: {start}..{end}"));
    }
    if let Some(len) = len
        && (start < 0 || end > len)
        && end > start
    {
        return Err(format!("{start}..{end} is out of 0..{len}"));
    }
    Ok((Span::new(start, end), step))
}
