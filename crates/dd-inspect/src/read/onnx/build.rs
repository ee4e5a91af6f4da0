//! ONNX operators as layers.

use std::collections::BTreeMap;

use dd_core::DType;

use super::{Declared, Node, Parsed, Weight};
use crate::error::{Error, Result};
use crate::graph::{Axis, Graph, GraphBuilder, ValueId};
use crate::layer::{Activation, Cell, Conv, Layer, Norm, NormKind, Pool, PoolKind, Recurrent, Target};

/// The network that the nodes make; the first open axis of an input is the batch, the second the sequence.
pub(super) fn graph(parsed: &Parsed) -> Result<Graph> {
    let mut build = Build {
        builder: GraphBuilder::new(if parsed.name.is_empty() { "onnx" } else { &parsed.name }),
        values: BTreeMap::new(),
        weights: parsed.weights.iter().map(|weight| (weight.header.name.as_str(), weight)).collect(),
        constants: BTreeMap::new(),
        used: Vec::new(),
    };
    for input in &parsed.inputs {
        if !build.weights.contains_key(input.name.as_str()) {
            build.input(input)?;
        }
    }
    for node in &parsed.nodes {
        build.node(node)?;
    }
    // What no layer took counts as well.
    for weight in &parsed.weights {
        let header = &weight.header;
        if !build.used.contains(&header.name) && weight.values.is_none() {
            build.builder.parameter(&header.name, sizes(&header.shape)?, header.dtype)?;
        }
    }
    let outputs = parsed.outputs.iter().map(|name| build.value(name)).collect::<Result<Vec<_>>>()?;
    build.builder.finish(outputs)
}

struct Build<'a> {
    builder: GraphBuilder,
    values: BTreeMap<String, ValueId>,
    weights: BTreeMap<&'a str, &'a Weight>,
    /// Small whole numbers that nodes make.
    constants: BTreeMap<String, Vec<i64>>,
    used: Vec<String>,
}

fn sizes(shape: &[u64]) -> Result<Vec<usize>> {
    shape.iter().map(|size| size_of(*size)).collect()
}

fn size_of(size: u64) -> Result<usize> {
    usize::try_from(size).map_err(|_| Error::overflow(format!("a size of {size}")))
}

impl Node {
    fn list(&self, name: &str) -> Option<&[i64]> {
        self.lists.get(name).map(Vec::as_slice)
    }

    fn number(&self, name: &str, otherwise: i64) -> i64 {
        self.numbers.get(name).copied().unwrap_or(otherwise)
    }

    fn wrong(&self, problem: impl Into<String>) -> Error {
        let name = if self.name.is_empty() {
            self.outputs.first().cloned().unwrap_or_default()
        } else {
            self.name.clone()
        };
        Error::layer(name, format!("{}: {}", self.operator, problem.into()))
    }

    /// Two numbers of an attribute; a signal has one, and height one.
    fn pair(&self, name: &str, axes: usize, otherwise: usize) -> Result<[usize; 2]> {
        let rest = if name == "pads" { 0 } else { 1 };
        let whole = |value: Option<&i64>| value.map_or(Ok(otherwise), |value| usize::try_from(*value));
        let list = self.list(name).unwrap_or_default();
        let pair = if axes == 1 {
            whole(list.first()).map(|one| [rest, one])
        } else {
            whole(list.first()).and_then(|one| whole(list.get(1)).map(|two| [one, two]))
        };
        pair.map_err(|_| self.wrong(format!("{name} is {list:?}")))
    }
}

