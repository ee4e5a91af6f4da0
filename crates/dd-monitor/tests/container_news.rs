//! What the kernel tells by itself, on real groups that are made for it: each has a small limit and a child that runs into
//! it. Where no group may be made, or the kernel does not tell, that is said and nothing is claimed.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "tests")]

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use dd_core::Bytes;
use dd_monitor::cgroup::{CgroupAlarm, ReclaimLevel};
use dd_monitor::{
    CgroupMemory, CgroupVersion, Error, EventCounter, PressureSampler, PressureTrigger, ProcessId, Root,
    StallKind,
};

const LIMIT: Bytes = Bytes::mib(16);
/// Longer than any of this takes, however busy the machine is.
const LONG: Duration = Duration::from_secs(120);

/// A group with a limit and a child in it that waits for a word before it begins. Both are gone when this is dropped.
struct Group {
    folder: PathBuf,
    child: Option<Child>,
}

impl Group {
    /// A group with a child that will run this script; nothing where none may be made.
    fn with(script: &str) -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("dd-monitor-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let folder = parents().into_iter().map(|parent| parent.join(&name)).find(|folder| limited(folder))?;
        let mut group = Self { folder, child: None };
        let script = format!("read go; {script}");
        let mut command = Command::new("sh");
        command.args(["-c", &script]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = group.child.insert(command.spawn().unwrap());
        let joined = fs::write(group.folder.join("cgroup.procs"), child.id().to_string());
        joined.is_ok().then_some(group)
    }

    fn cgroup(&self) -> CgroupMemory {
        let cgroup =
            CgroupMemory::open_for(&Root::default(), ProcessId::Pid(self.child.as_ref().unwrap().id()));
        assert_eq!(cgroup.folders().next(), Some(self.folder.as_path()));
        assert_eq!(cgroup.sample().limit, Some(LIMIT));
        cgroup
    }

    fn go(&mut self) {
        self.child.as_mut().unwrap().stdin.take().unwrap().write_all(b"go\n").unwrap();
    }

    /// Waits for the child's end.
    fn end(&mut self) {
        self.child.take().unwrap().wait().unwrap();
    }

    /// Ends what is left in the group.
    fn clear(&mut self) {
        let procs = self.folder.join("cgroup.procs");
        while let Some(pids) = fs::read_to_string(&procs).ok().filter(|pids| !pids.trim().is_empty()) {
            let _ended_meanwhile = Command::new("kill").arg("-9").args(pids.split_whitespace()).status();
            if let Some(mut child) = self.child.take() {
                child.wait().unwrap();
            }
            std::thread::yield_now();
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.clear();
        while self.folder.exists() && fs::remove_dir(&self.folder).is_err() {
            std::thread::yield_now();
        }
    }
}

/// Where this process might make groups of the memory controller.
fn parents() -> Vec<PathBuf> {
    let membership = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let candidates = membership.lines().filter_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        let top = match controllers {
            "" => "/sys/fs/cgroup",
            "memory" => "/sys/fs/cgroup/memory",
            _ => return None,
        };
        Some([PathBuf::from(format!("{top}{path}")), PathBuf::from(top)])
    });
    candidates.flatten().collect()
}

/// Makes the group with its limit, and little swap beside it; leaves nothing behind where that fails. Where memory and swap
/// together had the same limit as memory, v1 would meet that one first, and count nothing.
fn limited(folder: &Path) -> bool {
    if fs::create_dir(folder).is_err() {
        return false;
    }
    let set = |name: &str, bytes: u64| {
        let path = folder.join(name);
        path.exists() && fs::write(path, bytes.to_string()).is_ok()
    };
    let done = set("memory.max", LIMIT.0) || set("memory.limit_in_bytes", LIMIT.0);
    let _little_swap = set("memory.swap.max", LIMIT.0) || set("memory.memsw.limit_in_bytes", 2 * LIMIT.0);
    if !done {
        fs::remove_dir(folder).unwrap();
    }
    done
}

macro_rules! group_or_skip {
    ($script:expr) => {
        match Group::with($script) {
            Some(group) => group,
            None => {
                dd_conformance::skipped!("no memory control group may be made here");
                return;
            }
        }
    };
}

/// A file four times as large as the limit, on a disk: its pages fill a group and can be reclaimed.
fn large_file() -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let block = vec![7u8; 1 << 20];
    (0..4 * LIMIT.0 / Bytes::mib(1).0).for_each(|_| file.write_all(&block).unwrap());
    file
}

