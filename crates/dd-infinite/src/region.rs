//! [`Span`] and [`Region`]: boxes of coordinates, half open, checked.
//!
//! The same type stands for a box of elements and for a box of window indices. Coordinates are `i64`; what is computed from
//! them is computed in 128 bits and checked on the way back, so nothing wraps.

use std::fmt;

use smallvec::SmallVec;

use crate::error::{Error, Result};

/// A window's index, or a point: one coordinate per dimension.
pub type Index = SmallVec<[i64; 4]>;

/// Coordinates from `start` up to, and not including, `end`. Never reversed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span {
    start: i64,
    end: i64,
}

impl Span {
    /// Every coordinate but the last, which no half-open span can name.
    pub const ALL: Self = Self { start: i64::MIN, end: i64::MAX };
    /// None.
    pub const EMPTY: Self = Self { start: 0, end: 0 };

    /// From `start` up to `end`; empty where `end` is not above it.
    #[must_use]
    pub const fn new(start: i64, end: i64) -> Self {
        if end > start { Self { start, end } } else { Self { start, end: start } }
    }

    /// From 128-bit ends.
    ///
    /// # Errors
    /// [`Error::Overflow`] where one does not fit 64 bits.
    pub fn checked(start: i128, end: i128) -> Result<Self> {
        let narrow = |value: i128| {
            i64::try_from(value).map_err(|_| Error::Overflow { what: format!("the range {start}..{end}") })
        };
        Ok(Self::new(narrow(start)?, narrow(end)?))
    }

    /// The part of a 128-bit range that 64 bits can name.
    #[must_use]
    pub fn clamped(start: i128, end: i128) -> Self {
        let narrow =
            |value: i128| i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX });
        Self::new(narrow(start), narrow(end))
    }

    /// The first coordinate.
    #[must_use]
    pub const fn start(self) -> i64 {
        self.start
    }

    /// The coordinate after the last.
    #[must_use]
    pub const fn end(self) -> i64 {
        self.end
    }

    /// How many coordinates.
    #[must_use]
    pub const fn len(self) -> u64 {
        self.end.abs_diff(self.start)
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.end <= self.start
    }

    /// Whether a coordinate is inside.
    #[must_use]
    pub const fn holds(self, at: i64) -> bool {
        self.start <= at && at < self.end
    }

    /// What both have.
    #[must_use]
    pub fn meet(self, other: Self) -> Self {
        Self::new(self.start.max(other.start), self.end.min(other.end))
    }

    /// The least span that has both; an empty one adds nothing.
    #[must_use]
    pub fn hull(self, other: Self) -> Self {
        if self.is_empty() {
            return other;
        }
        if other.is_empty() {
            return self;
        }
        Self { start: self.start.min(other.start), end: self.end.max(other.end) }
    }

    /// Whether all of `other` is inside.
    #[must_use]
    pub fn covers(self, other: Self) -> bool {
        other.is_empty() || (self.start <= other.start && other.end <= self.end)
    }
}

impl From<std::ops::Range<i64>> for Span {
    fn from(range: std::ops::Range<i64>) -> Self {
        Self::new(range.start, range.end)
    }
}

/// A box: one span per dimension. With no dimension it is a single point; with an empty span it is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Region(SmallVec<[Span; 4]>);

impl Region {
    /// A box of these spans.
    pub fn new(spans: impl IntoIterator<Item = Span>) -> Self {
        Self(spans.into_iter().collect())
    }

    /// The spans, outermost first.
    #[must_use]
    pub fn spans(&self) -> &[Span] {
        &self.0
    }

    pub(crate) fn spans_mut(&mut self) -> &mut [Span] {
        &mut self.0
    }

    /// How many dimensions.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no point inside.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.iter().any(|span| span.is_empty())
    }

    /// How many points; saturates.
    #[must_use]
    pub fn volume(&self) -> u64 {
        if self.is_empty() {
            return 0;
        }
        self.0.iter().fold(1, |all, span| all.saturating_mul(span.len()))
    }

    /// What both have.
    #[must_use]
    pub fn meet(&self, other: &Self) -> Self {
        Self(self.0.iter().zip(&other.0).map(|(a, b)| a.meet(*b)).collect())
    }

    /// The least box that has both; an empty one adds nothing.
    #[must_use]
    pub fn hull(&self, other: &Self) -> Self {
        if self.is_empty() {
            return other.clone();
        }
        if other.is_empty() {
            return self.clone();
        }
        Self(self.0.iter().zip(&other.0).map(|(a, b)| a.hull(*b)).collect())
    }

    /// Whether all of `other` is inside.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        other.is_empty() || self.0.iter().zip(&other.0).all(|(a, b)| a.covers(*b))
    }

    /// Whether a point is inside.
    #[must_use]
    pub fn holds(&self, point: &[i64]) -> bool {
        self.0.len() == point.len() && self.0.iter().zip(point).all(|(span, at)| span.holds(*at))
    }

    /// The lengths.
    ///
    /// # Errors
    /// [`Error::Overflow`] where one does not fit the address space.
    pub fn shape(&self) -> Result<SmallVec<[usize; 4]>> {
        let len = |span: &Span| usize::try_from(span.len());
        let shape: Result<_, _> = self.0.iter().map(len).collect();
        shape.map_err(|_| Error::Overflow { what: format!("the shape of {self}") })
    }

    /// Every point, the last dimension fastest: the window order.
    #[must_use]
    pub fn points(&self) -> Points {
        let next = (!self.is_empty()).then(|| self.0.iter().map(|span| span.start).collect());
        Points { region: self.clone(), next }
    }

    /// A point's number in that order; nothing where it is outside or the number exceeds 64 bits.
    #[must_use]
    pub fn number(&self, point: &[i64]) -> Option<u64> {
        if !self.holds(point) {
            return None;
        }
        self.0.iter().zip(point).try_fold(0u64, |all, (span, at)| {
            all.checked_mul(span.len())?.checked_add(at.abs_diff(span.start))
        })
    }
}

impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (d, span) in self.0.iter().enumerate() {
            let comma = if d == 0 { "" } else { ", " };
            write!(f, "{comma}{}..{}", span.start, span.end)?;
        }
        f.write_str("]")
    }
}

/// The points of a [`Region`], the last dimension fastest.
#[derive(Clone, Debug)]
pub struct Points {
    region: Region,
    next: Option<Index>,
}

impl Iterator for Points {
    type Item = Index;

    fn next(&mut self) -> Option<Index> {
        let point = self.next.take()?;
        let mut after = point.clone();
        for (at, span) in after.iter_mut().zip(self.region.spans()).rev() {
            if *at + 1 < span.end {
                *at += 1;
                self.next = Some(after);
                break;
            }
            *at = span.start;
        }
        Some(point)
    }
}
