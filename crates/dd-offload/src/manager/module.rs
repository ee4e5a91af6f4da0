//! What is managed: modules, their parameters, and the handles and guards through which they are used.

use std::sync::Arc;

use dd_core::{Backend, Bytes, TensorDesc, Tier};

use super::{Inner, Owner};
use crate::checkpoint::Checkpoint;
use crate::error::Result;

/// Where a parameter's values come from.
pub enum Source<B: Backend> {
    /// A tensor of a checkpoint. Its place on disk is there; it is never copied.
    File {
        /// The checkpoint.
        checkpoint: Arc<Checkpoint>,
        /// The tensor's name in it.
        tensor: String,
    },
    /// A tensor that is in memory and in no file. When it must leave, it goes to compressed memory or the spill store.
    Tensor(B::Tensor),
}

/// One parameter of a module.
pub struct Parameter<B: Backend> {
    /// Its name within the module, as `attention.query.weight`.
    pub name: String,
    /// Where its values come from.
    pub source: Source<B>,
}

/// A module to manage: the parameters that are needed together. It is the unit of residency: while a guard of it
/// lives, all of its parameters are in place.
pub struct ModuleSpec<B: Backend> {
    /// A name of its own, as `encoder.layer.0`.
    pub name: String,
    /// The layer type, as `Linear`: what selections go by.
    pub kind: String,
    /// The parameters.
    pub parameters: Vec<Parameter<B>>,
    /// Whether it is never offloaded.
    pub pinned: bool,
}

impl<B: Backend> ModuleSpec<B> {
    /// All tensors of a checkpoint whose names begin with `prefix` and a dot, named without it. With an empty prefix,
    /// all tensors there are.
    ///
    /// # Errors
    /// [`Error::MissingTensor`](crate::Error::MissingTensor) where there is none.
    pub fn from_checkpoint(checkpoint: &Arc<Checkpoint>, prefix: &str) -> Result<Self> {
        let dotted = if prefix.is_empty() { String::new() } else { format!("{prefix}.") };
        let parameter = |name: &str| {
            let short = name.strip_prefix(&dotted)?;
            let source = Source::File { checkpoint: Arc::clone(checkpoint), tensor: name.to_owned() };
            Some(Parameter { name: short.to_owned(), source })
        };
        let parameters: Vec<_> = checkpoint.names().filter_map(parameter).collect();
        if parameters.is_empty() {
            checkpoint.tensor(&format!("{dotted}*"))?;
        }
        let shapes = parameters.iter().filter_map(|p| checkpoint.tensor(&format!("{dotted}{}", p.name)).ok());
        let kind = kind_of(prefix, shapes.map(|location| &location.desc));
        Ok(Self { name: prefix.to_owned(), kind, parameters, pinned: false })
    }
}

/// The layer type that a module's name and shapes speak for: `Embedding`, `Linear`, `Conv1d` to `Conv3d`, `Norm`, or
/// `Module` for anything with several matrices.
#[must_use]
pub fn kind_of<'a>(name: &str, shapes: impl Iterator<Item = &'a TensorDesc>) -> String {
    let ranks: Vec<usize> = shapes.map(TensorDesc::rank).collect();
    let large: Vec<usize> = ranks.iter().copied().filter(|rank| *rank > 1).collect();
    let kind = match large.as_slice() {
        [] => "Norm",
        [2] if name.to_ascii_lowercase().contains("embed") => "Embedding",
        [2] => "Linear",
        [3] => "Conv1d",
        [4] => "Conv2d",
        [5] => "Conv3d",
        _ => "Module",
    };
    kind.to_owned()
}

/// A managed module. Clones are the same module.
pub struct ModuleHandle<B: Backend> {
    pub(super) inner: Arc<Inner<B>>,
    pub(super) owner: Arc<Owner<B>>,
    pub(super) unit: usize,
}

impl<B: Backend> Clone for ModuleHandle<B> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner), owner: Arc::clone(&self.owner), unit: self.unit }
    }
}

impl<B: Backend> ModuleHandle<B> {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> String {
        self.inner.unit_name(self.unit)
    }

    /// Its parameters: names, shapes and dtypes, in the order of its specification.
    #[must_use]
    pub fn parameters(&self) -> Vec<(Arc<str>, TensorDesc)> {
        self.inner.unit_parameters(self.unit)
    }

    /// The bytes of all its parameters.
    #[must_use]
    pub fn bytes(&self) -> Bytes {
        self.inner.unit_bytes(self.unit)
    }

    /// Waits until every parameter is in place and keeps them there while the guard lives.
    ///
    /// # Errors
    /// [`Error::BudgetTooSmall`](crate::Error::BudgetTooSmall) before anything is read;
    /// [`Error::AllInUse`](crate::Error::AllInUse) instead of a deadlock; whatever reading the weights gave.
    pub fn acquire(&self) -> Result<ModuleGuard<B>> {
        self.inner.acquire(self.unit)
    }

    /// Moves every parameter out of the tier that computes, pinned ones too, unless the module is in use.
    ///
    /// # Errors
    /// What storing a parameter that is in no file gave; that parameter then stays where it is.
    pub fn offload_all(&self) -> Result<Bytes> {
        self.inner.offload_unit(self.unit)
    }

    /// Brings every parameter into place.
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire).
    pub fn load_all(&self) -> Result<()> {
        self.acquire().map(drop)
    }

    /// The nearest tier in which all of the module is: that which computes, or the farthest of its parts' places.
    #[must_use]
    pub fn tier(&self) -> Tier {
        self.inner.unit_tier(self.unit)
    }

    /// Replaces a parameter's values, as training does. They are kept from now on, never read from the file again.
    ///
    /// # Errors
    /// [`dd_core::Error::Mismatch`] where the shape or dtype differs; [`dd_core::Error::NotFound`] for an unknown name;
    /// [`dd_core::Error::OutOfMemory`] where the tensor does not fit and cannot be stored.
    pub fn update(&self, parameter: &str, tensor: B::Tensor) -> Result<()> {
        self.inner.update(self.unit, parameter, tensor)
    }
}

/// A module in use: all of its parameters are in the tier that computes, and stay there while this lives.
pub struct ModuleGuard<B: Backend> {
    pub(super) inner: Arc<Inner<B>>,
    pub(super) unit: usize,
    pub(super) thread: u64,
    pub(super) tensors: Vec<(Arc<str>, B::Tensor)>,
}

impl<B: Backend> ModuleGuard<B> {
    /// The parameters' names, in the order of the module's specification.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.iter().map(|(name, _)| &**name)
    }

    /// A parameter: a handle to the managed storage, not a copy.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<&B::Tensor> {
        self.tensors.iter().find(|(own, _)| **own == *name).map(|(_, tensor)| tensor)
    }
}

impl<B: Backend> Drop for ModuleGuard<B> {
    fn drop(&mut self) {
        self.tensors.clear(); // Before the release: afterwards the storage may be used for other weights.
        self.inner.release(self.unit, self.thread);
    }
}

impl<B: Backend> std::fmt::Debug for ModuleGuard<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ModuleGuard")
            .field("unit", &self.unit)
            .field("names", &self.names().collect::<Vec<_>>())
            .finish()
    }
}
