//! Steps in a child process, under a limit: running out of memory ends the child, never the search.
//!
//! The search starts a program again (usually itself) with the batch in an environment variable. At the top of its `main`,
//! before anything else, the program gives control to [`serve`], which runs the step where the variable is set:
//!
//! ```no_run
//! use std::process::ExitCode;
//! use dd_core::Bytes;
//! use dd_scale::{BatchSearch, ChildRunner, Prior, child};
//!
//! fn main() -> ExitCode {
//!     let step = |batch: usize| -> dd_core::Result<()> { /* load, forward, backward */ Ok(()) };
//!     if let Some(code) = child::serve(step) {
//!         return code; // This was a child.
//!     }
//!     let search = || -> dd_scale::Result<usize> {
//!         let mut runner = ChildRunner::current_exe()?.address_space(Bytes::gib(8));
//!         Ok(BatchSearch::new(Bytes::gib(4)).find_max_batch(Prior::Probes, &mut runner)?.batch)
//!     };
//!     search().map_or(ExitCode::FAILURE, |batch| { println!("{batch}"); ExitCode::SUCCESS })
//! }
//! ```
//!
//! A program in another language reads [`BATCH_VARIABLE`], and ends with the line `dd-scale-peak: BYTES` on standard
//! output, or with the exit code [`OUT_OF_MEMORY`].
//!
//! | the child | the batch |
//! |---|---|
//! | ends well, with its peak | took that much |
//! | ends with [`OUT_OF_MEMORY`], or says while it fails that memory ran out | is too big |
//! | is ended by its control group's limit, or by signal 9, as the kernel does when memory runs out | is too big |
//! | panics, fails, crashes, takes too long, or reports nothing | is unknown: an error |

use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use dd_core::Bytes;

use crate::batch::{StepOutcome, StepRunner};
use crate::error::{Error, Result};
use crate::sys;

mod group;

use group::Group;

/// The environment variable that tells a child its batch.
pub const BATCH_VARIABLE: &str = "DD_SCALE_BATCH";
/// The exit code of a child that ran out of memory and could say so.
pub const OUT_OF_MEMORY: u8 = 86;
/// What begins the line on standard output that reports a child's peak.
const PEAK: &str = "dd-scale-peak:";
/// What is kept of a child's output: its end.
const TAIL: usize = 4096;
/// How often a child is looked at.
const PAUSE: Duration = Duration::from_millis(2);

/// Runs the step and reports its peak, where this process was started as a child; else does nothing and returns nothing.
/// The peak is what the step returns, or, where it returns `()` or `None`, the most that was resident, as the kernel
/// counts it for this process.
#[allow(clippy::print_stdout, clippy::print_stderr, reason = "that is how a child reports")]
pub fn serve<T: Into<Peak>>(step: impl FnOnce(usize) -> dd_core::Result<T>) -> Option<ExitCode> {
    let given = std::env::var_os(BATCH_VARIABLE)?;
    let Some(batch) = given.to_str().and_then(|text| text.parse().ok()) else {
        eprintln!("{BATCH_VARIABLE} is {given:?}: expected a number");
        return Some(ExitCode::FAILURE);
    };
    match step(batch) {
        Ok(peak) => match peak.into().0.or_else(resident_peak) {
            Some(peak) => {
                println!("\n{PEAK} {}", peak.0);
                Some(ExitCode::SUCCESS)
            }
            None => {
                eprintln!("this system does not say how much was resident; return the peak from the step");
                Some(ExitCode::FAILURE)
            }
        },
        Err(error) => {
            eprintln!("{error}");
            let code =
                if error.is_out_of_memory() { ExitCode::from(OUT_OF_MEMORY) } else { ExitCode::FAILURE };
            Some(code)
        }
    }
}

/// What a step says of its peak.
#[derive(Clone, Copy, Debug)]
pub struct Peak(Option<Bytes>);

impl From<Bytes> for Peak {
    fn from(peak: Bytes) -> Self {
        Self(Some(peak))
    }
}

impl From<Option<Bytes>> for Peak {
    fn from(peak: Option<Bytes>) -> Self {
        Self(peak)
    }
}

impl From<()> for Peak {
    fn from((): ()) -> Self {
        Self(None)
    }
}

/// `VmHWM` of `/proc/self/status`, which begins anew with every program.
fn resident_peak() -> Option<Bytes> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok().map(Bytes::kib)
}

/// Runs each step in a child process.
#[derive(Clone, Debug)]
pub struct ChildRunner {
    program: PathBuf,
    arguments: Vec<OsString>,
    address_space: Option<Bytes>,
    group: Option<(PathBuf, Bytes)>,
    timeout: Duration,
}

