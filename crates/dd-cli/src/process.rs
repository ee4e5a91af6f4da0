//! What the kernel says of this process: resident memory, its peak, bytes read from and written to disks.
//!
//! Where it does not say, figures are absent, never zero.

use deep_dimensions::core::Bytes;
use deep_dimensions::monitor::{IoCounters, ProcessId, ProcessSampler, Root};
use serde::{Deserialize, Serialize};

/// One reading.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessSample {
    /// Resident memory now.
    pub resident: Option<Bytes>,
    /// The most it has been.
    pub resident_peak: Option<Bytes>,
    /// Bytes fetched from disks.
    pub bytes_read: Option<Bytes>,
    /// Bytes sent to disks.
    pub bytes_written: Option<Bytes>,
}

/// Reads all figures.
#[must_use]
pub fn sample() -> ProcessSample {
    let memory = ProcessSampler::own().and_then(|sampler| sampler.sample_with_peak()).ok();
    let counters = IoCounters::read(&Root::default(), ProcessId::Own).ok();
    ProcessSample {
        resident: memory.map(|memory| memory.resident),
        resident_peak: memory.and_then(|memory| memory.peak_resident),
        bytes_read: counters.map(|counters| counters.read_bytes),
        bytes_written: counters.map(|counters| counters.write_bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn this_process_has_figures() {
        let sample = sample();
        assert!(
            sample.resident > Some(Bytes::mib(1)) && sample.resident_peak >= sample.resident,
            "{sample:?}"
        );
        assert!(sample.bytes_read.is_some() && sample.bytes_written.is_some(), "{sample:?}");
    }
}
