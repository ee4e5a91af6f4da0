//! GGUF: a magic number, key-value pairs, tensor descriptions, their bytes.
//!
//! Format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>. Arrays, the tokenizer's among them, are skipped.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Seek};
use std::path::Path;

use dd_core::{Bytes, DType};

use super::source::Source;
use super::{ReadLimits, TensorHeader, WeightFiles, elements};
use crate::error::Result;

/// The most dimensions of a tensor.
const MAX_RANK: u32 = 8;
/// The longest name.
const MAX_NAME: u64 = 65_535;
/// The longest text of a key-value pair that is kept.
const MAX_TEXT: u64 = 256;
/// Arrays in arrays, at most.
const MAX_DEPTH: u8 = 4;
/// The fewest bytes that a tensor's description takes, and a pair.
const LEAST_TENSOR: u64 = 24;
const LEAST_PAIR: u64 = 13;

/// Number, name, elements and bytes of a block.
const KINDS: [(u32, &str, u64, u64); 32] = [
    (0, "F32", 1, 4),
    (1, "F16", 1, 2),
    (2, "Q4_0", 32, 18),
    (3, "Q4_1", 32, 20),
    (6, "Q5_0", 32, 22),
    (7, "Q5_1", 32, 24),
    (8, "Q8_0", 32, 34),
    (9, "Q8_1", 32, 36),
    (10, "Q2_K", 256, 84),
    (11, "Q3_K", 256, 110),
    (12, "Q4_K", 256, 144),
    (13, "Q5_K", 256, 176),
    (14, "Q6_K", 256, 210),
    (15, "Q8_K", 256, 292),
    (16, "IQ2_XXS", 256, 66),
    (17, "IQ2_XS", 256, 74),
    (18, "IQ3_XXS", 256, 98),
    (19, "IQ1_S", 256, 50),
    (20, "IQ4_NL", 32, 18),
    (21, "IQ3_S", 256, 110),
    (22, "IQ2_S", 256, 82),
    (23, "IQ4_XS", 256, 136),
    (24, "I8", 1, 1),
    (25, "I16", 1, 2),
    (26, "I32", 1, 4),
    (27, "I64", 1, 8),
    (28, "F64", 1, 8),
    (29, "IQ1_M", 256, 56),
    (30, "BF16", 1, 2),
    (34, "TQ1_0", 256, 54),
    (35, "TQ2_0", 256, 66),
    (39, "MXFP4", 32, 17),
];

/// The header of a file.
///
/// # Errors
/// [`Error::Io`](crate::Error::Io), [`Error::Format`](crate::Error::Format),
/// [`Error::HeaderTooLarge`](crate::Error::HeaderTooLarge).
pub fn read(path: &Path, limits: &ReadLimits) -> Result<WeightFiles> {
    parse(&mut Source::open(path, limits)?)
}

/// The header in `input`, of a file of `len` bytes; `name` names it in messages.
///
/// # Errors
/// As [`read`].
pub fn read_from<R: Read + Seek>(input: R, len: u64, name: &str, limits: &ReadLimits) -> Result<WeightFiles> {
    parse(&mut Source::new(input, len, Path::new(name), limits))
}

fn parse<R: Read + Seek>(source: &mut Source<R>) -> Result<WeightFiles> {
    if &source.array::<4>()? != b"GGUF" {
        return Err(source.wrong("expected the letters GGUF before"));
    }
    let version = source.u32()?;
    if !(2..=3).contains(&version) {
        return Err(source.wrong(format!("expected version 2 or 3, found {version}")));
    }
    let (tensors, pairs) = (source.u64()?, source.u64()?);
    let fits = |count: u64, least: u64| count.checked_mul(least).is_some_and(|bytes| bytes <= source.left());
    if !fits(tensors, LEAST_TENSOR) || !fits(pairs, LEAST_PAIR) {
        let left = source.left();
        return Err(source.wrong(format!("{tensors} tensors and {pairs} pairs do not fit the {left} B left")));
    }
    let mut metadata = BTreeMap::new();
    for _ in 0..pairs {
        let (key, value) = pair(source)?;
        metadata.extend(value.map(|value| (key, value)));
    }
    let mut all = Vec::new();
    let mut names = BTreeSet::new();
    for _ in 0..tensors {
        let (tensor, offset) = tensor(source)?;
        if !names.insert(tensor.name.clone()) {
            return Err(source.wrong(format!("tensor {:?} is there twice", tensor.name)));
        }
        all.push((tensor, offset));
    }
    let align =
        metadata.get("general.alignment").and_then(|text: &String| text.parse::<u64>().ok()).unwrap_or(32);
    if align == 0 || !align.is_power_of_two() {
        return Err(source.wrong(format!("expected an alignment that is a power of two, found {align}")));
    }
    let start = source.position().checked_next_multiple_of(align).unwrap_or(u64::MAX);
    for (tensor, offset) in &all {
        let end = start.checked_add(*offset).and_then(|at| at.checked_add(tensor.bytes.0));
        if end.is_none_or(|end| end > source.len()) {
            let (name, bytes, len) = (&tensor.name, tensor.bytes.0, source.len());
            return Err(source.wrong(format!("tensor {name:?}: {bytes} B at {start} + {offset} of {len} B")));
        }
    }
    let tensors = all.into_iter().map(|(tensor, _)| tensor).collect();
    Ok(WeightFiles { paths: vec![source.path().to_owned()], tensors, metadata })
}

