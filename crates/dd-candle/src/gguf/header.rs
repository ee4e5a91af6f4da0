//! [`Header`]: where a GGUF file keeps its tensors, checked against the file before anything of them is read.
//!
//! candle parses the file too, for the model. It trusts some of what is written there (a zero alignment, dimensions
//! whose product overflows), and metadata may take many times more memory parsed than stored; so this pass comes first. It
//! allocates nothing but the tensors' names.
//!
//! Source: the GGUF specification, <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

use std::collections::BTreeSet;
use std::io::Read;
use std::ops::Range;
use std::path::Path;

use candle_core::quantized::GgmlDType;

use super::error::{Error, Result};

const MAGIC: u32 = 0x4655_4747;
const DEFAULT_ALIGNMENT: u64 = 32;
/// The most bytes before the tensors: vocabularies of 256,000 words and their merges are below 20 MiB.
const LONGEST: u64 = 64 << 20;
const DEEPEST: u32 = 8;
const LONGEST_NAME: u64 = 4096;
const MOST_DIMS: u32 = 4;

/// One tensor as the file has it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TensorEntry {
    pub(crate) name: String,
    /// Slowest dimension first, as candle has them.
    pub(crate) dims: Vec<u64>,
    pub(crate) dtype: GgmlDType,
    /// Bytes of the file.
    pub(crate) range: Range<u64>,
}

impl TensorEntry {
    pub(crate) const fn len(&self) -> u64 {
        self.range.end - self.range.start
    }
}

/// All tensors of a file, in the order in which they lie there.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Header {
    pub(crate) tensors: Vec<TensorEntry>,
}

impl Header {
    /// Reads and checks the header of a file of `len` bytes; `path` is for messages.
    pub(crate) fn read(input: impl Read, len: u64, path: &Path) -> Result<Self> {
        let limit = len.min(LONGEST);
        let mut cursor = Cursor { input, position: 0, limit, wide: true, path };
        let mut tensors = cursor.header(len)?;
        tensors.sort_by_key(|tensor| tensor.range.start);
        for pair in tensors.windows(2) {
            let [first, second] = pair else { continue };
            if second.range.start < first.range.end && first.len() > 0 && second.len() > 0 {
                return Err(cursor.wrong(
                    &format!("tensor {}", second.name),
                    format!("an offset from {} on, where {} ends", first.range.end, first.name),
                    format!("{}: they overlap", second.range.start),
                ));
            }
        }
        Ok(Self { tensors })
    }

    /// Bytes of all tensors.
    pub(crate) fn weights(&self) -> u64 {
        self.tensors.iter().map(TensorEntry::len).sum()
    }
}

struct Cursor<'a, R> {
    input: R,
    position: u64,
    limit: u64,
    wide: bool, // Lengths of eight bytes; version 1 has four.
    path: &'a Path,
}

struct Declared {
    name: String,
    dims: Vec<u64>,
    dtype: GgmlDType,
    offset: u64,
    len: u64,
}

