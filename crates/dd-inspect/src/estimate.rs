//! [`NetworkCost`]: the live peak of a network as a [`CostModel`], and [`Estimate`] with its parts.

use dd_core::{Bytes, CostModel};

use crate::error::{Error, Result};
use crate::graph::{Graph, Sizes};
use crate::liveness::Liveness;
use crate::program::{Inference, Program, Role, Training};

/// What a network is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Work {
    /// A pass forward.
    Inference(Inference),
    /// A training step.
    Training(Training),
}

impl Default for Work {
    fn default() -> Self {
        Self::Inference(Inference::default())
    }
}

impl Work {
    /// The steps of this work.
    ///
    /// # Errors
    /// As [`Graph::inference`] and [`Graph::training`].
    pub fn program(&self, graph: &Graph, sizes: Sizes) -> Result<Program> {
        match self {
            Self::Inference(options) => graph.inference(sizes, options),
            Self::Training(options) => graph.training(sizes, options),
        }
    }
}

/// A live peak, what it consists of, and how sure it is.
#[derive(Clone, Debug, PartialEq)]
pub struct Estimate {
    /// The live peak.
    pub peak: Bytes,
    /// The live peak with its uncertainty: no run that keeps to the program takes more.
    pub at_most: Bytes,
    /// What is there all the time.
    pub resident: Bytes,
    /// What each role holds at the peak.
    pub parts: Vec<(Role, Bytes)>,
    /// What may come on top of the peak, as a share of what is not resident.
    pub uncertainty_fraction: f64,
}

/// The live peak of a network as a function of its batch (`[batch]`) or of batch and sequence (`[batch, seq]`).
///
/// It is exact for what a [`Program`] assumes: results of the right order of freeing, nothing else allocated. A library that
/// frees later or needs workspaces takes more; `uncertainty_fraction` says how much of the transient memory is added for
/// that. candle does both: its elementwise layers are several operations, and its products pack their operands.
///
/// ```
/// use dd_core::{Bytes, CostModel};
/// use dd_inspect::estimate::{NetworkCost, Work};
/// use dd_inspect::graph::{Axis, GraphBuilder};
///
/// let mut b = GraphBuilder::new("two layers");
/// let x = b.input("x", [Axis::Batch, Axis::Fixed(256)]);
/// let h = b.linear(x, 1024)?;
/// let y = b.linear(h, 16)?;
/// let cost = NetworkCost::new(b.finish([y])?, Work::default());
/// let weights = 4 * (256 * 1024 + 1024 + 1024 * 16 + 16);
/// assert_eq!(cost.peak(&[8])?, Bytes(weights + 4 * 8 * (256 + 1024 + 16)));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct NetworkCost {
    graph: Graph,
    work: Work,
    granularity: u64,
    uncertainty_fraction: f64,
}

impl NetworkCost {
    /// Of a network and what it does.
    #[must_use]
    pub const fn new(graph: Graph, work: Work) -> Self {
        Self { graph, work, granularity: 1, uncertainty_fraction: 0.0 }
    }

    /// With an allocator that hands out multiples of so many bytes: 512 on CUDA devices.
    #[must_use]
    pub fn granularity(self, bytes: u64) -> Self {
        Self { granularity: bytes, ..self }
    }

    /// With so much of what is not resident on top, for what a library allocates besides; at least zero.
    #[must_use]
    pub fn uncertainty(self, fraction: f64) -> Self {
        let uncertainty_fraction = if fraction > 0.0 && fraction.is_finite() { fraction } else { 0.0 };
        Self { uncertainty_fraction, ..self }
    }

    /// The network.
    #[must_use]
    pub const fn graph(&self) -> &Graph {
        &self.graph
    }

    /// What it does.
    #[must_use]
    pub const fn work(&self) -> Work {
        self.work
    }

    /// The peak and its parts at these sizes.
    ///
    /// # Errors
    /// As [`Work::program`]; a size overflow where the peak does not fit 64 bits.
    pub fn estimate(&self, sizes: Sizes) -> Result<Estimate> {
        let program = self.work.program(&self.graph, sizes)?;
        let live = Liveness::with_granularity(&program, self.granularity);
        let at_most = live.peak + live.peak.saturating_sub(live.resident).scaled(self.uncertainty_fraction);
        if at_most == Bytes::MAX {
            return Err(Error::overflow(format!("the peak of {} at {sizes:?}", self.graph.name())));
        }
        Ok(Estimate {
            peak: live.peak,
            at_most,
            resident: live.resident,
            parts: live.by_role(&program, live.peak_step),
            uncertainty_fraction: self.uncertainty_fraction,
        })
    }
}

impl CostModel for NetworkCost {
    fn peak(&self, sizes: &[usize]) -> dd_core::Result<Bytes> {
        let sizes = match (sizes, self.graph.has_seq()) {
            ([batch], false) => Sizes::batch(*batch),
            ([batch, seq], true) => Sizes::new(*batch, *seq),
            _ => {
                let expected = if self.graph.has_seq() { "[batch, seq]" } else { "[batch]" };
                let reason = format!("expected {expected}, found {} sizes", sizes.len());
                return Err(dd_core::Error::InvalidArgument { argument: "sizes", reason });
            }
        };
        match self.estimate(sizes) {
            Ok(estimate) => Ok(estimate.at_most),
            Err(Error::Core { source }) => Err(source),
            Err(other) => {
                Err(dd_core::Error::InvalidArgument { argument: "sizes", reason: other.to_string() })
            }
        }
    }
}
