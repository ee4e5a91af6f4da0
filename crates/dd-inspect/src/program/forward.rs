//! From a graph to the steps of a pass forward.

use dd_core::DType;

use super::{
    Access, Buffer, BufferId, Inference, Op, Operand, Part, Precision, Program, Role, Slot, Step, Use,
};
use crate::error::{Error, Result};
use crate::graph::{Graph, Module, Node, Shapes, Sizes, ValueId};
use crate::layer::work::product;
use crate::layer::{Attention, Cell, Layer, NormKind, PoolKind, Recurrent};

impl Graph {
    /// The steps of one pass forward.
    ///
    /// # Errors
    /// As [`shapes`](Self::shapes); [`Error::Setting`] for a computation in a type of less than a byte.
    pub fn inference(&self, sizes: Sizes, options: &Inference) -> Result<Program> {
        let precision = Precision::all(options.precision.compute);
        let mut lowering = Lowering::new(self, sizes, precision, options.past)?;
        lowering.forward(false)?;
        for value in &self.outputs {
            let buffer = lowering.env.buffer(self, *value)?;
            lowering.program.keep(buffer);
            lowering.program.outputs.push(buffer);
        }
        Ok(lowering.program)
    }
}

/// Where each value lies at the moment.
#[derive(Clone, Debug)]
pub(super) struct Env {
    buffers: Vec<Option<BufferId>>,
    /// Per value, whether an in-place layer wrote over it.
    stale: Vec<bool>,
}

impl Env {
    fn new(values: usize) -> Self {
        Self { buffers: vec![None; values], stale: vec![false; values] }
    }

    pub(super) fn set(&mut self, value: ValueId, buffer: BufferId) {
        if let Some(slot) = self.buffers.get_mut(value.0) {
            *slot = Some(buffer);
        }
        if let Some(stale) = self.stale.get_mut(value.0) {
            *stale = false;
        }
    }

    /// The buffer of a value, which still has to hold it.
    pub(super) fn buffer(&self, graph: &Graph, value: ValueId) -> Result<BufferId> {
        let known = self.buffers.get(value.0).copied().flatten();
        let known = known.ok_or_else(|| Error::Missing {
            what: "computed value",
            index: value.0,
            count: graph.values,
            graph: graph.name.clone(),
        })?;
        if self.stale.get(value.0) == Some(&true) {
            let maker =
                graph.nodes.iter().find(|node| node.output == value).and_then(|node| graph.module_of(node));
            let problem = "a layer works in place on its result, which the gradient needs; let that layer write into new \
                           memory";
            return Err(Error::layer(maker.map(|module| module.name.clone()).unwrap_or_default(), problem));
        }
        Ok(known)
    }

    fn overwrite(&mut self, buffer: BufferId) {
        for (known, stale) in self.buffers.iter().zip(&mut self.stale) {
            *stale |= *known == Some(buffer);
        }
    }
}

/// A program that is being made.
pub(super) struct Lowering<'a> {
    pub(super) graph: &'a Graph,
    pub(super) shapes: Shapes,
    pub(super) precision: Precision,
    past: Option<usize>,
    pub(super) program: Program,
    pub(super) env: Env,
    /// Per node, what its forward kept for the gradient.
    pub(super) aux: Vec<Vec<BufferId>>,
}

