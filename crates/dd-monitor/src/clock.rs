//! [`Clock`]: what time it is for a monitor, so that tests can say so.

use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Tells the time since a moment of its own choice; never goes back.
pub trait Clock: Send + Sync {
    /// The time since the clock's beginning.
    fn now(&self) -> Duration;
}

/// The system's monotonic clock, from when this was made.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock(Instant);

impl Default for SystemClock {
    fn default() -> Self {
        Self(Instant::now())
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Duration {
        self.0.elapsed()
    }
}

/// A clock that stands until it is moved: for tests and for replaying what was recorded.
#[derive(Debug, Default)]
pub struct ManualClock(Mutex<Duration>);

impl ManualClock {
    /// Moves the clock on.
    pub fn advance(&self, by: Duration) {
        let mut now = crate::lock(&self.0);
        *now = now.saturating_add(by);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Duration {
        *crate::lock(&self.0)
    }
}
