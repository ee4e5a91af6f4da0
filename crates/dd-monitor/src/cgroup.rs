//! [`CgroupMemory`]: how much memory the container leaves, over all ancestors.
//!
//! A process belongs to one control group of the memory controller, and a limit may be set on that group or on any
//! group above it; the least of them all counts. Which hierarchy has the controller is what `/proc/self/cgroup` says
//! (v1 where it names `memory`, else v2), and where its folders are is what `/proc/self/mountinfo` says. The mount may
//! show the whole hierarchy, or only a part (a container's own group bound to `/sys/fs/cgroup`), so the group's path
//! is looked up relative to the root of the mount. What lies above that root is invisible; cgroup v1 still tells its
//! least limit, as `hierarchical_memory_limit`.
//!
//! A part of the usage is page cache that the kernel drops before it refuses memory. As container managers do, the
//! inactive file pages are counted as reclaimable: available = limit − (usage − reclaimable).
//!
//! Nothing here fails. What cannot be read is left out, with the reason in [`CgroupReport::skipped`].
//! Sources: cgroups(7), cgroup_namespaces(7), the kernel's `cgroup-v2.rst` and `cgroup-v1/memory.rst`.

use std::fmt;
use std::path::{Path, PathBuf};

use dd_core::Bytes;

use crate::error::Skipped;
use crate::process::ProcessId;
use crate::root::Root;

mod alarm;
mod events;
mod level;
mod locate;

pub use alarm::{ArmedAlarm, CgroupAlarm, ReclaimLevel};
pub(crate) use events::wait_on;
pub use events::{CgroupEvents, EventCounter};

use level::Level;

/// The two generations of control groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CgroupVersion {
    /// One hierarchy per controller.
    V1,
    /// One hierarchy for all.
    V2,
}

impl fmt::Display for CgroupVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::V1 => "v1",
            Self::V2 => "v2",
        })
    }
}

/// What all levels together say. A figure that is not there was not set, or could not be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CgroupSample {
    /// The least limit over all ancestors.
    pub limit: Option<Bytes>,
    /// The least soft limit (v2's `memory.high`): beyond it the kernel slows down and reclaims, but does not refuse.
    pub soft_limit: Option<Bytes>,
    /// What is taken, without what is reclaimable, in the group whose limit is the least (the highest of several).
    pub used: Option<Bytes>,
    /// The least that any level with a limit leaves.
    pub available: Option<Bytes>,
}

impl CgroupSample {
    /// Takes one more level into account, nearest to the process first.
    fn with(self, level: &CgroupFigures) -> Self {
        let limit = level.effective_limit();
        let binds = limit.is_some_and(|limit| self.limit.is_none_or(|least| limit <= least));
        Self {
            limit: least(self.limit, limit),
            soft_limit: least(self.soft_limit, level.soft_limit),
            used: if binds { level.working_set().or(self.used) } else { self.used },
            available: least(self.available, level.available()),
        }
    }
}

/// The lesser of two figures, where there are two.
fn least(a: Option<Bytes>, b: Option<Bytes>) -> Option<Bytes> {
    a.into_iter().chain(b).min()
}

/// The figures of one group. One that is not there was not set, or could not be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CgroupFigures {
    /// Its own limit.
    pub limit: Option<Bytes>,
    /// The least limit of it and all above it, which v1 knows even where the folders above are hidden.
    pub inherited_limit: Option<Bytes>,
    /// Its soft limit (v2's `memory.high`).
    pub soft_limit: Option<Bytes>,
    /// What it and the groups below it have taken, page cache included.
    pub usage: Option<Bytes>,
    /// The inactive part of its page cache.
    pub reclaimable: Option<Bytes>,
    /// How much it may swap out; only in a report. v1 limits memory and swap together: there it is what that limit
    /// allows beyond the limit of memory.
    pub swap_limit: Option<Bytes>,
    /// How much it has swapped out; only in a report.
    pub swap_used: Option<Bytes>,
}

