//! Memory as the kernel sees it: a process that pages many times its budget grows by the budget and a stated constant.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]
#![allow(unsafe_code, reason = "paged memory is read through its addresses, as tensor libraries do")]
#![allow(clippy::cast_possible_truncation, missing_docs, reason = "tests")]

#[path = "support/pages.rs"]
mod pages;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use dd_core::{Budget, Bytes};
use dd_offload::io::DirectFile;
use dd_pager::{FileSource, Options, PagedMemory, Region};
use pages::{Words, can_page, case, check, command, finish, options, run};

const RANGES: u64 = 16;
const RANGE: usize = 16 << 20;
const BUDGET: Bytes = Bytes::mib(24);
/// What paging takes beside its budget. Its threads' stacks, of which a few pages are touched; the books, some 100 B for
/// each unit of address space that was registered; the allocator's own share for each thread; the code that runs for the
/// first time, which is mapped from the program's file and counted as the process's own. The kernel's page tables, 8 B
/// for each page ever touched, come on top where a control group counts.
const CONSTANT: u64 = 1 << 20;
/// What a bare test process takes: its code, the test harness, the kernel's share of a process.
const PROCESS: u64 = 8 << 20;

/// A figure of `/proc/self/status`, in bytes.
fn status(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim_start_matches(':').trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// Three passes over 256 MiB, from two threads; a sixteenth of each of their pages is looked at.
fn pass(regions: &[Region]) {
    std::thread::scope(|scope| {
        for thread in 0..2 {
            scope.spawn(move || {
                for (seed, region) in (0..3).flat_map(|_| regions.iter().enumerate()) {
                    for at in (thread * 4096..region.len()).step_by(8192) {
                        check(region, seed as u64, at..at + 256);
                    }
                }
            });
        }
    });
}

fn page(copying: bool, file: Option<&Path>) {
    let budget = Budget::new("memory", BUDGET);
    let before = status("VmRSS");
    let options = Options { copying, ..options(RANGES * RANGE as u64, BUDGET) };
    let memory = PagedMemory::new(&budget, options).unwrap();
    let register = |seed| match file {
        None => memory.register("weight", RANGE, 0, Arc::new(Words(seed))).unwrap(),
        Some(file) => {
            let source = FileSource::new(DirectFile::open(file).unwrap(), "weight", 0, RANGE as u64).unwrap();
            memory.register("weight", RANGE, 0, Arc::new(source)).unwrap()
        }
    };
    let regions: Vec<Region> = (0..RANGES).map(register).collect();
    match file {
        None => pass(&regions),
        Some(_) => regions.iter().for_each(|region| check(region, 0, 0..region.len())),
    }
    let grown = status("VmHWM").saturating_sub(before);
    let (plan, stats) = (memory.plan(), memory.stats());
    println!("grown {grown} of {} + {CONSTANT}, {stats:?}", plan.memory.0);
    assert!(plan.memory <= BUDGET && budget.usage().peak <= BUDGET);
    assert!(stats.filled as usize * plan.layout.unit >= RANGES as usize * RANGE, "{stats:?}");
    assert!(grown <= plan.memory.0 + CONSTANT, "grew by {grown} B, {} were accounted for", plan.memory.0);
    assert!(grown + (4 << 20) >= plan.memory.0, "grew by {grown} B only: this measures nothing");
    println!("within the budget");
}

#[test]
fn the_kernel_sees_the_budget_and_a_constant() {
    if !can_page() {
        return;
    }
    let mut file = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut bytes = vec![0; RANGE];
    pages::fill_words(0, 0, &mut bytes);
    std::io::Write::write_all(&mut file, &bytes).unwrap();
    drop(bytes);
    let of_file = format!("file {}", file.path().display());
    for case in ["moving", "copying", &of_file] {
        let output = run(case);
        let text = String::from_utf8_lossy(&output.stdout);
        println!("{case}: {text}");
        let fine = output.status.success() && text.contains("within the budget");
        assert!(fine, "{case}: {text} {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn survives_a_kernel_limit_that_ends_who_does_not_page() {
    if !can_page() {
        return;
    }
    let Some(group) = Group::of(BUDGET.0 + CONSTANT + PROCESS) else { return };
    for (case, survives) in [("moving", true), ("copying", true), ("plain", false)] {
        let output = group.run(case);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.success(), survives, "{case}: {:?} {text}", output.status);
    }
}

/// A control group with a memory limit.
struct Group(PathBuf);

impl Group {
    /// Of version 1 or 2, whichever has the memory controller, where this user may make one.
    fn of(limit: u64) -> Option<Self> {
        for (root, file) in
            [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")]
        {
            let folder = Path::new(root).join(format!("dd-pager-test-{}", std::process::id()));
            if !Path::new(root).join("cgroup.procs").exists() || std::fs::create_dir(&folder).is_err() {
                continue;
            }
            let group = Self(folder);
            if std::fs::write(group.0.join(file), limit.to_string()).is_ok() {
                return Some(group);
            }
        }
        dd_conformance::skipped!("no control group with a memory limit can be made here");
        None
    }

    fn run(&self, case: &str) -> std::process::Output {
        let inner = command(case);
        let enter = format!("echo $$ > {}/cgroup.procs && exec \"$0\" \"$@\"", self.0.display());
        let mut command = std::process::Command::new("sh");
        command.args(["-c", &enter]).arg(inner.get_program()).args(inner.get_args());
        command.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        finish(case, command.spawn().unwrap())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        std::fs::remove_dir(&self.0).ok();
    }
}

/// Not a test of its own: what the child processes of the others do.
#[test]
fn child() {
    match case().as_deref() {
        None => assert!(command("nothing").status().unwrap().success()),
        Some("nothing") => {}
        Some("plain") => {
            let weights: Vec<Vec<u8>> = (0..RANGES).map(|seed| vec![seed as u8 + 1; RANGE]).collect();
            assert!(weights.iter().all(|weight| weight[RANGE - 1] > 0));
        }
        Some(case) => page(case == "copying", case.strip_prefix("file ").map(Path::new)),
    }
}
