//! [`Layer`]: what a layer computes, which parameters it has, and the shapes that it makes.
//!
//! Shapes are row-major, the batch first: `[batch, seq, width]` for sequences, `[batch, channels, length]` and
//! `[batch, channels, height, width]` for signals and pictures.

pub(crate) mod infer;
pub(crate) mod work;

use std::fmt;

/// An elementwise function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Activation {
    /// max(x, 0).
    Relu,
    /// x·Φ(x), by the tanh formula.
    Gelu,
    /// x·σ(x).
    Silu,
    /// 1 / (1 + e^−x).
    Sigmoid,
    /// tanh x.
    Tanh,
}

impl Activation {
    /// Whether the gradient is found from the output; else it needs the input.
    #[must_use]
    pub const fn keeps_output(self) -> bool {
        matches!(self, Self::Relu | Self::Sigmoid | Self::Tanh)
    }
}

/// How a normalisation groups what it normalises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum NormKind {
    /// Each row of the last axis, mean and variance.
    Layer,
    /// Each row of the last axis, root of the mean square.
    Rms,
    /// Each channel (axis 1) over the batch.
    Batch,
    /// So many groups of channels (axis 1) of each sample.
    Group(usize),
}

/// A normalisation over `width` channels or columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Norm {
    /// What is normalised together.
    pub kind: NormKind,
    /// Channels, or columns of a row.
    pub width: usize,
    /// Whether the result is multiplied by a learned scale.
    pub scale: bool,
    /// Whether a learned shift is added.
    pub shift: bool,
}

/// A convolution over one or two axes; a signal has height one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Conv {
    /// One axis or two.
    pub axes: usize,
    /// Channels that come in.
    pub inputs: usize,
    /// Channels that go out.
    pub outputs: usize,
    /// Height and width of the kernel.
    pub kernel: [usize; 2],
    /// Steps.
    pub stride: [usize; 2],
    /// Zeros at each end.
    pub padding: [usize; 2],
    /// Distance between the kernel's taps.
    pub dilation: [usize; 2],
    /// Groups of channels that do not see each other.
    pub groups: usize,
    /// Whether a bias is added.
    pub bias: bool,
}

impl Conv {
    /// A square kernel over pictures: stride one, no padding, one group, with bias.
    #[must_use]
    pub const fn square(inputs: usize, outputs: usize, kernel: usize) -> Self {
        Self {
            axes: 2,
            inputs,
            outputs,
            kernel: [kernel; 2],
            stride: [1; 2],
            padding: [0; 2],
            dilation: [1; 2],
            groups: 1,
            bias: true,
        }
    }

    /// A kernel over signals: stride one, no padding, one group, with bias.
    #[must_use]
    pub const fn line(inputs: usize, outputs: usize, kernel: usize) -> Self {
        Self { axes: 1, kernel: [1, kernel], ..Self::square(inputs, outputs, kernel) }
    }

    /// With this stride along each axis.
    #[must_use]
    pub const fn stride(self, stride: usize) -> Self {
        Self { stride: [if self.axes == 1 { 1 } else { stride }, stride], ..self }
    }

    /// With so many zeros at each end of each axis.
    #[must_use]
    pub const fn padding(self, padding: usize) -> Self {
        Self { padding: [if self.axes == 1 { 0 } else { padding }, padding], ..self }
    }

    /// With this dilation along each axis.
    #[must_use]
    pub const fn dilation(self, dilation: usize) -> Self {
        Self { dilation: [if self.axes == 1 { 1 } else { dilation }, dilation], ..self }
    }

    /// In so many groups.
    #[must_use]
    pub const fn groups(self, groups: usize) -> Self {
        Self { groups, ..self }
    }

    /// Without a bias.
    #[must_use]
    pub const fn no_bias(self) -> Self {
        Self { bias: false, ..self }
    }
}

/// How a pool sums up its window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PoolKind {
    /// The largest.
    Max,
    /// The mean; padding counts as zeros.
    Average,
}

/// A pool over the last axes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Pool {
    /// The largest or the mean.
    pub kind: PoolKind,
    /// One axis or two.
    pub axes: usize,
    /// Height and width of the window; zeros mean all there is (a global pool).
    pub kernel: [usize; 2],
    /// Steps.
    pub stride: [usize; 2],
    /// What is added at each end.
    pub padding: [usize; 2],
}

