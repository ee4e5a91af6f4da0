//! The traced peak against what is measured at larger sizes, for candle's own order of freeing.
#![cfg(feature = "inspect")]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs, reason = "tests")]

use std::alloc::System;

use candle_core::{D, DType, Device, Result, Tensor};
use candle_nn::ops::softmax_last_dim;
use candle_nn::rnn::{LSTMConfig, RNN as _, lstm};
use candle_nn::{AdamW, Conv2dConfig, Module as _, Optimizer as _, ParamsAdamW, VarBuilder, VarMap};
use dd_candle::inspect::{RecordingAllocator, measure, trace};
use dd_core::CostModel as _;

#[global_allocator]
static ALLOCATOR: RecordingAllocator<System> = RecordingAllocator::new(System);

/// Makes a network and applies it to a batch.
type Network = fn(&VarBuilder<'_>, usize) -> Result<Tensor>;

const NETWORKS: [(&str, Network); 5] =
    [("mlp", mlp), ("cnn", cnn), ("unet", unet), ("transformer", transformer), ("lstm", recurrent)];

/// One worker: how many of candle's threads hold a workspace at once is otherwise another in every run.
fn one_worker() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| rayon::ThreadPoolBuilder::new().num_threads(1).build_global().unwrap());
}

fn ones(shape: &[usize]) -> Result<Tensor> {
    Tensor::ones(shape, DType::F32, &Device::Cpu)
}

fn mlp(vb: &VarBuilder<'_>, batch: usize) -> Result<Tensor> {
    let mut x = ones(&[batch, 128])?;
    for (at, (inputs, outputs)) in [(128, 256), (256, 192), (192, 256)].into_iter().enumerate() {
        x = candle_nn::linear(inputs, outputs, vb.pp(at))?.forward(&x)?.gelu()?;
    }
    candle_nn::linear(256, 64, vb.pp("head"))?.forward(&x)
}

fn conv(vb: VarBuilder<'_>, x: &Tensor, outputs: usize) -> Result<Tensor> {
    let config = Conv2dConfig { padding: 1, ..Conv2dConfig::default() };
    candle_nn::conv2d(x.dim(1)?, outputs, 3, config, vb)?.forward(x)
}

fn cnn(vb: &VarBuilder<'_>, batch: usize) -> Result<Tensor> {
    let x = ones(&[batch, 3, 16, 16])?;
    let mut x = conv(vb.pp("stem"), &x, 8)?;
    for at in 0..3 {
        let vb = vb.pp(at);
        let h = conv(vb.pp("a"), &x, 8)?.relu()?;
        let h = conv(vb.pp("b"), &h, 8)?;
        x = (h + x)?.relu()?;
    }
    let x = x.max_pool2d(2)?.flatten_from(1)?;
    candle_nn::linear(8 * 8 * 8, 32, vb.pp("head"))?.forward(&x)
}

fn unet(vb: &VarBuilder<'_>, batch: usize) -> Result<Tensor> {
    let x = ones(&[batch, 1, 16, 16])?;
    let first = conv(vb.pp("first"), &x, 4)?.relu()?;
    let second = conv(vb.pp("second"), &first.max_pool2d(2)?, 8)?.relu()?;
    let deep = conv(vb.pp("deep"), &second.max_pool2d(2)?, 8)?.relu()?;
    let up = Tensor::cat(&[second, deep.upsample_nearest2d(8, 8)?], 1)?;
    let up = conv(vb.pp("up"), &up, 4)?.relu()?;
    let up = Tensor::cat(&[first, up.upsample_nearest2d(16, 16)?], 1)?;
    conv(vb.pp("last"), &up, 4)
}

fn transformer(vb: &VarBuilder<'_>, batch: usize) -> Result<Tensor> {
    let (seq, width, heads) = (16, 64, 4);
    let mut x = ones(&[batch, seq, width])?;
    for at in 0..2 {
        let vb = vb.pp(at);
        let h = candle_nn::rms_norm(width, 1e-5, vb.pp("norm_1"))?.forward_diff(&x)?;
        let split = |name: &str| -> Result<Tensor> {
            let y = candle_nn::linear(width, width, vb.pp(name))?.forward(&h)?;
            y.reshape((batch, seq, heads, width / heads))?.transpose(1, 2)?.contiguous()
        };
        let (q, k, v) = (split("q")?, split("k")?, split("v")?);
        let scores = (q.matmul(&k.t()?.contiguous()?)? * 0.25)?;
        let shares = candle_nn::ops::softmax(&scores, D::Minus1)?;
        let a = shares.matmul(&v)?.transpose(1, 2)?.reshape((batch, seq, width))?;
        x = (x + candle_nn::linear(width, width, vb.pp("o"))?.forward(&a)?)?;
        let h = candle_nn::rms_norm(width, 1e-5, vb.pp("norm_2"))?.forward_diff(&x)?;
        let h = candle_nn::linear(width, 4 * width, vb.pp("up"))?.forward(&h)?.silu()?;
        x = (x + candle_nn::linear(4 * width, width, vb.pp("down"))?.forward(&h)?)?;
    }
    Ok(x)
}

