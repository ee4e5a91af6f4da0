//! [`GraphBuilder`]: a network, layer by layer.

use dd_core::DType;

use super::shapes::{Shapes, input_shape};
use super::{Axis, Graph, Input, Module, ModuleId, Node, Param, ParamId, Sizes, ValueId};
use crate::error::{Error, Result};
use crate::layer::work::product;
use crate::layer::{Activation, Attention, Conv, Layer, Pool, Recurrent};

/// The sizes that shapes are checked with while a network is built.
const TRIAL: Sizes = Sizes { batch: 1, seq: 1 };
/// The most nodes: far above any network, far below what would exhaust memory.
const MOST_NODES: usize = 1 << 20;

/// Builds a [`Graph`]; every layer's shape is checked when it is added.
///
/// ```
/// use dd_inspect::graph::{Axis, GraphBuilder, Sizes};
/// use dd_inspect::layer::Activation;
///
/// let mut b = GraphBuilder::new("classifier");
/// let x = b.input("x", [Axis::Batch, Axis::Fixed(10)]);
/// let x = b.linear(x, 20)?;
/// let x = b.activation(x, Activation::Relu)?;
/// let x = b.linear(x, 5)?;
/// let graph = b.finish([x])?;
/// assert_eq!(graph.parameter_count()?, 325);
/// assert_eq!(graph.shapes(Sizes::batch(8))?.of(x), [8, 5]);
/// # Ok::<(), dd_inspect::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct GraphBuilder {
    graph: Graph,
    /// At the trial sizes.
    shapes: Shapes,
    /// The names of the blocks that are being built.
    path: Vec<String>,
    frozen: bool,
    segment: Option<usize>,
    segments: usize,
    blocks: Vec<BlockBody>,
}

/// A sub-graph that may be used several times, with its parameters once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block(usize);

#[derive(Clone, Debug)]
struct BlockBody {
    graph: Graph,
    /// Where the sub-graph's modules are in this graph.
    modules: Vec<ModuleId>,
}

