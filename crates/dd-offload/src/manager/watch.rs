//! The threshold watch: looks at the tiers' figures at an interval, and makes room before it is missed.
//!
//! The plan keeps what is *ours* within the budget; the thresholds look at what *everybody* takes, as the library
//! (for a device) or the memory provider (for the host) report it. Above the offload threshold the modules that are
//! needed last leave, a batch at a time; above the emergency threshold everything leaves that is not in use, and
//! nothing is read ahead until usage has fallen below the reload threshold.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use dd_core::{Backend, Bytes, Tier};

use super::Inner;
use super::state::Pressure;
use crate::error::Result;

/// The watch thread.
pub(super) fn run<B: Backend>(inner: Arc<Inner<B>>) {
    let interval = inner.config.memory_check_interval().0;
    loop {
        let state = inner.lock();
        if state.stop.is_some() {
            return;
        }
        let (state, _) = inner.halt.wait_timeout(state, interval).unwrap_or_else(PoisonError::into_inner);
        let stopped = state.stop.is_some();
        drop(state);
        if stopped {
            return;
        }
        match catch_unwind(AssertUnwindSafe(|| inner.check_thresholds())) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "a threshold could not act"),
            Err(_) => tracing::error!("the memory provider or the backend panicked"),
        }
    }
}

impl<B: Backend> Inner<B> {
    /// Looks once and acts once.
    pub(super) fn check_thresholds(&self) -> Result<()> {
        if let Tier::Device(_) = self.near {
            self.check_device()?;
        }
        let pressed = self.host_pressed();
        if self.near == Tier::Host {
            self.pause(pressed); // What would leave again at once is not read.
        }
        if pressed {
            let batch = *self.config.offload_batch_size();
            let freed = match self.near {
                Tier::Device(_) => self.demote_host(batch)?,
                _ => self.offload_batch(batch, *self.config.cpu_offload_threshold())?,
            };
            tracing::debug!(%freed, "host memory is above its threshold");
        }
        Ok(())
    }

    fn check_device(&self) -> Result<()> {
        let used = self.used_fraction(self.near);
        if used > *self.config.gpu_emergency_threshold() {
            self.emergency.store(true, Ordering::Relaxed);
            self.pause(true);
            let freed = self.offload_batch(usize::MAX, *self.config.gpu_reload_threshold())?;
            tracing::warn!(used, %freed, "device memory is above its emergency threshold");
        } else if used > *self.config.gpu_offload_threshold() {
            self.pause(true); // What would leave again at once is not read.
            let freed =
                self.offload_batch(*self.config.offload_batch_size(), *self.config.gpu_offload_threshold())?;
            tracing::debug!(used, %freed, "device memory is above its threshold");
        } else if used < *self.config.gpu_reload_threshold() || !self.emergency.load(Ordering::Relaxed) {
            self.emergency.store(false, Ordering::Relaxed);
            self.pause(false);
        }
        Ok(())
    }

    /// Offloads up to `modules` modules, those needed last first, until usage is at `target`.
    fn offload_batch(&self, modules: usize, target: f64) -> Result<Bytes> {
        let mut freed = Bytes::ZERO;
        let mut left = Vec::new();
        while self.used_fraction(self.near) > target {
            let mut state = self.lock();
            state.pool.clear();
            let Some((unit, part)) = state.victim(usize::MAX, Pressure::Demand) else { break };
            if !left.contains(&unit) {
                if left.len() == modules {
                    break;
                }
                left.push(unit);
            }
            state.stale = true;
            let stuck = state.part(unit, part).is_some_and(|part| part.stuck);
            match self.leave(state, (unit, part)) {
                Ok(bytes) => freed += bytes,
                Err(error) if stuck => return Err(error),
                Err(error) => tracing::warn!(%error, "a parameter could not leave"),
            }
        }
        self.lock().pool.clear();
        self.backend.trim(self.near)?;
        Ok(freed)
    }

    /// How full a tier is by the figures of whoever knows it best; 0 where nobody does.
    fn used_fraction(&self, tier: Tier) -> f64 {
        let reported = self.provider.as_ref().filter(|provider| provider.tiers().contains(&tier));
        let sample = match reported {
            Some(provider) => provider.sample(tier),
            None => self.backend.memory(tier),
        };
        sample.map_or(0.0, |sample| sample.used_fraction())
    }

    /// Whether host memory is above its threshold.
    pub(super) fn host_pressed(&self) -> bool {
        self.used_fraction(Tier::Host) > *self.config.cpu_offload_threshold()
    }

    /// Stops reading ahead, or lets it go on.
    fn pause(&self, paused: bool) {
        let mut state = self.lock();
        if state.paused != paused {
            state.paused = paused;
            state.poke();
            drop(state);
            self.work.notify_one();
        }
    }
}
