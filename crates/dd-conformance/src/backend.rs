//! The suite of [`Backend`].

use dd_core::{Backend, Bytes, DType, Error, TensorDesc, Tier};

use crate::memory::{MANY_TIERS, check_order, check_sample};
use crate::rule::{contents, desc, difference, done, len, on_threads, refused};

/// Up to this total, a tier that is not a device is filled to its capacity: more could be real memory, and be had.
const SMALL: Bytes = Bytes::mib(64);

/// Checks a [`Backend`], in every tier that it has (each needs 256 KiB) and for every dtype that it accepts.
///
/// - a new tensor is all zeros, and is described as it was asked for, scalars and empty tensors included;
/// - `write` and `read` address the dense bytes at any offset, aligned or not; past the end is
///   [`Error::InvalidArgument`] and changes nothing; `upload` and `download` are their whole;
/// - a tensor that is shared is never called unique; a write to it is refused or seen through both handles; where the
///   backend can tell, a new tensor and the last of several handles are unique;
/// - `fill` lends all of a tensor's bytes once, as `write` and `read` see them, or says that it does not and lends
///   nothing; it refuses a shared tensor where `write` does;
/// - `describe`, `tier_of`, `tiers` and `memory` agree, and no figure is above the total;
/// - what cannot be is refused in its own words: [`Error::UnsupportedTier`], [`Error::UnsupportedDType`] (`F32` must
///   be there), [`Error::Mismatch`] for a wrong length, [`Error::OutOfMemory`] (never an abort) for a tensor of 2⁶² B,
///   for one byte more than a device or small tier has, and for the second of two that take more than its half;
/// - dropping gives the memory back; handles move between threads; `synchronize` and `trim` succeed.
///
/// ```
/// use dd_core::{Bytes, HostBackend, Tier};
/// dd_conformance::backend(&HostBackend::with_tiers([(Tier::Device(0), Bytes::mib(1)), (Tier::Host, Bytes::MAX)]));
/// ```
///
/// # Panics
/// Where the backend breaks the contract.
pub fn backend<B: Backend>(backend: &B) {
    assert!(!backend.name().trim().is_empty(), "the backend has no name");
    let tiers = backend.tiers().to_vec();
    assert!(!tiers.is_empty(), "the backend has no tier");
    check_order(&tiers);
    for tier in &tiers {
        for dtype in DType::ALL {
            check_dtype(backend, *tier, *dtype);
        }
        check_ranges(backend, *tier);
        check_sharing(backend, *tier);
        check_lending(backend, *tier);
        check_capacity(backend, *tier);
        check_threads(backend, *tier);
        done(backend.synchronize(*tier), format_args!("synchronize of {tier}"));
        done(backend.trim(*tier), format_args!("trim of {tier}"));
    }
    for tier in MANY_TIERS.iter().filter(|tier| !tiers.contains(tier)) {
        refuses_tier(backend, *tier);
    }
}

/// A new tensor with contents by seed.
#[track_caller]
fn filled<B: Backend>(backend: &B, desc: &TensorDesc, tier: Tier, seed: u64) -> B::Tensor {
    done(backend.upload(desc, &contents(desc, seed), tier), format_args!("upload of {desc} to {tier}"))
}

#[track_caller]
pub(crate) fn bytes_of<B: Backend>(backend: &B, tensor: &B::Tensor, what: &str) -> Vec<u8> {
    done(backend.download(tensor), format_args!("{what}: download"))
}

#[track_caller]
fn holds<B: Backend>(backend: &B, tensor: &B::Tensor, expected: &[u8], what: &str) {
    let found = bytes_of(backend, tensor, what);
    assert!(found == expected, "{what}: {}", difference(&found, expected));
}

fn check_dtype<B: Backend>(backend: &B, tier: Tier, dtype: DType) {
    let row = usize::try_from(dtype.block_elements()).unwrap_or(1);
    let mut shapes = vec![vec![3, 2 * row], vec![row], vec![2, 1, 5, row], vec![0], vec![2, 0, row]];
    shapes.extend((row == 1).then(Vec::new));
    for desc in shapes.iter().map(|shape| desc(shape, dtype)) {
        let what = format!("{desc} in {tier}");
        let tensor = match backend.allocate(&desc, tier) {
            Err(Error::UnsupportedDType { dtype: named, .. }) if dtype != DType::F32 => {
                assert_eq!(named, dtype, "{what}: the refusal names another dtype");
                let upload = backend.upload(&desc, &contents(&desc, 1), tier);
                return refused!(upload, Error::UnsupportedDType { .. }, "{what}: upload");
            }
            result => done(result, format_args!("{what}: allocate")),
        };
        check_tensor(backend, &tensor, &desc, tier);
        holds(backend, &tensor, &vec![0; len(&desc)], &format!("{what}: a new tensor is zeros"));
        let tensor = filled(backend, &desc, tier, 7);
        check_tensor(backend, &tensor, &desc, tier);
        holds(backend, &tensor, &contents(&desc, 7), &format!("{what}: upload"));
        for wrong in [len(&desc) + 1, len(&desc).wrapping_sub(1)] {
            if wrong < usize::MAX {
                let upload = backend.upload(&desc, &vec![0; wrong], tier);
                refused!(upload, Error::Mismatch { .. }, "{what}: upload of {wrong} B");
            }
        }
    }
}