fn name<R: Read + Seek>(source: &mut Source<R>, what: &str) -> Result<String> {
    let len = source.u64()?;
    if len > MAX_NAME {
        return Err(source.wrong(format!("{what} of {len} B, more than the {MAX_NAME} B allowed")));
    }
    source.text(len, what)
}

fn pair<R: Read + Seek>(source: &mut Source<R>) -> Result<(String, Option<String>)> {
    let key = name(source, "a key")?;
    let kind = source.u32()?;
    let value = match kind {
        0 => Some(u8::from_le_bytes(source.array()?).to_string()),
        1 => Some(i8::from_le_bytes(source.array()?).to_string()),
        2 => Some(u16::from_le_bytes(source.array()?).to_string()),
        3 => Some(i16::from_le_bytes(source.array()?).to_string()),
        4 => Some(source.u32()?.to_string()),
        5 => Some(i32::from_le_bytes(source.array()?).to_string()),
        6 => Some(f32::from_le_bytes(source.array()?).to_string()),
        7 => Some((source.array::<1>()? != [0]).to_string()),
        8 => {
            let len = source.u64()?;
            if len <= MAX_TEXT {
                Some(source.text(len, "a text")?)
            } else {
                source.skip(len, "a text")?;
                None
            }
        }
        10 => Some(source.u64()?.to_string()),
        11 => Some(i64::from_le_bytes(source.array()?).to_string()),
        12 => Some(f64::from_le_bytes(source.array()?).to_string()),
        _ => {
            skip_value(source, kind, 0)?;
            None
        }
    };
    Ok((key, value))
}

fn skip_value<R: Read + Seek>(source: &mut Source<R>, kind: u32, depth: u8) -> Result<()> {
    let fixed = |kind: u32| match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    };
    if kind == 8 {
        let len = source.u64()?;
        return source.skip(len, "a text");
    }
    if kind != 9 || depth >= MAX_DEPTH {
        return Err(source.wrong(format!("expected a value type of 0 to 12, found {kind} at depth {depth}")));
    }
    let (inner, count) = (source.u32()?, source.u64()?);
    if let Some(size) = fixed(inner) {
        let len =
            count.checked_mul(size).ok_or_else(|| source.wrong(format!("an array of {count} values")))?;
        return source.skip(len, "an array");
    }
    // Each text or array takes at least its length.
    if count.checked_mul(8).is_none_or(|bytes| bytes > source.left()) {
        return Err(source.wrong(format!("an array of {count} values, but {} B are left", source.left())));
    }
    for _ in 0..count {
        skip_value(source, inner, depth + 1)?;
    }
    Ok(())
}

fn tensor<R: Read + Seek>(source: &mut Source<R>) -> Result<(TensorHeader, u64)> {
    let name = name(source, "a tensor's name")?;
    let rank = source.u32()?;
    if rank > MAX_RANK {
        return Err(
            source.wrong(format!("tensor {name:?}: expected at most {MAX_RANK} dimensions, found {rank}"))
        );
    }
    source.keep(u64::from(rank) * 8 + 128)?;
    // The file names the innermost dimension first.
    let mut shape = (0..rank).map(|_| source.u64()).collect::<Result<Vec<u64>>>()?;
    let row = shape.first().copied().unwrap_or(1);
    shape.reverse();
    let (kind, offset) = (source.u32()?, source.u64()?);
    let known = KINDS.iter().find(|(number, _, _, _)| *number == kind);
    let Some((_, text, block, bytes)) = known else {
        return Err(source.wrong(format!("tensor {name:?}: unknown type {kind}")));
    };
    let count = elements(&shape).filter(|_| row.is_multiple_of(*block));
    let size = count.and_then(|count| (count / block).checked_mul(*bytes));
    let (Some(elements), Some(size)) = (count, size) else {
        return Err(source.wrong(format!("tensor {name:?}: {shape:?} is no whole number of {text} blocks")));
    };
    let dtype = text.parse::<DType>().ok();
    let kind = (*text).to_owned();
    Ok((TensorHeader { name, shape, kind, dtype, elements, bytes: Bytes(size) }, offset))
}
