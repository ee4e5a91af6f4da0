//! [`CandleBackend`]: [`dd_core::Backend`] over [`candle_core::Tensor`].
//!
//! Host storage is made as untouched zeros and filled in place, which is the cheapest way to load there is: no second
//! buffer, and each page is touched once. Device storage is asked of candle; what does not fit is
//! [`Error::OutOfMemory`].
//!
//! To an NVIDIA device bytes go through page-locked host memory, on a stream of their own, so that copies run while the
//! device computes. That memory is host memory like any other, and counts: [`CandleBackend::staging_limit`].

use std::cell::RefCell;
use std::sync::Arc;

use candle_core::backend::{BackendDevice as _, BackendStorage as _};
use candle_core::op::BackpropOp;
use candle_core::{
    CpuStorage, CudaStorage, Device as CandleDevice, DeviceLocation, InplaceOp1, Layout, Storage, Tensor,
};
use dd_core::backend::{check_range, unsupported_dtype};
use dd_core::memory::unsupported;
use dd_core::{Backend, Bytes, DType, Device, Error, MemorySample, Result, TensorDesc, Tier};

use crate::copy::copy;
use crate::dtype::{NAME, from_candle, to_candle};
use crate::error::{Need, convert};
use crate::{cuda, device, storage, unique};

mod linalg;
mod strided;

/// The most page-locked memory that a backend takes unless it is told otherwise.
const STAGING: Bytes = Bytes::mib(12);

/// candle's tensors on one device and in host memory. Clones share the device, its streams and the staging memory.
///
/// ```
/// use dd_candle::CandleBackend;
/// use dd_core::{Backend, DType, Device, TensorDesc, Tier};
///
/// let backend = CandleBackend::new(Device::Cpu)?;
/// let mut weight = backend.allocate(&TensorDesc::new([2, 2], DType::F32)?, Tier::Host)?;
/// backend.write(&mut weight, 4, &1.5f32.to_le_bytes())?;
/// assert_eq!(weight.to_vec2::<f32>()?, [[0.0, 1.5], [0.0, 0.0]]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct CandleBackend {
    device: CandleDevice,
    tiers: Vec<Tier>,
    counts_readable: bool,
    transfer: Arc<cuda::Transfer>,
}

impl CandleBackend {
    /// A backend that computes on `device`. [`Device::Auto`] is an accelerator that this build has been compiled
    /// for and this machine has, else the CPU.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a device that is not there, saying why and what to do.
    pub fn new(device: Device) -> Result<Self> {
        let device = device::open(device)?;
        let tiers = match tier_of_location(device.location()) {
            Tier::Host => vec![Tier::Host],
            near => vec![near, Tier::Host],
        };
        let counts_readable = unique::counts_are_readable();
        if !counts_readable {
            tracing::warn!(
                "this candle does not show who shares storage: no storage will be reused in place"
            );
        }
        let transfer = Arc::new(cuda::Transfer::new(&device, STAGING));
        Ok(Self { device, tiers, counts_readable, transfer })
    }

    /// The same backend with at most `limit` of page-locked host memory (rounded down to what three blocks have, of
    /// at most 16 MiB each). With less than 12 KiB bytes take no way around: they are copied on the stream that
    /// computes, and waited for. Without effect on devices that are not NVIDIA's.
    #[must_use]
    pub fn with_staging_limit(self, limit: Bytes) -> Self {
        let transfer = Arc::new(cuda::Transfer::new(&self.device, limit));
        Self { transfer, ..self }
    }

    /// The most page-locked host memory ([`Tier::PinnedHost`]) that this backend and its clones take, for those who
    /// keep a budget to reserve. It is taken as it is needed, and given back by [`trim`](Backend::trim) of
    /// [`Tier::Host`]. Zero where there is no NVIDIA device.
    #[must_use]
    pub fn staging_limit(&self) -> Bytes {
        Bytes::of(self.transfer.limit())
    }

    /// How much of [`staging_limit`](Self::staging_limit) is taken now.
    #[must_use]
    pub fn staging(&self) -> Bytes {
        Bytes::of(self.transfer.held())
    }

    /// candle's own name for the device: inputs of a model go there.
    #[must_use]
    pub const fn device(&self) -> &CandleDevice {
        &self.device
    }

    /// The candle device of a tier.
    fn place(&self, tier: Tier) -> Result<&CandleDevice> {
        match tier {
            Tier::Host => Ok(&CandleDevice::Cpu),
            tier if self.tiers.contains(&tier) => Ok(&self.device),
            tier => Err(unsupported(NAME, tier, &self.tiers)),
        }
    }

