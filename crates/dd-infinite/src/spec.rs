//! [`TensorSpec`]: everything that makes an infinite tensor what it is, but its function.

use std::sync::Arc;

use dd_core::{Backend, Bytes, DType, Device, TensorDesc, Tier};
use serde_json::{Value, json};
use smallvec::SmallVec;

use crate::blend::{Blend, Weight};
use crate::def::{Arg, Def, Function};
use crate::error::{Error, Result};
use crate::fold::Fold;
use crate::store::{Manifest, TileStore, check_id};
use crate::tensor::InfiniteTensor;
use crate::window::{Axis, EdgeMode, TensorWindow};

/// Tensors that depend on each other in a longer chain than this are refused.
pub const MAX_DEPTH: usize = 128;

/// A tensor to be made or opened: shape, window, arguments and options. See [`Tiles::get_or_create`](crate::Tiles::get_or_create).
pub struct TensorSpec<B: Backend> {
    pub(crate) id: String,
    shape: Vec<Option<i64>>,
    window: TensorWindow,
    pub(crate) args: Vec<(InfiniteTensor<B>, TensorWindow)>,
    dtype: DType,
    tier: Tier,
    chunk: Option<Vec<i64>>,
    blend: Blend,
    initial: Option<f64>,
    batch: usize,
    version: String,
    workspace: Bytes,
    seed: u64,
    persist: bool,
}

impl<B: Backend> TensorSpec<B> {
    /// A tensor of `f32` on the host. `None` stands for an unbounded dimension, which has negative coordinates too.
    pub fn new(id: impl Into<String>, shape: impl AsRef<[Option<i64>]>, window: TensorWindow) -> Self {
        Self {
            id: id.into(),
            shape: shape.as_ref().to_vec(),
            window,
            args: Vec::new(),
            dtype: DType::F32,
            tier: Tier::Host,
            chunk: None,
            blend: Blend::default(),
            initial: None,
            batch: 1,
            version: String::new(),
            workspace: Bytes::ZERO,
            seed: 0,
            persist: true,
        }
    }

    /// Adds an argument: the function gets the part of `upstream` that `window` gives for the same index.
    #[must_use]
    pub fn arg(mut self, upstream: &InfiniteTensor<B>, window: TensorWindow) -> Self {
        self.args.push((upstream.clone(), window));
        self
    }

    /// The element type.
    #[must_use]
    pub const fn dtype(mut self, dtype: DType) -> Self {
        self.dtype = dtype;
        self
    }

    /// Where the function gets its arguments and gives its output. Windows are kept as bytes in host memory.
    #[must_use]
    pub const fn tier(mut self, tier: Tier) -> Self {
        self.tier = tier;
        self
    }

    /// As [`tier`](Self::tier), by the device's name; `Auto` is the host.
    #[must_use]
    pub fn device(self, device: Device) -> Self {
        self.tier(device.tier().unwrap_or(Tier::Host))
    }

    /// The size of the pieces in which [`InfiniteTensor::stream`] gives a region; by default the window's stride.
    #[must_use]
    pub fn chunk_size(mut self, size: impl AsRef<[i64]>) -> Self {
        self.chunk = Some(size.as_ref().to_vec());
        self
    }

    /// How overlapping windows are combined.
    #[must_use]
    pub fn blend(mut self, blend: Blend) -> Self {
        self.blend = blend;
        self
    }

    /// The value before the first window, which uncovered elements keep.
    #[must_use]
    pub const fn initial(mut self, value: f64) -> Self {
        self.initial = Some(value);
        self
    }

    /// The most windows that the function takes at once.
    #[must_use]
    pub const fn batch_size(mut self, windows: usize) -> Self {
        self.batch = windows;
        self
    }

    /// Stands for what the function computes: change it where that changes, and stored windows are not mixed up.
    #[must_use]
    pub fn version(mut self, version: impl Into<String>) -> Self {
        self.version = version.into();
        self
    }

    /// What the function takes at most for one window beyond its arguments and its output. Reserved while it runs.
    #[must_use]
    pub const fn workspace(mut self, bytes: Bytes) -> Self {
        self.workspace = bytes;
        self
    }

    /// The seed of [`Context::seed`](crate::Context::seed).
    #[must_use]
    pub const fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Whether windows go to the store, where there is one. They do by default.
    #[must_use]
    pub const fn persist(mut self, persist: bool) -> Self {
        self.persist = persist;
        self
    }

    fn wrong(&self, field: &'static str, reason: impl Into<String>) -> Error {
        Error::Spec { tensor: self.id.clone(), field, reason: reason.into() }
    }

