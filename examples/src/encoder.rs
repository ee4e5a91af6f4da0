//! A transformer's encoder layer, made from candle's parts: it knows nothing of memory management.

use candle_core::{Result, Tensor};
use candle_nn::{LayerNorm, Linear, Module, VarBuilder, layer_norm, linear, ops};
use deep_dimensions::core::Bytes;

/// How large an encoder layer is.
#[derive(Clone, Copy, Debug)]
pub struct EncoderSizes {
    /// The width of the hidden state; a multiple of `heads`.
    pub hidden: usize,
    /// Attention heads.
    pub heads: usize,
    /// The width between the two linear layers.
    pub intermediate: usize,
}

impl EncoderSizes {
    /// A bound for what a layer holds besides its weights, for `[1, positions, hidden]` of `f32`: three projections,
    /// each with a contiguous copy, what goes in, what comes out and the steps between; scores, their softmax and a
    /// scaled copy; and the wide state before and after its activation.
    #[must_use]
    pub const fn activation_bytes(&self, positions: usize) -> Bytes {
        let states = 12 * positions * self.hidden;
        let scores = 3 * self.heads * positions * positions;
        let wide = 2 * positions * self.intermediate;
        Bytes::of((states + scores + wide) * size_of::<f32>())
    }
}

/// One layer: attention over all positions, then two linear layers; a residual connection and a layer norm after each
/// (Vaswani et al., "Attention Is All You Need", 2017, with the norm after the sum as there).
pub struct EncoderLayer {
    sizes: EncoderSizes,
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    attention_norm: LayerNorm,
    up: Linear,
    down: Linear,
    output_norm: LayerNorm,
}

impl EncoderLayer {
    /// A layer whose weights are those of the builder.
    ///
    /// # Errors
    /// A tensor that is missing or of another shape.
    pub fn new(sizes: EncoderSizes, vb: VarBuilder<'_>) -> Result<Self> {
        let EncoderSizes { hidden, intermediate, .. } = sizes;
        let square = |name: &str| linear(hidden, hidden, vb.pp("attention").pp(name));
        Ok(Self {
            sizes,
            query: square("query")?,
            key: square("key")?,
            value: square("value")?,
            output: square("output")?,
            attention_norm: layer_norm(hidden, 1e-12, vb.pp("attention.norm"))?,
            up: linear(hidden, intermediate, vb.pp("up"))?,
            down: linear(intermediate, hidden, vb.pp("down"))?,
            output_norm: layer_norm(hidden, 1e-12, vb.pp("norm"))?,
        })
    }

    /// `[batch, positions, hidden]` to the same shape.
    fn attend(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, positions, hidden) = x.dims3()?;
        let head_width = hidden / self.sizes.heads;
        let split = |x: Tensor| {
            x.reshape((batch, positions, self.sizes.heads, head_width))?.transpose(1, 2)?.contiguous()
        };
        let query = split(self.query.forward(x)?)?;
        let key = split(self.key.forward(x)?)?;
        let value = split(self.value.forward(x)?)?;
        let scores = (query.matmul(&key.t()?)? / (head_width as f64).sqrt())?;
        let context = ops::softmax_last_dim(&scores)?.matmul(&value)?;
        self.output.forward(&context.transpose(1, 2)?.reshape((batch, positions, hidden))?)
    }
}

impl Module for EncoderLayer {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = self.attention_norm.forward(&(x + self.attend(x)?)?)?;
        let wide = self.up.forward(&x)?.gelu_erf()?;
        self.output_norm.forward(&(&x + self.down.forward(&wide)?)?)
    }
}
