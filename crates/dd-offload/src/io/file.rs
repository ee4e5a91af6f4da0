//! [`DirectFile`]: a file opened around the page cache, and how it must be read.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::request::{Request, Step};
use super::sys::{self, Direct};
use super::{ALIGNMENT, BlockRead, Geometry, blocks};
use crate::error::{Error, Result};

/// A file opened for direct reading.
///
/// Where the file system refuses that (or lies in memory itself, as tmpfs does), reads go through the page cache and the
/// pages are given back after each of them; [`is_direct`](Self::is_direct) says which it is.
#[derive(Debug)]
pub struct DirectFile {
    file: File,
    path: PathBuf,
    alignment: Option<usize>, // None: through the page cache.
    device: u64,
}

impl DirectFile {
    /// Opens the file at `path`.
    ///
    /// # Errors
    /// [`Error::Io`] where there is no such file, it may not be read, or it is no regular file.
    pub fn open(path: &Path) -> Result<Arc<Self>> {
        let failed = |source| io_error("open", path, source);
        // Opening a pipe would wait for a writer, so what it is comes first.
        if !std::fs::metadata(path).map_err(failed)?.is_file() {
            return Err(failed(not_regular()));
        }
        Self::from_file(&File::open(path).map_err(failed)?, path)
    }

    /// Opens the very file that `file` has open, for reading around the cache. `path` is only its name in messages: a
    /// file that has meanwhile taken that name is not picked up.
    ///
    /// # Errors
    /// [`Error::Io`] where `file` is no regular file or the system has no descriptor left.
    pub fn from_file(file: &File, path: &Path) -> Result<Arc<Self>> {
        let failed = |source| io_error("open", path, source);
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() {
            return Err(failed(not_regular()));
        }
        let direct = open_direct(file);
        let (file, alignment) = match direct {
            Some((file, alignment)) => (file, Some(alignment)),
            None => {
                tracing::debug!(path = %path.display(), "no direct reads here; reading through the page cache");
                (file.try_clone().map_err(failed)?, None)
            }
        };
        Ok(Arc::new(Self { file, path: path.to_owned(), alignment, device: metadata.dev() }))
    }

    /// The path that it was opened with.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether reads go around the page cache.
    #[must_use]
    pub const fn is_direct(&self) -> bool {
        self.alignment.is_some()
    }

    /// What offsets, lengths and addresses of its reads are multiples of: what the kernel says, else 4096.
    #[must_use]
    pub fn alignment(&self) -> usize {
        self.alignment.unwrap_or(ALIGNMENT)
    }

    /// The number of the device that it lies on.
    #[must_use]
    pub const fn device(&self) -> u64 {
        self.device
    }

    /// How long it is now, and how many bytes of that the disk really holds: fewer where the file has holes.
    ///
    /// # Errors
    /// [`Error::Io`] where the system cannot say.
    pub fn extent(&self) -> Result<(u64, u64)> {
        let metadata = self.file.metadata().map_err(|source| io_error("examine", &self.path, source))?;
        Ok((metadata.len(), metadata.blocks().saturating_mul(512)))
    }

    /// Reads `len` bytes at `offset` straight into `out`, and says where in it they lie: for a direct file the aligned range
    /// around them is read, so `out` must have room for that and lie at an aligned address.
    ///
    /// # Errors
    /// [`Error::Io`] where the disk fails or `out` is not aligned, [`Error::Truncated`] where the file has become shorter;
    /// [`Error::Core`] where `out` is too small.
    pub fn read_into(self: &Arc<Self>, offset: u64, len: usize, out: &mut [u8]) -> Result<Range<usize>> {
        if self.is_direct() && !out.as_ptr().addr().is_multiple_of(self.alignment()) {
            return Err(io_error("read", &self.path, io::Error::from(io::ErrorKind::InvalidInput)));
        }
        let read = BlockRead { file: Arc::clone(self), offset, len, tag: 0 };
        let mut request = Request::new(read, out.len()).map_err(|(_, error)| error)?;
        if len == 0 {
            return Ok(0..0);
        }
        loop {
            let (rest, at) = request.rest();
            let answer = self.read_at(out.get_mut(rest).unwrap_or_default(), at);
            if let Step::Done(done) = request.advance(answer) {
                let (start, span) = request.span();
                self.release(start, span);
                return done.map(|()| request.wanted());
            }
        }
    }

    /// One read; for a direct file, all three of offset, length and address must be aligned.
    pub(super) fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buffer, offset)
    }

    /// Gives the cached pages of a range back, where reads go through the cache.
    pub(super) fn release(&self, offset: u64, len: usize) {
        if !self.is_direct() {
            sys::forget_cached(&self.file, offset, len);
        }
    }
}

#[cfg(target_os = "linux")]
impl std::os::fd::AsRawFd for DirectFile {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.file.as_raw_fd()
    }
}

pub(super) fn io_error(operation: &'static str, path: &Path, source: io::Error) -> Error {
    Error::Io { operation, path: path.to_owned(), tensor: None, source }
}

fn not_regular() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")
}

/// The file opened around the cache and the alignment to read it with; nothing where direct reads are refused,
/// pointless or want more than a block has.
fn open_direct(file: &File) -> Option<(File, usize)> {
    if sys::is_in_memory(file) {
        return None;
    }
    match sys::direct_alignment(file) {
        Direct::Aligned(n) if n.is_power_of_two() && n <= ALIGNMENT => Some((reopen_direct(file)?, n)),
        Direct::Aligned(_) | Direct::Refused => None,
        Direct::Unknown => reopen_direct(file).filter(reads_directly).map(|direct| (direct, ALIGNMENT)),
    }
}

/// Some file systems open a file for direct reads and then refuse every one, so it takes a try.
fn reads_directly(file: &File) -> bool {
    let block = blocks::allocate(Geometry { block: ALIGNMENT, depth: 1 });
    let read = |block: &mut blocks::Block| file.read_at(block, 0).is_ok();
    block.is_ok_and(|mut blocks| blocks.first_mut().is_some_and(read))
}

/// Opens the same file once more, by descriptor and not by name.
#[cfg(target_os = "linux")]
fn reopen_direct(file: &File) -> Option<File> {
    use std::os::fd::AsRawFd as _;
    use std::os::unix::fs::OpenOptionsExt as _;

    let link = format!("/proc/self/fd/{}", file.as_raw_fd());
    let again = std::fs::OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(link).ok()?;
    let (this, that) = (file.metadata().ok()?, again.metadata().ok()?);
    ((this.dev(), this.ino()) == (that.dev(), that.ino())).then_some(again)
}

#[cfg(not(target_os = "linux"))]
fn reopen_direct(_: &File) -> Option<File> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_read_directly_is() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), [7; 5000]).unwrap();
        let direct = DirectFile::open(file.path()).unwrap();
        if !direct.is_direct() {
            dd_conformance::skipped!("no direct reads in {}", file.path().display());
            return;
        }
        assert!(reads_directly(&direct.file));
        assert!(direct.alignment().is_power_of_two() && direct.alignment() <= ALIGNMENT);
        let mut unaligned = [0; 100];
        let refused = (0..8).any(|skip| direct.read_at(unaligned.get_mut(skip..).unwrap(), 1).is_err());
        assert!(refused, "an unaligned read went through: this is no direct file");
    }
}
