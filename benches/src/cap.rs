//! A limit on the memory of one child process, as the kernel keeps it: page cache counts, and too much ends the child.
//!
//! It is a memory control group of version 1 (`/sys/fs/cgroup/memory`), which takes the right to make one there. Elsewhere there
//! is no cap, and a suite says so.

use std::fs;
use std::path::{Path, PathBuf};

use deep_dimensions::core::Bytes;

use crate::Result;

const HIERARCHY: &str = "/sys/fs/cgroup/memory";

/// A control group of its own, which goes when this is dropped.
#[derive(Debug)]
pub struct Cap {
    group: PathBuf,
}

impl Cap {
    /// Makes a group that may take `limit` bytes; none where this machine lets us make none.
    #[must_use]
    pub fn new(limit: Bytes) -> Option<Self> {
        let group = Path::new(HIERARCHY).join(format!("dd-bench-{}", std::process::id()));
        if !Path::new(HIERARCHY).join("memory.limit_in_bytes").exists() {
            return None;
        }
        let _ = fs::remove_dir(&group); // Left by one that was killed; it is empty.
        fs::create_dir(&group).ok()?;
        let cap = Self { group };
        fs::write(cap.group.join("memory.limit_in_bytes"), limit.0.to_string()).ok()?;
        Some(cap)
    }

    /// The file that a process writes its number to when it joins.
    #[must_use]
    pub fn door(&self) -> PathBuf {
        self.group.join("cgroup.procs")
    }

    /// The most that was taken, page cache included.
    #[must_use]
    pub fn peak(&self) -> Option<Bytes> {
        let text = fs::read_to_string(self.group.join("memory.max_usage_in_bytes")).ok()?;
        text.trim().parse().ok().map(Bytes)
    }
}

impl Drop for Cap {
    fn drop(&mut self) {
        // Page cache that is still charged is given to the parent; only a living process would be in the way.
        let _ = fs::remove_dir(&self.group);
    }
}

/// Puts this process under a cap. What it holds already stays where it was charged.
///
/// # Errors
/// Where the group is gone.
pub fn join(door: &Path) -> Result<()> {
    Ok(fs::write(door, std::process::id().to_string())?)
}
