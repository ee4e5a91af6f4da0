//! [`Timeline`]: memory over time, as statistics, CSV, JSON and pictures.
//!
//! A timeline is a table: a row per moment, a column per figure. A column is a *line* (resident memory, a device), a
//! *holder* (a part of what is accounted; holders are drawn stacked), or stands *in tables only*. Columns may come and go.
//! When the table is full, every second row goes, so that it always spans the whole time.
//!
//! ```
//! use std::time::Duration;
//! use dd_core::Bytes;
//! use dd_monitor::Timeline;
//! use dd_monitor::timeline::Point;
//!
//! let mut timeline = Timeline::new("two layers").with_budget(Bytes::mib(64));
//! for (second, weights) in [(0, 10), (1, 40), (2, 20)] {
//!     let point = Point::new().line("resident", Bytes::mib(weights + 12)).holder("weights", Bytes::mib(weights));
//!     timeline.record(Duration::from_secs(second), point);
//! }
//! timeline.mark(Duration::from_secs(1), "layer 2 loaded");
//! assert_eq!(timeline.statistics_of("weights").unwrap().max, Bytes::mib(40));
//! assert!(timeline.to_csv()?.starts_with("seconds,resident_bytes,weights_bytes"));
//! # Ok::<(), dd_monitor::Error>(())
//! ```

use std::io;
use std::path::Path;
use std::time::Duration;

use dd_core::{Bytes, Tier, Usage};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::history::History;
use crate::process::ProcessParts;
use crate::reading::Reading;
use crate::threshold::Crossing;

#[cfg(feature = "plot")]
mod canvas;
#[cfg(feature = "plot")]
mod curve;
#[cfg(feature = "plot")]
mod plot;

#[cfg(feature = "plot")]
pub use curve::plot_curves;

/// The most rows that are kept unless something else is said.
pub const DEFAULT_MOST: usize = 8192;

/// How a figure is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SeriesKind {
    /// A line.
    Line,
    /// A part of what is accounted, stacked on the others.
    Holder,
    /// Not drawn: in CSV, JSON and statistics only.
    Table,
}

/// A figure that is recorded over time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Series {
    /// Its name.
    pub name: String,
    /// How it is shown.
    pub kind: SeriesKind,
}

/// The figures of one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Point {
    figures: Vec<(SeriesKind, String, Bytes)>,
    pressure_fraction: Option<f64>,
}

impl Point {
    /// No figure.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn with(mut self, kind: SeriesKind, name: &str, bytes: Bytes) -> Self {
        self.figures.push((kind, name.to_owned(), bytes));
        self
    }

    /// Adds a figure that is drawn as a line.
    #[must_use]
    pub fn line(self, name: &str, bytes: Bytes) -> Self {
        self.with(SeriesKind::Line, name, bytes)
    }

    /// Adds a part of what is accounted.
    #[must_use]
    pub fn holder(self, name: &str, bytes: Bytes) -> Self {
        self.with(SeriesKind::Holder, name, bytes)
    }

    /// Adds a figure that is not drawn.
    #[must_use]
    pub fn table(self, name: &str, bytes: Bytes) -> Self {
        self.with(SeriesKind::Table, name, bytes)
    }

    /// Adds every holder of a budget.
    #[must_use]
    pub fn usage(self, usage: &Usage) -> Self {
        usage.holders.iter().fold(self, |point, holder| point.holder(&holder.name, holder.used))
    }

    /// Adds the resident parts of a process as holders.
    #[must_use]
    pub fn parts(self, parts: &ProcessParts) -> Self {
        let resident = parts.named().into_iter().filter(|(name, _)| *name != "swap");
        resident.fold(self.table("swap", parts.swap), |point, (name, bytes)| point.holder(name, bytes))
    }

    /// Adds the share of the last ten seconds in which some task waited for memory.
    #[must_use]
    pub const fn pressure(mut self, fraction: f64) -> Self {
        self.pressure_fraction = Some(fraction);
        self
    }

    /// Everything in a reading: the process and the devices as lines, the budget's holders, the other tiers in tables.
    #[must_use]
    pub fn reading(self, reading: &Reading) -> Self {
        let mut point = self;
        if let Some(process) = reading.process {
            point = point.line("resident", process.resident);
        }
        for tier in &reading.tiers {
            let name = format!("{} used", tier.tier);
            let kind =
                if matches!(tier.tier, Tier::Device(_)) { SeriesKind::Line } else { SeriesKind::Table };
            point = point.with(kind, &name, tier.sample.used);
        }
        if let Some(usage) = &reading.usage {
            point = point.usage(usage);
        }
        reading.pressure.iter().fold(point, |point, it| point.pressure(it.some.ten_seconds_fraction))
    }
}

