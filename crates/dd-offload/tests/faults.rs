//! What can be wrong with files, disks and budgets: each fault is an error that names the place and what to do, or
//! the manager carries on; it is never a panic, a hang or a wrong number, and what else it manages stays usable.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "tests"
)]

#[path = "support/watchdog.rs"]
mod watchdog;

use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use dd_core::{Backend, Bytes, DType, HostBackend, TensorDesc, Tier};
use dd_offload::checkpoint::Checkpoint;
use dd_offload::config::MemoryConfigBuilder;
use dd_offload::manager::{
    MemoryManager, ModuleHandle, ModuleSpec, Parameter, Selection, Source, auto_manage_model, modules_of,
};
use dd_offload::{Error, MemoryConfig, Result};
use safetensors::tensor::{Dtype, TensorView};

const LAYERS: usize = 8;
const SIDE: usize = 128; // A weight is 64 KiB.
const LEN: usize = SIDE * SIDE * 4;

fn values(layer: usize) -> Vec<u8> {
    (0..LEN).map(|i| ((i.wrapping_mul(2_654_435_761) >> 9) + layer * 31) as u8).collect()
}

fn write(path: &Path, layers: std::ops::Range<usize>) {
    let all: Vec<_> = layers.map(|layer| (format!("layers.{layer}.weight"), values(layer))).collect();
    let view = |bytes| TensorView::new(Dtype::F32, vec![SIDE, SIDE], bytes).unwrap();
    safetensors::serialize_to_file(all.iter().map(|(name, bytes)| (name, view(bytes))), None, path).unwrap();
}

fn folder() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().join("model.safetensors");
    write(&path, 0..LAYERS);
    (dir, path)
}

/// Room for four of eight layers.
fn config() -> MemoryConfigBuilder {
    let limit = Bytes::of(LEN * 4) + Bytes::kib(8);
    MemoryConfig::builder()
        .memory_limit(limit)
        .io_block(Bytes::kib(4))
        .io_depth(2_usize)
        .compress_disk_cache(false)
}

fn run_twice(path: &Path) -> Result<()> {
    let checkpoint = Arc::new(Checkpoint::open(path)?);
    let (_manager, modules) = auto_manage_model(HostBackend::default(), &checkpoint, config().build()?)?;
    for layer in (0..2).flat_map(|_| 0..modules.len()) {
        let guard = modules[layer].acquire()?;
        assert!(guard.tensor("weight").unwrap().bytes() == values(layer), "layer {layer}");
    }
    Ok(())
}

fn rewrite_header(path: &Path, change: impl Fn(&str) -> String) {
    let bytes = std::fs::read(path).unwrap();
    let len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header = change(std::str::from_utf8(&bytes[8..8 + len]).unwrap());
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.bytes());
    file.extend(&bytes[8 + len..]);
    std::fs::write(path, file).unwrap();
}