impl GraphBuilder {
    /// An empty network.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        let graph = Graph {
            name: name.into(),
            inputs: Vec::new(),
            params: Vec::new(),
            modules: Vec::new(),
            nodes: Vec::new(),
            outputs: Vec::new(),
            values: 0,
        };
        Self {
            graph,
            shapes: Shapes::none(),
            path: Vec::new(),
            frozen: false,
            segment: None,
            segments: 0,
            blocks: Vec::new(),
        }
    }

    /// An input of the computation's dtype.
    pub fn input(&mut self, name: &str, axes: impl Into<Vec<Axis>>) -> ValueId {
        self.input_of(name, axes, None)
    }

    /// An input of ids, such as tokens: 32-bit unsigned.
    pub fn ids(&mut self, name: &str, axes: impl Into<Vec<Axis>>) -> ValueId {
        self.input_of(name, axes, Some(DType::U32))
    }

    /// An input of a dtype of its own.
    pub fn input_of(&mut self, name: &str, axes: impl Into<Vec<Axis>>, dtype: Option<DType>) -> ValueId {
        let (axes, value) = (axes.into(), self.value());
        self.shapes.set(value, input_shape(&axes, TRIAL));
        self.graph.inputs.push(Input { name: name.to_owned(), axes, dtype, value });
        value
    }

    /// Builds under a name: modules made by `build` carry it before theirs.
    ///
    /// # Errors
    /// What `build` refuses.
    pub fn scope<T>(&mut self, name: &str, build: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        self.path.push(name.to_owned());
        let built = build(self);
        self.path.pop();
        built
    }

    /// Builds with parameters that training does not change.
    ///
    /// # Errors
    /// What `build` refuses.
    pub fn frozen<T>(&mut self, build: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let before = std::mem::replace(&mut self.frozen, true);
        let built = build(self);
        self.frozen = before;
        built
    }

    /// Builds a checkpointed segment: in training, what is made in it is not kept but computed again for the gradient.
    ///
    /// # Errors
    /// What `build` refuses.
    pub fn checkpointed<T>(&mut self, build: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let before = self.segment;
        if before.is_none() {
            self.segment = Some(self.segments);
            self.segments += 1;
        }
        let built = build(self);
        self.segment = before;
        built
    }

    /// A module: its parameters are made once, however often it is used.
    ///
    /// # Errors
    /// A size overflow where a parameter has more elements than fit 64 bits.
    pub fn module(&mut self, name: &str, layer: Layer) -> Result<ModuleId> {
        let name = self.full_name(name);
        let mut params = Vec::new();
        for spec in layer.params() {
            params.push(self.add_param(format!("{name}.{}", spec.name), spec.shape, None)?);
        }
        self.graph.modules.push(Module { name, layer, params });
        Ok(ModuleId(self.graph.modules.len() - 1))
    }

    /// A module with the parameters of another, as far as their shapes agree: a head tied to an embedding.
    ///
    /// # Errors
    /// [`Error::Layer`] where the first parameters differ in shape; [`Error::Missing`] for a module of another graph.
    pub fn module_sharing(&mut self, name: &str, layer: Layer, with: ModuleId) -> Result<ModuleId> {
        let name = self.full_name(name);
        let theirs = self.known_module(with)?.params.clone();
        let mut params = Vec::new();
        for (at, spec) in layer.params().into_iter().enumerate() {
            let shared = theirs.get(at).and_then(|id| Some((*id, self.graph.params.get(id.0)?)));
            match shared {
                Some((id, param)) if param.shape == spec.shape => params.push(id),
                Some((_, param)) => {
                    let problem =
                        format!("cannot share {:?} as {:?}: expected one shape", param.shape, spec.shape);
                    return Err(Error::layer(name, problem));
                }
                None => params.push(self.add_param(format!("{name}.{}", spec.name), spec.shape, None)?),
            }
        }
        self.graph.modules.push(Module { name, layer, params });
        Ok(ModuleId(self.graph.modules.len() - 1))
    }

    /// A parameter that belongs to no layer here but counts: a table of biases, a tensor of a file.
    ///
    /// # Errors
    /// A size overflow where it has more elements than fit 64 bits.
    pub fn parameter(
        &mut self,
        name: &str,
        shape: impl Into<Vec<usize>>,
        dtype: Option<DType>,
    ) -> Result<ParamId> {
        let name = self.full_name(name);
        self.add_param(name, shape.into(), dtype)
    }

    /// Uses a module.
    ///
    /// # Errors
    /// [`Error::Layer`] where it cannot take these inputs; [`Error::Missing`] for a module or value of another graph.
    pub fn apply(&mut self, module: ModuleId, inputs: &[ValueId]) -> Result<ValueId> {
        self.add_node(module, inputs, self.segment)
    }

    /// Makes a module and uses it once.
    ///
    /// # Errors
    /// As [`module`](Self::module) and [`apply`](Self::apply).
    pub fn layer(&mut self, name: &str, layer: Layer, inputs: &[ValueId]) -> Result<ValueId> {
        let module = self.module(name, layer)?;
        self.apply(module, inputs)
    }

    /// A sub-graph to be used by [`call`](Self::call), as often as needed; its parameters are made now, once.
    ///
    /// # Errors
    /// A size overflow, as for [`module`](Self::module).
    pub fn block(&mut self, name: &str, graph: Graph) -> Result<Block> {
        let mut params = Vec::new();
        for param in &graph.params {
            let id = self.add_param(
                self.full_name(&format!("{name}.{}", param.name)),
                param.shape.clone(),
                param.dtype,
            )?;
            if let Some(made) = self.graph.params.get_mut(id.0) {
                made.trainable &= param.trainable;
            }
            params.push(id);
        }
        let mut modules = Vec::new();
        for module in &graph.modules {
            let own = module.params.iter().filter_map(|id| params.get(id.0).copied()).collect();
            let full = self.full_name(&format!("{name}.{}", module.name));
            self.graph.modules.push(Module { name: full, layer: module.layer.clone(), params: own });
            modules.push(ModuleId(self.graph.modules.len() - 1));
        }
        self.blocks.push(BlockBody { graph, modules });
        Ok(Block(self.blocks.len() - 1))
    }

    /// Uses a block; the inputs are in the order of the sub-graph's own, and so are the outputs.
    ///
    /// # Errors
    /// [`Error::Missing`] for a block of another graph; [`Error::Layer`] for another number of inputs, or where a layer
    /// cannot take what it gets.
    pub fn call(&mut self, block: Block, inputs: &[ValueId]) -> Result<Vec<ValueId>> {
        let body = self
            .blocks
            .get(block.0)
            .cloned()
            .ok_or_else(|| self.missing("block", block.0, self.blocks.len()))?;
        if inputs.len() != body.graph.inputs.len() {
            let problem = format!("expected {} inputs, found {}", body.graph.inputs.len(), inputs.len());
            return Err(Error::layer(body.graph.name, problem));
        }
        let mut here = vec![None; body.graph.values];
        for (input, value) in body.graph.inputs.iter().zip(inputs) {
            if let Some(slot) = here.get_mut(input.value.0) {
                *slot = Some(*value);
            }
        }
        let first_segment = self.segments;
        for node in &body.graph.nodes {
            let ours: Vec<ValueId> =
                node.inputs.iter().filter_map(|v| here.get(v.0).copied().flatten()).collect();
            let module = body.modules.get(node.module.0).copied().unwrap_or(node.module);
            let segment = self.segment.or_else(|| node.segment.map(|segment| first_segment + segment));
            self.segments = self.segments.max(segment.map_or(0, |segment| segment + 1));
            let output = self.add_node(module, &ours, segment)?;
            if let Some(slot) = here.get_mut(node.output.0) {
                *slot = Some(output);
            }
        }
        Ok(body.graph.outputs.iter().filter_map(|value| here.get(value.0).copied().flatten()).collect())
    }

    /// The network, with these results.
    ///
    /// # Errors
    /// [`Error::Missing`] for a value of another graph; [`Error::Layer`] where an in-place layer writes over a value that
    /// somebody else wants.
    pub fn finish(self, outputs: impl Into<Vec<ValueId>>) -> Result<Graph> {
        let outputs = outputs.into();
        if let Some(bad) = outputs.iter().find(|value| value.0 >= self.graph.values) {
            return Err(self.missing("value", bad.0, self.graph.values));
        }
        let graph = Graph { outputs, ..self.graph };
        super::shapes::check_in_place(&graph)?;
        Ok(graph)
    }

    /// The shape of a value with one sample of one position.
    #[must_use]
    pub fn trial_shape(&self, value: ValueId) -> &[usize] {
        self.shapes.of(value)
    }

    fn value(&mut self) -> ValueId {
        self.graph.values += 1;
        ValueId(self.graph.values - 1)
    }

    fn full_name(&self, name: &str) -> String {
        let mut full = self.path.join(".");
        if !full.is_empty() && !name.is_empty() {
            full.push('.');
        }
        full + name
    }

    fn add_param(&mut self, name: String, shape: Vec<usize>, dtype: Option<DType>) -> Result<ParamId> {
        product(&shape).ok_or_else(|| Error::overflow(format!("parameter {name} of shape {shape:?}")))?;
        self.graph.params.push(Param { name, shape, trainable: !self.frozen, dtype });
        Ok(ParamId(self.graph.params.len() - 1))
    }

    fn add_node(&mut self, module: ModuleId, inputs: &[ValueId], segment: Option<usize>) -> Result<ValueId> {
        if self.graph.nodes.len() >= MOST_NODES {
            return Err(Error::setting(
                "nodes",
                MOST_NODES,
                "no network has more; is a loop without an end?",
            ));
        }
        if let Some(bad) = inputs.iter().find(|value| value.0 >= self.graph.values) {
            return Err(self.missing("value", bad.0, self.graph.values));
        }
        let known = self.known_module(module)?;
        let shapes: Vec<&[usize]> = inputs.iter().map(|value| self.shapes.of(*value)).collect();
        let shape =
            known.layer.output_shape(&shapes).map_err(|problem| Error::layer(&known.name, problem))?;
        let output = self.value();
        self.shapes.set(output, shape);
        self.shapes.elements(output)?;
        self.graph.nodes.push(Node { module, inputs: inputs.to_vec(), output, segment });
        Ok(output)
    }

    fn known_module(&self, module: ModuleId) -> Result<&Module> {
        let missing = || self.missing("module", module.0, self.graph.modules.len());
        self.graph.modules.get(module.0).ok_or_else(missing)
    }

    fn missing(&self, what: &'static str, index: usize, count: usize) -> Error {
        Error::Missing { what, index, count, graph: self.graph.name.clone() }
    }

    fn numbered(&self, kind: &str) -> String {
        format!("{kind}_{}", self.graph.nodes.len())
    }

    fn unnamed(&mut self, layer: Layer, inputs: &[ValueId]) -> Result<ValueId> {
        let name = self.numbered(&layer.kind().to_lowercase());
        self.layer(&name, layer, inputs)
    }

    fn last_size(&self, value: ValueId) -> usize {
        self.shapes.of(value).last().copied().unwrap_or_default()
    }
}

