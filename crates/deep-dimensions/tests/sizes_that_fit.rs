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
    networks().into_iter().for_each(|(name, most_runs, step)| largest_batch(name, most_runs, &*step));
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

/// What a step is: a forward pass, or a forward and a backward pass; with the most steps of a search by 1 and by 8.
fn networks() -> Vec<(&'static str, [usize; 2], Step)> {
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
    let attention = [layers(&[64, 192], "parts"), layers(&[64, 64], "out")].concat();
    let random = |shape: &[usize]| Tensor::zeros(shape, CandleType::F32, &Device::Cpu);
    vec![
        (
            "a perceptron, forward",
            [8, 4],
            Box::new(move |batch| forward.forward(&random(&[batch, 256])?).map(drop)),
        ),
        (
            "a perceptron, trained",
            [8, 8],
            Box::new(move |batch| {
                trained.forward(&random(&[batch, 256])?)?.sqr()?.mean_all()?.backward().map(drop)
            }),
        ),
        (
            "a convolutional network",
            [4, 3],
            Box::new(move |batch| {
                let hidden = first.forward(&random(&[batch, 3, 64, 64])?)?.relu()?;
                second.forward(&hidden)?.max_pool2d(2).map(drop)
            }),
        ),
        (
            "attention",
            [4, 3],
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

/// The largest batch is found, it fits, and the next one does not: with three steps where samples are large beside what
/// libraries take per step, or batches are multiples of 8; with a few more where neither is so.
fn largest_batch(name: &str, most_runs: [usize; 2], step: &dyn Fn(usize) -> candle_core::Result<()>) {
    let limit = Bytes(33_547_000); // Not within a rounding of any batch of these networks.
    let peak = |batch: usize| {
        let (done, peak) = heap_peak(|| step(batch));
        done.map(|()| peak)
    };
    // Libraries set up their threads and tables in the first steps.
    (1..4).for_each(|batch| step(batch).unwrap());
    for (multiple, most_runs) in [1, 8].into_iter().zip(most_runs) {
        let mut runner =
            |batch: usize| peak(batch).map_err(|error| CoreError::library("candle", "run a step", error));
        let search = BatchSearch::new(limit).step(multiple);
        let report = search.find_max_batch(Prior::Probes, &mut runner).unwrap();
        let runs: Vec<usize> = report.runs.iter().map(|run| run.batch).collect();
        let next = peak(report.batch + multiple).unwrap();
        println!(
            "{name}, by {multiple}: {} takes {}, the next one {next}; runs {runs:?}",
            report.batch, report.peak
        );
        assert!(report.peak <= limit && report.largest, "{name}: {report:?}");
        assert!(next > limit, "{name}: {} would take {next} of {limit}: {report:?}", report.batch + multiple);
        assert!(runs.len() <= most_runs, "{name}: {report:?}");
    }
}
