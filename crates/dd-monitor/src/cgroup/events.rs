//! [`EventCounter`]: how often the container came to its limit, and what the kernel did about it.
//!
//! v2 counts in `memory.events`, over the group and all below it, and tells whoever polls that file when a count
//! changes. v1 has the failed charges in `memory.failcnt` and `memory.memsw.failcnt`, and the kills in
//! `memory.oom_control`; it tells who asked through an event file that memory is reclaimed or has run out, which is when
//! those counters move. Where it lets nobody ask, and for what moves a counter without either, they are read again ten
//! times a second while somebody waits.
//! Source: the kernel's `cgroup-v2.rst` and `cgroup-v1/memory.rst`.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::alarm::{CgroupAlarm, ReclaimLevel, register, take_off};
use super::{CgroupMemory, CgroupVersion};
use crate::error::{Error, Result};
use crate::kept::{KeptFile, buffer};
use crate::sys::{self, News};
use crate::{lock, text};

/// How often v1's counters are read again while somebody waits.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// How often each thing has happened since the group was made. What the kernel does not count is zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct CgroupEvents {
    /// Memory that was promised to the group (`memory.low`) was taken from it.
    pub low: u64,
    /// The soft limit was passed, and the group was slowed down.
    pub high: u64,
    /// The limit was reached, and memory had to be reclaimed.
    pub max: u64,
    /// Nothing was left to reclaim.
    pub oom: u64,
    /// A process was killed for it.
    pub oom_kill: u64,
}

impl CgroupEvents {
    /// What has happened since an earlier reading.
    #[must_use]
    pub const fn since(&self, earlier: &Self) -> Self {
        Self {
            low: self.low.saturating_sub(earlier.low),
            high: self.high.saturating_sub(earlier.high),
            max: self.max.saturating_sub(earlier.max),
            oom: self.oom.saturating_sub(earlier.oom),
            oom_kill: self.oom_kill.saturating_sub(earlier.oom_kill),
        }
    }

    fn parse_v2(text: &[u8]) -> Self {
        text::fields(text).fold(Self::default(), |counted, (key, count)| match key {
            b"low" => Self { low: count, ..counted },
            b"high" => Self { high: count, ..counted },
            b"max" => Self { max: count, ..counted },
            b"oom" => Self { oom: count, ..counted },
            b"oom_kill" => Self { oom_kill: count, ..counted },
            _ => counted,
        })
    }
}

/// Counts the events of the process's own group; its files stay open, and a reading allocates nothing.
#[derive(Debug)]
pub struct EventCounter {
    source: Source,
}

#[derive(Debug)]
enum Source {
    V2(KeptFile),
    V1(CountersV1),
}

/// The counters of a v1 group.
#[derive(Debug)]
struct CountersV1 {
    folder: PathBuf,
    /// Failed charges of memory, and of memory and swap together, whose limit may be the one that is met.
    failures: [Option<KeptFile>; 2],
    control: Option<KeptFile>,
    /// What the last reading gave, and what the kernel signals; the latter from the first wait on.
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    seen: CgroupEvents,
    events: Option<File>,
    asked: bool,
}

impl CountersV1 {
    fn open(folder: &Path) -> Option<Self> {
        let open = |name: &str| KeptFile::open_path(folder.join(name)).ok();
        let failures = ["memory.failcnt", "memory.memsw.failcnt"].map(open);
        let control = open("memory.oom_control");
        let counts = failures.iter().any(Option::is_some) || control.is_some();
        let waiting = Mutex::default();
        counts.then(|| Self { folder: folder.to_owned(), failures, control, waiting })
    }

    fn read(&self) -> Result<CgroupEvents> {
        let mut max = 0u64;
        for file in self.failures.iter().flatten() {
            max = max.saturating_add(read(file, text::number)?.unwrap_or_default());
        }
        let killed = |text: &[u8]| text::field(text, "oom_kill");
        let oom_kill = self.control.as_ref().map(|file| read(file, killed)).transpose()?.flatten();
        let oom_kill = oom_kill.unwrap_or_default();
        Ok(CgroupEvents { max, oom_kill, oom: oom_kill, ..CgroupEvents::default() })
    }

    fn sample(&self) -> Result<CgroupEvents> {
        let found = self.read()?;
        lock(&self.waiting).seen = found;
        Ok(found)
    }

