//! Every promise of the module's description, on random and on telling inputs.

use proptest::prelude::*;

use super::reference::{belady_exhaustive, belady_uniform, lru};
use super::*;
use crate::Error;

fn part(bytes: u64) -> Part {
    Part { name: "weight".to_owned(), bytes: Bytes(bytes), pinned: false }
}

fn unit(name: usize, sizes: &[u64]) -> Unit {
    Unit {
        name: format!("layer.{name}"),
        parts: sizes.iter().map(|&size| part(size)).collect(),
        compute: None,
    }
}

/// `count` units of the same parts, in cyclic order, with prefetching.
fn uniform(count: usize, sizes: &[u64], budget: u64) -> PlanInput {
    PlanInput {
        units: (0..count).map(|index| unit(index, sizes)).collect(),
        order: (0..count).collect(),
        budget: Bytes(budget),
        blocks: Bytes(0),
        bandwidth: None,
        prefetch: true,
        concurrent: 1,
    }
}

fn palindrome(count: usize) -> Vec<usize> {
    (0..count).chain((0..count).rev()).collect()
}

fn timed(mut input: PlanInput, compute: f64, bandwidth: f64) -> PlanInput {
    input.units.iter_mut().for_each(|unit| unit.compute = Some(Duration::from_secs_f64(compute)));
    input.bandwidth = Some(bandwidth);
    input
}

fn total(input: &PlanInput) -> u64 {
    input.units.iter().flat_map(|unit| &unit.parts).map(|part| part.bytes.0).sum()
}

fn streamed(plan: &ResidencyPlan) -> Vec<u64> {
    plan.units.iter().map(|unit| unit.streamed.0).collect()
}

/// Random inputs: pinned and empty parts, unused units, any order, up to three threads, budgets from least to plenty.
fn inputs() -> impl Strategy<Value = PlanInput> {
    let parts = prop::collection::vec((0_u64..20, prop::bool::weighted(0.2)), 0..5);
    let units = prop::collection::vec((parts, prop::option::weighted(0.8, 0_u64..50)), 1..7);
    let shape = (0..4_usize, prop::collection::vec(0_usize..100, 0..14));
    let rest = (0..30_u64, prop::option::of(0.1..10.0_f64), any::<bool>(), 1..4_usize, 0.0..1.1_f64);
    (units, shape, rest).prop_map(
        |(units, (shape, uses), (blocks, bandwidth, prefetch, concurrent, share))| {
            let count = units.len();
            let order = match shape {
                0 => (0..count).collect(),
                1 => palindrome(count),
                2 => palindrome(count).into_iter().skip(1).take((2 * count).saturating_sub(2)).collect(),
                _ => uses.iter().map(|unit| unit % count).collect(),
            };
            let make = |(parts, compute): (Vec<(u64, bool)>, Option<u64>)| Unit {
                name: String::new(),
                parts: parts.iter().map(|&(bytes, pinned)| Part { pinned, ..part(bytes) }).collect(),
                compute: compute.map(Duration::from_secs),
            };
            let units: Vec<Unit> = units.into_iter().map(make).collect();
            let mut input = PlanInput {
                units,
                order,
                budget: Bytes(0),
                blocks: Bytes(blocks),
                bandwidth,
                prefetch,
                concurrent,
            };
            let least = least_budget(&input.units, input.blocks, concurrent);
            let all = Bytes(total(&input) + blocks);
            input.budget = least + (all.saturating_sub(least)).scaled(share);
            input
        },
    )
}

/// The staging that a choice needs, from the definition: all sets of units that may be in memory at once.
fn staging_by_definition(input: &PlanInput, streamed: &[u64], depth: usize) -> u64 {
    let sets = 0..1_usize << streamed.len();
    let size =
        |set: usize| (0..streamed.len()).filter(|unit| set >> unit & 1 == 1).map(|unit| streamed[unit]).sum();
    let windows = (0..input.order.len()).map(|first| {
        let window = (0..=depth).map(|ahead| input.order[(first + ahead) % input.order.len()]);
        window.fold(0_usize, |set, unit| set | 1 << unit)
    });
    let windows: Vec<usize> = windows.collect();
    let held = |set: usize| {
        let any = set.count_ones() as usize <= input.concurrent;
        any || windows.iter().any(|window| ((set & !window).count_ones() as usize) < input.concurrent)
    };
    sets.filter(|&set| held(set)).map(size).max().unwrap_or(0)
}

