//! ONNX: the graph and the descriptions of its weights; the weights themselves are skipped.
//!
//! Format: <https://github.com/onnx/onnx/blob/main/onnx/onnx.proto>. Common operators become layers of a
//! [`Graph`]; what is not known is named, and the parameters are counted all the same.

mod build;

use std::collections::BTreeMap;
use std::io::{Read, Seek};
use std::path::Path;

use dd_core::{Bytes, DType};

use super::source::Source;
use super::wire::{self, Value, field};
use super::{ReadLimits, TensorHeader, WeightFiles, elements};
use crate::error::Result;
use crate::graph::Graph;

/// The most dimensions of a tensor, and the most numbers of an attribute.
const MOST: usize = 64;
/// Initializers of at most so many bytes are read where they may be shapes.
const SMALL: u64 = 1024;

/// What an ONNX file describes.
#[derive(Debug)]
pub struct OnnxModel {
    /// Its weights.
    pub weights: WeightFiles,
    /// How many nodes it has of each operator.
    pub operators: BTreeMap<String, usize>,
    /// The network, or why it could not be built: an operator that is not known, a shape that is open.
    pub graph: Result<Graph>,
}

/// One node.
#[derive(Clone, Debug, Default)]
struct Node {
    inputs: Vec<String>,
    outputs: Vec<String>,
    name: String,
    operator: String,
    numbers: BTreeMap<String, i64>,
    lists: BTreeMap<String, Vec<i64>>,
}

/// A weight, with its values where it is small and whole.
#[derive(Clone, Debug)]
struct Weight {
    header: TensorHeader,
    values: Option<Vec<i64>>,
}

/// An input: its sizes, those that are open as nothing.
#[derive(Clone, Debug, Default)]
struct Declared {
    name: String,
    dtype: Option<DType>,
    sizes: Vec<Option<u64>>,
}

#[derive(Default)]
struct Parsed {
    name: String,
    nodes: Vec<Node>,
    weights: Vec<Weight>,
    inputs: Vec<Declared>,
    outputs: Vec<String>,
}

/// What a file describes.
///
/// # Errors
/// [`Error::Io`](crate::Error::Io), [`Error::Format`](crate::Error::Format),
/// [`Error::HeaderTooLarge`](crate::Error::HeaderTooLarge).
pub fn read(path: &Path, limits: &ReadLimits) -> Result<OnnxModel> {
    parse(&mut Source::open(path, limits)?)
}

/// What `input` describes, a file of `len` bytes; `name` names it in messages.
///
/// # Errors
/// As [`read`].
pub fn read_from<R: Read + Seek>(input: R, len: u64, name: &str, limits: &ReadLimits) -> Result<OnnxModel> {
    parse(&mut Source::new(input, len, Path::new(name), limits))
}

fn parse<R: Read + Seek>(source: &mut Source<R>) -> Result<OnnxModel> {
    let end = source.len();
    let mut parsed = None;
    let mut metadata = BTreeMap::new();
    while let Some((number, value)) = field(source, end)? {
        match (number, value) {
            (7, Value::Bytes(len)) if parsed.is_none() => parsed = Some(graph(source, len)?),
            (2, Value::Bytes(len)) if len <= SMALL => {
                metadata.insert("producer".to_owned(), source.text(len, "the producer")?);
            }
            (_, value) => wire::skip(source, value)?,
        }
    }
    let Some(parsed) = parsed else {
        return Err(source.wrong("expected a graph (field 7), found none: it is no ONNX model"));
    };
    let mut operators = BTreeMap::new();
    for node in &parsed.nodes {
        *operators.entry(node.operator.clone()).or_insert(0) += 1;
    }
    let tensors = parsed.weights.iter().map(|weight| weight.header.clone()).collect();
    let weights = WeightFiles { paths: vec![source.path().to_owned()], tensors, metadata };
    Ok(OnnxModel { weights, operators, graph: build::graph(&parsed) })
}

