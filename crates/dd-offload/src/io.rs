//! Direct, aligned reads, several in flight, into a pool of reused blocks.
//!
//! Weights that do not stay in memory are read again in every pass. Reading them through the page cache would copy
//! each byte once more and fill memory that no budget accounts for, so a [`DirectFile`] goes around the cache. Direct
//! reads want aligned offsets, lengths and buffers, and a disk reaches its bandwidth only with several requests in
//! flight; both are settled here. A [`ReadEngine`] owns `depth` blocks in one aligned allocation, pulls
//! [`BlockRead`]s from a [`ReadSource`], reads for each the aligned bytes around it and hands over exactly the slice
//! that was asked for, in the order in which the disk answers. [`split`] cuts a tensor into reads of a block each.
//!
//! Where the kernel has `io_uring` the requests are its own; elsewhere `depth` threads wait in `pread`. Which block
//! size and depth this disk wants is measured once and remembered: [`calibrate()`].
//!
//! | module | what it holds |
//! |---|---|
//! | `file` | [`DirectFile`]: opening around the page cache, alignment, the buffered way out |
//! | `blocks` | the aligned allocation, cut into blocks |
//! | `request` | one read as a state machine: alignment, short answers, the end of the file |
//! | `drive` | the loop that all engines share |
//! | `uring`, `threads` | the two ways to have several reads in flight |
//! | [`mod@calibrate`] | which geometry this disk wants, and the cache that remembers it |
//! | [`bandwidth`] | the bare read loop that everything else is compared with |

use std::fmt;
use std::sync::Arc;

use dd_core::Bytes;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

pub mod bandwidth;
mod blocks;
pub mod calibrate;
mod drive;
mod file;
mod request;
mod sys;
mod threads;
#[cfg(target_os = "linux")] // io_uring is Linux's own; elsewhere `engine` refuses it.
mod uring;

pub use calibrate::{Calibration, CalibrationLimits, calibrate};
pub use file::DirectFile;
pub(crate) use sys::advise_random;

/// What blocks and their addresses in memory are multiples of: no file asks for more (see [`DirectFile`]).
pub const ALIGNMENT: usize = 4096;
const LARGEST_BLOCK: usize = 1 << 30; // The kernel answers no single read of 2 GiB or more.
const DEEPEST: usize = 1024;

/// One read: any range of a file, aligned or not.
///
/// The aligned range around it must fit one block of the engine; [`split`] makes reads that do.
#[derive(Clone, Debug)]
pub struct BlockRead {
    /// The file.
    pub file: Arc<DirectFile>,
    /// The first byte, counted from the start of the file.
    pub offset: u64,
    /// How many bytes; zero is delivered without reading.
    pub len: usize,
    /// The source's own mark, handed back with the bytes.
    pub tag: u64,
}

/// Where reads come from and their bytes go to. Both methods are called on the thread that calls [`ReadEngine::run`].
pub trait ReadSource {
    /// The next read, or nothing for now: the engine asks again after every completion, and [`ReadEngine::run`]
    /// returns when there is nothing and all reads have completed.
    fn next(&mut self) -> Option<BlockRead>;

    /// Takes the bytes of a read (`data.len() == read.len`) or the reason why there are none. Called once for every
    /// read given, in the order in which the disk answers; the block is reused when this returns.
    fn complete(&mut self, read: BlockRead, data: Result<&[u8]>);
}

/// Keeps several reads in flight. Dropping an engine waits for the reads that it still has in flight.
pub trait ReadEngine: Send {
    /// The engine's name: `"io_uring"` or `"threads"`.
    fn name(&self) -> &'static str;

    /// How many bytes one read may take, its aligned surroundings included.
    fn block_bytes(&self) -> usize;

    /// How many reads may be in flight.
    fn depth(&self) -> usize;

    /// What the blocks take: `block × depth`, all of it from the start to the drop of the engine.
    fn memory(&self) -> Bytes;

    /// Pulls reads while `source` gives some, keeps up to [`depth`](Self::depth) in flight and delivers each.
    ///
    /// # Errors
    /// Only what concerns the engine as a whole, such as a ring that the kernel no longer serves: reads that were then in
    /// flight are not delivered. What goes wrong with one read goes to [`ReadSource::complete`], and the engine
    /// carries on.
    fn run(&mut self, source: &mut dyn ReadSource) -> Result<()>;
}

/// How an engine is cut: the size of a block and how many there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Geometry {
    /// Bytes per block, a multiple of [`ALIGNMENT`].
    pub block: usize,
    /// How many blocks, which is how many reads are in flight.
    pub depth: usize,
}

impl Default for Geometry {
    /// Four blocks of 512 KiB: with 2 MiB in flight a disk of 1.6 GB/s was at its limit, and more memory gained nothing.
    /// [`calibrate()`] finds what this one wants.
    fn default() -> Self {
        Self { block: 512 << 10, depth: 4 }
    }
}