fn check_sums(input: &PlanInput, plan: &ResidencyPlan) {
    assert!(plan.resident_bytes + plan.staging + plan.blocks <= input.budget, "{plan}");
    assert_eq!(plan.steps.iter().map(|step| step.read).sum::<Bytes>(), plan.streamed_bytes);
    let mut resident = 0;
    for (index, unit) in input.units.iter().enumerate() {
        let (mut kept, mut streamed) = (0, 0);
        for (part, found) in unit.parts.iter().enumerate() {
            let stays = plan.is_resident(index, part);
            assert!(stays || !(found.pinned || found.bytes == Bytes::ZERO), "pinned parts stay");
            *(if stays { &mut kept } else { &mut streamed }) += found.bytes.0;
        }
        assert_eq!((plan.units[index].kept.0, plan.units[index].streamed.0), (kept, streamed));
        resident += kept;
    }
    assert_eq!(plan.resident_bytes.0, resident);
}

/// No single further part could be resident with the same read-ahead.
fn check_maximal(input: &PlanInput, plan: &ResidencyPlan) {
    let streamed = streamed(plan);
    let needed = staging_by_definition(input, &streamed, plan.lookahead);
    assert!(needed <= plan.staging.0, "staging {} < {needed}\n{plan}", plan.staging);
    for (index, unit) in input.units.iter().enumerate() {
        for (part, found) in unit.parts.iter().enumerate().filter(|(part, _)| !plan.is_resident(index, *part))
        {
            let mut less = streamed.clone();
            less[index] -= found.bytes.0;
            let staging = staging_by_definition(input, &less, plan.lookahead);
            let sum = plan.resident_bytes.0 + found.bytes.0 + staging + plan.blocks.0;
            assert!(sum > input.budget.0, "part {part} of {index} would fit: {sum}\n{plan}");
        }
    }
}

/// Plays five passes with every read as early as the plan allows; staging is never exceeded and never lacks a unit.
fn check_occupancy(input: &PlanInput, plan: &ResidencyPlan) {
    let length = plan.steps.len();
    let streamed = streamed(plan);
    let mut held: Vec<bool> = streamed.iter().map(|&bytes| bytes == 0).collect();
    let mut next = 0;
    let occupied = |held: &[bool]| {
        let mut rest: Vec<u64> =
            (0..held.len()).filter(|&unit| !held[unit]).map(|unit| streamed[unit]).collect();
        rest.sort_unstable_by_key(|&bytes| std::cmp::Reverse(bytes));
        let others: u64 = rest.iter().take(input.concurrent - 1).sum();
        others + (0..held.len()).filter(|&unit| held[unit]).map(|unit| streamed[unit]).sum::<u64>()
    };
    let mut read = [0; 5];
    for now in 0..5 * length {
        while next - now.min(next) < length && next < 5 * length {
            let step = plan.steps[next % length];
            let first_time = next < length && !held[step.unit]; // What is kept must be read once.
            if next > now && !plan.may_prefetch(now % length, next % length) {
                break;
            }
            if next > now && first_time && step.read == Bytes::ZERO {
                break; // Not in the steady state yet: on demand.
            }
            if step.read > Bytes::ZERO || first_time {
                assert!(!held[step.unit], "read twice at {next}\n{plan:#?}");
                read[next / length] += streamed[step.unit];
                held[step.unit] = true;
            }
            assert!(held[step.unit]);
            assert!(occupied(&held) <= plan.staging.0, "at {now}, reading {next}\n{plan:#?}");
            next += 1;
        }
        let step = plan.steps[now % length];
        assert!(next > now && held[step.unit], "unit of {now} is not there\n{plan:#?}");
        if !step.keeps && streamed[step.unit] > 0 {
            held[step.unit] = false;
        }
        next = next.max(now + 1);
    }
    if length > 0 {
        assert_eq!(read[4], plan.streamed_bytes.0, "{plan:#?}");
    }
}

/// The least budget is tight, and says so.
fn check_least(input: &PlanInput) {
    let least = least_budget(&input.units, input.blocks, input.concurrent);
    let with = |budget: Bytes| ResidencyPlan::new(&PlanInput { budget, ..input.clone() });
    assert_eq!(with(least).unwrap().least_budget, least);
    if let Some(below) = least.checked_sub(Bytes(1)) {
        let error = with(below).unwrap_err();
        assert!(matches!(error, Error::BudgetTooSmall { least: said, .. } if said == least), "{error}");
    }
}

