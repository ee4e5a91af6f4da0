//! [`FeedPlan`]: how many samples fit, how large a batch is, how many batches are in memory, and what each takes. A value: decided before
//! anything is read, and printable.

use std::fmt;

use dd_core::{Bytes, TensorDesc};
use serde::Serialize;

use crate::config::{FeedConfig, Network, overflow};
use crate::error::{Error, Result};

/// What a [`FeedConfig`] comes to. `Display` gives it as a table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct FeedPlan {
    /// Identities per epoch.
    pub identities: u64,
    /// Samples that each identity gives.
    pub one_read_count: u64,
    /// Samples per epoch: identities times `one_read_count`.
    pub samples: u64,
    /// One input sample.
    pub input: TensorDesc,
    /// One output sample.
    pub output: TensorDesc,
    /// Bytes of one sample, input and output.
    pub sample_bytes: Bytes,
    /// Samples that host memory holds, however many there are.
    pub samples_that_fit: u64,
    /// Samples per batch: a multiple of `one_read_count`, at most what is preferred, at most what either memory allows.
    pub batch_size: u64,
    /// Bytes of one batch, input and output.
    pub batch_bytes: Bytes,
    /// Whole batches that host memory holds: those being read ahead, and the caller's.
    pub batches_in_memory: u64,
    /// Batches per epoch, the tail included.
    pub batches_per_epoch: u64,
    /// The host limit.
    pub cpu_memory_limit: Bytes,
    /// What the device holds, where there is a limit for it.
    pub device: Option<DevicePlan>,
}

/// What a device holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct DevicePlan {
    /// The device limit.
    pub limit: Bytes,
    /// Network and batch together, at the planned batch size.
    pub used: Bytes,
    /// Of that, the batch's own tensors.
    pub batch: Bytes,
}

impl FeedPlan {
    pub(crate) fn of(config: &FeedConfig) -> Result<Self> {
        let reads = config.one_read_count;
        if config.preferred_batch_size < reads {
            let reason = format!("below one_read_count, which is {reads}; at least {reads} would do");
            return Err(Error::setting("preferred_batch_size", config.preferred_batch_size, reason));
        }
        let sample = config.input.bytes().checked_add(config.output.bytes());
        let sample = sample.ok_or_else(|| overflow("one sample"))?;
        let one_read = sample.checked_mul(reads).ok_or_else(|| overflow("one read"))?;
        let samples = config.total_sample_count.saturating_mul(reads);
        let fit = config.cpu_memory_limit.0 / sample.0.max(1);
        if fit < reads {
            return Err(Error::Limit {
                option: "cpu_memory_limit",
                limit: config.cpu_memory_limit,
                what: format!("one read of {reads} × {} + {}", config.input, config.output),
                least: one_read,
            });
        }
        let most = fit.min(config.preferred_batch_size).min(samples) / reads;
        let reads_per_batch = Device { config, sample }.largest(most)?;
        let batch_size = reads_per_batch * reads;
        let batch_bytes = sample.checked_mul(batch_size).ok_or_else(|| overflow("one batch"))?;
        let used = Device { config, sample }.used(reads_per_batch)?;
        Ok(Self {
            identities: config.total_sample_count,
            one_read_count: reads,
            samples,
            input: config.input.clone(),
            output: config.output.clone(),
            sample_bytes: sample,
            samples_that_fit: fit,
            batch_size,
            batch_bytes,
            batches_in_memory: fit / batch_size,
            batches_per_epoch: samples.div_ceil(batch_size),
            cpu_memory_limit: config.cpu_memory_limit,
            device: config.gpu_memory_limit.map(|limit| DevicePlan { limit, used, batch: batch_bytes }),
        })
    }

    /// Identities per batch.
    #[must_use]
    pub const fn reads_per_batch(&self) -> u64 {
        self.batch_size / self.one_read_count
    }

    /// An input batch of so many samples: the samples' shape with the batch in front.
    ///
    /// # Errors
    /// [`Error::Core`] where its size does not fit 64 bits.
    pub fn input_batch(&self, samples: usize) -> Result<TensorDesc> {
        batched(&self.input, samples)
    }

    /// An output batch of so many samples.
    ///
    /// # Errors
    /// As [`input_batch`](Self::input_batch).
    pub fn output_batch(&self, samples: usize) -> Result<TensorDesc> {
        batched(&self.output, samples)
    }
}

fn batched(sample: &TensorDesc, samples: usize) -> Result<TensorDesc> {
    let shape: Vec<usize> = std::iter::once(samples).chain(sample.shape().iter().copied()).collect();
    Ok(TensorDesc::new(shape, sample.dtype())?)
}

