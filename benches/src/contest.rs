//! A contestant that is a process of its own: what it is told, what it measures of itself, and what it reports.
//!
//! Memory that one variant leaves behind (an allocator's, the page cache's) must not help the next one, and a cap on memory
//! can only be put on a process. So a suite calls its own program again, with a [`Task`] as JSON in its arguments, and reads
//! a [`Report`] as JSON from its output; a peer in another language takes and gives the same.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use deep_dimensions::core::Bytes;
use deep_dimensions::monitor::{IoCounters, ProcessId, ProcessMemory, Root};
use deep_dimensions::offload::io::Geometry;
use serde::{Deserialize, Serialize};

use crate::cap::{Cap, join};
use crate::llama::{LlamaShape, Session};
use crate::{Error, Result};

/// What a child is to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Task {
    /// Which variant.
    pub variant: String,
    /// The checkpoint's files.
    pub files: Vec<PathBuf>,
    /// A folder that the child may write to.
    pub folder: PathBuf,
    /// The model in them.
    pub shape: LlamaShape,
    /// Prompts that run as a block.
    pub rows: usize,
    /// Passes, the first of which follows the load; those that do not count are among them.
    pub passes: usize,
    /// Bytes that weights may take.
    pub budget: u64,
    /// Where the file is read beside the passes: in which blocks.
    pub reading: Option<Geometry>,
    /// The most that the process may take, where it is capped.
    pub cap: Option<u64>,
    /// Where to join the cap; set by [`Task::run`].
    pub door: Option<PathBuf>,
}

/// What a pass took.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Pass {
    /// Seconds by the clock.
    pub seconds: f64,
    /// Bytes that storage delivered (`/proc/self/io`).
    pub read: u64,
    /// Seconds of processor time, of all threads.
    pub cpu: f64,
    /// Seconds of processor time, of the paging threads.
    pub paging_cpu: f64,
    /// Faults answered by the pager.
    #[serde(default)]
    pub faults: u64,
    /// Faults that had to wait for a read.
    #[serde(default)]
    pub late: u64,
}

/// What a child found.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// Seconds until the model was loaded.
    pub load: f64,
    /// Seconds until the first logits, the load included.
    pub first: f64,
    /// Bytes read until then.
    pub first_read: u64,
    /// Every pass, the first included.
    pub passes: Vec<Pass>,
    /// Bytes written, or bound to be.
    pub written: u64,
    /// The most that was resident (`VmHWM`).
    pub peak: u64,
    /// The most that the cap was charged with, page cache included.
    pub charged: Option<u64>,
    /// A hash of the logits of all passes, bit by bit.
    pub checksum: String,
    /// The first logits of the last pass, for who adds in another order.
    pub logits: Vec<f32>,
    /// What the pager says of itself, where there is one.
    pub pager: Option<PagerFigures>,
}

/// What the pager says of itself.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct PagerFigures {
    /// Bytes in memory of what a pass uses.
    pub used: u64,
    /// What of them stays.
    pub resident: u64,
    /// Bytes of all frames.
    pub frames: u64,
    /// Bytes of those that are for what passes through.
    pub staging: u64,
    /// The most that the budget has accounted for.
    pub accounted: u64,
    /// Faults answered since the start.
    pub faults: u64,
    /// Faults since the start that had to wait for a read.
    pub late: u64,
}

/// How one turn ended.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// It reported.
    Done(Box<Report>),
    /// It did not, and this is how it ended: a cap ends a process by a signal.
    Ended(String),
    /// This machine lacks what the variant needs, which is its own business to know: what, in words.
    Unavailable(String),
}

/// The exit code of a child whose variant needs what this machine lacks.
pub const UNAVAILABLE: i32 = 69;

/// What a child loads: the model, and who tells what the pager has counted since the start.
pub type Loaded = (Session, Option<Box<dyn Fn() -> PagerFigures>>);

