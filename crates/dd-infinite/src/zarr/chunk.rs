//! [`ChunkCodec`]: a window's bytes to a chunk's and back, through the codecs of the crate `zarrs`.

use std::borrow::Cow;
use std::num::NonZeroU64;
use std::sync::Arc;

use dd_core::Bytes;

use zarrs::array::{Array, ArrayBytes, ArrayMetadata, ArrayToBytesCodecTraits as _, CodecOptions};
use zstd::zstd_safe;

use super::layout::Part;
use super::meta::{Description, Elements};

/// What the end of a chunk, or of a shard's index, takes for its CRC32C.
const CRC: usize = 4;

/// What a shard's index takes per inner chunk: offset and length, 8 bytes each.
const ENTRY: usize = 16;

/// What marks an inner chunk of zeros only, which is not stored.
const ABSENT: u64 = u64::MAX;

/// The codecs of one tensor.
pub(super) struct ChunkCodec {
    array: Array<()>,
    shape: Vec<NonZeroU64>,
    options: CodecOptions,
    raw: usize,
    /// How many inner chunks, and the bytes of one before they are packed; nothing where the window is the chunk.
    inner: Option<(usize, usize)>,
}

impl ChunkCodec {
    /// The codecs that a description names. Windows are compressed at `level`, whatever the description says: readers need
    /// not know it, and the memory that it takes is this store's to announce.
    pub(super) fn new(description: &Description, level: i32) -> Result<Self, String> {
        let mut description = description.clone();
        description.encoding.level = level;
        let elements = Elements::of(&description.manifest.window)?;
        let metadata = description.to_json(Part::Near)?;
        let metadata: ArrayMetadata = serde_json::from_value(metadata).map_err(|error| error.to_string())?;
        let array = Array::new_with_metadata(Arc::new(()), "/window", metadata).map_err(|e| e.to_string())?;
        let ones = vec![1; description.manifest.index_rank];
        let shape = ones.iter().chain(&elements.shape).filter_map(|size| NonZeroU64::new(*size)).collect();
        let raw = description.manifest.window.len_in_memory().map_err(|error| error.to_string())?;
        let inner = match description.encoding.inner.as_slice() {
            [] => None,
            sizes => Some(inner_of(sizes, &elements, raw).ok_or("its inner chunks do not divide a window")?),
        };
        // One window on one thread: the threads are the caller's to use.
        let options = CodecOptions::default()
            .with_concurrent_target(1)
            .with_chunk_concurrent_minimum(1)
            .with_store_empty_chunks(false)
            .with_validate_checksums(true);
        Ok(Self { array, shape, options, raw, inner })
    }

    /// The chunk of a window.
    pub(super) fn encode(&self, window: &[u8]) -> Result<Vec<u8>, String> {
        let bytes = ArrayBytes::new_flen(Cow::Borrowed(window));
        let (kind, zero) = (self.array.data_type(), self.array.fill_value());
        let chunk = self.array.codecs().encode(bytes, &self.shape, kind, zero, &self.options);
        chunk.map(Cow::into_owned).map_err(|error| error.to_string())
    }

    /// The window of a chunk. `out` is as long as a window.
    pub(super) fn decode(&self, chunk: Vec<u8>, out: &mut [u8]) -> Result<(), String> {
        self.check(&chunk)?;
        let (kind, zero) = (self.array.data_type(), self.array.fill_value());
        let window = self.array.codecs().decode(Cow::Owned(chunk), &self.shape, kind, zero, &self.options);
        let window =
            window.map_err(|error| error.to_string())?.into_fixed().map_err(|error| error.to_string())?;
        if window.len() != out.len() {
            return Err(format!("{} B were unpacked, a window has {} B", window.len(), out.len()));
        }
        out.copy_from_slice(&window);
        Ok(())
    }

