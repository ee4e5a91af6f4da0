//! [`Layout`]: which files make up a checkpoint, as a path and perhaps an index say.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Component, Path, PathBuf};

use dd_core::Bytes;
use serde::Deserialize;

use super::shard::io_error;
use super::{Checkpoint, MAX_HEADER, Shard, ShardId};
use crate::error::{Error, Result};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const INDEX_SUFFIX: &str = ".safetensors.index.json";

/// The files of a checkpoint, and what its index promises of them.
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) files: Vec<PathBuf>,
    index: Option<Index>,
}

#[derive(Debug)]
struct Index {
    path: PathBuf,
    promised: Vec<(String, ShardId)>,
}

impl Layout {
    /// Finds the files behind a path, opening none of them.
    pub(super) fn find(path: &Path) -> Result<Self> {
        let metadata = fs::metadata(path).map_err(|source| io_error("open", path, None, source))?;
        if metadata.is_dir() {
            return Self::of_folder(path);
        }
        let is_index = path.file_name().is_some_and(|name| name.to_string_lossy().ends_with(INDEX_SUFFIX));
        if is_index { Self::of_index(path) } else { Ok(Self::single(path.to_owned())) }
    }

    fn single(file: PathBuf) -> Self {
        Self { files: vec![file], index: None }
    }

    fn of_folder(folder: &Path) -> Result<Self> {
        let single = folder.join(SINGLE);
        if exists(&single)? {
            return Ok(Self::single(single));
        }
        let index = folder.join(INDEX);
        if exists(&index)? {
            return Self::of_index(&index);
        }
        let mut found = Vec::new();
        let listing = |source| io_error("list", folder, None, source);
        for entry in fs::read_dir(folder).map_err(listing)? {
            let path = entry.map_err(listing)?.path();
            if path.extension().is_some_and(|extension| extension == "safetensors") {
                found.push(path);
            }
        }
        match <[PathBuf; 1]>::try_from(found) {
            Ok([only]) => Ok(Self::single(only)),
            Err(found) => Err(no_layout(folder, found.len())),
        }
    }

    fn of_index(path: &Path) -> Result<Self> {
        let IndexFile { weight_map } = serde_json::from_slice(&read_index(path)?)
            .map_err(|error| invalid(path, format!("it is not an index with a weight_map: {error}")))?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let mut ids: BTreeMap<&str, ShardId> = BTreeMap::new();
        for (tensor, name) in &weight_map {
            check_name(path, tensor, name)?;
            ids.insert(name, ShardId(0));
        }
        for (id, slot) in ids.values_mut().enumerate() {
            *slot = ShardId(id);
        }
        let files = ids.keys().map(|name| folder.join(name)).collect();
        let id_of = |name: &String| ids.get(name.as_str()).copied().unwrap_or(ShardId(0));
        let promised = weight_map.iter().map(|(tensor, name)| (tensor.clone(), id_of(name))).collect();
        Ok(Self { files, index: Some(Index { path: path.to_owned(), promised }) })
    }

    /// Turns "no such file" into the error that names the index and a tensor of the shard.
    pub(super) fn missing_shard(&self, error: Error, file: &Path) -> Error {
        let absent = matches!(&error, Error::Io { source, .. } if source.kind() == ErrorKind::NotFound);
        let Some(index) = self.index.as_ref().filter(|_| absent) else { return error };
        let id = self.files.iter().position(|known| known == file).map(ShardId);
        let tensor = index.promised.iter().find(|(_, shard)| Some(*shard) == id);
        Error::MissingShard {
            index: index.path.clone(),
            shard: file.to_owned(),
            tensor: tensor.map(|(tensor, _)| tensor.clone()).unwrap_or_default(),
        }
    }

    /// Checks that each tensor is in the shard that the index names for it.
    pub(super) fn check_promises(&self, checkpoint: &Checkpoint) -> Result<()> {
        for (tensor, id) in self.index.iter().flat_map(|index| &index.promised) {
            if checkpoint.get(tensor).map(|location| location.shard) != Some(*id) {
                let path = self.files.get(id.0).cloned().unwrap_or_default();
                return Err(Error::MissingTensor { path, tensor: tensor.clone(), similar: None });
            }
        }
        Ok(())
    }
}

/// The part of an index that matters here.
#[derive(Deserialize)]
struct IndexFile {
    weight_map: BTreeMap<String, String>,
}

fn read_index(path: &Path) -> Result<Vec<u8>> {
    let file = Shard::open(path)?;
    let len = file.identity().size;
    if len > MAX_HEADER {
        return Err(file.invalid(format!("an index of {len} B, more than the {MAX_HEADER} B allowed")));
    }
    let mut text = vec![0; Bytes(len).to_usize()?];
    file.fill(0, &mut text, None)?;
    Ok(text)
}

/// A shard's name must stay in the index's folder. Links within the folder are the user's own and are followed.
fn check_name(index: &Path, tensor: &str, name: &str) -> Result<()> {
    let mut parts = Path::new(name).components().peekable();
    if parts.peek().is_some()
        && parts.all(|part| matches!(part, Component::Normal(_)))
        && !name.contains('\0')
    {
        return Ok(());
    }
    Err(invalid(index, format!("tensor {tensor:?} is in {name:?}, which is no file name within its folder")))
}

fn exists(path: &Path) -> Result<bool> {
    path.try_exists().map_err(|source| io_error("open", path, None, source))
}

fn no_layout(folder: &Path, found: usize) -> Error {
    let reason =
        format!("expected {SINGLE}, {INDEX} or exactly one *.safetensors in it, found {found} *.safetensors");
    invalid(folder, reason)
}

fn invalid(path: &Path, reason: String) -> Error {
    Error::InvalidCheckpoint { path: path.to_owned(), reason }
}
