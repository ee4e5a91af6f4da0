//! Broken backends.

use std::sync::Mutex;

use dd_core::{
    Backend, Bytes, DType, Error, HostBackend, HostTensor, MemorySample, Result, TensorDesc, Tier,
};

use crate::caught;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    None,
    AlwaysUnique,
    NeverUnique,
    NeverUniqueAgain,
    ShareCopies,
    SharedWritesAreLost,
    DirtyMemory,
    WritesWhatFits,
    AlignsOffsets,
    ForgetsTheTier,
    WidensHalves,
    LacksF32,
    FullIsALibraryError,
    NoLimitInside,
    Leaks,
    UnsortedTiers,
    MoreAvailableThanThereIs,
    StrangeTierIsInvalid,
    UploadsWhatFits,
    NeedsRows,
}

/// A backend that works but for its fault.
struct Faulty {
    inner: HostBackend,
    tiers: Vec<Tier>,
    fault: Fault,
    kept: Mutex<Vec<HostTensor>>,
}

impl Faulty {
    fn new(fault: Fault) -> Self {
        let capacity = [(Tier::Device(0), Bytes::mib(1)), (Tier::Host, Bytes::MAX)];
        let inner = HostBackend::with_tiers(capacity);
        let mut tiers = inner.tiers().to_vec();
        if fault == Fault::UnsortedTiers {
            tiers.reverse();
        }
        Self { inner, tiers, fault, kept: Mutex::default() }
    }
}

impl Backend for Faulty {
    type Tensor = HostTensor;

    fn name(&self) -> &str {
        "faulty"
    }

    fn tiers(&self) -> &[Tier] {
        &self.tiers
    }

    fn describe(&self, tensor: &HostTensor) -> Result<TensorDesc> {
        self.inner.describe(tensor)
    }

    fn tier_of(&self, tensor: &HostTensor) -> Tier {
        if self.fault == Fault::ForgetsTheTier { Tier::Host } else { self.inner.tier_of(tensor) }
    }

    fn allocate(&self, desc: &TensorDesc, tier: Tier) -> Result<HostTensor> {
        let unsupported = |dtype| Err(Error::UnsupportedDType { backend: "faulty".to_owned(), dtype });
        let tensor = match (self.fault, desc.dtype()) {
            (Fault::LacksF32, DType::F32) => return unsupported(DType::F32),
            (Fault::WidensHalves, DType::F16) => {
                self.inner.allocate(&TensorDesc::new(desc.shape(), DType::F32)?, tier)
            }
            (Fault::NeedsRows, _) if desc.elements() == 0 => return unsupported(DType::U8),
            _ => self.inner.allocate(desc, tier),
        };
        let mut tensor = match tensor {
            Err(error) if error.is_out_of_memory() && self.fault == Fault::FullIsALibraryError => {
                return Err(Error::library("faulty", "allocate", error));
            }
            Err(Error::UnsupportedTier { .. }) if self.fault == Fault::StrangeTierIsInvalid => {
                return Err(Error::InvalidArgument { argument: "tier", reason: tier.to_string() });
            }
            Err(Error::OutOfMemory { .. })
                if self.fault == Fault::NoLimitInside && desc.bytes() < Bytes::gib(1) =>
            {
                self.inner.allocate(desc, Tier::Host)?
            }
            result => result?,
        };
        if self.fault == Fault::DirtyMemory && desc.bytes() > Bytes::ZERO {
            self.inner.write(&mut tensor, 0, &[1])?;
        }
        if self.fault == Fault::Leaks {
            self.kept.lock().unwrap().push(tensor);
            tensor = self.inner.allocate(desc, tier)?;
        }
        Ok(tensor)
    }

