//! [`TileStore`]: who keeps finished windows, as bytes.
//!
//! What is stored is the *output of one window*, written once: never a chunk of blended values. Blending happens when a
//! region is read, in window order, from whole windows. So a store needs no locks between writers, the order of writing
//! cannot change a result, and a window that was half written when the program ended is simply not there: it is computed
//! again and can never be counted twice.
//!
//! Every window of a tensor has the same shape and dtype, which its [`Manifest`] says, the ones at the edge of a finite
//! dimension too: they are padded with zero bytes at the end of each dimension. The manifest is written before the first
//! window and never changed.
//!
//! For implementers: all methods may be called by several threads at once, also for the same window. `put` makes a window
//! visible at once and whole, or not at all. Indices may be negative, up to the whole of `i64`. Ids are any non-empty text
//! of at most [`MAX_ID`] bytes: escape what the medium cannot name. Nothing may be allocated from a length that was read
//! and not checked.

use std::collections::BTreeMap;

use dd_core::{Budget, Bytes, Holder, Reservation, TensorDesc, Tier};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::primitive::{Mutex, lock};

/// The longest id, in bytes.
pub const MAX_ID: usize = 512;

/// What a store knows about a tensor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Shape and dtype of every stored window.
    pub window: TensorDesc,
    /// How many coordinates a window's index has.
    pub index_rank: usize,
    /// The rest of the configuration: each field's name and its value as JSON, user-given version included.
    pub fields: BTreeMap<String, serde_json::Value>,
}

impl Manifest {
    /// Checks that what is stored is what is asked for.
    ///
    /// # Errors
    /// [`Error::Conflict`] naming the first field that differs.
    pub fn check_same(&self, asked: &Self, tensor: &str) -> Result<()> {
        let (stored, asked) = (self.rows(), asked.rows());
        let names = stored.keys().chain(asked.keys());
        for name in names {
            let (a, b) = (stored.get(name), asked.get(name));
            if a != b {
                let text =
                    |v: Option<&serde_json::Value>| v.map_or("nothing".to_owned(), ToString::to_string);
                return Err(Error::Conflict {
                    tensor: tensor.to_owned(),
                    field: name.clone(),
                    stored: text(a),
                    asked: text(b),
                });
            }
        }
        Ok(())
    }

    fn rows(&self) -> BTreeMap<String, serde_json::Value> {
        let mut rows = self.fields.clone();
        rows.insert("window_shape".to_owned(), self.window.shape().into());
        rows.insert("dtype".to_owned(), self.window.dtype().as_str().into());
        rows.insert("index_rank".to_owned(), self.index_rank.into());
        rows
    }
}

/// Keeps finished windows by tensor id and window index. Object safe; bytes only. See the [module](self).
pub trait TileStore: Send + Sync {
    /// A name for messages: a path, an address.
    fn place(&self) -> String;

    /// Where the bytes rest.
    fn tier(&self) -> Tier;

    /// Host memory that one `put` or `get` of such a window takes beyond the buffer that it is given, at most: for
    /// compression, checksums, framing. Whoever calls has reserved it.
    fn scratch(&self, window: &TensorDesc) -> Bytes;

    /// The manifest of a tensor; nothing where there is no such tensor.
    ///
    /// # Errors
    /// [`Error::Corrupt`]; what the medium says.
    fn manifest(&self, tensor: &str) -> Result<Option<Manifest>>;

    /// Adds a tensor. Where there is one of this id already, nothing changes and its manifest comes back; of several that
    /// create at once, one wins.
    ///
    /// # Errors
    /// [`Error::Full`], [`Error::Corrupt`]; what the medium says.
    fn create(&self, tensor: &str, manifest: &Manifest) -> Result<Option<Manifest>>;

    /// The ids of all tensors, in order.
    ///
    /// # Errors
    /// What the medium says.
    fn tensors(&self) -> Result<Vec<String>>;

    /// Calls `visit` with the index of each stored window, in any order, until it says `false`.
    ///
    /// # Errors
    /// What the medium says; nothing is visited for a tensor that is not there.
    fn for_each_window(&self, tensor: &str, visit: &mut dyn FnMut(&[i64]) -> bool) -> Result<()>;

    /// Whether a window is stored whole.
    ///
    /// # Errors
    /// What the medium says.
    fn contains(&self, tensor: &str, index: &[i64]) -> Result<bool>;

    /// Stores a window. A window that is there already stays as it is: the bytes are the same by contract, since a
    /// window's value depends on its tensor's configuration and its index alone.
    ///
    /// # Errors
    /// [`Error::Buffer`] where `bytes` is not as long as the manifest says; [`Error::Full`]; what the medium says. The
    /// window is then not there, and every other is as it was.
    fn put(&self, tensor: &str, index: &[i64], bytes: &[u8]) -> Result<()>;

    /// Reads a window; says `false`, leaving `out` in any state, where it is not there.
    ///
    /// # Errors
    /// [`Error::Buffer`] where `out` is not as long as the manifest says; [`Error::Corrupt`] where the bytes are not
    /// those that were put; what the medium says.
    fn get(&self, tensor: &str, index: &[i64], out: &mut [u8]) -> Result<bool>;

    /// Forgets a window; says whether there was one.
    ///
    /// # Errors
    /// What the medium says.
    fn remove(&self, tensor: &str, index: &[i64]) -> Result<bool>;

    /// Forgets a tensor, its windows and its manifest; says whether there was one.
    ///
    /// # Errors
    /// What the medium says.
    fn remove_tensor(&self, tensor: &str) -> Result<bool>;