impl<'a> Lowering<'a> {
    pub(super) fn new(
        graph: &'a Graph,
        sizes: Sizes,
        precision: Precision,
        past: Option<usize>,
    ) -> Result<Self> {
        if precision.compute.element_bytes().is_none() {
            let reason = "results are of a type of at least a byte per element";
            return Err(Error::setting("compute dtype", precision.compute, reason));
        }
        let shapes = graph.shapes(sizes)?;
        let mut lowering = Self {
            graph,
            shapes,
            precision,
            past,
            program: Program::default(),
            env: Env::new(graph.values),
            aux: vec![Vec::new(); graph.nodes.len()],
        };
        for param in &graph.params {
            let elements = product(&param.shape).ok_or_else(|| Error::overflow(&param.name))?;
            let dtype = param.dtype.unwrap_or(precision.compute);
            let bytes = param_bytes(dtype, elements)?;
            let buffer = lowering.buffer_of(Role::Parameter, dtype, elements, bytes);
            lowering.program.params.push(buffer);
        }
        for input in &graph.inputs {
            let elements = lowering.shapes.elements(input.value)?;
            let buffer =
                lowering.new_buffer(Role::Input, input.dtype.unwrap_or(precision.compute), elements)?;
            lowering.program.inputs.push(buffer);
            lowering.env.set(input.value, buffer);
        }
        Ok(lowering)
    }

    /// Emits all nodes; with `train`, with what their gradients need, checkpointed ones excepted.
    pub(super) fn forward(&mut self, train: bool) -> Result<()> {
        let graph = self.graph;
        let mut env = self.env.clone();
        for (at, node) in graph.nodes.iter().enumerate() {
            self.forward_node(at, node, &mut env, train && node.segment.is_none())?;
        }
        self.env = env;
        Ok(())
    }

    pub(super) fn forward_node(&mut self, at: usize, node: &Node, env: &mut Env, train: bool) -> Result<()> {
        let graph = self.graph;
        let Some(module) = graph.module_of(node) else { return Ok(()) };
        let inputs = node.inputs.iter().map(|value| env.buffer(graph, *value)).collect::<Result<Vec<_>>>()?;
        let first = inputs.first().copied();
        if let (true, Some(first)) = (module.layer.is_view(), first) {
            env.set(node.output, first);
            return Ok(());
        }
        if let (true, Some(first)) = (module.layer.is_in_place(), first) {
            env.overwrite(first);
            env.set(node.output, first);
            let operands = vec![operand(Slot::Out, first, Access::Update)];
            self.push(Op::Forward(Box::new(self.use_of(module, node))), operands, at);
            return Ok(());
        }
        let elements = self.shapes.elements(node.output)?;
        let out = self.new_buffer(Role::Activation, self.precision.compute, elements)?;
        env.set(node.output, out);
        match &module.layer {
            Layer::Concat { axis } => return self.concat(at, node, &inputs, out, *axis),
            Layer::Narrow { axis, start, len } => {
                let part =
                    part(self.shapes.of(*node.inputs.first().unwrap_or(&node.output)), *axis, *start, *len);
                let operands =
                    vec![read(Slot::X(0), inputs.first()), Some(operand(Slot::Out, out, Access::Write))];
                self.push(Op::Extract(part), operands.into_iter().flatten().collect(), at);
                return Ok(());
            }
            _ => {}
        }
        self.plain(at, node, module, inputs, out, train)
    }

    /// A step of one layer: inputs, parameters, result, and memory of its own.
    fn plain(
        &mut self,
        at: usize,
        node: &Node,
        module: &Module,
        mut inputs: Vec<BufferId>,
        out: BufferId,
        train: bool,
    ) -> Result<()> {
        let mut using = self.use_of(module, node);
        if let (Layer::Attention(attention), Some(past)) = (&module.layer, self.past)
            && attention.cached
        {
            self.append(at, attention, &mut inputs, &mut using, past)?;
        }
        let mut operands: Vec<Operand> =
            (0..).zip(&inputs).map(|(slot, buffer)| operand(Slot::X(slot), *buffer, Access::Read)).collect();
        operands.extend(self.param_operands(module));
        operands.push(operand(Slot::Out, out, Access::Write));
        let extra = extra(&using, train)?;
        let mut kept = Vec::new();
        for (slot, elements) in (0..).zip(extra.saved) {
            // What is saved beside results is kept in full precision.
            let buffer = self.new_buffer(Role::Saved, DType::F32, elements)?;
            operands.push(operand(Slot::Aux(slot), buffer, Access::Write));
            kept.push(buffer);
        }
        for (slot, elements) in (0..).zip(extra.scratch) {
            let buffer = self.new_buffer(Role::Scratch, self.precision.compute, elements)?;
            operands.push(operand(Slot::Scratch(slot), buffer, Access::Scratch));
        }
        if let Some(aux) = self.aux.get_mut(at) {
            *aux = kept;
        }
        self.push(Op::Forward(Box::new(using)), operands, at);
        Ok(())
    }

