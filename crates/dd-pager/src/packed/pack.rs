//! [`pack()`]: a checkpoint made into a packed one, chunk by chunk, each proven as it is written.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::Path;
use std::time::Instant;

use dd_core::{Budget, Bytes, DType, Holder, Reservation, TensorDesc};
use dd_offload::checkpoint::{Checkpoint, Shard, ShardId, TensorLocation};

use super::codec::{Decoder, Encoder, LEAST_GAIN, max_packed};
use super::draft::{Draft, DraftFile};
use super::header::{Entry, Source, entry};
use super::open::{PackedCheckpoint, chunk_key};
use super::report::{PackReport, PackedEntry};
use super::{planes, table};
use crate::error::{Error, Result};

/// How to pack.
#[derive(Clone, Debug)]
pub struct PackOptions {
    /// Raw bytes per chunk: a power of two in [`CHUNK_RANGE`](super::codec::CHUNK_RANGE). Smaller ones let a reader
    /// take less at a time, larger ones carry fewer tables of codes.
    pub chunk: usize,
    /// Where the memory for the work is accounted: a few chunks.
    pub budget: Budget,
}

impl Default for PackOptions {
    fn default() -> Self {
        Self { chunk: 256 << 10, budget: Budget::unlimited("packing") }
    }
}

/// Packs a checkpoint into `out`: one file where `out` ends in `.safetensors` (a source of one file only), else a new
/// folder with a packed file for each of the source's, of the same names, and an index where they are several. There
/// must be nothing at `out` yet. Memory stays at a few chunks, taken from the budget of `options`.
///
/// Each chunk is decoded as soon as it is coded and compared with its source. What was begun is removed on any error;
/// `out` appears when all of it is on the disk. `progress` is told the raw bytes done since it was told last.
///
/// # Errors
/// [`Error::Invalid`] where `out`, the options or the source will not do; [`Error::Write`] where the disk is full or
/// fails; [`Error::Offload`] where the source cannot be read or changes meanwhile; [`Error::Core`] where the budget has
/// no room; [`Error::Damaged`] where a chunk does not decode to its source, which memory that fails can cause.
pub fn pack(
    source: &Checkpoint,
    out: &Path,
    options: &PackOptions,
    progress: &mut dyn FnMut(u64),
) -> Result<PackReport> {
    let span = tracing::info_span!("pack", source = %source.path().display(), out = %out.display());
    let _entered = span.enter();
    if PackedCheckpoint::is_packed(source)? {
        let (what, found) = (source.path().display().to_string(), "a packed one".to_owned());
        return Err(Error::Invalid {
            what,
            expected: "a checkpoint that is not packed yet".to_owned(),
            found,
        });
    }
    let mut packer = Packer::new(source, options)?;
    let draft = Draft::new(out, source)?;
    let mut names = BTreeMap::new();
    for (id, shard) in source.shards().iter().enumerate() {
        let name = shard.path().file_name().unwrap_or(OsStr::new("model.safetensors"));
        packer.shard(ShardId(id), shard, &draft.file(name)?, progress)?;
        let name = name.to_string_lossy();
        let tensors = source.tensors().filter(|(_, location)| location.shard == ShardId(id));
        names.extend(tensors.map(|(tensor, _)| (tensor, name.clone().into_owned())));
    }
    if source.shards().len() > 1 {
        draft.index(&names, source.total_bytes().0)?;
    }
    source.verify()?;
    PackedCheckpoint::open(draft.path())?; // It is what a reader accepts.
    draft.finish()?;
    let report = packer.report;
    tracing::info!(raw = report.raw().0, stored = report.stored().0, "packed");
    Ok(report)
}

/// The coder, its check and their buffers.
struct Packer<'a> {
    source: &'a Checkpoint,
    options: &'a PackOptions,
    encoder: Encoder,
    decoder: Decoder,
    raw: Vec<u8>,
    packed: Vec<u8>,
    check: Vec<u8>,
    report: PackReport,
    _memory: Reservation,
}

impl<'a> Packer<'a> {
    fn new(source: &'a Checkpoint, options: &'a PackOptions) -> Result<Self> {
        let chunk = options.chunk;
        let (encoder, decoder) = (Encoder::new(chunk)?, Decoder::new(chunk)?);
        let buffers = Bytes::of(2 * chunk + max_packed(chunk));
        let memory = encoder.memory() + decoder.memory() + buffers;
        let memory = options.budget.reserve(memory, &Holder::new("packing"))?;
        let (raw, check) = (vec![0; chunk], vec![0; chunk]);
        let packed = Vec::with_capacity(max_packed(chunk));
        let report = PackReport::default();
        Ok(Self { source, options, encoder, decoder, raw, packed, check, report, _memory: memory })
    }

