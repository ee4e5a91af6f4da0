//! [`PressureSampler`]: how long programs waited for memory, and [`PressureTrigger`]: being told when they do.
//!
//! Pressure stall information (the kernel's `accounting/psi.rst`) is the share of time in which *some* task, or *all*
//! tasks at once (`full`), stood still because memory had to be found first. It rises before anything is refused or
//! killed, so it is the earliest honest sign that a limit is too tight. `/proc/pressure/memory` is the machine's, a v2
//! group's `memory.pressure` its own; kernels built without it have neither.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::cgroup::{CgroupMemory, CgroupVersion, wait_on};
use crate::error::{Error, Result};
use crate::kept::{KeptFile, buffer};
use crate::root::Root;
use crate::text;

const SYSTEM: &str = "/proc/pressure/memory";

/// Who stood still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StallKind {
    /// At least one task.
    Some,
    /// All tasks that were not idle, at once.
    Full,
}

impl StallKind {
    const fn name(self) -> &'static str {
        match self {
            Self::Some => "some",
            Self::Full => "full",
        }
    }
}

/// How long tasks stood still: shares of the time, in `0..=1`, over three windows.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Stall {
    /// Over the last ten seconds.
    pub ten_seconds_fraction: f64,
    /// Over the last minute.
    pub minute_fraction: f64,
    /// Over the last five minutes.
    pub five_minutes_fraction: f64,
    /// Since the start, all together; in seconds where it is serialised.
    #[serde(serialize_with = "crate::seconds", deserialize_with = "from_seconds")]
    pub total: Duration,
}

fn from_seconds<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> std::result::Result<Duration, D::Error> {
    let seconds = <f64 as serde::Deserialize>::deserialize(deserializer)?;
    Duration::try_from_secs_f64(seconds).map_err(serde::de::Error::custom)
}

impl Stall {
    /// Reads what follows the first word of a line: `avg10=0.00 avg60=0.00 avg300=0.00 total=0`.
    fn parse<'t>(words: impl Iterator<Item = &'t [u8]>) -> Option<Self> {
        let (mut stall, mut seen) = (Self::default(), 0);
        for word in words {
            let word = std::str::from_utf8(word).ok()?;
            let (key, value) = word.split_once('=')?;
            let share = || value.parse::<f64>().ok().map(|percent| (percent / 100.0).clamp(0.0, 1.0));
            match key {
                "avg10" => stall.ten_seconds_fraction = share()?,
                "avg60" => stall.minute_fraction = share()?,
                "avg300" => stall.five_minutes_fraction = share()?,
                "total" => stall.total = Duration::from_micros(value.parse().ok()?),
                _ => continue,
            }
            seen += 1;
        }
        (seen == 4 && stall.is_finite()).then_some(stall)
    }

    fn is_finite(&self) -> bool {
        let shares = [self.ten_seconds_fraction, self.minute_fraction, self.five_minutes_fraction];
        shares.iter().all(|share| share.is_finite())
    }
}

/// One reading of memory pressure.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct MemoryPressure {
    /// Some task stood still.
    pub some: Stall,
    /// All tasks stood still at once; zero where the kernel does not say.
    pub full: Stall,
}

impl MemoryPressure {
    fn parse(text: &[u8]) -> Option<Self> {
        let line = |name: &[u8]| {
            text.split(|byte| *byte == b'\n').find_map(|line| {
                let mut words = text::words(line);
                (words.next() == Some(name)).then_some(words)
            })
        };
        let full = match line(b"full") {
            Some(words) => Stall::parse(words)?,
            None => Stall::default(),
        };
        Some(Self { some: Stall::parse(line(b"some")?)?, full })
    }
}

/// Reads the pressure again and again, from a file that stays open; a sample allocates nothing.
#[derive(Debug)]
pub struct PressureSampler {
    file: KeptFile,
}

impl PressureSampler {
    /// Opens the machine's file.
    ///
    /// # Errors
    /// [`Error::Unreadable`] where the kernel was built or started without pressure information.
    pub fn open(root: &Root) -> Result<Self> {
        Self::open_file(root.join(SYSTEM))
    }

    /// Opens the file of the nearest group that has one (v2 only), else the machine's.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_nearest(root: &Root, cgroup: &CgroupMemory) -> Result<Self> {
        let group = group_file(cgroup).and_then(|path| Self::open_file(path).ok());
        // Pressure information that is switched off opens, and then fails to be read.
        group.filter(|sampler| sampler.sample().is_ok()).map_or_else(|| Self::open(root), Ok)
    }

    fn open_file(path: PathBuf) -> Result<Self> {
        let file = KeptFile::open_path(path.clone()).map_err(|source| unreadable(&path, source))?;
        Ok(Self { file })
    }

    /// The file that is read.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// Reads the pressure now.
    ///
    /// # Errors
    /// [`Error::Unreadable`] where it is switched off, or the group is gone; [`Error::Malformed`].
    pub fn sample(&self) -> Result<MemoryPressure> {
        let mut buffer = buffer();
        let text = self.file.read(&mut buffer).map_err(|source| unreadable(self.path(), source))?;
        MemoryPressure::parse(text).ok_or_else(|| Error::Malformed {
            path: self.path().to_owned(),
            expected: "lines `some avg10=… avg60=… avg300=… total=…` and `full …`",
        })
    }
}

