//! A tensor's description as the file `zarr.json` holds it: what Zarr wants to know, and as attributes what this crate does.

use dd_core::{DType, TensorDesc};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use xxhash_rust::xxh3::xxh3_64;

use super::layout::Part;
use super::options::{Encoding, ZarrOptions};
use crate::store::Manifest;

/// The attribute under which this crate's part stands.
const OURS: &str = "deep_dimensions";

/// The version of the scheme.
const FORMAT: u64 = 1;

/// The smallest inner chunk, in bytes: what is around it (lengths, a checksum, a place in the index) stays a small part.
const SMALLEST_INNER: u64 = 256;

/// Everything that a tensor's arrays are described by.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Description {
    pub(super) id: String,
    pub(super) manifest: Manifest,
    pub(super) encoding: Encoding,
}

/// How a window's elements are stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Elements {
    /// Zarr's name of the element type.
    pub(super) name: &'static str,
    /// The bytes of one.
    pub(super) bytes: u64,
    /// How many there are along each dimension.
    pub(super) shape: Vec<u64>,
}

impl Elements {
    /// How windows of this description are stored; what is wrong where they cannot be.
    pub(super) fn of(window: &TensorDesc) -> Result<Self, String> {
        let mut shape: Vec<u64> = window.shape().iter().map(|dim| *dim as u64).collect(); // lossless
        if shape.contains(&0) {
            return Err(format!("a window of {window} has no elements; give every dimension a size"));
        }
        let dtype = window.dtype();
        let Some(bytes) = dtype.element_bytes() else {
            if let Some(last) = shape.last_mut() {
                *last = dtype.bytes_for(*last).map_err(|error| error.to_string())?.0;
            }
            return Ok(Self { name: "uint8", bytes: 1, shape });
        };
        let name = match dtype {
            DType::F64 => "float64",
            DType::F32 => "float32",
            DType::F16 => "float16",
            DType::I64 => "int64",
            DType::I32 => "int32",
            DType::I16 => "int16",
            DType::I8 => "int8",
            DType::Bool => "bool",
            _ => match bytes {
                1 => "uint8",
                2 => "uint16",
                4 => "uint32",
                8 => "uint64",
                other => return Err(format!("{dtype} takes {other} B, which no element type of Zarr does")),
            },
        };
        Ok(Self { name, bytes, shape })
    }

    fn zero(&self) -> Value {
        match self.name {
            "bool" => Value::Bool(false),
            name if name.starts_with("float") => json!(0.0),
            _ => json!(0),
        }
    }

    /// The inner chunks that were asked for, where they divide such windows; else none.
    fn inner(&self, window: &TensorDesc, options: &ZarrOptions) -> Vec<u64> {
        let Some(asked) = &options.inner else { return Vec::new() };
        let mut inner: Vec<u64> = asked.iter().map(|size| *size as u64).collect(); // lossless
        if window.dtype().element_bytes().is_none()
            && let Some(last) = inner.last_mut()
        {
            *last = window.dtype().bytes_for(*last).map_or(0, |bytes| bytes.0);
        }
        let divides = |(inner, whole): (&u64, &u64)| *inner > 0 && whole.is_multiple_of(*inner);
        let bytes = inner.iter().try_fold(self.bytes, |bytes, size| bytes.checked_mul(*size));
        let fits = inner.len() == self.shape.len()
            && inner.iter().zip(&self.shape).all(divides)
            && bytes.is_some_and(|bytes| bytes >= SMALLEST_INNER);
        if fits && inner != self.shape { inner } else { Vec::new() }
    }
}

impl Description {
    /// The description of a new tensor.
    pub(super) fn new(id: &str, manifest: &Manifest, options: &ZarrOptions) -> Result<Self, String> {
        let inner = Elements::of(&manifest.window)?.inner(&manifest.window, options);
        let encoding = Encoding { level: options.level, inner };
        Ok(Self { id: id.to_owned(), manifest: manifest.clone(), encoding })
    }

