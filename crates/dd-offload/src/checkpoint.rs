//! Safetensors checkpoints, sharded or not: headers read and checked, weights not touched.
//!
//! A [`Checkpoint`] is a map from a tensor's name to a place: which [`Shard`], which bytes. Opening reads the headers
//! only, so that ten gigabytes open as fast as ten megabytes. Every file is hostile until checked: what is said here
//! about an offset was compared with the file's length before anything was allocated or believed.
//!
//! The files stay open. A file that is *replaced* (a new one renamed over it) keeps its old content behind the open
//! descriptor, so that a running model is not disturbed by a download beside it. A file that is changed *in place* or
//! cut short is found by [`Shard::verify`] and by the reads themselves.
//!
//! Format: <https://github.com/huggingface/safetensors#format>.

mod header;
mod layout;
mod shard;
mod similar;

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::{Path, PathBuf};

use dd_core::{Bytes, TensorDesc};

pub use header::MAX_HEADER;
pub use shard::{Identity, Shard, ShardId};

use crate::error::{Error, Result};
use layout::Layout;

/// Where a tensor's bytes are, and what they mean: dense, row-major, little-endian.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorLocation {
    /// The file.
    pub shard: ShardId,
    /// The first byte, counted from the start of the file.
    pub offset: u64,
    /// How many bytes: always as many as `desc` says, and always within the file as it was when opened.
    pub len: u64,
    /// The shape and dtype.
    pub desc: TensorDesc,
}

/// The tensors of one model, in one file or several.
///
/// ```
/// use dd_offload::checkpoint::Checkpoint;
///
/// let error = Checkpoint::open("no/such/model").unwrap_err();
/// assert!(error.to_string().contains("no/such/model"));
/// ```
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    shards: Vec<Shard>,
    entries: Vec<(String, TensorLocation)>, // In file order.
    by_name: BTreeMap<String, usize>,
}