fn unreadable(path: &Path, source: std::io::Error) -> Error {
    Error::Unreadable { what: "memory pressure", path: path.to_owned(), source }
}

/// The pressure file of the nearest group that has one.
fn group_file(cgroup: &CgroupMemory) -> Option<PathBuf> {
    let is_v2 = cgroup.version() == Some(CgroupVersion::V2);
    let mut files = cgroup.folders().map(|folder| folder.join("memory.pressure"));
    files.find(|path| is_v2 && path.exists())
}

/// What to be told: that tasks stood still for `stall` within any `window`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PressureTrigger {
    kind: StallKind,
    stall: Duration,
    window: Duration,
}

impl PressureTrigger {
    /// The step of windows that the kernel grants without privilege.
    pub const WINDOW_STEP: Duration = Duration::from_secs(2);
    /// The largest window.
    pub const LONGEST_WINDOW: Duration = Duration::from_secs(10);

    /// Checks the figures before the kernel does, which would only say "invalid argument".
    ///
    /// # Errors
    /// [`Error::BadTrigger`] for a window that is not 2, 4, 6, 8 or 10 seconds, and for a stall that is zero or longer
    /// than the window.
    pub fn new(kind: StallKind, stall: Duration, window: Duration) -> Result<Self> {
        let steps = window.as_micros().is_multiple_of(Self::WINDOW_STEP.as_micros());
        if !steps || window.is_zero() || window > Self::LONGEST_WINDOW {
            return Err(Error::BadTrigger {
                what: "window",
                found: window,
                expected: "2, 4, 6, 8 or 10 s: other windows need privilege",
            });
        }
        if stall.as_micros() == 0 || stall > window {
            return Err(Error::BadTrigger {
                what: "stall",
                found: stall,
                expected: "at least 1 µs and at most the window",
            });
        }
        Ok(Self { kind, stall, window })
    }

    /// What is written to the file. The kernel takes the last byte for the end of the text whatever it is, so the NUL
    /// must be there.
    fn text(&self) -> String {
        format!("{} {} {}\0", self.kind.name(), self.stall.as_micros(), self.window.as_micros())
    }

    /// Arms the trigger on the machine's pressure.
    ///
    /// # Errors
    /// [`Error::TriggerRefused`] where the kernel does not grant it.
    pub fn arm(self, root: &Root) -> Result<ArmedTrigger> {
        self.arm_on(root.join(SYSTEM))
    }

    /// Arms the trigger on the pressure of the nearest group that has one, else on the machine's.
    ///
    /// # Errors
    /// As [`arm`](Self::arm).
    pub fn arm_nearest(self, root: &Root, cgroup: &CgroupMemory) -> Result<ArmedTrigger> {
        self.arm_on(group_file(cgroup).unwrap_or_else(|| root.join(SYSTEM)))
    }

    fn arm_on(self, path: PathBuf) -> Result<ArmedTrigger> {
        let armed = OpenOptions::new().read(true).write(true).open(&path).and_then(|mut file| {
            file.write_all(self.text().as_bytes())?;
            Ok(file)
        });
        let file = armed.map_err(|source| Error::TriggerRefused { path, source })?;
        Ok(ArmedTrigger { file, trigger: self })
    }
}

/// A trigger that the kernel watches until this is dropped.
#[derive(Debug)]
pub struct ArmedTrigger {
    file: File,
    trigger: PressureTrigger,
}

impl ArmedTrigger {
    /// What is watched.
    #[must_use]
    pub const fn trigger(&self) -> PressureTrigger {
        self.trigger
    }

