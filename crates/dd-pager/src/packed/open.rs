//! [`PackedCheckpoint`]: a packed checkpoint, opened and checked; where each chunk is.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use dd_core::{Bytes, DType, TensorDesc};
use dd_offload::checkpoint::{Checkpoint, Shard, ShardId, TensorLocation};

use super::codec::Decoder;
use super::header::Source;
use super::table;
use crate::convert;
use crate::error::{Error, Result};

/// The tensors of a packed model, in one file or several. Opening reads headers and tables of chunks; every length is
/// compared with the file before anything is allocated or believed.
#[derive(Debug)]
pub struct PackedCheckpoint {
    checkpoint: Checkpoint,
    tensors: BTreeMap<String, PackedTensor>,
    chunk: usize,
}

impl PackedCheckpoint {
    /// Opens what [`pack`](super::pack()) wrote; any path that [`Checkpoint::open`] takes.
    ///
    /// # Errors
    /// As [`Checkpoint::open`] and [`of`](Self::of).
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::of(Checkpoint::open(path)?)
    }

    /// Whether a checkpoint is a packed one, going by its first file's header.
    ///
    /// # Errors
    /// [`Error::Offload`] where it cannot be read; [`Error::Read`] where it is packed in another version of the format.
    pub fn is_packed(checkpoint: &Checkpoint) -> Result<bool> {
        let Some(shard) = checkpoint.shards().first() else { return Ok(false) };
        Ok(Source::within(shard)?.is_some())
    }

    /// The packed tensors of an open checkpoint.
    ///
    /// # Errors
    /// [`Error::Read`] where a file is no packed one, or its two headers do not agree; [`Error::Damaged`] where the
    /// chunks of a tensor do not add up to it; [`Error::Offload`] where a file cannot be read.
    pub fn of(checkpoint: Checkpoint) -> Result<Self> {
        let (mut tensors, mut largest) = (BTreeMap::new(), 0);
        for (id, shard) in checkpoint.shards().iter().enumerate() {
            let source = Source::within(shard)?;
            let source =
                source.ok_or_else(|| disagree(shard, "it is no packed file; `deepdim pack` makes one"))?;
            let mut stored = 0;
            for (name, desc) in &source.tensors {
                let location = checkpoint.get(name).filter(|location| location.shard == ShardId(id));
                let location =
                    location.ok_or_else(|| disagree(shard, &format!("it lacks tensor {name:?}")))?;
                let tensor = PackedTensor::read(shard, name, location, desc, source.chunk)?;
                stored += usize::from(tensors.insert(name.clone(), tensor).is_none());
            }
            let found = checkpoint.tensors().filter(|(_, location)| location.shard == ShardId(id)).count();
            if found != source.tensors.len() || found != stored {
                let listed = source.tensors.len();
                return Err(disagree(shard, &format!("its source had {listed} tensors, it has {found}")));
            }
            largest = largest.max(source.chunk);
        }
        Ok(Self { checkpoint, tensors, chunk: largest })
    }

    /// The files, which hold each packed tensor as bytes.
    #[must_use]
    pub const fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// The most raw bytes of any chunk: what a [`Decoder`] is to be made for.
    #[must_use]
    pub const fn chunk(&self) -> usize {
        self.chunk
    }

    /// The tensors by name.
    #[must_use]
    pub const fn tensors(&self) -> &BTreeMap<String, PackedTensor> {
        &self.tensors
    }

    /// One of the tensors.
    ///
    /// # Errors
    /// [`Error::Invalid`] where there is none of that name.
    pub fn tensor(&self, name: &str) -> Result<&PackedTensor> {
        match self.tensors.get(name) {
            Some(tensor) => Ok(tensor),
            None => Err(Error::Invalid {
                what: format!("tensor {name:?} of {}", self.checkpoint.path().display()),
                expected: format!("one of its {} tensors", self.tensors.len()),
                found: "no such name".to_owned(),
            }),
        }
    }

    /// Reads a whole tensor into memory of type `to`, through the page cache and `scratch`, which ends as long as the
    /// longest chunk. The slow and simple way, for small tensors and for tests: a pager reads chunks itself.
    ///
    /// # Errors
    /// As [`tensor`](Self::tensor), [`PackedTensor::decode`] and [`Shard::read_exact_at`].
    pub fn read_into(
        &self,
        name: &str,
        to: DType,
        decoder: &mut Decoder,
        scratch: &mut Vec<u8>,
        out: &mut [u8],
    ) -> Result<()> {
        let tensor = self.tensor(name)?;
        let needed = convert::widened(tensor.desc.dtype(), to, tensor.desc.bytes())?;
        if needed != Bytes::of(out.len()) {
            return Err(Error::Invalid {
                what: format!("memory for tensor {name:?}"),
                expected: format!("{} B", needed.0),
                found: format!("{} B", out.len()),
            });
        }
        let Some(shard) = self.checkpoint.shard(tensor.shard) else { return Ok(()) }; // Each was made from one.
        let mut rest = out;
        for chunk in tensor.chunks(0..tensor.desc.bytes().0) {
            let raw = Bytes(chunk.raw.end - chunk.raw.start);
            let part = convert::widened(tensor.desc.dtype(), to, raw)?.to_usize()?;
            let Some((out, after)) = rest.split_at_mut_checked(part) else { break }; // They add up to all of it.
            scratch.resize(chunk.len, 0);
            shard.read_exact_at(chunk.offset, scratch, name)?;
            tensor.decode(&chunk, to, decoder, scratch, out)?;
            rest = after;
        }
        Ok(())
    }
}