    /// What a refusal of `needed` bytes on a tier would say.
    fn need(&self, tier: Tier, needed: Bytes) -> Need {
        let available = match tier {
            Tier::Host => Bytes::ZERO, // More than the allocator would give; how much it would, it does not tell.
            near => self.memory(near).map_or(Bytes::ZERO, |sample| sample.available),
        };
        Need { place: tier.to_string(), needed, available }
    }

    fn failed(&self, operation: &str, tier: Tier, needed: Bytes, error: candle_core::Error) -> Error {
        convert(operation, error, || self.need(tier, needed))
    }

    /// As [`failed`](Self::failed); and more than there is at all is no room, whatever the driver calls it.
    fn not_allocated(&self, tier: Tier, needed: Bytes, error: candle_core::Error) -> Error {
        match self.memory(tier) {
            Ok(sample) if needed > sample.total => self.need(tier, needed).refused(),
            _ => self.failed("allocate", tier, needed, error),
        }
    }

    /// A new tensor with the bytes of `tensor` but for those from `offset` on: for devices on which candle cannot
    /// write in place.
    fn rebuilt(&self, tensor: &Tensor, offset: usize, bytes: &[u8]) -> Result<Tensor> {
        let desc = self.describe(tensor)?;
        let tier = self.tier_of(tensor);
        let mut host = self.allocate(&desc, Tier::Host)?;
        if bytes.len() < desc.len_in_memory()? {
            self.write(&mut host, 0, &self.download(tensor)?)?;
        }
        self.write(&mut host, offset, bytes)?;
        host.to_device(tensor.device()).map_err(|error| self.failed("write", tier, desc.bytes(), error))
    }
}

impl Backend for CandleBackend {
    type Tensor = Tensor;

    fn name(&self) -> &str {
        NAME
    }

    fn tiers(&self) -> &[Tier] {
        &self.tiers
    }

    fn describe(&self, tensor: &Tensor) -> Result<TensorDesc> {
        TensorDesc::new(tensor.dims(), from_candle(tensor.dtype())?)
    }

    fn tier_of(&self, tensor: &Tensor) -> Tier {
        tier_of_location(tensor.device().location())
    }

    fn allocate(&self, desc: &TensorDesc, tier: Tier) -> Result<Tensor> {
        let place = self.place(tier)?;
        let dtype = to_candle(desc.dtype())?;
        let elements = checked_elements(desc)?;
        match place {
            CandleDevice::Cpu => {
                let zeros =
                    storage::zeros(dtype, elements).ok_or_else(|| self.need(tier, desc.bytes()).refused())?;
                Ok(Tensor::from_storage(Storage::Cpu(zeros), desc.shape(), BackpropOp::none(), false))
            }
            // candle keeps these bytes on the host alone.
            _ if desc.dtype() == DType::F8E8M0 => Err(unsupported_dtype(NAME, desc.dtype())),
            // CUDA may refuse to give no bytes at all: an empty tensor has storage for one element.
            CandleDevice::Cuda(device) if elements == 0 => device
                .zeros_impl(&1.into(), dtype)
                .map(|one| Tensor::from_storage(Storage::Cuda(one), desc.shape(), BackpropOp::none(), false))
                .map_err(|error| self.not_allocated(tier, desc.bytes(), error)),
            device => Tensor::zeros(desc.shape(), dtype, device)
                .map_err(|error| self.not_allocated(tier, desc.bytes(), error)),
        }
    }

    fn transfer_memory(&self) -> Bytes {
        self.staging_limit()
    }

    fn can_tell_unique(&self) -> bool {
        self.counts_readable
    }

    fn write(&self, tensor: &mut Tensor, offset: usize, bytes: &[u8]) -> Result<()> {
        let desc = self.describe(tensor)?;
        check_range(offset, bytes.len(), desc.len_in_memory()?)?;
        if self.counts_readable && !unique::is_sole_owner(tensor) {
            return Err(unwritable(
                "its storage is shared with another handle; write to a tensor of its own",
            ));
        }
        if !tensor.is_contiguous() {
            return Err(unwritable("it is a strided view; write to a contiguous tensor"));
        }
        if bytes.is_empty() {
            return Ok(());
        }
        if tensor.device().is_metal() {
            *tensor = self.rebuilt(tensor, offset, bytes)?;
            return Ok(());
        }
        let tier = self.tier_of(tensor);
        let fill = Fill { offset, bytes, transfer: &self.transfer };
        tensor.inplace_op1(&fill).map_err(|error| self.failed("write", tier, Bytes::of(bytes.len()), error))
    }