    /// The longest chunk of such a window: a longer file is not read.
    pub(super) fn most(&self) -> u64 {
        let (count, each) = self.inner.unwrap_or((1, self.raw));
        let packed = zstd_safe::compress_bound(each).saturating_add(CRC).saturating_mul(count);
        let index = self.inner.map_or(0, |(count, _)| count.saturating_mul(ENTRY).saturating_add(CRC));
        packed.saturating_add(index) as u64 // lossless
    }

    /// Checks what the codecs would allocate by, before they do: a chunk may be anything, and say anything of its length.
    fn check(&self, chunk: &[u8]) -> Result<(), String> {
        let Some((count, each)) = self.inner else {
            return check_packed(chunk, self.raw);
        };
        let start = chunk.len().checked_sub(count * ENTRY + CRC);
        let index = start.and_then(|start| chunk.get(start..chunk.len() - CRC));
        let index = index.ok_or_else(|| format!("{} B cannot hold a shard's index", chunk.len()))?;
        let mut held = index.len() + CRC;
        for (n, entry) in index.as_chunks::<ENTRY>().0.iter().enumerate() {
            let (offset, length) = halves(entry);
            if (offset, length) == (ABSENT, ABSENT) {
                continue;
            }
            let place = offset
                .checked_add(length)
                .and_then(|end| chunk.get(usize::try_from(offset).ok()?..usize::try_from(end).ok()?));
            let place = place.ok_or_else(|| format!("inner chunk {n} lies outside the shard"))?;
            check_packed(place, each).map_err(|reason| format!("inner chunk {n}: {reason}"))?;
            held = held.saturating_add(place.len());
        }
        if held != chunk.len() {
            return Err(format!("its {} B are not its inner chunks and their index, {held} B", chunk.len()));
        }
        Ok(())
    }
}

/// The bytes that one `put` or `get` takes beyond the caller's buffer, at most.
///
/// A chunk exists twice while its checksum is added or taken off, and the unpacked window once. zstd's tables are bounded
/// by its level's parameters and by the length of what is packed (it adapts them to that).
pub(super) fn scratch(raw: Bytes, level: i32) -> Bytes {
    // No inner chunk is so small that what is around it doubles it: see `Elements::inner`.
    let most = raw + raw + Bytes::kib(4);
    let tables = match level {
        ..=1 => Bytes::mib(1),
        _ => Bytes::mib(2) + Bytes(raw.0.next_power_of_two().saturating_mul(12)).min(Bytes::mib(24)),
    };
    most + most + raw + tables
}

fn inner_of(sizes: &[u64], elements: &Elements, raw: usize) -> Option<(usize, usize)> {
    let each = sizes.iter().try_fold(elements.bytes, |all, size| all.checked_mul(*size))?;
    let each = usize::try_from(each).ok().filter(|each| *each > 0)?;
    Some((raw / each, each))
}

/// Whether packed bytes are one zstd frame that says it holds so many.
fn check_packed(packed: &[u8], expected: usize) -> Result<(), String> {
    let frame = packed.len().checked_sub(CRC).and_then(|end| packed.get(..end));
    let frame = frame.ok_or_else(|| format!("{} B are too few for a chunk", packed.len()))?;
    let whole = zstd_safe::find_frame_compressed_size(frame).is_ok_and(|length| length == frame.len());
    let says = zstd_safe::get_frame_content_size(frame).ok().flatten();
    match says {
        _ if !whole => Err(format!("its {} B are no whole zstd frame", frame.len())),
        Some(says) if says == expected as u64 => Ok(()), // lossless
        Some(says) => Err(format!("it says that it holds {says} B, expected {expected} B")),
        None => Err(format!("it does not say that it holds {expected} B")),
    }
}

fn halves(entry: &[u8; ENTRY]) -> (u64, u64) {
    let both = u128::from_le_bytes(*entry);
    #[allow(clippy::cast_possible_truncation, reason = "the low half")]
    let low = both as u64;
    let high = (both >> 64) as u64; // What is left is 64 bits long.
    (low, high)
}
