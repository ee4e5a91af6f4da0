//! The headers of a packed file: its own, and within that the one of the file that it was made from.

use std::fmt;

use dd_core::{Bytes, DType, TensorDesc};
use dd_offload::checkpoint::{MAX_HEADER, Shard};
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, Serializer};

use crate::error::{Error, Result};

/// What `__metadata__` says in `format`.
const FORMAT: &str = "deepdim-packed";
/// What it says in `version`.
const VERSION: &str = "1";
/// Where the data begins is a multiple of this, and a packed tensor's length is the raw one modulo this: whatever was
/// aligned in the source stays aligned.
pub(super) const ALIGN: u64 = 64;
/// The bytes before a header: its length.
const LENGTH: u64 = 8;
/// What an entry can grow by when a tensor is packed: its shape is then its length, of up to 20 digits.
const SLACK: u64 = 24;

/// A tensor as a header lists it.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct Entry {
    pub(super) dtype: DType,
    pub(super) shape: Vec<u64>,
    pub(super) data_offsets: [u64; 2],
}

impl Entry {
    /// The shape and dtype, if they have a size and it is what the offsets span.
    fn desc(&self) -> Option<TensorDesc> {
        let shape: Option<Vec<usize>> = self.shape.iter().map(|dim| usize::try_from(*dim).ok()).collect();
        let desc = TensorDesc::new(shape?, self.dtype).ok()?;
        let [start, end] = self.data_offsets;
        (end.checked_sub(start) == Some(desc.bytes().0)).then_some(desc)
    }
}

/// A header of either kind, as it is written. A name that occurs twice stays twice, for the check to see.
#[derive(Default)]
struct Parsed {
    metadata: Metadata,
    tensors: Vec<(String, Entry)>,
}

/// What is read of `__metadata__`. Keys of other formats are passed over.
#[derive(Default, serde::Serialize, serde::Deserialize)]
#[serde(default)]
struct Metadata {
    format: String,
    version: String,
    chunk_bytes: String,
    source_header: String,
    source_checksum: String,
}

/// What a packed shard says of the file that it was made from.
pub(super) struct Source {
    /// Raw bytes per chunk.
    pub(super) chunk: usize,
    /// The source's header, to the byte.
    pub(super) text: String,
    /// The source's tensors by offset: without overlap or hole, each as long as its shape says.
    pub(super) tensors: Vec<(String, TensorDesc)>,
}

impl Source {
    /// The source as it is now, to be packed in chunks of so many bytes.
    pub(super) fn of(shard: &Shard, chunk: usize) -> Result<Self> {
        let text = read(shard)?;
        let tensors = tensors(&text).map_err(|reason| invalid(shard, &reason))?;
        Ok(Self { chunk, text, tensors })
    }

    /// What a packed shard says of its source; nothing where the shard is not a packed one.
    pub(super) fn within(shard: &Shard) -> Result<Option<Self>> {
        let Parsed { metadata, .. } = parse(&read(shard)?).map_err(|reason| invalid(shard, &reason))?;
        if metadata.format != FORMAT {
            return Ok(None);
        }
        if metadata.version != VERSION {
            let found = metadata.version;
            return Err(invalid(
                shard,
                &format!("version {VERSION} of the format expected, {found:?} found"),
            ));
        }
        let chunk = metadata.chunk_bytes.parse();
        let Some(chunk) = chunk.ok().filter(|chunk| super::codec::is_chunk(*chunk)) else {
            let found = metadata.chunk_bytes;
            return Err(invalid(shard, &format!("{found:?} is no number of bytes that a chunk can have")));
        };
        let text = metadata.source_header;
        let (expected, found) = (metadata.source_checksum, checksum(&text));
        if expected != found {
            return Err(invalid(
                shard,
                &format!("checksum {expected:?} of its source's header expected, {found} found"),
            ));
        }
        let tensors =
            tensors(&text).map_err(|reason| invalid(shard, &format!("its source's header: {reason}")))?;
        Ok(Some(Self { chunk, text, tensors }))
    }

    /// How many bytes to keep free for the packed file's header, its length included, before it is known.
    pub(super) fn room(&self) -> Result<u64> {
        let end = self.raw_bytes();
        let entries = self.tensors.iter().map(|(name, desc)| (name.as_str(), entry(desc, [end, end])));
        let longest = Bytes::of(self.write(entries)?.len()).0 + SLACK * Bytes::of(self.tensors.len()).0;
        let room = Bytes(LENGTH + longest).round_up(ALIGN).0;
        if room - LENGTH <= MAX_HEADER {
            return Ok(room);
        }
        Err(Error::Invalid {
            what: "the header of the packed file".to_owned(),
            expected: format!("at most {MAX_HEADER} B"),
            found: format!("{} B: it holds the source's header", room - LENGTH),
        })
    }

