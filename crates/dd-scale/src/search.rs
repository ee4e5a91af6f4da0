//! The search for the maximal sizes that distort least.
//!
//! A choice of sizes is *maximal* where no size can grow by its step and still fit. How much it distorts is its *spread*:
//! the largest share `size / ideal` over the smallest (what is least for the quotient is least for the difference of the
//! logarithms). Of equal spreads the larger product of sizes is better.
//!
//! The search is exact: branch and bound over one axis after the other, the coarsest first, each from the size outward at
//! which all that are still open would have the same share. The best spread so far bounds the shares of the open axes
//! to a window around those of the decided ones. Where even the low end of the window does not fit, no larger size of
//! this axis leads anywhere; where the whole of the high end fits, no smaller one does, for what it leads to could
//! grow. Both hold for any cost that never falls when a size grows. The last axis takes all that is left.

use dd_core::Result;

use crate::axis::{Axis, SLACK};
use crate::model::Model;

/// After so many sizes tried, the best so far is taken: it fits and is maximal, but another may distort less, or as
/// little with a larger product. Reached only with many large dimensions beside several very small ones.
const MOST_TRIED: u32 = 200_000;
/// Beyond so many scalable axes nothing is searched: the ideal sizes, rounded down, grow one after the other.
const MOST_AXES: usize = 24;

/// What a search found.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) sizes: Vec<usize>,
    /// Whether it is proven that nothing is better.
    pub(crate) proven: bool,
}

/// Finds sizes, where the least sizes fit and the largest do not. Every axis has its ideal.
pub(crate) fn search<M: Model>(model: &M, axes: &[Axis]) -> Result<Found> {
    let mut order: Vec<usize> = Vec::with_capacity(axes.len());
    order.extend(axes.iter().enumerate().filter(|(_, axis)| axis.is_scalable()).map(|(index, _)| index));
    let coarseness = |index: &usize| axes.get(*index).map_or(0.0, |axis| axis.step as f64 / axis.ideal);
    order.sort_unstable_by(|a, b| coarseness(b).total_cmp(&coarseness(a)).then(a.cmp(b)));
    let best = start(model, axes, &order)?;
    let mut search = Search {
        model,
        axes,
        order: &order,
        sizes: best.clone(),
        spread: 0.0,
        product: product(&best),
        best,
        tried: 0,
    };
    search.spread = search.spread_of_best();
    let proven = order.len() <= MOST_AXES;
    if proven {
        search.descend(0, f64::INFINITY, 0.0)?;
    }
    let proven = proven && search.tried < MOST_TRIED;
    if !proven {
        tracing::debug!(axes = order.len(), "sizes fit and are maximal, but others may distort less");
    }
    Ok(Found { sizes: search.best, proven })
}

/// A first maximal choice: the ideal sizes, rounded down, each then grown as far as it fits.
fn start<M: Model>(model: &M, axes: &[Axis], order: &[usize]) -> Result<Vec<usize>> {
    let mut sizes: Vec<usize> = axes.iter().map(|axis| axis.floor(axis.ideal).unwrap_or(axis.min)).collect();
    if !model.fits(&sizes)? {
        sizes.iter_mut().zip(axes).for_each(|(size, axis)| *size = axis.min);
    }
    for index in order {
        let largest = model.largest(&mut sizes, axes, *index)?;
        if let (Some(size), Some(largest)) = (sizes.get_mut(*index), largest) {
            *size = largest;
        }
    }
    Ok(sizes)
}

struct Search<'a, M> {
    model: &'a M,
    axes: &'a [Axis],
    /// The scalable axes, coarsest first.
    order: &'a [usize],
    /// The choice at hand. Frozen sizes never change.
    sizes: Vec<usize>,
    best: Vec<usize>,
    /// Of the best.
    spread: f64,
    product: u128,
    tried: u32,
}

/// What trying one size says of the sizes beyond it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Beyond {
    /// Nothing.
    Open,
    /// No larger size leads anywhere.
    NothingAbove,
    /// No smaller size leads anywhere.
    NothingBelow,
}

