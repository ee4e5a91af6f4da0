//! How much stays: the longest prefix of a ranking that fits the budget, the steps that use up what it leaves, and
//! exchanges that use up more.

use std::collections::BTreeSet;

use super::problem::{Problem, at};
use super::spread::{Choice, sequence};

/// The longest prefix of a ranking that fits, then whatever else still fits. Nothing if the depth itself does not.
pub(super) fn choose(problem: &Problem<'_>, ranked: &[usize], depth: usize) -> Option<Choice> {
    let mut choice = Choice::nothing(problem, depth);
    choice.left(problem)?;
    keep_prefix(problem, &mut choice, ranked);
    fill(problem, &mut choice, ranked);
    Some(choice)
}

/// Keeps the longest prefix that fits, by bisection. Parts known to fit are kept at once, so all steps together look at
/// each part about once.
fn keep_prefix(problem: &Problem<'_>, choice: &mut Choice, indices: &[usize]) {
    let mut rest = indices;
    while !rest.is_empty() {
        let (first, second) = rest.split_at(rest.len().div_ceil(2));
        let mut more = choice.clone();
        more.keep_all(problem, first);
        if more.left(problem).is_some() {
            *choice = more;
            rest = second;
        } else {
            rest = first.split_last().map_or(&[], |(_, before)| before);
        }
    }
}

/// How closely the share of a regular spread is searched; what remains is filled up afterwards.
const HALVINGS: usize = 14;

/// As [`choose`], by error diffusion: the largest share for which whole parts, taken regularly, fit.
pub(super) fn choose_regular(problem: &Problem<'_>, ranked: &[usize], depth: usize) -> Option<Choice> {
    let mut best = Choice::nothing(problem, depth);
    best.left(problem)?;
    let (mut low, mut high) = (0.0_f64, 1.0_f64);
    let sequence = sequence(problem);
    for _ in 0..HALVINGS {
        let share = f64::midpoint(low, high);
        let choice = diffuse(problem, &sequence, share, depth);
        if choice.left(problem).is_none() {
            high = share;
            continue;
        }
        low = share;
        if choice.kept >= best.kept {
            best = choice;
        }
    }
    fill(problem, &mut best, ranked);
    Some(best)
}

/// Keeps `share` of the bytes: at each unit the parts that bring the running total nearest to its due.
fn diffuse(problem: &Problem<'_>, sequence: &[usize], share: f64, depth: usize) -> Choice {
    let mut choice = Choice::nothing(problem, depth);
    let mut due = 0.0;
    for &unit in sequence {
        due += at(&problem.sizes, unit) as f64 * share;
        for index in problem.spans.get(unit).cloned().unwrap_or_default() {
            let Some(part) = problem.parts.get(index) else { continue };
            if due >= part.bytes as f64 / 2.0 {
                choice.keep(index, *part);
                due -= part.bytes as f64;
            }
        }
    }
    choice
}

/// Adds parts, in ranking order, until no single further part fits.
///
/// A part of at most what is left fits for sure. A larger one can fit only where keeping it lessens the staging, so
/// only in a unit of the tightest window; there the smallest part is the likeliest.
fn fill(problem: &Problem<'_>, choice: &mut Choice, ranked: &[usize]) {
    while let Some(left) = choice.left(problem) {
        let before = choice.kept;
        keep_small(problem, choice, ranked, left);
        if choice.kept == before {
            keep_tight(problem, choice);
        }
        if choice.kept == before {
            return;
        }
    }
}

fn keep_small(problem: &Problem<'_>, choice: &mut Choice, ranked: &[usize], mut left: u128) {
    for &index in ranked {
        let Some(part) = problem.parts.get(index) else { continue };
        if part.bytes <= left && !at(&choice.resident, index) {
            left -= part.bytes;
            choice.keep(index, *part);
        }
    }
}

fn keep_tight(problem: &Problem<'_>, choice: &mut Choice) {
    for unit in problem.tightest(&choice.streamed, choice.depth) {
        let span = problem.spans.get(unit).cloned().unwrap_or_default();
        let smallest: Vec<usize> = span.rev().filter(|&index| !at(&choice.resident, index)).collect();
        let before = choice.kept;
        keep_prefix(problem, choice, &smallest);
        if choice.kept > before {
            return;
        }
    }
}

/// How often a choice is improved by an exchange at most, and how many exchanges are tried for it.
const EXCHANGES: usize = 8;
const TRIES: usize = 4;

/// Exchanges a resident part for a larger streamed one, as long as what is left over allows it.
pub(super) fn improve(problem: &Problem<'_>, choice: &mut Choice, ranked: &[usize]) {
    for _ in 0..EXCHANGES {
        let left = choice.left(problem).unwrap_or(0);
        let Some(better) = exchanges(problem, choice, left)
            .into_iter()
            .take(TRIES)
            .filter_map(|(out, into)| exchange(problem, choice, out, into))
            .find(|better| better.left(problem).is_some())
        else {
            return;
        };
        *choice = better;
        fill(problem, choice, ranked);
    }
}

/// Sizes of a resident and of a larger streamed part that differ by no more than is left, greatest gain first.
fn exchanges(problem: &Problem<'_>, choice: &Choice, left: u128) -> Vec<(u128, u128)> {
    let sizes = |resident: bool| -> BTreeSet<u128> {
        let parts = problem.parts.iter().zip(&choice.resident);
        parts.filter(|(_, kept)| **kept == resident).map(|(part, _)| part.bytes).collect()
    };
    let (kept, streamed) = (sizes(true), sizes(false));
    let partner = |&into: &u128| Some((*kept.range(into.saturating_sub(left)..into).next()?, into));
    let mut pairs: Vec<(u128, u128)> = streamed.iter().filter_map(partner).collect();
    pairs.sort_by_key(|(out, into)| std::cmp::Reverse(into - out));
    pairs
}

/// Exchanges parts of these sizes, within one unit where one has both, so that the spread remains.
fn exchange(problem: &Problem<'_>, choice: &Choice, out: u128, into: u128) -> Option<Choice> {
    let find = |resident: bool, bytes: u128, mut span: std::ops::Range<usize>| {
        span.find(|&index| {
            at(&choice.resident, index) == resident
                && problem.parts.get(index).is_some_and(|part| part.bytes == bytes)
        })
    };
    let both = |span: &std::ops::Range<usize>| {
        Some((find(true, out, span.clone())?, find(false, into, span.clone())?))
    };
    let all = 0..problem.parts.len();
    let (out, into) = problem.spans.iter().find_map(both).or_else(|| both(&all))?;
    let mut better = choice.clone();
    better.release(out, *problem.parts.get(out)?);
    better.keep(into, *problem.parts.get(into)?);
    Some(better)
}