    /// The packed file's header with its length before it, filled up with spaces to `room` bytes.
    pub(super) fn header<'a>(
        &self,
        room: u64,
        entries: impl ExactSizeIterator<Item = (&'a str, Entry)>,
    ) -> Result<Vec<u8>> {
        let text = self.write(entries)?;
        let mut header = (room - LENGTH).to_le_bytes().to_vec();
        header.extend(text);
        header.resize(Bytes(room).to_usize()?.max(header.len()), b' ');
        Ok(header)
    }

    /// All bytes of the source's tensors.
    pub(super) fn raw_bytes(&self) -> u64 {
        self.tensors.iter().map(|(_, desc)| desc.bytes()).sum::<Bytes>().0
    }

    fn write<'a>(&self, entries: impl ExactSizeIterator<Item = (&'a str, Entry)>) -> Result<Vec<u8>> {
        struct Map<'a, I>(&'a Metadata, std::cell::RefCell<Option<I>>);
        impl<'a, I: Iterator<Item = (&'a str, Entry)>> Serialize for Map<'_, I> {
            fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
                let mut map = serializer.serialize_map(None)?;
                map.serialize_entry("__metadata__", self.0)?;
                for (name, entry) in self.1.take().into_iter().flatten() {
                    map.serialize_entry(name, &entry)?;
                }
                map.end()
            }
        }
        let metadata = Metadata {
            format: FORMAT.to_owned(),
            version: VERSION.to_owned(),
            chunk_bytes: self.chunk.to_string(),
            source_header: self.text.clone(),
            source_checksum: checksum(&self.text),
        };
        let map = Map(&metadata, std::cell::RefCell::new(Some(entries)));
        Ok(serde_json::to_vec(&map)
            .map_err(|error| dd_core::Error::library("serde_json", "write a header", error))?)
    }
}

/// A tensor at these offsets.
pub(super) fn entry(desc: &TensorDesc, data_offsets: [u64; 2]) -> Entry {
    let shape = desc.shape().iter().map(|dim| Bytes::of(*dim).0).collect();
    Entry { dtype: desc.dtype(), shape, data_offsets }
}

/// The text of a shard's header. Nothing is allocated before the length was compared with the file.
fn read(shard: &Shard) -> Result<String> {
    let mut length = [0; 8];
    shard.read_exact_at(0, &mut length, "header")?;
    let (length, size) = (u64::from_le_bytes(length), shard.identity().size);
    if length > MAX_HEADER || LENGTH + length > size {
        return Err(invalid(shard, &format!("a header of {length} B is not in a file of {size} B")));
    }
    let mut text = vec![0; Bytes(length).to_usize()?];
    shard.read_exact_at(LENGTH, &mut text, "header")?;
    String::from_utf8(text).map_err(|error| invalid(shard, &format!("its header is not UTF-8: {error}")))
}

/// The tensors of a header, by offset and checked; what is wrong, in words.
fn tensors(text: &str) -> Result<Vec<(String, TensorDesc)>, String> {
    let mut listed = parse(text)?.tensors;
    listed.sort_by_key(|(_, entry)| entry.data_offsets);
    let (mut checked, mut end) = (Vec::with_capacity(listed.len()), 0);
    for (name, entry) in listed {
        let [start, stop] = entry.data_offsets;
        let Some(desc) = entry.desc().filter(|_| start == end) else {
            return Err(format!("tensor {name:?} does not span {start}..{stop} after {end}"));
        };
        end = stop;
        checked.push((name, desc));
    }
    Ok(checked)
}

/// The checksum of a source's header, as 16 hexadecimal digits.
fn checksum(text: &str) -> String {
    format!("{:016x}", xxhash_rust::xxh3::xxh3_64(text.as_bytes()))
}

fn parse(text: &str) -> Result<Parsed, String> {
    serde_json::from_str(text).map_err(|error| error.to_string())
}

fn invalid(shard: &Shard, reason: &str) -> Error {
    let path = shard.path().to_owned();
    Error::Read { what: "a packed checkpoint".to_owned(), path, reason: reason.to_owned() }
}

impl<'de> Deserialize<'de> for Parsed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Parsed;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Parsed, A::Error> {
                let mut parsed = Parsed::default();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        parsed.metadata = map.next_value::<Option<Metadata>>()?.unwrap_or_default();
                        continue;
                    }
                    let entry = map.next_value();
                    let entry =
                        entry.map_err(|error| A::Error::custom(format!("tensor {name:?}: {error}")))?;
                    parsed.tensors.push((name, entry));
                }
                Ok(parsed)
            }
        }
        deserializer.deserialize_map(Entries)
    }
}
