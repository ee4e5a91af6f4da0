//! The monitor, driven by hand: by its own clock and by readings that a test hands in. Nothing here waits for time to
//! pass.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, missing_docs, reason = "tests")]

use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dd_core::memory::FixedMemory;
use dd_core::{Budget, Bytes, Holder, MemorySample, Tier};
use dd_monitor::{
    Direction, Error, ManualClock, MemoryMonitor, ProviderSource, Reading, Source, SystemSource, Threshold,
    TierReading,
};

fn sample(percent: u64) -> MemorySample {
    MemorySample { total: Bytes::mib(100), used: Bytes::mib(percent), available: Bytes::mib(100 - percent) }
}

/// Hands in these shares of the host's and of two devices' memory, one after the other; then it fails.
fn scripted(rows: &[[u64; 3]]) -> impl Source + use<> {
    let mut rows = Vec::from(rows).into_iter();
    move |reading: &mut Reading| {
        let failed = || Error::UnknownHost { reason: "the script is at its end".to_owned() };
        let row = rows.next().ok_or_else(failed)?;
        let tiers = [Tier::Device(0), Tier::Device(1), Tier::Host].into_iter().zip(row);
        reading.tiers.extend(tiers.map(|(tier, percent)| TierReading { tier, sample: sample(percent) }));
        Ok(())
    }
}

fn by_hand(rows: &[[u64; 3]]) -> (MemoryMonitor, Arc<ManualClock>) {
    let clock = Arc::new(ManualClock::default());
    clock.advance(Duration::from_secs(1000)); // A monitor's time begins when it is made.
    let monitor = MemoryMonitor::builder().source(scripted(rows)).clock(clock.clone()).history(8);
    (monitor.build().unwrap(), clock)
}

fn run(monitor: &MemoryMonitor, clock: &ManualClock, ticks: usize) {
    for _ in 0..ticks {
        clock.advance(Duration::from_millis(100));
        monitor.tick().unwrap();
    }
}

#[test]
fn readings_are_dated_and_bounded() {
    let rows: Vec<[u64; 3]> = (0..20).map(|n| [n, 2 * n, 3 * n]).collect();
    let (monitor, clock) = by_hand(&rows);
    assert!(monitor.latest().is_none());
    run(&monitor, &clock, 20);
    let history = monitor.history();
    assert_eq!((history.len(), monitor.counts()), (8, (20, 0)));
    let latest = monitor.latest().unwrap();
    assert_eq!(latest.at, Duration::from_secs(2));
    assert_eq!(latest.reading.tier(Tier::Device(1)), Some(sample(38)));
    assert_eq!(history.iter().next().unwrap().at, Duration::from_millis(1300));
    assert_eq!(history.peak_and_average(Tier::Host).unwrap().0, Bytes::mib(57));
}

#[test]
fn a_reading_that_fails_leaves_the_history_as_it_is() {
    let rows: Vec<[u64; 3]> = (0..9).map(|n| [n, n, n]).collect();
    let (monitor, clock) = by_hand(&rows);
    run(&monitor, &clock, 9);
    let before = monitor.history();
    let error = monitor.tick().unwrap_err();
    assert!(error.to_string().contains("the script is at its end"), "{error}");
    assert!(monitor.history().iter().eq(before.iter()));
    assert_eq!(monitor.counts(), (9, 1));
}