    pub(super) fn param_operands(&self, module: &Module) -> Vec<Operand> {
        let buffers = module.params.iter().filter_map(|id| self.program.params.get(id.0));
        (0..).zip(buffers).map(|(slot, buffer)| operand(Slot::P(slot), *buffer, Access::Read)).collect()
    }

    fn concat(
        &mut self,
        at: usize,
        node: &Node,
        inputs: &[BufferId],
        out: BufferId,
        axis: usize,
    ) -> Result<()> {
        let whole = self.shapes.of(node.output).to_vec();
        let mut start = 0;
        for (value, buffer) in node.inputs.iter().zip(inputs) {
            let len = self.shapes.of(*value).get(axis).copied().unwrap_or_default();
            let access = if start == 0 { Access::Write } else { Access::Update };
            let operands = vec![operand(Slot::X(0), *buffer, Access::Read), operand(Slot::Out, out, access)];
            self.push(Op::Insert(part(&whole, axis, start, len)), operands, at);
            start += len;
        }
        Ok(())
    }

    /// Adds new keys and values to the cache, and lets attention read that.
    fn append(
        &mut self,
        at: usize,
        attention: &Attention,
        inputs: &mut [BufferId],
        using: &mut Use,
        past: usize,
    ) -> Result<()> {
        for slot in [1, 2] {
            let (Some(buffer), Some(shape)) = (inputs.get_mut(slot), using.inputs.get_mut(slot)) else {
                continue;
            };
            let new = shape.get(1).copied().unwrap_or_default();
            let all = past.checked_add(new).ok_or_else(|| Error::overflow("the positions of the cache"))?;
            let held = attention.window.map_or(all, |window| all.min(window.max(new)));
            if let Some(positions) = shape.get_mut(1) {
                *positions = held;
            }
            let elements =
                product(shape).ok_or_else(|| Error::overflow(format!("a cache of shape {shape:?}")))?;
            let cache = self.new_buffer(Role::Cache, self.precision.compute, elements)?;
            let operands =
                vec![operand(Slot::X(0), *buffer, Access::Read), operand(Slot::Out, cache, Access::Update)];
            self.push(Op::Insert(part(shape, 1, held - new, new)), operands, at);
            *buffer = cache;
        }
        Ok(())
    }

    pub(super) fn use_of(&self, module: &Module, node: &Node) -> Use {
        Use {
            layer: module.layer.clone(),
            inputs: node.inputs.iter().map(|value| self.shapes.of(*value).to_vec()).collect(),
            output: self.shapes.of(node.output).to_vec(),
        }
    }

    pub(super) fn push(&mut self, op: Op, operands: Vec<Operand>, node: usize) {
        self.program.steps.push(Step { op, operands, node: Some(node) });
    }

    pub(super) fn new_buffer(&mut self, role: Role, dtype: DType, elements: u64) -> Result<BufferId> {
        let bytes = dtype.bytes_for(elements)?.0;
        Ok(self.buffer_of(role, dtype, elements, bytes))
    }

    pub(super) fn buffer_of(&mut self, role: Role, dtype: DType, elements: u64, bytes: u64) -> BufferId {
        self.program.buffers.push(Buffer { role, dtype, elements, bytes, kept: false });
        BufferId(self.program.buffers.len() - 1)
    }
}