impl ChildRunner {
    /// Starts this program, that must give control to [`serve`] or report like it.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            arguments: Vec::new(),
            address_space: None,
            group: None,
            timeout: Duration::from_secs(600),
        }
    }

    /// Starts the running program again, without arguments.
    ///
    /// # Errors
    /// [`Error::Child`] where the system does not say which program runs.
    pub fn current_exe() -> Result<Self> {
        let failed = |error| Error::Child {
            batch: 0,
            what: format!("cannot be started: the running program is not known ({error})"),
            stderr: String::new(),
        };
        std::env::current_exe().map(Self::new).map_err(failed)
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    /// Limits the child's address space: allocations beyond it fail. It is larger than what is resident (code, stacks
    /// and what is reserved only), so give more than the search's ceiling; what decides is the peak.
    #[must_use]
    pub const fn address_space(mut self, bytes: Bytes) -> Self {
        self.address_space = Some(bytes);
        self
    }

    /// Runs the child in a control group of its own below `parent`, with this limit: what counts is what is really
    /// there, and beyond it the kernel ends the child alone. `parent` is a folder of the memory controller (version 1 or
    /// 2) in which this process may make another.
    #[must_use]
    pub fn control_group(mut self, parent: impl Into<PathBuf>, bytes: Bytes) -> Self {
        self.group = Some((parent.into(), bytes));
        self
    }

    /// Ends a child that takes longer, which is an error. Default ten minutes.
    #[must_use]
    pub const fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The program.
    #[must_use]
    pub fn program(&self) -> &Path {
        &self.program
    }

    fn command(&self, batch: usize) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).env(BATCH_VARIABLE, batch.to_string());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        if let Some(bytes) = self.address_space {
            sys::limit_address_space(&mut command, bytes.0);
        }
        command
    }
}

impl StepRunner for ChildRunner {
    fn run(&mut self, batch: usize) -> Result<StepOutcome> {
        let failed = |what: String| Error::Child { batch, what, stderr: String::new() };
        let group = self.group.as_ref().map(|(parent, bytes)| Group::new(parent, *bytes)).transpose();
        let group = group.map_err(|error| failed(format!("has no control group: {error}")))?;
        let mut command = self.command(batch);
        if let Some(group) = &group {
            sys::join_group(&mut command, group.procs());
        }
        let cannot = |error| failed(format!("cannot be started from {}: {error}", self.program.display()));
        let mut child = command.spawn().map_err(cannot)?;
        let (stdout, stderr) = (tail_of(child.stdout.take()), tail_of(child.stderr.take()));
        let status = wait(&mut child, self.timeout)
            .map_err(|error| failed(format!("cannot be waited for: {error}")))?;
        let (stdout, stderr) = (text_of(stdout), text_of(stderr));
        let Some(status) = status else {
            let what = format!("was ended after {:?}: the step takes longer; allow more", self.timeout);
            return Err(Error::Child { batch, what, stderr });
        };
        let over_limit = group.as_ref().is_some_and(Group::has_killed);
        judge(status, over_limit, &stdout, &stderr).map_err(|what| Error::Child { batch, what, stderr })
    }
}

/// Waits for a child; ends it, and returns nothing, where it takes too long.
fn wait(child: &mut Child, timeout: Duration) -> std::io::Result<Option<ExitStatus>> {
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if started.elapsed() > timeout {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(PAUSE);
    }
}

/// Reads a stream to its end on a thread of its own, so that the child never waits, and keeps the end of it.
fn tail_of(stream: Option<impl Read + Send + 'static>) -> Option<JoinHandle<Vec<u8>>> {
    let mut stream = stream?;
    Some(thread::spawn(move || {
        let (mut tail, mut part) = (Vec::new(), [0; 1024]);
        while let Ok(read @ 1..) = stream.read(&mut part) {
            tail.extend_from_slice(part.get(..read).unwrap_or_default());
            tail.drain(..tail.len().saturating_sub(TAIL));
        }
        tail
    }))
}

fn text_of(reader: Option<JoinHandle<Vec<u8>>>) -> String {
    let bytes = reader.and_then(|reader| reader.join().ok()).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// What programs write when memory runs out: Rust's allocator, C++, the system, Python, PyTorch.
const WORDS: [&str; 5] =
    ["memory allocation of ", "std::bad_alloc", "(os error 12)", "MemoryError", "CUDA out of memory"];

/// What the end of a child means for its batch; else what is wrong with it.
fn judge(status: ExitStatus, over_limit: bool, stdout: &str, stderr: &str) -> Result<StepOutcome, String> {
    use std::os::unix::process::ExitStatusExt as _;
    let too_big = |how: &str| Ok(StepOutcome::OutOfMemory { how: how.to_owned() });
    if over_limit {
        return too_big("the kernel ended it at the control group's limit");
    }
    if status.success() {
        let peak = stdout.lines().rev().find_map(|line| line.trim().strip_prefix(PEAK));
        let peak = peak.and_then(|text| text.trim().parse().ok());
        let missing = || format!("ended well but reported no peak: expected a line \"{PEAK} BYTES\"");
        return peak.map(|peak| StepOutcome::Done { peak: Bytes(peak) }).ok_or_else(missing);
    }
    if status.code() == Some(OUT_OF_MEMORY.into()) {
        return too_big("it said that memory ran out");
    }
    if let Some(word) = WORDS.iter().find(|word| stderr.contains(**word)) {
        return too_big(&format!("it wrote {word:?} and failed"));
    }
    match (status.signal(), status.code()) {
        (Some(libc::SIGKILL), _) => too_big("it was killed (signal 9), as when memory runs out"),
        (Some(signal), _) => Err(format!("was ended by signal {signal}")),
        (None, Some(101)) => Err("panicked".to_owned()),
        (None, code) => Err(format!("failed with exit code {}", code.unwrap_or(-1))),
    }
}
