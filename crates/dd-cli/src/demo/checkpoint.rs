//! [`Checkpoint`]: a transformer checkpoint written piece by piece, and removed when it is dropped.
//!
//! It is an ordinary folder in Hugging Face layout (`config.json`, `model.safetensors`) of a BERT encoder whose layers
//! are those of BERT base; only their number follows the wished size. No more than one piece of it is in memory.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use deep_dimensions::core::Bytes;
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use tempfile::TempDir;

use super::weights::counted_weights;
use crate::bert::{Activation, Config};
use crate::error::{CliError, Result};

/// How many values are made before they are written.
const PIECE: usize = 64 << 10;

/// A checkpoint in a folder of its own, which is removed on drop unless it is kept.
#[derive(Debug)]
pub struct Checkpoint {
    folder: TempDir,
    /// Bytes of all weights.
    pub weights: Bytes,
}

impl Checkpoint {
    /// Writes the checkpoint of `config` into a new folder under `parent`; `progress` is told of bytes written. What
    /// dead processes left there is removed first.
    ///
    /// # Errors
    /// [`CliError::Io`] where the disk refuses or is full; nothing is left behind then.
    pub fn write(parent: &Path, config: &Config, progress: &mut dyn FnMut(u64)) -> Result<Self> {
        remove_leftovers(parent);
        let prefix = format!("{FOLDER}{}-", std::process::id());
        let folder = tempfile::Builder::new()
            .prefix(&prefix)
            .tempdir_in(parent)
            .map_err(|e| CliError::io("make a folder in", parent, e))?;
        let json = serde_json::to_string_pretty(config).map_err(|e| CliError::io("write", parent, e))?;
        let path = folder.path().join("config.json");
        std::fs::write(&path, json).map_err(|e| CliError::io("write", &path, e))?;
        let path = folder.path().join("model.safetensors");
        let weights = write_weights(&path, config, progress).map_err(|e| CliError::io("write", &path, e))?;
        Ok(Self { folder, weights })
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Leaves the folder where it is.
    #[must_use]
    pub fn keep(self) -> PathBuf {
        self.folder.keep()
    }
}

const FOLDER: &str = "deepdim-demo-";

/// Removes the folders of demos whose process is gone (ended by `kill -9`, say).
fn remove_leftovers(parent: &Path) {
    let lives =
        |owner: u32| Path::new("/proc").join(owner.to_string()).exists() || !Path::new("/proc/self").exists();
    remove_where(parent, |owner| !lives(owner));
}

/// Removes what this process has made under `parent`, finished or not.
pub(super) fn remove_own(parent: &Path) {
    remove_where(parent, |owner| owner == std::process::id());
}

fn remove_where(parent: &Path, wanted: impl Fn(u32) -> bool) {
    let Ok(entries) = std::fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let owner =
            name.to_str().and_then(|name| name.strip_prefix(FOLDER)?.split('-').next()?.parse::<u32>().ok());
        let Some(owner) = owner else { continue };
        // A file that is being made at this moment can come in between once; then its maker finds no folder.
        let remove = || std::fs::remove_dir_all(entry.path());
        if wanted(owner)
            && let Err(error) = remove().or_else(|_| remove())
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(path = %entry.path().display(), %error, "cannot remove a demo's folder");
        }
    }
}

/// A configuration whose weights are at least `size`: layers as in BERT base, a small vocabulary.
#[must_use]
pub fn config_for(size: Bytes) -> Config {
    let mut config = Config {
        model_type: "bert".to_owned(),
        vocab_size: 4096,
        hidden_size: 768,
        num_hidden_layers: 1,
        num_attention_heads: 12,
        intermediate_size: 3072,
        hidden_act: Activation::Gelu,
        max_position_embeddings: 512,
        type_vocab_size: 2,
        layer_norm_eps: 1e-12,
        position_embedding_type: None,
        is_decoder: false,
    };
    let one = weight_bytes(&config);
    config.num_hidden_layers = 2;
    let layer = weight_bytes(&config) - one;
    let more = size.0.saturating_sub(one).div_ceil(layer);
    config.num_hidden_layers = usize::try_from(more).map_or(usize::MAX, |more| 1 + more.min(4095));
    config
}

pub(super) fn weight_bytes(config: &Config) -> u64 {
    tensors_of(config).iter().map(|(_, shape)| 4 * shape.iter().map(|n| *n as u64).product::<u64>()).sum()
}

