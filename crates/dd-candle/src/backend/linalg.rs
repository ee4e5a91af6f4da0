//! [`Linalg`] for [`CandleBackend`]: candle's own operations, with shapes checked first, so that what candle would
//! answer with a panic or an abort is an error, and floats only, as candle's integer arithmetic overflows.

use candle_core::{Error as Candle, Tensor};
use dd_core::backend::unsupported_dtype;
use dd_core::{Backend, DType, Error, Linalg, Result, TensorDesc, Tier};

use super::{CandleBackend, checked_elements};
use crate::dtype::NAME;
use crate::error::root;

impl Linalg for CandleBackend {
    fn matmul(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        let (x, y) = (self.describe(a)?, self.describe(b)?);
        let out = product(&x, &y)?;
        self.run("matmul", &[&x, &y], &out, a, || match a.matmul(b) {
            Err(error) if is_striding(&error) => a.contiguous()?.matmul(&b.contiguous()?),
            other => other,
        })
    }

    fn add(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        let (x, y) = (self.describe(a)?, self.describe(b)?);
        check_equal("add", &x, &y)?;
        self.run("add", &[&x, &y], &x, a, || a.add(b))
    }

    fn mul(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        let (x, y) = (self.describe(a)?, self.describe(b)?);
        check_equal("mul", &x, &y)?;
        self.run("mul", &[&x, &y], &x, a, || a.mul(b))
    }

    fn affine(&self, a: &Tensor, scale: f64, shift: f64) -> Result<Tensor> {
        let x = self.describe(a)?;
        self.run("affine", &[&x], &x, a, || a.affine(scale, shift))
    }

    fn transpose(&self, a: &Tensor, first: usize, second: usize) -> Result<Tensor> {
        check_dim(first, a.rank())?;
        check_dim(second, a.rank())?;
        self.done("transpose", a, a.transpose(first, second))
    }

    fn narrow(&self, a: &Tensor, dim: usize, start: usize, len: usize) -> Result<Tensor> {
        let size = *a.dims().get(dim).ok_or_else(|| no_dim(dim, a.rank()))?;
        if start.checked_add(len).is_none_or(|end| end > size) {
            let reason = format!("entries {start}..{start}+{len} of dimension {dim}, which has {size}");
            return Err(Error::InvalidArgument { argument: "range", reason });
        }
        self.done("narrow", a, a.narrow(dim, start, len))
    }

    fn concat(&self, tensors: &[&Tensor], dim: usize) -> Result<Tensor> {
        let descs = tensors.iter().map(|tensor| self.describe(tensor)).collect::<Result<Vec<_>>>()?;
        let out = joined(&descs, dim)?;
        let [first, ..] = tensors else { return Err(nothing()) };
        self.room(&out, self.tier_of(first))?;
        self.done("concat", first, Tensor::cat(tensors, dim))
    }

    fn reshape(&self, a: &Tensor, shape: &[usize]) -> Result<Tensor> {
        let x = self.describe(a)?;
        let out = TensorDesc::new(shape, x.dtype())?;
        checked_elements(&out)?;
        if out.elements() != x.elements() {
            return Err(mismatch("reshape", "as many elements", a.dims(), shape));
        }
        if !a.is_contiguous() {
            self.room(&out, self.tier_of(a))?;
        }
        self.done("reshape", a, a.reshape(shape))
    }
}

impl CandleBackend {
    /// Runs one arithmetic operation, where its operands are floats and there is room for its result.
    fn run(
        &self,
        operation: &str,
        operands: &[&TensorDesc],
        out: &TensorDesc,
        on: &Tensor,
        compute: impl FnOnce() -> candle_core::Result<Tensor>,
    ) -> Result<Tensor> {
        let floats = [DType::F64, DType::F32, DType::F16, DType::BF16];
        if let Some(other) = operands.iter().map(|desc| desc.dtype()).find(|dtype| !floats.contains(dtype)) {
            return Err(unsupported_dtype(NAME, other));
        }
        let tier = self.tier_of(on);
        self.room(out, tier)?;
        compute().map_err(|error| self.failed(operation, tier, out.bytes(), error))
    }

