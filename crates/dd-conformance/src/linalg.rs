//! The suite of [`Linalg`].

use dd_core::{Backend, DType, Error, HostBackend, Linalg, Result, TensorDesc, Tier};

use crate::backend::bytes_of;
use crate::rule::{desc, done, noise, refused};

/// Checks a [`Linalg`] in each tier of the backend where it computes (each needs 2 MiB), in `F32`, which must be there,
/// and `F64`.
///
/// - every operation gives the values worked out by hand, with the shape that the contract says;
/// - on noise in −1..1 it agrees with [`HostBackend`] within 1e-4 (`F32`) or 1e-10 (`F64`), relative to the larger of
///   1 and the expected value: batched products, transposed and narrowed operands, every dimension of a concatenation;
/// - inputs are left as they are; a result that shares the storage of its input makes neither unique;
/// - shapes that do not meet are [`Error::Mismatch`]; dimensions and ranges that are not there, and a concatenation of
///   nothing, are [`Error::InvalidArgument`]; a dtype that cannot be computed with is [`Error::UnsupportedDType`];
/// - empty operands give an empty result (or, for a product over nothing, zeros), or an error, and no panic.
///
/// ```
/// dd_conformance::linalg(&dd_core::HostBackend::default());
/// ```
///
/// # Panics
/// Where the backend breaks the contract.
pub fn linalg<B: Linalg>(backend: &B) {
    let mut computed = false;
    for tier in backend.tiers().to_vec() {
        let one = On { backend, tier, dtype: DType::F32 }.tensor(&[1, 1], &[1.0]);
        match backend.matmul(&one, &one) {
            Err(Error::UnsupportedTier { .. }) => continue, // It keeps tensors there, and does not compute.
            result => drop(done(result, format_args!("matmul of [1, 1] in {tier}"))),
        }
        computed = true;
        for dtype in [DType::F32, DType::F64] {
            let on = On { backend, tier, dtype };
            if on.computes() {
                by_hand(&on);
                against_the_reference(&on);
                results_and_inputs_are_apart(&on);
                refuses_shapes(&on);
                takes_empty_operands(&on);
            }
        }
        refuses_dtypes(backend, tier);
    }
    assert!(computed, "the backend computes in none of its tiers");
}

/// Where and in what a check computes.
struct On<'a, B> {
    backend: &'a B,
    tier: Tier,
    dtype: DType,
}

impl<B: Linalg> On<'_, B> {
    fn computes(&self) -> bool {
        let desc = desc(&[1, 1], self.dtype);
        let tensor = self.backend.allocate(&desc, self.tier);
        let product = tensor.and_then(|tensor| self.backend.matmul(&tensor, &tensor));
        match product {
            Err(Error::UnsupportedDType { .. }) if self.dtype != DType::F32 => false,
            result => done(result.map(|_| true), format_args!("matmul of {desc} in {}", self.tier)),
        }
    }

    #[track_caller]
    fn tensor(&self, shape: &[usize], values: &[f64]) -> B::Tensor {
        let desc = desc(shape, self.dtype);
        let upload = self.backend.upload(&desc, &encode(values, self.dtype), self.tier);
        done(upload, format_args!("upload of {desc} to {}", self.tier))
    }

    /// Checks shape, dtype, tier and values.
    #[track_caller]
    fn gives(&self, result: Result<B::Tensor>, shape: &[usize], values: &[f64], what: &str) -> B::Tensor {
        let what = format!("{what} of {} in {}", self.dtype, self.tier);
        let tensor = done(result, &what);
        let found = done(self.backend.describe(&tensor), format_args!("{what}: describe"));
        assert_eq!(found, desc(shape, self.dtype), "{what}: shape and dtype of the result");
        assert_eq!(self.backend.tier_of(&tensor), self.tier, "{what}: tier of the result");
        let found = decode(&bytes_of(self.backend, &tensor, &what), self.dtype);
        for (index, (found, expected)) in found.iter().zip(values).enumerate() {
            let close = (found - expected).abs() <= tolerance(self.dtype) * expected.abs().max(1.0);
            assert!(close, "{what}: element {index} of {shape:?} is {found}, expected {expected}");
        }
        tensor
    }
}

const fn tolerance(dtype: DType) -> f64 {
    if matches!(dtype, DType::F64) { 1e-10 } else { 1e-4 }
}

#[allow(clippy::cast_possible_truncation, reason = "rounding to f32 is what storing as F32 means")]
fn encode(values: &[f64], dtype: DType) -> Vec<u8> {
    match dtype {
        DType::F64 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        _ => values.iter().flat_map(|x| (*x as f32).to_le_bytes()).collect(),
    }
}

