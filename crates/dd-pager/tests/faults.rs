//! What can go wrong while memory is paged: files that change, disks that fail, kernels that refuse, memory that is
//! dropped at the wrong moment. Each is a typed error, or the process ends with a message that names tensor and file, or
//! nothing happens at all; it is never a hang and never wrong bytes.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]
#![allow(unsafe_code, reason = "paged memory is read through its addresses, as tensor libraries do")]
#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, missing_docs, reason = "tests")]

#[path = "support/pages.rs"]
mod pages;

use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use dd_core::{Budget, Bytes, DType};
use dd_offload::io::DirectFile;
use dd_pager::{
    Error, FileSource, Layout, Options, PagedMemory, Region, Result, Scratch, Source, WideningSource,
};
use pages::{
    Before, Words, can_page, case, check, check_all, data, fill_words, finish, options, run, watch, word,
};

const PAGE: usize = 4096;
const UNIT: usize = 16 << 10;
/// Units of the range that most tests page, through the least memory.
const UNITS: usize = 64;
const LEN: usize = UNITS * UNIT;

fn paged(budget: &Budget) -> PagedMemory {
    let paged = PagedMemory::new(budget, options(64 << 20, Layout::least())).unwrap();
    assert_eq!(paged.plan().layout.unit, UNIT);
    paged
}

fn page(source: impl Source + 'static) -> Region {
    let memory = paged(&Budget::unlimited("memory"));
    memory.register("blk.3.weight", LEN, 0, Arc::new(source)).unwrap()
}

/// A file of words, in the build's own folder: what lies in memory anyway would not show what a disk does.
fn file(name: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::Builder::new().prefix(name).tempfile_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut bytes = vec![0; LEN];
    fill_words(1, 0, &mut bytes);
    file.write_all(&bytes).unwrap();
    file
}

fn page_file(path: &Path, wide: bool) -> Region {
    let direct = DirectFile::open(path).unwrap();
    match wide {
        false => page(FileSource::new(direct, "blk.3.weight", 0, LEN as u64).unwrap()),
        true => {
            let pair = (DType::BF16, DType::F32);
            page(WideningSource::new(direct, "blk.3.weight", (0, LEN as u64 / 2), pair).unwrap())
        }
    }
}

fn broken() -> Error {
    Error::Read {
        what: "blk.3.weight".to_owned(),
        path: "/models/model.safetensors".into(),
        reason: "input/output error".to_owned(),
    }
}

/// A door that opens once.
#[derive(Clone, Default)]
struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    fn open(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }

    fn pass(&self) {
        drop(self.0.1.wait_while(self.0.0.lock().unwrap(), |open| !*open).unwrap());
    }
}

// Faults that end the process, each in a child.