    fn write(&self, tensor: &mut HostTensor, offset: usize, bytes: &[u8]) -> Result<()> {
        let end = tensor.bytes().len();
        match self.fault {
            Fault::WritesWhatFits => {
                let start = offset.min(end);
                let size = bytes.len().min(end - start);
                self.inner.write(tensor, start, &bytes[..size])
            }
            Fault::AlignsOffsets => self.inner.write(tensor, offset / 4 * 4, bytes),
            Fault::SharedWritesAreLost if !self.inner.is_unique(tensor) => Ok(()),
            _ => self.inner.write(tensor, offset, bytes),
        }
    }

    fn read(&self, tensor: &HostTensor, offset: usize, out: &mut [u8]) -> Result<()> {
        self.inner.read(tensor, offset, out)
    }

    fn share(&self, tensor: &HostTensor) -> HostTensor {
        match self.fault {
            Fault::ShareCopies => {
                self.inner.upload(tensor.desc(), tensor.bytes(), self.tier_of(tensor)).unwrap()
            }
            Fault::NeverUniqueAgain => {
                let empty = TensorDesc::new([0], DType::U8).unwrap();
                self.kept.lock().unwrap().push(self.inner.allocate(&empty, Tier::Host).unwrap());
                self.inner.share(tensor)
            }
            _ => self.inner.share(tensor),
        }
    }

    fn is_unique(&self, tensor: &mut HostTensor) -> bool {
        match self.fault {
            Fault::AlwaysUnique => true,
            Fault::ShareCopies | Fault::NeverUnique => false,
            Fault::NeverUniqueAgain => self.kept.lock().unwrap().is_empty() && self.inner.is_unique(tensor),
            _ => self.inner.is_unique(tensor),
        }
    }

    fn can_tell_unique(&self) -> bool {
        self.fault != Fault::ShareCopies
    }

    fn memory(&self, tier: Tier) -> Result<MemorySample> {
        let mut sample = self.inner.memory(tier)?;
        if self.fault == Fault::MoreAvailableThanThereIs && tier == Tier::Device(0) {
            sample.available = sample.total + Bytes(1);
        }
        Ok(sample)
    }

    fn upload(&self, desc: &TensorDesc, bytes: &[u8], tier: Tier) -> Result<HostTensor> {
        let mut bytes = bytes.to_vec();
        if self.fault == Fault::UploadsWhatFits {
            bytes.resize(desc.len_in_memory()?, 0);
        }
        desc.check_len(bytes.len(), "upload")?;
        let mut tensor = self.allocate(desc, tier)?;
        self.write(&mut tensor, 0, &bytes)?;
        Ok(tensor)
    }
}

#[test]
fn broken_backends_are_found_out() {
    let rows = [
        (Fault::AlwaysUnique, "is called unique while another handle shares it"),
        (Fault::NeverUnique, "a new tensor is not called unique"),
        (Fault::NeverUniqueAgain, "the last handle is not called unique"),
        (Fault::ShareCopies, "share gives another storage"),
        (Fault::SharedWritesAreLost, "is lost"),
        (Fault::DirtyMemory, "a new tensor is zeros"),
        (Fault::WritesWhatFits, "expected Error::InvalidArgument"),
        (Fault::AlignsOffsets, "after the write of 3 B at byte 1"),
        (Fault::ForgetsTheTier, "tier of a tensor"),
        (Fault::WidensHalves, "description of a tensor"),
        (Fault::LacksF32, "F32 in device:0: allocate"),
        (Fault::FullIsALibraryError, "expected Error::OutOfMemory"),
        (Fault::NoLimitInside, "expected Error::OutOfMemory"),
        (Fault::Leaks, "out of memory"),
        (Fault::UnsortedTiers, "nearest first"),
        (Fault::MoreAvailableThanThereIs, "available of a total of"),
        (Fault::StrangeTierIsInvalid, "expected Error::UnsupportedTier"),
        (Fault::UploadsWhatFits, "expected Error::Mismatch"),
        (Fault::NeedsRows, "the refusal names another dtype"),
    ];
    for (fault, words) in rows {
        caught(&format!("{fault:?}"), words, || dd_conformance::backend(&Faulty::new(fault)));
    }
    dd_conformance::backend(&Faulty::new(Fault::None));
}
