//! What only NVIDIA devices need: moving bytes between host and device while the device computes, the driver's own
//! figures, and giving the memory pool's free bytes back.
//!
//! candle queues all kernels on one stream. Copies go through page-locked blocks ([`Ring`]) on two streams of their
//! own, one for each direction, so that they run beside the kernels. Who waits for whom:
//!
//! | this | waits for | by |
//! |---|---|---|
//! | a copy into storage | the kernels and copies that used it last, and the zeros that it was made of | the storage's own two events, which cudarc keeps: `device_ptr_mut` |
//! | a kernel on that storage | the copy | the storage's write event: a kernel has no other way to the address than `device_ptr`, which waits |
//! | a copy out of storage | all kernels queued until then, and the last copy into it | an event of the kernels' stream, since candle hands a kernel's output over as if it were only read; the write event |
//! | the host, before it fills a block again | the block's last copy | the block's own event |
//! | freeing storage | all of these | cudarc, which frees on the kernels' stream after both events |
//!
//! So [`Transfer::write`] returns once the last piece is in a block, and the copy goes on; [`Transfer::read`] returns
//! with the bytes. The first row rests on every kernel that reads weights being queued before cudarc's guard of its
//! address is dropped. That was looked up for every use in candle-core and candle-nn 0.11.1; a custom kernel must do
//! so too. Where there is doubt, a staging limit of zero takes the kernels' stream for everything, and waits.
//!
//! Compiled against candle-core 0.11.1 and cudarc 0.19.10; not run where it was written, for want of a device:
//! `docs/gpu-checklist.md` says what to look at first.
#![allow(
    unsafe_code,
    reason = "device slices seen as bytes, copies of them, and the driver's memory pool; each block says why"
)]

use std::mem;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::cuda::cudarc::driver::{
    CudaStream, CudaView, CudaViewMut, DevicePtr, DevicePtrMut, HostSlice, PinnedHostSlice, result,
};
use candle_core::cuda::{CudaStorageSlice, WrapErr};
use candle_core::{CudaDevice, CudaStorage, Device, Error, Result};
use dd_core::Bytes;

use crate::staging::{Block, Ring};

/// Blocks on the way to the device: one is filled while the other is copied.
const UP: usize = 2;

/// Blocks on the way back, where the caller waits for each.
const DOWN: usize = 1;

/// The smallest block, in bytes: below it, a copy's fixed cost is what it costs.
const LEAST: usize = 64 << 10;

/// A page of host memory, in bytes: smaller blocks would cost more than they give.
const PAGE: usize = 4 << 10;

/// The largest block, in bytes: above it, nothing is gained.
const MOST: usize = 16 << 20;

macro_rules! each_slice {
    ($slice:expr, $name:ident => $body:expr) => {
        match $slice {
            CudaStorageSlice::U8($name)
            | CudaStorageSlice::F6E2M3($name)
            | CudaStorageSlice::F6E3M2($name)
            | CudaStorageSlice::F4($name)
            | CudaStorageSlice::F8E8M0($name) => $body,
            CudaStorageSlice::U32($name) => $body,
            CudaStorageSlice::I16($name) => $body,
            CudaStorageSlice::I32($name) => $body,
            CudaStorageSlice::I64($name) => $body,
            CudaStorageSlice::BF16($name) => $body,
            CudaStorageSlice::F16($name) => $body,
            CudaStorageSlice::F32($name) => $body,
            CudaStorageSlice::F64($name) => $body,
            CudaStorageSlice::F8E4M3($name) => $body,
        }
    };
}

/// The ways to a device and back.
#[derive(Debug)]
pub(crate) struct Transfer(Option<[Lane; 2]>);

/// One direction: a stream, and the blocks that pass along it.
#[derive(Debug)]
struct Lane {
    stream: Arc<CudaStream>,
    ring: Mutex<Ring<PinnedHostSlice<u8>>>,
}

