//! Tests that cannot run on a machine say so, where whoever reads the checks' summary will see it.

use std::io::Write as _;

/// Says that a test was skipped and why: on standard output, and in the file that `DD_SKIP_LOG` names, if it is set.
/// `cargo xtask ci` sets it and repeats the lines at the end.
///
/// ```
/// if std::env::var_os("NO_SUCH_GPU").is_none() {
///     dd_conformance::skipped!("there is no {} here", "GPU");
///     return;
/// }
/// ```
#[macro_export]
macro_rules! skipped {
    ($($reason:tt)+) => { $crate::skipped(&format!($($reason)+)) };
}

/// What [`skipped!`](crate::skipped!) does with its text.
#[allow(clippy::print_stdout, reason = "that is what it is for")]
pub fn skipped(reason: &str) {
    println!("skipped: {reason}");
    let Some(path) = std::env::var_os("DD_SKIP_LOG") else { return };
    let log = std::fs::OpenOptions::new().append(true).create(true).open(path);
    let written = log.and_then(|mut log| writeln!(log, "skipped: {reason}"));
    if let Err(error) = written {
        println!("the line could not be added to the skip log: {error}");
    }
}
