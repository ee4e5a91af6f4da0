//! [`unpack()`]: a packed checkpoint made into what it was, to the byte.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::Path;

use dd_core::{Budget, Bytes, Holder};
use dd_offload::checkpoint::{Checkpoint, Shard, ShardId};

use super::codec::{Decoder, max_packed};
use super::draft::{Draft, DraftFile};
use super::header::Source;
use super::open::PackedCheckpoint;
use crate::error::{Error, Result};

/// Writes the files that were packed, to the byte: into `out`, one file where that ends in `.safetensors`, else a new
/// folder. There must be nothing at `out` yet; it appears when all of it is on the disk. Memory stays at a few chunks,
/// taken from `budget`. `progress` is told the raw bytes done since it was told last. Gives the bytes of the tensors.
///
/// # Errors
/// [`Error::Damaged`] where a chunk is not what was packed; else as [`pack`](super::pack()).
pub fn unpack(
    source: &PackedCheckpoint,
    out: &Path,
    budget: &Budget,
    progress: &mut dyn FnMut(u64),
) -> Result<Bytes> {
    let checkpoint = source.checkpoint();
    let span = tracing::info_span!("unpack", source = %checkpoint.path().display(), out = %out.display());
    let _entered = span.enter();
    let draft = Draft::new(out, checkpoint)?;
    let mut work = Work::new(source, budget)?;
    let (mut names, mut total) = (BTreeMap::new(), 0);
    for (id, shard) in checkpoint.shards().iter().enumerate() {
        let name = shard.path().file_name().unwrap_or(OsStr::new("model.safetensors"));
        total += work.shard(shard, &draft.file(name)?, progress)?;
        let tensors = checkpoint.tensors().filter(|(_, location)| location.shard == ShardId(id));
        names.extend(tensors.map(|(tensor, _)| (tensor, name.to_string_lossy().into_owned())));
    }
    if checkpoint.shards().len() > 1 {
        draft.index(&names, total)?;
    }
    checkpoint.verify()?;
    Checkpoint::open(draft.path())?; // It is what a reader accepts.
    draft.finish()?;
    Ok(Bytes(total))
}

struct Work<'a> {
    source: &'a PackedCheckpoint,
    decoder: Decoder,
    packed: Vec<u8>,
    raw: Vec<u8>,
    _memory: dd_core::Reservation,
}

impl<'a> Work<'a> {
    fn new(source: &'a PackedCheckpoint, budget: &Budget) -> Result<Self> {
        let chunk = source.chunk();
        let decoder = Decoder::new(chunk)?;
        let memory = decoder.memory() + Bytes::of(chunk + max_packed(chunk));
        let memory = budget.reserve(memory, &Holder::new("unpacking"))?;
        Ok(Self { source, decoder, packed: vec![0; max_packed(chunk)], raw: vec![0; chunk], _memory: memory })
    }

    fn shard(&mut self, shard: &Shard, file: &DraftFile<'_>, progress: &mut dyn FnMut(u64)) -> Result<u64> {
        let source = Source::within(shard)?.ok_or_else(|| changed(shard))?;
        let mut at = Bytes::of(source.text.len()).0;
        file.write(0, &at.to_le_bytes(), None)?;
        at += 8;
        file.write(8, source.text.as_bytes(), None)?;
        for (name, desc) in &source.tensors {
            let tensor = self.source.tensor(name)?;
            for chunk in tensor.chunks(0..desc.bytes().0) {
                let bytes = Bytes(chunk.raw.end - chunk.raw.start).to_usize()?;
                let packed = self.packed.get_mut(..chunk.len).ok_or_else(|| changed(shard))?;
                let raw = self.raw.get_mut(..bytes).ok_or_else(|| changed(shard))?;
                shard.read_exact_at(chunk.offset, packed, name)?;
                tensor.decode(&chunk, desc.dtype(), &mut self.decoder, packed, raw)?;
                file.write(at + chunk.raw.start, raw, Some(name))?;
                progress(chunk.raw.end - chunk.raw.start);
            }
            at += desc.bytes().0;
        }
        file.sync()?;
        Ok(source.raw_bytes())
    }
}

/// Its header is no longer the one that was read when it was opened.
fn changed(shard: &Shard) -> Error {
    let (path, reason) =
        (shard.path().to_owned(), "it changed since it was opened; open it again".to_owned());
    Error::Read { what: "a packed checkpoint".to_owned(), path, reason }
}