fn graph<R: Read + Seek>(source: &mut Source<R>, len: u64) -> Result<Parsed> {
    let end = source.position() + len;
    let mut parsed = Parsed::default();
    while let Some((number, value)) = field(source, end)? {
        match (number, value) {
            (1, Value::Bytes(len)) => {
                source.keep(128)?;
                parsed.nodes.push(node(source, len)?);
            }
            (2, Value::Bytes(len)) => parsed.name = source.text(len, "the graph's name")?,
            (5, Value::Bytes(len)) => {
                source.keep(128)?;
                parsed.weights.push(weight(source, len)?);
            }
            (11, Value::Bytes(len)) => {
                source.keep(128)?;
                parsed.inputs.push(declared(source, len)?);
            }
            (12, Value::Bytes(len)) => {
                source.keep(128)?;
                parsed.outputs.push(declared(source, len)?.name);
            }
            (_, value) => wire::skip(source, value)?,
        }
    }
    Ok(parsed)
}

fn node<R: Read + Seek>(source: &mut Source<R>, len: u64) -> Result<Node> {
    let end = source.position() + len;
    let mut node = Node::default();
    while let Some((number, value)) = field(source, end)? {
        match (number, value) {
            (1, Value::Bytes(len)) => {
                source.keep(32)?;
                node.inputs.push(source.text(len, "an input's name")?);
            }
            (2, Value::Bytes(len)) => {
                source.keep(32)?;
                node.outputs.push(source.text(len, "an output's name")?);
            }
            (3, Value::Bytes(len)) => node.name = source.text(len, "a node's name")?,
            (4, Value::Bytes(len)) => node.operator = source.text(len, "an operator")?,
            (5, Value::Bytes(len)) => attribute(source, len, &mut node)?,
            (_, value) => wire::skip(source, value)?,
        }
    }
    Ok(node)
}

fn attribute<R: Read + Seek>(source: &mut Source<R>, len: u64, node: &mut Node) -> Result<()> {
    let end = source.position() + len;
    let (mut name, mut single, mut list) = (String::new(), None, Vec::new());
    while let Some((number, value)) = field(source, end)? {
        match (number, value) {
            (1, Value::Bytes(len)) => name = source.text(len, "an attribute's name")?,
            (3, Value::Number(value)) => single = Some(value.cast_signed()),
            (8, Value::Number(value)) if list.len() < MOST => list.push(value.cast_signed()),
            (8, Value::Bytes(len)) => {
                list.extend(wire::packed(source, len, MOST)?.into_iter().map(u64::cast_signed));
            }
            // A constant's tensor: its values where it is small.
            (5, Value::Bytes(len)) => list.extend(weight(source, len)?.values.unwrap_or_default()),
            (_, value) => wire::skip(source, value)?,
        }
    }
    source.keep(64)?;
    node.numbers.extend(single.map(|value| (name.clone(), value)));
    if !list.is_empty() {
        node.lists.insert(name, list);
    }
    Ok(())
}

fn weight<R: Read + Seek>(source: &mut Source<R>, len: u64) -> Result<Weight> {
    let end = source.position() + len;
    let (mut shape, mut kind, mut name) = (Vec::new(), 0, String::new());
    let (mut raw, mut listed) = (None, Vec::new());
    while let Some((number, value)) = field(source, end)? {
        match (number, value) {
            (1, Value::Number(size)) if shape.len() < MOST => shape.push(size),
            (1, Value::Bytes(len)) => shape.extend(wire::packed(source, len, MOST)?),
            (2, Value::Number(number)) => kind = number,
            (8, Value::Bytes(len)) => name = source.text(len, "a weight's name")?,
            (9, Value::Bytes(len)) if len <= SMALL => raw = Some(source.bytes(len, "small values")?),
            (7, Value::Number(value)) if listed.len() < MOST => listed.push(value.cast_signed()),
            (7, Value::Bytes(len)) if len <= SMALL => {
                listed.extend(wire::packed(source, len, usize::MAX)?.into_iter().map(u64::cast_signed));
            }
            (_, value) => wire::skip(source, value)?,
        }
    }
    let wrong = |problem: &str| source.wrong(format!("weight {name:?}: {problem}"));
    if shape.len() > MOST {
        return Err(wrong("too many dimensions"));
    }
    let (text, bytes, dtype) = kind_of(kind).ok_or_else(|| wrong(&format!("unknown element type {kind}")))?;
    let count = elements(&shape).ok_or_else(|| wrong("more elements than fit 64 bits"))?;
    let size = count.checked_mul(bytes).ok_or_else(|| wrong("more bytes than fit 64 bits"))?;
    let size = if bytes == 0 { count.div_ceil(2) } else { size };
    let from_raw =
        |raw: Vec<u8>| raw.as_chunks::<8>().0.iter().map(|bytes| i64::from_le_bytes(*bytes)).collect();
    let values = (dtype == Some(DType::I64)).then(|| raw.map_or(listed, from_raw));
    let values = values.filter(|values| values.len() as u64 == count);
    let kind = text.to_owned();
    Ok(Weight {
        header: TensorHeader { name, shape, kind, dtype, elements: count, bytes: Bytes(size) },
        values,
    })
}

