//! [`Scaler`]: sizes of one tensor for a target in bytes. Needs no tensor library and reads no memory.

use std::sync::Arc;

use dd_core::{Bytes, DType, Dim, ScalingStrategy};
use serde::{Deserialize, Serialize};

use crate::config::{ScalingConfig, check_rank};
use crate::cost::TensorCost;
use crate::error::{Error, Result};
use crate::family::{PowerLaw, Solved};
use crate::search::Found;

const PLACE: &str = "the scaling target";

/// What was decided for one tensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ScalingResult {
    /// The wished sizes.
    pub original: Vec<usize>,
    /// The sizes to take.
    pub dims: Vec<usize>,
    /// The realised factor of each dimension: `dims / original`.
    pub factors: Vec<f64>,
    /// The element type.
    pub dtype: DType,
    /// What the wished sizes take.
    pub original_bytes: Bytes,
    /// What the sizes to take take; at most the target.
    pub bytes: Bytes,
    /// What they had to fit.
    pub target: Bytes,
    /// Whether any size differs from the wished one.
    pub scaled: bool,
    /// Whether it is proven that no other maximal sizes distort less. Sizes of a user's own strategy are not judged.
    pub least_distorting: bool,
    /// The strategy's name, or its γ.
    pub strategy: String,
}

impl ScalingResult {
    /// The share of the target that is used, in `0..=1`.
    #[must_use]
    pub fn used_fraction(&self) -> f64 {
        self.bytes.fraction_of(self.target)
    }
}

/// Chooses sizes by a [`ScalingConfig`].
///
/// ```
/// use dd_core::{Bytes, DType};
/// use dd_scale::{Scaler, ScalingConfig};
///
/// let scaler = Scaler::new(ScalingConfig::default());
/// let result = scaler.fit(&[1024, 1024, 3], DType::F32, Bytes::mib(2))?;
/// assert_eq!((result.dims.as_slice(), result.bytes), ([512, 512, 2].as_slice(), Bytes::mib(2)));
/// # Ok::<(), dd_scale::Error>(())
/// ```
#[derive(Clone)]
pub struct Scaler {
    config: ScalingConfig,
    strategy: String,
    own: Option<Arc<dyn ScalingStrategy>>,
}

impl std::fmt::Debug for Scaler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scaler").field("config", &self.config).field("strategy", &self.strategy).finish()
    }
}

impl Scaler {
    /// A scaler with the strategy that the configuration names.
    #[must_use]
    pub fn new(config: ScalingConfig) -> Self {
        let strategy = config.strategy().to_string();
        Self { config, strategy, own: None }
    }

    /// The same with a strategy of the user's own in place of the one that the configuration names. Its plans are
    /// checked: sizes that do not fit or leave their bounds are an error.
    #[must_use]
    pub fn with_strategy(mut self, strategy: Arc<dyn ScalingStrategy>) -> Self {
        self.strategy = strategy.name().to_owned();
        self.own = Some(strategy);
        self
    }

    /// The configuration.
    #[must_use]
    pub const fn config(&self) -> &ScalingConfig {
        &self.config
    }

    /// Chooses sizes that take at most `target` bytes.
    ///
    /// # Errors
    /// [`Error::Empty`], [`Error::Dimension`], [`Error::Rank`], [`Error::Entry`] for sizes that cannot be used with this
    /// configuration; [`dd_core::Error::OutOfMemory`] with what is needed where not even the least sizes fit.
    pub fn fit(&self, dims: &[usize], dtype: DType, target: Bytes) -> Result<ScalingResult> {
        let original_bytes = size_of(dims, dtype)?;
        let bounds = self.bounds(dims, dtype)?;
        let elements = elements(dtype, target);
        let found = match &self.own {
            None => {
                let solved = self.config.strategy().power_law().solve_product(&bounds, elements)?;
                found(solved, dtype, target)?
            }
            Some(strategy) => {
                let plan = strategy.plan(&bounds, &TensorCost(dtype), target)?;
                check_plan(strategy.name(), &plan.sizes, &bounds, dtype, target)?;
                Found { sizes: plan.sizes, proven: false }
            }
        };
        let found =
            if *self.config.maximize() { self.grow(found, dims, &bounds, dtype, target)? } else { found };
        let bytes = bytes_of(&found.sizes, dtype)?;
        let factors = found.sizes.iter().zip(dims).map(|(size, wished)| *size as f64 / *wished as f64);
        Ok(ScalingResult {
            factors: factors.collect(),
            scaled: found.sizes != dims,
            dims: found.sizes,
            original: dims.to_vec(),
            dtype,
            original_bytes,
            bytes,
            target,
            least_distorting: found.proven,
            strategy: self.strategy.clone(),
        })
    }

