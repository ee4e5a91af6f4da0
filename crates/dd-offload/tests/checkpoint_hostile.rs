//! Whatever bytes a file holds, opening it never panics and never takes more memory than the file's size explains.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs, reason = "tests")]
#![allow(unsafe_code, reason = "a counting allocator forwards to the system's")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs;
use std::path::Path;

use dd_offload::checkpoint::Checkpoint;
use proptest::prelude::*;

/// Counts what the current thread holds and the most it held.
struct Counting;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(change: isize) {
    let held = HELD.get() + change;
    HELD.set(held);
    PEAK.set(PEAK.get().max(held));
}

// SAFETY: every call is forwarded to the system's allocator unchanged; counting neither allocates nor unwinds, since
// the cells are constant-initialised and need no destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(isize::try_from(layout.size()).unwrap_or(isize::MAX));
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-isize::try_from(layout.size()).unwrap_or(isize::MAX));
        // SAFETY: the caller keeps the contract of `dealloc`; the pointer came from `System`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most that opening may take: text, parsed entries and maps are a small multiple of the file.
fn allowed(file: usize) -> isize {
    isize::try_from(32 * 1024 + 64 * file).unwrap()
}

/// Opens the bytes as a file and gives the peak of what that allocated.
fn peak_of_opening(folder: &Path, bytes: &[u8]) -> (bool, isize) {
    let path = folder.join("model.safetensors");
    fs::write(&path, bytes).unwrap();
    let before = HELD.get();
    PEAK.set(before);
    let opened = Checkpoint::open(&path);
    let peak = PEAK.get() - before;
    if let Ok(checkpoint) = &opened {
        for (name, location) in checkpoint.tensors() {
            let mut out = vec![0; usize::try_from(location.len).unwrap()];
            checkpoint.read_into(name, &mut out).unwrap();
            let start = usize::try_from(location.offset).unwrap();
            assert_eq!(out, &bytes[start..start + out.len()]);
        }
    }
    (opened.is_ok(), peak)
}

/// A valid file of these tensor lengths.
fn valid(lens: &[usize]) -> Vec<u8> {
    let mut at = 0;
    let entry = |(i, len): (usize, &usize)| {
        let start = at;
        at += len;
        format!(r#""t{i}":{{"dtype":"U8","shape":[{len}],"data_offsets":[{start},{at}]}}"#)
    };
    let header = format!("{{{}}}", lens.iter().enumerate().map(entry).collect::<Vec<_>>().join(","));
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend((0..lens.iter().sum::<usize>()).map(|i| u8::try_from(i % 251).unwrap()));
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn arbitrary_bytes(length in 0u64..64, tail in proptest::collection::vec(any::<u8>(), 0..64), raw in any::<bool>()) {
        let folder = tempfile::tempdir().unwrap();
        let bytes = if raw { tail } else { [&length.to_le_bytes()[..], &tail].concat() };
        let (_, peak) = peak_of_opening(folder.path(), &bytes);
        prop_assert!(peak <= allowed(bytes.len()), "{peak} B for {} B", bytes.len());
    }

    #[test]
    fn mutated_files(
        lens in proptest::collection::vec(0usize..40, 0..6),
        edits in proptest::collection::vec((any::<prop::sample::Index>(), prop_oneof![any::<u8>(), b'0'..=b'9']), 0..4),
        cut in proptest::option::of(any::<prop::sample::Index>()),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let mut bytes = valid(&lens);
        let untouched = edits.is_empty() && cut.is_none();
        for (at, byte) in edits {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        let (opened, peak) = peak_of_opening(folder.path(), &bytes);
        prop_assert!(opened || !untouched);
        prop_assert!(peak <= allowed(bytes.len()), "{peak} B for {} B", bytes.len());
    }
}

#[test]
fn large_claims_allocate_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let shapes =
        format!(r#"{{"a":{{"dtype":"U8","shape":[{}0],"data_offsets":[0,0]}}}}"#, "0,".repeat(100_000));
    let rows = [
        [&99_999_999u64.to_le_bytes()[..], b"{"].concat(),
        [&u64::MAX.to_le_bytes()[..], b"{}"].concat(),
        [&(shapes.len() as u64).to_le_bytes()[..], shapes.as_bytes()].concat(),
        valid(&[0; 5000]),
    ];
    for bytes in rows {
        let (_, peak) = peak_of_opening(folder.path(), &bytes);
        assert!(peak <= allowed(bytes.len()), "{peak} B for a file of {} B", bytes.len());
    }
}