type Row = (&'static str, fn(&Path), &'static [&'static str]);

#[test]
fn what_is_wrong_with_a_checkpoint_is_said_before_it_runs() {
    let _watchdog = watchdog::watch("checkpoint faults");
    let rows: [Row; 9] = [
        ("truncated", |path| file(path).set_len(LEN as u64 * 3).unwrap(), &["truncated", "fetch it again"]),
        ("empty", |path| file(path).set_len(0).unwrap(), &["fetch"]),
        (
            "a header length beyond the file",
            |path| file(path).write_all_at(&(1_u64 << 40).to_le_bytes(), 0).unwrap(),
            &["header", "fetch"],
        ),
        ("a header length of zero", |path| file(path).write_all_at(&[0; 8], 0).unwrap(), &["fetch"]),
        (
            "offsets out of range",
            |path| {
                rewrite_header(path, |h| h.replace(&format!("{}]", LEN * LAYERS), &format!("{}]", LEN * 99)))
            },
            &["layers.", "fetch"],
        ),
        (
            "overlapping offsets",
            |path| {
                rewrite_header(path, |h| h.replace(&format!("[{LEN},{}]", LEN * 2), &format!("[0,{LEN}]")))
            },
            &["layers.", "fetch"],
        ),
        ("no file", |path| std::fs::remove_file(path).unwrap(), &["cannot open"]),
        (
            "a folder in its place",
            |path| {
                std::fs::remove_file(path).unwrap();
                std::fs::create_dir(path).unwrap();
            },
            &[],
        ),
        (
            "a missing shard",
            |path| {
                let folder = path.parent().unwrap();
                std::fs::rename(path, folder.join("a.safetensors")).unwrap();
                let index = r#"{"weight_map": {"layers.0.weight": "a.safetensors", "x": "b.safetensors"}}"#;
                std::fs::write(folder.join("model.safetensors.index.json"), index).unwrap();
            },
            &["b.safetensors", "fetch the missing file"],
        ),
    ];
    for (fault, make, said) in rows {
        let (_dir, path) = folder();
        run_twice(&path).unwrap();
        make(&path);
        let opened = if fault.contains("shard") { path.parent().unwrap().to_owned() } else { path.clone() };
        let error = run_twice(&opened).unwrap_err().to_string();
        let place = opened.file_name().unwrap().to_string_lossy();
        assert!(error.contains(&*place) || fault.contains("shard"), "{fault}: {error}");
        assert!(said.iter().all(|word| error.contains(word)), "{fault}: {error}");
    }
}

fn file(path: &Path) -> std::fs::File {
    std::fs::OpenOptions::new().write(true).open(path).unwrap()
}

#[test]
fn a_missing_tensor_is_named_and_the_rest_can_be_wrapped() {
    let (_dir, path) = folder();
    let checkpoint = Arc::new(Checkpoint::open(&path).unwrap());
    let manager = MemoryManager::new(HostBackend::default(), config().build().unwrap()).unwrap();
    let mut specs = modules_of::<HostBackend>(&checkpoint).unwrap();
    let tensor = "layers.3.wieght".to_owned();
    specs[3].parameters[0].source = Source::File { checkpoint: Arc::clone(&checkpoint), tensor };
    let error = manager.wrap_module(specs.remove(3)).map(|_| ()).unwrap_err().to_string();
    let words = ["layers.3.wieght", "model.safetensors", "did you mean \"layers.3.weight\""];
    assert!(words.iter().all(|word| error.contains(word)), "{error}");
    let modules = manager.wrap_model(specs, &Selection::All).unwrap();
    assert!(modules.iter().all(|module| module.acquire().is_ok()));
}

#[test]
fn faults_of_one_file_leave_other_modules_usable() {
    let _watchdog = watchdog::watch("one bad file");
    for fault in ["cut", "written to"] {
        let (dir, bad) = folder();
        let good = dir.path().join("good.safetensors");
        write(&good, LAYERS..LAYERS * 2);
        let manager = MemoryManager::new(HostBackend::default(), config().build().unwrap()).unwrap();
        let wrap = |path: &Path| {
            let specs = modules_of(&Arc::new(Checkpoint::open(path).unwrap())).unwrap();
            manager.wrap_model(specs, &Selection::All).unwrap()
        };
        let (bad_modules, good_modules) = (wrap(&bad), wrap(&good));
        manager.load_all().unwrap_err();
        match fault {
            "cut" => file(&bad).set_len(LEN as u64).unwrap(),
            _ => file(&bad).write_all_at(b"other weights", LEN as u64 * 2).unwrap(),
        }
        for _ in 0..2 {
            for module in &bad_modules {
                let error = module.acquire().map(drop).unwrap_err();
                let named = matches!(error, Error::Truncated { .. } | Error::FileChanged { .. });
                assert!(named && error.to_string().contains("model.safetensors"), "{fault}: {error}");
            }
            for (n, module) in good_modules.iter().enumerate() {
                let guard = module.acquire().unwrap();
                assert!(guard.tensor("weight").unwrap().bytes() == values(LAYERS + n), "{fault}");
            }
        }
    }
}

/// Modules whose values are in no file.
fn wrap(
    manager: &MemoryManager<HostBackend>,
    layers: std::ops::Range<usize>,
) -> Result<Vec<ModuleHandle<HostBackend>>> {
    let desc = TensorDesc::new([SIDE, SIDE], DType::F32).unwrap();
    let spec = |layer: usize| {
        let tensor = manager.backend().upload(&desc, &values(layer), Tier::Host).unwrap();
        let parameters = vec![Parameter { name: "weight".into(), source: Source::Tensor(tensor) }];
        ModuleSpec { name: format!("made.{layer}"), kind: "Linear".into(), parameters, pinned: false }
    };
    layers.map(|layer| manager.wrap_module(spec(layer))).collect()
}

fn spilling(directory: &Path, disk: Bytes) -> MemoryConfigBuilder {
    let limit = Bytes::mib(1) + Bytes::of(LEN * 4) + Bytes::kib(8); // The first is for copying.
    config().memory_limit(limit).spill_directory(directory.to_owned()).max_disk_usage(disk)
}

#[test]
fn a_spill_directory_that_cannot_be_used_is_named() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let file = dir.path().join("a file");
    std::fs::write(&file, b"not a directory").unwrap();
    let (_model, path) = folder();
    for directory in [file.clone(), file.join("below")] {
        let manager =
            MemoryManager::new(HostBackend::default(), spilling(&directory, Bytes::gib(1)).build().unwrap())
                .unwrap();
        let error = wrap(&manager, 0..1).map(drop).unwrap_err().to_string();
        assert!(error.contains("a file"), "{error}");
        let specs = modules_of(&Arc::new(Checkpoint::open(&path).unwrap())).unwrap();
        for module in manager.wrap_model(specs, &Selection::All).unwrap() {
            drop(module.acquire().unwrap()); // What is in a file needs no spilling.
        }
    }
}

#[test]
fn a_full_disk_is_an_error_and_what_needs_no_disk_goes_on() {
    let _watchdog = watchdog::watch("full disk");
    let (dir, path) = folder();
    // Eager: what does not fit is refused as it is wrapped.
    let two = Bytes::of(LEN * 5 / 2);
    let manager =
        MemoryManager::new(HostBackend::default(), spilling(dir.path(), two).build().unwrap()).unwrap();
    let made = wrap(&manager, 0..2).unwrap();
    let error = wrap(&manager, 2..3).map(drop).unwrap_err();
    assert!(matches!(error, Error::DiskFull { .. }), "{error}");
    assert!(error.to_string().contains("made.2") && error.to_string().contains("raise"), "{error}");
    for (layer, module) in made.iter().enumerate() {
        assert!(module.acquire().unwrap().tensor("weight").unwrap().bytes() == values(layer));
    }
    assert!(
        made[0]
            .update(
                "weight",
                manager
                    .backend()
                    .upload(&TensorDesc::new([SIDE, SIDE], DType::F32).unwrap(), &values(9), Tier::Host)
                    .unwrap()
            )
            .is_err()
    );
    assert!(
        made[0].acquire().unwrap().tensor("weight").unwrap().bytes() == values(0),
        "a failed change changes nothing"
    );

    // Not eager: they stay in memory, cannot leave, and those from a file leave instead.
    let config = spilling(dir.path(), Bytes::kib(1)).eager_offload_on_wrap(false).build().unwrap();
    let manager = MemoryManager::new(HostBackend::default(), config).unwrap();
    let made = wrap(&manager, 0..2).unwrap();
    let specs = modules_of(&Arc::new(Checkpoint::open(&path).unwrap())).unwrap();
    let from_file = manager.wrap_model(specs, &Selection::All).unwrap();
    for _ in 0..3 {
        for (layer, module) in from_file.iter().enumerate().chain(made.iter().enumerate()) {
            assert!(
                module.acquire().unwrap().tensor("weight").unwrap().bytes() == values(layer),
                "{}",
                module.name()
            );
        }
    }
    let error = manager.offload_all().unwrap_err();
    assert!(matches!(error, Error::DiskFull { .. }), "{error}");
    assert!(made[1].acquire().unwrap().tensor("weight").unwrap().bytes() == values(1));
}

#[test]
fn the_least_budget_that_is_named_would_do() {
    let (_dir, path) = folder();
    let checkpoint = Arc::new(Checkpoint::open(&path).unwrap());
    for blocks in [None, Some(Bytes::kib(4))] {
        let with = |limit: Bytes| {
            let mut config = MemoryConfig::builder().memory_limit(limit).calibrate_io(false);
            if let Some(block) = blocks {
                config = config.io_block(block).io_depth(2_usize);
            }
            let (manager, modules) =
                auto_manage_model(HostBackend::default(), &checkpoint, config.build().unwrap())?;
            modules.iter().try_for_each(|module| module.acquire().map(drop)).map(|()| manager)
        };
        for budget in [1, 4096, 8192, LEN / 2, LEN, LEN * 4] {
            match with(Bytes::of(budget)).map(drop) {
                Ok(()) if budget > LEN => {}
                Err(Error::BudgetTooSmall { least, .. }) => {
                    let enough = with(least).map(drop);
                    assert!(enough.is_ok() || budget < 16384, "{budget}: {least} was said to do: {enough:?}");
                }
                other => panic!("{budget}: {other:?}"),
            }
        }
    }
}

#[test]
fn the_least_budget_counts_the_larger_blocks_of_a_larger_budget() {
    let (dir, backend) = (tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap(), HostBackend::default());
    let path = dir.path().join("large.safetensors");
    let bytes = vec![5; 3 << 20];
    let view = TensorView::new(Dtype::F32, vec![3 << 10, 256], &bytes).unwrap();
    safetensors::serialize_to_file([("large.weight", view)], None, &path).unwrap();
    let checkpoint = Arc::new(Checkpoint::open(&path).unwrap());
    let with = |limit: Bytes, others: bool| {
        let config = MemoryConfig::builder().memory_limit(limit).calibrate_io(false).build()?;
        let (manager, modules) = auto_manage_model(backend.clone(), &checkpoint, config)?;
        let _others = others.then(|| manager.reserve_activations(Bytes::kib(500))).transpose()?;
        modules[0].acquire().map(drop)
    };
    for others in [false, true] {
        match with(Bytes::mib(1), others) {
            Err(Error::BudgetTooSmall { budget, least, .. }) => {
                assert_eq!(budget, Bytes::mib(1));
                with(least, others).unwrap();
            }
            other => panic!("{other:?}"),
        }
    }
}

/// The process that the next test kills: it spills until it is told to end.
#[test]
fn spills_for_ever_when_asked() {
    let Some(directory) = std::env::var_os("SPILL_FOR_EVER") else { return };
    let config = spilling(Path::new(&directory), Bytes::gib(1)).build().unwrap();
    let manager = MemoryManager::new(HostBackend::default(), config).unwrap();
    let modules = wrap(&manager, 0..LAYERS).unwrap();
    println!("spilling");
    std::io::stdout().flush().unwrap();
    loop {
        for (layer, module) in modules.iter().enumerate() {
            let desc = TensorDesc::new([SIDE, SIDE], DType::F32).unwrap();
            module
                .update("weight", manager.backend().upload(&desc, &values(layer), Tier::Host).unwrap())
                .unwrap();
        }
    }
}

#[test]
fn a_killed_process_leaves_nothing_and_disturbs_nobody() {
    use std::io::BufRead as _;
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let config = || spilling(dir.path(), Bytes::gib(1)).build().unwrap();
    let manager = MemoryManager::new(HostBackend::default(), config()).unwrap();
    let modules = wrap(&manager, 0..LAYERS).unwrap(); // Two processes share the directory.
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "spills_for_ever_when_asked", "--nocapture"])
        .env("SPILL_FOR_EVER", dir.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("spilling")));
    let check = || {
        for (layer, module) in modules.iter().enumerate() {
            assert!(
                module.acquire().unwrap().tensor("weight").unwrap().bytes() == values(layer),
                "layer {layer}"
            );
        }
    };
    check();
    child.kill().unwrap();
    child.wait().unwrap();
    let folders = || {
        let base = std::fs::read_dir(dir.path()).unwrap().next().unwrap().unwrap().path();
        std::fs::read_dir(base).unwrap().count()
    };
    assert_eq!(folders(), 2, "the killed process left its folder behind");
    let next = MemoryManager::new(HostBackend::default(), config()).unwrap();
    let _made = wrap(&next, 0..1).unwrap();
    assert_eq!(folders(), 2, "the next start removed it, and no other");
    check();
}
