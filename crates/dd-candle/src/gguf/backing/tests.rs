//! Random reads and writes of backed memory under a real pager whose frames hold a fraction of it, against a plain copy.
#![allow(
    unsafe_code,
    reason = "paged memory is read and written through its address, by the one thread that has it"
)]

use dd_core::{Budget, Bytes};
use dd_offload::store::SpillConfig;
use dd_pager::{Options, PagedMemory, Region};
use proptest::prelude::*;

use super::*;

struct Fixture {
    file: Arc<ModelFile>,
    content: Vec<u8>,
    spill: Arc<Spill>,
    pager: PagedMemory,
    directory: tempfile::TempDir,
}

const FILE: usize = (1 << 20) + 123;

impl Fixture {
    /// Nothing where the kernel does not page.
    fn new(limit: Bytes) -> Option<Self> {
        let options = Options { capacity: Bytes::gib(1), ..Options::new("backing", Bytes::mib(16)) };
        let least = dd_pager::Layout::least();
        let pager = match PagedMemory::new(&Budget::new("test", least), options) {
            Err(Error::Unsupported { reason }) => {
                dd_conformance::skipped!("{reason}");
                return None;
            }
            other => other.unwrap(),
        };
        let directory = tempfile::tempdir().unwrap();
        let content: Vec<u8> =
            (0..FILE as u64).map(|i| (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8).collect();
        let path = directory.path().join("model");
        std::fs::write(&path, &content).unwrap();
        let config =
            SpillConfig { directory: Some(directory.path().to_owned()), limit, ..SpillConfig::default() };
        Some(Self {
            file: Arc::new(ModelFile::open(&path).unwrap()),
            content,
            spill: Arc::new(Spill::open(&config).unwrap()),
            pager,
            directory,
        })
    }

    fn range(&self, range: Range<usize>) -> FileRange {
        FileRange { file: Arc::clone(&self.file), range: range.start as u64..range.end as u64 }
    }

    fn memory(&self, len: usize, copied: Option<(FileRange, Arc<Digests>)>) -> Memory {
        let head = copied.as_ref().map_or(0, |(file, _)| file.head());
        let backing = Backing::new("memory".to_owned(), (head, len), Arc::clone(&self.spill), copied);
        let backing = Arc::new(backing.awaiting());
        let source = Arc::clone(&backing);
        let region = self.pager.register("memory", len, u16::try_from(head).unwrap(), source).unwrap();
        Memory { region, backing, expected: vec![0; len] }
    }

    /// A buffer that is told what it holds; on a busy machine it can be told too late, and then another is.
    fn holding(&self, file: &FileRange) -> (Memory, Arc<Digests>) {
        let len = usize::try_from(file.range.end - file.range.start).unwrap();
        let tries = std::iter::repeat_with(|| {
            let buffer = self.memory(len, None);
            let digests = buffer.backing.hold(file.clone())?;
            Some((buffer, digests))
        });
        tries.take(100).flatten().next().unwrap()
    }

    /// As a loader does it: a buffer that is told what it holds, and a copy of it.
    fn loaded(&self, range: Range<usize>) -> Memory {
        let file = self.range(range.clone());
        let (mut buffer, digests) = self.holding(&file);
        buffer.expected.copy_from_slice(&self.content[range.clone()]);
        let mut copy = self.memory(range.len(), Some((file, digests)));
        copy.write(0, buffer.bytes());
        buffer.check();
        copy
    }
}

struct Memory {
    region: Region,
    backing: Arc<Backing>,
    expected: Vec<u8>,
}

impl Memory {
    fn bytes(&self) -> &[u8] {
        // SAFETY: the region has so many bytes, readable while it lives, and this thread alone writes them, through
        // `write`, which borrows this exclusively.
        unsafe { std::slice::from_raw_parts(self.region.as_ptr(), self.region.len()) }
    }

