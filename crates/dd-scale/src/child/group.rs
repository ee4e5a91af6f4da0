//! [`Group`]: a control group for one child, made for it and removed after it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use dd_core::Bytes;

/// A control group with a memory limit; the folder goes when this is dropped.
#[derive(Debug)]
pub(super) struct Group {
    folder: PathBuf,
    procs: File,
}

impl Group {
    /// Makes one below `parent`.
    pub(super) fn new(parent: &Path, limit: Bytes) -> io::Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = parent.join(format!("dd-scale-{}-{number}", std::process::id()));
        fs::create_dir(&folder).map_err(|error| in_file(&folder, &error))?;
        let made = set_limit(&folder, limit).and_then(|()| {
            let procs = folder.join("cgroup.procs");
            OpenOptions::new().write(true).open(&procs).map_err(|error| in_file(&procs, &error))
        });
        match made {
            Ok(procs) => Ok(Self { folder, procs }),
            Err(error) => {
                let _gone = fs::remove_dir(&folder);
                Err(error)
            }
        }
    }

    /// Where a process writes to join.
    pub(super) const fn procs(&self) -> &File {
        &self.procs
    }

    /// Whether the kernel ended a process here for the limit's sake.
    pub(super) fn has_killed(&self) -> bool {
        ["memory.events", "memory.oom_control"].iter().any(|name| {
            let text = fs::read_to_string(self.folder.join(name)).unwrap_or_default();
            text.lines().filter_map(|line| line.strip_prefix("oom_kill ")).any(|count| count.trim() != "0")
        })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.folder) {
            tracing::warn!(folder = %self.folder.display(), %error, "a control group stays behind");
        }
    }
}

/// Writes the limit where the controller of version 2 or 1 reads it; without swap where that can be said.
fn set_limit(folder: &Path, limit: Bytes) -> io::Result<()> {
    let write = |name: &str, value: u64| {
        let file = folder.join(name);
        let open = OpenOptions::new().write(true).open(&file);
        open.and_then(|mut open| io::Write::write_all(&mut open, value.to_string().as_bytes()))
            .map_err(|error| in_file(&file, &error))
    };
    if write("memory.max", limit.0).is_err() {
        write("memory.limit_in_bytes", limit.0)?;
    }
    let swap = write("memory.swap.max", 0).or_else(|_| write("memory.memsw.limit_in_bytes", limit.0));
    if let Err(error) = swap {
        tracing::debug!(%error, "swap is not limited");
    }
    Ok(())
}

fn in_file(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}
