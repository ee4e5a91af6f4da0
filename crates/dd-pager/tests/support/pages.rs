//! What the tests of paging share: whether it can be done here, bytes that are known, and child processes.
#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(unsafe_code, reason = "paged memory is read through its addresses, as tensor libraries do")]

use std::io::Read as _;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use dd_core::{Budget, Bytes};
use dd_pager::{Error, Options, PagedMemory, Region, Result, Scratch, Source};

/// Whether this kernel lets a program page; where it does not, the tests say so.
pub(crate) fn can_page() -> bool {
    match PagedMemory::new(&Budget::unlimited("probe"), Options::new("probe", Bytes(1))) {
        Ok(_) => true,
        Err(error @ Error::Unsupported { .. }) => {
            dd_conformance::skipped!("{error}");
            false
        }
        Err(error) => panic!("{error}"),
    }
}

/// What the eight bytes at a place of a source's pages are.
pub(crate) fn word(seed: u64, at: u64) -> u64 {
    let mixed = (at ^ seed.wrapping_mul(0xD1B5_4A32_D192_ED03)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    mixed ^ (mixed >> 29)
}

/// Fills whole pages with [`word`]s.
pub(crate) fn fill_words(seed: u64, at: u64, out: &mut [u8]) {
    for (index, out) in out.chunks_exact_mut(8).enumerate() {
        out.copy_from_slice(&word(seed, at + index as u64 * 8).to_le_bytes());
    }
}

/// The pages of a range are the words of its seed.
pub(crate) struct Words(pub(crate) u64);

impl Source for Words {
    fn fill(&self, at: u64, out: &mut [u8], _: &mut Scratch) -> Result<()> {
        fill_words(self.0, at, out);
        Ok(())
    }
}

/// What happens before each fill of [`Before`].
type First = dyn Fn(u64) -> Result<()> + Send + Sync;

/// Words, after something else was done: waited, failed, panicked.
pub(crate) struct Before(pub(crate) u64, pub(crate) Box<First>);

impl Before {
    pub(crate) fn new(seed: u64, first: impl Fn(u64) -> Result<()> + Send + Sync + 'static) -> Self {
        Self(seed, Box::new(first))
    }
}

impl Source for Before {
    fn fill(&self, at: u64, out: &mut [u8], _: &mut Scratch) -> Result<()> {
        (self.1)(at)?;
        fill_words(self.0, at, out);
        Ok(())
    }
}

pub(crate) fn options(expected: u64, memory: Bytes) -> Options {
    Options { memory: Some(memory), ..Options::new("weights", Bytes(expected)) }
}

pub(crate) fn data(region: &Region) -> &[u8] {
    // SAFETY: the region is alive while the slice is, and nothing writes to it.
    unsafe { std::slice::from_raw_parts(region.as_ptr(), region.len()) }
}

/// Checks bytes `range` of a region of [`Words`]; where it begins in its page is read off its address.
pub(crate) fn check(region: &Region, seed: u64, range: std::ops::Range<usize>) {
    let head = region.as_ptr().addr() % 4096;
    let bytes = &data(region)[range.clone()];
    let lead = (8 - (head + range.start) % 8) % 8;
    let (lead, rest) = bytes.split_at(lead.min(bytes.len()));
    let first = (head + range.start + lead.len()) as u64;
    let (words, tail) = rest.as_chunks::<8>();
    for (index, found) in words.iter().enumerate() {
        let at = first + index as u64 * 8;
        assert!(u64::from_le_bytes(*found) == word(seed, at), "byte {at} of the pages of range {seed}");
    }
    if !lead.is_empty() {
        assert!(
            word(seed, first - 8).to_le_bytes().ends_with(lead) || words.is_empty(),
            "start of range {seed}"
        );
    }
    let end = first + words.len() as u64 * 8;
    assert!(tail.is_empty() || word(seed, end).to_le_bytes().starts_with(tail), "end of range {seed}");
}

pub(crate) fn check_all(region: &Region, seed: u64) {
    check(region, seed, 0..region.len());
}

/// The case that this process is to run, where it is a child.
pub(crate) fn case() -> Option<String> {
    std::env::var("DD_PAGER_CASE").ok()
}

/// This test program once more, running the test `child` for one case.
pub(crate) fn command(case: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "child", "--nocapture", "--test-threads=1"]);
    command.env("DD_PAGER_CASE", case).env("MALLOC_ARENA_MAX", "1");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs a case in a child process. One that is not done after a minute hangs, and that is a failure.
pub(crate) fn run(case: &str) -> Output {
    finish(case, command(case).spawn().unwrap())
}

/// Waits for a child, for a minute at most.
pub(crate) fn finish(case: &str, mut child: Child) -> Output {
    let since = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if since.elapsed() > Duration::from_secs(60) {
            child.kill().unwrap();
            panic!("{case}: hangs");
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let mut output = Output { status, stdout: Vec::new(), stderr: Vec::new() };
    child.stdout.unwrap().read_to_end(&mut output.stdout).unwrap();
    child.stderr.unwrap().read_to_end(&mut output.stderr).unwrap();
    output
}

/// Ends the process where a test hangs: a deadlock then is a message and not a timeout of everything.
pub(crate) fn watch(what: &'static str) -> Watchdog {
    let (alive, ended) = std::sync::mpsc::channel::<()>();
    std::thread::spawn(move || {
        if ended.recv_timeout(Duration::from_secs(60)) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            eprintln!("{what}: hangs for a minute");
            std::process::abort();
        }
    });
    Watchdog(alive)
}

/// Lives as long as the test is expected to go on.
pub(crate) struct Watchdog(#[allow(dead_code, reason = "its end is what tells")] std::sync::mpsc::Sender<()>);