/// Shorthands: a module that is made and used at once, named after its kind and place.
impl GraphBuilder {
    /// A linear layer with bias.
    ///
    /// # Errors
    /// As [`layer`](Self::layer); so do all shorthands.
    pub fn linear(&mut self, x: ValueId, outputs: usize) -> Result<ValueId> {
        let inputs = self.last_size(x);
        self.unnamed(Layer::Linear { inputs, outputs, bias: true }, &[x])
    }

    /// A convolution.
    ///
    /// # Errors
    /// As [`layer`](Self::layer).
    pub fn conv(&mut self, x: ValueId, conv: Conv) -> Result<ValueId> {
        self.unnamed(Layer::Conv(conv), &[x])
    }

    /// A normalisation.
    ///
    /// # Errors
    /// As [`layer`](Self::layer).
    pub fn norm(&mut self, x: ValueId, norm: crate::layer::Norm) -> Result<ValueId> {
        self.unnamed(Layer::Norm(norm), &[x])
    }

    /// An elementwise function, into new memory.
    ///
    /// # Errors
    /// As [`layer`](Self::layer).
    pub fn activation(&mut self, x: ValueId, function: Activation) -> Result<ValueId> {
        self.unnamed(Layer::activation(function), &[x])
    }

    /// An elementwise function that writes over its input.
    ///
    /// # Errors
    /// As [`layer`](Self::layer).
    pub fn activation_in_place(&mut self, x: ValueId, function: Activation) -> Result<ValueId> {
        self.unnamed(Layer::Activation { function, in_place: true }, &[x])
    }

