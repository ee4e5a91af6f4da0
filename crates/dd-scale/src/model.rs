//! [`Model`]: what the solver asks about costs, answered by formula for one tensor and by trial for any cost model.

use dd_core::{Bytes, CostModel, Error, Result};

use crate::axis::{Axis, SLACK};

/// Up to so many sizes between two points of their grids, a cost in between is interpolated over all corners.
const MOST_CORNERS: usize = 8;
/// Halvings of an interval of real numbers until nothing changes.
const HALVINGS: usize = 200;

/// A cost that never falls when a size grows, with its limit.
pub(crate) trait Model {
    /// Whether these sizes cost at most the limit.
    fn fits(&self, sizes: &[usize]) -> Result<bool>;

    /// The largest size of axis `index` with which the others fit as they are in `sizes`; nothing where none does.
    fn largest(&self, sizes: &mut [usize], axes: &[Axis], index: usize) -> Result<Option<usize>>;

    /// The largest κ for which the real sizes `clamp(κ · power, min, top)` cost at most the limit. `sizes` is scratch.
    fn kappa(&self, axes: &[Axis], powers: &[f64], sizes: &mut [usize]) -> Result<f64>;

    /// The factor with which the ideal sizes of the axes `rest`, the others as they are in `sizes`, cost about the limit.
    fn balance(&self, sizes: &mut [usize], axes: &[Axis], rest: &[usize]) -> Result<f64>;
}

/// The size that an axis has at κ.
pub(crate) fn at(axis: &Axis, power: f64, kappa: f64) -> f64 {
    (kappa * power).clamp(axis.min as f64, axis.top as f64)
}

/// The values of κ at which an axis leaves its least and reaches its largest size.
fn ends(axes: &[Axis], powers: &[f64]) -> impl Iterator<Item = (f64, f64)> {
    axes.iter().zip(powers).map(|(axis, power)| (axis.min as f64 / power, axis.top as f64 / power))
}

/// One tensor: so many elements at most. No size is zero, and none is so large that a product with the least of the
/// others exceeds 64 bits.
pub(crate) struct Product {
    /// How many elements fit.
    pub(crate) elements: u64,
}

impl Product {
    fn of(sizes: &[usize]) -> u64 {
        sizes.iter().fold(1, |product, size| product.saturating_mul(*size as u64))
    }
}

impl Model for Product {
    fn fits(&self, sizes: &[usize]) -> Result<bool> {
        Ok(Self::of(sizes) <= self.elements)
    }

    fn largest(&self, sizes: &mut [usize], axes: &[Axis], index: usize) -> Result<Option<usize>> {
        let Some(axis) = axes.get(index) else { return Ok(None) };
        let others = sizes.iter().enumerate().filter(|(other, _)| *other != index);
        let others = others.fold(1u64, |product, (_, size)| product.saturating_mul(*size as u64));
        let most = usize::try_from(self.elements / others.max(1)).unwrap_or(usize::MAX).min(axis.top);
        Ok(most.checked_sub(axis.min).map(|above| axis.min + above / axis.step * axis.step))
    }

    fn kappa(&self, axes: &[Axis], powers: &[f64], _sizes: &mut [usize]) -> Result<f64> {
        let limit = self.elements as f64;
        let cost = |kappa: f64| {
            axes.iter().zip(powers).map(|(axis, power)| at(axis, *power, kappa)).product::<f64>()
        };
        // The product is a power of κ between any two neighbours among the ends: first find those two.
        let (mut low, mut high) = (0.0f64, f64::INFINITY);
        for (min, top) in ends(axes, powers) {
            for end in [min, top] {
                if end > low && end < high {
                    if cost(end) <= limit { low = end } else { high = end }
                }
            }
        }
        let (mut fixed, mut free) = (1.0, 0);
        for ((axis, power), (min, top)) in axes.iter().zip(powers).zip(ends(axes, powers)) {
            if min <= low && top >= high && axis.is_scalable() {
                free += 1;
                fixed *= power;
            } else {
                fixed *= at(axis, *power, low);
            }
        }
        Ok(if free == 0 { low } else { root(limit / fixed, free).clamp(low, high) })
    }

    fn balance(&self, sizes: &mut [usize], axes: &[Axis], rest: &[usize]) -> Result<f64> {
        let mut wanted = 1.0;
        for (index, (size, axis)) in sizes.iter().zip(axes).enumerate() {
            wanted *= if rest.contains(&index) { axis.ideal } else { *size as f64 };
        }
        Ok(root(self.elements as f64 / wanted, rest.len()))
    }
}

fn root(x: f64, degree: usize) -> f64 {
    match degree {
        0 | 1 => x,
        2 => x.sqrt(),
        3 => x.cbrt(),
        4 => x.sqrt().sqrt(),
        _ => x.powf(1.0 / degree as f64),
    }
}

/// Any cost model.
pub(crate) struct Any<'a> {
    pub(crate) cost: &'a dyn CostModel,
    pub(crate) limit: Bytes,
}

