//! What storing and reading a window takes, by a counting allocator, against what the store announces.
//!
//! zstd's own tables are not seen here: they come from the C library's allocator, and the announcement has a part for them.
#![cfg(feature = "zarr")]
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;

use dd_core::{DType, TensorDesc};
use dd_infinite::zarr::{Flush, ZarrOptions, ZarrTileStore};
use dd_infinite::{Manifest, TileStore};

mod counting {
    #![allow(unsafe_code, reason = "an allocator that counts is unsafe by its trait")]

    use std::alloc::{GlobalAlloc, Layout, System};
    use std::sync::atomic::{AtomicU64, Ordering};

    static LIVE: AtomicU64 = AtomicU64::new(0);
    static PEAK: AtomicU64 = AtomicU64::new(0);

    struct Counting;

    // SAFETY: every call goes to the system's allocator unchanged; only sizes are counted. `realloc` is the trait's own, by
    // these two, so that both copies count.
    unsafe impl GlobalAlloc for Counting {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            let size = layout.size() as u64;
            PEAK.fetch_max(LIVE.fetch_add(size, Ordering::SeqCst) + size, Ordering::SeqCst);
            // SAFETY: the caller's promise, passed on.
            unsafe { System.alloc(layout) }
        }

        unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
            LIVE.fetch_sub(layout.size() as u64, Ordering::SeqCst);
            // SAFETY: the caller's promise, passed on.
            unsafe { System.dealloc(start, layout) }
        }
    }

    #[global_allocator]
    static ALLOCATOR: Counting = Counting;

    /// The most that was live while `work` ran, beyond what was before.
    pub(super) fn peak_of(work: impl FnOnce()) -> u64 {
        let before = LIVE.load(Ordering::SeqCst);
        PEAK.store(before, Ordering::SeqCst);
        work();
        PEAK.load(Ordering::SeqCst) - before
    }
}

#[test]
fn a_window_takes_no_more_than_is_announced() {
    let place = tempfile::tempdir().unwrap();
    for (n, (side, level, inner)) in [
        (64, 1, None),
        (256, 1, None),
        (256, 9, None),
        (256, 1, Some(vec![32, 32])),
        (64, 1, Some(vec![8, 8])),
    ]
    .into_iter()
    .enumerate()
    {
        let what = format!("{side}² floats at level {level}, inner chunks {inner:?}");
        let options = ZarrOptions { level, inner, flush: Flush::OnSync };
        let store = ZarrTileStore::open(place.path(), options).unwrap();
        let window = TensorDesc::new([side, side], DType::F32).unwrap();
        let manifest = Manifest { window: window.clone(), index_rank: 1, fields: BTreeMap::new() };
        let id = format!("t{n}");
        store.create(&id, &manifest).unwrap();
        let mut state = 1u64;
        let mut noise = || {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            (state >> 56) as u8
        };
        let bytes: Vec<u8> = (0..window.bytes().0).map(|_| noise()).collect();
        let mut out = vec![0; bytes.len()];
        store.put(&id, &[0], &bytes).unwrap(); // What is made once is made by now.
        let announced = store.scratch(&window).0;
        let tables = 1 << 20;
        let put = counting::peak_of(|| store.put(&id, &[1], &bytes).unwrap());
        let get = counting::peak_of(|| assert!(store.get(&id, &[1], &mut out).unwrap()));
        assert!(out == bytes, "{what}");
        assert!(
            put > window.bytes().0 && put + tables <= announced,
            "{what}: put takes {put} of {announced}"
        );
        assert!(
            get > window.bytes().0 && get + tables <= announced,
            "{what}: get takes {get} of {announced}"
        );
    }
}
