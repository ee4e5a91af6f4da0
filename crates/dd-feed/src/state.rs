//! [`FeedState`]: where a feed stands, in 40 bytes.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::order::Shuffle;
use crate::seed::mix;

const MAGIC: [u8; 4] = *b"ddf1";

/// Where a feed stands: all that is needed to go on with the very same samples, in the same order, with the same seeds, with any number
/// of workers or ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FeedState {
    /// The epoch, counted from zero.
    pub epoch: u64,
    /// How many identities of that epoch were delivered, over all ranks.
    pub position: u64,
    /// The seed of the run.
    pub seed: u64,
    /// What the order depends on beside the seed: identities, variations, the way of shuffling.
    pub fingerprint: u64,
}

impl FeedState {
    /// How many bytes a state takes.
    pub const BYTES: usize = 40;

    /// As bytes: `ddf1`, the four numbers in little endian, a check sum.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        let numbers = [self.epoch, self.position, self.seed, self.fingerprint].map(u64::to_le_bytes);
        let parts = MAGIC.iter().chain(numbers.iter().flatten());
        for (target, source) in bytes.iter_mut().zip(parts) {
            *target = *source;
        }
        let sum = check(&bytes);
        for (target, source) in bytes.iter_mut().rev().zip(sum.to_be_bytes().iter().rev()).take(4) {
            *target = *source;
        }
        bytes
    }

    /// From bytes.
    ///
    /// # Errors
    /// [`Error::State`] where they are not as many, or were not written by [`to_bytes`](Self::to_bytes).
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let bad = |reason: String| Error::State { reason };
        let length = || bad(format!("expected {} bytes, found {}", Self::BYTES, bytes.len()));
        let whole: [u8; Self::BYTES] = bytes.try_into().map_err(|_| length())?;
        let mut numbers = whole.get(4..).unwrap_or_default().chunks_exact(8);
        let mut next = || numbers.next().and_then(|n| n.try_into().ok()).map_or(0, u64::from_le_bytes);
        let state = Self { epoch: next(), position: next(), seed: next(), fingerprint: next() };
        if state.to_bytes() != whole {
            return Err(bad("the bytes are damaged, or of another version".to_owned()));
        }
        Ok(state)
    }
}

/// What an order depends on beside the seed.
pub(crate) fn fingerprint(identities: u64, variations: u64, shuffle: Shuffle) -> u64 {
    let (kind, a, b) = match shuffle {
        Shuffle::None => (1, 0, 0),
        Shuffle::Full => (2, 0, 0),
        Shuffle::Blocks { block, window } => (3, block, window),
        Shuffle::Window { samples } => (4, samples, 0),
    };
    [identities, variations, kind, a, b].iter().fold(1, |sum, n| mix(n.wrapping_add(1), sum))
}

/// A check sum of all but the last four bytes: it finds damage, not intent.
fn check(bytes: &[u8; FeedState::BYTES]) -> u32 {
    let covered = bytes.iter().take(FeedState::BYTES - 4);
    let sum = covered.fold(0x5eed, |sum, byte| mix(u64::from(*byte) + 1, sum));
    u32::try_from(sum >> 32).unwrap_or(0)
}

#[cfg(test)]
#[cfg(not(dd_shuttle))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn goes_both_ways_and_sees_damage(epoch: u64, position: u64, seed: u64, fingerprint: u64, at in 0usize..40, bit in 0u32..8) {
            let state = FeedState { epoch, position, seed, fingerprint };
            let mut bytes = state.to_bytes();
            prop_assert!(bytes.len() <= 64);
            prop_assert_eq!(FeedState::from_bytes(&bytes).unwrap(), state);
            bytes[at] ^= 1 << bit;
            prop_assert!(FeedState::from_bytes(&bytes).is_err());
            prop_assert!(FeedState::from_bytes(&bytes[..at]).is_err());
        }
    }

    #[test]
    fn fingerprints_differ() {
        let rows = [
            fingerprint(10, 1, Shuffle::None),
            fingerprint(10, 2, Shuffle::None),
            fingerprint(11, 1, Shuffle::None),
            fingerprint(10, 1, Shuffle::Full),
            fingerprint(10, 1, Shuffle::Blocks { block: 1, window: 2 }),
            fingerprint(10, 1, Shuffle::Blocks { block: 2, window: 1 }),
            fingerprint(10, 1, Shuffle::Window { samples: 2 }),
        ];
        let distinct: std::collections::BTreeSet<u64> = rows.into_iter().collect();
        assert_eq!(distinct.len(), rows.len());
    }
}