    /// Waits until tasks have stood still for that long, at most until the timeout, and says whether they did. The
    /// kernel tells at most once per window.
    ///
    /// # Errors
    /// [`Error::CannotWait`] once the group is gone.
    pub fn wait(&self, timeout: Duration) -> Result<bool> {
        wait_on(&self.file, "memory pressure", timeout)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CALM: &str = "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n";

    #[test]
    fn texts_of_the_kernel() {
        let stall = |ten, minute, five, micros| Stall {
            ten_seconds_fraction: ten,
            minute_fraction: minute,
            five_minutes_fraction: five,
            total: Duration::from_micros(micros),
        };
        let busy = "some avg10=12.50 avg60=25.00 avg300=50.00 total=123\n\
                    full avg10=1.00 avg60=2.00 avg300=100.00 total=45\n";
        let rows = [
            (busy, Some((stall(0.125, 0.25, 0.5, 123), stall(0.01, 0.02, 1.0, 45)))),
            (CALM, Some((Stall::default(), Stall::default()))),
            ("some avg10=0.00 avg60=0.00 total=0\n", None),
            ("some avg10=x avg60=0.00 avg300=0.00 total=0\n", None),
            ("some avg10=NaN avg60=0.00 avg300=0.00 total=0\n", None),
            ("full avg10=0.00 avg60=0.00 avg300=0.00 total=0\n", None),
            ("some\n", None),
            ("", None),
        ];
        for (text, expected) in rows {
            let found = MemoryPressure::parse(text.as_bytes()).map(|it| (it.some, it.full));
            assert_eq!(found, expected, "{text:?}");
        }
    }

    #[test]
    fn times_are_written_as_seconds() {
        let stall = Stall { total: Duration::from_millis(2500), ..Stall::default() };
        let text = serde_json::to_string(&MemoryPressure { some: stall, full: Stall::default() }).unwrap();
        assert!(text.contains("\"total\":2.5"), "{text}");
        assert_eq!(serde_json::from_str::<MemoryPressure>(&text).unwrap().some, stall);
        assert!(serde_json::from_str::<MemoryPressure>(&text.replace("2.5", "-1.0")).is_err());
    }

    #[test]
    fn triggers_are_checked_before_the_kernel_sees_them() {
        let (millis, seconds) = (Duration::from_millis, Duration::from_secs);
        let rows = [
            (millis(150), seconds(2), true),
            (seconds(10), seconds(10), true),
            (millis(150), seconds(1), false),
            (millis(150), seconds(3), false),
            (millis(150), seconds(12), false),
            (millis(150), Duration::ZERO, false),
            (Duration::ZERO, seconds(2), false),
            (Duration::from_nanos(10), seconds(2), false),
            (seconds(3), seconds(2), false),
        ];
        for (stall, window, good) in rows {
            let trigger = PressureTrigger::new(StallKind::Some, stall, window);
            assert_eq!(trigger.is_ok(), good, "{stall:?} of {window:?}: {trigger:?}");
        }
    }

    #[test]
    fn an_armed_trigger_is_written_with_a_trailing_nul() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        std::fs::create_dir_all(folder.path().join("proc/pressure")).unwrap();
        let path = folder.path().join("proc/pressure/memory");
        std::fs::write(&path, "").unwrap();
        let trigger =
            PressureTrigger::new(StallKind::Full, Duration::from_millis(150), Duration::from_secs(2))
                .unwrap();
        let armed = trigger.arm(&root).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"full 150000 2000000\0");
        assert_eq!(armed.trigger(), trigger);
        std::fs::remove_file(&path).unwrap();
        let refused = trigger.arm(&root).unwrap_err();
        assert!(matches!(refused, Error::TriggerRefused { .. }), "{refused}");
    }

    #[test]
    fn this_machine() {
        let root = Root::default();
        let Ok(pressure) = PressureSampler::open(&root).and_then(|sampler| sampler.sample()) else {
            dd_conformance::skipped!("this kernel tells no memory pressure");
            return;
        };
        assert!(pressure.some.total >= pressure.full.total, "{pressure:?}");
        let trigger = PressureTrigger::new(StallKind::Some, Duration::from_secs(2), Duration::from_secs(2));
        match trigger.unwrap().arm(&root) {
            Ok(armed) => assert!(armed.wait(Duration::ZERO).is_ok()),
            Err(error) => dd_conformance::skipped!("{error}"),
        }
    }

    #[test]
    fn a_group_s_own_pressure_is_nearer() {
        let folder = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = folder.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("proc/self/cgroup", "0::/app\n");
        write("proc/self/mountinfo", "31 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n");
        write("sys/fs/cgroup/app/memory.max", "1048576\n");
        write("proc/pressure/memory", CALM);
        let root = Root::new(folder.path());
        let nearest = |root| PressureSampler::open_nearest(root, &CgroupMemory::open(root)).unwrap();
        assert!(nearest(&root).path().ends_with("proc/pressure/memory"));
        write("sys/fs/cgroup/app/memory.pressure", "switched off");
        assert!(nearest(&root).path().ends_with("proc/pressure/memory"));
        write("sys/fs/cgroup/app/memory.pressure", CALM);
        assert!(nearest(&root).path().ends_with("app/memory.pressure"));
    }

    proptest! {
        #[test]
        fn never_panics(text in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _pressure = MemoryPressure::parse(&text);
        }
    }
}
