//! The bytes of host storage: how storage of zeros is made without an abort, and how a vector of numbers is seen as
//! bytes and back.
#![allow(
    unsafe_code,
    reason = "zeroed memory and views of numbers as bytes; every block says why it is sound"
)]

use std::alloc::{Layout, alloc_zeroed};

use candle_core::{CpuStorage, DType};

/// Storage of `elements` zeros; nothing where the memory is not there or the dtype is none of ours.
///
/// The zeros come from the allocator, which for anything large means pages that are not touched yet: the first write
/// to them is the one that fills them.
pub(crate) fn zeros(dtype: DType, elements: usize) -> Option<CpuStorage> {
    // SAFETY: every vector that `CpuStorage` holds is of integers or floats, for which all bits zero is the number
    // zero.
    unsafe {
        Some(match dtype {
            DType::F64 => CpuStorage::F64(zeroed(elements)?),
            DType::F32 => CpuStorage::F32(zeroed(elements)?),
            DType::F16 => CpuStorage::F16(zeroed(elements)?),
            DType::BF16 => CpuStorage::BF16(zeroed(elements)?),
            DType::F8E4M3 => CpuStorage::F8E4M3(zeroed(elements)?),
            DType::F8E8M0 => CpuStorage::F8E8M0(zeroed(elements)?),
            DType::I64 => CpuStorage::I64(zeroed(elements)?),
            DType::I32 => CpuStorage::I32(zeroed(elements)?),
            DType::I16 => CpuStorage::I16(zeroed(elements)?),
            DType::U32 => CpuStorage::U32(zeroed(elements)?),
            DType::U8 => CpuStorage::U8(zeroed(elements)?),
            _ => return None,
        })
    }
}

/// A vector of `len` zeros. `vec![0; len]` would be the same but for its abort where the memory is not there.
///
/// # Safety
/// All bits zero must be a value of `T`.
unsafe fn zeroed<T: Copy>(len: usize) -> Option<Vec<T>> {
    let layout = Layout::array::<T>(len).ok()?;
    if layout.size() == 0 {
        return Some(Vec::new());
    }
    // SAFETY: the layout's size is not zero.
    let start = unsafe { alloc_zeroed(layout) }.cast::<T>();
    advise_huge_pages(start.addr(), layout.size());
    // SAFETY: not null, from the global allocator with the layout of `len` elements of `T`, all of which are
    // initialised because the caller promises that zeros are values of `T`.
    (!start.is_null()).then(|| unsafe { Vec::from_raw_parts(start, len, len) })
}

/// Asks for huge pages in the part of new storage that whole ones fit: weights are rewritten in every pass and read
/// from end to end, and with small pages a good part of both is spent on finding the pages. Only advice: where the
/// system does not take it, nothing changes.
#[cfg(target_os = "linux")]
fn advise_huge_pages(start: usize, len: usize) {
    const HUGE: usize = 2 << 20;
    let (first, last) = (start.next_multiple_of(HUGE), (start + len) / HUGE * HUGE);
    if let Some(bytes) = last.checked_sub(first).filter(|bytes| *bytes > 0) {
        let address = std::ptr::with_exposed_provenance_mut(first);
        // SAFETY: the range lies within an allocation of ours; this advice changes no byte of it.
        unsafe { libc::madvise(address, bytes, libc::MADV_HUGEPAGE) };
    }
}

#[cfg(not(target_os = "linux"))]
fn advise_huge_pages(_: usize, _: usize) {}

macro_rules! each_vector {
    ($storage:expr, $vector:ident => $body:expr) => {
        match $storage {
            CpuStorage::U8($vector)
            | CpuStorage::F6E2M3($vector)
            | CpuStorage::F6E3M2($vector)
            | CpuStorage::F4($vector)
            | CpuStorage::F8E8M0($vector) => $body,
            CpuStorage::U32($vector) => $body,
            CpuStorage::I16($vector) => $body,
            CpuStorage::I32($vector) => $body,
            CpuStorage::I64($vector) => $body,
            CpuStorage::BF16($vector) => $body,
            CpuStorage::F16($vector) => $body,
            CpuStorage::F32($vector) => $body,
            CpuStorage::F64($vector) => $body,
            CpuStorage::F8E4M3($vector) => $body,
        }
    };
}