impl Checkpoint {
    /// Opens a `.safetensors` file, a `*.safetensors.index.json`, or a directory in Hugging Face layout: with
    /// `model.safetensors`, with `model.safetensors.index.json` and its shards, or with exactly one `*.safetensors`.
    ///
    /// # Errors
    /// [`Error::Io`] where a file or directory cannot be read; [`Error::InvalidCheckpoint`], [`Error::Truncated`] and
    /// [`Error::BadOffsets`] where a file is not what it claims to be; [`Error::MissingShard`] and
    /// [`Error::MissingTensor`] where an index names what is not there.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let layout = Layout::find(path)?;
        let mut shards = Vec::with_capacity(layout.files.len());
        for file in &layout.files {
            shards.push(Shard::open(file).map_err(|error| layout.missing_shard(error, file))?);
        }
        let checkpoint = Self::from_shards(path.to_owned(), shards)?;
        layout.check_promises(&checkpoint)?;
        Ok(checkpoint)
    }

    /// Opens these files as the shards of one model, in this order, without an index.
    ///
    /// # Errors
    /// As [`open`](Self::open); [`Error::InvalidConfig`] where the list is empty.
    pub fn from_files(files: &[PathBuf]) -> Result<Self> {
        let Some(first) = files.first() else {
            let reason = "the list is empty; name at least one .safetensors file".to_owned();
            return Err(Error::InvalidConfig { option: "files", reason });
        };
        let shards = files.iter().map(|file| Shard::open(file)).collect::<Result<Vec<_>>>()?;
        let folder = first.parent().filter(|folder| !folder.as_os_str().is_empty());
        let path = if files.len() == 1 { first.as_path() } else { folder.unwrap_or(Path::new(".")) };
        Self::from_shards(path.to_owned(), shards)
    }

    fn from_shards(path: PathBuf, shards: Vec<Shard>) -> Result<Self> {
        let mut entries = Vec::new();
        for (id, shard) in shards.iter().enumerate() {
            entries.extend(header::read(shard, ShardId(id))?);
        }
        let mut by_name = BTreeMap::new();
        for (index, (name, location)) in entries.iter().enumerate() {
            if let Some(first) = by_name.insert(name.clone(), index) {
                return Err(duplicate(name, entries.get(first), location, &shards));
            }
        }
        Ok(Self { path, shards, entries, by_name })
    }

    /// What was opened.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The files, in the order of their [`ShardId`]s.
    #[must_use]
    pub fn shards(&self) -> &[Shard] {
        &self.shards
    }

    /// One of the files.
    #[must_use]
    pub fn shard(&self, id: ShardId) -> Option<&Shard> {
        self.shards.get(id.0)
    }

    /// Where a tensor is.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], with a name that is much alike where there is one.
    pub fn tensor(&self, name: &str) -> Result<&TensorLocation> {
        self.get(name).ok_or_else(|| Error::MissingTensor {
            path: self.path.clone(),
            tensor: name.to_owned(),
            similar: similar::similar(name, self.names()).map(str::to_owned),
        })
    }

    /// Where a tensor is, if there is one of that name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&TensorLocation> {
        let (_, location) = self.entries.get(*self.by_name.get(name)?)?;
        Some(location)
    }

    /// Whether there is a tensor of that name.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    /// How many tensors there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no tensor at all: an empty checkpoint is a valid one.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// All tensors in file order: by shard, then by offset.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = (&str, &TensorLocation)> {
        self.entries.iter().map(|(name, location)| (name.as_str(), location))
    }

    /// All names, in file order.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.entries.iter().map(|(name, _)| name.as_str())
    }

    /// The tensors whose names start with these characters, in file order. A module's tensors are those of its name
    /// and a dot: `layer.1` alone starts `layer.10` too.
    pub fn with_prefix(&self, prefix: &str) -> impl Iterator<Item = (&str, &TensorLocation)> {
        let from = (Bound::Included(prefix), Bound::Unbounded);
        let named = self.by_name.range::<str, _>(from).take_while(|(name, _)| name.starts_with(prefix));
        let mut indices: Vec<usize> = named.map(|(_, index)| *index).collect();
        indices.sort_unstable();
        let found = indices.into_iter().filter_map(|index| self.entries.get(index));
        found.map(|(name, location)| (name.as_str(), location))
    }

    /// The bytes of all tensors together, headers not counted.
    #[must_use]
    pub fn total_bytes(&self) -> Bytes {
        // Each length lies within its file, so that a sum of them stays far from 64 bits.
        self.entries.iter().map(|(_, location)| Bytes(location.len)).sum()
    }

    /// Reads a whole tensor into `out`, through the page cache.
    ///
    /// # Errors
    /// [`Error::MissingTensor`]; [`Error::Core`] with a mismatch where `out` has another length; as
    /// [`Shard::read_exact_at`].
    pub fn read_into(&self, name: &str, out: &mut [u8]) -> Result<()> {
        let location = self.tensor(name)?;
        location.desc.check_len(out.len(), name)?;
        match self.shard(location.shard) {
            Some(shard) => shard.read_exact_at(location.offset, out, name),
            None => Ok(()), // Every location was made from one of the shards.
        }
    }

    /// Checks that no file was changed since it was opened.
    ///
    /// # Errors
    /// As [`Shard::verify`].
    pub fn verify(&self) -> Result<()> {
        self.shards.iter().try_for_each(Shard::verify)
    }
}

/// A name that occurs twice, in one file or in two.
fn duplicate(
    name: &str,
    first: Option<&(String, TensorLocation)>,
    second: &TensorLocation,
    shards: &[Shard],
) -> Error {
    let path_of = |id: ShardId| shards.get(id.0).map(|shard| shard.path().to_owned()).unwrap_or_default();
    let other = first.map(|(_, location)| location.shard).filter(|id| *id != second.shard);
    let reason = match other.map(path_of) {
        Some(other) => format!("tensor {name:?} is in {} too", other.display()),
        None => format!("tensor {name:?} is in it twice"),
    };
    Error::InvalidCheckpoint { path: path_of(second.shard), reason }
}
