//! Short programs that show Deep Dimensions at work.
//!
//! | program | what it shows |
//! |---|---|
//! | `automatic` | a model managed in five lines, with the same output |
//! | `custom_config` | the options: presets, a builder, JSON, and what a choice does to the plan |
//! | `manual_control` | selecting modules, sending them away and back, changing weights, ending the management |
//! | `transformer_budget` | a transformer within half of its weights: output, bytes read and peak, against the plan |
//! | `feed_training` | a classifier trained on a data set of several times the memory: the batch size from a plan, loss and memory as pictures |
//! | `sentence_latency` | a sentence classifier's 50th and 99th percentile, unmanaged and in half of the memory |
//! | `endless_terrain` | an endless map of three layers: any cut of it is the same picture, bit for bit |
//! | `image_by_windows` | an image larger than the memory that is allowed, sharpened window by window |
//!
//! Run one with `cargo run -p dd-examples --bin automatic`. Each makes a small checkpoint of its own in a temporary
//! folder, needs neither arguments nor a network, and ends with an error where what it shows is not true. The last two write
//! pictures, into the folder that is their argument if there is one.
//!
//! This library holds what the programs share: [`Weights`], a checkpoint of random weights; [`EncoderLayer`], a
//! transformer block made from candle's parts; [`Pictures`], a folder for PNGs; [`check`] and [`same_bits`].

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use candle_nn::{VarBuilder, VarMap};
use deep_dimensions::core::Bytes;
use tempfile::TempDir;

mod encoder;
mod pictures;

pub use encoder::{EncoderLayer, EncoderSizes};
pub use pictures::{Pictures, floats, to_bytes};

/// What ends a program: the message is printed, and the exit code is not zero.
pub type Error = Box<dyn std::error::Error>;

/// The result of a program and of its parts.
pub type Result<T = (), E = Error> = std::result::Result<T, E>;

/// A checkpoint of random weights in a folder that goes when this goes.
pub struct Weights {
    folder: TempDir,
    bytes: Bytes,
}

impl Weights {
    /// Writes a checkpoint that `build` can be loaded from: each tensor that it asks its builder for, with the random
    /// values that its layer asks for.
    ///
    /// # Errors
    /// What building the model gave; a folder that cannot be written.
    pub fn random<M>(build: impl FnOnce(VarBuilder<'static>) -> candle_core::Result<M>) -> Result<Self> {
        let (folder, map) = (tempfile::tempdir()?, VarMap::new());
        build(VarBuilder::from_varmap(&map, DType::F32, &Device::Cpu))?;
        let elements: usize = map.all_vars().iter().map(|var| var.elem_count()).sum();
        let weights = Self { bytes: Bytes::of(elements * size_of::<f32>()), folder };
        map.save(weights.path())?;
        Ok(weights)
    }

    /// The checkpoint: a folder, as a model's is.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The checkpoint's one file.
    #[must_use]
    pub fn path(&self) -> std::path::PathBuf {
        self.folder.path().join("model.safetensors")
    }

    /// The weights' size.
    #[must_use]
    pub const fn bytes(&self) -> Bytes {
        self.bytes
    }

    /// The weights as candle loads them by itself: all of them, in memory.
    ///
    /// # Errors
    /// What reading the file gave.
    pub fn load(&self, device: &Device) -> Result<VarBuilder<'static>> {
        let tensors = candle_core::safetensors::load(self.path(), device)?;
        Ok(VarBuilder::from_tensors(tensors, DType::F32, device))
    }
}

/// Prints what holds; what does not is an error, and ends the program.
///
/// # Errors
/// The claim, where it does not hold.
pub fn check(holds: bool, claim: &str) -> Result {
    if !holds {
        return Err(format!("not true: {claim}").into());
    }
    println!("  true: {claim}");
    Ok(())
}

/// Whether two tensors have the same shape and the same `f32` values, bit for bit.
///
/// # Errors
/// A tensor of another dtype.
pub fn same_bits(a: &Tensor, b: &Tensor) -> Result<bool> {
    let bits = |tensor: &Tensor| -> Result<Vec<u32>> {
        Ok(tensor.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f32::to_bits).collect())
    };
    Ok(a.dims() == b.dims() && bits(a)? == bits(b)?)
}
