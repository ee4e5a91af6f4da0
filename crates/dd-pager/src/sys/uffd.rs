//! [`Faults`]: a userfaultfd, through which this process serves its own page faults.
#![allow(
    unsafe_code,
    reason = "userfaultfd, ioctl, poll and read through the C library; each block says why"
)]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::HUGE;
use crate::error::{Error, Result};
use crate::inject;

const USER_MODE_ONLY: libc::c_int = 1;
const API: u64 = 0xAA;
const FEATURE_MOVE: u64 = 1 << 16;
const MODE_MISSING: u64 = 1;
const EVENT_PAGEFAULT: u8 = 0x12;
/// How often a page that is busy for a moment (being written back, migrated, read by the disk) is tried again.
const TRIES: u32 = 200;

const REQUEST_API: u64 = request::<ApiArgs>(0x3F);
const REQUEST_REGISTER: u64 = request::<RegisterArgs>(0x00);
const REQUEST_WAKE: u64 = (2 << 30) | (size_of::<Range>() as u64) << 16 | (API << 8) | 0x02;
const REQUEST_COPY: u64 = request::<CopyArgs>(0x03);
const REQUEST_MOVE: u64 = request::<CopyArgs>(0x05);

/// The number of a request that is read and written, as `_IOWR` makes it.
const fn request<T>(number: u64) -> u64 {
    (3 << 30) | (size_of::<T>() as u64) << 16 | (API << 8) | number
}

#[repr(C)]
#[derive(Default)]
struct ApiArgs {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
#[derive(Default)]
struct Range {
    start: u64,
    len: u64,
}

#[repr(C)]
#[derive(Default)]
struct RegisterArgs {
    range: Range,
    mode: u64,
    ioctls: u64,
}

/// `uffdio_copy` and `uffdio_move` have the same fields.
#[repr(C)]
#[derive(Default)]
struct CopyArgs {
    to: u64,
    from: u64,
    len: u64,
    mode: u64,
    done: i64,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Message {
    event: u8,
    reserved: [u8; 7],
    flags: u64,
    address: u64,
    thread: u64,
}

/// A userfaultfd in its user-mode-only form, and an event to end waiting with.
#[derive(Debug)]
pub(crate) struct Faults {
    fd: OwnedFd,
    stop: OwnedFd,
    moves: bool,
}

impl Faults {
    /// Opens one; with `copying`, does without moving pages, as a kernel before 6.8 has to.
    pub(crate) fn open(copying: bool) -> Result<Self> {
        let offered = features(0)?.1;
        let wanted = if copying { 0 } else { offered & FEATURE_MOVE };
        let (fd, _) = features(wanted)?;
        // SAFETY: creates a descriptor; no memory is involved.
        let stop = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        let stop = owned(stop).map_err(|source| Error::System { operation: "make an event", source })?;
        Ok(Self { fd, stop, moves: wanted != 0 })
    }

    /// Whether pages can be moved rather than copied.
    pub(crate) const fn moves(&self) -> bool {
        self.moves
    }

    /// From now on a touch of an absent page in the range waits until it is served here.
    pub(crate) fn register(&self, at: usize, len: usize) -> Result<()> {
        let range = Range { start: at as u64, len: len as u64 };
        let mut args = RegisterArgs { range, mode: MODE_MISSING, ioctls: 0 };
        self.ask(REQUEST_REGISTER, &mut args)
            .map_err(|source| Error::System { operation: "register memory with userfaultfd", source })
    }

    /// Lets whoever waits in the range try again.
    pub(crate) fn wake(&self, at: usize, len: usize) -> io::Result<()> {
        self.ask(REQUEST_WAKE, &mut Range { start: at as u64, len: len as u64 })
    }

    /// Fills absent pages with a copy and wakes who waits for them.
    pub(crate) fn copy(&self, to: usize, from: usize, len: usize) -> io::Result<()> {
        self.all(REQUEST_COPY, to, from, len).map_err(|(_, error)| error)
    }

    /// Moves pages into absent ones and wakes who waits for them; the place they came from is absent afterwards. An
    /// error is how many bytes were moved before the kernel refused for good.
    pub(crate) fn shift(&self, to: usize, from: usize, len: usize) -> Result<(), usize> {
        let movable = inject::movable(len);
        self.all(REQUEST_MOVE, to, from, movable).map_err(|(done, error)| {
            tracing::debug!(%error, done, len, "a page cannot be moved");
            done
        })?;
        if movable < len { Err(movable) } else { Ok(()) }
    }

