//! Broken providers, cost models, strategies, observers and reclaimers.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use dd_core::scaling::StepwiseGrowth;
use dd_core::{
    Budget, Bytes, CostModel, Dim, Error, Event, Holder, MemoryProvider, MemorySample, Observer, Reclaim,
    Reservation, Result, ScalingPlan, ScalingStrategy, Tier,
};

use crate::caught;

struct Provider {
    tiers: Vec<Tier>,
    sample: fn(Tier) -> Result<MemorySample>,
}

impl MemoryProvider for Provider {
    fn tiers(&self) -> &[Tier] {
        &self.tiers
    }

    fn sample(&self, tier: Tier) -> Result<MemorySample> {
        (self.sample)(tier)
    }
}

const fn figures(total: u64, used: u64, available: u64) -> MemorySample {
    MemorySample { total: Bytes(total), used: Bytes(used), available: Bytes(available) }
}

#[test]
fn broken_providers_are_found_out() {
    type Row = (&'static str, &'static [Tier], fn(Tier) -> Result<MemorySample>);
    let rows: [Row; 6] = [
        ("nearest first", &[Tier::Host, Tier::Device(0)], |_| Ok(figures(9, 1, 8))),
        ("without repeats", &[Tier::Host, Tier::Host], |_| Ok(figures(9, 1, 8))),
        ("used of a total of", &[Tier::Host], |_| Ok(figures(9, 10, 0))),
        ("available of a total of", &[Tier::Host], |_| Ok(figures(9, 1, 10))),
        ("expected Error::UnsupportedTier", &[Tier::Host], |_| Ok(figures(9, 1, 8))),
        ("sample of host: expected success", &[Tier::Host], |_| {
            Err(Error::library("faulty", "read", "no file"))
        }),
    ];
    for (words, tiers, sample) in rows {
        let provider = Provider { tiers: tiers.to_vec(), sample };
        caught(words, words, || dd_conformance::memory_provider(&provider));
    }
}

struct Cost<F>(F);

impl<F: Fn(&[usize]) -> Result<Bytes> + Send + Sync> CostModel for Cost<F> {
    fn peak(&self, sizes: &[usize]) -> Result<Bytes> {
        (self.0)(sizes)
    }
}

#[test]
fn broken_cost_models_are_found_out() {
    let invalid = || Error::InvalidArgument { argument: "sizes", reason: "unknown".to_owned() };
    let overflow = || Error::SizeOverflow { what: "cost".to_owned() };
    let calls = AtomicU64::new(0);
    let falls = |sizes: &[usize]| Ok(Bytes(if sizes.contains(&0) { 100 } else { 10 }));
    caught("falls", "but the larger", || dd_conformance::cost_model(&Cost(falls)));
    let wraps = |sizes: &[usize]| Ok(Bytes(sizes.iter().fold(8, |n, size| n.wrapping_mul(*size as u64))));
    caught("wraps", "but the larger", || dd_conformance::cost_model(&Cost(wraps)));
    let small_overflows = |sizes: &[usize]| if sizes.contains(&17) { Err(overflow()) } else { Ok(Bytes(1)) };
    caught("overflows below", "but the larger", || dd_conformance::cost_model(&Cost(small_overflows)));
    let counts = |_: &[usize]| Ok(Bytes(calls.fetch_add(1, Ordering::Relaxed)));
    caught("changes its mind", "the second time", || dd_conformance::cost_model(&Cost(counts)));
    caught("knows nothing", "knows the cost of no sizes", || {
        dd_conformance::cost_model(&Cost(|_: &[usize]| Err(invalid())))
    });
    let library = |_: &[usize]| Err(Error::library("faulty", "trace", "no graph"));
    caught("fails otherwise", "expected success", || dd_conformance::cost_model(&Cost(library)));
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    None,
    Unnamed,
    StopsOneShort,
    TakesTheWish,
    HalvesTheLimit,
    LeavesTheSteps,
    LosesADimension,
    LiesAboutTheCost,
    AlwaysScaled,
    WrongFigures,
    PlansWhatCannotBe,
    TakesBadBounds,
    HidesErrors,
    ChangesItsMind,
}

