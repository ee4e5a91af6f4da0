//! [`PackedSource`]: fills paged memory from a packed tensor.
//!
//! A piece of memory is covered by whole chunks. Those whose bytes are kept are decoded from there; the others are read,
//! as many at once as lie one behind the other and fit the scratch. A chunk that lies wholly in the piece is decoded
//! straight into its frame; one that reaches beyond it is decoded into the scratch, which remembers it: the next unit
//! often wants the rest.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dd_core::{Bytes, DType};
use dd_offload::io::DirectFile;

use super::kept::{KeptChunks, KeptTensor};
use super::open::{Chunk, PackedTensor};
use crate::convert::widened;
use crate::error::{Error, Result};
use crate::scratch::{Scratch, Unpacking};
use crate::source::Source;

/// A range whose values are stored packed, or as they were in a packed file. The range in memory has to begin at the
/// start of a page, and the memory has to be made for it ([`Options::packed`](crate::Options::packed)).
#[derive(Debug)]
pub struct PackedSource {
    file: Arc<DirectFile>,
    tensor: PackedTensor,
    wanted: DType,
    widening: u64,
    kept: Option<KeptTensor>,
    number: u64,
}

/// Sources made so far: each has a number, by which a scratch knows whose chunk it holds.
static SOURCES: AtomicU64 = AtomicU64::new(0);

impl PackedSource {
    /// The values of `tensor`, which is in `file`, as `wanted`. What is read is kept in `kept` as far as there is room.
    ///
    /// # Errors
    /// [`Error::Invalid`] where the tensor's type does not widen to `wanted`; [`Error::Read`] where the file has become
    /// shorter than the tensor.
    pub fn new(
        file: Arc<DirectFile>,
        tensor: PackedTensor,
        wanted: DType,
        kept: Option<Arc<KeptChunks>>,
    ) -> Result<Self> {
        let (stored, raw) = (tensor.desc().dtype(), tensor.raw_bytes());
        let filled = widened(stored, wanted, raw)?;
        let widening = filled.0.checked_div(raw.0).unwrap_or(1).max(1);
        let (count, end) = tensor.chunks(0..raw.0).fold((0, 0), |(count, _), chunk| {
            (count + 1, chunk.offset.saturating_add(Bytes::of(chunk.len).0))
        });
        let (have, _) = file.extent()?;
        if end > have {
            let reason = format!("expected {end} bytes, the file has {have} bytes");
            return Err(Error::Read { what: tensor.name().to_owned(), path: file.path().to_owned(), reason });
        }
        let kept = kept.map(|kept| KeptTensor::new(kept, count));
        let number = SOURCES.fetch_add(1, Ordering::Relaxed);
        Ok(Self { file, tensor, wanted, widening, kept, number })
    }

    fn index(&self, chunk: &Chunk) -> usize {
        let index = chunk.raw.start.checked_div(Bytes::of(self.tensor.chunk()).0);
        index.and_then(|index| usize::try_from(index).ok()).unwrap_or(usize::MAX)
    }

    /// The stored bytes of a chunk, where they are in memory.
    fn kept(&self, chunk: &Chunk) -> Option<&[u8]> {
        self.kept.as_ref()?.get(self.index(chunk))
    }

    /// Puts what a chunk has for the piece into it. Where the scratch holds its values, `stored` is not looked at.
    fn put(
        &self,
        chunk: &Chunk,
        stored: &[u8],
        piece: &mut Piece<'_>,
        unpacking: &mut Unpacking,
    ) -> Result<()> {
        let values = chunk.raw.start * self.widening..chunk.raw.end * self.widening;
        let decode = |unpacking: &mut Unpacking, out: &mut [u8]| {
            let decoded = self.tensor.decode(chunk, self.wanted, &mut unpacking.decoder, stored, out);
            decoded.map_err(|error| self.in_file(error))
        };
        let held = (self.number, chunk.raw.start);
        if unpacking.holds != Some(held) {
            if let Some(out) = piece.whole(&values) {
                return decode(unpacking, out);
            }
            unpacking.holds = None;
            let mut buffer = std::mem::take(&mut unpacking.values);
            let len = usize::try_from(values.end - values.start).unwrap_or(usize::MAX);
            let decoded = match buffer.get_mut(..len) {
                Some(out) => decode(unpacking, out),
                None => Err(self.unprepared(format!("room for chunks of {} B", buffer.len()))),
            };
            unpacking.values = buffer;
            decoded?;
            unpacking.holds = Some(held);
        }
        piece.copy(&values, &unpacking.values);
        Ok(())
    }

