//! Random models, budgets, orders, threads and disturbances: the bytes are always right, no limit is ever exceeded,
//! nobody waits for ever, and at the end everything is given back.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_possible_truncation,
    missing_docs,
    reason = "tests"
)]

#[path = "support/watchdog.rs"]
mod watchdog;

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dd_core::{
    Backend, Budget, Bytes, DType, Holder, HostBackend, HostTensor, Reservation, TensorDesc, Tier,
};
use dd_offload::checkpoint::Checkpoint;
use dd_offload::manager::{Cleanup, ModuleGuard, ModuleHandle, ModuleSpec, Parameter, Source};
use dd_offload::{Error, MemoryConfig, MemoryManager};
use proptest::prelude::*;
use safetensors::tensor::{Dtype, TensorView};

/// Rows (none mean one dimension), columns, and whether it is in the file.
type PartSpec = (Option<usize>, usize, bool);

/// Everything that a case is made of.
#[derive(Clone, Debug)]
struct Case {
    /// The parts of each unit.
    units: Vec<Vec<PartSpec>>,
    /// From the least budget (0) to all (100).
    budget: u64,
    threads: u64,
    order: Order,
    /// Nested uses, other users, leaked tensors, updates.
    nested: bool,
    others: bool,
    updates: bool,
    device: bool,
    prefetch: bool,
    cpu: bool,
    disk: bool,
    one_d: bool,
    eager: bool,
    compress: bool,
    concurrent: usize,
    seed: u64,
}

#[derive(Clone, Copy, Debug)]
enum Order {
    Cyclic,
    Palindrome,
    Random,
    Changing,
}

fn case() -> impl Strategy<Value = Case> {
    let part = (prop::option::of(0_usize..48), 0_usize..96, any::<bool>());
    let units = prop::collection::vec(prop::collection::vec(part, 0..4), 1..8);
    let orders = prop::sample::select(vec![Order::Cyclic, Order::Palindrome, Order::Random, Order::Changing]);
    let disturbed = (any::<bool>(), any::<bool>(), any::<bool>());
    let options = (any::<[bool; 3]>(), any::<[bool; 4]>(), 1_usize..3);
    let size = (prop::sample::select(vec![0_u64, 5, 30, 60, 100]), 1_u64..5, any::<u64>());
    (units, size, orders, disturbed, options).prop_map(|(units, size, order, disturbed, options)| {
        let ((budget, threads, seed), (nested, others, updates)) = (size, disturbed);
        let ([device, prefetch, cpu], [disk, one_d, eager, compress], concurrent) = options;
        Case {
            units,
            budget,
            threads,
            order,
            nested,
            others,
            updates,
            device,
            prefetch,
            cpu,
            disk,
            one_d,
            eager,
            compress,
            concurrent,
            seed,
        }
    })
}

struct Random(u64);

impl Random {
    fn next(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % below.max(1)
    }
}

/// The bytes of a part in one of its versions.
fn values(unit: usize, part: usize, version: u64, len: usize) -> Vec<u8> {
    let salt = unit * 7 + part * 3 + version as usize * 101;
    (0..len).map(|i| (((i * 2_654_435_761) >> 5) + salt) as u8).collect()
}

/// What may be seen of a part: versions from the last that was set to the last that was begun, but those that failed.
#[derive(Default)]
struct Versions {
    set: AtomicU64,
    begun: AtomicU64,
    failed: Mutex<HashSet<u64>>,
    one_at_a_time: Mutex<()>,
}

struct World {
    case: Case,
    backend: HostBackend,
    near: Tier,
    budget: Budget,
    manager: MemoryManager<HostBackend>,
    modules: Vec<ModuleHandle<HostBackend>>,
    versions: Vec<Vec<Versions>>,
}

fn desc((rows, columns, _): PartSpec) -> TensorDesc {
    let shape = rows.map_or_else(|| vec![columns], |rows| vec![rows, columns]);
    TensorDesc::new(shape, DType::F32).unwrap()
}

fn len(part: PartSpec) -> usize {
    desc(part).bytes().0 as usize
}

fn checkpoint(case: &Case, dir: &std::path::Path) -> Arc<Checkpoint> {
    let mut tensors = Vec::new();
    for (unit, parts) in case.units.iter().enumerate() {
        for (number, part) in parts.iter().enumerate().filter(|(_, part)| part.2) {
            tensors.push((format!("{unit}.{number}"), desc(*part), values(unit, number, 0, len(*part))));
        }
    }
    let views = tensors.iter().map(|(name, desc, bytes)| {
        (name.as_str(), TensorView::new(Dtype::F32, desc.shape().to_vec(), bytes).unwrap())
    });
    let path = dir.join("model.safetensors");
    safetensors::serialize_to_file(views, None, &path).unwrap();
    Arc::new(Checkpoint::open(path).unwrap())
}

/// Near where there is room, else in host memory.
fn upload(backend: &HostBackend, desc: &TensorDesc, bytes: &[u8], near: Tier) -> HostTensor {
    let placed = backend.upload(desc, bytes, near);
    placed.or_else(|_| backend.upload(desc, bytes, Tier::Host)).unwrap()
}

