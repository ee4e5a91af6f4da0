//! What only a system call answers: the page size, the space of a file system, and when a file has news.
#![allow(unsafe_code, reason = "calls of the C library; each block states why it is sound")]

use std::fs::File;
use std::io;
use std::path::Path;
use std::time::Duration;

use crate::disk::DiskSpace;

/// The size of a page of memory, in bytes.
#[cfg(unix)]
pub(crate) fn page_size() -> u64 {
    // SAFETY: sysconf takes a number, touches no memory of ours, and may be called from any thread.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(size).ok().filter(|size| *size > 0).unwrap_or(4096)
}

/// The size of a page of memory, in bytes.
#[cfg(not(unix))]
pub(crate) fn page_size() -> u64 {
    4096
}

/// Asks the file system that `path` is on.
#[cfg(unix)]
#[allow(clippy::useless_conversion, reason = "these fields are narrower on other systems")]
pub(crate) fn file_system_space(path: &Path) -> io::Result<DiskSpace> {
    use dd_core::Bytes;
    use std::os::unix::ffi::OsStrExt;

    let name = std::ffi::CString::new(path.as_os_str().as_bytes())?;
    let mut answer = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: `name` is a NUL-terminated string and `answer` is writable and large enough; both outlive the call.
    let status = unsafe { libc::statvfs(name.as_ptr(), answer.as_mut_ptr()) };
    if status != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: statvfs returned zero, so it has filled the whole struct.
    let answer = unsafe { answer.assume_init() };
    let block = u64::from(answer.f_frsize);
    let bytes = |blocks: u64| Bytes(blocks.saturating_mul(block));
    Ok(DiskSpace {
        total: bytes(u64::from(answer.f_blocks)),
        free: bytes(u64::from(answer.f_bfree)),
        available: bytes(u64::from(answer.f_bavail)),
    })
}

/// Asks the file system that `path` is on.
#[cfg(not(unix))]
pub(crate) fn file_system_space(_path: &Path) -> io::Result<DiskSpace> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Waits for priority news on a file (`POLLPRI`), at most this long; says whether there was some. A wait that a signal
/// ends early counts as none.
#[cfg(unix)]
pub(crate) fn wait_priority(file: &File, timeout: Duration) -> io::Result<bool> {
    use std::os::fd::AsRawFd;

    let mut asked = libc::pollfd { fd: file.as_raw_fd(), events: libc::POLLPRI, revents: 0 };
    let millis = libc::c_int::try_from(timeout.as_millis()).unwrap_or(libc::c_int::MAX);
    // SAFETY: `asked` is one valid entry, its descriptor is open while `file` is borrowed, and the call writes only to
    // that entry.
    let ready = unsafe { libc::poll(&raw mut asked, 1, millis) };
    if ready < 0 {
        let error = io::Error::last_os_error();
        return if error.kind() == io::ErrorKind::Interrupted { Ok(false) } else { Err(error) };
    }
    let has = |flag: libc::c_short| asked.revents & flag != 0;
    // A file of the kernel sets the error flag along with the news; alone it means that its source is gone.
    if has(libc::POLLERR) && !has(libc::POLLPRI) || has(libc::POLLNVAL) {
        return Err(io::Error::new(io::ErrorKind::NotFound, "what was waited for is gone"));
    }
    Ok(has(libc::POLLPRI))
}

/// Waits for priority news on a file.
#[cfg(not(unix))]
pub(crate) fn wait_priority(_file: &File, _timeout: Duration) -> io::Result<bool> {
    Err(io::ErrorKind::Unsupported.into())
}
