//! [`RowTable`]: a matrix of which only some rows are needed at a time, as an embedding table.
//!
//! Such a table may be larger than the whole budget and is hardly ever needed as a whole: a pass reads the rows of its
//! tokens. They are read from the user's file when they are asked for, each distinct row once, rows that follow each
//! other in one read. What a table takes, besides its results, is one buffer for such a run of rows, reserved when the
//! table is wrapped.

use std::sync::{Arc, Mutex, PoisonError};

use dd_core::{Backend, Bytes, Holder, Reservation, TensorDesc};

use super::loader::shard_of;
use super::{Inner, MemoryManager, Owner};
use crate::checkpoint::{Checkpoint, TensorLocation};
use crate::error::{Error, Result};
use crate::io::advise_random;

/// The most that is read at once, unless a single row is longer.
const RUN: usize = 64 << 10;

/// A matrix `[rows, columns]` in a file, read by rows.
pub struct RowTable<B: Backend> {
    inner: Arc<Inner<B>>,
    _owner: Arc<Owner<B>>,
    checkpoint: Arc<Checkpoint>,
    location: TensorLocation,
    name: String,
    rows: usize,
    row_bytes: usize,
    buffer: Mutex<Vec<u8>>,
    _room: Reservation,
}

impl<B: Backend> MemoryManager<B> {
    /// A table whose rows are read when they are asked for.
    ///
    /// # Errors
    /// [`Error::MissingTensor`]; [`dd_core::Error::Mismatch`] where the tensor is no matrix of whole bytes;
    /// [`dd_core::Error::OutOfMemory`] where not even the buffer fits.
    pub fn wrap_rows(&self, checkpoint: &Arc<Checkpoint>, tensor: &str) -> Result<RowTable<B>> {
        let location = checkpoint.tensor(tensor)?.clone();
        let desc = &location.desc;
        let ([rows, columns], Some(_)) = (desc.shape(), desc.dtype().element_bytes()) else {
            let expected = "a matrix [rows, columns] with elements of whole bytes".to_owned();
            return Err(dd_core::Error::Mismatch {
                context: tensor.to_owned(),
                expected,
                found: desc.to_string(),
            }
            .into());
        };
        let row_bytes = TensorDesc::new([*columns], desc.dtype())?.len_in_memory()?;
        let room = Bytes::of(row_bytes.max(RUN.min(rows.saturating_mul(row_bytes))));
        let room = self.inner.budget.reserve(room, &Holder::new("embedding rows"))?;
        advise_random(shard_of(checkpoint, &location)?.file());
        Ok(RowTable {
            buffer: Mutex::default(),
            _room: room,
            inner: Arc::clone(&self.inner),
            _owner: Arc::clone(&self.owner),
            checkpoint: Arc::clone(checkpoint),
            rows: *rows,
            row_bytes,
            name: tensor.to_owned(),
            location,
        })
    }
}

impl<B: Backend> RowTable<B> {
    /// Shape and dtype of the whole table.
    #[must_use]
    pub const fn desc(&self) -> &TensorDesc {
        &self.location.desc
    }

    /// The rows of these numbers, in this order: `[ids, columns]`. The result is the caller's to account for, as part
    /// of the activations.
    ///
    /// # Errors
    /// [`dd_core::Error::InvalidArgument`] for a row that is not there; [`Error::Truncated`] and
    /// [`Error::FileChanged`]; [`dd_core::Error::OutOfMemory`].
    pub fn gather(&self, ids: &[u32]) -> Result<B::Tensor> {
        let columns = self.location.desc.shape().get(1).copied().unwrap_or(0);
        let desc = TensorDesc::new([ids.len(), columns], self.location.desc.dtype())?;
        let mut wanted = self.sorted(ids)?;
        let mut out = self.inner.backend.allocate(&desc, self.inner.near)?;
        let run_rows = (RUN / self.row_bytes.max(1)).max(1);
        let mut buffer = self.buffer.lock().unwrap_or_else(PoisonError::into_inner);
        let mut read = Bytes::ZERO;
        while let Some((first, _)) = wanted.first().copied() {
            let last = run_end(&wanted, first, run_rows);
            let (now, later) = wanted.split_at(wanted.partition_point(|(row, _)| *row <= last));
            read += self.read_run(first, last, &mut buffer)?;
            for (row, place) in now {
                let source = (row - first) * self.row_bytes;
                let values = buffer.get(source..source + self.row_bytes).unwrap_or_default();
                self.inner.backend.write(&mut out, place * self.row_bytes, values)?;
            }
            wanted = later.to_vec();
        }
        shard_of(&self.checkpoint, &self.location)?.verify()?;
        self.inner.lock().stats.read += read;
        Ok(out)
    }

    /// The wanted rows with their places in the result, by row.
    fn sorted(&self, ids: &[u32]) -> Result<Vec<(usize, usize)>> {
        let check = |(place, id): (usize, &u32)| {
            let row = usize::try_from(*id).ok().filter(|row| *row < self.rows);
            let outside = || format!("row {id} of {:?}, which has {}", self.name, self.rows);
            row.map(|row| (row, place))
                .ok_or_else(|| dd_core::Error::InvalidArgument { argument: "row", reason: outside() })
        };
        let mut wanted: Vec<_> = ids.iter().enumerate().map(check).collect::<dd_core::Result<_>>()?;
        wanted.sort_unstable();
        Ok(wanted)
    }

    fn read_run(&self, first: usize, last: usize, buffer: &mut Vec<u8>) -> Result<Bytes> {
        buffer.resize((last - first + 1) * self.row_bytes, 0);
        let overflow =
            || Error::from(dd_core::Error::SizeOverflow { what: format!("row {first} of {:?}", self.name) });
        let start = u64::try_from(first * self.row_bytes).map_err(|_| overflow())?;
        let offset = self.location.offset.checked_add(start).ok_or_else(overflow)?;
        shard_of(&self.checkpoint, &self.location)?.read_exact_at(offset, buffer, &self.name)?;
        Ok(Bytes::of(buffer.len()))
    }
}

/// The last row of the run that begins at `first`: rows that are wanted and follow each other.
fn run_end(wanted: &[(usize, usize)], first: usize, most: usize) -> usize {
    let mut last = first;
    for (row, _) in wanted {
        if *row > last + 1 || *row - first >= most {
            break;
        }
        last = *row;
    }
    last
}