    fn write(&mut self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= self.region.len());
        // SAFETY: within the region, as checked; the borrow is exclusive, and `bytes` is no part of this region.
        unsafe { std::ptr::copy(bytes.as_ptr(), self.region.as_ptr().add(at), bytes.len()) };
        self.expected[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn check(&self) {
        let wrong = self.bytes().iter().zip(&self.expected).position(|(found, expected)| found != expected);
        assert_eq!(wrong, None);
    }

    fn filed(&self) -> usize {
        self.backing.lock().places.iter().filter(|place| **place == Place::Filed).count()
    }
}

/// Touches more memory than there are frames, so that everything else is evicted.
fn flush(fixture: &Fixture) {
    let other = fixture.memory(2 << 20, None);
    other.check();
    other.check();
}

#[test]
fn a_copy_of_the_file_is_read_from_the_file_and_nothing_is_written() {
    let Some(fixture) = Fixture::new(Bytes::ZERO) else { return };
    // Aligned and not, from the middle of a page to the middle of one, to the end of the file, less than a page.
    for range in [0..1 << 20, 96..900_000, 4096 + 32..700_001, 500_000..FILE, 64..70_000, 4000..4100] {
        let copy = fixture.loaded(range.clone());
        flush(&fixture);
        copy.check();
        flush(&fixture);
        // What is larger than all frames was evicted; of the rest it depends.
        let pages = range.end.div_ceil(PAGE) - range.start / PAGE;
        assert!(range.len() < 500_000 || copy.filed() > pages / 4, "{range:?}: {} of {pages}", copy.filed());
    }
    assert_eq!(fixture.spill.written(), Bytes::ZERO);
}

#[test]
fn what_only_looks_like_a_copy_is_spilled() {
    let Some(fixture) = Fixture::new(Bytes::MAX) else { return };
    let file = fixture.range(32..300_032);
    let (mut buffer, digests) = fixture.holding(&file);
    buffer.expected.copy_from_slice(&fixture.content[32..300_032]);
    let mut other = fixture.memory(300_000, Some((file, digests)));
    let mut converted = buffer.bytes().to_vec();
    converted.iter_mut().skip(150_000).for_each(|byte| *byte = byte.wrapping_add(1));
    other.write(0, &converted);
    // A buffer that somebody writes to after it was read.
    buffer.write(77_777, b"changed");
    for _ in 0..3 {
        flush(&fixture);
        other.check();
        buffer.check();
    }
    let spilled = fixture.spill.written().0;
    assert!((150_000..300_000).contains(&spilled), "{spilled} B: the changed pages, once");
}

#[test]
fn a_touched_buffer_or_one_of_another_length_holds_nothing() {
    let Some(fixture) = Fixture::new(Bytes::MAX) else { return };
    let memory = fixture.memory(100_000, None);
    memory.check();
    assert!(memory.backing.hold(fixture.range(0..100_000)).is_none());
    let memory = fixture.memory(100_000, None);
    assert!(memory.backing.hold(fixture.range(0..100_001)).is_none(), "longer");
    let (memory, _) = fixture.holding(&fixture.range(0..100_000));
    assert!(memory.backing.hold(fixture.range(0..100_000)).is_none(), "twice");
}

#[test]
fn a_file_that_was_written_to_is_refused() {
    let Some(fixture) = Fixture::new(Bytes::MAX) else { return };
    fixture.file.check("tensor").unwrap();
    std::fs::write(fixture.directory.path().join("model"), [7; 100]).unwrap();
    let error = fixture.file.check("tensor").unwrap_err().to_string();
    assert!(error.contains("tensor") && error.contains("100 now"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn no_write_is_ever_lost(
        starts in proptest::collection::vec(0usize..4096, 2),
        writes in proptest::collection::vec((0usize..4, 0usize..480_000, 1usize..30_000, any::<u8>()), 1..24),
    ) {
        let Some(fixture) = Fixture::new(Bytes::MAX) else { return Ok(()) };
        let mut memories: Vec<Memory> = starts.iter().map(|start| fixture.loaded(*start..start + 500_000)).collect();
        memories.push(fixture.memory(510_000, None));
        memories.push(fixture.memory(512_000, None));
        for (which, at, len, value) in writes {
            // Sometimes the bytes that are there already, sometimes zeros.
            let bytes = match value {
                0..60 => memories[which].expected[at..(at + len).min(500_000)].to_vec(),
                60..120 => vec![0; len.min(500_000 - at)],
                _ => vec![value; len.min(500_000 - at)],
            };
            memories[which].write(at, &bytes);
            memories[usize::from(value) % 4].check();
        }
        memories.iter().for_each(Memory::check);
    }
}
