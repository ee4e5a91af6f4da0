//! The layout of a spill file, its writer and its reader. All numbers are little-endian.
//!
//! ```text
//! magic "ddspill\n" · version u32 · length of the description u32 · description (JSON: name, shape, dtype, lengths)
//! xxh3 of all that u64
//! per chunk of 1 MiB raw: stored length u32, top bit set where packed · xxh3 of the raw bytes u64 · stored bytes
//! ```
//!
//! A chunk's checksum is seeded with its number, so that two chunks cannot change places. The store remembers what
//! each file's head must be and how long it must be, so that nothing in the file is believed, only compared.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use dd_core::{Budget, Bytes, Holder, Reservation, TensorDesc};
use serde::Serialize;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::codec::{CHUNK, Packer, Unpacker};
use crate::error::{Error, Result};

const MAGIC: &[u8; 8] = b"ddspill\n";
const VERSION: u32 = 1;
const PACKED: u32 = 1 << 31;
const CHUNK_HEAD: usize = 12;

#[derive(Serialize)]
struct Description<'a> {
    name: &'a str,
    tensor: &'a TensorDesc,
    raw_bytes: u64,
    chunk_bytes: usize,
}

/// The head of a tensor's file.
pub(super) fn head(name: &str, desc: &TensorDesc) -> Result<Vec<u8>> {
    let description = Description { name, tensor: desc, raw_bytes: desc.bytes().0, chunk_bytes: CHUNK };
    let body = serde_json::to_vec(&description)
        .map_err(|error| dd_core::Error::library("serde_json", "describe a tensor", error))?;
    let len = u32::try_from(body.len())
        .map_err(|_| dd_core::Error::SizeOverflow { what: "a tensor's name".to_owned() })?;
    let mut head = MAGIC.to_vec();
    head.extend(VERSION.to_le_bytes());
    head.extend(len.to_le_bytes());
    head.extend(body);
    head.extend(xxh3_64(&head).to_le_bytes());
    Ok(head)
}

/// What is to be written where, for the messages of errors.
pub(super) struct Target<'a> {
    pub(super) name: &'a str,
    pub(super) desc: &'a TensorDesc,
    pub(super) folder: &'a Path,
}

/// Writes one file under a temporary name. Dropped before [`finish`](Self::finish), it removes the file and gives the
/// room back.
pub(super) struct FileWriter<'a> {
    part: Part<'a>,
    packer: Packer,
    raw: u64,
    chunk: u64,
}

impl<'a> FileWriter<'a> {
    /// Makes the file and writes its head.
    pub(super) fn create(target: Target<'a>, path: PathBuf, room: &Budget, packer: Packer) -> Result<Self> {
        let space = room.try_reserve(Bytes::ZERO, &Holder::new("spilled tensors"))?;
        let mut options = OpenOptions::new();
        let opened = options.write(true).create_new(true).mode(0o600).open(&path);
        let file = opened.map_err(|source| io(&target, "create", &path, 0, source))?;
        Ok(Self { part: Part { target, file, path, space, written: 0 }, packer, raw: 0, chunk: 0 })
    }

    /// Writes the head. Unless chunks are to be packed the whole room is taken at once: what cannot fit is refused
    /// before anything is written.
    pub(super) fn head(&mut self, head: &[u8]) -> Result<()> {
        if !self.packer.packs() {
            self.part.take(unpacked_len(head.len(), self.part.target.desc))?;
        }
        self.part.write(head)
    }

    /// Writes the next chunk: [`CHUNK`] raw bytes, or what is left at the end.
    pub(super) fn chunk(&mut self, raw: &[u8]) -> Result<()> {
        let (stored, packed) = self.packer.pack(raw);
        let len = u32::try_from(stored.len())
            .map_err(|_| dd_core::Error::SizeOverflow { what: "a chunk".to_owned() })?;
        let mut head = [0; CHUNK_HEAD];
        let (first, second) = head.split_at_mut(4);
        first.copy_from_slice(&(if packed { len | PACKED } else { len }).to_le_bytes());
        second.copy_from_slice(&xxh3_64_with_seed(raw, self.chunk).to_le_bytes());
        self.part.write(&head)?;
        self.part.write(stored)?;
        self.raw += Bytes::of(raw.len()).0;
        self.chunk += 1;
        Ok(())
    }

    /// Gives the file its name, in place of any that has it, and hands over the room that it takes. Nothing is flushed
    /// to the device: the file dies with the process anyway.
    pub(super) fn finish(mut self, path: &Path) -> Result<Reservation> {
        let target = &self.part.target;
        target.desc.check_len(Bytes(self.raw).to_usize()?, target.name)?;
        let renamed = fs::rename(&self.part.path, path);
        renamed.map_err(|source| io(target, "rename", &self.part.path, 0, source))?;
        Ok(self.part.space.split(Bytes(self.part.written)))
    }
}

/// A file in the making, and the room taken for it.
struct Part<'a> {
    target: Target<'a>,
    file: File,
    path: PathBuf,
    space: Reservation,
    written: u64,
}