/// Name and bytes of an element type of `TensorProto`; zero bytes stand for half a byte.
fn kind_of(number: u64) -> Option<(&'static str, u64, Option<DType>)> {
    Some(match number {
        1 => ("F32", 4, Some(DType::F32)),
        2 => ("U8", 1, Some(DType::U8)),
        3 => ("I8", 1, Some(DType::I8)),
        4 => ("U16", 2, Some(DType::U16)),
        5 => ("I16", 2, Some(DType::I16)),
        6 => ("I32", 4, Some(DType::I32)),
        7 => ("I64", 8, Some(DType::I64)),
        8 => ("STRING", 0, None),
        9 => ("BOOL", 1, Some(DType::Bool)),
        10 => ("F16", 2, Some(DType::F16)),
        11 => ("F64", 8, Some(DType::F64)),
        12 => ("U32", 4, Some(DType::U32)),
        13 => ("U64", 8, Some(DType::U64)),
        14 => ("COMPLEX64", 8, None),
        15 => ("COMPLEX128", 16, None),
        16 => ("BF16", 2, Some(DType::BF16)),
        17 | 18 => ("F8_E4M3", 1, Some(DType::F8E4M3)),
        19 | 20 => ("F8_E5M2", 1, Some(DType::F8E5M2)),
        21 => ("U4", 0, None),
        22 => ("I4", 0, None),
        23 => ("F4", 0, None),
        _ => return None,
    })
}

fn declared<R: Read + Seek>(source: &mut Source<R>, len: u64) -> Result<Declared> {
    let end = source.position() + len;
    let mut declared = Declared::default();
    while let Some((number, value)) = field(source, end)? {
        match (number, value) {
            (1, Value::Bytes(len)) => declared.name = source.text(len, "an input's name")?,
            (2, Value::Bytes(len)) => {
                nested(source, len, 1, &mut |source, len| tensor_type(source, len, &mut declared))?
            }
            (_, value) => wire::skip(source, value)?,
        }
    }
    Ok(declared)
}

/// Every message in field `wanted` of a message, and nothing else.
fn nested<R: Read + Seek>(
    source: &mut Source<R>,
    len: u64,
    wanted: u64,
    act: &mut dyn FnMut(&mut Source<R>, u64) -> Result<()>,
) -> Result<()> {
    let end = source.position() + len;
    while let Some((number, value)) = field(source, end)? {
        match value {
            Value::Bytes(len) if number == wanted => act(source, len)?,
            value => wire::skip(source, value)?,
        }
    }
    Ok(())
}

fn tensor_type<R: Read + Seek>(source: &mut Source<R>, len: u64, declared: &mut Declared) -> Result<()> {
    let end = source.position() + len;
    while let Some((number, value)) = field(source, end)? {
        match (number, value) {
            (1, Value::Number(kind)) => declared.dtype = kind_of(kind).and_then(|(_, _, dtype)| dtype),
            (2, Value::Bytes(len)) => nested(source, len, 1, &mut |source, len| {
                if declared.sizes.len() >= MOST {
                    return Err(source.wrong("too many dimensions"));
                }
                declared.sizes.push(dimension(source, len)?);
                Ok(())
            })?,
            (_, value) => wire::skip(source, value)?,
        }
    }
    Ok(())
}

fn dimension<R: Read + Seek>(source: &mut Source<R>, len: u64) -> Result<Option<u64>> {
    let end = source.position() + len;
    let mut size = None;
    while let Some((number, value)) = field(source, end)? {
        match (number, value) {
            (1, Value::Number(value)) => size = Some(value).filter(|size| *size > 0 && *size < 1 << 40),
            (_, value) => wire::skip(source, value)?,
        }
    }
    Ok(size)
}
