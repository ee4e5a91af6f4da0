//! [`Backing`]: where the pages of one captured allocation are while they are not in memory.
//!
//! The code that allocated the memory may write anything to it, so nothing is believed of it but what its bytes say
//! when they are evicted. A page is at first *empty* (zeros, read from nowhere). When it leaves memory, it is hashed:
//!
//! - the hash is that of the file's bytes at that place, so they are what it holds: it is *filed*, and read from the
//!   model file from then on;
//! - the hash is that of what is stored for it: nothing is to be done;
//! - anything else: it is written to the spill file, and *spilled*.
//!
//! So a page that changes again later is kept again, and no page is ever given back with other bytes than it had. That one
//! allocation is a copy of another is only a guess about which bytes to compare with; a wrong one costs a spill.

use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dd_core::Reservation;
use dd_pager::{Error, Result, Scratch, Source};

use super::digest::{Digests, PAGE, digest};
use super::file::ModelFile;
use super::spill::{Extent, Spill};

/// A range of the model file.
#[derive(Clone, Debug)]
pub(crate) struct FileRange {
    pub(crate) file: Arc<ModelFile>,
    pub(crate) range: Range<u64>,
}

impl FileRange {
    /// How far into a page memory has to begin that direct reads of this range can fill.
    pub(crate) fn head(&self) -> usize {
        usize::try_from(self.range.start % PAGE as u64).unwrap_or(0)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Empty,
    Filed,
    Spilled,
}

#[derive(Debug)]
pub(crate) struct Backing {
    name: String,
    own: Range<usize>, // The allocation's bytes, counted from its first page.
    spill: Arc<Spill>,
    state: Mutex<State>,
    decided: Condvar,
}

/// How long a fill of a new buffer waits to be told what the buffer holds. It is told within microseconds, or never, and
/// then this is waited for once; being late only means that the tensor is read to the buffer rather than to its copy.
const PATIENCE: Duration = Duration::from_millis(10);

#[derive(Debug)]
struct State {
    file: Option<(FileRange, Arc<Digests>)>,
    places: Vec<Place>,
    /// Of what is spilled, and of what is filed where the file's pages are not this allocation's; zero: not known. Empty
    /// until needed.
    digests: Vec<u64>,
    shifted: bool, // It lies otherwise in pages than in the file.
    awaited: bool, // It may be told in a moment what it holds.
    touched: bool,
    extent: Option<Arc<Extent>>,
    room: Vec<Reservation>,
}

impl Backing {
    /// For an allocation of `len` bytes whose first lies `head` bytes into its first page, which is zeros; it may turn out
    /// to be a copy of `copy_of`, whose head is then the same.
    pub(crate) fn new(
        name: String,
        (head, len): (usize, usize),
        spill: Arc<Spill>,
        copy_of: Option<(FileRange, Arc<Digests>)>,
    ) -> Self {
        let pages = (head + len).div_ceil(PAGE);
        let state = State {
            file: copy_of
                .filter(|(file, _)| file.head() == head && file.range.end - file.range.start == len as u64),
            places: vec![Place::Empty; pages],
            digests: Vec::new(),
            shifted: false,
            awaited: false,
            touched: false,
            extent: None,
            room: Vec::new(),
        };
        Self { name, own: head..head + len, spill, state: Mutex::new(state), decided: Condvar::new() }
    }

    /// Says that [`hold`](Self::hold) may be called in a moment: fills wait for it. A pager reads ahead, and what it has read
    /// cannot be called back.
    pub(crate) fn awaiting(self) -> Self {
        self.lock().awaited = true;
        self
    }

    /// What the tables of an allocation of so many bytes take.
    pub(crate) const fn table_bytes(len: u64) -> u64 {
        (len / PAGE as u64 + 2) * 9 // A place and a digest.
    }