/// The whole storage as bytes.
pub(crate) fn bytes(storage: &CpuStorage) -> &[u8] {
    // SAFETY: integers and floats have no padding, so every byte of the slice is initialised; a byte needs no
    // alignment; the lifetime is that of the borrow.
    each_vector!(storage, v => unsafe {
        std::slice::from_raw_parts(v.as_ptr().cast::<u8>(), std::mem::size_of_val(v.as_slice()))
    })
}

/// The whole storage as bytes to be overwritten.
pub(crate) fn bytes_mut(storage: &mut CpuStorage) -> &mut [u8] {
    // SAFETY: as for `bytes`; and every pattern of bits is a value of an integer or a float, so whatever is written
    // leaves numbers behind. The borrow is exclusive.
    each_vector!(storage, v => unsafe {
        std::slice::from_raw_parts_mut(v.as_mut_ptr().cast::<u8>(), std::mem::size_of_val(v.as_slice()))
    })
}

/// Storage over memory of somebody else: `elements` values of `dtype` from `start` on; nothing for a dtype that is none of
/// ours.
///
/// # Safety
/// `start` is aligned for the dtype, and the memory stays readable until the storage has been [`disown`]ed. The storage
/// must never be dropped or grown before that: its memory is not the allocator's.
#[cfg(feature = "pager")]
pub(crate) unsafe fn adopt(dtype: DType, start: *mut u8, elements: usize) -> Option<CpuStorage> {
    // SAFETY: any bits are a value of an integer or a float; the rest is the caller's promise.
    unsafe {
        Some(match dtype {
            DType::F64 => CpuStorage::F64(Vec::from_raw_parts(start.cast(), elements, elements)),
            DType::F32 => CpuStorage::F32(Vec::from_raw_parts(start.cast(), elements, elements)),
            DType::F16 => CpuStorage::F16(Vec::from_raw_parts(start.cast(), elements, elements)),
            DType::BF16 => CpuStorage::BF16(Vec::from_raw_parts(start.cast(), elements, elements)),
            DType::F8E4M3 => CpuStorage::F8E4M3(Vec::from_raw_parts(start.cast(), elements, elements)),
            DType::F8E8M0 => CpuStorage::F8E8M0(Vec::from_raw_parts(start.cast(), elements, elements)),
            DType::I64 => CpuStorage::I64(Vec::from_raw_parts(start.cast(), elements, elements)),
            DType::I32 => CpuStorage::I32(Vec::from_raw_parts(start.cast(), elements, elements)),
            DType::I16 => CpuStorage::I16(Vec::from_raw_parts(start.cast(), elements, elements)),
            DType::U32 => CpuStorage::U32(Vec::from_raw_parts(start.cast(), elements, elements)),
            DType::U8 => CpuStorage::U8(Vec::from_raw_parts(start.cast(), elements, elements)),
            _ => return None,
        })
    }
}

/// Leaves empty storage behind, and the memory to whom it belongs.
#[cfg(feature = "pager")]
pub(crate) fn disown(storage: &mut CpuStorage) {
    each_vector!(storage, v => std::mem::forget(std::mem::take(v)));
}

#[cfg(test)]
mod tests {
    use candle_core::backend::BackendStorage;

    use super::*;
    use crate::dtype::PAIRS;

    #[test]
    fn every_dtype_is_zeros_that_take_any_bytes() {
        for (ours, theirs) in PAIRS {
            let mut storage = zeros(theirs, 3).unwrap();
            assert_eq!(storage.dtype(), theirs, "{ours}");
            assert!(bytes(&storage).iter().all(|byte| *byte == 0), "{ours}");
            let len = bytes(&storage).len();
            assert_eq!(len, 3 * theirs.size_in_bytes(), "{ours}");
            let pattern: Vec<u8> = (0..len).map(|i| 255 - u8::try_from(i).unwrap()).collect();
            bytes_mut(&mut storage).copy_from_slice(&pattern);
            assert_eq!(bytes(&storage), pattern, "{ours}");
        }
    }

    #[test]
    fn sizes_at_the_edges() {
        let rows = [(DType::F32, 0, true), (DType::F64, usize::MAX, false), (DType::U8, 1 << 60, false)];
        for (dtype, elements, there) in rows {
            assert_eq!(zeros(dtype, elements).is_some(), there, "{elements} of {dtype:?}");
        }
    }
}
