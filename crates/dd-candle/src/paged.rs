//! Stock candle models in less memory than their weights.
//!
//! [`PagedWeights`] hands out a [`VarBuilder`] like any other; the tensors that it gives have their storage in
//! [`PagedMemory`]. Nothing is read when a model is built from it. What a forward touches is there when it is touched, and
//! the arithmetic is candle's own on the same values, so the output is that of the model in memory, bit for bit. The
//! model's code is not changed, and cannot tell.
//!
//! ```no_run
//! use candle_core::DType;
//! use candle_nn::linear;
//! use dd_candle::paged::paged_var_builder;
//! use dd_core::{Budget, Bytes};
//!
//! let budget = Budget::new("memory", Bytes::gib(2));
//! let vb = paged_var_builder(&["model.safetensors".into()], DType::F32, &budget)?;
//! let layer = linear(4096, 4096, vb.pp("lm_head"))?; // or any model of candle-transformers
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Checkpoints in bf16 or f16 fill F32 tensors exactly; that halves the bytes to read. Packed checkpoints
//! ([`dd_pager::packed`]) fill the same tensors with the same values from still fewer bytes, which are also kept in memory
//! where that is measured to be faster. What is stored wider than it is wanted is refused, with the dtype to ask for.
//!
//! Paged tensors are for reading. Changing one in place is lost when its page is evicted; candle's own models never do.
//! Their bytes cannot be given to the kernel (`write(2)` and its like) while they are absent.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};
use dd_core::backend::unsupported_dtype;
use dd_core::{Budget, Bytes, TensorDesc};
use dd_offload::checkpoint::Checkpoint;
use dd_offload::io::DirectFile;
use dd_pager::{Options, PagedMemory, Plan, Stats};

mod held;
mod stored;

use crate::dtype::{NAME, from_candle, to_candle};
use held::{Held, Paged};
use stored::{Found, Stored};

/// What can go wrong before a model runs.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Paging: the kernel, the budget, a file.
    #[error(transparent)]
    Pager(#[from] dd_pager::Error),
    /// The checkpoint.
    #[error(transparent)]
    Offload(#[from] dd_offload::Error),
    /// A dtype that candle lacks.
    #[error(transparent)]
    Core(#[from] dd_core::Error),
}

/// The result of this module's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A [`VarBuilder`] over safetensors shards whose tensors are paged within what the budget has available. The memory is
/// given back when the builder and all its tensors have gone.
///
/// # Errors
/// As [`PagedWeights::open`].
pub fn paged_var_builder(files: &[PathBuf], dtype: DType, budget: &Budget) -> Result<VarBuilder<'static>> {
    Ok(PagedWeights::open(files, dtype, budget)?.var_builder())
}

/// The weights of one model, paged. A clone is another handle to the same.
#[derive(Clone)]
pub struct PagedWeights {
    inner: Arc<Inner>,
}

impl PagedWeights {
    /// Opens safetensors shards for tensors of `dtype`, within what the budget has available: reads headers, reserves the
    /// memory, and reads no weight. Packed files, as `deepdim pack` makes them, are opened like others; how fast some of
    /// their chunks decode, and the disk reads, is measured where that decides what is kept packed in memory.
    ///
    /// # Errors
    /// What is wrong with the files; [`dd_pager::Error::TooSmall`] with the least budget that would do;
    /// [`dd_pager::Error::Unsupported`] where the kernel does not allow it.
    pub fn open(files: &[PathBuf], dtype: DType, budget: &Budget) -> Result<Self> {
        Self::with_options(Checkpoint::from_files(files)?, dtype, budget, |options| options)
    }

    /// As [`open`](Self::open), for an open checkpoint and with changed options. Those of a packed one say in
    /// [`Options::packed`] how much is kept packed.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn with_options(
        checkpoint: Checkpoint,
        dtype: DType,
        budget: &Budget,
        change: impl FnOnce(Options) -> Options,
    ) -> Result<Self> {
        let (stored, wanted) = (Stored::of(checkpoint)?, from_candle(dtype)?);
        let checkpoint = stored.checkpoint();
        let files = checkpoint.shards().iter().map(|shard| DirectFile::from_file(shard.file(), shard.path()));
        let files = files.collect::<Result<Vec<_>, _>>()?;
        let mut options = change(stored.options(wanted)?);
        stored.measure(&mut options, wanted, budget)?;
        let memory = PagedMemory::new(budget, options)?;
        let held = Mutex::new(Held::default());
        Ok(Self { inner: Arc::new(Inner { held, memory, stored, files, dtype }) })
    }

    /// A builder for candle's models.
    #[must_use]
    pub fn var_builder(&self) -> VarBuilder<'static> {
        let door = Box::new(Door(Arc::clone(&self.inner)));
        VarBuilder::from_backend(door, self.inner.dtype, Device::Cpu)
    }

    /// The checkpoint: the files as they are stored, packed or not.
    #[must_use]
    pub fn checkpoint(&self) -> &Checkpoint {
        self.inner.stored.checkpoint()
    }

    /// The shape and type of a tensor before any widening; of a packed one, what it is unpacked.
    #[must_use]
    pub fn desc(&self, name: &str) -> Option<TensorDesc> {
        Some(self.inner.stored.get(name)?.desc.clone())
    }

    /// What stays and what streams, as far as it is known.
    #[must_use]
    pub fn plan(&self) -> Plan {
        self.inner.memory.plan()
    }

    /// What was done so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.inner.memory.stats()
    }
}

