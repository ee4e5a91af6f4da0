//! The suite of [`CostModel`].

use dd_core::{Bytes, CostModel, Error};

use crate::rule::done;

/// The sizes that are tried in every dimension, in order.
const GRID: [usize; 8] = [0, 1, 2, 3, 17, 256, 1 << 20, usize::MAX];
/// The most dimensions that are tried together on the whole grid.
const MOST_DIMS: usize = 4;

/// Checks a [`CostModel`]: it knows some number of dimensions up to four; for each that it knows, over a grid of sizes
/// from zero to the largest, the cost never falls when one size grows, and past 64 bits it is
/// [`Error::SizeOverflow`], which larger sizes keep; the same sizes cost the same again; sizes that it does not
/// know are [`Error::InvalidArgument`], and nothing else is an error or a panic.
///
/// ```
/// use dd_core::{Bytes, cost::AffineCost};
/// dd_conformance::cost_model(&AffineCost { constant: Bytes::mib(1), per_element: Bytes(4) });
/// ```
///
/// # Panics
/// Where the model breaks the contract.
pub fn cost_model<M: CostModel + ?Sized>(model: &M) {
    let known = (0..=MOST_DIMS).filter(|dims| check_dims(model, *dims)).count();
    assert!(known > 0, "the model knows the cost of no sizes of 0 to {MOST_DIMS} dimensions");
    for dims in [MOST_DIMS + 1, 64, 1000] {
        check_step(model, &vec![1; dims], &vec![usize::MAX; dims]);
    }
}

/// What sizes cost. The order is that of the contract: a cost that overflows is above all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Cost {
    Unknown,
    Known(Bytes),
    Overflow,
}

fn cost<M: CostModel + ?Sized>(model: &M, sizes: &[usize]) -> Cost {
    match model.peak(sizes) {
        Ok(bytes) => Cost::Known(bytes),
        Err(Error::SizeOverflow { .. }) => Cost::Overflow,
        Err(Error::InvalidArgument { .. }) => Cost::Unknown,
        Err(other) => done(Err(other), format_args!("the cost of sizes {sizes:?}")),
    }
}

/// Checks all points of the grid of so many dimensions; says whether the cost of any is known.
fn check_dims<M: CostModel + ?Sized>(model: &M, dims: usize) -> bool {
    let mut known = false;
    for point in 0..GRID.len().pow(u32::try_from(dims).unwrap_or(0)) {
        let indices: Vec<usize> = (0..dims).scan(point, |rest, _| Some(next_digit(rest))).collect();
        let sizes: Vec<usize> = indices.iter().map(|index| GRID[*index]).collect();
        let here = cost(model, &sizes);
        assert_eq!(here, cost(model, &sizes), "sizes {sizes:?} cost something else the second time");
        known |= matches!(here, Cost::Known(_));
        for dim in 0..dims {
            let Some(larger) = GRID.get(indices[dim] + 1) else { continue };
            let mut grown = sizes.clone();
            grown[dim] = *larger;
            check_step(model, &sizes, &grown);
        }
    }
    known
}

/// Checks that larger sizes cost no less, where both are known.
fn check_step<M: CostModel + ?Sized>(model: &M, sizes: &[usize], grown: &[usize]) {
    let (here, there) = (cost(model, sizes), cost(model, grown));
    let comparable = here != Cost::Unknown && there != Cost::Unknown;
    assert!(
        !comparable || here <= there,
        "sizes {sizes:?} cost {here:?}, but the larger {grown:?} {there:?}"
    );
}

fn next_digit(rest: &mut usize) -> usize {
    let digit = *rest % GRID.len();
    *rest /= GRID.len();
    digit
}