    fn done(&self, operation: &str, on: &Tensor, result: candle_core::Result<Tensor>) -> Result<Tensor> {
        let needed = || self.describe(on).map_or(dd_core::Bytes::ZERO, |desc| desc.bytes());
        result.map_err(|error| self.failed(operation, self.tier_of(on), needed(), error))
    }

    /// Refuses a result that host memory has no room for: candle would abort the program. A device says so itself.
    fn room(&self, out: &TensorDesc, tier: Tier) -> Result<()> {
        checked_elements(out)?;
        if tier != Tier::Host {
            return Ok(());
        }
        let mut probe = Vec::<u8>::new();
        let refused = probe.try_reserve_exact(out.len_in_memory()?).is_err();
        std::hint::black_box(&probe); // Else the allocation may be optimised away, and with it the answer.
        if refused { Err(self.need(tier, out.bytes()).refused()) } else { Ok(()) }
    }
}

fn is_striding(error: &Candle) -> bool {
    matches!(root(error), Candle::MatMulUnexpectedStriding(_) | Candle::RequiresContiguous { .. })
}

/// The result of `[.., m, k] × [.., k, n]`.
fn product(x: &TensorDesc, y: &TensorDesc) -> Result<TensorDesc> {
    let wrong = || mismatch("matmul", "[.., m, k] and [.., k, n] of one dtype", x.shape(), y.shape());
    let ([lead_x @ .., m, k], [lead_y @ .., k_y, n]) = (x.shape(), y.shape()) else { return Err(wrong()) };
    if lead_x != lead_y || k != k_y || x.dtype() != y.dtype() {
        return Err(wrong());
    }
    let shape: Vec<usize> = lead_x.iter().chain([m, n]).copied().collect();
    TensorDesc::new(shape, x.dtype())
}

/// The result of concatenating along `dim`.
fn joined(descs: &[TensorDesc], dim: usize) -> Result<TensorDesc> {
    let [first, rest @ ..] = descs else { return Err(nothing()) };
    check_dim(dim, first.rank())?;
    let mut shape = first.shape().to_vec();
    for desc in rest {
        let others_equal = |(index, (x, y)): (usize, (&usize, &usize))| index == dim || x == y;
        let fits = desc.rank() == first.rank()
            && desc.dtype() == first.dtype()
            && first.shape().iter().zip(desc.shape()).enumerate().all(others_equal);
        if !fits {
            let expected = "equal dtypes, and shapes equal but in one dimension";
            return Err(mismatch("concat", expected, first.shape(), desc.shape()));
        }
        if let (Some(total), Some(more)) = (shape.get_mut(dim), desc.shape().get(dim)) {
            let overflow = || Error::SizeOverflow { what: format!("dimension {dim} of a concatenation") };
            *total = total.checked_add(*more).ok_or_else(overflow)?;
        }
    }
    TensorDesc::new(shape, first.dtype())
}

fn check_equal(context: &str, x: &TensorDesc, y: &TensorDesc) -> Result<()> {
    if x == y {
        return Ok(());
    }
    let (expected, found) = (format!("two of {x}"), format!("{x} and {y}"));
    Err(Error::Mismatch { context: context.to_owned(), expected, found })
}

fn check_dim(dim: usize, rank: usize) -> Result<()> {
    if dim < rank { Ok(()) } else { Err(no_dim(dim, rank)) }
}

fn no_dim(dim: usize, rank: usize) -> Error {
    let reason = format!("dimension {dim} of a tensor of rank {rank}");
    Error::InvalidArgument { argument: "dimension", reason }
}

fn nothing() -> Error {
    Error::InvalidArgument { argument: "tensors", reason: "there is none to concatenate".to_owned() }
}

fn mismatch(context: &str, expected: &str, x: &[usize], y: &[usize]) -> Error {
    let (expected, found) = (expected.to_owned(), format!("{x:?} and {y:?}"));
    Error::Mismatch { context: context.to_owned(), expected, found }
}
