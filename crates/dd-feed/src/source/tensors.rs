//! A tensor's place in a safetensors file. The header is read and checked by the library of the format.

use dd_core::DType;
use safetensors::SafeTensors;

use super::mapped::Rows;

/// Where a tensor's rows lie, or what is wrong.
pub(super) fn find(bytes: &[u8], name: &str) -> Result<Rows, String> {
    let (header, metadata) =
        SafeTensors::read_metadata(bytes).map_err(|error| format!("no safetensors file: {error}"))?;
    let body = header.saturating_add(8);
    let Some(info) = metadata.info(name) else {
        let mut names: Vec<String> = metadata.tensors().into_keys().collect();
        names.sort();
        return Err(format!("no tensor {name:?}; it has {}", names.join(", ")));
    };
    let dtype: DType =
        format!("{}", info.dtype).parse().map_err(|error| format!("tensor {name:?}: {error}"))?;
    let end = body.saturating_add(info.data_offsets.1);
    if end > bytes.len() {
        return Err(format!("tensor {name:?} ends at byte {end} of {}; the file was cut short", bytes.len()));
    }
    Ok(Rows { start: body.saturating_add(info.data_offsets.0), shape: info.shape.clone(), dtype })
}