fn check_times(plan: &ResidencyPlan) {
    let Some(Prediction { pass, compute, read, .. }) = plan.predicted else { return };
    let (pass, limit) = (pass.as_secs_f64(), compute.max(read).as_secs_f64());
    assert!(pass >= limit - 1e-6 && pass <= (compute + read).as_secs_f64() + 1e-6, "{plan}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn every_plan_fits_is_maximal_and_can_be_carried_out(input in inputs()) {
        let plan = ResidencyPlan::new(&input).unwrap();
        check_sums(&input, &plan);
        check_maximal(&input, &plan);
        check_occupancy(&input, &plan);
        check_least(&input);
        check_times(&plan);
        let json = serde_json::to_string(&plan).unwrap();
        prop_assert_eq!(serde_json::from_str::<ResidencyPlan>(&json).unwrap(), plan);
    }

    #[test]
    fn everything_is_resident_where_everything_fits(input in inputs(), more in 0..3_u64) {
        let input = PlanInput { budget: Bytes(total(&input) + more) + input.blocks, ..input };
        let plan = ResidencyPlan::new(&input).unwrap();
        prop_assert_eq!((plan.resident_bytes, plan.staging, plan.streamed_bytes), (Bytes(total(&input)), Bytes(0), Bytes(0)));
    }

    #[test]
    fn reads_are_within_staging_and_one_part_of_beladys_optimum(
        sizes in prop::collection::vec(prop::collection::vec(1_u64..9, 1..3), 1..5).prop_filter(
            "small enough for an exhaustive search", |units| units.iter().flatten().count() <= 6),
        there_and_back: bool, share in 0.0..1.0_f64, prefetch: bool,
    ) {
        let count = sizes.len();
        let units: Vec<Unit> = sizes.iter().enumerate().map(|(name, sizes)| unit(name, sizes)).collect();
        let order = if there_and_back { palindrome(count) } else { (0..count).collect() };
        let mut input = PlanInput { units, order, prefetch, ..uniform(0, &[], 0) };
        let least = least_budget(&input.units, Bytes(0), 1);
        input.budget = least + Bytes(total(&input)).saturating_sub(least).scaled(share);
        let plan = ResidencyPlan::new(&input).unwrap();
        // The optimum caches single parts; a part's index is its place among all.
        let parts: Vec<u64> = sizes.iter().flatten().copied().collect();
        let first = |unit: usize| sizes[..unit].iter().map(Vec::len).sum::<usize>();
        let uses: Vec<usize> =
            input.order.iter().flat_map(|&unit| first(unit)..first(unit) + sizes[unit].len()).collect();
        let optimum = belady_exhaustive(&uses, &parts, input.budget.0);
        let sweeps = if there_and_back { 2 } else { 1 };
        let slack = sweeps * (plan.staging.0 + parts.iter().max().unwrap());
        prop_assert!(plan.streamed_bytes.0 as f64 <= optimum + slack as f64, "{optimum} + {slack}\n{plan}");
    }
}

/// Not a theorem (the bound that is one holds against Belady's optimum), so always the same thousand cases.
#[test]
fn residents_are_within_one_part_of_the_best_choice() {
    let small = |units: &Vec<Vec<u64>>| units.iter().flatten().count() <= 10;
    let sizes = prop::collection::vec(prop::collection::vec(1_u64..9, 1..4), 1..6);
    let cases = (sizes.prop_filter("small enough for all choices", small), 0.0..1.0_f64, any::<bool>());
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1000) };
    let rng = proptest::test_runner::TestRng::deterministic_rng(config.rng_algorithm);
    let mut runner = proptest::test_runner::TestRunner::new_with_rng(config, rng);
    let tested = runner.run(&cases, |(sizes, share, prefetch)| {
        let units: Vec<Unit> = sizes.iter().enumerate().map(|(name, sizes)| unit(name, sizes)).collect();
        let order = (0..sizes.len()).collect();
        let mut input = PlanInput { units, order, prefetch, ..uniform(0, &[], 0) };
        let least = least_budget(&input.units, Bytes(0), 1);
        input.budget = least + Bytes(total(&input)).saturating_sub(least).scaled(share);
        let plan = ResidencyPlan::new(&input).unwrap();
        let best = best_residents(&input, &sizes, plan.lookahead);
        let largest = sizes.iter().flatten().max().unwrap();
        prop_assert!(plan.resident_bytes.0 + largest >= best, "{best} would fit\n{plan}");
        Ok(())
    });
    tested.unwrap();
}