impl Transfer {
    /// Streams of their own, and at most `limit` of page-locked memory; neither on devices that are not CUDA's, nor
    /// where a block would have less than a page.
    pub(crate) fn new(device: &Device, limit: Bytes) -> Self {
        // More than can be addressed is as much as can be.
        let most = (limit.to_usize().unwrap_or(usize::MAX) / (UP + DOWN)).min(MOST);
        let Device::Cuda(device) = device else { return Self(None) };
        if most < PAGE {
            return Self(None);
        }
        let lane = |blocks| Lane::new(device, blocks, most);
        match lane(UP).and_then(|up| Ok([up, lane(DOWN)?])) {
            Ok(lanes) => Self(Some(lanes)),
            Err(error) => {
                tracing::warn!(%error, "no streams for copies: they will not overlap computation");
                Self(None)
            }
        }
    }

    /// The most page-locked memory that it will hold, in bytes.
    pub(crate) fn limit(&self) -> usize {
        self.0.iter().flatten().map(|lane| lane.ring().limit()).sum()
    }

    /// The page-locked memory that it holds now, in bytes.
    pub(crate) fn held(&self) -> usize {
        self.0.iter().flatten().map(|lane| lane.ring().held()).sum()
    }

    /// Gives the page-locked memory back, once the copies through it are done.
    pub(crate) fn release(&self) {
        self.0.iter().flatten().for_each(|lane| lane.ring().release());
    }

    /// Waits for all copies.
    pub(crate) fn synchronize(&self) -> Result<()> {
        self.0.iter().flatten().try_for_each(|lane| lane.stream.synchronize().w())
    }

    /// The lanes, where they and cudarc's events order the work on this storage: it is of their device, and events
    /// are not switched off.
    fn lanes(&self, compute: &CudaStream) -> Option<&[Lane; 2]> {
        let context = compute.context();
        let fits = |lanes: &&[Lane; 2]| {
            lanes.iter().all(|lane| Arc::ptr_eq(lane.stream.context(), context))
                && context.is_managing_stream_synchronization()
        };
        self.0.as_ref().filter(fits)
    }

    /// Overwrites bytes `start..start + bytes.len()` of the storage, before any kernel that is queued from now on. On
    /// return `bytes` is the caller's again.
    pub(crate) fn write(&self, storage: &mut CudaStorage, start: usize, bytes: &[u8]) -> Result<()> {
        let compute = storage.device.cuda_stream();
        let range = start..start.saturating_add(bytes.len());
        let mut whole = bytes_mut(storage).ok_or_else(|| outside(&range))?;
        let mut target = whole.try_slice_mut(range.clone()).ok_or_else(|| outside(&range))?;
        let mut sent = 0;
        if let Some([up, _]) = self.lanes(&compute) {
            sent = up.send(bytes, &mut target)?;
        }
        let rest = bytes.get(sent..).unwrap_or_default();
        match target.try_slice_mut(sent..) {
            Some(mut target) if !rest.is_empty() => {
                compute.memcpy_htod(rest, &mut target).w()?;
                compute.synchronize().w() // `rest` may be page-locked itself, and then is read until here.
            }
            _ => Ok(()),
        }
    }

    /// Copies bytes `start..start + out.len()` of the storage out, and waits for them.
    pub(crate) fn read(&self, storage: &CudaStorage, start: usize, out: &mut [u8]) -> Result<()> {
        let compute = storage.device.cuda_stream();
        let range = start..start.saturating_add(out.len());
        let whole = bytes(storage).ok_or_else(|| outside(&range))?;
        let source = whole.try_slice(range.clone()).ok_or_else(|| outside(&range))?;
        let mut received = 0;
        if let Some([_, down]) = self.lanes(&compute) {
            down.stream.join(&compute).w()?;
            received = down.receive(&source, out)?;
        }
        let rest = out.get_mut(received..).unwrap_or_default();
        match source.try_slice(received..) {
            Some(source) if !rest.is_empty() => {
                compute.memcpy_dtoh(&source, rest).w()?;
                compute.synchronize().w()
            }
            _ => Ok(()),
        }
    }
}

