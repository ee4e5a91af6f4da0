//! Managed modules: candle code whose weights come and go within a budget.
//!
//! A managed module is a closure over a [`VarBuilder`] whose tensors come from the
//! [`MemoryManager`]: it is called for each use, with the weights in place, and what it builds is
//! dropped again before they may leave. Building is cheap, since a `VarBuilder` hands out handles, not copies; the
//! arithmetic is candle's own, so the output is that of the unmanaged module, bit for bit.
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use candle_nn::{Module, linear};
//! use dd_candle::managed::ManagedModel;
//! use dd_candle::CandleBackend;
//! use dd_core::Bytes;
//! use dd_offload::MemoryConfig;
//!
//! # let dir = tempfile::tempdir()?;
//! # let path = dir.path().join("model.safetensors");
//! # let w = Tensor::randn(0f32, 1f32, (64, 64), &Device::Cpu)?;
//! # let weights = (0..8).flat_map(|n| [(format!("layers.{n}.weight"), w.clone()), (format!("layers.{n}.bias"), w.get(n).unwrap())]);
//! # candle_core::safetensors::save(&weights.collect(), &path)?;
//! let config = MemoryConfig::builder().memory_limit(Bytes::kib(96)).build()?; // of 130 KiB of weights
//! let model = ManagedModel::open(&path, CandleBackend::new(dd_core::Device::Cpu)?, config)?;
//! let layers: Vec<_> = (0..8)
//!     .map(|n| model.module(&format!("layers.{n}"), |vb| linear(64, 64, vb)))
//!     .collect::<Result<_, _>>()?;
//! let mut x = Tensor::ones((1, 64), DType::F32, &Device::Cpu)?;
//! for layer in &layers {
//!     x = layer.forward(&x)?;
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, Module, VarBuilder};
use dd_core::{Backend as _, Budget, Bytes, MemoryProvider, Reservation};
use dd_offload::MemoryConfig;
use dd_offload::checkpoint::Checkpoint;
use dd_offload::manager::{
    MemoryManager, ModuleGuard, ModuleHandle, ModuleSpec, Parameter, RowTable, Source, kind_of,
};

use crate::backend::CandleBackend;
use crate::dtype::to_candle;

/// What can go wrong in a managed module: getting its weights, or computing with them.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The weights could not be had: a budget, a file, a disk.
    #[error(transparent)]
    Offload(#[from] dd_offload::Error),
    /// candle could not build the module or compute with it.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

impl From<dd_core::Error> for Error {
    fn from(error: dd_core::Error) -> Self {
        Self::Offload(error.into())
    }
}

impl From<Error> for candle_core::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Candle(error) => error,
            Error::Offload(error) => Self::wrap(error),
        }
    }
}

/// The result of this module's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A checkpoint whose weights are managed. Opening it reads headers, never weights.
pub struct ManagedModel {
    manager: MemoryManager<CandleBackend>,
    checkpoint: Arc<Checkpoint>,
}

impl ManagedModel {
    /// Opens a checkpoint (a safetensors file, an index of shards, or a folder that holds either) with a budget of its
    /// own: the configuration's memory limit.
    ///
    /// # Errors
    /// What is wrong with the files, or with the configuration.
    pub fn open(path: impl AsRef<Path>, backend: CandleBackend, config: MemoryConfig) -> Result<Self> {
        let checkpoint = Arc::new(Checkpoint::open(path)?);
        Ok(Self::new(checkpoint, MemoryManager::new(backend, config)?))
    }