/// What a child does; it ends before it returns, or says that it did not.
fn fault(case: &str) {
    let file = file("model");
    let writable = std::fs::OpenOptions::new().write(true).open(file.path()).unwrap();
    match case {
        "an input/output error" => check_all(&page(Before::new(1, |_| Err(broken()))), 1),
        "the reader has standard error locked" => {
            let region = page(Before::new(1, |_| Err(broken())));
            let _locked = std::io::stderr().lock();
            check_all(&region, 1);
        }
        "a handler that never returns" => {
            let stay = Arc::new(|_: &Error| {
                loop {
                    std::thread::park();
                }
            });
            let options = Options { on_fatal: stay, ..options(1 << 20, Layout::least()) };
            let memory = PagedMemory::new(&Budget::unlimited("memory"), options).unwrap();
            let source = Arc::new(Before::new(1, |_| Err(broken())));
            check_all(&memory.register("blk.3.weight", LEN, 0, source).unwrap(), 1);
        }
        "a source that panics" => check_all(&page(Before::new(1, |_| panic!("blk.3.weight: a bug"))), 1),
        "a store that fails" => {
            let region = page(Spill { fails: true, ..Spill::default() });
            for at in (0..LEN).step_by(UNIT) {
                // SAFETY: the byte lies in the region, which nobody else has.
                unsafe { region.as_ptr().add(at).write(7) };
            }
        }
        "a file that shrinks" | "a file that is rewritten" | "a widened file that is rewritten" => {
            let region = page_file(file.path(), case.contains("widened"));
            let _first = data(&region)[0];
            match case.contains("shrinks") {
                true => writable.set_len(LEN as u64 / 4).unwrap(),
                false => writable.write_all_at(&[0; 100], LEN as u64 / 2 - 100).unwrap(),
            }
            let _sum: u64 = data(&region).iter().map(|byte| u64::from(*byte)).sum();
        }
        "a stray read" => {
            let region = page(Words(1));
            // SAFETY: there is none: the address was never registered. Its read must not return.
            let _byte = unsafe { region.as_ptr().add(LEN + 5 * UNIT).read_volatile() };
        }
        "dropped under a reader" => {
            let (gate, waits) = (Gate::default(), Arc::new(AtomicBool::new(false)));
            let source = {
                let (gate, waits) = (gate.clone(), Arc::clone(&waits));
                Before::new(1, move |at| {
                    waits.store(at == 0, Ordering::SeqCst);
                    gate.pass();
                    Ok(())
                })
            };
            let region = page(source);
            let address = region.as_ptr().addr();
            // SAFETY: there is none: the region is dropped meanwhile. The read must not return.
            let read = move || unsafe { std::ptr::with_exposed_provenance::<u8>(address).read_volatile() };
            let _kept = region.memory().clone();
            region.as_ptr().expose_provenance();
            let reader = std::thread::spawn(read);
            while !waits.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
            std::thread::sleep(Duration::from_millis(50)); // The fault was seen by then, most likely.
            drop(region);
            gate.open();
            drop(reader.join());
        }
        other => panic!("no case {other}"),
    }
    println!("the process went on");
}

#[test]
fn what_cannot_be_had_ends_the_process_with_a_message() {
    if !can_page() {
        return;
    }
    let place = ["blk.3.weight", "/models/model.safetensors"];
    let written = ["blk.3.weight", "/model", "was written to"];
    let rows: [(&str, &[&str]); 10] = [
        ("an input/output error", &place),
        ("the reader has standard error locked", &place),
        ("a handler that never returns", &place),
        ("a source that panics", &["blk.3.weight: a bug", "panicked"]),
        ("a store that fails", &["No space left", "/spill/blk.3.weight"]),
        ("a file that shrinks", &written),
        ("a file that is rewritten", &written),
        ("a widened file that is rewritten", &written),
        ("a stray read", &["nothing is registered", "address 0x"]),
        ("dropped under a reader", &["expected an address of a registered range"]),
    ];
    std::thread::scope(|scope| {
        for (case, said) in rows {
            scope.spawn(move || {
                let output = run(case);
                let text = String::from_utf8_lossy(&output.stderr);
                assert_eq!(output.status.code(), Some(74), "{case}: {text}");
                assert!(said.iter().all(|word| text.contains(word)), "{case}: {text}");
                assert!(!String::from_utf8_lossy(&output.stdout).contains("went on"), "{case}");
            });
        }
    });
}

// What the kernel refuses, each in a child.

/// From now on the kernel refuses this system call, as a container's filter does.
fn forbid(call: libc::c_long) {
    let load = libc::sock_filter { code: 0x20, jt: 0, jf: 0, k: 0 }; // The number of the call.
    let is = libc::sock_filter { code: 0x15, jt: 0, jf: 1, k: call as u32 };
    let refuse = libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: 0x0005_0000 | libc::EPERM as u32 };
    let allow = libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: 0x7fff_0000 };
    let mut filter = [load, is, refuse, allow];
    let program = libc::sock_fprog { len: 4, filter: filter.as_mut_ptr() };
    // SAFETY: the program and its filter live during the call, which copies them.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, 2, &raw const program), 0);
    }
}

fn limit(what: libc::__rlimit_resource_t, most: u64) {
    let limit = libc::rlimit { rlim_cur: most, rlim_max: most };
    // SAFETY: the structure lives during the call.
    assert_eq!(unsafe { libc::setrlimit(what, &raw const limit) }, 0);
}