/// The most resident bytes of all choices, by trying them all.
fn best_residents(input: &PlanInput, sizes: &[Vec<u64>], depth: usize) -> u64 {
    let parts: Vec<(usize, u64)> = sizes
        .iter()
        .enumerate()
        .flat_map(|(unit, sizes)| sizes.iter().map(move |&size| (unit, size)))
        .collect();
    let kept = |choice: usize| {
        let mut streamed: Vec<u64> = sizes.iter().map(|sizes| sizes.iter().sum()).collect();
        let mut kept = 0;
        for (_, &(unit, size)) in parts.iter().enumerate().filter(|(index, _)| choice >> index & 1 == 1) {
            streamed[unit] -= size;
            kept += size;
        }
        (kept + staging_by_definition(input, &streamed, depth) <= input.budget.0).then_some(kept)
    };
    (0..1 << parts.len()).filter_map(kept).max().unwrap_or(0)
}

#[test]
fn uniform_layers_are_within_staging_of_belady_and_lru_behaves_as_known() {
    for (count, budget, prefetch) in
        [(12, 60, true), (12, 60, false), (16, 100, true), (31, 200, true), (7, 30, true)]
    {
        for there_and_back in [false, true] {
            let order = if there_and_back { palindrome(count) } else { (0..count).collect() };
            let input = PlanInput { order: order.clone(), prefetch, ..uniform(count, &[4, 3, 2, 1], budget) };
            let plan = ResidencyPlan::new(&input).unwrap();
            let sweeps = if there_and_back { 2 } else { 1 };
            let slack = sweeps * (plan.staging.0 + 4);
            // The budget holds a whole number of the units, which are ten bytes each.
            let optimum = 10.0 * belady_uniform(&order, (budget / 10) as usize);
            assert!(plan.streamed_bytes.0 as f64 <= optimum + slack as f64, "{optimum} + {slack}\n{plan}");
            let lru = lru(&order, &vec![10; count], budget);
            if there_and_back {
                assert!(lru.abs_diff(plan.streamed_bytes.0) <= slack, "LRU {lru}\n{plan}");
            } else {
                assert_eq!(lru, total(&input));
            }
        }
    }
}

#[test]
fn residents_are_spread_evenly() {
    for (count, sizes, window) in
        [(24, vec![16, 16, 16, 16, 43, 43, 43], 4), (24, vec![10], 4), (12, vec![10], 2), (31, vec![5, 3], 3)]
    {
        let mut input = uniform(count, &sizes, 0);
        input.budget = Bytes(total(&input) / 2);
        let plan = ResidencyPlan::new(&input).unwrap();
        let streamed = streamed(&plan);
        let mean = streamed.iter().sum::<u64>() as f64 / count as f64;
        let largest = *sizes.iter().max().unwrap() as f64;
        for first in 0..count {
            let sum: u64 = (first..first + window).map(|unit| streamed[unit % count]).sum();
            let off = (sum as f64 - mean * window as f64).abs();
            assert!(off <= 1.5 * largest, "{off} of {mean} at {first}\n{streamed:?}");
        }
    }
}

#[test]
fn the_staging_of_uniform_layers_is_two_shares() {
    // 32 layers of 100 equal parts: R + 2 (W − R) / 32 = M.
    let input = uniform(32, &[1; 100], 1600);
    let plan = ResidencyPlan::new(&input).unwrap();
    assert_eq!(plan.lookahead, 1);
    assert!(plan.resident_bytes.0 >= 1490, "{plan}"); // (1600 − 200) / (1 − 2 / 32) = 1493.3
    assert!(streamed(&plan).iter().all(|&bytes| (53..=54).contains(&bytes)), "{plan}");
}

