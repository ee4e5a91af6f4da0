//! [`EventCounter`]: how often the container came to its limit, and what the kernel did about it.
//!
//! v2 counts in `memory.events`, over the group and all below it, and tells whoever polls that file when a count
//! changes. v1 has the failed charges in `memory.failcnt` and the kills in `memory.oom_control`, and tells nobody who
//! has not asked through an eventfd; there the counters are read again by whoever wants to know.
//! Source: the kernel's `cgroup-v2.rst` and `cgroup-v1/memory.rst`.

use std::fs::File;
use std::io;
use std::time::Duration;

use super::{CgroupMemory, CgroupVersion};
use crate::error::{Error, Result};
use crate::kept::{KeptFile, buffer};
use crate::{sys, text};

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
    V1 { failures: Option<KeptFile>, control: Option<KeptFile> },
}

impl EventCounter {
    /// Opens the counters of the nearest group that has some.
    ///
    /// # Errors
    /// [`Error::NoEvents`] where no group of the process counts.
    pub fn open(cgroup: &CgroupMemory) -> Result<Self> {
        let version = cgroup.version();
        let source = cgroup.folders().find_map(|folder| {
            let open = |name: &str| KeptFile::open_path(folder.join(name)).ok();
            match version? {
                CgroupVersion::V2 => open("memory.events").map(Source::V2),
                CgroupVersion::V1 => {
                    let (failures, control) = (open("memory.failcnt"), open("memory.oom_control"));
                    let counts = failures.is_some() || control.is_some();
                    counts.then_some(Source::V1 { failures, control })
                }
            }
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
            Source::V1 { failures, control } => {
                let max = failures.as_ref().map(|file| read(file, text::number)).transpose()?.flatten();
                let killed = |text: &[u8]| text::field(text, "oom_kill");
                let oom_kill = control.as_ref().map(|file| read(file, killed)).transpose()?.flatten();
                let [max, oom_kill] = [max, oom_kill].map(Option::unwrap_or_default);
                Ok(CgroupEvents { max, oom_kill, oom: oom_kill, ..CgroupEvents::default() })
            }
        }
    }

    /// Waits until a counter changes, at most this long, and says whether one did. Read the counters before the first
    /// wait: a change from before the last reading counts too.
    ///
    /// # Errors
    /// [`Error::CannotWait`] under v1, whose files tell nobody, and where the system cannot poll.
    pub fn wait(&self, timeout: Duration) -> Result<bool> {
        let Source::V2(file) = &self.source else {
            let source = io::Error::new(io::ErrorKind::Unsupported, "cgroup v1 does not tell: read it again");
            return Err(Error::CannotWait { what: "container events", source });
        };
        wait_on(file.file(), "container events", timeout)
    }
}

/// Waits for the kernel's word on a file.
pub(crate) fn wait_on(file: &File, what: &'static str, timeout: Duration) -> Result<bool> {
    sys::wait_priority(file, timeout).map_err(|source| Error::CannotWait { what, source })
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