impl Lane {
    fn new(device: &CudaDevice, blocks: usize, most: usize) -> Result<Self> {
        let stream = device.cuda_stream().context().new_stream().w()?;
        Ok(Self { stream, ring: Mutex::new(Ring::new(blocks, LEAST, most)) })
    }

    /// The blocks. A panic in between leaves none that is not waited for, so a poisoned lock is as good.
    fn ring(&self) -> MutexGuard<'_, Ring<PinnedHostSlice<u8>>> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A block of `len` bytes, or nothing and a warning.
    fn block(&self, len: usize) -> Option<PinnedHostSlice<u8>> {
        // SAFETY: the memory is not set yet; nobody reads it before it is, right below.
        let block = unsafe { self.stream.context().alloc_pinned_with_flags::<u8>(len, 0) };
        let zeroed = block.and_then(|mut block| {
            let start = block.as_mut_ptr()?;
            // SAFETY: the driver gave `len` bytes from `start` on, which nobody else has seen.
            unsafe { start.write_bytes(0, len) };
            Ok(block)
        });
        let warn = |error: &_| tracing::warn!(bytes = len, %error, "no page-locked memory of this size");
        zeroed.inspect_err(warn).ok()
    }

    /// Copies `bytes` into the target by way of blocks; says how many, which is fewer only where there is no block.
    fn send(&self, bytes: &[u8], target: &mut CudaViewMut<'_, u8>) -> Result<usize> {
        let mut sent = 0;
        while let Some(rest) = bytes.get(sent..).filter(|rest| !rest.is_empty()) {
            let passed = self.ring().pass(
                rest.len(),
                |len| self.block(len),
                |block| {
                    let piece = rest.get(..block.size()).unwrap_or(rest);
                    let end = sent.saturating_add(piece.len());
                    let mut target = target.try_slice_mut(sent..end).ok_or_else(|| outside(&(sent..end)))?;
                    upload(&self.stream, piece, block, &mut target)?;
                    Ok(piece.len())
                },
            )?;
            match passed {
                Some(len) => sent = sent.saturating_add(len),
                None => break,
            }
        }
        Ok(sent)
    }

    /// Copies the source out by way of blocks; says how many bytes, which is fewer only where there is no block.
    fn receive(&self, source: &CudaView<'_, u8>, out: &mut [u8]) -> Result<usize> {
        let mut received = 0;
        while let Some(rest) = out.get_mut(received..).filter(|rest| !rest.is_empty()) {
            let passed = self.ring().pass(
                rest.len(),
                |len| self.block(len),
                |block| {
                    let len = rest.len().min(block.size());
                    let end = received.saturating_add(len);
                    let piece = source.try_slice(received..end).ok_or_else(|| outside(&(received..end)))?;
                    download(&self.stream, &piece, block, rest.get_mut(..len).unwrap_or_default())?;
                    Ok(len)
                },
            )?;
            match passed {
                Some(len) => received = received.saturating_add(len),
                None => break,
            }
        }
        Ok(received)
    }
}

impl Block for PinnedHostSlice<u8> {
    type Error = Error;

    fn size(&self) -> usize {
        self.num_bytes()
    }

    fn wait(&mut self) -> Result<()> {
        self.as_slice().map(drop).w()
    }
}

/// Fills the block with `piece` and begins to copy it: the stream first waits for what last used the target, and
/// kernels on the target will wait for the stream.
fn upload(
    stream: &CudaStream,
    piece: &[u8],
    block: &mut PinnedHostSlice<u8>,
    target: &mut CudaViewMut<'_, u8>,
) -> Result<()> {
    let len = piece.len().min(target.len());
    let staged = block.as_mut_slice().w()?.get_mut(..len);
    staged.ok_or_else(|| outside(&(0..len)))?.copy_from_slice(piece.get(..len).unwrap_or_default());
    let context = stream.context();
    context.bind_to_thread().w()?;
    {
        // SAFETY: what is asked for is that the slice is used on this stream alone, as it is.
        let (source, _block_is_read) = unsafe { block.stream_synced_slice(stream) };
        let source = source.get(..len).unwrap_or_default();
        let (address, _target_is_written) = target.device_ptr_mut(stream);
        // SAFETY: both sides have `len` bytes, any of which are values of what the storage holds, and the context is
        // bound. The block is not touched, nor freed, before its event, which `_block_is_read` records after the
        // copy; the storage is not freed or used before its write event, which `_target_is_written` records.
        unsafe { result::memcpy_htod_async(address, source, stream.cu_stream()) }.w()?;
    }
    context.check_err().w() // The guards cannot return an error: they leave it here.
}

