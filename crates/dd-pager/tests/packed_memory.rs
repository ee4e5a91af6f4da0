//! Packing and unpacking take a few chunks of memory, however large the tensors, and no more than they account.
#![allow(clippy::unwrap_used, reason = "tests")]

use dd_core::{Budget, Bytes};
use dd_offload::checkpoint::Checkpoint;
use dd_pager::packed::{PackOptions, PackedCheckpoint, pack, unpack};
use safetensors::tensor::{Dtype, TensorView};

mod counting {
    #![allow(unsafe_code, reason = "an allocator that counts is unsafe by its trait")]

    use std::alloc::{GlobalAlloc, Layout, System};
    use std::sync::atomic::{AtomicUsize, Ordering};

    static LIVE: AtomicUsize = AtomicUsize::new(0);
    static PEAK: AtomicUsize = AtomicUsize::new(0);

    struct Counting;

    // SAFETY: every call goes to the system's allocator unchanged; only sizes are counted.
    unsafe impl GlobalAlloc for Counting {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            let live = LIVE.fetch_add(layout.size(), Ordering::SeqCst);
            PEAK.fetch_max(live + layout.size(), Ordering::SeqCst);
            // SAFETY: the caller's promise, passed on.
            unsafe { System.alloc(layout) }
        }

        unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
            LIVE.fetch_sub(layout.size(), Ordering::SeqCst);
            // SAFETY: the caller's promise, passed on.
            unsafe { System.dealloc(start, layout) }
        }
    }

    #[global_allocator]
    static ALLOCATOR: Counting = Counting;

    /// The most bytes that were live at once while `work` ran, beyond those live before.
    pub(super) fn peak_of(work: impl FnOnce()) -> usize {
        let before = LIVE.load(Ordering::SeqCst);
        PEAK.store(before, Ordering::SeqCst);
        work();
        PEAK.load(Ordering::SeqCst) - before
    }
}

/// What is not accounted: headers, tables, names, paths. The library's own memory is accounted, though not counted here.
const SMALL: usize = 64 << 10;

/// Bits that do not shrink.
fn mixed(n: u64) -> u64 {
    let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9).wrapping_add(0x9e37_79b9_7f4a_7c15);
    (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb) ^ n >> 29
}

#[test]
fn memory_stays_at_a_few_chunks() {
    let folder = tempfile::tempdir().unwrap();
    let [source, out, back] =
        ["source.safetensors", "packed.safetensors", "back.safetensors"].map(|name| folder.path().join(name));
    let bytes: Vec<u8> =
        (0..4u32 << 20).flat_map(|n| [n.wrapping_mul(0x9e37_79b1).to_le_bytes()[3], 0x3c]).collect();
    let view = TensorView::new(Dtype::BF16, vec![4 << 20], &bytes).unwrap();
    let noise: Vec<u8> = (0..1u64 << 19).flat_map(|n| mixed(n).to_le_bytes()).collect();
    let noise = TensorView::new(Dtype::BF16, vec![2 << 20], &noise).unwrap();
    safetensors::serialize_to_file([("weight", view), ("noise", noise)], None, &source).unwrap();
    drop(bytes);
    let checkpoint = Checkpoint::open(&source).unwrap();
    let budget = Budget::new("test", Bytes::mib(4));
    let options = PackOptions { budget: budget.clone(), ..PackOptions::default() };
    let packing = counting::peak_of(|| drop(pack(&checkpoint, &out, &options, &mut |_| {}).unwrap()));
    let accounted = budget.usage().peak.to_usize().unwrap();
    assert!(packing <= accounted + SMALL, "packing: {packing} B, {accounted} B accounted");
    let packed = PackedCheckpoint::open(&out).unwrap();
    budget.reset_peak();
    let mut total = Bytes::ZERO;
    let unpacking = counting::peak_of(|| total = unpack(&packed, &back, &budget, &mut |_| {}).unwrap());
    assert_eq!(total, Bytes::mib(12));
    let accounted = budget.usage().peak.to_usize().unwrap();
    assert!(unpacking <= accounted + SMALL, "unpacking: {unpacking} B, {accounted} B accounted");
    assert_eq!(budget.usage().used, Bytes::ZERO);
}