#[test]
fn awkward_inputs_are_planned_or_refused_by_name() {
    let planned: [PlanInput; 6] = [
        PlanInput { order: vec![], ..uniform(3, &[5], 5) },
        uniform(0, &[], 0),
        uniform(4, &[], 0),
        uniform(4, &[0, 0], 0),
        PlanInput { order: vec![1, 1, 1], ..uniform(3, &[5], 9) },
        PlanInput { concurrent: 0, ..uniform(3, &[5], 9) },
    ];
    for input in &planned {
        let plan = ResidencyPlan::new(input).unwrap();
        check_sums(input, &plan);
        assert!(!plan.may_prefetch(99, 0) && !plan.may_prefetch(0, 99) && !plan.is_resident(99, 0));
    }
    let refused = [
        (PlanInput { order: vec![0, 3], ..uniform(3, &[5], 9) }, "order"),
        (PlanInput { bandwidth: Some(f64::NAN), ..uniform(3, &[5], 9) }, "bandwidth"),
        (PlanInput { bandwidth: Some(0.0), ..uniform(3, &[5], 9) }, "bandwidth"),
    ];
    for (input, name) in &refused {
        let error = ResidencyPlan::new(input).unwrap_err();
        assert!(matches!(error, Error::InvalidConfig { option, .. } if option == *name), "{error}");
    }
}

#[test]
fn sizes_at_the_end_of_64_bits_saturate() {
    let huge = u64::MAX / 2;
    let input = uniform(5, &[huge, huge, 7], u64::MAX);
    assert_eq!(least_budget(&input.units, Bytes::MAX, 3), Bytes::MAX);
    check_least(&PlanInput { concurrent: 1, ..uniform(5, &[huge, 7], 0) });
    let error = ResidencyPlan::new(&input).unwrap_err();
    assert!(matches!(error, Error::BudgetTooSmall { least: Bytes::MAX, .. }), "{error}");
    let plan = ResidencyPlan::new(&timed(uniform(5, &[huge], u64::MAX), 1e9, 1e-300)).unwrap();
    assert_eq!(plan.streamed_bytes, Bytes::MAX);
}

#[test]
fn predicted_times_are_near_the_limit() {
    // (compute per unit, bandwidth, the predicted time over max(C, (W − R) / B) at most)
    for (compute, bandwidth, ratio) in
        [(1.0, 20.0, 1.02), (1.0, 5000.0, 1.001), (1.0, 60.0, 1.05), (1.0, 50.0, 1.05)]
    {
        let input = timed(uniform(24, &[16, 16, 16, 16, 12, 12, 12], 1200), compute, bandwidth);
        let predicted = ResidencyPlan::new(&input).unwrap().predicted.unwrap();
        let limit = predicted.compute.max(predicted.read).as_secs_f64();
        assert!(predicted.pass.as_secs_f64() <= ratio * limit, "{predicted:?}");
        assert_eq!(predicted.bound == Bound::Compute, predicted.compute >= predicted.read);
        let alone = ResidencyPlan::new(&PlanInput { prefetch: false, ..input }).unwrap().predicted.unwrap();
        let sum = (alone.compute + alone.read).as_secs_f64();
        assert!((alone.pass.as_secs_f64() - sum).abs() < 1e-6, "nothing overlaps: {alone:?}");
    }
}

#[test]
fn a_turning_point_is_not_read_twice() {
    let input = PlanInput { order: palindrome(6), ..uniform(6, &[1; 10], 30) };
    let plan = ResidencyPlan::new(&input).unwrap();
    assert_eq!(plan.order, OrderKind::Palindrome);
    for turn in [5, 11] {
        assert!(plan.steps[turn].keeps);
        assert_eq!(plan.steps[(turn + 1) % 12].read, Bytes::ZERO);
    }
}

#[test]
fn the_table_names_runs_of_units_and_the_totals() {
    let mut input = timed(uniform(12, &[1 << 20; 4], 30 << 20), 0.001, 1e9);
    input.units.push(unit(12, &[5 << 20]));
    let text = ResidencyPlan::new(&input).unwrap().to_string();
    for expected in
        [" … layer.11 (", "layer.12", "resident ", "cyclic order of 12 steps", "predicted", "bound by"]
    {
        assert!(text.contains(expected), "{expected}: {text}");
    }
}

#[test]
fn large_models_are_planned() {
    let mut input = uniform(5_000, &[16, 16, 16, 16, 43, 43, 43, 1, 1, 1], 400_000);
    for timing in [None, Some(1e5)] {
        if let Some(rate) = timing {
            input = timed(input, 0.001, rate);
        }
        let start = std::time::Instant::now();
        let plan = ResidencyPlan::new(&input).unwrap();
        println!("planned 5,000 units of 10 parts in {:?}", start.elapsed());
        check_sums(&input, &plan);
    }
}

