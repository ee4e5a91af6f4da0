//! What only a system call answers: the page size, the space of a file system, and when a file has news.
//!
//! Asking for the space of a file system allocates nothing where its path is of an ordinary length.
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

/// A path with its closing NUL, on the stack where it fits.
#[cfg(unix)]
const SHORT_PATH: usize = 512;

/// Asks the file system that `path` is on.
#[cfg(unix)]
pub(crate) fn file_system_space(path: &Path) -> io::Result<DiskSpace> {
    use std::ffi::{CStr, CString};
    use std::os::unix::ffi::OsStrExt;

    let bytes = path.as_os_str().as_bytes();
    let mut short = [0u8; SHORT_PATH];
    match short.get_mut(..bytes.len()).filter(|_| bytes.len() < SHORT_PATH) {
        Some(room) => room.copy_from_slice(bytes),
        None => return space_of(&CString::new(bytes)?),
    }
    let name = CStr::from_bytes_until_nul(&short).ok().filter(|name| name.count_bytes() == bytes.len());
    space_of(name.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "a path with a NUL byte"))?)
}

#[cfg(unix)]
#[allow(clippy::useless_conversion, reason = "these fields are narrower on other systems")]
fn space_of(name: &std::ffi::CStr) -> io::Result<DiskSpace> {
    use dd_core::Bytes;

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

/// What news on a file looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum News {
    /// A file of the kernel that has changed (`POLLPRI`).
    Changed,
    /// An event file that was signalled (`POLLIN`).
    Signalled,
}

/// Waits for news on a file, at most this long; says whether there was some. A wait that a signal ends early counts as
/// none.
#[cfg(unix)]
pub(crate) fn wait_for(news: News, file: &File, timeout: Duration) -> io::Result<bool> {
    use std::os::fd::AsRawFd;

    let wanted = match news {
        News::Changed => libc::POLLPRI,
        News::Signalled => libc::POLLIN,
    };
    let mut asked = libc::pollfd { fd: file.as_raw_fd(), events: wanted, revents: 0 };
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
    if has(libc::POLLERR) && !has(wanted) || has(libc::POLLNVAL) {
        return Err(io::Error::new(io::ErrorKind::NotFound, "what was waited for is gone"));
    }
    Ok(has(wanted))
}

/// Waits for news on a file.
#[cfg(not(unix))]
pub(crate) fn wait_for(_news: News, _file: &File, _timeout: Duration) -> io::Result<bool> {
    Err(io::ErrorKind::Unsupported.into())
}

/// A file that the kernel signals events on (eventfd(2)); reading it takes them off, and never waits.
#[cfg(target_os = "linux")]
pub(crate) fn event_file() -> io::Result<File> {
    use std::os::fd::{FromRawFd, OwnedFd};

    // SAFETY: eventfd takes two numbers and touches no memory of ours.
    let descriptor = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was made just now, is open, and belongs to nobody else.
    Ok(File::from(unsafe { OwnedFd::from_raw_fd(descriptor) }))
}

/// A file that the kernel signals events on.
#[cfg(not(target_os = "linux"))]
pub(crate) fn event_file() -> io::Result<File> {
    Err(io::ErrorKind::Unsupported.into())
}

/// The number by which the kernel knows an open file.
#[cfg(unix)]
pub(crate) fn descriptor(file: &File) -> i32 {
    std::os::fd::AsRawFd::as_raw_fd(file)
}

/// The number by which the kernel knows an open file.
#[cfg(not(unix))]
pub(crate) fn descriptor(_file: &File) -> i32 {
    -1
}
