//! The sizes that are chosen against brute force: every choice of a small grid is looked at, with κ solved in another way.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, missing_docs, reason = "tests")]
#![allow(clippy::cast_possible_truncation, reason = "small numbers")]

use dd_core::{Bytes, DType, Dim, ScalingStrategy};
use dd_scale::cost::TensorCost;
use dd_scale::{PowerLaw, Scaler, ScalingConfig, Strategy};

/// Relative slack of the comparison between two ways to compute the same real numbers.
const SLACK: f64 = 1e-9;

/// A small generator (splitmix64): the same cases in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn within(&mut self, low: usize, high: usize) -> usize {
        low + (self.next() % (high - low + 1) as u64) as usize
    }
}

#[derive(Debug)]
struct Case {
    dims: Vec<Dim>,
    gamma: f64,
    /// In elements of one byte.
    limit: u64,
}

fn case(random: &mut Random) -> Case {
    let rank = random.within(1, 4);
    let most = [40, 14, 8, 6][rank - 1];
    let dims: Vec<Dim> = (0..rank)
        .map(|_| {
            let step = if random.within(0, 3) == 0 { random.within(2, 4) } else { 1 };
            let min = if random.within(0, 3) == 0 { random.within(1, 3) } else { 1 };
            let wide = random.within(0, most) / step * step;
            match random.within(0, 9) {
                0 => Dim::frozen(min + wide),
                _ => Dim { size: (min + wide) / step * step + step, min: step * min.div_ceil(step), step },
            }
        })
        .map(|dim| Dim { size: dim.size.max(dim.min), ..dim })
        .collect();
    let least: usize = dims.iter().map(|dim| dim.min).product();
    let most: usize = dims.iter().map(|dim| dim.size).product();
    let gamma = [0.0, 0.3, 0.5, 1.0, 1.0, 0.5, 2.0][random.within(0, 6)];
    Case { limit: random.within(least, most) as u64, dims, gamma }
}

/// The ideal sizes, by halving an interval of κ.
fn ideal(case: &Case) -> Vec<f64> {
    let at = |kappa: f64| {
        case.dims.iter().map(move |dim| {
            (kappa * (dim.size as f64).powf(case.gamma)).clamp(dim.min as f64, dim.size as f64)
        })
    };
    let (mut low, mut high) = (0.0, 1e6);
    for _ in 0..90 {
        let middle = f64::midpoint(low, high);
        if at(middle).product::<f64>() <= case.limit as f64 { low = middle } else { high = middle }
    }
    at(low).collect()
}

fn spread(case: &Case, ideal: &[f64], sizes: &[usize]) -> f64 {
    let (mut low, mut high) = (f64::INFINITY, 0.0f64);
    for ((dim, ideal), size) in case.dims.iter().zip(ideal).zip(sizes) {
        if dim.size > dim.min {
            low = low.min(*size as f64 / ideal);
            high = high.max(*size as f64 / ideal);
        }
    }
    if low.is_finite() { high / low } else { 1.0 }
}

fn product(sizes: &[usize]) -> u64 {
    sizes.iter().map(|size| *size as u64).product()
}

fn is_maximal(case: &Case, sizes: &[usize]) -> bool {
    let product = product(sizes);
    product <= case.limit
        && case.dims.iter().zip(sizes).all(|(dim, size)| {
            size + dim.step > dim.size || product / *size as u64 * (size + dim.step) as u64 > case.limit
        })
}

/// The least spread of all maximal choices, and the largest product of those that have it.
fn best(case: &Case, ideal: &[f64]) -> (f64, u64) {
    let mut sizes: Vec<usize> = case.dims.iter().map(|dim| dim.min).collect();
    let mut best = (f64::INFINITY, 0);
    loop {
        if is_maximal(case, &sizes) {
            let (spread, product) = (spread(case, ideal, &sizes), product(&sizes));
            if spread < best.0 * (1.0 - SLACK) {
                best = (spread, product);
            } else if spread <= best.0 * (1.0 + SLACK) {
                best.1 = best.1.max(product);
            }
        }
        let mut next = 0;
        loop {
            let Some(dim) = case.dims.get(next) else { return best };
            sizes[next] += dim.step;
            if sizes[next] <= dim.size {
                break;
            }
            sizes[next] = dim.min;
            next += 1;
        }
    }
}

fn scaler(case: &Case) -> Scaler {
    let frozen: Vec<usize> =
        (0..case.dims.len()).filter(|i| case.dims[*i].min == case.dims[*i].size).collect();
    let config = ScalingConfig::builder()
        .strategy(Strategy::Power(PowerLaw::new(case.gamma).unwrap()))
        .min_dimensions(case.dims.iter().map(|dim| dim.min).collect::<Vec<_>>())
        .steps(case.dims.iter().map(|dim| dim.step).collect::<Vec<_>>())
        .frozen(frozen);
    Scaler::new(config.build().unwrap())
}

fn check(case: &Case, expected: (f64, u64), ideal: &[f64], sizes: &[usize], by: &str) {
    assert!(is_maximal(case, sizes), "{by}: {sizes:?} is not maximal for {case:?}");
    for (dim, size) in case.dims.iter().zip(sizes) {
        assert!(dim.values().any(|value| value == *size), "{by}: {sizes:?} leaves the grid of {case:?}");
    }
    let found = (spread(case, ideal, sizes), product(sizes));
    let equal = (found.0 - expected.0).abs() <= expected.0 * SLACK && found.1 == expected.1;
    assert!(equal, "{by}: {sizes:?} of {case:?}, ideal {ideal:?}: expected {expected:?}, found {found:?}");
}

#[test]
fn least_distorting_of_all_maximal_sizes() {
    let mut random = Random(1);
    for number in 0..120_000 {
        let case = case(&mut random);
        let wished: Vec<usize> = case.dims.iter().map(|dim| dim.size).collect();
        let ideal = ideal(&case);
        let expected = best(&case, &ideal);
        let result = scaler(&case).fit(&wished, DType::U8, Bytes(case.limit)).unwrap();
        assert!(result.least_distorting, "{case:?}");
        check(&case, expected, &ideal, &result.dims, "the scaler");
        if number % 10 == 0 {
            let law = PowerLaw::new(case.gamma).unwrap();
            let plan = law.plan(&case.dims, &TensorCost(DType::U8), Bytes(case.limit)).unwrap();
            check(&case, expected, &ideal, &plan.sizes, "the strategy");
        }
    }
}