    /// A pool.
    ///
    /// # Errors
    /// As [`layer`](Self::layer).
    pub fn pool(&mut self, x: ValueId, pool: Pool) -> Result<ValueId> {
        self.unnamed(Layer::Pool(pool), &[x])
    }

    /// A table of `count` rows.
    ///
    /// # Errors
    /// As [`layer`](Self::layer).
    pub fn embedding(&mut self, ids: ValueId, count: usize, width: usize) -> Result<ValueId> {
        self.unnamed(Layer::Embedding { count, width }, &[ids])
    }

    /// Attention of queries over keys and values.
    ///
    /// # Errors
    /// As [`layer`](Self::layer).
    pub fn attention(&mut self, [q, k, v]: [ValueId; 3], attention: Attention) -> Result<ValueId> {
        self.unnamed(Layer::Attention(attention), &[q, k, v])
    }

    /// A recurrent layer.
    ///
    /// # Errors
    /// As [`layer`](Self::layer).
    pub fn recurrent(&mut self, x: ValueId, recurrent: Recurrent) -> Result<ValueId> {
        self.unnamed(Layer::Recurrent(recurrent), &[x])
    }

    /// The sum of two values.
    ///
    /// # Errors
    /// As [`layer`](Self::layer).
    pub fn add(&mut self, a: ValueId, b: ValueId) -> Result<ValueId> {
        self.unnamed(Layer::Add, &[a, b])
    }

    /// The product of two values, element by element.
    ///
    /// # Errors
    /// As [`layer`](Self::layer).
    pub fn multiply(&mut self, a: ValueId, b: ValueId) -> Result<ValueId> {
        self.unnamed(Layer::Multiply, &[a, b])
    }

    /// Values one after the other along an axis.
    ///
    /// # Errors
    /// As [`layer`](Self::layer).
    pub fn concat(&mut self, values: &[ValueId], axis: usize) -> Result<ValueId> {
        self.unnamed(Layer::Concat { axis }, values)
    }

    /// Another shape of the same elements.
    ///
    /// # Errors
    /// As [`layer`](Self::layer).
    pub fn reshape(&mut self, x: ValueId, targets: impl Into<Vec<crate::layer::Target>>) -> Result<ValueId> {
        self.unnamed(Layer::Reshape(targets.into()), &[x])
    }
}