const DEVICE: Tier = Tier::Device(0);

fn world(case: &Case, dir: &std::path::Path, budget: Option<Bytes>) -> World {
    let checkpoint = checkpoint(case, dir);
    let near = if case.device { DEVICE } else { Tier::Host };
    let roomy = Bytes::gib(1);
    let tiers = [(DEVICE, budget.unwrap_or(roomy)), (Tier::Host, Bytes::MAX)];
    let backend = match case.device {
        true => HostBackend::with_tiers(tiers),
        false => HostBackend::default(),
    };
    let mut config = MemoryConfig::builder()
        .io_block(Bytes::kib(4))
        .io_depth(2_usize)
        .prefetch_enabled(case.prefetch)
        .enable_cpu_offload(case.cpu)
        .enable_disk_offload(case.disk)
        .offload_1d_parameters(case.one_d)
        .eager_offload_on_wrap(case.eager)
        .compress_disk_cache(case.compress)
        .compressed_limit(if case.disk { Bytes::kib(16) } else { Bytes::mib(4) })
        .concurrent_modules(case.concurrent)
        .memory_check_interval(Duration::from_millis(3))
        .offload_batch_size(2_usize)
        .spill_directory(dir.to_owned());
    if case.device {
        config = config.gpu_offload_threshold(1.0).gpu_emergency_threshold(1.0).gpu_reload_threshold(0.9);
    }
    // What is not weights: the scratch, and the compressed weights.
    let budget = Budget::new("case", budget.map_or(roomy, |bytes| bytes + Bytes::mib(8)));
    let manager = MemoryManager::with_budget(backend.clone(), config.build().unwrap(), &budget).unwrap();
    let source = |unit: usize, number: usize, part: PartSpec| match part.2 {
        true => Source::File { checkpoint: Arc::clone(&checkpoint), tensor: format!("{unit}.{number}") },
        false => {
            let bytes = values(unit, number, 0, len(part));
            Source::Tensor(upload(&backend, &desc(part), &bytes, near))
        }
    };
    let spec = |(unit, parts): (usize, &Vec<PartSpec>)| ModuleSpec {
        name: unit.to_string(),
        kind: "Module".to_owned(),
        parameters: parts
            .iter()
            .enumerate()
            .map(|(number, part)| Parameter { name: number.to_string(), source: source(unit, number, *part) })
            .collect(),
        pinned: false,
    };
    let wrap = |unit| manager.wrap_module(spec(unit)).unwrap();
    let modules = case.units.iter().enumerate().map(wrap).collect();
    let versions = case.units.iter().map(|parts| parts.iter().map(|_| Versions::default()).collect());
    World { backend, near, budget, manager, modules, versions: versions.collect(), case: case.clone() }
}

impl World {
    /// Compares what a guard shows with the versions that may be seen.
    fn check(&self, unit: usize, lowest: &[u64], guard: &ModuleGuard<HostBackend>) {
        let parts = &self.case.units[unit];
        assert_eq!(guard.names().count(), parts.len(), "a guard shows all of its module");
        for (number, part) in parts.iter().enumerate() {
            let shown = guard.tensor(&number.to_string()).unwrap();
            let versions = &self.versions[unit][number];
            let newest = versions.begun.load(Ordering::SeqCst);
            let seen = (lowest[number]..=newest)
                .find(|version| shown.bytes() == values(unit, number, *version, len(*part)));
            let seen = seen
                .unwrap_or_else(|| panic!("{unit}/{number}: no version of {}..={newest}", lowest[number]));
            assert!(len(*part) == 0 || !versions.failed.lock().unwrap().contains(&seen), "{unit}/{number}");
        }
    }

    fn lowest(&self, unit: usize) -> Vec<u64> {
        self.versions[unit].iter().map(|versions| versions.set.load(Ordering::SeqCst)).collect()
    }

    /// Uses a unit. An error must be one of memory, and there must be somebody who takes it.
    fn acquire(&self, unit: usize, held: usize) -> Option<ModuleGuard<HostBackend>> {
        let lowest = self.lowest(unit);
        match self.modules[unit].acquire() {
            Ok(guard) => {
                self.check(unit, &lowest, &guard);
                Some(guard)
            }
            Err(error) => {
                // An update's tensor is on the device beside what is managed.
                let excused =
                    held > 0 || self.case.others || self.case.nested || self.case.updates && self.case.device;
                assert!(
                    error.is_out_of_memory() && excused,
                    "unit {unit} with {held} held: {error}\n{}",
                    self.manager.memory_summary()
                );
                None
            }
        }
    }

    fn update(&self, unit: usize, number: usize) {
        let versions = &self.versions[unit][number];
        let _one = versions.one_at_a_time.lock().unwrap();
        let version = versions.begun.load(Ordering::SeqCst) + 1;
        let part = self.case.units[unit][number];
        let bytes = values(unit, number, version, len(part));
        let tensor = upload(&self.backend, &desc(part), &bytes, self.near);
        versions.begun.store(version, Ordering::SeqCst);
        match self.modules[unit].update(&number.to_string(), tensor) {
            Ok(()) => versions.set.store(version, Ordering::SeqCst),
            Err(error) => {
                assert!(
                    error.is_out_of_memory()
                        || matches!(error, Error::Core(dd_core::Error::InvalidArgument { .. })),
                    "{error}"
                );
                versions.failed.lock().unwrap().insert(version);
            }
        }
    }