/// Name and shape of every tensor, in the order of use.
#[must_use]
pub fn tensors_of(config: &Config) -> Vec<(String, Vec<usize>)> {
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let mut all = vec![
        ("embeddings.word_embeddings.weight".to_owned(), vec![config.vocab_size, hidden]),
        ("embeddings.position_embeddings.weight".to_owned(), vec![config.max_position_embeddings, hidden]),
        ("embeddings.token_type_embeddings.weight".to_owned(), vec![config.type_vocab_size, hidden]),
        ("embeddings.LayerNorm.weight".to_owned(), vec![hidden]),
        ("embeddings.LayerNorm.bias".to_owned(), vec![hidden]),
    ];
    let parts: [(&str, Vec<usize>); 8] = [
        ("attention.self.query", vec![hidden, hidden]),
        ("attention.self.key", vec![hidden, hidden]),
        ("attention.self.value", vec![hidden, hidden]),
        ("attention.output.dense", vec![hidden, hidden]),
        ("attention.output.LayerNorm", vec![hidden]),
        ("intermediate.dense", vec![inner, hidden]),
        ("output.dense", vec![hidden, inner]),
        ("output.LayerNorm", vec![hidden]),
    ];
    for layer in 0..config.num_hidden_layers {
        for (part, shape) in &parts {
            let bias = shape.first().copied().into_iter().collect();
            all.push((format!("encoder.layer.{layer}.{part}.weight"), shape.clone()));
            all.push((format!("encoder.layer.{layer}.{part}.bias"), bias));
        }
    }
    all
}

fn write_weights(path: &Path, config: &Config, progress: &mut dyn FnMut(u64)) -> std::io::Result<Bytes> {
    let tensors = tensors_of(config);
    let (header, total) = header_of(&tensors)?;
    let mut file = BufWriter::with_capacity(1 << 20, File::create_new(path)?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;
    for (index, (name, shape)) in (0..).zip(&tensors) {
        let mut left: usize = shape.iter().product();
        let mut values = counted_weights(index, name, config);
        while left > 0 {
            let len = left.min(PIECE);
            values.by_ref().take(len).try_for_each(|value| file.write_all(&value.to_le_bytes()))?;
            progress(4 * len as u64);
            left -= len;
        }
    }
    file.flush()?;
    file.get_ref().sync_all()?;
    Ok(Bytes(total))
}

/// The JSON header, padded so that the data starts at a multiple of 4096 bytes, and the length of the data.
fn header_of(tensors: &[(String, Vec<usize>)]) -> std::io::Result<(Vec<u8>, u64)> {
    let mut at = 0usize;
    let mut infos = Vec::with_capacity(tensors.len());
    for (name, shape) in tensors {
        let end = at + 4 * shape.iter().product::<usize>();
        infos.push((
            name.clone(),
            TensorInfo { dtype: Dtype::F32, shape: shape.clone(), data_offsets: (at, end) },
        ));
        at = end;
    }
    let metadata = Metadata::new(None, infos).map_err(std::io::Error::other)?;
    let mut header = serde_json::to_vec(&metadata)?;
    let padded = (header.len() + 8).next_multiple_of(4096) - 8;
    header.resize(padded, b' ');
    Ok((header, at as u64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn what_is_written_is_what_was_counted() {
        let parent = tempfile::tempdir().unwrap();
        let config = testing::config(16, 2, 32, 2);
        let mut written = 0;
        let checkpoint = Checkpoint::write(parent.path(), &config, &mut |n| written += n).unwrap();
        assert_eq!(written, checkpoint.weights.0);
        let read = candle_core::safetensors::load(
            checkpoint.path().join("model.safetensors"),
            &candle_core::Device::Cpu,
        )
        .unwrap();
        let expected = testing::weights(&config).unwrap();
        assert_eq!(read.len(), expected.len());
        for (name, tensor) in expected {
            let flat = |t: &candle_core::Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(flat(&tensor), flat(&read[&name]), "{name}");
        }
        assert_eq!(Config::read(&checkpoint.path().join("config.json")).unwrap(), config);
        drop(checkpoint);
        assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 0);
    }

    #[test]
    fn sizes_are_at_least_what_was_asked() {
        for mib in [0, 32, 100, 512, 1000] {
            let size = weight_bytes(&config_for(Bytes::mib(mib)));
            assert!(size >= mib << 20 && size < (mib << 20) + (64 << 20), "{mib}: {size}");
        }
    }

    #[test]
    fn leftovers_of_the_dead_are_removed_and_those_of_the_living_are_not() {
        let parent = tempfile::tempdir().unwrap();
        let dead = parent.path().join(format!("{FOLDER}{}-x", u32::MAX));
        let living = parent.path().join(format!("{FOLDER}{}-x", std::process::id()));
        let other = parent.path().join("deepdim-other");
        [&dead, &living, &other].iter().for_each(|folder| std::fs::create_dir(folder).unwrap());
        remove_leftovers(parent.path());
        assert_eq!([&dead, &living, &other].map(|folder| folder.exists()), [false, true, true]);
    }
}