/// The reference strategy but for its fault.
struct Strategy(Fault, AtomicU64);

impl Strategy {
    fn spoil(&self, mut plan: ScalingPlan, dims: &[Dim], cost: &dyn CostModel) -> Result<ScalingPlan> {
        let shrinkable = plan.sizes.iter().zip(dims).position(|(size, dim)| *size >= dim.min + dim.step);
        match (self.0, shrinkable) {
            (Fault::StopsOneShort, Some(index)) => plan.sizes[index] -= dims[index].step,
            (Fault::LeavesTheSteps, Some(index)) if dims[index].step > 1 => plan.sizes[index] -= 1,
            (Fault::ChangesItsMind, Some(_)) => plan.cost.0 += self.1.fetch_add(1, Ordering::Relaxed),
            (Fault::TakesTheWish, _) => plan.sizes = dims.iter().map(|dim| dim.size).collect(),
            (Fault::LosesADimension, _) => drop(plan.sizes.pop()),
            (Fault::LiesAboutTheCost, _) => plan.cost.0 += 1,
            (Fault::AlwaysScaled, _) => plan.scaled = true,
            _ => {}
        }
        if matches!(self.0, Fault::StopsOneShort | Fault::LeavesTheSteps | Fault::TakesTheWish) {
            plan.scaled = plan.sizes.iter().zip(dims).any(|(size, dim)| *size != dim.size);
            plan.cost = cost.peak(&plan.sizes)?;
        }
        Ok(plan)
    }
}

impl ScalingStrategy for Strategy {
    fn name(&self) -> &str {
        if self.0 == Fault::Unnamed { "" } else { "faulty" }
    }

    fn plan(&self, dims: &[Dim], cost: &dyn CostModel, limit: Bytes) -> Result<ScalingPlan> {
        let nothing = || ScalingPlan {
            sizes: dims.iter().map(|dim| dim.min).collect(),
            cost: Bytes::ZERO,
            scaled: true,
        };
        let inner = if self.0 == Fault::HalvesTheLimit { Bytes(limit.0 / 2) } else { limit };
        match (self.0, StepwiseGrowth.plan(dims, cost, inner)) {
            (Fault::WrongFigures, Err(Error::OutOfMemory { place, needed, .. })) => {
                Err(Error::OutOfMemory { place, needed, available: Bytes::ZERO })
            }
            (Fault::PlansWhatCannotBe, Err(Error::OutOfMemory { .. })) => Ok(nothing()),
            (Fault::TakesBadBounds, Err(Error::InvalidArgument { argument: "dimension", .. })) => {
                Ok(nothing())
            }
            (Fault::HidesErrors, Err(Error::InvalidArgument { argument: "sizes", .. })) => Ok(nothing()),
            (_, result) => self.spoil(result?, dims, cost),
        }
    }
}

#[test]
fn broken_strategies_are_found_out() {
    let rows = [
        (Fault::Unnamed, "has no name"),
        (Fault::StopsOneShort, "is not maximal"),
        (Fault::TakesTheWish, "does not fit"),
        (Fault::HalvesTheLimit, "faulty of"),
        (Fault::LeavesTheSteps, "outside the bounds or steps"),
        (Fault::LosesADimension, "number of sizes"),
        (Fault::LiesAboutTheCost, "the cost that"),
        (Fault::AlwaysScaled, "`scaled` of"),
        (Fault::WrongFigures, "the bytes needed and available"),
        (Fault::PlansWhatCannotBe, "expected OutOfMemory"),
        (Fault::TakesBadBounds, "expected Error::InvalidArgument"),
        (Fault::HidesErrors, "expected Error::InvalidArgument"),
        (Fault::ChangesItsMind, "the second time"),
    ];
    for (fault, words) in rows {
        let strategy = Strategy(fault, AtomicU64::new(0));
        caught(&format!("{fault:?}"), words, || dd_conformance::scaling_strategy(&strategy));
    }
    dd_conformance::scaling_strategy(&Strategy(Fault::None, AtomicU64::new(0)));
}