/// The recorded figures of one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Row {
    seconds: f64,
    /// By column; shorter where columns were added later.
    bytes: Vec<Option<Bytes>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pressure_fraction: Option<f64>,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Mark {
    /// When, in seconds.
    pub seconds: f64,
    /// What, in a few words.
    pub text: String,
}

/// The statistics of one figure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statistics {
    /// The figure.
    pub name: String,
    /// The most.
    pub max: Bytes,
    /// The average over time: each value holds until the next one.
    pub average: Bytes,
    /// The last.
    pub last: Bytes,
}

/// Memory over time. See the [module](self).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Timeline {
    title: String,
    budget: Option<Bytes>,
    series: Vec<Series>,
    rows: Vec<Row>,
    marks: Vec<Mark>,
    /// Whether seconds stand for steps of a program.
    #[serde(default)]
    steps: bool,
    #[serde(skip, default = "default_most")]
    most: usize,
}

const fn default_most() -> usize {
    DEFAULT_MOST
}

impl Timeline {
    /// An empty timeline.
    #[must_use]
    pub fn new(title: impl Into<String>) -> Self {
        let (series, rows, marks) = (Vec::new(), Vec::new(), Vec::new());
        Self { title: title.into(), budget: None, series, rows, marks, steps: false, most: DEFAULT_MOST }
    }

    /// The line that must not be crossed.
    #[must_use]
    pub const fn with_budget(mut self, budget: Bytes) -> Self {
        self.budget = Some(budget);
        self
    }

    /// Over the steps of a program instead of time: a second of a moment stands for a step.
    #[must_use]
    pub const fn over_steps(mut self) -> Self {
        self.steps = true;
        self
    }

    /// Moves the line that must not be crossed.
    pub const fn set_budget(&mut self, budget: Bytes) {
        self.budget = Some(budget);
    }

    /// Keeps at most this many rows, at least two.
    #[must_use]
    pub fn with_most(mut self, rows: usize) -> Self {
        self.most = rows.max(2);
        self
    }

    /// The timeline of a history, with the crossings marked; the budget is the watched one's limit.
    #[must_use]
    pub fn of_history(history: &History, crossings: &[Crossing]) -> Self {
        let mut timeline = Self::new("Memory over time").with_most(history.len().max(DEFAULT_MOST));
        for moment in history.iter() {
            timeline.record(moment.at, Point::new().reading(&moment.reading));
        }
        let limit = |usage: &Usage| Some(usage.limit).filter(|limit| *limit < Bytes::MAX);
        timeline.budget = history.latest().and_then(|moment| moment.reading.usage.as_ref().and_then(limit));
        let first = history.iter().next().map(|moment| moment.at).unwrap_or_default();
        for crossing in crossings.iter().filter(|crossing| crossing.at >= first) {
            timeline.mark(crossing.at, crossing.to_string());
        }
        timeline
    }

    /// Adds a moment; moments are given in order.
    pub fn record(&mut self, at: Duration, point: Point) {
        if self.rows.len() >= self.most {
            let mut keep = false;
            self.rows.retain(|_| {
                keep = !keep;
                keep
            });
        }
        let mut bytes = vec![None; self.series.len()];
        for (kind, name, figure) in point.figures {
            let column = self.column(kind, name);
            if bytes.len() <= column {
                bytes.resize(column + 1, None);
            }
            if let Some(place) = bytes.get_mut(column) {
                *place = Some(figure);
            }
        }
        let pressure_fraction = point.pressure_fraction;
        self.rows.push(Row { seconds: at.as_secs_f64(), bytes, pressure_fraction });
    }

    /// The column of a figure, added where it is new.
    fn column(&mut self, kind: SeriesKind, name: String) -> usize {
        let known = self.series.iter().position(|series| series.kind == kind && series.name == name);
        known.unwrap_or_else(|| {
            self.series.push(Series { name, kind });
            self.series.len() - 1
        })
    }

    /// Marks something that happened.
    pub fn mark(&mut self, at: Duration, text: impl Into<String>) {
        self.marks.push(Mark { seconds: at.as_secs_f64(), text: text.into() });
    }

    /// What is recorded, in the order in which it first came.
    #[must_use]
    pub fn series(&self) -> &[Series] {
        &self.series
    }

    /// What happened.
    #[must_use]
    pub fn marks(&self) -> &[Mark] {
        &self.marks
    }

