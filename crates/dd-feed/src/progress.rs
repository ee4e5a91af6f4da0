//! [`ProgressBar`]: progress in the terminal, as an observer.

use std::sync::{Mutex, PoisonError};

use dd_core::{Event, Observer};
use indicatif::ProgressStyle;

/// Draws a bar per task. Where standard error is no terminal, it draws nothing.
pub struct ProgressBar {
    bar: Mutex<Option<(String, indicatif::ProgressBar)>>,
}

impl ProgressBar {
    /// A bar that appears with the first progress.
    #[must_use]
    pub const fn new() -> Self {
        Self { bar: Mutex::new(None) }
    }
}

impl Default for ProgressBar {
    fn default() -> Self {
        Self::new()
    }
}

impl Observer for ProgressBar {
    fn on_event(&self, event: &Event<'_>) {
        let Event::Progress { task, done, total } = event else { return };
        let mut bar = self.bar.lock().unwrap_or_else(PoisonError::into_inner);
        let same = bar.as_ref().is_some_and(|(name, _)| name == task);
        if !same {
            let new = indicatif::ProgressBar::new(*total).with_message((*task).to_owned());
            let style =
                ProgressStyle::with_template("{msg} {bar:30} {pos}/{len} batches, {per_sec}, {eta} left");
            new.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            *bar = Some(((*task).to_owned(), new));
        }
        if let Some((_, bar)) = &*bar {
            bar.set_position(*done);
            if done == total {
                bar.finish();
            }
        }
    }
}
