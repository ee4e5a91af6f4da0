//! A thousand random draws of ranges, budgets, orders of use and threads: what is read is what the sources hold, the
//! budget is never passed, and everything is given back.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]
#![allow(unsafe_code, reason = "paged memory is read through its addresses, as tensor libraries do")]
#![allow(clippy::cast_possible_truncation, missing_docs, reason = "tests")]

#[path = "support/pages.rs"]
mod pages;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dd_core::{Budget, Bytes};
use dd_pager::{Layout, Options, PagedMemory, Region};
use pages::{Words, can_page, check, check_all, options, watch};

const DRAWS: u64 = 1000;

/// Numbers that are random enough (splitmix64), the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((mixed ^ (mixed >> 31)) % end.max(1) as u64) as usize
    }
}

/// A range, and its seed.
type Known = (Region, u64);

fn register(paged: &PagedMemory, random: &mut Random, seeds: &mut u64, count: usize) -> Vec<Known> {
    let kind = random.below(4);
    let mut range = || {
        let len = match kind {
            0 => random.below(9000),
            1 => 40_000 + random.below(50_000),
            _ => random.below(200_000),
        };
        let head = if random.below(2) == 0 { 0 } else { random.below(4096) as u16 };
        *seeds += 1;
        (paged.register(&format!("range {seeds}"), len, head, Arc::new(Words(*seeds))).unwrap(), *seeds)
    };
    (0..count).map(|_| range()).collect()
}

/// Which ranges are used, in which order; `None` is some rows of the largest.
fn order(kind: usize, ranges: usize, random: &mut Random) -> Vec<Option<usize>> {
    let all = 0..ranges;
    match kind {
        0 => all.map(Some).collect(),
        1 => all.rev().map(Some).collect(),
        2 => all.map(|_| Some(random.below(ranges))).collect(),
        3 => all.map(|k| Some(if k % 2 == 0 { k / 2 } else { (ranges / 2 + k * 3) % ranges })).collect(),
        _ => all.flat_map(|k| [None, Some(k)]).collect(),
    }
}

fn visit(ranges: &[Known], at: Option<usize>, random: &mut Random) {
    match at {
        Some(at) => {
            let (region, seed) = &ranges[at];
            check_all(region, *seed);
        }
        None => {
            let (region, seed) = ranges.iter().max_by_key(|(region, _)| region.len()).unwrap();
            for _ in 0..4 {
                let start = random.below(region.len());
                check(region, *seed, start..(start + 256).min(region.len()));
            }
        }
    }
}

/// Two passes of one order, and one of another.
fn use_all(ranges: &[Known], random: &mut Random) {
    for (kind, passes) in [(random.below(5), 2), (random.below(5), 1)] {
        for _ in 0..passes {
            for at in order(kind, ranges.len(), random) {
                visit(ranges, at, random);
            }
        }
    }
}

fn draw(number: u64) {
    let mut random = Random(number);
    let least = Layout::least();
    let memory = Bytes(least.0 + [0, random.below(1 << 18), random.below(3 << 20)][random.below(3)] as u64);
    let limit = Bytes(memory.0 + random.below(2) as u64 * 4096);
    let budget = Budget::new("memory", limit);
    let expected = if random.below(4) == 0 { 1 << 16 } else { 8 << 20 };
    let threads = 1 + random.below(4);
    let options = Options {
        capacity: Bytes::mib(64),
        copying: random.below(4) == 0,
        threads: if random.below(4) == 0 { 1 } else { threads },
        ..options(expected, memory)
    };
    let paged = PagedMemory::new(&budget, options).unwrap();
    let (mut seeds, count) = (number << 16, 1 + random.below(16));
    let shared = register(&paged, &mut random, &mut seeds, count);
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let mut random = Random(number ^ (thread as u64) << 40);
            // Each has ranges of its own too, and drops them while the others go on.
            let (mut own, count) = (Vec::new(), random.below(4));
            for _ in 0..count {
                own.extend(register(&paged, &mut random, &mut { seeds + 1000 * (thread as u64 + 1) }, 1));
            }
            let shared = &shared;
            scope.spawn(move || {
                use_all(shared, &mut random);
                while !own.is_empty() {
                    own.iter().for_each(|(region, seed)| check_all(region, *seed));
                    drop(own.swap_remove(random.below(own.len())));
                    visit(shared, Some(0), &mut random);
                }
            });
        }
    });
    let mut shared = shared;
    shared.truncate(random.below(shared.len() + 1));
    shared.extend(register(&paged, &mut random, &mut { seeds + 9000 }, 2));
    use_all(&shared, &mut random);
    let (stats, plan) = (paged.stats(), paged.plan());
    assert!(budget.usage().peak <= limit && plan.memory <= memory, "draw {number}: {plan:?}");
    assert!(plan.resident.0 + plan.staging.0 <= plan.memory.0.max(plan.used.0), "draw {number}: {plan:?}");
    assert!(stats.filled >= stats.evicted, "draw {number}: {stats:?}");
    drop(paged);
    shared.iter().for_each(|(region, seed)| check_all(region, *seed));
    drop(shared);
    assert_eq!(budget.usage().used, Bytes::ZERO, "draw {number}");
}

#[test]
fn random_draws_hold_what_their_sources_hold() {
    if !can_page() {
        return;
    }
    let _watchdog = watch("random draws");
    let next = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(number) = Some(next.fetch_add(1, Ordering::Relaxed)).filter(|n| *n < DRAWS) {
                    draw(number);
                }
            });
        }
    });
    assert!(next.load(Ordering::Relaxed) >= DRAWS);
}
