//! [`ZarrTileStore`]: the tile store over a folder or an object store.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use dd_core::{Bytes, TensorDesc, Tier};

use super::chunk::{self, ChunkCodec};
use super::directory::Directory;
use super::layout::{self, DESCRIPTION, FAR, Part};
use super::medium::Medium;
use super::meta::{self, Description};
use super::options::ZarrOptions;
use crate::error::{Error, Result};
use crate::primitive::{Mutex, lock};
use crate::store::{Manifest, TileStore, check_id, check_window_len};

/// The longest `zarr.json` that is read.
const LONGEST_DESCRIPTION: u64 = 16 << 20;

/// Windows in the format Zarr v3. See the [module](super).
pub struct ZarrTileStore {
    pub(super) medium: Box<dyn Medium>,
    options: ZarrOptions,
    opened: Mutex<BTreeMap<String, Arc<Opened>>>,
    /// Held for reading while windows are written, for writing while a tensor is made or removed.
    shape: RwLock<()>,
}

impl std::fmt::Debug for ZarrTileStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let place = self.medium.place();
        f.debug_struct("ZarrTileStore")
            .field("place", &place)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

/// A tensor whose description was read.
pub(super) struct Opened {
    pub(super) description: Description,
    pub(super) folder: String,
    pub(super) codec: ChunkCodec,
}

impl ZarrTileStore {
    /// The store in a folder, which is made where it is not there.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for a folder that holds something else; [`Error::Store`] for options out of range and for what the
    /// system says; [`Error::Full`].
    pub fn open(path: impl AsRef<Path>, options: ZarrOptions) -> Result<Self> {
        let path = path.as_ref();
        let failed = |error| failed("open", "", &path.display().to_string(), Bytes::ZERO, error);
        let directory = Directory::open(path, options.flush).map_err(failed)?;
        let fresh = directory.is_empty().map_err(failed)?;
        Self::over(Box::new(directory), options, fresh)
    }

    /// The store in a folder that is there already: nothing is made.
    ///
    /// # Errors
    /// As [`open`](Self::open); [`Error::Store`] where there is none.
    pub fn open_existing(path: impl AsRef<Path>, options: ZarrOptions) -> Result<Self> {
        let path = path.as_ref();
        if path.join(DESCRIPTION).is_file() {
            return Self::open(path, options);
        }
        let reason = format!("there is no tile store: it lacks {DESCRIPTION}");
        Err(Error::store("open", "", &path.display().to_string(), reason))
    }

    /// The store over a medium, whose description is written where it is `fresh`.
    pub(super) fn over(medium: Box<dyn Medium>, options: ZarrOptions, fresh: bool) -> Result<Self> {
        let place = medium.place();
        if !(1..=9).contains(&options.level) {
            let reason = format!("level {} of zstd is not offered; give 1 to 9", options.level);
            return Err(Error::store("open", "", &place, reason));
        }
        let failed = |error| failed("open", "", &place, Bytes::ZERO, error);
        if fresh {
            medium.write(DESCRIPTION, meta::group().to_string().into_bytes(), false).map_err(failed)?;
        }
        let foreign = |reason| Error::Corrupt {
            tensor: String::new(),
            index: Vec::new(),
            place: place.clone(),
            reason: format!("{reason}; name an empty or a new folder for a store"),
        };
        match medium.read(DESCRIPTION, LONGEST_DESCRIPTION).map_err(failed)? {
            None => return Err(foreign(format!("it is not empty and lacks {DESCRIPTION}"))),
            Some(text) => meta::check_group(&text).map_err(foreign)?,
        }
        Ok(Self { medium, options, opened: Mutex::default(), shape: RwLock::default() })
    }

