//! A file mapped for reading: the one place with `unsafe`.
#![allow(unsafe_code, reason = "mapping a file is a promise about other programs that no type can hold")]

use std::fs::File;
use std::path::Path;

use memmap2::Mmap;

use crate::error::{Error, Result};

/// Maps a whole file.
pub(super) fn map(path: &Path) -> Result<Mmap> {
    let file = File::open(path).map_err(|source| Error::io("open", path, source))?;
    // SAFETY: the mapping is private to this crate and only ever read as bytes, for which every value is valid. That nobody cuts the
    // file short meanwhile is asked of the user in the documentation of `source`; bytes that change are data that change.
    unsafe { Mmap::map(&file) }.map_err(|source| Error::io("map", path, source))
}
