//! [`Root`]: the folder that counts as `/`.
//!
//! The kernel's files are named by absolute paths. Looking them up below a root makes every reader testable on a
//! tree of plain files, and lets it read another system's tree (a host's, mounted into a container).

use std::fs::File;
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

/// More than any list of mounts; a file that goes on is not one of the kernel's.
const TEXT_LIMIT: u64 = 16 << 20;

/// The folder that counts as `/`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root(PathBuf);

impl Root {
    /// Counts this folder as `/`.
    #[must_use]
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self(folder.into())
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Whether this is the running system's own root.
    #[must_use]
    pub fn is_system(&self) -> bool {
        self.0 == Path::new("/")
    }

    /// Where a path of the kernel is found. `..` is left out: nothing above the root is ever named.
    #[must_use]
    pub fn join(&self, path: impl AsRef<Path>) -> PathBuf {
        let parts = path.as_ref().components().filter(|part| matches!(part, Component::Normal(_)));
        parts.fold(self.0.clone(), |folder, part| folder.join(part))
    }

    /// Reads a text whole, replacing what is not UTF-8: a path that holds such bytes is then not found, not misread.
    pub(crate) fn read_text(&self, path: &str) -> io::Result<String> {
        let mut bytes = Vec::new();
        let file = File::open(self.join(path))?;
        let read = file.take(TEXT_LIMIT + 1).read_to_end(&mut bytes)?;
        if u64::try_from(read).is_ok_and(|read| read > TEXT_LIMIT) {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "more than 16 MiB of text"));
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

impl Default for Root {
    /// The running system.
    fn default() -> Self {
        Self::new("/")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joins_stay_below_the_root() {
        let rows = [
            ("/", "/proc/meminfo", "/proc/meminfo"),
            ("/fix", "/proc/meminfo", "/fix/proc/meminfo"),
            ("/fix", "proc//meminfo", "/fix/proc/meminfo"),
            ("/fix", "/../../etc/./passwd", "/fix/etc/passwd"),
            ("/fix", "", "/fix"),
        ];
        for (root, path, expected) in rows {
            assert_eq!(Root::new(root).join(path), Path::new(expected), "{root} + {path}");
        }
        assert!(Root::default().is_system() && !Root::new("/fix").is_system());
    }
}
