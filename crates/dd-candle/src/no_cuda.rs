//! What stands for `cuda` in a build without it: candle's own placeholder types reach these functions never, and the
//! answer is candle's own error.

use candle_core::{CudaDevice, CudaStorage, Device, Error, Result};
use dd_core::Bytes;

/// No way to a device: no stream, no page-locked memory.
#[derive(Debug)]
pub(crate) struct Transfer;

#[allow(clippy::unused_self, reason = "the same methods as with the feature")]
impl Transfer {
    pub(crate) const fn new(_device: &Device, _limit: Bytes) -> Self {
        Self
    }

    pub(crate) const fn limit(&self) -> usize {
        0
    }

    pub(crate) const fn held(&self) -> usize {
        0
    }

    pub(crate) const fn release(&self) {}

    pub(crate) const fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    pub(crate) fn write(&self, _storage: &mut CudaStorage, _start: usize, _bytes: &[u8]) -> Result<()> {
        Err(Error::NotCompiledWithCudaSupport)
    }

    pub(crate) fn read(&self, _storage: &CudaStorage, _start: usize, _out: &mut [u8]) -> Result<()> {
        Err(Error::NotCompiledWithCudaSupport)
    }
}

pub(crate) const fn len(_storage: &CudaStorage) -> Option<usize> {
    None
}

pub(crate) fn memory(_device: &CudaDevice) -> Result<(usize, usize)> {
    Err(Error::NotCompiledWithCudaSupport)
}

pub(crate) fn trim(_device: &CudaDevice) -> Result<()> {
    Err(Error::NotCompiledWithCudaSupport)
}
