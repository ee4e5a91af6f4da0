//! Steps in child processes: this program starts itself again, as one that behaves in every way a step can.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "tests")]

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use dd_core::{Bytes, Error as CoreError};
use dd_scale::child::{self, BATCH_VARIABLE, Peak};
use dd_scale::{BatchSearch, ChildRunner, Error, Prior, StepOutcome, StepRunner};

const MIB: usize = 1 << 20;

fn main() -> ExitCode {
    if let Some(code) = child::serve(step) {
        return code;
    }
    every_end_is_told_apart();
    a_program_that_is_not_there_is_named();
    a_search_finds_the_largest_exactly();
    a_search_survives_a_child_that_takes_everything();
    a_control_group_ends_the_child_alone();
    println!("5 checks of steps in child processes passed");
    ExitCode::SUCCESS
}

/// What a child does; its argument says which.
fn step(batch: usize) -> dd_core::Result<Peak> {
    let how = std::env::args().nth(1).unwrap_or_default();
    match how.as_str() {
        "affine" => Ok(Bytes::mib(10 + 3 * batch as u64).into()),
        "resident" => {
            hold(batch * MIB);
            Ok(().into())
        }
        "out of memory" => {
            Err(CoreError::OutOfMemory { place: "device".to_owned(), needed: Bytes(2), available: Bytes(1) })
        }
        "error" => Err(CoreError::NotFound { name: "w".to_owned(), place: "the model".to_owned() }),
        "panic" => panic!("a bug at batch {batch}"),
        "abort" => std::process::abort(),
        "killed" => {
            let kill = |id: u32| std::process::Command::new("kill").args(["-9", &id.to_string()]).status();
            kill(std::process::id()).unwrap();
            Ok(().into())
        }
        "silent" => std::process::exit(0),
        "loud" => {
            (0..10_000).for_each(|line| println!("line {line} of many"));
            Ok(Bytes(7).into())
        }
        "asleep" => {
            std::thread::sleep(Duration::from_secs(60));
            Ok(().into())
        }
        other => panic!("no such behaviour: {other:?}"),
    }
}

/// Takes so many bytes and touches them.
fn hold(bytes: usize) {
    let block = vec![1u8; bytes];
    std::hint::black_box(&block);
}

fn runner(how: &str) -> ChildRunner {
    ChildRunner::current_exe().unwrap().arg(how).timeout(Duration::from_secs(60))
}

fn end(result: &Result<StepOutcome, Error>) -> String {
    match result {
        Ok(StepOutcome::Done { peak }) => format!("done {}", peak.0),
        Ok(StepOutcome::OutOfMemory { how }) => format!("too big: {how}"),
        Err(error) => error.to_string(),
    }
}

fn every_end_is_told_apart() {
    assert!(std::env::var_os(BATCH_VARIABLE).is_none(), "the search itself is no child");
    let impatient = runner("asleep").timeout(Duration::from_millis(50));
    let narrow = runner("resident").address_space(Bytes::mib(512));
    let rows = [
        (runner("affine"), 2, "done 16777216"),
        (runner("loud"), 2, "done 7"),
        (runner("out of memory"), 1, "too big: it said that memory ran out"),
        (narrow, 4096, "too big: it wrote \"memory allocation of \" and failed"),
        (runner("killed"), 1, "too big: it was killed (signal 9)"),
        (runner("panic"), 3, "the child for batch 3 panicked; it last wrote:"),
        (
            runner("error"),
            1,
            "the child for batch 1 failed with exit code 1; it last wrote:\nno tensor \"w\"",
        ),
        (runner("abort"), 1, "the child for batch 1 was ended by signal 6"),
        (runner("silent"), 1, "the child for batch 1 ended well but reported no peak"),
        (impatient, 1, "the child for batch 1 was ended after 50ms"),
    ];
    for (mut runner, batch, expected) in rows {
        let found = end(&runner.run(batch));
        assert!(found.starts_with(expected), "expected {expected}\nfound {found}");
    }
}

fn a_program_that_is_not_there_is_named() {
    let found = end(&ChildRunner::new("/nowhere/at/all").run(1));
    assert!(found.starts_with("the child for batch 1 cannot be started from /nowhere/at/all"), "{found}");
}

fn a_search_finds_the_largest_exactly() {
    let search = BatchSearch::new(Bytes::mib(100));
    let report = search.find_max_batch(Prior::Probes, &mut runner("affine")).unwrap();
    assert_eq!((report.batch, report.runs.len(), report.largest), (30, 3, true), "{report:?}");
    let found = search.find_max_batch(Prior::Probes, &mut runner("panic"));
    assert!(matches!(found, Err(Error::Child { batch: 1, .. })), "{found:?}");
}

fn a_search_survives_a_child_that_takes_everything() {
    // What the kernel counts is not exactly on a line; what is found must fit all the same, and nearly fill it.
    let search = BatchSearch::new(Bytes::mib(96));
    let mut runner = runner("resident").address_space(Bytes::gib(1));
    let report = search.find_max_batch(Prior::Probes, &mut runner).unwrap();
    assert!(report.peak <= Bytes::mib(96) && report.batch >= 64, "{report:?}");
    let wrong = dd_core::cost::AffineCost { constant: Bytes::ZERO, per_element: Bytes::kib(8) };
    let report = search.find_max_batch(Prior::Model(&wrong), &mut runner).unwrap();
    assert!(report.peak <= Bytes::mib(96) && report.batch >= 64, "{report:?}");
    let failed = report.runs.first().map(|run| &run.outcome);
    assert!(matches!(failed, Some(StepOutcome::OutOfMemory { .. })), "{report:?}");
}

fn a_control_group_ends_the_child_alone() {
    let Some(parent) = own_group() else {
        dd_conformance::skipped!(
            "no memory control group may be made here; its limit on a child is not tested"
        );
        return;
    };
    let mut runner = runner("resident").control_group(&parent, Bytes::mib(64));
    let found = end(&runner.run(8));
    assert!(found.starts_with("done "), "{found}");
    let found = end(&runner.run(256));
    assert!(found.starts_with("too big: the kernel ended it at the control group's limit"), "{found}");
    let left = fs::read_dir(&parent).unwrap().filter_map(Result::ok);
    let own = format!("dd-scale-{}-", std::process::id());
    assert!(!left.into_iter().any(|entry| entry.file_name().to_string_lossy().starts_with(&own)));
}

/// A folder of the memory controller in which this process may make another.
fn own_group() -> Option<PathBuf> {
    let text = fs::read_to_string("/proc/self/cgroup").ok()?;
    let candidates = text.lines().filter_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        let root = match controllers {
            "" => "/sys/fs/cgroup",
            "memory" => "/sys/fs/cgroup/memory",
            _ => return None,
        };
        Some([PathBuf::from(format!("{root}{path}")), PathBuf::from(root)])
    });
    candidates.flatten().find(|folder| {
        let trial = folder.join(format!("dd-scale-trial-{}", std::process::id()));
        let made = fs::create_dir(&trial).is_ok();
        let limited = ["memory.max", "memory.limit_in_bytes"].iter().any(|name| trial.join(name).exists());
        let removed = made && fs::remove_dir(&trial).is_ok();
        made && limited && removed
    })
}
