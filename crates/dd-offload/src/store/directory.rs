//! [`PrivateDirectory`]: a directory of this process alone, gone when the process is.
//!
//! Below the user's base directory (mode 0700) each process has one directory with a lock file, whose lock it holds
//! for life. The kernel drops the lock with the process, however that ends; so a directory whose lock can be taken
//! belongs to nobody, and whoever starts next removes it.
//!
//! Between making a directory and holding its lock another process could take it for a leftover. Therefore it is made
//! under a draft's name, locked, and then renamed; whoever removes a directory holds its lock until it is gone. A
//! draft that was swept away meanwhile shows as a lock that is taken or a rename that fails, and is made again.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::user;
use crate::error::{Error, Result};

const LOCK: &str = "lock";
const DRAFT: &str = ".new-";

/// How often a draft that others swept away is made again.
const ATTEMPTS: usize = 100;

/// A directory of this process alone. Dropping it removes it with all that is in it.
#[derive(Debug)]
pub(super) struct PrivateDirectory {
    path: PathBuf,
    process: u32,
    _lock: File,
}

impl PrivateDirectory {
    /// Makes one below `parent`, after removing those of dead processes.
    pub(super) fn create(parent: &Path) -> Result<Self> {
        let base = parent.join(format!("deepdim-spill-{}", user::id()));
        for attempt in 0..ATTEMPTS {
            open_base(parent, &base)?;
            if attempt == 0 {
                sweep(&base);
            }
            match Self::try_create(&base) {
                Ok(Some(made)) => return Ok(made),
                Ok(None) => {}
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(source) => return Err(failed("make a directory in", &base, source)),
            }
        }
        let source = io::Error::new(ErrorKind::WouldBlock, "other processes keep removing it; try again");
        Err(failed("make a directory in", &base, source))
    }

    /// Nothing, or "not found", where another process swept the draft away.
    fn try_create(base: &Path) -> io::Result<Option<Self>> {
        let process = std::process::id();
        let name = format!("{process}-{:016x}", RandomState::new().build_hasher().finish());
        let draft = base.join(format!("{DRAFT}{name}"));
        DirBuilder::new().mode(0o700).create(&draft)?;
        let lock = OpenOptions::new().write(true).create_new(true).mode(0o600).open(draft.join(LOCK))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        let path = base.join(name);
        fs::rename(&draft, &path)?;
        Ok(Some(Self { path, process, _lock: lock }))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Removes it now and says whether that worked.
    pub(super) fn remove(self) -> Result<()> {
        self.clear().map_err(|source| failed("remove", &self.path, source))
    }

    fn clear(&self) -> io::Result<()> {
        if self.process != std::process::id() {
            return Ok(()); // A fork: the directory is the parent's.
        }
        remove(&self.path)?;
        if let Some(base) = self.path.parent() {
            let _kept_while_others_use_it = fs::remove_dir(base);
        }
        Ok(())
    }
}

impl Drop for PrivateDirectory {
    fn drop(&mut self) {
        if let Err(error) = self.clear() {
            tracing::warn!(path = %self.path.display(), %error, "a spill directory stays behind; the next start removes it");
        }
    }
}

/// Makes the user's base directory, or makes sure that the one there is the user's own.
fn open_base(parent: &Path, base: &Path) -> Result<()> {
    fs::create_dir_all(parent).map_err(|source| failed("make the directory", parent, source))?;
    match DirBuilder::new().mode(0o700).create(base) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            return Err(failed("make the directory", base, error));
        }
        _ => {}
    }
    let metadata = match fs::symlink_metadata(base) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()), // Swept; the caller tries again.
        other => other.map_err(|source| failed("open", base, source))?,
    };
    let wrong = if !metadata.is_dir() {
        Some("is no directory (a link or a file)".to_owned())
    } else if metadata.uid() != user::id() {
        Some(format!("belongs to user {}", metadata.uid()))
    } else {
        None
    };
    if let Some(wrong) = wrong {
        let reason = format!("{} {wrong}; remove it, or name another directory", base.display());
        return Err(Error::InvalidConfig { option: "spill directory", reason });
    }
    if metadata.mode() & 0o077 != 0 {
        let private = Permissions::from_mode(0o700);
        fs::set_permissions(base, private).map_err(|source| failed("make private", base, source))?;
    }
    Ok(())
}

/// Removes the directories of dead processes. What cannot be removed is left for the next start.
fn sweep(base: &Path) {
    let entries = match fs::read_dir(base) {
        Ok(entries) => entries,
        Err(error) => return tracing::warn!(path = %base.display(), %error, "cannot look for leftovers"),
    };
    for entry in entries.flatten() {
        let is_ours = is_name_of_ours(&entry.file_name().to_string_lossy());
        if !is_ours || !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let path = entry.path();
        match sweep_one(&path) {
            Ok(true) => tracing::info!(path = %path.display(), "removed what a dead process left"),
            Ok(false) => {}
            Err(error) => tracing::warn!(path = %path.display(), %error, "cannot remove a leftover"),
        }
    }
}

