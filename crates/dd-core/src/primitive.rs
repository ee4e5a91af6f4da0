//! The lock and the thread-local state of the budget, in one place, so that `--cfg dd_shuttle` can replace them by
//! those of the shuttle model checker, which then tries the interleavings of the threads that share a budget. Its
//! threads are coroutines on one thread of the system: a thread-local of the standard library would be shared by all.

#[cfg(dd_shuttle)]
pub(crate) use shuttle::{
    sync::{Mutex, MutexGuard},
    thread_local,
};
#[cfg(not(dd_shuttle))]
pub(crate) use std::{
    sync::{Mutex, MutexGuard},
    thread_local,
};

/// Locks, taking over from a thread that panicked: every critical section of this crate leaves its data whole.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
