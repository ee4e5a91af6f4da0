//! How many bytes of activations a pass holds at its peak, known before it starts.
//!
//! [`peak`] follows the order of operations of [`crate::bert`] and adds up what is alive at each step: a tensor
//! `[rows, width]` of F32 is 4·rows·width bytes, whatever its strides; views cost nothing. Three things of the tensor
//! library are in it as well:
//! - every operation makes its result anew, so its input and its output are alive together;
//! - a matrix product packs pieces of its operands (`packing`);
//! - shapes, layouts and handles of small tensors ([`HANDLES`]).
//!
//! What the library keeps for the whole life of the process (threads, one packing buffer per thread) is no activation:
//! it belongs to the constant that [`crate::process`] measures.

use deep_dimensions::core::Bytes;

use crate::bert::{Config, largest_block};

/// Bytes for shapes, layouts and the handles of tensors that are alive at once.
pub const HANDLES: u64 = 16 << 10;

/// The most of the inner dimension that a matrix product packs at once.
const PACKED_DEPTH: u64 = 1024;
/// A weight of at most so many outputs is packed whole.
const PACKED_OUT: u64 = 256;
/// The rows are packed where there are more outputs than this; on aarch64 always.
const UNPACKED_OUT: u64 = if cfg!(target_arch = "aarch64") { 0 } else { 2048 };
/// What is packed is rounded up to whole tiles.
const TILE: u64 = 16;

/// An upper bound, and a tight one, of the activation bytes of one pass over sentences of these lengths: embeddings,
/// layers, and pooling to one vector per sentence.
#[must_use]
pub fn peak(config: &Config, lengths: &[usize]) -> Bytes {
    let sizes = Sizes::of(config, lengths);
    let longest = [sizes.embedding(), sizes.projecting(), sizes.attending(lengths), sizes.finishing()];
    let elements = longest.into_iter().max().unwrap_or(0) + sizes.pooled;
    let ids = 16 * sizes.tokens; // Ids and positions, as given and as tensors.
    Bytes(elements.saturating_mul(4).saturating_add(ids).saturating_add(HANDLES))
}

/// Elements that a matrix product `[rows, depth] × [depth, out]` packs, beside its result. The rule is that of the
/// `gemm` crate, version 0.19, which sees the product transposed.
fn packing(rows: u64, depth: u64, out: u64) -> u64 {
    let rows = if out > UNPACKED_OUT { rows.next_multiple_of(TILE) } else { 0 };
    let outs = if out <= PACKED_OUT { out.next_multiple_of(TILE) } else { 0 };
    depth.min(PACKED_DEPTH) * (rows + outs)
}

/// Sizes in elements.
struct Sizes {
    tokens: u64,
    /// Rows of the largest block.
    rows: u64,
    hidden: u64,
    inner: u64,
    heads: u64,
    head: u64,
    /// One state per token.
    states: u64,
    pooled: u64,
}

impl Sizes {
    fn of(config: &Config, lengths: &[usize]) -> Self {
        let wide = |n: usize| n as u64; // lossless
        let tokens = lengths.iter().sum::<usize>();
        let hidden = wide(config.hidden_size);
        Self {
            tokens: wide(tokens),
            rows: wide(largest_block(tokens)),
            hidden,
            inner: wide(config.intermediate_size),
            heads: wide(config.num_attention_heads),
            head: wide(config.head_size()),
            states: wide(tokens) * hidden,
            pooled: 2 * wide(lengths.len()) * hidden,
        }
    }

    /// Words with types, positions, and their sum; a norm needs less.
    const fn embedding(&self) -> u64 {
        3 * self.states + 2 * self.hidden
    }

    /// A linear layer on a block, with its bias: the product and what it packs, then the product and the sum.
    fn linear(&self, depth: u64, out: u64) -> u64 {
        let product = self.rows * out;
        product + product.max(packing(self.rows, depth, out))
    }

    /// Input states, query, key and value, and the last block of value on its way.
    fn projecting(&self) -> u64 {
        4 * self.states + self.linear(self.hidden, self.hidden)
    }

    /// Input states, query, key, value and context; and of the sentence that needs most, one block of rows.
    fn attending(&self, lengths: &[usize]) -> u64 {
        let block = lengths.iter().map(|len| self.attending_block(*len)).max();
        5 * self.states + block.unwrap_or(0)
    }

    fn attending_block(&self, len: usize) -> u64 {
        let (rows, len) = (largest_block(len) as u64, len as u64); // lossless
        let (scores, scaled) = (self.heads * rows * len, rows * self.hidden);
        let score = scaled + scores + scores.max(packing(rows, self.head, len));
        let weigh = scaled + scores + scaled + packing(rows, len, self.head);
        let join = 3 * scaled;
        score.max(weigh).max(join)
    }

    /// Input states, context and output states; and one block through the feed-forward part.
    fn finishing(&self) -> u64 {
        let block = self.rows * self.hidden;
        let inner = self.rows * self.inner;
        let widen = block + self.linear(self.hidden, self.inner);
        let activate = block + 2 * inner;
        let narrow = block + inner + self.linear(self.inner, self.hidden);
        let first = self.linear(self.hidden, self.hidden);
        let norm = 3 * block;
        3 * self.states + [widen, activate, narrow, first, norm].into_iter().max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::config;

    #[test]
    fn more_work_never_needs_less() {
        let config = config(8, 2, 16, 1);
        let rows: [(&[usize], &[usize]); 4] =
            [(&[], &[1]), (&[1], &[2]), (&[7, 7], &[7, 8]), (&[90], &[90, 1])];
        for (less, more) in rows {
            assert!(peak(&config, less) <= peak(&config, more), "{less:?} {more:?}");
        }
    }

    #[test]
    fn a_long_batch_costs_five_states_and_one_block() {
        let config = config(64, 4, 256, 1);
        let (short, long) = (peak(&config, &[64; 100]).0, peak(&config, &[64; 200]).0);
        let per_token = 5 * 64 * 4 + 16;
        assert_eq!(long - short, 6_400 * per_token + 100 * 2 * 64 * 4);
    }
}
