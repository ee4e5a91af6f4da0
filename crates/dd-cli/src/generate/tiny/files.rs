//! The safetensors files of a random checkpoint: one, or shards with their index.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use half::{bf16, f16};
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use serde_json::{Map, Value, json};

use super::Layout;
use crate::demo::uniform;
use crate::error::{CliError, Result};
use crate::generate::config::ModelConfig;
use crate::generate::family::Family;
use crate::generate::requirements::Required;

/// Writes all files; a tensor's number, beside it, is what its values begin with.
pub(super) fn write(
    config: &ModelConfig,
    folder: &Path,
    tensors: &[(u64, Required)],
    seed: u64,
    layout: Layout,
) -> Result<()> {
    let each = tensors.len().div_ceil(layout.shards.max(1)).max(1);
    let parts: Vec<&[(u64, Required)]> = tensors.chunks(each).collect();
    let name = |index: usize| match parts.len() {
        1 => "model.safetensors".to_owned(),
        count => format!("model-{:05}-of-{count:05}.safetensors", index + 1),
    };
    let mut map = Map::new();
    for (index, part) in parts.iter().enumerate() {
        let path = folder.join(name(index));
        weights(config.family, &path, part, seed, layout.dtype)
            .map_err(|e| CliError::io("write", &path, e))?;
        map.extend(part.iter().map(|(_, tensor)| (tensor.name.clone(), Value::from(name(index)))));
    }
    if parts.len() > 1 {
        let path = folder.join("model.safetensors.index.json");
        let index = json!({"metadata": {}, "weight_map": map}).to_string();
        std::fs::write(&path, index).map_err(|e| CliError::io("write", &path, e))?;
    }
    Ok(())
}

fn weights(
    family: Family,
    path: &Path,
    tensors: &[(u64, Required)],
    seed: u64,
    dtype: Dtype,
) -> std::io::Result<()> {
    let header = header_of(tensors, dtype)?;
    let mut file = BufWriter::with_capacity(1 << 18, File::create(path)?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;
    for (number, tensor) in tensors {
        let (centre, spread) = distribution(family, tensor);
        let len = usize::try_from(tensor.elements()).map_err(std::io::Error::other)?;
        let numbers = uniform(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(*number)).take(len);
        for value in numbers.map(|number| centre + spread * number) {
            match dtype {
                Dtype::BF16 => file.write_all(&bf16::from_f32(value).to_le_bytes())?,
                Dtype::F16 => file.write_all(&f16::from_f32(value).to_le_bytes())?,
                _ => file.write_all(&value.to_le_bytes())?,
            }
        }
    }
    file.flush()
}

fn header_of(tensors: &[(u64, Required)], dtype: Dtype) -> std::io::Result<Vec<u8>> {
    let (dtype, bytes) = match dtype {
        Dtype::BF16 | Dtype::F16 => (dtype, 2),
        Dtype::F32 => (dtype, 4),
        other => return Err(std::io::Error::other(format!("{other:?} is none of F32, BF16 and F16"))),
    };
    let mut at = 0;
    let mut infos = Vec::with_capacity(tensors.len());
    for (_, tensor) in tensors {
        let end = at + bytes * tensor.shape.iter().product::<usize>();
        let info = TensorInfo { dtype, shape: tensor.shape.clone(), data_offsets: (at, end) };
        infos.push((tensor.name.clone(), info));
        at = end;
    }
    let metadata = Metadata::new(None, infos).map_err(std::io::Error::other)?;
    let mut header = serde_json::to_vec(&metadata)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    Ok(header)
}

/// Centre and half width of a tensor's values.
fn distribution(family: Family, tensor: &Required) -> (f32, f32) {
    #[allow(clippy::cast_possible_truncation, reason = "a scale needs no more than 24 bits")]
    let scale = |width: usize| (3.0 / width.max(1) as f64).sqrt() as f32;
    let one_is_added = matches!(family, Family::Gemma | Family::Gemma2 | Family::Gemma3);
    match *tensor.shape {
        [_] if tensor.name.ends_with("bias") => (0.0, 0.02),
        [_] if one_is_added => (0.0, 0.1),
        [_] => (1.0, 0.1),
        [_, width] => (0.0, scale(width)),
        _ => (0.0, 0.1),
    }
}
