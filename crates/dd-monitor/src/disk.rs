//! [`DiskSpace`]: how much the file system of a path holds.
//!
//! A path needs no [`Root`](crate::Root): it is the user's, and the question goes to the file system that is really
//! mounted there. Where the system has no `statvfs`, the list of disks of `sysinfo` answers.

use std::io;
use std::path::Path;

use dd_core::{Bytes, MemorySample};
use sysinfo::Disks;

use crate::error::{Error, Result};
use crate::sys;

/// The space of a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskSpace {
    /// How much it holds.
    pub total: Bytes,
    /// How much is free, what is set aside for the administrator included.
    pub free: Bytes,
    /// How much this user may still take.
    pub available: Bytes,
}

impl DiskSpace {
    /// Reads the file system that `path` is on, or will be on once it is made: a path that does not exist yet counts
    /// as its nearest ancestor that does.
    ///
    /// # Errors
    /// [`Error::DiskUnknown`] where the file system does not say.
    pub fn of(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let found = existing(path);
        sys::file_system_space(found)
            .or_else(|refused| by_mount_point(found).ok_or(refused))
            .map_err(|source| Error::DiskUnknown { path: path.to_owned(), source })
    }

    /// What is taken: the total less what is free.
    #[must_use]
    pub const fn used(&self) -> Bytes {
        self.total.saturating_sub(self.free)
    }

    /// The disk as this user has it: what is taken, what may still be taken, and the sum of both. What is set aside for
    /// the administrator is in none of them, so that the shares are those of `df`.
    #[must_use]
    pub const fn sample(&self) -> MemorySample {
        let (used, available) = (self.used(), self.available);
        MemorySample { total: Bytes(used.0.saturating_add(available.0)), used, available }
    }
}

/// The nearest of a path and its ancestors that exists; the working folder where none does.
fn existing(path: &Path) -> &Path {
    let exists = |folder: &&Path| match folder.symlink_metadata() {
        Ok(_) => true,
        Err(error) => !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory),
    };
    let named = path.ancestors().filter(|folder| !folder.as_os_str().is_empty());
    named.into_iter().find(exists).unwrap_or(Path::new("."))
}

/// The disk with the longest mount point that leads to `path`.
fn by_mount_point(path: &Path) -> Option<DiskSpace> {
    let path = path.canonicalize().ok()?;
    let disks = Disks::new_with_refreshed_list().ok()?;
    let mounted = disks.iter().filter(|disk| path.starts_with(disk.mount_point()));
    let disk = mounted.max_by_key(|disk| disk.mount_point().components().count())?;
    let available = Bytes(disk.available_space());
    Some(DiskSpace { total: Bytes(disk.total_space()), free: available, available })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_to_be_made_counts_as_its_parent() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("file"), "x").unwrap();
        let rows = [("", ""), ("a/b/c", ""), ("file", "file"), ("file/below", "file")];
        for (path, expected) in rows {
            assert_eq!(existing(&folder.path().join(path)), folder.path().join(expected), "{path}");
        }
        assert_eq!(existing(Path::new("not-there/at-all")), Path::new("."));
    }

    #[test]
    fn space_is_ordered() {
        let space = DiskSpace::of(std::env::temp_dir().join("not/made/yet")).unwrap();
        assert!(space.total > Bytes::ZERO && space.available <= space.free && space.free <= space.total);
        assert_eq!(space.used() + space.free, space.total);
    }

    #[test]
    fn shares_are_those_of_df() {
        let space = |total, free, available| DiskSpace {
            total: Bytes(total),
            free: Bytes(free),
            available: Bytes(available),
        };
        // Total, used and the share in percent: an empty disk with five percent set aside is empty, a full one full.
        let rows = [
            (space(1000, 1000, 950), (950, 0, 0.0)),
            (space(1000, 430, 380), (950, 570, 60.0)),
            (space(1000, 50, 0), (950, 950, 100.0)),
            (space(1000, 0, 0), (1000, 1000, 100.0)),
            (space(0, 0, 0), (0, 0, 0.0)),
        ];
        for (space, (total, used, percent)) in rows {
            let sample = space.sample();
            assert_eq!((sample.total, sample.used), (Bytes(total), Bytes(used)), "{space:?}");
            assert_eq!(sample.used + sample.available, sample.total, "{space:?}");
            assert!((sample.used_fraction() * 100.0 - percent).abs() < 1e-9, "{space:?}: {sample:?}");
        }
    }

    #[test]
    fn long_paths_are_asked_too() {
        let folder = tempfile::tempdir().unwrap();
        let long = ["x".repeat(200), "y".repeat(200), "z".repeat(200)]
            .iter()
            .fold(folder.path().to_path_buf(), |path, name| path.join(name));
        std::fs::create_dir_all(&long).unwrap();
        assert!(long.as_os_str().len() > 512);
        assert_eq!(DiskSpace::of(&long).unwrap().total, DiskSpace::of(folder.path()).unwrap().total);
        let error = DiskSpace::of(long.join("a\0b")).unwrap_err();
        assert!(matches!(error, Error::DiskUnknown { .. }), "{error}");
    }

    #[test]
    fn the_list_of_disks_agrees() {
        let Some(listed) = by_mount_point(&std::env::temp_dir()) else {
            dd_conformance::skipped!("no listed disk holds the temporary folder");
            return;
        };
        assert_eq!(listed.total, DiskSpace::of(std::env::temp_dir()).unwrap().total);
    }

    #[test]
    fn a_path_that_is_no_path_is_an_error() {
        let error = DiskSpace::of("/\0").unwrap_err();
        assert!(matches!(error, Error::DiskUnknown { .. }), "{error}");
    }
}
