//! [`CgroupAlarm`]: what a v1 group tells whoever asks through its `cgroup.event_control`.
//!
//! Asking is writing a line to that file: the number of an event file (eventfd(2)), the number of the open file that the
//! question is about, and an argument. The kernel then signals the event file. Kernels say in their log that these
//! files will go; v2 has [`EventCounter`](super::EventCounter) and [`PressureTrigger`](crate::PressureTrigger) in their place.
//! Source: the kernel's `cgroup-v1/memory.rst` and `cgroup-v1/memcg_test.rst`.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use dd_core::Bytes;

use super::{CgroupMemory, CgroupVersion};
use crate::error::{Error, Result};
use crate::sys::{self, News};

/// How hard the kernel works to find memory for a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReclaimLevel {
    /// It reclaims: caches shrink.
    Low,
    /// It reclaims, and finds less than it looks through: swapping begins, pages that are in use are dropped.
    Medium,
    /// It finds next to nothing: the next step is to kill.
    Critical,
}

impl ReclaimLevel {
    const fn name(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Medium => "medium",
            Self::Critical => "critical",
        }
    }
}

/// What to be told of a v1 group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CgroupAlarm {
    /// Its usage, page cache included, passed this many bytes, upwards or downwards.
    Usage(Bytes),
    /// The kernel reclaims its memory, at this level or a higher one.
    Reclaim(ReclaimLevel),
    /// Nothing is left to reclaim.
    OutOfMemory,
}

impl CgroupAlarm {
    /// The file that the question is about.
    const fn file(self) -> &'static str {
        match self {
            Self::Usage(_) => "memory.usage_in_bytes",
            Self::Reclaim(_) => "memory.pressure_level",
            Self::OutOfMemory => "memory.oom_control",
        }
    }

    fn argument(self) -> String {
        match self {
            Self::Usage(bytes) => bytes.0.to_string(),
            // Without a word after it, a listener further down would keep the news to itself.
            Self::Reclaim(level) => format!("{},hierarchy", level.name()),
            Self::OutOfMemory => String::new(),
        }
    }

    /// Asks the process's own group.
    ///
    /// # Errors
    /// [`Error::AlarmRefused`] where there is no v1 group, or the kernel does not grant it: the hierarchy is read-only, or
    /// the kernel was built without these files.
    pub fn arm(self, cgroup: &CgroupMemory) -> Result<ArmedAlarm> {
        let refused = |path: PathBuf, source| Error::AlarmRefused { alarm: self, path, source };
        let unsupported = |what| io::Error::new(io::ErrorKind::Unsupported, what);
        let folder = cgroup.folders().next();
        match (cgroup.version(), folder) {
            (Some(CgroupVersion::V1), Some(folder)) => {
                self.arm_in(folder).map_err(|source| refused(folder.join("cgroup.event_control"), source))
            }
            (_, Some(folder)) => {
                Err(refused(folder.to_owned(), unsupported("cgroup v2 tells through EventCounter::wait")))
            }
            (_, None) => {
                Err(refused(PathBuf::from("/proc/self/cgroup"), unsupported("no group limits this process")))
            }
        }
    }

    fn arm_in(self, folder: &Path) -> io::Result<ArmedAlarm> {
        let events = sys::event_file()?;
        register(folder, self, &events)?;
        Ok(ArmedAlarm { alarm: self, folder: folder.to_owned(), events })
    }
}

/// Has the kernel signal `events` on this alarm of a group. The registration ends when `events` is closed.
pub(super) fn register(folder: &Path, alarm: CgroupAlarm, events: &File) -> io::Result<()> {
    let about = File::open(folder.join(alarm.file()))?;
    let mut control = OpenOptions::new().write(true).open(folder.join("cgroup.event_control"))?;
    let (event, about_number) = (sys::descriptor(events), sys::descriptor(&about));
    control.write_all(format!("{event} {about_number} {}", alarm.argument()).as_bytes())
}

/// Takes the signals off an event file that is known to have some.
pub(super) fn take_off(mut events: &File) -> io::Result<bool> {
    let mut count = [0; 8];
    match events.read(&mut count) {
        Ok(read) => Ok(read == count.len()),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error),
    }
}

/// An alarm that the kernel keeps until this is dropped.
#[derive(Debug)]
pub struct ArmedAlarm {
    alarm: CgroupAlarm,
    folder: PathBuf,
    events: File,
}

impl ArmedAlarm {
    /// What is told.
    #[must_use]
    pub const fn alarm(&self) -> CgroupAlarm {
        self.alarm
    }

    /// Waits until the alarm goes off, at most this long, and says whether it did, once or more often, since the last
    /// wait.
    ///
    /// # Errors
    /// [`Error::CannotWait`] once the group is gone.
    pub fn wait(&self, timeout: Duration) -> Result<bool> {
        let cannot = |source| Error::CannotWait { what: "an alarm of the container", source };
        let rang = sys::wait_for(News::Signalled, &self.events, timeout).map_err(cannot)?;
        // A group that goes signals its event files, too.
        if !self.folder.exists() {
            return Err(cannot(io::Error::new(io::ErrorKind::NotFound, "the group is gone")));
        }
        Ok(rang && take_off(&self.events).map_err(cannot)?)
    }
}
