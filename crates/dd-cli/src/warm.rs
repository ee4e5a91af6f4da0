//! Brings up what stays for the life of the process, so that it is measured as part of the process's own constant
//! and not of a model: the code of every operation, threads, and one packing buffer per thread.

use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use deep_dimensions::core::Bytes;

use crate::bert::{Bert, Ragged};
use crate::error::{CliError, Result};
use crate::testing;

/// One pass of a very small model, and matrix products that are large enough for every thread.
///
/// # Errors
/// What the tensor library says.
pub fn up() -> Result<()> {
    let failed = || CliError::tensor("warm-up");
    let config = testing::config(64, 4, 128, 1);
    let model = Bert::held(&testing::builder(&config).map_err(failed())?, &config)?;
    model.forward(&Ragged::new([[0; 130].as_slice(), &[1; 3]]), &mut |_| {})?;
    (0..4).try_for_each(|_| product()).map_err(failed())
}

fn product() -> candle_core::Result<()> {
    let a = Tensor::zeros((256, 1024), DType::F32, &Device::Cpu)?;
    let b = Tensor::zeros((512, 1024), DType::F32, &Device::Cpu)?;
    let states = a.matmul(&b.t()?)?;
    candle_nn::ops::softmax_last_dim(&states.relu()?).map(drop)
}

/// Seconds that a pass over one token takes for so many bytes of F32 weights, all in memory: the time of a product of a
/// vector with 8 MiB of zeros, scaled. What is held for it is given back before this returns.
///
/// # Errors
/// What the tensor library says.
pub fn seconds_for_weights(weights: Bytes) -> Result<f64> {
    const ROWS: usize = 2048;
    const COLUMNS: usize = 1024;
    let time = || {
        let w = Tensor::zeros((ROWS, COLUMNS), DType::F32, &Device::Cpu)?.contiguous()?;
        let x = Tensor::zeros((1, COLUMNS), DType::F32, &Device::Cpu)?;
        let product = |_| {
            let started = Instant::now();
            x.matmul(&w.t()?).map(|_| started.elapsed().as_secs_f64())
        };
        (0..5).map(product).collect::<candle_core::Result<Vec<f64>>>()
    };
    let times = time().map_err(CliError::tensor("a product of zeros"))?;
    let best = times.into_iter().fold(f64::INFINITY, f64::min);
    Ok(best * weights.0 as f64 / (ROWS * COLUMNS * 4) as f64)
}
