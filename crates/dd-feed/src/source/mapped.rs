//! [`MappedRows`]: rows of one size, one after the other in a mapped file: plain records, a `.npy` array, a tensor of a safetensors file.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use dd_core::error::Cause;
use dd_core::{DType, TensorDesc};
use memmap2::Mmap;

use super::{map, npy, tensors};
use crate::error::{Error, Result};
use crate::stream::{Samples, Stream};

/// Rows of a mapped file. Row `i` is identity `i`.
pub struct MappedRows {
    path: PathBuf,
    map: Mmap,
    start: usize,
    row: usize,
    len: u64,
    desc: TensorDesc,
}

/// Where rows lie in a file, as its header says.
pub(super) struct Rows {
    /// Where the first begins.
    pub(super) start: usize,
    /// The whole array's shape: the rows' number first.
    pub(super) shape: Vec<usize>,
    /// Its type.
    pub(super) dtype: DType,
}

impl MappedRows {
    /// A file of records of this description after `header` bytes: as many as there are.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::File`] for an empty file or one that ends within a record; [`Error::Setting`] for records of no bytes.
    pub fn records(path: impl AsRef<Path>, desc: TensorDesc, header: u64) -> Result<Self> {
        let path = path.as_ref();
        let map = map::map(path)?;
        let row = desc.len_in_memory()?;
        let start = usize::try_from(header).unwrap_or(usize::MAX);
        let body = map.len().checked_sub(start);
        let body = body.ok_or_else(|| {
            Error::file(path, format!("{} B, less than its header of {header} B", map.len()))
        })?;
        if row == 0 {
            return Err(Error::setting("desc", &desc, "a record of no bytes; expected at least one element"));
        }
        if body % row != 0 {
            let reason = format!("{body} B of records are no whole number of {row} B ({desc})");
            return Err(Error::file(path, reason));
        }
        let len = (body / row) as u64;
        Ok(Self { path: path.to_owned(), map, start, row, len, desc })
    }

    /// A NumPy array, by its outermost dimension. The file must hold little-endian numbers in C order
    /// ([format](https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html), versions 1 to 3).
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::File`] for anything else than such an array, and for one that is shorter than its header says.
    pub fn npy(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let map = map::map(path)?;
        let rows = npy::read_header(&map).map_err(|reason| Error::file(path, reason))?;
        Self::of(path, map, rows)
    }

    /// A tensor of a safetensors file, by its outermost dimension.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::File`] for a damaged file, for a tensor that is not there, and for a type of less than a byte.
    pub fn safetensors(path: impl AsRef<Path>, name: &str) -> Result<Self> {
        let path = path.as_ref();
        let map = map::map(path)?;
        let rows = tensors::find(&map, name).map_err(|reason| Error::file(path, reason))?;
        Self::of(path, map, rows)
    }

    /// The path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn of(path: &Path, map: Mmap, rows: Rows) -> Result<Self> {
        let bad = |reason: String| Error::file(path, reason);
        let Some((count, shape)) = rows.shape.split_first() else {
            return Err(bad("a single number; expected at least one dimension, the samples".to_owned()));
        };
        let desc = TensorDesc::new(shape, rows.dtype)?;
        let row = desc.len_in_memory()?;
        if row == 0 {
            return Err(bad(format!("rows of no bytes: shape {:?}", rows.shape)));
        }
        let end = row.checked_mul(*count).and_then(|body| body.checked_add(rows.start));
        if end.is_none_or(|end| end > map.len()) {
            return Err(bad(format!(
                "{count} rows of {row} B from byte {} on do not fit its {} B; it was cut short",
                rows.start,
                map.len()
            )));
        }
        Ok(Self { path: path.to_owned(), start: rows.start, row, len: *count as u64, desc, map })
    }

    fn row(&self, index: u64) -> Option<&[u8]> {
        if index >= self.len {
            return None;
        }
        let start = usize::try_from(index).ok()?.checked_mul(self.row)?.checked_add(self.start)?;
        self.map.get(start..start.checked_add(self.row)?)
    }
}

impl Stream for MappedRows {
    fn len(&self) -> u64 {
        self.len
    }

    fn desc(&self) -> &TensorDesc {
        &self.desc
    }

    fn identity(&self, index: u64) -> Cow<'_, str> {
        format!("{}[{index}]", self.path.display()).into()
    }

    fn borrow(&self, index: u64) -> Option<&[u8]> {
        self.row(index)
    }

    /// Every sample of the identity is the row.
    fn read(&self, index: u64, samples: &mut Samples<'_>) -> Result<(), Cause> {
        let row = self.row(index).ok_or_else(|| format!("row {index} of {}", self.len))?;
        (0..samples.expected()).try_for_each(|_| samples.push(row))
    }
}
