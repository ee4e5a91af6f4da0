//! [`SpillStore`]: tensors that were changed, or never had a file, on a local disk.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use dd_core::{Budget, Bytes, Reservation, TensorDesc, TensorStore, Tier};
use serde::{Deserialize, Serialize};

use super::codec::{self, CHUNK, Packer, chunks};
use super::directory::PrivateDirectory;
use super::format::{self, FileReader, FileWriter, Target};
use super::into_core;
use crate::error::{Error, Result};

/// Where a [`SpillStore`] writes, and how much.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SpillConfig {
    /// The directory in which each process makes its own. Nothing means `$TMPDIR` where it is set, else the user's
    /// cache directory (`$XDG_CACHE_HOME` or `~/.cache`), else the system's temporary directory, which comes last
    /// since on many systems it is memory.
    pub directory: Option<PathBuf>,
    /// The most bytes of files that the store may have at once, heads and checksums included.
    pub limit: Bytes,
    /// The zstd level, or nothing to store as it is. Dense float weights hardly shrink.
    pub compression: Option<i32>,
}

impl Default for SpillConfig {
    fn default() -> Self {
        Self { directory: None, limit: Bytes::MAX, compression: None }
    }
}

/// Keeps tensors in files: one each, in chunks with checksums, in a directory that is this process's alone.
///
/// - **Never wrong data.** Torn, truncated and bit-flipped files give [`Error::Corrupt`].
/// - **A failed write changes nothing.** A tensor is written beside the old one and takes its place when it is whole;
///   until then both count against the limit, as both are on the disk.
/// - **Nothing stays behind.** Dropping the store removes its directory; after `kill -9` the next store that opens in
///   the same place does. Since no file outlives the process in use, nothing is flushed to the device (no `fsync`): a
///   crash of the machine may tear files, and they are swept, not read.
/// - **Threads** may put, read and remove at once; a read that began goes on over the bytes that it began with.
///
/// It implements [`TensorStore`]; a full disk is [`dd_core::Error::OutOfMemory`] there. [`write_from`](Self::write_from) and
/// [`read_chunks`](Self::read_chunks) stream through one chunk's buffer.
///
/// ```
/// use dd_core::{DType, TensorDesc, TensorStore, TensorStoreExt};
/// use dd_offload::store::{SpillConfig, SpillStore};
///
/// # let directory = tempfile::tempdir()?;
/// let config = SpillConfig { directory: Some(directory.path().to_owned()), ..SpillConfig::default() };
/// let store = SpillStore::open(&config)?;
/// let desc = TensorDesc::new([2], DType::U8)?;
/// store.put("moment", &desc, &[1, 2])?;
/// assert_eq!(store.get("moment")?, (desc, vec![1, 2]));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct SpillStore {
    files: Mutex<BTreeMap<String, Stored>>,
    next: AtomicU64,
    room: Budget,
    compression: Option<i32>,
    working: Bytes,
    directory: PrivateDirectory,
}

#[derive(Debug)]
struct Stored {
    desc: TensorDesc,
    path: PathBuf,
    space: Reservation,
}

impl SpillStore {
    /// How many raw bytes go through a buffer at once.
    pub const CHUNK: usize = CHUNK;

    /// Makes this process's directory, after removing those of dead processes beside it.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] where zstd has no such level or the directory is another user's;
    /// [`Error::Io`] where it cannot be made.
    pub fn open(config: &SpillConfig) -> Result<Self> {
        let working = codec::working_bytes(config.compression)?;
        let parent =
            config.directory.clone().unwrap_or_else(|| default_directory(|name| std::env::var_os(name)));
        Ok(Self {
            files: Mutex::default(),
            next: AtomicU64::new(0),
            room: Budget::new("spill", config.limit),
            compression: config.compression,
            working,
            directory: PrivateDirectory::create(&parent)?,
        })
    }

    /// The directory of this store alone.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The most bytes of files that it may have.
    #[must_use]
    pub fn limit(&self) -> Bytes {
        self.room.limit()
    }