    /// One of the tensor's arrays, as `zarr.json` says it.
    pub(super) fn to_json(&self, part: Part) -> Result<Value, String> {
        let elements = Elements::of(&self.manifest.window)?;
        let grid = part.grid(self.manifest.index_rank);
        let ones = vec![1; grid.len()];
        let shape = [grid.as_slice(), &elements.shape].concat();
        let chunk = [ones.as_slice(), &elements.shape].concat();
        let names = (0..grid.len()).map(|n| format!("window_{n}"));
        let names: Vec<String> = names.chain((0..elements.shape.len()).map(|n| format!("dim_{n}"))).collect();
        let mut ours = serde_json::to_value(self).map_err(|error| error.to_string())?;
        ours.as_object_mut().into_iter().for_each(|object| {
            object.insert("format".to_owned(), FORMAT.into());
            object.insert("dtype".to_owned(), self.manifest.window.dtype().as_str().into());
            object.insert("index".to_owned(), "zigzag".into());
        });
        let checksum = checksum(&ours);
        ours.as_object_mut().into_iter().for_each(|object| {
            object.insert("checksum".to_owned(), checksum.clone().into());
        });
        Ok(json!({
            "zarr_format": 3,
            "node_type": "array",
            "shape": shape,
            "data_type": elements.name,
            "chunk_grid": {
                "name": "regular",
                "configuration": { "chunk_shape": chunk },
            },
            "chunk_key_encoding": { "name": "default", "configuration": { "separator": "." } },
            "fill_value": elements.zero(),
            "codecs": self.codecs(&elements, &ones),
            "attributes": { OURS: ours },
            "dimension_names": names,
        }))
    }

    fn codecs(&self, elements: &Elements, ones: &[u64]) -> Value {
        let bytes = match elements.bytes {
            1 => json!({ "name": "bytes" }),
            _ => json!({ "name": "bytes", "configuration": { "endian": "little" } }),
        };
        let level = self.encoding.level;
        let zstd = json!({ "name": "zstd", "configuration": { "level": level, "checksum": false } });
        let crc = json!({ "name": "crc32c" });
        let packed = json!([bytes, zstd, crc]);
        if self.encoding.inner.is_empty() {
            return packed;
        }
        let index =
            json!([{ "name": "bytes", "configuration": { "endian": "little" } }, { "name": "crc32c" }]);
        let inner = [ones, &self.encoding.inner].concat();
        json!([{ "name": "sharding_indexed", "configuration": {
            "chunk_shape": inner, "codecs": packed, "index_codecs": index, "index_location": "end",
        } }])
    }

    /// Reads a `zarr.json`; what is wrong where it is not one that [`to_json`](Self::to_json) would give.
    pub(super) fn from_json(text: &[u8], part: Part) -> Result<Self, String> {
        let mut stored: Value = serde_json::from_slice(text).map_err(|e| format!("no JSON: {e}"))?;
        let ours = stored.get_mut("attributes").and_then(|attributes| attributes.get_mut(OURS));
        let ours = ours.ok_or("not made by a tile store: it lacks the attribute `deep_dimensions`")?;
        let format = ours.get("format").and_then(Value::as_u64);
        if format != Some(FORMAT) {
            return Err(format!("format {format:?}; this program knows {FORMAT}"));
        }
        let said = ours.as_object_mut().and_then(|object| object.remove("checksum"));
        let found = checksum(ours);
        if said.as_ref().and_then(Value::as_str) != Some(&found) {
            let said = said.map_or("none".to_owned(), |said| said.to_string());
            return Err(format!("its checksum is {said}, its contents have {found:?}"));
        }
        let description: Self = serde_json::from_value(ours.take()).map_err(|e| e.to_string())?;
        let made = description.to_json(part)?;
        let checked = [
            "zarr_format",
            "node_type",
            "shape",
            "data_type",
            "chunk_grid",
            "chunk_key_encoding",
            "fill_value",
            "codecs",
        ];
        match checked.into_iter().find(|field| made.get(field) != stored.get(field)) {
            None => Ok(description),
            Some(field) => {
                let text = |v: &Value| v.get(field).map_or("nothing".to_owned(), ToString::to_string);
                Err(format!("{field} is {}; the manifest beside it means {}", text(&stored), text(&made)))
            }
        }
    }
}

/// The group that the tensors are in.
pub(super) fn group() -> Value {
    json!({ "zarr_format": 3, "node_type": "group", "attributes": { OURS: { "format": FORMAT, "holds": "tiles" } } })
}

