//! Ends the process where a test hangs: a deadlock then is a message and not a timeout of everything.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

/// Lives as long as the test is expected to go on.
pub(crate) struct Watchdog(Option<Sender<()>>);

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.0 = None;
    }
}

/// Watches for a minute.
pub(crate) fn watch(what: &str) -> Watchdog {
    let (alive, ended) = channel::<()>();
    let what = what.to_owned();
    std::thread::spawn(move || {
        if ended.recv_timeout(Duration::from_secs(60)) == Err(RecvTimeoutError::Timeout) {
            eprintln!("{what}: hangs for a minute");
            std::process::abort();
        }
    });
    Watchdog(Some(alive))
}
