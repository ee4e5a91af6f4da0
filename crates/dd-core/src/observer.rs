//! [`Observer`] and [`Event`]: who is told what happened, for timelines, progress and logs.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::bytes::Bytes;
use crate::tier::Tier;

/// Something that happened. Names borrow from the teller: an observer copies what it keeps.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A unit (a managed module's weights) moved from one tier to another.
    Moved {
        /// The unit's name.
        unit: &'a str,
        /// From where.
        from: Tier,
        /// To where.
        to: Tier,
        /// How much.
        bytes: Bytes,
        /// How long it took.
        took: Duration,
    },
    /// A unit began to be used.
    Acquired {
        /// The unit's name.
        unit: &'a str,
        /// How long the user waited for it: zero when it was there.
        waited: Duration,
    },
    /// The last user of a unit let go.
    Released {
        /// The unit's name.
        unit: &'a str,
    },
    /// A pass over all units ended and the next began.
    PassEnded {
        /// How many passes have ended, this one included.
        passes: u64,
        /// Bytes read from files in this pass.
        read: Bytes,
    },
    /// A plan was made or replaced.
    Planned {
        /// Bytes that stay.
        resident: Bytes,
        /// Bytes that stream, per pass.
        streamed: Bytes,
    },
    /// The accounted memory changed.
    Accounted {
        /// Bytes reserved now.
        used: Bytes,
        /// The ceiling.
        limit: Bytes,
    },
    /// Progress of a long piece of work.
    Progress {
        /// What is being done.
        task: &'a str,
        /// How much is done.
        done: u64,
        /// Of how much.
        total: u64,
    },
}

/// Is told of events, on the thread where they happen: it must be quick, must not panic, and must not call back into
/// what it observes.
pub trait Observer: Send + Sync {
    /// Something happened.
    fn on_event(&self, event: &Event<'_>);
}

/// The reference observer: keeps every event as text with its time.
#[derive(Debug)]
pub struct RecordingObserver {
    start: Instant,
    events: Mutex<Vec<(Duration, String)>>,
}

impl Default for RecordingObserver {
    fn default() -> Self {
        Self { start: Instant::now(), events: Mutex::default() }
    }
}

impl RecordingObserver {
    /// The events so far, oldest first, with the time since this observer was made.
    #[must_use]
    pub fn events(&self) -> Vec<(Duration, String)> {
        self.events.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }
}

impl Observer for RecordingObserver {
    fn on_event(&self, event: &Event<'_>) {
        let row = (self.start.elapsed(), format!("{event:?}"));
        self.events.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(row);
    }
}