    /// Says that the allocation, all of it, holds what lies at `file`: instead of reading it. Refused where it was touched
    /// already, or is not as long.
    pub(crate) fn hold(&self, file: FileRange) -> Option<Arc<Digests>> {
        let mut state = self.lock();
        let as_long =
            file.range.end.checked_sub(file.range.start) == Some((self.own.end - self.own.start) as u64);
        if state.touched || !as_long || state.file.is_some() {
            return None;
        }
        let digests = Arc::new(Digests::of(file.range.clone()));
        state.awaited = false;
        self.decided.notify_all();
        state.places.fill(Place::Filed);
        state.shifted = file.head() != self.own.start;
        state.file = Some((file, Arc::clone(&digests)));
        Some(digests)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state, once it is clear what a new buffer holds.
    fn decided_state(&self) -> MutexGuard<'_, State> {
        let state = self.lock();
        let waited = self.decided.wait_timeout_while(state, PATIENCE, |state| state.awaited);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.awaited = false;
        state
    }

    /// The allocation's own bytes of page `page`, counted from the page's start.
    fn own_of(&self, page: usize) -> Range<usize> {
        let start = page * PAGE;
        let within = |at: usize| at.clamp(start, start + PAGE) - start;
        within(self.own.start)..within(self.own.end)
    }

    fn io(&self, operation: &str, error: &std::io::Error) -> Error {
        Error::Read {
            what: format!("{operation} {}", self.name),
            path: self.spill.directory().to_owned(),
            reason: error.to_string(),
        }
    }

    fn fill_run(&self, place: Place, at: usize, out: &mut [u8], scratch: &mut Scratch) -> Result<()> {
        match place {
            Place::Empty => out.fill(0),
            Place::Filed => self.read_file(at, out, scratch)?,
            Place::Spilled => {
                let extent = self.lock().extent.clone();
                let read = extent.map(|extent| self.spill.read(&extent, at as u64, out));
                let read = read.unwrap_or_else(|| Err(std::io::ErrorKind::NotFound.into()));
                read.map_err(|error| self.io("the spilled part of", &error))?;
            }
        }
        Ok(())
    }

    fn read_file(&self, at: usize, out: &mut [u8], scratch: &mut Scratch) -> Result<()> {
        let (held, shifted) = {
            let state = self.lock();
            (state.file.clone(), state.shifted)
        };
        let Some((FileRange { file, range }, digests)) = held else {
            return Err(self.io("the file of", &std::io::ErrorKind::NotFound.into()));
        };
        file.check(&self.name)?;
        if shifted {
            // The loader's buffer, made before it was known what would be read to it: aligned to nothing in the file.
            return self.read_shifted((&file, &range, &digests), at, out, scratch);
        }
        let offset = (range.start / PAGE as u64) * PAGE as u64 + at as u64;
        scratch.read_around(file.direct(), offset, range.end.saturating_sub(offset), out, &self.name)?;
        digests.note(offset, out);
        Ok(())
    }

    fn read_shifted(
        &self,
        (file, range, digests): (&ModelFile, &Range<u64>, &Digests),
        at: usize,
        out: &mut [u8],
        scratch: &mut Scratch,
    ) -> Result<()> {
        let first = range.start + at as u64;
        let last = range.end.min(first + out.len() as u64);
        let around = first / PAGE as u64 * PAGE as u64;
        let whole = last.next_multiple_of(PAGE as u64).min(range.end).max(last);
        let bytes = scratch.read(file.direct(), around, whole - around, &self.name)?;
        digests.note(around, bytes);
        let skip = usize::try_from(first - around).unwrap_or(0);
        let wanted = bytes.get(skip..).unwrap_or_default();
        let count = wanted.len().min(out.len());
        if let (Some(to), Some(from)) = (out.get_mut(..count), wanted.get(..count)) {
            to.copy_from_slice(from);
        }
        self.note(at, out);
        Ok(())
    }

    /// Notes what filed pages hash to, the first time that they are read.
    fn note(&self, at: usize, out: &[u8]) {
        let first = at / PAGE;
        for (page, bytes) in (first..).zip(out.chunks(PAGE)) {
            if self.lock().digests.get(page).is_none_or(|known| *known == 0) {
                let found = digest(bytes.get(self.own_of(page)).unwrap_or_default());
                self.lock().set(page, Place::Filed, found);
            }
        }
    }

    /// The digest of a page that leaves memory and is to be spilled; nothing where its place holds what it holds.
    fn must_spill(&self, page: usize, own: &[u8]) -> Option<u64> {
        let (place, stored, filed) = self.lock().known(page)?;
        if place == Place::Empty && own.iter().all(|byte| *byte == 0) {
            return None;
        }
        let found = digest(own);
        match place {
            Place::Filed | Place::Spilled if stored == Some(found) => None,
            Place::Empty if filed == Some(found) => {
                self.lock().set(page, Place::Filed, 0);
                None
            }
            _ => Some(found),
        }
    }

