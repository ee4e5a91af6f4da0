//! [`Mapping`]: anonymous address space that gives itself back.
#![allow(unsafe_code, reason = "mmap, madvise and munmap through the C library; each block says why")]

use std::io;
use std::ptr::NonNull;

use super::{HUGE, PAGE};
use crate::error::{Error, Result};

/// Private anonymous memory, readable and writable, aligned to [`HUGE`]; nothing of it is present until touched. A
/// forked child does not get it: its pages would be shared then, and shared pages cannot be moved.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is only an address range that is owned; who may touch which part of it is settled by its users.
unsafe impl Send for Mapping {}
// SAFETY: as above: sharing the range gives nobody access to its bytes.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Reserves `len` bytes, rounded up to whole huge pages; with `huge`, asks for huge pages.
    pub(crate) fn reserve(len: usize, huge: bool) -> Result<Self> {
        let failed = |source| Error::System { operation: "reserve address space", source };
        let len = len.checked_next_multiple_of(HUGE).filter(|len| *len > 0);
        let (Some(len), Some(wide)) = (len, len.and_then(|len| len.checked_add(HUGE))) else {
            return Err(failed(io::Error::from(io::ErrorKind::InvalidInput)));
        };
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a fresh anonymous mapping at an address that the kernel chooses touches nothing that exists.
        let raw = unsafe { libc::mmap(std::ptr::null_mut(), wide, access, flags, -1, 0) };
        if raw == libc::MAP_FAILED {
            return Err(failed(io::Error::last_os_error()));
        }
        let raw = raw.cast::<u8>();
        let skip = raw.addr().next_multiple_of(HUGE) - raw.addr();
        // SAFETY: `skip < HUGE`, so start, the head before it and the tail behind `len` lie within the `wide` bytes just
        // mapped, on page borders; head and tail are used by nobody.
        let start = unsafe {
            let start = raw.add(skip);
            trim(raw, skip);
            trim(start.add(len), HUGE - skip);
            start
        };
        let start = NonNull::new(start).ok_or_else(|| failed(io::Error::from(io::ErrorKind::OutOfMemory)))?;
        let mapping = Self { start, len };
        #[cfg(target_os = "linux")]
        {
            mapping.advise(0, len, libc::MADV_DONTFORK).map_err(failed)?;
            let size = if huge { libc::MADV_HUGEPAGE } else { libc::MADV_NOHUGEPAGE };
            mapping.prefer(len, size);
        }
        #[cfg(not(target_os = "linux"))]
        let _ = huge;
        Ok(mapping)
    }

    /// Asks for huge pages for as much of the first `len` bytes as whole ones take. Whoever touches a byte of those takes all of
    /// its huge page.
    pub(crate) fn prefer_huge(&self, len: usize) {
        #[cfg(target_os = "linux")]
        self.prefer(len / HUGE * HUGE, libc::MADV_HUGEPAGE);
        #[cfg(not(target_os = "linux"))]
        let _ = len;
    }

    /// Without huge pages in this kernel the advice is refused, and small ones do.
    #[cfg(target_os = "linux")]
    fn prefer(&self, len: usize, size: libc::c_int) {
        if len > 0
            && let Err(error) = self.advise(0, len, size)
        {
            tracing::debug!(%error, "the kernel takes no advice on page sizes");
        }
    }

    /// The first address.
    pub(crate) const fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// The first address as a number.
    pub(crate) fn addr(&self) -> usize {
        self.start.addr().get()
    }

    /// Bytes reserved.
    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    /// The address of byte `offset`, which must be less than [`len`](Self::len) (it is cut to it otherwise).
    pub(crate) fn at(&self, offset: usize) -> *mut u8 {
        debug_assert!(offset <= self.len, "{offset} of {}", self.len);
        self.start.as_ptr().wrapping_add(offset.min(self.len))
    }

    /// Makes a range present and writable, in huge pages where those were asked for.
    pub(crate) fn populate(&self, offset: usize, len: usize) -> io::Result<()> {
        #[cfg(target_os = "linux")]
        if self.advise(offset, len, libc::MADV_POPULATE_WRITE).is_ok() {
            return Ok(());
        }
        self.check(offset, len)?;
        for page in (offset..offset + len).step_by(PAGE) {
            // SAFETY: the page lies within the mapping (checked above); the caller owns the range, and no reference to
            // it exists while it is being made present.
            unsafe { self.at(page).write_volatile(0) };
        }
        Ok(())
    }

    /// Gives the pages of a range back to the system; they are absent afterwards.
    pub(crate) fn discard(&self, offset: usize, len: usize) -> io::Result<()> {
        self.advise(offset, len, libc::MADV_DONTNEED)
    }

    fn check(&self, offset: usize, len: usize) -> io::Result<()> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len => Ok(()),
            _ => Err(io::Error::from(io::ErrorKind::InvalidInput)),
        }
    }

    fn advise(&self, offset: usize, len: usize, advice: libc::c_int) -> io::Result<()> {
        self.check(offset, len)?;
        // SAFETY: the range lies within this mapping (checked). What the advice does to its content is what the callers
        // here ask for, on ranges that they own.
        match unsafe { libc::madvise(self.at(offset).cast(), len, advice) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `reserve` and is unmapped once; its users hold the mapping while they use it.
        unsafe { trim(self.start.as_ptr(), self.len) };
    }
}

/// Unmaps a range; nothing where it is empty.
///
/// # Safety
/// The range is page aligned, mapped by [`Mapping::reserve`], and used by nobody.
unsafe fn trim(start: *mut u8, len: usize) {
    // SAFETY: the caller's promise.
    if len > 0 && unsafe { libc::munmap(start.cast(), len) } != 0 {
        tracing::warn!(error = %io::Error::last_os_error(), "cannot unmap {len} bytes");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_aligned_zeroed_and_can_be_given_back() {
        for huge in [false, true] {
            let mapping = Mapping::reserve(HUGE + 1, huge).unwrap();
            assert_eq!((mapping.len(), mapping.addr() % HUGE), (2 * HUGE, 0));
            mapping.populate(0, HUGE).unwrap();
            // SAFETY: the mapping is this test's own and the byte is inside it.
            unsafe {
                mapping.at(5).write(7);
                assert_eq!(mapping.at(5).read(), 7);
                mapping.discard(0, HUGE).unwrap();
                assert_eq!(mapping.at(5).read(), 0);
            }
            assert!(mapping.discard(HUGE, 2 * HUGE).is_err());
            assert!(mapping.populate(usize::MAX, 2).is_err());
        }
    }

    #[test]
    fn what_cannot_be_reserved_is_an_error() {
        for len in [0, usize::MAX, usize::MAX - HUGE] {
            assert!(matches!(Mapping::reserve(len, false), Err(Error::System { .. })), "{len}");
        }
    }
}
