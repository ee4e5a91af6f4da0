//! The suite of [`Observer`].

use std::time::Duration;

use dd_core::{Bytes, Event, Observer, Tier};

use crate::rule::on_threads;

/// Checks an [`Observer`]: it takes every kind of event, also with empty, long and odd names and with the largest
/// numbers, from four threads at once, and does not panic.
///
/// ```
/// use dd_core::observer::RecordingObserver;
/// dd_conformance::observer(&RecordingObserver::default());
/// ```
///
/// # Panics
/// Where the observer does.
pub fn observer<O: Observer + ?Sized>(observer: &O) {
    let long = "layer.".repeat(1000);
    let names = ["encoder.layer.0", "", "..", "a/b\\c", "重み 🦀\n\0", long.as_str()];
    let tell_all = |_| {
        for name in names {
            for number in [0, 1, 4096, u64::MAX] {
                events(name, number).iter().for_each(|event| observer.on_event(event));
            }
        }
    };
    tell_all(0);
    on_threads(tell_all);
}

/// One event of every kind.
fn events(name: &str, number: u64) -> [Event<'_>; 7] {
    let (bytes, time) = (Bytes(number), Duration::from_nanos(number));
    [
        Event::Moved { unit: name, from: Tier::Disk, to: Tier::Device(u32::MAX), bytes, took: time },
        Event::Acquired { unit: name, waited: time },
        Event::Released { unit: name },
        Event::PassEnded { passes: number, read: bytes },
        Event::Planned { resident: bytes, streamed: bytes },
        Event::Accounted { used: bytes, limit: Bytes::ZERO },
        Event::Progress { task: name, done: number, total: number / 2 },
    ]
}