fn decode(bytes: &[u8], dtype: DType) -> Vec<f64> {
    match dtype {
        DType::F64 => bytes.as_chunks().0.iter().map(|x| f64::from_le_bytes(*x)).collect(),
        _ => bytes.as_chunks().0.iter().map(|x| f64::from(f32::from_le_bytes(*x))).collect(),
    }
}

fn by_hand<B: Linalg>(on: &On<'_, B>) {
    let b = on.backend;
    let a = on.tensor(&[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let x = on.tensor(&[3, 2], &[7.0, 8.0, 9.0, 10.0, 11.0, 12.0]);
    let ones = on.tensor(&[2, 3], &[1.0; 6]);
    on.gives(b.matmul(&a, &x), &[2, 2], &[58.0, 64.0, 139.0, 154.0], "matmul [2, 3] × [3, 2]");
    on.gives(b.add(&a, &ones), &[2, 3], &[2.0, 3.0, 4.0, 5.0, 6.0, 7.0], "add");
    on.gives(b.mul(&a, &a), &[2, 3], &[1.0, 4.0, 9.0, 16.0, 25.0, 36.0], "mul");
    on.gives(b.affine(&a, 2.0, -1.0), &[2, 3], &[1.0, 3.0, 5.0, 7.0, 9.0, 11.0], "affine 2x − 1");
    on.gives(b.affine(&a, 0.0, 0.5), &[2, 3], &[0.5; 6], "affine 0x + 0.5");
    on.gives(b.transpose(&a, 0, 1), &[3, 2], &[1.0, 4.0, 2.0, 5.0, 3.0, 6.0], "transpose");
    on.gives(
        b.transpose(&a, 1, 1),
        &[2, 3],
        &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
        "transpose of a dimension with itself",
    );
    on.gives(b.narrow(&a, 1, 1, 2), &[2, 2], &[2.0, 3.0, 5.0, 6.0], "narrow of columns");
    on.gives(b.narrow(&a, 0, 1, 1), &[1, 3], &[4.0, 5.0, 6.0], "narrow of rows");
    let rows = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0];
    on.gives(b.concat(&[&a, &ones], 0), &[4, 3], &rows, "concat of rows");
    let columns = [1.0, 2.0, 3.0, 1.0, 1.0, 1.0, 4.0, 5.0, 6.0, 1.0, 1.0, 1.0];
    on.gives(b.concat(&[&a, &ones], 1), &[2, 6], &columns, "concat of columns");
    on.gives(b.concat(&[&a], 1), &[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], "concat of one");
    on.gives(b.reshape(&a, &[3, 1, 2]), &[3, 1, 2], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], "reshape");
    let scalar = on.tensor(&[], &[3.0]);
    on.gives(b.reshape(&scalar, &[1, 1]), &[1, 1], &[3.0], "reshape of a scalar");
    on.gives(b.add(&scalar, &scalar), &[], &[6.0], "add of scalars");
    let transposed = done(b.transpose(&a, 0, 1), "transpose");
    on.gives(
        b.reshape(&transposed, &[6]),
        &[6],
        &[1.0, 4.0, 2.0, 5.0, 3.0, 6.0],
        "reshape of a transposed tensor",
    );
    on.gives(
        b.matmul(&transposed, &a),
        &[3, 3],
        &[17.0, 22.0, 27.0, 22.0, 29.0, 36.0, 27.0, 36.0, 45.0],
        "matmul of a transposed tensor",
    );
}

/// Noise in −1..1, the same for the same seed.
fn values(seed: u64, shape: &[usize]) -> Vec<f64> {
    let count = shape.iter().product::<usize>();
    let bytes = noise(seed, count * 4);
    bytes.as_chunks().0.iter().map(|x| f64::from(i32::from_le_bytes(*x)) / f64::from(i32::MAX)).collect()
}

/// Computes the same on the backend and on the reference, and compares.
fn against_the_reference<B: Linalg>(on: &On<'_, B>) {
    let host = HostBackend::default();
    let reference = On { backend: &host, tier: Tier::Host, dtype: on.dtype };
    let rows: [(&[usize], &[usize]); 6] = [
        (&[1, 1], &[1, 1]),
        (&[17, 5], &[5, 33]),
        (&[1, 64], &[64, 1]),
        (&[64, 128], &[128, 64]),
        (&[3, 8, 16], &[3, 16, 4]),
        (&[2, 3, 4, 5], &[2, 3, 5, 6]),
    ];
    for (seed, (left, right)) in (1..).zip(rows) {
        compare(on, &reference, (left, right), seed);
    }
}