fn check_tensor<B: Backend>(backend: &B, tensor: &B::Tensor, desc: &TensorDesc, tier: Tier) {
    let found = done(backend.describe(tensor), format_args!("describe of {desc} in {tier}"));
    assert_eq!(found, *desc, "description of a tensor in {tier}");
    assert_eq!(backend.tier_of(tensor), tier, "tier of a tensor ({desc})");
}

fn check_ranges<B: Backend>(backend: &B, tier: Tier) {
    let desc = desc(&[5, 7], DType::F32);
    let mut tensor = filled(backend, &desc, tier, 1);
    let mut expected = contents(&desc, 1);
    let end = expected.len();
    for (offset, size) in
        [(0, end), (0, 4), (4, 8), (1, 3), (3, 10), (end - 1, 1), (end, 0), (0, 0), (17, 100)]
    {
        let what = format!("{size} B at byte {offset} of {desc} in {tier}");
        let patch = crate::rule::noise(offset as u64 + 2, size);
        expected[offset..offset + size].copy_from_slice(&patch);
        done(backend.write(&mut tensor, offset, &patch), format_args!("write of {what}"));
        holds(backend, &tensor, &expected, &format!("after the write of {what}"));
        let mut out = vec![0xA5; size];
        done(backend.read(&tensor, offset, &mut out), format_args!("read of {what}"));
        assert!(out == patch, "read of {what}: {}", difference(&out, &patch));
    }
    for (offset, size) in
        [(0, end + 1), (end, 1), (end - 1, 2), (end + 1, 0), (usize::MAX, 1), (usize::MAX, 0)]
    {
        let what = format!("{size} B at byte {offset}, past the end of {desc} in {tier}");
        let mut bytes = vec![0; size];
        refused!(
            backend.write(&mut tensor, offset, &bytes),
            Error::InvalidArgument { .. },
            "write of {what}"
        );
        refused!(backend.read(&tensor, offset, &mut bytes), Error::InvalidArgument { .. }, "read of {what}");
        holds(backend, &tensor, &expected, &format!("after the refused write of {what}"));
    }
}

fn check_lending<B: Backend>(backend: &B, tier: Tier) {
    for desc in [desc(&[3, 5], DType::F32), desc(&[0, 5], DType::F32)] {
        let (before, after) = (contents(&desc, 1), contents(&desc, 2));
        let mut tensor = filled(backend, &desc, tier, 1);
        let mut calls = 0;
        let mut fill = |bytes: &mut [u8]| {
            calls += 1;
            assert!(bytes == before, "{tier}: fill of {desc} lends other bytes than the tensor's");
            bytes.copy_from_slice(&after);
        };
        let lent = done(backend.fill(&mut tensor, &mut fill), format_args!("fill of {desc} in {tier}"));
        assert_eq!(calls, usize::from(lent), "{tier}: how often fill of {desc} called");
        holds(backend, &tensor, if lent { &after } else { &before }, &format!("{tier}: {desc} after fill"));
        let other = backend.share(&tensor);
        let refuses = backend.write(&mut tensor, 0, &after).is_err();
        let filled = backend.fill(&mut tensor, &mut |bytes| bytes.fill(1));
        assert!(
            !(lent && refuses) || filled.is_err(),
            "{tier}: fill lends a shared tensor that write refuses"
        );
        drop(other);
    }
}