fn refusal(case: &str) {
    let budget = Budget::new("memory", Bytes::mib(64));
    let said = match case {
        "no userfaultfd" => {
            forbid(libc::SYS_userfaultfd);
            "userfaultfd: Operation not permitted"
        }
        "no event" => {
            forbid(libc::SYS_eventfd2);
            "make an event: Operation not permitted"
        }
        "no descriptors" => {
            limit(libc::RLIMIT_NOFILE, 0);
            "Too many open files"
        }
        "no address space" => {
            limit(libc::RLIMIT_AS, 256 << 20);
            "reserve address space: Cannot allocate memory"
        }
        "no threads" => {
            forbid(libc::SYS_clone3);
            forbid(libc::SYS_clone);
            "start a paging thread: Operation not permitted"
        }
        other => panic!("no case {other}"),
    };
    let error = PagedMemory::new(&budget, Options::new("weights", Bytes::mib(16))).unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. } | Error::System { .. }), "{error:?}");
    assert!(error.to_string().contains(said), "{case}: {error}");
    assert_eq!(budget.usage().used, Bytes::ZERO, "{case}");
    println!("refused as it should be");
}

#[test]
fn what_the_kernel_refuses_is_a_typed_error_and_takes_nothing() {
    if !can_page() {
        return;
    }
    for case in ["no userfaultfd", "no event", "no descriptors", "no address space", "no threads"] {
        let output = run(case);
        let text = String::from_utf8_lossy(&output.stderr);
        let said = String::from_utf8_lossy(&output.stdout).contains("refused as it should be");
        assert!(output.status.success() && said, "{case}: {text}");
    }
}

// What is carried on from.

#[test]
fn a_file_replaced_by_another_is_still_the_old_one() {
    if !can_page() {
        return;
    }
    let (old, new) = (file("old"), file("new"));
    new.as_file().write_all_at(&[0; 4096], 0).unwrap();
    let region = page_file(old.path(), false);
    check(&region, 1, 0..UNIT);
    std::fs::rename(new.path(), old.path()).unwrap();
    (0..2).for_each(|_| check_all(&region, 1));
}

/// Only what is read ahead fails at first; nobody waits for it, and it is tried again when somebody does.
#[test]
fn failures_ahead_are_tried_again() {
    if !can_page() {
        return;
    }
    let _watchdog = watch("failures ahead");
    let failed = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&failed);
    let region = page(Before::new(1, move |at| match at == 0 || count.load(Ordering::SeqCst) >= UNITS - 1 {
        true => Ok(()),
        false => {
            count.fetch_add(1, Ordering::SeqCst);
            Err(broken())
        }
    }));
    check(&region, 1, 0..UNIT);
    while failed.load(Ordering::SeqCst) < UNITS - 1 {
        std::thread::yield_now();
    }
    (0..3).for_each(|_| check_all(&region, 1));
}

#[test]
fn threads_that_wait_are_served_after_all_other_handles_are_gone() {
    if !can_page() {
        return;
    }
    let _watchdog = watch("waiting threads");
    for threads in [1, 4] {
        let budget = Budget::new("memory", Bytes::mib(4));
        let (gate, memory) = (Gate::default(), paged(&budget));
        let (opened, waits) = (gate.clone(), Arc::new(AtomicUsize::new(0)));
        let count = Arc::clone(&waits);
        let source = Before::new(1, move |_| {
            count.fetch_add(1, Ordering::SeqCst);
            opened.pass();
            Ok(())
        });
        let region = Arc::new(memory.register("blk.3.weight", LEN, 0, Arc::new(source)).unwrap());
        let reader = |thread: usize| {
            let region = Arc::clone(&region);
            std::thread::spawn(move || check(&region, 1, thread * UNIT * 8..LEN))
        };
        let readers: Vec<_> = (0..threads).map(reader).collect();
        drop((region, memory));
        while waits.load(Ordering::SeqCst) == 0 {
            std::thread::yield_now();
        }
        gate.open();
        readers.into_iter().for_each(|reader| reader.join().unwrap());
        assert_eq!(budget.usage().used, Bytes::ZERO, "the last reader gives everything back");
    }
}

