//! Both engines deliver exactly the bytes of the file, and survive what files do under them.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;

use dd_offload::io::{
    BlockRead, DirectFile, EngineKind, Geometry, ReadEngine, ReadSource, engine, read_into, split,
};
use dd_offload::{Error, Result};
use proptest::prelude::*;
use tempfile::NamedTempFile;

/// Bytes of which no two places look alike.
fn pattern(len: usize) -> Vec<u8> {
    let word = |n: u64| n.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes();
    (0..).flat_map(word).take(len).collect()
}

fn file_of(bytes: &[u8]) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file.as_file().sync_all().unwrap();
    file
}

/// The engines that this machine has.
fn engines(geometry: Geometry) -> Vec<Box<dyn ReadEngine>> {
    let make = |kind| match engine(kind, geometry) {
        Ok(engine) => Some(engine),
        Err(error) if kind == EngineKind::IoUring => {
            dd_conformance::skipped!("{error}");
            None
        }
        Err(error) => panic!("{error}"),
    };
    [EngineKind::Threads, EngineKind::IoUring].into_iter().filter_map(make).collect()
}

/// A read that was delivered: its tag, and its bytes or its error.
type Delivered = (u64, Result<Vec<u8>>);

/// Gives the reads of a list and keeps what is delivered; calls `after` with the number of completions so far.
struct Script<F> {
    reads: Vec<BlockRead>,
    delivered: Vec<Delivered>,
    after: F,
}

impl<F: FnMut(usize)> ReadSource for Script<F> {
    fn next(&mut self) -> Option<BlockRead> {
        self.reads.pop()
    }

    fn complete(&mut self, read: BlockRead, data: Result<&[u8]>) {
        self.delivered.push((read.tag, data.map(<[u8]>::to_vec)));
        (self.after)(self.delivered.len());
    }
}

/// Runs the reads `(offset, len)`, tagged with their number; gives the deliveries in order of tag, each exactly once.
fn run(engine: &mut dyn ReadEngine, file: &Arc<DirectFile>, ranges: &[(u64, usize)]) -> Vec<Result<Vec<u8>>> {
    run_with(engine, file, ranges, |_| {})
}

fn run_with(
    engine: &mut dyn ReadEngine,
    file: &Arc<DirectFile>,
    ranges: &[(u64, usize)],
    after: impl FnMut(usize),
) -> Vec<Result<Vec<u8>>> {
    let read = |(tag, (offset, len)): (usize, &(u64, usize))| BlockRead {
        file: Arc::clone(file),
        offset: *offset,
        len: *len,
        tag: tag as u64,
    };
    let reads = ranges.iter().enumerate().map(read).rev().collect();
    let mut script = Script { reads, delivered: Vec::new(), after };
    engine.run(&mut script).unwrap();
    script.delivered.sort_by_key(|(tag, _)| *tag);
    let tags: Vec<u64> = script.delivered.iter().map(|(tag, _)| *tag).collect();
    assert_eq!(tags, (0..ranges.len() as u64).collect::<Vec<_>>(), "each read is delivered once");
    script.delivered.into_iter().map(|(_, data)| data).collect()
}