impl Geometry {
    /// What an engine of this geometry takes (saturating).
    #[must_use]
    pub const fn memory(&self) -> Bytes {
        Bytes::of(self.block.saturating_mul(self.depth))
    }

    /// The default, cut down to what fits `memory`: first shallower, then in smaller blocks. Never below one block of
    /// [`ALIGNMENT`], which no engine can do without.
    #[must_use]
    pub fn within(memory: Bytes) -> Self {
        let fits = |geometry: &Self| geometry.memory() <= memory;
        let mut geometry = Self::default();
        while !fits(&geometry) && geometry != (Self { block: ALIGNMENT, depth: 1 }) {
            let shallow = geometry.depth <= 2 && geometry.block > ALIGNMENT;
            geometry = match shallow {
                true => Self { block: geometry.block / 2, ..geometry },
                false => Self { depth: geometry.depth / 2, ..geometry },
            };
        }
        geometry
    }

    /// Checks that an engine can be cut so.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] for a block that is zero, no multiple of [`ALIGNMENT`] or above 1 GiB, for a depth outside
    /// 1..=1024, and where both together exceed the address space.
    pub fn validate(&self) -> Result<()> {
        let invalid = |option, reason| Err(Error::InvalidConfig { option, reason });
        if self.block == 0 || !self.block.is_multiple_of(ALIGNMENT) || self.block > LARGEST_BLOCK {
            let reason =
                format!("{} B; a multiple of {ALIGNMENT} up to {LARGEST_BLOCK} would do", self.block);
            return invalid("io.block", reason);
        }
        if self.depth == 0 || self.depth > DEEPEST {
            return invalid("io.depth", format!("{}; 1 to {DEEPEST} would do", self.depth));
        }
        if self.block.checked_mul(self.depth).is_none_or(|bytes| isize::try_from(bytes).is_err()) {
            return invalid("io.depth", format!("{} blocks of {} B exceed memory", self.depth, self.block));
        }
        Ok(())
    }
}

impl fmt::Display for Geometry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} blocks of {}", self.depth, Bytes::of(self.block))
    }
}

/// Which engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum EngineKind {
    /// `io_uring` where the kernel serves it, threads elsewhere.
    #[default]
    Auto,
    /// Requests to the kernel, without threads of our own.
    IoUring,
    /// As many threads as there are blocks, each waiting in `pread`.
    Threads,
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Auto => "auto",
            Self::IoUring => "io_uring",
            Self::Threads => "threads",
        })
    }
}

/// Makes an engine; its blocks are allocated, and touched, here.
///
/// # Errors
/// [`Error::InvalidConfig`] as [`Geometry::validate`]; [`dd_core::Error::OutOfMemory`] where the blocks cannot be had;
/// [`dd_core::Error::Library`] where threads cannot be started, or where [`EngineKind::IoUring`] was asked for and the
/// kernel refuses it.
pub fn engine(kind: EngineKind, geometry: Geometry) -> Result<Box<dyn ReadEngine>> {
    geometry.validate()?;
    match kind {
        EngineKind::Auto => first_that_starts(uring_engine, geometry),
        EngineKind::IoUring => uring_engine(geometry),
        EngineKind::Threads => threads_engine(geometry),
    }
}

type Make = fn(Geometry) -> Result<Box<dyn ReadEngine>>;

/// The preferred engine, or threads where it is refused; memory that is not there is nobody's refusal.
fn first_that_starts(preferred: Make, geometry: Geometry) -> Result<Box<dyn ReadEngine>> {
    match preferred(geometry) {
        Err(error) if !error.is_out_of_memory() => {
            tracing::debug!(%error, "reading with threads instead");
            threads_engine(geometry)
        }
        made => made,
    }
}

fn threads_engine(geometry: Geometry) -> Result<Box<dyn ReadEngine>> {
    Ok(Box::new(drive::Engine::new("threads", geometry, threads::Threads::start(geometry)?)))
}

#[cfg(target_os = "linux")]
fn uring_engine(geometry: Geometry) -> Result<Box<dyn ReadEngine>> {
    Ok(Box::new(drive::Engine::new("io_uring", geometry, uring::Uring::start(geometry)?)))
}

#[cfg(not(target_os = "linux"))]
fn uring_engine(_: Geometry) -> Result<Box<dyn ReadEngine>> {
    let absent = std::io::Error::from(std::io::ErrorKind::Unsupported);
    Err(dd_core::Error::library("io_uring", "start", absent).into())
}

