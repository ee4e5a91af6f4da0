//! Paged memory holds what its sources hold, whatever touches it, in whatever order, within its frames.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]
#![allow(unsafe_code, reason = "paged memory is read through its addresses, as tensor libraries do")]
#![allow(clippy::cast_possible_truncation, missing_docs, reason = "tests")]

use std::io::Write as _;
use std::sync::Arc;

use dd_core::{Budget, Bytes, DType};
use dd_offload::io::DirectFile;
use dd_pager::{
    Error, FileSource, Layout, Options, PagedMemory, Plan, Region, Result, Scratch, Source, Stats,
    WideningSource,
};

/// Whether this kernel lets a program page; where it does not, the tests say so.
fn can_page() -> bool {
    match PagedMemory::new(&Budget::unlimited("probe"), Options::new("probe", Bytes(1))) {
        Ok(_) => true,
        Err(error @ Error::Unsupported { .. }) => {
            dd_conformance::skipped!("{error}");
            false
        }
        Err(error) => panic!("{error}"),
    }
}

/// What the byte at each place of a source is.
fn byte(seed: u64, at: u64) -> u8 {
    ((at ^ seed).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8
}

struct Counted {
    seed: u64,
    head: u64,
}

impl Source for Counted {
    fn fill(&self, at: u64, out: &mut [u8], _: &mut Scratch) -> Result<()> {
        for (index, out) in out.iter_mut().enumerate() {
            *out = byte(self.seed, (at + index as u64).wrapping_sub(self.head));
        }
        Ok(())
    }
}

fn options(expected: u64, memory: Bytes, copying: bool) -> Options {
    Options { memory: Some(memory), copying, ..Options::new("weights", Bytes(expected)) }
}

fn data(region: &Region) -> &[u8] {
    // SAFETY: the region is alive while the slice is, and nothing writes to it.
    unsafe { std::slice::from_raw_parts(region.as_ptr(), region.len()) }
}

fn check(region: &Region, seed: u64) {
    for (at, found) in data(region).iter().enumerate() {
        assert_eq!(*found, byte(seed, at as u64), "byte {at} of range {seed}");
    }
}

/// Registers ranges of these sizes and heads; `passes` passes over all in order, from `threads` threads.
fn run(sizes: &[(usize, u16)], memory: Bytes, passes: usize, threads: usize, copying: bool) -> (Plan, Stats) {
    let total: u64 = sizes.iter().map(|(size, _)| *size as u64 + 8192).sum();
    let budget = Budget::new("memory", memory);
    let paged = PagedMemory::new(&budget, options(total, memory, copying)).unwrap();
    let register = |(seed, (size, head)): (usize, &(usize, u16))| {
        let source = Counted { seed: seed as u64, head: u64::from(*head) };
        paged.register(&format!("range {seed}"), *size, *head, Arc::new(source)).unwrap()
    };
    let regions: Vec<Region> = sizes.iter().enumerate().map(register).collect();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                for _ in 0..passes {
                    regions.iter().enumerate().for_each(|(seed, region)| check(region, seed as u64));
                }
            });
        }
    });
    assert!(budget.usage().peak <= memory);
    assert!(paged.plan().memory <= memory);
    (paged.plan(), paged.stats())
}

#[test]
fn holds_what_its_sources_hold() {
    if !can_page() {
        return;
    }
    let small: Vec<(usize, u16)> = (0..40).map(|k| (1 + k * 997 % 70_000, (k * 811 % 4096) as u16)).collect();
    let large: Vec<(usize, u16)> = (0..6).map(|k| (600_000 + k * 1234, (k * 8) as u16)).collect();
    let huge = vec![(5 << 20, 0), (1 << 20, 64)];
    for sizes in [&small, &large, &huge] {
        for memory in [Layout::least(), Bytes::mib(1), Bytes::mib(3), Bytes::mib(40)] {
            for (threads, copying) in [(1, false), (4, false), (1, true), (4, true)] {
                let (_, stats) = run(sizes, memory, 2, threads, copying);
                assert!(stats.filled > 0 && (copying || stats.copied == 0), "{stats:?}");
            }
        }
    }
}

