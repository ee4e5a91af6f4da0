//! Reading the dense row-major bytes of a tensor out of host storage, whatever its strides: no copy of the tensor is
//! made on the way, so that a few bytes of a huge expanded view cost a few bytes.

use candle_core::Layout;
use dd_core::{Error, Result};

use crate::dtype::NAME;

/// Copies the dense bytes `offset..offset + out.len()` of the tensor that `layout` describes in `storage`, whose
/// elements are `width` bytes. The range lies within the tensor.
pub(super) fn copy_out(
    storage: &[u8],
    layout: &Layout,
    width: usize,
    offset: usize,
    out: &mut [u8],
) -> Result<()> {
    let run = run_of(layout).saturating_mul(width).max(1);
    let mut dense = offset;
    let mut rest = out;
    while !rest.is_empty() {
        let within = dense % run;
        let len = rest.len().min(run - within);
        let start =
            element_at(layout, dense / run * run / width).saturating_mul(width).saturating_add(within);
        let source = storage
            .get(start..start.saturating_add(len))
            .ok_or_else(|| outside(start, len, storage.len()))?;
        let (head, tail) =
            rest.split_at_mut_checked(len).ok_or_else(|| outside(start, len, storage.len()))?;
        head.copy_from_slice(source);
        rest = tail;
        dense = dense.saturating_add(len);
    }
    Ok(())
}

/// How many elements lie one after the other in storage as they do in the tensor.
fn run_of(layout: &Layout) -> usize {
    let dims = layout.dims().iter().zip(layout.stride()).rev();
    dims.fold((1usize, true), |(run, dense), (dim, stride)| {
        let dense = dense && (*stride == run || *dim == 1);
        (if dense { run.saturating_mul(*dim) } else { run }, dense)
    })
    .0
}

/// Where element number `index` of the tensor, in row-major order, lies in storage.
fn element_at(layout: &Layout, index: usize) -> usize {
    let dims = layout.dims().iter().zip(layout.stride()).rev();
    let (place, _) = dims.fold((layout.start_offset(), index), |(place, index), (dim, stride)| {
        let dim = (*dim).max(1);
        (place.saturating_add((index % dim).saturating_mul(*stride)), index / dim)
    });
    place
}

fn outside(start: usize, len: usize, whole: usize) -> Error {
    let reason =
        format!("bytes {start}..{start}+{len} of storage of {whole} B: the tensor's layout is wrong");
    Error::library(NAME, "read", reason)
}
