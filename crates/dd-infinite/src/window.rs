//! [`TensorWindow`]: which box of a tensor each window index stands for.
//!
//! Along a dimension, window `w` has the elements from `w · stride + offset` on, `size` of them. Each dimension follows one
//! coordinate of the index (its own by default), or none: the dimension map says which. It may swap coordinates, and it may
//! give one coordinate to several dimensions (windows along a diagonal).

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use crate::error::{Error, Result};
use crate::region::{Region, Span};

/// What becomes of a window that crosses the edge of a finite dimension.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EdgeMode {
    /// It ends at the edge: the function gets and gives the smaller box. Every element is covered.
    #[default]
    Clip,
    /// It keeps its size: beyond the edge an argument holds the upstream tensor's initial value, and what the function
    /// gives there is ignored. Every element is covered.
    Pad,
    /// It is not computed at all. Elements that only it would cover hold the initial value.
    Drop,
}

/// A sliding window. See the [module](self).
///
/// ```
/// use dd_infinite::{Region, Span, TensorWindow};
///
/// let window = TensorWindow::new([64, 64])?.with_stride([32, 32])?.with_offset([-16, 0])?;
/// assert_eq!(window.bounds(&[1, -1])?, Region::new([Span::new(16, 80), Span::new(-32, 32)]));
/// # Ok::<(), dd_infinite::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TensorWindow {
    size: SmallVec<[i64; 4]>,
    stride: SmallVec<[i64; 4]>,
    offset: SmallVec<[i64; 4]>,
    map: SmallVec<[Option<usize>; 4]>,
    edge: EdgeMode,
}

impl TensorWindow {
    /// A window of this size, which moves by its size.
    ///
    /// # Errors
    /// [`Error::Window`] for a size below one.
    pub fn new(size: impl AsRef<[i64]>) -> Result<Self> {
        let size = positive("size", size.as_ref())?;
        let offset = size.iter().map(|_| 0).collect();
        let map = (0..size.len()).map(Some).collect();
        Ok(Self { stride: size.clone(), size, offset, map, edge: EdgeMode::default() })
    }

    /// Moves by `stride` instead.
    ///
    /// # Errors
    /// [`Error::Window`] for a stride below one, or another number of dimensions.
    pub fn with_stride(mut self, stride: impl AsRef<[i64]>) -> Result<Self> {
        self.stride = positive("stride", stride.as_ref())?;
        self.same_rank("stride", self.stride.len())?;
        Ok(self)
    }

    /// Window zero begins at `offset`.
    ///
    /// # Errors
    /// [`Error::Window`] for another number of dimensions.
    pub fn with_offset(mut self, offset: impl AsRef<[i64]>) -> Result<Self> {
        self.offset = SmallVec::from_slice(offset.as_ref());
        self.same_rank("offset", self.offset.len())?;
        Ok(self)
    }

    /// Dimension `d` follows coordinate `map[d]` of the index, or stays where it is.
    ///
    /// # Errors
    /// [`Error::Window`] for another number of dimensions.
    pub fn with_dimension_map(mut self, map: impl AsRef<[Option<usize>]>) -> Result<Self> {
        self.map = SmallVec::from_slice(map.as_ref());
        self.same_rank("dimension_map", self.map.len())?;
        Ok(self)
    }

    /// What becomes of windows across the edge of a finite dimension.
    #[must_use]
    pub const fn with_edge(mut self, edge: EdgeMode) -> Self {
        self.edge = edge;
        self
    }

