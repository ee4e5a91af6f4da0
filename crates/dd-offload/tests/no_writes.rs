//! Alone in its process: running an unchanged model writes nothing to disk, and a manager with nothing to do, or with
//! nothing that it can do, uses no processor time.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]

use std::sync::Arc;
use std::time::Duration;

use dd_core::{Bytes, HostBackend};
use dd_offload::checkpoint::Checkpoint;
use dd_offload::manager::auto_manage_model;
use dd_offload::{Error, MemoryConfig};
use safetensors::tensor::{Dtype, TensorView};

/// What this process had the kernel write to disks.
fn written() -> Option<u64> {
    let io = std::fs::read_to_string("/proc/self/io").ok()?;
    io.lines().find_map(|line| line.strip_prefix("write_bytes: ")?.parse().ok())
}

/// Clock ticks (of 10 ms) that all threads of this process have used.
fn ticks() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[test]
fn an_unchanged_model_writes_nothing_and_rests_when_it_cannot_go_on() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().join("model.safetensors");
    let bytes = vec![7_u8; 256 << 10];
    let names: Vec<String> = (0..16).map(|layer| format!("layers.{layer}.weight")).collect();
    let views = names.iter().map(|name| (name, TensorView::new(Dtype::F32, vec![256, 256], &bytes).unwrap()));
    safetensors::serialize_to_file(views, None, &path).unwrap();
    std::fs::File::open(&path).unwrap().sync_all().unwrap();
    let spill = dir.path().join("spill");

    let Some(before) = written() else {
        dd_conformance::skipped!("this kernel does not count what a process writes");
        return;
    };
    let limit = Bytes::kib(256 * 5 / 2);
    let config =
        MemoryConfig::builder().memory_limit(limit).io_block(Bytes::kib(16)).spill_directory(spill.clone());
    let checkpoint = Arc::new(Checkpoint::open(&path).unwrap());
    let config = config.build().unwrap();
    let (manager, modules) = auto_manage_model(HostBackend::default(), &checkpoint, config).unwrap();
    for _ in 0..5 {
        for module in &modules {
            assert!(module.acquire().unwrap().tensor("weight").unwrap().bytes() == bytes);
        }
    }
    manager.offload_all().unwrap();
    assert!(manager.memory_summary().read > Bytes::mib(15), "it streamed");
    assert_eq!(written().unwrap() - before, 0, "bytes were written");
    assert!(!spill.exists(), "there is nothing to spill");

    // Two modules fill the budget; a third is wanted, and nobody lets go for a while.
    let blocked = std::thread::scope(|scope| {
        let _held = (modules[0].acquire().unwrap(), modules[2].acquire().unwrap());
        let third = scope.spawn(|| modules[1].acquire().map(drop));
        std::thread::sleep(Duration::from_millis(100)); // Until the loader has found that it cannot go on.
        let start = ticks();
        std::thread::sleep(Duration::from_millis(400));
        assert!(!third.is_finished(), "it waits");
        ticks() - start
    });
    assert!(blocked <= 5, "waiting used {blocked} of 40 ticks");
    let start = ticks();
    std::thread::sleep(Duration::from_millis(300));
    let idle = ticks() - start;
    assert!(idle <= 5, "an idle manager used {idle} of 30 ticks");
    assert!(!matches!(modules[3].acquire(), Err(Error::Stopped { .. })));
}