#[test]
fn thresholds_of_each_device_tell_once_per_crossing() {
    let (monitor, clock) = by_hand(&[
        [50, 50, 50],
        [86, 50, 50],
        [96, 84, 50],
        [84, 86, 50],
        [69, 86, 91],
        [69, 69, 80],
        [96, 10, 50],
    ]);
    let told = Arc::new(Mutex::new(Vec::new()));
    for tier in [Tier::Device(0), Tier::Device(1), Tier::Host] {
        for threshold in Threshold::usual(tier) {
            let told = Arc::clone(&told);
            monitor.on_crossing(threshold, move |crossing| {
                let sign = if crossing.direction == Direction::Rose { '+' } else { '-' };
                let (name, tier) = (crossing.threshold.name(), crossing.threshold.tier());
                told.lock().unwrap().push(format!("{} {sign}{name} {tier}", crossing.at.as_millis()));
            });
        }
    }
    run(&monitor, &clock, 7);
    let expected = [
        "200 +offload device:0",
        "300 +emergency device:0",
        "400 -emergency device:0",
        "400 +offload device:1",
        "500 -offload device:0",
        "500 +full host",
        "600 -offload device:1",
        "600 -full host",
        "700 +offload device:0",
        "700 +emergency device:0",
    ];
    assert_eq!(*told.lock().unwrap(), expected);
    assert_eq!(monitor.raised().len(), 2);
    assert_eq!(monitor.crossings().len(), expected.len());
    assert_eq!(monitor.timeline().marks().len(), expected.len());
    assert_eq!(monitor.timeline().marks()[0].text, "offload: device:0 rose to 86.0 %");
}

#[test]
fn a_callback_may_ask_the_monitor_and_may_panic() {
    let (monitor, clock) = by_hand(&[[90, 0, 0], [10, 0, 0], [90, 0, 0]]);
    let monitor = Arc::new(monitor);
    let threshold = || Threshold::new("t", Tier::Device(0), 0.8).unwrap();
    let (tell, told) = channel();
    let inner = Arc::downgrade(&monitor);
    monitor.on_crossing(threshold(), move |crossing| {
        let monitor = inner.upgrade().unwrap();
        let latest = monitor.latest().unwrap();
        monitor.on_crossing(Threshold::new("added", Tier::Host, 0.99).unwrap(), |_| {});
        tell.send((latest.at == crossing.at, monitor.raised().len(), monitor.summary().is_ok())).unwrap();
        panic!("on purpose");
    });
    let (tell, also_told) = channel();
    monitor.on_crossing(threshold(), move |crossing| tell.send(crossing.direction).unwrap());
    run(&monitor, &clock, 3);
    assert_eq!(told.try_iter().collect::<Vec<_>>(), [(true, 2, true), (true, 0, true), (true, 2, true)]);
    let directions: Vec<Direction> = also_told.try_iter().collect();
    assert_eq!(directions, [Direction::Rose, Direction::Fell, Direction::Rose]);
}

#[test]
fn usage_is_predicted_per_tier() {
    let rows: Vec<[u64; 3]> = (0..8).map(|n| [50 + n, 50, 90 - n]).collect();
    let (monitor, clock) = by_hand(&rows);
    assert_eq!(monitor.predict(Tier::Device(0)), None);
    run(&monitor, &clock, 8);
    // 1 MiB per 100 ms, 43 MiB left.
    let grows = monitor.predict(Tier::Device(0)).unwrap();
    assert_eq!(grows.time_to_exhaustion.unwrap().as_millis(), 4300);
    assert_eq!(grows.usage_in(Duration::from_secs(1)), Bytes::mib(67));
    assert_eq!(monitor.predict(Tier::Device(1)).unwrap().time_to_exhaustion, None);
    assert!(monitor.predict(Tier::Host).unwrap().bytes_per_second < 0.0);
    assert_eq!(monitor.predict(Tier::Disk), None);
    let text = monitor.summary().unwrap().to_string();
    assert!(text.contains("critical: device:0 grows by 10.00 MiB/s and would be full in 4 s"), "{text}");
}

#[test]
fn a_watched_budget_becomes_holders() {
    let budget = Budget::new("job", Bytes::mib(64));
    let _weights = budget.reserve(Bytes::mib(24), &Holder::new("weights")).unwrap();
    let monitor = MemoryMonitor::builder().source(scripted(&[[1, 2, 3]; 3])).budget(&budget).build().unwrap();
    monitor.tick().unwrap();
    let batch = budget.reserve(Bytes::mib(8), &Holder::new("batch")).unwrap();
    monitor.tick().unwrap();
    drop(batch);
    let timeline = monitor.timeline();
    let max = |name: &str| timeline.statistics_of(name).unwrap().max;
    assert_eq!((max("weights"), max("batch")), (Bytes::mib(24), Bytes::mib(8)));
    assert_eq!(max("device:1 used"), Bytes::mib(2));
    assert!(monitor.summary().unwrap().to_string().contains("budget           32.00 MiB     64.00 MiB"));
}

