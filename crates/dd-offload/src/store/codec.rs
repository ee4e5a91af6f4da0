//! Packing one chunk: zstd where it makes it smaller, as it is where not.

use dd_core::Bytes;
use zstd::bulk::{Compressor, Decompressor};

use crate::error::{Error, Result};

/// How many raw bytes go through a store at once: the size of its buffers.
pub const CHUNK: usize = 1 << 20;

/// Offsets and lengths of the chunks of `total` bytes.
pub(super) fn chunks(total: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..total).step_by(CHUNK).map(move |offset| (offset, CHUNK.min(total - offset)))
}

/// Packs chunk after chunk through one scratch buffer of at most [`CHUNK`] bytes.
pub(super) struct Packer {
    zstd: Option<(Compressor<'static>, Vec<u8>)>,
}

impl Packer {
    /// A packer of this zstd level; without one, chunks stay as they are.
    pub(super) fn new(level: Option<i32>) -> Result<Self> {
        let compressor = level.map(Compressor::new).transpose().map_err(failed)?;
        Ok(Self { zstd: compressor.map(|compressor| (compressor, Vec::new())) })
    }

    /// Whether it packs at all.
    pub(super) const fn packs(&self) -> bool {
        self.zstd.is_some()
    }

    /// The bytes to store, and whether they are packed: only where that makes them fewer.
    pub(super) fn pack<'a>(&'a mut self, raw: &'a [u8]) -> (&'a [u8], bool) {
        let Some((compressor, scratch)) = &mut self.zstd else { return (raw, false) };
        scratch.clear();
        // The room bounds the output: what does not get smaller does not fit, and is stored as it is.
        scratch.reserve_exact(raw.len());
        match compressor.compress_to_buffer(raw, scratch) {
            Ok(len) if len < raw.len() => (scratch.as_slice(), true),
            _ => (raw, false),
        }
    }
}

/// Unpacks chunk after chunk.
#[derive(Default)]
pub(super) struct Unpacker(Option<Decompressor<'static>>);

impl Unpacker {
    /// Fills `out` with what `packed` holds; what is wrong, in words, where that is not exactly `out.len()` bytes.
    pub(super) fn unpack(&mut self, packed: &[u8], out: &mut [u8]) -> Result<(), String> {
        let decompressor = match &mut self.0 {
            Some(decompressor) => decompressor,
            empty => empty.insert(Decompressor::new().map_err(|error| error.to_string())?),
        };
        let expected = out.len();
        match decompressor.decompress_to_buffer(packed, out) {
            Ok(len) if len == expected => Ok(()),
            Ok(len) => Err(format!("a chunk unpacks to {len} B, expected {expected} B")),
            Err(error) => Err(format!("a chunk does not unpack: {error}")),
        }
    }
}

/// What a call takes besides what it stores: a chunk's buffer, and with zstd a second one and the library's own state,
/// which is measured, since it depends on the level.
pub(super) fn working_bytes(level: Option<i32>) -> Result<Bytes> {
    let Some(level) = level else { return Ok(Bytes::of(CHUNK)) };
    let range = zstd::compression_level_range();
    if !range.contains(&level) {
        let reason = format!("zstd has no level {level}; use one of {} to {}", range.start(), range.end());
        return Err(Error::InvalidConfig { option: "compression", reason });
    }
    let mut compressor = Compressor::new(level).map_err(failed)?;
    let (raw, mut packed) = (vec![0; CHUNK], Vec::with_capacity(CHUNK));
    compressor.compress_to_buffer(raw.as_slice(), &mut packed).map_err(failed)?;
    Ok(Bytes::of(2 * CHUNK) + Bytes::of(compressor.context_mut().sizeof()))
}

fn failed(error: std::io::Error) -> Error {
    Error::Core(dd_core::Error::library("zstd", "make a compressor", error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_cover_everything_once() {
        for total in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK] {
            let mut at = 0;
            for (offset, len) in chunks(total) {
                assert_eq!(offset, at);
                assert!(len > 0 && len <= CHUNK);
                at += len;
            }
            assert_eq!(at, total);
        }
    }

    #[test]
    fn levels_outside_the_range_are_refused() {
        for (level, fine) in [(None, true), (Some(1), true), (Some(0), true), (Some(99), false)] {
            assert_eq!(working_bytes(level).is_ok(), fine, "{level:?}");
        }
        assert!(working_bytes(Some(19)).unwrap() > working_bytes(Some(1)).unwrap());
    }
}