impl<M: Model> Search<'_, M> {
    /// Tries the sizes of the axis at `depth` of the order; those before have shares between `low` and `high`.
    fn descend(&mut self, depth: usize, low: f64, high: f64) -> Result<()> {
        let (axes, order) = (self.axes, self.order);
        let Some((index, axis)) = order.get(depth).and_then(|index| Some((*index, axes.get(*index)?))) else {
            return Ok(());
        };
        let open = order.get(depth..).unwrap_or_default();
        if open.len() == 1 {
            return self.finish(index, low, high);
        }
        let factor = if depth == 0 { 1.0 } else { self.model.balance(&mut self.sizes, axes, open)? };
        let centre = axis.nearest(factor * axis.ideal);
        let first = self.attempt(depth, centre, low, high)?;
        let mut next = axis.above(centre).filter(|_| first != Beyond::NothingAbove);
        while let Some(size) = next {
            if self.is_above(axis, size, low) || self.attempt(depth, size, low, high)? == Beyond::NothingAbove
            {
                break;
            }
            next = axis.above(size);
        }
        let mut next = axis.below(centre).filter(|_| first != Beyond::NothingBelow);
        while let Some(size) = next {
            if self.is_below(axis, size, high)
                || self.attempt(depth, size, low, high)? == Beyond::NothingBelow
            {
                break;
            }
            next = axis.below(size);
        }
        Ok(())
    }

    /// Whether a size's share is above the window that `low`, the least share so far, allows.
    fn is_above(&self, axis: &Axis, size: usize, low: f64) -> bool {
        self.tried >= MOST_TRIED || axis.share(size) > low * self.spread * (1.0 + SLACK)
    }

    /// Whether a size's share is below the window that `high`, the largest share so far, allows.
    fn is_below(&self, axis: &Axis, size: usize, high: f64) -> bool {
        self.tried >= MOST_TRIED || axis.share(size) < high / self.spread * (1.0 - SLACK)
    }

    /// Tries one size of the axis at `depth`: looks at the window that it leaves to the open axes, and goes on there.
    fn attempt(&mut self, depth: usize, size: usize, low: f64, high: f64) -> Result<Beyond> {
        let (axes, order) = (self.axes, self.order);
        let Some((index, axis)) = order.get(depth).and_then(|index| Some((*index, axes.get(*index)?))) else {
            return Ok(Beyond::Open);
        };
        self.tried += 1;
        if self.is_above(axis, size, low) || self.is_below(axis, size, high) {
            return Ok(Beyond::Open);
        }
        let share = axis.share(size);
        let (low, high) = (low.min(share), high.max(share));
        self.set(index, size);
        let rest = order.get(depth + 1..).unwrap_or_default();
        let least = high / self.spread;
        for other in rest {
            let Some(axis) = axes.get(*other) else { continue };
            match axis.ceil(least * axis.ideal) {
                Some(size) => self.set(*other, size),
                // Larger sizes here only raise the window.
                None => return Ok(if share >= high { Beyond::NothingAbove } else { Beyond::Open }),
            }
        }
        if !self.model.fits(&self.sizes)? {
            return Ok(Beyond::NothingAbove);
        }
        let most = low * self.spread;
        for other in rest {
            let Some(axis) = axes.get(*other) else { continue };
            match axis.floor(most * axis.ideal) {
                Some(size) => self.set(*other, size),
                None => return Ok(if share <= low { Beyond::NothingBelow } else { Beyond::Open }),
            }
        }
        if self.model.fits(&self.sizes)? {
            self.consider()?;
            return Ok(Beyond::NothingBelow);
        }
        self.descend(depth + 1, low, high)?;
        Ok(Beyond::Open)
    }

    /// Gives the last axis all that is left.
    fn finish(&mut self, index: usize, low: f64, high: f64) -> Result<()> {
        let (Some(size), Some(axis)) =
            (self.model.largest(&mut self.sizes, self.axes, index)?, self.axes.get(index))
        else {
            return Ok(());
        };
        if self.is_above(axis, size, low) || self.is_below(axis, size, high) {
            return Ok(());
        }
        self.set(index, size);
        self.consider()
    }

    /// Takes the choice at hand where it is maximal and better than the best.
    fn consider(&mut self) -> Result<()> {
        let spread = spread(self.axes, self.order, &self.sizes);
        let product = product(&self.sizes);
        let less = spread < self.spread * (1.0 - SLACK);
        let equal = spread <= self.spread * (1.0 + SLACK);
        if (less || equal && product > self.product) && self.is_maximal()? {
            self.best.copy_from_slice(&self.sizes);
            self.spread = self.spread.min(spread);
            self.product = product;
        }
        Ok(())
    }

    fn is_maximal(&mut self) -> Result<bool> {
        for (index, axis) in self.axes.iter().enumerate() {
            let Some(size) = self.sizes.get(index).copied() else { continue };
            let Some(larger) = axis.above(size) else { continue };
            self.set(index, larger);
            let fits = self.model.fits(&self.sizes);
            self.set(index, size);
            if fits? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn set(&mut self, index: usize, to: usize) {
        if let Some(size) = self.sizes.get_mut(index) {
            *size = to;
        }
    }

    fn spread_of_best(&self) -> f64 {
        spread(self.axes, self.order, &self.best)
    }
}

/// The largest share over the smallest, of the scalable axes.
fn spread(axes: &[Axis], order: &[usize], sizes: &[usize]) -> f64 {
    let shares = order.iter().filter_map(|index| Some(axes.get(*index)?.share(*sizes.get(*index)?)));
    let (low, high) =
        shares.fold((f64::INFINITY, 0.0f64), |(low, high), share| (low.min(share), high.max(share)));
    high / low
}

fn product(sizes: &[usize]) -> u128 {
    sizes.iter().fold(1, |product: u128, size| product.saturating_mul(*size as u128))
}
