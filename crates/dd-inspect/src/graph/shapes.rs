//! [`Shapes`]: the shape of every value at given sizes.

use super::{Axis, Graph, Sizes, ValueId};
use crate::error::{Error, Result};
use crate::layer::work::product;

/// The shape of every value of a graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shapes(Vec<Vec<usize>>);

impl Shapes {
    /// The shape of a value; empty where the graph has no such value.
    #[must_use]
    pub fn of(&self, value: ValueId) -> &[usize] {
        self.0.get(value.0).map_or(&[], Vec::as_slice)
    }

    /// How many elements a value has.
    ///
    /// # Errors
    /// A size overflow past 64 bits.
    pub fn elements(&self, value: ValueId) -> Result<u64> {
        let shape = self.of(value);
        product(shape).ok_or_else(|| Error::overflow(format!("a value of shape {shape:?}")))
    }

    pub(super) fn set(&mut self, value: ValueId, shape: Vec<usize>) {
        if self.0.len() <= value.0 {
            self.0.resize(value.0 + 1, Vec::new());
        }
        if let Some(slot) = self.0.get_mut(value.0) {
            *slot = shape;
        }
    }

    pub(super) const fn none() -> Self {
        Self(Vec::new())
    }
}

pub(super) fn input_shape(axes: &[Axis], sizes: Sizes) -> Vec<usize> {
    let size = |axis: &Axis| match axis {
        Axis::Batch => sizes.batch,
        Axis::Seq => sizes.seq,
        Axis::Fixed(size) => *size,
    };
    axes.iter().map(size).collect()
}

impl Graph {
    /// The shape of every value at these sizes.
    ///
    /// # Errors
    /// [`Error::Layer`] where a layer cannot take its input; a size overflow where a value or parameter has more elements
    /// than fit 64 bits.
    pub fn shapes(&self, sizes: Sizes) -> Result<Shapes> {
        let mut shapes = Shapes(vec![Vec::new(); self.values]);
        for input in &self.inputs {
            shapes.set(input.value, input_shape(&input.axes, sizes));
            shapes.elements(input.value)?;
        }
        for node in &self.nodes {
            let Some(module) = self.module_of(node) else { continue };
            let inputs: Vec<&[usize]> = node.inputs.iter().map(|value| shapes.of(*value)).collect();
            let output = module.layer.output_shape(&inputs);
            let output = output.map_err(|problem| Error::layer(&module.name, problem))?;
            shapes.set(node.output, output);
            shapes.elements(node.output)?;
        }
        Ok(shapes)
    }

    /// How many elements all parameters have, each counted once.
    ///
    /// # Errors
    /// A size overflow past 64 bits.
    pub fn parameter_count(&self) -> Result<u64> {
        let overflow = || Error::overflow(format!("the parameters of {}", self.name));
        self.params.iter().try_fold(0u64, |sum, param| {
            sum.checked_add(product(&param.shape).ok_or_else(overflow)?).ok_or_else(overflow)
        })
    }
}

/// Checks that nobody wants a value after an in-place layer wrote over it.
///
/// # Errors
/// [`Error::Layer`] with the name of the in-place layer.
pub(super) fn check_in_place(graph: &Graph) -> Result<()> {
    // The value whose memory another value lives in, views and in-place results included.
    let mut root: Vec<usize> = (0..graph.values).collect();
    let mut lost = vec![None; graph.values];
    let wanted = |root: &[usize], lost: &[Option<usize>], value: ValueId, at: Option<usize>| {
        let mine = root.get(value.0).copied().unwrap_or_default();
        let writer = lost.get(mine).copied().flatten()?;
        // The writer's own result, and views of it, live on in the same memory.
        let node = graph.nodes.get(writer)?;
        (value.0 < node.output.0).then_some((writer, at))
    };
    for (at, node) in graph.nodes.iter().enumerate() {
        let Some(module) = graph.module_of(node) else { continue };
        for value in &node.inputs {
            if let Some((writer, _)) = wanted(&root, &lost, *value, Some(at)) {
                return Err(overwritten(graph, writer));
            }
        }
        let Some(first) = node.inputs.first() else { continue };
        let mine = root.get(first.0).copied().unwrap_or_default();
        let shares = module.layer.is_view() || module.layer.is_in_place();
        if let Some(slot) = root.get_mut(node.output.0).filter(|_| shares) {
            *slot = mine;
        }
        if module.layer.is_in_place() {
            let is_input = graph.inputs.iter().any(|input| input.value.0 == mine);
            if is_input {
                return Err(overwritten(graph, at));
            }
            if let Some(slot) = lost.get_mut(mine) {
                *slot = Some(at);
            }
        }
    }
    for value in &graph.outputs {
        if let Some((writer, _)) = wanted(&root, &lost, *value, None) {
            return Err(overwritten(graph, writer));
        }
    }
    Ok(())
}

fn overwritten(graph: &Graph, writer: usize) -> Error {
    let name =
        graph.nodes.get(writer).and_then(|node| graph.module_of(node)).map(|module| module.name.clone());
    let problem = "it works in place, but its input is an input of the network or is wanted later; let it write into new \
                   memory";
    Error::layer(name.unwrap_or_default(), problem)
}
