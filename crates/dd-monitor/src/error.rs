//! [`Error`]: why a figure could not be read, and [`Skipped`]: what was left out without failing.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a figure could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file of the kernel that cannot be opened or read.
    #[error("cannot read {what} from {}: {source}", path.display())]
    Unreadable {
        /// The figure that was wanted.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file that does not say what it should.
    #[error("{} is not as the kernel writes it: expected {expected}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What should have been there.
        expected: &'static str,
    },
    /// Host memory on a system without the kernel's file, where the fallback knows nothing either.
    #[error("this system does not say how much memory it has: {reason}; give the limit explicitly")]
    UnknownHost {
        /// What the fallback said.
        reason: String,
    },
    /// The kernel does not let this process reset its peak.
    #[error(
        "cannot reset the peak resident size through {}: {source}; \
         measure in a fresh process instead, where the peak starts low", path.display()
    )]
    PeakNotResettable {
        /// The file that was to be written.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file system of a path does not say how much it holds.
    #[error("cannot read the free space of the file system of {}: {source}", path.display())]
    DiskUnknown {
        /// The path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// No group of the process counts events.
    #[error(
        "no group of this process counts memory events (looked from {place} upwards); watch its usage instead"
    )]
    NoEvents {
        /// The process's own group.
        place: String,
    },
    /// A file that tells nobody when it changes.
    #[error("cannot wait for {what}: {source}")]
    CannotWait {
        /// What was to be waited for.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A pressure trigger that the kernel would refuse.
    #[error("a pressure trigger with a {what} of {found:?}: expected {expected}")]
    BadTrigger {
        /// `window` or `stall`.
        what: &'static str,
        /// What was given.
        found: Duration,
        /// What the kernel grants.
        expected: &'static str,
    },
    /// A pressure trigger that the kernel refused.
    #[error("cannot arm a pressure trigger on {}: {source}; read the pressure again and again instead", path.display())]
    TriggerRefused {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// An alarm of a v1 group that the kernel refused.
    #[error("cannot arm {alarm:?} through {}: {source}; read the figures again and again instead", path.display())]
    AlarmRefused {
        /// What was to be told.
        alarm: crate::cgroup::CgroupAlarm,
        /// The file, or where a group was looked for.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A provider of memory figures that failed.
    #[error("cannot read {tier}: {source}")]
    Provider {
        /// The tier that was asked for.
        tier: dd_core::Tier,
        /// What the provider said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A setting that makes no sense.
    #[error("{what} of {found}: expected {expected}")]
    BadSetting {
        /// The setting.
        what: &'static str,
        /// What was given.
        found: String,
        /// What it may be.
        expected: &'static str,
    },
    /// A thread that the system refused.
    #[error("cannot start the monitor's thread: {source}; take the samples yourself with `tick`")]
    NoThread {
        /// What the system said.
        source: io::Error,
    },
    /// A picture or a table that cannot be made.
    #[error("cannot make the {what}: {reason}")]
    Drawing {
        /// `SVG`, `PNG`, `CSV` or `JSON`.
        what: &'static str,
        /// What the library said.
        reason: String,
    },
    /// A file that cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    Unwritable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A picture of a kind that is not drawn.
    #[error("cannot draw {}: expected a name that ends in .svg or .png", path.display())]
    UnknownPicture {
        /// The file.
        path: PathBuf,
    },
    /// A GPU that is not there.
    #[error("no GPU {index}: {reason}")]
    NoGpu {
        /// The number that was asked for.
        index: u32,
        /// Why it is not there.
        reason: String,
    },
    /// The driver refused a reading.
    #[error("cannot read the {what} of GPU {index}: {source}")]
    Gpu {
        /// The GPU's number.
        index: u32,
        /// The figure that was wanted.
        what: &'static str,
        /// What the driver said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl From<Error> for dd_core::Error {
    fn from(error: Error) -> Self {
        Self::library("dd-monitor", "read memory figures", error)
    }
}

/// Something that could not be read and was left out, with the reason. The other figures hold without it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// The file or folder; for a GPU, its tier.
    pub path: PathBuf,
    /// Why it was left out.
    pub reason: String,
}

impl Skipped {
    pub(crate) fn new(path: impl Into<PathBuf>, reason: impl fmt::Display) -> Self {
        let skipped = Self { path: path.into(), reason: reason.to_string() };
        tracing::debug!(path = %skipped.path.display(), reason = skipped.reason, "memory figure skipped");
        skipped
    }
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.reason)
    }
}
