//! The manager with the reference backend: the same bytes as in the file at every budget, from any number of threads,
//! in any order, and never more memory than the budget.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "tests"
)]

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use dd_core::observer::RecordingObserver;
use dd_core::{Backend, Budget, Bytes, DType, Holder, HostBackend, TensorDesc, Tier};
use dd_offload::checkpoint::Checkpoint;
use dd_offload::manager::{
    Cleanup, ModuleHandle, ModuleSpec, Parameter, Selection, Source, auto_manage_model, modules_of,
};
use dd_offload::{Error, MemoryConfig, MemoryManager};
use safetensors::tensor::{Dtype, TensorView};

const LAYERS: usize = 12;
const WIDTH: usize = 160; // A weight is 100 KiB.

/// `layers.N.{up,down}.{weight,bias}`, every byte a function of its place.
fn write_model(path: &Path) -> HashMap<String, Vec<u8>> {
    let mut tensors = HashMap::new();
    for layer in 0..LAYERS {
        for (part, name) in ["up", "down"].iter().enumerate() {
            let bytes = |n: usize, salt: usize| {
                (0..n).map(|i| ((i * 31 + layer * 7 + part * 3 + salt) % 251) as u8).collect::<Vec<_>>()
            };
            tensors.insert(format!("layers.{layer}.{name}.weight"), bytes(WIDTH * WIDTH * 4, 1));
            tensors.insert(format!("layers.{layer}.{name}.bias"), bytes(WIDTH * 4, 2));
        }
    }
    let view = |name: &str, bytes: &'_ [u8]| {
        let shape = if name.ends_with("bias") { vec![WIDTH] } else { vec![WIDTH, WIDTH] };
        TensorView::new(Dtype::F32, shape, bytes)
            .map(|view| (name.to_owned(), view.data().to_vec(), view.shape().to_vec()))
            .unwrap()
    };
    let owned: Vec<_> = tensors.iter().map(|(name, bytes)| view(name, bytes)).collect();
    let views = owned.iter().map(|(name, bytes, shape)| {
        (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap())
    });
    safetensors::serialize_to_file(views, None, path).unwrap();
    tensors
}

struct Model {
    _dir: tempfile::TempDir,
    path: std::path::PathBuf,
    expected: HashMap<String, Vec<u8>>,
}

fn model() -> Model {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().join("model.safetensors");
    let expected = write_model(&path);
    Model { _dir: dir, path, expected }
}

impl Model {
    fn checkpoint(&self) -> Arc<Checkpoint> {
        Arc::new(Checkpoint::open(&self.path).unwrap())
    }

    fn weights(&self) -> Bytes {
        self.expected.values().map(|bytes| Bytes::of(bytes.len())).sum()
    }

    fn manage(&self, config: MemoryConfig) -> (MemoryManager<HostBackend>, Vec<ModuleHandle<HostBackend>>) {
        auto_manage_model(HostBackend::default(), &self.checkpoint(), config).unwrap()
    }

    /// Uses one module and compares every parameter with the file.
    fn check(&self, module: &ModuleHandle<HostBackend>) {
        let guard = module.acquire().unwrap();
        let names: Vec<String> = guard.names().map(str::to_owned).collect();
        assert!(!names.is_empty());
        for name in names {
            let full = format!("{}.{name}", module.name());
            assert!(
                guard.tensor(&name).unwrap().bytes() == self.expected[&full],
                "{full} is not what the file holds"
            );
        }
    }
}

fn config(limit: Bytes) -> MemoryConfig {
    MemoryConfig::builder().memory_limit(limit).io_block(Bytes::kib(16)).io_depth(2usize).build().unwrap()
}

fn least(model: &Model) -> Bytes {
    let (manager, _modules) = model.manage(config(Bytes::gib(1)));
    manager.plan().unwrap().least_budget
}

#[test]
fn same_bytes_at_every_budget() {
    let model = model();
    let (least, all) = (least(&model), model.weights());
    assert!(least < Bytes(all.0 / 4), "the model should be much larger than the least budget, {least}");
    for budget in [least, Bytes(least.0 + 50_000), Bytes(all.0 / 3), Bytes(all.0 / 2), all, Bytes(all.0 * 2)]
    {
        let (manager, modules) = model.manage(config(budget));
        for _ in 0..4 {
            modules.iter().for_each(|module| model.check(module));
        }
        let (usage, summary) = (manager.budget().usage(), manager.memory_summary());
        assert!(usage.peak <= budget, "{budget}: {usage:?}");
        if budget > all {
            assert!(summary.read <= all, "everything fits, so everything is read once: {}", summary.read);
        }
    }
}

