//! [`Watch`]: the readings of one run of the monitor, and [`View`]: what is shown of them.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use deep_dimensions::core::{Bytes, MemorySample, Tier};
use deep_dimensions::monitor::pressure::Stall;
use deep_dimensions::monitor::timeline::Point;
use deep_dimensions::monitor::{
    Gpus, MemoryMonitor, MemorySummary, Moment, ProcessId, ProcessSampler, Result, Root, SystemSource,
    Threshold, Timeline, largest_processes,
};
use serde::Serialize;

use crate::error::{CliError, Result as CliResult};
use crate::monitor::MonitorArgs;

/// How many holders are shown.
const HOLDERS: usize = 8;
/// How many points of the past the dashboard draws.
const PAST: usize = 600;
/// The least time between two looks at all processes of the machine, which costs milliseconds.
const PROCESSES_EVERY: Duration = Duration::from_secs(1);

/// A name and what it holds.
pub type Held = (String, Bytes);

/// Everything that is seen in one run.
pub struct Watch {
    monitor: MemoryMonitor,
    process: Option<(u32, ProcessSampler)>,
    timeline: Arc<Mutex<Timeline>>,
    interval: Duration,
    past: VecDeque<(f64, f64)>,
    holders: Vec<Held>,
    looked_at_processes: Option<Duration>,
}

/// What is shown of one moment.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// What is watched.
    pub title: String,
    /// Since the start.
    pub at: Duration,
    /// Each tier.
    pub tiers: Vec<(Tier, MemorySample)>,
    /// The watched process's resident memory.
    pub resident: Option<Bytes>,
    /// Seconds and MiB of what the history shows, oldest first.
    pub past: Vec<(f64, f64)>,
    /// What the history shows, by name.
    pub past_name: &'static str,
    /// Who holds the most.
    pub holders: Vec<Held>,
    /// Waiting for memory: some tasks, and all of them.
    pub pressure: Option<(Stall, Stall)>,
    /// What could be done.
    pub recommendations: Vec<String>,
    /// What was passed, oldest first.
    pub crossings: Vec<String>,
}

/// One reading as a line of JSON.
#[derive(Serialize)]
struct JsonLine<'a> {
    #[serde(flatten)]
    moment: &'a Moment,
    holders: &'a [Held],
}

impl Watch {
    /// Opens what is to be watched, and takes no reading yet.
    ///
    /// # Errors
    /// Where the process is not there.
    pub fn open(args: &MonitorArgs) -> Result<Self> {
        let root = Root::default();
        let id = args.pid.map_or(ProcessId::Own, ProcessId::Pid);
        let source = SystemSource::open_at(root.clone(), Gpus::open(), ".", id)?;
        let tiers = source.memory().gpus().count();
        let monitor = MemoryMonitor::builder().source(source).interval(args.interval).build()?;
        let tiers = (0..tiers).map(Tier::Device).chain([Tier::Host, Tier::Disk]);
        for threshold in tiers.flat_map(Threshold::usual) {
            monitor.on_crossing(threshold, |crossing| tracing::info!(%crossing, "threshold passed"));
        }
        let process = args.pid.map(|pid| Ok((pid, ProcessSampler::open(&root, id)?))).transpose()?;
        let title = process.as_ref().map_or_else(
            || "Memory of this machine".to_owned(),
            |(pid, _)| format!("Memory of process {pid}"),
        );
        Ok(Self {
            monitor,
            process,
            timeline: Arc::new(Mutex::new(Timeline::new(title))),
            interval: args.interval,
            past: VecDeque::new(),
            holders: Vec::new(),
            looked_at_processes: None,
        })
    }

    /// Takes a reading.
    ///
    /// # Errors
    /// Where the process has ended, or the machine tells nothing.
    pub fn look(&mut self) -> Result<()> {
        self.monitor.tick()?;
        let Some(moment) = self.monitor.latest() else { return Ok(()) };
        let host = moment.reading.tier(Tier::Host);
        let mut point = Point::new();
        let shown = if let Some((_, sampler)) = &self.process {
            point = point.reading(&moment.reading);
            if let Ok(parts) = sampler.parts() {
                self.holders = parts.named().map(|(name, bytes)| (name.to_owned(), bytes)).to_vec();
                point = point.parts(&parts);
            }
            moment.reading.process.map(|process| process.resident)
        } else {
            self.look_at_processes(moment.at);
            point = self.holders.iter().fold(point, |point, (name, bytes)| point.holder(name, *bytes));
            if let Some(host) = host {
                point = point.line("host used", host.used);
            }
            host.map(|host| host.used)
        };
        lock(&self.timeline).record(moment.at, point);
        self.mark_crossings(moment.at);
        if self.past.len() >= PAST {
            self.past.pop_front();
        }
        let mib = |bytes: Bytes| bytes.fraction_of(Bytes::mib(1));
        self.past.extend(shown.map(|bytes| (moment.at.as_secs_f64(), mib(bytes))));
        Ok(())
    }

