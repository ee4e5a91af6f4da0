//! The suite of [`MemoryProvider`].

use dd_core::{Error, MemoryProvider, MemorySample, Tier};

use crate::rule::{done, on_threads, refused};

/// Tiers of which every provider and backend lacks some.
pub(crate) const MANY_TIERS: [Tier; 8] = [
    Tier::Device(0),
    Tier::Device(1),
    Tier::Device(u32::MAX),
    Tier::PinnedHost,
    Tier::Host,
    Tier::Compressed,
    Tier::Disk,
    Tier::Remote,
];

/// Checks a [`MemoryProvider`]: its tiers are in order, nearest first, without repeats; each can be read, again and
/// again and from several threads; of no tier is more used or available than there is; a tier that it does not list
/// is [`Error::UnsupportedTier`]. A provider of no tiers is one (a machine without an accelerator).
///
/// ```
/// use dd_core::{Bytes, MemorySample, Tier, memory::FixedMemory};
/// let sample = MemorySample { total: Bytes::gib(8), used: Bytes::gib(3), available: Bytes::gib(4) };
/// dd_conformance::memory_provider(&FixedMemory::new([(Tier::Host, sample)]));
/// ```
///
/// # Panics
/// Where the provider breaks the contract.
pub fn memory_provider<P: MemoryProvider + ?Sized>(provider: &P) {
    let tiers = provider.tiers();
    check_order(tiers);
    let read_all = |_| {
        for tier in provider.tiers() {
            check_sample(*tier, &done(provider.sample(*tier), format_args!("sample of {tier}")));
        }
    };
    read_all(0);
    on_threads(read_all);
    for tier in MANY_TIERS.iter().filter(|tier| !tiers.contains(tier)) {
        let result = provider.sample(*tier);
        refused!(result, Error::UnsupportedTier { .. }, "sample of {tier}, which is not among {tiers:?}");
    }
    assert_eq!(provider.tiers(), tiers, "the tiers changed while they were read");
}

pub(crate) fn check_order(tiers: &[Tier]) {
    let ordered = tiers.is_sorted_by(|a, b| a < b);
    assert!(ordered, "tiers are {tiers:?}: expected nearest first, without repeats");
}

pub(crate) fn check_sample(tier: Tier, sample: &MemorySample) {
    let MemorySample { total, used, available } = *sample;
    assert!(used <= total, "{tier}: {used} used of a total of {total}");
    assert!(available <= total, "{tier}: {available} available of a total of {total}");
    let fraction = sample.used_fraction();
    assert!((0.0..=1.0).contains(&fraction), "{tier}: used fraction {fraction} of {sample:?}");
}