#[test]
fn learns_the_order_and_then_reads_only_what_does_not_stay() {
    if !can_page() {
        return;
    }
    let sizes = vec![(1 << 20, 0); 16];
    let (plan, stats) = run(&sizes, Bytes::mib(9), 12, 1, false);
    assert!(plan.learned && stats.passes >= 10, "{plan:?} {stats:?}");
    let units = (plan.used.0 / plan.layout.unit as u64, plan.streamed.0 / plan.layout.unit as u64);
    // The first passes read everything; each later one what streams, and now and then a unit that was late.
    let most = units.0 * 2 + units.1 * 10;
    assert!(stats.filled <= most + most / 10, "{} units filled, at most {most}: {plan:?}", stats.filled);
    println!("{plan:?} {stats:?}");
}

#[test]
fn reads_files_as_they_are_and_widened() {
    if !can_page() {
        return;
    }
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let words: Vec<u16> = (0..3_000_011u32).map(|k| (k.wrapping_mul(40_503) >> 3) as u16 & 0xFF7F).collect();
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    file.write_all(&bytes).unwrap();
    let direct = DirectFile::open(file.path()).unwrap();
    let budget = Budget::unlimited("memory");
    let paged = PagedMemory::new(&budget, options(20 << 20, Bytes::mib(2), false)).unwrap();
    let mut plain = Vec::new();
    for (offset, len) in [(0u64, 4096u64), (8, 1_000_000), (4095, 3), (5_000_001, 1_000_021), (77, 0)] {
        let source = FileSource::new(direct.clone(), "plain", offset, len).unwrap();
        let head = FileSource::head_of(offset);
        plain.push((offset as usize, paged.register("plain", len as usize, head, Arc::new(source)).unwrap()));
    }
    let pair = (DType::BF16, DType::F32);
    let wide = WideningSource::new(direct.clone(), "wide", (2, 6_000_020), pair).unwrap();
    let wide = paged.register("wide", 12_000_040, 0, Arc::new(wide)).unwrap();
    for _ in 0..3 {
        for (offset, region) in &plain {
            assert!(data(region) == &bytes[*offset..*offset + region.len()], "at {offset}");
        }
        for (index, value) in data(&wide).chunks_exact(4).enumerate() {
            assert_eq!(value, (u32::from(words[index + 1]) << 16).to_le_bytes(), "value {index}");
        }
    }
    assert!(matches!(FileSource::new(direct, "past", 6_000_000, 100), Err(Error::Read { .. })));
}

#[test]
fn refuses_what_cannot_work() {
    if !can_page() {
        return;
    }
    let least = Layout::least();
    let budget = Budget::new("memory", least.saturating_sub(Bytes(1)));
    let refused = PagedMemory::new(&budget, Options::new("weights", Bytes::mib(64)));
    assert!(matches!(&refused, Err(Error::TooSmall { least: said, .. }) if *said == least), "{refused:?}");
    assert_eq!(budget.usage().used, Bytes::ZERO);
    let options = Options { capacity: Bytes::mib(2), ..options(1 << 20, least, false) };
    let paged = PagedMemory::new(&Budget::new("memory", least), options).unwrap();
    let register = |len, head| paged.register("range", len, head, Arc::new(Counted { seed: 0, head: 0 }));
    for (len, head) in [(usize::MAX, 0), (3 << 20, 0), (1, 4096)] {
        assert!(matches!(register(len, head), Err(Error::Invalid { .. })), "{len} {head}");
    }
    assert!(register(0, 0).unwrap().is_empty());
}

#[test]
fn gives_everything_back() {
    if !can_page() {
        return;
    }
    let budget = Budget::new("memory", Bytes::mib(4));
    for _ in 0..20 {
        let paged = PagedMemory::new(&budget, options(8 << 20, Bytes::mib(4), false)).unwrap();
        let region = paged.register("a", 4 << 20, 0, Arc::new(Counted { seed: 3, head: 0 })).unwrap();
        drop(paged);
        check(&region, 3);
        drop(region);
        assert_eq!(budget.usage().used, Bytes::ZERO);
    }
}