    fn spill_run(&self, first: usize, found: &[u64], bytes: &[u8]) -> Result<()> {
        let mut state = self.lock();
        let extent = match &state.extent {
            Some(extent) => Arc::clone(extent),
            None => {
                let extent = Arc::new(self.spill.extent(self.own.end));
                state.extent = Some(Arc::clone(&extent));
                extent
            }
        };
        let pages = first..first + found.len();
        let new = pages.clone().filter(|page| state.places.get(*page) != Some(&Place::Spilled)).count();
        if new > 0 {
            let room = self.spill.reserve(new * PAGE)?;
            state.room.push(room);
        }
        drop(state);
        self.spill
            .write(&extent, (first * PAGE) as u64, bytes)
            .map_err(|error| self.io("cannot write the spilled part of", &error))?;
        let mut state = self.lock();
        for (page, found) in pages.zip(found) {
            state.set(page, Place::Spilled, *found);
        }
        Ok(())
    }
}

impl State {
    /// Where a page is, the digest of what is there, and that of the file's bytes for it.
    fn known(&self, page: usize) -> Option<(Place, Option<u64>, Option<u64>)> {
        let place = self.places.get(page).copied()?;
        let filed = self.file.as_ref().filter(|_| !self.shifted).and_then(|(_, digests)| digests.get(page));
        let own = self.digests.get(page).copied().filter(|digest| *digest > 0);
        let stored = if place == Place::Filed && !self.shifted { filed } else { own };
        Some((place, stored, filed))
    }

    fn set(&mut self, page: usize, place: Place, digest: u64) {
        if self.digests.is_empty() && digest > 0 {
            self.digests.resize(self.places.len(), 0);
        }
        if let Some(at) = self.places.get_mut(page) {
            *at = place;
        }
        if let Some(known) = self.digests.get_mut(page) {
            *known = digest;
        }
    }
}

impl Source for Backing {
    fn fill(&self, at: u64, out: &mut [u8], scratch: &mut Scratch) -> Result<()> {
        let at = usize::try_from(at).unwrap_or(usize::MAX);
        let (first, count) = (at / PAGE, out.len() / PAGE);
        let places: Vec<Place> = {
            let mut state = self.decided_state();
            state.touched = true;
            (first..first + count)
                .map(|page| state.places.get(page).copied().unwrap_or(Place::Empty))
                .collect()
        };
        let (mut at, mut rest) = (at, out);
        for run in places.chunk_by(|a, b| a == b) {
            let Some((now, later)) = rest.split_at_mut_checked(run.len() * PAGE) else { break };
            let place = run.first().copied().unwrap_or(Place::Empty);
            self.fill_run(place, at, now, scratch)?;
            at += now.len();
            rest = later;
        }
        Ok(())
    }

    fn is_writable(&self) -> bool {
        true
    }

    fn store(&self, at: u64, data: &[u8]) -> Result<()> {
        let first = usize::try_from(at).unwrap_or(usize::MAX) / PAGE;
        let mut run: Option<(usize, Vec<u64>)> = None;
        let pages = data.len() / PAGE;
        for index in 0..=pages {
            let bytes = data.get(index * PAGE..(index + 1) * PAGE);
            let page = first + index;
            let found = bytes.and_then(|bytes| {
                let own = bytes.get(self.own_of(page)).unwrap_or_default();
                self.must_spill(page, own)
            });
            match (found, run.as_mut()) {
                (Some(found), Some((_, digests))) => digests.push(found),
                (Some(found), None) => run = Some((index, vec![found])),
                (None, _) => {
                    if let Some((start, digests)) = run.take() {
                        let bytes = data.get(start * PAGE..index * PAGE).unwrap_or_default();
                        self.spill_run(first + start, &digests, bytes)?;
                    }
                }
            }
        }
        Ok(())
    }
}

impl Drop for Backing {
    fn drop(&mut self) {
        if let Some(extent) = self.lock().extent.take() {
            self.spill.remove(&extent);
        }
    }
}

#[cfg(test)]
mod tests;