    /// A tensor that is there.
    pub(super) fn opened(&self, tensor: &str) -> Result<Option<Arc<Opened>>> {
        check_id(tensor)?;
        let mut all = lock(&self.opened); // Kept meanwhile: a tensor that is being removed is not read.
        if let Some(opened) = all.get(tensor) {
            return Ok(Some(Arc::clone(opened)));
        }
        let folder = layout::folder(tensor);
        let Some(description) = self.describe(&folder, tensor)? else { return Ok(None) };
        if description.id != tensor {
            let reason = format!("its folder {folder} holds tensor {:?}", description.id);
            return Err(self.corrupt(tensor, reason));
        }
        let opened = Arc::new(self.ready(description, folder)?);
        all.insert(tensor.to_owned(), Arc::clone(&opened));
        Ok(Some(opened))
    }

    fn ready(&self, description: Description, folder: String) -> Result<Opened> {
        let codec = ChunkCodec::new(&description, self.options.level);
        let codec = codec.map_err(|reason| self.corrupt(&description.id, reason))?;
        Ok(Opened { description, folder, codec })
    }

    fn describe(&self, folder: &str, tensor: &str) -> Result<Option<Description>> {
        let name = format!("{folder}/{DESCRIPTION}");
        let text = match self.medium.read(&name, LONGEST_DESCRIPTION) {
            Err(error) if error.kind() == ErrorKind::InvalidData => {
                return Err(self.corrupt(tensor, error.to_string()));
            }
            other => other.map_err(|error| self.failed("read the description of", tensor, error))?,
        };
        let description = text.map(|text| Description::from_json(&text, Part::Near)).transpose();
        description.map_err(|reason| self.corrupt(tensor, format!("{name}: {reason}")))
    }

    fn existing(&self, operation: &'static str, tensor: &str) -> Result<Arc<Opened>> {
        self.opened(tensor)?.ok_or_else(|| {
            Error::store(operation, tensor, &self.place(), "there is no such tensor; create it first")
        })
    }

    /// Removes every chunk of a tensor, and its arrays' descriptions, the one that makes it a tensor last: ended half-way,
    /// it is a tensor with fewer windows.
    fn clear(&self, folder: &str, index_rank: usize, window_rank: usize) -> io::Result<bool> {
        for part in [Part::Far, Part::Near] {
            let folder = part.folder(folder);
            for (name, _, _) in self.chunks(&folder, part, index_rank, window_rank)? {
                self.medium.remove(&format!("{folder}/{name}"))?;
            }
            if part == Part::Far {
                self.medium.remove(&format!("{folder}/{DESCRIPTION}"))?;
                self.medium.remove_folder(&folder)?;
            }
        }
        let removed = self.medium.remove(&format!("{folder}/{DESCRIPTION}"))?;
        self.medium.remove_folder(folder)?;
        Ok(removed)
    }

    /// The chunks in an array's folder: name, index and length.
    pub(super) fn chunks(
        &self,
        folder: &str,
        part: Part,
        index_rank: usize,
        window_rank: usize,
    ) -> io::Result<Vec<(String, Vec<i64>, u64)>> {
        let mut found = Vec::new();
        self.medium.list(folder, &mut |name, length| {
            let index = layout::index_of(name, part, index_rank, window_rank);
            found.extend(index.map(|index| (name.to_owned(), index, length)));
            true
        })?;
        Ok(found)
    }

    /// Describes the far array where its first window is written. Written twice, it says the same.
    fn describe_far(&self, opened: &Opened) -> Result<()> {
        let tensor = &opened.description.id;
        let name = format!("{}/{DESCRIPTION}", Part::Far.folder(&opened.folder));
        let failed = |error| self.failed("describe", tensor, error);
        if self.medium.length(&name).map_err(failed)?.is_none() {
            let json =
                opened.description.to_json(Part::Far).map_err(|reason| self.corrupt(tensor, reason))?;
            self.medium.write(&name, json.to_string().into_bytes(), true).map_err(failed)?;
        }
        Ok(())
    }