#[test]
fn stops_in_order_while_loaders_fill() {
    if !can_page() {
        return;
    }
    let _watchdog = watch("stopping");
    for _ in 0..20 {
        let budget = Budget::new("memory", Bytes::mib(4));
        let (gate, memory, filling) = (Gate::default(), paged(&budget), Arc::new(AtomicBool::new(false)));
        let (opened, fills) = (gate.clone(), Arc::clone(&filling));
        let source = Before::new(1, move |at| {
            if at > 0 {
                fills.store(true, Ordering::SeqCst);
                opened.pass();
            }
            Ok(())
        });
        let region = memory.register("blk.3.weight", LEN, 0, Arc::new(source)).unwrap();
        drop(memory);
        check(&region, 1, 0..UNIT);
        while !filling.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        let opener = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(2));
            gate.open();
        });
        drop(region);
        assert_eq!(budget.usage().used, Bytes::ZERO);
        opener.join().unwrap();
    }
}

#[test]
fn other_processes_can_be_started_meanwhile() {
    if !can_page() {
        return;
    }
    let _watchdog = watch("forks");
    let (region, done) = (page(Words(1)), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(Ordering::SeqCst) {
                    check_all(&region, 1);
                }
            });
        }
        for _ in 0..10 {
            assert!(std::process::Command::new("true").status().unwrap().success());
            // SAFETY: the child calls nothing but `_exit`.
            let child = unsafe { libc::fork() };
            if child == 0 {
                // SAFETY: ends the child at once.
                unsafe { libc::_exit(3) };
            }
            let mut status = 0;
            // SAFETY: the status lives during the call.
            assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
            assert_eq!(libc::WEXITSTATUS(status), 3);
        }
        done.store(true, Ordering::SeqCst);
    });
}

extern "C" fn nothing(_: libc::c_int) {}

/// Signals reach readers in a fault, loaders in a read, and the thread that waits for faults.
#[test]
fn signals_disturb_nobody() {
    if !can_page() {
        return;
    }
    let output = run("signals");
    let said = String::from_utf8_lossy(&output.stdout).contains("nobody was disturbed");
    assert!(said && output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// In a process of its own, since other tests' calls would be interrupted too.
fn signals() {
    let handler: extern "C" fn(libc::c_int) = nothing;
    // SAFETY: the handler does nothing, which may be done anywhere; without `SA_RESTART`, so that calls are interrupted.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as usize;
        assert_eq!(libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut()), 0);
    }
    let file = file("signals");
    let region = page_file(file.path(), false);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let threads = || std::fs::read_dir("/proc/self/task").unwrap().flatten();
            while !done.load(Ordering::SeqCst) {
                for thread in threads() {
                    let thread: libc::c_int = thread.file_name().to_string_lossy().parse().unwrap();
                    // SAFETY: sends a signal that has a handler to a thread of this process, or to none.
                    unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, libc::SIGUSR1) };
                }
            }
        });
        let readers = [0, 1].map(|thread| {
            let region = &region;
            scope.spawn(move || (0..20).for_each(|_| check(region, 1, thread * UNIT..LEN)))
        });
        let ends = readers.map(std::thread::ScopedJoinHandle::join);
        done.store(true, Ordering::SeqCst);
        assert!(ends.iter().all(std::result::Result::is_ok));
    });
    println!("nobody was disturbed");
}

#[test]
fn a_budget_that_others_use_refuses_until_they_are_gone() {
    if !can_page() {
        return;
    }
    let budget = Budget::new("memory", Bytes::mib(1));
    let others = budget.reserve(Bytes::kib(900), &dd_core::Holder::new("others")).unwrap();
    let new = || PagedMemory::new(&budget, Options::new("weights", Bytes::mib(8)));
    let refused = new().unwrap_err();
    assert!(matches!(refused, Error::TooSmall { least, .. } if least == Layout::least()), "{refused}");
    assert_eq!(budget.usage().used, Bytes::kib(900));
    drop(others);
    new().unwrap();
}