fn compare<B: Linalg>(
    on: &On<'_, B>,
    reference: &On<'_, HostBackend>,
    shapes: (&[usize], &[usize]),
    seed: u64,
) {
    let (left, right) = (values(seed, shapes.0), values(seed + 100, shapes.1));
    let (ours, theirs) = (inputs(on, shapes, &left, &right), inputs(reference, shapes, &left, &right));
    for ((name, ours), (_, theirs)) in
        operations(on.backend, &ours).into_iter().zip(operations(reference.backend, &theirs))
    {
        let what = format!("{name} of {:?} and {:?}", shapes.0, shapes.1);
        let theirs = done(theirs, format_args!("the reference's {what}"));
        let values = decode(theirs.bytes(), on.dtype);
        on.gives(ours, theirs.desc().shape(), &values, &what);
    }
}

fn inputs<B: Linalg>(
    on: &On<'_, B>,
    shapes: (&[usize], &[usize]),
    left: &[f64],
    right: &[f64],
) -> [B::Tensor; 2] {
    [on.tensor(shapes.0, left), on.tensor(shapes.1, right)]
}

/// Every operation on a pair of tensors that can be multiplied, and some on the results of others.
fn operations<L: Linalg>(l: &L, [a, b]: &[L::Tensor; 2]) -> Vec<(&'static str, Result<L::Tensor>)> {
    let describe = |tensor| l.describe(tensor).map(|desc| desc.shape().to_vec());
    let shape = done(describe(a), "describe");
    let last = shape.len() - 1;
    let half = shape[last].div_ceil(2);
    let both = |first: Result<L::Tensor>, then: &dyn Fn(&L::Tensor) -> Result<L::Tensor>| {
        first.and_then(|t| then(&t))
    };
    let swapped = || l.transpose(a, last - 1, last);
    vec![
        ("matmul", l.matmul(a, b)),
        ("add", l.add(a, a)),
        ("mul", l.mul(a, a)),
        ("affine", l.affine(b, -1.5, 0.25)),
        ("transpose", swapped()),
        ("transpose of the outermost and innermost", l.transpose(b, 0, last)),
        ("narrow", l.narrow(a, last, shape[last] - half, half)),
        ("concat of the innermost", l.concat(&[a, a, a], last)),
        ("concat of the outermost", l.concat(&[b, b], 0)),
        ("reshape", l.reshape(a, &[shape.iter().product()])),
        ("product with its transpose", both(swapped(), &|t| l.matmul(a, t))),
        ("sum of transposes", both(swapped(), &|t| l.add(t, t))),
        ("affine of a narrow", both(l.narrow(a, last, 0, half), &|t| l.affine(t, 2.0, 1.0))),
        ("concat of narrows", both(l.narrow(a, last, 0, half), &|t| l.concat(&[t, t], 0))),
    ]
}

/// Overwrites what is said to be unique, and checks that nothing else changes.
fn results_and_inputs_are_apart<B: Linalg>(on: &On<'_, B>) {
    let b = on.backend;
    type Operation<B> = fn(&B, &<B as Backend>::Tensor) -> Result<<B as Backend>::Tensor>;
    let views: [(&str, Operation<B>); 5] = [
        ("reshape", |b, t| b.reshape(t, &[4])),
        ("transpose", |b, t| b.transpose(t, 0, 1)),
        ("narrow", |b, t| b.narrow(t, 0, 0, 1)),
        ("concat of one", |b, t| b.concat(&[t], 0)),
        ("affine 1x + 0", |b, t| b.affine(t, 1.0, 0.0)),
    ];
    let start = [1.0, 2.0, 3.0, 4.0];
    for (what, operation) in views {
        let mut input = on.tensor(&[2, 2], &start);
        let mut result = done(operation(b, &input), what);
        let kept = bytes_of(b, &result, what);
        assert_eq!(bytes_of(b, &input, what), encode(&start, on.dtype), "{what} changed its input");
        if b.is_unique(&mut input) {
            done(
                b.write(&mut input, 0, &encode(&[9.0; 4], on.dtype)),
                format_args!("{what}: write to the input"),
            );
            let after = bytes_of(b, &result, what);
            assert_eq!(after, kept, "{what}: the input is called unique, but the result shares its storage");
        }
        let before = bytes_of(b, &input, what);
        if b.is_unique(&mut result) {
            done(
                b.write(&mut result, 0, &encode(&[7.0], on.dtype)),
                format_args!("{what}: write to the result"),
            );
            let after = bytes_of(b, &input, what);
            assert_eq!(
                after, before,
                "{what}: the result is called unique, but shares the storage of its input"
            );
        }
    }
}