    /// What each dimension may become: within its bounds, on its steps, at most what was wished.
    fn bounds(&self, dims: &[usize], dtype: DType) -> Result<Vec<Dim>> {
        let config = &self.config;
        let lists = [
            ("min_dimensions", config.min_dimensions()),
            ("max_dimensions", config.max_dimensions()),
            ("steps", config.steps()),
        ];
        for (option, list) in lists {
            list.as_ref().map_or(Ok(()), |list| check_rank(option, list, dims))?;
        }
        for (index, value) in config.frozen().iter().enumerate() {
            if *value >= dims.len() {
                let reason = format!("there are {} dimensions, counted from zero", dims.len());
                return Err(Error::Entry { option: "frozen", index, value: *value, reason });
            }
        }
        let mut bounds = Vec::with_capacity(dims.len());
        for (index, wished) in dims.iter().enumerate() {
            let block = if index + 1 == dims.len() { dtype.block_elements() } else { 1 };
            let block = usize::try_from(block).unwrap_or(1);
            bounds.push(if config.frozen().contains(&index) {
                frozen(index, *wished, block, dtype)?
            } else {
                self.bound(index, *wished, block)?
            });
        }
        Ok(bounds)
    }

    fn bound(&self, index: usize, wished: usize, block: usize) -> Result<Dim> {
        let entry = |list: &Option<Vec<usize>>| list.as_ref().and_then(|list| list.get(index).copied());
        let config = &self.config;
        let least = entry(config.min_dimensions()).unwrap_or(1);
        let most = entry(config.max_dimensions()).unwrap_or(usize::MAX);
        let step = common_multiple(entry(config.steps()).unwrap_or(1), block);
        let none = || Error::Entry {
            option: "steps",
            index,
            value: step,
            reason: format!("no multiple of it lies between {least} and {most}"),
        };
        let min = least.checked_next_multiple_of(step).filter(|min| *min <= most).ok_or_else(none)?;
        let size = (wished.clamp(least, most) / step * step).max(min);
        Ok(Dim { size, min, step })
    }

    /// Grows sizes that fit beyond what was wished, in the proportions of the wish, as far as they still fit.
    fn grow(
        &self,
        found: Found,
        dims: &[usize],
        bounds: &[Dim],
        dtype: DType,
        target: Bytes,
    ) -> Result<Found> {
        let elements = elements(dtype, target);
        let product: u64 = found.sizes.iter().fold(1, |product, size| product.saturating_mul(*size as u64));
        let room = |(index, (bound, size)): (usize, (&Dim, &usize))| {
            if self.config.frozen().contains(&index) {
                return Dim::frozen(*size);
            }
            let others = product / (*size as u64).max(1);
            let alone = usize::try_from(elements / others.max(1)).unwrap_or(usize::MAX);
            let most = self.config.max_dimensions().as_ref().and_then(|max| max.get(index).copied());
            Dim { size: alone.min(most.unwrap_or(usize::MAX)).max(*size), min: *size, step: bound.step }
        };
        let bounds: Vec<Dim> = bounds.iter().zip(&found.sizes).enumerate().map(room).collect();
        match PowerLaw::grow_product(&bounds, dims, elements)? {
            Solved::Found(grown) => Ok(Found { proven: grown.proven && found.proven, ..grown }),
            Solved::TooSmall(_) => Ok(found),
        }
    }
}

