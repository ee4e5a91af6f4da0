//! [`ForwardSource`]: samples that can only be read one after the other, as from a socket, a decoder, a compressed shard, or any iterator.
//!
//! They come in windows, each read whole and shuffled in memory: whole blocks where the source can be opened at the start of each block
//! ([`Shuffle::Blocks`](crate::Shuffle::Blocks)), or just the next so many ([`Shuffle::Window`](crate::Shuffle::Window)). Windows are read
//! strictly in their order, at most two are in memory (one where memory is short), and one is given up when every batch that begins before
//! its end is filled. Whoever is furthest behind can always go on, so nothing waits for ever.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, PoisonError};

use dd_core::error::Cause;
use dd_core::{Budget, Bytes, Holder, Reservation, TensorDesc};

use crate::error::{Error, Result};
use crate::order::{Blocks, Order};
use crate::primitive::{Condvar, Mutex, MutexGuard};
use crate::shared::panicked;

#[cfg(all(test, dd_shuttle))]
mod interleavings;

/// The rows of a source that was opened, one after the other.
trait Rows: Send {
    /// Fills one row; nothing at the end.
    fn next_into(&mut self, input: &mut [u8], output: &mut [u8]) -> Option<Result<(), Cause>>;
}

type Open = dyn Fn(u64) -> Result<Box<dyn Rows>, Cause> + Send + Sync;

/// Samples that can only be read forward. See the [module](self).
pub struct ForwardSource {
    len: u64,
    block: Option<u64>,
    input: TensorDesc,
    output: TensorDesc,
    open: Box<Open>,
}

struct OfIterator<I>(I);

impl<I, X, Y> Rows for OfIterator<I>
where
    I: Iterator<Item = Result<(X, Y), Cause>> + Send,
    X: AsRef<[u8]>,
    Y: AsRef<[u8]>,
{
    fn next_into(&mut self, input: &mut [u8], output: &mut [u8]) -> Option<Result<(), Cause>> {
        let copy = |side: &str, from: &[u8], to: &mut [u8]| -> Result<(), Cause> {
            if from.len() != to.len() {
                return Err(format!("expected {} bytes of {side}, found {}", to.len(), from.len()).into());
            }
            to.copy_from_slice(from);
            Ok(())
        };
        let item = self.0.next()?;
        Some(item.and_then(|(x, y)| {
            copy("input", x.as_ref(), input)?;
            copy("output", y.as_ref(), output)
        }))
    }
}

impl ForwardSource {
    /// `len` identities from an iterator that is made anew for each epoch. An item holds the dense bytes of all samples of one identity,
    /// input and output.
    pub fn from_iterator<I, X, Y>(
        len: u64,
        input: TensorDesc,
        output: TensorDesc,
        open: impl Fn() -> Result<I, Cause> + Send + Sync + 'static,
    ) -> Self
    where
        I: Iterator<Item = Result<(X, Y), Cause>> + Send + 'static,
        X: AsRef<[u8]>,
        Y: AsRef<[u8]>,
    {
        let open = move |_| Ok(Box::new(OfIterator(open()?)) as Box<dyn Rows>);
        Self { len, block: None, input, output, open: Box::new(open) }
    }

    /// `len` identities in blocks (files, shards) of `block`, the last perhaps of fewer; `open(number)` reads block `number` forward.
    pub fn from_blocks<I, X, Y>(
        len: u64,
        block: u64,
        input: TensorDesc,
        output: TensorDesc,
        open: impl Fn(u64) -> Result<I, Cause> + Send + Sync + 'static,
    ) -> Self
    where
        I: Iterator<Item = Result<(X, Y), Cause>> + Send + 'static,
        X: AsRef<[u8]>,
        Y: AsRef<[u8]>,
    {
        let open = move |block| Ok(Box::new(OfIterator(open(block)?)) as Box<dyn Rows>);
        Self { len, block: Some(block), input, output, open: Box::new(open) }
    }

    /// How many identities there are.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// One input sample as it is stored.
    #[must_use]
    pub const fn input(&self) -> &TensorDesc {
        &self.input
    }

    /// One output sample as it is stored.
    #[must_use]
    pub const fn output(&self) -> &TensorDesc {
        &self.output
    }

    /// Identities per block, where blocks can be opened.
    #[must_use]
    pub const fn block(&self) -> Option<u64> {
        self.block
    }
}

/// The windows of a source that are in memory.
pub(crate) struct Windows {
    source: Arc<ForwardSource>,
    /// Bytes of one identity: input, output.
    row: (usize, usize),
    state: Mutex<State>,
    changed: Condvar,
    /// Windows that there is room for.
    most: usize,
    _room: Reservation,
}

