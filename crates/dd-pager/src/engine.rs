//! [`Engine`]: the two kinds of thread that carry out what [`State`](crate::state) decides.
//!
//! One thread answers faults: it moves a staged frame to its place, or marks the unit as wanted. Some threads fill: each
//! takes a job, has its source fill the frame, and stages it, or moves it to its place if somebody waits. All moves
//! happen under the one lock, so what the state says of a unit is where its pages are.
#![allow(unsafe_code, reason = "slices of frames that a loader has to itself; each block says why")]

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::error::{Error, Result};
use crate::inject::{self, Breach};
use crate::scratch::Scratch;
use crate::source::Source;
use crate::state::{Answer, Frame, From, Job, Piece, Place, State, Unit};
use crate::sys::map::Mapping;
use crate::sys::{Faults, PAGE};

/// What is done where a reader waits for bytes that cannot be had: it cannot be told, so this must not return.
pub type OnFatal = Arc<dyn Fn(&Error) + Send + Sync>;

/// What the threads share.
pub(crate) struct Engine {
    // Goes before the faults: once those are closed, whoever still waits in it would be given zeros.
    pub(crate) space: Mapping,
    arena: Mapping,
    pub(crate) faults: Faults,
    pub(crate) state: Mutex<State>,
    work: Condvar,
    unit: usize,
    /// Frames whose place in the arena is registered, so that pages can be moved back into it.
    registered: Mutex<Vec<bool>>,
    on_fatal: OnFatal,
}

impl Engine {
    pub(crate) fn new(state: State, capacity: usize, copying: bool, on_fatal: OnFatal) -> Result<Self> {
        let faults = Faults::open(copying)?;
        let unit = state.layout.unit;
        let huge = unit >= crate::sys::HUGE;
        let space = Mapping::reserve(capacity, huge)?;
        let arena = Mapping::reserve(unit.saturating_mul(state.layout.frames), huge)?;
        faults.register(space.addr(), space.len())?;
        let registered = Mutex::new(vec![false; state.layout.frames]);
        let (state, work) = (Mutex::new(state), Condvar::new());
        Ok(Self { space, arena, faults, state, work, unit, registered, on_fatal })
    }

    /// The state. A thread that panicked with it in its hands has already ended the process.
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends all threads, once they have done what they are at.
    pub(crate) fn stop(&self) {
        self.state().stopping = true;
        self.faults.stop();
        self.work.notify_all();
    }

    /// Answers faults until stopped.
    pub(crate) fn serve(&self) {
        let mut addresses = Vec::with_capacity(16);
        loop {
            addresses.clear();
            match self.faults.wait(&mut addresses) {
                Ok(true) => {}
                Ok(false) => return,
                Err(source) => {
                    return self.fatal(&Error::System { operation: "wait for page faults", source });
                }
            }
            let mut state = self.state();
            for address in &addresses {
                self.answer(&mut state, *address);
            }
            drop(state);
            self.work.notify_all();
        }
    }

    fn answer(&self, state: &mut State, address: usize) {
        let offset = address.wrapping_sub(self.space.addr());
        let unit = offset / self.unit;
        if offset >= self.space.len() {
            return self.stray(address, "outside the paged range");
        }
        match state.fault(unit) {
            Answer::Wake => self.wake(unit),
            Answer::MoveIn(frame) => {
                self.move_in(state, unit, frame);
                self.move_in_companions(state, unit);
            }
            Answer::Wait => self.move_in_companions(state, unit),
            Answer::Stray => {
                // A reader that was served as one of a group has left its message behind, and may have dropped the range
                // since. One that really strayed comes again.
                // Messages left behind do not add up for ever.
                if state.strays.len() >= MOST_REMEMBERED {
                    state.strays.clear();
                }
                let times = state.strays.entry(address).or_default();
                *times += 1;
                if *times > MOST_STRAYS {
                    return self.stray(address, "where nothing is registered");
                }
                self.wake(unit);
            }
        }
    }

    /// Lets whoever waits in a unit try again.
    fn wake(&self, unit: Unit) {
        if let Err(error) = self.faults.wake(self.space.addr() + unit * self.unit, self.unit) {
            tracing::warn!(%error, unit, "cannot wake who waits");
        }
    }

    fn move_in_companions(&self, state: &mut State, unit: Unit) {
        for (unit, frame) in state.companions(unit) {
            self.move_in(state, unit, frame);
        }
    }

    fn stray(&self, address: usize, place: &str) {
        self.fatal(&Error::Invalid {
            what: "a read of paged memory".to_owned(),
            expected: "an address of a registered range".to_owned(),
            found: format!("address {address:#x}, {place}"),
        });
    }

