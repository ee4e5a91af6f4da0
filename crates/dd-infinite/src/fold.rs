//! Folding windows into a box of a dense buffer: the one place where a blend is computed.

use dd_core::DType;
use half::{bf16, f16};
use smallvec::SmallVec;

use crate::blend::Blend;
use crate::element::Element;
use crate::region::Region;

/// How a tensor's windows become its elements.
#[derive(Debug)]
pub(crate) struct Fold {
    dtype: DType,
    element: usize,
    blend: Blend,
    initial: f64,
    /// No two windows overlap: bytes are copied, whatever the blend.
    disjoint: bool,
    /// For weighted blends: per dimension the weight of each place in a window; nothing where windows do not overlap.
    profiles: Vec<Option<Box<[f64]>>>,
}

/// What is there of one window.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part<'a> {
    /// Which elements `bytes` holds.
    pub(crate) held: &'a Region,
    pub(crate) bytes: &'a [u8],
    /// The whole window, from which weights count.
    pub(crate) whole: &'a Region,
}

impl Fold {
    pub(crate) fn new(
        dtype: DType,
        element: usize,
        blend: Blend,
        initial: f64,
        disjoint: bool,
        profiles: Vec<Option<Box<[f64]>>>,
    ) -> Self {
        Self { dtype, element, blend, initial, disjoint, profiles }
    }

    /// The bytes that [`fold`](Self::fold) takes for rows of this many elements.
    pub(crate) const fn scratch(&self, row: u64) -> u64 {
        if self.disjoint { 0 } else { row.saturating_mul(16) }
    }