impl<R: Read> Cursor<'_, R> {
    fn header(&mut self, file_len: u64) -> Result<Vec<TensorEntry>> {
        let magic = self.u32("the magic number")?;
        if magic != MAGIC {
            return Err(self.wrong("the magic number", format!("{MAGIC:#x} (GGUF)"), format!("{magic:#x}")));
        }
        let version = self.u32("the version")?;
        if !(1..=3).contains(&version) {
            return Err(self.wrong("the version", "1, 2 or 3", version));
        }
        self.wide = version > 1;
        let tensors = self.length("the number of tensors")?;
        let entries = self.length("the number of metadata entries")?;
        let mut alignment = DEFAULT_ALIGNMENT;
        for _ in 0..entries {
            if let Some(found) = self.entry()? {
                alignment = found;
            }
        }
        let mut declared = Vec::new();
        let mut names = BTreeSet::new();
        for _ in 0..tensors {
            let tensor = self.tensor()?;
            if !names.insert(tensor.name.clone()) {
                return Err(self.wrong(
                    &format!("tensor {}", tensor.name),
                    "one of that name",
                    "a second one",
                ));
            }
            declared.push(tensor);
        }
        let start = self.position.next_multiple_of(alignment);
        declared.into_iter().map(|tensor| self.place(tensor, start, file_len)).collect()
    }

    fn place(&self, tensor: Declared, start: u64, file_len: u64) -> Result<TensorEntry> {
        let Declared { name, dims, dtype, offset, len } = tensor;
        let first = start.checked_add(offset);
        let end = first.and_then(|first| first.checked_add(len)).filter(|end| *end <= file_len);
        match first.zip(end) {
            Some((first, end)) => Ok(TensorEntry { name, dims, dtype, range: first..end }),
            None => Err(self.wrong(
                &format!("tensor {name}"),
                format!("{len} bytes within the file's {file_len}"),
                format!("an offset of {offset} behind {start}: it does not end in the file"),
            )),
        }
    }

    /// Skips a metadata entry; its value where it is the alignment.
    fn entry(&mut self) -> Result<Option<u64>> {
        const ALIGNMENT: &str = "general.alignment";
        let len = self.length("a key's length")?;
        let name = if len == ALIGNMENT.len() as u64 {
            self.text(len)?
        } else {
            self.skip(len).map(|()| String::new())?
        };
        let kind = self.u32("a value's type")?;
        if name != ALIGNMENT {
            self.skip_value(kind, 0)?;
            return Ok(None);
        }
        let value = match kind {
            0 | 1 => u64::from(u8::from_le_bytes(self.bytes("the alignment")?)),
            2 | 3 => u64::from(u16::from_le_bytes(self.bytes("the alignment")?)),
            4 | 5 => u64::from(self.u32("the alignment")?),
            other => {
                return Err(self.wrong(
                    "the alignment",
                    "an integer of at most 32 bits",
                    format!("type {other}"),
                ));
            }
        };
        if !value.is_power_of_two() || value > 1 << 20 {
            return Err(self.wrong("the alignment", "a power of two up to 1 MiB", value));
        }
        Ok(Some(value))
    }

    fn skip_value(&mut self, kind: u32, depth: u32) -> Result<()> {
        let fixed = |kind| match kind {
            0 | 1 | 7 => Some(1),
            2 | 3 => Some(2),
            4..=6 => Some(4),
            10..=12 => Some(8),
            _ => None,
        };
        match (kind, fixed(kind)) {
            (_, Some(size)) => self.skip(size),
            (8, _) => {
                let len = self.length("a string's length")?;
                self.skip(len)
            }
            (9, _) if depth < DEEPEST => {
                let of = self.u32("an array's type")?;
                let count = self.length("an array's length")?;
                match fixed(of) {
                    Some(size) => self.skip(count.saturating_mul(size)),
                    // Each takes at least four bytes of a header of limited length, so this ends.
                    None => (0..count).try_for_each(|_| self.skip_value(of, depth + 1)),
                }
            }
            (9, _) => Err(self.wrong("an array", format!("at most {DEEPEST} within each other"), "one more")),
            _ => Err(self.wrong("a value's type", "0 to 12", kind)),
        }
    }

    fn tensor(&mut self) -> Result<Declared> {
        let len = self.length("a tensor's name")?;
        if len > LONGEST_NAME {
            return Err(self.wrong("a tensor's name", format!("at most {LONGEST_NAME} bytes"), len));
        }
        let name = self.text(len)?;
        let what = format!("tensor {name}");
        let count = self.u32(&what)?;
        if count > MOST_DIMS {
            return Err(self.wrong(&what, format!("at most {MOST_DIMS} dimensions"), count));
        }
        let mut dims = (0..count).map(|_| self.length(&what)).collect::<Result<Vec<_>>>()?;
        dims.reverse();
        let dtype = self.u32(&what)?;
        let offset = u64::from_le_bytes(self.bytes(&what)?);
        let Some(dtype) = dtype_of(dtype) else {
            return Err(self.wrong(&what, "an element type that candle has", format!("type {dtype}")));
        };
        let block = dtype.block_size() as u64;
        let elements = dims.iter().try_fold(1u64, |product, dim| product.checked_mul(*dim));
        let whole = elements
            .filter(|n| n.is_multiple_of(block) && dims.last().is_none_or(|d| d.is_multiple_of(block)));
        let len = whole.and_then(|n| (n / block).checked_mul(dtype.type_size() as u64));
        // candle multiplies in `usize` and makes f32 of some of it.
        let fits = whole.and_then(|n| n.checked_mul(8)).is_some_and(|n| isize::try_from(n).is_ok());
        match len.filter(|_| fits) {
            Some(len) => Ok(Declared { name, dims, dtype, offset, len }),
            None => Err(self.wrong(
                &what,
                format!("rows of whole blocks of {block}, in all below 2^60 elements"),
                format!("{dims:?}"),
            )),
        }
    }

    fn length(&mut self, what: &str) -> Result<u64> {
        if self.wide { Ok(u64::from_le_bytes(self.bytes(what)?)) } else { self.u32(what).map(u64::from) }
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.bytes(what)?))
    }

    fn bytes<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.room(N as u64, what)?;
        self.input.read_exact(&mut bytes).map_err(|source| self.failed(source))?;
        self.position += N as u64;
        Ok(bytes)
    }

    /// A short text; the caller has limited its length.
    fn text(&mut self, len: u64) -> Result<String> {
        self.room(len, "a name")?;
        let mut text = Vec::new();
        self.input.by_ref().take(len).read_to_end(&mut text).map_err(|source| self.failed(source))?;
        self.position += len;
        while text.last() == Some(&0) {
            text.pop(); // candle takes them off as well.
        }
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    fn skip(&mut self, len: u64) -> Result<()> {
        self.room(len, "metadata")?;
        let skipped = std::io::copy(&mut self.input.by_ref().take(len), &mut std::io::sink());
        match skipped {
            Ok(done) if done == len => {
                self.position += len;
                Ok(())
            }
            Ok(_) => Err(self.failed(std::io::ErrorKind::UnexpectedEof.into())),
            Err(source) => Err(self.failed(source)),
        }
    }

    fn room(&self, len: u64, what: &str) -> Result<()> {
        let left = self.limit - self.position;
        if len <= left {
            return Ok(());
        }
        Err(self.wrong(
            what,
            format!("at most {left} bytes more, so that the header ends within {} bytes", self.limit),
            len,
        ))
    }

    fn failed(&self, source: std::io::Error) -> Error {
        Error::Io { operation: "read", path: self.path.to_owned(), source }
    }

    fn wrong(&self, what: &str, expected: impl ToString, found: impl ToString) -> Error {
        Error::Malformed {
            path: self.path.to_owned(),
            what: what.to_owned(),
            offset: self.position,
            expected: expected.to_string(),
            found: found.to_string(),
        }
    }
}

/// The element types that candle reads; its own table is private.
const fn dtype_of(number: u32) -> Option<GgmlDType> {
    Some(match number {
        0 => GgmlDType::F32,
        1 => GgmlDType::F16,
        2 => GgmlDType::Q4_0,
        3 => GgmlDType::Q4_1,
        6 => GgmlDType::Q5_0,
        7 => GgmlDType::Q5_1,
        8 => GgmlDType::Q8_0,
        9 => GgmlDType::Q8_1,
        10 => GgmlDType::Q2K,
        11 => GgmlDType::Q3K,
        12 => GgmlDType::Q4K,
        13 => GgmlDType::Q5K,
        14 => GgmlDType::Q6K,
        15 => GgmlDType::Q8K,
        30 => GgmlDType::BF16,
        _ => return None,
    })
}

#[cfg(test)]
mod tests;