/// Copies the source into the block, waits, and copies the block into `out`. The stream has been made to wait for the
/// kernels that are queued.
fn download(
    stream: &CudaStream,
    source: &CudaView<'_, u8>,
    block: &mut PinnedHostSlice<u8>,
    out: &mut [u8],
) -> Result<()> {
    let len = out.len().min(source.len());
    let context = stream.context();
    context.bind_to_thread().w()?;
    {
        let (address, source_is_read) = source.device_ptr(stream);
        // The storage has one event for its last reader. Recorded here, it would hide a kernel that another thread
        // queues just now, and nobody need wait for a copy that is done on return.
        mem::forget(source_is_read);
        // SAFETY: what is asked for is that the slice is used on this stream alone, as it is.
        let (target, _block_is_written) = unsafe { block.stream_synced_mut_slice(stream) };
        let target = target.get_mut(..len).ok_or_else(|| outside(&(0..len)))?;
        // SAFETY: both sides have `len` bytes, and the context is bound. The block is not touched, nor freed, before
        // its event, which `_block_is_written` records after the copy; the storage is borrowed until then.
        unsafe { result::memcpy_dtoh_async(target, address, stream.cu_stream()) }.w()?;
    }
    context.check_err().w()?;
    let staged = block.as_slice().w()?.get(..len).unwrap_or_default(); // This is where the host waits.
    out.get_mut(..len).unwrap_or_default().copy_from_slice(staged);
    Ok(())
}

/// The storage's bytes.
fn bytes(storage: &CudaStorage) -> Option<CudaView<'_, u8>> {
    // SAFETY: integers and floats have no padding: each of the slice's bytes is a `u8`; the length is its own.
    each_slice!(&storage.slice, slice => unsafe { slice.transmute::<u8>(slice.num_bytes()) })
}

/// The storage's bytes, to be overwritten.
fn bytes_mut(storage: &mut CudaStorage) -> Option<CudaViewMut<'_, u8>> {
    each_slice!(&mut storage.slice, slice => {
        let len = slice.num_bytes();
        // SAFETY: the slice holds integers or floats, for which every pattern of bits is a value, so any bytes may
        // be written; `len` is its own length in bytes.
        unsafe { slice.transmute_mut::<u8>(len) }
    })
}

/// How many elements the storage holds.
pub(crate) fn len(storage: &CudaStorage) -> Option<usize> {
    Some(each_slice!(&storage.slice, slice => slice.len()))
}

/// Free and total bytes of the device, as the driver sees them: other programs count, and bytes that the pool keeps
/// for reuse count as taken until [`trim`].
pub(crate) fn memory(device: &CudaDevice) -> Result<(usize, usize)> {
    device.cuda_stream().context().mem_get_info().w()
}

/// Returns to the driver what the pool keeps for reuse, after the work that may still use it. Storage is freed on the
/// kernels' stream once the copies of it are done, so that stream's end is the end of all.
pub(crate) fn trim(device: &CudaDevice) -> Result<()> {
    let stream = device.cuda_stream();
    let context = stream.context();
    stream.synchronize().w()?;
    if !context.has_async_alloc() {
        return Ok(());
    }
    context.bind_to_thread().w()?;
    // SAFETY: the device handle is that of a live context, bound to this thread; the pool is the device's own and is
    // only asked to release what nobody holds.
    unsafe {
        let pool = result::device::get_mem_pool(context.cu_device()).w()?;
        result::mem_pool::trim_to(pool, 0).w()
    }
}

fn outside(range: &Range<usize>) -> Error {
    Error::Msg(format!("bytes {range:?} are not all in the device's storage")).bt()
}