impl Build<'_> {
    fn input(&mut self, input: &Declared) -> Result<()> {
        let mut open = [Axis::Batch, Axis::Seq].into_iter();
        let mut axes = Vec::new();
        for size in &input.sizes {
            axes.push(match size {
                Some(size) => Axis::Fixed(size_of(*size)?),
                None => open.next().ok_or_else(|| {
                    Error::layer(
                        &input.name,
                        format!("expected at most two open sizes, found {:?}", input.sizes),
                    )
                })?,
            });
        }
        let dtype = input.dtype.filter(|dtype| !matches!(dtype, DType::F32 | DType::F16 | DType::BF16));
        let value = self.builder.input_of(&input.name, axes, dtype);
        self.values.insert(input.name.clone(), value);
        Ok(())
    }

    fn value(&self, name: &str) -> Result<ValueId> {
        let known = self.values.get(name).copied();
        known.ok_or_else(|| Error::layer(name, "expected a result of a node before, found none"))
    }

    fn x(&self, node: &Node, at: usize) -> Result<ValueId> {
        self.value(node.inputs.get(at).ok_or_else(|| node.wrong(format!("expected input {at}")))?)
    }

    /// The shape of a weight that goes in; from then on it belongs to a layer.
    fn weight(&mut self, node: &Node, at: usize) -> Option<Vec<u64>> {
        let name = node.inputs.get(at)?;
        let weight = self.weights.get(name.as_str())?;
        self.used.push(name.clone());
        Some(weight.header.shape.clone())
    }

    fn whole(&self, node: &Node, at: usize) -> Option<Vec<i64>> {
        let name = node.inputs.get(at)?;
        let weight = self.weights.get(name.as_str()).and_then(|weight| weight.values.clone());
        weight.or_else(|| self.constants.get(name).cloned())
    }

    fn shape(&self, value: ValueId) -> Vec<usize> {
        self.builder.trial_shape(value).to_vec()
    }

    fn give(&mut self, node: &Node, value: ValueId) {
        if let Some(name) = node.outputs.first() {
            self.values.insert(name.clone(), value);
        }
    }

    fn apply(&mut self, node: &Node, layer: Layer, inputs: &[ValueId]) -> Result<()> {
        let name = node.outputs.first().map_or(node.name.as_str(), String::as_str);
        let value = self.builder.layer(name, layer, inputs)?;
        self.give(node, value);
        Ok(())
    }

    fn node(&mut self, node: &Node) -> Result<()> {
        let activation = |function| Some(Layer::activation(function));
        let simple = match node.operator.as_str() {
            "Relu" => activation(Activation::Relu),
            "Sigmoid" => activation(Activation::Sigmoid),
            "Tanh" => activation(Activation::Tanh),
            "Gelu" => activation(Activation::Gelu),
            "Silu" | "Swish" => activation(Activation::Silu),
            "Softmax" => Some(Layer::Softmax),
            _ => None,
        };
        if let Some(layer) = simple {
            let x = self.x(node, 0)?;
            return self.apply(node, layer, &[x]);
        }
        match node.operator.as_str() {
            "Constant" => {
                let values =
                    node.list("value").or_else(|| node.list("value_ints")).unwrap_or_default().to_vec();
                self.constants.extend(node.outputs.first().map(|name| (name.clone(), values)));
                Ok(())
            }
            "Identity" | "Dropout" | "Cast" => {
                let x = self.x(node, 0)?;
                self.give(node, x);
                Ok(())
            }
            "Conv" => self.conv(node),
            "Gemm" | "MatMul" => self.linear(node),
            "BatchNormalization" | "LayerNormalization" | "GroupNormalization" => self.norm(node),
            "MaxPool" | "AveragePool" | "GlobalMaxPool" | "GlobalAveragePool" => self.pool(node),
            "Add" | "Mul" => self.elementwise(node),
            "Concat" => {
                let values = (0..node.inputs.len()).map(|at| self.x(node, at)).collect::<Result<Vec<_>>>()?;
                let rank = values.first().map_or(0, |value| self.shape(*value).len());
                let axis = axis(node, "axis", 0, rank)?;
                self.apply(node, Layer::Concat { axis }, &values)
            }
            "Transpose" => {
                let x = self.x(node, 0)?;
                let rank = self.shape(x).len();
                let given =
                    node.list("perm").map(|list| list.iter().map(|at| usize::try_from(*at)).collect());
                let order = given.unwrap_or_else(|| Ok((0..rank).rev().collect()));
                let order = order.map_err(|_| node.wrong("perm holds a negative axis"))?;
                self.apply(node, Layer::Permute(order), &[x])
            }
            "Flatten" => {
                let x = self.x(node, 0)?;
                self.apply(node, Layer::flatten(), &[x])
            }
            "Reshape" => self.reshape(node),
            "Gather" => self.gather(node),
            "LSTM" | "GRU" => self.recurrent(node),
            "Resize" | "Upsample" => {
                Err(node.wrong("its scales are floats, which are not read here; it is not built"))
            }
            other => Err(node.wrong(format!("operator {other:?} is not known here"))),
        }
    }

    fn conv(&mut self, node: &Node) -> Result<()> {
        let x = self.x(node, 0)?;
        let weight = self.weight(node, 1).ok_or_else(|| node.wrong("expected a weight"))?;
        let bias = self.weight(node, 2).is_some();
        let shape = sizes(&weight)?;
        let [outputs, each, kernel @ ..] = shape.as_slice() else {
            return Err(node.wrong(format!("expected a kernel of one or two axes, found {weight:?}")));
        };
        let kernel = match *kernel {
            [one] => [1, one],
            [one, two] => [one, two],
            _ => return Err(node.wrong(format!("expected a kernel of one or two axes, found {weight:?}"))),
        };
        let axes = shape.len() - 2;
        let groups = usize::try_from(node.number("group", 1)).map_err(|_| node.wrong("group is negative"))?;
        let inputs = each.checked_mul(groups).ok_or_else(|| node.wrong("its channels overflow"))?;
        let conv = Conv {
            axes,
            inputs,
            outputs: *outputs,
            kernel,
            stride: node.pair("strides", axes, 1)?,
            padding: node.pair("pads", axes, 0)?,
            dilation: node.pair("dilations", axes, 1)?,
            groups,
            bias,
        };
        self.apply(node, Layer::Conv(conv), &[x])
    }

    fn linear(&mut self, node: &Node) -> Result<()> {
        let x = self.x(node, 0)?;
        let Some(weight) = self.weight(node, 1) else {
            let other = self.x(node, 1)?;
            return self.apply(node, Layer::MatMul, &[x, other]);
        };
        let bias = node.operator == "Gemm" && self.weight(node, 2).is_some();
        let shape = sizes(&weight)?;
        let [first, second] = *shape.as_slice() else {
            return Err(node.wrong(format!("expected a matrix, found {weight:?}")));
        };
        let turned = node.operator == "Gemm" && node.number("transB", 0) != 0;
        let (inputs, outputs) = if turned { (second, first) } else { (first, second) };
        self.apply(node, Layer::Linear { inputs, outputs, bias }, &[x])
    }

    fn norm(&mut self, node: &Node) -> Result<()> {
        let x = self.x(node, 0)?;
        let scale = self.weight(node, 1).ok_or_else(|| node.wrong("expected a scale"))?;
        let width = size_of(scale.first().copied().unwrap_or_default())?;
        let shift = self.weight(node, 2).is_some();
        let kind = match node.operator.as_str() {
            "LayerNormalization" => NormKind::Layer,
            "GroupNormalization" => {
                let groups = usize::try_from(node.number("num_groups", 1));
                NormKind::Group(groups.map_err(|_| node.wrong("num_groups is negative"))?)
            }
            _ => NormKind::Batch,
        };
        self.apply(node, Layer::Norm(Norm { kind, width, scale: true, shift }), &[x])
    }

    fn pool(&mut self, node: &Node) -> Result<()> {
        let x = self.x(node, 0)?;
        let kind = if node.operator.contains("Max") { PoolKind::Max } else { PoolKind::Average };
        let axes = self.shape(x).len().saturating_sub(2);
        let pool = if node.operator.starts_with("Global") {
            Pool { axes, ..Pool::global(kind) }
        } else {
            let kernel = node.pair("kernel_shape", axes, 1)?;
            Pool {
                kind,
                axes,
                kernel,
                stride: node.pair("strides", axes, 1)?,
                padding: node.pair("pads", axes, 0)?,
            }
        };
        self.apply(node, Layer::Pool(pool), &[x])
    }

    /// A sum or product of two values; with a weight, that is a bias or scale of its own.
    fn elementwise(&mut self, node: &Node) -> Result<()> {
        let weight = [0, 1]
            .into_iter()
            .find(|at| node.inputs.get(*at).is_some_and(|name| self.weights.contains_key(name.as_str())));
        let Some(at) = weight else {
            let (a, b) = (self.x(node, 0)?, self.x(node, 1)?);
            let layer = if node.operator == "Add" { Layer::Add } else { Layer::Multiply };
            return self.apply(node, layer, &[a, b]);
        };
        // Counted as a parameter; the sum itself takes a new result, as any elementwise layer does.
        let x = self.x(node, 1 - at)?;
        if let Some(shape) = self.weight(node, at) {
            let name = node.inputs.get(at).cloned().unwrap_or_default();
            self.builder.parameter(&name, sizes(&shape)?, None)?;
        }
        let same = (0..self.shape(x).len()).collect();
        self.apply(node, Layer::Permute(same), &[x])
    }

    fn reshape(&mut self, node: &Node) -> Result<()> {
        let x = self.x(node, 0)?;
        let to = self.whole(node, 1).or_else(|| node.list("shape").map(<[i64]>::to_vec));
        let to = to.ok_or_else(|| node.wrong("its shape is computed, which is not followed here"))?;
        let target = |(at, size): (usize, &i64)| match size {
            0 => Ok(Target::Same(at)),
            -1 => Ok(Target::Rest),
            size => usize::try_from(*size)
                .map(Target::Fixed)
                .map_err(|_| node.wrong(format!("its shape is {to:?}"))),
        };
        let targets = to.iter().enumerate().map(target).collect::<Result<Vec<_>>>()?;
        self.apply(node, Layer::Reshape(targets), &[x])
    }

    fn gather(&mut self, node: &Node) -> Result<()> {
        let Some(table) = self.weight(node, 0) else {
            return Err(node.wrong("expected a table of weights, as in an embedding"));
        };
        let ids = self.x(node, 1)?;
        let shape = sizes(&table)?;
        match *shape.as_slice() {
            [count, width] => self.apply(node, Layer::Embedding { count, width }, &[ids]),
            _ => Err(node.wrong(format!("expected a matrix, found {table:?}"))),
        }
    }

    /// Sequences come first in ONNX: `[seq, batch, inputs]`.
    fn recurrent(&mut self, node: &Node) -> Result<()> {
        let x = self.x(node, 0)?;
        let weight = self.weight(node, 1).ok_or_else(|| node.wrong("expected a weight"))?;
        let recurrent = self.weight(node, 2).ok_or_else(|| node.wrong("expected recurrent weights"))?;
        let bias = self.weight(node, 3).is_some();
        let ([1, _, inputs], [1, _, hidden]) = (weight.as_slice(), recurrent.as_slice()) else {
            return Err(node.wrong(format!("expected one direction, found weights of {weight:?}")));
        };
        let cell = if node.operator == "LSTM" { Cell::Lstm } else { Cell::Gru };
        let (inputs, hidden) = (size_of(*inputs)?, size_of(*hidden)?);
        let name = node.outputs.first().cloned().unwrap_or_default();
        let turned = self.builder.layer(&format!("{name}.in"), Layer::Permute(vec![1, 0, 2]), &[x])?;
        let layer = Layer::Recurrent(Recurrent { cell, inputs, hidden, bias });
        let states = self.builder.layer(&name, layer, &[turned])?;
        let back = self.builder.layer(&format!("{name}.out"), Layer::Permute(vec![1, 0, 2]), &[states])?;
        // [seq, batch, hidden] as [seq, 1, batch, hidden].
        let targets = vec![Target::Same(0), Target::Fixed(1), Target::Same(1), Target::Same(2)];
        let out = self.builder.layer(&format!("{name}.directions"), Layer::Reshape(targets), &[back])?;
        self.give(node, out);
        Ok(())
    }
}

fn axis(node: &Node, name: &str, otherwise: i64, rank: usize) -> Result<usize> {
    let given = node.number(name, otherwise);
    let rank = i64::try_from(rank).unwrap_or(i64::MAX);
    let from_front = if given < 0 { given.saturating_add(rank) } else { given };
    usize::try_from(from_front).map_err(|_| node.wrong(format!("{name} is {given} of {rank} axes")))
}
