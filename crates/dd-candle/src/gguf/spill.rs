//! [`Spill`]: an unnamed file for captured memory that is nowhere else, such as repacked copies of weights.
//!
//! Every range gets an extent of its own for life; the file is sparse, so only pages that are written take room. It has
//! no name (or loses it at once), so however the process ends, nothing stays behind.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use dd_core::{Budget, Bytes, Holder, Reservation};
use dd_offload::store::{SpillConfig, SpillStore};

use super::digest::PAGE;
use super::hole;

#[derive(Debug)]
pub(crate) struct Spill {
    file: File,
    directory: PathBuf,
    next: AtomicU64,
    written: AtomicU64,
    room: Budget,
    holder: Holder,
    _home: SpillStore, // Its private directory, which the next start removes should this process be killed.
}

/// A range's own part of the file; its bytes are given back when dropped.
#[derive(Debug)]
pub(crate) struct Extent {
    start: u64,
    len: u64,
}

impl Spill {
    /// Makes the file in the store's private directory, see [`SpillConfig`]; its limit is kept.
    pub(crate) fn open(config: &SpillConfig) -> dd_offload::Result<Self> {
        let home = SpillStore::open(config)?;
        let directory = home.directory().to_owned();
        let file = unnamed(&directory).map_err(|source| dd_offload::Error::Io {
            operation: "make a spill file in",
            path: directory.clone(),
            tensor: None,
            source,
        })?;
        Ok(Self {
            file,
            directory,
            next: AtomicU64::new(0),
            written: AtomicU64::new(0),
            room: Budget::new("spill", config.limit),
            holder: Holder::new("pages"),
            _home: home,
        })
    }

    /// Room for `len` bytes, of which none takes any yet.
    pub(crate) fn extent(&self, len: usize) -> Extent {
        let len = len.next_multiple_of(PAGE) as u64;
        Extent { start: self.next.fetch_add(len, Ordering::Relaxed), len }
    }

    /// Takes disk room for so many bytes that are about to be written for the first time.
    pub(crate) fn reserve(&self, bytes: usize) -> dd_core::Result<Reservation> {
        self.room.try_reserve(Bytes::of(bytes), &self.holder)
    }

    pub(crate) fn write(&self, extent: &Extent, at: u64, bytes: &[u8]) -> io::Result<()> {
        let within = at.checked_add(bytes.len() as u64).is_some_and(|end| end <= extent.len);
        if !within {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.file.write_all_at(bytes, extent.start + at)?;
        self.written.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    pub(crate) fn read(&self, extent: &Extent, at: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(bytes, extent.start + at)
    }

    /// Gives the disk room of an extent back.
    pub(crate) fn remove(&self, extent: &Extent) {
        if let Err(error) = hole::punch(&self.file, extent.start, extent.len) {
            tracing::warn!(%error, "spilled bytes take room until the model is dropped");
        }
    }

    /// Bytes written so far.
    pub(crate) fn written(&self) -> Bytes {
        Bytes(self.written.load(Ordering::Relaxed))
    }

    /// Where it lies.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }
}

/// A file without a name, around the page cache where the file system allows it.
fn unnamed(directory: &Path) -> io::Result<File> {
    let open = |flags| {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .mode(0o600)
            .custom_flags(flags | libc::O_TMPFILE)
            .open(directory)?;
        // Some file systems take the flag and then refuse every read.
        file.read_at(&mut [], 0).map(|_| file)
    };
    open(libc::O_DIRECT).or_else(|_| open(0)).or_else(|_| named(directory))
}

/// Where files without a name are not to be had: one that loses its name at once.
fn named(directory: &Path) -> io::Result<File> {
    let path = directory.join("pages");
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}