/// Where the bytes of a tensor are, chunk by chunk.
#[derive(Clone, Debug)]
pub struct PackedTensor {
    name: Box<str>,
    desc: TensorDesc,
    shard: ShardId,
    offset: u64,
    len: u64,
    chunk: usize,
    key: u64,
    starts: Option<Box<[u64]>>, // From the tensor's start; nothing where it is stored as it was.
}

/// Some whole chunk of a tensor, and where it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// The first stored byte, counted from the start of the file.
    pub offset: u64,
    /// How many bytes are stored.
    pub len: usize,
    /// Which of the tensor's raw bytes they hold.
    pub raw: Range<u64>,
    /// The key that they were packed with; nothing where they are stored as they were.
    pub key: Option<u64>,
}

impl PackedTensor {
    fn read(
        shard: &Shard,
        name: &str,
        location: &TensorLocation,
        desc: &TensorDesc,
        chunk: usize,
    ) -> Result<Self> {
        let mut tensor = Self {
            name: name.into(),
            desc: desc.clone(),
            shard: location.shard,
            offset: location.offset,
            len: location.len,
            chunk,
            key: table::key(name, desc),
            starts: None,
        };
        if location.desc == *desc {
            return Ok(tensor);
        }
        if location.desc.dtype() != DType::U8 || location.desc.rank() != 1 {
            return Err(disagree(shard, &format!("tensor {name:?} was {desc} and is {}", location.desc)));
        }
        let raw = desc.bytes().0;
        let bytes = table::table_bytes(raw, chunk).filter(|bytes| *bytes <= location.len);
        let Some(bytes) = bytes else {
            let reason = format!("{} B cannot hold {raw} B in chunks of {chunk}", location.len);
            return Err(tensor.damaged(reason));
        };
        let mut stored = vec![0; Bytes(bytes).to_usize()?];
        shard.read_exact_at(location.offset, &mut stored, name)?;
        let starts = table::decode(tensor.key, &stored, raw, chunk, location.len);
        tensor.starts = Some(starts.map_err(|reason| tensor.damaged(reason))?);
        Ok(tensor)
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the tensor is when it is unpacked.
    #[must_use]
    pub const fn desc(&self) -> &TensorDesc {
        &self.desc
    }

    /// The file that it is in.
    #[must_use]
    pub const fn shard(&self) -> ShardId {
        self.shard
    }

    /// Its bytes when it is unpacked.
    #[must_use]
    pub const fn raw_bytes(&self) -> Bytes {
        self.desc.bytes()
    }

    /// Its bytes in the file, the table of its chunks included.
    #[must_use]
    pub const fn stored_bytes(&self) -> Bytes {
        Bytes(self.len)
    }

    /// Whether it is packed; if not, it is stored as it was, at one place.
    #[must_use]
    pub const fn is_packed(&self) -> bool {
        self.starts.is_some()
    }

    /// Raw bytes per chunk; the last one of a tensor has what is left.
    #[must_use]
    pub const fn chunk(&self) -> usize {
        self.chunk
    }

    /// The chunks that cover these raw bytes, in order; what lies past the tensor's end is left out. Chunks of one
    /// tensor lie in the file without a gap, so that those of a range can be read at once.
    pub fn chunks(&self, raw: Range<u64>) -> impl Iterator<Item = Chunk> + '_ {
        let size = Bytes::of(self.chunk).0;
        let end = raw.end.min(self.desc.bytes().0);
        let range = if raw.start < end { raw.start / size..end.div_ceil(size) } else { 0..0 };
        range.filter_map(move |index| self.chunk_at(index, size))
    }

    fn chunk_at(&self, index: u64, size: u64) -> Option<Chunk> {
        let start = index.checked_mul(size)?;
        let raw = start..start.saturating_add(size).min(self.desc.bytes().0);
        let (stored, key) = match &self.starts {
            Some(starts) => {
                let index = usize::try_from(index).ok()?;
                (*starts.get(index)?..*starts.get(index + 1)?, Some(chunk_key(self.key, index)))
            }
            None => (raw.clone(), None),
        };
        let len = usize::try_from(stored.end - stored.start).ok()?;
        Some(Chunk { offset: self.offset + stored.start, len, raw, key })
    }

    /// Fills `out`, memory of type `to`, with one chunk's values, given its stored bytes. On an error `out` holds
    /// anything.
    ///
    /// # Errors
    /// [`Error::Damaged`], which names the tensor and the place, where `stored` is not that chunk; [`Error::Invalid`]
    /// where `to` cannot be filled from the tensor's type ([`convert::can_widen`]) or `out` has another length.
    pub fn decode(
        &self,
        chunk: &Chunk,
        to: DType,
        decoder: &mut Decoder,
        stored: &[u8],
        out: &mut [u8],
    ) -> Result<()> {
        let from = self.desc.dtype();
        let decoded = match chunk.key {
            Some(key) => decoder.decode_widened(key, (from, to), stored, out),
            None => convert::widen(from, to, stored, out),
        };
        decoded.map_err(|error| match error {
            Error::Damaged { reason, .. } => {
                let Range { start, end } = chunk.raw;
                self.damaged(format!("its bytes {start}..{end}, stored from {} on: {reason}", chunk.offset))
            }
            other => other,
        })
    }

    fn damaged(&self, reason: String) -> Error {
        Error::Damaged { what: format!("packed tensor {:?}", self.name), reason }
    }
}

/// The key of a tensor's chunk of this number.
pub(super) fn chunk_key(tensor: u64, index: usize) -> u64 {
    tensor.wrapping_add(Bytes::of(index).0)
}

fn disagree(shard: &Shard, reason: &str) -> Error {
    let path = shard.path().to_owned();
    Error::Read { what: "a packed checkpoint".to_owned(), path, reason: reason.to_owned() }
}
