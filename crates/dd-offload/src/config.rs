//! [`MemoryConfig`]: every option of the memory manager, validated when it is built.
//!
//! Options say what is wanted; the [plan](crate::plan) says what follows from them. A configuration that exists is
//! consistent: there is no way to make one that [`MemoryManager`](crate::MemoryManager) would refuse for its own sake.

use std::path::{Path, PathBuf};
use std::time::Duration;

use dd_core::{Bytes, Tier};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::io::EngineKind;

/// What the blocks of direct reads are multiples of.
const ALIGNMENT: u64 = Bytes::of(crate::io::ALIGNMENT).0;

macro_rules! options {
    ($($(#[$doc:meta])* $name:ident($given:ty): $type:ty = $default:expr;)*) => {
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        struct Options { $($name: $type,)* }

        impl Default for Options {
            fn default() -> Self {
                Self { $($name: $default,)* }
            }
        }

        impl MemoryConfig {
            $($(#[$doc])*
            #[must_use]
            pub fn $name(&self) -> &$type {
                &self.0.$name
            })*
        }

        impl MemoryConfigBuilder {
            $($(#[$doc])*
            #[must_use]
            pub fn $name(mut self, value: $given) -> Self {
                self.0.$name = value.into();
                self
            })*
        }
    };
}

/// How the memory manager is to behave. Read with the methods named like the options; made with
/// [`builder`](Self::builder), a preset, or serde.
///
/// ```
/// use dd_core::Bytes;
/// use dd_offload::MemoryConfig;
///
/// let config = MemoryConfig::builder().memory_limit(Bytes::gib(4)).prefetch_enabled(false).build()?;
/// assert_eq!(*config.memory_limit(), Some(Bytes::gib(4)));
/// assert!(MemoryConfig::builder().gpu_reload_threshold(0.9).build().is_err()); // above the offload threshold
/// # Ok::<(), dd_offload::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Options", into = "Options")]
pub struct MemoryConfig(Options);

/// Builds a [`MemoryConfig`]; options that are not set keep their defaults.
#[derive(Clone, Debug, Default)]
pub struct MemoryConfigBuilder(Options);

options! {
    /// The one budget: weights, staging, caches and activations together. Without it, what the memory provider
    /// calls available on the host, times the CPU offload threshold.
    memory_limit(impl Into<Option<Bytes>>): Option<Bytes> = None;
    /// A limit for the device tier inside the budget; none: the offload threshold times what the device has.
    device_limit(impl Into<Option<Bytes>>): Option<Bytes> = None;
    /// A limit for host memory inside the budget; none: the whole budget.
    host_limit(impl Into<Option<Bytes>>): Option<Bytes> = None;
    /// A limit for compressed weights in host memory inside the budget; none: a quarter of it.
    compressed_limit(impl Into<Option<Bytes>>): Option<Bytes> = None;
    /// Device usage (0..=1) above which unused modules are offloaded. Default 0.85.
    gpu_offload_threshold(f64): f64 = 0.85;
    /// Device usage above which everything unused is offloaded and nothing is read ahead. Default 0.95.
    gpu_emergency_threshold(f64): f64 = 0.95;
    /// Device usage below which reading ahead begins again. Default 0.70.
    gpu_reload_threshold(f64): f64 = 0.70;
    /// Host usage above which host copies go to compressed memory or disk. Default 0.90.
    cpu_offload_threshold(f64): f64 = 0.90;
    /// How often the thresholds are looked at. Default 100 ms.
    memory_check_interval(impl Into<CheckInterval>): CheckInterval = CheckInterval(Duration::from_millis(100));
    /// Whether weights may rest in host memory, plain or compressed, when they leave a device. Default true.
    enable_cpu_offload(bool): bool = true;
    /// Whether weights may rest on disk: unchanged ones in their own file, others in the spill store. Default true.
    enable_disk_offload(bool): bool = true;
    /// Whether what is spilled to disk, or kept as the compressed tier, is compressed with zstd. Default true.
    compress_disk_cache(bool): bool = true;
    /// Whether modules are offloaded as they are wrapped, so that loading never peaks. Default true.
    eager_offload_on_wrap(bool): bool = true;
    /// Whether one-dimensional parameters (biases, norm scales) are offloaded too. Default false: they stay.
    offload_1d_parameters(bool): bool = false;
    /// The most that the spill store may take on disk. Default 50 GB.
    max_disk_usage(Bytes): Bytes = Bytes(50_000_000_000);
    /// How many modules a threshold offloads at a time. Default 10.
    offload_batch_size(usize): usize = 10;
    /// Whether weights are read ahead of their use. Default true.
    prefetch_enabled(bool): bool = true;
    /// How many threads will use modules at the same time. Default 1; more also works, with waiting.
    concurrent_modules(usize): usize = 1;
    /// Where to spill; none: the user's cache folder or the system's temporary one.
    spill_directory(impl Into<Option<PathBuf>>): Option<PathBuf> = None;
    /// The zstd level of spilled weights, −7..=22. Default 1.
    compression_level(i32): i32 = 1;
    /// How files are read. Default: io_uring where the kernel has it, else threads.
    io_engine(EngineKind): EngineKind = EngineKind::Auto;
    /// Whether block size and depth are measured for a disk that was not measured before, once a model streams from
    /// it: a third of a second, remembered in the user's cache folder. Default true.
    calibrate_io(bool): bool = true;
    /// The bytes of one read; none: what calibration found for this disk, within a sixteenth of the budget.
    io_block(impl Into<Option<Bytes>>): Option<Bytes> = None;
    /// How many reads are in flight; none: as for the block.
    io_depth(impl Into<Option<usize>>): Option<usize> = None;
}

/// A [`Duration`] that is written as seconds: `0.1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct CheckInterval(pub Duration);

impl From<Duration> for CheckInterval {
    fn from(interval: Duration) -> Self {
        Self(interval)
    }
}

impl From<CheckInterval> for f64 {
    fn from(interval: CheckInterval) -> Self {
        interval.0.as_secs_f64()
    }
}

impl TryFrom<f64> for CheckInterval {
    type Error = Error;

    fn try_from(seconds: f64) -> Result<Self> {
        let interval = Duration::try_from_secs_f64(seconds);
        let reason = |error| invalid("memory_check_interval", format!("{seconds} seconds: {error}"));
        interval.map(Self).map_err(reason)
    }
}

impl MemoryConfig {
    /// A builder with the defaults.
    #[must_use]
    pub fn builder() -> MemoryConfigBuilder {
        MemoryConfigBuilder::default()
    }

    /// A builder that starts from this configuration.
    #[must_use]
    pub fn to_builder(&self) -> MemoryConfigBuilder {
        MemoryConfigBuilder(self.0.clone())
    }

    /// For a machine with little memory: offloads early and in large batches, biases too, and compresses well.
    #[must_use]
    pub fn for_low_memory() -> Self {
        Self(Options {
            gpu_offload_threshold: 0.70,
            gpu_emergency_threshold: 0.85,
            gpu_reload_threshold: 0.50,
            cpu_offload_threshold: 0.75,
            offload_1d_parameters: true,
            offload_batch_size: 20,
            compression_level: 3,
            ..Options::default()
        })
    }

    /// For low latency: fills the device, looks often, offloads little at a time, and spills uncompressed.
    #[must_use]
    pub fn for_high_performance() -> Self {
        Self(Options {
            gpu_offload_threshold: 0.92,
            gpu_emergency_threshold: 0.98,
            gpu_reload_threshold: 0.85,
            cpu_offload_threshold: 0.95,
            memory_check_interval: CheckInterval(Duration::from_millis(50)),
            compress_disk_cache: false,
            eager_offload_on_wrap: false,
            offload_batch_size: 5,
            ..Options::default()
        })
    }

    /// The limit that was set for a tier of memory, if any.
    #[must_use]
    pub fn tier_limit(&self, tier: Tier) -> Option<Bytes> {
        match tier {
            Tier::Device(_) => self.0.device_limit,
            Tier::PinnedHost | Tier::Host => self.0.host_limit,
            Tier::Compressed => self.0.compressed_limit,
            Tier::Disk | Tier::Remote => None,
        }
    }
}

impl MemoryConfigBuilder {
    /// Checks the options and makes the configuration.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] that names the option, its value and what would do.
    pub fn build(self) -> Result<MemoryConfig> {
        check(&self.0)?;
        Ok(MemoryConfig(self.0))
    }
}

impl TryFrom<Options> for MemoryConfig {
    type Error = Error;

    fn try_from(options: Options) -> Result<Self> {
        MemoryConfigBuilder(options).build()
    }
}

impl From<MemoryConfig> for Options {
    fn from(config: MemoryConfig) -> Self {
        config.0
    }
}

fn check(options: &Options) -> Result<()> {
    let thresholds = [
        ("gpu_offload_threshold", options.gpu_offload_threshold),
        ("gpu_emergency_threshold", options.gpu_emergency_threshold),
        ("gpu_reload_threshold", options.gpu_reload_threshold),
        ("cpu_offload_threshold", options.cpu_offload_threshold),
    ];
    for (option, value) in thresholds {
        if !(value > 0.0 && value <= 1.0) {
            return Err(invalid(
                option,
                format!("{value} is not a share of the memory; give more than 0 and at most 1"),
            ));
        }
    }
    ordered(thresholds, "gpu_reload_threshold", "gpu_offload_threshold")?;
    ordered(thresholds, "gpu_offload_threshold", "gpu_emergency_threshold")?;
    let limits = [
        ("memory_limit", options.memory_limit),
        ("device_limit", options.device_limit),
        ("host_limit", options.host_limit),
        ("io_block", options.io_block),
    ];
    for (option, value) in limits {
        if value == Some(Bytes::ZERO) {
            return Err(invalid(
                option,
                "0 B holds nothing; leave it out for no limit of its own".to_owned(),
            ));
        }
    }
    if let Some(block) = options.io_block.filter(|block| !block.0.is_multiple_of(ALIGNMENT)) {
        let reason = format!("{} B is no multiple of {ALIGNMENT} B, as direct reads must be", block.0);
        return Err(invalid("io_block", reason));
    }
    let counts = [
        ("offload_batch_size", options.offload_batch_size),
        ("concurrent_modules", options.concurrent_modules),
        ("io_depth", options.io_depth.unwrap_or(1)),
    ];
    for (option, value) in counts {
        if value == 0 {
            return Err(invalid(option, "0 would never do anything; give at least 1".to_owned()));
        }
    }
    if options.memory_check_interval.0.is_zero() {
        return Err(invalid("memory_check_interval", "0 would never rest; give for example 0.1".to_owned()));
    }
    if !(-7..=22).contains(&options.compression_level) {
        let reason = format!("{} is no zstd level; give -7..=22", options.compression_level);
        return Err(invalid("compression_level", reason));
    }
    check_directory(options.spill_directory.as_deref())
}

fn ordered(thresholds: [(&'static str, f64); 4], low: &'static str, high: &'static str) -> Result<()> {
    let value = |name| thresholds.iter().find(|(option, _)| *option == name).map_or(0.0, |(_, value)| *value);
    if value(low) <= value(high) {
        return Ok(());
    }
    Err(invalid(
        low,
        format!("{} is above {high}, which is {}; they must not cross", value(low), value(high)),
    ))
}

fn check_directory(directory: Option<&Path>) -> Result<()> {
    match directory {
        Some(path) if path.as_os_str().is_empty() => {
            Err(invalid("spill_directory", "an empty path; leave it out for the default".to_owned()))
        }
        _ => Ok(()),
    }
}

fn invalid(option: &'static str, reason: String) -> Error {
    Error::InvalidConfig { option, reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_and_defaults_are_valid() {
        for config in
            [MemoryConfig::default(), MemoryConfig::for_low_memory(), MemoryConfig::for_high_performance()]
        {
            assert_eq!(config.to_builder().build().unwrap(), config);
            let json = serde_json::to_string(&config).unwrap();
            assert_eq!(serde_json::from_str::<MemoryConfig>(&json).unwrap(), config);
        }
    }

    #[test]
    fn refuses_contradictions_by_name() {
        let rows = [
            ("gpu_offload_threshold", r#"{"gpu_offload_threshold": 0.0}"#),
            ("gpu_offload_threshold", r#"{"gpu_offload_threshold": 0.97}"#),
            ("gpu_emergency_threshold", r#"{"gpu_emergency_threshold": 1.5}"#),
            ("gpu_reload_threshold", r#"{"gpu_reload_threshold": 0.9}"#),
            ("cpu_offload_threshold", r#"{"cpu_offload_threshold": -1}"#),
            ("memory_limit", r#"{"memory_limit": 0}"#),
            ("memory_limit", r#"{"memory_limit": "12 parsecs"}"#),
            ("offload_batch_size", r#"{"offload_batch_size": 0}"#),
            ("memory_check_interval", r#"{"memory_check_interval": 0}"#),
            ("memory_check_interval", r#"{"memory_check_interval": -1}"#),
            ("compression_level", r#"{"compression_level": 40}"#),
            ("spill_directory", r#"{"spill_directory": ""}"#),
            ("io_depth", r#"{"io_depth": 0}"#),
            ("io_block", r#"{"io_block": 5000}"#),
            ("gpu_threshold", r#"{"gpu_threshold": 0.5}"#),
        ];
        for (option, json) in rows {
            let error = serde_json::from_str::<MemoryConfig>(json).unwrap_err().to_string();
            let named =
                error.contains(option) || option == "memory_limit" && error.contains("number of bytes");
            assert!(named, "{json}: {error}");
        }
    }

    #[test]
    fn reads_sizes_as_people_write_them() {
        let config: MemoryConfig =
            serde_json::from_str(r#"{"memory_limit": "32MiB", "memory_check_interval": 0.25}"#).unwrap();
        assert_eq!(*config.memory_limit(), Some(Bytes::mib(32)));
        assert_eq!(config.memory_check_interval().0, Duration::from_millis(250));
    }
}