    /// How many dimensions.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.size.len()
    }

    /// The size, in elements.
    #[must_use]
    pub fn size(&self) -> &[i64] {
        &self.size
    }

    /// The step from window to window, in elements.
    #[must_use]
    pub fn stride(&self) -> &[i64] {
        &self.stride
    }

    /// Where window zero begins.
    #[must_use]
    pub fn offset(&self) -> &[i64] {
        &self.offset
    }

    /// Which coordinate each dimension follows.
    #[must_use]
    pub fn dimension_map(&self) -> &[Option<usize>] {
        &self.map
    }

    /// What becomes of windows across the edge of a finite dimension.
    #[must_use]
    pub const fn edge(&self) -> EdgeMode {
        self.edge
    }

    /// How many coordinates an index must have at least.
    #[must_use]
    pub fn index_rank(&self) -> usize {
        self.map.iter().flatten().max().map_or(0, |most| most.saturating_add(1))
    }

    /// The box of window `index`, whatever the tensor's edges.
    ///
    /// # Errors
    /// [`Error::Overflow`] past 64 bits; [`Error::Window`] for an index with too few coordinates.
    pub fn bounds(&self, index: &[i64]) -> Result<Region> {
        let spans: Result<SmallVec<[Span; 4]>> = self.axes().map(|axis| axis.span(index)).collect();
        Ok(Region::new(spans?))
    }

    /// The part of the index box `within` whose windows meet a region. For a coordinate that no dimension follows, all of
    /// `within`.
    #[must_use]
    pub fn indices(&self, region: &Region, within: &Region) -> Region {
        let mut found = within.clone();
        for (axis, span) in self.axes().zip(region.spans()) {
            match axis.coordinate.and_then(|at| found.spans_mut().get_mut(at)) {
                Some(range) => *range = range.meet(axis.meeting(*span)),
                None if axis.fixed().meet(*span).is_empty() => {
                    found.spans_mut().iter_mut().for_each(|range| *range = Span::EMPTY);
                    return found;
                }
                None => {}
            }
        }
        found
    }

    /// The least box that has the windows of all of an index box; saturates at the ends of 64 bits.
    #[must_use]
    pub fn hull(&self, indices: &Region) -> Region {
        let spans = self.axes().map(|axis| {
            let range = axis.coordinate.and_then(|at| indices.spans().get(at).copied());
            range.map_or(axis.fixed(), |range| axis.hull(range))
        });
        Region::new(spans)
    }

    /// The index box of the windows of a tensor with these dimensions, of `rank` coordinates.
    pub(crate) fn domain(&self, shape: &[Option<i64>], rank: usize) -> Region {
        let mut found = Region::new((0..rank).map(|_| Span::ALL));
        for (axis, len) in self.axes().zip(shape) {
            let Some(len) = *len else { continue };
            let allowed = match self.edge {
                EdgeMode::Clip | EdgeMode::Pad => axis.meeting(Span::new(0, len)),
                EdgeMode::Drop => axis.inside(len),
            };
            match axis.coordinate.and_then(|at| found.spans_mut().get_mut(at)) {
                Some(range) => *range = range.meet(allowed),
                None if self.edge == EdgeMode::Drop && !Span::new(0, len).covers(axis.fixed()) => {
                    found.spans_mut().iter_mut().for_each(|range| *range = Span::EMPTY);
                }
                None => {}
            }
        }
        found
    }

    /// Whether no element can lie in two windows.
    pub(crate) fn is_disjoint(&self) -> bool {
        let mut apart: SmallVec<[bool; 4]> = (0..self.index_rank()).map(|_| false).collect();
        for axis in self.axes() {
            if let Some(flag) = axis.coordinate.and_then(|at| apart.get_mut(at)) {
                *flag |= axis.stride >= axis.size;
            }
        }
        apart.iter().all(|flag| *flag)
    }

    pub(crate) fn axes(&self) -> impl Iterator<Item = Axis> + '_ {
        let parts = self.size.iter().zip(&self.stride).zip(self.offset.iter().zip(&self.map));
        parts.map(|((size, stride), (offset, coordinate))| Axis {
            size: *size,
            stride: *stride,
            offset: *offset,
            coordinate: *coordinate,
        })
    }

    fn same_rank(&self, field: &'static str, found: usize) -> Result<()> {
        if found == self.size.len() {
            return Ok(());
        }
        let reason = format!("{found} entries for {} dimensions; give one per dimension", self.size.len());
        Err(Error::Window { field, reason })
    }
}

/// One dimension of a window.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Axis {
    pub(crate) size: i64,
    pub(crate) stride: i64,
    pub(crate) offset: i64,
    pub(crate) coordinate: Option<usize>,
}

impl Axis {
    fn span(self, index: &[i64]) -> Result<Span> {
        let at = match self.coordinate {
            None => 0,
            Some(coordinate) => *index.get(coordinate).ok_or_else(|| Error::Window {
                field: "index",
                reason: format!("{index:?} has no coordinate {coordinate}"),
            })?,
        };
        let start = self.start(at);
        Span::checked(start, start + i128::from(self.size))
    }

    fn start(self, at: i64) -> i128 {
        i128::from(at) * i128::from(self.stride) + i128::from(self.offset)
    }

    fn fixed(self) -> Span {
        Span::clamped(self.offset.into(), i128::from(self.offset) + i128::from(self.size))
    }

    /// The windows that meet `[a, b)`: ceil((a − offset − size + 1) / stride) ..= floor((b − 1 − offset) / stride).
    pub(crate) fn meeting(self, span: Span) -> Span {
        if span.is_empty() {
            return Span::EMPTY;
        }
        let (a, b) = (i128::from(span.start()), i128::from(span.end()));
        let (size, stride, offset) =
            (i128::from(self.size), i128::from(self.stride), i128::from(self.offset));
        let first = -(-(a - offset - size + 1)).div_euclid(stride); // Rounded up: stride is positive.
        let last = (b - 1 - offset).div_euclid(stride);
        Span::clamped(first, last + 1)
    }

    /// The windows that lie wholly in `[0, len)`.
    fn inside(self, len: i64) -> Span {
        let (size, stride, offset) =
            (i128::from(self.size), i128::from(self.stride), i128::from(self.offset));
        let first = -offset.div_euclid(stride);
        let last = (i128::from(len) - size - offset).div_euclid(stride);
        Span::clamped(first, last + 1)
    }

    fn hull(self, range: Span) -> Span {
        if range.is_empty() {
            return Span::EMPTY;
        }
        let last = range.end().saturating_sub(1);
        Span::clamped(self.start(range.start()), self.start(last) + i128::from(self.size))
    }
}

fn positive(field: &'static str, values: &[i64]) -> Result<SmallVec<[i64; 4]>> {
    match values.iter().position(|value| *value < 1) {
        None => Ok(SmallVec::from_slice(values)),
        Some(at) => {
            let found = values.get(at).copied().unwrap_or_default();
            Err(Error::Window { field, reason: format!("dimension {at} is {found}; expected at least 1") })
        }
    }
}
