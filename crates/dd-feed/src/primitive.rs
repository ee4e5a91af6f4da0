//! The lock and the condition on which threads wait for windows, in one place, so that `--cfg dd_shuttle` can replace them by those of the
//! shuttle model checker, which then tries the interleavings. Everything else between threads is a channel.

#[cfg(dd_shuttle)]
pub(crate) use shuttle::sync::{Condvar, Mutex, MutexGuard};
#[cfg(not(dd_shuttle))]
pub(crate) use std::sync::{Condvar, Mutex, MutexGuard};