fn recurrent(vb: &VarBuilder<'_>, batch: usize) -> Result<Tensor> {
    let x = ones(&[batch, 8, 32])?;
    let cell = lstm(32, 64, LSTMConfig::default(), vb.pp("lstm"))?;
    let states = cell.seq(&x)?;
    let x = cell.states_to_tensor(&states)?;
    candle_nn::linear(64, 32, vb.pp("head"))?.forward(&x)
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    /// Over plain tensors.
    Inference,
    /// Over variables, without a gradient.
    Variables,
    /// Forward, backward, AdamW.
    Training,
}

/// Everything from nothing: the weights, the optimizer, a batch, a step.
fn step(network: Network, way: Way, batch: usize) -> Result<()> {
    if way == Way::Inference {
        let vb = VarBuilder::zeros(DType::F32, &Device::Cpu);
        return network(&vb, batch).map(drop);
    }
    let map = VarMap::new();
    let vb = VarBuilder::from_varmap(&map, DType::F32, &Device::Cpu);
    let y = network(&vb, batch)?;
    if way == Way::Training {
        // In the order of their names: a map's own order is another in every run.
        let mut named: Vec<_> =
            map.data().lock().unwrap().iter().map(|(k, v)| (k.clone(), v.clone())).collect();
        named.sort_by(|a, b| a.0.cmp(&b.0));
        let vars = named.into_iter().map(|(_, var)| var).collect();
        let mut optimizer = AdamW::new(vars, ParamsAdamW::default())?;
        let loss = y.sqr()?.mean_all()?;
        optimizer.backward_step(&loss)?;
    }
    Ok(())
}

#[test]
fn the_traced_peak_is_never_below_what_is_measured_and_within_two_percent() {
    one_worker();
    let mut wrong = Vec::new();
    for (name, network) in NETWORKS {
        for way in [Way::Inference, Way::Variables, Way::Training] {
            let model = trace(&[16, 24, 32], |batch| step(network, way, batch)).unwrap();
            for batch in [16, 20, 48, 64, 100] {
                let measured = measure(batch, |batch| step(network, way, batch)).unwrap().peak().0;
                let said = model.peak(&[batch]).unwrap().0;
                let ratio = said as f64 / measured as f64;
                println!("{name} {way:?} {batch}: said {said}, measured {measured}, ratio {ratio:.4}");
                if !(1.0..=1.02).contains(&ratio) {
                    wrong.push(format!(
                        "{name} {way:?} {batch}: said {said}, measured {measured}: {ratio:.4}"
                    ));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn variables_cost_more_than_tensors_in_a_forward_pass() {
    one_worker();
    let peak = |way| measure(64, |batch| step(mlp, way, batch)).unwrap().peak().0;
    let (tensors, variables, training) = (peak(Way::Inference), peak(Way::Variables), peak(Way::Training));
    println!("tensors {tensors}, variables {variables}, training {training}");
    assert!(variables > tensors && training > variables);
}

#[test]
fn what_does_not_repeat_is_refused() {
    one_worker();
    let mut calls = 0;
    let refused = trace(&[8, 16, 32], |batch| {
        calls += 1;
        let x = ones(&[batch, 1024])?;
        if calls == 3 { softmax_last_dim(&x).map(drop) } else { Ok(()) }
    });
    assert!(refused.unwrap_err().to_string().contains("do not fit together"));
    assert!(trace(&[8, 16], |batch| ones(&[batch, 1024])).unwrap_err().to_string().contains("three"));
    let failed = trace(&[8, 16, 32], |batch| ones(&[batch, 4])?.reshape((batch, 5)));
    assert!(failed.unwrap_err().to_string().contains("candle failed at size 32"));
}