    /// Lends what is in host memory.
    fn fill(&self, tensor: &mut Tensor, fill: &mut dyn FnMut(&mut [u8])) -> Result<bool> {
        let tier = self.tier_of(tensor);
        if tier != Tier::Host {
            return Ok(false);
        }
        self.write(tensor, 0, &[])?; // The same refusals.
        let desc = self.describe(tensor)?;
        if desc.bytes() == Bytes::ZERO {
            fill(&mut []);
            return Ok(true);
        }
        let lend = Lend { len: desc.len_in_memory()?, fill: RefCell::new(fill) };
        tensor.inplace_op1(&lend).map_err(|error| self.failed("fill", tier, desc.bytes(), error))?;
        Ok(true)
    }

    fn read(&self, tensor: &Tensor, offset: usize, out: &mut [u8]) -> Result<()> {
        let desc = self.describe(tensor)?;
        check_range(offset, out.len(), desc.len_in_memory()?)?;
        if out.is_empty() {
            return Ok(());
        }
        let failed = |error| self.failed("read", self.tier_of(tensor), desc.bytes(), error);
        let (storage, layout) = tensor.storage_and_layout();
        match &*storage {
            Storage::Cpu(cpu) => {
                strided::copy_out(storage::bytes(cpu), layout, tensor.dtype().size_in_bytes(), offset, out)
            }
            Storage::Cuda(device) if layout.is_contiguous() => {
                let start = start_in_bytes(layout, tensor.dtype(), offset);
                self.transfer.read(device, start, out).map_err(failed)
            }
            _ => {
                drop(storage);
                let dense = tensor.contiguous().and_then(|dense| dense.to_device(&CandleDevice::Cpu));
                self.read(&dense.map_err(failed)?, offset, out)
            }
        }
    }

    fn share(&self, tensor: &Tensor) -> Tensor {
        tensor.clone()
    }

    /// As the contract says; and `false` for a view of a part of storage, whose other handles are gone: the rest of
    /// that storage would be taken along unseen.
    fn is_unique(&self, tensor: &mut Tensor) -> bool {
        self.counts_readable && unique::is_sole_owner(tensor) && is_whole(tensor)
    }

    /// A device's figures are the driver's, other programs included. candle keeps none of host memory: there all is
    /// said to be available, and the system must be asked instead.
    fn memory(&self, tier: Tier) -> Result<MemorySample> {
        let CandleDevice::Cuda(device) = self.place(tier)? else {
            return Ok(MemorySample { total: Bytes::MAX, used: Bytes::ZERO, available: Bytes::MAX });
        };
        let (free, total) =
            cuda::memory(device).map_err(|error| Error::library(NAME, "ask for memory", error))?;
        let (available, total) = (Bytes::of(free), Bytes::of(total));
        Ok(MemorySample { total, used: total.saturating_sub(available), available })
    }

    /// Waits for what is computed and for what is copied.
    fn synchronize(&self, tier: Tier) -> Result<()> {
        let place = self.place(tier)?;
        let copied = if tier == Tier::Host { Ok(()) } else { self.transfer.synchronize() };
        copied
            .and_then(|()| place.synchronize())
            .map_err(|error| self.failed("synchronize", tier, Bytes::ZERO, error))
    }

    /// Of a device: what its memory pool keeps. Of host memory: the page-locked blocks.
    fn trim(&self, tier: Tier) -> Result<()> {
        if tier == Tier::Host {
            self.transfer.release();
        }
        let CandleDevice::Cuda(device) = self.place(tier)? else { return Ok(()) };
        cuda::trim(device).map_err(|error| self.failed("trim", tier, Bytes::ZERO, error))
    }
}

/// Overwrites bytes of a contiguous tensor's storage.
struct Fill<'a> {
    offset: usize,
    bytes: &'a [u8],
    transfer: &'a cuda::Transfer,
}

impl InplaceOp1 for Fill<'_> {
    fn name(&self) -> &'static str {
        "fill"
    }

    fn cpu_fwd(&self, target: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let start = start_in_bytes(layout, target.dtype(), self.offset);
        let target = storage::bytes_mut(target);
        let len = target.len();
        let range = start..start.saturating_add(self.bytes.len());
        let outside = || candle_core::Error::Msg(format!("bytes {range:?} of storage of {len} B"));
        copy(target.get_mut(range.clone()).ok_or_else(outside)?, self.bytes);
        Ok(())
    }

    fn cuda_fwd(&self, target: &mut CudaStorage, layout: &Layout) -> candle_core::Result<()> {
        let start = start_in_bytes(layout, target.dtype(), self.offset);
        self.transfer.write(target, start, self.bytes)
    }
}

/// Lends the storage of a contiguous tensor in host memory.
struct Lend<'a, 'b> {
    len: usize,
    fill: RefCell<&'a mut Filler<'b>>,
}

/// What writes to lent storage.
type Filler<'a> = dyn FnMut(&mut [u8]) + 'a;

