//! [`Directory`]: a folder as the place of a tile store.
//!
//! An object is written to a new file in the root, locked while its writer lives, and then named. A file there that nobody has
//! locked was left by a program that ended, and goes when the store is next opened.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use dd_core::Tier;

use super::medium::Medium;
use super::options::Flush;
use crate::primitive::{Mutex, lock};

/// What the names of files begin with that are being written.
const DRAFT: &str = ".new-";

/// How often a writer whose draft was taken for a dead one's tries again. That takes another program that opens the store
/// between two system calls of this one.
const TRIES: u32 = 16;

/// A folder. See the [module](self).
#[derive(Debug)]
pub(super) struct Directory {
    root: PathBuf,
    flush: Flush,
    drafts: AtomicU64,
    /// What `sync` still has to flush: folders, and with [`Flush::OnSync`] files.
    unflushed: Mutex<BTreeSet<PathBuf>>,
}

impl Directory {
    /// The folder, made where it is not there, and rid of what dead programs left.
    pub(super) fn open(root: &Path, flush: Flush) -> io::Result<Self> {
        fs::create_dir_all(root)?;
        let root = fs::canonicalize(root)?;
        sweep(&root)?;
        Ok(Self { root, flush, drafts: AtomicU64::new(0), unflushed: Mutex::default() })
    }

    /// Whether anything at all is in it.
    pub(super) fn is_empty(&self) -> io::Result<bool> {
        for entry in fs::read_dir(&self.root)? {
            if !entry?.file_name().to_string_lossy().starts_with(DRAFT) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// A new locked file in the root.
    fn draft(&self) -> io::Result<(File, PathBuf)> {
        loop {
            let number = self.drafts.fetch_add(1, Ordering::Relaxed);
            let path = self.path(&format!("{DRAFT}{}-{number}", std::process::id()));
            match OpenOptions::new().write(true).create_new(true).open(&path) {
                // One of another container's, with the same process number, or of a store opened twice.
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
                Ok(file) => {
                    file.lock()?;
                    return Ok((file, path));
                }
            }
        }
    }

    /// Writes the draft and gives it its name. Says `false` where the name is taken, and nothing where the draft is gone.
    fn commit(&self, target: &Path, bytes: &[u8], replace: bool) -> io::Result<Option<bool>> {
        let (mut file, draft) = self.draft()?;
        let flushed = self.flush == Flush::EachWindow;
        let written = file.write_all(bytes).and_then(|()| if flushed { file.sync_all() } else { Ok(()) });
        let named = written.and_then(|()| match replace {
            true => fs::rename(&draft, target).map(|()| true),
            false => fs::hard_link(&draft, target).map(|()| true),
        });
        if !replace || named.is_err() {
            // What cannot be removed now goes when the store is next opened; what failed before is what is told.
            let _left_for_the_next_start = fs::remove_file(&draft);
        }
        match named {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(Some(false)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            other => other.map(Some),
        }
    }

    /// Remembers what is to be flushed: a new name's folder, and its file if that was not flushed yet.
    fn remember(&self, target: &Path) {
        let mut unflushed = lock(&self.unflushed);
        unflushed.extend(target.parent().map(Path::to_owned));
        if self.flush == Flush::OnSync {
            unflushed.insert(target.to_owned());
        }
    }
}

impl Medium for Directory {
    fn place(&self) -> String {
        self.root.display().to_string()
    }

    fn tier(&self) -> Tier {
        Tier::Disk
    }

    fn read(&self, name: &str, most: u64) -> io::Result<Option<Vec<u8>>> {
        let file = match File::open(self.path(name)) {
            Err(error) if is_absent(&error) => return Ok(None),
            other => other?,
        };
        let metadata = file.metadata()?;
        let length = metadata.len();
        if !metadata.is_file() || length > most {
            let what = format!("it has {length} B, at most {most} B were ever written");
            return Err(io::Error::new(ErrorKind::InvalidData, what));
        }
        let mut bytes = Vec::with_capacity(usize::try_from(length).map_err(io::Error::other)?);
        file.take(length).read_to_end(&mut bytes)?;
        Ok(Some(bytes))
    }

    fn write(&self, name: &str, bytes: Vec<u8>, replace: bool) -> io::Result<bool> {
        let target = self.path(name);
        for _ in 0..TRIES {
            if let Some(folder) = target.parent()
                && folder != self.root
                && !folder.is_dir()
            {
                fs::create_dir_all(folder)?;
                lock(&self.unflushed).insert(self.root.clone());
            }
            if let Some(made) = self.commit(&target, &bytes, replace)? {
                self.remember(&target);
                return Ok(made);
            }
        }
        Err(io::Error::new(
            ErrorKind::NotFound,
            "its folder or its draft is removed again and again by another program",
        ))
    }

    fn length(&self, name: &str) -> io::Result<Option<u64>> {
        match fs::metadata(self.path(name)) {
            Err(error) if is_absent(&error) => Ok(None),
            other => other.map(|metadata| Some(metadata.len())),
        }
    }

    fn list(&self, folder: &str, visit: &mut dyn FnMut(&str, u64) -> bool) -> io::Result<()> {
        let entries = match fs::read_dir(self.path(folder)) {
            Err(error) if is_absent(&error) => return Ok(()),
            other => other?,
        };
        for entry in entries {
            let entry = entry?;
            let metadata = match entry.metadata() {
                Err(error) if is_absent(&error) => continue, // Removed meanwhile.
                other => other?,
            };
            let name = entry.file_name();
            if let Some(name) = name.to_str()
                && metadata.is_file()
                && !visit(name, metadata.len())
            {
                break;
            }
        }
        Ok(())
    }

    fn folders(&self) -> io::Result<Vec<String>> {
        let mut folders = Vec::new();
        for entry in fs::read_dir(&self.root)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.extend(entry.file_name().into_string().ok());
            }
        }
        Ok(folders)
    }

    fn remove(&self, name: &str) -> io::Result<bool> {
        let path = self.path(name);
        let removed = match fs::remove_file(&path) {
            Err(error) if is_absent(&error) => return Ok(false),
            other => other.map(|()| true),
        };
        let mut unflushed = lock(&self.unflushed);
        unflushed.remove(&path);
        unflushed.extend(path.parent().map(Path::to_owned));
        removed
    }

    fn remove_folder(&self, folder: &str) -> io::Result<()> {
        let path = self.path(folder);
        match fs::remove_dir(&path) {
            Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => Ok(()), // Somebody else's files stay.
            other => ignore_absent(other),
        }
    }

    fn sync(&self) -> io::Result<()> {
        let paths = std::mem::take(&mut *lock(&self.unflushed));
        // Files before the folders that name them: a folder's path is a prefix of its files', so it sorts first.
        for (done, path) in paths.iter().rev().enumerate() {
            let flushed = File::open(path).and_then(|file| file.sync_all());
            if let Err(error) = ignore_absent(flushed) {
                let left = paths.len() - done;
                lock(&self.unflushed).extend(paths.into_iter().take(left));
                return Err(error);
            }
        }
        Ok(())
    }
}

/// Removes the drafts of programs that ended.
fn sweep(root: &Path) -> io::Result<()> {
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        if !is_draft(&entry.file_name().to_string_lossy()) || !entry.file_type()?.is_file() {
            continue;
        }
        let path = entry.path();
        let dead = match OpenOptions::new().write(true).open(&path) {
            Err(error) if is_absent(&error) => continue,
            other => other?.try_lock().is_ok(),
        };
        if dead {
            ignore_absent(fs::remove_file(&path))?;
        }
    }
    Ok(())
}

