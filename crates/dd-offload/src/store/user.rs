//! Who runs this process: the one question that the standard library does not answer.
#![allow(unsafe_code, reason = "the user's number comes from a system call")]

/// The effective user of this process.
pub(super) fn id() -> u32 {
    // SAFETY: geteuid takes nothing, touches no memory and cannot fail.
    unsafe { libc::geteuid() }
}
