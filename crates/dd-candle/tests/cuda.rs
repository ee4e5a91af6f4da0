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
    backend.inspect_err(|error| println!("skipped: copies beside kernels: {error}")).ok()
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

/// The time of copies and kernels one after the other, and side by side. For a person to read.
#[test]
#[ignore = "prints times: run it by hand on a GPU, see docs/gpu-checklist.md"]
fn copies_and_kernels_side_by_side() {
    let Some(backend) = backend() else { return };
    stream_through(&backend, 64, 20); // Warms up.
    for (name, limit) in [("one stream, waiting", Bytes::ZERO), ("streams of their own", Bytes::mib(12))] {
        let backend = backend.clone().with_staging_limit(limit);
        for kernels in [1, 5, 20, 80] {
            println!("{name}, {kernels} kernels a step: {:?}", stream_through(&backend, 64, kernels));
        }
    }
}