impl Pool {
    /// A square window over pictures that moves by its own size.
    #[must_use]
    pub const fn square(kind: PoolKind, size: usize) -> Self {
        Self { kind, axes: 2, kernel: [size; 2], stride: [size; 2], padding: [0; 2] }
    }

    /// The whole picture: `[batch, channels, 1, 1]`.
    #[must_use]
    pub const fn global(kind: PoolKind) -> Self {
        Self { kind, axes: 2, kernel: [0; 2], stride: [1; 2], padding: [0; 2] }
    }
}

/// Scaled dot-product attention of queries `[batch, seq, heads·head_dim]` over keys and values
/// `[batch, positions, kv_heads·head_dim]`. The projections are linear layers of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Attention {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; a divisor of the query heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Whether a position sees only those before it.
    pub causal: bool,
    /// How far back it sees, where that is bounded.
    pub window: Option<usize>,
    /// Whether its keys and values are kept from step to step when text is written.
    pub cached: bool,
    /// Whether the scores `[batch, heads, seq, positions]` are held at once; else row by row (a fused kernel), and the
    /// gradient computes them again.
    pub scores: bool,
}

/// Which recurrent cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Cell {
    /// Four gates, a hidden and a cell state.
    Lstm,
    /// Three gates, a hidden state.
    Gru,
}

impl Cell {
    /// How many gates.
    #[must_use]
    pub const fn gates(self) -> usize {
        match self {
            Self::Lstm => 4,
            Self::Gru => 3,
        }
    }
}

/// One recurrent layer over `[batch, seq, inputs]`, giving all hidden states `[batch, seq, hidden]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Recurrent {
    /// The cell.
    pub cell: Cell,
    /// Width that comes in.
    pub inputs: usize,
    /// Width of the state.
    pub hidden: usize,
    /// Whether there are two biases per gate.
    pub bias: bool,
}

/// One dimension of a reshape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// This size.
    Fixed(usize),
    /// The size of that dimension of the input.
    Same(usize),
    /// What is left; once at most.
    Rest,
}

/// What a layer computes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Layer {
    /// `x Wᵀ + b` over the last axis.
    Linear {
        /// Columns that come in.
        inputs: usize,
        /// Columns that go out.
        outputs: usize,
        /// Whether a bias is added.
        bias: bool,
    },
    /// A convolution.
    Conv(Conv),
    /// A normalisation.
    Norm(Norm),
    /// An elementwise function. In place it writes over its input, which nobody else may want afterwards.
    Activation {
        /// The function.
        function: Activation,
        /// Whether it writes over its input.
        in_place: bool,
    },
    /// A pool.
    Pool(Pool),
    /// Rows of a table by index: `[…]` of ids to `[…, width]`.
    Embedding {
        /// Rows.
        count: usize,
        /// Columns.
        width: usize,
    },
    /// `x + table` for `[batch, seq, width]`: learned positions.
    Position {
        /// Rows of the table.
        count: usize,
        /// Columns.
        width: usize,
    },
    /// Pairs of columns of each head turned by their position, in `[batch, seq, heads·head_dim]`.
    Rotary {
        /// Width of a head.
        head_dim: usize,
        /// How many columns of each head are turned: even.
        turned: usize,
    },
    /// Attention.
    Attention(Attention),
    /// A recurrent layer.
    Recurrent(Recurrent),
    /// The sum of two values of one shape.
    Add,
    /// The product of two values of one shape, element by element.
    Multiply,
    /// The matrix product of `[…, n, k]` and `[…, k, m]` with the same leading axes.
    MatMul,
    /// Values one after the other along an axis.
    Concat {
        /// The axis.
        axis: usize,
    },
    /// A part of an axis, copied.
    Narrow {
        /// The axis.
        axis: usize,
        /// Where it begins.
        start: usize,
        /// How long it is.
        len: usize,
    },
    /// Another shape of the same elements: a view.
    Reshape(Vec<Target>),
    /// The axes in another order, copied.
    Permute(Vec<usize>),
    /// Each element of a picture repeated so often along both axes.
    Upsample {
        /// How often.
        factor: usize,
    },
    /// Softmax over the last axis.
    Softmax,
}

/// A parameter that a layer has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParamSpec {
    /// Its name within the layer.
    pub name: &'static str,
    /// Its shape.
    pub shape: Vec<usize>,
}

impl Layer {
    /// An activation into new memory.
    #[must_use]
    pub const fn activation(function: Activation) -> Self {
        Self::Activation { function, in_place: false }
    }