    fn all(&self, request: u64, to: usize, from: usize, len: usize) -> Result<(), (usize, io::Error)> {
        let (mut done, mut tries) = (0, 0);
        while done < len {
            let (to, from, rest) = ((to + done) as u64, (from + done) as u64, (len - done) as u64);
            let mut args = CopyArgs { to, from, len: rest, mode: 0, done: 0 };
            let asked = self.ask(request, &mut args);
            let step = usize::try_from(args.done).unwrap_or(0);
            done += step;
            tries = if step > 0 { 0 } else { tries + 1 };
            if let Err(error) = asked {
                let passing = matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY | libc::EINTR));
                if !passing || tries > TRIES {
                    return Err((done, error));
                }
                std::thread::yield_now();
            }
        }
        Ok(())
    }

    /// Ends [`wait`](Self::wait), now and for good.
    pub(crate) fn stop(&self) {
        let one = 1u64;
        // SAFETY: writes eight bytes from a live local to a descriptor that is owned.
        let wrote = unsafe { libc::write(self.stop.as_raw_fd(), (&raw const one).cast(), size_of::<u64>()) };
        if wrote < 0 {
            tracing::warn!(error = %io::Error::last_os_error(), "cannot end the waiting for faults");
        }
    }

    /// Waits for touches of absent pages and appends their addresses; `false` once stopped.
    pub(crate) fn wait(&self, faults: &mut Vec<usize>) -> io::Result<bool> {
        let entry = |fd: &OwnedFd| libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let mut entries = [entry(&self.fd), entry(&self.stop)];
        // SAFETY: the array has two entries and lives during the call.
        if unsafe { libc::poll(entries.as_mut_ptr(), 2, -1) } < 0 {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::Interrupted { Ok(true) } else { Err(error) };
        }
        if entries[1].revents != 0 {
            return Ok(false);
        }
        let mut messages = [Message::default(); 16];
        // SAFETY: the buffer has room for its own size, and any bytes are valid for `Message`.
        let got =
            unsafe { libc::read(self.fd.as_raw_fd(), messages.as_mut_ptr().cast(), size_of_val(&messages)) };
        let Ok(got) = usize::try_from(got) else {
            let error = io::Error::last_os_error();
            // Whoever waited may have been served or ended meanwhile; or a signal came.
            let passing = matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted);
            return if passing { Ok(true) } else { Err(error) };
        };
        let came = messages.iter().take(got / size_of::<Message>()).filter(|m| m.event == EVENT_PAGEFAULT);
        faults.extend(came.filter_map(|message| usize::try_from(message.address).ok()));
        Ok(true)
    }

    fn ask<T>(&self, request: u64, args: &mut T) -> io::Result<()> {
        ask(&self.fd, request, args)
    }
}

/// A new descriptor with `wanted` features switched on, and all that this kernel offers.
fn features(wanted: u64) -> Result<(OwnedFd, u64)> {
    let refused = |what: &str, error: io::Error| Error::Unsupported { reason: format!("{what}: {error}") };
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK | USER_MODE_ONLY;
    // SAFETY: the call takes flags only and returns a descriptor.
    let raw = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
    let fd = owned(i32::try_from(raw).unwrap_or(-1)).map_err(|error| refused("userfaultfd", error))?;
    let mut args = ApiArgs { api: API, features: wanted, ioctls: 0 };
    ask(&fd, REQUEST_API, &mut args).map_err(|error| refused("userfaultfd's handshake", error))?;
    Ok((fd, args.features))
}

fn owned(raw: libc::c_int) -> io::Result<OwnedFd> {
    match raw {
        // SAFETY: the system just made the descriptor, and nobody else has it.
        0.. => Ok(unsafe { OwnedFd::from_raw_fd(raw) }),
        _ => Err(io::Error::last_os_error()),
    }
}

fn ask<T>(fd: &OwnedFd, request: u64, args: &mut T) -> io::Result<()> {
    // SAFETY: each request number above is made from the type that its callers pass, so the kernel reads and writes
    // exactly `args`. What it does to the ranges named in it is the callers' affair: they own those.
    match unsafe { libc::ioctl(fd.as_raw_fd(), request, std::ptr::from_mut(args)) } {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

const _: () = assert!(size_of::<Message>() == 32 && HUGE.is_multiple_of(super::PAGE));
