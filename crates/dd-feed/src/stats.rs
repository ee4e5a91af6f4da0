//! [`FeedStats`]: what a feeder did, as a value; [`ErrorPolicy`]: what it does where a reader fails.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dd_core::Bytes;
use serde::{Deserialize, Serialize};

/// What to do with an identity that cannot be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ErrorPolicy {
    /// Say so and end.
    #[default]
    Stop,
    /// Leave it out and count it; end once more than `at_most` were left out. Its batch has one identity fewer.
    Skip {
        /// How many may be left out.
        at_most: u64,
    },
    /// Try again up to so many times, then say so and end.
    Retry {
        /// How many times.
        times: u32,
    },
    /// Try again up to so many times, then leave it out and count it.
    RetryThenSkip {
        /// How many times.
        times: u32,
        /// How many may be left out.
        at_most: u64,
    },
}

impl ErrorPolicy {
    pub(crate) const fn retries(self) -> u32 {
        match self {
            Self::Retry { times } | Self::RetryThenSkip { times, .. } => times,
            _ => 0,
        }
    }

    pub(crate) const fn skips(self) -> Option<u64> {
        match self {
            Self::Skip { at_most } | Self::RetryThenSkip { at_most, .. } => Some(at_most),
            _ => None,
        }
    }
}

/// What a feeder did since it was built. Times of reading are summed over the threads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct FeedStats {
    /// Batches delivered.
    pub batches: u64,
    /// Samples delivered.
    pub samples: u64,
    /// Bytes delivered.
    pub bytes: Bytes,
    /// Identities that were left out because they could not be read.
    pub skipped: u64,
    /// Reads that were tried again.
    pub retried: u64,
    /// Samples' bytes found in the cache, counted in identities and sides.
    pub cache_hits: u64,
    /// Those that were read because the cache did not have them; what is mapped is in neither count.
    pub cache_misses: u64,
    /// Making batches out of what is mapped (conversion included: it is one pass), and reading everything else.
    pub read: Duration,
    /// Converting and augmenting what was not mapped.
    pub convert: Duration,
    /// The caller waiting for batches.
    pub wait: Duration,
}

/// The same, as threads add to it.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) batches: AtomicU64,
    pub(crate) samples: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) skipped: AtomicU64,
    pub(crate) retried: AtomicU64,
    pub(crate) hits: AtomicU64,
    pub(crate) misses: AtomicU64,
    pub(crate) read: AtomicU64,
    pub(crate) convert: AtomicU64,
    pub(crate) wait: AtomicU64,
}

impl Counters {
    pub(crate) fn value(&self) -> FeedStats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let time = |counter: &AtomicU64| Duration::from_nanos(get(counter));
        FeedStats {
            batches: get(&self.batches),
            samples: get(&self.samples),
            bytes: Bytes(get(&self.bytes)),
            skipped: get(&self.skipped),
            retried: get(&self.retried),
            cache_hits: get(&self.hits),
            cache_misses: get(&self.misses),
            read: time(&self.read),
            convert: time(&self.convert),
            wait: time(&self.wait),
        }
    }
}

pub(crate) fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

pub(crate) fn add_time(counter: &AtomicU64, since: Instant) {
    add(counter, u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX));
}