/// Cuts the bytes `offset..offset + len` of a file, one tensor for example, into reads of at most one block each.
///
/// The cuts lie at multiples of `block` in the file, so that only the first and the last read can be unaligned; the
/// tag of each is its position within the range. A range that ends beyond 64 bits is cut there; a `block` of zero
/// gives nothing.
pub fn split(
    file: &Arc<DirectFile>,
    offset: u64,
    len: u64,
    block: usize,
) -> impl Iterator<Item = BlockRead> + use<> {
    let (file, block) = (Arc::clone(file), Bytes::of(block).0);
    let end = offset.saturating_add(len);
    let mut at = offset;
    std::iter::from_fn(move || {
        let to_cut = block.checked_sub(at.checked_rem(block)?)?;
        let len = end.checked_sub(at).filter(|left| *left > 0)?.min(to_cut);
        let read = BlockRead {
            file: Arc::clone(&file),
            offset: at,
            len: usize::try_from(len).ok()?,
            tag: at - offset,
        };
        at += len;
        Some(read)
    })
}

/// Fills `buffer` with the bytes of `file` from `offset` on.
///
/// ```
/// use dd_offload::io::{DirectFile, EngineKind, Geometry, engine, read_into};
///
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("model.safetensors");
/// # std::fs::write(&path, (0..100_000).map(|n| (n % 251) as u8).collect::<Vec<_>>())?;
/// let file = DirectFile::open(&path)?;
/// let mut engine = engine(EngineKind::Auto, Geometry { block: 16384, depth: 4 })?;
/// let mut tensor = vec![0; 60_000];
/// read_into(&mut *engine, &file, 1234, &mut tensor)?;
/// assert_eq!(tensor[0], (1234 % 251) as u8);
/// # assert!((1234..).zip(&tensor).all(|(n, byte)| *byte == (n % 251) as u8));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// The first error of any read, or of the engine.
pub fn read_into(
    engine: &mut dyn ReadEngine,
    file: &Arc<DirectFile>,
    offset: u64,
    buffer: &mut [u8],
) -> Result<()> {
    let reads = split(file, offset, Bytes::of(buffer.len()).0, engine.block_bytes());
    let mut source = Fill { reads, buffer, outcome: Ok(()) };
    engine.run(&mut source)?;
    source.outcome
}

/// The source behind [`read_into`].
struct Fill<'a, I> {
    reads: I,
    buffer: &'a mut [u8],
    outcome: Result<()>,
}

impl<I: Iterator<Item = BlockRead>> ReadSource for Fill<'_, I> {
    fn next(&mut self) -> Option<BlockRead> {
        if self.outcome.is_ok() { self.reads.next() } else { None }
    }

    fn complete(&mut self, read: BlockRead, data: Result<&[u8]>) {
        let place = usize::try_from(read.tag)
            .ok()
            .and_then(|start| self.buffer.get_mut(start..start.checked_add(read.len)?));
        match (data, place) {
            (Ok(data), Some(place)) => place.copy_from_slice(data),
            (Err(error), _) if self.outcome.is_ok() => self.outcome = Err(error),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_stand_in_for_a_refused_ring() {
        let geometry = Geometry { block: 8192, depth: 2 };
        let unsupported: Make = |_| {
            let cause = std::io::Error::from_raw_os_error(libc::ENOSYS);
            Err(dd_core::Error::library("io_uring", "start", cause).into())
        };
        assert_eq!(first_that_starts(unsupported, geometry).unwrap().name(), "threads");
        let no_memory: Make = |geometry| {
            let (needed, available) = (geometry.memory(), Bytes::ZERO);
            Err(dd_core::Error::OutOfMemory { place: "test".to_owned(), needed, available }.into())
        };
        assert!(first_that_starts(no_memory, geometry).map(|_| ()).unwrap_err().is_out_of_memory());
    }

    #[test]
    fn the_default_is_cut_to_the_memory() {
        let rows = [
            (Bytes::MAX, Geometry::default()),
            (Bytes::mib(2), Geometry::default()),
            (Bytes(Bytes::mib(2).0 - 1), Geometry { block: 512 << 10, depth: 2 }),
            (Bytes::kib(700), Geometry { block: 256 << 10, depth: 2 }),
            (Bytes::kib(8), Geometry { block: 4096, depth: 2 }),
            (Bytes::kib(4), Geometry { block: 4096, depth: 1 }),
            (Bytes::ZERO, Geometry { block: 4096, depth: 1 }),
        ];
        for (memory, expected) in rows {
            let geometry = Geometry::within(memory);
            assert_eq!(geometry, expected, "{memory}");
            geometry.validate().unwrap();
        }
    }

    #[test]
    fn impossible_geometries_are_refused() {
        let rows = [(0, 1), (4095, 1), (6000, 1), (2 << 30, 1), (4096, 0), (4096, 1025), (usize::MAX, 2)];
        for (block, depth) in rows {
            for kind in [EngineKind::Auto, EngineKind::IoUring, EngineKind::Threads] {
                let error = engine(kind, Geometry { block, depth }).map(|_| ()).unwrap_err();
                assert!(matches!(error, Error::InvalidConfig { .. }), "{block} × {depth}: {error}");
            }
        }
    }
}