/// The device's side of the plan.
struct Device<'a> {
    config: &'a FeedConfig,
    sample: Bytes,
}

impl Device<'_> {
    /// What network and batch take with so many reads in a batch.
    fn used(&self, reads: u64) -> Result<Bytes> {
        let size = reads.saturating_mul(self.config.one_read_count);
        let batch = self.sample.checked_mul(size).ok_or_else(|| overflow("one batch"))?;
        let network = match &self.config.network {
            Network::None => Bytes::ZERO,
            Network::Counts(counts) => {
                let all = counts.per_sample()?.checked_mul(size);
                counts.fixed()? + all.ok_or_else(|| overflow("intermediate variables"))?
            }
            Network::Model(model) => {
                let size = usize::try_from(size).map_err(|_| overflow("one batch"))?;
                model.peak(&[size])?
            }
        };
        network.checked_add(batch).ok_or_else(|| overflow("network and batch"))
    }

    /// The most reads, up to `most`, with which everything fits: by halving, as the cost never falls.
    fn largest(&self, most: u64) -> Result<u64> {
        let Some(limit) = self.config.gpu_memory_limit else { return Ok(most) };
        let least = self.used(1)?;
        if least > limit {
            return Err(Error::Limit {
                option: "gpu_memory_limit",
                limit,
                what: format!("the network and a batch of {}", self.config.one_read_count),
                least,
            });
        }
        let (mut fits, mut above) = (1, most + 1);
        while above - fits > 1 {
            let middle = fits + (above - fits) / 2;
            // What overflows does not fit; every other error is one.
            let fit = match self.used(middle) {
                Ok(used) => used <= limit,
                Err(Error::Core { source: dd_core::Error::SizeOverflow { .. } }) => false,
                Err(error) => return Err(error),
            };
            if fit { fits = middle } else { above = middle }
        }
        Ok(fits)
    }
}

