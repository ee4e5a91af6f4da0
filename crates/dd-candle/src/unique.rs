//! Who else holds a tensor's storage: the question that candle answers nowhere, and that must be answered before
//! storage is overwritten for another use.
//!
//! A `Tensor` is an `Arc` of a private struct, which holds an `Arc` of a lock around the storage. Clones share the
//! outer `Arc`; views are new structs that share the inner one. Whoever holds the only reference to both is alone.
//! candle has no accessor for either count, so they are read here from the addresses of what the two `Arc`s hold,
//! both of which candle does give: by `Deref`, and by the lock behind [`Tensor::storage_and_layout`]'s guard.
//!
//! That rests on candle's private layout. [`counts_are_readable`] tries it on tensors of its own, and where a later
//! candle behaves otherwise the answer to "is it unique?" becomes "no", always: slower, never wrong.
#![allow(unsafe_code, reason = "reads two reference counts that candle does not show; each block says why")]

use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use candle_core::{Device, StorageRef, Tensor};

type Inner = <Tensor as Deref>::Target;

/// Whether this is the only handle to its storage: no clone, no view, no graph node holds it.
///
/// The exclusive borrow is what makes the answer last: the counts can only grow through a handle, and the only one
/// is in the caller's hands.
pub(crate) fn is_sole_owner(tensor: &mut Tensor) -> bool {
    let sole = handles(tensor) == Some(1) && storages(tensor) == 1;
    // The counts are read relaxed. The fence pairs with the releasing decrement of whoever dropped the last other
    // handle, so that its reads of the storage come before our writes (as in `Arc::get_mut`).
    fence(Ordering::Acquire);
    sole
}

/// Whether the counts behave on this candle as this module expects.
pub(crate) fn counts_are_readable() -> bool {
    try_out().unwrap_or(false)
}

/// Fresh, shared, viewed, and alone again.
fn try_out() -> candle_core::Result<bool> {
    let mut tensor = Tensor::zeros((2, 3), candle_core::DType::F32, &Device::Cpu)?;
    let fresh = handles(&tensor) == Some(1) && storages(&tensor) == 1 && is_sole_owner(&mut tensor);
    let clones = [tensor.clone(), tensor.clone()];
    let shared = handles(&tensor) == Some(3) && storages(&tensor) == 1 && !is_sole_owner(&mut tensor);
    drop(clones);
    let views = [tensor.t()?, tensor.narrow(0, 0, 1)?, tensor.reshape(6)?];
    let viewed = handles(&tensor) == Some(1) && storages(&tensor) == 4 && !is_sole_owner(&mut tensor);
    drop(views);
    Ok(fresh && shared && viewed && is_sole_owner(&mut tensor))
}

/// How many `Tensor`s share this one's struct; nothing where a `Tensor` is not simply an `Arc` of it.
fn handles(tensor: &Tensor) -> Option<usize> {
    const { assert!(size_of::<Tensor>() == size_of::<Arc<Inner>>()) }
    const { assert!(align_of::<Tensor>() == align_of::<Arc<Inner>>()) }
    // SAFETY: `Tensor` is as large as one pointer and gives out an `Inner` by reference, so its one field that has a
    // size is a pointer at offset zero; for `candle_core` 0.11 that field is declared `Arc<Inner>`. The reference is
    // never dropped, and nothing behind the pointer is read before the comparison below says that the pointer is
    // where an `Arc` of this `Inner` would have it (a `Box` or `Rc` of another header would not).
    let arc = unsafe { &*std::ptr::from_ref(tensor).cast::<Arc<Inner>>() };
    let held: &Inner = tensor;
    std::ptr::eq(Arc::as_ptr(arc), held).then(|| Arc::strong_count(arc))
}

/// How many tensors, this one's struct included, share the storage.
fn storages(tensor: &Tensor) -> usize {
    let (guard, _) = tensor.storage_and_layout();
    let lock = StorageRef::rwlock(&guard);
    // SAFETY: `candle_core` 0.11 declares the storage as `Arc<RwLock<Storage>>`, and this is the lock: its address is
    // what `Arc::into_raw` would give, and the `Arc` is alive because the tensor is borrowed. The `Arc` made here is
    // never dropped, so the count is read and not changed. The counts lie in the same allocation, just before the
    // lock; that they are reached from a reference to the lock alone is accepted by Tree Borrows, not by Stacked
    // Borrows (the compiler itself assumes nothing that it would break: the lock has interior mutability). Were a
    // later candle to hold the lock directly in its struct, these words would still be inside the allocation of that
    // struct's own `Arc`, so the trial at construction would find wrong numbers rather than touch foreign memory.
    let arc = ManuallyDrop::new(unsafe { Arc::from_raw(std::ptr::from_ref(lock)) });
    Arc::strong_count(&arc)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Var};

    fn tensor() -> Tensor {
        Tensor::ones((2, 4), DType::F32, &Device::Cpu).unwrap()
    }

    /// If this fails after an upgrade of candle, recycling is off: read its `tensor.rs` and mend this module.
    #[test]
    fn this_candle_shows_its_counts() {
        assert!(counts_are_readable());
    }

    #[test]
    fn whoever_holds_the_storage_is_counted() {
        type Holder = fn(&Tensor) -> Box<dyn std::any::Any>;
        let rows: [(&str, Holder, bool); 9] = [
            ("nobody", |_| Box::new(()), true),
            ("a clone", |t| Box::new(t.clone()), false),
            ("a transposed view", |t| Box::new(t.t().unwrap()), false),
            ("a narrowed view", |t| Box::new(t.narrow(1, 1, 2).unwrap()), false),
            ("a reshaped view", |t| Box::new(t.reshape(8).unwrap()), false),
            ("a detached view", |t| Box::new(t.detach()), false),
            ("a view of a view", |t| Box::new(t.t().unwrap().narrow(0, 0, 1).unwrap()), false),
            ("a sum, which is its own", |t| Box::new((t + t).unwrap()), true),
            ("a copy", |t| Box::new(t.copy().unwrap()), true),
        ];
        for (name, hold, expected) in rows {
            let mut tensor = tensor();
            let holder = hold(&tensor);
            assert_eq!(is_sole_owner(&mut tensor), expected, "while held by {name}");
            drop(holder);
            assert!(is_sole_owner(&mut tensor), "after {name} is gone");
        }
    }

    #[test]
    fn a_graph_that_will_need_the_tensor_counts() {
        let var = Var::from_tensor(&tensor()).unwrap();
        let mut factor = tensor();
        let product = (var.as_tensor() * &factor).unwrap();
        assert!(!is_sole_owner(&mut factor));
        drop(product);
        assert!(is_sole_owner(&mut factor));
    }

    #[test]
    fn holders_on_other_threads_count_until_they_are_gone() {
        let mut tensor = tensor();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                let mine = tensor.clone();
                scope.spawn(move || {
                    for _ in 0..1_000 {
                        let mut view = mine.narrow(0, 0, 1).unwrap();
                        assert!(!is_sole_owner(&mut view));
                    }
                });
            }
        });
        assert!(is_sole_owner(&mut tensor));
    }
}
