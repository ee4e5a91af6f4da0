//! [`Order`]: which identity comes at which position of an epoch, and back.
//!
//! Everything follows from the seed, the epoch and the number of identities, so that an order takes no memory, can be entered
//! anywhere, and is the same for any number of workers or ranks.
//!
//! Sources that can only read forward cannot be shuffled by a permutation of all samples. [`Shuffle::Blocks`] permutes blocks
//! that are read forward, and shuffles within a window of several blocks that are in memory together. A random order of few blocks
//! may still run up or down through the data by chance; the order taken is the first of many candidates that does not
//! (rerandomisation: Morgan and Rubin, Annals of Statistics 40(2), 2012). How good that is, measured by [`OrderQuality`], for 100,000
//! samples and memory for 3 % of them (the mean over ten epochs, and for correlation the largest in absolute value):
//!
//! | shuffle | order correlation | mean displacement | adjacent neighbours |
//! |---|---|---|---|
//! | a random order, by theory | 0 | 0.333 of the data | 0.002 % |
//! | [`Shuffle::Full`] | 0.0076 | 0.333 | 0.002 % |
//! | [`Shuffle::Blocks`], blocks of 0.1 %, 30 in memory | 0.0020 | 0.332 | 0.064 % |
//! | [`Shuffle::Blocks`], blocks of 3 %, 1 in memory | 0.0019 | 0.339 | 0.065 % |
//! | [`Shuffle::Window`] of 3 %, for what cannot be opened in the middle | 0.9991 | 0.010 | 0.065 % |
//!
//! The correlation of a perfectly random order of n samples is 0 with a deviation of 1 / √n: the full shuffle has just that.

use serde::{Deserialize, Serialize};

use crate::permutation::Permutation;
use crate::seed::mix;

/// How samples are ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Shuffle {
    /// As they are listed, in every epoch.
    None,
    /// Any sample at any position: for sources that can read anywhere.
    Full,
    /// Blocks in random order, and what `window` consecutive blocks of that order hold shuffled: for sources that read forward
    /// within blocks.
    Blocks {
        /// Identities per block; the last may have fewer.
        block: u64,
        /// Blocks that are in memory together.
        window: u64,
    },
    /// So many consecutive samples shuffled among themselves: for sources that only read forward. A weak shuffle.
    Window {
        /// Identities per window.
        samples: u64,
    },
}

/// The order of one epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    len: u64,
    kind: Kind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    Listed,
    Full(Permutation),
    Blocks(Blocks),
}

impl Order {
    /// The order of `len` identities in an epoch. A block or window of zero counts as one.
    #[must_use]
    pub fn new(len: u64, shuffle: Shuffle, seed: u64, epoch: u64) -> Self {
        let seed = mix(seed, epoch.wrapping_add(1));
        let kind = match shuffle {
            Shuffle::None => Kind::Listed,
            Shuffle::Full => Kind::Full(Permutation::new(len, seed)),
            Shuffle::Blocks { block, window } => Kind::Blocks(Blocks::shuffled(len, block, window, seed)),
            Shuffle::Window { samples } => Kind::Blocks(Blocks::listed(len, samples, seed)),
        };
        Self { len, kind }
    }

    /// How many identities it orders.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The identity at a position, both counted from zero; a position past the end is its own number.
    #[must_use]
    pub fn at(&self, position: u64) -> u64 {
        match &self.kind {
            Kind::Listed => position,
            Kind::Full(permutation) => permutation.at(position),
            Kind::Blocks(_) if position >= self.len => position,
            Kind::Blocks(blocks) => blocks.at(position),
        }
    }

    /// The position of an identity: [`at`](Self::at) backwards.
    #[must_use]
    pub fn position_of(&self, identity: u64) -> u64 {
        match &self.kind {
            Kind::Listed => identity,
            Kind::Full(permutation) => permutation.position_of(identity),
            Kind::Blocks(_) if identity >= self.len => identity,
            Kind::Blocks(blocks) => blocks.position_of(identity),
        }
    }

