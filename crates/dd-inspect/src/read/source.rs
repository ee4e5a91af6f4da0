//! [`Source`]: a file that is read forward in small pieces, every length checked against what is left.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek};
use std::path::{Path, PathBuf};

use dd_core::Bytes;

use super::ReadLimits;
use crate::error::{Error, Result};

/// What is read at once.
const BUFFER: usize = 32 << 10;

/// Anything that a header can be read from.
pub(crate) trait Input: Read + Seek {}

impl<T: Read + Seek> Input for T {}

/// A file and where reading it stands.
pub(crate) struct Source<R> {
    reader: BufReader<R>,
    path: PathBuf,
    position: u64,
    len: u64,
    /// How much may still be kept.
    room: u64,
    limit: Bytes,
}

impl Source<File> {
    pub(crate) fn open(path: &Path, limits: &ReadLimits) -> Result<Self> {
        let failed = |source| Error::Io { operation: "open", path: path.to_owned(), source };
        let file = File::open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() {
            let problem = "it is no regular file".to_owned();
            return Err(Error::Format { path: path.to_owned(), offset: 0, problem });
        }
        Ok(Self::new(file, metadata.len(), path, limits))
    }
}

impl<R: Input> Source<R> {
    pub(crate) fn new(inner: R, len: u64, path: &Path, limits: &ReadLimits) -> Self {
        let reader = BufReader::with_capacity(BUFFER, inner);
        Self { reader, path: path.to_owned(), position: 0, len, room: limits.header.0, limit: limits.header }
    }

    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    pub(crate) fn left(&self) -> u64 {
        self.len - self.position
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn wrong(&self, problem: impl Into<String>) -> Error {
        Error::Format { path: self.path.clone(), offset: self.position, problem: problem.into() }
    }

    fn failed(&self, source: std::io::Error) -> Error {
        if source.kind() == std::io::ErrorKind::UnexpectedEof {
            return self.wrong("the file ends here");
        }
        Error::Io { operation: "read", path: self.path.clone(), source }
    }

    /// Counts what is about to be kept.
    pub(crate) fn keep(&mut self, bytes: u64) -> Result<()> {
        match self.room.checked_sub(bytes) {
            Some(room) => {
                self.room = room;
                Ok(())
            }
            None => {
                let needed = Bytes(self.limit.0 - self.room).checked_add(Bytes(bytes)).unwrap_or(Bytes::MAX);
                Err(Error::HeaderTooLarge { path: self.path.clone(), needed, allowed: self.limit })
            }
        }
    }

    fn expect(&self, bytes: u64, what: &str) -> Result<()> {
        if bytes <= self.left() {
            return Ok(());
        }
        Err(self.wrong(format!("{what} of {bytes} B, but {} B are left", self.left())))
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        self.expect(N as u64, "a number")?;
        let mut bytes = [0; N];
        self.reader.read_exact(&mut bytes).map_err(|error| self.failed(error))?;
        self.position += N as u64;
        Ok(bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// So many bytes, which are kept.
    pub(crate) fn bytes(&mut self, len: u64, what: &str) -> Result<Vec<u8>> {
        self.expect(len, what)?;
        self.keep(len)?;
        let count = usize::try_from(len).map_err(|_| self.wrong(format!("{what} of {len} B")))?;
        let mut bytes = vec![0; count];
        self.reader.read_exact(&mut bytes).map_err(|error| self.failed(error))?;
        self.position += len;
        Ok(bytes)
    }

    pub(crate) fn text(&mut self, len: u64, what: &str) -> Result<String> {
        let start = self.position;
        let bytes = self.bytes(len, what)?;
        String::from_utf8(bytes).map_err(|_| Error::Format {
            path: self.path.clone(),
            offset: start,
            problem: format!("{what} is not UTF-8"),
        })
    }

    /// Goes past so many bytes without reading them.
    pub(crate) fn skip(&mut self, len: u64, what: &str) -> Result<()> {
        self.expect(len, what)?;
        let by = i64::try_from(len).map_err(|_| self.wrong(format!("{what} of {len} B")))?;
        self.reader.seek_relative(by).map_err(|error| self.failed(error))?;
        self.position += len;
        Ok(())
    }

    /// The next so many bytes as a reader of their own.
    pub(crate) fn part(&mut self, len: u64) -> Result<impl BufRead + '_> {
        self.expect(len, "a header")?;
        self.position += len;
        Ok((&mut self.reader).take(len))
    }
}
