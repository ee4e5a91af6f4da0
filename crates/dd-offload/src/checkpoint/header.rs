//! The header of one safetensors file: parsed by the format's own crate, checked against the file.
//!
//! The crate's types say what a header may hold, and its validation has the last word. What it does not say is said
//! here: which tensor is wrong, in what, and how the header compares with a file that is not in memory.

use std::collections::HashMap;
use std::fmt;

use dd_core::{Bytes, DType, TensorDesc};
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};

use super::{Shard, ShardId, TensorLocation};
use crate::error::{Error, Result};

/// The longest header that is read, in bytes: the format's own limit.
pub const MAX_HEADER: u64 = 100_000_000;

/// The bytes before the header: its length, little-endian.
const LENGTH_BYTES: u64 = 8;

/// Reads the header and nothing else; gives the tensors by offset.
pub(super) fn read(shard: &Shard, id: ShardId) -> Result<Vec<(String, TensorLocation)>> {
    let (text, data_start) = read_text(shard)?;
    let mut entries: Entries = serde_json::from_str(&text)
        .map_err(|error| shard.invalid(format!("its header is not one of the format: {error}")))?;
    drop(text);
    entries.tensors.sort_by_key(|(_, info)| info.data_offsets);
    let located = locate_all(shard, id, data_start, &entries.tensors)?;
    Metadata::new(entries.metadata, entries.tensors)
        .map_err(|error| shard.invalid(format!("its header contradicts itself: {error}")))?;
    Ok(located)
}

/// The header's text and where the data begins. Nothing is allocated before the length was compared with the file.
fn read_text(shard: &Shard) -> Result<(String, u64)> {
    let found = shard.identity().size;
    if found < LENGTH_BYTES {
        return Err(shard.truncated(LENGTH_BYTES, found));
    }
    let mut length = [0; 8];
    shard.fill(0, &mut length, None)?;
    if &length == b"version " {
        return Err(shard.invalid("it is a Git LFS pointer, not the file that it points to"));
    }
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER {
        return Err(
            shard.invalid(format!("its header claims {length} B, more than the {MAX_HEADER} B allowed"))
        );
    }
    let data_start = LENGTH_BYTES + length;
    if data_start > found {
        return Err(shard.truncated(data_start, found));
    }
    let mut text = vec![0; Bytes(length).to_usize()?];
    shard.fill(LENGTH_BYTES, &mut text, None)?;
    let text = String::from_utf8(text)
        .map_err(|error| shard.invalid(format!("its header is not UTF-8: {error}")))?;
    Ok((text, data_start))
}

/// The tensors' places, checked: each as long as its shape says, without overlap or hole, and ending with the file.
fn locate_all(
    shard: &Shard,
    id: ShardId,
    data_start: u64,
    tensors: &[(String, TensorInfo)],
) -> Result<Vec<(String, TensorLocation)>> {
    let mut located = Vec::with_capacity(tensors.len());
    let mut end = 0;
    for (name, info) in tensors {
        let (desc, start, stop) = check(info, end).map_err(|reason| bad(shard, name, info, reason))?;
        let offset = data_start.checked_add(start).filter(|_| data_start.checked_add(stop).is_some());
        let Some(offset) = offset else {
            return Err(bad(shard, name, info, "no file can be that long".to_owned()));
        };
        located.push((name.clone(), TensorLocation { shard: id, offset, len: stop - start, desc }));
        end = stop;
    }
    let (promised, found) = (data_start.saturating_add(end), shard.identity().size);
    match promised.cmp(&found) {
        std::cmp::Ordering::Greater => Err(shard.truncated(promised, found)),
        std::cmp::Ordering::Less => Err(shard.invalid(format!(
            "its header promises {promised} B, the file has {found} B: {} B follow the last tensor",
            found - promised
        ))),
        std::cmp::Ordering::Equal => Ok(located),
    }
}

/// One tensor against its own shape and against the end of the tensor before it; what is wrong, in words.
fn check(info: &TensorInfo, previous_end: u64) -> Result<(TensorDesc, u64, u64), String> {
    let dtype = dtype(info.dtype).ok_or_else(|| format!("dtype {:?} is not supported", info.dtype))?;
    let desc = TensorDesc::new(info.shape.as_slice(), dtype).map_err(|error| error.to_string())?;
    let (start, end) = (Bytes::of(info.data_offsets.0).0, Bytes::of(info.data_offsets.1).0);
    let Some(len) = end.checked_sub(start) else {
        return Err("it ends before it starts".to_owned());
    };
    if len != desc.bytes().0 {
        return Err(format!("{desc} takes {} B, the offsets span {len} B", desc.bytes().0));
    }
    match start.cmp(&previous_end) {
        std::cmp::Ordering::Less => Err(format!("it overlaps a tensor that ends at {previous_end}")),
        std::cmp::Ordering::Greater => Err(format!("a hole of {} B is before it", start - previous_end)),
        std::cmp::Ordering::Equal => Ok((desc, start, end)),
    }
}

fn bad(shard: &Shard, name: &str, info: &TensorInfo, reason: String) -> Error {
    Error::BadOffsets {
        path: shard.path().to_owned(),
        tensor: name.to_owned(),
        start: Bytes::of(info.data_offsets.0).0,
        end: Bytes::of(info.data_offsets.1).0,
        reason,
    }
}

const fn dtype(dtype: Dtype) -> Option<DType> {
    Some(match dtype {
        Dtype::BOOL => DType::Bool,
        Dtype::F4 => DType::F4,
        Dtype::U8 => DType::U8,
        Dtype::I8 => DType::I8,
        Dtype::F8_E5M2 => DType::F8E5M2,
        Dtype::F8_E4M3 => DType::F8E4M3,
        Dtype::F8_E8M0 => DType::F8E8M0,
        Dtype::I16 => DType::I16,
        Dtype::U16 => DType::U16,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        Dtype::I32 => DType::I32,
        Dtype::U32 => DType::U32,
        Dtype::F32 => DType::F32,
        Dtype::F64 => DType::F64,
        Dtype::I64 => DType::I64,
        Dtype::U64 => DType::U64,
        _ => return None,
    })
}

/// The header as it is written. The crate's own map would keep only the last of two tensors of one name.
struct Entries {
    metadata: Option<HashMap<String, String>>,
    tensors: Vec<(String, TensorInfo)>,
}

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_map(EntriesVisitor)
    }
}

struct EntriesVisitor;

impl<'de> Visitor<'de> for EntriesVisitor {
    type Value = Entries;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Entries, A::Error> {
        let mut entries = Entries { metadata: None, tensors: Vec::new() };
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                entries.metadata = map.next_value()?;
                continue;
            }
            let info =
                map.next_value().map_err(|error| A::Error::custom(format!("tensor {name:?}: {error}")))?;
            entries.tensors.push((name, info));
        }
        Ok(entries)
    }
}