    /// The windows in which a forward source is read; nothing for orders that need none.
    pub(crate) const fn blocks(&self) -> Option<&Blocks> {
        match &self.kind {
            Kind::Blocks(blocks) => Some(blocks),
            _ => None,
        }
    }
}

/// Blocks one after the other in an outer order, in windows of several; within a window everything is shuffled.
///
/// A *slot* is a place in the outer order; all blocks but the last of the source have `block` identities, and that one, wherever
/// it lands, has `deficit` fewer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Blocks {
    len: u64,
    block: u64,
    per_window: u64,
    outer: Option<Permutation>,
    deficit: u64,
    short_slot: u64,
    seed: u64,
}

impl Blocks {
    fn listed(len: u64, block: u64, seed: u64) -> Self {
        Self::with_outer(len, block.max(1), 1, None, seed)
    }

    /// The first candidate, or the best of many, whose order does not run through the data.
    fn shuffled(len: u64, block: u64, per_window: u64, seed: u64) -> Self {
        const ENOUGH: f64 = 0.002;
        const MOST: u64 = 4096;
        let (block, per_window) = (block.max(1), per_window.max(1));
        let blocks = len.div_ceil(block);
        let tries = ((1 << 22) / blocks.max(1)).clamp(1, MOST);
        let candidate = |n: u64| {
            let outer = Permutation::new(blocks, mix(seed, n));
            Self::with_outer(len, block, per_window, Some(outer), seed)
        };
        let mut best = candidate(1);
        let mut least = best.outer_correlation().abs();
        for n in 2..=tries {
            if least <= ENOUGH {
                break;
            }
            let other = candidate(n);
            let correlation = other.outer_correlation().abs();
            if correlation < least {
                (best, least) = (other, correlation);
            }
        }
        best
    }

    fn with_outer(len: u64, block: u64, per_window: u64, outer: Option<Permutation>, seed: u64) -> Self {
        let blocks = len.div_ceil(block);
        let last = blocks.saturating_sub(1);
        let short_slot = outer.as_ref().map_or(last, |outer| outer.position_of(last));
        let deficit = (block - len % block) % block;
        Self { len, block, per_window, outer, deficit, short_slot, seed }
    }

    /// What the order correlation would be if all samples of a window stood at its middle.
    fn outer_correlation(&self) -> f64 {
        let centre = self.len as f64 / 2.0;
        let blocks = self.len.div_ceil(self.block);
        let mut sum = 0.0;
        for slot in 0..blocks {
            let window = self.window(slot / self.per_window);
            let x = (window.start as f64 + window.end as f64) / 2.0 - centre;
            let number = self.block_at(slot);
            let size = if number + 1 == blocks { self.block - self.deficit } else { self.block } as f64;
            sum += size * x * (number as f64 * self.block as f64 + size / 2.0 - centre);
        }
        let n = self.len.max(1) as f64;
        sum / n / (n * n / 12.0)
    }

    /// The block in a slot of the outer order.
    pub(crate) fn block_at(&self, slot: u64) -> u64 {
        self.outer.as_ref().map_or(slot, |outer| outer.at(slot))
    }

    /// Where a slot begins, in positions.
    fn slot_start(&self, slot: u64) -> u64 {
        let lacking = if slot > self.short_slot { self.deficit } else { 0 };
        slot.saturating_mul(self.block).saturating_sub(lacking)
    }

    fn slot_of(&self, place: u64) -> u64 {
        let short = self.slot_start(self.short_slot);
        if place < short {
            place / self.block
        } else if place < short + self.block - self.deficit {
            self.short_slot
        } else {
            (place + self.deficit) / self.block
        }
    }

    /// The positions of a window.
    pub(crate) fn window(&self, window: u64) -> std::ops::Range<u64> {
        let start = |window: u64| self.slot_start(window.saturating_mul(self.per_window)).min(self.len);
        start(window)..start(window + 1)
    }

    /// The most identities that a window has.
    pub(crate) fn longest_window(&self) -> u64 {
        self.block.saturating_mul(self.per_window).min(self.len)
    }

