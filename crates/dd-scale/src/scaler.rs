//! [`AutoScaler`]: sizes that fit what is available now, and tensors of these sizes on any backend.
//!
//! What counts as available is the least of all figures: what the backend says of its tier, what every provider says of
//! that tier and of host memory (a tensor on a device is filled, moved and saved through the host), and what the shared
//! budget leaves. A provider reports a container's limit as host memory. Where none of them knows a figure, that is an
//! error: everything would fit.

use std::ops::Deref;
use std::sync::Arc;

use dd_core::{
    Backend, Budget, Bytes, DType, Holder, MemoryProvider, MemorySample, Reservation, ScalingStrategy,
    TensorDesc, Tier,
};

use crate::config::ScalingConfig;
use crate::error::{Error, Result};
use crate::fill;
use crate::fit::{Scaler, ScalingResult, estimate};
use crate::memory::{Figure, MemoryInfo};

/// How often sizes are chosen anew because others took from the budget between looking and reserving.
const MOST_TRIES: usize = 8;
/// The bytes that a tensor is filled with at a time.
const FILL_CHUNK: usize = 64 << 10;

/// Chooses sizes for what is available now, and makes tensors of them.
///
/// ```
/// use dd_core::{Bytes, DType, HostBackend, Tier};
/// use dd_scale::{AutoScaler, ScalingConfig};
///
/// let backend = HostBackend::with_tiers([(Tier::Host, Bytes::mib(2))]);
/// let config = ScalingConfig::builder().memory_threshold(1.0).safety_margin(0.0).build()?;
/// let scaler = AutoScaler::new(backend, config)?;
/// assert_eq!(scaler.scale_dimensions(&[1024, 1024, 3], DType::F32)?, [512, 512, 2]);
/// assert!(!scaler.can_fit(&[1024, 1024, 3], DType::F32)?);
/// let tensor = scaler.create_scaled_tensor(&[1024, 1024, 3], DType::F32, 0.0)?;
/// assert_eq!(tensor.desc().shape(), [512, 512, 2]);
/// # Ok::<(), dd_scale::Error>(())
/// ```
#[derive(Clone)]
pub struct AutoScaler<B> {
    backend: Arc<B>,
    scaler: Scaler,
    tier: Tier,
    providers: Vec<(String, Arc<dyn MemoryProvider>)>,
    budget: Option<Budget>,
    holder: Holder,
}

impl<B: Backend> AutoScaler<B> {
    /// A scaler for a backend. Its own figures count; add what else is to count.
    ///
    /// # Errors
    /// [`Error::Setting`] where the configuration expects another backend; [`dd_core::Error::UnsupportedTier`] for a
    /// device that the backend does not have.
    pub fn new(backend: B, config: ScalingConfig) -> Result<Self> {
        Self::shared(Arc::new(backend), config)
    }