impl CgroupFigures {
    /// The least of its own limit and the inherited one.
    #[must_use]
    pub fn effective_limit(&self) -> Option<Bytes> {
        least(self.limit, self.inherited_limit)
    }

    /// What is taken and would not be given back.
    #[must_use]
    pub fn working_set(&self) -> Option<Bytes> {
        self.usage.map(|usage| usage.saturating_sub(self.reclaimable.unwrap_or_default()))
    }

    /// What the limit leaves; nothing where there is no limit. Unknown usage counts as none.
    #[must_use]
    pub fn available(&self) -> Option<Bytes> {
        self.effective_limit().map(|limit| limit.saturating_sub(self.working_set().unwrap_or_default()))
    }
}

/// One group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CgroupLevel {
    /// Its folder.
    pub path: PathBuf,
    /// Its figures.
    pub figures: CgroupFigures,
}

/// One reading of all levels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CgroupReport {
    /// Which generation limits memory; nothing where no group with such figures was found.
    pub version: Option<CgroupVersion>,
    /// The group of the process first, then its ancestors.
    pub levels: Vec<CgroupLevel>,
    /// What could not be read, and why.
    pub skipped: Vec<Skipped>,
}

impl CgroupReport {
    /// What all levels together say.
    #[must_use]
    pub fn summary(&self) -> CgroupSample {
        self.levels.iter().fold(CgroupSample::default(), |sample, level| sample.with(&level.figures))
    }

    /// How much may be swapped out: the least over all ancestors; nothing where no level sets a limit.
    #[must_use]
    pub fn swap_limit(&self) -> Option<Bytes> {
        self.levels.iter().filter_map(|level| level.figures.swap_limit).min()
    }
}

/// The control groups that bind this process; their files stay open, and a sample allocates nothing.
///
/// It stays with the groups that it was opened for: a process that is moved to another group opens it anew.
#[derive(Debug, Default)]
pub struct CgroupMemory {
    version: Option<CgroupVersion>,
    levels: Vec<Level>,
    skipped: Vec<Skipped>,
}

impl CgroupMemory {
    /// Finds the groups of this process and opens their files.
    #[must_use]
    pub fn open(root: &Root) -> Self {
        Self::open_for(root, ProcessId::Own)
    }

    /// Finds the groups of a process, as far as this one sees them, and opens their files.
    #[must_use]
    pub fn open_for(root: &Root, process: ProcessId) -> Self {
        let mut skipped = Vec::new();
        let Some(found) = locate::locate(root, process, &mut skipped) else {
            return Self { skipped, ..Self::default() };
        };
        let levels = level::open_all(&found, &mut skipped);
        Self { version: (!levels.is_empty()).then_some(found.version), levels, skipped }
    }

    /// Which generation limits memory; nothing where no group with such figures was found.
    #[must_use]
    pub const fn version(&self) -> Option<CgroupVersion> {
        self.version
    }

    /// The folders of the groups, the one of the process first.
    pub fn folders(&self) -> impl Iterator<Item = &Path> {
        self.levels.iter().map(Level::path)
    }

    /// Reads all levels that may bind now. What cannot be read is left out.
    #[must_use]
    pub fn sample(&self) -> CgroupSample {
        let mut sample = CgroupSample::default();
        for (number, level) in self.levels.iter().enumerate() {
            let is_end = number == 0 || number + 1 == self.levels.len();
            let (figures, is_unlimited) = level.sample(is_end);
            sample = sample.with(&figures);
            if number == 0 && is_unlimited {
                break;
            }
        }
        sample
    }

    /// Reads all levels now, with the reason for everything that is left out.
    #[must_use]
    pub fn report(&self) -> CgroupReport {
        let mut skipped = self.skipped.clone();
        let levels = self.levels.iter().map(|level| level.report(&mut skipped)).collect();
        CgroupReport { version: self.version, levels, skipped }
    }
}
