//! Faults put in on purpose, so that tests can show that they would be seen. In a build for use all of it is nothing.
//!
//! The switches are environment variables, since a breach ends the process that has it, so that each test of one is a
//! child process: `DD_PAGER_BREACH` names an invariant that is broken, `DD_PAGER_REFUSE=n` has the kernel refuse every
//! n-th move after a part of it.

pub(crate) use switches::*;

/// An invariant that a test breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Breach {
    /// A unit that a loader is filling is not evicted.
    EvictFilling,
    /// A frame is given to one unit at a time.
    ShareFrame,
    /// A unit is mapped once it is filled, not before.
    MapEarly,
    /// Who waits is woken when the unit is there.
    SkipWake,
    /// What was written is kept before its frame goes to another.
    LoseWritten,
}

#[cfg(not(test))]
mod switches {
    /// Never.
    pub(crate) const fn breached(_: super::Breach) -> bool {
        false
    }

    /// All of it.
    pub(crate) const fn movable(len: usize) -> usize {
        len
    }

    /// Nothing.
    pub(crate) const fn before_fill(_: &mut [u8]) {}

    /// Nothing.
    pub(crate) const fn after_fill(_: usize, _: &[u8]) {}
}

#[cfg(test)]
mod switches {
    use std::collections::HashMap;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{LazyLock, Mutex};

    use crate::sys::PAGE;

    /// What frames hold before they are filled, and what nobody's bytes hold for ever.
    pub(crate) const CANARY: u8 = 0xC5;

    /// Whether this process breaks the invariant.
    pub(crate) fn breached(breach: super::Breach) -> bool {
        static ACTIVE: LazyLock<Option<String>> = LazyLock::new(|| std::env::var("DD_PAGER_BREACH").ok());
        ACTIVE.as_deref().is_some_and(|active| active == format!("{breach:?}"))
    }

    /// How much of a move of `len` bytes the kernel is let do.
    pub(crate) fn movable(len: usize) -> usize {
        static EVERY: LazyLock<usize> = LazyLock::new(|| {
            std::env::var("DD_PAGER_REFUSE").ok().and_then(|every| every.parse().ok()).unwrap_or(0)
        });
        static CALLS: AtomicUsize = AtomicUsize::new(0);
        if *EVERY == 0 {
            return len;
        }
        let call = CALLS.fetch_add(1, Ordering::Relaxed);
        match call % *EVERY {
            0 => call / *EVERY * PAGE % len.max(PAGE),
            _ => len,
        }
    }

    /// Makes sure that what was in a frame before cannot pass for what should be.
    pub(crate) fn before_fill(frame: &mut [u8]) {
        frame.fill(CANARY);
    }

    static SUMS: LazyLock<Mutex<HashMap<usize, u64>>> = LazyLock::new(Mutex::default);

    /// Remembers what the unit at an address was filled with.
    pub(crate) fn after_fill(address: usize, data: &[u8]) {
        SUMS.lock().unwrap().insert(address, xxhash_rust::xxh3::xxh3_64(data));
    }

    /// What comes back at an eviction, if nobody may write to it, is what was filled in.
    pub(crate) fn evicted(address: usize, data: &[u8]) {
        let sum = SUMS.lock().unwrap().get(&address).copied();
        assert!(sum == Some(xxhash_rust::xxh3::xxh3_64(data)), "the unit at {address:#x} came back changed");
    }
}