/// Says what is wrong with a root that is not such a group.
pub(super) fn check_group(text: &[u8]) -> Result<(), String> {
    let stored: Value = serde_json::from_slice(text).map_err(|e| format!("no JSON: {e}"))?;
    let ours = stored.get("attributes").and_then(|attributes| attributes.get(OURS));
    match ours.map(|ours| ours.get("format").and_then(Value::as_u64)) {
        Some(Some(FORMAT)) => Ok(()),
        Some(other) => Err(format!("a tile store of format {other:?}; this program knows {FORMAT}")),
        None => Err("a Zarr hierarchy that is not a tile store".to_owned()),
    }
}

/// Over the contents in the order of their names, however a program that touched the file ordered them.
fn checksum(value: &Value) -> String {
    let mut sorted = value.clone();
    sorted.sort_all_objects();
    format!("xxh3:{:016x}", xxh3_64(sorted.to_string().as_bytes()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn described(shape: &[usize], dtype: DType, inner: Option<Vec<usize>>) -> Description {
        let window = TensorDesc::new(shape, dtype).unwrap();
        let fields = BTreeMap::from([
            ("seed".to_owned(), json!(7)),
            ("offset".to_owned(), json!([-1.5, { "b": 1, "a": 2 }])),
        ]);
        let options = ZarrOptions { inner, ..ZarrOptions::default() };
        Description::new("t", &Manifest { window, index_rank: 2, fields }, &options).unwrap()
    }

    #[test]
    fn is_read_back_as_it_was_written() {
        for (shape, dtype, inner) in [
            (&[4, 8][..], DType::F32, None),
            (&[32, 16], DType::BF16, Some(vec![16, 8])),
            (&[3, 1024], DType::Q4K, Some(vec![1, 512])),
            (&[], DType::Bool, None),
        ] {
            let made = described(shape, dtype, inner);
            for part in Part::ALL {
                let text = made.to_json(part).unwrap().to_string();
                assert_eq!(Description::from_json(text.as_bytes(), part).unwrap(), made);
            }
        }
    }

    #[test]
    fn inner_chunks_only_where_they_divide() {
        let rows: [(Option<Vec<usize>>, &[u64]); 6] = [
            (None, &[]),
            (Some(vec![16, 4]), &[16, 4]),
            (Some(vec![64, 8]), &[]),
            (Some(vec![33, 8]), &[]),
            (Some(vec![64]), &[]),
            (Some(vec![8, 4]), &[]),
        ];
        for (inner, expected) in rows {
            assert_eq!(described(&[64, 8], DType::F32, inner).encoding.inner, expected);
        }
    }

    #[test]
    fn every_change_is_seen() {
        let good = described(&[4, 8], DType::F32, None).to_json(Part::Near).unwrap();
        let text = good.to_string();
        for (from, to, says) in [
            ("\"seed\":7", "\"seed\":8", "checksum"),
            ("\"data_type\":\"float32\"", "\"data_type\":\"int32\"", "data_type is"),
            ("\"level\":1,\"checksum\":false", "\"level\":2,\"checksum\":false", "codecs is"),
            ("\"format\":1", "\"format\":2", "format Some(2)"),
            ("deep_dimensions", "others", "not made by a tile store"),
            ("{", "", "no JSON"),
        ] {
            let changed = text.replacen(from, to, 1);
            assert_ne!(changed, text, "{from}");
            let error = Description::from_json(changed.as_bytes(), Part::Near).unwrap_err();
            assert!(error.contains(says), "{from}: {error}");
        }
        let far = Description::from_json(text.as_bytes(), Part::Far).unwrap_err();
        assert!(far.starts_with("shape is"), "{far}");
    }

    #[test]
    fn element_types_that_others_can_read() {
        let rows = [
            (DType::F16, &[2, 3][..], "float16", vec![2, 3]),
            (DType::BF16, &[2, 3], "uint16", vec![2, 3]),
            (DType::F8E4M3, &[3], "uint8", vec![3]),
            (DType::F4, &[2, 6], "uint8", vec![2, 3]),
            (DType::Q4K, &[512], "uint8", vec![288]),
            (DType::U64, &[], "uint64", vec![]),
        ];
        for (dtype, shape, name, stored) in rows {
            let window = TensorDesc::new(shape, dtype).unwrap();
            let elements = Elements::of(&window).unwrap();
            assert_eq!((elements.name, &elements.shape), (name, &stored), "{dtype}");
            assert_eq!(elements.shape.iter().product::<u64>() * elements.bytes, window.bytes().0, "{dtype}");
        }
        assert!(Elements::of(&TensorDesc::new([2, 0], DType::F32).unwrap()).is_err());
    }
}