    /// Writes the elements of `target` into `out`, which is the dense box `view`, from parts in window order. All the
    /// windows that meet `target` must be among the parts.
    pub(crate) fn fold(&self, target: &Region, parts: &[Part<'_>], view: &Region, out: &mut [u8]) {
        if target.is_empty() {
            return;
        }
        if self.disjoint {
            self.copy(target, parts, view, out);
            return;
        }
        match self.dtype {
            DType::F64 => self.rows::<f64>(target, parts, view, out),
            DType::F32 => self.rows::<f32>(target, parts, view, out),
            DType::F16 => self.rows::<f16>(target, parts, view, out),
            DType::BF16 => self.rows::<bf16>(target, parts, view, out),
            DType::I64 => self.rows::<i64>(target, parts, view, out),
            DType::I32 => self.rows::<i32>(target, parts, view, out),
            DType::I16 => self.rows::<i16>(target, parts, view, out),
            DType::I8 => self.rows::<i8>(target, parts, view, out),
            DType::U64 => self.rows::<u64>(target, parts, view, out),
            DType::U32 => self.rows::<u32>(target, parts, view, out),
            DType::U16 => self.rows::<u16>(target, parts, view, out),
            _ => self.rows::<u8>(target, parts, view, out), // U8 and Bool; others were refused when the tensor was made.
        }
    }

    /// Whether this dtype can be folded where windows overlap.
    pub(crate) const fn can_fold(dtype: DType) -> bool {
        use DType::{BF16, Bool, F16, F32, F64, I8, I16, I32, I64, U8, U16, U32, U64};
        matches!(dtype, F64 | F32 | F16 | BF16 | I64 | I32 | I16 | I8 | U64 | U32 | U16 | U8 | Bool)
    }

    fn copy(&self, target: &Region, parts: &[Part<'_>], view: &Region, out: &mut [u8]) {
        let covered: u64 = parts.iter().map(|part| part.held.meet(target).volume()).sum();
        if covered < target.volume() {
            self.fill(target, view, out);
        }
        for part in parts {
            copy_box(&part.held.meet(target), self.element, (part.held, part.bytes), (view, out));
        }
    }

    fn fill(&self, target: &Region, view: &Region, out: &mut [u8]) {
        let mut bytes = [0u8; 8];
        self.initial_bytes(&mut bytes);
        let value = bytes.get(..self.element).unwrap_or_default();
        for_each_row(target, &[view], |starts, len| {
            let range = bytes_of(starts, 0, len, self.element);
            for place in out.get_mut(range).unwrap_or_default().chunks_exact_mut(self.element) {
                place.copy_from_slice(value);
            }
        });
    }

    fn initial_bytes(&self, bytes: &mut [u8; 8]) {
        fn put<E: Element>(value: f64, bytes: &mut [u8]) {
            E::from_f64(value).store(bytes);
        }
        match self.dtype {
            DType::F64 => put::<f64>(self.initial, bytes),
            DType::F32 => put::<f32>(self.initial, bytes),
            DType::F16 => put::<f16>(self.initial, bytes),
            DType::BF16 => put::<bf16>(self.initial, bytes),
            DType::I64 => put::<i64>(self.initial, bytes),
            DType::I32 => put::<i32>(self.initial, bytes),
            DType::I16 => put::<i16>(self.initial, bytes),
            DType::I8 => put::<i8>(self.initial, bytes),
            DType::U64 => put::<u64>(self.initial, bytes),
            DType::U32 => put::<u32>(self.initial, bytes),
            DType::U16 => put::<u16>(self.initial, bytes),
            DType::U8 | DType::Bool => put::<u8>(self.initial, bytes),
            _ => {} // Zero bits: another initial value was refused when the tensor was made.
        }
    }

    fn rows<E: Element>(&self, target: &Region, parts: &[Part<'_>], view: &Region, out: &mut [u8]) {
        match &self.blend {
            Blend::Sum => self.simple::<E>(target, parts, view, out, |a, b| a.add(b)),
            Blend::Max => self.simple::<E>(target, parts, view, out, |a, b| if b.above(a) { b } else { a }),
            Blend::Min => self.simple::<E>(target, parts, view, out, |a, b| if b.below(a) { b } else { a }),
            Blend::Last => self.simple::<E>(target, parts, view, out, |_, b| b),
            Blend::Custom(custom) => self.simple::<E>(target, parts, view, out, |a, b| {
                E::from_f64(custom.apply(a.to_f64(), b.to_f64()))
            }),
            Blend::Mean | Blend::Weighted(_) => self.weighted::<E>(target, parts, view, out),
        }
    }

    /// Folds in place, part by part: each element meets its windows in the order of the parts.
    fn simple<E: Element>(
        &self,
        target: &Region,
        parts: &[Part<'_>],
        view: &Region,
        out: &mut [u8],
        step: impl Fn(E, E) -> E,
    ) {
        self.fill(target, view, out);
        for part in parts {
            let shared = part.held.meet(target);
            for_each_row(&shared, &[view, part.held], |starts, len| {
                let places = out.get_mut(bytes_of(starts, 0, len, E::SIZE)).unwrap_or_default();
                let values = part.bytes.get(bytes_of(starts, 1, len, E::SIZE)).unwrap_or_default();
                let pairs = places.chunks_exact_mut(E::SIZE).zip(values.chunks_exact(E::SIZE));
                for (place, value) in pairs {
                    step(E::load(place), E::load(value)).store(place);
                }
            });
        }
    }

    /// Row by row: the sums of weighted values and of weights, then their quotient.
    fn weighted<E: Element>(&self, target: &Region, parts: &[Part<'_>], view: &Region, out: &mut [u8]) {
        let width = target.spans().last().map_or(1, |span| span.len());
        let Ok(width) = usize::try_from(width) else { return };
        let (mut sums, mut weights) = (vec![0f64; width], vec![0f64; width]);
        let first = target.spans().last().map_or(0, |span| span.start());
        let rows = Region::new(target.spans().iter().take(target.rank().saturating_sub(1)).copied());
        for row in rows.points() {
            sums.fill(0.0);
            weights.fill(0.0);
            for part in parts {
                self.add_row::<E>(part, target, (&row, first), &mut sums, &mut weights);
            }
            let line = row_region(target, &row);
            for_each_row(&line, &[view], |starts, len| {
                let places = out.get_mut(bytes_of(starts, 0, len, E::SIZE)).unwrap_or_default();
                for ((place, sum), weight) in places.chunks_exact_mut(E::SIZE).zip(&sums).zip(&weights) {
                    let value = if *weight == 0.0 { self.initial } else { sum / weight };
                    E::from_f64(value).store(place);
                }
            });
        }
    }

    fn add_row<E: Element>(
        &self,
        part: &Part<'_>,
        target: &Region,
        (row, first): (&[i64], i64),
        sums: &mut [f64],
        weights: &mut [f64],
    ) {
        let line = row_region(target, row).meet(part.held);
        if line.is_empty() {
            return;
        }
        let outer: f64 = row.iter().enumerate().map(|(d, at)| self.weight(part.whole, d, *at)).product();
        let last = target.rank().saturating_sub(1);
        let begin = line.spans().last().map_or(0, |span| span.start());
        let skip = usize::try_from(begin.abs_diff(first)).unwrap_or(usize::MAX);
        for_each_row(&line, &[part.held], |starts, len| {
            let values = part.bytes.get(bytes_of(starts, 0, len, E::SIZE)).unwrap_or_default();
            let places = sums.iter_mut().zip(weights.iter_mut()).skip(skip);
            for ((value, (sum, total)), at) in values.chunks_exact(E::SIZE).zip(places).zip(begin..) {
                let weight = if target.rank() == 0 { 1.0 } else { outer * self.weight(part.whole, last, at) };
                *sum += weight * E::load(value).to_f64();
                *total += weight;
            }
        });
    }

    fn weight(&self, whole: &Region, dimension: usize, at: i64) -> f64 {
        let Some(Some(profile)) = self.profiles.get(dimension) else { return 1.0 };
        let place = whole.spans().get(dimension).map_or(0, |span| at.abs_diff(span.start()));
        usize::try_from(place).ok().and_then(|place| profile.get(place)).copied().unwrap_or(1.0)
    }
}

fn row_region(target: &Region, row: &[i64]) -> Region {
    let last = target.spans().last().copied();
    let points = row.iter().map(|at| crate::region::Span::new(*at, at.saturating_add(1)));
    Region::new(points.chain(last.filter(|_| target.rank() > row.len())))
}

/// The bytes of `len` elements from the `which`-th start.
fn bytes_of(starts: &[usize], which: usize, len: usize, element: usize) -> std::ops::Range<usize> {
    let start = starts.get(which).copied().unwrap_or(usize::MAX).saturating_mul(element);
    start..start.saturating_add(len.saturating_mul(element))
}

/// Copies the elements of `shared` from one dense box to another.
pub(crate) fn copy_box(
    shared: &Region,
    element: usize,
    (from, source): (&Region, &[u8]),
    (to, target): (&Region, &mut [u8]),
) {
    for_each_row(shared, &[from, to], |starts, len| {
        let source = source.get(bytes_of(starts, 0, len, element));
        let target = target.get_mut(bytes_of(starts, 1, len, element));
        if let (Some(source), Some(target)) = (source, target) {
            target.copy_from_slice(source);
        }
    });
}

/// Calls `visit` for each run of elements that lie one after the other in every one of the dense boxes, in order, with the
/// run's first element's number in each box, and the run's length. `target` lies in all of the boxes.
pub(crate) fn for_each_row(target: &Region, boxes: &[&Region], mut visit: impl FnMut(&[usize], usize)) {
    if target.is_empty() {
        return;
    }
    // Dimensions from `inner` on are one run: all but the first of them are whole in every box.
    let rank = target.rank();
    let mut inner = rank.saturating_sub(1);
    let whole = |d: usize| {
        let span = target.spans().get(d);
        boxes.iter().all(|b| b.spans().get(d) == span)
    };
    while inner > 0 && whole(inner) {
        inner -= 1;
    }
    let len = |d: usize| target.spans().get(d).map_or(1, |span| span.len());
    let run = usize::try_from((inner..rank).map(len).product::<u64>()).unwrap_or(usize::MAX);
    let strides: SmallVec<[SmallVec<[usize; 4]>; 2]> = boxes.iter().map(|b| strides(b)).collect();
    let mut starts: SmallVec<[usize; 2]> =
        boxes.iter().zip(&strides).map(|(b, strides)| offset(target, b, strides)).collect();
    let mut place: SmallVec<[u64; 4]> = (0..inner).map(|_| 0).collect();
    loop {
        visit(&starts, run);
        let mut d = inner;
        loop {
            if d == 0 {
                return;
            }
            d -= 1;
            let Some(at) = place.get_mut(d) else { return };
            let step = |stride: &SmallVec<[usize; 4]>| stride.get(d).copied().unwrap_or(0);
            *at += 1;
            if *at < len(d) {
                starts.iter_mut().zip(&strides).for_each(|(start, stride)| *start += step(stride));
                break;
            }
            let back = usize::try_from(*at - 1).unwrap_or(0);
            *at = 0;
            starts.iter_mut().zip(&strides).for_each(|(start, stride)| *start -= step(stride) * back);
        }
    }
}

fn strides(region: &Region) -> SmallVec<[usize; 4]> {
    let mut strides: SmallVec<[usize; 4]> = region.spans().iter().map(|_| 1).collect();
    let mut stride = 1usize;
    for (place, span) in strides.iter_mut().zip(region.spans()).rev() {
        *place = stride;
        stride = stride.saturating_mul(usize::try_from(span.len()).unwrap_or(usize::MAX));
    }
    strides
}

fn offset(target: &Region, region: &Region, strides: &[usize]) -> usize {
    let pairs = target.spans().iter().zip(region.spans()).zip(strides);
    let part = |((a, b), stride): ((&crate::region::Span, &crate::region::Span), &usize)| {
        usize::try_from(a.start().abs_diff(b.start())).unwrap_or(usize::MAX).saturating_mul(*stride)
    };
    pairs.map(part).fold(0, usize::saturating_add)
}
