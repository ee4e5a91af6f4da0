//! [`Shard`]: one open file of a checkpoint, and how to tell that it is still the same.

use std::fs::{File, Metadata, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// The number of a file within its checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardId(pub usize);

/// What a file was when it was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The device it is on.
    pub device: u64,
    /// Its number on that device.
    pub inode: u64,
    /// Its length in bytes.
    pub size: u64,
    /// When its content last changed, in seconds since 1970 and nanoseconds.
    pub modified: (i64, i64),
}

impl Identity {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }
}

/// One file of a checkpoint, kept open and read-only.
///
/// Replacing the file by renaming another over it does no harm: the open descriptor keeps the old content.
#[derive(Debug)]
pub struct Shard {
    path: PathBuf,
    file: File,
    identity: Identity,
}

impl Shard {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let failed = |source| io_error("open", path, None, source);
        // Without O_NONBLOCK, opening a named pipe would wait for a writer; for a plain file it means nothing.
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() {
            let reason = "expected a plain file, found a directory, pipe or device".to_owned();
            return Err(Error::InvalidCheckpoint { path: path.to_owned(), reason });
        }
        Ok(Self { path: path.to_owned(), file, identity: Identity::of(&metadata) })
    }

    /// Where it was opened.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The open file, read-only.
    #[must_use]
    pub const fn file(&self) -> &File {
        &self.file
    }

    /// What the file was when it was opened.
    #[must_use]
    pub const fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Checks that the open file is as long and as old as when it was opened. A file renamed over it is another file
    /// and is not noticed: nothing is read from it. A change of the content alone within one tick of the file system's
    /// clock after the last one before opening (some milliseconds) leaves the same time and cannot be told.
    ///
    /// # Errors
    /// [`Error::Truncated`] where it is shorter; [`Error::FileChanged`] where it is longer or was written to;
    /// [`Error::Io`] where the system does not say.
    pub fn verify(&self) -> Result<()> {
        let metadata = self.file.metadata().map_err(|source| self.io("check", None, source))?;
        let (before, now) = (&self.identity, Identity::of(&metadata));
        if now.size < before.size {
            return Err(self.truncated(before.size, now.size));
        }
        let reason = if now.size > before.size {
            format!("it had {} B and has {} B", before.size, now.size)
        } else if now.modified != before.modified {
            "it was written to".to_owned()
        } else {
            return Ok(());
        };
        Err(Error::FileChanged { path: self.path.clone(), reason })
    }

    /// Fills `out` with the bytes from `offset` on, through the page cache. `tensor` is for the error's message.
    ///
    /// # Errors
    /// [`Error::Truncated`] where the file ends before `out` is full; [`Error::Io`] where the read fails.
    pub fn read_exact_at(&self, offset: u64, out: &mut [u8], tensor: &str) -> Result<()> {
        self.fill(offset, out, Some(tensor))
    }

    pub(super) fn fill(&self, offset: u64, out: &mut [u8], tensor: Option<&str>) -> Result<()> {
        match self.file.read_exact_at(out, offset) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
                let found = self.file.metadata().map_or(self.identity.size, |metadata| metadata.len());
                let expected = offset.saturating_add(dd_core::Bytes::of(out.len()).0);
                Err(self.truncated(expected.max(self.identity.size), found))
            }
            Err(source) => Err(self.io("read", tensor, source)),
        }
    }

    pub(super) fn truncated(&self, expected: u64, found: u64) -> Error {
        Error::Truncated { path: self.path.clone(), expected, found }
    }

    pub(super) fn invalid(&self, reason: impl Into<String>) -> Error {
        Error::InvalidCheckpoint { path: self.path.clone(), reason: reason.into() }
    }

    fn io(&self, operation: &'static str, tensor: Option<&str>, source: std::io::Error) -> Error {
        io_error(operation, &self.path, tensor, source)
    }
}

/// A failed file operation, by name.
pub(super) fn io_error(
    operation: &'static str,
    path: &Path,
    tensor: Option<&str>,
    source: std::io::Error,
) -> Error {
    Error::Io { operation, path: path.to_owned(), tensor: tensor.map(str::to_owned), source }
}
