//! What the engine knows of a tensor, fixed when it was made; and what a window function is told.

use std::sync::Arc;

use dd_core::{Backend, Bytes, DType, TensorDesc, Tier};
use smallvec::SmallVec;
use xxhash_rust::xxh3::Xxh3;

use crate::error::{Error, Result};
use crate::fold::Fold;
use crate::region::{Index, Region, Span};
use crate::store::{Manifest, TileStore};
use crate::window::{EdgeMode, TensorWindow};

/// What a user's function may fail with.
pub type FunctionError = Box<dyn std::error::Error + Send + Sync>;

/// A function over windows: a context and the sliced arguments of each; one output for each.
pub(crate) type Function<B> = Arc<
    dyn Fn(&[Context], &[Vec<<B as Backend>::Tensor>]) -> Result<Vec<<B as Backend>::Tensor>, FunctionError>
        + Send
        + Sync,
>;

/// What a window function is told about its window.
#[derive(Clone, Debug)]
pub struct Context {
    pub(crate) tensor: Arc<str>,
    pub(crate) index: Index,
    pub(crate) region: Region,
    pub(crate) args: SmallVec<[Region; 2]>,
    pub(crate) seed: u64,
}

impl Context {
    /// The tensor's id.
    #[must_use]
    pub fn tensor(&self) -> &str {
        &self.tensor
    }

    /// The window's index.
    #[must_use]
    pub fn index(&self) -> &[i64] {
        &self.index
    }

    /// Which elements the function is to give: the window, clipped where its edge mode says so.
    #[must_use]
    pub const fn region(&self) -> &Region {
        &self.region
    }

    /// Which elements of its upstream tensor an argument holds.
    #[must_use]
    pub fn arg_region(&self, arg: usize) -> Option<&Region> {
        self.args.get(arg)
    }

    /// A number for random generators that depends on the tensor's seed, its id and the window's index, and on nothing
    /// else: XXH3 of the id's bytes and the coordinates, under the seed.
    #[must_use]
    pub fn seed(&self) -> u64 {
        let mut hash = Xxh3::with_seed(self.seed);
        hash.update(self.tensor.as_bytes());
        self.index.iter().for_each(|at| hash.update(&at.to_le_bytes()));
        hash.digest()
    }
}

/// An upstream tensor and the window through which it is seen.
pub(crate) struct Arg<B: Backend> {
    pub(crate) def: Arc<Def<B>>,
    pub(crate) window: TensorWindow,
}

/// A tensor, as the engine sees it.
pub(crate) struct Def<B: Backend> {
    pub(crate) slot: usize,
    pub(crate) tiles: usize,
    pub(crate) id: Arc<str>,
    pub(crate) shape: SmallVec<[Option<i64>; 4]>,
    pub(crate) dtype: DType,
    pub(crate) element: usize,
    pub(crate) tier: Tier,
    pub(crate) window: TensorWindow,
    pub(crate) rank: usize,
    /// The indices of all windows.
    pub(crate) domain: Region,
    pub(crate) fold: Fold,
    pub(crate) args: Vec<Arg<B>>,
    pub(crate) function: Function<B>,
    pub(crate) batch: usize,
    pub(crate) workspace: Bytes,
    pub(crate) seed: u64,
    pub(crate) store: Option<Arc<dyn TileStore>>,
    pub(crate) stored: TensorDesc,
    pub(crate) manifest: Manifest,
    pub(crate) chunk: SmallVec<[i64; 4]>,
    pub(crate) depth: usize,
}

impl<B: Backend> Def<B> {
    /// The box of all elements; unbounded dimensions have all that 64 bits can name.
    pub(crate) fn bounds(&self) -> Region {
        Region::new(self.shape.iter().map(|len| len.map_or(Span::ALL, |len| Span::new(0, len))))
    }

