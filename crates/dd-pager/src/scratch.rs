//! [`Scratch`]: what a loader thread reads and decodes into where bytes cannot go straight to their frame.
#![allow(unsafe_code, reason = "a slice of the scratch's own mapping; the block says why")]

use std::sync::Arc;

use dd_core::Bytes;
use dd_offload::io::DirectFile;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::packed::Decoder;
use crate::packed::codec::max_packed;
use crate::sys::PAGE;
use crate::sys::map::Mapping;

/// What a loader needs to fill memory from packed chunks, beside what it reads into.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decoding {
    chunk: usize,
    filled: usize,
    decoder: Bytes,
}

impl Decoding {
    /// For chunks of at most `chunk` raw bytes that fill `widening` times as many bytes of memory.
    ///
    /// # Errors
    /// [`Error::Invalid`] where no chunk has such a size; [`Error::Core`] where a decoder cannot be made.
    pub fn new(chunk: usize, widening: usize) -> Result<Self> {
        let decoder = Decoder::new(chunk)?.memory();
        Ok(Self { chunk, filled: chunk.saturating_mul(widening.max(1)), decoder })
    }

    /// The bytes of memory that one chunk fills at most: what a unit of less decodes more than once.
    #[must_use]
    pub const fn filled(&self) -> usize {
        self.filled
    }

    /// The values of a chunk that does not lie in one frame, and the decoder.
    const fn memory(&self) -> Bytes {
        Bytes(self.decoder.0.saturating_add(Bytes::of(self.filled).0))
    }
}

/// A loader thread's own aligned buffer, accounted for from the start.
#[derive(Debug)]
pub struct Scratch {
    mapping: Mapping,
    len: usize,
    read: u64,
    stays: bool,
    unpacking: Option<Unpacking>,
}

/// A decoder, and the values of the chunk that it decoded last for more than one frame.
pub(crate) struct Unpacking {
    pub(crate) decoder: Decoder,
    pub(crate) values: Vec<u8>,
    /// Whose values they are: the source's number and the first raw byte.
    pub(crate) holds: Option<(u64, u64)>,
}

impl std::fmt::Debug for Unpacking {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Unpacking").field("holds", &self.holds).finish_non_exhaustive()
    }
}

impl Scratch {
    /// What the scratch of one loader takes, with units of so many bytes.
    pub(crate) const fn memory(unit: usize, decoding: Option<Decoding>) -> Bytes {
        let read = Bytes::of(read_buffer(unit, decoding)).0;
        match decoding {
            Some(decoding) => Bytes(read.saturating_add(decoding.memory().0)),
            None => Bytes(read),
        }
    }

    pub(crate) fn new(unit: usize, decoding: Option<Decoding>) -> Result<Self> {
        let len = read_buffer(unit, decoding);
        let unpacking = |decoding: Decoding| {
            let decoder = Decoder::new(decoding.chunk)?;
            Ok::<_, Error>(Unpacking { decoder, values: vec![0; decoding.filled], holds: None })
        };
        let unpacking = decoding.map(unpacking).transpose()?;
        let mapping = Mapping::reserve(len, false)?;
        mapping.prefer_huge(len); // Reads into scattered small pages keep a disk's queue busy for longer.
        Ok(Self { mapping, len, read: 0, stays: false, unpacking })
    }

    /// The whole buffer, page aligned: a unit and two pages, or more where a packed chunk needs it.
    pub fn buffer(&mut self) -> &mut [u8] {
        // SAFETY: `len` bytes of a mapping that only this scratch has; borrowed as the scratch is. Anonymous memory reads
        // as zeros before it is written, so every byte is initialised.
        unsafe { std::slice::from_raw_parts_mut(self.mapping.start().as_ptr(), self.len) }
    }

    /// The most bytes that one [`read`](Self::read) can take wherever they lie.
    pub(crate) const fn room(&self) -> usize {
        self.len.saturating_sub(2 * PAGE)
    }

    /// Reads `len` bytes at `offset` of `file` around the page cache; `what` names them in the error.
    ///
    /// # Errors
    /// [`Error::Read`] with the file and the reason; more than a unit is such a reason.
    pub fn read(&mut self, file: &Arc<DirectFile>, offset: u64, len: u64, what: &str) -> Result<&[u8]> {
        Ok(self.read_to_unpack(file, offset, len, what)?.0)
    }

    /// As [`read`](Self::read), with what unpacks the bytes.
    pub(crate) fn read_to_unpack(
        &mut self,
        file: &Arc<DirectFile>,
        offset: u64,
        len: u64,
        what: &str,
    ) -> Result<(&[u8], Option<&mut Unpacking>)> {
        let count = usize::try_from(len).unwrap_or(usize::MAX);
        let got = file.read_into(offset, count, self.buffer());
        let range = got.map_err(|error| failed(file, what, &error))?;
        self.read += len;
        // SAFETY: as in `buffer`; the other half of what is given is another field.
        let buffer = unsafe { std::slice::from_raw_parts(self.mapping.start().as_ptr(), self.len) };
        Ok((buffer.get(range).unwrap_or_default(), self.unpacking.as_mut()))
    }

    /// What unpacks, where the memory was made for packed ranges.
    pub(crate) const fn unpacking(&mut self) -> Option<&mut Unpacking> {
        self.unpacking.as_mut()
    }

    /// Whether the unit that is being filled is meant to stay.
    pub(crate) const fn stays(&self) -> bool {
        self.stays
    }

    pub(crate) const fn set_stays(&mut self, stays: bool) {
        self.stays = stays;
    }

    /// Reads the bytes at `offset`, which is a multiple of the page, straight into `out`: as many as are wanted and fit.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn read_around(
        &mut self,
        file: &Arc<DirectFile>,
        offset: u64,
        wanted: u64,
        out: &mut [u8],
        what: &str,
    ) -> Result<()> {
        let count = usize::try_from(wanted).unwrap_or(usize::MAX).min(out.len());
        file.read_into(offset, count, out).map_err(|error| failed(file, what, &error))?;
        self.read += count as u64;
        Ok(())
    }

    /// Bytes read since the last question.
    pub(crate) fn take_read(&mut self) -> u64 {
        std::mem::take(&mut self.read)
    }
}

/// Room for a unit, or for the longest packed chunk, wherever in the file it begins and ends.
const fn read_buffer(unit: usize, decoding: Option<Decoding>) -> usize {
    let longest = match decoding {
        Some(decoding) => max_packed(decoding.chunk).next_multiple_of(PAGE),
        None => 0,
    };
    let bytes = if longest > unit { longest } else { unit };
    bytes.saturating_add(2 * PAGE)
}

fn failed(file: &DirectFile, what: &str, error: &dd_offload::error::Error) -> Error {
    Error::Read { what: what.to_owned(), path: file.path().to_owned(), reason: error.to_string() }
}
