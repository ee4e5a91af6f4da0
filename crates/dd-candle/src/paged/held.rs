//! [`Held`]: tensors over paged memory, and the proof that nobody uses one any more.
//!
//! candle's host storage is a vector, and a vector frees its memory through the allocator. So a vector over paged memory
//! must never be dropped. That is kept by this file alone: a tensor over a range is only made together with the handle
//! that is kept here, and that handle is given up only when it is the last one and its storage was emptied; if that never comes, it is leaked.
#![allow(unsafe_code, reason = "storage over paged memory; the block says why")]

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use candle_core::op::BackpropOp;
use candle_core::{CpuStorage, DType, InplaceOp1, Layout, Shape, Storage, Tensor};
use dd_pager::Region;

use crate::{storage, unique};

/// How often abandoned weights look whether the last of their tensors has gone.
const KEEPING: Duration = Duration::from_millis(20);

/// All tensors handed out, by name and dtype: a handle to each is kept, so that nobody else is the last to drop one.
#[derive(Default)]
pub(super) struct Held(HashMap<(String, DType), Paged>);

impl Held {
    /// A tensor that was handed out before.
    pub(super) fn get(&self, name: &str, dtype: DType) -> Option<Tensor> {
        self.0.get(&(name.to_owned(), dtype)).map(|paged| paged.tensor.clone())
    }

    /// Keeps a handle, and gives another.
    pub(super) fn keep(&mut self, name: &str, dtype: DType, paged: Paged) -> Tensor {
        let kept = self.0.entry((name.to_owned(), dtype)).or_insert(paged);
        kept.tensor.clone()
    }

    /// Gives back the ranges of all tensors that nobody else holds.
    fn retire(&mut self) {
        self.0.retain(|_, paged| !paged.retire());
    }
}

impl Drop for Held {
    /// Gives the memory back, at once where no tensor is in use any more, else as soon as none is.
    fn drop(&mut self) {
        self.retire();
        if self.0.is_empty() {
            return;
        }
        if !unique::counts_are_readable() {
            tracing::warn!("this candle does not show who holds a tensor: paged memory is kept for good");
            return; // Each is leaked by its drop.
        }
        let rest = Arc::new(Mutex::new(Self(std::mem::take(&mut self.0))));
        let keeper = Arc::clone(&rest);
        let wait = move || {
            loop {
                let mut held = keeper.lock().unwrap_or_else(PoisonError::into_inner);
                held.retire();
                if held.0.is_empty() {
                    return;
                }
                drop(held);
                std::thread::sleep(KEEPING);
            }
        };
        if let Err(error) = std::thread::Builder::new().name("dd-page-keep".to_owned()).spawn(wait) {
            tracing::warn!(%error, "paged memory is kept for good");
            std::mem::forget(rest);
        }
    }
}

/// A tensor, and the range that its storage lies in.
pub(super) struct Paged {
    tensor: Tensor,
    /// Nothing for a tensor without elements.
    region: Option<Region>,
}

impl Paged {
    /// A tensor of this shape whose storage is the range; nothing where the range is too small or not aligned for that,
    /// or the dtype is none of ours.
    pub(super) fn over(region: Region, dtype: DType, shape: Shape) -> Option<Self> {
        let (elements, size) = (shape.elem_count(), dtype.size_in_bytes());
        let fits = elements.checked_mul(size).is_some_and(|bytes| bytes <= region.len());
        if !fits || size == 0 || !region.as_ptr().addr().is_multiple_of(size) {
            return None;
        }
        // SAFETY: the range holds `elements` values at an aligned address (checked above; no dtype is aligned to more than
        // its size) and lives as long as this. A handle to the tensor is kept beside it, and is given up only once it is
        // the last and the storage was taken out (`retire`); so nobody drops the storage with this memory in it. candle
        // grows no storage.
        let adopted = unsafe { storage::adopt(dtype, region.as_ptr(), elements) }?;
        let tensor = Tensor::from_storage(Storage::Cpu(adopted), shape, BackpropOp::none(), false);
        Some(Self { tensor, region: Some(region) })
    }

    /// A tensor without elements, which needs no range.
    pub(super) fn empty(dtype: DType, shape: Shape) -> Option<Self> {
        let storage = Storage::Cpu(storage::zeros(dtype, 0)?);
        Some(Self { tensor: Tensor::from_storage(storage, shape, BackpropOp::none(), false), region: None })
    }

    /// Takes the storage away from the tensor, which nobody else holds, and gives the range back; whether that was
    /// possible.
    fn retire(&mut self) -> bool {
        let retired = unique::is_sole_owner(&mut self.tensor)
            && (self.region.is_none() || self.tensor.inplace_op1(&Disown).is_ok());
        if retired {
            self.region = None;
        }
        retired
    }
}

impl Drop for Paged {
    /// What was not retired stays for good: its storage must not be dropped, and somebody may be reading it.
    fn drop(&mut self) {
        if self.region.is_some() && !self.retire() {
            std::mem::forget((self.tensor.clone(), self.region.take()));
        }
    }
}

/// Leaves a tensor without storage.
struct Disown;

impl InplaceOp1 for Disown {
    fn name(&self) -> &'static str {
        "disown"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, _: &Layout) -> candle_core::Result<()> {
        storage::disown(storage);
        Ok(())
    }
}
