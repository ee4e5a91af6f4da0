//! What fits in the memory here: the largest batch, and the longest sequence.

use deep_dimensions::core::{Bytes, CostModel, MemoryProvider, Tier};
use deep_dimensions::inspect::NetworkCost;
use deep_dimensions::monitor::SystemMemory;

use super::InspectArgs;
use super::report::Fits;
use crate::error::{CliError, Result};

/// No batch and no sequence that is asked for here is larger.
const MOST: usize = 1 << 20;

pub(super) fn of(cost: &NetworkCost, args: &InspectArgs) -> Result<Fits> {
    let available = args.available.map_or_else(available, Ok)?;
    let has_seq = cost.graph().has_seq();
    let fits = |batch: usize, seq: usize| {
        let sizes: &[usize] = if has_seq { &[batch, seq] } else { &[batch] };
        cost.peak(sizes).is_ok_and(|peak| peak <= available)
    };
    let batch = largest(|batch| fits(batch, args.seq));
    let seq = if has_seq { largest(|seq| fits(args.batch, seq)) } else { None };
    Ok(Fits { available, fits: fits(args.batch, args.seq), largest_batch: batch, longest_seq: seq })
}

/// The largest size that fits, where fitting ends once; by doubling, then halving.
fn largest(fits: impl Fn(usize) -> bool) -> Option<usize> {
    if !fits(1) {
        return None;
    }
    let (mut low, mut high) = (1, 2);
    while high <= MOST && fits(high) {
        (low, high) = (high, high * 2);
    }
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if fits(middle) { low = middle } else { high = middle }
    }
    Some(low)
}

fn available() -> Result<Bytes> {
    let memory = SystemMemory::open(std::env::temp_dir())
        .map_err(|error| CliError::input("--available", error, "give it: memory cannot be read here"))?;
    Ok(memory.sample(Tier::Host)?.available)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_is_found_exactly() {
        for limit in [0, 1, 2, 3, 7, 8, 1000, 1_048_575] {
            let expected = (limit > 0).then_some(limit);
            assert_eq!(largest(|size| size <= limit), expected, "{limit}");
        }
        assert!(largest(|_| true).is_some_and(|size| size >= MOST));
    }
}
