//! [`Layout`]: how a budget is cut into frames.

use dd_core::Bytes;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::scratch::{Decoding, Scratch};
use crate::sys::{HUGE, PAGE};

/// The smallest unit: four pages.
const SMALLEST: usize = 4 * PAGE;
/// With fewer frames than this, threads that each need a few at once would mostly take them from each other.
const FEWEST_FRAMES: usize = 24;
/// As many frames are wanted before they are made larger: fewer, and what is read ahead is too large a part of them.
const WANTED_FRAMES: usize = 64;
/// Loaders of a large layout: with two units of 2 MiB in flight a disk was not always busy, with four it was.
const MOST_LOADERS: usize = 4;
/// What is read ahead once the order is known, beside the rest of the group in use.
const AHEAD: usize = 32 << 20;

/// How memory is cut: a *unit* is what is read, moved and evicted at once, a *frame* is the memory of one unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// Bytes of a unit, a power of two of at least 16 KiB and at most 2 MiB.
    pub unit: usize,
    /// How many units can be in memory.
    pub frames: usize,
    /// Threads that fill them.
    pub loaders: usize,
    /// What each of them needs to decode, where ranges are packed.
    pub decoding: Option<Decoding>,
}

impl Layout {
    /// The least memory that paging anything takes.
    #[must_use]
    pub fn least() -> Bytes {
        Self::least_for(None)
    }

    /// The least memory that paging anything takes, where loaders decode.
    #[must_use]
    pub fn least_for(decoding: Option<Decoding>) -> Bytes {
        Self { unit: SMALLEST, frames: FEWEST_FRAMES, loaders: 1, decoding }.memory()
    }

    /// The least memory in which packed ranges are paged without decoding any chunk more than once: units as large as
    /// chunks, one loader.
    pub(crate) fn comfortable(decoding: Decoding) -> Bytes {
        let unit = decoding.filled().clamp(SMALLEST, HUGE);
        Self { unit, frames: FEWEST_FRAMES, loaders: 1, decoding: Some(decoding) }.memory()
    }

    /// The layout for so much memory, of which `expected` bytes at most are of use.
    ///
    /// # Errors
    /// [`Error::TooSmall`] below [`least`](Self::least), with `what` in its message.
    pub fn within(memory: Bytes, expected: Bytes, what: &str) -> Result<Self> {
        Self::decoding_within(memory, expected, what, None)
    }

    /// As [`within`](Self::within), where loaders decode.
    ///
    /// # Errors
    /// [`Error::TooSmall`] below [`least_for`](Self::least_for).
    pub fn decoding_within(
        memory: Bytes,
        expected: Bytes,
        what: &str,
        decoding: Option<Decoding>,
    ) -> Result<Self> {
        // A single frame's worth of everything is still needed where there is hardly anything to page.
        let units = |unit: usize| {
            // Units of small ranges, and what is left over where one of those comes between large ranges.
            let all = expected.0.div_ceil(unit as u64).saturating_add(4);
            usize::try_from(all).unwrap_or(usize::MAX).max(FEWEST_FRAMES)
        };
        let layouts = std::iter::successors(Some(HUGE), |unit| (*unit > SMALLEST).then_some(unit / 2));
        let fitting = layouts.flat_map(|unit| (1..=MOST_LOADERS).rev().map(move |loaders| (unit, loaders)));
        let (mut last, mut decodes_once): (Option<Self>, Option<Self>) = (None, None);
        for (unit, loaders) in fitting {
            let beside = Self { unit, frames: 0, loaders, decoding }.memory();
            let frames = usize::try_from(memory.saturating_sub(beside).0 / unit as u64).unwrap_or(usize::MAX);
            if frames < FEWEST_FRAMES {
                continue;
            }
            let layout = Self { unit, frames: frames.min(units(unit)), loaders, decoding };
            // A decoder and its chunks weigh more than a buffer, and are what keeps the cores busy.
            let scratch_is_small = beside.0 <= memory.0 / if decoding.is_some() { 8 } else { 16 };
            // Smaller units than chunks decode each chunk several times, and few loaders decode on few cores.
            let is_whole = decoding.is_none_or(|decoding| unit >= decoding.filled().min(HUGE));
            let is_quick = decoding.is_none() || is_whole && loaders == MOST_LOADERS;
            if frames >= units(unit).min(WANTED_FRAMES) && scratch_is_small && is_quick {
                return Ok(layout);
            }
            // Of the units that will do, the smallest, with most loaders.
            if decoding.is_some() && is_whole && decodes_once.is_none_or(|other| unit < other.unit) {
                decodes_once = Some(layout);
            }
            last = Some(layout);
        }
        decodes_once.or(last).ok_or_else(|| Error::TooSmall {
            what: what.to_owned(),
            least: Self::least_for(decoding),
            available: memory,
        })
    }

