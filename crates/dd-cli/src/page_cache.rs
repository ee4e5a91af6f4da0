//! Puts a file out of the page cache, so that the next run reads it from the disk and not from memory.
#![allow(unsafe_code, reason = "the system is advised through posix_fadvise")]

use std::fs::File;
use std::path::Path;

use crate::error::{CliError, Result};

/// Evicts a file's pages. They must have been written (synced) before; pages that another program uses stay.
///
/// # Errors
/// [`CliError::Io`] where the file cannot be opened or the system refuses.
pub fn evict(path: &Path) -> Result<()> {
    let file = File::open(path).map_err(|e| CliError::io("open", path, e))?;
    advise(&file).map_err(|e| CliError::io("evict from the page cache", path, e))
}

#[cfg(target_os = "linux")]
fn advise(file: &File) -> std::io::Result<()> {
    use std::os::fd::AsRawFd;
    // SAFETY: the descriptor is open for the whole call; advice changes no memory of this process.
    match unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) } {
        0 => Ok(()),
        code => Err(std::io::Error::from_raw_os_error(code)),
    }
}

#[cfg(not(target_os = "linux"))]
fn advise(_: &File) -> std::io::Result<()> {
    Ok(())
}
