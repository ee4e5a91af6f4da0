//! [`Program`]: what a network does to memory, step by step.
//!
//! A graph says what is computed; a program says with which buffers. It is made by [`Graph::inference`] or
//! [`Graph::training`], and everything about memory is read off it: when each buffer is first written and last read
//! ([`Liveness`](crate::liveness::Liveness)), where in one arena it may lie ([`ArenaPlan`](crate::arena::ArenaPlan)), and what
//! happens when it is really run ([`Executor`](crate::exec::Executor)).
//!
//! What a program assumes is what our executor does: a view takes no memory; an in-place layer none of its own; a result
//! is freed after the last step that reads it; a gradient of an elementwise layer is written over the gradient that it is
//! made from, and the first gradient that a sum hands on is the one it got; gradients of parameters live from their first
//! contribution until the optimizer has used them; the optimizer's state and the inputs are there all the time.

mod backward;
mod forward;
mod options;

use std::fmt;

use dd_core::DType;

pub use options::{Inference, Optimizer, Precision, Training};

use crate::layer::Layer;

#[cfg(doc)]
use crate::graph::Graph;

/// A buffer of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BufferId(pub(crate) usize);

impl BufferId {
    /// Its place in [`Program::buffers`].
    #[must_use]
    pub const fn index(self) -> usize {
        self.0
    }
}

/// What a buffer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Role {
    /// A parameter, or the copy that mixed precision computes with.
    Parameter,
    /// A parameter in full precision beside the copy that is computed with.
    Master,
    /// An input of the network.
    Input,
    /// A result of a layer.
    Activation,
    /// What a layer keeps for its gradient beside inputs and results.
    Saved,
    /// The gradient of a result.
    Gradient,
    /// The gradient of a parameter.
    ParameterGradient,
    /// What the optimizer keeps from step to step.
    OptimizerState,
    /// Keys and values of earlier positions.
    Cache,
    /// Memory for one step.
    Scratch,
}

impl Role {
    /// All of them, those that are always there first.
    pub const ALL: [Self; 10] = [
        Self::Parameter,
        Self::Master,
        Self::OptimizerState,
        Self::Cache,
        Self::Input,
        Self::Activation,
        Self::Saved,
        Self::Gradient,
        Self::ParameterGradient,
        Self::Scratch,
    ];

    /// Its name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Parameter => "parameters",
            Self::Master => "master weights",
            Self::Input => "inputs",
            Self::Activation => "activations",
            Self::Saved => "saved for gradients",
            Self::Gradient => "gradients",
            Self::ParameterGradient => "parameter gradients",
            Self::OptimizerState => "optimizer state",
            Self::Cache => "key-value cache",
            Self::Scratch => "scratch",
        }
    }

    /// Whether it is there from the first step to the last.
    #[must_use]
    pub const fn is_resident(self) -> bool {
        matches!(self, Self::Parameter | Self::Master | Self::Input | Self::OptimizerState | Self::Cache)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A piece of memory that a program uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// What it is for.
    pub role: Role,
    /// Its element type.
    pub dtype: DType,
    /// How many elements it has.
    pub elements: u64,
    /// Its size in bytes.
    pub bytes: u64,
    /// Whether it is wanted after the last step.
    pub kept: bool,
}

/// What a step does with a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// Reads it.
    Read,
    /// Writes all of it; what was there before does not matter.
    Write,
    /// Reads and writes it.
    Update,
    /// Uses it during the step only.
    Scratch,
}

/// What a buffer is to the step that uses it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Slot {
    /// Unused.
    #[default]
    None,
    /// An input.
    X(u8),
    /// A parameter.
    P(u8),
    /// The result.
    Out,
    /// What is kept for the gradient.
    Aux(u8),
    /// The gradient of the result.
    Dy,
    /// The gradient of an input.
    Dx(u8),
    /// The gradient of a parameter.
    Dp(u8),
    /// Memory for this step.
    Scratch(u8),
    /// The optimizer's state.
    State(u8),
}

/// A buffer in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operand {
    /// What it is to the step.
    pub slot: Slot,
    /// Which buffer.
    pub buffer: BufferId,
    /// What happens to it.
    pub access: Access,
}

/// A layer with the shapes of one use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Use {
    /// What it computes.
    pub layer: Layer,
    /// Shapes of its inputs.
    pub inputs: Vec<Vec<usize>>,
    /// Shape of its result.
    pub output: Vec<usize>,
}

/// A part of an axis, as a copy sees it: `outer` times `len` of `axis` times `inner` elements, beginning at `start`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// The product of the axes before.
    pub outer: usize,
    /// The axis in the larger tensor.
    pub axis: usize,
    /// Where the part begins.
    pub start: usize,
    /// How long it is.
    pub len: usize,
    /// The product of the axes after.
    pub inner: usize,
}

/// What a step computes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Op {
    /// A layer's result.
    Forward(Box<Use>),
    /// A layer's gradients.
    Backward(Box<Use>),
    /// `Out[part] += X`; `Out` is zeros before where it is written anew.
    Insert(Part),
    /// `Out += X[part]`; `Out` is zeros before where it is written anew.
    Extract(Part),
    /// The gradient of half the mean square of `X`: `Dx = X / n`.
    Loss,
    /// `Dx += Dy`; `Dx` is zeros before where it is written anew.
    Accumulate,
    /// New parameters of gradients and state.
    Update(Optimizer),
}

/// A step of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// What it computes.
    pub op: Op,
    /// With which buffers.
    pub operands: Vec<Operand>,
    /// The node of the graph that it belongs to.
    pub node: Option<usize>,
}

/// What a network does to memory, step by step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Program {
    pub(crate) buffers: Vec<Buffer>,
    pub(crate) steps: Vec<Step>,
    /// Per parameter of the graph, the buffer that holds it.
    pub(crate) params: Vec<BufferId>,
    /// Per input of the graph, the buffer that holds it.
    pub(crate) inputs: Vec<BufferId>,
    /// Per output of the graph, the buffer that holds it.
    pub(crate) outputs: Vec<BufferId>,
    /// Per parameter, its gradient: training only.
    pub(crate) gradients: Vec<Option<BufferId>>,
}

impl Program {
    /// Its buffers.
    #[must_use]
    pub fn buffers(&self) -> &[Buffer] {
        &self.buffers
    }

    /// Its steps, in order.
    #[must_use]
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// The buffers of the graph's parameters, in its order.
    #[must_use]
    pub fn params(&self) -> &[BufferId] {
        &self.params
    }

    /// The buffers of the graph's inputs, in its order.
    #[must_use]
    pub fn inputs(&self) -> &[BufferId] {
        &self.inputs
    }

    /// The buffers of the graph's outputs, in its order.
    #[must_use]
    pub fn outputs(&self) -> &[BufferId] {
        &self.outputs
    }

    /// The buffers of the parameters' gradients, in the graph's order.
    #[must_use]
    pub fn gradients(&self) -> &[Option<BufferId>] {
        &self.gradients
    }

    /// A buffer; nothing where it is another program's.
    #[must_use]
    pub fn buffer(&self, id: BufferId) -> Option<&Buffer> {
        self.buffers.get(id.0)
    }

    /// Keeps a buffer until after the last step, so that it can be read back.
    pub fn keep(&mut self, id: BufferId) {
        if let Some(buffer) = self.buffers.get_mut(id.0) {
            buffer.kept = true;
        }
    }
}
