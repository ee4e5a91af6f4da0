//! Which tensors a model will ask for, known before any is read.
//!
//! The library's constructor itself is asked: it is run once over a source that answers every question with a view of
//! a single zero, which takes no memory, and writes down what was asked. So the list cannot differ from what the
//! library will do. A checkpoint is compared with it before the model is made, because some of the library's
//! constructors panic where a tensor is missing.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Device, Result as CandleResult, Shape, Tensor};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};
use deep_dimensions::offload::checkpoint::Checkpoint;
use deep_dimensions::pager::packed::PackedCheckpoint;

use super::config::ModelConfig;
use super::model;
use crate::error::{CliError, Result};

/// A tensor that a model asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Required {
    /// Its name in the checkpoint.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
}

impl Required {
    /// How many values it has.
    #[must_use]
    pub fn elements(&self) -> u64 {
        self.shape.iter().map(|dim| *dim as u64).product()
    }
}

/// What the model of `config` asks for, in the order of asking, each name once. `contains` says what a checkpoint has:
/// some families look before they ask.
///
/// # Errors
/// [`CliError::Input`] where the config cannot be; [`CliError::Tensor`] where the library says so.
pub fn of(config: &ModelConfig, contains: &dyn Fn(&str) -> bool) -> Result<Vec<Required>> {
    // The library wants a source that outlives this call, so the few names that it looks for are looked up at once.
    let known = PROBED.iter().copied().filter(|name| contains(name)).collect();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let recorder = Recorder { asked: Arc::clone(&asked), known };
    let vb = VarBuilder::from_backend(Box::new(recorder), DType::F32, Device::Cpu);
    drop(model::open(config, &vb, 1)?);
    let mut asked = std::mem::take(&mut *asked.lock().unwrap_or_else(PoisonError::into_inner));
    let mut seen = std::collections::HashSet::new();
    asked.retain(|required: &Required| seen.insert(required.name.clone()));
    Ok(asked)
}

/// Checks that a checkpoint has every tensor that the model will ask for, in its shape, and gives the list.
///
/// # Errors
/// [`CliError::Model`] with the tensor that is missing; [`CliError::Input`] with one of another shape; as [`of`].
pub fn check(config: &ModelConfig, checkpoint: &Checkpoint) -> Result<Vec<Required>> {
    let all = of(config, &|name| checkpoint.contains(name))?;
    // A packed file's tensors are bytes; what they are when unpacked is what the model asks for.
    let packed = match PackedCheckpoint::is_packed(checkpoint)? {
        true => Some(PackedCheckpoint::open(checkpoint.path())?),
        false => None,
    };
    for required in &all {
        let found = checkpoint.tensor(&required.name)?.desc.shape();
        let found = match &packed {
            Some(packed) => packed.tensor(&required.name)?.desc().shape(),
            None => found,
        };
        if *found != *required.shape {
            return Err(CliError::input(
                format!("{}, tensor {:?}", checkpoint.path().display(), required.name),
                format!("its shape is {found:?}, {} asks for {:?}", config.place(), required.shape),
                "take config.json and the weights from the same model",
            ));
        }
    }
    Ok(all)
}

/// The names that families look for before they ask.
const PROBED: [&str; 3] = ["lm_head.weight", "shared.weight", "bert.embeddings.word_embeddings.weight"];

/// Answers every question with zeros that take no memory.
struct Recorder {
    asked: Arc<Mutex<Vec<Required>>>,
    known: Vec<&'static str>,
}

impl SimpleBackend for Recorder {
    fn get(&self, shape: Shape, name: &str, _: Init, dtype: DType, device: &Device) -> CandleResult<Tensor> {
        let required = Required { name: name.to_owned(), shape: shape.dims().to_vec() };
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).push(required);
        Tensor::zeros((), dtype, device)?.broadcast_as(shape)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> CandleResult<Tensor> {
        Err(candle_core::Error::Msg(format!("{name} is asked for without its shape")))
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.known.contains(&name)
    }
}
