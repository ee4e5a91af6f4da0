//! [`Stored`]: the files of a model, as they are or packed; what each tensor is, and the source that fills it.

use std::sync::Arc;

use dd_core::{Budget, Bytes, DType, Holder, TensorDesc};
use dd_offload::checkpoint::{Checkpoint, ShardId};
use dd_offload::io::DirectFile;
use dd_pager::convert::{can_widen, widened};
use dd_pager::packed::{Keep, KeptChunks, PackedCheckpoint, PackedTensor, PackedUse, Speeds};
use dd_pager::{FileSource, Layout, Options, PackedSource, Source, WideningSource};

use super::Result;

const PAGE: u64 = 4096;
/// What measuring a disk may take, at most.
const MEASURING: Bytes = Bytes::mib(16);

/// An open checkpoint of either kind.
pub(super) enum Stored {
    Plain(Checkpoint),
    Packed(PackedCheckpoint),
}

/// One tensor of it.
pub(super) struct Found<'a> {
    /// What it is in memory, but for widening.
    pub(super) desc: &'a TensorDesc,
    pub(super) shard: ShardId,
    place: Place<'a>,
}

enum Place<'a> {
    Plain { offset: u64, len: u64 },
    Packed(&'a PackedTensor),
}

impl Stored {
    pub(super) fn of(checkpoint: Checkpoint) -> Result<Self> {
        Ok(match PackedCheckpoint::is_packed(&checkpoint)? {
            true => Self::Packed(PackedCheckpoint::of(checkpoint)?),
            false => Self::Plain(checkpoint),
        })
    }

    pub(super) const fn checkpoint(&self) -> &Checkpoint {
        match self {
            Self::Plain(checkpoint) => checkpoint,
            Self::Packed(packed) => packed.checkpoint(),
        }
    }

    pub(super) fn get(&self, name: &str) -> Option<Found<'_>> {
        Some(match self {
            Self::Plain(checkpoint) => {
                let found = checkpoint.get(name)?;
                let place = Place::Plain { offset: found.offset, len: found.len };
                Found { desc: &found.desc, shard: found.shard, place }
            }
            Self::Packed(packed) => {
                let found = packed.tensors().get(name)?;
                Found { desc: found.desc(), shard: found.shard(), place: Place::Packed(found) }
            }
        })
    }

    fn descs(&self) -> Vec<&TensorDesc> {
        match self {
            Self::Plain(checkpoint) => checkpoint.tensors().map(|(_, found)| &found.desc).collect(),
            Self::Packed(packed) => packed.tensors().values().map(PackedTensor::desc).collect(),
        }
    }

    /// Bytes of all tensors once they are in memory as `wanted`, each in pages of its own; packed ones begin where a
    /// chunk may.
    pub(super) fn bytes_in_memory(&self, wanted: DType) -> Result<Bytes> {
        let mut total = Bytes::ZERO;
        for desc in self.descs() {
            let (stored, raw) = (desc.dtype(), desc.bytes());
            let bytes = if can_widen(stored, wanted) { widened(stored, wanted, raw)? } else { raw };
            let grain = match self {
                Self::Packed(packed) => Bytes::of(packed.chunk()).0.saturating_mul(self.widening()),
                Self::Plain(_) => 0,
            };
            let gap = if bytes.0 > grain { grain } else { 0 };
            let pages = bytes.0.saturating_add(2 * PAGE) / PAGE * PAGE;
            total = Bytes(total.0.saturating_add(pages).saturating_add(gap));
        }
        Ok(total)
    }

    /// How many times its size a chunk can take in memory: any 16-bit float may be asked for as F32.
    fn widening(&self) -> u64 {
        let widens = |desc: &&TensorDesc| matches!(desc.dtype(), DType::BF16 | DType::F16);
        if self.descs().iter().any(widens) { 2 } else { 1 }
    }

    pub(super) fn options(&self, wanted: DType) -> Result<Options> {
        let packed = match self {
            Self::Plain(_) => None,
            Self::Packed(packed) => Some(PackedUse::of(packed, Bytes(self.widening()).to_usize()?)?),
        };
        Ok(Options { packed, ..Options::new("paged weights", self.bytes_in_memory(wanted)?) })
    }

    /// Measures what a plan for packed weights needs to know, where one is to be made: within the budget, before the
    /// frames take all of it.
    pub(super) fn measure(&self, options: &mut Options, wanted: DType, budget: &Budget) -> Result<()> {
        let (Self::Packed(packed), Some(using)) = (self, &mut options.packed) else { return Ok(()) };
        let fits = options.expected <= options.memory.unwrap_or(Bytes::MAX).min(budget.available());
        if using.keep != Keep::Measured || using.speeds.is_some() || fits {
            return Ok(());
        }
        // A decoder with its planes, eight chunks as they are stored and in memory; then the disk, with blocks of its own.
        let decoding = Bytes::of(packed.chunk().saturating_mul(28));
        let blocks = MEASURING.min(budget.available().saturating_sub(decoding));
        if let Ok(_held) = budget.try_reserve(decoding + blocks, &Holder::new("measuring speeds")) {
            using.speeds = Speeds::measure(packed, Some(wanted), blocks)?;
        }
        Ok(())
    }

    /// The least memory that paging takes.
    pub(super) fn least(&self) -> Result<Bytes> {
        Ok(match self {
            Self::Plain(_) => Layout::least(),
            Self::Packed(packed) => {
                let using = PackedUse::of(packed, Bytes(self.widening()).to_usize()?)?;
                Layout::least_for(Some(using.decoding))
            }
        })
    }
}

impl Found<'_> {
    /// How far into a page the tensor begins, and what fills it with values of `wanted`, of `size` bytes each.
    pub(super) fn source(
        &self,
        file: &Arc<DirectFile>,
        name: &str,
        (wanted, size): (DType, usize),
        kept: Option<Arc<KeptChunks>>,
    ) -> Result<(u16, Arc<dyn Source>)> {
        let file = Arc::clone(file);
        let stored = self.desc.dtype();
        Ok(match self.place {
            Place::Packed(tensor) => (0, Arc::new(PackedSource::new(file, tensor.clone(), wanted, kept)?)),
            Place::Plain { offset, len } if stored == wanted && offset.is_multiple_of(Bytes::of(size).0) => {
                (FileSource::head_of(offset), Arc::new(FileSource::new(file, name, offset, len)?))
            }
            Place::Plain { offset, len } => {
                (0, Arc::new(WideningSource::new(file, name, (offset, len), (stored, wanted))?))
            }
        })
    }
}