#[derive(Default)]
struct State {
    /// The batches that are not filled, by where they begin or have come to, as times: how many.
    active: BTreeMap<u64, usize>,
    /// By epoch and number.
    loaded: BTreeMap<(u64, u64), Arc<Window>>,
    loading: bool,
    rows: Option<OpenRows>,
}

struct OpenRows {
    epoch: u64,
    /// The next identity that it gives.
    at: u64,
    rows: Box<dyn Rows>,
}

/// One window in memory.
pub(crate) struct Window {
    bytes: Box<[u8]>,
    row: (usize, usize),
    /// When the last of it is used.
    end: u64,
}

impl Window {
    /// The bytes at a place: input, output.
    pub(crate) fn row(&self, place: u64) -> Option<(&[u8], &[u8])> {
        let len = self.row.0 + self.row.1;
        let start = usize::try_from(place).ok()?.checked_mul(len)?;
        self.bytes.get(start..start.checked_add(len)?)?.split_at_checked(self.row.0)
    }
}

impl Windows {
    /// Reserves room for two windows of this order, or for one.
    pub(crate) fn new(
        source: Arc<ForwardSource>,
        reads: u64,
        order: &Order,
        budget: &Budget,
    ) -> Result<Self> {
        let blocks = blocks_of(order)?;
        if !blocks.is_forward() && source.block != Some(blocks.block()) {
            let expected =
                source.block.map_or("Shuffle::Window".to_owned(), |block| format!("blocks of {block}"));
            return Err(Error::mismatch(
                "the shuffle of a source that only reads forward",
                expected,
                blocks.block(),
            ));
        }
        let row = |desc: &TensorDesc| {
            let bytes = desc.bytes().checked_mul(reads).ok_or_else(|| crate::config::overflow("one read"))?;
            Ok::<_, Error>(bytes.to_usize()?)
        };
        let row = (row(&source.input)?, row(&source.output)?);
        let longest = blocks.longest_window();
        let bytes = Bytes::of(row.0).checked_add(Bytes::of(row.1)).and_then(|row| row.checked_mul(longest));
        let bytes = bytes.ok_or_else(|| crate::config::overflow("one window"))?;
        let wanted = if longest < order.len() { 2 } else { 1 };
        let holder = Holder::new("feed windows");
        let two = bytes.checked_mul(wanted).and_then(|all| budget.try_reserve(all, &holder).ok());
        let (most, room) = match two {
            Some(room) => (usize::try_from(wanted).unwrap_or(1), room),
            None => (1, budget.reserve(bytes, &holder)?),
        };
        let (state, changed) = (Mutex::default(), Condvar::new());
        Ok(Self { source, row, state, changed, most, _room: room })
    }

    /// A batch that begins at this time is going to be filled. To be called in the order of times.
    pub(crate) fn begin(&self, time: u64) {
        *self.lock().active.entry(time).or_default() += 1;
    }

    /// It has come this far: what only came before is not needed by it any more.
    fn advance(state: &mut State, from: u64, to: u64) {
        Self::leave(state, from);
        *state.active.entry(to).or_default() += 1;
    }

    /// It is filled, or given up.
    pub(crate) fn finish(&self, time: u64) {
        Self::leave(&mut self.lock(), time);
        self.changed.notify_all();
    }

    fn leave(state: &mut State, time: u64) {
        if let Some(count) = state.active.get_mut(&time) {
            *count -= 1;
            if *count == 0 {
                state.active.remove(&time);
            }
        }
    }

