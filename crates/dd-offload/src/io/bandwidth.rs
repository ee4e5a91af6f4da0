//! The bare read loop: the bandwidth B that a disk gives to direct reads and nothing else.
//!
//! It shares no code with the engines beyond the open file and the aligned blocks, and delivers to nobody, so it can
//! serve as the control that engines and whole passes are compared with.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use dd_core::Bytes;

use super::blocks::{self, Block};
use super::file::io_error;
use super::{DirectFile, Geometry};
use crate::error::Result;

/// Reads the first `bytes` of a file (all of it where it is shorter) with `depth` threads, each reading the next block
/// that nobody has read yet; gives bytes per second.
///
/// The figure is the disk's only where [`DirectFile::is_direct`]. The time to start threads and to allocate blocks is
/// not part of it.
///
/// # Errors
/// Those of [`Geometry::validate`], of the blocks' allocation and of the first read that fails;
/// [`dd_core::Error::InvalidArgument`] where there is nothing to read.
pub fn measure_direct(file: &DirectFile, bytes: Bytes, geometry: Geometry) -> Result<f64> {
    let blocks = blocks::allocate(geometry)?;
    let end = file.extent()?.0.min(bytes.0);
    if end == 0 {
        let reason = format!("nothing to read in {}; at least one byte would do", file.path().display());
        return Err(dd_core::Error::InvalidArgument { argument: "bytes", reason }.into());
    }
    let (next, start) = (AtomicU64::new(0), Instant::now());
    let read = std::thread::scope(|scope| {
        let readers = blocks.into_iter().map(|mut block| {
            let next = &next;
            let reader = std::thread::Builder::new().name("dd-bandwidth".to_owned());
            reader.spawn_scoped(scope, move || sweep(file, &mut block, next, end))
        });
        let readers: Vec<_> = readers.collect(); // All are started before the first is waited for.
        let join = |reader: std::io::Result<std::thread::ScopedJoinHandle<'_, _>>| {
            let reader =
                reader.map_err(|cause| dd_core::Error::library("the system", "start a thread", cause))?;
            reader.join().unwrap_or_else(|_| Err(super::drive::broken("the read loop")))
        };
        readers.into_iter().map(join).sum::<Result<u64>>()
    })?;
    let seconds = start.elapsed().as_secs_f64().max(f64::MIN_POSITIVE);
    Ok(read as f64 / seconds)
}

/// Reads every block that nobody has taken yet; gives how many bytes came.
fn sweep(file: &DirectFile, block: &mut Block, next: &AtomicU64, end: u64) -> Result<u64> {
    let mut read = 0;
    loop {
        let offset = next.fetch_add(block.len() as u64, Ordering::Relaxed);
        if offset >= end {
            return Ok(read);
        }
        match file.read_at(block, offset) {
            Ok(n) => read += (n as u64).min(end - offset),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(io_error("read", file.path(), error)),
        }
        file.release(offset, block.len());
    }
}