/// Checks sizes and says what they take.
///
/// # Errors
/// [`Error::Empty`] for no dimensions, [`Error::Dimension`] for one that is zero, at which 64 bits overflow, or that is no
/// whole number of the dtype's blocks.
pub fn estimate(dims: &[usize], dtype: DType) -> Result<Bytes> {
    size_of(dims, dtype)?;
    bytes_of(dims, dtype)
}

/// Checks sizes; says what they take, of whole blocks rounded up.
fn size_of(dims: &[usize], dtype: DType) -> Result<Bytes> {
    if dims.is_empty() {
        return Err(Error::Empty);
    }
    let mut elements = 1u64;
    for (index, size) in dims.iter().enumerate() {
        let wrong = |reason: String| Error::Dimension { index, value: size.to_string(), reason };
        if *size == 0 {
            return Err(wrong("expected at least 1".to_owned()));
        }
        let product = elements.checked_mul(*size as u64);
        let fits = |n: &u64| n.div_ceil(dtype.block_elements()).checked_mul(dtype.block_bytes()).is_some();
        let overflow = || wrong(format!("with it, {dims:?} of {dtype} take more than 64 bits of bytes"));
        elements = product.filter(fits).ok_or_else(overflow)?;
    }
    Ok(Bytes(elements.div_ceil(dtype.block_elements()).saturating_mul(dtype.block_bytes())))
}

fn bytes_of(dims: &[usize], dtype: DType) -> Result<Bytes> {
    let block = dtype.block_elements();
    match dims.last() {
        Some(last) if !(*last as u64).is_multiple_of(block) => {
            let reason = format!("the last dimension of {dtype} is a multiple of {block}");
            Err(Error::Dimension { index: dims.len() - 1, value: last.to_string(), reason })
        }
        _ => size_of(dims, dtype),
    }
}

/// How many elements fit.
const fn elements(dtype: DType, target: Bytes) -> u64 {
    (target.0 / dtype.block_bytes()).saturating_mul(dtype.block_elements())
}

fn frozen(index: usize, wished: usize, block: usize, dtype: DType) -> Result<Dim> {
    if wished.is_multiple_of(block) {
        return Ok(Dim::frozen(wished));
    }
    let reason = format!("it is frozen, and the last dimension of {dtype} is a multiple of {block}");
    Err(Error::Dimension { index, value: wished.to_string(), reason })
}

/// The least common multiple; `step` alone where there is none.
fn common_multiple(step: usize, block: usize) -> usize {
    let (mut a, mut b) = (step, block);
    while b > 0 {
        (a, b) = (b, a % b);
    }
    (step / a.max(1)).saturating_mul(block)
}

fn found(solved: Solved, dtype: DType, target: Bytes) -> Result<Found> {
    match solved {
        Solved::Found(found) => Ok(found),
        Solved::TooSmall(least) => {
            let needed = bytes_of(&least, dtype).unwrap_or(Bytes::MAX);
            Err(Error::out_of_memory(PLACE, needed, target))
        }
    }
}

/// Checks what a strategy of the user's own planned.
fn check_plan(name: &str, sizes: &[usize], bounds: &[Dim], dtype: DType, target: Bytes) -> Result<()> {
    let on_grid = |size: usize, dim: &Dim| {
        size >= dim.min && size <= dim.size && (size - dim.min).is_multiple_of(dim.step)
    };
    let within =
        sizes.len() == bounds.len() && sizes.iter().zip(bounds).all(|(size, dim)| on_grid(*size, dim));
    let fits = within && bytes_of(sizes, dtype)? <= target;
    if fits {
        return Ok(());
    }
    Err(Error::from(dd_core::Error::Mismatch {
        context: format!("the plan of strategy {name:?}"),
        expected: format!("sizes within {bounds:?} that take at most {} B", target.0),
        found: format!("{sizes:?}"),
    }))
}
