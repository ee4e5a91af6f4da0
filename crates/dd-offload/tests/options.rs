//! Options do what they say: one row each, for those that no other test is about.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]

use std::time::Duration;

use dd_core::{Backend, Bytes, DType, HostBackend, TensorDesc, Tier};
use dd_offload::config::MemoryConfigBuilder;
use dd_offload::manager::{MemorySummary, ModuleHandle, ModuleSpec, Parameter, Source};
use dd_offload::{MemoryConfig, MemoryManager};

const LAYERS: u8 = 6;
const LEN: usize = 64 << 10;
const DEVICE: Tier = Tier::Device(0);

type Managed = (tempfile::TempDir, HostBackend, MemoryManager<HostBackend>, Vec<ModuleHandle<HostBackend>>);

/// Layers with a weight (all bytes the layer's number) and a bias, on a device for three weights and with a host.
fn managed(options: fn(MemoryConfigBuilder) -> MemoryConfigBuilder) -> Managed {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let backend = HostBackend::with_tiers([(DEVICE, Bytes::of(LEN * 4)), (Tier::Host, Bytes::mib(64))]);
    let config = MemoryConfig::builder()
        .memory_limit(Bytes::mib(16))
        .io_block(Bytes::kib(4))
        .io_depth(1_usize)
        .memory_check_interval(Duration::from_secs(3600))
        .spill_directory(dir.path().to_owned());
    let manager = MemoryManager::new(backend.clone(), options(config).build().unwrap()).unwrap();
    let wrap = |n: u8| {
        let parameter = |name: &str, shape: &[usize]| {
            let desc = TensorDesc::new(shape, DType::U8).unwrap();
            let bytes = vec![n; desc.len_in_memory().unwrap()];
            let tensor = backend.upload(&desc, &bytes, DEVICE);
            let tensor = tensor.or_else(|_| backend.upload(&desc, &bytes, Tier::Host)).unwrap();
            Parameter { name: name.to_owned(), source: Source::Tensor(tensor) }
        };
        let parameters = vec![parameter("weight", &[256, LEN / 256]), parameter("bias", &[256])];
        let spec = ModuleSpec { name: n.to_string(), kind: "Linear".to_owned(), parameters, pinned: false };
        manager.wrap_module(spec).unwrap()
    };
    let modules = (0..LAYERS).map(wrap).collect();
    (dir, backend, manager, modules)
}

fn in_tier(summary: &MemorySummary, tier: Tier) -> Bytes {
    summary.tiers.iter().filter(|row| row.tier == tier).map(|row| row.used).sum()
}

type Row = (
    &'static str,
    fn(MemoryConfigBuilder) -> MemoryConfigBuilder,
    fn(&MemorySummary, &MemorySummary) -> bool,
);

#[test]
fn each_option_does_what_it_says() {
    let weights = Bytes::of(LEN * usize::from(LAYERS));
    assert_eq!(weights, Bytes::kib(384));
    // What is seen after wrapping, and after two passes.
    let rows: [Row; 9] = [
        ("eager_offload_on_wrap", |c| c, |wrapped, _| in_tier(wrapped, DEVICE) < Bytes::kib(2)),
        (
            "eager_offload_on_wrap off",
            |c| c.eager_offload_on_wrap(false),
            |wrapped, _| in_tier(wrapped, DEVICE) >= Bytes::of(LEN),
        ),
        ("offload_1d_parameters off", |c| c, |wrapped, _| in_tier(wrapped, DEVICE) == Bytes(256 * 6)),
        (
            "offload_1d_parameters",
            |c| c.offload_1d_parameters(true),
            |wrapped, _| in_tier(wrapped, DEVICE) == Bytes(0),
        ),
        (
            "enable_cpu_offload",
            |c| c,
            |_, run| in_tier(run, Tier::Disk) == Bytes(0) && in_tier(run, Tier::Host) > Bytes(0),
        ),
        (
            "enable_cpu_offload off",
            |c| c.enable_cpu_offload(false),
            |wrapped, run| {
                in_tier(run, Tier::Host) + in_tier(run, Tier::Compressed) == Bytes(0)
                    && in_tier(wrapped, Tier::Disk) > Bytes(0)
            },
        ),
        (
            "enable_disk_offload off",
            |c| c.enable_disk_offload(false),
            |_, run| in_tier(run, Tier::Disk) == Bytes(0),
        ),
        (
            "compress_disk_cache off",
            |c| c.enable_cpu_offload(false).compress_disk_cache(false),
            |wrapped, _| in_tier(wrapped, Tier::Disk) > Bytes::kib(384),
        ),
        (
            "compress_disk_cache",
            |c| c.enable_cpu_offload(false),
            |wrapped, _| in_tier(wrapped, Tier::Disk) < Bytes::kib(8),
        ),
    ];
    for (option, options, holds) in rows {
        let (_dir, _backend, manager, modules) = managed(options);
        let wrapped = manager.memory_summary();
        for n in (0..2).flat_map(|_| 0..LAYERS) {
            let guard = modules[usize::from(n)].acquire().unwrap();
            assert!(guard.tensor("weight").unwrap().bytes().iter().all(|byte| *byte == n), "{option}");
        }
        let run = manager.memory_summary();
        assert!(holds(&wrapped, &run), "{option}:\n{wrapped}\n{run}");
    }
}

#[test]
fn without_prefetch_nothing_is_read_that_nobody_asked_for() {
    for prefetch in [false, true] {
        let (_dir, _backend, manager, modules) =
            managed(if prefetch { |c| c } else { |c| c.prefetch_enabled(false) });
        for n in (0..3).flat_map(|_| 0..usize::from(LAYERS)) {
            drop(modules[n].acquire().unwrap());
        }
        assert_eq!(manager.plan().unwrap().lookahead > 0, prefetch);
        manager.offload_all().unwrap();
        let before = manager.memory_summary().loads;
        drop(modules[0].acquire().unwrap());
        if !prefetch {
            // Two parts at most: the loader has nothing else to do, so nothing can come later.
            assert!(manager.memory_summary().loads - before <= 2);
        }
    }
}