/// Writes as much as the file holds, in the group.
fn fill(file: &Path) -> String {
    format!("dd if=/dev/zero of={} bs=1048576 count=64", file.display())
}

#[test]
fn reaching_the_limit_is_told() {
    let file = large_file();
    let mut group = group_or_skip!(&fill(file.path()));
    let cgroup = group.cgroup();
    let counter = EventCounter::open(&cgroup).unwrap();
    let before = counter.sample().unwrap();
    assert!(!counter.wait(Duration::ZERO).unwrap(), "nothing has happened yet");
    let rising = [CgroupAlarm::Usage(Bytes::mib(8)), CgroupAlarm::Reclaim(ReclaimLevel::Low)];
    let armed: Vec<_> = if cgroup.version() == Some(CgroupVersion::V1) {
        rising
            .iter()
            .filter_map(|alarm| alarm.arm(&cgroup).inspect_err(|error| println!("{error}")).ok())
            .collect()
    } else {
        let refused = rising[0].arm(&cgroup).unwrap_err();
        assert!(matches!(refused, Error::AlarmRefused { .. }), "{refused}");
        Vec::new()
    };
    for alarm in &armed {
        assert!(!alarm.wait(Duration::ZERO).unwrap(), "{:?} before anything has happened", alarm.alarm());
    }
    group.go();
    assert!(counter.wait(LONG).unwrap(), "the limit was not reached");
    assert!(counter.sample().unwrap().since(&before).max > 0);
    for alarm in &armed {
        assert!(alarm.wait(LONG).unwrap(), "{:?} did not go off", alarm.alarm());
    }
    group.end();
    assert!(counter.sample().is_ok());
    assert!(!counter.wait(Duration::ZERO).unwrap(), "all has been read");
}

#[test]
fn running_out_is_told_and_counted() {
    let mut group = group_or_skip!("head -c 67108864 /dev/zero | tail -c 67108864");
    let cgroup = group.cgroup();
    let counter = EventCounter::open(&cgroup).unwrap();
    let before = counter.sample().unwrap();
    let alarm = CgroupAlarm::OutOfMemory.arm(&cgroup);
    group.go();
    group.end();
    assert!(counter.wait(LONG).unwrap());
    let events = counter.sample().unwrap().since(&before);
    assert!(events.oom_kill > 0 && events.oom > 0, "{events:?}");
    match alarm {
        Ok(alarm) => assert!(alarm.wait(LONG).unwrap(), "the alarm did not go off"),
        Err(error) => dd_conformance::skipped!("{error}"),
    }
}

#[test]
fn a_group_that_goes_ends_the_waiting() {
    let mut group = group_or_skip!("true");
    let cgroup = group.cgroup();
    let counter = EventCounter::open(&cgroup).unwrap();
    let alarm = CgroupAlarm::Usage(LIMIT).arm(&cgroup);
    counter.sample().unwrap();
    group.go();
    group.end();
    drop(group);
    if let Ok(alarm) = alarm {
        let gone = alarm.wait(LONG).unwrap_err();
        assert!(matches!(gone, Error::CannotWait { .. }), "{gone}");
    }
    let gone = counter.sample().unwrap_err();
    assert!(matches!(gone, Error::Unreadable { .. }), "{gone}");
    if cgroup.version() == Some(CgroupVersion::V1) {
        assert!(counter.wait(LONG).is_err());
    }
}

#[test]
fn pressure_is_told_by_the_trigger() {
    let file = large_file();
    let script = format!("while :; do cat {}; done", file.path().display());
    let mut group = group_or_skip!(&script);
    let (root, cgroup) = (Root::default(), group.cgroup());
    let Ok(sampler) = PressureSampler::open_nearest(&root, &cgroup) else {
        dd_conformance::skipped!("this kernel tells no memory pressure");
        return;
    };
    let trigger = PressureTrigger::new(StallKind::Some, Duration::from_millis(2), Duration::from_secs(2));
    let armed = match trigger.unwrap().arm_nearest(&root, &cgroup) {
        Ok(armed) => armed,
        Err(error) => {
            dd_conformance::skipped!("{error}");
            return;
        }
    };
    let before = sampler.sample().unwrap();
    group.go();
    assert!(armed.wait(LONG).unwrap(), "the trigger did not fire: {:?}, before {before:?}", sampler.sample());
    let after = sampler.sample().unwrap();
    let waited = after.some.total.saturating_sub(before.some.total);
    assert!(waited >= Duration::from_millis(2), "{waited:?}");
    println!(
        "tasks waited {waited:?} for memory, {:?} of it all at once",
        after.full.total - before.full.total
    );
}