    /// How many moments there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// A column with its times in seconds; moments without the figure are left out.
    fn values(&self, column: usize) -> impl DoubleEndedIterator<Item = (f64, Bytes)> {
        self.rows.iter().filter_map(move |row| Some((row.seconds, (*row.bytes.get(column)?)?)))
    }

    /// The statistics of every figure.
    #[must_use]
    pub fn statistics(&self) -> Vec<Statistics> {
        (0..self.series.len()).filter_map(|column| self.statistics_at(column)).collect()
    }

    /// The statistics of the first figure of this name.
    #[must_use]
    pub fn statistics_of(&self, name: &str) -> Option<Statistics> {
        self.statistics_at(self.series.iter().position(|series| series.name == name)?)
    }

    fn statistics_at(&self, column: usize) -> Option<Statistics> {
        let name = self.series.get(column)?.name.clone();
        let max = self.values(column).map(|(_, bytes)| bytes).max()?;
        let (_, last) = self.values(column).next_back()?;
        Some(Statistics { name, max, average: self.average(column), last })
    }

    /// The average over time; over the moments where no time passed.
    fn average(&self, column: usize) -> Bytes {
        let float = |bytes: Bytes| bytes.fraction_of(Bytes(1));
        let pairs = self.values(column).zip(self.values(column).skip(1));
        let (area, time) = pairs.fold((0.0, 0.0), |(area, time), ((from, bytes), (until, _))| {
            (area + float(bytes) * (until - from), time + (until - from))
        });
        if time > 0.0 {
            return Bytes(1).scaled(area / time);
        }
        let (sum, count) =
            self.values(column).fold((0.0, 0.0), |(sum, count), (_, it)| (sum + float(it), count + 1.0));
        Bytes(1).scaled(sum / f64::max(count, 1.0))
    }

    /// The table as CSV: `seconds`, one `…_bytes` per figure, `pressure_fraction`, and `event` with what happened since
    /// the row before.
    ///
    /// # Errors
    /// [`Error::Drawing`] where the library refuses.
    pub fn to_csv(&self) -> Result<String> {
        let failed = |reason: String| Error::Drawing { what: "CSV", reason };
        let mut writer = csv::Writer::from_writer(Vec::new());
        let names = self.series.iter().map(|series| format!("{}_bytes", series.name.replace(' ', "_")));
        let header = ["seconds".to_owned()]
            .into_iter()
            .chain(names)
            .chain(["pressure_fraction", "event"].map(str::to_owned));
        writer.write_record(header).map_err(|error| failed(error.to_string()))?;
        let mut from = f64::NEG_INFINITY;
        for (number, row) in self.rows.iter().enumerate() {
            let until = if number + 1 == self.rows.len() { f64::INFINITY } else { row.seconds };
            let record = self.csv_row(row, self.events_between(from, until));
            writer.write_record(record).map_err(|error| failed(error.to_string()))?;
            from = until;
        }
        let bytes = writer.into_inner().map_err(|error| failed(error.to_string()))?;
        String::from_utf8(bytes).map_err(|error| failed(error.to_string()))
    }

    fn csv_row(&self, row: &Row, events: String) -> Vec<String> {
        let figure =
            |column: usize| row.bytes.get(column).copied().flatten().map(|bytes: Bytes| bytes.0.to_string());
        let figures = (0..self.series.len()).map(|column| figure(column).unwrap_or_default());
        let pressure = row.pressure_fraction.map(|fraction| fraction.to_string()).unwrap_or_default();
        [format!("{:.6}", row.seconds)].into_iter().chain(figures).chain([pressure, events]).collect()
    }

    /// What happened after one time and up to another.
    fn events_between(&self, from: f64, until: f64) -> String {
        let marks = self.marks.iter().filter(|mark| mark.seconds > from && mark.seconds <= until);
        marks.map(|mark| mark.text.as_str()).collect::<Vec<_>>().join("; ")
    }