impl InplaceOp1 for Lend<'_, '_> {
    fn name(&self) -> &'static str {
        "lend"
    }

    fn cpu_fwd(&self, target: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let start = start_in_bytes(layout, target.dtype(), 0);
        let target = storage::bytes_mut(target);
        let (whole, end) = (target.len(), start.saturating_add(self.len));
        let outside = || candle_core::Error::Msg(format!("bytes {start}..{end} of storage of {whole} B"));
        (*self.fill.borrow_mut())(target.get_mut(start..end).ok_or_else(outside)?);
        Ok(())
    }
}

/// Where byte `offset` of a contiguous tensor lies in its storage.
fn start_in_bytes(layout: &Layout, dtype: candle_core::DType, offset: usize) -> usize {
    layout.start_offset().saturating_mul(dtype.size_in_bytes()).saturating_add(offset)
}

/// Whether the tensor is all of its storage.
fn is_whole(tensor: &Tensor) -> bool {
    let (storage, layout) = tensor.storage_and_layout();
    let whole = match &*storage {
        Storage::Cpu(cpu) => {
            storage::bytes(cpu).len() == tensor.elem_count().saturating_mul(tensor.dtype().size_in_bytes())
        }
        Storage::Cuda(device) => cuda::len(device) == Some(tensor.elem_count().max(1)),
        Storage::Metal(_) => false,
    };
    whole && layout.start_offset() == 0 && layout.is_contiguous()
}

const fn tier_of_location(location: DeviceLocation) -> Tier {
    match location {
        DeviceLocation::Cpu => Tier::Host,
        #[allow(clippy::cast_possible_truncation, reason = "the number came in as a u32")]
        DeviceLocation::Cuda { gpu_id } | DeviceLocation::Metal { gpu_id } => Tier::Device(gpu_id as u32),
    }
}

/// How many elements, where candle can count them: it multiplies all dimensions, those beside a zero included.
fn checked_elements(desc: &TensorDesc) -> Result<usize> {
    let mut nonzero = desc.shape().iter().filter(|dim| **dim > 0);
    let product = nonzero.try_fold(1usize, |product, dim| product.checked_mul(*dim));
    let countable = product.and(usize::try_from(desc.elements()).ok());
    countable.ok_or_else(|| Error::SizeOverflow { what: format!("a tensor of {desc} in candle") })
}

fn unwritable(reason: &str) -> Error {
    Error::InvalidArgument { argument: "tensor", reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The way of writing on devices without writing in place, tried on the one device that is everywhere.
    #[test]
    fn a_rebuilt_tensor_has_the_new_bytes_among_the_old() {
        let backend = CandleBackend::new(Device::Cpu).unwrap();
        let desc = TensorDesc::new([2, 2], DType::I16).unwrap();
        let tensor = backend.upload(&desc, &[1, 2, 3, 4, 5, 6, 7, 8], Tier::Host).unwrap();
        let rows: [(usize, &[u8], [u8; 8]); 3] = [
            (3, &[0xff, 0xfe], [1, 2, 3, 0xff, 0xfe, 6, 7, 8]),
            (0, &[9; 8], [9; 8]),
            (8, &[], [1, 2, 3, 4, 5, 6, 7, 8]),
        ];
        for (offset, bytes, expected) in rows {
            let rebuilt = backend.rebuilt(&tensor, offset, bytes).unwrap();
            assert_eq!(backend.download(&rebuilt).unwrap(), expected);
        }
        assert_eq!(backend.download(&tensor).unwrap(), [1, 2, 3, 4, 5, 6, 7, 8]);
    }

    #[test]
    fn a_backend_without_such_a_device_takes_no_staging_memory() {
        let backend = CandleBackend::new(Device::Cpu).unwrap().with_staging_limit(Bytes::mib(64));
        let desc = TensorDesc::new([4], DType::U8).unwrap();
        let tensor = backend.upload(&desc, &[1, 2, 3, 4], Tier::Host).unwrap();
        assert_eq!((backend.staging_limit(), backend.staging()), (Bytes::ZERO, Bytes::ZERO));
        backend.synchronize(Tier::Host).unwrap();
        backend.trim(Tier::Host).unwrap();
        assert_eq!(backend.download(&tensor).unwrap(), [1, 2, 3, 4]);
    }

    /// Where the counts cannot be read, nothing is called unique and writing goes on.
    #[test]
    fn without_counts_nothing_is_unique() {
        let backend = CandleBackend { counts_readable: false, ..CandleBackend::new(Device::Cpu).unwrap() };
        let desc = TensorDesc::new([4], DType::U8).unwrap();
        let mut tensor = backend.upload(&desc, &[1, 2, 3, 4], Tier::Host).unwrap();
        assert!(!backend.is_unique(&mut tensor));
        assert_eq!(backend.download(&tensor).unwrap(), [1, 2, 3, 4]);
    }
}
