//! Taking a file out of the page cache: a benchmark whose reads come from memory measures nothing.
#![allow(unsafe_code, reason = "one call to the C library")]

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::path::Path;

use crate::Result;

/// Writes out what of the file is still to be written, and asks the kernel to forget the rest. Pages that somebody has
/// mapped stay: unmap first. Whether it helped, the kernel's count of bytes read tells.
///
/// # Errors
/// Where the file cannot be opened or written out, or the kernel refuses.
pub fn evict(path: &Path) -> Result<()> {
    let file = File::open(path)?;
    file.sync_all()?;
    // SAFETY: the descriptor is open as long as `file` lives; the call touches no memory of ours.
    let refused = unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    match refused {
        0 => Ok(()),
        code => Err(std::io::Error::from_raw_os_error(code).into()),
    }
}