    /// Moves a filled frame to its unit's place and wakes who waits there.
    fn move_in(&self, state: &mut State, unit: Unit, frame: Frame) {
        let (to, from) = (self.space.addr() + unit * self.unit, self.arena.addr() + frame * self.unit);
        let done = if self.faults.moves() { self.faults.shift(to, from, self.unit) } else { Err(0) };
        if let Err(done) = done {
            let copied = self.faults.copy(to + done, from + done, self.unit - done);
            // All of the frame: should the kernel have made a page of what was moved, it would be in the way later.
            let copied = copied.and_then(|()| self.arena.discard(frame * self.unit, self.unit));
            if let Err(source) = copied {
                return self.fatal(&Error::System { operation: "map a filled page", source });
            }
            state.stats.copied += 1;
        }
        state.mapped(unit, frame);
    }

    /// Moves a unit out into its frame; an error leaves it where it is.
    fn move_out(&self, state: &mut State, unit: Unit, frame: Frame, writable: bool) -> Result<(), ()> {
        let (at, to) = (unit * self.unit, frame * self.unit);
        if !self.faults.moves() {
            // What is read-only is in its file; the frame is made present when it is filled.
            return if writable { Err(()) } else { self.space.discard(at, self.unit).map_err(drop) };
        }
        self.register(frame).map_err(drop)?;
        let (from, to) = (self.space.addr() + at, self.arena.addr() + to);
        let Err(done) = self.faults.shift(to, from, self.unit) else { return Ok(()) };
        if writable {
            // A copy could miss what is written at this moment.
            return match self.faults.shift(from, to, done) {
                Ok(()) => Err(()),
                Err(_) => {
                    let source = std::io::Error::other("its pages can be moved neither out nor back");
                    self.fatal(&Error::System { operation: "evict a written unit", source });
                    Err(())
                }
            };
        }
        state.stats.copied += 1;
        let copied = self.faults.copy(to + done, from + done, self.unit - done);
        if let Err(source) = copied.and_then(|()| self.space.discard(at + done, self.unit - done)) {
            // Half of it is here and half there, and no memory is left to bring it together.
            self.fatal(&Error::System { operation: "evict a unit", source });
        }
        Ok(())
    }

    fn register(&self, frame: Frame) -> Result<()> {
        let mut registered = self.registered.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(registered) = registered.get_mut(frame).filter(|registered| !**registered) else {
            return Ok(());
        };
        self.faults.register(self.arena.addr() + frame * self.unit, self.unit)?;
        *registered = true;
        Ok(())
    }

    /// Fills units until stopped.
    pub(crate) fn load(&self, mut scratch: Scratch) {
        let mut state = self.state();
        loop {
            if state.stopping {
                return;
            }
            if let Some(job) = state.next_job() {
                state = self.carry_out(state, job, &mut scratch);
            } else if let Some(source) = state.idle_work() {
                drop(state);
                state = self.work_ahead(&source, &mut scratch);
            } else {
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    /// Has a source do one thing that it can do before anybody waits for it.
    fn work_ahead(&self, source: &Arc<dyn Source>, scratch: &mut Scratch) -> MutexGuard<'_, State> {
        #[repr(align(4096))]
        struct Page([u8; PAGE]);
        let mut page = Page([0; PAGE]);
        let done = source.ahead().map(|at| source.fill(at, &mut page.0, scratch));
        let mut state = self.state();
        state.stats.bytes_read += scratch.take_read();
        match done {
            Some(Ok(())) => state.idle.push(Arc::downgrade(source)),
            Some(Err(error)) => {
                tracing::warn!(%error, "reading ahead failed; it is tried again when it is needed")
            }
            None => {}
        }
        state
    }

    fn carry_out<'s>(
        &'s self,
        mut state: MutexGuard<'s, State>,
        job: Job,
        scratch: &mut Scratch,
    ) -> MutexGuard<'s, State> {
        if let From::Evict(victim) = job.from {
            let pieces = state.units.get(victim).map(|entry| entry.pieces.clone()).unwrap_or_default();
            let writable = pieces.iter().any(|piece| piece.source.is_writable());
            if self.move_out(&mut state, victim, job.frame, writable).is_err() {
                state.keep(victim, job.frame);
                state.put_off(job.unit);
                drop(state);
                std::thread::yield_now();
                return self.state();
            }
            #[cfg(test)]
            self.check_evicted(victim, job.frame, writable);
            if writable {
                drop(state);
                self.store(&pieces, job.frame);
                state = self.state();
                state.stats.bytes_stored += self.unit as u64;
                state.stored(victim);
            }
        }
        let pieces = state.units.get(job.unit).map(|entry| entry.pieces.clone()).unwrap_or_default();
        scratch.set_stays(state.units.get(job.unit).is_some_and(|entry| entry.resident));
        drop(state);
        let filled = self.fill(&pieces, job, scratch);
        let mut state = self.state();
        state.stats.bytes_read += scratch.take_read();
        match filled {
            Ok(()) => {
                if state.filled(job.unit, job.frame) {
                    self.move_in(&mut state, job.unit, job.frame);
                }
            }
            Err(error) => {
                if state.abandon(job.unit, job.frame) {
                    drop(state);
                    self.fatal(&error);
                    return self.state();
                }
                tracing::warn!(%error, "reading ahead failed; it is tried again when it is needed");
            }
        }
        state
    }