    /// As [`open`](Self::open), within a budget shared with others.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_within(
        path: impl AsRef<Path>,
        backend: CandleBackend,
        config: MemoryConfig,
        budget: &Budget,
    ) -> Result<Self> {
        let checkpoint = Arc::new(Checkpoint::open(path)?);
        Ok(Self::new(checkpoint, MemoryManager::with_budget(backend, config, budget)?))
    }

    /// Opens a checkpoint with nothing to decide: the best device there is, and as much memory as the provider says is
    /// available, with the default configuration's margin.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn auto(path: impl AsRef<Path>, provider: Arc<dyn MemoryProvider>) -> Result<Self> {
        let checkpoint = Arc::new(Checkpoint::open(path)?);
        let backend = CandleBackend::new(dd_core::Device::Auto)?;
        Ok(Self::new(
            checkpoint,
            MemoryManager::with_provider(backend, MemoryConfig::default(), None, provider)?,
        ))
    }

    /// A model over a checkpoint that is open and a manager that exists.
    #[must_use]
    pub const fn new(checkpoint: Arc<Checkpoint>, manager: MemoryManager<CandleBackend>) -> Self {
        Self { manager, checkpoint }
    }

    /// The manager: budget, plan, summary, cleanup.
    #[must_use]
    pub const fn manager(&self) -> &MemoryManager<CandleBackend> {
        &self.manager
    }

    /// candle's name for the device that computes: inputs go there.
    #[must_use]
    pub fn device(&self) -> &Device {
        self.manager.backend().device()
    }

    /// The checkpoint.
    #[must_use]
    pub const fn checkpoint(&self) -> &Arc<Checkpoint> {
        &self.checkpoint
    }

    /// A module made of all tensors under `prefix` (with an empty one: all there are). `build` is called for each use
    /// with a `VarBuilder` rooted at `prefix`, whose dtype is that of the module's largest tensor; a tensor of another
    /// dtype is converted when the module is built, as candle's own loaders do, and then counts as an activation.
    ///
    /// # Errors
    /// [`dd_offload::Error::MissingTensor`] where there is nothing under the prefix;
    /// [`dd_offload::Error::DuplicateModule`]; a dtype that candle lacks.
    pub fn module<M, F>(&self, prefix: &str, build: F) -> Result<ManagedModule<F>>
    where
        F: Fn(VarBuilder<'static>) -> candle_core::Result<M>,
    {
        let dotted = if prefix.is_empty() { String::new() } else { format!("{prefix}.") };
        let largest = self.checkpoint.with_prefix(&dotted).max_by_key(|(_, location)| location.desc.bytes());
        let dtype = largest.map_or(Ok(DType::F32), |(_, location)| to_candle(location.desc.dtype()))?;
        self.module_as(prefix, dtype, build)
    }

    /// As [`module`](Self::module), with a `VarBuilder` of this dtype: tensors of another are converted for each use,
    /// and what that takes is for the caller to reserve beside the activations.
    ///
    /// # Errors
    /// As [`module`](Self::module).
    pub fn module_as<M, F>(&self, prefix: &str, dtype: DType, build: F) -> Result<ManagedModule<F>>
    where
        F: Fn(VarBuilder<'static>) -> candle_core::Result<M>,
    {
        let spec = ModuleSpec::from_checkpoint(&self.checkpoint, prefix)?;
        ManagedModule::new(&self.manager, spec, dtype, build)
    }

    /// An embedding whose rows are read when they are asked for: its table may be larger than the budget.
    ///
    /// # Errors
    /// [`dd_offload::Error::MissingTensor`]; a tensor that is no matrix.
    pub fn embedding(&self, tensor: &str) -> Result<ManagedEmbedding> {
        Ok(ManagedEmbedding { rows: self.manager.wrap_rows(&self.checkpoint, tensor)? })
    }

    /// Reserves what a pass needs besides weights. Hold it for as long as passes run.
    ///
    /// # Errors
    /// [`dd_core::Error::OutOfMemory`].
    pub fn reserve_activations(&self, bytes: Bytes) -> Result<Reservation> {
        Ok(self.manager.reserve_activations(bytes)?)
    }
}

/// A candle module whose weights are managed. Threads may share it.
pub struct ManagedModule<F> {
    handle: ModuleHandle<CandleBackend>,
    index: Arc<HashMap<String, usize>>,
    dtype: DType,
    device: Device,
    build: F,
}

impl<M, F: Fn(VarBuilder<'static>) -> candle_core::Result<M>> ManagedModule<F> {
    /// A module from any parameters: of a file, or tensors that are in memory already.
    ///
    /// # Errors
    /// As [`MemoryManager::wrap_module`].
    pub fn new(
        manager: &MemoryManager<CandleBackend>,
        spec: ModuleSpec<CandleBackend>,
        dtype: DType,
        build: F,
    ) -> Result<Self> {
        let names =
            spec.parameters.iter().enumerate().map(|(index, parameter)| (parameter.name.clone(), index));
        let index = Arc::new(names.collect());
        let device = manager.backend().device().clone();
        Ok(Self { handle: manager.wrap_module(spec)?, index, dtype, device, build })
    }

    /// A module from tensors that the user has already, as those of a `VarMap`: they are taken over by the manager.
    ///
    /// # Errors
    /// As [`MemoryManager::wrap_module`].
    pub fn from_tensors(
        manager: &MemoryManager<CandleBackend>,
        name: &str,
        tensors: impl IntoIterator<Item = (String, Tensor)>,
        build: F,
    ) -> Result<Self> {
        let tensors: Vec<(String, Tensor)> = tensors.into_iter().collect();
        let size = |tensor: &Tensor| tensor.elem_count() * tensor.dtype().size_in_bytes();
        let dtype = tensors
            .iter()
            .map(|(_, tensor)| tensor)
            .max_by_key(|tensor| size(tensor))
            .map_or(DType::F32, Tensor::dtype);
        let shapes: Vec<_> =
            tensors.iter().map(|(_, tensor)| manager.backend().describe(tensor)).collect::<Result<_, _>>()?;
        let kind = kind_of(name, shapes.iter());
        let parameter = |(name, tensor)| Parameter { name, source: Source::Tensor(tensor) };
        let parameters = tensors.into_iter().map(parameter).collect();
        let spec = ModuleSpec { name: name.to_owned(), kind, parameters, pinned: false };
        Self::new(manager, spec, dtype, build)
    }

    /// Runs `f` on the module, with its weights in place.
    ///
    /// # Errors
    /// As [`ModuleHandle::acquire`]; what building the module and `f` gave.
    pub fn with<R>(&self, f: impl FnOnce(&M) -> candle_core::Result<R>) -> Result<R> {
        let guard = self.handle.acquire()?;
        let module = (self.build)(self.var_builder(&guard))?;
        let result = f(&module);
        drop(module); // Before the guard: then nobody sees the weights any more.
        drop(guard);
        Ok(result?)
    }

    /// The handle: offload, load, where it is.
    #[must_use]
    pub const fn handle(&self) -> &ModuleHandle<CandleBackend> {
        &self.handle
    }

    fn var_builder(&self, guard: &ModuleGuard<CandleBackend>) -> VarBuilder<'static> {
        let tensors = guard.names().filter_map(|name| guard.tensor(name).cloned()).collect();
        let weights = InPlace { index: Arc::clone(&self.index), tensors };
        VarBuilder::from_backend(Box::new(weights), self.dtype, self.device.clone())
    }
}