    fn wait(&self, timeout: Duration) -> Result<bool> {
        let cannot = |source| Error::CannotWait { what: "container events", source };
        let (seen, events) = {
            let mut waiting = lock(&self.waiting);
            if !std::mem::replace(&mut waiting.asked, true) {
                waiting.events = self.ask();
            }
            let events = waiting.events.as_ref().map(File::try_clone);
            (waiting.seen, events.transpose().map_err(cannot)?)
        };
        let began = Instant::now();
        loop {
            if self.read()? != seen {
                return Ok(true);
            }
            let left = timeout.saturating_sub(began.elapsed()).min(LOOK_AGAIN);
            match &events {
                _ if left.is_zero() => return Ok(false),
                None => std::thread::sleep(left),
                Some(events) => {
                    if sys::wait_for(News::Signalled, events, left).map_err(cannot)? {
                        take_off(events).map_err(cannot)?;
                    }
                }
            }
        }
    }

    /// An event file that is signalled when memory is reclaimed or has run out; nothing where nobody may ask.
    fn ask(&self) -> Option<File> {
        let events = sys::event_file().ok()?;
        let alarms = [CgroupAlarm::Reclaim(ReclaimLevel::Low), CgroupAlarm::OutOfMemory];
        let granted = alarms.map(|alarm| {
            let granted = register(&self.folder, alarm, &events);
            granted.inspect_err(|error| tracing::debug!(?alarm, %error, "counters are read again")).is_ok()
        });
        granted.contains(&true).then_some(events)
    }
}

impl EventCounter {
    /// Opens the counters of the nearest group that has some.
    ///
    /// # Errors
    /// [`Error::NoEvents`] where no group of the process counts.
    pub fn open(cgroup: &CgroupMemory) -> Result<Self> {
        let version = cgroup.version();
        let source = cgroup.folders().find_map(|folder| match version? {
            CgroupVersion::V2 => KeptFile::open_path(folder.join("memory.events")).ok().map(Source::V2),
            CgroupVersion::V1 => CountersV1::open(folder).map(Source::V1),
        });
        source.map(|source| Self { source }).ok_or_else(|| Error::NoEvents {
            place: cgroup
                .folders()
                .next()
                .map_or_else(|| "no group".to_owned(), |it| it.display().to_string()),
        })
    }

    /// Reads the counters.
    ///
    /// # Errors
    /// [`Error::Unreadable`] once the group is gone.
    pub fn sample(&self) -> Result<CgroupEvents> {
        match &self.source {
            Source::V2(file) => read(file, CgroupEvents::parse_v2),
            Source::V1(counters) => counters.sample(),
        }
    }

    /// Waits until a counter changes, at most this long, and says whether one did. What changed since the last reading
    /// counts too: without a reading before the first wait, it may say yes at once.
    ///
    /// # Errors
    /// [`Error::CannotWait`] and [`Error::Unreadable`] once the group is gone, and where the system cannot poll.
    pub fn wait(&self, timeout: Duration) -> Result<bool> {
        match &self.source {
            Source::V2(file) => wait_on(file.file(), "container events", timeout),
            Source::V1(counters) => counters.wait(timeout),
        }
    }
}

/// Waits for the kernel's word on a file.
pub(crate) fn wait_on(file: &File, what: &'static str, timeout: Duration) -> Result<bool> {
    sys::wait_for(News::Changed, file, timeout).map_err(|source| Error::CannotWait { what, source })
}

fn read<T>(file: &KeptFile, parse: impl FnOnce(&[u8]) -> T) -> Result<T> {
    let mut buffer = buffer();
    let text = file.read(&mut buffer).map_err(|source| Error::Unreadable {
        what: "container events",
        path: file.path().clone(),
        source,
    })?;
    Ok(parse(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_of_v2() {
        let all = CgroupEvents { low: 1, high: 2, max: 3, oom: 4, oom_kill: 5 };
        let rows = [
            ("low 1\nhigh 2\nmax 3\noom 4\noom_kill 5\noom_group_kill 6\n", all),
            ("max 3\n", CgroupEvents { max: 3, ..CgroupEvents::default() }),
            ("max many\n\u{0}", CgroupEvents::default()),
            ("", CgroupEvents::default()),
        ];
        for (text, expected) in rows {
            assert_eq!(CgroupEvents::parse_v2(text.as_bytes()), expected, "{text:?}");
        }
        assert_eq!(all.since(&CgroupEvents { max: 1, oom: 9, ..all }).max, 2);
        assert_eq!(CgroupEvents::default().since(&all), CgroupEvents::default());
    }
}