/// What is paged without widening may come in blocks of any size.
#[test]
fn blocks_that_do_not_divide_a_page_are_paged_as_they_are() {
    if !can_page() {
        return;
    }
    let file = file("quantised");
    for (dtype, offset, len) in
        [(DType::Q4K, 0, 144 * 2000), (DType::Q8_0, 34, 34 * 9000), (DType::F32, 3, 99_996)]
    {
        let direct = DirectFile::open(file.path()).unwrap();
        let source = WideningSource::new(direct, "blk.3.weight", (offset, len), (dtype, dtype)).unwrap();
        let memory = paged(&Budget::unlimited("memory"));
        let region = memory.register("blk.3.weight", len as usize, 0, Arc::new(source)).unwrap();
        let mut expected = vec![0; LEN];
        fill_words(1, 0, &mut expected);
        let range = offset as usize..(offset + len) as usize;
        assert!(data(&region) == &expected[range], "{dtype}");
    }
}

/// Registers memory with a ring, which pins its pages for as long as the ring is there; nothing where that is refused.
fn pin(address: *mut u8, len: usize) -> Option<std::os::fd::OwnedFd> {
    use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

    let (mut parameters, buffer) = ([0u8; 120], libc::iovec { iov_base: address.cast(), iov_len: len });
    // SAFETY: the structure has the size that the kernel fills; the descriptor is new, and nobody else's.
    let ring = unsafe {
        let ring = libc::syscall(libc::SYS_io_uring_setup, 1, parameters.as_mut_ptr());
        (ring >= 0).then(|| OwnedFd::from_raw_fd(ring as i32))?
    };
    // SAFETY: the vector lives during the call, and the memory longer than the ring.
    let pinned =
        unsafe { libc::syscall(libc::SYS_io_uring_register, ring.as_raw_fd(), 0, &raw const buffer, 1) };
    (pinned == 0).then_some(ring)
}

#[test]
fn pages_that_are_pinned_are_copied_out() {
    if !can_page() {
        return;
    }
    let _watchdog = watch("pinned pages");
    let region = page(Words(1));
    check(&region, 1, 0..UNIT);
    let Some(ring) = pin(region.as_ptr(), 2 * PAGE) else {
        dd_conformance::skipped!("io_uring pins no memory here: {}", std::io::Error::last_os_error());
        return;
    };
    (0..3).for_each(|_| check_all(&region, 1));
    let copied = region.memory().stats().copied;
    assert!(copied > 0, "{:?}", region.memory().stats());
    drop(ring);
    (0..2).for_each(|_| check_all(&region, 1));
    assert_eq!(region.memory().stats().copied, copied, "nothing is pinned any more");
}

/// Written memory that cannot be moved is not copied behind its writer's back: it stays, and others go.
#[test]
fn written_pages_that_are_pinned_stay() {
    if !can_page() {
        return;
    }
    let _watchdog = watch("pinned and written pages");
    let memory = paged(&Budget::unlimited("memory"));
    let kept = memory.register("cache", 2 * UNIT, 0, Arc::new(Spill::default())).unwrap();
    let region = memory.register("blk.3.weight", LEN, 0, Arc::new(Words(1))).unwrap();
    for index in 0..2 * UNIT / 8 {
        // SAFETY: the word lies in the region, aligned, and is this thread's alone.
        unsafe { kept.as_ptr().cast::<u64>().add(index).write(word(9, index as u64 * 8)) };
    }
    let Some(ring) = pin(kept.as_ptr(), 2 * UNIT) else {
        dd_conformance::skipped!("io_uring pins no memory here: {}", std::io::Error::last_os_error());
        return;
    };
    (0..3).for_each(|_| check_all(&region, 1));
    assert_eq!(memory.stats().bytes_stored, 0, "{:?}", memory.stats());
    check_all(&kept, 9);
    drop(ring);
    (0..3).for_each(|_| check_all(&region, 1));
    check_all(&kept, 9);
}

// Ranges that are written to.

/// Keeps what was written.
#[derive(Default)]
struct Spill {
    kept: Mutex<std::collections::HashMap<u64, Vec<u8>>>,
    fails: bool,
}