    /// The largest processes, not more often than is worth it.
    fn look_at_processes(&mut self, now: Duration) {
        let is_due = self.looked_at_processes.is_none_or(|last| now.saturating_sub(last) >= PROCESSES_EVERY);
        if !is_due {
            return;
        }
        self.looked_at_processes = Some(now);
        let largest = largest_processes(&Root::default(), HOLDERS);
        self.holders =
            largest.into_iter().map(|it| (format!("{} {}", it.name, it.pid), it.resident)).collect();
    }

    /// Marks what the reading of this moment passed.
    fn mark_crossings(&self, now: Duration) {
        let crossings = self.monitor.crossings();
        for crossing in crossings.iter().filter(|crossing| crossing.at == now) {
            lock(&self.timeline).mark(crossing.at, crossing.to_string());
        }
    }

    /// What was seen; it grows with every look.
    #[must_use]
    pub fn timeline(&self) -> Arc<Mutex<Timeline>> {
        Arc::clone(&self.timeline)
    }

    /// What is to be shown now.
    #[must_use]
    pub fn view(&self) -> View {
        let Some(moment) = self.monitor.latest() else { return View::default() };
        let reading = moment.reading;
        let summary = self.monitor.summary().unwrap_or_else(|_| MemorySummary::default());
        let what = self
            .process
            .as_ref()
            .map_or_else(|| "this machine".to_owned(), |(pid, _)| format!("process {pid}"));
        let mut holders = self.holders.clone();
        holders.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
        View {
            title: format!("deepdim monitor · {what} · every {:?}", self.interval),
            at: moment.at,
            tiers: reading.tiers.iter().map(|it| (it.tier, it.sample)).collect(),
            resident: self.process.as_ref().and(reading.process).map(|process| process.resident),
            past: self.past.iter().copied().collect(),
            past_name: if self.process.is_some() { "resident" } else { "host used" },
            holders,
            pressure: reading.pressure.map(|pressure| (pressure.some, pressure.full)),
            recommendations: summary.recommendations.iter().map(ToString::to_string).collect(),
            crossings: self.monitor.crossings().iter().map(ToString::to_string).collect(),
        }
    }

    /// The newest reading as a line of JSON.
    ///
    /// # Errors
    /// Where there is none, or it cannot be written as JSON.
    pub fn to_json(&self) -> CliResult<String> {
        let moment = self.monitor.latest().unwrap_or_default();
        let line = JsonLine { moment: &moment, holders: &self.holders };
        serde_json::to_string(&line).map_err(|error| CliError::input("reading", error, "report this"))
    }
}

/// Locks, taking over from a thread that panicked.
pub(super) fn lock(timeline: &Mutex<Timeline>) -> MutexGuard<'_, Timeline> {
    timeline.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use deep_dimensions::monitor::{Reading, TierReading};

    use super::*;

    /// A monitor remembers only the last crossings; a timeline has them all.
    #[test]
    fn every_crossing_is_marked() {
        let mut full = false;
        let source = move |reading: &mut Reading| {
            full = !full;
            let used = if full { Bytes(95) } else { Bytes(5) };
            let total = Bytes(100);
            let sample = MemorySample { total, used, available: total.saturating_sub(used) };
            reading.tiers.push(TierReading { tier: Tier::Host, sample });
            Ok(())
        };
        let monitor = MemoryMonitor::builder().source(source).build().unwrap();
        Threshold::usual(Tier::Host).into_iter().for_each(|it| monitor.on_crossing(it, |_| {}));
        let mut watch = Watch {
            monitor,
            process: None,
            timeline: Arc::new(Mutex::new(Timeline::new("test"))),
            interval: Duration::from_secs(1),
            past: VecDeque::new(),
            holders: Vec::new(),
            looked_at_processes: None,
        };
        (0..600).for_each(|_| watch.look().unwrap());
        assert_eq!(lock(&watch.timeline).marks().len(), 600);
    }
}
