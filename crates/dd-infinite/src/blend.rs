//! [`Blend`]: how elements that lie in several windows are made of them.
//!
//! A fold goes over the windows that have the element, in window order (the index's last coordinate fastest), from the
//! initial value. An element's value depends on these windows alone, so it does not depend on who asked, for how much, with
//! how many threads, or on what was cached. Where no two windows of a tensor can overlap, the window's value is the
//! element's, bit for bit. An element that no window has is the initial value.

use std::fmt;
use std::sync::Arc;

use dd_core::DType;

/// How overlapping windows are combined.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub enum Blend {
    /// The sum; from 0. Integers wrap.
    #[default]
    Sum,
    /// The mean of the windows that have the element, computed in `f64`.
    Mean,
    /// The largest; from −∞ or the type's least. A value that is not a number wins.
    Max,
    /// The smallest; from ∞ or the type's largest. A value that is not a number wins.
    Min,
    /// The last in window order.
    Last,
    /// The mean, weighted by the place in the window, in `f64`: Σ w·x / Σ w. It hides seams.
    Weighted(Weight),
    /// The user's own.
    Custom(CustomFold),
}

/// A weight's profile along each dimension in which windows overlap; the product is the weight. At the middle of a window it
/// is 1, towards the edges it falls, and it is never 0. With `t = min(2(i + ½)/size, 2 − 2(i + ½)/size)`:
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Weight {
    /// `t`.
    Linear,
    /// `(1 − cos πt) / 2`.
    Cosine,
    /// `6t⁵ − 15t⁴ + 10t³` (Perlin, Improving Noise, 2002).
    SmootherStep,
    /// `exp(−((1 − t) / 2σ)² / 2)`: `sigma` is in window sizes; 0.125 is usual.
    Gaussian {
        /// The standard deviation as a fraction of the window's size.
        sigma: f64,
    },
}

impl Weight {
    /// The profile of a window of `size` elements.
    pub(crate) fn profile(self, size: u64) -> Box<[f64]> {
        let at = |i: u64| {
            let place = (i as f64 + 0.5) * 2.0 / size as f64;
            self.value(place.min(2.0 - place))
        };
        (0..size).map(at).collect()
    }

    fn value(self, t: f64) -> f64 {
        match self {
            Self::Linear => t,
            Self::Cosine => (1.0 - (std::f64::consts::PI * t).cos()) / 2.0,
            Self::SmootherStep => t * t * t * (t * (t * 6.0 - 15.0) + 10.0),
            Self::Gaussian { sigma } => {
                let z = (1.0 - t) / (2.0 * sigma);
                (-z * z / 2.0).exp().max(f64::MIN_POSITIVE)
            }
        }
    }
}

/// A user's fold: the value so far and the next window's element, both as `f64`, give the next value.
#[derive(Clone)]
pub struct CustomFold {
    name: Arc<str>,
    initial: f64,
    fold: Arc<dyn Fn(f64, f64) -> f64 + Send + Sync>,
}

impl CustomFold {
    /// A fold under a name (what a store remembers of it) from an initial value.
    pub fn new(
        name: impl Into<Arc<str>>,
        initial: f64,
        fold: impl Fn(f64, f64) -> f64 + Send + Sync + 'static,
    ) -> Self {
        Self { name: name.into(), initial, fold: Arc::new(fold) }
    }

    pub(crate) fn apply(&self, so_far: f64, next: f64) -> f64 {
        (self.fold)(so_far, next)
    }
}

impl fmt::Debug for CustomFold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CustomFold")
            .field("name", &self.name)
            .field("initial", &self.initial)
            .finish_non_exhaustive()
    }
}

impl Blend {
    /// The value before the first window, unless the user chose another.
    pub(crate) fn initial(&self, dtype: DType) -> f64 {
        let float = matches!(dtype, DType::F64 | DType::F32 | DType::F16 | DType::BF16);
        match self {
            Self::Max if float => f64::NEG_INFINITY,
            Self::Min if float => f64::INFINITY,
            Self::Max => f64::MIN, // Saturates to the type's least.
            Self::Min => f64::MAX,
            Self::Custom(custom) => custom.initial,
            Self::Sum | Self::Mean | Self::Last | Self::Weighted(_) => 0.0,
        }
    }

    /// What a store remembers.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Sum => "sum".to_owned(),
            Self::Mean => "mean".to_owned(),
            Self::Max => "max".to_owned(),
            Self::Min => "min".to_owned(),
            Self::Last => "last".to_owned(),
            Self::Weighted(weight) => format!("weighted {weight:?}"),
            Self::Custom(custom) => format!("custom {}", custom.name),
        }
    }
}
