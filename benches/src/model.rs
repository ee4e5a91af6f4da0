//! The networks that are measured: a transformer's block at one token, and an encoder's layer over a sentence.

use candle_core::{D, Device, Tensor};
use candle_nn::{LayerNorm, Linear, Module, VarBuilder, layer_norm, linear, ops::softmax};

/// How large a model is: `layers` equal blocks, `width` wide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Width of the residual stream.
    pub width: usize,
    /// Blocks.
    pub layers: usize,
}

impl Shape {
    /// As many blocks of this width as make up `bytes`, at least two.
    #[must_use]
    pub fn of_size(bytes: u64, width: usize) -> Self {
        let one = Self { width, layers: 1 }.bytes();
        Self { width, layers: usize::try_from(bytes.div_ceil(one)).unwrap_or(2).max(2) }
    }

    /// The name of one block.
    #[must_use]
    pub fn layer(n: usize) -> String {
        format!("layers.{n}")
    }

    /// Bytes of all weights in F32.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.tensors().iter().map(|(_, shape)| shape.iter().product::<usize>() as u64 * 4).sum()
    }

    /// Every tensor's name and shape, in the order of use.
    #[must_use]
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (d, wide) = (self.width, self.width * 4);
        let linears = [
            ("query", d, d),
            ("key", d, d),
            ("value", d, d),
            ("out", d, d),
            ("up", d, wide),
            ("down", wide, d),
        ];
        let mut tensors = Vec::new();
        for n in 0..self.layers {
            let layer = Self::layer(n);
            for (name, inputs, outputs) in linears {
                tensors.push((format!("{layer}.{name}.weight"), vec![outputs, inputs]));
                tensors.push((format!("{layer}.{name}.bias"), vec![outputs]));
            }
            for name in ["norm1", "norm2"] {
                tensors.push((format!("{layer}.{name}.weight"), vec![d]));
                tensors.push((format!("{layer}.{name}.bias"), vec![d]));
            }
        }
        tensors
    }

    /// An input: `[rows, width]`.
    ///
    /// # Errors
    /// candle's.
    pub fn input(&self, rows: usize) -> candle_core::Result<Tensor> {
        let count = rows * self.width;
        let values = (0..count).map(|n| (n % 17) as f32 / 17.0 - 0.5).collect();
        Tensor::from_vec(values, (rows, self.width), &Device::Cpu)
    }
}

/// A transformer's block: attention of `heads` heads over the rows of its input, then two wide linears; each after a
/// norm and added to what came in. `[rows, width]` gives `[rows, width]`.
pub struct Block {
    heads: usize,
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
    norm1: LayerNorm,
    up: Linear,
    down: Linear,
    norm2: LayerNorm,
}

impl Block {
    /// Takes the weights.
    ///
    /// # Errors
    /// A weight that is not there, or has another shape.
    pub fn load(width: usize, heads: usize, vb: &VarBuilder<'_>) -> candle_core::Result<Self> {
        let square = |name| linear(width, width, vb.pp(name));
        Ok(Self {
            heads,
            query: square("query")?,
            key: square("key")?,
            value: square("value")?,
            out: square("out")?,
            norm1: layer_norm(width, 1e-5, vb.pp("norm1"))?,
            up: linear(width, width * 4, vb.pp("up"))?,
            down: linear(width * 4, width, vb.pp("down"))?,
            norm2: layer_norm(width, 1e-5, vb.pp("norm2"))?,
        })
    }

    /// `[rows, width]` as `[heads, rows, width / heads]`.
    fn split(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let (rows, width) = x.dims2()?;
        x.reshape((rows, self.heads, width / self.heads))?.transpose(0, 1)?.contiguous()
    }

    fn attend(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let (query, key, value) = (
            self.split(&self.query.forward(x)?)?,
            self.split(&self.key.forward(x)?)?,
            self.split(&self.value.forward(x)?)?,
        );
        let scale = 1.0 / (key.dim(D::Minus1)? as f64).sqrt();
        let scores = (query.matmul(&key.t()?)? * scale)?;
        let mixed = softmax(&scores, D::Minus1)?.matmul(&value)?;
        self.out.forward(&mixed.transpose(0, 1)?.reshape(x.shape())?)
    }
}

impl Module for Block {
    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let x = (x + self.attend(&self.norm1.forward(x)?)?)?;
        let wide = self.up.forward(&self.norm2.forward(&x)?)?.gelu()?;
        &x + self.down.forward(&wide)?
    }
}

/// One pass over blocks, in order.
///
/// # Errors
/// What the blocks report.
pub fn pass<M: Module>(blocks: &[M], input: &Tensor) -> candle_core::Result<Tensor> {
    blocks.iter().try_fold(input.clone(), |x, block| block.forward(&x))
}
