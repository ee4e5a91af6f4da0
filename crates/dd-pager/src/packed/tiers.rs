//! [`Tiers`]: how memory is shared between weights as they are used and weights as they are stored.
//!
//! A byte of memory can hold a byte of unpacked weights, which then need nothing at all, or a byte of packed ones, which
//! stand for more weights but are decoded in every pass. With frames of F bytes, of which `passing` serve what streams,
//! `resident = F - passing` bytes of weights stay and the rest streams; of its packed bytes, `memory - F` are kept and
//! the others are read. A pass takes as long as the slowest of three that run side by side: reading, decoding, computing.
//!
//! Reading grows with F (a frame holds less than its packed form would), decoding shrinks. So the best F is at an end of
//! the range, where the two lines cross, or where they bend; [`Tiers::choose`] tries these few.

use std::time::Duration;

use dd_core::{Bytes, DType};
use dd_offload::io::bandwidth::measure_direct;
use dd_offload::io::{Calibration, CalibrationLimits, DirectFile, Geometry};

use super::open::PackedCheckpoint;
use crate::convert::can_widen;
use crate::error::Result;
use crate::scratch::Decoding;

/// How much of the memory keeps packed bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Keep {
    /// What the measured speeds say is best; nothing where they are not known.
    Measured,
    /// So much, as far as there is that much to keep and the least frames leave room. [`Bytes::MAX`]: all that can be.
    AtMost(Bytes),
}

/// Packed weights, as [`Options`](crate::Options) need to know them.
#[derive(Clone, Debug)]
pub struct PackedUse {
    /// What the loaders need to decode.
    pub decoding: Decoding,
    /// What all of the weights take as they are stored.
    pub packed: Bytes,
    /// How much is kept as it is stored.
    pub keep: Keep,
    /// What this machine does, where it was measured.
    pub speeds: Option<Speeds>,
}

impl PackedUse {
    /// For the tensors of a packed checkpoint, which fill memory of `widening` times their own size at most.
    ///
    /// # Errors
    /// As [`Decoding::new`].
    pub fn of(checkpoint: &PackedCheckpoint, widening: usize) -> Result<Self> {
        let stored = checkpoint.tensors().values().map(|tensor| tensor.stored_bytes().0);
        let packed = Bytes(stored.fold(0, u64::saturating_add));
        let decoding = Decoding::new(checkpoint.chunk(), widening)?;
        Ok(Self { decoding, packed, keep: Keep::Measured, speeds: None })
    }
}

/// What a machine does in a second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Speeds {
    /// Bytes that the disk gives.
    pub disk: f64,
    /// Bytes of memory that one core decodes.
    pub decode: f64,
    /// Cores that decode, as far as there are loaders for them.
    pub cores: usize,
    /// Seconds that the computation of a pass takes when all weights are in memory, where that is known.
    pub compute: Option<f64>,
}

/// What is read to measure a disk that nothing is remembered of and whose file is too short to calibrate with.
const SAMPLE: Bytes = Bytes::mib(8);

impl Speeds {
    /// Decodes some chunks, and asks what is remembered of the disk or measures it shortly; nothing where there is
    /// nothing packed that fills `to` or the disk cannot be measured. `memory` is what the measurement may take.
    ///
    /// # Errors
    /// What is wrong with the files.
    pub fn measure(checkpoint: &PackedCheckpoint, to: Option<DType>, memory: Bytes) -> Result<Option<Self>> {
        let Some(raw) = checkpoint.decode_speed(to)? else { return Ok(None) };
        let packed = checkpoint.tensors().values().filter(|tensor| tensor.is_packed());
        let fills = packed.filter(|tensor| to.is_none_or(|to| can_widen(tensor.desc().dtype(), to)));
        let widest = fills.max_by_key(|tensor| tensor.raw_bytes()).map(|tensor| tensor.desc().dtype());
        let widening = match (widest, to) {
            (Some(DType::BF16 | DType::F16), Some(DType::F32)) => 2.0,
            _ => 1.0,
        };
        let Some(disk) = disk(checkpoint, memory)? else { return Ok(None) };
        // One computes, at least.
        let cores =
            std::thread::available_parallelism().map_or(1, |cores| cores.get().saturating_sub(1).max(1));
        Ok(Some(Self { disk, decode: raw * widening, cores, compute: None }))
    }
}