#[test]
fn a_pass_reads_what_the_plan_says() {
    let model = model();
    let (manager, modules) = model.manage(config(Bytes(model.weights().0 / 2)));
    for _ in 0..3 {
        modules.iter().for_each(|module| model.check(module));
    }
    let plan = manager.plan().unwrap();
    let before = manager.memory_summary().read;
    for _ in 0..10 {
        modules.iter().for_each(|module| model.check(module));
    }
    let per_pass = manager.memory_summary().read.saturating_sub(before).0 / 10;
    let slack = plan.staging.0 / 10; // Reading ahead into the next pass.
    assert!(
        plan.streamed_bytes > Bytes::ZERO && per_pass <= plan.streamed_bytes.0 + slack,
        "{per_pass} read per pass, planned {}",
        plan.streamed_bytes
    );
}

#[test]
fn any_order_is_correct() {
    let model = model();
    let (manager, modules) = model.manage(config(Bytes(model.weights().0 / 3)));
    let mut state = 1u64;
    for step in 0..400 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let index = if step % 50 < 25 { (state >> 33) as usize % LAYERS } else { (step * 5) % LAYERS };
        model.check(&modules[index]);
    }
    for _ in 0..4 {
        modules.iter().chain(modules.iter().rev()).for_each(|module| model.check(module));
    }
    assert!(manager.budget().usage().peak <= Bytes(model.weights().0 / 3));
}

#[test]
fn four_threads_share_one_model() {
    let model = model();
    for budget in [Bytes(least(&model).0 * 2), Bytes(model.weights().0 / 2)] {
        let (manager, modules) = model.manage(config(budget));
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (model, modules) = (&model, &modules);
                scope.spawn(move || {
                    for pass in 0..6 {
                        for index in 0..LAYERS {
                            model.check(&modules[(index + thread * pass) % LAYERS]);
                        }
                    }
                });
            }
        });
        assert!(manager.budget().usage().peak <= budget);
    }
}

#[test]
fn below_the_least_budget_nothing_is_read() {
    let model = model();
    let least = least(&model);
    let (manager, modules) = model.manage(config(Bytes(least.0 - 1)));
    match modules[0].acquire() {
        Err(Error::BudgetTooSmall { least: named, .. }) => assert_eq!(named, least),
        other => panic!("{other:?}"),
    }
    assert_eq!(manager.memory_summary().read, Bytes::ZERO);
}

#[test]
fn a_circle_of_waiting_threads_is_an_error_not_a_deadlock() {
    let model = model();
    let (_manager, modules) = model.manage(config(least(&model)));
    let first = modules[0].acquire().unwrap();
    let error = modules[1].acquire().unwrap_err();
    assert!(matches!(error, Error::AllInUse { .. }), "{error}");
    drop(first);
    model.check(&modules[1]);
    model.check(&modules[0]);
}

#[test]
fn a_tensor_that_outlives_its_guard_keeps_its_values_and_its_bytes_accounted() {
    let model = model();
    let (manager, modules) = model.manage(config(Bytes(model.weights().0 / 3)));
    let leaked = modules[0].acquire().unwrap().tensor("up.weight").unwrap().clone();
    for _ in 0..3 {
        modules.iter().for_each(|module| model.check(module));
    }
    assert!(leaked.bytes() == model.expected["layers.0.up.weight"]);
    drop(leaked);
    modules.iter().for_each(|module| model.check(module));
    assert!(manager.budget().usage().peak <= manager.budget().limit());
}