impl Part<'_> {
    /// Takes the room for so many bytes of file in all.
    fn take(&mut self, total: Bytes) -> Result<()> {
        let held = self.space.bytes();
        match self.space.grow(total.saturating_sub(held)) {
            Err(dd_core::Error::OutOfMemory { available, .. }) => Err(Error::DiskFull {
                path: self.target.folder.to_owned(),
                tensor: self.target.name.to_owned(),
                needed: total,
                available: Bytes(held.0.saturating_add(available.0)),
                remedy: "raise the limit of the spill store or store less",
            }),
            other => Ok(other?),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let total = self.written.saturating_add(Bytes::of(bytes.len()).0);
        self.take(Bytes(total))?;
        let failed = |source| io(&self.target, "write", &self.path, self.written, source);
        self.file.write_all(bytes).map_err(failed)?;
        self.written = total;
        Ok(())
    }
}

impl Drop for Part<'_> {
    fn drop(&mut self) {
        let _renamed_or_gone = fs::remove_file(&self.path);
    }
}

/// The length of a file whose chunks are not packed.
fn unpacked_len(head: usize, desc: &TensorDesc) -> Bytes {
    let raw = desc.bytes().0;
    let heads = raw.div_ceil(CHUNK as u64).saturating_mul(CHUNK_HEAD as u64);
    Bytes(raw.saturating_add(heads).saturating_add(Bytes::of(head).0))
}

/// A failed file operation; a full disk by its own name.
fn io(
    target: &Target<'_>,
    operation: &'static str,
    path: &Path,
    written: u64,
    source: std::io::Error,
) -> Error {
    let full = [ErrorKind::StorageFull, ErrorKind::QuotaExceeded, ErrorKind::FileTooLarge];
    if full.contains(&source.kind()) {
        return Error::DiskFull {
            path: target.folder.to_owned(),
            tensor: target.name.to_owned(),
            needed: target.desc.bytes(),
            available: Bytes(written),
            remedy: "free space on that disk or name another spill directory",
        };
    }
    Error::Io { operation, path: path.to_owned(), tensor: Some(target.name.to_owned()), source }
}

/// Reads one file chunk by chunk, believing nothing.
pub(super) struct FileReader<'a> {
    name: &'a str,
    path: PathBuf,
    file: File,
    len: u64,
    at: u64,
    chunk: u64,
    packed: Vec<u8>,
    unpacker: Unpacker,
}

impl<'a> FileReader<'a> {
    /// Compares the file's length and head with what they must be.
    pub(super) fn new(name: &'a str, path: PathBuf, file: File, len: Bytes, head: &[u8]) -> Result<Self> {
        let (packed, unpacker) = (Vec::new(), Unpacker::default());
        let mut reader = Self { name, path, file, len: len.0, at: 0, chunk: 0, packed, unpacker };
        let found = reader.file.metadata().map_err(|source| reader.io("check", source))?.len();
        if found != len.0 {
            return Err(reader.corrupt(format!("expected {} B of file, found {found} B", len.0)));
        }
        let mut stored = vec![0; head.len()];
        reader.fill(&mut stored)?;
        if stored != head {
            return Err(reader.corrupt("its head is not the one that was written".to_owned()));
        }
        Ok(reader)
    }

    /// Reads the next chunk into `out`, which is as long as the chunk is raw. On an error `out` holds anything.
    pub(super) fn chunk(&mut self, out: &mut [u8]) -> Result<()> {
        let (mut len, mut checksum) = ([0; 4], [0; 8]);
        self.fill(&mut len)?;
        self.fill(&mut checksum)?;
        let len = u32::from_le_bytes(len);
        self.stored(len & !PACKED, len & PACKED != 0, out)?;
        let found = xxh3_64_with_seed(out, self.chunk);
        let expected = u64::from_le_bytes(checksum);
        if found != expected {
            return Err(self.corrupt(format!("checksum {expected:016x} expected, {found:016x} found")));
        }
        self.chunk += 1;
        Ok(())
    }

    /// Checks that nothing follows the last chunk.
    pub(super) fn finish(self) -> Result<()> {
        if self.at == self.len {
            return Ok(());
        }
        Err(self.corrupt("bytes follow its last chunk".to_owned()))
    }

    fn stored(&mut self, len: u32, packed: bool, out: &mut [u8]) -> Result<()> {
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        if !packed && len == out.len() {
            return self.fill(out);
        }
        if !packed || len >= out.len() {
            return Err(self.corrupt(format!("a chunk of {} B cannot be {len} B stored", out.len())));
        }
        let mut buffer = std::mem::take(&mut self.packed);
        buffer.resize(len, 0);
        self.fill(&mut buffer)?;
        self.unpacker.unpack(&buffer, out).map_err(|reason| self.corrupt(reason))?;
        self.packed = buffer;
        Ok(())
    }

    fn fill(&mut self, out: &mut [u8]) -> Result<()> {
        match self.file.read_exact(out) {
            Ok(()) => {
                self.at += Bytes::of(out.len()).0;
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
                Err(self.corrupt(format!("it ends within {} B from offset {}", out.len(), self.at)))
            }
            Err(source) => Err(self.io("read", source)),
        }
    }

    fn corrupt(&self, reason: String) -> Error {
        let reason = match self.at {
            0 => reason,
            at => format!("{reason} (before offset {at})"),
        };
        Error::Corrupt { path: self.path.clone(), tensor: self.name.to_owned(), reason }
    }

    fn io(&self, operation: &'static str, source: std::io::Error) -> Error {
        Error::Io { operation, path: self.path.clone(), tensor: Some(self.name.to_owned()), source }
    }
}
