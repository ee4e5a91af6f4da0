//! [`PackReport`]: what packing did, tensor by tensor and in all.

use std::time::Duration;

use dd_core::{Bytes, TensorDesc};

/// What packing did.
#[derive(Clone, Debug, Default)]
pub struct PackReport {
    /// Tensor by tensor, in file order.
    pub tensors: Vec<PackedEntry>,
    /// The bytes of all files, headers included.
    pub file_bytes: Bytes,
    /// The raw bytes that went through the coder.
    pub coded: Bytes,
    /// The time that coding them took, on one thread.
    pub encoding: Duration,
    /// The time that decoding them again took, on one thread.
    pub decoding: Duration,
}

/// One tensor of a [`PackReport`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackedEntry {
    /// Its name.
    pub name: String,
    /// Its shape and dtype.
    pub desc: TensorDesc,
    /// The bytes that it takes now.
    pub stored: Bytes,
    /// Whether it is packed, or stored as it was since it would gain less than
    /// [`LEAST_GAIN`](super::codec::LEAST_GAIN).
    pub packed: bool,
}

impl PackReport {
    /// The bytes of all tensors as they were.
    #[must_use]
    pub fn raw(&self) -> Bytes {
        self.tensors.iter().map(|tensor| tensor.desc.bytes()).sum()
    }

    /// The bytes of all tensors as they are stored.
    #[must_use]
    pub fn stored(&self) -> Bytes {
        self.tensors.iter().map(|tensor| tensor.stored).sum()
    }

    /// How many raw bytes there are per stored one; one where there are none.
    #[must_use]
    pub fn ratio(&self) -> f64 {
        let stored = self.stored();
        if stored == Bytes::ZERO { 1.0 } else { self.raw().fraction_of(stored) }
    }

    /// Raw bytes coded per second on one thread, if any were.
    #[must_use]
    pub fn encode_speed(&self) -> Option<f64> {
        speed(self.coded, self.encoding)
    }

    /// Raw bytes decoded per second on one thread, if any were.
    #[must_use]
    pub fn decode_speed(&self) -> Option<f64> {
        speed(self.coded, self.decoding)
    }
}

fn speed(bytes: Bytes, time: Duration) -> Option<f64> {
    (!time.is_zero()).then(|| bytes.0 as f64 / time.as_secs_f64())
}
