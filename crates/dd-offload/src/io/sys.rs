//! What the standard library does not ask or tell the system: how a file must be read directly, whether it lies in
//! memory anyway, that its cached pages may go, that reading around what is asked for is in vain, and that memory be in
//! huge pages.
#![allow(unsafe_code, reason = "calls to the C library")]

use std::fs::File;

/// What the system says about direct reads of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direct {
    /// Offsets, lengths and addresses must be multiples of this.
    Aligned(usize),
    /// They are not possible.
    Refused,
    /// It does not say: an older kernel, or a file system that does not know.
    Unknown,
}

/// Asks the kernel (`STATX_DIOALIGN`, since Linux 6.1) how this file must be read.
#[cfg(target_os = "linux")]
pub(super) fn direct_alignment(file: &File) -> Direct {
    use std::os::fd::AsRawFd as _;

    let mut found = std::mem::MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the descriptor is open as long as `file` is borrowed; the path is an empty C string, which AT_EMPTY_PATH
    // allows; `found` is writable and of the size that the call fills.
    let rc = unsafe {
        let flags = libc::AT_EMPTY_PATH;
        libc::statx(file.as_raw_fd(), c"".as_ptr(), flags, libc::STATX_DIOALIGN, found.as_mut_ptr())
    };
    // SAFETY: the structure is plain numbers, for which zeroed memory is valid, whatever the call wrote of it.
    let found = unsafe { found.assume_init() };
    if rc != 0 || found.stx_mask & libc::STATX_DIOALIGN == 0 {
        return Direct::Unknown;
    }
    match usize::try_from(found.stx_dio_mem_align.max(found.stx_dio_offset_align)) {
        Ok(0) | Err(_) => Direct::Refused,
        Ok(alignment) => Direct::Aligned(alignment),
    }
}

#[cfg(not(target_os = "linux"))]
pub(super) fn direct_alignment(_: &File) -> Direct {
    Direct::Refused
}

/// Whether the file's own place is memory (tmpfs, ramfs), where no read reaches a disk.
#[cfg(target_os = "linux")]
pub(super) fn is_in_memory(file: &File) -> bool {
    use std::os::fd::AsRawFd as _;

    const RAMFS_MAGIC: i128 = 0x8584_58f6;
    let mut found = std::mem::MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: the descriptor is open as long as `file` is borrowed; `found` is writable and of the size that is filled.
    let rc = unsafe { libc::fstatfs(file.as_raw_fd(), found.as_mut_ptr()) };
    // SAFETY: plain numbers, for which zeroed memory is valid.
    let kind = i128::from(unsafe { found.assume_init() }.f_type);
    rc == 0 && (kind == i128::from(libc::TMPFS_MAGIC) || kind == RAMFS_MAGIC)
}

#[cfg(not(target_os = "linux"))]
pub(super) fn is_in_memory(_: &File) -> bool {
    false
}

/// Tells the kernel that the cached pages of a range will not be needed; a wish, so its answer does not matter.
#[cfg(target_os = "linux")]
pub(super) fn forget_cached(file: &File, offset: u64, len: usize) {
    use std::os::fd::AsRawFd as _;

    let (Ok(offset), Ok(len)) = (offset.try_into(), len.try_into()) else { return };
    // SAFETY: the descriptor is open as long as `file` is borrowed; the call touches no memory of ours.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), offset, len, libc::POSIX_FADV_DONTNEED) };
}

#[cfg(not(target_os = "linux"))]
pub(super) fn forget_cached(_: &File, _: u64, _: usize) {}

/// Asks for huge pages in a range of memory that is about to be touched; a wish, so its answer does not matter.
#[cfg(target_os = "linux")]
pub(super) fn prefer_huge_pages(start: std::ptr::NonNull<u8>, len: usize) {
    if len > 0 {
        // SAFETY: this advice changes no byte and gives nothing up, whatever the range: only how its pages are backed.
        unsafe { libc::madvise(start.as_ptr().cast(), len, libc::MADV_HUGEPAGE) };
    }
}

#[cfg(not(target_os = "linux"))]
pub(super) fn prefer_huge_pages(_: std::ptr::NonNull<u8>, _: usize) {}

/// Tells the system that reads of this file go here and there: what lies around a read is not wanted. Only advice, so
/// nothing depends on its being taken.
#[cfg(target_os = "linux")]
pub(crate) fn advise_random(file: &File) {
    use std::os::fd::AsRawFd as _;

    // SAFETY: the descriptor is open as long as `file` is borrowed; advice changes no memory of this process.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_RANDOM) };
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn advise_random(_: &File) {}
