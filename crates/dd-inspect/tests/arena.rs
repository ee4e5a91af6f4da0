//! Memory plans: that they hold, how near they come to the bound, and that the exact search is exact.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, missing_docs, reason = "tests")]
#![allow(clippy::cast_possible_truncation, reason = "small numbers")]

#[path = "support/dags.rs"]
mod dags;

use dags::{Random, dag};
use dd_core::Bytes;
use dd_inspect::Error;
use dd_inspect::arena::{ArenaPlan, Block, PlanOptions};
use proptest::prelude::*;

fn plan(blocks: &[Block], work: u64) -> ArenaPlan {
    ArenaPlan::of_blocks(blocks, &PlanOptions { align: 1, work, ..PlanOptions::default() }).unwrap()
}

/// The least arena, by all orders of placing each block at the lowest place that is free for it.
fn brute_force(blocks: &[Block]) -> u64 {
    fn place(blocks: &[Block], left: &mut Vec<usize>, placed: &mut Vec<(usize, u64)>, best: &mut u64) {
        if left.is_empty() {
            *best =
                (*best).min(placed.iter().map(|(at, offset)| blocks[*at].size + offset).max().unwrap_or(0));
            return;
        }
        for index in 0..left.len() {
            let at = left.remove(index);
            let mine = blocks[at];
            let meets = |other: &Block| other.first <= mine.last && mine.first <= other.last;
            let ends = placed.iter().filter(|(other, _)| meets(&blocks[*other]));
            let offset = ends.map(|(other, offset)| blocks[*other].size + offset).max().unwrap_or(0);
            placed.push((at, offset));
            place(blocks, left, placed, best);
            placed.pop();
            left.insert(index, at);
        }
    }
    let mut best = u64::MAX;
    place(blocks, &mut (0..blocks.len()).collect(), &mut Vec::new(), &mut best);
    best
}

fn blocks(most: usize) -> impl Strategy<Value = Vec<Block>> {
    let block = (0u64..40, 0usize..8, 0usize..5);
    let block = block.prop_map(|(size, first, len)| Block { size, first, last: first + len });
    prop::collection::vec(block, 0..most)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn small_plans_are_the_least(blocks in blocks(8)) {
        let found = plan(&blocks, 2_000_000);
        prop_assert_eq!(found.conflict(&blocks, 0), None);
        prop_assert!(found.optimal);
        prop_assert_eq!(found.size.0, brute_force(&blocks));
    }

    #[test]
    fn plans_hold_for_any_blocks(
        blocks in blocks(90),
        work in prop::sample::select(vec![0u64, 50, 1000, 200_000]),
        guard in 0u64..9,
        align in prop::sample::select(vec![1u64, 8, 64]),
    ) {
        let found = ArenaPlan::of_blocks(&blocks, &PlanOptions { align, guard, work }).unwrap();
        prop_assert_eq!(found.conflict(&blocks, guard), None);
        prop_assert!(found.offsets.iter().all(|offset| offset.is_multiple_of(align)));
        prop_assert!(found.size >= found.lower_bound);
    }
}

#[test]
fn large_plans_hold_and_are_repeatable() {
    let mut random = Random(7);
    for count in [100, 700, 3000] {
        let blocks = dag(&mut random, count);
        let found = plan(&blocks, 1_000_000);
        assert_eq!(found.conflict(&blocks, 0), None, "{count}");
        assert_eq!(found, plan(&blocks, 1_000_000), "{count}");
        assert!(found.fragmentation_fraction() < 0.1, "{count}: {}", found.fragmentation_fraction());
    }
}

#[test]
fn up_to_thirty_tensors_are_planned_optimally() {
    let mut random = Random(11);
    let (mut optimal, count) = (0, 200);
    for _ in 0..count {
        let size = random.within(2, 30);
        let blocks = dag(&mut random, size);
        optimal += u32::from(plan(&blocks, 2_000_000).optimal);
    }
    assert!(optimal * 100 >= 95 * count, "{optimal} of {count}");
}

#[test]
fn conflicts_are_found() {
    let blocks = [Block { size: 8, first: 0, last: 2 }, Block { size: 8, first: 2, last: 3 }];
    let mut found = plan(&blocks, 1000);
    assert_eq!((found.size, found.conflict(&blocks, 0)), (Bytes(16), None));
    let second = if found.offsets[0] == 0 { 1 } else { 0 };
    found.offsets[second] = 7;
    assert!(found.conflict(&blocks, 0).is_some());
    found.offsets[second] = 9;
    assert_eq!(found.conflict(&blocks, 0), Some((second, second)), "it reaches beyond the arena");
    found.offsets[second] = 8;
    assert!(found.conflict(&blocks, 1).is_some(), "there is no room for a guard");
}

#[test]
fn what_cannot_be_planned_is_refused() {
    let block = Block { size: 1, first: 2, last: 1 };
    let refused = ArenaPlan::of_blocks(&[block], &PlanOptions::default()).unwrap_err();
    assert!(refused.to_string().contains("last step"), "{refused}");
    let zero = PlanOptions { align: 0, ..PlanOptions::default() };
    assert!(matches!(ArenaPlan::of_blocks(&[], &zero), Err(Error::Setting { .. })));
    let huge = [Block { size: u64::MAX / 3, first: 0, last: 0 }; 3];
    assert!(ArenaPlan::of_blocks(&huge, &PlanOptions::default()).unwrap_err().is_overflow());
    assert_eq!(plan(&[], 10).size, Bytes::ZERO);
}