    /// A layer normalisation with scale and shift.
    #[must_use]
    pub const fn layer_norm(width: usize) -> Self {
        Self::Norm(Norm { kind: NormKind::Layer, width, scale: true, shift: true })
    }

    /// A root-mean-square normalisation with scale.
    #[must_use]
    pub const fn rms_norm(width: usize) -> Self {
        Self::Norm(Norm { kind: NormKind::Rms, width, scale: true, shift: false })
    }

    /// A batch normalisation with scale and shift.
    #[must_use]
    pub const fn batch_norm(channels: usize) -> Self {
        Self::Norm(Norm { kind: NormKind::Batch, width: channels, scale: true, shift: true })
    }

    /// `[batch, …]` to `[batch, rest]`.
    #[must_use]
    pub fn flatten() -> Self {
        Self::Reshape(vec![Target::Same(0), Target::Rest])
    }

    /// Its kind, as a table names it.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Linear { .. } => "Linear",
            Self::Conv(Conv { axes: 1, .. }) => "Conv1d",
            Self::Conv(_) => "Conv2d",
            Self::Norm(norm) => match norm.kind {
                NormKind::Layer => "LayerNorm",
                NormKind::Rms => "RmsNorm",
                NormKind::Batch => "BatchNorm",
                NormKind::Group(_) => "GroupNorm",
            },
            Self::Activation { function, .. } => match function {
                Activation::Relu => "ReLU",
                Activation::Gelu => "GELU",
                Activation::Silu => "SiLU",
                Activation::Sigmoid => "Sigmoid",
                Activation::Tanh => "Tanh",
            },
            Self::Pool(pool) => match pool.kind {
                PoolKind::Max => "MaxPool",
                PoolKind::Average => "AvgPool",
            },
            Self::Embedding { .. } => "Embedding",
            Self::Position { .. } => "Position",
            Self::Rotary { .. } => "Rotary",
            Self::Attention(_) => "Attention",
            Self::Recurrent(cell) => match cell.cell {
                Cell::Lstm => "LSTM",
                Cell::Gru => "GRU",
            },
            Self::Add => "Add",
            Self::Multiply => "Multiply",
            Self::MatMul => "MatMul",
            Self::Concat { .. } => "Concat",
            Self::Narrow { .. } => "Narrow",
            Self::Reshape(_) => "Reshape",
            Self::Permute(_) => "Permute",
            Self::Upsample { .. } => "Upsample",
            Self::Softmax => "Softmax",
        }
    }

    /// Its parameters.
    #[must_use]
    pub fn params(&self) -> Vec<ParamSpec> {
        let spec = |name, shape: &[usize]| ParamSpec { name, shape: shape.to_vec() };
        let mut all = Vec::new();
        match self {
            Self::Linear { inputs, outputs, bias } => {
                all.push(spec("weight", &[*outputs, *inputs]));
                all.extend(bias.then(|| spec("bias", &[*outputs])));
            }
            Self::Conv(conv) => {
                let each = conv.inputs / conv.groups.max(1);
                let kernel: &[usize] = if conv.axes == 1 { &conv.kernel[1..] } else { &conv.kernel };
                all.push(spec("weight", &[&[conv.outputs, each], kernel].concat()));
                all.extend(conv.bias.then(|| spec("bias", &[conv.outputs])));
            }
            Self::Norm(norm) => {
                all.extend(norm.scale.then(|| spec("weight", &[norm.width])));
                all.extend(norm.shift.then(|| spec("bias", &[norm.width])));
            }
            Self::Embedding { count, width } | Self::Position { count, width } => {
                all.push(spec("weight", &[*count, *width]));
            }
            Self::Recurrent(cell) => {
                let rows = cell.cell.gates().saturating_mul(cell.hidden);
                all.push(spec("weight_ih", &[rows, cell.inputs]));
                all.push(spec("weight_hh", &[rows, cell.hidden]));
                if cell.bias {
                    all.push(spec("bias_ih", &[rows]));
                    all.push(spec("bias_hh", &[rows]));
                }
            }
            _ => {}
        }
        all
    }

    /// Whether it computes nothing and its output is its input's memory.
    #[must_use]
    pub const fn is_view(&self) -> bool {
        matches!(self, Self::Reshape(_))
    }

    /// Whether its output is written over its input.
    #[must_use]
    pub const fn is_in_place(&self) -> bool {
        matches!(self, Self::Activation { in_place: true, .. })
    }
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.kind())
    }
}