fn check_sharing<B: Backend>(backend: &B, tier: Tier) {
    let desc = desc(&[64], DType::F32);
    let mut tensor = filled(backend, &desc, tier, 1);
    let tells = backend.can_tell_unique();
    let alone = backend.is_unique(&mut tensor);
    assert!(alone || !tells, "{tier}: a new tensor is not called unique, by a backend that can tell");
    let mut other = backend.share(&tensor);
    check_tensor(backend, &other, &desc, tier);
    assert!(
        !backend.is_unique(&mut tensor),
        "{tier}: a tensor is called unique while another handle shares it"
    );
    assert!(!backend.is_unique(&mut other), "{tier}: the second handle to a storage is called unique");
    let before = contents(&desc, 1);
    match backend.write(&mut tensor, 0, &contents(&desc, 2)) {
        Ok(()) => {
            let (here, there) = (bytes_of(backend, &tensor, "shared"), bytes_of(backend, &other, "shared"));
            assert!(here == contents(&desc, 2), "{tier}: a write to a shared tensor is lost");
            assert!(
                there == here,
                "{tier}: share gives another storage: a write to one handle is not seen in the other"
            );
        }
        Err(Error::InvalidArgument { .. }) => {
            holds(backend, &tensor, &before, &format!("{tier}: after a refused write to a shared tensor"));
            holds(backend, &other, &before, &format!("{tier}: the other handle after a refused write"));
        }
        Err(other) => {
            panic!("{tier}: a write to a shared tensor: expected success or InvalidArgument, found {other:?}")
        }
    }
    let rest = bytes_of(backend, &other, "shared");
    drop(tensor);
    holds(backend, &other, &rest, &format!("{tier}: after the first of two handles was dropped"));
    let unique = backend.is_unique(&mut other);
    assert!(unique || !tells, "{tier}: the last handle is not called unique, by a backend that can tell");
    let written = backend.write(&mut other, 0, &contents(&desc, 3));
    assert!(
        !unique || written.is_ok(),
        "{tier}: a tensor that is called unique refuses a write: {written:?}"
    );
}

fn check_capacity<B: Backend>(backend: &B, tier: Tier) {
    let sample = || done(backend.memory(tier), format_args!("memory of {tier}"));
    check_sample(tier, &sample());
    for impossible in [desc(&[1 << 60], DType::F32), desc(&[1 << 31, 1 << 31], DType::U8)] {
        refuses_for_room(backend, &impossible, tier);
    }
    let total = sample().total;
    let limited = if matches!(tier, Tier::Device(_)) { total < Bytes::MAX } else { total <= SMALL };
    if let (true, Ok(size)) = (limited, total.to_usize()) {
        refuses_for_room(backend, &desc(&[size / 4 + 1], DType::F32), tier);
    }
    if total > Bytes::kib(1) && total <= SMALL {
        check_filling(backend, tier, sample().available);
    }
    check_sample(tier, &sample());
    drop(filled(backend, &desc(&[4], DType::F32), tier, 1));
}

/// A tensor that cannot be must be refused as that (or as of a dtype that is not there).
fn refuses_for_room<B: Backend>(backend: &B, desc: &TensorDesc, tier: Tier) {
    match backend.allocate(desc, tier) {
        Err(Error::UnsupportedDType { .. }) if desc.dtype() != DType::F32 => {}
        result => {
            refused!(result, Error::OutOfMemory { .. }, "allocate of {desc} in {tier}, which has not so much")
        }
    }
}

/// Two tensors of more than half of what is there, several times: the second is refused until the first is dropped.
fn check_filling<B: Backend>(backend: &B, tier: Tier, available: Bytes) {
    let Ok(size) = available.to_usize() else { return };
    let half = desc(&[size / 8 + 1], DType::F32);
    for round in 0..3 {
        let what = format!("{tier}, round {round}: allocate of {half} with {available} free");
        let first = done(backend.allocate(&half, tier), &what);
        let second = backend.allocate(&half, tier);
        refused!(second, Error::OutOfMemory { .. }, "{what} but for a tensor of that size");
        holds(backend, &first, &vec![0; len(&half)], &format!("{what}, after the next was refused"));
    }
}

fn check_threads<B: Backend>(backend: &B, tier: Tier) {
    let desc = desc(&[16], DType::F32);
    let made = on_threads(|thread| filled(backend, &desc, tier, u64::from(thread)));
    for (seed, tensor) in (0..).zip(&made) {
        holds(backend, tensor, &contents(&desc, seed), &format!("{tier}: a tensor made on another thread"));
    }
}

fn refuses_tier<B: Backend>(backend: &B, tier: Tier) {
    let desc = desc(&[4], DType::F32);
    refused!(backend.allocate(&desc, tier), Error::UnsupportedTier { .. }, "allocate in {tier}");
    refused!(backend.upload(&desc, &[0; 16], tier), Error::UnsupportedTier { .. }, "upload to {tier}");
    refused!(backend.memory(tier), Error::UnsupportedTier { .. }, "memory of {tier}");
}
