//! [`FeedConfig`]: the limits and the shapes; validated when built.
//!
//! What follows from them (samples that fit, batch size, bytes) is a [`FeedPlan`], made by [`FeedConfig::plan`].

use std::fmt;
use std::sync::Arc;

use dd_core::{Bytes, CostModel, DType, TensorDesc};

use crate::error::{Error, Result};
use crate::plan::FeedPlan;

/// What the network takes beside the batch.
#[derive(Clone, Default)]
#[non_exhaustive]
pub enum Network {
    /// Nothing: only the batch itself has to fit.
    #[default]
    None,
    /// As much as its counts say.
    Counts(NetworkCounts),
    /// As a cost model says: `peak(&[batch])` is all that it holds at that batch size, the batch's own tensors left out. The model's
    /// promise never to decrease with the batch is relied on.
    Model(Arc<dyn CostModel>),
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::Counts(counts) => counts.fmt(f),
            Self::Model(_) => f.write_str("Model(..)"),
        }
    }
}

/// A network by numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetworkCounts {
    /// How many parameters.
    pub parameters: u64,
    /// How many intermediate variables for each sample.
    pub intermediates: u64,
    /// The type of both.
    pub dtype: DType,
    /// How it is trained; nothing for inference.
    pub training: Option<Optimizer>,
}

/// What an optimizer keeps for each parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Optimizer {
    /// Nothing.
    Sgd,
    /// One number of the parameter's type.
    Momentum,
    /// Two numbers of the parameter's type; `AdamW` too.
    Adam,
    /// So many bytes.
    Bytes(u64),
}

impl NetworkCounts {
    /// What does not depend on the batch: parameters, and for training their gradients and the optimizer's state.
    pub(crate) fn fixed(&self) -> Result<Bytes> {
        let parameters = self.dtype.bytes_for(self.parameters)?;
        let Some(optimizer) = self.training else { return Ok(parameters) };
        let state = match optimizer {
            Optimizer::Sgd => Some(Bytes::ZERO),
            Optimizer::Momentum => Some(parameters),
            Optimizer::Adam => parameters.checked_mul(2),
            Optimizer::Bytes(each) => self.parameters.checked_mul(each).map(Bytes),
        };
        let overflow = || overflow("parameters, gradients and optimizer state");
        Ok(state.ok_or_else(overflow)? + parameters.checked_mul(2).ok_or_else(overflow)?)
    }

    /// What each sample adds: intermediates, and for training as much again for their gradients (an upper bound).
    pub(crate) fn per_sample(&self) -> Result<Bytes> {
        let bytes = self.dtype.bytes_for(self.intermediates)?;
        let times = if self.training.is_some() { 2 } else { 1 };
        bytes.checked_mul(times).ok_or_else(|| overflow("intermediate variables"))
    }
}

pub(crate) fn overflow(what: &str) -> Error {
    dd_core::Error::SizeOverflow { what: what.to_owned() }.into()
}

/// Limits and shapes. Made by [`FeedConfig::builder`].
///
/// ```
/// use dd_core::{Bytes, DType};
/// use dd_feed::FeedConfig;
///
/// let config = FeedConfig::builder()
///     .cpu_memory_limit(Bytes::gib(2))
///     .gpu_memory_limit("1.5GiB".parse()?)
///     .total_sample_count(2048)
///     .input([3, 1024, 1024], DType::F32)
///     .output([256], DType::F32)
///     .one_read_count(2)
///     .preferred_batch_size(16)
///     .build()?;
/// let plan = config.plan()?;
/// assert_eq!((plan.samples, plan.batch_size), (4096, 16));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct FeedConfig {
    pub(crate) cpu_memory_limit: Bytes,
    pub(crate) gpu_memory_limit: Option<Bytes>,
    pub(crate) total_sample_count: u64,
    pub(crate) input: TensorDesc,
    pub(crate) output: TensorDesc,
    pub(crate) network: Network,
    pub(crate) one_read_count: u64,
    pub(crate) preferred_batch_size: u64,
}

impl FeedConfig {
    /// A configuration to be filled in.
    #[must_use]
    pub fn builder() -> FeedConfigBuilder {
        FeedConfigBuilder::default()
    }

    /// What follows: samples that fit, batch size, batches in memory, bytes of each.
    ///
    /// # Errors
    /// [`Error::Limit`] where not one read fits a limit, with the least that would do; [`Error::Setting`] for a preferred batch size
    /// below `one_read_count`; what the cost model says.
    pub fn plan(&self) -> Result<FeedPlan> {
        FeedPlan::of(self)
    }
}

