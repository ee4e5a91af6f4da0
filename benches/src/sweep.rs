//! A file read by an engine whose bytes nobody wants: what the engine itself makes of the disk.

use std::sync::Arc;
use std::time::{Duration, Instant};

use deep_dimensions::offload::io::{BlockRead, DirectFile, ReadEngine, ReadSource, split};
use deep_dimensions::offload::{self, Error};

use crate::Result;

/// Reads the first `size` bytes of a file; gives the time.
///
/// # Errors
/// The first read that fails, or bytes that did not arrive.
pub fn sweep(engine: &mut dyn ReadEngine, file: &Arc<DirectFile>, size: u64) -> Result<Duration> {
    let reads = split(file, 0, size, engine.block_bytes());
    let mut source = Sweep { reads, got: 0, failed: None };
    let started = Instant::now();
    engine.run(&mut source)?;
    let took = started.elapsed();
    match source.failed {
        Some(error) => Err(error.into()),
        None if source.got != size => Err(format!("{} of {size} B arrived", source.got).into()),
        None => Ok(took),
    }
}

/// Hands out reads and drops what comes back.
struct Sweep<I> {
    reads: I,
    got: u64,
    failed: Option<Error>,
}

impl<I: Iterator<Item = BlockRead>> ReadSource for Sweep<I> {
    fn next(&mut self) -> Option<BlockRead> {
        self.reads.next()
    }

    fn complete(&mut self, _: BlockRead, data: offload::Result<&[u8]>) {
        match data {
            Ok(data) => self.got += data.len() as u64,
            Err(error) => self.failed = Some(error),
        }
    }
}
