//! Broken algebra.

use dd_core::{Backend, Error, HostBackend, HostTensor, Linalg, MemorySample, Result, TensorDesc, Tier};

use crate::caught;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    None,
    RoundsProducts,
    ForgetsBatches,
    Broadcasts,
    AddsInPlace,
    TransposesNothing,
    NarrowsFromZero,
    ClampsRanges,
    ConcatenatesAlongTheFirst,
    ReshapesWhatFits,
    ViewsAreUnique,
    MismatchIsALibraryError,
    IntegersAreALibraryError,
    MovesResults,
}

/// The reference but for its fault.
struct Faulty {
    inner: HostBackend,
    fault: Fault,
}

impl Faulty {
    fn is(&self, fault: Fault) -> bool {
        self.fault == fault
    }

    fn errors(&self, result: Result<HostTensor>) -> Result<HostTensor> {
        match result {
            Err(error @ Error::Mismatch { .. }) if self.is(Fault::MismatchIsALibraryError) => {
                Err(Error::library("faulty", "compute", error))
            }
            Err(error @ Error::UnsupportedDType { .. }) if self.is(Fault::IntegersAreALibraryError) => {
                Err(Error::library("faulty", "compute", error))
            }
            result => result,
        }
    }
}

impl Backend for Faulty {
    type Tensor = HostTensor;

    fn name(&self) -> &str {
        "faulty"
    }

    fn tiers(&self) -> &[Tier] {
        self.inner.tiers()
    }

    fn describe(&self, tensor: &HostTensor) -> Result<TensorDesc> {
        self.inner.describe(tensor)
    }

    fn tier_of(&self, tensor: &HostTensor) -> Tier {
        self.inner.tier_of(tensor)
    }

    fn allocate(&self, desc: &TensorDesc, tier: Tier) -> Result<HostTensor> {
        self.inner.allocate(desc, tier)
    }

    fn write(&self, tensor: &mut HostTensor, offset: usize, bytes: &[u8]) -> Result<()> {
        self.inner.write(tensor, offset, bytes)
    }

    fn read(&self, tensor: &HostTensor, offset: usize, out: &mut [u8]) -> Result<()> {
        self.inner.read(tensor, offset, out)
    }

    fn share(&self, tensor: &HostTensor) -> HostTensor {
        self.inner.share(tensor)
    }

    fn is_unique(&self, tensor: &mut HostTensor) -> bool {
        self.is(Fault::ViewsAreUnique) || self.inner.is_unique(tensor)
    }

    fn memory(&self, tier: Tier) -> Result<MemorySample> {
        self.inner.memory(tier)
    }
}

impl Linalg for Faulty {
    fn matmul(&self, a: &HostTensor, b: &HostTensor) -> Result<HostTensor> {
        let product = self.errors(self.inner.matmul(a, b));
        match self.fault {
            Fault::RoundsProducts => self.inner.affine(&product?, 1.001, 0.0),
            Fault::ForgetsBatches if a.desc().rank() == 3 => self.inner.affine(&product?, 0.0, 0.0),
            Fault::MovesResults => {
                let product = product?;
                self.inner.upload(product.desc(), product.bytes(), Tier::Host)
            }
            _ => product,
        }
    }

    fn add(&self, a: &HostTensor, b: &HostTensor) -> Result<HostTensor> {
        match self.errors(self.inner.add(a, b)) {
            Err(Error::Mismatch { .. }) if self.is(Fault::Broadcasts) => Ok(self.inner.share(a)),
            result => result,
        }
    }

    fn mul(&self, a: &HostTensor, b: &HostTensor) -> Result<HostTensor> {
        if self.is(Fault::AddsInPlace) { self.inner.add(a, b) } else { self.errors(self.inner.mul(a, b)) }
    }

    fn affine(&self, a: &HostTensor, scale: f64, shift: f64) -> Result<HostTensor> {
        self.errors(self.inner.affine(a, scale, shift))
    }

    fn transpose(&self, a: &HostTensor, first: usize, second: usize) -> Result<HostTensor> {
        let transposed = self.inner.transpose(a, first, second)?;
        match self.fault {
            Fault::TransposesNothing => self.inner.reshape(a, transposed.desc().shape()),
            _ => Ok(transposed),
        }
    }

    fn narrow(&self, a: &HostTensor, dim: usize, start: usize, len: usize) -> Result<HostTensor> {
        let size = a.desc().shape().get(dim).copied().unwrap_or(0);
        match self.fault {
            Fault::NarrowsFromZero => self.inner.narrow(a, dim, 0, len),
            Fault::ClampsRanges if size > 0 => {
                self.inner.narrow(a, dim, start.min(size), len.min(size.saturating_sub(start)))
            }
            _ => self.inner.narrow(a, dim, start, len),
        }
    }

    fn concat(&self, tensors: &[&HostTensor], dim: usize) -> Result<HostTensor> {
        let dim = if self.is(Fault::ConcatenatesAlongTheFirst) { 0 } else { dim };
        self.errors(self.inner.concat(tensors, dim))
    }

    fn reshape(&self, a: &HostTensor, shape: &[usize]) -> Result<HostTensor> {
        match self.errors(self.inner.reshape(a, shape)) {
            Err(Error::Mismatch { .. }) if self.is(Fault::ReshapesWhatFits) => Ok(self.inner.share(a)),
            result => result,
        }
    }
}

#[test]
fn broken_algebra_is_found_out() {
    let rows = [
        (Fault::RoundsProducts, "matmul [2, 3] × [3, 2]"),
        (Fault::ForgetsBatches, "matmul of [3, 8, 16]"),
        (Fault::Broadcasts, "expected Error::Mismatch"),
        (Fault::AddsInPlace, "mul of F32"),
        (Fault::TransposesNothing, "transpose of F32"),
        (Fault::NarrowsFromZero, "narrow of columns"),
        (Fault::ClampsRanges, "expected Error::InvalidArgument"),
        (Fault::ConcatenatesAlongTheFirst, "concat of columns"),
        (Fault::ReshapesWhatFits, "expected Error::Mismatch"),
        (Fault::ViewsAreUnique, "reshape: write to the input"),
        (Fault::MismatchIsALibraryError, "expected Error::Mismatch"),
        (Fault::IntegersAreALibraryError, "or UnsupportedDType"),
        (Fault::MovesResults, "tier of the result"),
    ];
    let faulty = |fault| {
        let tiers = [(Tier::Device(0), dd_core::Bytes::mib(4)), (Tier::Host, dd_core::Bytes::MAX)];
        Faulty { inner: HostBackend::with_tiers(tiers), fault }
    };
    for (fault, words) in rows {
        caught(&format!("{fault:?}"), words, || dd_conformance::linalg(&faulty(fault)));
    }
    dd_conformance::linalg(&faulty(Fault::None));
}
