//! The scalers as a user meets them: what they decide, what they reserve, and what they refuse.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, missing_docs, reason = "tests")]

use std::sync::Arc;

use dd_core::memory::FixedMemory;
use dd_core::scaling::StepwiseGrowth;
use dd_core::{
    Backend as _, Budget, Bytes, CostModel, DType, Device, Dim, Holder, HostBackend, MemorySample,
    ScalingPlan, ScalingStrategy, Tier,
};
use dd_scale::{AutoScaler, Error, Scaler, ScalingConfig, ScalingConfigBuilder, ScalingResult, Strategy};

/// All of what is available.
fn whole() -> ScalingConfigBuilder {
    ScalingConfig::builder().memory_threshold(1.0).safety_margin(0.0)
}

fn host(bytes: Bytes) -> HostBackend {
    HostBackend::with_tiers([(Tier::Host, bytes)])
}

fn some(list: &[usize]) -> Option<Vec<usize>> {
    (!list.is_empty()).then(|| list.to_vec())
}

/// dims, minima, maxima, steps, frozen
type Wish = (&'static [usize], &'static [usize], &'static [usize], &'static [usize], &'static [usize]);

fn fit(
    wish: Wish,
    strategy: Strategy,
    maximize: bool,
    dtype: DType,
    target: Bytes,
) -> Result<ScalingResult, Error> {
    let (dims, min, max, steps, frozen) = wish;
    let config = whole()
        .strategy(strategy)
        .maximize(maximize)
        .min_dimensions(some(min))
        .max_dimensions(some(max))
        .steps(some(steps))
        .frozen(frozen);
    Scaler::new(config.build()?).fit(dims, dtype, target)
}

#[test]
fn sizes_as_expected() {
    let (linear, exponential) = (Strategy::Linear, Strategy::Exponential);
    type Row = (Wish, Strategy, bool, DType, Bytes, &'static [usize]);
    let rows: [Row; 19] = [
        ((&[1024, 1024, 3], &[], &[], &[], &[]), linear, false, DType::F32, Bytes::mib(2), &[512, 512, 2]),
        (
            (&[1024, 256, 3], &[], &[], &[], &[]),
            exponential,
            false,
            DType::F32,
            Bytes::kib(384),
            &[256, 128, 3],
        ),
        // The channels stay, the batch and the picture give.
        (
            (&[64, 3, 2048, 2048], &[], &[], &[], &[1]),
            linear,
            false,
            DType::F32,
            Bytes::mib(96),
            &[20, 3, 648, 647],
        ),
        (
            (&[1024, 1024, 3], &[], &[], &[8, 8, 1], &[2]),
            linear,
            false,
            DType::F32,
            Bytes::mib(2),
            &[416, 416, 3],
        ),
        // Steps and bounds hold also when nothing needs scaling.
        ((&[30, 100], &[], &[], &[8, 1], &[]), linear, false, DType::U8, Bytes::mib(1), &[24, 100]),
        ((&[5, 100], &[], &[], &[8, 1], &[]), linear, false, DType::U8, Bytes::mib(1), &[8, 100]),
        (
            (&[16, 9999], &[32, 32], &[4096, 4096], &[], &[]),
            linear,
            false,
            DType::U8,
            Bytes::mib(1),
            &[32, 4096],
        ),
        (
            (&[16, 9999], &[32, 32], &[4096, 4096], &[], &[0, 1]),
            linear,
            false,
            DType::U8,
            Bytes::mib(1),
            &[16, 9999],
        ),
        ((&[7], &[], &[], &[], &[]), linear, false, DType::F64, Bytes(55), &[6]),
        ((&[7], &[], &[], &[], &[]), linear, false, DType::F64, Bytes(56), &[7]),
        // Growing keeps the wished proportions, whatever the strategy.
        ((&[100, 50], &[], &[], &[], &[]), linear, true, DType::U8, Bytes(20_000), &[200, 100]),
        ((&[100, 50], &[], &[], &[], &[]), exponential, true, DType::U8, Bytes(20_000), &[200, 100]),
        ((&[100, 50], &[], &[150, 999], &[], &[]), linear, true, DType::U8, Bytes(20_000), &[150, 133]),
        ((&[100, 50], &[], &[], &[], &[1]), linear, true, DType::U8, Bytes(20_000), &[400, 50]),
        ((&[100, 50], &[], &[], &[], &[0, 1]), linear, true, DType::U8, Bytes(20_000), &[100, 50]),
        ((&[100, 50], &[], &[], &[], &[]), linear, true, DType::U8, Bytes(1250), &[50, 25]),
        // Blocks of quantised types stay whole; two 4-bit floats share a byte.
        ((&[10, 1000], &[], &[], &[], &[]), linear, false, DType::Q4K, Bytes::mib(1), &[10, 768]),
        ((&[10, 1024], &[], &[], &[], &[]), linear, false, DType::Q4K, Bytes(1500), &[5, 512]),
        ((&[4, 5], &[], &[], &[], &[]), linear, false, DType::F4, Bytes(10), &[4, 4]),
    ];
    for (wish, strategy, maximize, dtype, target, expected) in rows {
        let result = fit(wish, strategy, maximize, dtype, target).unwrap();
        assert_eq!(result.dims, expected, "{wish:?} {strategy} maximize {maximize} {target}");
        assert!(result.bytes <= target && result.least_distorting, "{result:?}");
        assert_eq!(result.scaled, result.dims != wish.0, "{result:?}");
        for ((factor, size), wished) in result.factors.iter().zip(&result.dims).zip(wish.0) {
            assert!((factor * *wished as f64 - *size as f64).abs() < 1e-9, "{result:?}");
        }
    }
}

#[test]
fn bad_input_is_named_with_index_and_value() {
    let bad = |wish: Wish, dtype, target: u64| {
        let result = fit(wish, Strategy::Linear, false, dtype, Bytes(target));
        result.map_or_else(|error| error.to_string(), |result| format!("found {result:?}"))
    };
    let (f32, none) = (DType::F32, u64::MAX);
    let rows = [
        (bad((&[], &[], &[], &[], &[]), f32, none), "no dimensions given"),
        (bad((&[4, 0], &[], &[], &[], &[]), f32, none), "dimension 1 is 0"),
        (
            bad((&[2, usize::MAX], &[], &[], &[], &[]), f32, none),
            "dimension 1 is 18446744073709551615: with it",
        ),
        (bad((&[1 << 32, 1 << 31, 2], &[], &[], &[], &[]), DType::U8, none), "dimension 2 is 2: with it"),
        (
            bad((&[4, 4], &[1], &[], &[], &[]), f32, none),
            "min_dimensions has 1 entries for 2 dimensions: entry 1 (4)",
        ),
        (
            bad((&[4], &[], &[8, 9], &[], &[]), f32, none),
            "max_dimensions has 2 entries for 1 dimensions: entry 1 (9)",
        ),
        (bad((&[4], &[], &[], &[1, 2], &[]), f32, none), "steps has 2 entries for 1 dimensions: entry 1 (2)"),
        (bad((&[4], &[], &[], &[], &[1]), f32, none), "frozen[0] is 1: there are 1 dimensions"),
        (bad((&[4, 4], &[1, 9], &[9, 8], &[], &[]), f32, none), "min_dimensions[1] is 9"),
        (
            bad((&[4, 4], &[1, 9], &[9, 15], &[1, 8], &[]), f32, none),
            "steps[1] is 8: no multiple of it lies between 9 and 15",
        ),
        (bad((&[4, 300], &[], &[], &[], &[1]), DType::Q8_0, none), "dimension 1 is 300: it is frozen"),
        (
            bad((&[4, 4], &[], &[], &[], &[]), f32, 3),
            "out of memory in the scaling target: 4 B needed (4 B), 3 B available",
        ),
        (bad((&[4, 4], &[2, 2], &[], &[], &[]), f32, 15), "out of memory in the scaling target: 16 B needed"),
        (bad((&[4, 4], &[], &[], &[], &[0, 1]), f32, 63), "out of memory in the scaling target: 64 B needed"),
    ];
    for (found, expected) in rows {
        assert!(found.starts_with(expected), "expected {expected}\nfound {found}");
    }
    assert!("f31".parse::<DType>().is_err() && "tpu".parse::<Device>().is_err());
}

/// What must hold for any wish: in bounds, on steps, within the target, maximal; frozen dimensions as they were.
#[test]
fn invariants_hold_on_random_wishes() {
    let mut state = 7u64;
    let mut random = |low: u64, high: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(low + (state >> 33) % (high - low + 1)).unwrap()
    };
    for _ in 0..20_000 {
        let rank = random(1, 6);
        let most = [1 << 30, 1 << 16, 1 << 12, 1000, 300, 60][rank - 1];
        let dims: Vec<usize> = (0..rank).map(|_| random(1, most)).collect();
        let steps: Vec<usize> =
            (0..rank).map(|_| if random(0, 2) == 0 { random(1, 16) } else { 1 }).collect();
        let min: Vec<usize> = dims.iter().map(|dim| random(1, *dim as u64).div_ceil(4)).collect();
        let max: Vec<usize> = dims.iter().map(|dim| dim + random(16, 64)).collect();
        let frozen: Vec<usize> = (0..rank).filter(|_| random(0, 5) == 0).collect();
        let dtype = [DType::F32, DType::U8, DType::BF16, DType::F64][random(0, 3)];
        let strategy = [Strategy::Linear, Strategy::Exponential, "0.8".parse().unwrap()][random(0, 2)];
        let maximize = random(0, 2) == 0;
        let config = whole()
            .strategy(strategy)
            .maximize(maximize)
            .steps(steps.clone())
            .min_dimensions(min.clone())
            .max_dimensions(max.clone())
            .frozen(frozen.clone());
        let scaler = Scaler::new(config.build().unwrap());
        let target = Bytes(1 << random(4, 32)) + Bytes::of(random(0, 1 << 20));
        let problem = format!("{dims:?} {:?} {target:?} {dtype}", scaler.config());
        let result = match scaler.fit(&dims, dtype, target) {
            Ok(result) => result,
            Err(error) => {
                let least =
                    |i: usize| if frozen.contains(&i) { dims[i] } else { min[i].next_multiple_of(steps[i]) };
                let least: Bytes =
                    dd_scale::fit::estimate(&(0..rank).map(least).collect::<Vec<_>>(), dtype).unwrap();
                assert!(error.is_out_of_memory() && least > target, "{problem}: {error}");
                continue;
            }
        };
        let bytes = |sizes: &[usize]| dd_scale::fit::estimate(sizes, dtype).unwrap_or(Bytes::MAX);
        assert!(result.bytes <= target && result.bytes == bytes(&result.dims), "{problem}: {result:?}");
        for index in 0..rank {
            let size = result.dims[index];
            if frozen.contains(&index) {
                assert_eq!(size, dims[index], "{problem}: {result:?}");
                continue;
            }
            assert!(
                size >= min[index] && size <= max[index] && size.is_multiple_of(steps[index]),
                "{problem}: {result:?}"
            );
            let most = if maximize { max[index] } else { dims[index].max(min[index]) };
            let mut grown = result.dims.clone();
            grown[index] += steps[index];
            assert!(grown[index] > most || bytes(&grown) > target, "{problem}: {result:?} is not maximal");
        }
    }
}

#[test]
fn the_least_of_all_figures_is_available() {
    let sample =
        |available: u64| MemorySample { total: Bytes(1000), used: Bytes(0), available: Bytes(available) };
    let provider = |rows: &[(Tier, u64)]| {
        Arc::new(FixedMemory::new(rows.iter().map(|(tier, bytes)| (*tier, sample(*bytes)))))
    };
    let (device, other) = (Tier::Device(0), Tier::Device(1));
    let budget = Budget::new("job", Bytes(650));
    let _held = budget.reserve(Bytes(100), &Holder::new("weights")).unwrap();
    let backend = || HostBackend::with_tiers([(device, Bytes(900)), (Tier::Host, Bytes(800))]);
    let scaler =
        |device: Device| AutoScaler::new(backend(), whole().device(device).build().unwrap()).unwrap();
    let rows = [
        (scaler(Device::Auto), 900, "host"),
        (scaler(Device::Cpu), 800, "host"),
        (scaler(Device::Cuda(0)).with_provider("gpu", provider(&[(device, 700), (other, 1)])), 700, "gpu"),
        (
            scaler(Device::Cuda(0)).with_provider("container", provider(&[(Tier::Host, 600)])),
            600,
            "container",
        ),
        (scaler(Device::Cpu).with_provider("gpu", provider(&[(device, 1)])), 800, "host"),
        (
            scaler(Device::Auto)
                .with_provider("container", provider(&[(Tier::Host, 600)]))
                .with_budget(budget.clone()),
            550,
            "budget \"job\"",
        ),
    ];
    for (scaler, available, source) in rows {
        let info = scaler.memory_info().unwrap();
        assert_eq!((info.available, info.target), (Bytes(available), Bytes(available)), "{info:?}");
        assert_eq!(info.bound_by().map(|figure| figure.source.as_str()), Some(source), "{info:?}");
        let edge = usize::try_from(available).unwrap();
        assert!(
            scaler.can_fit(&[edge], DType::U8).unwrap() && !scaler.can_fit(&[edge + 1], DType::U8).unwrap()
        );
    }
}

#[test]
fn memory_without_any_bound_is_refused() {
    let unbounded = || host(Bytes::MAX);
    let scaler = || AutoScaler::new(unbounded(), whole().build().unwrap()).unwrap();
    let errors = [
        scaler().memory_info().map(drop).unwrap_err(),
        scaler().can_fit(&[1 << 40], DType::U8).map(drop).unwrap_err(),
        scaler().create_scaled_tensor(&[4], DType::U8, 0.0).map(drop).unwrap_err(),
    ];
    for error in errors {
        let text = error.to_string();
        assert!(text.starts_with("available memory is unbounded: host tells no figure of host"), "{text}");
    }
    let bounded = scaler().with_budget(Budget::new("job", Bytes(10)));
    assert_eq!(bounded.scale_dimensions(&[1 << 40], DType::U8).unwrap(), [10]);
}

#[test]
fn a_backend_that_is_not_there_is_refused() {
    let new = |config: ScalingConfigBuilder| AutoScaler::new(host(Bytes(100)), config.build().unwrap());
    let rows = [
        (new(whole()), ""),
        (new(whole().framework("host")), ""),
        (new(whole().framework("candle")), "framework is \"candle\": the backend is \"host\""),
        (new(whole().device(Device::Cuda(1))), "host has no tier device:1; it has host"),
    ];
    for (found, expected) in rows {
        let found = found.map_or_else(|error| error.to_string(), |_| String::new());
        assert!(found.starts_with(expected) && found.is_empty() == expected.is_empty(), "{found}");
    }
}

#[test]
fn tensors_are_reserved_before_they_are_made_and_given_back() {
    let budget = Budget::new("job", Bytes(4096));
    let backend = Arc::new(host(Bytes::mib(1)));
    let scaler = AutoScaler::shared(Arc::clone(&backend), whole().build().unwrap())
        .unwrap()
        .with_budget(budget.clone());
    let tensor = scaler.create_scaled_tensor(&[100, 100], DType::F32, 1.5).unwrap();
    assert_eq!(tensor.desc().shape(), [32, 32]);
    assert_eq!(tensor.bytes(), 1.5f32.to_le_bytes().repeat(1024));
    assert_eq!(tensor.result().bytes, Bytes(4096));
    assert_eq!(budget.usage().used, Bytes(4096));
    let full = scaler.create_scaled_tensor(&[100], DType::F32, 0.0).map(|_| ()).unwrap_err();
    assert!(full.is_out_of_memory(), "{full}");
    let (tensor, reservation) = tensor.into_parts();
    assert_eq!(reservation.as_ref().map(|held| held.bytes()), Some(Bytes(4096)));
    drop((tensor, reservation));
    assert_eq!((budget.usage().used, backend.memory(Tier::Host).unwrap().used), (Bytes::ZERO, Bytes::ZERO));
    let wrong = scaler.create_scaled_tensor(&[10], DType::U8, 0.5).map(|_| ()).unwrap_err();
    assert!(wrong.to_string().starts_with("U8 cannot hold the fill value 0.5"), "{wrong}");
    assert_eq!(budget.usage().peak, Bytes(4096), "nothing was reserved for what is refused");
}

#[test]
fn large_tensors_are_filled_to_the_end() {
    let scaler = AutoScaler::new(host(Bytes::mib(4)), whole().build().unwrap()).unwrap();
    for (dtype, len) in [(DType::F64, 100_001), (DType::U8, 65_537), (DType::I16, 1)] {
        let tensor = scaler.create_scaled_tensor(&[len], dtype, 3.0).unwrap();
        let element = usize::try_from(dtype.block_bytes()).unwrap();
        let first = tensor.bytes()[..element].to_vec();
        assert_eq!(tensor.bytes().len(), len * element, "{dtype}");
        assert!(first.iter().any(|byte| *byte > 0), "{dtype}");
        assert!(tensor.bytes().chunks(element).all(|chunk| chunk == first), "{dtype}");
    }
}

/// Takes all that was wished, whether it fits or not.
struct Greedy;

impl ScalingStrategy for Greedy {
    fn name(&self) -> &str {
        "greedy"
    }

    fn plan(&self, dims: &[Dim], _: &dyn CostModel, limit: Bytes) -> dd_core::Result<ScalingPlan> {
        Ok(ScalingPlan { sizes: dims.iter().map(|dim| dim.size).collect(), cost: limit, scaled: false })
    }
}

#[test]
fn own_strategies_are_used_and_checked() {
    let scaler = |own: Arc<dyn ScalingStrategy>| Scaler::new(whole().build().unwrap()).with_strategy(own);
    let result = scaler(Arc::new(StepwiseGrowth)).fit(&[100, 100], DType::U8, Bytes(2500)).unwrap();
    assert_eq!((result.dims.as_slice(), result.strategy.as_str()), ([50, 50].as_slice(), "stepwise"));
    let found = scaler(Arc::new(Greedy)).fit(&[100, 100], DType::U8, Bytes(2500)).unwrap_err();
    assert!(
        found.to_string().starts_with("the plan of strategy \"greedy\": expected sizes within"),
        "{found}"
    );
    let fits = scaler(Arc::new(Greedy)).fit(&[50, 50], DType::U8, Bytes(2500)).unwrap();
    assert!(!fits.scaled && fits.strategy == "greedy", "{fits:?}");
}

#[test]
fn results_survive_serialisation() {
    let result =
        fit((&[1024, 1024, 3], &[], &[], &[], &[]), Strategy::Linear, false, DType::F32, Bytes::mib(2))
            .unwrap();
    let text = serde_json::to_string(&result).unwrap();
    assert_eq!(serde_json::from_str::<ScalingResult>(&text).unwrap(), result, "{text}");
}

#[test]
fn reports_are_flat() {
    let result =
        fit((&[1024, 1024, 3], &[], &[], &[], &[]), Strategy::Linear, false, DType::F32, Bytes::mib(2))
            .unwrap();
    let report = dd_scale::report::Report::new(result, Bytes::mib(2));
    let value = serde_json::to_value(&report).unwrap();
    assert_eq!(value["dims"], serde_json::json!([512, 512, 2]), "{value}");
    assert_eq!((&value["used_fraction"], &value["dtype"]), (&1.0.into(), &"F32".into()), "{value}");
}
