//! Where the bytes of paged memory come from: [`Source`], and the file sources that most need.

use std::sync::Arc;

use dd_core::DType;
use dd_offload::io::DirectFile;

use crate::convert::widen;
use crate::error::{Error, Result};
use crate::scratch::Scratch;
use crate::sys::PAGE;
use crate::sys::stamp::Stamp;

/// Where the bytes of a range of paged memory come from. Called on the pager's own threads, several at once.
///
/// A source sees its range as whole pages: the range's first byte lies `head` bytes into its first page (see
/// [`PagedMemory::register`](crate::PagedMemory::register)), so byte `i` of the range is byte `head + i` of its pages.
pub trait Source: Send + Sync {
    /// Fills whole pages: `out` is page aligned and its first byte is byte `at` (a multiple of the page) of the
    /// source's pages. What lies before the range's first byte and behind its last is nobody's; anything may be put there.
    ///
    /// # Errors
    /// Why the bytes cannot be had. A reader that waits for them cannot be told, so then the process ends with the
    /// error's message (see [`Options::on_fatal`](crate::Options::on_fatal)).
    fn fill(&self, at: u64, out: &mut [u8], scratch: &mut Scratch) -> Result<()>;

    /// How many bytes it makes at once, a power of two: the range begins so that few of them cross units.
    fn grain(&self) -> usize {
        PAGE
    }

    /// A page, as `at` in [`fill`](Self::fill), that is worth filling once while there is nothing else to do, so that
    /// later fills need no file; each at most once, and nothing when there are no more.
    fn ahead(&self) -> Option<u64> {
        None
    }

    /// Whether the range may be written to: then [`store`](Self::store) gets its pages when they are evicted.
    fn is_writable(&self) -> bool {
        false
    }

    /// Keeps pages that may have been written to, so that a later [`fill`](Self::fill) gives them again. `data` and `at`
    /// are as in `fill`.
    ///
    /// # Errors
    /// Why they cannot be kept; as in `fill`, that ends the process.
    fn store(&self, at: u64, data: &[u8]) -> Result<()> {
        let _ = (at, data);
        Ok(())
    }
}

/// A range that lies in a file exactly as it is wanted in memory; read around the page cache, straight into its frame.
/// A file that is written to after this was made is an error at the next fill, never other weights.
#[derive(Debug)]
pub struct FileSource {
    file: Arc<DirectFile>,
    stamp: Stamp,
    what: String,
    first: u64, // Of the file: where the range's first page begins. Aligned like the range itself.
    end: u64,
}

impl FileSource {
    /// Bytes `offset..offset + len` of `file`; `what` names them in messages.
    ///
    /// # Errors
    /// [`Error::Read`] where the file is shorter.
    pub fn new(file: Arc<DirectFile>, what: impl Into<String>, offset: u64, len: u64) -> Result<Self> {
        let what = what.into();
        let (stamp, end) = end_within(&file, &what, offset, len)?;
        Ok(Self { file, stamp, what, first: offset - u64::from(Self::head_of(offset)), end })
    }

    /// How far into a page a range at `offset` of a file has to begin, so that direct reads can fill it.
    #[must_use]
    pub const fn head_of(offset: u64) -> u16 {
        #[allow(clippy::cast_possible_truncation, reason = "the remainder is below 4096")]
        let head = (offset % PAGE as u64) as u16;
        head
    }
}

impl Source for FileSource {
    fn fill(&self, at: u64, out: &mut [u8], scratch: &mut Scratch) -> Result<()> {
        let offset = self.first + at;
        let wanted = self.end.saturating_sub(offset);
        let read = scratch.read_around(&self.file, offset, wanted, out, &self.what);
        unchanged(&self.file, self.stamp, &self.what).and(read)
    }
}

/// A range of floats that is stored narrower than it is wanted: widened, exactly, while it is filled.
#[derive(Debug)]
pub struct WideningSource {
    file: Arc<DirectFile>,
    stamp: Stamp,
    what: String,
    offset: u64,
    end: u64,
    stored: DType,
    wanted: DType,
}

impl WideningSource {
    /// Elements of type `stored` in bytes `offset..offset + len` of `file`, wanted as `wanted`. The range in memory has to
    /// begin at the start of a page.
    ///
    /// # Errors
    /// [`Error::Read`] where the file is shorter; [`Error::Invalid`] where there is no exact widening between the two.
    pub fn new(
        file: Arc<DirectFile>,
        what: impl Into<String>,
        (offset, len): (u64, u64),
        (stored, wanted): (DType, DType),
    ) -> Result<Self> {
        let what = what.into();
        let (stamp, end) = end_within(&file, &what, offset, len)?;
        widen(stored, wanted, &[], &mut [])?;
        Ok(Self { file, stamp, what, offset, end, stored, wanted })
    }
}

impl Source for WideningSource {
    fn fill(&self, at: u64, out: &mut [u8], scratch: &mut Scratch) -> Result<()> {
        // Both sizes are powers of two of at most eight bytes, and pages are whole elements of either. What is not widened
        // may come in blocks of any size, and is only bytes here.
        let (narrow, wide) = match self.stored == self.wanted {
            true => (1, 1),
            false => (self.stored.block_bytes(), self.wanted.block_bytes()),
        };
        let offset = self.offset + at / wide * narrow;
        let stored = self.end.saturating_sub(offset).min(out.len() as u64 / wide * narrow);
        let read = scratch.read(&self.file, offset, stored, &self.what);
        unchanged(&self.file, self.stamp, &self.what)?;
        let bytes = read?;
        let filled = usize::try_from(bytes.len() as u64 / narrow * wide).unwrap_or(usize::MAX);
        let out = out.get_mut(..filled).unwrap_or_default();
        match self.stored == self.wanted {
            true => out.copy_from_slice(bytes),
            false => widen(self.stored, self.wanted, bytes, out)?,
        }
        Ok(())
    }
}

/// Where the range ends, if the file has it all, and what the file is now.
fn end_within(file: &DirectFile, what: &str, offset: u64, len: u64) -> Result<(Stamp, u64)> {
    let failed = |reason| Error::Read { what: what.to_owned(), path: file.path().to_owned(), reason };
    let stamp = Stamp::of(file).map_err(|error| failed(error.to_string()))?;
    let end = offset.checked_add(len).filter(|end| *end <= stamp.len).ok_or_else(|| {
        failed(format!("expected {len} bytes at offset {offset}, the file has {} bytes", stamp.len))
    })?;
    Ok((stamp, end))
}

/// Asked after each read: what was read before an unchanged time is what was there when the source was made.
fn unchanged(file: &DirectFile, before: Stamp, what: &str) -> Result<()> {
    let reason = match Stamp::of(file) {
        Ok(now) => before.change(now),
        Err(error) => Some(error.to_string()),
    };
    let Some(reason) = reason else { return Ok(()) };
    let reason = format!("{reason}; restart with the file that is to be used");
    Err(Error::Read { what: what.to_owned(), path: file.path().to_owned(), reason })
}