    fn chunk(&self, opened: &Opened, index: &[i64]) -> Result<(Part, String)> {
        let manifest = &opened.description.manifest;
        if index.len() != manifest.index_rank {
            let reason = format!("{} coordinates, expected {}", index.len(), manifest.index_rank);
            return Err(Error::Spec { tensor: opened.description.id.clone(), field: "window index", reason });
        }
        let (part, position) = layout::position(index);
        let name = layout::chunk_name(&position, manifest.window.rank());
        Ok((part, format!("{}/{name}", part.folder(&opened.folder))))
    }

    fn corrupt(&self, tensor: &str, reason: String) -> Error {
        self.corrupt_window(tensor, &[], reason)
    }

    fn corrupt_window(&self, tensor: &str, index: &[i64], reason: String) -> Error {
        Error::Corrupt { tensor: tensor.to_owned(), index: index.to_vec(), place: self.place(), reason }
    }

    pub(super) fn failed(&self, operation: &'static str, tensor: &str, error: io::Error) -> Error {
        failed(operation, tensor, &self.place(), Bytes::ZERO, error)
    }

    fn reading(&self) -> RwLockReadGuard<'_, ()> {
        self.shape.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn writing(&self) -> RwLockWriteGuard<'_, ()> {
        self.shape.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TileStore for ZarrTileStore {
    fn place(&self) -> String {
        self.medium.place()
    }

    fn tier(&self) -> Tier {
        self.medium.tier()
    }

    fn scratch(&self, window: &TensorDesc) -> Bytes {
        chunk::scratch(window.bytes(), self.options.level)
    }

    fn manifest(&self, tensor: &str) -> Result<Option<Manifest>> {
        Ok(self.opened(tensor)?.map(|opened| opened.description.manifest.clone()))
    }

    fn create(&self, tensor: &str, manifest: &Manifest) -> Result<Option<Manifest>> {
        if let Some(there) = self.manifest(tensor)? {
            return Ok(Some(there));
        }
        let unusable = |reason| Error::Spec { tensor: tensor.to_owned(), field: "output window", reason };
        let description = Description::new(tensor, manifest, &self.options).map_err(unusable)?;
        let json = description.to_json(Part::Near).map_err(unusable)?;
        let opened = self.ready(description, layout::folder(tensor))?;
        let _alone = self.writing();
        let failed = |error| self.failed("create", tensor, error);
        if let Some(there) = self.opened(tensor)? {
            return Ok(Some(there.description.manifest.clone())); // Another thread was faster.
        }
        // Chunks without a description are of a tensor that is gone.
        self.clear(&opened.folder, manifest.index_rank, manifest.window.rank()).map_err(failed)?;
        let name = format!("{}/{DESCRIPTION}", opened.folder);
        if !self.medium.write(&name, json.to_string().into_bytes(), false).map_err(failed)? {
            return self.manifest(tensor); // Another program was.
        }
        // Another thread may have read it by now.
        lock(&self.opened).entry(tensor.to_owned()).or_insert_with(|| Arc::new(opened));
        Ok(None)
    }

    fn tensors(&self) -> Result<Vec<String>> {
        let mut ids = Vec::new();
        for folder in self.medium.folders().map_err(|error| self.failed("list", "", error))? {
            if folder.ends_with(FAR) {
                continue;
            }
            match self.describe(&folder, &folder) {
                Ok(description) => ids.extend(description.map(|description| description.id)),
                // A folder of somebody else's, or a description that is corrupt: who asks for that tensor is told.
                Err(Error::Corrupt { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        ids.sort_unstable();
        Ok(ids)
    }

    fn for_each_window(&self, tensor: &str, visit: &mut dyn FnMut(&[i64]) -> bool) -> Result<()> {
        let Some(opened) = self.opened(tensor)? else { return Ok(()) };
        let manifest = &opened.description.manifest;
        let mut going = true;
        for part in Part::ALL {
            let folder = part.folder(&opened.folder);
            let listed = self.medium.list(&folder, &mut |name, _| {
                let index = layout::index_of(name, part, manifest.index_rank, manifest.window.rank());
                going = going && index.is_none_or(|index| visit(&index));
                going
            });
            listed.map_err(|error| self.failed("list the windows of", tensor, error))?;
        }
        Ok(())
    }

    fn contains(&self, tensor: &str, index: &[i64]) -> Result<bool> {
        let Some(opened) = self.opened(tensor)? else { return Ok(false) };
        let (_, name) = self.chunk(&opened, index)?;
        let length = self.medium.length(&name);
        Ok(length.map_err(|error| self.failed("look for a window of", tensor, error))?.is_some())
    }

    fn put(&self, tensor: &str, index: &[i64], bytes: &[u8]) -> Result<()> {
        let operation = "put a window of";
        let opened = self.existing(operation, tensor)?;
        check_window_len(&opened.description.manifest.window, tensor, index, bytes.len())?;
        if self.contains(tensor, index)? {
            return Ok(());
        }
        let (part, name) = self.chunk(&opened, index)?;
        let chunk = opened.codec.encode(bytes);
        let chunk = chunk.map_err(|reason| Error::store(operation, tensor, &self.place(), reason))?;
        let _there = self.reading();
        if !lock(&self.opened).get(tensor).is_some_and(|there| Arc::ptr_eq(there, &opened)) {
            let reason = "the tensor was removed meanwhile; create it again";
            return Err(Error::store(operation, tensor, &self.place(), reason));
        }
        if part == Part::Far {
            self.describe_far(&opened)?;
        }
        let needed = Bytes::of(chunk.len());
        let written = self.medium.write(&name, chunk, true);
        written.map_err(|error| failed(operation, tensor, &self.place(), needed, error))?;
        Ok(())
    }

    fn get(&self, tensor: &str, index: &[i64], out: &mut [u8]) -> Result<bool> {
        let Some(opened) = self.opened(tensor)? else { return Ok(false) };
        check_window_len(&opened.description.manifest.window, tensor, index, out.len())?;
        let (_, name) = self.chunk(&opened, index)?;
        let chunk = match self.medium.read(&name, opened.codec.most()) {
            Ok(None) => return Ok(false),
            Ok(Some(chunk)) => chunk,
            Err(error) if error.kind() == ErrorKind::InvalidData => {
                return Err(self.corrupt_window(tensor, index, error.to_string()));
            }
            Err(error) => return Err(self.failed("read a window of", tensor, error)),
        };
        opened.codec.decode(chunk, out).map_err(|reason| self.corrupt_window(tensor, index, reason))?;
        Ok(true)
    }

    fn remove(&self, tensor: &str, index: &[i64]) -> Result<bool> {
        let Some(opened) = self.opened(tensor)? else { return Ok(false) };
        let (_, name) = self.chunk(&opened, index)?;
        self.medium.remove(&name).map_err(|error| self.failed("remove a window of", tensor, error))
    }

    fn remove_tensor(&self, tensor: &str) -> Result<bool> {
        let Some(opened) = self.opened(tensor)? else { return Ok(false) };
        let _alone = self.writing();
        let mut all = lock(&self.opened);
        all.remove(tensor);
        let manifest = &opened.description.manifest;
        let removed = self.clear(&opened.folder, manifest.index_rank, manifest.window.rank());
        removed.map_err(|error| self.failed("remove", tensor, error))
    }

    fn sync(&self) -> Result<()> {
        self.medium.sync().map_err(|error| self.failed("flush", "", error))
    }
}

/// What a medium said, by its name: a full disk is one.
fn failed(operation: &'static str, tensor: &str, place: &str, needed: Bytes, error: io::Error) -> Error {
    const FULL: [ErrorKind; 3] = [ErrorKind::StorageFull, ErrorKind::QuotaExceeded, ErrorKind::FileTooLarge];
    if !FULL.contains(&error.kind()) {
        return Error::store(operation, tensor, place, error);
    }
    Error::Full { tensor: tensor.to_owned(), place: place.to_owned(), needed, source: Arc::new(error) }
}
