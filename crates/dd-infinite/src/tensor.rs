//! [`InfiniteTensor`]: a handle to read through.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use dd_core::{Backend, Bytes, DType, TensorDesc};

use crate::def::Def;
use crate::engine::Shared;
use crate::error::Result;
use crate::read::Manner;
use crate::region::{Region, Span};
use crate::slice::{Selection, Slice};
use crate::stream::{Order, Stream};

/// A tensor that is computed where it is read. Clones are the same.
pub struct InfiniteTensor<B: Backend> {
    shared: Arc<Shared<B>>,
    def: Arc<Def<B>>,
}

impl<B: Backend> Clone for InfiniteTensor<B> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), def: Arc::clone(&self.def) }
    }
}

/// What was read: dense, row-major, little-endian.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dense {
    /// Its shape (integers have squeezed their dimensions) and dtype.
    pub desc: TensorDesc,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// Says to a read that nobody waits for it any more. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// The read ends as soon as what it is computing right now is done, with [`Error::Cancelled`](crate::Error::Cancelled).
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Clears a tensor's cached windows when it goes.
#[must_use = "the tensor is cleared when the guard is dropped"]
pub struct ScopeGuard<B: Backend> {
    tensor: InfiniteTensor<B>,
}

impl<B: Backend> std::ops::Deref for ScopeGuard<B> {
    type Target = InfiniteTensor<B>;

    fn deref(&self) -> &InfiniteTensor<B> {
        &self.tensor
    }
}

impl<B: Backend> Drop for ScopeGuard<B> {
    fn drop(&mut self) {
        self.tensor.clear();
    }
}

impl<B: Backend> InfiniteTensor<B> {
    pub(crate) const fn new(shared: Arc<Shared<B>>, def: Arc<Def<B>>) -> Self {
        Self { shared, def }
    }

    pub(crate) const fn def(&self) -> &Arc<Def<B>> {
        &self.def
    }

    pub(crate) const fn shared(&self) -> &Arc<Shared<B>> {
        &self.shared
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.def.id
    }

    /// Its dimensions; `None` is unbounded.
    #[must_use]
    pub fn shape(&self) -> &[Option<i64>] {
        &self.def.shape
    }

    /// Its element type.
    #[must_use]
    pub fn dtype(&self) -> DType {
        self.def.dtype
    }

    /// The shape and dtype that a slice has.
    ///
    /// # Errors
    /// [`Error::Region`](crate::Error::Region) for a slice that does not fit the tensor.
    pub fn describe(&self, slices: &[Slice]) -> Result<TensorDesc> {
        let selection = Selection::new(self.id(), &self.def.shape, slices)?;
        Ok(TensorDesc::new(selection.shape.as_slice(), self.def.dtype)?)
    }

    /// Reads a slice.
    ///
    /// # Errors
    /// [`Error::Region`](crate::Error::Region) for a slice that does not fit the tensor;
    /// [`Error::DoesNotFit`](crate::Error::DoesNotFit) where not even a single cell of it fits the memory; what a window's
    /// function or a store says.
    pub fn read(&self, slices: &[Slice]) -> Result<Dense> {
        let desc = self.describe(slices)?;
        let mut bytes = vec![0; desc.len_in_memory()?];
        self.read_into(slices, &mut bytes)?;
        Ok(Dense { desc, bytes })
    }

    /// Reads a slice as a tensor of the backend, on the tier of this one.
    ///
    /// # Errors
    /// As [`read`](Self::read); what the backend says.
    pub fn tensor(&self, slices: &[Slice]) -> Result<B::Tensor> {
        let Dense { desc, bytes } = self.read(slices)?;
        Ok(self.shared.backend.upload(&desc, &bytes, self.def.tier)?)
    }

    /// Reads a slice into a buffer of exactly its size. After an error the buffer's bytes mean nothing.
    ///
    /// # Errors
    /// As [`read`](Self::read); [`Error::Buffer`](crate::Error::Buffer) where `out` has another length.
    pub fn read_into(&self, slices: &[Slice], out: &mut [u8]) -> Result<()> {
        self.read_unless(slices, out, &Cancel::default())
    }

    /// The same, until somebody cancels it.
    ///
    /// # Errors
    /// As [`read_into`](Self::read_into); [`Error::Cancelled`](crate::Error::Cancelled).
    pub fn read_unless(&self, slices: &[Slice], out: &mut [u8], cancel: &Cancel) -> Result<()> {
        let selection = Selection::new(self.id(), &self.def.shape, slices)?;
        let cancelled = || cancel.0.load(Ordering::Relaxed);
        let manner = Manner { cancelled: &cancelled, passing: false };
        self.shared.read(&self.def, &selection, out, &manner)?;
        self.shared.ahead(&self.def, &selection.region);
        Ok(())
    }

    /// Reads a box, every element of it.
    ///
    /// # Errors
    /// As [`read_into`](Self::read_into).
    pub fn read_region(&self, region: &Region, out: &mut [u8]) -> Result<()> {
        let slices: Vec<Slice> =
            region.spans().iter().map(|span| Slice::from(span.start()..span.end())).collect();
        self.read_into(&slices, out)
    }

    /// Gives a region of any size piece by piece, each of at most the chunk size. Windows of this tensor that were given are
    /// the first to go.
    ///
    /// # Errors
    /// [`Error::Region`](crate::Error::Region) for a region that does not fit the tensor.
    pub fn stream(&self, region: &Region, order: Order) -> Result<Stream<B>> {
        let selection = Selection::of_region(self.id(), &self.def.shape, region)?;
        Ok(Stream::new(self.clone(), &selection.region, order))
    }

    /// What reading a region that nothing is cached of takes at once, and how many windows it computes: known before
    /// anything runs.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn plan(&self, region: &Region) -> Result<PlanSummary> {
        let selection = Selection::of_region(self.id(), &self.def.shape, region)?;
        self.shared.summary(&self.def, &selection)
    }

    /// Says that nobody will read this tensor directly any more: its windows are freed as soon as no tensor made of it can
    /// still need them.
    pub fn mark_for_cleanup(&self) {
        let mut state = self.shared.lock();
        state.mark_for_cleanup(self.def.slot);
        state.settle(self.def.tiles);
    }

    /// Forgets its cached windows. What a store holds stays.
    pub fn clear(&self) {
        let mut state = self.shared.lock();
        state.clear_tensor(self.def.slot);
        state.settle(self.def.tiles);
    }

    /// A guard that clears it when dropped.
    pub fn scoped(&self) -> ScopeGuard<B> {
        ScopeGuard { tensor: self.clone() }
    }

    /// How many windows its function was asked for so far.
    #[must_use]
    pub fn computed(&self) -> u64 {
        self.shared.lock().tensors.get(self.def.slot).map_or(0, |windows| windows.computed)
    }
}

/// What a read would take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanSummary {
    /// Windows to be computed, by tensor, this tensor's last.
    pub windows: Vec<(String, u64)>,
    /// The most that is held at once by one thread, in the store of the tensor read, beside the output.
    pub peak: Bytes,
    /// In how many steps.
    pub steps: usize,
}

/// The whole of a region's spans, as slices.
#[must_use]
pub fn slices_of(region: &Region) -> Vec<Slice> {
    region.spans().iter().map(|span: &Span| Slice::from(span.start()..span.end())).collect()
}