    /// The same for a backend that others use too.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn shared(backend: Arc<B>, config: ScalingConfig) -> Result<Self> {
        let framework = config.framework();
        if framework != "auto" && framework != backend.name() {
            let reason = format!("the backend is {:?}; give that, or auto", backend.name());
            return Err(Error::setting("framework", format!("{framework:?}"), reason));
        }
        let tier = tier_of(&*backend, config.device().tier())?;
        let (scaler, holder) = (Scaler::new(config), Holder::new("scaled tensors"));
        Ok(Self { backend, scaler, tier, providers: Vec::new(), budget: None, holder })
    }

    /// Lets a provider's figures count: those of the tensors' tier, and of host memory. The name is for reports.
    #[must_use]
    pub fn with_provider(mut self, name: impl Into<String>, provider: Arc<dyn MemoryProvider>) -> Self {
        self.providers.push((name.into(), provider));
        self
    }

    /// Lets what a shared budget leaves count; tensors are reserved from it before they are made.
    #[must_use]
    pub fn with_budget(mut self, budget: Budget) -> Self {
        self.budget = Some(budget);
        self
    }

    /// Takes a strategy of the user's own; see [`Scaler::with_strategy`].
    #[must_use]
    pub fn with_strategy(mut self, strategy: Arc<dyn ScalingStrategy>) -> Self {
        self.scaler = self.scaler.with_strategy(strategy);
        self
    }

    /// The configuration.
    #[must_use]
    pub const fn config(&self) -> &ScalingConfig {
        self.scaler.config()
    }

    /// The backend's name.
    #[must_use]
    pub fn framework(&self) -> &str {
        self.backend.name()
    }

    /// Where tensors are made.
    #[must_use]
    pub const fn tier(&self) -> Tier {
        self.tier
    }

    /// What these sizes take. Reads no memory.
    ///
    /// # Errors
    /// [`Error::Empty`] or [`Error::Dimension`] for sizes that cannot be.
    pub fn estimate_memory(&self, dims: &[usize], dtype: DType) -> Result<Bytes> {
        estimate(dims, dtype)
    }

    /// Where memory stands now.
    ///
    /// # Errors
    /// What the backend or a provider says; [`Error::Setting`] where nothing bounds memory: a library that uses the host's
    /// own memory knows no figure of it, so a provider or a budget must.
    pub fn memory_info(&self) -> Result<MemoryInfo> {
        let own = self.backend.memory(self.tier)?;
        let mut figures =
            vec![Figure { source: self.backend.name().to_owned(), tier: self.tier, sample: own }];
        for (name, provider) in &self.providers {
            let counts = |tier: &&Tier| **tier == self.tier || **tier == Tier::Host;
            for tier in provider.tiers().iter().filter(counts) {
                let sample = provider.sample(*tier)?;
                figures.push(Figure { source: name.clone(), tier: *tier, sample });
            }
        }
        if let Some(budget) = &self.budget {
            let (total, available) = (budget.limit(), budget.available());
            let sample = MemorySample { total, used: total.saturating_sub(available), available };
            figures.push(Figure { source: format!("budget {:?}", budget.name()), tier: self.tier, sample });
        }
        let available = figures.iter().map(|figure| figure.sample.available).min().unwrap_or(Bytes::ZERO);
        if available == Bytes::MAX {
            let reason =
                format!("{} tells no figure of {}; add a provider or a budget", self.framework(), self.tier);
            return Err(Error::setting("available memory", "unbounded", reason));
        }
        Ok(MemoryInfo { tier: self.tier, figures, available, target: self.config().target(available) })
    }

    /// Whether these sizes, as they are, fit the target.
    ///
    /// # Errors
    /// As [`estimate_memory`](Self::estimate_memory) and [`memory_info`](Self::memory_info).
    pub fn can_fit(&self, dims: &[usize], dtype: DType) -> Result<bool> {
        Ok(estimate(dims, dtype)? <= self.memory_info()?.target)
    }

    /// Sizes that fit.
    ///
    /// # Errors
    /// As [`scale_dimensions_with_info`](Self::scale_dimensions_with_info).
    pub fn scale_dimensions(&self, dims: &[usize], dtype: DType) -> Result<Vec<usize>> {
        Ok(self.scale_dimensions_with_info(dims, dtype)?.dims)
    }

    /// Sizes that fit, and how they came about.
    ///
    /// # Errors
    /// As [`Scaler::fit`] and [`memory_info`](Self::memory_info).
    pub fn scale_dimensions_with_info(&self, dims: &[usize], dtype: DType) -> Result<ScalingResult> {
        let info = self.memory_info()?;
        let result = self.scaler.fit(dims, dtype, info.target)?;
        tracing::debug!(wished = ?dims, taken = ?result.dims, target = %info.target, "sizes chosen");
        Ok(result)
    }

    /// A tensor of sizes that fit, every element `fill_value`. Its bytes are reserved from the budget, where there is one,
    /// before anything is allocated, and given back when the tensor is dropped.
    ///
    /// # Errors
    /// As [`scale_dimensions_with_info`](Self::scale_dimensions_with_info); [`Error::Fill`] for a value that the dtype cannot
    /// hold; what the backend says. Nothing stays reserved then.
    pub fn create_scaled_tensor(
        &self,
        dims: &[usize],
        dtype: DType,
        fill_value: f64,
    ) -> Result<ScaledTensor<B::Tensor>> {
        let pattern = fill::pattern(fill_value, dtype)?;
        let (result, reservation) = self.reserve(dims, dtype)?;
        let desc = TensorDesc::new(result.dims.as_slice(), dtype)?;
        let mut tensor = self.backend.allocate(&desc, self.tier)?;
        if pattern.iter().any(|byte| *byte != 0) {
            self.fill(&mut tensor, &desc, &pattern)?;
        }
        Ok(ScaledTensor { tensor, desc, result, reservation })
    }

    /// Chooses sizes and reserves them; chooses again where others were faster.
    fn reserve(&self, dims: &[usize], dtype: DType) -> Result<(ScalingResult, Option<Reservation>)> {
        let mut tries = 1;
        loop {
            let result = self.scale_dimensions_with_info(dims, dtype)?;
            let Some(budget) = &self.budget else { return Ok((result, None)) };
            match budget.reserve(result.bytes, &self.holder) {
                Ok(reservation) => return Ok((result, Some(reservation))),
                Err(error) if error.is_out_of_memory() && tries < MOST_TRIES => tries += 1,
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn fill(&self, tensor: &mut B::Tensor, desc: &TensorDesc, pattern: &[u8]) -> Result<()> {
        let len = desc.len_in_memory()?;
        let chunk = pattern.repeat((FILL_CHUNK / pattern.len().max(1)).max(1));
        let mut offset = 0;
        while offset < len {
            let part = chunk.get(..chunk.len().min(len - offset)).unwrap_or(&chunk);
            self.backend.write(tensor, offset, part)?;
            offset += part.len();
        }
        Ok(())
    }
}

impl<B: Backend> std::fmt::Debug for AutoScaler<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let providers: Vec<&str> = self.providers.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("AutoScaler")
            .field("backend", &self.backend.name())
            .field("tier", &self.tier)
            .field("scaler", &self.scaler)
            .field("providers", &providers)
            .field("budget", &self.budget)
            .finish()
    }
}

/// The tier that was asked for, or the backend's nearest.
fn tier_of<B: Backend>(backend: &B, asked: Option<Tier>) -> Result<Tier> {
    let tiers = backend.tiers();
    let asked = asked.or_else(|| tiers.first().copied()).unwrap_or(Tier::Host);
    if tiers.contains(&asked) {
        return Ok(asked);
    }
    Err(dd_core::memory::unsupported(backend.name(), asked, tiers).into())
}

/// A tensor that was made to fit, with the bytes that it has of the budget. Reads as the tensor.
#[derive(Debug)]
pub struct ScaledTensor<T> {
    tensor: T, // Goes before its reservation.
    desc: TensorDesc,
    result: ScalingResult,
    reservation: Option<Reservation>,
}

impl<T> ScaledTensor<T> {
    /// Its shape and dtype.
    #[must_use]
    pub const fn desc(&self) -> &TensorDesc {
        &self.desc
    }

    /// How its sizes came about.
    #[must_use]
    pub const fn result(&self) -> &ScalingResult {
        &self.result
    }

    /// The tensor and the bytes that it has of the budget: keep the second as long as the first.
    #[must_use]
    pub fn into_parts(self) -> (T, Option<Reservation>) {
        (self.tensor, self.reservation)
    }
}

impl<T> Deref for ScaledTensor<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.tensor
    }
}