/// A parameter's bytes; one that is no whole number of blocks is counted as the next one that is.
fn param_bytes(dtype: DType, elements: u64) -> Result<u64> {
    let whole = elements.checked_next_multiple_of(dtype.block_elements());
    let whole = whole.ok_or_else(|| Error::overflow(format!("{elements} elements of {dtype}")))?;
    Ok(dtype.bytes_for(whole)?.0)
}

pub(super) const fn operand(slot: Slot, buffer: BufferId, access: Access) -> Operand {
    Operand { slot, buffer, access }
}

pub(super) fn read(slot: Slot, buffer: Option<&BufferId>) -> Option<Operand> {
    buffer.map(|buffer| operand(slot, *buffer, Access::Read))
}

/// A part of an axis of a shape.
pub(super) fn part(shape: &[usize], axis: usize, start: usize, len: usize) -> Part {
    let times = |sizes: Option<&[usize]>| sizes.unwrap_or_default().iter().product();
    Part {
        outer: times(shape.get(..axis)),
        axis: shape.get(axis).copied().unwrap_or_default(),
        start,
        len,
        inner: times(shape.get(axis + 1..)),
    }
}

/// Elements that a step keeps for the gradient, and that it uses while it runs.
#[derive(Default)]
pub(super) struct Extra {
    pub(super) saved: Vec<u64>,
    pub(super) scratch: Vec<u64>,
}

/// What the forward step of a layer needs beside inputs and result.
fn extra(using: &Use, train: bool) -> Result<Extra> {
    let times = |sizes: &[usize]| product(sizes).ok_or_else(|| Error::overflow("the memory of a step"));
    let mut extra = Extra::default();
    match &using.layer {
        Layer::Norm(norm) if train => {
            let shape = &using.output;
            let groups = match norm.kind {
                NormKind::Layer | NormKind::Rms => {
                    times(shape.get(..shape.len().saturating_sub(1)).unwrap_or_default())?
                }
                NormKind::Batch => norm.width as u64,
                NormKind::Group(groups) => times(&[shape.first().copied().unwrap_or_default(), groups])?,
            };
            let each = if norm.kind == NormKind::Rms { 1 } else { 2 };
            extra.saved.push(groups.checked_mul(each).ok_or_else(|| Error::overflow("statistics"))?);
        }
        Layer::Pool(pool) if train && pool.kind == PoolKind::Max => extra.saved.push(times(&using.output)?),
        Layer::Attention(attention) => {
            let scores = scores(attention, using);
            match (attention.scores, train) {
                (true, true) => extra.saved.push(times(&scores)?),
                (true, false) => extra.scratch.push(times(&scores)?),
                (false, _) => extra.scratch.push(scores.last().copied().unwrap_or_default() as u64),
            }
        }
        Layer::Recurrent(cell) => {
            let [batch, seq] = [0, 1].map(|axis| using.output.get(axis).copied().unwrap_or_default());
            let steps = if train { seq } else { 1 };
            let all = recurrent(cell).map(|width| times(&[batch, steps, width]));
            let all = all.into_iter().collect::<Result<Vec<_>>>()?;
            if train { extra.saved = all } else { extra.scratch = all }
        }
        _ => {}
    }
    Ok(extra)
}

/// `[batch, heads, seq, positions]`.
pub(super) fn scores(attention: &Attention, using: &Use) -> [usize; 4] {
    let size = |input: usize, axis: usize| using.inputs.get(input).and_then(|shape| shape.get(axis)).copied();
    [size(0, 0), Some(attention.heads), size(0, 1), size(1, 1)].map(Option::unwrap_or_default)
}

/// What a recurrent layer keeps per position: its gates, and the cell state or the reset part of the new state.
fn recurrent(recurrent: &Recurrent) -> [usize; 2] {
    let gates = match recurrent.cell {
        Cell::Lstm => 4,
        Cell::Gru => 3,
    };
    [recurrent.hidden.saturating_mul(gates), recurrent.hidden]
}
