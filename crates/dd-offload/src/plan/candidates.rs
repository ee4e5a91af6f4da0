//! The plans that come into question, and the best of them.

use dd_core::Bytes;

use super::problem::{Problem, at, pinned, set};
use super::schedule::Schedule;
use super::spread::{self, Choice, Priority, Spread};
use super::{
    OrderKind, PlanInput, ResidencyPlan, Unit, UnitResidency, bytes, fill, least_budget, narrow, simulate,
};

/// The most positions of read-ahead that are weighed when times are known.
const DEEPEST: usize = 3;

/// The best plan, if there is any.
pub(super) fn best(input: &PlanInput, problem: &Problem<'_>) -> Option<ResidencyPlan> {
    let better = |best: Candidate, next: Candidate| if next.plan.beats(&best.plan) { next } else { best };
    all(input, problem).into_iter().reduce(better).map(|best| best.improved(input, problem))
}

/// A plan, and how it came about.
struct Candidate {
    plan: ResidencyPlan,
    choice: Choice,
    spread: (Spread, Priority),
}

impl Candidate {
    /// The plan after exchanges, if they make it better.
    fn improved(mut self, input: &PlanInput, problem: &Problem<'_>) -> ResidencyPlan {
        let before = self.choice.kept;
        let weights = spread::weights(problem, self.spread.0, &time_before(input));
        let ranked = spread::ranking(problem, self.spread.1, &weights);
        fill::improve(problem, &mut self.choice, &ranked);
        if self.choice.kept > before {
            let improved = finish(input, problem, &self.choice);
            if improved.beats(&self.plan) {
                return improved;
            }
        }
        self.plan
    }
}

/// The plans that are weighed against each other: by spread, then by read-ahead.
fn all(input: &PlanInput, problem: &Problem<'_>) -> Vec<Candidate> {
    let timed = compute_times(input).is_some();
    let deepest = |spread| match (input.prefetch, spread) {
        (false, _) => 0,
        (true, Spread::Bytes | Spread::Time) if timed => DEEPEST,
        (true, _) => 1,
    };
    let mut candidates = Vec::new();
    for (spread, priority) in spreads(problem, OrderKind::of(&input.order), timed) {
        let weights = spread::weights(problem, spread, &time_before(input));
        let alike = weights.windows(2).all(|pair| pair.first() == pair.last());
        if alike && matches!(spread, Spread::Share | Spread::Time) {
            continue; // The same as by bytes.
        }
        let ranked = spread::ranking(problem, priority, &weights);
        for depth in 0..=deepest(spread) {
            let choice = match spread {
                Spread::Regular => fill::choose_regular(problem, &ranked, depth),
                _ => fill::choose(problem, &ranked, depth),
            };
            candidates.extend(choice.map(|choice| Candidate {
                plan: finish(input, problem, &choice),
                choice,
                spread: (spread, priority),
            }));
        }
    }
    candidates
}

fn spreads(problem: &Problem<'_>, order: OrderKind, timed: bool) -> Vec<(Spread, Priority)> {
    let mut spreads = vec![
        (Spread::Bytes, Priority::None),
        (Spread::Regular, Priority::None),
        (Spread::Share, Priority::None),
    ];
    if timed {
        spreads.push((Spread::Time, Priority::None));
    }
    if order == OrderKind::Irregular {
        spreads.push((Spread::Bytes, Priority::Often));
    }
    let mut used = vec![false; problem.sizes.len()];
    problem.order.iter().for_each(|&unit| set(&mut used, unit, true));
    if used.contains(&false) {
        spreads.push((Spread::Bytes, Priority::Used));
    }
    spreads
}

/// The compute time of each position in seconds, if all are known and so is the bandwidth.
fn compute_times(input: &PlanInput) -> Option<Vec<f64>> {
    if input.bandwidth.is_none() || input.order.is_empty() {
        return None;
    }
    let time = |&unit: &usize| input.units.get(unit)?.compute.map(|time| time.as_secs_f64());
    input.order.iter().map(time).collect()
}

/// Per unit, the compute time of the positions before its uses: what its reads hide behind.
fn time_before(input: &PlanInput) -> Vec<f64> {
    let mut before = vec![0.0; input.units.len()];
    let mut previous = input.order.last();
    for unit in &input.order {
        let time = previous.and_then(|&unit| input.units.get(unit)).and_then(|unit| unit.compute);
        let sum = at(&before, *unit) + time.unwrap_or_default().as_secs_f64();
        set(&mut before, *unit, sum);
        previous = Some(unit);
    }
    before
}

/// Makes a choice into a plan: staging with what is left over, steps, sums, prediction.
fn finish(input: &PlanInput, problem: &Problem<'_>, choice: &Choice) -> ResidencyPlan {
    let staging = final_staging(input, problem, choice);
    let schedule = Schedule {
        order: &input.order,
        streamed: &choice.streamed,
        staging,
        others: problem.others,
        prefetch: input.prefetch,
    };
    let steps = schedule.steps();
    let fixed = pinned(input) + u128::from(input.blocks.0);
    ResidencyPlan {
        units: residency(input, problem, choice),
        budget: input.budget,
        staging: narrow(staging),
        blocks: input.blocks,
        resident_bytes: narrow(pinned(input) + choice.kept),
        streamed_bytes: steps.iter().map(|step| step.read).sum(),
        least_budget: least_budget(&input.units, input.blocks, input.concurrent),
        ideal_budget: narrow(fixed + problem.staging(&problem.sizes, 1)),
        lookahead: choice.depth,
        order: OrderKind::of(&input.order),
        predicted: compute_times(input)
            .zip(input.bandwidth)
            .map(|(compute, rate)| simulate(&steps, &compute, rate)),
        steps,
    }
}

/// With prefetching, what no part could use goes to staging, as far as two more positions of read-ahead could use it.
fn final_staging(input: &PlanInput, problem: &Problem<'_>, choice: &Choice) -> u128 {
    let needed = choice.staging(problem);
    if !input.prefetch {
        return needed;
    }
    let useful = problem.staging(&choice.streamed, choice.depth + 2);
    needed + choice.left(problem).unwrap_or(0).min(useful.saturating_sub(needed))
}

fn residency(input: &PlanInput, problem: &Problem<'_>, choice: &Choice) -> Vec<UnitResidency> {
    let of = |(index, unit): (usize, &Unit)| {
        let mut resident: Vec<bool> =
            unit.parts.iter().map(|part| part.pinned || part.bytes == Bytes::ZERO).collect();
        for movable in problem.spans.get(index).cloned().unwrap_or_default() {
            if let Some(part) = problem.parts.get(movable) {
                set(&mut resident, part.part, at(&choice.resident, movable));
            }
        }
        let streamed = at(&choice.streamed, index);
        let kept = narrow(bytes(unit.parts.iter()) - streamed);
        UnitResidency { name: unit.name.clone(), resident, kept, streamed: narrow(streamed) }
    };
    input.units.iter().enumerate().map(of).collect()
}