/// Bytes per second of the disk under the largest file.
fn disk(checkpoint: &PackedCheckpoint, memory: Bytes) -> Result<Option<f64>> {
    let shards = checkpoint.checkpoint().shards();
    let Some(shard) = shards.iter().max_by_key(|shard| shard.identity().size) else { return Ok(None) };
    let file = DirectFile::from_file(shard.file(), shard.path())?;
    let limits = CalibrationLimits::default();
    let limits = CalibrationLimits { memory: limits.memory.min(memory), time: Duration::from_millis(200) };
    let found = Calibration::load_or_run(&file, limits);
    if found.measured {
        return Ok(Some(found.bandwidth_bytes_per_sec as f64));
    }
    let geometry = Geometry { block: 256 << 10, depth: 2 };
    if !file.is_direct() || geometry.memory() > memory {
        return Ok(None);
    }
    Ok(Some(measure_direct(&file, SAMPLE, geometry)?))
}

/// What is to be shared, and between what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Problem {
    /// For everything.
    pub memory: Bytes,
    /// The weights as they are used.
    pub in_memory: Bytes,
    /// The weights as they are stored.
    pub packed: Bytes,
    /// The least that frames and scratch can be given.
    pub least: Bytes,
    /// What of frames and scratch holds nothing that stays.
    pub passing: Bytes,
}

/// How memory is shared, and what that should give.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tiers {
    /// For frames and scratch.
    pub frames: Bytes,
    /// For packed bytes that are kept.
    pub kept: Bytes,
    /// Weights that stay as they are used.
    pub resident: Bytes,
    /// Weights that are decoded in every pass.
    pub decoded: Bytes,
    /// Packed bytes that are read in every pass.
    pub read: Bytes,
    /// How long a pass should take.
    pub seconds: f64,
}

impl Tiers {
    /// What `frames` bytes of frames and scratch would give. What a problem leaves of memory beside them is kept, as far
    /// as something streams.
    #[must_use]
    pub fn at(frames: Bytes, problem: &Problem, speeds: &Speeds) -> Self {
        let rest = problem.memory.saturating_sub(frames);
        Self::keeping(frames, rest, problem, speeds)
    }

    /// What it gives where at most `kept` bytes are kept.
    #[must_use]
    pub fn keeping(frames: Bytes, kept: Bytes, problem: &Problem, speeds: &Speeds) -> Self {
        let resident = frames.saturating_sub(problem.passing).min(problem.in_memory);
        let decoded = problem.in_memory.saturating_sub(resident);
        let streamed = problem.stored(decoded);
        let kept = if decoded == Bytes::ZERO { Bytes::ZERO } else { kept.min(problem.packed) };
        let read = streamed.saturating_sub(kept);
        let reading = read.0 as f64 / speeds.disk.max(f64::MIN_POSITIVE);
        let decoding = decoded.0 as f64 / (speeds.decode * speeds.cores.max(1) as f64).max(f64::MIN_POSITIVE);
        let seconds = reading.max(decoding).max(speeds.compute.unwrap_or(0.0));
        Self { frames, kept, resident, decoded, read, seconds }
    }

    /// The shares with the shortest pass; of equals, the one that reads least, then the one that decodes least.
    #[must_use]
    pub fn choose(problem: &Problem, speeds: &Speeds) -> Self {
        let (least, most) = (problem.least.min(problem.memory), problem.memory);
        let (whole, passing) = (problem.in_memory.0 as f64, problem.passing.0 as f64);
        let ratio = problem.packed.0 as f64 / whole.max(1.0);
        let (disk, decode) = (speeds.disk, speeds.decode * speeds.cores.max(1) as f64);
        // With all weights that stay counted: read = (1 - ratio) F + ratio (whole + passing) - memory.
        let (slope, base) = (1.0 - ratio, ratio * (whole + passing) - most.0 as f64);
        let unread = -base / slope; // Up to here nothing is read.
        let compute = speeds.compute.unwrap_or(0.0);
        let crossing = ((whole + passing) / decode - base / disk) / (slope / disk + 1.0 / decode);
        let computed = whole + passing - compute * decode; // From here on decoding keeps up with computing.
        let bends = [unread, crossing, computed, whole + passing, passing];
        let inside = bends.into_iter().filter(|bytes| bytes.is_finite() && *bytes > 0.0);
        let inside =
            inside.flat_map(|bytes| [bytes.floor(), bytes.ceil()]).map(|bytes| Bytes(1).scaled(bytes));
        let tried = inside.chain([least, most]).map(|frames| frames.clamp(least, most));
        let tried = tried.map(|frames| Self::at(frames, problem, speeds));
        let order = |one: &Self, other: &Self| {
            let seconds = one.seconds.total_cmp(&other.seconds);
            seconds.then(one.read.cmp(&other.read)).then(one.decoded.cmp(&other.decoded))
        };
        tried.min_by(order).unwrap_or_else(|| Self::at(most, problem, speeds))
    }
}

