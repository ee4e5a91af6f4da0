//! safetensors: a length, a JSON object of tensors, their bytes.
//!
//! Format: <https://github.com/huggingface/safetensors#format>.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::{Read, Seek};
use std::path::{Component, Path};

use dd_core::{Bytes, DType};
use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use super::source::Source;
use super::{ReadLimits, TensorHeader, WeightFiles, elements};
use crate::error::{Error, Result};

/// The longest header that the format allows.
const MAX_HEADER: u64 = 100_000_000;
/// The most dimensions.
const MAX_RANK: usize = 16;
/// The longest text of the metadata that is kept.
const MAX_TEXT: usize = 4096;

/// The header of one file.
///
/// # Errors
/// [`Error::Io`], [`Error::Format`], [`Error::HeaderTooLarge`].
pub fn read(path: &Path, limits: &ReadLimits) -> Result<WeightFiles> {
    let mut source = Source::open(path, limits)?;
    parse(&mut source, limits)
}

/// The header in `input`, of a file of `len` bytes; `name` names it in messages.
///
/// # Errors
/// As [`read`].
pub fn read_from<R: Read + Seek>(input: R, len: u64, name: &str, limits: &ReadLimits) -> Result<WeightFiles> {
    parse(&mut Source::new(input, len, Path::new(name), limits), limits)
}

/// The headers of all files that an index (`model.safetensors.index.json`) names.
///
/// # Errors
/// As [`read`]; [`Error::Format`] where a shard lies outside the index's folder, or lacks a tensor that the index promises.
pub fn read_sharded(index: &Path, limits: &ReadLimits) -> Result<WeightFiles> {
    let mut source = Source::open(index, limits)?;
    let len = source.len();
    source.keep(len)?;
    let wrong = |problem: String| Error::Format { path: index.to_owned(), offset: 0, problem };
    let parsed: Index =
        serde_json::from_reader(source.part(len)?).map_err(|error| wrong(error.to_string()))?;
    let folder = index.parent().unwrap_or(Path::new("."));
    let shards: BTreeSet<&str> = parsed.weight_map.values().map(String::as_str).collect();
    let mut all = WeightFiles::default();
    for shard in shards {
        if !Path::new(shard).components().all(|part| matches!(part, Component::Normal(_))) {
            return Err(wrong(format!("shard {shard:?} lies outside its folder")));
        }
        let one = read(&folder.join(shard), limits)?;
        let promised = parsed.weight_map.iter().filter(|(_, file)| *file == shard);
        let there: BTreeSet<&str> = one.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
        if let Some((missing, _)) = promised.into_iter().find(|(name, _)| !there.contains(name.as_str())) {
            return Err(wrong(format!("tensor {missing:?} is not in {shard}")));
        }
        all.paths.extend(one.paths);
        all.tensors.extend(one.tensors);
        all.metadata.extend(one.metadata);
    }
    Ok(all)
}

#[derive(serde::Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