    /// The memory that one call takes at most, besides the caller's own: one [`CHUNK`](Self::CHUNK), and with
    /// compression a second one and the compressor's state, as measured.
    #[must_use]
    pub const fn working_bytes(&self) -> Bytes {
        self.working
    }

    /// Stores a tensor whose bytes come in pieces: `fill` is called with an offset and a buffer to fill, in order.
    ///
    /// # Errors
    /// What `fill` says; [`Error::DiskFull`] where the limit or the disk is reached; [`Error::Io`]. What was stored
    /// under that name stays as it was.
    pub fn write_from(
        &self,
        name: &str,
        desc: &TensorDesc,
        fill: &mut dyn FnMut(usize, &mut [u8]) -> Result<()>,
    ) -> Result<()> {
        let total = desc.len_in_memory()?;
        self.store(name, desc, &mut |writer| {
            let mut buffer = vec![0; total.min(CHUNK)];
            for (offset, len) in chunks(total) {
                let piece = buffer.get_mut(..len).unwrap_or_default();
                fill(offset, piece)?;
                writer.chunk(piece)?;
            }
            Ok(())
        })
    }

    /// Reads a tensor in pieces: `take` is called with an offset and the bytes there, in order. Each piece was checked
    /// before; an error in a later one comes after earlier ones were given.
    ///
    /// # Errors
    /// What `take` says; [`Error::Core`] where there is no such tensor; [`Error::Corrupt`]; [`Error::Io`].
    pub fn read_chunks(&self, name: &str, take: &mut dyn FnMut(usize, &[u8]) -> Result<()>) -> Result<()> {
        let (desc, mut reader) = self.reader(name)?;
        let total = desc.len_in_memory()?;
        let mut buffer = vec![0; total.min(CHUNK)];
        for (offset, len) in chunks(total) {
            let piece = buffer.get_mut(..len).unwrap_or_default();
            reader.chunk(piece)?;
            take(offset, piece)?;
        }
        reader.finish()
    }

    /// Removes the directory with all that is in it and says whether that worked; dropping does the same in silence.
    ///
    /// # Errors
    /// [`Error::Io`]; the next start then tries again.
    pub fn close(self) -> Result<()> {
        self.directory.remove()
    }

    fn store(
        &self,
        name: &str,
        desc: &TensorDesc,
        feed: &mut dyn FnMut(&mut FileWriter<'_>) -> Result<()>,
    ) -> Result<()> {
        let head = format::head(name, desc)?;
        let stem = file_stem(self.next.fetch_add(1, Ordering::Relaxed), name);
        let target = Target { name, desc, folder: self.directory() };
        let part = self.directory().join(format!("{stem}.part"));
        let mut writer = FileWriter::create(target, part, &self.room, Packer::new(self.compression)?)?;
        writer.head(&head)?;
        feed(&mut writer)?;
        // Named and listed under one lock, so that whoever looks a tensor up opens the file that is listed.
        let mut files = self.files();
        let path = match files.get(name) {
            Some(old) => old.path.clone(),
            None => self.directory().join(format!("{stem}.tensor")),
        };
        let space = writer.finish(&path)?;
        files.insert(name.to_owned(), Stored { desc: desc.clone(), path, space });
        Ok(())
    }

    /// An open file: whoever replaces or removes the tensor meanwhile does not disturb the read.
    fn reader<'a>(&self, name: &'a str) -> Result<(TensorDesc, FileReader<'a>)> {
        let (desc, path, len, file) = {
            let files = self.files();
            let stored = files.get(name).ok_or_else(|| self.not_found(name))?;
            let path = stored.path.clone();
            let file = File::open(&path).map_err(|source| failed("open", &path, name, source))?;
            (stored.desc.clone(), path, stored.space.bytes(), file)
        };
        let head = format::head(name, &desc)?;
        Ok((desc, FileReader::new(name, path, file, len, &head)?))
    }

