//! Several reads in flight by `io_uring`: the kernel takes them all and says which are done.
//!
//! The blocks are not registered with the kernel: locked memory is a scarce right (8 MiB is a common limit), and with
//! requests of 256 KiB and more the ring reads as fast as the bare loop of [`bandwidth`](super::bandwidth) without it.
#![allow(unsafe_code, reason = "the kernel writes to memory behind the compiler's back")]

use std::io;
use std::os::fd::AsRawFd as _;

use io_uring::{IoUring, Probe, opcode, types};

use super::Geometry;
use super::blocks::{self, Block};
use super::drive::{Flight, Transport, broken};
use super::request::Step;
use crate::error::Result;

const MOST_TRIES: u32 = 10_000;

/// A ring, and the reads that the kernel has of it.
///
/// What keeps this sound: from its submission to its completion a read's block and file lie in `slots`, where nothing
/// touches the block's bytes. The drop waits for all of them; if it cannot, it leaks them.
pub(super) struct Uring {
    ring: IoUring,
    pool: Vec<Block>,
    slots: Vec<Option<Flight>>,
    in_flight: usize,
}

impl Uring {
    /// # Errors
    /// Out of memory for the blocks, or a kernel that has no ring for us: none at all, forbidden, or too old.
    pub(super) fn start(geometry: Geometry) -> Result<Self> {
        let entries = u32::try_from(geometry.depth).unwrap_or(u32::MAX);
        let ring = ring(entries).map_err(|cause| dd_core::Error::library("io_uring", "start", cause))?;
        let slots = std::iter::repeat_with(|| None).take(geometry.depth).collect();
        Ok(Self { ring, pool: blocks::allocate(geometry)?, slots, in_flight: 0 })
    }

    /// Queues what is left of the read in a slot, and tells the kernel.
    fn push(&mut self, slot: usize) -> Result<()> {
        let Some(Some(Flight { request, block })) = self.slots.get_mut(slot) else {
            return Err(broken("io_uring"));
        };
        let (range, offset) = request.rest();
        let buffer = block.get_mut(range).unwrap_or_default();
        let len = u32::try_from(buffer.len()).unwrap_or(u32::MAX); // A block is at most 1 GiB.
        let fd = types::Fd(request.file().as_raw_fd());
        let read = opcode::Read::new(fd, buffer.as_mut_ptr(), len).offset(offset).build();
        let entry = read.user_data(slot as u64);
        // SAFETY: the buffer is `len` bytes of the block in this slot, and the descriptor is of the file in it. The
        // flight stays in its slot, its block untouched, until the completion with this slot's number was taken
        // (`land`), or for ever (`drop`).
        unsafe { self.ring.submission().push(&entry) }.map_err(|_| broken("io_uring"))?;
        // What the kernel does not take now stays queued and is offered again by `wait`, which also reports why.
        if let Err(error) = self.ring.submit() {
            tracing::trace!(%error, "the ring takes the read later");
        }
        Ok(())
    }

    /// Takes a completion, if there is one: the number of its slot and the kernel's answer.
    fn completion(&mut self) -> Option<(usize, io::Result<usize>)> {
        let entry = self.ring.completion().next()?;
        let answer = usize::try_from(entry.result())
            .map_err(|_| io::Error::from_raw_os_error(entry.result().saturating_neg()));
        Some((usize::try_from(entry.user_data()).unwrap_or(usize::MAX), answer))
    }

    /// Applies an answer: the landed read, or nothing where the kernel was asked for the rest.
    fn land(&mut self, slot: usize, answer: io::Result<usize>) -> Result<Option<(Flight, Result<()>)>> {
        let flight = self.slots.get_mut(slot).ok_or_else(|| broken("io_uring"))?;
        match flight.as_mut().ok_or_else(|| broken("io_uring"))?.request.advance(answer) {
            Step::Again => self.push(slot).map(|()| None),
            Step::Done(outcome) => {
                self.in_flight -= 1;
                Ok(flight.take().map(|flight| (flight, outcome)))
            }
        }
    }

    /// Waits until the kernel has something to say; gives up when it fails for good.
    fn enter(&mut self) -> Result<()> {
        for _ in 0..MOST_TRIES {
            match self.ring.submit_and_wait(1) {
                Ok(_) => return Ok(()),
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR | libc::EAGAIN | libc::EBUSY) => std::thread::yield_now(),
                    _ => return Err(dd_core::Error::library("io_uring", "wait for reads", error).into()),
                },
            }
            if !self.ring.completion().is_empty() {
                return Ok(());
            }
        }
        Err(broken("io_uring"))
    }
}

/// A ring that can read, or why not.
fn ring(entries: u32) -> io::Result<IoUring> {
    let ring = IoUring::new(entries)?;
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    match probe.is_supported(opcode::Read::CODE) {
        true => Ok(ring),
        false => Err(io::Error::from(io::ErrorKind::Unsupported)),
    }
}

impl Transport for Uring {
    fn pool(&mut self) -> &mut Vec<Block> {
        &mut self.pool
    }

    fn in_flight(&self) -> usize {
        self.in_flight
    }

    fn submit(&mut self, flight: Flight) -> Result<()> {
        let free = self.slots.iter().position(Option::is_none).ok_or_else(|| broken("io_uring"))?;
        if let Some(slot) = self.slots.get_mut(free) {
            *slot = Some(flight);
            self.in_flight += 1;
        }
        self.push(free)
    }

    fn wait(&mut self) -> Result<(Flight, Result<()>)> {
        loop {
            match self.completion() {
                Some((slot, answer)) => {
                    if let Some(landed) = self.land(slot, answer)? {
                        return Ok(landed);
                    }
                }
                None => self.enter()?,
            }
        }
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        while self.in_flight > 0 {
            if let Err(error) = self.wait() {
                tracing::error!(%error, reads = self.in_flight, "leaking the blocks of reads that cannot be waited for");
                self.slots.drain(..).for_each(std::mem::forget);
                return;
            }
        }
    }
}
