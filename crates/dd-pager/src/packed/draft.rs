//! Files in the making: under a temporary name until they are whole and on the disk, gone where that fails.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use dd_offload::checkpoint::Checkpoint;

use crate::error::{Error, Result};

/// The index of a sharded checkpoint, where Hugging Face's tools look for it.
const INDEX: &str = "model.safetensors.index.json";

/// How many were begun in this process, so that no two have the same temporary name.
static DRAFTS: AtomicU64 = AtomicU64::new(0);

/// A checkpoint in the making: one file, or a folder of files. Dropped before it is finished, it leaves nothing.
pub(super) struct Draft {
    target: PathBuf,
    path: PathBuf,
    folder: bool,
    finished: bool,
}

impl Draft {
    /// Begins what will be at `target`: a file where that ends in `.safetensors`, else a folder.
    pub(super) fn new(target: &Path, source: &Checkpoint) -> Result<Self> {
        let folder = target.extension() != Some(OsStr::new("safetensors"));
        let shards = source.shards().len();
        let refused = |expected: &str, found: String| {
            Err(Error::Invalid { what: target.display().to_string(), expected: expected.to_owned(), found })
        };
        if !folder && shards != 1 {
            return refused(
                "the name of a folder, since the source has several files",
                format!("{shards} files"),
            );
        }
        let Some(name) = target.file_name() else {
            return refused("the name of a new file or folder", "a path without one".to_owned());
        };
        if target.symlink_metadata().is_ok() && !is_empty_folder(target, folder) {
            return refused(
                "a path where nothing is yet",
                "a file or folder; remove it, or name another".to_owned(),
            );
        }
        let mut temporary = OsStr::new(".").to_owned();
        temporary.push(name);
        let number = DRAFTS.fetch_add(1, Ordering::Relaxed);
        temporary.push(format!(".{}-{number}.part", std::process::id()));
        let draft = Self {
            target: target.to_owned(),
            path: target.with_file_name(temporary),
            folder,
            finished: false,
        };
        if folder {
            fs::create_dir(&draft.path).map_err(|source| draft.failed("make", None, source))?;
        }
        Ok(draft)
    }

    /// Where it is in the making.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes one of its files: of this name in a folder, the file itself otherwise.
    pub(super) fn file(&self, name: &OsStr) -> Result<DraftFile<'_>> {
        let path = if self.folder { self.path.join(name) } else { self.path.clone() };
        let file = OpenOptions::new().write(true).create_new(true).open(&path);
        Ok(DraftFile { draft: self, file: file.map_err(|source| self.failed("make", None, source))? })
    }

    /// Writes the index of several files: which tensor is in which.
    pub(super) fn index(&self, files: &BTreeMap<&str, String>, total: u64) -> Result<()> {
        #[derive(serde::Serialize)]
        struct Index<'a> {
            metadata: BTreeMap<&'a str, u64>,
            weight_map: &'a BTreeMap<&'a str, String>,
        }
        let index = Index { metadata: BTreeMap::from([("total_size", total)]), weight_map: files };
        let text = serde_json::to_vec_pretty(&index)
            .map_err(|error| dd_core::Error::library("serde_json", "write an index", error))?;
        let file = self.file(OsStr::new(INDEX))?;
        file.write(0, &text, None)?;
        file.sync()
    }

    /// Gives it its name, once its content is on the disk.
    pub(super) fn finish(mut self) -> Result<()> {
        let synced = || {
            if self.folder {
                File::open(&self.path)?.sync_all()?;
            }
            fs::rename(&self.path, &self.target)?;
            let parent = self.target.parent().filter(|parent| !parent.as_os_str().is_empty());
            File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
        };
        synced().map_err(|source| self.failed("finish", None, source))?;
        self.finished = true;
        Ok(())
    }

    fn failed(&self, operation: &'static str, tensor: Option<&str>, source: io::Error) -> Error {
        Error::Write { operation, path: self.target.clone(), tensor: tensor.map(str::to_owned), source }
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        let removed = if self.folder { fs::remove_dir_all(&self.path) } else { fs::remove_file(&self.path) };
        if let Err(error) = removed.or_else(|error| match error.kind() {
            io::ErrorKind::NotFound => Ok(()), // It was never made.
            _ => Err(error),
        }) {
            tracing::warn!(path = %self.path.display(), %error, "an unfinished file stays behind; remove it");
        }
    }
}

/// Renaming a folder over an empty one takes its place.
fn is_empty_folder(target: &Path, folder: bool) -> bool {
    folder && fs::read_dir(target).is_ok_and(|mut entries| entries.next().is_none())
}

/// One file of a draft.
pub(super) struct DraftFile<'a> {
    draft: &'a Draft,
    file: File,
}

impl DraftFile<'_> {
    pub(super) fn write(&self, offset: u64, bytes: &[u8], tensor: Option<&str>) -> Result<()> {
        self.file.write_all_at(bytes, offset).map_err(|source| self.draft.failed("write", tensor, source))
    }

    /// Cuts off what lies past `len`.
    pub(super) fn cut(&self, len: u64) -> Result<()> {
        self.file.set_len(len).map_err(|source| self.draft.failed("write", None, source))
    }

    /// Waits until its content is on the disk.
    pub(super) fn sync(&self) -> Result<()> {
        self.file.sync_all().map_err(|source| self.draft.failed("write", None, source))
    }
}
