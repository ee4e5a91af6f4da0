//! [`InspectNetwork`]: how many parameters and intermediate variables a network has.

use dd_core::{Bytes, DType};

use crate::error::{Error, Result};
use crate::graph::{Axis, Graph, GraphBuilder, Shapes, Sizes};
use crate::layer::Layer;

/// Counts of a network for given sizes.
///
/// *Parameters* are counted once each, however often they are used. *Intermediate variables* are the elements of the results
/// of all layers, one after the other, for the given input; the input itself is not one, and neither is a view, which holds
/// nothing of its own. That is what a sequential forward makes in all, not what it holds at once:
/// for that see [`NetworkCost`](crate::estimate::NetworkCost).
///
/// ```
/// use dd_core::{Bytes, DType};
/// use dd_inspect::InspectNetwork;
/// use dd_inspect::layer::{Activation, Layer};
///
/// let layers = [
///     Layer::Linear { inputs: 10, outputs: 20, bias: true },
///     Layer::activation(Activation::Relu),
///     Layer::Linear { inputs: 20, outputs: 5, bias: true },
/// ];
/// let network = InspectNetwork::sequential(layers, &[10])?;
/// assert_eq!(network.parameter_count(), 325);
/// assert_eq!(network.intermediate_variable_count(), 20 + 20 + 5);
/// assert_eq!(network.parameter_bytes(DType::F32)?, Bytes(1300));
/// # Ok::<(), dd_inspect::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct InspectNetwork {
    graph: Graph,
    shapes: Shapes,
    parameters: u64,
    variables: u64,
}

impl InspectNetwork {
    /// Of a graph at given sizes.
    ///
    /// # Errors
    /// As [`Graph::shapes`]; a size overflow where a count does not fit 64 bits.
    pub fn new(graph: Graph, sizes: Sizes) -> Result<Self> {
        let shapes = graph.shapes(sizes)?;
        let parameters = graph.parameter_count()?;
        let mut variables = 0u64;
        for node in graph.nodes() {
            if graph.module_of(node).is_some_and(|module| module.layer.is_view()) {
                continue;
            }
            let sum = variables.checked_add(shapes.elements(node.output)?);
            variables = sum.ok_or_else(|| Error::overflow(format!("the variables of {}", graph.name())))?;
        }
        Ok(Self { graph, shapes, parameters, variables })
    }

    /// Of layers that are applied one after the other to one sample of `input_shape` (without the batch).
    ///
    /// # Errors
    /// [`Error::Layer`] where a layer cannot take what the one before gives; as [`new`](Self::new).
    pub fn sequential(layers: impl IntoIterator<Item = Layer>, input_shape: &[usize]) -> Result<Self> {
        let mut builder = GraphBuilder::new("sequential");
        let axes: Vec<Axis> =
            std::iter::once(Axis::Batch).chain(input_shape.iter().map(|size| Axis::Fixed(*size))).collect();
        let mut value = builder.input("input", axes);
        for (at, layer) in layers.into_iter().enumerate() {
            value = builder.layer(&at.to_string(), layer, &[value])?;
        }
        Self::new(builder.finish([value])?, Sizes::batch(1))
    }

    /// How many elements all parameters have.
    #[must_use]
    pub const fn parameter_count(&self) -> u64 {
        self.parameters
    }

    /// How many of them training changes.
    #[must_use]
    pub fn trainable_count(&self) -> u64 {
        let trainable = self.graph.params().iter().filter(|param| param.trainable);
        trainable.filter_map(|param| crate::layer::work::product(&param.shape)).sum()
    }

    /// How many elements all results have.
    #[must_use]
    pub const fn intermediate_variable_count(&self) -> u64 {
        self.variables
    }

    /// Bytes of the parameters in a dtype.
    ///
    /// # Errors
    /// A size overflow past 64 bits; a mismatch where they are no whole number of the dtype's blocks.
    pub fn parameter_bytes(&self, dtype: DType) -> Result<Bytes> {
        Ok(dtype.bytes_for(self.parameters)?)
    }

    /// Bytes of the intermediate variables in a dtype.
    ///
    /// # Errors
    /// As [`parameter_bytes`](Self::parameter_bytes).
    pub fn intermediate_variable_bytes(&self, dtype: DType) -> Result<Bytes> {
        Ok(dtype.bytes_for(self.variables)?)
    }

    /// The network.
    #[must_use]
    pub const fn graph(&self) -> &Graph {
        &self.graph
    }

    /// The shapes of its values.
    #[must_use]
    pub const fn shapes(&self) -> &Shapes {
        &self.shapes
    }
}
