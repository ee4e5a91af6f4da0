//! [`Table`]: a row per layer, and totals.

use std::collections::BTreeMap;
use std::fmt;

use dd_core::{Bytes, DType};
use serde::Serialize;

use crate::error::{Error, Result};
use crate::graph::{Graph, Node, Param, Shapes, Sizes};
use crate::layer::work::product;
use crate::program::Precision;

/// One use of a layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    /// The layer's name.
    pub name: String,
    /// Its kind, such as `Conv2d`.
    pub kind: String,
    /// Shapes of what goes in.
    pub inputs: Vec<Vec<usize>>,
    /// Shape of what comes out.
    pub output: Vec<usize>,
    /// Elements of its parameters.
    pub parameters: u64,
    /// Those that training changes.
    pub trainable: u64,
    /// Whether its parameters were counted in a row above: used again, or shared.
    pub again: bool,
    /// Multiply-adds.
    pub multiply_adds: u64,
    /// Bytes of its parameters.
    pub parameter_bytes: Bytes,
    /// Bytes of its result; none for a view or in place.
    pub output_bytes: Bytes,
}

/// What a network consists of, layer by layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Table {
    /// The network's name.
    pub name: String,
    /// A row per use of a layer, in the order in which they run.
    pub rows: Vec<Row>,
    /// Elements of all parameters, each once.
    pub parameters: u64,
    /// Those that training changes.
    pub trainable: u64,
    /// Bytes of the parameters, by dtype.
    pub bytes_by_dtype: BTreeMap<String, Bytes>,
    /// Multiply-adds of all rows.
    pub multiply_adds: u64,
    /// Bytes of all results together; they are not all held at once.
    pub output_bytes: Bytes,
}

impl Graph {
    /// The table of this network at given sizes.
    ///
    /// # Errors
    /// As [`shapes`](Self::shapes); a size overflow where a total does not fit 64 bits.
    pub fn table(&self, sizes: Sizes, precision: Precision) -> Result<Table> {
        let shapes = self.shapes(sizes)?;
        let overflow = || Error::overflow(format!("the totals of {}", self.name()));
        let mut seen = vec![false; self.params().len()];
        let mut table = Table {
            name: self.name().to_owned(),
            rows: Vec::new(),
            parameters: self.parameter_count()?,
            trainable: 0,
            bytes_by_dtype: BTreeMap::new(),
            multiply_adds: 0,
            output_bytes: Bytes::ZERO,
        };
        for param in self.params() {
            let elements = product(&param.shape).ok_or_else(overflow)?;
            table.trainable += if param.trainable { elements } else { 0 };
            let (dtype, bytes) = stored(param, elements, precision)?;
            *table.bytes_by_dtype.entry(dtype.to_string()).or_default() += bytes;
        }
        for node in self.nodes() {
            let row = self.row(node, &shapes, precision, &mut seen)?;
            table.multiply_adds = table.multiply_adds.checked_add(row.multiply_adds).ok_or_else(overflow)?;
            table.output_bytes = table.output_bytes.checked_add(row.output_bytes).ok_or_else(overflow)?;
            table.rows.push(row);
        }
        Ok(table)
    }

    fn row(&self, node: &Node, shapes: &Shapes, precision: Precision, seen: &mut [bool]) -> Result<Row> {
        let module = self.module_of(node).ok_or_else(|| Error::overflow("a graph without its module"))?;
        let inputs: Vec<&[usize]> = node.inputs.iter().map(|value| shapes.of(*value)).collect();
        let output = shapes.of(node.output);
        let work = module.layer.multiply_adds(&inputs, output);
        let mut row = Row {
            name: module.name.clone(),
            kind: module.layer.kind().to_owned(),
            output: output.to_vec(),
            parameters: 0,
            trainable: 0,
            again: !module.params.is_empty(),
            multiply_adds: work.ok_or_else(|| Error::overflow(format!("the work of {}", module.name)))?,
            parameter_bytes: Bytes::ZERO,
            output_bytes: Bytes::ZERO,
            inputs: inputs.iter().map(|shape| shape.to_vec()).collect(),
        };
        if !module.layer.is_view() && !module.layer.is_in_place() {
            row.output_bytes = precision.compute.bytes_for(shapes.elements(node.output)?)?;
        }
        for id in &module.params {
            let (Some(param), Some(seen)) = (self.params().get(id.index()), seen.get_mut(id.index())) else {
                continue;
            };
            let elements = product(&param.shape).ok_or_else(|| Error::overflow(&param.name))?;
            row.parameters = row.parameters.saturating_add(elements);
            row.trainable = row.trainable.saturating_add(if param.trainable { elements } else { 0 });
            row.parameter_bytes += stored(param, elements, precision)?.1;
            row.again &= std::mem::replace(seen, true);
        }
        Ok(row)
    }
}

fn stored(param: &Param, elements: u64, precision: Precision) -> Result<(DType, Bytes)> {
    let dtype = param.dtype.unwrap_or(precision.params);
    let whole = elements.checked_next_multiple_of(dtype.block_elements());
    Ok((dtype, dtype.bytes_for(whole.ok_or_else(|| Error::overflow(&param.name))?)?))
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<40} {:<11} {:<22} {:>14} {:>16}",
            "Layer", "Kind", "Output", "Parameters", "Mult-adds"
        )?;
        for row in &self.rows {
            let parameters = match (row.parameters, row.again) {
                (0, _) => "--".to_owned(),
                (_, true) => "(shared)".to_owned(),
                (count, false) => grouped(count),
            };
            let work = if row.multiply_adds == 0 { "--".to_owned() } else { grouped(row.multiply_adds) };
            let shape = format!("{:?}", row.output);
            writeln!(f, "{:<40} {:<11} {shape:<22} {parameters:>14} {work:>16}", row.name, row.kind)?;
        }
        writeln!(f, "Total parameters: {}", grouped(self.parameters))?;
        writeln!(f, "Trainable: {}", grouped(self.trainable))?;
        for (dtype, bytes) in &self.bytes_by_dtype {
            writeln!(f, "Parameters in {dtype}: {bytes}")?;
        }
        writeln!(f, "Multiply-adds: {}", grouped(self.multiply_adds))?;
        write!(f, "All results together: {}", self.output_bytes)
    }
}

/// A number with a comma between thousands.
#[must_use]
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
