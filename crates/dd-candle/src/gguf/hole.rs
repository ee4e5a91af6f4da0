//! Giving a file's blocks back to the file system without making the file shorter.
#![allow(unsafe_code, reason = "fallocate through the C library")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;

/// Makes `len` bytes from `start` a hole, which reads as zeros.
pub(crate) fn punch(file: &File, start: u64, len: u64) -> io::Result<()> {
    let range = (libc::off_t::try_from(start), libc::off_t::try_from(len));
    let (Ok(start), Ok(len)) = range else { return Err(io::ErrorKind::InvalidInput.into()) };
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: the descriptor is open as long as `file` is borrowed; the call touches no memory of ours.
    match unsafe { libc::fallocate(file.as_raw_fd(), mode, start, len) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