    /// The window of a position of an epoch, for the batch that was at time `mark`, which moves there. Whoever comes first reads it. No
    /// window may be held while asking.
    pub(crate) fn get(
        &self,
        orders: &dyn Fn(u64) -> Arc<Order>,
        epoch: u64,
        position: u64,
        mark: &mut u64,
    ) -> Result<Arc<Window>> {
        let order = orders(epoch);
        let wanted = (epoch, blocks_of(&order)?.window_of(position));
        let time = epoch.saturating_mul(order.len()).saturating_add(position);
        let mut state = self.lock();
        Self::advance(&mut state, *mark, time);
        *mark = time;
        self.changed.notify_all();
        loop {
            if let Some(window) = state.loaded.get(&wanted) {
                return Ok(Arc::clone(window));
            }
            let behind = state.active.first_key_value().map_or(time, |(time, _)| *time);
            state.loaded.retain(|_, window| window.end > behind);
            if state.loading || state.loaded.len() >= self.most {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let next = Self::first_missing(&state, order.len(), orders)?.unwrap_or(wanted);
            state.loading = true;
            let rows = state.rows.take();
            drop(state);
            let order = orders(next.0);
            let load = AssertUnwindSafe(|| self.load(blocks_of(&order)?, next, order.len(), rows));
            let loaded = catch_unwind(load).unwrap_or_else(|panic| Err(panicked(&*panic)));
            state = self.lock();
            state.loading = false;
            self.changed.notify_all();
            let (window, rows) = loaded?;
            state.rows = rows;
            state.loaded.insert(next, Arc::new(window));
        }
    }

    /// The first window that a batch in the making needs, or that lies between two such, and that is not in memory. Whoever is
    /// furthest behind comes first, and windows come in the order of the source.
    fn first_missing(
        state: &State,
        len: u64,
        orders: &dyn Fn(u64) -> Arc<Order>,
    ) -> Result<Option<(u64, u64)>> {
        let mut last = None;
        for time in state.active.keys() {
            let (epoch, position) = (time / len.max(1), time % len.max(1));
            let window = blocks_of(&orders(epoch))?.window_of(position);
            let from = match last {
                Some((before, number)) if before == epoch => number + 1,
                _ => window,
            };
            let missing = (from..=window).find(|number| !state.loaded.contains_key(&(epoch, *number)));
            if let Some(number) = missing {
                return Ok(Some((epoch, number)));
            }
            last = Some((epoch, window));
        }
        Ok(None)
    }

    fn load(
        &self,
        blocks: &Blocks,
        (epoch, number): (u64, u64),
        len: u64,
        rows: Option<OpenRows>,
    ) -> Result<(Window, Option<OpenRows>)> {
        let positions = blocks.window(number);
        let each = self.row.0 + self.row.1;
        let size =
            usize::try_from(positions.end - positions.start).unwrap_or(usize::MAX).saturating_mul(each);
        let mut bytes = vec![0; size].into_boxed_slice();
        let mut slots = bytes.chunks_exact_mut(each.max(1));
        let mut rows = rows.filter(|rows| rows.epoch == epoch);
        for (slot, count) in blocks.slots(number) {
            let first = blocks.block_at(slot) * blocks.block();
            let mut open = match rows.take() {
                Some(rows) if blocks.is_forward() && rows.at == first => rows,
                _ => self.open(blocks, epoch, first)?,
            };
            for target in slots.by_ref().take(usize::try_from(count).unwrap_or(usize::MAX)) {
                let (input, output) = target.split_at_mut(self.row.0);
                self.next(&mut open, input, output)?;
            }
            let ends = !blocks.is_forward() || open.at == len;
            if ends {
                self.check_end(&mut open)?;
            } else {
                rows = Some(open);
            }
        }
        let end = epoch.saturating_mul(len).saturating_add(positions.end);
        Ok((Window { bytes, row: self.row, end }, rows))
    }

    /// Opens the source where identity `first` comes next.
    fn open(&self, blocks: &Blocks, epoch: u64, first: u64) -> Result<OpenRows> {
        let (block, at) = match blocks.is_forward() {
            true => (0, 0),
            false => (first / blocks.block(), first),
        };
        let rows = (self.source.open)(block).map_err(|source| self.failed(epoch, at, source))?;
        let mut open = OpenRows { epoch, at, rows };
        let (mut input, mut output) = (vec![0; self.row.0], vec![0; self.row.1]);
        while open.at < first {
            self.next(&mut open, &mut input, &mut output)?;
        }
        Ok(open)
    }

    fn next(&self, open: &mut OpenRows, input: &mut [u8], output: &mut [u8]) -> Result<()> {
        match open.rows.next_into(input, output) {
            Some(Ok(())) => open.at += 1,
            Some(Err(source)) => return Err(self.failed(open.epoch, open.at, source)),
            None => {
                let what = "identities of a source that only reads forward";
                return Err(Error::mismatch(what, format!("more than {}", open.at), "its end"));
            }
        }
        Ok(())
    }

    /// What goes on after its end is as wrong as what ends early.
    fn check_end(&self, open: &mut OpenRows) -> Result<()> {
        let (mut input, mut output) = (vec![0; self.row.0], vec![0; self.row.1]);
        if open.rows.next_into(&mut input, &mut output).is_none() {
            return Ok(());
        }
        let what = "identities of a source that only reads forward";
        Err(Error::mismatch(what, format!("the end after {}", open.at), "more"))
    }

    fn failed(&self, epoch: u64, index: u64, source: Cause) -> Error {
        Error::Read { identity: format!("number {index}"), index, epoch, position: index, source }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn blocks_of(order: &Order) -> Result<&Blocks> {
    let reason = "a source that only reads forward takes Shuffle::Blocks or Shuffle::Window";
    order.blocks().ok_or_else(|| Error::setting("shuffle", "None or Full", reason))
}
