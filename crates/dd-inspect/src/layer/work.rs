//! How many multiply-adds a layer does.

use super::{Layer, infer};

impl Layer {
    /// Multiplications with an addition, of weights and, in attention and matrix products, of values; a learned scale
    /// counts one per element. Masks are not taken into account. Nothing where the number does not fit 64 bits.
    #[must_use]
    pub fn multiply_adds(&self, inputs: &[&[usize]], output: &[usize]) -> Option<u64> {
        let elements = product(output)?;
        match self {
            Self::Linear { inputs, .. } => elements.checked_mul(*inputs as u64),
            Self::Conv(conv) => {
                let each = conv.inputs / conv.groups.max(1);
                elements.checked_mul(product(&[each, conv.kernel[0], conv.kernel[1]])?)
            }
            Self::Norm(norm) if norm.scale => Some(elements),
            Self::Attention(attention) => {
                let positions = inputs.get(1).and_then(|keys| keys.get(1)).copied().unwrap_or_default();
                let rows = product(output.get(..2).unwrap_or_default())?;
                let products = product(&[attention.heads, attention.head_dim, positions])?;
                rows.checked_mul(products)?.checked_mul(2)
            }
            Self::Recurrent(cell) => {
                let width = (cell.inputs as u64).checked_add(cell.hidden as u64)?;
                elements.checked_mul(cell.cell.gates() as u64)?.checked_mul(width)
            }
            Self::MatMul => {
                let inner = inputs.first().and_then(|a| a.last()).copied().unwrap_or_default();
                elements.checked_mul(inner as u64)
            }
            _ => Some(0),
        }
    }
}

/// The product of these sizes, where it fits 64 bits.
pub(crate) fn product(sizes: &[usize]) -> Option<u64> {
    if sizes.contains(&0) {
        return Some(0);
    }
    sizes.iter().try_fold(1u64, |product, size| product.checked_mul(*size as u64))
}

/// `[batch, channels, height, width]` of a signal or a picture.
pub(crate) fn plane(axes: usize, x: &[usize]) -> [usize; 4] {
    infer::plane(axes, x).unwrap_or([0; 4])
}
