//! From a graph to the steps of a training step: forward, backward, optimizer.

use dd_core::DType;

use super::forward::{Env, Lowering, operand, part, read};
use super::{Access, BufferId, Op, Operand, Program, Role, Slot, Training};
use crate::error::{Error, Result};
use crate::graph::{Graph, Module, Node, Sizes, ValueId};
use crate::layer::work::product;
use crate::layer::{Attention, Layer};

impl Graph {
    /// The steps of one training step: the pass forward, gradients of half the mean square of the outputs (any other loss on
    /// them takes as much), and the optimizer. Parameters that are not trainable get no gradient and no state.
    ///
    /// # Errors
    /// As [`shapes`](Self::shapes); [`Error::Layer`] where an in-place layer overwrites what the gradient needs;
    /// [`Error::Setting`] where nothing is trainable, or for a computation in a type of less than a byte.
    pub fn training(&self, sizes: Sizes, options: &Training) -> Result<Program> {
        let mut lowering = Lowering::new(self, sizes, options.precision, None)?;
        let needs = needs_gradient(self);
        if !self.outputs.iter().any(|value| needs.get(value.0) == Some(&true)) {
            return Err(Error::setting("training", &self.name, "no output depends on a trainable parameter"));
        }
        lowering.forward(true)?;
        let mut backward = Backward {
            gradients: vec![None; self.values],
            of_params: vec![None; self.params.len()],
            recomputed: None,
            needs,
            lowering,
        };
        backward.losses()?;
        for (at, node) in self.nodes.iter().enumerate().rev() {
            backward.node(at, node)?;
        }
        backward.optimizer(options)
    }
}

/// Per value, whether a gradient has to reach it.
fn needs_gradient(graph: &Graph) -> Vec<bool> {
    let mut needs = vec![false; graph.values];
    for node in &graph.nodes {
        let Some(module) = graph.module_of(node) else { continue };
        let trainable =
            |id: &crate::graph::ParamId| graph.params.get(id.0).is_some_and(|param| param.trainable);
        let own = module.params.iter().any(trainable);
        let any = own || node.inputs.iter().any(|value| needs.get(value.0) == Some(&true));
        if let Some(slot) = needs.get_mut(node.output.0) {
            *slot = any;
        }
    }
    needs
}

struct Backward<'a> {
    lowering: Lowering<'a>,
    needs: Vec<bool>,
    gradients: Vec<Option<BufferId>>,
    of_params: Vec<Option<BufferId>>,
    /// The segment that was computed again last, and where its values lie.
    recomputed: Option<(usize, Env)>,
}