#[test]
fn weights_in_no_file_are_spilled_and_come_back() {
    let backend = HostBackend::default();
    let desc = TensorDesc::new([64, 1024], DType::F32).unwrap();
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    for (compress, eager) in [(true, true), (true, false), (false, true), (false, false)] {
        let config = MemoryConfig::builder()
            .memory_limit(Bytes::mib(5))
            .io_block(Bytes::kib(16))
            .compress_disk_cache(compress)
            .eager_offload_on_wrap(eager)
            .spill_directory(dir.path().to_owned())
            .build()
            .unwrap();
        let manager = MemoryManager::new(backend.clone(), config).unwrap();
        let values = |n: usize| {
            (0..desc.bytes().0 as usize)
                .map(|i| ((i.wrapping_mul(2_654_435_761) >> 7) + n * 13) as u8)
                .collect::<Vec<_>>()
        };
        let wrap = |n: usize| {
            let tensor = backend.upload(&desc, &values(n), Tier::Host).unwrap();
            let parameters = vec![Parameter { name: "weight".into(), source: Source::Tensor(tensor) }];
            manager
                .wrap_module(ModuleSpec {
                    name: format!("m{n}"),
                    kind: "Linear".into(),
                    parameters,
                    pinned: false,
                })
                .unwrap()
        };
        let modules: Vec<_> = (0..40).map(wrap).collect(); // 10 MiB
        for _ in 0..3 {
            for (n, module) in modules.iter().enumerate() {
                assert!(module.acquire().unwrap().tensor("weight").unwrap().bytes() == values(n), "{n}");
            }
        }
        modules[3].update("weight", backend.upload(&desc, &values(77), Tier::Host).unwrap()).unwrap();
        for (n, module) in modules.iter().enumerate() {
            let expected = if n == 3 { values(77) } else { values(n) };
            assert!(module.acquire().unwrap().tensor("weight").unwrap().bytes() == expected, "{n}");
        }
        let usage = manager.budget().usage();
        assert!(usage.peak <= Bytes::mib(5), "{usage:?}");
        manager.cleanup(Cleanup::Freed).unwrap();
        assert_eq!(
            manager
                .budget()
                .usage()
                .holders
                .iter()
                .filter(|h| h.name == "weights")
                .map(|h| h.used)
                .sum::<Bytes>(),
            Bytes::ZERO
        );
    }
}

#[test]
fn a_simulated_device_keeps_to_its_capacity() {
    let model = model();
    let (device, all) = (Tier::Device(0), model.weights());
    for host in [Bytes::mib(1), all] {
        let backend = HostBackend::with_tiers([(device, Bytes(all.0 / 2)), (Tier::Host, Bytes::gib(1))]);
        let config = MemoryConfig::builder()
            .memory_limit(Bytes(all.0 / 2 + host.0 + (4 << 20)))
            .host_limit(host)
            .io_block(Bytes::kib(16))
            .build()
            .unwrap();
        let (manager, modules) = auto_manage_model(backend.clone(), &model.checkpoint(), config).unwrap();
        for _ in 0..5 {
            modules.iter().for_each(|module| model.check(module));
        }
        let usage = backend.capacity(device).unwrap().usage();
        assert!(usage.peak <= Bytes(all.0 / 2).scaled(0.85) && usage.peak > Bytes(all.0 / 4), "{usage:?}");
        let before = manager.memory_summary().read;
        modules.iter().for_each(|module| model.check(module));
        let read = manager.memory_summary().read.saturating_sub(before);
        assert_eq!(
            host == all,
            read == Bytes::ZERO,
            "with all of it in host memory nothing is read again; {read} was"
        );
    }
}

#[test]
fn a_full_device_is_emptied_once_before_it_is_an_error() {
    let model = model();
    let device = Tier::Device(0);
    let capacity = Bytes(model.weights().0 / 2);
    let backend = HostBackend::with_tiers([(device, capacity), (Tier::Host, Bytes::gib(1))]);
    let config = MemoryConfig::builder()
        .memory_limit(Bytes::gib(1))
        .io_block(Bytes::kib(16))
        .enable_cpu_offload(false)
        .build()
        .unwrap();
    let (_manager, modules) = auto_manage_model(backend.clone(), &model.checkpoint(), config).unwrap();
    modules.iter().for_each(|module| model.check(module));
    // Somebody else takes most of the device behind the manager's back.
    let left = capacity.saturating_sub(backend.capacity(device).unwrap().usage().used);
    let _other = backend.capacity(device).unwrap().reserve(left, &Holder::new("other")).unwrap();
    for _ in 0..2 {
        modules.iter().for_each(|module| model.check(module));
    }
}

