//! `deepdim monitor`: where memory stands, as it changes.
//!
//! On a terminal it is a dashboard; elsewhere (a pipe, a file, `--json`, a terminal that can only print) a line per reading. What was seen can be kept as
//! CSV and drawn. It watches one process with `--pid`, and the whole machine without.

use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args as ClapArgs;
use deep_dimensions::core::Error as CoreError;
use deep_dimensions::monitor::{Error, Timeline};

use crate::error::{CliError, Result};
use crate::interrupt;

pub mod dashboard;
pub mod lines;
pub mod watch;

use watch::{Watch, lock};

/// `deepdim monitor`.
#[derive(Clone, Debug, ClapArgs)]
pub struct MonitorArgs {
    /// Watch this process instead of the whole machine.
    #[arg(long, value_name = "N")]
    pub pid: Option<u32>,
    /// How often to look, for example 100ms or 2s.
    #[arg(long, default_value = "500ms", value_parser = duration)]
    pub interval: Duration,
    /// Stop after this long, for example 30s or 5m; without it, at `q` or Ctrl-C.
    #[arg(long, value_parser = duration)]
    pub duration: Option<Duration>,
    /// Write every reading to this file at the end.
    #[arg(long, value_name = "FILE.csv")]
    pub csv: Option<PathBuf>,
    /// Draw memory over time at the end.
    #[arg(long, value_name = "FILE.svg|FILE.png")]
    pub plot: Option<PathBuf>,
    /// Print a line per reading, on a terminal too.
    #[arg(long)]
    pub plain: bool,
}

/// A time on the command line: `100ms`, `2s`, `1.5s`, `5m`, `1h`; a bare number is seconds.
///
/// # Errors
/// What was expected, where it is not such a time, or less than a millisecond.
pub fn duration(text: &str) -> std::result::Result<Duration, String> {
    let text = text.trim();
    let unit = text.trim_start_matches(|letter: char| letter.is_ascii_digit() || letter == '.');
    let seconds = match unit.trim() {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        _ => return Err(format!("{text:?} is no time: expected a number with ms, s, m or h")),
    };
    let number: f64 = text
        .strip_suffix(unit)
        .and_then(|number| number.parse().ok())
        .ok_or_else(|| format!("{text:?} is no time: expected a number with ms, s, m or h"))?;
    let time = Duration::try_from_secs_f64(number * seconds).map_err(|error| format!("{text:?}: {error}"))?;
    if time < Duration::from_millis(1) {
        Err(format!("{text:?} is too short: at least 1ms"))
    } else {
        Ok(time)
    }
}

/// Watches until it is over; then writes what was asked for.
///
/// # Errors
/// [`CliError::Input`] for a process that is not there or a picture of an unknown kind; [`CliError::Io`] where a file
/// cannot be written.
pub fn monitor(args: &MonitorArgs, json: bool) -> Result<()> {
    check_plot(args)?;
    let mut watch = Watch::open(args).map_err(|error| refuse(args, error))?;
    let has_terminal = std::io::stdout().is_terminal() && std::io::stdin().is_terminal();
    let kind = std::env::var_os("TERM");
    let has_screen = has_terminal && can_draw(kind.as_deref());
    let is_shown = has_screen && !json && !args.plain;
    keep_at_an_interrupt(&watch, args, is_shown);
    let outcome =
        if is_shown { dashboard::show(&mut watch, args) } else { print_lines(&mut watch, args, json) };
    // What was seen is kept, whatever ended it.
    keep(&lock(&watch.timeline()), args)?;
    outcome
}

/// Whether a terminal of this kind can place text: one that does not say what it is, or says that it is dumb, cannot.
fn can_draw(kind: Option<&std::ffi::OsStr>) -> bool {
    cfg!(windows) || kind.is_some_and(|kind| !kind.is_empty() && kind != "dumb")
}

/// A name that cannot be drawn is refused before anything is watched.
fn check_plot(args: &MonitorArgs) -> Result<()> {
    let Some(path) = &args.plot else { return Ok(()) };
    let end = path.extension().and_then(|end| end.to_str()).map(str::to_ascii_lowercase);
    if matches!(end.as_deref(), Some("svg" | "png")) {
        return Ok(());
    }
    let problem = format!("expected a name that ends in .svg or .png, found {}", path.display());
    Err(CliError::Input { place: "--plot".to_owned(), problem, remedy: "give another name".to_owned() })
}

