//! Keeps the process's resident memory close to what is accounted.
//!
//! The C library's allocator learns from large blocks that are freed: it then keeps such blocks in its heap, where
//! they leave holes, instead of giving them back. A pass makes and drops the same large tensors again and again; with
//! a fixed threshold each of them is a mapping of its own, and is gone when it is dropped.
#![allow(unsafe_code, reason = "the C library's allocator is told of limits through mallopt and malloc_trim")]

/// Blocks from this size on are mappings of their own.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const MAPPED_FROM: libc::c_int = 256 << 10;

/// Fixes the threshold and limits the number of heaps. To be called once, before threads are started.
pub fn give_back_at_once() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: mallopt only sets parameters of the allocator; it is called before other threads exist.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_FROM);
        libc::mallopt(libc::M_TRIM_THRESHOLD, MAPPED_FROM);
        libc::mallopt(libc::M_ARENA_MAX, 2);
    }
}

/// Gives free pages of the heap back to the system.
pub fn trim() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: malloc_trim may be called at any time from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}