    /// The table, the marks and the statistics as JSON; [`from_json`](Self::from_json) reads it again.
    ///
    /// # Errors
    /// [`Error::Drawing`] where the library refuses.
    pub fn to_json(&self) -> Result<String> {
        #[derive(Serialize)]
        struct WithStatistics<'a> {
            #[serde(flatten)]
            timeline: &'a Timeline,
            statistics: Vec<Statistics>,
        }
        let whole = WithStatistics { timeline: self, statistics: self.statistics() };
        serde_json::to_string(&whole)
            .map_err(|error| Error::Drawing { what: "JSON", reason: error.to_string() })
    }

    /// Reads a timeline from its JSON.
    ///
    /// # Errors
    /// [`Error::Drawing`] where the text is no timeline.
    pub fn from_json(text: &str) -> Result<Self> {
        serde_json::from_str(text)
            .map_err(|error| Error::Drawing { what: "timeline from JSON", reason: error.to_string() })
    }

    /// Writes CSV to a file.
    ///
    /// # Errors
    /// As [`to_csv`](Self::to_csv); [`Error::Unwritable`].
    pub fn write_csv(&self, path: impl AsRef<Path>) -> Result<()> {
        write(path.as_ref(), self.to_csv()?.as_bytes())
    }

    /// Writes JSON to a file.
    ///
    /// # Errors
    /// As [`to_json`](Self::to_json); [`Error::Unwritable`].
    pub fn write_json(&self, path: impl AsRef<Path>) -> Result<()> {
        write(path.as_ref(), self.to_json()?.as_bytes())
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let unwritable = |source: io::Error| Error::Unwritable { path: path.to_owned(), source };
    std::fs::write(path, bytes).map_err(unwritable)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample() -> Timeline {
        let mut timeline = Timeline::new("a run").with_budget(Bytes::mib(64));
        for (millis, resident, weights) in [(0, 10, 5), (100, 30, 20), (400, 20, 10)] {
            let point = Point::new().line("resident", Bytes(resident)).holder("weights", Bytes(weights));
            timeline.record(
                Duration::from_millis(millis),
                if millis == 100 { point.pressure(0.5) } else { point },
            );
        }
        timeline.record(Duration::from_millis(500), Point::new().holder("a, b", Bytes(1)));
        timeline.mark(Duration::from_millis(50), "began");
        timeline.mark(Duration::from_millis(100), "grew");
        timeline.mark(Duration::from_millis(900), "ended");
        timeline
    }

    #[test]
    fn statistics_weigh_by_time() {
        let timeline = sample();
        let statistics =
            |name: &str| timeline.statistics_of(name).map(|it| (it.max.0, it.average.0, it.last.0));
        // 10 for 100 ms, then 30 for 300 ms.
        assert_eq!(statistics("resident"), Some((30, 25, 20)));
        assert_eq!(statistics("weights"), Some((20, 16, 10)));
        assert_eq!(statistics("a, b"), Some((1, 1, 1)));
        assert_eq!(statistics("absent"), None);
        assert_eq!(timeline.statistics().len(), 3);
    }

    #[test]
    fn csv() {
        let expected = "seconds,resident_bytes,weights_bytes,\"a,_b_bytes\",pressure_fraction,event\n\
                        0.000000,10,5,,,\n\
                        0.100000,30,20,,0.5,began; grew\n\
                        0.400000,20,10,,,\n\
                        0.500000,,,1,,ended\n";
        assert_eq!(sample().to_csv().unwrap(), expected);
        assert_eq!(Timeline::new("empty").to_csv().unwrap(), "seconds,pressure_fraction,event\n");
    }

    #[test]
    fn json_is_read_again() {
        let timeline = sample();
        let text = timeline.to_json().unwrap();
        assert_eq!(Timeline::from_json(&text).unwrap(), timeline);
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["statistics"][0]["max"], 30);
        assert!(Timeline::from_json("{}").is_err());
    }

    #[test]
    fn files_that_cannot_be_written_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        let (good, bad) = (folder.path().join("t.csv"), folder.path().join("no/t.csv"));
        sample().write_csv(&good).unwrap();
        assert!(std::fs::read_to_string(good).unwrap().starts_with("seconds"));
        for error in [sample().write_csv(&bad).unwrap_err(), sample().write_json(&bad).unwrap_err()] {
            assert!(matches!(error, Error::Unwritable { .. }), "{error}");
        }
    }

    proptest! {
        #[test]
        fn a_full_table_still_spans_the_whole_time(most in 0usize..20, count in 1u64..200) {
            let mut timeline = Timeline::new("t").with_most(most);
            for n in 0..count {
                timeline.record(Duration::from_secs(n), Point::new().line("x", Bytes(n)));
            }
            prop_assert!(timeline.len() <= most.max(2));
            prop_assert_eq!(timeline.rows[0].seconds, 0.0);
            prop_assert_eq!(timeline.statistics_of("x").unwrap().last, Bytes(count - 1));
            prop_assert!(timeline.rows.is_sorted_by(|a, b| a.seconds < b.seconds));
        }
    }
}