    fn next_unit(&self, step: usize, random: &mut Random) -> usize {
        let count = self.modules.len();
        match self.case.order {
            Order::Cyclic => step % count,
            Order::Palindrome if step / count % 2 == 1 => count - 1 - step % count,
            Order::Palindrome => step % count,
            Order::Random => random.next(count as u64) as usize,
            Order::Changing => (step * (1 + step / 25)) % count,
        }
    }

    fn run(&self, thread: u64) {
        let mut random = Random(self.case.seed ^ thread.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut others: Vec<Reservation> = Vec::new();
        let mut leaked: Vec<HostTensor> = Vec::new();
        let all: u64 = self.modules.iter().map(|module| module.bytes().0).sum();
        for step in 0..50 {
            let unit = self.next_unit(step, &mut random);
            let guard = self.acquire(unit, 0);
            if self.case.nested && random.next(4) == 0 {
                let inner = self.acquire(random.next(self.modules.len() as u64) as usize, 1);
                if let (Some(guard), true) = (&inner, random.next(3) == 0) {
                    leaked.extend(guard.names().next().and_then(|name| guard.tensor(name)).cloned());
                }
            }
            drop(guard);
            match random.next(24) {
                0 => drop(self.manager.offload_all().map_err(excuse)),
                1 => drop(self.modules[unit].offload_all().map_err(excuse)),
                2 if self.case.nested => drop(self.manager.load_all().map_err(excuse)),
                3..=6 if self.case.updates && !self.case.units[unit].is_empty() => {
                    self.update(unit, random.next(self.case.units[unit].len() as u64) as usize);
                }
                7 | 8 if self.case.others => {
                    others.extend(self.budget.reserve(Bytes(random.next(all)), &Holder::new("other")));
                }
                9..=12 => others.clear(),
                13..=16 => leaked.clear(),
                17 => drop(self.manager.memory_summary().to_string()),
                _ => {}
            }
        }
    }
}

fn excuse(error: Error) {
    assert!(error.is_out_of_memory(), "{error}");
}

fn check(case: &Case) {
    let _watchdog = watchdog::watch(&format!("{case:?}"));
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let trial = world(case, dir.path(), None);
    let least = trial.manager.plan().unwrap().least_budget;
    let all: Bytes = trial.modules.iter().map(ModuleHandle::bytes).sum();
    drop(trial);
    let between = all.saturating_sub(least).scaled(case.budget as f64 / 100.0);
    let world = world(case, dir.path(), Some(least + between));
    std::thread::scope(|scope| {
        for thread in 0..case.threads {
            let world = &world;
            scope.spawn(move || world.run(thread));
        }
    });
    world.manager.offload_all().map_err(excuse).ok();
    for (unit, module) in world.modules.iter().enumerate() {
        let lowest = world.lowest(unit);
        let guard = module.acquire().unwrap_or_else(|error| {
            panic!("unit {unit} at the end: {error}\n{}", world.manager.memory_summary())
        });
        world.check(unit, &lowest, &guard);
    }
    let usage = world.budget.usage();
    assert!(usage.peak <= usage.limit, "{usage:?}");
    if let Some(capacity) = world.backend.capacity(DEVICE) {
        assert!(capacity.usage().peak <= capacity.limit());
    }
    let World { backend, budget, manager, modules, .. } = world;
    if case.seed.is_multiple_of(2) {
        manager.cleanup(Cleanup::Freed).unwrap();
        assert_eq!(budget.usage().used, Bytes::ZERO, "after a cleanup: {:?}", budget.usage());
        assert!(matches!(modules[0].acquire(), Err(Error::Stopped { .. })));
    }
    drop((manager, modules));
    assert_eq!(budget.usage().used, Bytes::ZERO, "after the drop: {:?}", budget.usage());
    for tier in backend.tiers() {
        assert_eq!(backend.capacity(*tier).unwrap().usage().used, Bytes::ZERO, "{tier}");
    }
    let left = std::fs::read_dir(dir.path()).unwrap().flatten().filter(|entry| entry.path().is_dir());
    let left: usize = left.map(|base| std::fs::read_dir(base.path()).unwrap().count()).sum();
    assert_eq!(left, 0, "spilled files are left behind");
}

/// Few cases for every day; `PROPTEST_CASES` asks for more.
fn config() -> ProptestConfig {
    let asked = std::env::var_os("PROPTEST_CASES").is_some();
    let default =
        ProptestConfig { failure_persistence: None, max_shrink_iters: 40, ..ProptestConfig::default() };
    if asked { default } else { ProptestConfig { cases: 100, ..default } }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn whatever_happens_the_bytes_are_right_and_no_limit_is_exceeded(case in case()) {
        check(&case);
    }
}