impl Source for Spill {
    fn fill(&self, at: u64, out: &mut [u8], _: &mut Scratch) -> Result<()> {
        for (index, out) in out.chunks_mut(4096).enumerate() {
            match self.kept.lock().unwrap().get(&(at + index as u64 * 4096)) {
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
        if self.fails {
            return Err(Error::Write {
                operation: "spill",
                path: "/spill/blk.3.weight".into(),
                tensor: None,
                source: std::io::Error::from_raw_os_error(libc::ENOSPC),
            });
        }
        for (index, data) in data.chunks(4096).enumerate() {
            self.kept.lock().unwrap().insert(at + index as u64 * 4096, data.to_vec());
        }
        Ok(())
    }
}

#[test]
fn what_was_written_comes_back() {
    if !can_page() {
        return;
    }
    let _watchdog = watch("writable ranges");
    for threads in [1, 4] {
        let region = page(Spill::default());
        let memory = region.memory().clone();
        let beside = memory.register("beside", 100_000, 17, Arc::new(Words(5))).unwrap();
        let words = LEN / 8 / threads;
        std::thread::scope(|scope| {
            for thread in 0..threads {
                let (region, beside) = (&region, &beside);
                scope.spawn(move || {
                    for pass in 0..4u64 {
                        for index in thread * words..(thread + 1) * words {
                            let at = region.as_ptr().cast::<u64>().wrapping_add(index);
                            let old = if pass == 0 { 0 } else { word(pass - 1, index as u64) };
                            // SAFETY: the word lies in the region, aligned, and is this thread's alone.
                            unsafe {
                                assert!(at.read() == old, "word {index} before pass {pass}");
                                at.write(word(pass, index as u64));
                            }
                        }
                        check_all(beside, 5);
                    }
                });
            }
        });
        let stats = memory.stats();
        assert!(stats.bytes_stored as usize >= LEN && stats.evicted as usize >= UNITS, "{stats:?}");
    }
}

#[test]
fn writable_ranges_are_refused_where_pages_can_only_be_copied() {
    if !can_page() {
        return;
    }
    let options = Options { copying: true, ..options(1 << 20, Layout::least()) };
    let memory = PagedMemory::new(&Budget::unlimited("memory"), options).unwrap();
    let refused = memory.register("cache", LEN, 0, Arc::new(Spill::default())).unwrap_err();
    assert!(matches!(refused, Error::Invalid { .. }) && refused.to_string().contains("cache"), "{refused}");
    check_all(&memory.register("blk.3.weight", LEN, 0, Arc::new(Words(1))).unwrap(), 1);
}

// Nothing is left behind.

fn left() -> [usize; 3] {
    let entries = |path: &str| std::fs::read_dir(path).unwrap().count();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap().lines().count();
    [entries("/proc/self/fd"), maps, entries("/proc/self/task")]
}

fn cycles() {
    let once = |number: usize| {
        let memory = PagedMemory::new(
            &Budget::unlimited("memory"),
            Options { copying: number.is_multiple_of(3), ..options(8 << 20, Bytes::mib(2)) },
        );
        let memory = memory.unwrap();
        let region = memory.register("blk.3.weight", LEN, 0, Arc::new(Words(1))).unwrap();
        check(&region, 1, number % UNITS * UNIT..LEN);
        if number.is_multiple_of(2) { drop(memory) } else { drop(region) }
    };
    (0..10).for_each(once);
    let before = left();
    (0..100).for_each(once);
    let after = left();
    assert!(
        before[0] == after[0] && before[2] == after[2],
        "descriptors, mappings, threads: {before:?} {after:?}"
    );
    assert!(after[1] <= before[1] + 4, "mappings: {before:?} {after:?}"); // The allocator has its own.
    println!("nothing is left behind");
}

#[test]
fn a_hundred_cycles_leave_nothing_behind() {
    if !can_page() {
        return;
    }
    let output = run("cycles");
    let said = String::from_utf8_lossy(&output.stdout).contains("nothing is left behind");
    assert!(said && output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Not a test of its own: what the child processes of the others do.
#[test]
fn child() {
    match case().as_deref() {
        None => assert!(finish("itself", pages::command("nothing").spawn().unwrap()).status.success()),
        Some("nothing") => {}
        Some("cycles") => cycles(),
        Some("signals") => signals(),
        Some(case) if case.starts_with("no ") => refusal(case),
        Some(case) => fault(case),
    }
}
