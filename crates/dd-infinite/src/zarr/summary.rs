//! [`StoreSummary`]: what a store holds, as a value.

use dd_core::{Bytes, TensorDesc};
use serde::Serialize;

use super::layout::Part;
use super::store::ZarrTileStore;
use crate::error::Result;
use crate::store::{Manifest, TileStore as _};

/// What a store holds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StoreSummary {
    /// The folder or address.
    pub place: String,
    /// The tensors, in the order of their ids.
    pub tensors: Vec<TensorSummary>,
}

/// What a store holds of one tensor.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TensorSummary {
    /// Its id.
    pub id: String,
    /// The array's folder in the store.
    pub folder: String,
    /// Shape and dtype of a window.
    pub window: TensorDesc,
    /// The whole configuration.
    pub manifest: Manifest,
    /// How many windows are stored.
    pub windows: u64,
    /// The least coordinates of a stored window's index; empty without windows.
    pub first: Vec<i64>,
    /// The largest.
    pub last: Vec<i64>,
    /// What the windows take in memory.
    pub bytes: Bytes,
    /// What they take where they are stored, compressed.
    pub stored: Bytes,
    /// Windows whose chunk is not what was written: index and reason. Only looked for by [`ZarrTileStore::verify`].
    pub corrupt: Vec<(Vec<i64>, String)>,
}

impl ZarrTileStore {
    /// What the store holds. Reads descriptions and lists folders, and reads no window.
    ///
    /// # Errors
    /// As the store's methods.
    pub fn summary(&self) -> Result<StoreSummary> {
        let tensors = self.tensors()?;
        let tensors =
            tensors.iter().filter_map(|id| self.summarise(id).transpose()).collect::<Result<_>>()?;
        Ok(StoreSummary { place: self.place(), tensors })
    }

    /// The same, with every window read and checked.
    ///
    /// # Errors
    /// As the store's methods; a corrupt window is a finding and no error.
    pub fn verify(&self) -> Result<StoreSummary> {
        let mut summary = self.summary()?;
        for tensor in &mut summary.tensors {
            let mut window = vec![0; tensor.window.len_in_memory()?];
            let mut indices = Vec::new();
            self.for_each_window(&tensor.id, &mut |index| {
                indices.push(index.to_vec());
                true
            })?;
            indices.sort_unstable();
            for index in indices {
                match self.get(&tensor.id, &index, &mut window) {
                    Ok(_) => {}
                    Err(crate::Error::Corrupt { reason, .. }) => tensor.corrupt.push((index, reason)),
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(summary)
    }

    fn summarise(&self, id: &str) -> Result<Option<TensorSummary>> {
        let Some(opened) = self.opened(id)? else { return Ok(None) };
        let manifest = opened.description.manifest.clone();
        let mut summary = TensorSummary {
            id: id.to_owned(),
            folder: opened.folder.clone(),
            window: manifest.window.clone(),
            windows: 0,
            first: Vec::new(),
            last: Vec::new(),
            bytes: Bytes::ZERO,
            stored: Bytes::ZERO,
            corrupt: Vec::new(),
            manifest,
        };
        for part in Part::ALL {
            let (k, r) = (summary.manifest.index_rank, summary.window.rank());
            let chunks = self.chunks(&part.folder(&opened.folder), part, k, r);
            for (_, index, stored) in chunks.map_err(|error| self.failed("list the windows of", id, error))? {
                summary.add(&index, Bytes(stored));
            }
        }
        Ok(Some(summary))
    }
}

impl TensorSummary {
    fn add(&mut self, index: &[i64], stored: Bytes) {
        if self.windows == 0 {
            (self.first, self.last) = (index.to_vec(), index.to_vec());
        }
        self.windows += 1;
        self.bytes += self.window.bytes();
        self.stored += stored;
        self.first.iter_mut().zip(index).for_each(|(first, i)| *first = (*first).min(*i));
        self.last.iter_mut().zip(index).for_each(|(last, i)| *last = (*last).max(*i));
    }
}