struct Observes<F>(F);

impl<F: Fn(&Event<'_>) + Send + Sync> Observer for Observes<F> {
    fn on_event(&self, event: &Event<'_>) {
        (self.0)(event);
    }
}

#[test]
fn broken_observers_are_found_out() {
    let divides = |event: &Event<'_>| {
        if let Event::Progress { done, total, .. } = event {
            assert!(done / total < u64::MAX);
        }
    };
    caught("a total of zero", "divide by zero", || dd_conformance::observer(&Observes(divides)));
    let cuts = |event: &Event<'_>| {
        if let Event::Acquired { unit, .. } = event {
            assert!(unit.len() < 4 || !unit[..4].is_empty());
        }
    };
    caught("cuts inside a character", "char boundary", || dd_conformance::observer(&Observes(cuts)));
    let sum = Mutex::new(0u64);
    let adds = |event: &Event<'_>| {
        if let Event::PassEnded { read, .. } = event {
            let mut sum = sum.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            *sum = sum.checked_add(read.0).unwrap_or_else(|| panic!("the sum overflows"));
        }
    };
    caught("adds without bounds", "the sum overflows", || dd_conformance::observer(&Observes(adds)));
}

/// Entries, and what is done with them when asked.
struct Gives<F> {
    budget: Budget,
    entries: Mutex<Vec<Reservation>>,
    how: F,
}

impl<F: Fn(&Budget, &Mutex<Vec<Reservation>>, Bytes) -> Bytes + Send + Sync> Reclaim for Gives<F> {
    fn reclaim(&self, wanted: Bytes) -> Bytes {
        (self.how)(&self.budget, &self.entries, wanted)
    }
}

fn pop(entries: &Mutex<Vec<Reservation>>) -> Bytes {
    let entry = entries.lock().unwrap_or_else(std::sync::PoisonError::into_inner).pop();
    entry.map_or(Bytes::ZERO, |entry| entry.bytes())
}

#[test]
fn broken_reclaimers_are_found_out() {
    type How = fn(&Budget, &Mutex<Vec<Reservation>>, Bytes) -> Bytes;
    let refill = |budget: &Budget, entries: &Mutex<Vec<Reservation>>| {
        entries.lock().unwrap().extend(budget.reserve(Bytes(7), &Holder::new("cache")));
    };
    let filled = |count: usize, how: How| {
        move |budget: &Budget| {
            let reclaimer = Gives { budget: budget.clone(), entries: Mutex::default(), how };
            (0..count).for_each(|_| refill(budget, &reclaimer.entries));
            Arc::new(reclaimer)
        }
    };
    let rows: [(&str, &str, usize, How); 5] = [
        ("holds nothing", "holds no bytes", 0, |_, entries, _| pop(entries)),
        ("says what was wanted", "its reservations went from", 5, |_, entries, wanted| {
            pop(entries);
            wanted
        }),
        ("says nothing", "its reservations went from", 5, |_, entries, _| {
            pop(entries);
            Bytes::ZERO
        }),
        ("gives nothing to others", "that the reclaimer fills", 5, |_, _, _| Bytes::ZERO),
        ("takes instead", "its reservations went from", 5, |budget, entries, _| {
            entries.lock().unwrap().extend(budget.reserve(Bytes(7), &Holder::new("cache")));
            Bytes::ZERO
        }),
    ];
    for (fault, words, count, how) in rows {
        caught(fault, words, || dd_conformance::reclaim(filled(count, how)));
    }
    // Says that nothing is left at every second call, but has more.
    let pauses: How = |_, entries, _| {
        thread_local!(static CALLS: std::cell::Cell<u64> = const { std::cell::Cell::new(0) });
        CALLS.set(CALLS.get() + 1);
        if CALLS.get() % 2 == 1 { Bytes::ZERO } else { pop(entries) }
    };
    caught("pauses", "it gives again", || dd_conformance::reclaim(filled(5, pauses)));
    dd_conformance::reclaim(filled(5, |_, entries, _| pop(entries)));
}
