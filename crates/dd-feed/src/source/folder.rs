//! [`FolderSource`]: a folder in which each file is an identity.

use std::borrow::Cow;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use dd_core::TensorDesc;
use dd_core::error::Cause;

use crate::error::{Error, Result};
use crate::stream::{Samples, Stream};

type Decode = dyn Fn(&Path, &mut Samples<'_>) -> Result<(), Cause> + Send + Sync;

/// The files of a folder in the order of their names, each one identity. Files hold raw samples, read straight into the batch, unless a
/// function says how to decode them.
pub struct FolderSource {
    folder: PathBuf,
    names: Vec<Box<str>>,
    desc: TensorDesc,
    decode: Option<Box<Decode>>,
}

impl FolderSource {
    /// The files of `folder` whose names end in `.extension` (any, where that is empty), folders within it left out.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::File`] for a folder without such a file, or with one whose name is no text.
    pub fn open(folder: impl AsRef<Path>, extension: &str, desc: TensorDesc) -> Result<Self> {
        let folder = folder.as_ref();
        let io = |source| Error::io("list", folder, source);
        let mut names = Vec::new();
        for entry in fs::read_dir(folder).map_err(io)? {
            let path = entry.map_err(io)?.path();
            let fits = extension.is_empty() || path.extension().is_some_and(|end| end == extension);
            if fits && path.is_file() {
                let name = path.file_name().and_then(|name| name.to_str());
                names.push(name.ok_or_else(|| Error::file(&path, "its name is no text; rename it"))?.into());
            }
        }
        if names.is_empty() {
            return Err(Error::file(folder, format!("no file that ends in {extension:?}")));
        }
        names.sort_unstable();
        Ok(Self { folder: folder.to_owned(), names, desc, decode: None })
    }

    /// Reads each file with this function, for images and other formats.
    #[must_use]
    pub fn decode_with(
        mut self,
        decode: impl Fn(&Path, &mut Samples<'_>) -> Result<(), Cause> + Send + Sync + 'static,
    ) -> Self {
        self.decode = Some(Box::new(decode));
        self
    }

    /// The names, in the order of identities.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.names.iter().map(|name| &**name)
    }

    fn name(&self, index: u64) -> Option<&str> {
        usize::try_from(index).ok().and_then(|index| self.names.get(index)).map(|name| &**name)
    }
}

impl Stream for FolderSource {
    fn len(&self) -> u64 {
        self.names.len() as u64
    }

    fn desc(&self) -> &TensorDesc {
        &self.desc
    }

    fn identity(&self, index: u64) -> Cow<'_, str> {
        self.name(index).unwrap_or("past the end of the folder").into()
    }

    fn read(&self, index: u64, samples: &mut Samples<'_>) -> Result<(), Cause> {
        let name = self.name(index).ok_or_else(|| format!("file {index} of {}", self.names.len()))?;
        let path = self.folder.join(name);
        match &self.decode {
            Some(decode) => decode(&path, samples),
            None => read_raw(&path, samples),
        }
    }
}

/// The file is all samples of the identity, and nothing else.
fn read_raw(path: &Path, samples: &mut Samples<'_>) -> Result<(), Cause> {
    let mut file = File::open(path)?;
    for _ in 0..samples.expected() {
        file.read_exact(samples.next_slot()?)?;
    }
    match file.read(&mut [0])? {
        0 => Ok(()),
        _ => Err("the file is longer than the samples that are expected of it".into()),
    }
}
