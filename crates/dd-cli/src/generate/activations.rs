//! The most bytes that a run of a model takes beside its weights, known before it starts: its tables, what it caches,
//! the states of a pass, and the logits.
//!
//! The figures follow the library's code: which tensors are alive at once in a block. A name that is bound anew does
//! not free what it named before, so that the attention's scores are there three or four times at its end. They are
//! upper bounds; a counting allocator holds them against the truth for every family (`tests/bounds.rs`).

use deep_dimensions::core::Bytes;

use super::config::ModelConfig;
use super::family::Family;

/// What shapes, names, small vectors and the edges of packing take, whatever the model's size.
const FIXED: u128 = 128 << 10;
/// What a model takes for itself, whatever its size.
const MODEL: u128 = 16 << 10;
/// The same for each of its blocks: structs, spans and names, and each tensor's own description.
const PER_LAYER: u128 = 4 << 10;

/// A run to be bounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Work {
    /// Prompts of a block.
    pub batch: usize,
    /// Tokens of each prompt.
    pub prompt: usize,
    /// The most new tokens of each.
    pub new: usize,
}

impl Work {
    /// Positions that are used up.
    #[must_use]
    pub const fn positions(&self) -> usize {
        self.prompt + self.new
    }
}

/// What the model holds beside its weights from when it is made until it is dropped, and while it is made: tables of
/// sines and cosines for `positions`, and itself.
#[must_use]
pub fn tables(config: &ModelConfig, positions: usize) -> Bytes {
    let sizes = &config.sizes;
    let turned = match config.family {
        Family::T5 | Family::Bert => 0,
        _ => wide(config.positions_for(positions)) * wide(sizes.head_dim),
    };
    let each = match config.family {
        Family::StarCoder2 | Family::StableLm => 2 * turned, // For both halves.
        _ => turned,
    };
    let layers = wide(sizes.layers + sizes.decoder_layers);
    let all = if config.family == Family::Gemma3 { layers * each } else { each };
    let ones = if config.family == Family::Olmo { (layers + 1) * wide(sizes.hidden) } else { 0 };
    let made = 2 * turned + wide(config.positions_for(positions)) * 3; // Of one table, while it is made.
    clamped(4 * (all + ones + made) + MODEL + layers * PER_LAYER)
}

/// What a block of prompts takes at its most, for a model made for `positions`: caches, states, scores, logits.
#[must_use]
pub fn peak(config: &ModelConfig, positions: usize, work: Work) -> Bytes {
    let counts = Counts { config, work, positions: wide(config.positions_for(positions)) };
    let values = counts.cached() + counts.first().max(counts.step()) + counts.logits();
    clamped(4 * values + FIXED)
}

/// Products of sizes do not overflow at this width, whatever a config says.
const fn wide(size: usize) -> u128 {
    size as u128
}

fn clamped(bytes: u128) -> Bytes {
    u64::try_from(bytes).map_or(Bytes::MAX, Bytes)
}

/// Numbers of values, not bytes.
struct Counts<'a> {
    config: &'a ModelConfig,
    work: Work,
    positions: u128,
}

impl Counts<'_> {
    fn rows(&self) -> u128 {
        wide(self.work.batch)
    }

    fn queries(&self) -> u128 {
        wide(self.config.sizes.queries())
    }

    fn keys(&self) -> u128 {
        wide(self.config.sizes.keys())
    }

    fn hidden(&self) -> u128 {
        wide(self.config.sizes.hidden)
    }

    /// Keys and values of all layers, those of one layer twice while they grow.
    fn cached(&self) -> u128 {
        let sizes = &self.config.sizes;
        let (layers, all) = (wide(sizes.layers), wide(self.work.positions()));
        let pair = 2 * self.keys();
        let per_row = match self.config.family {
            Family::Bert => 0,
            Family::T5 => {
                (wide(sizes.decoder_layers) + 1) * pair * wide(self.work.new)
                    + self.hidden() * wide(self.work.prompt)
            }
            Family::Gemma3 => {
                let window = self.positions.min(sizes.window.map_or(u128::MAX, wide));
                let pattern = wide(self.config.pattern());
                let (full, sliding) = (layers / pattern, layers - layers / pattern);
                pair * (full * self.positions + sliding * window)
            }
            // The values of the prompt are a view of all three projections together.
            Family::Phi3 => {
                let whole = (self.queries() + self.keys() + pair) * wide(self.work.prompt);
                (layers + 1) * whole.max(pair * all)
            }
            _ => (layers + 1) * pair * all,
        };
        per_row * self.rows()
    }

    /// The pass over the prompt.
    fn first(&self) -> u128 {
        let prompt = wide(self.work.prompt);
        self.pass(prompt, prompt)
    }

    /// The last pass over one token, which sees all before it.
    fn step(&self) -> u128 {
        match self.config.family {
            Family::Bert => 0,
            // It projects what the encoder said anew in every layer.
            Family::T5 => {
                self.pass(1, wide(self.work.positions()))
                    + 4 * self.rows() * self.keys() * wide(self.work.prompt)
            }
            _ => self.pass(1, wide(self.work.positions())),
        }
    }

    /// States, and the larger of attention and feed-forward, of a pass over `new` tokens that see `seen`.
    fn pass(&self, new: u128, seen: u128) -> u128 {
        let states = self.rows() * new * self.hidden() * 8;
        states
            + self.attention(new, seen).max(self.feed_forward(new))
            + self.masks(new, seen)
            + self.packing(seen)
    }

    /// A matrix product of few outputs packs its second operand, at most so much of its depth at once: the rule of
    /// the `gemm` crate, as in [`crate::activations`]. What it packs of the first lies within the states' bound.
    fn packing(&self, seen: u128) -> u128 {
        let sizes = &self.config.sizes;
        let (head, inner) = (wide(sizes.head_dim), wide(sizes.inner));
        let products = [(seen, head), (head, seen), (self.hidden(), self.keys()), (inner, self.hidden())];
        let few = products.into_iter().filter(|(_, out)| *out <= 256);
        few.map(|(depth, out)| depth.min(1024) * out.next_multiple_of(16)).max().unwrap_or_default()
    }

    fn attention(&self, new: u128, seen: u128) -> u128 {
        let projected = 6 * self.queries() + 5 * self.keys();
        let repeated = if self.config.sizes.kv_heads == self.config.sizes.heads { 1 } else { 2 };
        let heads = wide(self.config.sizes.heads);
        let scores = match self.config.family {
            Family::Qwen3 => 0,
            Family::Gemma2 => 4 * heads * new * seen,
            _ => 3 * heads * new * seen,
        };
        self.rows() * (new * projected + repeated * seen * self.queries() + scores)
    }

    fn feed_forward(&self, new: u128) -> u128 {
        4 * self.rows() * new * wide(self.config.sizes.inner)
    }

    fn masks(&self, new: u128, seen: u128) -> u128 {
        let heads = wide(self.config.sizes.heads);
        match self.config.family {
            Family::Bert => self.rows() * seen * 3,
            Family::T5 => new * seen * (2 * heads + 3),
            Family::Gemma3 => 4 * new * seen,
            _ if new > 1 => 3 * new * seen,
            _ => 0,
        }
    }

    /// Logits, and what choosing from them takes: the last of a copy, probabilities and their order.
    fn logits(&self) -> u128 {
        let vocab = wide(self.config.sizes.vocab);
        match self.config.family {
            Family::Bert => self.hidden() * self.rows(),
            Family::Gemma2 | Family::Gemma3 => vocab * (4 * self.rows() + 6),
            _ => vocab * (2 * self.rows() + 6),
        }
    }
}