fn parse<R: Read + Seek>(source: &mut Source<R>, limits: &ReadLimits) -> Result<WeightFiles> {
    let length = source.u64()?;
    if &length.to_le_bytes() == b"version " {
        return Err(source.wrong("it is a Git LFS pointer, not the file that it points to"));
    }
    if length > MAX_HEADER {
        return Err(
            source.wrong(format!("a header of {length} B, more than the {MAX_HEADER} B of the format"))
        );
    }
    if length > limits.header.0 {
        let path = source.path().to_owned();
        return Err(Error::HeaderTooLarge { path, needed: Bytes(length), allowed: limits.header });
    }
    let path = source.path().to_owned();
    let data = source.left().saturating_sub(length);
    let mut part = source.part(length)?;
    let mut json = serde_json::Deserializer::from_reader(&mut part);
    let parsed = Header::deserialize(&mut json).and_then(|header| json.end().map(|()| header));
    drop(part);
    let header = parsed.map_err(|error| source.wrong(format!("the header before is not one: {error}")))?;
    let mut spans = Vec::with_capacity(header.tensors.len());
    let mut names = BTreeSet::new();
    for (tensor, start, end) in &header.tensors {
        let wrong = |problem: String| source.wrong(format!("tensor {:?}: {problem}", tensor.name));
        if !names.insert(tensor.name.as_str()) {
            return Err(wrong("it is there twice".to_owned()));
        }
        if end.checked_sub(*start) != Some(tensor.bytes.0) || *end > data {
            let (bytes, shape) = (tensor.bytes.0, &tensor.shape);
            let found = format!("{start}..{end} of {data} B");
            return Err(wrong(format!("{shape:?} of {} takes {bytes} B, its place is {found}", tensor.kind)));
        }
        if start < end {
            spans.push((*start, *end, tensor.name.as_str()));
        }
    }
    spans.sort_unstable();
    for ((_, end, name), (start, _, next)) in spans.iter().zip(spans.iter().skip(1)) {
        if end > start {
            return Err(source.wrong(format!("tensors {name:?} and {next:?} overlap")));
        }
    }
    let tensors = header.tensors.into_iter().map(|(tensor, _, _)| tensor).collect();
    Ok(WeightFiles { paths: vec![path], tensors, metadata: header.metadata })
}

#[derive(Default)]
struct Header {
    metadata: BTreeMap<String, String>,
    /// With its place in the data.
    tensors: Vec<(TensorHeader, u64, u64)>,
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = Header;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Header, A::Error> {
        let mut header = Header::default();
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                let texts: BTreeMap<String, String> = map.next_value()?;
                header.metadata.extend(texts.into_iter().filter(|(_, text)| text.len() <= MAX_TEXT));
                continue;
            }
            let info: Info =
                map.next_value().map_err(|error| A::Error::custom(format!("tensor {name:?}: {error}")))?;
            let kind = info.dtype.0;
            let known = |dtype: &DType| dtype.as_str() == kind && dtype.block_elements() <= 2;
            let dtype = kind.parse::<DType>().ok().filter(known);
            let dtype =
                dtype.ok_or_else(|| A::Error::custom(format!("tensor {name:?}: unknown dtype {kind:?}")))?;
            let count = elements(&info.shape.0);
            let bytes = count.and_then(|count| dtype.bytes_for(count).ok());
            let (Some(elements), Some(bytes)) = (count, bytes) else {
                return Err(A::Error::custom(format!("tensor {name:?}: no file holds {:?}", info.shape.0)));
            };
            let shape = info.shape.0;
            let tensor = TensorHeader { name, shape, kind, dtype: Some(dtype), elements, bytes };
            header.tensors.push((tensor, info.data_offsets.0, info.data_offsets.1));
        }
        Ok(header)
    }
}

#[derive(serde::Deserialize)]
struct Info {
    dtype: ShortText,
    shape: Shape,
    data_offsets: (u64, u64),
}

/// A text of a few letters, held without an allocation of the file's choosing.
struct ShortText(String);

impl<'de> Deserialize<'de> for ShortText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text.len() > 32 {
            return Err(D::Error::custom("expected the name of a dtype"));
        }
        Ok(Self(text))
    }
}

struct Shape(Vec<u64>);

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Sizes;
        impl<'de> Visitor<'de> for Sizes {
            type Value = Shape;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "at most {MAX_RANK} sizes")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> std::result::Result<Shape, A::Error> {
                let mut shape = Vec::new();
                while let Some(size) = seq.next_element_seed(Size)? {
                    if shape.len() == MAX_RANK {
                        return Err(A::Error::invalid_length(MAX_RANK + 1, &self));
                    }
                    shape.push(size);
                }
                Ok(Shape(shape))
            }
        }
        deserializer.deserialize_seq(Sizes)
    }
}

struct Size;

impl<'de> DeserializeSeed<'de> for Size {
    type Value = u64;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<u64, D::Error> {
        u64::deserialize(deserializer)
    }
}