/// Removes one directory if nobody holds its lock; says whether it did.
fn sweep_one(path: &Path) -> io::Result<bool> {
    let lock = match OpenOptions::new().write(true).open(path.join(LOCK)) {
        Ok(lock) => lock,
        // A draft before its lock, or what an interrupted removal left: only if it is empty.
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(fs::remove_dir(path).is_ok()),
        Err(error) => return Err(error),
    };
    match lock.try_lock() {
        Ok(()) => remove(path).map(|()| true), // The lock is held until the directory is gone.
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Removes a directory, its lock file last, so that an interrupted removal can be taken up again.
fn remove(path: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_name() == LOCK {
            continue;
        }
        let removed = match entry.file_type()?.is_dir() {
            true => fs::remove_dir_all(entry.path()),
            false => fs::remove_file(entry.path()),
        };
        ignore_absent(removed)?;
    }
    ignore_absent(fs::remove_file(path.join(LOCK)))?;
    ignore_absent(fs::remove_dir(path))
}

fn ignore_absent(result: io::Result<()>) -> io::Result<()> {
    result.or_else(|error| if error.kind() == ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

/// Whether a directory's name is `<process>-<16 hex digits>`, perhaps as a draft.
fn is_name_of_ours(name: &str) -> bool {
    let name = name.strip_prefix(DRAFT).unwrap_or(name);
    name.split_once('-').is_some_and(|(process, random)| {
        process.parse::<u32>().is_ok() && random.len() == 16 && u64::from_str_radix(random, 16).is_ok()
    })
}

fn failed(operation: &'static str, path: &Path, source: io::Error) -> Error {
    Error::Io { operation, path: path.to_owned(), tensor: None, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_ours_are_swept() {
        let rows = [
            ("12-0123456789abcdef", true),
            (".new-12-0123456789abcdef", true),
            ("12-0123456789abcde", false),
            ("notes-0123456789abcdef", false),
            ("12", false),
            ("", false),
        ];
        for (name, expected) in rows {
            assert_eq!(is_name_of_ours(name), expected, "{name:?}");
        }
    }

    #[test]
    fn leftovers_go_and_all_else_stays() {
        let parent = tempfile::tempdir().unwrap();
        let live = PrivateDirectory::create(parent.path()).unwrap();
        let base = live.path().parent().unwrap().to_owned();
        fs::write(live.path().join("a"), b"a").unwrap();
        let rows = [
            ("1-00000000000000aa", &["lock", "x.tensor"][..], false),
            (".new-1-00000000000000ab", &["lock"], false),
            (".new-1-00000000000000ac", &[], false),
            ("1-00000000000000ad", &["x.tensor"], true), // No lock and not empty: not of this program's making.
            ("notes", &["lock"], true),
        ];
        for (name, files, _) in rows {
            fs::create_dir(base.join(name)).unwrap();
            files.iter().for_each(|file| fs::write(base.join(name).join(file), b"x").unwrap());
        }
        let second = PrivateDirectory::create(parent.path()).unwrap();
        for (name, _, stays) in rows {
            assert_eq!(base.join(name).exists(), stays, "{name}");
        }
        assert_eq!(fs::read(live.path().join("a")).unwrap(), b"a");
        assert_ne!(live.path(), second.path());
        let path = second.path().to_owned();
        second.remove().unwrap();
        assert!(!path.exists() && live.path().exists());
    }

    #[test]
    fn the_base_is_private_and_leaves_nothing() {
        let parent = tempfile::tempdir().unwrap();
        let base = parent.path().join(format!("deepdim-spill-{}", user::id()));
        fs::create_dir(&base).unwrap();
        fs::set_permissions(&base, Permissions::from_mode(0o755)).unwrap();
        let made = PrivateDirectory::create(parent.path()).unwrap();
        for path in [base.as_path(), made.path()] {
            assert_eq!(fs::metadata(path).unwrap().mode() & 0o777, 0o700, "{}", path.display());
        }
        drop(made);
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_base_of_another_is_refused() {
        let parent = tempfile::tempdir().unwrap();
        let base = parent.path().join(format!("deepdim-spill-{}", user::id()));
        let refused = |what: &str, says: &str| {
            let error = PrivateDirectory::create(parent.path()).expect_err(what).to_string();
            assert!(error.contains(says) && error.contains("deepdim-spill"), "{what}: {error}");
        };
        std::os::unix::fs::symlink(parent.path(), &base).unwrap();
        refused("a link", "is no directory");
        fs::remove_file(&base).unwrap();
        fs::write(&base, b"").unwrap();
        refused("a file", "is no directory");
        fs::remove_file(&base).unwrap();
        fs::create_dir(&base).unwrap();
        match std::os::unix::fs::chown(&base, Some(12345), None) {
            Ok(()) => refused("another's", "belongs to user 12345"),
            Err(error) => dd_conformance::skipped!("this user cannot give a directory away: {error}"),
        }
    }
}