/// Tells of every reading that it gives.
fn telling() -> (impl Source, std::sync::mpsc::Receiver<()>) {
    let (tell, told) = channel();
    let source = move |_: &mut Reading| {
        let _nobody_listens = tell.send(());
        Ok(())
    };
    (source, told)
}

#[test]
fn the_background_thread_starts_stops_and_starts_again() {
    let (source, told) = telling();
    let monitor = MemoryMonitor::builder().source(source).interval(Duration::from_millis(1)).build().unwrap();
    assert!(!monitor.is_running());
    monitor.stop();
    let mut heard = 0;
    for _ in 0..3 {
        monitor.start().unwrap();
        monitor.start().unwrap();
        assert!(monitor.is_running());
        (0..3).for_each(|_| told.recv().unwrap());
        monitor.stop();
        assert!(!monitor.is_running());
        heard += 3 + told.try_iter().count() as u64;
        assert_eq!(monitor.counts(), (heard, 0));
    }
    assert_eq!(monitor.history().len() as u64, heard.min(600));
}

#[test]
fn several_monitors_run_at_once() {
    let monitors: Vec<_> = (0..4)
        .map(|_| {
            let (source, told) = telling();
            let monitor = MemoryMonitor::builder().source(source).interval(Duration::from_millis(1));
            (monitor.build().unwrap(), told)
        })
        .collect();
    monitors.iter().for_each(|(monitor, _)| monitor.start().unwrap());
    for (monitor, told) in &monitors {
        (0..5).for_each(|_| told.recv().unwrap());
        monitor.stop();
        let taken = monitor.counts().0;
        monitor.tick().unwrap();
        assert_eq!(monitor.counts().0, taken + 1, "a stopped monitor still takes readings");
    }
}

#[test]
fn a_callback_may_stop_the_monitor_that_calls_it() {
    let monitor = Arc::new(
        MemoryMonitor::builder()
            .source(ProviderSource(FixedMemory::new([(Tier::Host, sample(95))])))
            .interval(Duration::from_millis(1))
            .build()
            .unwrap(),
    );
    let (tell, told) = channel();
    let inner = Arc::downgrade(&monitor);
    monitor.on_crossing(Threshold::new("t", Tier::Host, 0.9).unwrap(), move |_| {
        inner.upgrade().unwrap().stop();
        tell.send(()).unwrap();
    });
    monitor.start().unwrap();
    told.recv().unwrap();
    assert!(!monitor.is_running());
}

#[test]
fn settings_are_checked() {
    let rows = [(0, 600, false), (1, 1, false), (1, 2, true), (1, 1 << 20, true), (1, (1 << 20) + 1, false)];
    for (millis, history, good) in rows {
        let source = scripted(&[]);
        let built =
            MemoryMonitor::builder().source(source).interval(Duration::from_millis(millis)).history(history);
        assert_eq!(built.build().is_ok(), good, "{millis} ms, {history}");
    }
}

#[test]
fn this_machine() {
    let monitor = MemoryMonitor::system().unwrap();
    monitor.tick().unwrap();
    let reading = monitor.latest().unwrap().reading;
    assert!(reading.process.unwrap().resident > Bytes::ZERO);
    assert!(reading.tier(Tier::Host).is_some() && reading.tier(Tier::Disk).is_some());
    println!("{}", monitor.summary().unwrap());
    let mut source = SystemSource::open(std::env::temp_dir()).unwrap();
    let mut reading = Reading::default();
    source.read(&mut reading).unwrap();
    assert_eq!(reading.tiers.len(), source.memory().gpus().count() as usize + 2);
}