    /// What it takes: frames and the loaders' scratch. A frame more than they hold is what a kernel that cannot move pages
    /// needs while it copies one.
    #[must_use]
    pub fn memory(&self) -> Bytes {
        let frames = self.frames.saturating_add(1).saturating_mul(self.unit);
        let scratch = Scratch::memory(self.unit, self.decoding).0.saturating_mul(self.loaders as u64);
        Bytes(Bytes::of(frames).0.saturating_add(scratch))
    }

    /// The most units of one group: a slice of a large tensor.
    pub(crate) const fn group(&self) -> usize {
        let group = self.frames / 16;
        if group == 0 { 1 } else { group }
    }

    /// Units that are kept free for what passes through, where `units` are used in a pass.
    pub(crate) fn staging(&self, units: usize) -> usize {
        if units <= self.frames {
            return 0;
        }
        let streamed = units - self.frames;
        // Of the group in use only the streamed part passes through.
        let group = self.group().saturating_mul(streamed).div_ceil(units) + 1;
        let ahead = (AHEAD / self.unit).min(self.frames / 8).max(2 * self.loaders);
        // Where hardly anything can stay, what could is of more use to decode ahead.
        let wide = if self.decoding.is_some() && units / 4 >= self.frames { self.frames * 2 / 3 } else { 0 };
        (group + ahead).max(self.loaders + 6).max(wide).min(self.frames * 3 / 4)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Nothing to decode, or chunks of so many KiB that fill twice as much.
    fn decoding(chunk: usize) -> Option<Decoding> {
        (chunk > 0).then(|| Decoding::new(chunk << 10, 2).unwrap())
    }

    proptest! {
        #[test]
        fn fits_or_says_what_would(memory in 0u64..1 << 34, expected in 0u64..1 << 36, chunk in 0u32..3) {
            let memory = if chunk == 1 { memory >> 8 } else { memory };
            let decoding = decoding([0, 16, 256][chunk as usize]);
            match Layout::decoding_within(Bytes(memory), Bytes(expected), "weights", decoding) {
                Ok(layout) => {
                    prop_assert!(layout.memory().0 <= memory || layout.frames == FEWEST_FRAMES);
                    prop_assert!(layout.memory().0 <= memory);
                    prop_assert!(layout.frames >= FEWEST_FRAMES && layout.loaders >= 1);
                    prop_assert!(layout.unit.is_power_of_two());
                    for units in [0, 1, layout.frames, layout.frames + 1, layout.frames * 9] {
                        prop_assert!(layout.staging(units) < layout.frames);
                    }
                }
                Err(Error::TooSmall { least, .. }) => {
                    prop_assert!(memory < least.0);
                    prop_assert!(Layout::decoding_within(least, Bytes(expected), "weights", decoding).is_ok());
                }
                Err(other) => prop_assert!(false, "{other}"),
            }
        }
    }

    #[test]
    fn units_hold_whole_chunks_where_that_fits() {
        let decoding = decoding(256);
        let least = Layout::least_for(decoding);
        let comfortable = Layout::comfortable(decoding.unwrap());
        let rows = [(least, 16 << 10, 1), (comfortable, 512 << 10, 1), (Bytes::gib(1), 2 << 20, 4)];
        for (memory, unit, loaders) in rows {
            let layout = Layout::decoding_within(memory, Bytes::gib(64), "weights", decoding).unwrap();
            assert_eq!((layout.unit, layout.loaders), (unit, loaders), "{memory}");
            assert!(layout.memory() <= memory);
        }
    }

    #[test]
    fn grows_with_the_memory() {
        let rows = [
            (Layout::least(), 16 << 10, 1),
            (Bytes::mib(2), 16 << 10, 4),
            (Bytes::mib(32), 256 << 10, 4),
            (Bytes::gib(2), 2 << 20, 4),
        ];
        for (memory, unit, loaders) in rows {
            let layout = Layout::within(memory, Bytes::gib(64), "weights").unwrap();
            assert_eq!((layout.unit, layout.loaders), (unit, loaders), "{memory}");
        }
    }
}
