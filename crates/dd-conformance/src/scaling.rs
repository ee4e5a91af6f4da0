//! The suite of [`ScalingStrategy`].

use dd_core::cost::AffineCost;
use dd_core::{Bytes, CostModel, Dim, Error, Result, ScalingPlan, ScalingStrategy};

use crate::rule::{done, refused};

/// Checks a [`ScalingStrategy`].
///
/// On small problems (frozen and scalable dimensions, steps, empty and single ones; costs that are a product, a sum of
/// squares, that rise in stairs, that overflow), under every limit at which some choice of sizes begins to fit and one
/// byte below each, against brute force over all choices. Checked:
///
/// - a plan has one size per dimension, within its bounds and on its step; it costs what it says and fits the limit;
/// - it is maximal: no dimension could grow by its step; so, where the wished sizes fit, they are taken;
/// - `scaled` says whether any size differs from the wished one; the same question has the same answer;
/// - there is a plan wherever any choice fits; else [`Error::OutOfMemory`] with the least cost and the limit;
/// - bounds that contradict each other are [`Error::InvalidArgument`]; an error of the cost model is passed on.
///
/// ```
/// dd_conformance::scaling_strategy(&dd_core::scaling::StepwiseGrowth);
/// ```
///
/// # Panics
/// Where the strategy breaks the contract.
pub fn scaling_strategy<S: ScalingStrategy + ?Sized>(strategy: &S) {
    assert!(!strategy.name().trim().is_empty(), "the strategy has no name");
    for dims in problems() {
        for cost in &costs() {
            for limit in limits(&dims, cost) {
                check(strategy, &dims, cost, limit);
            }
        }
    }
    check(strategy, &[Dim::scalable(1024), Dim::scalable(256), Dim::frozen(3)], &costs()[0], Bytes(400_000));
    refuses_bad_bounds(strategy);
    passes_errors_on(strategy);
}

/// The problems: few enough choices in each to try them all.
fn problems() -> Vec<Vec<Dim>> {
    let stepped = Dim { size: 10, min: 1, step: 4 }; // 1, 5, 9: its wished size is not on a step.
    let bounded = Dim { size: 12, min: 6, step: 3 };
    vec![
        vec![],
        vec![Dim::scalable(9)],
        vec![Dim::frozen(5)],
        vec![Dim::scalable(0), Dim::scalable(4)],
        vec![Dim::scalable(8), Dim::scalable(5), Dim::frozen(3)],
        vec![stepped, bounded],
        vec![Dim { size: 7, min: 0, step: 7 }, Dim::scalable(3), stepped],
        vec![Dim::frozen(0), Dim::scalable(6)],
    ]
}

/// A cost by formula: whatever the sizes, monotone.
enum Formula {
    Affine(AffineCost),
    SumOfSquares,
    Stairs,
    OverflowAbove(u64),
}

impl CostModel for Formula {
    fn peak(&self, sizes: &[usize]) -> Result<Bytes> {
        let product = AffineCost { constant: Bytes::ZERO, per_element: Bytes(1) };
        match self {
            Self::Affine(cost) => cost.peak(sizes),
            Self::SumOfSquares => Ok(sizes.iter().map(|n| Bytes::of(n.saturating_mul(*n))).sum()),
            Self::Stairs => product.peak(sizes).map(|bytes| bytes.round_up(16)),
            Self::OverflowAbove(most) => match product.peak(sizes)? {
                bytes if bytes.0 <= *most => Ok(bytes),
                _ => Err(Error::SizeOverflow { what: format!("the cost of {sizes:?}") }),
            },
        }
    }
}

fn costs() -> [Formula; 5] {
    let affine =
        |constant, each| Formula::Affine(AffineCost { constant: Bytes(constant), per_element: Bytes(each) });
    [affine(100, 4), affine(7, 0), Formula::SumOfSquares, Formula::Stairs, Formula::OverflowAbove(20)]
}

/// All choices of sizes.
fn choices(dims: &[Dim]) -> Vec<Vec<usize>> {
    dims.iter().fold(vec![vec![]], |choices, dim| {
        let with = |choice: &Vec<usize>, value| choice.iter().copied().chain([value]).collect();
        choices.iter().flat_map(|choice| dim.values().map(move |value| with(choice, value))).collect()
    })
}