impl Task {
    /// Runs this program again as a child.
    ///
    /// # Errors
    /// Where it cannot be started.
    pub fn run(&self) -> Result<Outcome> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("--child");
        self.run_as(command)
    }

    /// Runs a program with the task as its last argument.
    ///
    /// # Errors
    /// Where it cannot be started, or reports what is no report.
    pub fn run_as(&self, mut command: Command) -> Result<Outcome> {
        let cap = self.cap.and_then(|limit| Cap::new(Bytes(limit)));
        let task = Self { door: cap.as_ref().map(Cap::door), ..self.clone() };
        let log = task.folder.join("said");
        command.arg(serde_json::to_string(&task)?).stdout(Stdio::piped()).stderr(fs::File::create(&log)?);
        let output = within(PATIENCE, command.spawn()?)?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
            let last = said.split(['\n', '\r']).rfind(|line| !line.trim().is_empty()).unwrap_or_default();
            return Ok(match output.status.code() {
                Some(UNAVAILABLE) => Outcome::Unavailable(last.to_owned()),
                _ => Outcome::Ended(format!("{}; it said last: {last}", output.status)),
            });
        }
        let text = String::from_utf8(output.stdout)?;
        let mut report: Report = serde_json::from_str(text.lines().last().unwrap_or_default())?;
        report.charged = cap.and_then(|cap| cap.peak()).map(|peak| peak.0);
        Ok(Outcome::Done(Box::new(report)))
    }

    /// The task that this process was called with, if it is a child; it then is under its cap.
    ///
    /// # Errors
    /// A task that is none, or a cap that is gone.
    pub fn of_child() -> Result<Option<Self>> {
        let mut arguments = std::env::args().skip(1);
        if arguments.next().as_deref() != Some("--child") {
            return Ok(None);
        }
        let task: Self = serde_json::from_str(&arguments.next().unwrap_or_default())?;
        if let Some(door) = &task.door {
            join(door)?;
        }
        Ok(Some(task))
    }

    /// Loads with `load`, makes the passes and measures them.
    ///
    /// # Errors
    /// Those of the load and of the passes.
    pub fn measure(&self, load: impl FnOnce(&Self) -> Result<Loaded>) -> Result<Report> {
        let mut report = Report::default();
        let (started, before) = (Instant::now(), io()?);
        let (mut session, pager) = load(self)?;
        let counted = || pager.as_ref().map(|pager| pager()).unwrap_or_default();
        report.load = started.elapsed().as_secs_f64();
        let mut hash = Fnv::default();
        for _ in 0..self.passes {
            let had = counted();
            let (at, read, cpu) = (Instant::now(), io()?, Cpu::read()?);
            let logits = session.pass()?;
            let seconds = at.elapsed().as_secs_f64();
            let (cpu, read) = (Cpu::read()?.since(cpu), io()?.since(&read).read_bytes.0);
            if report.passes.is_empty() {
                report.first = started.elapsed().as_secs_f64();
                report.first_read = io()?.since(&before).read_bytes.0;
            }
            let (faults, late) = (counted().faults - had.faults, counted().late - had.late);
            report.passes.push(Pass { seconds, read, cpu: cpu.all, paging_cpu: cpu.paging, faults, late });
            logits.iter().for_each(|logit| hash.add(logit.to_bits()));
            report.logits = logits.into_iter().take(16).collect();
        }
        report.checksum = format!("{:016x}", hash.0);
        report.pager = pager.as_ref().map(|pager| pager());
        report.written = io()?.since(&before).write_bytes.0;
        let memory = ProcessMemory::read(&Root::default(), ProcessId::Own)?;
        report.peak = memory.peak_resident.unwrap_or_default().0;
        Ok(report)
    }
}

/// How long a child may take: one that hangs must not hang the suite.
const PATIENCE: Duration = Duration::from_secs(180);

/// Waits for a child, and ends it when that takes too long. What it prints must fit a pipe.
fn within(patience: Duration, mut child: Child) -> Result<Output> {
    let started = Instant::now();
    while child.try_wait()?.is_none() {
        if started.elapsed() > patience {
            child.kill()?;
            child.wait()?;
            return Err(format!("a contestant did not end within {} s", patience.as_secs()).into());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(child.wait_with_output()?)
}

fn io() -> Result<IoCounters> {
    Ok(IoCounters::read(&Root::default(), ProcessId::Own)?)
}

/// Processor time of the threads that live, from `/proc/self/task/*/schedstat`: nanoseconds, where clock ticks are ten
/// million of them.
#[derive(Clone, Copy, Debug)]
struct Cpu {
    all: f64,
    paging: f64,
}

impl Cpu {
    fn read() -> Result<Self> {
        let mut sum = Self { all: 0.0, paging: 0.0 };
        for thread in fs::read_dir("/proc/self/task")? {
            let thread = thread?.path();
            let Ok(stat) = fs::read_to_string(thread.join("schedstat")) else { continue }; // It has just ended.
            let on_cpu = stat.split_whitespace().next().and_then(|nanos| nanos.parse::<f64>().ok());
            let seconds = on_cpu.ok_or_else(|| Error::from("no time in schedstat"))? * 1e-9;
            sum.all += seconds;
            if fs::read_to_string(thread.join("comm")).is_ok_and(|name| name.starts_with("dd-page")) {
                sum.paging += seconds;
            }
        }
        Ok(sum)
    }

    fn since(self, earlier: Self) -> Self {
        Self { all: (self.all - earlier.all).max(0.0), paging: (self.paging - earlier.paging).max(0.0) }
    }
}

/// FNV-1a of 64 bits, over words.
struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv {
    const fn add(&mut self, word: u32) {
        self.0 = (self.0 ^ word as u64).wrapping_mul(0x0100_0000_01b3);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_tells_order_and_sign_of_zero() {
        let hash = |values: &[f32]| {
            let mut hash = Fnv::default();
            values.iter().for_each(|value| hash.add(value.to_bits()));
            hash.0
        };
        assert_eq!(hash(&[1.0, 2.0]), hash(&[1.0, 2.0]));
        assert_ne!(hash(&[1.0, 2.0]), hash(&[2.0, 1.0]));
        assert_ne!(hash(&[0.0]), hash(&[-0.0]));
    }

    #[test]
    fn threads_are_told_apart_by_name() {
        let (send, receive) = std::sync::mpsc::channel::<()>();
        let (ready, wait) = std::sync::mpsc::channel();
        let before = Cpu::read().unwrap();
        let busy = move || {
            let started = Instant::now();
            while started.elapsed().as_millis() < 30 {
                std::hint::spin_loop();
            }
            ready.send(()).unwrap();
            let _ = receive.recv();
        };
        let thread = std::thread::Builder::new().name("dd-pager-1".to_owned()).spawn(busy).unwrap();
        wait.recv().unwrap();
        let taken = Cpu::read().unwrap().since(before);
        assert!(taken.paging > 0.0 && taken.paging <= taken.all, "{taken:?}");
        drop(send);
        thread.join().unwrap();
    }
}
