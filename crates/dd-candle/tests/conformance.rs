//! The shared suites of `dd-conformance`, run on candle.

use dd_candle::CandleBackend;
use dd_core::Device;

/// The devices of this machine that this build was compiled for. Those that are missing are named.
fn backends() -> Vec<CandleBackend> {
    let open = |device: Device| match CandleBackend::new(device) {
        Ok(backend) => Some(backend),
        Err(error) => {
            dd_conformance::skipped!("{error}");
            None
        }
    };
    [Device::Cpu, Device::Cuda(0), Device::Metal(0)].into_iter().filter_map(open).collect()
}

#[test]
fn keeps_the_contract_of_backend() {
    let backends = backends();
    assert!(!backends.is_empty());
    backends.iter().for_each(dd_conformance::backend);
}

#[test]
fn keeps_the_contract_of_linalg() {
    let backends = backends();
    assert!(!backends.is_empty());
    backends.iter().for_each(dd_conformance::linalg);
}
