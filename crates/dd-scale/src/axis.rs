//! [`Axis`]: one dimension as the solver sees it, a grid of sizes between a least and a most.

use dd_core::Dim;

/// Relative slack of comparisons between sizes that were computed and sizes that are exact.
pub(crate) const SLACK: f64 = 1e-12;

/// The sizes `min, min + step, …, top`, and where the strategy would like to be between them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Axis {
    /// The size that was wished: what the strategy's power is taken of.
    pub(crate) wished: f64,
    pub(crate) min: usize,
    /// The largest size of the grid.
    pub(crate) top: usize,
    pub(crate) step: usize,
    /// The size that the strategy gives for κ, as a real number in `min..=top`; above zero.
    pub(crate) ideal: f64,
}

impl Axis {
    pub(crate) fn new(dim: &Dim) -> Self {
        let steps = (dim.size - dim.min.min(dim.size)) / dim.step.max(1);
        let top = dim.min + steps * dim.step.max(1);
        Self { wished: dim.size as f64, min: dim.min, top, step: dim.step.max(1), ideal: top as f64 }
    }

    /// One per dimension.
    pub(crate) fn all(dims: &[Dim]) -> Vec<Self> {
        let mut axes = Vec::with_capacity(dims.len());
        axes.extend(dims.iter().map(Self::new));
        axes
    }

    /// Whether there is more than one size to choose from.
    pub(crate) const fn is_scalable(&self) -> bool {
        self.min < self.top
    }

    /// The next larger size, where there is one.
    pub(crate) const fn above(&self, size: usize) -> Option<usize> {
        if size < self.top { Some(size + self.step) } else { None }
    }

    /// The next smaller size, where there is one.
    pub(crate) const fn below(&self, size: usize) -> Option<usize> {
        if size > self.min { Some(size - self.step) } else { None }
    }

    /// The least size of the grid that is not below `x`; nothing where all are.
    pub(crate) fn ceil(&self, x: f64) -> Option<usize> {
        let x = x * (1.0 - SLACK);
        if x <= self.min as f64 {
            return Some(self.min);
        }
        if x > self.top as f64 {
            return None;
        }
        let steps = whole(((x - self.min as f64) / self.step as f64).ceil());
        Some((self.min + steps.min((self.top - self.min) / self.step) * self.step).min(self.top))
    }

    /// The largest size of the grid that is not above `x`; nothing where all are.
    pub(crate) fn floor(&self, x: f64) -> Option<usize> {
        let x = x * (1.0 + SLACK);
        if x >= self.top as f64 {
            return Some(self.top);
        }
        if x < self.min as f64 {
            return None;
        }
        Some((self.min + whole((x - self.min as f64) / self.step as f64) * self.step).min(self.top))
    }

    /// The size of the grid nearest to `x`.
    pub(crate) fn nearest(&self, x: f64) -> usize {
        self.floor(x + 0.5 * self.step as f64).unwrap_or(self.min)
    }

    /// A size as a share of the ideal one. Zero counts as next to nothing, so that shares can be divided.
    pub(crate) fn share(&self, size: usize) -> f64 {
        if size == 0 { f64::MIN_POSITIVE / SLACK } else { size as f64 / self.ideal }
    }
}

/// The whole part of a number that is not negative; saturates.
pub(crate) const fn whole(x: f64) -> usize {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "float casts saturate")]
    {
        x as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_to_its_grid() {
        let axis = Axis::new(&Dim { size: 10, min: 1, step: 4 }); // 1, 5, 9
        let rows = [
            (0.0, Some(1), None, 1),
            (1.0, Some(1), Some(1), 1),
            (2.9, Some(5), Some(1), 1),
            (3.1, Some(5), Some(1), 5),
            (5.0, Some(5), Some(5), 5),
            (5.0 + 1e-13, Some(5), Some(5), 5),
            (9.0, Some(9), Some(9), 9),
            (9.5, None, Some(9), 9),
            (f64::INFINITY, None, Some(9), 9),
        ];
        for (x, ceil, floor, nearest) in rows {
            assert_eq!((axis.ceil(x), axis.floor(x), axis.nearest(x)), (ceil, floor, nearest), "{x}");
        }
    }
}