/// Every limit at which something changes, the one below it, and the extremes.
fn limits(dims: &[Dim], cost: &Formula) -> Vec<Bytes> {
    let known: Vec<Bytes> = choices(dims).iter().filter_map(|sizes| cost.peak(sizes).ok()).collect();
    let mut limits = vec![Bytes::ZERO, Bytes::MAX];
    limits.extend(known.iter().flat_map(|bytes| [*bytes, bytes.saturating_sub(Bytes(1))]));
    limits.sort_unstable();
    limits.dedup();
    limits
}

fn check<S: ScalingStrategy + ?Sized>(strategy: &S, dims: &[Dim], cost: &Formula, limit: Bytes) {
    let problem = format!("{} of {dims:?} under {} B", strategy.name(), limit.0);
    let least: Vec<usize> = dims.iter().map(|dim| dim.min).collect();
    let result = strategy.plan(dims, cost, limit);
    match (cost.peak(&least), result) {
        (Ok(least), Err(Error::OutOfMemory { needed, available, .. })) if least > limit => {
            let figures = (needed, available);
            assert_eq!(
                figures,
                (least, limit),
                "{problem}: the bytes needed and available that the refusal names"
            );
        }
        (Ok(least), result) if least > limit => {
            panic!("{problem}: the smallest sizes cost {least}, expected OutOfMemory, found {result:?}")
        }
        (Err(_), result) => {
            refused!(result, Error::SizeOverflow { .. }, "{problem}: the smallest sizes overflow")
        }
        (Ok(_), result) => {
            let plan = done(result, &problem);
            check_plan(&plan, dims, cost, limit, &problem);
            let again = done(strategy.plan(dims, cost, limit), &problem);
            assert_eq!(plan, again, "{problem}: another plan the second time");
        }
    }
}

fn check_plan(plan: &ScalingPlan, dims: &[Dim], cost: &Formula, limit: Bytes, problem: &str) {
    let sizes = &plan.sizes;
    assert_eq!(sizes.len(), dims.len(), "{problem}: number of sizes in {plan:?}");
    for (dim, size) in dims.iter().zip(sizes) {
        assert!(
            dim.values().any(|value| value == *size),
            "{problem}: {size} is outside the bounds or steps of {dim:?}"
        );
    }
    let truth = done(cost.peak(sizes), format_args!("{problem}: the cost of {plan:?}"));
    assert_eq!(plan.cost, truth, "{problem}: the cost that {plan:?} states");
    assert!(truth <= limit, "{problem}: {plan:?} costs {} B and does not fit", truth.0);
    let scaled = dims.iter().zip(sizes).any(|(dim, size)| dim.size != *size);
    assert_eq!(plan.scaled, scaled, "{problem}: `scaled` of {plan:?}");
    for (index, dim) in dims.iter().enumerate() {
        let mut grown = sizes.clone();
        grown[index] += dim.step;
        let fits = grown[index] <= dim.size && cost.peak(&grown).is_ok_and(|bytes| bytes <= limit);
        assert!(!fits, "{problem}: {plan:?} is not maximal, {grown:?} fits too");
    }
}

fn refuses_bad_bounds<S: ScalingStrategy + ?Sized>(strategy: &S) {
    let rows = [Dim { size: 4, min: 1, step: 0 }, Dim { size: 4, min: 5, step: 1 }];
    for dim in rows {
        for dims in [vec![dim], vec![Dim::scalable(3), dim]] {
            let result = strategy.plan(&dims, &Formula::SumOfSquares, Bytes::MAX);
            refused!(result, Error::InvalidArgument { .. }, "bounds {dims:?}");
        }
    }
}

fn passes_errors_on<S: ScalingStrategy + ?Sized>(strategy: &S) {
    /// Knows only sizes up to this.
    struct Knows(usize);
    impl CostModel for Knows {
        fn peak(&self, sizes: &[usize]) -> Result<Bytes> {
            let reason = || Error::InvalidArgument { argument: "sizes", reason: format!("{sizes:?}") };
            let known = sizes.iter().all(|size| *size <= self.0);
            known.then(|| Bytes::of(sizes.iter().sum())).ok_or_else(reason)
        }
    }
    let result = strategy.plan(&[Dim::scalable(8)], &Knows(0), Bytes::MAX);
    refused!(result, Error::InvalidArgument { .. }, "a cost model that knows no size");
}
