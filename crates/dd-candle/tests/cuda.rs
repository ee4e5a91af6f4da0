//! Copies beside kernels, on an NVIDIA device: new weights go into storage whose old weights queued kernels still
//! read, and each product must be of the weights that it was given. Skipped where there is no such device.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::time::{Duration, Instant};

use candle_core::Tensor;
use dd_candle::CandleBackend;
use dd_core::{Backend, Bytes, DType, Device, Error, TensorDesc, Tier};

const NEAR: Tier = Tier::Device(0);

/// Weights are `[SIDE, SIDE]`, 4 MiB of F32; a step's are all the step's number.
const SIDE: usize = 1024;

fn backend() -> Option<CandleBackend> {
    let backend = CandleBackend::new(Device::Cuda(0));
    backend.inspect_err(|error| dd_conformance::skipped!("copies beside kernels: {error}")).ok()
}

fn desc(rows: usize) -> TensorDesc {
    TensorDesc::new([rows, SIDE], DType::F32).unwrap()
}

fn weights(step: u16) -> Vec<u8> {
    f32::from(step).to_le_bytes().repeat(SIDE * SIDE)
}

/// Twice a row, in storage of its own: the product need not be kept.
fn doubled(product: &Tensor, row: usize) -> Tensor {
    let row = product.narrow(0, row, 1).unwrap();
    (&row + &row).unwrap()
}

/// Streams `steps` weights through two storages, in pieces, each read by `kernels` products that are queued and not
/// waited for; then checks all products. The time is that of the work, not of the check.
fn stream_through(backend: &CandleBackend, steps: u16, kernels: usize) -> Duration {
    let pieces: Vec<Vec<u8>> = (0..steps).map(weights).collect();
    let ones = backend.upload(&desc(SIDE), &weights(1), NEAR).unwrap();
    let mut slots = [0, 1].map(|_| backend.allocate(&desc(SIDE), NEAR).unwrap());
    backend.synchronize(NEAR).unwrap();
    let start = Instant::now();
    let mut products = Vec::new();
    for bytes in &pieces {
        slots.swap(0, 1);
        let [slot, _] = &mut slots;
        assert!(backend.is_unique(slot), "nobody holds this storage, whatever is still queued on it");
        for (number, piece) in bytes.chunks(1 << 20).enumerate() {
            backend.write(slot, number << 20, piece).unwrap();
        }
        let handle = backend.share(slot);
        let step: Vec<Tensor> = (0..kernels).map(|_| ones.matmul(&handle).unwrap()).collect();
        products.extend(step.first().map(|first| doubled(first, 0)));
        products.extend(step.last().map(|last| doubled(last, SIDE - 1)));
    }
    backend.synchronize(NEAR).unwrap();
    let took = start.elapsed();
    for (number, product) in products.iter().enumerate() {
        let expected = (number / 2 * SIDE * 2) as f32; // Whole numbers below 2²⁴: exact in any order of summing.
        let found = product.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert!(found.iter().all(|value| *value == expected), "product {number} is not of its own weights");
    }
    took
}

#[test]
fn kernels_see_the_weights_that_were_written_for_them() {
    let Some(backend) = backend() else { return };
    for limit in [Bytes::mib(12), Bytes::kib(192), Bytes::ZERO] {
        let backend = backend.clone().with_staging_limit(limit);
        stream_through(&backend, 16, 3);
        assert!(backend.staging() <= backend.staging_limit() && backend.staging_limit() <= limit);
        backend.trim(Tier::Host).unwrap();
        assert_eq!(backend.staging(), Bytes::ZERO);
    }
}

#[test]
fn what_kernels_wrote_is_read_back_after_them() {
    let Some(backend) = backend() else { return };
    for limit in [Bytes::mib(12), Bytes::ZERO] {
        let backend = backend.clone().with_staging_limit(limit);
        let ones = backend.upload(&desc(SIDE), &weights(1), NEAR).unwrap();
        let mut sum = ones.clone();
        for _ in 0..100 {
            sum = (&sum + &ones).unwrap();
        }
        assert!(backend.download(&sum).unwrap() == weights(101), "read before the kernels were done");
    }
}

#[test]
fn a_full_device_is_an_error_and_goes_on() {
    let Some(backend) = backend() else { return };
    let total = backend.memory(NEAR).unwrap().total;
    let rows = usize::try_from(total.0).unwrap() / (4 * SIDE) * 2 / 3; // Two thirds: the second is too many.
    let first = backend.allocate(&desc(rows), NEAR);
    let second = backend.allocate(&desc(rows), NEAR);
    let refused = first.err().or(second.err()).expect("two thirds fit only once");
    assert!(matches!(refused, Error::OutOfMemory { .. }), "{refused}");
    backend.trim(NEAR).unwrap();
    stream_through(&backend, 4, 1);
}