/// Builds a [`FeedConfig`].
#[derive(Clone, Debug, Default)]
pub struct FeedConfigBuilder {
    cpu_memory_limit: Option<Bytes>,
    gpu_memory_limit: Option<Bytes>,
    total_sample_count: Option<u64>,
    input: Option<(Vec<usize>, DType)>,
    output: Option<(Vec<usize>, DType)>,
    network: Network,
    one_read_count: Option<u64>,
    preferred_batch_size: Option<u64>,
}

impl FeedConfigBuilder {
    /// What batches, read-ahead and cache may take of host memory together. Needed.
    #[must_use]
    pub fn cpu_memory_limit(mut self, limit: Bytes) -> Self {
        self.cpu_memory_limit = Some(limit);
        self
    }

    /// What the network and its batch may take of device memory; without it, there is no device to fit.
    #[must_use]
    pub fn gpu_memory_limit(mut self, limit: Bytes) -> Self {
        self.gpu_memory_limit = Some(limit);
        self
    }

    /// How many identities there are, each read once in an epoch. Needed.
    #[must_use]
    pub fn total_sample_count(mut self, count: u64) -> Self {
        self.total_sample_count = Some(count);
        self
    }

    /// One input sample as it is delivered: its shape, without the batch, and its type. Needed.
    #[must_use]
    pub fn input(mut self, shape: impl Into<Vec<usize>>, dtype: DType) -> Self {
        self.input = Some((shape.into(), dtype));
        self
    }

    /// One output sample (a label, a target) as it is delivered. Needed.
    #[must_use]
    pub fn output(mut self, shape: impl Into<Vec<usize>>, dtype: DType) -> Self {
        self.output = Some((shape.into(), dtype));
        self
    }

    /// What the network takes of device memory (of host memory too where there is no device limit: then that is not counted).
    #[must_use]
    pub fn network(mut self, network: Network) -> Self {
        self.network = network;
        self
    }

    /// How many samples one read of an identity gives: itself and its variations. One unless said otherwise.
    #[must_use]
    pub fn one_read_count(mut self, count: u64) -> Self {
        self.one_read_count = Some(count);
        self
    }

    /// The batch size, where memory allows: the largest multiple of [`one_read_count`](Self::one_read_count) up to this. 32 unless
    /// said otherwise.
    #[must_use]
    pub fn preferred_batch_size(mut self, size: u64) -> Self {
        self.preferred_batch_size = Some(size);
        self
    }

    /// Checks it.
    ///
    /// # Errors
    /// [`Error::Setting`] for what is missing or out of range; [`Error::Core`] for shapes of more than 64 bits of bytes.
    pub fn build(self) -> Result<FeedConfig> {
        fn given<T>(option: &'static str, value: Option<T>, example: &str) -> Result<T> {
            let reason = || format!("it has to be given, for example {example}");
            value.ok_or_else(|| Error::setting(option, "missing", reason()))
        }
        let (input, output) = (
            given("input", self.input, "input([3, 64, 64], DType::F32)")?,
            given("output", self.output, "output([10], DType::F32)")?,
        );
        let config = FeedConfig {
            cpu_memory_limit: given("cpu_memory_limit", self.cpu_memory_limit, "Bytes::gib(2)")?,
            gpu_memory_limit: self.gpu_memory_limit,
            total_sample_count: given("total_sample_count", self.total_sample_count, "2048")?,
            input: TensorDesc::new(input.0, input.1)?,
            output: TensorDesc::new(output.0, output.1)?,
            network: self.network,
            one_read_count: self.one_read_count.unwrap_or(1),
            preferred_batch_size: self.preferred_batch_size.unwrap_or(32),
        };
        let counts = [
            ("total_sample_count", config.total_sample_count),
            ("one_read_count", config.one_read_count),
            ("preferred_batch_size", config.preferred_batch_size),
            ("elements of an input sample", config.input.elements()),
            ("elements of an output sample", config.output.elements()),
        ];
        for (option, value) in counts {
            if value == 0 {
                return Err(Error::setting(option, value, "expected at least 1"));
            }
        }
        if config.total_sample_count.checked_mul(config.one_read_count).is_none() {
            return Err(overflow("total_sample_count times one_read_count"));
        }
        Ok(config)
    }
}
