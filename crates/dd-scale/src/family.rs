//! [`PowerLaw`]: the strategies d' = min(d, κ·d^γ).
//!
//! One number, γ, says how the loss is shared: with γ = 1 every dimension shrinks by the same factor (*linear*), with γ = ½
//! the larger ones shrink more (*exponential*), with γ = 0 all are cut to one common size. κ is solved so that the real
//! sizes cost exactly the target, each kept between its bounds; these are the *ideal* sizes. The whole sizes that are
//! taken are, among those that are maximal, the ones nearest in shape to the ideal (see the module `search`).

use dd_core::{Bytes, CostModel, Dim, Error, Result, ScalingPlan, ScalingStrategy};

use crate::axis::Axis;
use crate::model::{Any, Model, Product, at};
use crate::search::{Found, search};

/// The largest γ. Beyond it, the power of a large dimension is no finite number.
pub const MOST_GAMMA: f64 = 8.0;

/// A strategy d' = min(d, κ·d^γ).
///
/// ```
/// use dd_core::{Bytes, DType, Dim, ScalingStrategy};
/// use dd_scale::{PowerLaw, cost::TensorCost};
///
/// let dims = [1024, 1024, 3].map(Dim::scalable);
/// let plan = PowerLaw::LINEAR.plan(&dims, &TensorCost(DType::F32), Bytes::mib(2))?;
/// assert_eq!(plan.sizes, [512, 512, 2]);
/// let dims = [1024, 256, 3].map(Dim::scalable);
/// let plan = PowerLaw::EXPONENTIAL.plan(&dims, &TensorCost(DType::F32), Bytes::kib(384))?;
/// assert_eq!(plan.sizes, [256, 128, 3]);
/// # Ok::<(), dd_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PowerLaw {
    gamma: f64,
}

impl PowerLaw {
    /// γ = 1: every dimension by the same factor.
    pub const LINEAR: Self = Self { gamma: 1.0 };
    /// γ = ½: larger dimensions by more.
    pub const EXPONENTIAL: Self = Self { gamma: 0.5 };

    /// The strategy of this γ.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for one outside 0 to [`MOST_GAMMA`].
    pub fn new(gamma: f64) -> Result<Self> {
        if (0.0..=MOST_GAMMA).contains(&gamma) {
            return Ok(Self { gamma });
        }
        let reason = format!("{gamma} is outside 0 to {MOST_GAMMA}");
        Err(Error::InvalidArgument { argument: "gamma", reason })
    }

    /// γ.
    #[must_use]
    pub const fn gamma(self) -> f64 {
        self.gamma
    }

    /// Sizes of one tensor of at most so many elements. No dimension is zero.
    pub(crate) fn solve_product(self, dims: &[Dim], elements: u64) -> Result<Solved> {
        let model = Product { elements: elements.min(u64::MAX - 1) };
        self.solve(&model, Axis::all(dims))
    }

    /// Sizes of one tensor of at most so many elements that grow from `dims` in the proportions of `wished`: each
    /// dimension's `min` is what it has already.
    pub(crate) fn grow_product(dims: &[Dim], wished: &[usize], elements: u64) -> Result<Solved> {
        let model = Product { elements: elements.min(u64::MAX - 1) };
        let mut axes = Axis::all(dims);
        axes.iter_mut().zip(wished).for_each(|(axis, wished)| axis.wished = *wished as f64);
        Self::LINEAR.solve(&model, axes)
    }

    fn solve<M: Model>(self, model: &M, mut axes: Vec<Axis>) -> Result<Solved> {
        let mut sizes: Vec<usize> = Vec::with_capacity(axes.len());
        sizes.extend(axes.iter().map(|axis| axis.min));
        if !model.fits(&sizes)? {
            return Ok(Solved::TooSmall(sizes));
        }
        sizes.clear();
        sizes.extend(axes.iter().map(|axis| axis.top));
        if model.fits(&sizes)? {
            return Ok(Solved::Found(Found { sizes, proven: true }));
        }
        self.set_ideals(model, &mut axes, &mut sizes)?;
        search(model, &axes).map(Solved::Found)
    }

    /// Solves κ and sets every axis's ideal size.
    fn set_ideals<M: Model>(self, model: &M, axes: &mut [Axis], scratch: &mut [usize]) -> Result<()> {
        // Most tensors have few dimensions: their powers need no allocation.
        let mut few = [0.0; 8];
        let mut many = Vec::new();
        let powers = match few.get_mut(..axes.len()) {
            Some(few) => few,
            None => {
                many.resize(axes.len(), 0.0);
                many.as_mut_slice()
            }
        };
        for (axis, power) in axes.iter().zip(powers.iter_mut()) {
            *power = self.power(axis.wished.max(1.0));
        }
        let kappa = model.kappa(axes, powers, scratch)?;
        for (axis, power) in axes.iter_mut().zip(powers.iter()) {
            axis.ideal = at(axis, *power, kappa).max(f64::EPSILON);
        }
        Ok(())
    }

    fn power(self, size: f64) -> f64 {
        if self.gamma == 1.0 {
            size
        } else if self.gamma == 0.5 {
            size.sqrt()
        } else {
            size.powf(self.gamma)
        }
    }
}

/// What solving gave.
pub(crate) enum Solved {
    /// Sizes that fit.
    Found(Found),
    /// Not even these, the least, fit.
    TooSmall(Vec<usize>),
}

impl ScalingStrategy for PowerLaw {
    fn name(&self) -> &str {
        if self.gamma == 1.0 {
            "linear"
        } else if self.gamma == 0.5 {
            "exponential"
        } else {
            "power"
        }
    }

    fn plan(&self, dims: &[Dim], cost: &dyn CostModel, limit: Bytes) -> Result<ScalingPlan> {
        dims.iter().enumerate().try_for_each(|(index, dim)| dim.check(index))?;
        match self.solve(&Any { cost, limit }, Axis::all(dims))? {
            Solved::TooSmall(least) => {
                let needed = cost.peak(&least)?;
                Err(Error::OutOfMemory { place: "scaling limit".to_owned(), needed, available: limit })
            }
            Solved::Found(Found { sizes, .. }) => {
                let cost = cost.peak(&sizes)?;
                let scaled = sizes.iter().zip(dims).any(|(size, dim)| *size != dim.size);
                Ok(ScalingPlan { sizes, cost, scaled })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gammas_are_checked() {
        let rows = [
            (0.0, true),
            (0.7, true),
            (8.0, true),
            (-0.1, false),
            (8.1, false),
            (f64::NAN, false),
            (f64::INFINITY, false),
        ];
        for (gamma, good) in rows {
            assert_eq!(PowerLaw::new(gamma).is_ok(), good, "{gamma}");
        }
    }

    #[test]
    fn every_strategy_keeps_the_contract() {
        for gamma in [0.0, 0.3, 0.5, 1.0, 2.0] {
            dd_conformance::scaling_strategy(&PowerLaw::new(gamma).unwrap());
        }
    }
}