    /// Writes one file: its tensors behind a header's room, then the header.
    fn shard(
        &mut self,
        id: ShardId,
        shard: &Shard,
        file: &DraftFile<'_>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<()> {
        let source = Source::of(shard, self.options.chunk)?;
        let room = source.room()?;
        let checkpoint = self.source;
        let mut entries: Vec<(&str, Entry)> = Vec::with_capacity(source.tensors.len());
        let mut at = room;
        for (name, location) in checkpoint.tensors().filter(|(_, location)| location.shard == id) {
            let mut tensor = Tensor { shard, file, name, location, at, told: 0 };
            let packed = self.pack(&mut tensor, progress)?;
            if packed.is_none() {
                self.copy(&tensor, progress)?;
            }
            let len = packed.unwrap_or(location.len);
            let desc = match packed {
                Some(len) => TensorDesc::new([Bytes(len).to_usize()?], DType::U8)?,
                None => location.desc.clone(),
            };
            entries.push((name, entry(&desc, [at - room, at + len - room])));
            let (name, desc, packed) = (name.to_owned(), location.desc.clone(), packed.is_some());
            self.report.tensors.push(PackedEntry { name, desc, stored: Bytes(len), packed });
            at += len;
        }
        file.write(0, &source.header(room, entries.into_iter())?, None)?;
        file.cut(at)?;
        self.report.file_bytes += Bytes(at);
        file.sync()
    }

    /// Writes a tensor packed and says how long it is now; nothing where that is not worth it, and then what was
    /// written is to be written over.
    fn pack(&mut self, tensor: &mut Tensor<'_>, progress: &mut dyn FnMut(u64)) -> Result<Option<u64>> {
        let (raw, desc) = (tensor.location.len, &tensor.location.desc);
        let most = Bytes(raw).scaled(1.0 - LEAST_GAIN).0;
        let table = table::table_bytes(raw, self.options.chunk).filter(|table| *table < most);
        let Some(mut len) = table.filter(|_| planes::of(desc.dtype()) > 0) else { return Ok(None) };
        let key = table::key(tensor.name, desc);
        let mut lengths = Vec::new();
        for (index, (offset, bytes)) in chunks(raw, self.options.chunk).enumerate() {
            tensor.read(offset, self.raw.get_mut(..bytes).unwrap_or_default())?;
            self.code(tensor, chunk_key(key, index), bytes)?;
            let stored = Bytes::of(self.packed.len()).0;
            if len + stored > most {
                return Ok(None);
            }
            tensor.write(len, &self.packed)?;
            lengths.push(u32::try_from(stored).map_err(|_| overflow("a chunk"))?);
            len += stored;
            tensor.tell(offset + Bytes::of(bytes).0, progress);
        }
        tensor.write(0, &table::encode(key, &lengths))?;
        let padding = Bytes(table::padding(raw, len)).to_usize()?;
        tensor.write(len, &vec![0; padding])?;
        len += Bytes::of(padding).0;
        Ok((len <= most).then_some(len))
    }

    /// Packs the raw bytes at hand, and decodes them again to be sure.
    fn code(&mut self, tensor: &Tensor<'_>, key: u64, bytes: usize) -> Result<()> {
        let raw = self.raw.get(..bytes).unwrap_or_default();
        let back = self.check.get_mut(..bytes).unwrap_or_default();
        let begun = Instant::now();
        self.encoder.encode(key, tensor.location.desc.dtype(), raw, &mut self.packed)?;
        let coded = Instant::now();
        self.decoder.decode(key, &self.packed, back)?;
        self.report.decoding += coded.elapsed();
        self.report.encoding += coded - begun;
        self.report.coded += Bytes::of(bytes);
        if raw == back {
            return Ok(());
        }
        let (what, reason) =
            (format!("tensor {:?}", tensor.name), "a chunk is not what was packed".to_owned());
        Err(Error::Damaged { what, reason })
    }

    /// Writes a tensor as it is.
    fn copy(&mut self, tensor: &Tensor<'_>, progress: &mut dyn FnMut(u64)) -> Result<()> {
        let mut tensor = Tensor { ..*tensor };
        for (offset, bytes) in chunks(tensor.location.len, self.options.chunk) {
            let raw = self.raw.get_mut(..bytes).unwrap_or_default();
            tensor.read(offset, raw)?;
            tensor.write(offset, raw)?;
            tensor.tell(offset + Bytes::of(bytes).0, progress);
        }
        Ok(())
    }
}

/// A tensor on its way from one file to another.
struct Tensor<'a> {
    shard: &'a Shard,
    file: &'a DraftFile<'a>,
    name: &'a str,
    location: &'a TensorLocation,
    at: u64,
    told: u64,
}

impl Tensor<'_> {
    fn read(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        Ok(self.shard.read_exact_at(self.location.offset + offset, out, self.name)?)
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.file.write(self.at + offset, bytes, Some(self.name))
    }

    /// Tells of the bytes up to here, if it was not told of them.
    fn tell(&mut self, done: u64, progress: &mut dyn FnMut(u64)) {
        if done > self.told {
            progress(done - self.told);
            self.told = done;
        }
    }
}

/// Offsets and lengths of the chunks of `total` bytes.
fn chunks(total: u64, chunk: usize) -> impl Iterator<Item = (u64, usize)> {
    (0..total)
        .step_by(chunk)
        .map(move |offset| (offset, usize::try_from(total - offset).map_or(chunk, |left| left.min(chunk))))
}

fn overflow(what: &str) -> Error {
    Error::Core(dd_core::Error::SizeOverflow { what: what.to_owned() })
}