/// The least memory in which a checkpoint, packed or not, is paged: what [`PagedWeights::open`] says where it is refused.
///
/// # Errors
/// What is wrong with the files.
pub fn least_memory(checkpoint: Checkpoint) -> Result<Bytes> {
    Stored::of(checkpoint)?.least()
}

struct Inner {
    held: Mutex<Held>,
    memory: PagedMemory,
    stored: Stored,
    files: Vec<Arc<DirectFile>>,
    dtype: DType,
}

/// The door through which candle's builders ask.
struct Door(Arc<Inner>);

impl Inner {
    fn tensor(&self, name: &str, dtype: DType) -> candle_core::Result<Tensor> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tensor) = held.get(name, dtype) {
            return Ok(tensor);
        }
        let found = self
            .stored
            .get(name)
            .ok_or_else(|| candle_core::Error::CannotFindTensor { path: name.to_owned() }.bt())?;
        let paged = self.page(name, &found, dtype).map_err(candle_core::Error::wrap)?;
        Ok(held.keep(name, dtype, paged))
    }

    /// A tensor over a new range; nothing is read.
    fn page(&self, name: &str, found: &Found<'_>, dtype: DType) -> Result<Paged> {
        let wanted = from_candle(dtype)?;
        let theirs = to_candle(wanted)?;
        let Some(file) = self.files.get(found.shard.0) else {
            let path = self.stored.checkpoint().path().to_owned();
            return Err(
                dd_offload::Error::MissingTensor { path, tensor: name.to_owned(), similar: None }.into()
            );
        };
        let elements = Bytes(found.desc.elements()).to_usize()?;
        let shape: Shape = found.desc.shape().into();
        let unknown = || unsupported_dtype(NAME, wanted);
        if elements == 0 {
            return Ok(Paged::empty(theirs, shape).ok_or_else(unknown)?);
        }
        let size = theirs.size_in_bytes();
        let (head, source) = found.source(file, name, (wanted, size), self.memory.kept())?;
        let region = self.memory.register(name, elements.saturating_mul(size), head, source)?;
        Ok(Paged::over(region, theirs, shape).ok_or_else(unknown)?)
    }
}

impl SimpleBackend for Door {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        _: Init,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        let tensor = self.get_unchecked(name, dtype, device)?;
        if tensor.shape() == &shape {
            return Ok(tensor);
        }
        let (msg, got) = (format!("shape mismatch for {name}"), tensor.shape().clone());
        Err(candle_core::Error::UnexpectedShape { msg, expected: shape, got }.bt())
    }

    fn get_unchecked(&self, name: &str, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        if !device.is_cpu() {
            candle_core::bail!(
                "{name}: paged tensors are in host memory; expected the device cpu, found {device:?}"
            );
        }
        self.0.tensor(name, dtype)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.0.stored.get(name).is_some()
    }
}
