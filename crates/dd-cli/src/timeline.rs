//! [`Sampler`]: accounted and resident memory over time, from a thread of its own.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use deep_dimensions::core::{Budget, Bytes};
use serde::{Deserialize, Serialize};

use crate::process;

/// One moment.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Moment {
    /// Since sampling began.
    pub seconds: f64,
    /// What the budget counts.
    pub accounted: Bytes,
    /// What the kernel counts, where it says.
    pub resident: Option<Bytes>,
}

/// The most moments that are kept; when they are full, every second one goes and the interval doubles.
const MOST: usize = 2048;
const FIRST_INTERVAL: Duration = Duration::from_millis(2);

/// Samples until it is stopped.
#[derive(Debug)]
pub struct Sampler {
    stop: Sender<()>,
    budget: Arc<OnceLock<Budget>>,
    thread: Option<JoinHandle<Vec<Moment>>>,
}

impl Sampler {
    /// Starts sampling this process; what is accounted is zero until there is a budget to [`watch`](Self::watch).
    #[must_use]
    pub fn start() -> Self {
        let (stop, stopped) = channel();
        let watched = Arc::new(OnceLock::<Budget>::new());
        let budget = Arc::clone(&watched);
        let run = move || {
            let began = Instant::now();
            let mut interval = FIRST_INTERVAL;
            let mut moments = vec![moment(&budget, began)];
            while matches!(stopped.recv_timeout(interval), Err(RecvTimeoutError::Timeout)) {
                moments.push(moment(&budget, began));
                if moments.len() >= MOST {
                    thin(&mut moments);
                    interval *= 2;
                }
            }
            moments.push(moment(&budget, began));
            moments
        };
        let thread = std::thread::Builder::new().name("timeline".to_owned()).stack_size(256 << 10).spawn(run);
        Self { stop, budget: watched, thread: thread.ok() }
    }

    /// From now on, this budget is what is accounted. Only the first call counts.
    pub fn watch(&self, budget: &Budget) {
        if self.budget.set(budget.clone()).is_err() {
            tracing::debug!("the timeline watches another budget already");
        }
    }

    /// Stops, and gives the moments, oldest first; none where no thread could be started.
    #[must_use]
    pub fn stop(mut self) -> Vec<Moment> {
        drop(self.stop);
        self.thread.take().and_then(|thread| thread.join().ok()).unwrap_or_default()
    }
}

fn moment(budget: &OnceLock<Budget>, began: Instant) -> Moment {
    let resident = process::sample().resident;
    let accounted = budget.get().map_or(Bytes::ZERO, |budget| budget.usage().used);
    Moment { seconds: began.elapsed().as_secs_f64(), accounted, resident }
}

/// Drops every second moment.
fn thin(moments: &mut Vec<Moment>) {
    let mut keep = false;
    moments.retain(|_| {
        keep = !keep;
        keep
    });
}

#[cfg(test)]
mod tests {
    use deep_dimensions::core::Holder;

    use super::*;

    #[test]
    fn what_was_reserved_is_seen() {
        let budget = Budget::new("test", Bytes::mib(1));
        let sampler = Sampler::start();
        sampler.watch(&budget);
        let room = budget.reserve(Bytes::kib(64), &Holder::new("x")).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        let moments = sampler.stop(); // The last moment is taken before this returns, with `room` still held.
        drop(room);
        assert!(moments.is_sorted_by(|a, b| a.seconds <= b.seconds));
        assert_eq!(moments.last().unwrap().accounted, Bytes::kib(64));
    }

    #[test]
    fn thinning_keeps_the_first_and_halves() {
        let at = |n: u32| Moment { seconds: f64::from(n), accounted: Bytes::ZERO, resident: None };
        let mut moments: Vec<Moment> = (0..7).map(at).collect();
        thin(&mut moments);
        assert_eq!(moments, [at(0), at(2), at(4), at(6)]);
    }
}
