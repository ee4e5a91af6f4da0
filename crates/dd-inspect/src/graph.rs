//! [`Graph`]: layers in the order in which they run, and what flows between them.
//!
//! A graph does not know how large its batch is: an input's axis may be the batch or the sequence, and shapes are found for
//! given [`Sizes`]. A *module* holds parameters; a *node* is one use of a module. A module that is used twice has its
//! parameters once; two modules may share them.

mod builder;
mod shapes;

use dd_core::DType;

pub use builder::{Block, GraphBuilder};
pub use shapes::Shapes;

use crate::layer::Layer;

/// A value that flows through a graph: an input, or what a node gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ValueId(pub(crate) usize);

/// A module of a graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ModuleId(pub(crate) usize);

/// A parameter of a graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ParamId(pub(crate) usize);

impl ValueId {
    /// Its place among all values: inputs and results in the order in which they were made.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0
    }
}

impl ParamId {
    /// Its place in [`Graph::params`].
    #[must_use]
    pub const fn index(self) -> usize {
        self.0
    }
}

impl ModuleId {
    /// Its place in [`Graph::modules`].
    #[must_use]
    pub const fn index(self) -> usize {
        self.0
    }
}

/// One axis of an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Axis {
    /// As many as there are samples.
    Batch,
    /// As many as there are positions.
    Seq,
    /// Always so many.
    Fixed(usize),
}

/// How large the open axes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Sizes {
    /// Samples.
    pub batch: usize,
    /// Positions of a sequence; where no input has such an axis, without meaning.
    pub seq: usize,
}

impl Sizes {
    /// So many samples, one position.
    #[must_use]
    pub const fn batch(batch: usize) -> Self {
        Self { batch, seq: 1 }
    }

    /// So many samples of so many positions.
    #[must_use]
    pub const fn new(batch: usize, seq: usize) -> Self {
        Self { batch, seq }
    }
}

/// An input of a graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Input {
    /// Its name.
    pub name: String,
    /// Its axes, outermost first.
    pub axes: Vec<Axis>,
    /// Its element type; nothing means that of the computation.
    pub dtype: Option<DType>,
    /// The value that it gives.
    pub value: ValueId,
}

/// A parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Param {
    /// Its full name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Whether training changes it.
    pub trainable: bool,
    /// Its element type where a file says; nothing means that of the computation.
    pub dtype: Option<DType>,
}

/// A layer with its parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// Its name, with those of the blocks it is in.
    pub name: String,
    /// What it computes.
    pub layer: Layer,
    /// Its parameters, as [`Layer::params`] orders them.
    pub params: Vec<ParamId>,
}

/// One use of a module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Which module.
    pub module: ModuleId,
    /// What goes in.
    pub inputs: Vec<ValueId>,
    /// What comes out.
    pub output: ValueId,
    /// The checkpointed segment that it is in: its results are not kept for the gradient but computed again.
    pub segment: Option<usize>,
}

/// A network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Graph {
    pub(crate) name: String,
    pub(crate) inputs: Vec<Input>,
    pub(crate) params: Vec<Param>,
    pub(crate) modules: Vec<Module>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) outputs: Vec<ValueId>,
    /// How many values there are.
    pub(crate) values: usize,
}

impl Graph {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its inputs.
    #[must_use]
    pub fn inputs(&self) -> &[Input] {
        &self.inputs
    }

    /// Its parameters, each once.
    #[must_use]
    pub fn params(&self) -> &[Param] {
        &self.params
    }

    /// Its modules.
    #[must_use]
    pub fn modules(&self) -> &[Module] {
        &self.modules
    }

    /// The uses of its modules, in the order in which they run.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// What it gives.
    #[must_use]
    pub fn outputs(&self) -> &[ValueId] {
        &self.outputs
    }

    /// Whether any input has an axis of positions.
    #[must_use]
    pub fn has_seq(&self) -> bool {
        self.inputs.iter().any(|input| input.axes.contains(&Axis::Seq))
    }

    /// The same network with attention that never holds all its scores at once, as fused kernels do.
    #[must_use]
    pub fn with_fused_attention(mut self) -> Self {
        for module in &mut self.modules {
            if let Layer::Attention(attention) = &mut module.layer {
                attention.scores = false;
            }
        }
        self
    }

    /// The module of a node.
    pub(crate) fn module_of(&self, node: &Node) -> Option<&Module> {
        self.modules.get(node.module.0)
    }

    /// The same network with its nodes in another order.
    pub(crate) fn with_nodes(&self, order: &[usize]) -> Self {
        let nodes = order.iter().filter_map(|at| self.nodes.get(*at).cloned()).collect();
        Self { nodes, ..self.clone() }
    }
}
