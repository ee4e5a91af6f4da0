//! Headers of files, never their weights: safetensors (sharded too), GGUF, ONNX; and `config.json`.
//!
//! Files are hostile until checked: every length and offset is compared with the file before anything is allocated or
//! skipped, what is kept is bounded by [`ReadLimits`], and what cannot be is a named error with its place in the file.

pub mod config;
pub mod gguf;
pub mod onnx;
pub mod safetensors;
mod source;
mod wire;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use dd_core::{Bytes, DType};
use serde::Serialize;

use crate::error::{Error, Result};

/// How much memory a header may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ReadLimits {
    /// The longest header, and the most that is kept of one.
    pub header: Bytes,
}

impl Default for ReadLimits {
    /// 64 MiB: some twenty times the header of any published model.
    fn default() -> Self {
        Self { header: Bytes::mib(64) }
    }
}

/// A tensor as a header describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TensorHeader {
    /// Its name.
    pub name: String,
    /// Its shape, outermost first.
    pub shape: Vec<u64>,
    /// Its element type as the file names it.
    pub kind: String,
    /// Its element type, where this project has it.
    pub dtype: Option<DType>,
    /// How many elements it has.
    pub elements: u64,
    /// Its size in the file.
    pub bytes: Bytes,
}

/// What the headers of a model's weight files say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct WeightFiles {
    /// The files.
    pub paths: Vec<PathBuf>,
    /// All tensors, in the order of the files.
    pub tensors: Vec<TensorHeader>,
    /// Short texts and numbers that the files hold besides.
    pub metadata: BTreeMap<String, String>,
}

impl WeightFiles {
    /// The headers that belong to a path: a `.safetensors`, `.safetensors.index.json`, `.gguf` or `.onnx` file, or a folder
    /// with one of them (the first by that order, one file or an index).
    ///
    /// # Errors
    /// [`Error::Io`] where a file cannot be read; [`Error::Format`] where it is not what its name says;
    /// [`Error::HeaderTooLarge`]; [`Error::Setting`] for a path that is none of these.
    pub fn open(path: &Path, limits: &ReadLimits) -> Result<Self> {
        let path = if path.is_dir() { in_folder(path)? } else { path.to_owned() };
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_ascii_lowercase();
        if name.ends_with(".index.json") {
            safetensors::read_sharded(&path, limits)
        } else if name.ends_with(".safetensors") {
            safetensors::read(&path, limits)
        } else if name.ends_with(".gguf") {
            gguf::read(&path, limits)
        } else if name.ends_with(".onnx") {
            Ok(onnx::read(&path, limits)?.weights)
        } else {
            let reason = "expected a .safetensors, .index.json, .gguf or .onnx file, or a folder with one";
            Err(Error::setting("path", path.display(), reason))
        }
    }

    /// How many elements all tensors have; saturates.
    #[must_use]
    pub fn elements(&self) -> u64 {
        self.tensors.iter().fold(0, |sum, tensor| sum.saturating_add(tensor.elements))
    }

    /// Bytes of all tensors.
    #[must_use]
    pub fn bytes(&self) -> Bytes {
        self.tensors.iter().map(|tensor| tensor.bytes).sum()
    }

    /// Bytes by element type, as the files name it.
    #[must_use]
    pub fn by_kind(&self) -> BTreeMap<String, Bytes> {
        let mut all: BTreeMap<String, Bytes> = BTreeMap::new();
        for tensor in &self.tensors {
            *all.entry(tensor.kind.clone()).or_default() += tensor.bytes;
        }
        all
    }
}

fn in_folder(folder: &Path) -> Result<PathBuf> {
    for name in ["model.safetensors", "model.safetensors.index.json"] {
        let path = folder.join(name);
        if path.is_file() {
            return Ok(path);
        }
    }
    let failed = |source| Error::Io { operation: "list", path: folder.to_owned(), source };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let kind = path.extension().and_then(|end| end.to_str()).map(str::to_ascii_lowercase);
        let rank = ["safetensors", "gguf", "onnx"].iter().position(|known| Some(*known) == kind.as_deref());
        found.extend(rank.map(|rank| (rank, path)));
    }
    found.sort();
    found.into_iter().next().map(|(_, path)| path).ok_or_else(|| {
        Error::setting(
            "path",
            folder.display(),
            "there is no .safetensors, .gguf or .onnx file in this folder",
        )
    })
}

/// Elements of a shape in a file; nothing past 64 bits.
fn elements(shape: &[u64]) -> Option<u64> {
    if shape.contains(&0) {
        return Some(0);
    }
    shape.iter().try_fold(1u64, |product, size| product.checked_mul(*size))
}