impl Backward<'_> {
    fn losses(&mut self) -> Result<()> {
        for value in self.lowering.graph.outputs.clone() {
            if !self.needed(value) {
                continue;
            }
            let buffer = self.lowering.env.buffer(self.lowering.graph, value)?;
            self.lowering.program.outputs.push(buffer);
            let dx = self.target(value, Slot::Dx(0))?;
            let operands = vec![operand(Slot::X(0), buffer, Access::Read), dx];
            self.lowering.program.steps.push(super::Step { op: Op::Loss, operands, node: None });
        }
        Ok(())
    }

    fn needed(&self, value: ValueId) -> bool {
        self.needs.get(value.0) == Some(&true)
    }

    fn gradient(&self, value: ValueId) -> Option<BufferId> {
        self.gradients.get(value.0).copied().flatten()
    }

    fn set_gradient(&mut self, value: ValueId, buffer: BufferId) {
        if let Some(slot) = self.gradients.get_mut(value.0) {
            *slot = Some(buffer);
        }
    }

    /// The gradient of a value as something to add to; made anew where there is none yet.
    fn target(&mut self, value: ValueId, slot: Slot) -> Result<Operand> {
        if let Some(known) = self.gradient(value) {
            return Ok(operand(slot, known, Access::Update));
        }
        let made = self.new_gradient(value)?;
        self.set_gradient(value, made);
        Ok(operand(slot, made, Access::Write))
    }

    fn new_gradient(&mut self, value: ValueId) -> Result<BufferId> {
        let elements = self.lowering.shapes.elements(value)?;
        self.lowering.new_buffer(Role::Gradient, self.lowering.precision.compute, elements)
    }

    /// The gradients of a module's trainable parameters as something to add to.
    fn param_targets(&mut self, module: &Module) -> Result<Vec<Operand>> {
        let mut targets = Vec::new();
        for (slot, id) in (0..).zip(&module.params) {
            let Some(param) = self.lowering.graph.params.get(id.0).filter(|param| param.trainable) else {
                continue;
            };
            let known = self.of_params.get(id.0).copied().flatten();
            let (buffer, access) = match known {
                Some(known) => (known, Access::Update),
                None => {
                    let elements = product(&param.shape).ok_or_else(|| Error::overflow(&param.name))?;
                    let dtype = self.lowering.precision.compute;
                    (self.lowering.new_buffer(Role::ParameterGradient, dtype, elements)?, Access::Write)
                }
            };
            if let Some(slot) = self.of_params.get_mut(id.0) {
                *slot = Some(buffer);
            }
            targets.push(operand(Slot::Dp(slot), buffer, access));
        }
        Ok(targets)
    }

    fn node(&mut self, at: usize, node: &Node) -> Result<()> {
        let graph = self.lowering.graph;
        let Some(module) = graph.module_of(node) else { return Ok(()) };
        if let Some(segment) = node.segment.filter(|_| self.needed(node.output)) {
            self.recompute(segment)?;
        }
        let Some(dy) = self.gradient(node.output).filter(|_| self.needed(node.output)) else { return Ok(()) };
        match &module.layer {
            Layer::Reshape(_) => self.hand_on(at, node, dy),
            Layer::Activation { function, .. } => {
                let kept = if function.keeps_output() {
                    operand(Slot::Out, self.value(node, node.output)?, Access::Read)
                } else {
                    operand(Slot::X(0), self.value_of(node, 0)?, Access::Read)
                };
                self.over_dy(at, node, module, dy, Some(kept))
            }
            Layer::Softmax => {
                let kept = operand(Slot::Out, self.value(node, node.output)?, Access::Read);
                self.over_dy(at, node, module, dy, Some(kept))
            }
            Layer::Rotary { .. } => self.over_dy(at, node, module, dy, None),
            Layer::Position { .. } => {
                let mut operands = vec![operand(Slot::Dy, dy, Access::Read)];
                operands.extend(self.param_targets(module)?);
                if operands.len() > 1 {
                    self.push(module, node, operands, at);
                }
                self.hand_on(at, node, dy)
            }
            Layer::Add => self.sum(at, node, dy),
            Layer::Concat { axis } => self.split(at, node, dy, *axis),
            Layer::Narrow { axis, start, len } => {
                let Some(x) = node.inputs.first().copied() else { return Ok(()) };
                let part = part(self.lowering.shapes.of(x), *axis, *start, *len);
                let target = self.target(x, Slot::Out)?;
                self.lowering.push(Op::Insert(part), vec![operand(Slot::X(0), dy, Access::Read), target], at);
                Ok(())
            }
            _ => self.plain(at, node, module, dy),
        }
    }

    /// A step with everything that the layer's gradient reads and writes.
    fn plain(&mut self, at: usize, node: &Node, module: &Module, dy: BufferId) -> Result<()> {
        let params = self.param_targets(module)?;
        let wants_input = node.inputs.iter().any(|value| self.needed(*value));
        if params.is_empty() && !wants_input {
            return Ok(());
        }
        let mut operands = vec![operand(Slot::Dy, dy, Access::Read)];
        let reads = reads_of(&module.layer, !params.is_empty(), wants_input);
        if reads.inputs {
            for slot in 0..node.inputs.len() {
                let buffer = self.value_of(node, slot)?;
                operands.push(operand(Slot::X(u8::try_from(slot).unwrap_or(u8::MAX)), buffer, Access::Read));
            }
        }
        if reads.output {
            operands.push(operand(Slot::Out, self.value(node, node.output)?, Access::Read));
        }
        if reads.params {
            operands.extend(self.lowering.param_operands(module));
        }
        let aux = self.lowering.aux.get(at).cloned().unwrap_or_default();
        operands.extend((0..).zip(&aux).filter_map(|(slot, buffer)| read(Slot::Aux(slot), Some(buffer))));
        operands.extend(params);
        // A value that goes in twice gets its second gradient by way of a buffer of its own.
        let mut later = Vec::new();
        for (slot, value) in (0..).zip(&node.inputs) {
            if !self.needed(*value) || !reads.to_inputs {
                continue;
            }
            let before = node.inputs.iter().take(usize::from(slot)).any(|other| other == value);
            if before {
                let extra = self.new_gradient(*value)?;
                operands.push(operand(Slot::Dx(slot), extra, Access::Write));
                later.push((*value, extra));
            } else {
                let target = self.target(*value, Slot::Dx(slot))?;
                operands.push(target);
            }
        }
        for (slot, elements) in (0..).zip(self.scratch(node, module)?) {
            let buffer =
                self.lowering.new_buffer(Role::Scratch, self.lowering.precision.compute, elements)?;
            operands.push(operand(Slot::Scratch(slot), buffer, Access::Scratch));
        }
        self.push(module, node, operands, at);
        for (value, extra) in later {
            let target = self.target(value, Slot::Dx(0))?;
            self.lowering.push(Op::Accumulate, vec![operand(Slot::Dy, extra, Access::Read), target], at);
        }
        Ok(())
    }

    /// A gradient that is written over the one that it is made from.
    fn over_dy(
        &mut self,
        at: usize,
        node: &Node,
        module: &Module,
        dy: BufferId,
        kept: Option<Operand>,
    ) -> Result<()> {
        let mut operands = vec![operand(Slot::Dy, dy, Access::Update)];
        operands.extend(kept);
        self.push(module, node, operands, at);
        self.hand_on(at, node, dy)
    }

    /// The only input's gradient is this one: its buffer becomes the input's, or is added to what is there.
    fn hand_on(&mut self, at: usize, node: &Node, dy: BufferId) -> Result<()> {
        match node.inputs.first() {
            Some(x) if self.needed(*x) => self.give(at, *x, dy),
            _ => Ok(()),
        }
    }

    fn give(&mut self, at: usize, value: ValueId, dy: BufferId) -> Result<()> {
        if self.gradient(value).is_none() {
            self.set_gradient(value, dy);
            return Ok(());
        }
        self.add(at, value, dy)
    }

    fn add(&mut self, at: usize, value: ValueId, dy: BufferId) -> Result<()> {
        let target = self.target(value, Slot::Dx(0))?;
        self.lowering.push(Op::Accumulate, vec![operand(Slot::Dy, dy, Access::Read), target], at);
        Ok(())
    }

    /// Both inputs of a sum get its gradient: copies first, and the buffer itself to the one that can take it over.
    fn sum(&mut self, at: usize, node: &Node, dy: BufferId) -> Result<()> {
        let wanted: Vec<ValueId> = node.inputs.iter().copied().filter(|value| self.needed(*value)).collect();
        match *wanted.as_slice() {
            [a] => self.give(at, a, dy),
            [a, b] if a != b => {
                let (copied, given) = if self.gradient(a).is_none() { (b, a) } else { (a, b) };
                self.add(at, copied, dy)?;
                self.give(at, given, dy)
            }
            [a, b] => {
                self.add(at, a, dy)?;
                self.add(at, b, dy)
            }
            _ => Ok(()),
        }
    }

    fn split(&mut self, at: usize, node: &Node, dy: BufferId, axis: usize) -> Result<()> {
        let whole = self.lowering.shapes.of(node.output).to_vec();
        let mut start = 0;
        for value in &node.inputs {
            let len = self.lowering.shapes.of(*value).get(axis).copied().unwrap_or_default();
            if self.needed(*value) {
                let target = self.target(*value, Slot::Out)?;
                let operands = vec![operand(Slot::X(0), dy, Access::Read), target];
                self.lowering.push(Op::Extract(part(&whole, axis, start, len)), operands, at);
            }
            start += len;
        }
        Ok(())
    }

    /// Computes a checkpointed segment again, this time with what its gradients need.
    fn recompute(&mut self, segment: usize) -> Result<()> {
        if self.recomputed.as_ref().is_some_and(|(known, _)| *known == segment) {
            return Ok(());
        }
        let graph = self.lowering.graph;
        let mut env = self.lowering.env.clone();
        for (at, node) in graph.nodes.iter().enumerate().filter(|(_, node)| node.segment == Some(segment)) {
            self.lowering.forward_node(at, node, &mut env, true)?;
        }
        self.recomputed = Some((segment, env));
        Ok(())
    }

    /// Where a value lies that this node's gradient reads.
    fn value(&self, node: &Node, value: ValueId) -> Result<BufferId> {
        match (&self.recomputed, node.segment) {
            (Some((known, env)), Some(segment)) if *known == segment => {
                env.buffer(self.lowering.graph, value)
            }
            _ => self.lowering.env.buffer(self.lowering.graph, value),
        }
    }

    fn value_of(&self, node: &Node, slot: usize) -> Result<BufferId> {
        self.value(node, node.inputs.get(slot).copied().unwrap_or(node.output))
    }

    fn push(&mut self, module: &Module, node: &Node, operands: Vec<Operand>, at: usize) {
        let using = self.lowering.use_of(module, node);
        self.lowering.push(Op::Backward(Box::new(using)), operands, at);
    }

    fn scratch(&self, node: &Node, module: &Module) -> Result<Vec<u64>> {
        let times = |sizes: &[usize]| product(sizes).ok_or_else(|| Error::overflow("the memory of a step"));
        let size = |value: Option<&ValueId>, axis: usize| {
            value.and_then(|value| self.lowering.shapes.of(*value).get(axis)).copied().unwrap_or_default()
        };
        match &module.layer {
            Layer::Attention(Attention { scores, .. }) => {
                let positions = size(node.inputs.get(1), 1) as u64;
                Ok(if *scores { vec![positions] } else { vec![positions, positions] })
            }
            Layer::Recurrent(recurrent) => {
                let [batch, hidden] = [size(Some(&node.output), 0), recurrent.hidden];
                let gates = hidden.saturating_mul(recurrent.cell.gates());
                Ok(vec![times(&[batch, hidden])?, times(&[batch, hidden])?, times(&[batch, gates])?])
            }
            _ => Ok(Vec::new()),
        }
    }

    fn optimizer(mut self, options: &Training) -> Result<Program> {
        let mixed = options.precision.is_mixed();
        let graph = self.lowering.graph;
        for (at, param) in graph.params.iter().enumerate() {
            let (Some(gradient), Some(held)) =
                (self.of_params.get(at).copied().flatten(), self.lowering.program.params.get(at).copied())
            else {
                continue;
            };
            let elements = product(&param.shape).ok_or_else(|| Error::overflow(&param.name))?;
            let mut operands =
                vec![operand(Slot::P(0), held, Access::Update), operand(Slot::Dp(0), gradient, Access::Read)];
            if mixed {
                let master = self.lowering.new_buffer(Role::Master, options.precision.params, elements)?;
                operands.push(operand(Slot::P(1), master, Access::Update));
            }
            for slot in 0..options.optimizer.states() {
                let state = options.optimizer.state_bytes(elements);
                let (dtype, bytes): (DType, u64) =
                    state.ok_or_else(|| Error::overflow(format!("the state of {}", param.name)))?;
                let state = self.lowering.buffer_of(Role::OptimizerState, dtype, elements, bytes);
                operands.push(operand(Slot::State(slot), state, Access::Update));
            }
            let op = Op::Update(options.optimizer);
            self.lowering.program.steps.push(super::Step { op, operands, node: None });
        }
        self.lowering.program.gradients = self.of_params;
        Ok(self.lowering.program)
    }
}

/// What a layer's gradient reads beside the gradient of its result.
struct Reads {
    inputs: bool,
    output: bool,
    params: bool,
    /// Whether its inputs can have gradients.
    to_inputs: bool,
}

fn reads_of(layer: &Layer, to_params: bool, to_inputs: bool) -> Reads {
    let mut reads = Reads { inputs: true, output: false, params: false, to_inputs };
    match layer {
        Layer::Linear { .. } | Layer::Conv(_) => {
            reads.inputs = to_params;
            reads.params = to_inputs;
        }
        Layer::Norm(_) => reads.params = true,
        Layer::Pool(_) => reads.inputs = false,
        Layer::Embedding { .. } => reads.to_inputs = false,
        Layer::Recurrent(_) => {
            reads.output = true;
            reads.params = true;
        }
        Layer::Permute(_) | Layer::Upsample { .. } => reads.inputs = false,
        _ => {}
    }
    reads
}
