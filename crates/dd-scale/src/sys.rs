//! What a child does between its start and its program: it takes its limit. The one place of this crate that is unsafe.
#![allow(unsafe_code, reason = "runs system calls between fork and exec")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// Limits the address space of the child that a command starts.
pub(crate) fn limit_address_space(command: &mut Command, bytes: u64) {
    let limit = libc::rlimit { rlim_cur: bytes, rlim_max: bytes };
    let take = move || {
        // SAFETY: `limit` is a plain value that outlives the call, which only reads it.
        if unsafe { libc::setrlimit(libc::RLIMIT_AS, &limit) } == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    };
    // SAFETY: the closure makes one system call that is async-signal-safe, allocates nothing and takes no lock:
    // `last_os_error` only reads `errno`.
    unsafe { command.pre_exec(take) };
}

/// Puts the child that a command starts into the control group whose `cgroup.procs` is open for writing here. The file
/// must stay open until the command has been spawned.
pub(crate) fn join_group(command: &mut Command, procs: &File) {
    let descriptor = procs.as_raw_fd();
    let join = move || {
        let zero = b"0"; // Whoever writes it.
        // SAFETY: the descriptor is open (the caller keeps the file until after the fork, and the child has a copy), and
        // `zero` is valid for its length.
        if unsafe { libc::write(descriptor, zero.as_ptr().cast(), zero.len()) } == 1 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    };
    // SAFETY: as above: one async-signal-safe system call.
    unsafe { command.pre_exec(join) };
}
