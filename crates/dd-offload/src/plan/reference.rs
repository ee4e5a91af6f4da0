//! What plans are compared with: Belady's optimum and LRU.
//!
//! Both caches may bypass (read an item without keeping it) or, for LRU, never do. The optimum need not even hold the
//! unit in use beside what it keeps, nor its next one, so it is an opponent stronger than any program could be.

use std::collections::HashMap;

/// Items of one size: the reads of each pass of Belady's MIN with bypass, once settled (mean of ten passes).
pub(super) fn belady_uniform(order: &[usize], capacity: usize) -> f64 {
    let passes = 24;
    let next = |after: usize, unit: usize| {
        (1..=order.len()).find(|gap| order[(after + gap) % order.len()] == unit).unwrap_or(usize::MAX)
    };
    let mut cache: Vec<usize> = Vec::new();
    let mut misses = 0;
    for now in 0..passes * order.len() {
        let unit = order[now % order.len()];
        if cache.contains(&unit) {
            continue;
        }
        if (10..20).contains(&(now / order.len())) {
            misses += 1;
        }
        cache.push(unit);
        if cache.len() > capacity {
            let last = cache.iter().copied().max_by_key(|&kept| next(now, kept)).unwrap();
            cache.retain(|&kept| kept != last);
        }
    }
    misses as f64 / 10.0
}

/// Items of any sizes: the fewest bytes per pass that any caching could read in the long run, by exhaustive search.
///
/// States are the sets of items that fit; an edge is a pass, its weight what it reads; the answer is the least mean
/// weight of a cycle (Karp 1978).
pub(super) fn belady_exhaustive(order: &[usize], sizes: &[u64], capacity: u64) -> f64 {
    let fits = |set: usize| bytes(set, sizes) <= capacity;
    let states: Vec<usize> = (0..1 << sizes.len()).filter(|&set| fits(set)).collect();
    let pass: Vec<Vec<u64>> = states.iter().map(|&from| one_pass(order, sizes, &states, from)).collect();
    let count = states.len();
    let mut walks = vec![vec![f64::INFINITY; count]; count + 1];
    walks[0][0] = 0.0;
    for length in 1..=count {
        for (from, costs) in pass.iter().enumerate() {
            for (to, &cost) in costs.iter().enumerate() {
                let through = walks[length - 1][from] + cost as f64;
                walks[length][to] = walks[length][to].min(through);
            }
        }
    }
    let worst = |to: usize| {
        let means = (0..count).map(|length| (walks[count][to] - walks[length][to]) / (count - length) as f64);
        means.fold(f64::NEG_INFINITY, f64::max)
    };
    (0..count).map(worst).fold(f64::INFINITY, f64::min)
}

/// The fewest bytes read in one pass from a state to every state.
fn one_pass(order: &[usize], sizes: &[u64], states: &[usize], from: usize) -> Vec<u64> {
    let mut costs: HashMap<usize, u64> = HashMap::from([(from, 0)]);
    for &item in order {
        let mut next: HashMap<usize, u64> = HashMap::new();
        for (&state, &cost) in &costs {
            let read = if state >> item & 1 == 1 { 0 } else { sizes[item] };
            for &to in states.iter().filter(|&&to| to & !(state | 1 << item) == 0) {
                let best = next.entry(to).or_insert(u64::MAX);
                *best = (*best).min(cost + read);
            }
        }
        costs = next;
    }
    states.iter().map(|state| costs.get(state).copied().unwrap_or(u64::MAX / 2)).collect()
}

fn bytes(set: usize, sizes: &[u64]) -> u64 {
    sizes.iter().enumerate().filter(|(item, _)| set >> item & 1 == 1).map(|(_, size)| size).sum()
}

/// The bytes that an LRU cache reads per settled pass.
pub(super) fn lru(order: &[usize], sizes: &[u64], capacity: u64) -> u64 {
    let mut cache: Vec<usize> = Vec::new(); // Most recently used last.
    let mut read = 0;
    for pass in 0..6 {
        for &item in order {
            let hit = cache.contains(&item);
            cache.retain(|&kept| kept != item);
            cache.push(item);
            while cache.iter().map(|&kept| sizes[kept]).sum::<u64>() > capacity {
                cache.remove(0);
            }
            read += if pass == 5 && !hit { sizes[item] } else { 0 };
        }
    }
    read
}

#[test]
fn the_references_agree_with_each_other_and_with_the_formulas() {
    for (items, capacity) in [(3, 0), (3, 2), (4, 1), (4, 3), (5, 2)] {
        let cyclic: Vec<usize> = (0..items).collect();
        let sizes = vec![1; items];
        let least = (items - capacity) as f64;
        assert_eq!(belady_uniform(&cyclic, capacity), least);
        assert_eq!(belady_exhaustive(&cyclic, &sizes, capacity as u64), least);
        assert_eq!(lru(&cyclic, &sizes, capacity as u64), items as u64);
        let palindrome: Vec<usize> = (0..items).chain((0..items).rev()).collect();
        let uniform = belady_uniform(&palindrome, capacity);
        assert_eq!(uniform, belady_exhaustive(&palindrome, &sizes, capacity as u64));
        if capacity > 0 {
            assert_eq!(uniform, 2.0 * least);
            assert_eq!(lru(&palindrome, &sizes, capacity as u64) as f64, uniform);
        }
    }
}
