//! The references of this crate keep the contracts that they are the reference of.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::{Arc, Mutex};

use dd_core::cost::AffineCost;
use dd_core::memory::FixedMemory;
use dd_core::observer::RecordingObserver;
use dd_core::scaling::StepwiseGrowth;
use dd_core::{Budget, Bytes, Holder, HostBackend, MemorySample, MemoryStore, Reclaim, Reservation, Tier};

/// One tier without a limit, simulated devices, and every tier there is.
fn host_backends() -> [HostBackend; 3] {
    let small = |tier| (tier, Bytes::mib(2));
    [
        HostBackend::default(),
        HostBackend::with_tiers([
            (Tier::Device(0), Bytes::mib(3)),
            (Tier::Device(1), Bytes::mib(2)),
            (Tier::Host, Bytes::MAX),
        ]),
        HostBackend::with_tiers(
            [Tier::Device(0), Tier::PinnedHost, Tier::Host, Tier::Compressed, Tier::Disk, Tier::Remote]
                .map(small),
        ),
    ]
}

#[test]
fn host_backend() {
    host_backends().iter().for_each(dd_conformance::backend);
}

#[test]
fn host_linalg() {
    host_backends().iter().for_each(dd_conformance::linalg);
}

#[test]
fn host_backend_leaves_nothing_behind() {
    for backend in host_backends() {
        dd_conformance::backend(&backend);
        for tier in dd_core::Backend::tiers(&backend) {
            assert_eq!(backend.capacity(*tier).unwrap().usage().used, Bytes::ZERO, "{tier}");
        }
    }
}

#[test]
fn memory_store() {
    dd_conformance::tensor_store(|capacity| MemoryStore::new(Budget::new("store", capacity)));
    let job = Budget::new("job", Bytes::gib(1));
    dd_conformance::tensor_store(|capacity| MemoryStore::new(job.child("store", capacity)));
    assert_eq!(job.usage().used, Bytes::ZERO, "dropped stores hold bytes");
}

#[test]
fn fixed_memory() {
    let sample = |total, used, available| MemorySample {
        total: Bytes::mib(total),
        used: Bytes::mib(used),
        available: Bytes::mib(available),
    };
    dd_conformance::memory_provider(&FixedMemory::default());
    dd_conformance::memory_provider(&FixedMemory::new([
        (Tier::Host, sample(100, 60, 50)),
        (Tier::Device(0), sample(0, 0, 0)),
        (Tier::Disk, sample(u64::MAX, 1, 2)),
        (Tier::Host, sample(10, 10, 0)),
    ]));
}

#[test]
fn affine_cost() {
    for (constant, per_element) in [(0, 0), (100, 4), (u64::MAX, 1), (0, u64::MAX)] {
        let (constant, per_element) = (Bytes(constant), Bytes(per_element));
        dd_conformance::cost_model(&AffineCost { constant, per_element });
    }
}

#[test]
fn stepwise_growth() {
    dd_conformance::scaling_strategy(&StepwiseGrowth);
}

#[test]
fn recording_observer() {
    let observer = RecordingObserver::default();
    dd_conformance::observer(&observer);
    let events = observer.events();
    assert!(events.len() >= 5 * 7, "{} events recorded", events.len());
    for kind in ["Moved", "Acquired", "Released", "PassEnded", "Planned", "Accounted", "Progress"] {
        assert!(events.iter().any(|(_, text)| text.starts_with(kind)), "no {kind} recorded");
    }
}

/// A cache that gives back whole entries, the oldest first, until enough is given.
struct Cache(Mutex<Vec<Reservation>>);

impl Reclaim for Cache {
    fn reclaim(&self, wanted: Bytes) -> Bytes {
        let mut entries = self.0.lock().unwrap();
        let mut given = Bytes::ZERO;
        while given < wanted.max(Bytes(1)) && !entries.is_empty() {
            given += entries.remove(0).bytes();
        }
        given
    }
}

#[test]
fn reclaiming_cache() {
    dd_conformance::reclaim(|budget| {
        let entry = |n: u64| budget.reserve(Bytes(n * 100), &Holder::new("cache")).unwrap();
        Arc::new(Cache(Mutex::new((1..50).map(entry).collect())))
    });
}
