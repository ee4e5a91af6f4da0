//! [`Stamp`]: how long and how old an open file is, by one call and no path.
#![allow(
    unsafe_code,
    reason = "fstat through the C library, since a direct file lends its descriptor only; the block says why"
)]

use std::io;

use dd_offload::io::DirectFile;

/// What changes when a file is written to. A change within the same tick of the file system's clock as the last one
/// before (some milliseconds) that leaves the length cannot be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) len: u64,
    /// Seconds and nanoseconds; the same everywhere where only the length is known.
    modified: (i64, i64),
}

impl Stamp {
    /// Of the file as it is now.
    #[cfg(target_os = "linux")]
    pub(crate) fn of(file: &DirectFile) -> io::Result<Self> {
        use std::os::fd::AsRawFd as _;

        let mut found = std::mem::MaybeUninit::<libc::stat>::uninit();
        // SAFETY: the descriptor is open as long as `file` is borrowed, and there is room for what is written.
        if unsafe { libc::fstat(file.as_raw_fd(), found.as_mut_ptr()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call succeeded, so it has filled the structure.
        let found = unsafe { found.assume_init() };
        let len = u64::try_from(found.st_size).unwrap_or(0);
        Ok(Self { len, modified: (found.st_mtime, found.st_mtime_nsec) })
    }

    /// Of the file as it is now.
    #[cfg(not(target_os = "linux"))]
    pub(crate) fn of(file: &DirectFile) -> io::Result<Self> {
        let (len, _) = file.extent().map_err(io::Error::other)?;
        Ok(Self { len, modified: (0, 0) })
    }

    /// What was done to a file that had this stamp and has another now.
    pub(crate) fn change(self, now: Self) -> Option<String> {
        match (self.len == now.len, self == now) {
            (false, _) => Some(format!("it was written to: it had {} B and has {} B", self.len, now.len)),
            (true, false) => Some("it was written to since it was opened".to_owned()),
            (true, true) => None,
        }
    }
}
