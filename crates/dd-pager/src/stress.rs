//! Many threads on many ranges in little memory, with canaries around everything: what Miri cannot see. Each test of it
//! is a child process, most of them with an invariant broken on purpose: that one has to fail.
//!
//! Frames hold a canary before they are filled, the pages of a range keep it before its first byte and behind its last,
//! what is evicted has to come back with the checksum it was filled with, and every byte that is read is known.
#![allow(unsafe_code, reason = "paged memory is read through its addresses, as tensor libraries do")]
#![allow(clippy::cast_possible_truncation, clippy::print_stdout, clippy::print_stderr, reason = "tests")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]

use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use dd_core::{Budget, Bytes};

use crate::inject::CANARY;
use crate::sys::PAGE;
use crate::{Error, Layout, Options, PagedMemory, Region, Result, Scratch, Source};

/// What a byte of a range is.
fn byte(seed: u64, at: u64) -> u8 {
    let byte = (((at / 8) ^ (seed << 20)).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8;
    if byte == CANARY { 0 } else { byte }
}

/// Fills what is the range's, and leaves the rest of its pages as they are.
struct Exactly {
    seed: u64,
    head: u64,
    len: u64,
}

impl Source for Exactly {
    fn fill(&self, at: u64, out: &mut [u8], _: &mut Scratch) -> Result<()> {
        for (place, out) in (at..).zip(out) {
            if (self.head..self.head + self.len).contains(&place) {
                *out = byte(self.seed, place - self.head);
            }
        }
        Ok(())
    }
}

/// A range that one thread writes to.
#[derive(Default)]
struct Kept(std::sync::Mutex<std::collections::HashMap<u64, Vec<u8>>>);

impl Source for Kept {
    fn fill(&self, at: u64, out: &mut [u8], _: &mut Scratch) -> Result<()> {
        for (at, out) in (at..).step_by(PAGE).zip(out.chunks_mut(PAGE)) {
            match self.0.lock().unwrap().get(&at) {
                Some(kept) => out.copy_from_slice(kept),
                None => out.fill(0),
            }
        }
        Ok(())
    }

    fn is_writable(&self) -> bool {
        true
    }

    fn store(&self, at: u64, data: &[u8]) -> Result<()> {
        for (at, data) in (at..).step_by(PAGE).zip(data.chunks(PAGE)) {
            self.0.lock().unwrap().insert(at, data.to_vec());
        }
        Ok(())
    }
}

struct Range {
    region: Region,
    seed: u64,
    head: usize,
}

impl Range {
    fn new(memory: &PagedMemory, seed: u64) -> Self {
        let (len, head) = (1 + (seed * 7919) as usize % 120_000, (seed * 811) as usize % PAGE);
        let source = Exactly { seed, head: head as u64, len: len as u64 };
        let region = memory.register(&format!("range {seed}"), len, head as u16, Arc::new(source)).unwrap();
        Self { region, seed, head }
    }

    /// Every byte, and the canaries on either side.
    fn check(&self) {
        let end = (self.head + self.region.len()).next_multiple_of(PAGE);
        // SAFETY: the range's own pages, from the first's start to the last's end; nobody writes to them.
        let pages = unsafe { std::slice::from_raw_parts(self.region.as_ptr().sub(self.head), end) };
        for (at, found) in pages.iter().enumerate() {
            let inside = at.checked_sub(self.head).filter(|at| *at < self.region.len());
            let expected = inside.map_or(CANARY, |at| byte(self.seed, at as u64));
            assert!(*found == expected, "range {}: byte {at} is {found:#x}, not {expected:#x}", self.seed);
        }
    }
}

/// Adds one to each word of a range that this thread alone has.
fn count_up(region: &Region, round: u64) {
    for index in 0..region.len() / 8 {
        let at = region.as_ptr().cast::<u64>().wrapping_add(index);
        // SAFETY: the word lies in the region, aligned, and no other thread touches it.
        unsafe {
            assert!(at.read() == round, "word {index} of what was written is lost");
            at.write(round + 1);
        }
    }
}

/// What one thread does. The range that it wrote to is kept: dropped, it would leave units that were changed and yet are
/// nobody's to write to, whose checksums mean nothing.
fn work(memory: &PagedMemory, shared: &[Range], thread: u64, steps: &AtomicU64) -> Option<Region> {
    let kept =
        memory.moves().then(|| memory.register("kept", 200_000, 0, Arc::new(Kept::default())).unwrap());
    let (mut own, rounds) = (Vec::new(), 8);
    for round in 0..rounds {
        for index in 0..shared.len() {
            let at = match (thread + round / 4) % 3 {
                0 => index,
                1 => shared.len() - 1 - index,
                _ => (index * 7 + round as usize * 3) % shared.len(),
            };
            shared[at].check();
            steps.fetch_add(1, Ordering::Relaxed);
        }
        if let Some(region) = &kept {
            count_up(region, round);
        }
        own.push(Range::new(memory, 1000 + thread * 100 + round));
        own.iter().for_each(Range::check);
        if own.len() > 3 {
            own.swap_remove(round as usize % 3);
        }
        steps.fetch_add(1, Ordering::Relaxed);
    }
    kept
}

/// Ends the process when nothing has been done for so long.
fn expect_progress(steps: &'static AtomicU64, done: &'static AtomicBool, patience: Duration) {
    std::thread::spawn(move || {
        let mut before = u64::MAX;
        while !done.load(Ordering::Relaxed) {
            let now = steps.load(Ordering::Relaxed);
            if now == before {
                eprintln!("a reader waits for ever");
                std::process::abort();
            }
            before = now;
            std::thread::sleep(patience);
        }
    });
}

fn stress(case: &str, patience: Duration) {
    static STEPS: AtomicU64 = AtomicU64::new(0);
    static DONE: AtomicBool = AtomicBool::new(false);
    expect_progress(&STEPS, &DONE, patience);
    // The least has one loader; the other three.
    let memory = if case.contains("least") { Layout::least() } else { Bytes::kib(1536) };
    let budget = Budget::new("memory", memory);
    let copying = case.contains("copying");
    let options = Options { copying, ..Options::new("weights", Bytes::mib(64)) };
    let memory = PagedMemory::new(&budget, options).unwrap();
    let shared: Vec<Range> = (1..70).map(|seed| Range::new(&memory, seed)).collect();
    let written: Vec<Option<Region>> = std::thread::scope(|scope| {
        let (memory, shared) = (&memory, &shared);
        let start = |thread| scope.spawn(move || work(memory, shared, thread, &STEPS));
        let threads: Vec<_> = (0..4).map(start).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let stats = memory.stats();
    assert!(stats.evicted > 500 && (copying || stats.bytes_stored > 0), "{stats:?}");
    drop((memory, shared, written));
    assert_eq!(budget.usage().used, Bytes::ZERO);
    DONE.store(true, Ordering::Relaxed);
    println!("nothing was wrong: {stats:?}");
}

/// Not a test of its own: what the child processes of the others do.
#[test]
fn child() {
    let Ok(case) = std::env::var("DD_PAGER_STRESS") else { return };
    let seconds = if std::env::var_os("DD_PAGER_BREACH").is_some() { 3 } else { 60 };
    stress(&case, Duration::from_secs(seconds));
}

fn run(case: &str, switches: &[(&str, &str)]) -> Output {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "stress::child", "--nocapture", "--test-threads=1"])
        .env("DD_PAGER_STRESS", case);
    command.envs(switches.iter().copied()).stdin(Stdio::null());
    command.output().unwrap()
}

fn can_page() -> bool {
    match PagedMemory::new(&Budget::unlimited("probe"), Options::new("probe", Bytes(1))) {
        Err(error @ Error::Unsupported { .. }) => {
            dd_conformance::skipped!("{error}");
            false
        }
        _ => true,
    }
}

#[test]
fn holds_with_moves_with_copies_and_where_the_kernel_refuses_moves() {
    if !can_page() {
        return;
    }
    for (case, refuse) in [
        ("moving", "0"),
        ("least", "0"),
        ("copying", "0"),
        ("least, copying", "0"),
        ("least", "3"),
        ("moving", "7"),
    ] {
        let output = run(case, &[("DD_PAGER_REFUSE", refuse)]);
        let (text, error) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(
            output.status.success() && text.contains("nothing was wrong"),
            "{case} {refuse}: {text} {error}"
        );
    }
}

#[test]
fn every_breach_is_seen() {
    if !can_page() {
        return;
    }
    std::thread::scope(|scope| {
        for breach in ["EvictFilling", "ShareFrame", "MapEarly", "SkipWake", "LoseWritten"] {
            scope.spawn(move || {
                let output = run("moving", &[("DD_PAGER_BREACH", breach)]);
                let error = String::from_utf8_lossy(&output.stderr);
                let seen = error.lines().find(|line| {
                    ["a weight cannot be had", "range ", "came back changed", "waits for ever", "is lost"]
                        .iter()
                        .any(|said| line.contains(said))
                });
                assert!(
                    !output.status.success() && seen.is_some(),
                    "{breach} was not seen: {error} {output:?}"
                );
                println!("{breach}: {}", seen.unwrap_or_default());
            });
        }
    });
}
