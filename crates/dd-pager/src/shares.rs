//! [`Shares`]: how the memory of packed ranges is shared between frames and packed bytes that are kept.

use std::sync::Arc;

use dd_core::{Budget, Bytes, Holder};

use crate::error::Result;
use crate::layout::Layout;
use crate::memory::Options;
use crate::packed::{Keep, KeptChunks, PackedUse, Problem, Speeds, Tiers};

/// What was decided before any memory is taken.
pub(crate) struct Shares {
    pub(crate) layout: Layout,
    kept: Bytes,
    /// Packed bytes of what streams, and of all.
    packed: (Bytes, Bytes),
    /// What that should give, where speeds are known.
    pub(crate) tiers: Option<Tiers>,
}

impl Shares {
    /// Shares `memory`, all of which may be used.
    pub(crate) fn of(memory: Bytes, options: &Options) -> Result<Self> {
        let Some(packed) = &options.packed else {
            let layout = Layout::within(memory, options.expected, &options.name)?;
            return Ok(Self { layout, kept: Bytes::ZERO, packed: (Bytes::ZERO, Bytes::ZERO), tiers: None });
        };
        let sharing = Sharing { memory, options, packed };
        let kept = sharing.kept()?;
        let layout = sharing.layout(kept)?;
        let problem = sharing.problem(&layout, Layout::least_for(layout.decoding));
        let stays = layout.memory().saturating_sub(problem.passing);
        let streamed = problem.stored(options.expected.saturating_sub(stays));
        let model = |speeds| Tiers::keeping(layout.memory(), kept, &problem, &decoded_by(speeds, &layout));
        Ok(Self { layout, kept, packed: (streamed, packed.packed), tiers: packed.speeds.map(model) })
    }

    /// Reserves what is kept, if anything is.
    pub(crate) fn keep(&self, budget: &Budget, holder: &Holder) -> Result<Option<Arc<KeptChunks>>> {
        if self.kept == Bytes::ZERO {
            return Ok(None);
        }
        Ok(Some(Arc::new(KeptChunks::new(budget, holder, self.kept, self.packed)?)))
    }
}

struct Sharing<'a> {
    memory: Bytes,
    options: &'a Options,
    packed: &'a PackedUse,
}

impl Sharing<'_> {
    /// How memory is cut where so much of it is kept.
    fn layout(&self, kept: Bytes) -> Result<Layout> {
        let (expected, decoding) = (self.options.expected, Some(self.packed.decoding));
        Layout::decoding_within(self.memory.saturating_sub(kept), expected, &self.options.name, decoding)
    }

    /// What the planner is asked, where frames are cut like this.
    fn problem(&self, layout: &Layout, least: Bytes) -> Problem {
        let units = self.options.expected.0.div_ceil(Bytes::of(layout.unit).0);
        let staging = layout.staging(usize::try_from(units).unwrap_or(usize::MAX));
        let resident = Bytes::of(layout.frames.saturating_sub(staging).saturating_mul(layout.unit));
        Problem {
            memory: self.memory,
            in_memory: self.options.expected,
            packed: self.packed.packed,
            least: least.min(self.memory),
            passing: layout.memory().saturating_sub(resident),
        }
    }

    /// How much is kept packed: nothing where everything can stay as it is used.
    fn kept(&self) -> Result<Bytes> {
        let mut layout = self.layout(Bytes::ZERO)?;
        let decoding = self.packed.decoding;
        let least = Layout::least_for(Some(decoding));
        if self.options.expected <= Bytes::of(layout.frames.saturating_sub(1).saturating_mul(layout.unit)) {
            return Ok(Bytes::ZERO);
        }
        let speeds = match (self.packed.keep, self.packed.speeds) {
            (Keep::AtMost(most), _) => {
                return Ok(most.min(self.packed.packed).min(self.memory.saturating_sub(least)));
            }
            (Keep::Measured, None) => return Ok(Bytes::ZERO),
            (Keep::Measured, Some(speeds)) => speeds,
        };
        let comfortable = Layout::comfortable(decoding).max(least);
        // What passes through depends on the frames, and those on what is kept: the second look settles it.
        let choose = |layout: &Layout| {
            Tiers::choose(&self.problem(layout, comfortable), &decoded_by(speeds, layout)).kept
        };
        layout = self.layout(choose(&layout))?;
        Ok(choose(&layout))
    }
}

/// The speeds with no more decoding cores than loaders.
fn decoded_by(speeds: Speeds, layout: &Layout) -> Speeds {
    Speeds { cores: speeds.cores.min(layout.loaders), ..speeds }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use crate::scratch::Decoding;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn never_more_than_the_memory(
            (memory, expected, percent) in (0u64..4 << 30, 0u64..8 << 30, 20u64..110),
            (chunk, widening, small) in (2usize..15, 1usize..3, any::<bool>()),
            (keep, disk, decode) in (proptest::option::of(0u64..4 << 30), 0.01f64..20.0, 0.1f64..10.0),
        ) {
            let memory = Bytes(if small { memory >> 10 } else { memory });
            let speeds = Speeds { disk: disk * 1e9, decode: decode * 1e9, cores: 3, compute: None };
            let packed = PackedUse {
                decoding: Decoding::new(1 << (chunk + 10), widening).unwrap(),
                packed: Bytes(expected / 100 * percent),
                keep: keep.map_or(Keep::Measured, |most| Keep::AtMost(Bytes(most))),
                speeds: Some(speeds),
            };
            let least = Layout::least_for(Some(packed.decoding));
            let options = Options { packed: Some(packed.clone()), ..Options::new("weights", Bytes(expected)) };
            match Shares::of(memory, &options) {
                Ok(shares) => {
                    prop_assert!(shares.layout.memory().0 + shares.kept.0 <= memory.0);
                    prop_assert!(shares.kept <= packed.packed && memory >= least);
                    prop_assert!(shares.tiers.is_some_and(|tiers| tiers.seconds >= 0.0));
                }
                Err(Error::TooSmall { least: said, .. }) => prop_assert!(said == least && memory < least),
                Err(other) => prop_assert!(false, "{other}"),
            }
        }
    }
}