impl<M: Module, F: Fn(VarBuilder<'static>) -> candle_core::Result<M>> Module for ManagedModule<F> {
    fn forward(&self, xs: &Tensor) -> candle_core::Result<Tensor> {
        Ok(self.with(|module| module.forward(xs))?)
    }
}

/// A `VarBuilder`'s source: handles to the weights of one module that is in use.
struct InPlace {
    index: Arc<HashMap<String, usize>>,
    tensors: Vec<Tensor>,
}

impl InPlace {
    fn find(&self, name: &str) -> candle_core::Result<&Tensor> {
        let tensor = self.index.get(name).and_then(|index| self.tensors.get(*index));
        tensor.ok_or_else(|| candle_core::Error::CannotFindTensor { path: name.to_owned() }.bt())
    }
}

impl SimpleBackend for InPlace {
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
        self.find(name)?.to_device(device)?.to_dtype(dtype)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.index.contains_key(name)
    }
}

/// An embedding whose rows are read when they are asked for. The table is never in memory as a whole.
pub struct ManagedEmbedding {
    rows: RowTable<CandleBackend>,
}

impl ManagedEmbedding {
    /// The rows of these ids: `[..]` of an integer dtype gives `[.., columns]`.
    ///
    /// # Errors
    /// [`dd_core::Error::InvalidArgument`] for an id that the table lacks; what reading the file gave.
    pub fn rows(&self, ids: &Tensor) -> Result<Tensor> {
        let flat = ids.flatten_all()?.to_dtype(DType::U32)?.to_vec1::<u32>()?;
        let rows = self.rows.gather(&flat)?;
        let shape: Vec<usize> = ids.dims().iter().chain(self.rows.desc().shape().get(1)).copied().collect();
        Ok(rows.reshape(shape)?)
    }
}

impl Module for ManagedEmbedding {
    fn forward(&self, ids: &Tensor) -> candle_core::Result<Tensor> {
        Ok(self.rows(ids)?)
    }
}