/// `.new-<process>-<number>`, and nothing else: what others put there is theirs.
fn is_draft(name: &str) -> bool {
    let numbers = name.strip_prefix(DRAFT).and_then(|rest| rest.split_once('-'));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    numbers.is_some_and(|(process, number)| digits(process) && digits(number))
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

fn ignore_absent(result: io::Result<()>) -> io::Result<()> {
    result.or_else(|error| if is_absent(&error) { Ok(()) } else { Err(error) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_dead_are_swept() {
        let place = tempfile::tempdir().unwrap();
        let directory = Directory::open(place.path(), Flush::OnSync).unwrap();
        let (live, live_path) = directory.draft().unwrap();
        let (dead, dead_path) = directory.draft().unwrap();
        drop(dead);
        let foreign = [".new-1", ".new-x-1", "new-1-1", ".new-1-1x"];
        foreign.iter().for_each(|name| fs::write(place.path().join(name), "theirs").unwrap());
        Directory::open(place.path(), Flush::OnSync).unwrap();
        assert!(live_path.exists() && !dead_path.exists());
        assert!(foreign.iter().all(|name| place.path().join(name).exists()));
        drop(live);
    }

    #[test]
    fn a_draft_that_was_swept_is_written_again() {
        let place = tempfile::tempdir().unwrap();
        let directory = Directory::open(place.path(), Flush::OnSync).unwrap();
        // What happens where a draft goes before it is named:
        let (file, path) = directory.draft().unwrap();
        fs::remove_file(&path).unwrap();
        drop(file);
        assert!(fs::rename(&path, place.path().join("x")).is_err());
        assert_eq!(directory.commit(&place.path().join("absent/x"), b"a", true).unwrap(), None);
        assert!(directory.write("folder/x", b"a".to_vec(), true).unwrap());
        assert!(!directory.write("folder/x", b"b".to_vec(), false).unwrap());
        assert_eq!(directory.read("folder/x", 1).unwrap().unwrap(), b"a");
        assert_eq!(directory.read("folder/x", 0).unwrap_err().kind(), ErrorKind::InvalidData);
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 1, "no draft is left");
    }

    #[test]
    fn sync_leaves_nothing_to_do() {
        let place = tempfile::tempdir().unwrap();
        let directory = Directory::open(place.path(), Flush::OnSync).unwrap();
        directory.write("a/x", b"a".to_vec(), true).unwrap();
        directory.write("b/x", b"a".to_vec(), true).unwrap();
        directory.remove("b/x").unwrap();
        directory.remove_folder("b").unwrap();
        directory.sync().unwrap();
        assert!(lock(&directory.unflushed).is_empty());
    }
}
