//! Numbers from numbers: what every sample's own seed, every epoch's order and every check sum come from.

/// Mixes a number with a key so that each bit of either changes half of the bits that come out: the finaliser of MurmurHash3
/// (Appleby, public domain), keyed before and between.
pub(crate) const fn mix(number: u64, key: u64) -> u64 {
    let mut n = number ^ key.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    n = (n ^ (n >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    n = n.wrapping_add(key.rotate_left(32));
    n = (n ^ (n >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    n ^ (n >> 33)
}

/// The seed of one sample's own randomness (augmentation, noise): it depends on the run's seed, the epoch, the identity and
/// the variation, and on nothing else: not on who reads it, when, in which batch, or on how many ranks there are.
///
/// ```
/// use dd_feed::sample_seed;
///
/// assert_eq!(sample_seed(7, 0, 12, 1), sample_seed(7, 0, 12, 1));
/// assert_ne!(sample_seed(7, 0, 12, 1), sample_seed(7, 1, 12, 1));
/// ```
#[must_use]
pub const fn sample_seed(seed: u64, epoch: u64, identity: u64, variation: u64) -> u64 {
    mix(mix(mix(seed, epoch.wrapping_add(1)), identity.wrapping_add(1)), variation.wrapping_add(1))
}