impl Problem {
    /// What so many bytes of weights take as they are stored.
    #[must_use]
    pub fn stored(&self, weights: Bytes) -> Bytes {
        let exact = u128::from(weights.0) * u128::from(self.packed.0);
        let stored = exact.div_ceil(u128::from(self.in_memory.0.max(1)));
        Bytes(u64::try_from(stored).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn problem(memory: u64, in_memory: u64, packed: u64, least: u64, passing: u64) -> Problem {
        let [memory, in_memory, packed, least, passing] =
            [memory, in_memory, packed, least, passing].map(Bytes::mib);
        Problem { memory, in_memory, packed, least, passing }
    }

    #[test]
    fn the_slower_side_decides() {
        let speeds = |disk: f64, decode: f64| Speeds {
            disk: disk * 1e9,
            decode: decode * 1e9,
            cores: 2,
            compute: None,
        };
        let computing = |speeds: Speeds| Speeds { compute: Some(5.0), ..speeds };
        // 2.8 GB in memory from 1.9 GB packed, within 2 GB.
        let split = problem(2000, 2800, 1867, 40, 40);
        let rows = [
            (split, speeds(100.0, 2.6), "frames"), // A disk far faster than the decoder: all memory for frames.
            (split, speeds(1.0, 1.3), "both"),
            (split, computing(speeds(2.2, 1.3)), "kept"), // Computing takes longest: then the disk is left alone.
            (problem(4000, 2800, 1867, 40, 40), speeds(2.2, 2.6), "all"),
        ];
        for (problem, speeds, expected) in rows {
            let found = Tiers::choose(&problem, &speeds);
            let kind = match (found.read, found.kept) {
                (_, Bytes::ZERO) if found.decoded == Bytes::ZERO => "all",
                (_, Bytes::ZERO) => "frames",
                (Bytes::ZERO, _) => "kept",
                _ => "both",
            };
            assert_eq!(kind, expected, "{problem:?} {speeds:?}: {found:?}");
            if kind == "both" {
                let (reading, decoding) = (found.read.0 as f64 / 1e9, found.decoded.0 as f64 / 2.6e9);
                assert!(
                    (reading - decoding).abs() < 1e-6,
                    "{reading} s of reading, {decoding} s of decoding"
                );
            }
            assert!(found.frames.0 + found.kept.0 <= problem.memory.0);
        }
    }

    proptest! {
        #[test]
        fn no_other_share_is_faster(
            (memory, in_memory, percent) in (64u64..8000, 1u64..20_000, 20u64..110),
            (least, passing) in (1u64..64, 0u64..200),
            (disk, decode, compute) in (0.01f64..20.0, 0.1f64..10.0, proptest::option::of(0.0f64..5.0)),
            cores in 1usize..17,
        ) {
            let packed = (in_memory * percent / 100).max(1);
            let problem = problem(memory, in_memory, packed, least, passing);
            let speeds = Speeds { disk: disk * 1e9, decode: decode * 1e9, cores, compute };
            let found = Tiers::choose(&problem, &speeds);
            prop_assert!(found.frames >= problem.least && found.frames.0 + found.kept.0 <= problem.memory.0);
            prop_assert!(found.kept <= problem.packed);
            for step in 0..=500u64 {
                let frames = Bytes(problem.least.0 + (problem.memory.0 - problem.least.0) / 500 * step);
                let other = Tiers::at(frames, &problem, &speeds);
                prop_assert!(found.seconds <= other.seconds * (1.0 + 1e-6) + 1e-6, "{found:?} {other:?}");
            }
        }
    }
}
