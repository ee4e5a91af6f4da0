//! The counting allocator as this program's allocator. One test, because its counters belong to the whole process.
#![allow(unsafe_code, reason = "blocks of odd layouts are asked for directly")]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs, reason = "tests")]

use std::alloc::{GlobalAlloc, Layout};
use std::hint::black_box;

use dd_core::{Budget, Bytes, Holder};
use dd_monitor::allocator::{
    CountingAllocator, HeapTag, MOST_TAGS, heap_total, heap_usage, reset_heap_peaks,
};
use dd_monitor::{MemoryProfiler, Root};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator::system();

const BLOCK: u64 = 8 << 20;

fn block() -> Vec<u8> {
    black_box(vec![1u8; usize::try_from(BLOCK).unwrap()])
}

#[test]
fn the_heap_is_counted_by_tag() {
    blocks_stay_with_their_tag();
    tags_nest();
    growing_keeps_the_tag();
    peaks_can_be_reset();
    odd_layouts_are_sound();
    a_profile_knows_the_heap_and_the_budget();
    too_many_tags_are_untagged();
}

fn blocks_stay_with_their_tag() {
    let tag = HeapTag::named("weights");
    assert_eq!(HeapTag::named("weights"), tag);
    let held = {
        let _scope = tag.enter();
        block()
    };
    assert_eq!(tag.counts().held, Bytes(BLOCK));
    // Given back on another thread, under another tag: still taken off this one.
    let other = HeapTag::named("other");
    std::thread::spawn(move || {
        let _scope = other.enter();
        drop(held);
    })
    .join()
    .unwrap();
    assert_eq!(tag.counts().held, Bytes::ZERO);
    assert_eq!((tag.counts().peak, tag.counts().allocations), (Bytes(BLOCK), 1));
    let usage = heap_usage().unwrap();
    let names: Vec<&str> = usage.tags.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, ["untagged", "weights", "other"]);
    assert!(usage.total.peak >= Bytes(BLOCK));
}

fn tags_nest() {
    let (outer, inner) = (HeapTag::named("outer"), HeapTag::named("inner"));
    let _outer = outer.enter();
    let first = block();
    let second = {
        let _inner = inner.enter();
        block()
    };
    let third = block();
    assert_eq!((outer.counts().held, inner.counts().held), (Bytes(2 * BLOCK), Bytes(BLOCK)));
    drop((first, second, third));
    assert_eq!((outer.counts().held, inner.counts().held), (Bytes::ZERO, Bytes::ZERO));
}

fn growing_keeps_the_tag() {
    let tag = HeapTag::named("growing");
    let mut list = {
        let _scope = tag.enter();
        Vec::<u8>::with_capacity(10)
    };
    list.extend((0..200_000u32).map(|n| n.to_le_bytes()[0]));
    assert_eq!(tag.counts().held, Bytes::of(list.capacity()));
    assert!((0..200_000u32).zip(&list).all(|(n, byte)| n.to_le_bytes()[0] == *byte));
    list.truncate(3);
    list.shrink_to_fit();
    assert_eq!((tag.counts().held, list.as_slice()), (Bytes(3), [0, 1, 2].as_slice()));
    drop(list);
    assert_eq!(tag.counts().held, Bytes::ZERO);
}

fn peaks_can_be_reset() {
    let tag = HeapTag::named("peaks");
    let _scope = tag.enter();
    drop(block());
    assert_eq!(tag.counts().peak, Bytes(BLOCK));
    reset_heap_peaks();
    assert_eq!(tag.counts().peak, Bytes::ZERO);
    assert!(heap_total().unwrap().peak < Bytes(BLOCK));
}

fn odd_layouts_are_sound() {
    for align in [1, 2, 8, 16, 64, 4096] {
        for size in [1, 7, 8, 100, 5000] {
            let layout = Layout::from_size_align(size, align).unwrap();
            // SAFETY: the layout is not empty; the block is written within its size and given back with its layout.
            unsafe {
                let zeroed = ALLOCATOR.alloc_zeroed(layout);
                assert_eq!(zeroed.align_offset(align), 0);
                assert!((0..size).all(|n| *zeroed.add(n) == 0));
                zeroed.write_bytes(7, size);
                let grown = ALLOCATOR.realloc(zeroed, layout, size * 3);
                assert_eq!(grown.align_offset(align), 0);
                assert!((0..size).all(|n| *grown.add(n) == 7));
                ALLOCATOR.dealloc(grown, Layout::from_size_align(size * 3, align).unwrap());
            }
        }
    }
    let most = Layout::from_size_align(isize::MAX as usize - 4095, 4096).unwrap();
    // SAFETY: the layout is valid; with a header it would not be, and the request is refused.
    assert!(unsafe { ALLOCATOR.alloc(most) }.is_null());
}

fn a_profile_knows_the_heap_and_the_budget() {
    let budget = Budget::new("job", Bytes::gib(1));
    let profiler = MemoryProfiler::open(&Root::default()).with_budget(&budget);
    let (kept, outer) = profiler.profile_operation("outer", || {
        drop((block(), block()));
        let (_, inner) = profiler.profile_operation("inner", || drop(block()));
        let held = inner.peak.heap.unwrap().0 - inner.before.heap.unwrap().0;
        assert!((BLOCK..BLOCK + (1 << 20)).contains(&held), "{inner:?}");
        budget.reserve(Bytes(BLOCK), &Holder::new("kept")).unwrap()
    });
    let risen = outer.peak.heap.unwrap().0 - outer.before.heap.unwrap().0;
    assert!((2 * BLOCK..2 * BLOCK + (1 << 20)).contains(&risen), "{outer:?}");
    assert_eq!((outer.peak.accounted, outer.after.accounted), (Some(kept.bytes()), Some(kept.bytes())));
}

fn too_many_tags_are_untagged() {
    let names: Vec<&'static str> = (0..MOST_TAGS).map(|n| &*format!("tag {n}").leak()).collect();
    let tags: Vec<HeapTag> = names.iter().map(|name| HeapTag::named(name)).collect();
    assert_eq!(*tags.last().unwrap(), HeapTag::UNTAGGED);
    let _scope = tags.last().unwrap().enter();
    drop(block());
}