    /// Reads a chunk and those behind it that are wanted too, and puts what they have into the piece.
    fn read(&self, run: &[Chunk], piece: &mut Piece<'_>, scratch: &mut Scratch) -> Result<()> {
        let Some((first, last)) = run.first().zip(run.last()) else { return Ok(()) };
        let stays = scratch.stays();
        let len = last.offset.saturating_add(Bytes::of(last.len).0).saturating_sub(first.offset);
        let (stored, unpacking) =
            scratch.read_to_unpack(&self.file, first.offset, len, self.tensor.name())?;
        let unpacking = unpacking.ok_or_else(|| self.unprepared("no decoder".to_owned()))?;
        let mut rest = stored;
        for chunk in run {
            let (stored, after) = rest.split_at_checked(chunk.len).unwrap_or((rest, &[]));
            self.put(chunk, stored, piece, unpacking)?;
            if let Some(kept) = &self.kept {
                kept.keep(self.index(chunk), stored, stays); // What decodes is sound.
            }
            rest = after;
        }
        Ok(())
    }

    /// Names the file beside the tensor.
    fn in_file(&self, error: Error) -> Error {
        match error {
            Error::Damaged { what, reason } => {
                Error::Damaged { what: format!("{what} of {}", self.file.path().display()), reason }
            }
            other => other,
        }
    }

    fn unprepared(&self, found: String) -> Error {
        Error::Invalid {
            what: format!("memory for packed tensor {:?}", self.tensor.name()),
            expected: format!("Options::packed for chunks of {} B", self.tensor.chunk()),
            found,
        }
    }
}

impl Source for PackedSource {
    fn fill(&self, at: u64, out: &mut [u8], scratch: &mut Scratch) -> Result<()> {
        let end = at.saturating_add(Bytes::of(out.len()).0);
        let raw = at / self.widening..end.div_ceil(self.widening);
        let mut piece = Piece { at, out };
        let mut run: Vec<Chunk> = Vec::with_capacity(8);
        let (mut bytes, room) = (0, scratch.room());
        for chunk in self.tensor.chunks(raw) {
            let unpacking = scratch.unpacking().ok_or_else(|| self.unprepared("none".to_owned()))?;
            let held = unpacking.holds == Some((self.number, chunk.raw.start));
            let kept = if held { Some(&[][..]) } else { self.kept(&chunk) };
            if let Some(stored) = kept {
                self.put(&chunk, stored, &mut piece, unpacking)?;
            }
            if kept.is_some() || bytes + chunk.len > room {
                self.read(&run, &mut piece, scratch)?;
                run.clear();
                bytes = 0;
            }
            if kept.is_none() {
                bytes += chunk.len;
                run.push(chunk);
            }
        }
        self.read(&run, &mut piece, scratch)
    }

    fn ahead(&self) -> Option<u64> {
        let index = self.kept.as_ref()?.missing()?;
        let filled = Bytes::of(self.tensor.chunk()).0.checked_mul(self.widening)?;
        Bytes::of(index).0.checked_mul(filled)
    }

    fn grain(&self) -> usize {
        let widening = usize::try_from(self.widening).unwrap_or(1);
        self.tensor.chunk().saturating_mul(widening)
    }
}

/// The memory that is to be filled, from byte `at` of the range on.
struct Piece<'a> {
    at: u64,
    out: &'a mut [u8],
}

impl Piece<'_> {
    /// The memory of these bytes of the range, if all of it is here.
    fn whole(&mut self, values: &Range<u64>) -> Option<&mut [u8]> {
        let start = usize::try_from(values.start.checked_sub(self.at)?).ok()?;
        let end = usize::try_from(values.end.checked_sub(self.at)?).ok()?;
        self.out.get_mut(start..end)
    }

    /// Copies as much of the values as the piece has a place for.
    fn copy(&mut self, values: &Range<u64>, from: &[u8]) {
        let offset = |by: u64| usize::try_from(by).unwrap_or(usize::MAX);
        let skip = offset(self.at.saturating_sub(values.start));
        let from = from.get(..offset(values.end - values.start)).unwrap_or_default();
        let from = from.get(skip..).unwrap_or_default();
        let out = self.out.get_mut(offset(values.start.saturating_sub(self.at))..).unwrap_or_default();
        let len = from.len().min(out.len());
        if let (Some(out), Some(from)) = (out.get_mut(..len), from.get(..len)) {
            out.copy_from_slice(from);
        }
    }
}