    fn read_whole(&self, name: &str, out: &mut [u8]) -> Result<()> {
        let (desc, mut reader) = self.reader(name)?;
        desc.check_len(out.len(), name)?;
        out.chunks_mut(CHUNK).try_for_each(|piece| reader.chunk(piece))?;
        reader.finish()
    }

    fn not_found(&self, name: &str) -> dd_core::Error {
        let place = format!("the spill store {}", self.directory().display());
        dd_core::Error::NotFound { name: name.to_owned(), place }
    }

    fn files(&self) -> MutexGuard<'_, BTreeMap<String, Stored>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TensorStore for SpillStore {
    fn tier(&self) -> Tier {
        Tier::Disk
    }

    fn used(&self) -> Bytes {
        self.room.usage().used
    }

    fn put(&self, name: &str, desc: &TensorDesc, bytes: &[u8]) -> dd_core::Result<()> {
        desc.check_len(bytes.len(), name)?;
        let feed =
            &mut |writer: &mut FileWriter<'_>| bytes.chunks(CHUNK).try_for_each(|raw| writer.chunk(raw));
        self.store(name, desc, feed).map_err(into_core)
    }

    fn describe(&self, name: &str) -> dd_core::Result<Option<TensorDesc>> {
        Ok(self.files().get(name).map(|stored| stored.desc.clone()))
    }

    fn read_into(&self, name: &str, out: &mut [u8]) -> dd_core::Result<()> {
        self.read_whole(name, out).map_err(into_core)
    }

    fn remove(&self, name: &str) -> dd_core::Result<bool> {
        let mut files = self.files();
        let Some(stored) = files.get(name) else { return Ok(false) };
        unlink(&stored.path, name).map_err(into_core)?;
        files.remove(name);
        Ok(true)
    }
}

/// Where spill directories go by default; `variable` reads the environment.
fn default_directory(variable: impl Fn(&str) -> Option<std::ffi::OsString>) -> PathBuf {
    let path = |name: &str| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = || path("XDG_CACHE_HOME").or_else(|| path("HOME").map(|home| home.join(".cache")));
    path("TMPDIR").or_else(cache).unwrap_or_else(std::env::temp_dir)
}

/// A safe file name: a number that makes it the only one, and what of the tensor's name is harmless, for the reader.
fn file_stem(number: u64, name: &str) -> String {
    let harmless = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' };
    let readable: String = name.chars().take(80).map(harmless).collect();
    format!("{number:08x}-{readable}")
}

fn unlink(path: &Path, name: &str) -> Result<()> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != ErrorKind::NotFound => Err(failed("remove", path, name, source)),
        _ => Ok(()),
    }
}

fn failed(operation: &'static str, path: &Path, name: &str, source: std::io::Error) -> Error {
    Error::Io { operation, path: path.to_owned(), tensor: Some(name.to_owned()), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_names_are_safe() {
        let rows =
            [("a.weight", "00000007-a.weight"), ("../../etc/x", "00000007-.._.._etc_x"), ("", "00000007-")];
        for (name, expected) in rows {
            assert_eq!(file_stem(7, name), expected);
        }
        assert!(file_stem(u64::MAX, &"é/".repeat(1000)).len() < 120);
    }

    #[test]
    fn the_default_directory_prefers_disk_over_memory() {
        type Row<'a> = (&'a [(&'a str, &'a str)], &'a str);
        let rows: [Row<'_>; 4] = [
            (&[("TMPDIR", "/fast"), ("HOME", "/home/u")], "/fast"),
            (&[("XDG_CACHE_HOME", "/cache"), ("HOME", "/home/u")], "/cache"),
            (&[("XDG_CACHE_HOME", "relative"), ("HOME", "/home/u")], "/home/u/.cache"),
            (&[("TMPDIR", ""), ("HOME", "/home/u")], "/home/u/.cache"),
        ];
        for (environment, expected) in rows {
            let variable = |name: &str| environment.iter().find(|row| row.0 == name).map(|row| row.1.into());
            assert_eq!(default_directory(variable), Path::new(expected), "{environment:?}");
        }
    }
}