    /// Returns when all windows put so far would outlive the end of the machine's power. (They outlive the end of the
    /// program from `put` on.)
    ///
    /// # Errors
    /// What the medium says.
    fn sync(&self) -> Result<()>;
}

/// Checks an id before it names anything.
///
/// # Errors
/// [`Error::Spec`] for an empty id or one longer than [`MAX_ID`].
pub fn check_id(tensor: &str) -> Result<()> {
    if !tensor.is_empty() && tensor.len() <= MAX_ID {
        return Ok(());
    }
    let reason = format!("{} bytes long; expected 1 to {MAX_ID}", tensor.len());
    Err(Error::Spec { tensor: tensor.chars().take(64).collect(), field: "id", reason })
}

/// Checks a buffer against a window.
///
/// # Errors
/// [`Error::Buffer`] with both lengths.
pub fn check_window_len(window: &TensorDesc, tensor: &str, index: &[i64], len: usize) -> Result<()> {
    if window.bytes() == Bytes::of(len) {
        return Ok(());
    }
    let what = format!("window {index:?} of tensor {tensor:?}");
    Err(Error::Buffer { what, expected: window.bytes().0, found: Bytes::of(len).0 })
}

/// The reference store: host memory, within a budget of its own.
#[derive(Debug)]
pub struct MemoryTileStore {
    budget: Budget,
    holder: Holder,
    tensors: Mutex<BTreeMap<String, Kept>>,
}

#[derive(Debug)]
struct Kept {
    manifest: Manifest,
    windows: BTreeMap<Vec<i64>, (Box<[u8]>, Reservation)>,
}

impl MemoryTileStore {
    /// A store whose windows are reserved from this budget.
    #[must_use]
    pub fn new(budget: Budget) -> Self {
        Self { budget, holder: Holder::new("memory tile store"), tensors: Mutex::default() }
    }

    fn absent(&self, operation: &'static str, tensor: &str) -> Error {
        Error::store(operation, tensor, &self.place(), "there is no such tensor; create it first")
    }
}

impl TileStore for MemoryTileStore {
    fn place(&self) -> String {
        format!("the memory tile store in {}", self.budget.name())
    }

    fn tier(&self) -> Tier {
        Tier::Host
    }

    fn scratch(&self, _window: &TensorDesc) -> Bytes {
        Bytes::ZERO
    }

    fn manifest(&self, tensor: &str) -> Result<Option<Manifest>> {
        Ok(lock(&self.tensors).get(tensor).map(|kept| kept.manifest.clone()))
    }

    fn create(&self, tensor: &str, manifest: &Manifest) -> Result<Option<Manifest>> {
        check_id(tensor)?;
        let mut tensors = lock(&self.tensors);
        if let Some(kept) = tensors.get(tensor) {
            return Ok(Some(kept.manifest.clone()));
        }
        tensors.insert(tensor.to_owned(), Kept { manifest: manifest.clone(), windows: BTreeMap::new() });
        Ok(None)
    }

    fn tensors(&self) -> Result<Vec<String>> {
        Ok(lock(&self.tensors).keys().cloned().collect())
    }

    fn for_each_window(&self, tensor: &str, visit: &mut dyn FnMut(&[i64]) -> bool) -> Result<()> {
        let indices: Vec<Vec<i64>> = {
            let tensors = lock(&self.tensors);
            tensors.get(tensor).map(|kept| kept.windows.keys().cloned().collect()).unwrap_or_default()
        };
        let _all = indices.iter().all(|index| visit(index));
        Ok(())
    }

    fn contains(&self, tensor: &str, index: &[i64]) -> Result<bool> {
        Ok(lock(&self.tensors).get(tensor).is_some_and(|kept| kept.windows.contains_key(index)))
    }

    fn put(&self, tensor: &str, index: &[i64], bytes: &[u8]) -> Result<()> {
        // Reserved before the lock is taken: a reclaimer may need this store.
        let reserved = self.budget.reserve(Bytes::of(bytes.len()), &self.holder);
        let mut tensors = lock(&self.tensors);
        let kept = tensors.get_mut(tensor).ok_or_else(|| self.absent("put a window of", tensor))?;
        check_window_len(&kept.manifest.window, tensor, index, bytes.len())?;
        if kept.windows.contains_key(index) {
            return Ok(());
        }
        let reservation = reserved.map_err(|source| Error::Full {
            tensor: tensor.to_owned(),
            place: self.place(),
            needed: Bytes::of(bytes.len()),
            source: std::sync::Arc::new(source),
        })?;
        kept.windows.insert(index.to_vec(), (bytes.into(), reservation));
        Ok(())
    }

    fn get(&self, tensor: &str, index: &[i64], out: &mut [u8]) -> Result<bool> {
        let tensors = lock(&self.tensors);
        let Some(kept) = tensors.get(tensor) else { return Ok(false) };
        check_window_len(&kept.manifest.window, tensor, index, out.len())?;
        let Some((bytes, _)) = kept.windows.get(index) else { return Ok(false) };
        out.copy_from_slice(bytes);
        Ok(true)
    }

    fn remove(&self, tensor: &str, index: &[i64]) -> Result<bool> {
        let removed = lock(&self.tensors).get_mut(tensor).and_then(|kept| kept.windows.remove(index));
        Ok(removed.is_some())
    }

    fn remove_tensor(&self, tensor: &str) -> Result<bool> {
        let removed = lock(&self.tensors).remove(tensor);
        Ok(removed.is_some())
    }

    fn sync(&self) -> Result<()> {
        Ok(())
    }
}
