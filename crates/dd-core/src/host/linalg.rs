//! [`Linalg`] for [`HostBackend`]: plain loops, for `f32` and `f64`, meant to be read and compared with, not fast.

use super::{HostBackend, HostTensor, no_room, unsupported_dtype};
use crate::backend::Linalg;
use crate::desc::TensorDesc;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::tier::Tier;

impl Linalg for HostBackend {
    fn matmul(&self, a: &HostTensor, b: &HostTensor) -> Result<HostTensor> {
        let (x, y) = (values(a)?, values(b)?);
        let shapes = (a.desc.shape(), b.desc.shape());
        let mismatch = || mismatch("matmul", "[.., m, k] and [.., k, n]", shapes);
        let ([lead_a @ .., m, k], [lead_b @ .., k_b, n]) = shapes else { return Err(mismatch()) };
        if lead_a != lead_b || k != k_b || a.desc.dtype() != b.desc.dtype() {
            return Err(mismatch());
        }
        let shape: Vec<usize> = lead_a.iter().chain([m, n]).copied().collect();
        let desc = TensorDesc::new(shape, a.desc.dtype())?;
        let mut out = self.room_for(&desc, a.tier)?;
        if desc.elements() > 0 && *k > 0 {
            for (left, right) in x.chunks_exact(m * k).zip(y.chunks_exact(k * n)) {
                for row in left.chunks_exact(*k) {
                    let dot = |column: usize| {
                        row.iter().zip(right.iter().skip(column).step_by(*n)).map(|(p, q)| p * q).sum::<f64>()
                    };
                    out.extend((0..*n).map(dot));
                }
            }
        }
        out.resize(usize::try_from(desc.elements()).unwrap_or(0), 0.0);
        self.tensor_of(desc, &out, a)
    }

    fn add(&self, a: &HostTensor, b: &HostTensor) -> Result<HostTensor> {
        self.zip(a, b, "add", |x, y| x + y)
    }

    fn mul(&self, a: &HostTensor, b: &HostTensor) -> Result<HostTensor> {
        self.zip(a, b, "mul", |x, y| x * y)
    }

    fn affine(&self, a: &HostTensor, scale: f64, shift: f64) -> Result<HostTensor> {
        let out: Vec<f64> = values(a)?.iter().map(|x| x * scale + shift).collect();
        self.tensor_of(a.desc.clone(), &out, a)
    }

    fn transpose(&self, a: &HostTensor, first: usize, second: usize) -> Result<HostTensor> {
        let mut shape = a.desc.shape().to_vec();
        check_dim(first, shape.len())?;
        check_dim(second, shape.len())?;
        let mut strides = strides(&shape);
        shape.swap(first, second);
        strides.swap(first, second);
        self.gather(a, shape, &strides, 0)
    }

    fn narrow(&self, a: &HostTensor, dim: usize, start: usize, len: usize) -> Result<HostTensor> {
        let mut shape = a.desc.shape().to_vec();
        check_dim(dim, shape.len())?;
        let strides = strides(&shape);
        let (Some(size), Some(stride)) = (shape.get_mut(dim), strides.get(dim)) else {
            return Err(no_dim(dim, strides.len()));
        };
        if start.checked_add(len).is_none_or(|end| end > *size) {
            let reason = format!("entries {start}..{start}+{len} of dimension {dim}, which has {size}");
            return Err(Error::InvalidArgument { argument: "range", reason });
        }
        *size = len;
        self.gather(a, shape, &strides, start.saturating_mul(*stride)) // Too large only where nothing is read.
    }

    fn concat(&self, tensors: &[&HostTensor], dim: usize) -> Result<HostTensor> {
        let [first, rest @ ..] = tensors else {
            return Err(Error::InvalidArgument {
                argument: "tensors",
                reason: "there is none to concatenate".to_owned(),
            });
        };
        let mut shape = first.desc.shape().to_vec();
        check_dim(dim, shape.len())?;
        for tensor in rest {
            let other = tensor.desc.shape();
            let same = |(index, size): (usize, &usize)| index == dim || other.get(index) == Some(size);
            if other.len() != shape.len()
                || !shape.iter().enumerate().all(same)
                || tensor.desc.dtype() != first.desc.dtype()
            {
                return Err(mismatch(
                    "concat",
                    "equal dtypes, and shapes equal but in one dimension",
                    (&shape, other),
                ));
            }
            if let (Some(total), Some(more)) = (shape.get_mut(dim), other.get(dim)) {
                let overflow = || Error::SizeOverflow { what: format!("dimension {dim} of a concatenation") };
                *total = total.checked_add(*more).ok_or_else(overflow)?;
            }
        }
        let desc = TensorDesc::new(shape, first.desc.dtype())?;
        let outer = if desc.elements() == 0 { 0 } else { desc.shape().iter().take(dim).product() };
        let mut bytes = self.room_for(&desc, first.tier)?;
        for index in 0..outer {
            for tensor in tensors {
                let chunk = tensor.bytes().len() / outer;
                bytes
                    .extend_from_slice(tensor.bytes().get(index * chunk..(index + 1) * chunk).unwrap_or(&[]));
            }
        }
        self.tensor(desc, bytes, first.tier)
    }