    /// Checks everything that can be checked before the tensor is used.
    pub(crate) fn check(&self, backend: &B) -> Result<()> {
        check_id(&self.id)?;
        let rank = self.shape.len();
        if let Some(d) = self.shape.iter().position(|len| len.is_some_and(|len| len < 1)) {
            return Err(
                self.wrong("shape", format!("dimension {d} has no element; expected at least 1, or None"))
            );
        }
        if self.window.rank() != rank {
            return Err(
                self.wrong("window", format!("{} dimensions for a shape of {rank}", self.window.rank()))
            );
        }
        let index_rank = self.window.index_rank();
        if index_rank > rank.max(1) {
            return Err(
                self.wrong("window", "the dimension map names a coordinate past the number of dimensions")
            );
        }
        if let Some(gap) = (0..index_rank).find(|c| !self.window.dimension_map().contains(&Some(*c))) {
            let reason =
                format!("no dimension follows coordinate {gap}: every element would lie in endless windows");
            return Err(self.wrong("window", reason));
        }
        for (number, (upstream, window)) in self.args.iter().enumerate() {
            let found = upstream.def().shape.len();
            if window.rank() != found {
                let reason =
                    format!("argument {number}: {} dimensions for a tensor of {found}", window.rank());
                return Err(self.wrong("args_windows", reason));
            }
            if window.index_rank() > index_rank {
                let reason =
                    format!("argument {number}: its map names a coordinate that the output's has not");
                return Err(self.wrong("args_windows", reason));
            }
        }
        self.check_numbers(backend)
    }

    fn check_numbers(&self, backend: &B) -> Result<()> {
        if self.dtype.element_bytes().is_none() {
            return Err(self.wrong("dtype", format!("{} has no whole bytes per element", self.dtype)));
        }
        if !Fold::can_fold(self.dtype)
            && (!self.window.is_disjoint() || self.initial.is_some_and(|v| v != 0.0))
        {
            return Err(self.wrong(
                "dtype",
                format!("{} cannot be blended; use windows that do not overlap", self.dtype),
            ));
        }
        if !backend.tiers().contains(&self.tier) {
            return Err(self.wrong("device", format!("{} has no tier {}", backend.name(), self.tier)));
        }
        if self.batch == 0 {
            return Err(self.wrong("batch_size", "0; expected at least 1"));
        }
        if let Blend::Weighted(Weight::Gaussian { sigma }) = self.blend
            && !(sigma.is_finite() && sigma > 0.0)
        {
            return Err(self.wrong("blend", format!("sigma is {sigma}; expected a number above 0")));
        }
        if let Some(chunk) = &self.chunk
            && (chunk.len() != self.shape.len() || chunk.iter().any(|len| *len < 1))
        {
            return Err(
                self.wrong("chunk_size", format!("{chunk:?}; expected one size above 0 per dimension"))
            );
        }
        if self.args.iter().any(|(upstream, _)| upstream.def().depth >= MAX_DEPTH) {
            return Err(self.wrong("args", format!("a chain of more than {MAX_DEPTH} tensors")));
        }
        Ok(())
    }

    /// What a store remembers.
    pub(crate) fn manifest(&self) -> Result<Manifest> {
        let window: SmallVec<[usize; 4]> =
            self.window.size().iter().map(|size| usize::try_from(*size).unwrap_or(usize::MAX)).collect();
        let args: Vec<Value> = self.args.iter().map(|(up, window)| json!([up.id(), window])).collect();
        let fields = [
            ("shape", json!(self.shape)),
            ("window", json!(self.window)),
            ("args", Value::Array(args)),
            ("device", json!(self.tier.to_string())),
            ("chunk_size", json!(self.chunk)),
            ("blend", json!(self.blend.name())),
            ("initial", json!(self.initial.map(|value| value.to_string()))),
            ("batch_size", json!(self.batch)),
            ("version", json!(self.version)),
            ("seed", json!(self.seed)),
        ];
        Ok(Manifest {
            window: TensorDesc::new(window.as_slice(), self.dtype)?,
            index_rank: self.window.index_rank(),
            fields: fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
        })
    }

    pub(crate) fn build(
        self,
        (slot, tiles): (usize, usize),
        function: Function<B>,
        store: Option<Arc<dyn TileStore>>,
        manifest: Manifest,
    ) -> Def<B> {
        let rank = self.window.index_rank();
        let mut domain = self.window.domain(&self.shape, rank);
        let args: Vec<Arg<B>> =
            self.args.into_iter().map(|(up, window)| Arg { def: Arc::clone(up.def()), window }).collect();
        for arg in args.iter().filter(|arg| arg.window.edge() == EdgeMode::Drop) {
            domain = domain.meet(&arg.window.domain(&arg.def.shape, rank));
        }
        let initial = self.initial.unwrap_or_else(|| self.blend.initial(self.dtype));
        let profile = |axis: Axis| match &self.blend {
            Blend::Weighted(weight) if axis.coordinate.is_some() && axis.stride < axis.size => {
                Some(weight.profile(axis.size.unsigned_abs()))
            }
            _ => None,
        };
        let profiles = self.window.axes().map(profile).collect();
        let element = usize::try_from(self.dtype.block_bytes()).unwrap_or(8);
        let fold = Fold::new(self.dtype, element, self.blend, initial, self.window.is_disjoint(), profiles);
        let depth = args.iter().map(|arg| arg.def.depth + 1).max().unwrap_or(0);
        Def {
            slot,
            tiles,
            id: self.id.into(),
            shape: self.shape.into(),
            dtype: self.dtype,
            element,
            tier: self.tier,
            chunk: self.chunk.map_or_else(|| self.window.stride().into(), SmallVec::from_vec),
            window: self.window,
            rank,
            domain,
            fold,
            args,
            function,
            batch: self.batch,
            workspace: self.workspace,
            seed: self.seed,
            store: store.filter(|_| self.persist),
            stored: manifest.window.clone(),
            manifest,
            depth,
        }
    }
}