#[test]
fn thresholds_act_on_what_others_take() {
    let model = model();
    let device = Tier::Device(0);
    let capacity = Bytes(model.weights().0 * 2);
    let backend = HostBackend::with_tiers([(device, capacity), (Tier::Host, Bytes::gib(1))]);
    let config = MemoryConfig::builder()
        .memory_limit(Bytes::gib(1))
        .memory_check_interval(Duration::from_millis(5))
        .offload_batch_size(1usize)
        .build()
        .unwrap();
    let (manager, modules) = auto_manage_model(backend.clone(), &model.checkpoint(), config).unwrap();
    modules.iter().for_each(|module| model.check(module));
    let used = || backend.capacity(device).unwrap().usage().used;
    let ours = used();
    assert!(ours >= model.weights().saturating_sub(Bytes::kib(1)));
    let until = |what: &str, done: &dyn Fn() -> bool| {
        for _ in 0..2000 {
            if done() {
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        panic!("{what} did not happen: {} of {} used", used(), capacity);
    };
    let held = modules[2].acquire().unwrap();
    let other =
        backend.capacity(device).unwrap().reserve(capacity.scaled(0.38), &Holder::new("other")).unwrap();
    until("offloading to the threshold", &|| used() <= capacity.scaled(0.85));
    assert!(used() > capacity.scaled(0.5), "no more leaves than must");
    drop(other);
    modules.iter().for_each(|module| model.check(module));
    let free = capacity.saturating_sub(used());
    let _other = backend.capacity(device).unwrap().reserve(free, &Holder::new("other")).unwrap();
    until("the emergency", &|| used() <= capacity.scaled(0.70));
    assert!(
        held.tensor("up.weight").unwrap().bytes() == model.expected["layers.2.up.weight"],
        "what is in use stays"
    );
    drop(held);
    modules.iter().for_each(|module| model.check(module));
    drop(manager);
}

#[test]
fn cleanup_leaves_all_or_nothing() {
    let model = model();
    let all = model.weights();
    let (manager, modules) = model.manage(config(Bytes(all.0 / 2)));
    modules.iter().for_each(|module| model.check(module));
    assert!(matches!(manager.cleanup(Cleanup::Whole), Err(Error::BudgetTooSmall { .. })));
    modules.iter().for_each(|module| model.check(module)); // Still managed, still right.
    let guard = modules[0].acquire().unwrap();
    assert!(matches!(manager.cleanup(Cleanup::Freed), Err(Error::AllInUse { .. })));
    drop(guard);
    manager.cleanup(Cleanup::Freed).unwrap();
    assert!(matches!(modules[0].acquire(), Err(Error::Stopped { .. })));
    assert!(matches!(manager.start(), Err(Error::Stopped { .. })));

    let (manager, modules) = model.manage(config(Bytes(all.0 + (8 << 20))));
    manager.cleanup(Cleanup::Whole).unwrap();
    std::fs::remove_file(&model.path).unwrap();
    for _ in 0..2 {
        modules.iter().for_each(|module| model.check(module)); // From memory: no file, no threads.
    }
}

#[test]
fn offload_and_load_on_request() {
    let model = model();
    let (manager, modules) = model.manage(config(Bytes(model.weights().0 * 2)));
    manager.load_all().unwrap();
    let full = manager.budget().usage().used;
    assert!(modules.iter().all(|module| module.tier() == Tier::Host));
    assert_eq!(modules[1].offload_all().unwrap(), modules[1].bytes());
    assert_eq!((modules[0].tier(), modules[1].tier()), (Tier::Host, Tier::Disk));
    assert_eq!(manager.budget().usage().used, full.saturating_sub(modules[1].bytes()));
    let held = modules[2].acquire().unwrap();
    manager.offload_all().unwrap();
    assert!(modules.iter().enumerate().all(|(n, module)| (module.tier() == Tier::Host) == (n == 2)));
    drop(held);
    modules[1].load_all().unwrap();
    assert_eq!(modules[1].tier(), Tier::Host);
    let text = manager.memory_summary().to_string();
    assert!(text.contains("layers.11") && text.contains("budget \"memory\""), "{text}");
    assert!(
        serde_json::to_value(manager.memory_summary()).unwrap()["modules"].as_array().unwrap().len()
            == LAYERS
    );
}

#[test]
fn selections_keep_the_rest_in_place() {
    let model = model();
    let manager = MemoryManager::new(HostBackend::default(), config(Bytes(model.weights().0 * 2))).unwrap();
    let specs = modules_of(&model.checkpoint()).unwrap();
    let modules = manager.wrap_model(specs, &Selection::Pattern("layers.1*")).unwrap();
    modules.iter().for_each(|module| model.check(module));
    let others = Budget::new("unused", Bytes::ZERO);
    drop(others);
    // Under pressure from another user of the budget, only what was selected leaves.
    let free = manager.budget().available();
    let _other = manager.budget().reserve(free + Bytes::kib(300), &Holder::new("other")).unwrap();
    for (n, module) in modules.iter().enumerate() {
        let selected = n == 1 || n >= 10;
        assert!(selected || module.tier() == Tier::Host, "layer {n} was not selected and left");
    }
    assert!(modules.iter().any(|module| module.tier() == Tier::Disk));
    assert!(matches!(
        manager.wrap_module(ModuleSpec::from_checkpoint(&model.checkpoint(), "layers.1").unwrap()),
        Err(Error::DuplicateModule { .. })
    ));
}

#[test]
fn a_file_cut_or_changed_under_a_running_model_is_named() {
    for change in ["cut", "written"] {
        let model = model();
        let (_manager, modules) = model.manage(config(Bytes(model.weights().0 / 3)));
        modules.iter().for_each(|module| model.check(module));
        let file = std::fs::OpenOptions::new().write(true).open(&model.path).unwrap();
        match change {
            "cut" => file.set_len(4096).unwrap(),
            _ => std::os::unix::fs::FileExt::write_all_at(&file, b"overwritten", 300_000).unwrap(),
        }
        file.sync_all().unwrap();
        let failed: Vec<Error> = modules.iter().filter_map(|module| module.acquire().err()).collect();
        assert!(!failed.is_empty(), "{change}");
        for error in failed {
            assert!(
                matches!(error, Error::Truncated { .. } | Error::FileChanged { .. }),
                "{change}: {error}"
            );
            assert!(error.to_string().contains("model.safetensors"), "{error}");
        }
    }
}

#[test]
fn a_file_replaced_by_another_keeps_serving_the_old_weights() {
    let model = model();
    let (_manager, modules) = model.manage(config(Bytes(model.weights().0 / 3)));
    modules.iter().for_each(|module| model.check(module));
    let other = model.path.with_extension("new");
    std::fs::write(&other, b"not a checkpoint").unwrap();
    std::fs::rename(&other, &model.path).unwrap();
    for _ in 0..2 {
        modules.iter().for_each(|module| model.check(module));
    }
}

#[test]
fn rows_are_read_one_by_one() {
    let model = model();
    let manager = MemoryManager::new(HostBackend::default(), config(Bytes::kib(256))).unwrap();
    let table = manager.wrap_rows(&model.checkpoint(), "layers.4.up.weight").unwrap();
    let expected = &model.expected["layers.4.up.weight"];
    let row = WIDTH * 4;
    for ids in [vec![], vec![0], vec![159, 0, 0, 7, 8, 9, 159], (0..160).rev().collect()] {
        let rows = table.gather(&ids).unwrap();
        assert_eq!(rows.desc().shape(), [ids.len(), WIDTH]);
        for (place, id) in ids.iter().enumerate() {
            let (at, from) = (place * row, *id as usize * row);
            assert!(rows.bytes()[at..at + row] == expected[from..from + row], "{ids:?}");
        }
    }
    assert!(table.gather(&[160]).is_err());
    assert!(manager.wrap_rows(&model.checkpoint(), "layers.4.up.bias").is_err());
    assert!(matches!(
        manager.wrap_rows(&model.checkpoint(), "layers.4.up.wieght"),
        Err(Error::MissingTensor { similar: Some(_), .. })
    ));
}

#[test]
fn observers_hear_of_every_use() {
    let model = model();
    let (manager, modules) = model.manage(config(Bytes(model.weights().0 / 2)));
    let observer = Arc::new(RecordingObserver::default());
    manager.observe(observer.clone());
    for _ in 0..3 {
        modules.iter().for_each(|module| model.check(module));
    }
    let events = observer.events();
    let count = |what: &str| events.iter().filter(|(_, event)| event.starts_with(what)).count();
    assert_eq!((count("Acquired"), count("Released")), (3 * LAYERS, 3 * LAYERS));
    assert!(count("Moved") > LAYERS && count("PassEnded") >= 1 && count("Planned") >= 1);
}

#[test]
fn two_managers_share_one_budget() {
    let model = model();
    let budget = Budget::new("both", Bytes(model.weights().0));
    let make = || {
        let manager = MemoryManager::with_budget(
            HostBackend::default(),
            MemoryConfig::builder().io_block(Bytes::kib(16)).build().unwrap(),
            &budget,
        )
        .unwrap();
        let modules = manager.wrap_model(modules_of(&model.checkpoint()).unwrap(), &Selection::All).unwrap();
        (manager, modules)
    };
    let (a, b) = (make(), make());
    for _ in 0..3 {
        a.1.iter().for_each(|module| model.check(module));
        b.1.iter().for_each(|module| model.check(module));
    }
    assert!(budget.usage().peak <= budget.limit());
}