impl fmt::Display for FeedPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reads = self.one_read_count;
        writeln!(f, "samples per epoch    {} ({} identities × {reads})", self.samples, self.identities)?;
        writeln!(f, "one sample           {} ({} + {})", self.sample_bytes, self.input, self.output)?;
        writeln!(f, "host memory          {}: {} samples", self.cpu_memory_limit, self.samples_that_fit)?;
        writeln!(f, "batch                {} samples, {}", self.batch_size, self.batch_bytes)?;
        writeln!(f, "batches in memory    {}", self.batches_in_memory)?;
        write!(f, "batches per epoch    {}", self.batches_per_epoch)?;
        if let Some(device) = self.device {
            write!(f, "\ndevice memory        {} of {}", device.used, device.limit)?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[cfg(not(dd_shuttle))]
mod tests {
    use std::sync::Arc;

    use dd_core::DType;
    use dd_core::cost::AffineCost;
    use proptest::prelude::*;

    use super::*;
    use crate::config::{FeedConfigBuilder, NetworkCounts, Optimizer};

    fn of_one_kib() -> FeedConfigBuilder {
        FeedConfig::builder()
            .total_sample_count(1000)
            .input([1020], DType::U8)
            .output([1], DType::F32)
            .cpu_memory_limit(Bytes::mib(1))
    }

    fn counts(training: Option<Optimizer>) -> Network {
        Network::Counts(NetworkCounts { parameters: 1000, intermediates: 256, dtype: DType::F32, training })
    }

    #[test]
    fn batches_by_what_limits_them() {
        let rows = [
            ("what is preferred", of_one_kib(), 32),
            ("a multiple of the reads", of_one_kib().one_read_count(5), 30),
            ("host memory", of_one_kib().cpu_memory_limit(Bytes::kib(7)), 7),
            ("both", of_one_kib().cpu_memory_limit(Bytes::kib(7)).one_read_count(3), 6),
            ("one sample", of_one_kib().cpu_memory_limit(Bytes::kib(1)), 1),
            ("how many there are", of_one_kib().total_sample_count(3), 3),
            ("the device, without a network", of_one_kib().gpu_memory_limit(Bytes::kib(10)), 10),
            // 4000 B of parameters; 1024 B of intermediates and 1024 of the sample each.
            ("inference", of_one_kib().gpu_memory_limit(Bytes(4000 + 2048 * 6)).network(counts(None)), 6),
            // Parameters and gradients; intermediates twice.
            (
                "training",
                of_one_kib().gpu_memory_limit(Bytes(8000 + 3072 * 6)).network(counts(Some(Optimizer::Sgd))),
                6,
            ),
            (
                "training with Adam",
                of_one_kib()
                    .gpu_memory_limit(Bytes(16000 + 3072 * 6 - 1))
                    .network(counts(Some(Optimizer::Adam))),
                5,
            ),
            (
                "a cost model",
                of_one_kib().gpu_memory_limit(Bytes::kib(30)).network(Network::Model(Arc::new(AffineCost {
                    constant: Bytes::kib(10),
                    per_element: Bytes::kib(4),
                }))),
                4,
            ),
        ];
        for (what, builder, expected) in rows {
            let plan = builder.build().unwrap().plan().unwrap();
            assert_eq!(plan.batch_size, expected, "limited by {what}:\n{plan}");
        }
    }

    /// Each error says what would do: with that, there is a plan.
    #[test]
    fn errors_say_what_would_do() {
        let host = of_one_kib().one_read_count(3).cpu_memory_limit(Bytes::kib(2));
        let device = of_one_kib().network(counts(Some(Optimizer::Bytes(2)))).gpu_memory_limit(Bytes(100));
        for (option, builder) in [("cpu_memory_limit", host), ("gpu_memory_limit", device)] {
            let error = builder.clone().build().unwrap().plan().unwrap_err();
            assert!(error.is_out_of_memory());
            let Error::Limit { option: named, least, .. } = error else { panic!("{error}") };
            assert_eq!(named, option);
            let with = |limit| match option {
                "cpu_memory_limit" => builder.clone().cpu_memory_limit(limit),
                _ => builder.clone().gpu_memory_limit(limit),
            };
            let plan = with(least).build().unwrap().plan().unwrap();
            assert_eq!(plan.batch_size, plan.one_read_count, "{option}: the least makes one read fit");
            assert!(with(Bytes(least.0 - 1)).build().unwrap().plan().is_err(), "{option}: less does not");
        }
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        let rows = [
            ("cpu_memory_limit", FeedConfig::builder().input([1], DType::U8).output([1], DType::U8)),
            ("input", FeedConfig::builder()),
            ("total_sample_count", of_one_kib().total_sample_count(0)),
            ("one_read_count", of_one_kib().one_read_count(0)),
            ("preferred_batch_size", of_one_kib().preferred_batch_size(0)),
            ("preferred_batch_size", of_one_kib().preferred_batch_size(2).one_read_count(3)),
            ("elements of an input sample", of_one_kib().input([3, 0], DType::F32)),
        ];
        for (option, builder) in rows {
            let error = builder.build().and_then(|config| config.plan()).unwrap_err();
            let named = matches!(&error, Error::Setting { option: named, .. } if *named == option);
            assert!(named, "{option}: {error}");
        }
        assert!(of_one_kib().total_sample_count(u64::MAX).one_read_count(2).build().is_err());
    }

    proptest! {
        #[test]
        fn limits_hold_and_no_batch_is_wasted(
            limit in 1u64..5000, device in proptest::option::of(1u64..20_000), total in 1u64..200, reads in 1u64..6,
            preferred in 1u64..50, sample in 1usize..300, fixed in 0u64..500, per in 0u64..50,
        ) {
            let mut builder = FeedConfig::builder()
                .cpu_memory_limit(Bytes(limit)).total_sample_count(total).one_read_count(reads)
                .preferred_batch_size(preferred).input([sample], DType::U8).output([1], DType::U8)
                .network(Network::Model(Arc::new(AffineCost { constant: Bytes(fixed), per_element: Bytes(per) })));
            if let Some(device) = device {
                builder = builder.gpu_memory_limit(Bytes(device));
            }
            let each = sample as u64 + 1;
            let fits = |size: u64| size <= preferred && size <= total * reads && size * each <= limit
                && device.is_none_or(|device| fixed + size * (per + each) <= device);
            let brute = (1..).map(|n| n * reads).take_while(|size| *size <= preferred.min(total * reads)).filter(|size| fits(*size)).max();
            match builder.build().unwrap().plan() {
                Ok(plan) => {
                    prop_assert_eq!(Some(plan.batch_size), brute);
                    prop_assert!(plan.batches_in_memory >= 1);
                    prop_assert!(plan.batch_bytes.0 * plan.batches_in_memory <= limit);
                    prop_assert_eq!(plan.batches_per_epoch, (total * reads).div_ceil(plan.batch_size));
                }
                Err(_) => prop_assert_eq!(brute, None),
            }
        }
    }
}