    /// Fills a frame that this thread has to itself.
    fn fill(&self, pieces: &[Piece], job: Job, scratch: &mut Scratch) -> Result<()> {
        let at = job.frame * self.unit;
        if job.from == From::Fresh || !self.faults.moves() {
            let made = self.arena.populate(at, self.unit);
            made.map_err(|source| Error::System { operation: "take memory for a frame", source })?;
        }
        // SAFETY: the frame lies within the arena. Its unit is `Filling`, so no other thread touches the frame until this
        // one hands it back; its pages are present (made so here, left by the last fill, or moved back by an eviction)
        // and initialised, as anonymous memory always is.
        let frame = unsafe { std::slice::from_raw_parts_mut(self.arena.at(at), self.unit) };
        inject::before_fill(frame);
        for piece in pieces {
            let out = frame.get_mut(piece.range.clone()).unwrap_or_default();
            piece.source.fill(piece.at, out, scratch)?;
        }
        inject::after_fill(self.space.addr() + job.unit * self.unit, frame);
        Ok(())
    }

    /// Checks that an evicted unit came back as it was filled, where nobody may write to it.
    #[cfg(test)]
    fn check_evicted(&self, unit: Unit, frame: Frame, writable: bool) {
        if writable || !self.faults.moves() {
            return;
        }
        // SAFETY: as in `fill`: the frame is this thread's alone, and its pages were just moved back.
        let data = unsafe { std::slice::from_raw_parts(self.arena.at(frame * self.unit), self.unit) };
        inject::evicted(self.space.addr() + unit * self.unit, data);
    }

    /// Hands an evicted unit, which lies in a frame that this thread has to itself, to its sources.
    fn store(&self, pieces: &[Piece], frame: Frame) {
        // SAFETY: as in `fill`: the unit is `Storing`, and the frame goes to nobody else before this is done.
        let data = unsafe { std::slice::from_raw_parts(self.arena.at(frame * self.unit), self.unit) };
        for piece in pieces.iter().filter(|piece| piece.source.is_writable()) {
            if inject::breached(Breach::LoseWritten) {
                continue;
            }
            let kept = piece.source.store(piece.at, data.get(piece.range.clone()).unwrap_or_default());
            if let Err(error) = kept {
                self.fatal(&error);
            }
        }
    }

    /// Takes back all that a given-back range had to itself.
    pub(crate) fn release(&self, region: u64, units: std::ops::Range<Unit>) {
        let mut state = self.state();
        for unit in units {
            let Some(entry) = state.units.get_mut(unit) else { continue };
            entry.pieces.retain(|piece| piece.region != region);
            if !entry.pieces.is_empty() {
                continue;
            }
            if entry.wanted {
                // Nothing can fill it any more, and whoever waits would wait for ever.
                self.stray(self.space.addr() + unit * self.unit, "in a range that was dropped meanwhile");
                return;
            }
            let place = entry.place;
            match place {
                Place::Mapped(frame) if self.move_out(&mut state, unit, frame, false).is_ok() => {
                    state.abandon(unit, frame);
                }
                Place::Staged(frame) => {
                    state.abandon(unit, frame);
                }
                _ => {} // Absent; or a loader has it and will find that it is of no more use.
            }
        }
        state.order_changed();
        drop(state);
        self.work.notify_all();
    }

    pub(crate) fn fatal(&self, error: &Error) {
        say(error);
        // What follows is the program's own code, and could wait for a lock whose holder waits in a fault.
        let last_resort = || {
            std::thread::sleep(PATIENCE);
            end()
        };
        drop(std::thread::Builder::new().name("dd-page-end".to_owned()).spawn(last_resort));
        tracing::error!(%error, "a reader waits for bytes that cannot be had");
        (self.on_fatal)(error);
        end();
    }
}

/// How often a reader may come back to an address where nothing is registered.
const MOST_STRAYS: u32 = 1000;

/// How many such addresses are remembered at a time.
const MOST_REMEMBERED: usize = 1024;

/// How long others are given to record why the process ends.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(5);

/// Ends the process: whoever waits in a fault can neither be told nor be given wrong bytes.
pub(crate) fn leave(error: &Error) -> ! {
    say(error);
    end()
}

/// Tells the user, around the standard library's lock: who holds that may be waiting in a fault.
fn say(error: &Error) {
    let text = format!(
        "deep-dimensions: a weight cannot be had, and the code that waits for it cannot be told: {error}\n"
    );
    // SAFETY: writes the bytes of a live string to standard error. Where that fails, nobody is there to be told.
    unsafe { libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), text.len()) };
}

fn end() -> ! {
    // SAFETY: ends the process at once, without handlers that could wait for a thread that waits in a fault.
    unsafe { libc::_exit(74) } // EX_IOERR
}