    fn reshape(&self, a: &HostTensor, shape: &[usize]) -> Result<HostTensor> {
        let desc = TensorDesc::new(shape, a.desc.dtype())?;
        if desc.elements() != a.desc.elements() {
            return Err(mismatch("reshape", "as many elements", (a.desc.shape(), shape)));
        }
        Ok(HostTensor { desc, tier: a.tier, storage: a.storage.clone() })
    }
}

impl HostBackend {
    fn zip(
        &self,
        a: &HostTensor,
        b: &HostTensor,
        what: &str,
        f: impl Fn(f64, f64) -> f64,
    ) -> Result<HostTensor> {
        if a.desc != b.desc {
            return Err(mismatch(what, "equal shapes and dtypes", (a.desc.shape(), b.desc.shape())));
        }
        let out: Vec<f64> = values(a)?.iter().zip(values(b)?).map(|(x, y)| f(*x, y)).collect();
        self.tensor_of(a.desc.clone(), &out, a)
    }

    /// An empty vector with room for every element (where `T` is a number) or byte of a result, once the tier has
    /// room for it: shapes may ask for more than there is.
    fn room_for<T>(&self, desc: &TensorDesc, tier: Tier) -> Result<Vec<T>> {
        drop(self.tier(tier)?.reserve(desc.bytes(), &self.holder)?);
        let elements = usize::try_from(desc.elements()).unwrap_or(usize::MAX);
        let len = if size_of::<T>() == 1 { desc.len_in_memory()? } else { elements };
        let mut room = Vec::new();
        room.try_reserve_exact(len).map_err(|_| no_room(desc, tier))?;
        Ok(room)
    }

    fn tensor_of(&self, desc: TensorDesc, values: &[f64], like: &HostTensor) -> Result<HostTensor> {
        let bytes = match desc.dtype() {
            #[allow(clippy::cast_possible_truncation, reason = "rounding to f32 is what an f32 result means")]
            DType::F32 => values.iter().flat_map(|x| (*x as f32).to_le_bytes()).collect(),
            _ => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        };
        self.tensor(desc, bytes, like.tier)
    }

    /// A dense tensor of `shape` whose elements lie at these strides from element `start` of `a`.
    fn gather(
        &self,
        a: &HostTensor,
        shape: Vec<usize>,
        strides: &[usize],
        start: usize,
    ) -> Result<HostTensor> {
        let dtype = a.desc.dtype();
        let width = dtype.element_bytes().ok_or_else(|| unsupported_dtype("host", dtype))?;
        let width = usize::try_from(width).map_err(|_| unsupported_dtype("host", dtype))?;
        let desc = TensorDesc::new(shape, dtype)?;
        let mut bytes = self.room_for(&desc, a.tier)?;
        for element in 0..desc.elements() {
            let mut rest = usize::try_from(element).unwrap_or(usize::MAX);
            let mut from = start;
            for (size, stride) in desc.shape().iter().zip(strides).rev() {
                from += rest % size * stride;
                rest /= size;
            }
            bytes.extend_from_slice(a.bytes().get(from * width..(from + 1) * width).unwrap_or(&[]));
        }
        self.tensor(desc, bytes, a.tier)
    }
}

fn values(tensor: &HostTensor) -> Result<Vec<f64>> {
    let bytes = tensor.bytes();
    match tensor.desc.dtype() {
        DType::F32 => Ok(bytes.as_chunks().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect()),
        DType::F64 => Ok(bytes.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect()),
        dtype => Err(unsupported_dtype("host", dtype)),
    }
}

fn strides(shape: &[usize]) -> Vec<usize> {
    let mut strides: Vec<usize> = shape
        .iter()
        .rev()
        .scan(1usize, |stride, size| {
            let this = *stride;
            *stride = stride.saturating_mul(*size);
            Some(this)
        })
        .collect();
    strides.reverse();
    strides
}

fn check_dim(dim: usize, rank: usize) -> Result<()> {
    if dim < rank { Ok(()) } else { Err(no_dim(dim, rank)) }
}

fn no_dim(dim: usize, rank: usize) -> Error {
    Error::InvalidArgument {
        argument: "dimension",
        reason: format!("dimension {dim} of a tensor of rank {rank}"),
    }
}

fn mismatch(context: &str, expected: &str, found: (&[usize], &[usize])) -> Error {
    Error::Mismatch {
        context: context.to_owned(),
        expected: expected.to_owned(),
        found: format!("{:?} and {:?}", found.0, found.1),
    }
}
