//! [`ModelFile`]: the opened GGUF file, which must stay as it is while a model reads from it.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::sync::Arc;

use dd_offload::io::DirectFile;

use super::error::{Error, Result};

#[derive(Debug)]
pub(crate) struct ModelFile {
    file: File,
    direct: Arc<DirectFile>,
    stamp: Stamp,
}

/// What changes when somebody writes to a file. (The time of its last change would change when it is renamed, too, which
/// is no harm.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    len: u64,
    written: (i64, i64),
}

impl ModelFile {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let failed = |source| Error::Io { operation: "open", path: path.to_owned(), source };
        // Opening a pipe would wait for a writer.
        if !std::fs::metadata(path).map_err(failed)?.is_file() {
            return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")));
        }
        let file = File::open(path).map_err(failed)?;
        let direct = DirectFile::from_file(&file, path)?;
        let stamp = stamp(&file).map_err(failed)?;
        Ok(Self { file, direct, stamp })
    }

    /// The file, for reads through the page cache at a given offset: its position is everyone's.
    pub(crate) const fn file(&self) -> &File {
        &self.file
    }

    pub(crate) const fn direct(&self) -> &Arc<DirectFile> {
        &self.direct
    }

    pub(crate) const fn len(&self) -> u64 {
        self.stamp.len
    }

    pub(crate) fn path(&self) -> &Path {
        self.direct.path()
    }

    /// Refuses a file that somebody has written to since it was opened; `what` was to be read.
    pub(crate) fn check(&self, what: &str) -> dd_pager::Result<()> {
        let reason = match stamp(&self.file) {
            Ok(now) if now == self.stamp => return Ok(()),
            Ok(now) if now.len < self.stamp.len => {
                format!("it had {} bytes when it was opened and has {} now", self.stamp.len, now.len)
            }
            Ok(_) => "it was written to after it was opened; load the model anew".to_owned(),
            Err(error) => error.to_string(),
        };
        Err(dd_pager::Error::Read { what: what.to_owned(), path: self.path().to_owned(), reason })
    }
}

/// Reads from the start on, through the page cache.
#[derive(Debug)]
pub(crate) struct FromStart<'a> {
    file: &'a ModelFile,
    position: u64,
}

impl<'a> FromStart<'a> {
    pub(crate) const fn new(file: &'a ModelFile) -> Self {
        Self { file, position: 0 }
    }
}

impl Read for FromStart<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.file.read_at(buffer, self.position)?;
        self.position = self.position.saturating_add(read as u64);
        Ok(read)
    }
}

impl Seek for FromStart<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.position = position(to, self.position, self.file.len())?;
        Ok(self.position)
    }
}

/// Where a seek goes to, in a file of `len` bytes.
pub(crate) fn position(to: SeekFrom, now: u64, len: u64) -> io::Result<u64> {
    let to = match to {
        SeekFrom::Start(at) => Some(at),
        SeekFrom::End(by) => len.checked_add_signed(by),
        SeekFrom::Current(by) => now.checked_add_signed(by),
    };
    to.ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

fn stamp(file: &File) -> io::Result<Stamp> {
    let found = file.metadata()?;
    Ok(Stamp { len: found.len(), written: (found.mtime(), found.mtime_nsec()) })
}