    /// The elements that the function gives for a window.
    pub(crate) fn asked(&self, index: &[i64]) -> Result<Region> {
        clip(self.window.bounds(index)?, self.window.edge(), &self.bounds())
    }

    /// Those of them that the tensor has.
    pub(crate) fn output(&self, index: &[i64]) -> Result<Region> {
        Ok(self.window.bounds(index)?.meet(&self.bounds()))
    }

    /// The elements of an upstream tensor that a window's function gets.
    pub(crate) fn arg_region(&self, arg: &Arg<B>, index: &[i64]) -> Result<Region> {
        clip(arg.window.bounds(index)?, arg.window.edge(), &arg.def.bounds())
    }

    /// The windows that meet a region.
    pub(crate) fn windows(&self, region: &Region) -> Region {
        self.window.indices(&region.meet(&self.bounds()), &self.domain)
    }

    /// The bytes of a region's elements.
    pub(crate) fn bytes(&self, region: &Region) -> Result<u64> {
        let size = region.volume().checked_mul(self.element as u64).filter(|size| *size <= i64::MAX as u64);
        size.ok_or_else(|| Error::Overflow { what: format!("the bytes of {region} of tensor {:?}", self.id) })
    }

    pub(crate) fn describe(&self, region: &Region) -> Result<TensorDesc> {
        Ok(TensorDesc::new(region.shape()?.as_slice(), self.dtype)?)
    }

    /// The most that computing one window takes at once, its output as kept apart: the arguments, the buffer in which one
    /// is folded, the tensor that the function gives, what it declared.
    pub(crate) fn need(&self, index: &[i64]) -> Result<u64> {
        let mut tensors = 0u64;
        let mut most = 0u64;
        for arg in &self.args {
            let region = self.arg_region(arg, index)?;
            let bytes = arg.def.bytes(&region)?;
            let row = region.spans().last().map_or(1, |span| span.len());
            most = most.max(tensors + bytes + bytes + arg.def.fold.scratch(row));
            tensors = tensors.saturating_add(bytes);
        }
        let output = self.bytes(&self.asked(index)?)?;
        let run = tensors.saturating_add(output).saturating_add(self.workspace.0);
        Ok(most.max(run).max(output.saturating_add(self.store_need())))
    }

    /// What folding a cell takes beside the output; where it is not dense, the cell is folded aside.
    pub(crate) fn cell_need(&self, cell: &Region, dense: bool) -> Result<u64> {
        let row = self.fold.scratch(cell.spans().last().map_or(1, |span| span.len()));
        Ok(if dense { row } else { row.saturating_add(self.bytes(cell)?) })
    }

    /// What reading or writing a stored window takes: the store's own, and the padded form.
    pub(crate) fn store_need(&self) -> u64 {
        let scratch = |store: &Arc<dyn TileStore>| store.scratch(&self.stored).0 + self.stored.bytes().0;
        self.store.as_ref().map_or(0, scratch)
    }

    /// At most so many windows of it meet a window through which it is seen.
    pub(crate) fn most_meeting(&self, seen: &TensorWindow) -> u64 {
        let mut counts: SmallVec<[u64; 4]> = (0..self.rank).map(|_| u64::MAX).collect();
        for (axis, through) in self.window.axes().zip(seen.axes()) {
            let Some(count) = axis.coordinate.and_then(|at| counts.get_mut(at)) else { continue };
            let reach = i128::from(through.size) + i128::from(axis.size) - 2;
            let most = reach / i128::from(axis.stride) + 1;
            *count = (*count).min(u64::try_from(most).unwrap_or(u64::MAX));
        }
        counts.iter().fold(1, |all, count| all.saturating_mul(*count))
    }
}

fn clip(bounds: Region, edge: EdgeMode, within: &Region) -> Result<Region> {
    Ok(match edge {
        EdgeMode::Pad => bounds,
        EdgeMode::Clip | EdgeMode::Drop => bounds.meet(within),
    })
}
