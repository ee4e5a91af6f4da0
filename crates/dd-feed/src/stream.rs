//! [`Stream`]: where the samples of one side (inputs, or outputs) come from; [`Samples`]: what a reader fills; [`Listed`]: a list of
//! identities and a function that reads one.

use std::borrow::Cow;

use dd_core::TensorDesc;
use dd_core::error::Cause;

use crate::error::Result;
use crate::seed::sample_seed;

/// Samples by number, in any order, from several threads at once.
///
/// Two ways to give bytes: [`borrow`](Self::borrow) for those that are in memory or mapped already, which are then copied (or converted)
/// straight into the batch; and [`read`](Self::read), which makes them there.
pub trait Stream: Send + Sync {
    /// How many identities there are.
    fn len(&self) -> u64;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// One sample as it is stored, before any conversion.
    fn desc(&self) -> &TensorDesc;

    /// The identity of number `index`, for messages.
    fn identity(&self, index: u64) -> Cow<'_, str>;

    /// The bytes of all samples of number `index`, one after the other, or of one that stands for all, where they are in memory already.
    /// Nothing (as it is unless overridden) means [`read`](Self::read).
    fn borrow(&self, _index: u64) -> Option<&[u8]> {
        None
    }

    /// Gives all samples of number `index`: exactly [`Samples::expected`].
    ///
    /// # Errors
    /// Whatever goes wrong; it is passed on with the identity.
    fn read(&self, index: u64, samples: &mut Samples<'_>) -> Result<(), Cause>;
}

/// The place of one identity's samples within a batch, to be filled one after the other.
///
/// Whoever asks for [`seed`](Self::seed) or [`epoch`](Self::epoch) gets samples that are not kept for the next epoch, in which they would
/// be others.
pub struct Samples<'a> {
    rows: &'a mut [u8],
    row: usize,
    stored: usize,
    given: usize,
    expected: usize,
    origin: Origin,
    seeded: bool,
}

/// What the seeds of samples come from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Origin {
    pub(crate) seed: u64,
    pub(crate) epoch: u64,
    pub(crate) identity: u64,
}

/// A reader gave another number of samples, or of bytes, than it should.
#[derive(Debug, thiserror::Error)]
#[error("expected {expected} {what}, found {found}")]
pub(crate) struct WrongCount {
    what: &'static str,
    expected: usize,
    found: String,
}

impl<'a> Samples<'a> {
    /// Over rows of `rows.len() / expected` bytes each, of which the last `stored` are to be filled.
    pub(crate) fn new(rows: &'a mut [u8], expected: usize, stored: usize, origin: Origin) -> Self {
        let row = rows.len() / expected.max(1);
        Self { rows, row, stored, given: 0, expected, origin, seeded: false }
    }

    /// How many samples are to be given.
    #[must_use]
    pub const fn expected(&self) -> usize {
        self.expected
    }

    /// How many were given.
    #[must_use]
    pub const fn given(&self) -> usize {
        self.given
    }

    /// The bytes of the next sample, to be filled: whatever they hold before. It counts as given.
    ///
    /// # Errors
    /// Where all that are expected were given.
    pub fn next_slot(&mut self) -> Result<&mut [u8], Cause> {
        let (expected, stored) = (self.expected, self.stored);
        let more = || WrongCount { what: "samples of one read", expected, found: "more".to_owned() };
        if self.given >= expected {
            return Err(more().into());
        }
        self.given += 1;
        let end = self.given.saturating_mul(self.row);
        self.rows.get_mut(end.saturating_sub(stored)..end).ok_or_else(|| more().into())
    }

    /// Gives the next sample: its dense little-endian bytes.
    ///
    /// # Errors
    /// Where all that are expected were given, or these are more or fewer bytes than a sample has.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), Cause> {
        let expected = self.stored;
        if bytes.len() != expected {
            let found = bytes.len().to_string();
            return Err(WrongCount { what: "bytes of a sample", expected, found }.into());
        }
        self.next_slot()?.copy_from_slice(bytes);
        Ok(())
    }

    /// Gives the next sample as floats.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub fn push_f32(&mut self, values: &[f32]) -> Result<(), Cause> {
        let (expected, found) = (self.stored, values.len().saturating_mul(4));
        if found != expected {
            return Err(WrongCount { what: "bytes of a sample", expected, found: found.to_string() }.into());
        }
        let slot = self.next_slot()?;
        for (target, value) in slot.as_chunks_mut::<4>().0.iter_mut().zip(values) {
            *target = value.to_le_bytes();
        }
        Ok(())
    }

    /// The next sample's own seed: the same whoever reads it, see [`sample_seed`].
    pub const fn seed(&mut self) -> u64 {
        self.seeded = true;
        sample_seed(self.origin.seed, self.origin.epoch, self.origin.identity, self.given as u64)
    }

    /// The epoch.
    pub const fn epoch(&mut self) -> u64 {
        self.seeded = true;
        self.origin.epoch
    }

    /// Whether what was given is the same in every epoch.
    pub(crate) const fn is_constant(&self) -> bool {
        !self.seeded
    }

    /// Whether as many were given as expected.
    pub(crate) fn check(&self) -> Result<(), Cause> {
        if self.given == self.expected {
            return Ok(());
        }
        let found = self.given.to_string();
        Err(WrongCount { what: "samples of one read", expected: self.expected, found }.into())
    }
}

/// A list of identities, and a function that reads one: `read(&identity, &mut samples)`.
pub struct Listed<I, F> {
    list: Vec<I>,
    desc: TensorDesc,
    read: F,
}

impl<I, F> Listed<I, F>
where
    I: AsRef<str> + Send + Sync,
    F: Fn(&I, &mut Samples<'_>) -> Result<(), Cause> + Send + Sync,
{
    /// Reads samples of this description.
    pub const fn new(list: Vec<I>, desc: TensorDesc, read: F) -> Self {
        Self { list, desc, read }
    }
}

impl<I, F> Stream for Listed<I, F>
where
    I: AsRef<str> + Send + Sync,
    F: Fn(&I, &mut Samples<'_>) -> Result<(), Cause> + Send + Sync,
{
    fn len(&self) -> u64 {
        self.list.len() as u64
    }

    fn desc(&self) -> &TensorDesc {
        &self.desc
    }

    fn identity(&self, index: u64) -> Cow<'_, str> {
        let entry = usize::try_from(index).ok().and_then(|index| self.list.get(index));
        entry.map_or(Cow::Borrowed("past the end of the list"), |entry| Cow::Borrowed(entry.as_ref()))
    }

    fn read(&self, index: u64, samples: &mut Samples<'_>) -> Result<(), Cause> {
        let entry = usize::try_from(index).ok().and_then(|index| self.list.get(index));
        let entry = entry.ok_or_else(|| format!("number {index} of {} identities", self.list.len()))?;
        (self.read)(entry, samples)
    }
}
