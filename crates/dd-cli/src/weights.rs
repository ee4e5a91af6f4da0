//! A checkpoint read tensor by tensor into plain memory: the weights of an unmanaged run.
//!
//! No file is mapped and no tensor is held twice, so that the peak of an unmanaged run is honest: its weights, its
//! activations and nothing else.

use std::sync::Arc;

use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::VarBuilder;
use candle_nn::var_builder::SimpleBackend;
use deep_dimensions::candle::CandleBackend;
use deep_dimensions::core::{Backend, Bytes, Tier};
use deep_dimensions::offload::checkpoint::Checkpoint;

/// How much is read at once.
const PIECE: usize = 256 << 10;

/// A `VarBuilder` that reads each tensor when it is asked for it, as F32.
#[must_use]
pub fn builder(checkpoint: &Arc<Checkpoint>, backend: &CandleBackend) -> VarBuilder<'static> {
    let weights = Plain { checkpoint: Arc::clone(checkpoint), backend: backend.clone() };
    VarBuilder::from_backend(Box::new(weights), DType::F32, Device::Cpu)
}

/// Bytes of all tensors once they are in memory, as F32.
#[must_use]
pub fn bytes_in_memory(checkpoint: &Checkpoint) -> Bytes {
    checkpoint.tensors().map(|(_, location)| Bytes(location.desc.elements().saturating_mul(4))).sum()
}

struct Plain {
    checkpoint: Arc<Checkpoint>,
    backend: CandleBackend,
}

impl Plain {
    /// Reads in pieces straight into the tensor's own storage.
    fn read(&self, name: &str) -> deep_dimensions::offload::Result<Tensor> {
        let location = self.checkpoint.tensor(name)?;
        let mut tensor = self.backend.allocate(&location.desc, Tier::Host)?;
        let len = location.desc.len_in_memory()?;
        let mut piece = vec![0; len.min(PIECE)];
        for at in (0..len).step_by(PIECE) {
            let piece = piece.get_mut(..PIECE.min(len - at)).unwrap_or_default();
            if let Some(shard) = self.checkpoint.shard(location.shard) {
                shard.read_exact_at(location.offset + at as u64, piece, name)?;
            }
            self.backend.write(&mut tensor, at, piece)?;
        }
        Ok(tensor)
    }
}

impl SimpleBackend for Plain {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        _: candle_nn::Init,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        let tensor = self.get_unchecked(name, dtype, device)?;
        if *tensor.shape() == shape {
            return Ok(tensor);
        }
        let msg = format!("{name} has another shape than config.json says");
        Err(candle_core::Error::UnexpectedShape { msg, expected: shape, got: tensor.shape().clone() })
    }

    fn get_unchecked(&self, name: &str, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        self.read(name).map_err(candle_core::Error::wrap)?.to_dtype(dtype)?.to_device(device)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.checkpoint.contains(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_precision_is_widened() {
        let json = r#"{"a":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}"#;
        let file = [&(json.len() as u64).to_le_bytes()[..], json.as_bytes(), &[0x80, 0x3f, 0, 0xc0]].concat();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        std::fs::write(&path, file).unwrap();
        let checkpoint = Arc::new(Checkpoint::open(&path).unwrap());
        assert_eq!(bytes_in_memory(&checkpoint), Bytes(8));
        let builder = builder(&checkpoint, &CandleBackend::new(deep_dimensions::core::Device::Cpu).unwrap());
        assert_eq!(builder.get(2, "a").unwrap().to_vec1::<f32>().unwrap(), [1.0, -2.0]);
        assert!(builder.get(3, "a").unwrap_err().to_string().contains("another shape"));
        assert!(builder.get(3, "b").is_err());
    }
}
