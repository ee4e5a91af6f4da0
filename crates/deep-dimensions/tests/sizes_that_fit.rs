//! Sizes that fit, with candle: tensors that are made to a budget, and the largest batch of real networks. The heap is
//! counted, so that what is claimed is what was held. One test, because the counters belong to the whole process.
#![cfg(feature = "candle")]
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "tests")]

use candle_core::{D, DType as CandleType, Device, Tensor};
use candle_nn::{Conv2dConfig, Linear, Module, Sequential, VarBuilder, VarMap, conv2d, linear, seq};
use deep_dimensions::candle::CandleBackend;
use deep_dimensions::core::{Backend as _, Budget, Bytes, DType, Device as Place, Error as CoreError, Tier};
use deep_dimensions::monitor::CountingAllocator;
use deep_dimensions::monitor::allocator::{heap_total, reset_heap_peaks};
use deep_dimensions::scale::{AutoScaler, BatchSearch, Prior, ScalingConfig};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator::system();

/// What the measuring itself, and whatever else the process does, may take.
const NOISE: Bytes = Bytes::kib(256);

#[test]
fn sizes_that_fit() {
    tensors_are_made_to_the_budget();
    networks().into_iter().for_each(|(name, step)| largest_batch(name, &*step));
}

/// The most that the heap holds beyond what it holds now, while this runs.
fn heap_peak<T>(run: impl FnOnce() -> T) -> (T, Bytes) {
    reset_heap_peaks();
    let before = heap_total().unwrap().held;
    let value = run();
    (value, heap_total().unwrap().peak.saturating_sub(before))
}

fn tensors_are_made_to_the_budget() {
    let budget = Budget::new("job", Bytes::mib(2));
    let config = ScalingConfig::builder().memory_threshold(1.0).safety_margin(0.0).framework("candle");
    let backend = CandleBackend::new(Place::Cpu).unwrap();
    let scaler = AutoScaler::new(backend, config.build().unwrap()).unwrap().with_budget(budget.clone());
    assert_eq!((scaler.framework(), scaler.tier()), ("candle", Tier::Host));

    let (tensor, peak) =
        heap_peak(|| scaler.create_scaled_tensor(&[1024, 1024, 3], DType::F32, 1.5).unwrap());
    assert_eq!(tensor.dims(), [512, 512, 2], "the tensor is candle's own");
    assert_eq!(budget.usage().used, Bytes::mib(2));
    assert!(peak >= Bytes::mib(2) && peak <= Bytes::mib(2) + NOISE, "{peak}");
    let values: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
    assert!(values.iter().all(|value| *value == 1.5));

    // Nothing is left of the budget: nothing is allocated, either.
    let (full, peak) = heap_peak(|| scaler.create_scaled_tensor(&[1024, 1024], DType::F32, 0.0).map(|_| ()));
    assert!(full.unwrap_err().is_out_of_memory());
    assert!(peak <= NOISE, "{peak}");
    drop(tensor);
    assert_eq!(budget.usage().used, Bytes::ZERO);
    let half = scaler.create_scaled_tensor(&[64, 16], DType::BF16, -2.0).unwrap();
    assert_eq!((half.dtype(), half.dims()), (CandleType::BF16, [64, 16].as_slice()));
    let backend = CandleBackend::new(Place::Cpu).unwrap();
    assert_eq!(backend.download(&half).unwrap(), half_of_minus_two().repeat(64 * 16));
}

const fn half_of_minus_two() -> [u8; 2] {
    [0x00, 0xc0]
}

type Step = Box<dyn Fn(usize) -> candle_core::Result<()>>;

/// What a step is: a forward pass, or a forward and a backward pass.
fn networks() -> Vec<(&'static str, Step)> {
    let device = Device::Cpu;
    let weights = VarMap::new();
    let at = VarBuilder::from_varmap(&weights, CandleType::F32, &device);
    let layers = |sizes: &[usize], name: &str| {
        let pairs = sizes.iter().zip(sizes.iter().skip(1)).enumerate();
        let layer =
            |(n, (from, to)): (usize, (&usize, &usize))| linear(*from, *to, at.pp(format!("{name}{n}")));
        pairs.map(layer).collect::<candle_core::Result<Vec<Linear>>>().unwrap()
    };
    let mlp = |layers: Vec<Linear>| {
        layers.into_iter().fold(seq(), |network: Sequential, layer| network.add(layer).add_fn(|x| x.relu()))
    };
    let [forward, trained] = ["forward", "trained"].map(|name| mlp(layers(&[256, 1024, 512, 10], name)));
    let same = Conv2dConfig { padding: 1, ..Conv2dConfig::default() };
    let first = conv2d(3, 16, 3, same, at.pp("first")).unwrap();
    let second = conv2d(16, 8, 3, same, at.pp("second")).unwrap();
    let attention = layers(&[64, 192, 64], "attention");
    let random = |shape: &[usize]| Tensor::zeros(shape, CandleType::F32, &Device::Cpu);
    vec![
        ("a perceptron, forward", Box::new(move |batch| forward.forward(&random(&[batch, 256])?).map(drop))),
        (
            "a perceptron, trained",
            Box::new(move |batch| {
                trained.forward(&random(&[batch, 256])?)?.sqr()?.mean_all()?.backward().map(drop)
            }),
        ),
        (
            "a convolutional network",
            Box::new(move |batch| {
                let hidden = first.forward(&random(&[batch, 3, 32, 32])?)?.relu()?;
                second.forward(&hidden)?.max_pool2d(2).map(drop)
            }),
        ),
        (
            "attention",
            Box::new(move |batch| {
                let [all, out] = attention.as_slice() else { panic!("two layers") };
                let all = all.forward(&random(&[batch, 32, 64])?)?;
                let part = |n: usize| all.narrow(D::Minus1, n * 64, 64)?.contiguous();
                let scores = part(0)?.matmul(&part(1)?.t()?)?;
                let shares = candle_nn::ops::softmax_last_dim(&scores)?;
                out.forward(&shares.matmul(&part(2)?)?).map(drop)
            }),
        ),
    ]
}

/// The largest batch is found in three steps, it fits, and the next one does not.
fn largest_batch(name: &str, step: &dyn Fn(usize) -> candle_core::Result<()>) {
    let peak = |batch: usize| {
        let (done, peak) = heap_peak(|| step(batch));
        done.map(|()| peak)
    };
    // Libraries set up their threads and tables in the first steps.
    (1..4).for_each(|batch| step(batch).unwrap());
    for limit in [Bytes::mib(8), Bytes::mib(48)] {
        let mut runner =
            |batch: usize| peak(batch).map_err(|error| CoreError::library("candle", "run a step", error));
        let report = BatchSearch::new(limit).find_max_batch(Prior::Probes, &mut runner).unwrap();
        println!("{name} in {limit}: {} takes {}, runs {:?}", report.batch, report.peak, report.runs);
        assert!(report.peak <= limit && report.largest, "{name}: {report:?}");
        assert!(report.runs.len() <= 3, "{name}: {report:?}");
        let next = peak(report.batch + 1).unwrap();
        assert!(next > limit, "{name}: {} would take {next} of {limit}: {report:?}", report.batch + 1);
    }
}
