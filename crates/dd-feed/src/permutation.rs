//! [`Permutation`]: a shuffled order of any length in constant memory, which can be asked in both directions.
//!
//! A Feistel network over `a + b` bits is a bijection whatever its round function is. Numbers that it sends past the end are sent on
//! until they come back into the range ("cycle walking"), which keeps the bijection. The idea is that of format-preserving
//! encryption: Black and Rogaway, *Ciphers with Arbitrary Finite Domains*, CT-RSA 2002. The round function is the finaliser of
//! MurmurHash3, keyed; this is a shuffle, not a cipher.

use crate::seed::mix;

/// Half-rounds. Six pass the checks of this crate's tests on order; the rest is margin.
const ROUNDS: usize = 10;

/// A permutation of `0..len`.
///
/// ```
/// use dd_feed::Permutation;
///
/// let order = Permutation::new(1_000_000_000_000, 7);
/// let there = order.at(42);
/// assert_eq!(order.position_of(there), 42);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permutation {
    len: u64,
    low_bits: u32,
    low: u64,
    high: u64,
    keys: [u64; ROUNDS],
}

impl Permutation {
    /// The permutation of `0..len` that belongs to this seed.
    #[must_use]
    pub fn new(len: u64, seed: u64) -> Self {
        let bits = (u64::BITS - len.saturating_sub(1).leading_zeros()).max(2);
        let low_bits = bits / 2;
        let mask = |bits: u32| if bits >= 64 { u64::MAX } else { (1 << bits) - 1 };
        let mut keys = [0; ROUNDS];
        for (round, key) in keys.iter_mut().enumerate() {
            *key = mix(seed, round as u64 + 1);
        }
        Self { len, low_bits, low: mask(low_bits), high: mask(bits - low_bits), keys }
    }

    /// How many numbers it orders.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The number at a position; a position past the end is its own number.
    #[must_use]
    pub fn at(&self, position: u64) -> u64 {
        self.walk(position, |n| self.encrypt(n))
    }

    /// The position of a number: [`at`](Self::at) backwards.
    #[must_use]
    pub fn position_of(&self, number: u64) -> u64 {
        self.walk(number, |n| self.decrypt(n))
    }

    fn walk(&self, from: u64, step: impl Fn(u64) -> u64) -> u64 {
        if from >= self.len {
            return from;
        }
        let mut n = step(from);
        while n >= self.len {
            n = step(n);
        }
        n
    }

    fn encrypt(&self, n: u64) -> u64 {
        let (mut low, mut high) = (n & self.low, n >> self.low_bits);
        for pair in self.keys.chunks_exact(2) {
            if let [first, second] = pair {
                low ^= mix(high, *first) & self.low;
                high ^= mix(low, *second) & self.high;
            }
        }
        high << self.low_bits | low
    }

    fn decrypt(&self, n: u64) -> u64 {
        let (mut low, mut high) = (n & self.low, n >> self.low_bits);
        for pair in self.keys.chunks_exact(2).rev() {
            if let [first, second] = pair {
                high ^= mix(low, *second) & self.high;
                low ^= mix(high, *first) & self.low;
            }
        }
        high << self.low_bits | low
    }
}

#[cfg(test)]
#[cfg(not(dd_shuttle))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn small_ones_are_bijections() {
        for len in 0..300 {
            for seed in 0..5 {
                let order = Permutation::new(len, seed);
                let mut seen = vec![false; usize::try_from(len).unwrap()];
                for position in 0..len {
                    let number = order.at(position);
                    assert!(
                        !std::mem::replace(&mut seen[usize::try_from(number).unwrap()], true),
                        "{len} {seed}"
                    );
                    assert_eq!(order.position_of(number), position, "{len} {seed}");
                }
            }
        }
    }

    /// Every number comes to every position about as often: chi-square over the seeds, for lengths that need walking.
    #[test]
    fn positions_are_uniform() {
        for len in [2u64, 3, 5, 8, 13, 100] {
            let seeds = 400 * len;
            let size = usize::try_from(len).unwrap();
            let mut counts = vec![0u32; size * size];
            for seed in 0..seeds {
                let order = Permutation::new(len, seed);
                for position in 0..size {
                    counts[position * size + usize::try_from(order.at(position as u64)).unwrap()] += 1;
                }
            }
            let chi: f64 = counts.iter().map(|n| (f64::from(*n) - 400.0).powi(2) / 400.0).sum();
            let freedom = ((len - 1) * (len - 1)) as f64;
            let limit = freedom + 5.0 * (2.0 * freedom).sqrt() + 10.0;
            assert!(chi < limit, "{len}: chi-square {chi:.1} with {freedom} degrees of freedom");
        }
    }

    proptest! {
        #[test]
        fn large_ones_go_both_ways(len in 1u64.., seed: u64, at: u64) {
            let order = Permutation::new(len, seed);
            let position = at % len;
            prop_assert!(order.at(position) < len);
            prop_assert_eq!(order.position_of(order.at(position)), position);
        }
    }
}
