//! [`GgufReader`]: the reader that a model's loader gets. It reads like a file, but what is to be read to a captured
//! buffer as a whole is not read at all: the buffer is told where in the file its bytes are.

use std::io::{ErrorKind, Read, Result, Seek, SeekFrom};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use super::digest::{Digests, PAGE};
use super::file::{ModelFile, position};
use super::memory::Loading;
use crate::capture;

/// Bytes of the file are read in pieces of this size where the kernel must not be given the address that they are for.
const PIECE: usize = 2 * PAGE;

/// Reads a GGUF file for a model's loader.
#[derive(Debug)]
pub struct GgufReader {
    file: Arc<ModelFile>,
    position: u64,
    loading: Arc<Loading>,
}

impl GgufReader {
    pub(crate) const fn new(file: Arc<ModelFile>, loading: Arc<Loading>) -> Self {
        Self { file, position: 0, loading }
    }

    fn advance(&mut self, bytes: usize) -> usize {
        self.position = self.position.saturating_add(bytes as u64);
        bytes
    }

    /// Reads what comes next to captured memory; `pieces` sees each piece and where in the file it begins. Pieces begin at
    /// whole pages of the file.
    fn read_captured(&mut self, buffer: &mut [u8], mut pieces: impl FnMut(u64, &[u8])) -> Result<usize> {
        let mut piece = [0; PIECE];
        let start = self.position / PAGE as u64 * PAGE as u64;
        let got = read_fully(&self.file, &mut piece, start)?;
        let bytes = piece.get(..got).unwrap_or_default();
        pieces(start, bytes);
        let skip = usize::try_from(self.position - start).unwrap_or(PIECE);
        let bytes = bytes.get(skip..).unwrap_or_default();
        let count = bytes.len().min(buffer.len());
        if let (Some(to), Some(from)) = (buffer.get_mut(..count), bytes.get(..count)) {
            to.copy_from_slice(from);
        }
        Ok(self.advance(count))
    }

    fn refused(&self) -> Result<()> {
        if self.loading.was_refused() {
            // Stops the loader early; why is what the caller of `load` gets.
            return Err(std::io::Error::other("an allocation of the loader could not be paged"));
        }
        Ok(())
    }
}

/// As many bytes as there are, up to the buffer's length.
fn read_fully(file: &ModelFile, buffer: &mut [u8], mut offset: u64) -> Result<usize> {
    let mut done = 0;
    while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match file.file().read_at(rest, offset) {
            Ok(0) => break,
            Ok(read) => {
                done += read;
                offset += read as u64;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

// What is allocated here serves captured memory, so it must not be captured.
impl Read for GgufReader {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        capture::quietly(|| self.read_some(buffer))
    }

    fn read_exact(&mut self, buffer: &mut [u8]) -> Result<()> {
        capture::quietly(|| self.read_all(buffer))
    }
}

impl GgufReader {
    fn read_some(&mut self, buffer: &mut [u8]) -> Result<usize> {
        self.refused()?;
        if !buffer.is_empty() && capture::contains(buffer.as_ptr()) {
            return self.read_captured(buffer, |_, _| ());
        }
        let read = self.file.file().read_at(buffer, self.position)?;
        Ok(self.advance(read))
    }

    fn read_all(&mut self, buffer: &mut [u8]) -> Result<()> {
        self.refused()?;
        let (start, len) = (self.position, buffer.len() as u64);
        let end = start.checked_add(len).filter(|end| *end <= self.file.len());
        let end = end.ok_or(ErrorKind::UnexpectedEof)?;
        if buffer.is_empty() || !capture::contains(buffer.as_ptr()) {
            self.file.file().read_exact_at(buffer, start)?;
            self.position = end;
            return Ok(());
        }
        if self.loading.hold(buffer, start) {
            self.position = end;
            return Ok(());
        }
        let digests = Digests::of(start..end);
        let mut rest = &mut *buffer;
        while !rest.is_empty() {
            let read = self.read_captured(rest, |at, bytes| digests.note(at, bytes))?;
            if read == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            rest = rest.get_mut(read..).unwrap_or_default();
        }
        self.loading.was_read(buffer, digests);
        Ok(())
    }
}

impl Seek for GgufReader {
    fn seek(&mut self, to: SeekFrom) -> Result<u64> {
        self.position = position(to, self.position, self.file.len())?;
        Ok(self.position)
    }
}