    /// The window in which a position lies.
    pub(crate) fn window_of(&self, position: u64) -> u64 {
        self.slot_of(position) / self.per_window
    }

    /// The slots of a window, with how many identities each has.
    pub(crate) fn slots(&self, window: u64) -> impl Iterator<Item = (u64, u64)> + '_ {
        let blocks = self.len.div_ceil(self.block);
        let first = window.saturating_mul(self.per_window);
        let end = first.saturating_add(self.per_window).min(blocks);
        (first..end)
            .map(|slot| (slot, if slot == self.short_slot { self.block - self.deficit } else { self.block }))
    }

    /// Identities per block.
    pub(crate) const fn block(&self) -> u64 {
        self.block
    }

    /// Whether the blocks come in the order of the source.
    pub(crate) const fn is_forward(&self) -> bool {
        self.outer.is_none()
    }

    /// Where, counted from the start of its window as it is read, the sample at a position stands.
    pub(crate) fn place_in_window(&self, position: u64) -> u64 {
        let index = self.window_of(position);
        let window = self.window(index);
        self.inner(index, &window).at(position - window.start)
    }

    fn inner(&self, index: u64, window: &std::ops::Range<u64>) -> Permutation {
        Permutation::new(window.end - window.start, mix(self.seed, index.wrapping_add(1 << 48)))
    }

    fn at(&self, position: u64) -> u64 {
        let place = self.window(self.window_of(position)).start + self.place_in_window(position);
        let slot = self.slot_of(place);
        self.block_at(slot) * self.block + (place - self.slot_start(slot))
    }

    fn position_of(&self, identity: u64) -> u64 {
        let (block, offset) = (identity / self.block, identity % self.block);
        let slot = self.outer.as_ref().map_or(block, |outer| outer.position_of(block));
        let index = slot / self.per_window;
        let window = self.window(index);
        let place = self.slot_start(slot) + offset - window.start;
        window.start + self.inner(index, &window).position_of(place)
    }
}

/// How random an order looks.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct OrderQuality {
    /// Pearson's correlation of identity and position: 1 for the order of the list, 0 for a random one.
    pub correlation: f64,
    /// How far samples stand from where they are listed, as a share of the data: a third for a random order.
    pub displacement_fraction: f64,
    /// The share of neighbours in the order that are neighbours in the list: 2 / n for a random order.
    pub adjacent_fraction: f64,
}

impl OrderQuality {
    /// Measures identities as they came, each of `0..n` once.
    ///
    /// ```
    /// use dd_feed::OrderQuality;
    ///
    /// assert!((OrderQuality::of(0..1000).correlation - 1.0).abs() < 1e-9);
    /// ```
    #[must_use]
    pub fn of(identities: impl IntoIterator<Item = u64>) -> Self {
        let (mut count, mut squares, mut moved, mut adjacent) = (0u64, 0f64, 0f64, 0u64);
        let mut before: Option<u64> = None;
        for identity in identities {
            let (x, y) = (count as f64, identity as f64);
            moved += (x - y).abs();
            squares += (x - y) * (x - y);
            adjacent += u64::from(before.is_some_and(|before| before.abs_diff(identity) == 1));
            before = Some(identity);
            count += 1;
        }
        let n = count.max(1) as f64;
        // Spearman's formula, which is Pearson's where both are 0..n.
        let correlation = if n > 1.0 { 1.0 - 6.0 * squares / (n * (n * n - 1.0)) } else { 1.0 };
        Self {
            correlation,
            displacement_fraction: moved / n / n,
            adjacent_fraction: adjacent as f64 / (n - 1.0).max(1.0),
        }
    }
}

