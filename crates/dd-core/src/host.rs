//! [`HostBackend`]: the reference backend. Its tensors are plain bytes in host memory, and its tiers, devices
//! included, are simulated: each has a capacity that is really kept, so that what must happen when a device is full
//! can be tested anywhere.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::backend::{Backend, check_range, unsupported_dtype};
use crate::budget::{Budget, Holder, Reservation};
use crate::bytes::Bytes;
use crate::desc::TensorDesc;
use crate::error::{Error, Result};
use crate::memory::{MemorySample, unsupported};
use crate::tier::Tier;

mod linalg;

/// A tensor of [`HostBackend`]: a description, and bytes that clones share.
#[derive(Clone, Debug)]
pub struct HostTensor {
    desc: TensorDesc,
    tier: Tier,
    storage: Arc<Storage>,
}

#[derive(Debug)]
struct Storage {
    bytes: Box<[u8]>,
    _room: Option<Reservation>,
}

impl HostTensor {
    /// The dense row-major bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.storage.bytes
    }

    /// Shape and dtype.
    #[must_use]
    pub const fn desc(&self) -> &TensorDesc {
        &self.desc
    }
}

/// The reference backend. See the [module](self).
#[derive(Clone, Debug)]
pub struct HostBackend {
    tiers: Vec<Tier>,
    capacity: BTreeMap<Tier, Budget>,
    holder: Holder,
}

impl Default for HostBackend {
    /// Host memory alone, without a limit.
    fn default() -> Self {
        Self::with_tiers([(Tier::Host, Bytes::MAX)])
    }
}

impl HostBackend {
    /// A backend with these tiers, each of a simulated capacity.
    ///
    /// ```
    /// use dd_core::{Backend, Bytes, DType, HostBackend, TensorDesc, Tier};
    ///
    /// let backend = HostBackend::with_tiers([(Tier::Device(0), Bytes::kib(1)), (Tier::Host, Bytes::MAX)]);
    /// let desc = TensorDesc::new([1024], DType::F32)?;
    /// assert!(backend.allocate(&desc, Tier::Device(0)).unwrap_err().is_out_of_memory());
    /// assert!(backend.allocate(&desc, Tier::Host).is_ok());
    /// # Ok::<(), dd_core::Error>(())
    /// ```
    #[must_use]
    pub fn with_tiers(tiers: impl IntoIterator<Item = (Tier, Bytes)>) -> Self {
        let named = |(tier, bytes): (Tier, Bytes)| (tier, Budget::new(&tier.to_string(), bytes));
        let capacity: BTreeMap<_, _> = tiers.into_iter().map(named).collect();
        Self { tiers: capacity.keys().copied().collect(), capacity, holder: Holder::new("tensors") }
    }

    /// The budget that stands for a tier's capacity: its usage tells what the tensors there take, and at most took.
    #[must_use]
    pub fn capacity(&self, tier: Tier) -> Option<&Budget> {
        self.capacity.get(&tier)
    }

    fn tier(&self, tier: Tier) -> Result<&Budget> {
        self.capacity.get(&tier).ok_or_else(|| unsupported("host", tier, &self.tiers))
    }

    fn tensor(&self, desc: TensorDesc, bytes: Vec<u8>, tier: Tier) -> Result<HostTensor> {
        let room = self.tier(tier)?.reserve(desc.bytes(), &self.holder)?;
        let storage = Storage { bytes: bytes.into_boxed_slice(), _room: Some(room) };
        Ok(HostTensor { desc, tier, storage: Arc::new(storage) })
    }
}

impl Backend for HostBackend {
    type Tensor = HostTensor;

    fn name(&self) -> &str {
        "host"
    }

    fn tiers(&self) -> &[Tier] {
        &self.tiers
    }

    fn describe(&self, tensor: &HostTensor) -> Result<TensorDesc> {
        Ok(tensor.desc.clone())
    }

    fn tier_of(&self, tensor: &HostTensor) -> Tier {
        tensor.tier
    }

    fn allocate(&self, desc: &TensorDesc, tier: Tier) -> Result<HostTensor> {
        let room = self.tier(tier)?.reserve(desc.bytes(), &self.holder)?;
        let len = desc.len_in_memory()?;
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(len).map_err(|_| no_room(desc, tier))?;
        bytes.resize(len, 0);
        let storage = Storage { bytes: bytes.into_boxed_slice(), _room: Some(room) };
        Ok(HostTensor { desc: desc.clone(), tier, storage: Arc::new(storage) })
    }

    fn write(&self, tensor: &mut HostTensor, offset: usize, bytes: &[u8]) -> Result<()> {
        let range = check_range(offset, bytes.len(), tensor.storage.bytes.len())?;
        let storage = Arc::get_mut(&mut tensor.storage).ok_or_else(shared)?;
        if let Some(target) = storage.bytes.get_mut(range) {
            target.copy_from_slice(bytes);
        }
        Ok(())
    }

    fn read(&self, tensor: &HostTensor, offset: usize, out: &mut [u8]) -> Result<()> {
        let range = check_range(offset, out.len(), tensor.storage.bytes.len())?;
        if let Some(source) = tensor.storage.bytes.get(range) {
            out.copy_from_slice(source);
        }
        Ok(())
    }

    fn fill(&self, tensor: &mut HostTensor, fill: &mut dyn FnMut(&mut [u8])) -> Result<bool> {
        let storage = Arc::get_mut(&mut tensor.storage).ok_or_else(shared)?;
        fill(&mut storage.bytes);
        Ok(true)
    }

    fn share(&self, tensor: &HostTensor) -> HostTensor {
        tensor.clone()
    }

    fn is_unique(&self, tensor: &mut HostTensor) -> bool {
        Arc::get_mut(&mut tensor.storage).is_some()
    }

    fn memory(&self, tier: Tier) -> Result<MemorySample> {
        let usage = self.tier(tier)?.usage();
        let available = usage.limit.saturating_sub(usage.used);
        Ok(MemorySample { total: usage.limit, used: usage.used, available })
    }
}

/// The error for storage that may not be changed.
fn shared() -> Error {
    Error::InvalidArgument {
        argument: "tensor",
        reason: "its storage is shared with another handle; write to a tensor of its own".to_owned(),
    }
}

/// The error for a tensor for which the machine has no memory, whatever the simulated capacity.
fn no_room(desc: &TensorDesc, tier: Tier) -> Error {
    Error::OutOfMemory { place: tier.to_string(), needed: desc.bytes(), available: Bytes::ZERO }
}