fn refuse(args: &MonitorArgs, error: Error) -> CliError {
    let remedy = "see `ps` for the processes that run";
    match args.pid {
        Some(pid) => CliError::input(format!("--pid {pid}"), error, remedy),
        None => CliError::from(CoreError::from(error)),
    }
}

/// Prints a line per reading. The process's end ends it; so does a reader that goes away, or an interrupt.
fn print_lines(watch: &mut Watch, args: &MonitorArgs, json: bool) -> Result<()> {
    let began = Instant::now();
    let mut next = began;
    loop {
        if let Err(error) = watch.look() {
            tracing::info!(%error, "there is nothing more to watch");
            return Ok(());
        }
        let text = if json { watch.to_json()? } else { lines::line(&watch.view()) };
        if writeln!(std::io::stdout(), "{text}").is_err() {
            return Ok(());
        }
        next = (next + args.interval).max(Instant::now()); // None is made up for.
        let ends = args.duration.map(|duration| began + duration);
        if ends.is_some_and(|end| next > end) {
            return Ok(());
        }
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
}

/// An interrupt, or being told to end, leaves the terminal as it was, and what was seen is kept then too.
fn keep_at_an_interrupt(watch: &Watch, args: &MonitorArgs, is_shown: bool) {
    if !is_shown && args.csv.is_none() && args.plot.is_none() {
        return;
    }
    let (timeline, args) = (watch.timeline(), args.clone());
    interrupt::tidy_then_exit(move || {
        let timeline = lock(&timeline); // Held to the end: nothing is drawn any more.
        let kept = keep(&timeline, &args);
        if is_shown {
            ratatui::restore();
        }
        if let Err(error) = kept {
            tracing::error!(%error, "what was seen is lost");
        }
        std::process::exit(interrupt::CODE);
    });
}

/// Writes the table and the picture.
fn keep(timeline: &Timeline, args: &MonitorArgs) -> Result<()> {
    if let Some(path) = &args.csv {
        timeline.write_csv(path).map_err(|error| CliError::io("write", path, error))?;
    }
    if let Some(path) = &args.plot {
        timeline.plot(path).map_err(|error| CliError::io("draw", path, error))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(folder: &std::path::Path) -> MonitorArgs {
        MonitorArgs {
            pid: Some(std::process::id()),
            interval: Duration::from_millis(1),
            duration: Some(Duration::from_millis(5)),
            csv: Some(folder.join("m.csv")),
            plot: Some(folder.join("m.png")),
            plain: true,
        }
    }

    #[test]
    fn times() {
        let rows = [
            ("100ms", Some(100)),
            ("2s", Some(2000)),
            ("1.5s", Some(1500)),
            ("0.5", Some(500)),
            ("5m", Some(300_000)),
            ("1 h", Some(3_600_000)),
            ("0", None),
            ("0.1ms", None),
            ("-1s", None),
            ("", None),
            ("ms", None),
            ("1d", None),
            ("1e400s", None),
        ];
        for (text, expected) in rows {
            assert_eq!(duration(text).ok(), expected.map(Duration::from_millis), "{text:?}");
        }
    }

    #[test]
    fn terminals_that_can_only_print() {
        let rows = [(None, false), (Some(""), false), (Some("dumb"), false), (Some("xterm-256color"), true)];
        for (kind, expected) in rows {
            assert_eq!(can_draw(kind.map(std::ffi::OsStr::new)), expected || cfg!(windows), "{kind:?}");
        }
    }

    #[test]
    fn what_was_seen_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let args = args(folder.path());
        monitor(&args, true).unwrap();
        let csv = std::fs::read_to_string(folder.path().join("m.csv")).unwrap();
        assert!(csv.starts_with("seconds,resident_bytes,"), "{csv}");
        assert!(csv.lines().count() >= 2 && csv.contains("anonymous_bytes"), "{csv}");
        assert!(std::fs::read(folder.path().join("m.png")).unwrap().starts_with(b"\x89PNG"));
    }

    #[test]
    fn bad_wishes_are_refused_first() {
        let folder = tempfile::tempdir().unwrap();
        let good = args(folder.path());
        let rows = [
            MonitorArgs { pid: Some(u32::MAX), ..good.clone() },
            MonitorArgs { plot: Some("m.jpg".into()), ..good.clone() },
        ];
        for args in rows {
            let error = monitor(&args, true).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{error}");
        }
        assert!(!folder.path().join("m.csv").exists());
        let error =
            monitor(&MonitorArgs { csv: Some(folder.path().join("no/m.csv")), ..good }, true).unwrap_err();
        assert_eq!(error.exit_code(), 4, "{error}");
    }
}
