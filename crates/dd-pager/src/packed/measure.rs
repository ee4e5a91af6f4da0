//! How fast a packed checkpoint decodes on this machine: what a planner compares with the disk.

use std::time::{Duration, Instant};

use dd_core::{Bytes, DType};

use super::codec::Decoder;
use super::open::{PackedCheckpoint, PackedTensor};
use crate::convert;
use crate::error::Result;

/// How many chunks are decoded in turn, each to a place of its own, so that they do not stay in the nearest caches: those
/// of a pass do not either.
const CHUNKS: usize = 8;
/// How often; the fastest round counts, since what slows one down is not the decoder's.
const ROUNDS: usize = 4;

impl PackedCheckpoint {
    /// The raw bytes that one thread decodes per second into memory of type `to` (for each tensor its own type where
    /// that is none), measured on some chunks of the largest packed tensor that can fill such memory; nothing where
    /// there is none. Reads those chunks through the page cache and takes some milliseconds.
    ///
    /// # Errors
    /// As [`PackedTensor::decode`]; [`Error::Offload`](crate::Error::Offload) where the chunks cannot be read.
    pub fn decode_speed(&self, to: Option<DType>) -> Result<Option<f64>> {
        let fills = |tensor: &&PackedTensor| {
            let from = tensor.desc().dtype();
            tensor.is_packed() && convert::can_widen(from, to.unwrap_or(from))
        };
        let Some(tensor) = self.tensors().values().filter(fills).max_by_key(|tensor| tensor.raw_bytes())
        else {
            return Ok(None);
        };
        let (from, mut raw) = (tensor.desc().dtype(), 0);
        let to = to.unwrap_or(from);
        let mut decoder = Decoder::new(self.chunk())?;
        let mut chunks = Vec::with_capacity(CHUNKS);
        for chunk in tensor.chunks(0..tensor.raw_bytes().0).take(CHUNKS) {
            let bytes = Bytes(chunk.raw.end - chunk.raw.start);
            let out = vec![0; convert::widened(from, to, bytes)?.to_usize()?];
            let mut stored = vec![0; chunk.len];
            if let Some(shard) = self.checkpoint().shard(tensor.shard()) {
                shard.read_exact_at(chunk.offset, &mut stored, tensor.name())?;
            }
            chunks.push((chunk, stored, out));
            raw += bytes.0;
        }
        let mut fastest = Duration::MAX;
        for _ in 0..ROUNDS {
            let begun = Instant::now();
            for (chunk, stored, out) in &mut chunks {
                tensor.decode(chunk, to, &mut decoder, stored, out)?;
            }
            fastest = fastest.min(begun.elapsed());
        }
        Ok((!fastest.is_zero()).then(|| raw as f64 / fastest.as_secs_f64()))
    }
}