/// Checks every range against the bytes; what ends beyond them must be named as truncated.
fn check(engine: &mut dyn ReadEngine, file: &Arc<DirectFile>, bytes: &[u8], ranges: &[(u64, usize)]) {
    for (data, (offset, len)) in run(engine, file, ranges).into_iter().zip(ranges) {
        let place = format!("{} · {len} B at {offset} of {}", engine.name(), bytes.len());
        let start = usize::try_from(*offset).unwrap();
        match (bytes.get(start..start + len), data) {
            (Some(expected), Ok(data)) => assert!(data == expected, "{place}: other bytes"),
            (None, Ok(data)) => assert_eq!((data.len(), *len), (0, 0), "{place}: bytes beyond the end"),
            (None, Err(Error::Truncated { expected, found, path })) => {
                assert_eq!(expected, offset + *len as u64, "{place}");
                assert!(found <= bytes.len() as u64 && path == file.path(), "{place}");
            }
            (_, Err(error)) => panic!("{place}: {error}"),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn any_range_is_delivered_exactly(
        len in 1usize..200_000,
        blocks in 1usize..12,
        depth in 1usize..9,
        seeds in prop::collection::vec((0usize..1100, 0usize..1000), 1..24),
    ) {
        let bytes = pattern(len);
        let named = file_of(&bytes);
        let file = DirectFile::open(named.path()).unwrap();
        let block = blocks * 8192;
        // Any range whose aligned surroundings fit a block, some of them beyond the end of the file.
        let range = |(at, share): &(usize, usize)| {
            let offset = len * at / 1000;
            (offset as u64, (block - 4096 - offset % 4096) * share / 1000)
        };
        let ranges: Vec<(u64, usize)> = seeds.iter().map(range).collect();
        for mut engine in engines(Geometry { block, depth }) {
            check(&mut *engine, &file, &bytes, &ranges);
        }
    }

    #[test]
    fn pieces_cover_the_range_and_fit_a_block(offset in 0u64..1 << 40, len in 0u64..300_000, blocks in 1usize..20) {
        let named = file_of(b"x");
        let file = DirectFile::open(named.path()).unwrap();
        let block = blocks * 4096;
        let (mut at, cut) = (offset, block as u64);
        for piece in split(&file, offset, len, block) {
            prop_assert_eq!((piece.offset, piece.tag), (at, at - offset));
            prop_assert!(piece.len > 0 && at / cut == (at + piece.len as u64 - 1) / cut);
            at += piece.len as u64;
            prop_assert!(at == offset + len || at.is_multiple_of(cut));
        }
        prop_assert_eq!(at, offset + len);
    }
}

#[test]
fn ends_and_nothings_are_exact() {
    for len in [1, 511, 512, 4095, 4096, 4097, 20_000] {
        let bytes = pattern(len);
        let named = file_of(&bytes);
        let file = DirectFile::open(named.path()).unwrap();
        let end = len as u64;
        let ranges = [
            (0, 0),
            (end, 0),
            (end + 1, 0),
            (0, 1),
            (end - 1, 1),
            (end, 1),
            (0, len),
            (end / 2, len - len / 2),
        ];
        for mut engine in engines(Geometry { block: 32768, depth: 2 }) {
            check(&mut *engine, &file, &bytes, &ranges);
        }
    }
}

#[test]
fn a_whole_tensor_is_read_in_pieces_again_and_again() {
    let bytes = pattern(1_000_003);
    let named = file_of(&bytes);
    let file = DirectFile::open(named.path()).unwrap();
    for mut engine in engines(Geometry { block: 16384, depth: 5 }) {
        for (offset, len) in [(8usize, 900_000), (0, 1_000_003), (999_999, 4), (16384, 16384), (5, 0)] {
            let mut buffer = vec![0xAA; len];
            read_into(&mut *engine, &file, offset as u64, &mut buffer).unwrap();
            assert!(buffer == bytes[offset..offset + len], "{}: {len} B at {offset}", engine.name());
        }
        let error = read_into(&mut *engine, &file, 999_000, &mut [0; 5000]).unwrap_err();
        assert!(matches!(error, Error::Truncated { expected: 1_004_000, found: 1_000_003, .. }), "{error}");
    }
}

#[test]
fn a_file_cut_short_while_reading_is_named_and_the_engine_lives_on() {
    let bytes = pattern(64 * 8192);
    for mut engine in engines(Geometry { block: 8192, depth: 2 }) {
        let named = file_of(&bytes);
        let file = DirectFile::open(named.path()).unwrap();
        let ranges: Vec<(u64, usize)> = (0..64).map(|n| (n * 8192, 8192)).collect();
        let cut = |completions| {
            if completions == 10 {
                named.as_file().set_len(40 * 8192 + 100).unwrap();
            }
        };
        let delivered = run_with(&mut *engine, &file, &ranges, cut);
        for (n, data) in delivered.into_iter().enumerate() {
            match data {
                Ok(data) => {
                    assert!(n < 40 && data == bytes[n * 8192..][..8192], "{} read {n}", engine.name())
                }
                Err(Error::Truncated { path, .. }) => assert!(n >= 40 && path == named.path(), "read {n}"),
                Err(error) => panic!("{error}"),
            }
        }
        check(&mut *engine, &file, &bytes[..40 * 8192 + 100], &[(0, 8192), (40 * 8192, 100)]);
    }
}

#[test]
fn a_read_that_fails_is_named_and_the_engine_lives_on() {
    let bytes = pattern(10_000);
    let named = file_of(&bytes);
    let file = DirectFile::open(named.path()).unwrap();
    let beyond = 1 << 63; // No file reaches there, and the kernel says so.
    for mut engine in engines(Geometry { block: 8192, depth: 3 }) {
        let delivered =
            run(&mut *engine, &file, &[(0, 4096), (beyond, 100), (0, 8193), (u64::MAX, 7), (9_000, 1000)]);
        let [first, failed, too_long, overflow, last] = <[_; 5]>::try_from(delivered).unwrap();
        assert!(first.unwrap() == bytes[..4096] && last.unwrap() == bytes[9_000..], "{}", engine.name());
        let error = failed.unwrap_err();
        assert!(matches!(error, Error::Io { operation: "read", .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains(&format!("100 B at offset {beyond}")), "{text}");
        assert!(text.contains(&named.path().display().to_string()), "{text}");
        assert!(matches!(too_long, Err(Error::Core(dd_core::Error::Mismatch { .. }))), "{too_long:?}");
        assert!(matches!(overflow, Err(Error::Core(dd_core::Error::SizeOverflow { .. }))), "{overflow:?}");
    }
}

/// Asks for the whole file, and panics at the first completion, with the rest in flight.
struct Panics(Vec<BlockRead>);

impl ReadSource for Panics {
    fn next(&mut self) -> Option<BlockRead> {
        self.0.pop()
    }

    fn complete(&mut self, _: BlockRead, _: Result<&[u8]>) {
        panic!("a source that panics");
    }
}

#[test]
fn reads_in_flight_are_waited_for_when_a_source_panics_and_when_the_engine_is_dropped() {
    let bytes = pattern(64 * 8192);
    let named = file_of(&bytes);
    let file = DirectFile::open(named.path()).unwrap();
    let break_off = |engine: &mut dyn ReadEngine| {
        let mut source = Panics(split(&file, 0, bytes.len() as u64, 8192).collect());
        let run = std::panic::AssertUnwindSafe(|| engine.run(&mut source));
        assert!(std::panic::catch_unwind(run).is_err());
    };
    for mut engine in engines(Geometry { block: 8192, depth: 8 }) {
        for _ in 0..20 {
            break_off(&mut *engine); // More often than there are blocks: none is lost.
        }
        check(&mut *engine, &file, &bytes, &[(1, 8000), (16384, 8192), (524_287, 1)]);
        break_off(&mut *engine);
        assert!(Arc::strong_count(&file) > 1, "some are still in flight");
        drop(engine);
        assert_eq!(Arc::strong_count(&file), 1, "all have come back, none is leaked");
    }
}

#[test]
fn a_file_in_memory_is_read_through_the_cache() {
    let Ok(mut named) = NamedTempFile::new_in("/dev/shm") else {
        dd_conformance::skipped!("no /dev/shm here");
        return;
    };
    let bytes = pattern(50_001);
    named.write_all(&bytes).unwrap();
    let file = DirectFile::open(named.path()).unwrap();
    assert!(!file.is_direct());
    assert_eq!(file.alignment(), 4096);
    for mut engine in engines(Geometry { block: 8192, depth: 3 }) {
        let ranges: Vec<(u64, usize)> =
            (0..6).map(|n| (n * 8191 + 3, 4000)).chain([(50_000, 1), (50_000, 2)]).collect();
        check(&mut *engine, &file, &bytes, &ranges);
    }
}

#[test]
fn an_open_file_stays_the_one_that_was_opened() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    std::fs::write(&path, pattern(5000)).unwrap();
    let plain = File::open(&path).unwrap();
    std::fs::write(folder.path().join("other"), vec![0; 5000]).unwrap();
    std::fs::rename(folder.path().join("other"), &path).unwrap();
    let first = DirectFile::from_file(&plain, &path).unwrap();
    let second = DirectFile::open(&path).unwrap();
    for mut engine in engines(Geometry { block: 8192, depth: 1 }) {
        check(&mut *engine, &first, &pattern(5000), &[(100, 4900)]);
        check(&mut *engine, &second, &[0; 5000], &[(100, 4900)]);
    }
}

#[test]
fn what_cannot_be_opened_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let absent = folder.path().join("absent");
    for (path, expected) in [(absent.as_path(), "cannot open"), (folder.path(), "not a regular file")] {
        let error = DirectFile::open(path).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        assert!(matches!(error, Error::Io { path: found, .. } if found == path));
    }
    assert!(DirectFile::open(Path::new("/dev/zero")).unwrap_err().to_string().contains("not a regular file"));
}