/// The time of copies and kernels one after the other, and side by side, by the size of the blocks. For a person to
/// read.
#[test]
#[ignore = "prints times: run it by hand on a GPU, see docs/gpu-checklist.md"]
fn copies_and_kernels_side_by_side() {
    let Some(backend) = backend() else { return };
    const STEPS: u16 = 64;
    stream_through(&backend, STEPS, 20); // Warms up.
    for limit in [0, 1, 3, 12, 48] {
        let backend = backend.clone().with_staging_limit(Bytes::mib(limit));
        let name = if limit == 0 { "one stream, waiting" } else { "streams of their own" };
        for kernels in [1, 5, 20, 80] {
            let took = stream_through(&backend, STEPS, kernels);
            let rate = f64::from(STEPS) * (SIDE * SIDE * 4) as f64 / took.as_secs_f64() / 1e9;
            println!("{name}, {limit} MiB, {kernels} kernels a step: {took:?}, {rate:.2} GB/s");
        }
    }
}

/// The time of a pass with everything in place, unmanaged and managed, and with weights streamed within a part of what
/// they take. For a person to read.
#[cfg(feature = "offload")]
#[test]
#[ignore = "prints times: run it by hand on a GPU, see docs/gpu-checklist.md"]
fn a_model_within_a_part_of_its_weights() {
    let Some(backend) = backend() else { return };
    model::passes(&backend);
}

#[cfg(feature = "offload")]
mod model {
    use std::collections::HashMap;
    use std::time::{Duration, Instant};

    use candle_core::{DType, Device, Tensor};
    use candle_nn::{Linear, Module, VarBuilder, linear_no_bias};
    use dd_candle::CandleBackend;
    use dd_candle::managed::ManagedModel;
    use dd_core::{Backend as _, Bytes};
    use dd_offload::MemoryConfig;

    /// Layers of `[WIDTH, WIDTH]` in F16, 32 MiB each: 1 GiB.
    const LAYERS: usize = 32;
    const WIDTH: usize = 4096;

    const PASSES: u32 = 10;

    fn layer(vb: VarBuilder<'_>) -> candle_core::Result<Linear> {
        linear_no_bias(WIDTH, WIDTH, vb)
    }

    /// The last output, the mean time of a pass after two that are not counted, and by how much `loads` grew meanwhile.
    fn time(
        backend: &CandleBackend,
        x: &Tensor,
        layers: &[impl Module],
        loads: impl Fn() -> u64,
    ) -> (Vec<u8>, Duration, u64) {
        let pass = || layers.iter().fold(x.clone(), |x, layer| layer.forward(&x).unwrap());
        pass();
        let mut out = pass();
        backend.download(&out).unwrap(); // Waits.
        let (start, before) = (Instant::now(), loads());
        for _ in 0..PASSES {
            out = pass();
        }
        let bytes = backend.download(&out).unwrap();
        (bytes, start.elapsed() / PASSES, loads() - before)
    }

    pub(super) fn passes(backend: &CandleBackend) {
        let near = backend.tiers().first().copied().unwrap();
        let used = || backend.memory(near).unwrap().used;
        let (device, before) = (backend.device(), used());
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let path = dir.path().join("model.safetensors");
        let random = || Tensor::randn(0f32, 0.015, (WIDTH, WIDTH), &Device::Cpu)?.to_dtype(DType::F16);
        let tensors: HashMap<_, _> =
            (0..LAYERS).map(|n| (format!("layers.{n}.weight"), random().unwrap())).collect();
        candle_core::safetensors::save(&tensors, &path).unwrap();
        let weights = Bytes::of(LAYERS * WIDTH * WIDTH * 2);
        // Few rows, so that copies are what takes time; and many, so that they can hide behind the products.
        for rows in [1, 2_048] {
            let x = Tensor::randn(0f32, 1.0, (rows, WIDTH), device).unwrap().to_dtype(DType::F16).unwrap();
            let there =
                tensors.iter().map(|(name, t)| (name.clone(), t.to_device(device).unwrap())).collect();
            let vb = VarBuilder::from_tensors(there, DType::F16, device);
            let layers: Vec<_> = (0..LAYERS).map(|n| layer(vb.pp(format!("layers.{n}"))).unwrap()).collect();
            let (expected, took, _) = time(backend, &x, &layers, || 0);
            println!("{rows} rows, unmanaged: {took:?} a pass");
            drop((vb, layers));
            for share in [1.1, 0.5, 0.25] {
                backend.trim(near).unwrap();
                let limit = weights.scaled(share);
                let config = MemoryConfig::builder()
                    .memory_limit(limit + weights + Bytes::mib(128) + backend.transfer_memory())
                    .device_limit(limit)
                    .build()
                    .unwrap();
                let model = ManagedModel::open(&path, backend.clone(), config).unwrap();
                let layers: Vec<_> =
                    (0..LAYERS).map(|n| model.module(&format!("layers.{n}"), layer).unwrap()).collect();
                let loads = || model.manager().memory_summary().loads;
                let (found, took, loads) = time(backend, &x, &layers, loads);
                assert!(found == expected, "{rows} rows within {limit}: not the unmanaged output");
                let copied = Bytes(weights.0 / LAYERS as u64 * loads / u64::from(PASSES));
                let rate = copied.0 as f64 / took.as_secs_f64() / 1e9;
                let above = used().saturating_sub(before);
                println!(
                    "{rows} rows within {limit}: {took:?} a pass, {copied} copied to the device a pass, \
                     {rate:.2} GB/s, device memory {above} above the start, page-locked {}",
                    backend.staging(),
                );
            }
        }
        backend.trim(near).unwrap();
        println!("at the end: device memory {} above the start", used().saturating_sub(before));
    }
}