#[test]
fn simulated_passes_take_what_is_worked_out_by_hand() {
    // Two units of 10 bytes at 10 B/s: (seconds of compute per unit, positions of read-ahead, seconds per pass)
    for (compute, ahead, expected) in
        [(2.0, 0, 6.0), (2.0, 1, 4.0), (0.5, 0, 3.0), (0.5, 1, 2.0), (0.5, 2, 2.0), (0.0, 1, 2.0)]
    {
        let step = |position: usize| Step {
            position,
            unit: position,
            read: Bytes(10),
            start_at: i64::try_from(position).unwrap() - 1 - ahead,
            keeps: false,
        };
        let predicted = simulate(&[step(0), step(1)], &[compute; 2], 10.0);
        let pass = predicted.pass.as_secs_f64();
        assert!((pass - expected).abs() < 1e-6, "{pass} for {:?}", (compute, ahead, expected));
        assert_eq!(predicted.read, Duration::from_secs(2));
        assert_eq!(predicted.bound, if compute >= 1.0 { Bound::Compute } else { Bound::Disk });
    }
    assert_eq!(simulate(&[], &[], 1.0).pass, Duration::ZERO);
}

#[test]
fn prefetching_is_allowed_as_far_as_staging_reaches() {
    // Two whole units of staging and nothing resident: at each position, the next one.
    let plan = ResidencyPlan::new(&uniform(9, &[10], 20)).unwrap();
    assert_eq!((plan.staging, plan.lookahead, plan.steps[0].start_at), (Bytes(20), 1, -2), "{plan}");
    for (position, candidate, allowed) in
        [(0, 1, true), (0, 2, false), (8, 0, true), (8, 1, false), (3, 3, true), (3, 2, false)]
    {
        assert_eq!(plan.may_prefetch(position, candidate), allowed, "{candidate} during {position}");
    }
    let alone = ResidencyPlan::new(&PlanInput { prefetch: false, ..uniform(9, &[10], 20) }).unwrap();
    assert!((0..9).all(|position| !alone.may_prefetch(position, (position + 1) % 9)
        || alone.steps[(position + 1) % 9].read.0 == 0));
}

#[test]
fn reads_are_spread_over_time_where_that_is_faster() {
    // Every other unit computes long and the next one hardly: what hides behind the long ones may stream most.
    let mut input = timed(uniform(16, &[1; 64], 700), 0.0, 64.0);
    for unit in input.units.iter_mut().step_by(2) {
        unit.compute = Some(Duration::from_secs(1));
    }
    let plan = ResidencyPlan::new(&input).unwrap();
    let predicted = plan.predicted.unwrap();
    let limit = predicted.compute.max(predicted.read);
    assert!(predicted.pass.as_secs_f64() <= 1.06 * limit.as_secs_f64(), "{plan}");
}

#[test]
fn units_that_are_used_more_often_or_at_all_come_first() {
    let order = vec![0, 1, 0, 2, 0, 3, 0, 1, 3, 0, 2];
    let often = ResidencyPlan::new(&PlanInput { order, ..uniform(4, &[1; 10], 26) }).unwrap();
    assert_eq!(often.order, OrderKind::Irregular);
    assert!((1..4).all(|unit| often.units[0].streamed <= often.units[unit].streamed), "{often}");
    let used = ResidencyPlan::new(&PlanInput { order: vec![0, 1, 2], ..uniform(8, &[1; 10], 30) }).unwrap();
    assert_eq!(used.streamed_bytes, Bytes(0), "{used}"); // Two resident and the third in staging for good.
}

#[test]
fn read_ahead_begins_where_the_budget_allows_and_bytes_do_not_forbid_it() {
    // (units of ten parts of one byte, budget, positions of read-ahead)
    for (count, budget, lookahead) in [(32, 19, 0), (32, 20, 1), (32, 21, 1), (3, 20, 0), (4, 30, 1)] {
        let input = uniform(count, &[1; 10], budget);
        let plan = ResidencyPlan::new(&input).unwrap();
        assert_eq!(plan.ideal_budget, Bytes(20));
        assert_eq!(plan.lookahead, lookahead, "{count} units in {budget} B\n{plan}");
        let threads = ResidencyPlan::new(&PlanInput { concurrent: 2, budget: Bytes(29), ..input }).unwrap();
        assert_eq!((threads.least_budget, threads.ideal_budget), (Bytes(20), Bytes(30)));
    }
}