fn refuses_shapes<B: Linalg>(on: &On<'_, B>) {
    let b = on.backend;
    let zeros = |shape: &[usize]| on.tensor(shape, &vec![0.0; shape.iter().product()]);
    let products: [(&[usize], &[usize]); 5] = [
        (&[2, 3], &[2, 3]),
        (&[2, 3], &[4, 2]),
        (&[2, 2, 3], &[3, 3, 2]),
        (&[3], &[3]),
        (&[2, 3], &[2, 3, 2]),
    ];
    for (left, right) in products {
        refused!(
            b.matmul(&zeros(left), &zeros(right)),
            Error::Mismatch { .. },
            "matmul of {left:?} and {right:?}"
        );
    }
    let pairs: [(&[usize], &[usize]); 4] =
        [(&[2, 3], &[3, 2]), (&[2, 3], &[3]), (&[2, 1], &[2, 3]), (&[], &[1])];
    for (left, right) in pairs {
        let (x, y) = (zeros(left), zeros(right));
        refused!(b.add(&x, &y), Error::Mismatch { .. }, "add of {left:?} and {right:?}");
        refused!(b.mul(&x, &y), Error::Mismatch { .. }, "mul of {left:?} and {right:?}");
    }
    let a = zeros(&[2, 3]);
    for (first, second) in [(0, 2), (2, 0), (usize::MAX, 0)] {
        refused!(
            b.transpose(&a, first, second),
            Error::InvalidArgument { .. },
            "transpose {first}, {second} of [2, 3]"
        );
    }
    for (dim, start, len) in
        [(2, 0, 1), (1, 0, 4), (1, 3, 1), (0, 2, 1), (0, usize::MAX, 1), (0, 1, usize::MAX)]
    {
        refused!(
            b.narrow(&a, dim, start, len),
            Error::InvalidArgument { .. },
            "narrow {dim}, {start}, {len} of [2, 3]"
        );
    }
    refused!(b.concat(&[], 0), Error::InvalidArgument { .. }, "concat of nothing");
    refused!(b.concat(&[&a, &a], 2), Error::InvalidArgument { .. }, "concat of [2, 3] in dimension 2");
    refused!(
        b.concat(&[&a, &zeros(&[2, 4])], 0),
        Error::Mismatch { .. },
        "concat of [2, 3] and [2, 4] in dimension 0"
    );
    refused!(b.concat(&[&a, &zeros(&[2])], 0), Error::Mismatch { .. }, "concat of [2, 3] and [2]");
    for shape in [&[7][..], &[], &[2, 2], &[0]] {
        refused!(b.reshape(&a, shape), Error::Mismatch { .. }, "reshape of [2, 3] to {shape:?}");
    }
}

fn takes_empty_operands<B: Linalg>(on: &On<'_, B>) {
    let b = on.backend;
    let empty = |shape: &[usize]| on.tensor(shape, &[]);
    let (tall, wide) = (empty(&[2, 0]), empty(&[0, 3]));
    type Row<'a, T> = (&'a str, Result<T>, &'a [usize]);
    let rows: [Row<'_, B::Tensor>; 7] = [
        ("matmul [2, 0] × [0, 3]", b.matmul(&tall, &wide), &[2, 3]),
        ("matmul [0, 3] × [3, 2]", b.matmul(&wide, &on.tensor(&[3, 2], &[1.0; 6])), &[0, 2]),
        ("add of empties", b.add(&tall, &tall), &[2, 0]),
        ("affine of an empty", b.affine(&wide, 2.0, 1.0), &[0, 3]),
        ("transpose of an empty", b.transpose(&tall, 0, 1), &[0, 2]),
        ("narrow to nothing", b.narrow(&on.tensor(&[2, 2], &[1.0; 4]), 1, 1, 0), &[2, 0]),
        ("concat of empties", b.concat(&[&tall, &tall], 0), &[4, 0]),
    ];
    for (what, result, shape) in rows {
        if result.is_ok() {
            on.gives(result, shape, &[0.0; 6], what);
        }
    }
}

fn refuses_dtypes<B: Linalg>(backend: &B, tier: Tier) {
    for dtype in DType::ALL {
        let row = usize::try_from(dtype.block_elements()).unwrap_or(1);
        let Ok(tensor) = TensorDesc::new([1, row], *dtype).and_then(|desc| backend.allocate(&desc, tier))
        else {
            continue; // The suite of `Backend` checks how it refuses.
        };
        let results = [
            ("add", backend.add(&tensor, &tensor)),
            ("mul", backend.mul(&tensor, &tensor)),
            ("affine", backend.affine(&tensor, 1.0, 0.0)),
        ];
        for (what, result) in results {
            let typed = matches!(result, Ok(_) | Err(Error::UnsupportedDType { .. }));
            assert!(
                typed,
                "{what} of {dtype} in {tier}: expected a result or UnsupportedDType, found {:?}",
                result.err()
            );
        }
    }
    let on = |dtype| On { backend, tier, dtype };
    if on(DType::F64).computes() {
        let mixed = backend.add(&on(DType::F32).tensor(&[1], &[1.0]), &on(DType::F64).tensor(&[1], &[1.0]));
        refused!(
            mixed,
            Error::Mismatch { .. } | Error::UnsupportedDType { .. },
            "add of F32 and F64 in {tier}"
        );
    }
}