#[cfg(test)]
#[cfg(not(dd_shuttle))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn quality(len: u64, shuffle: Shuffle, seed: u64, epoch: u64) -> OrderQuality {
        let order = Order::new(len, shuffle, seed, epoch);
        OrderQuality::of((0..len).map(|position| order.at(position)))
    }

    /// The table in the module's documentation: name, shuffle, bounds on |correlation|, displacement, adjacency.
    #[test]
    fn orders_at_three_percent_of_the_data() {
        const LEN: u64 = 100_000;
        let rows = [
            ("full", Shuffle::Full, 0.0..0.01, 0.330..0.337, 0.0..0.0001),
            (
                "blocks of 0.1 %",
                Shuffle::Blocks { block: 100, window: 30 },
                0.0..0.01,
                0.32..0.345,
                0.0005..0.0008,
            ),
            (
                "blocks of 3 %",
                Shuffle::Blocks { block: 3000, window: 1 },
                0.0..0.01,
                0.30..0.36,
                0.0005..0.0008,
            ),
            ("window", Shuffle::Window { samples: 3000 }, 0.99..1.0, 0.009..0.011, 0.0005..0.0008),
        ];
        for (name, shuffle, correlation, displacement, adjacent) in rows {
            let all: Vec<OrderQuality> = (0..10).map(|epoch| quality(LEN, shuffle, 1, epoch)).collect();
            let mean = |of: fn(&OrderQuality) -> f64| all.iter().map(of).sum::<f64>() / all.len() as f64;
            let largest = all.iter().map(|q| q.correlation.abs()).fold(0.0, f64::max);
            let (moved, close) = (mean(|q| q.displacement_fraction), mean(|q| q.adjacent_fraction));
            println!("{name}: |r| {largest:.4}, displacement {moved:.3}, adjacent {:.3} %", 100.0 * close);
            assert!(correlation.contains(&largest), "{name}: correlation {largest}");
            assert!(displacement.contains(&moved), "{name}: displacement {moved}");
            assert!(adjacent.contains(&close), "{name}: adjacent {close}");
        }
    }

    #[test]
    fn epochs_and_seeds_differ() {
        let order = |seed, epoch| -> Vec<u64> {
            let order = Order::new(50, Shuffle::Full, seed, epoch);
            (0..50).map(|position| order.at(position)).collect()
        };
        assert_ne!(order(1, 0), order(1, 1));
        assert_ne!(order(1, 0), order(2, 0));
        assert_eq!(order(1, 0), order(1, 0));
    }

    proptest! {
        #[test]
        fn every_order_is_a_bijection(len in 0u64..400, block in 0u64..60, window in 0u64..9, seed: u64, epoch: u64) {
            let kinds = [
                Shuffle::None,
                Shuffle::Full,
                Shuffle::Blocks { block, window },
                Shuffle::Window { samples: block },
            ];
            for shuffle in kinds {
                let order = Order::new(len, shuffle, seed, epoch);
                let mut seen = std::collections::BTreeSet::new();
                for position in 0..len {
                    let identity = order.at(position);
                    prop_assert!(identity < len, "{shuffle:?}");
                    prop_assert!(seen.insert(identity), "{shuffle:?}");
                    prop_assert_eq!(order.position_of(identity), position, "{:?}", shuffle);
                }
            }
        }

        #[test]
        fn windows_tile_the_positions(len in 1u64..400, block in 1u64..60, per_window in 1u64..9, seed: u64) {
            let order = Order::new(len, Shuffle::Blocks { block, window: per_window }, seed, 0);
            let blocks = order.blocks().unwrap();
            let mut next = 0;
            let mut index = 0;
            while next < len {
                let window = blocks.window(index);
                prop_assert_eq!(window.start, next);
                prop_assert!(!window.is_empty());
                prop_assert_eq!(blocks.slots(index).map(|(_, size)| size).sum::<u64>(), window.end - window.start);
                // What is at a position is what is read at its place in the window.
                let read: Vec<u64> = blocks
                    .slots(index)
                    .flat_map(|(slot, size)| (0..size).map(move |n| (slot, n)))
                    .map(|(slot, n)| blocks.block_at(slot) * block + n)
                    .collect();
                for position in window.clone() {
                    prop_assert_eq!(blocks.window_of(position), index);
                    let place = usize::try_from(blocks.place_in_window(position)).unwrap();
                    prop_assert_eq!(read[place], order.at(position));
                }
                (next, index) = (window.end, index + 1);
            }
        }
    }
}
