//! What it costs to look at memory: a sample of the own process, and a full sample.
//!
//! | contestant | what one sample is |
//! |---|---|
//! | `process` | resident and virtual size of this process, through [`ProcessSampler`] |
//! | `process_bare` | control: the one read of `/proc/self/statm` that it needs, nothing parsed |
//! | `process_sysinfo`, `process_psutil` | the same figures through the crate `sysinfo` and Python's `psutil` |
//! | `full` | process, machine, container and pressure, through [`FullSampler`] |
//! | `full_bare` | control: one read of each of its files, nothing parsed |
//! | `full_sysinfo`, `full_psutil` | process and machine: those two know neither container nor pressure |
//!
//! A turn is the fastest of [`BATCHES`] batches of [`SAMPLES`] samples, the one that other programs disturbed least; what
//! is reported is the time of one sample. `psutil` runs in one child that measures itself, so that starting Python counts
//! for nothing; where the Python that `DD_BENCH_PEERS` names (`cargo xtask bench monitor --peers`), or else `python3`, does not
//! have it, it takes no part, and that is said.
//!
//! How to read it: `process` is to be at most 2.5 µs and `full` at most 15 µs, with no allocation at all, which the counting
//! allocator checks. What is above the bare reads is this project's own; the rest is the kernel's.

use std::cell::RefCell;
use std::fs::File;
use std::hint::black_box;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use dd_benches::Result;
use dd_benches::rounds::{Contestant, Rounds};
use dd_benches::settings::Settings;
use deep_dimensions::monitor::allocator::heap_total;
use deep_dimensions::monitor::{
    CgroupLevel, CgroupMemory, CgroupVersion, CountingAllocator, FullSampler, PressureSampler,
    ProcessSampler, Root,
};
use sysinfo::{ProcessRefreshKind, ProcessesToUpdate, System};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator::system();

/// Batches per turn.
const BATCHES: u32 = 20;
/// Samples per batch.
const SAMPLES: u32 = 25;
/// Rounds per round that was asked for: they are short.
const SHORT: usize = 10;

fn main() -> Result<()> {
    let settings = Settings::read(env!("CARGO_TARGET_TMPDIR"))?;
    let mut criterion = settings.criterion();
    let (process, full) = (ProcessSampler::own()?, FullSampler::own()?);
    let bare = Bare::open(&full)?;
    allocates_nothing("process", || process.sample().is_ok())?;
    allocates_nothing("full", || full.sample().is_ok())?;
    let (mut own, mut all) = (Sysinfo::new()?, Sysinfo::new()?);
    let psutil = RefCell::new(Psutil::start());
    let has_psutil = psutil.borrow().is_some();
    let mut contestants = vec![
        Contestant::new("process", || Ok(each(|| black_box(process.sample()).is_ok()))),
        Contestant::new("process_bare", || Ok(each(|| bare.read(1)))),
        Contestant::new("process_sysinfo", || Ok(each(|| own.process()))),
        Contestant::new("full", || Ok(each(|| black_box(full.sample()).is_ok()))),
        Contestant::new("full_bare", || Ok(each(|| bare.read(usize::MAX)))),
        Contestant::new("full_sysinfo", || Ok(each(|| all.process() && all.machine()))),
    ];
    if has_psutil {
        let ask = |what: &'static str| {
            let psutil = &psutil;
            move || psutil.borrow_mut().as_mut().map_or(Ok(Duration::ZERO), |psutil| psutil.measure(what))
        };
        contestants.push(Contestant::new("process_psutil", ask("process")));
        contestants.push(Contestant::new("full_psutil", ask("full")));
    } else {
        println!("psutil takes no part: python3 cannot import it");
    }
    let rounds = Rounds::run(if settings.quick { 1 } else { settings.rounds * SHORT }, &mut contestants)?;
    drop(contestants);
    rounds.report(&mut criterion, "monitor", |_| None);
    for (name, limit) in [("process", 2.5), ("full", 15.0)] {
        let median = |name: &str| rounds.median(name) * 1e6;
        let beside = |peer: &str| median(&format!("{name}_{peer}"));
        let psutil = if has_psutil { format!("{:.2}", beside("psutil")) } else { "absent".to_owned() };
        println!(
            "{name}: {:.2} µs per sample (at most {limit}), of which the kernel's reads {:.2}; sysinfo {:.2}, psutil {psutil}",
            median(name),
            beside("bare"),
            beside("sysinfo"),
        );
    }
    criterion.final_summary();
    Ok(())
}

/// The time of one of [`SAMPLES`], in the fastest batch.
fn each(mut sample: impl FnMut() -> bool) -> Duration {
    let batch = |_| {
        let started = Instant::now();
        let good = (0..SAMPLES).all(|_| sample());
        let taken = started.elapsed() / SAMPLES;
        assert!(good, "a sample failed");
        taken
    };
    (0..BATCHES).map(batch).min().unwrap_or_default()
}