impl Any<'_> {
    /// The cost as a number; without end where it overflows.
    fn cost(&self, sizes: &[usize]) -> Result<f64> {
        match self.cost.peak(sizes) {
            Ok(bytes) => Ok(bytes.0 as f64),
            Err(Error::SizeOverflow { .. }) => Ok(f64::INFINITY),
            Err(error) => Err(error),
        }
    }

    /// Whether real sizes cost at most the limit: the cost between points of the grid is interpolated, in every
    /// direction (which is exact for products of sizes), or along one path where there are too many directions.
    fn real_fits(&self, axes: &[Axis], powers: &[f64], kappa: f64, sizes: &mut [usize]) -> Result<bool> {
        let mut between: Vec<(usize, f64)> = Vec::new();
        for (index, ((axis, power), size)) in axes.iter().zip(powers).zip(sizes.iter_mut()).enumerate() {
            let real = at(axis, *power, kappa);
            *size = axis.floor(real).unwrap_or(axis.min);
            let part = (real - *size as f64) / axis.step as f64;
            if part > 0.0 && *size < axis.top {
                between.push((index, part.min(1.0)));
            }
        }
        if !self.fits(sizes)? {
            return Ok(false);
        }
        let cost = if between.len() <= MOST_CORNERS {
            self.over_corners(axes, &between, sizes)?
        } else {
            self.along_path(axes, between, sizes)?
        };
        Ok(cost <= self.limit.0 as f64 * (1.0 + SLACK))
    }

    fn over_corners(&self, axes: &[Axis], between: &[(usize, f64)], sizes: &mut [usize]) -> Result<f64> {
        let mut sum = 0.0;
        for corner in 0..1usize << between.len() {
            let mut weight = 1.0;
            for (bit, (index, part)) in between.iter().enumerate() {
                let up = corner >> bit & 1 == 1;
                weight *= if up { *part } else { 1.0 - part };
                move_by(sizes, axes, *index, up);
            }
            let cost = if weight > 0.0 { self.cost(sizes) } else { Ok(0.0) };
            for (bit, (index, _)) in between.iter().enumerate() {
                move_back(sizes, axes, *index, corner >> bit & 1 == 1);
            }
            sum += weight * cost?;
        }
        Ok(sum)
    }

    fn along_path(&self, axes: &[Axis], mut between: Vec<(usize, f64)>, sizes: &mut [usize]) -> Result<f64> {
        between.sort_by(|(_, a), (_, b)| b.total_cmp(a));
        let mut last = self.cost(sizes)?;
        let mut sum = last;
        for (index, part) in between {
            move_by(sizes, axes, index, true);
            let next = self.cost(sizes)?;
            sum += part * (next - last);
            last = next;
        }
        Ok(sum)
    }
}

fn move_by(sizes: &mut [usize], axes: &[Axis], index: usize, up: bool) {
    if let (true, Some(size), Some(axis)) = (up, sizes.get_mut(index), axes.get(index)) {
        *size += axis.step;
    }
}

fn move_back(sizes: &mut [usize], axes: &[Axis], index: usize, up: bool) {
    if let (true, Some(size), Some(axis)) = (up, sizes.get_mut(index), axes.get(index)) {
        *size -= axis.step;
    }
}

impl Model for Any<'_> {
    fn fits(&self, sizes: &[usize]) -> Result<bool> {
        match self.cost.peak(sizes) {
            Ok(bytes) => Ok(bytes <= self.limit),
            Err(Error::SizeOverflow { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn largest(&self, sizes: &mut [usize], axes: &[Axis], index: usize) -> Result<Option<usize>> {
        let Some(axis) = axes.get(index) else { return Ok(None) };
        let mut fits = |steps: usize| {
            if let Some(size) = sizes.get_mut(index) {
                *size = axis.min + steps * axis.step;
            }
            self.fits(sizes)
        };
        if !fits(0)? {
            return Ok(None);
        }
        let (mut low, mut high) = (0, (axis.top - axis.min) / axis.step);
        while low < high {
            let middle = low + (high - low).div_ceil(2);
            if fits(middle)? { low = middle } else { high = middle - 1 }
        }
        Ok(Some(axis.min + low * axis.step))
    }

    fn kappa(&self, axes: &[Axis], powers: &[f64], sizes: &mut [usize]) -> Result<f64> {
        let (mut low, mut high) = ends(axes, powers)
            .fold((f64::INFINITY, 0.0f64), |(low, high), (min, top)| (low.min(min), high.max(top)));
        for _ in 0..HALVINGS {
            let middle = if low > 0.0 { (low * high).sqrt() } else { 0.5 * high };
            if !(middle > low && middle < high) {
                break;
            }
            if self.real_fits(axes, powers, middle, sizes)? { low = middle } else { high = middle }
        }
        Ok(low)
    }

    fn balance(&self, sizes: &mut [usize], axes: &[Axis], rest: &[usize]) -> Result<f64> {
        let mut fits = |factor: f64| {
            for index in rest {
                if let (Some(size), Some(axis)) = (sizes.get_mut(*index), axes.get(*index)) {
                    *size = axis.nearest(factor * axis.ideal);
                }
            }
            self.fits(sizes)
        };
        let (mut low, mut high) = (-40.0f64, 40.0f64); // Powers of two.
        for _ in 0..40 {
            let middle = f64::midpoint(low, high);
            if fits(middle.exp2())? { low = middle } else { high = middle }
        }
        Ok(low.exp2())
    }
}