fn allocates_nothing(name: &str, sample: impl Fn() -> bool) -> Result<()> {
    let count = || heap_total().map_or(0, |heap| heap.allocations);
    let before = count();
    let good = (0..SAMPLES).all(|_| sample());
    let allocations = count() - before;
    if !good || allocations > 0 {
        return Err(
            format!("{name}: {allocations} allocations in {SAMPLES} samples, all good: {good}").into()
        );
    }
    println!("{name}: no allocation in {SAMPLES} samples");
    Ok(())
}

/// The files of a full sample, the own process's first, opened and nothing more.
struct Bare {
    files: Vec<File>,
}

impl Bare {
    fn open(full: &FullSampler) -> Result<Self> {
        let pressure = PressureSampler::open_nearest(&Root::default(), full.cgroup()).ok();
        let pressure = pressure.map(|sampler| sampler.path().to_owned());
        let system = ["/proc/self/statm", "/proc/meminfo"].map(PathBuf::from);
        let paths = system.into_iter().chain(group_files(full.cgroup())).chain(pressure);
        Ok(Self { files: paths.map(File::open).collect::<std::io::Result<_>>()? })
    }

    /// Reads the first files.
    fn read(&self, most: usize) -> bool {
        let mut buffer = [0; 8192];
        self.files.iter().take(most).all(|file| black_box(file.read_at(&mut buffer, 0)).is_ok())
    }
}

/// What a sample of the container reads. A v2 group without a limit is asked for no more than its limits; a v1 group
/// where the kernel knows of no limit above is asked alone.
fn group_files(cgroup: &CgroupMemory) -> Vec<PathBuf> {
    let levels = cgroup.report().levels;
    let is_v1 = cgroup.version() == Some(CgroupVersion::V1);
    let is_unlimited = |level: &CgroupLevel| level.figures.effective_limit().is_none();
    let most = if is_v1 && levels.first().is_some_and(is_unlimited) { 1 } else { levels.len() };
    let of_level = |(number, level): (usize, &CgroupLevel)| {
        let is_end = number == 0 || number + 1 == levels.len();
        let names: &[&str] = match (is_v1, level.figures.limit.is_some()) {
            (true, limited) if limited || is_end => {
                &["memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat"]
            }
            (true, _) => &["memory.limit_in_bytes"],
            (false, true) => &["memory.max", "memory.high", "memory.current", "memory.stat"],
            (false, false) => &["memory.max", "memory.high"],
        };
        names.iter().map(|name| level.path.join(name)).collect::<Vec<_>>()
    };
    let files = levels.iter().enumerate().take(most).flat_map(of_level);
    files.filter(|path| path.exists()).collect()
}

/// The peer in Rust.
struct Sysinfo {
    system: System,
    pid: sysinfo::Pid,
}

impl Sysinfo {
    fn new() -> Result<Self> {
        let system = System::new().map_err(|error| format!("sysinfo: {error:?}"))?;
        Ok(Self { system, pid: sysinfo::get_current_pid()? })
    }

    fn process(&mut self) -> bool {
        let memory = ProcessRefreshKind::nothing().with_memory();
        let _updated =
            self.system.refresh_processes_specifics(ProcessesToUpdate::Some(&[self.pid]), true, memory);
        self.system.process(self.pid).is_some_and(|process| black_box(process.memory()) > 0)
    }

    fn machine(&mut self) -> bool {
        self.system.refresh_memory();
        black_box(self.system.available_memory()) > 0
    }
}

/// The peer in Python: a child that measures on request.
struct Psutil {
    child: Child,
    asks: ChildStdin,
    answers: BufReader<ChildStdout>,
}

const SCRIPT: &str = "
import sys, time, psutil
process = psutil.Process()
samples = {
    'process': process.memory_info,
    'full': lambda: (process.memory_info(), psutil.virtual_memory()),
}
print('ready', flush=True)
for line in sys.stdin:
    what, batches, count = line.split()
    sample, batches, count = samples[what], int(batches), int(count)
    fastest = None
    for _ in range(batches):
        began = time.perf_counter_ns()
        for _ in range(count):
            sample()
        taken = (time.perf_counter_ns() - began) // count
        fastest = taken if fastest is None else min(fastest, taken)
    print(fastest, flush=True)
";

impl Psutil {
    fn start() -> Option<Self> {
        let python = std::env::var_os("DD_BENCH_PEERS").unwrap_or_else(|| "python3".into());
        let mut command = Command::new(python);
        command.args(["-c", SCRIPT]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().ok()?;
        let (asks, answers) = (child.stdin.take()?, BufReader::new(child.stdout.take()?));
        let mut psutil = Self { child, asks, answers };
        (psutil.line().ok()? == "ready").then_some(psutil)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        Ok(line.trim().to_owned())
    }

    fn measure(&mut self, what: &str) -> Result<Duration> {
        writeln!(self.asks, "{what} {BATCHES} {SAMPLES}")?;
        Ok(Duration::from_nanos(self.line()?.parse()?))
    }
}

impl Drop for Psutil {
    fn drop(&mut self) {
        let ended = self.child.kill().and_then(|()| self.child.wait());
        if let Err(error) = ended {
            eprintln!("the child that runs psutil did not end: {error}");
        }
    }
}
